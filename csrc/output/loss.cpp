#include "output/loss.hpp"

#include <algorithm>
#include <cmath>

#include "linalg/panel_arrays.hpp"

namespace natgrad {
namespace {

template <class T>
auto wide(const ConstPanelMap<T>& a, Index row) {
  return a.row(row).template cast<double>();
}

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

// p - y; where y is 1, minus the sum of the other p: no cancellation where p is near 1.
template <class T>
void subtract_targets(const ConstPanelMap<T>& y, PanelMap<T> p) {
  LaneArray<T> others = LaneArray<T>::Zero();
  for (Index c = 0; c < y.rows(); ++c) others += (y.row(c) == T(1)).select(T(0), p.row(c));
  for (Index c = 0; c < y.rows(); ++c)
    p.row(c) = (y.row(c) == T(1)).select(-others, p.row(c) - y.row(c));
}

// Sums over the outputs, in double.
template <class T>
void values_of(Loss loss,
               const ConstPanelMap<T>& z,
               const ConstPanelMap<T>& y,
               LaneArray<T, double>& out) {
  out.setZero();
  switch (loss.kind) {
    case LossKind::squared_error:
      for (Index c = 0; c < z.rows(); ++c)
        out += 0.5 * (z.row(c) - y.row(c)).template cast<double>().square();
      break;
    case LossKind::softmax_cross_entropy:
      out = softmax_values<T>(z, y);
      break;
    case LossKind::bernoulli_cross_entropy:  // max(z, 0) - y z + log(1 + e^-|z|)
      for (Index c = 0; c < z.rows(); ++c)
        out += ((z.row(c).max(T(0)) - y.row(c) * z.row(c)) + (-z.row(c).abs()).exp().log1p())
                   .template cast<double>();
      break;
    case LossKind::poisson:
      for (Index c = 0; c < z.rows(); ++c)
        out += exp_of(wide<T>(z, c)) - wide<T>(y, c) * wide<T>(z, c);
      break;
    case LossKind::student_t: {
      const double df = loss.degrees_of_freedom, spread = loss.scale * std::sqrt(df);
      for (Index c = 0; c < z.rows(); ++c)
        out += 0.5 * (df + 1) * ((wide<T>(y, c) - wide<T>(z, c)) / spread).square().log1p();
      break;
    }
    case LossKind::gaussian_mean_variance:
      for (Index c = 0; c < y.rows(); ++c) {
        const LaneArray<T, double> r = wide<T>(y, c) - wide<T>(z, c), s = wide<T>(z, y.rows() + c);
        out += 0.5 * (zero_times(r, exp_of(-0.5 * s)).square() + s);
      }
      break;
  }
}

template <class T>
void gradient_of(Loss loss, const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) {
  switch (loss.kind) {
    case LossKind::squared_error:
      g = z - y;
      break;
    case LossKind::softmax_cross_entropy:  // sum_c y_c = 1
      softmax<T>(z, g);
      subtract_targets<T>(y, g);
      break;
    case LossKind::bernoulli_cross_entropy:  // 1 - p(z) = p(-z), without cancellation
      g = (y == T(1)).select(-(-z).logistic(), z.logistic() - y);
      break;
    case LossKind::poisson:
      g = exp_of(z) - y;
      break;
    case LossKind::student_t: {  // (df + 1) (z - y) / (df scale^2 + r^2), where r^2 may overflow
      const double df = loss.degrees_of_freedom, spread = loss.scale * std::sqrt(df);
      g = (z - y) / T(spread);
      g = T((df + 1) / spread) / (g + g.inverse());
      break;
    }
    case LossKind::gaussian_mean_variance:
      for (Index c = 0; c < y.rows(); ++c) {
        const LaneArray<T> r = y.row(c) - z.row(c), root = exp_of(T(-0.5) * z.row(y.rows() + c)),
                           scaled = zero_times(r, root);  // r / standard deviation
        g.row(c) = -zero_times(scaled, root);
        g.row(y.rows() + c) = T(0.5) * (T(1) - scaled.square());
      }
      break;
  }
}

}  // namespace

template <class T>
CaseWeights<T>::CaseWeights(Index num_cases, const double* weights, double total)
    : num_cases_(num_cases),
      data_(Panels<T>::count_for(num_cases) * Tile<T>::width),
      roots_(data_.size()),
      exact_(num_cases) {
  double sum = total;
  for (Index i = 0; total == 0 && i < num_cases; ++i) sum += weights ? weights[i] : 1.0;
  std::fill(data_.data(), data_.data() + data_.size(), T(0));
  std::fill(roots_.data(), roots_.data() + roots_.size(), T(0));
  for (Index i = 0; i < num_cases; ++i) {
    exact_[i] = (weights ? weights[i] : 1.0) / sum;
    data_[i] = static_cast<T>(exact_[i]);
    roots_[i] = static_cast<T>(std::sqrt(exact_[i]));
  }
}

template <class T>
void CaseWeights<T>::scale(const Buffer<T>& factors, Index first, PanelView<T> u) const {
  for (Index j = 0; j < u.count; ++j) {
    auto uj = array(u, j);
    const Eigen::Map<const LaneArray<T>> w(factors.data() + (first + j) * Tile<T>::width);
    for (Index c = 0; c < u.rows; ++c) uj.row(c) = zero_times(w, uj.row(c));
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
    LaneArray<T, double> sums;
    values_of<T>(loss, array(z, j), array(y, j), sums);
    LaneMap<T>(values + j * Tile<T>::width) = sums;
  }
}

template <class T>
void loss_gradient(Loss loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g) {
  for (Index j = 0; j < z.count; ++j) gradient_of<T>(loss, array(z, j), array(y, j), array(g, j));
}

template <class T>
void softmax(PanelView<const T> z, PanelView<T> p) {
  for (Index j = 0; j < z.count; ++j) softmax<T>(array(z, j), array(p, j));
}

#define NATGRAD_INSTANTIATE(T)                                                             \
  template class CaseWeights<T>;                                                           \
  template void loss_values(Loss, PanelView<const T>, PanelView<const T>, double*);        \
  template void loss_gradient(Loss, PanelView<const T>, PanelView<const T>, PanelView<T>); \
  template void softmax(PanelView<const T>, PanelView<T>);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
