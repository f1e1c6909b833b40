// Losses L(y, z) of one case, summed over the C outputs, z the natural parameters; and the weights
// of cases. Views hold one tile of cases: z (C x cases), y (num_targets x cases) in panels.
//
// Scale conventions of the whole library, fixed by CaseWeights and used nowhere else:
//   h = sum_i w_i L(y_i, z_i) / sum_i w_i + (l2 / 2) |params|^2,    w_i = 1 by default,
// and curvature carries the same weights.
#pragma once

#include <array>
#include <string_view>

#include "linalg/panels.hpp"

namespace natgrad {

//   squared_error            (z - y)^2 / 2
//   softmax_cross_entropy    sum_c y_c (log sum_k exp z_k - z_c), one distribution over C classes
//   bernoulli_cross_entropy  log(1 + e^z) - y z
//   poisson                  e^z - y z
//   student_t                (df + 1)/2 log(1 + r^2 / (df scale^2)),  r = y - z
//   gaussian_mean_variance   r^2 e^-s / 2 + s / 2,  r = y - m,  z = (m_1 .. m_k, s_1 .. s_k)
enum class LossKind {
  squared_error,
  softmax_cross_entropy,
  bernoulli_cross_entropy,
  poisson,
  student_t,
  gaussian_mean_variance,
};

// Names in the order of the enumerators.
inline constexpr std::array<std::string_view, 6> loss_names = {"squared_error",
                                                               "softmax_cross_entropy",
                                                               "bernoulli_cross_entropy",
                                                               "poisson",
                                                               "student_t",
                                                               "gaussian_mean_variance"};

struct Loss {
  LossKind kind = LossKind::squared_error;
  // Of student_t alone.
  double degrees_of_freedom = 0;
  double scale = 1;

  // Targets of a case for C outputs.
  Index num_targets(Index num_outputs) const {
    return kind == LossKind::gaussian_mean_variance ? num_outputs / 2 : num_outputs;
  }
  // Whether F_R(z) = d2L/dz2 for every y: z are the natural parameters of an exponential family
  // with fixed dispersion.
  bool fisher_is_hessian() const { return !hessian_needs_targets(); }
  // Whether d2L/dz2 depends on y.
  bool hessian_needs_targets() const {
    return kind == LossKind::student_t || kind == LossKind::gaussian_mean_variance;
  }
};

// w_i / sum_i w_i for the cases, 0 for the columns that fill up the last panel.
template <class T>
class CaseWeights {
 public:
  // `weights` is (N,), null for equal ones; `total` is what they are divided by, their sum if 0.
  CaseWeights(Index num_cases, const double* weights, double total = 0);
  Index num_cases() const { return num_cases_; }
  // u = w_i u_i / sum_i w_i for the cases of panels [first, first + u.count); zero in columns past
  // N.
  void apply(Index first, PanelView<T> u) const { scale(data_, first, u); }
  // The same with the square roots of these factors.
  void apply_root(Index first, PanelView<T> u) const { scale(roots_, first, u); }
  // sum_i w_i values_i / sum_i w_i, added up in order.
  double mean(const double* values) const;

 private:
  void scale(const Buffer<T>& factors, Index first, PanelView<T> u) const;

  Index num_cases_;
  Buffer<T> data_, roots_;  // (N filled up,)
  Buffer<double> exact_;    // (N,)
};

// values[i] = L(y_i, z_i), one per column of the view (count * width of them).
template <class T>
void loss_values(Loss loss, PanelView<const T> z, PanelView<const T> y, double* values);

// g = dL/dz, (C x cases).
template <class T>
void loss_gradient(Loss loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g);

// p = softmax(z) of every case.
template <class T>
void softmax(PanelView<const T> z, PanelView<T> p);

}  // namespace natgrad
