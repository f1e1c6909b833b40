#include "loss.hpp"

#include <Eigen/Core>
#include <algorithm>

#include "parallel.hpp"

namespace natgrad {
namespace {

constexpr int width_of(Index w) {
  return static_cast<int>(w);
}

// One panel as a (rows x width) array; a row is an output, a column a case.
template <class T>
using PanelArray =
    Eigen::Array<T, Eigen::Dynamic, width_of(Tile<std::remove_const_t<T>>::width), Eigen::RowMajor>;
template <class T>
using PanelMap = Eigen::Map<PanelArray<T>, Eigen::AlignedMax>;
template <class T>
using ConstPanelMap = Eigen::Map<const PanelArray<T>, Eigen::AlignedMax>;
template <class T, class Scalar = T>
using LaneArray = Eigen::Array<Scalar, 1, width_of(Tile<T>::width)>;
template <class T>
using LaneMap = Eigen::Map<LaneArray<T, double>>;

template <class T>
ConstPanelMap<T> array(PanelView<const T> view, Index j) {
  return ConstPanelMap<T>(view.panel(j), view.rows, Tile<T>::width);
}
template <class T>
PanelMap<T> array(PanelView<T> view, Index j) {
  return PanelMap<T>(view.panel(j), view.rows, Tile<T>::width);
}

// p = softmax(z) for every column.
template <class T>
void softmax(const ConstPanelMap<T>& z, PanelMap<T> p) {
  LaneArray<T> top = z.row(0);
  for (Index c = 1; c < z.rows(); ++c) top = top.max(z.row(c));
  LaneArray<T> sum = LaneArray<T>::Zero();
  for (Index c = 0; c < z.rows(); ++c) {
    p.row(c) = (z.row(c) - top).exp();
    sum += p.row(c);
  }
  for (Index c = 0; c < z.rows(); ++c) p.row(c) /= sum;
}

// sum_c y_c (log sum_k exp z_k - z_c); the shift by the largest z is taken before the logarithm is
// added, so that logits of 1e4 keep their digits.
template <class T>
LaneArray<T, double> softmax_values(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y) {
  LaneArray<T> top = z.row(0);
  for (Index c = 1; c < z.rows(); ++c) top = top.max(z.row(c));
  LaneArray<T, double> sum = LaneArray<T, double>::Zero();
  for (Index c = 0; c < z.rows(); ++c) sum += (z.row(c) - top).exp().template cast<double>();
  const LaneArray<T, double> log_sum = sum.log();
  LaneArray<T, double> values = LaneArray<T, double>::Zero();
  for (Index c = 0; c < z.rows(); ++c)
    values +=
        y.row(c).template cast<double>() * ((top - z.row(c)).template cast<double>() + log_sum);
  return values;
}

// M_i r for diag(p) - p p', centred: p (r - p'r).
template <class T>
void multiply_softmax(const ConstPanelMap<T>& p, PanelMap<T> r) {
  LaneArray<T> mean = LaneArray<T>::Zero();
  for (Index c = 0; c < p.rows(); ++c) mean += p.row(c) * r.row(c);
  for (Index c = 0; c < p.rows(); ++c) r.row(c) = p.row(c) * (r.row(c) - mean);
}

}  // namespace

template <class T>
CaseWeights<T>::CaseWeights(Index num_cases, const double* weights)
    : num_cases_(num_cases),
      data_(Panels<T>::count_for(num_cases) * Tile<T>::width),
      exact_(num_cases) {
  double sum = 0;
  for (Index i = 0; i < num_cases; ++i) sum += weights ? weights[i] : 1.0;
  std::fill(data_.data(), data_.data() + data_.size(), T(0));
  for (Index i = 0; i < num_cases; ++i) {
    exact_[i] = (weights ? weights[i] : 1.0) / sum;
    data_[i] = static_cast<T>(exact_[i]);
  }
}

template <class T>
void CaseWeights<T>::apply(Index first, PanelView<T> u) const {
  for (Index j = 0; j < u.count; ++j) {
    auto uj = array(u, j);
    const Eigen::Map<const LaneArray<T>> w(data_.data() + (first + j) * Tile<T>::width);
    for (Index c = 0; c < u.rows; ++c) uj.row(c) *= w;
  }
}

template <class T>
double CaseWeights<T>::mean(const double* values) const {
  double sum = 0;
  for (Index i = 0; i < num_cases_; ++i)
    if (exact_[i] > 0) sum += exact_[i] * values[i];
  return sum;
}

template <class T>
void loss_values(Loss loss, PanelView<const T> z, PanelView<const T> y, double* values) {
  for (Index j = 0; j < z.count; ++j) {
    const auto zj = array(z, j);
    const auto yj = array(y, j);
    LaneMap<T> out(values + j * Tile<T>::width);
    switch (loss) {
      case Loss::squared_error:
        out.setZero();
        for (Index c = 0; c < z.rows; ++c)
          out += 0.5 * (zj.row(c) - yj.row(c)).template cast<double>().square();
        break;
      case Loss::softmax_cross_entropy:
        out = softmax_values<T>(zj, yj);
        break;
      case Loss::bernoulli_cross_entropy:  // log(1 + e^z) - y z = max(z, 0) - y z + log(1 + e^-|z|)
        out.setZero();
        for (Index c = 0; c < z.rows; ++c)
          out += ((zj.row(c).max(T(0)) - yj.row(c) * zj.row(c)) + (-zj.row(c).abs()).exp().log1p())
                     .template cast<double>();
        break;
    }
  }
}

template <class T>
void loss_gradient(Loss loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g) {
  for (Index j = 0; j < z.count; ++j) {
    const auto zj = array(z, j);
    const auto yj = array(y, j);
    auto gj = array(g, j);
    switch (loss) {
      case Loss::squared_error:
        gj = zj - yj;
        break;
      case Loss::softmax_cross_entropy: {  // sum_c y_c = 1
        softmax<T>(zj, gj);
        gj -= yj;
        break;
      }
      case Loss::bernoulli_cross_entropy:
        gj = zj.logistic() - yj;
        break;
    }
  }
}

template <class T>
OutputCurvature<T>::OutputCurvature(Loss loss, PanelView<const T> z, int num_threads) {
  switch (loss) {
    case Loss::squared_error:
      kind_ = Kind::identity;
      return;
    case Loss::softmax_cross_entropy:
      kind_ = Kind::softmax;
      break;
    case Loss::bernoulli_cross_entropy:
      kind_ = Kind::diagonal;
      break;
  }
  data_ = Panels<T>(z.rows, z.count * Tile<T>::width);
  parallel_for(z.count, num_threads, [&](Index j, int) {
    auto out = array(data_.view(), j);
    const auto zj = array(z, j);
    if (kind_ == Kind::softmax) {
      softmax<T>(zj, out);
    } else {  // p (1 - p) = e / (1 + e)^2 with e = exp(-|z|): no cancellation when p is near 1
      out = (-zj.abs()).exp();
      out = out / (T(1) + out).square();
    }
  });
}

template <class T>
void OutputCurvature<T>::multiply(Index first, PanelView<T> r) const {
  if (kind_ == Kind::identity) return;
  for (Index j = 0; j < r.count; ++j) {
    auto rj = array(r, j);
    const auto m = array(data_.view(), first + j);
    if (kind_ == Kind::diagonal) {
      rj *= m;
    } else {
      multiply_softmax<T>(m, rj);
    }
  }
}

template <class T>
void OutputCurvature<T>::inner(Index first,
                               PanelView<const T> r,
                               PanelView<const T> s,
                               double* values) const {
  for (Index j = 0; j < r.count; ++j) {
    const auto rj = array(r, j);
    const auto sj = array(s, j);
    LaneMap<T> out(values + j * Tile<T>::width);
    LaneArray<T, double> r_mean = LaneArray<T, double>::Zero(), s_mean = r_mean;
    out.setZero();
    if (kind_ == Kind::softmax) {
      const auto p = array(data_.view(), first + j);
      for (Index c = 0; c < r.rows; ++c) {
        r_mean += (p.row(c) * rj.row(c)).template cast<double>();
        s_mean += (p.row(c) * sj.row(c)).template cast<double>();
      }
    }
    for (Index c = 0; c < r.rows; ++c) {
      LaneArray<T, double> term = (rj.row(c).template cast<double>() - r_mean) *
                                  (sj.row(c).template cast<double>() - s_mean);
      if (kind_ != Kind::identity)
        term *= array(data_.view(), first + j).row(c).template cast<double>();
      out += term;
    }
  }
}

#define NATGRAD_INSTANTIATE(T)                                                      \
  template class CaseWeights<T>;                                                    \
  template class OutputCurvature<T>;                                                \
  template void loss_values(Loss, PanelView<const T>, PanelView<const T>, double*); \
  template void loss_gradient(Loss, PanelView<const T>, PanelView<const T>, PanelView<T>);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
