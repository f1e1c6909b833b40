// What every loss of this folder is: a struct with the members of LossDefaults and these, where views
// hold the cases of one panel, z (C x cases), y (num_targets x cases):
//   name                      by which Python asks for it
//   fisher_form, hessian_form of F_R(z) = E[g g'], g = dL/dz at y drawn from the model's law at z, and
//                             of d2L/dz2 at (z, y)
//   values(z, y, sums)        L(y_i, z_i), summed over the outputs in double
//   gradient(z, y, g)         dL/dz (C x cases)
//   fisher(z, m)              what OutputMatrices stores of F_R for its form; not for identity
//   hessian(z, y, m)          the same of d2L/dz2; only where it needs targets
//   mean(z, m)                mean of the predictive law (num_targets x cases)
//   draw(z, C, bits, g)       g = dL/dz of one case at a y drawn from the law. The noise goes straight
//                             into the derivative, so nothing cancels
// Results are within 8 units in the last place of T, or below the smallest normal number; where two
// terms of opposite sign cancel, in units of the larger one.
#pragma once

#include <string_view>

#include "base/random.hpp"
#include "linalg/elementary.hpp"
#include "linalg/panel_arrays.hpp"
#include "output/output_form.hpp"

namespace natgrad {

// Outputs of one case, elements of a panel that are `stride` apart.
template <class T>
struct CaseOutputs {
  T* data;
  Index stride;
  T& operator[](Index c) const { return data[c * stride]; }
};

struct LossDefaults {
  // Whether d2L/dz2 depends on y. If not, it is F_R: z are the natural parameters of an exponential
  // family with fixed dispersion.
  static constexpr bool hessian_needs_targets = false;
  // Whether d2L/dz2 is positive semi-definite for every z and y.
  static constexpr bool hessian_is_semidefinite = true;
  // Whether draw() finds in g what prepare_draw(z, g) made of the panel.
  static constexpr bool prepares_draws = false;
  // Targets of a case for C outputs; throws where the loss is not defined for so many.
  Index num_targets(Index num_outputs) const { return num_outputs; }
  // m of fisher_form identity.
  double identity() const { return 1; }
  // f(name, value) for the parameters of the loss.
  template <class F>
  void each_parameter(F) {}
};

// sums_i = sum_c term(z_ci, y_ci)
template <class T, class F>
void sum_outputs(const ConstPanelMap<T>& z,
                 const ConstPanelMap<T>& y,
                 LaneArray<T, double>& sums,
                 F term) {
  sums.setZero();
  for (Index c = 0; c < z.rows(); ++c) {
    const T *zc = z.data() + c * num_lanes<T>, *yc = y.data() + c * num_lanes<T>;
    for (int lane = 0; lane < num_lanes<T>; ++lane)
      sums[lane] += static_cast<double>(term(zc[lane], yc[lane]));
  }
}

// m = f(z), elementwise.
template <class T, class F>
void map_outputs(const ConstPanelMap<T>& z, PanelMap<T> m, F f) {
  const T* z_data = z.data();
  T* m_data = m.data();
  for (Index i = 0; i < z.size(); ++i) m_data[i] = static_cast<T>(f(z_data[i]));
}

// m = f(z, y), elementwise.
template <class T, class F>
void map_outputs(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> m, F f) {
  const T *z_data = z.data(), *y_data = y.data();
  T* m_data = m.data();
  for (Index i = 0; i < z.size(); ++i) m_data[i] = static_cast<T>(f(z_data[i], y_data[i]));
}

}  // namespace natgrad
