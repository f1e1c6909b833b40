#pragma once

#include "linalg/panels.hpp"

namespace natgrad {

// w_i / sum_i w_i for the cases, 0 for the columns that fill up the last panel.
template <class T>
class CaseWeights {
 public:
  // `weights` is (N,), null for equal ones; `total` is what they are divided by, their sum if 0.
  CaseWeights(Index num_cases, const double* weights, double total = 0);
  CaseWeights(const CaseWeights& other);
  CaseWeights(CaseWeights&&) = default;
  Index num_cases() const { return num_cases_; }
  // u = w_i u_i / sum_i w_i for the cases of panels [first, first + u.count); zero in columns past
  // N.
  void apply(Index first, PanelView<T> u) const { scale(data_, first, u); }
  // The same with the square roots of these factors.
  void apply_root(Index first, PanelView<T> u) const { scale(roots_, first, u); }
  // sum over cases [begin, end) of w_i / sum_i w_i.
  double share(Index begin, Index end) const;
  // sum_i w_i values_i / sum_i w_i, added up in order.
  double mean(const double* values) const;

 private:
  void scale(const Buffer<T>& factors, Index first, PanelView<T> u) const;

  Index num_cases_;
  Buffer<T> data_, roots_;  // (N filled up,)
  Buffer<double> exact_;    // (N,)
};

}  // namespace natgrad
