// Losses L(y, z) of one case, summed over the C outputs, z the natural parameters; and the (C x C)
// matrices that curvature needs of them. Views hold one tile of cases: z, y (C x cases) in panels.
//
// Scale conventions of the whole library, fixed by CaseWeights and used nowhere else:
//   h = sum_i w_i L(y_i, z_i) / sum_i w_i + (l2 / 2) |params|^2,    w_i = 1 by default,
// and curvature carries the same weights.
#pragma once

#include <array>
#include <string_view>

#include "panels.hpp"

namespace natgrad {

enum class Loss { squared_error, softmax_cross_entropy, bernoulli_cross_entropy };

// Names in the order of the enumerators.
inline constexpr std::array<std::string_view, 3> loss_names = {
    "squared_error", "softmax_cross_entropy", "bernoulli_cross_entropy"};

// w_i / sum_i w_i for the cases, 0 for the columns that fill up the last panel.
template <class T>
class CaseWeights {
 public:
  // `weights` is (N,), null for equal ones.
  CaseWeights(Index num_cases, const double* weights);
  Index num_cases() const { return num_cases_; }
  // u = w_i u_i / sum_i w_i for the cases of panels [first, first + u.count); zero in columns past
  // N.
  void apply(Index first, PanelView<T> u) const;
  // sum_i w_i values_i / sum_i w_i, added up in order.
  double mean(const double* values) const;

 private:
  Index num_cases_;
  Buffer<T> data_;        // (N filled up,)
  Buffer<double> exact_;  // (N,)
};

// values[i] = L(y_i, z_i), one per column of the view (count * width of them).
template <class T>
void loss_values(Loss loss, PanelView<const T> z, PanelView<const T> y, double* values);

// g = dL/dz, (C x cases).
template <class T>
void loss_gradient(Loss loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g);

// Per-case (C x C) symmetric matrices M_i in the space of outputs:
//   identity   I                  squared_error
//   diagonal   diag(m_i)          bernoulli_cross_entropy: m = p (1 - p)
//   softmax    diag(p_i) - p_i p_i'
template <class T>
class OutputCurvature {
 public:
  enum class Kind { identity, diagonal, softmax };

  // The Fisher matrix F_R(z_i) of the predictive distribution; for these losses it is also the
  // Hessian of L in z, since z are natural parameters (paper: F = GGN). z (C x N).
  OutputCurvature(Loss loss, PanelView<const T> z, int num_threads);

  // r = M_i r in place, for the cases of panels [first, first + r.count).
  void multiply(Index first, PanelView<T> r) const;
  // values[i] = r_i' M_i s_i, by the factors of M_i = Q_i Q_i', so >= 0 for r = s.
  void inner(Index first, PanelView<const T> r, PanelView<const T> s, double* values) const;

 private:
  Kind kind_;
  Panels<T> data_;  // m_i or p_i, (C x N)
};

}  // namespace natgrad
