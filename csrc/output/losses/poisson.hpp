#pragma once

#include <cmath>
#include <random>

#include "output/losses/common.hpp"

namespace natgrad {

// e^z - y z: counts with log-rate z, without the constant log y!. In double, whatever T.
struct Poisson : LossDefaults {
  static constexpr std::string_view name = "poisson";
  static constexpr OutputForm fisher_form = OutputForm::diagonal, hessian_form = fisher_form;

  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    sum_outputs<T>(z, y, sums, [](double zc, double yc) {
      return elementary::exp(zc) - (yc == 0 ? 0 : yc * zc);
    });
  }

  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    map_outputs<T>(z, y, g, [](double zc, double yc) { return elementary::exp(zc) - yc; });
  }

  template <class T>
  void fisher(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    mean<T>(z, m);
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    map_outputs<T>(z, m, [](double zc) { return elementary::exp(zc); });
  }

  template <class T>
  void draw(CaseOutputs<const T> z, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    for (Index c = 0; c < num_outputs; ++c)
      g[c] = static_cast<T>(rate_minus_draw(std::exp(static_cast<double>(z[c])), bits));
  }

 private:
  // From 1e9 on a Gaussian with the two moments: its skewness is below 1e-4, and neither the count
  // nor the difference has to fit an integer.
  static double rate_minus_draw(double rate, Philox& bits) {
    if (!(rate < 1e9)) return std::sqrt(rate) * std::normal_distribution<double>()(bits);
    if (rate == 0) return 0;
    return rate - static_cast<double>(std::poisson_distribution<std::int64_t>(rate)(bits));
  }
};

}  // namespace natgrad
