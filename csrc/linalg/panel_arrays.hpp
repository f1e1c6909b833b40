// Panels as Eigen arrays: a panel is (rows x width), a row an output, a column ("lane") a case.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "linalg/panels.hpp"

namespace natgrad {

template <class T>
inline constexpr int num_lanes = static_cast<int>(Tile<std::remove_const_t<T>>::width);
template <class T>
using PanelArray = Eigen::Array<T, Eigen::Dynamic, num_lanes<T>, Eigen::RowMajor>;
template <class T>
using PanelMap = Eigen::Map<PanelArray<T>, Eigen::AlignedMax>;
template <class T>
using ConstPanelMap = Eigen::Map<const PanelArray<T>, Eigen::AlignedMax>;
// One number a case.
template <class T, class Scalar = T>
using LaneArray = Eigen::Array<Scalar, 1, num_lanes<T>>;
template <class T>
using LaneMap = Eigen::Map<LaneArray<T, double>>;

template <class T>
ConstPanelMap<T> array(PanelView<const T> view, Index j) {
  return ConstPanelMap<T>(view.panel(j), view.rows, num_lanes<T>);
}
template <class T>
PanelMap<T> array(PanelView<T> view, Index j) {
  return PanelMap<T>(view.panel(j), view.rows, num_lanes<T>);
}

// A row in double.
template <class T>
auto wide(const ConstPanelMap<T>& a, Index row) {
  return a.row(row).template cast<double>();
}

// a b, 0 where a = 0 even if b is Inf: a residual of zero has no part in the loss, however small
// the variance, nor has a case of no weight, however large its loss.
template <class A, class B>
auto zero_times(const A& a, const B& b) {
  using Scalar = typename A::Scalar;
  return (a == Scalar(0)).select(Scalar(0), a * b);
}

}  // namespace natgrad
