#pragma once

#include <random>

#include "base/check.hpp"
#include "output/losses/common.hpp"

namespace natgrad {

// r^2 e^-s / 2 + s / 2, r = y - m, z = (m_1 .. m_k, s_1 .. s_k): a Gaussian with mean m and variance
// e^s. In double, whatever T. A residual of zero has no part in the loss, however small the variance.
struct GaussianMeanVariance : LossDefaults {
  static constexpr std::string_view name = "gaussian_mean_variance";
  static constexpr OutputForm fisher_form = OutputForm::diagonal, hessian_form = OutputForm::blocks;
  static constexpr bool hessian_needs_targets = true, hessian_is_semidefinite = false;

  Index num_targets(Index num_outputs) const {
    check(num_outputs % 2 == 0,
          "the number C of outputs must be even for gaussian_mean_variance (C/2 means, then C/2 "
          "log-variances), got ",
          num_outputs);
    return num_outputs / 2;
  }

  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    sums.setZero();
    each_pair<T>(z, y, [&](Index, int lane, double r, double s, double root) {
      const double scaled = zero_times(r, root);
      sums[lane] += 0.5 * (scaled * scaled + s);
    });
  }

  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    const Index k = y.rows();
    each_pair<T>(z, y, [&](Index c, int lane, double r, double, double root) {
      const double scaled = zero_times(r, root);  // r / standard deviation
      g(c, lane) = static_cast<T>(-zero_times(scaled, root));
      g(k + c, lane) = static_cast<T>(0.5 * ((1 - scaled) * (1 + scaled)));
    });
  }

  // e^-s for the means, 1/2 for the logarithms s
  template <class T>
  void fisher(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    const Index k = z.rows() / 2;
    for (Index c = 0; c < k; ++c)
      for (int lane = 0; lane < num_lanes<T>; ++lane) {
        m(c, lane) = static_cast<T>(elementary::exp(-static_cast<double>(z(k + c, lane))));
        m(k + c, lane) = T(0.5);
      }
  }

  // e^-s [[1, r], [r, r^2/2]]: a = e^(-s/2), b = r a
  template <class T>
  void hessian(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> m) const {
    const Index k = y.rows();
    each_pair<T>(z, y, [&](Index c, int lane, double r, double, double root) {
      m(c, lane) = static_cast<T>(root);
      m(k + c, lane) = static_cast<T>(zero_times(r, root));
    });
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    m = z.topRows(m.rows());
  }

  template <class T>
  void draw(CaseOutputs<const T> z, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    std::normal_distribution<double> normal;
    const Index k = num_outputs / 2;
    for (Index c = 0; c < k; ++c) {
      const double noise = normal(bits);
      g[c] = static_cast<T>(-noise * elementary::exp(-0.5 * static_cast<double>(z[k + c])));
      g[k + c] = static_cast<T>(0.5 * (1 - noise * noise));
    }
  }

 private:
  static double zero_times(double a, double b) { return a == 0 ? 0 : a * b; }

  // f(c, lane, r, s, e^(-s/2)) for the k pairs of every case.
  template <class T, class F>
  static void each_pair(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, F f) {
    const Index k = y.rows();
    for (Index c = 0; c < k; ++c)
      for (int lane = 0; lane < num_lanes<T>; ++lane) {
        const double r = static_cast<double>(y(c, lane)) - static_cast<double>(z(c, lane));
        const double s = static_cast<double>(z(k + c, lane));
        f(c, lane, r, s, elementary::exp(-0.5 * s));
      }
  }
};

}  // namespace natgrad
