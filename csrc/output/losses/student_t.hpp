#pragma once

#include <cmath>
#include <random>

#include "output/losses/common.hpp"

namespace natgrad {

// (df + 1)/2 log(1 + u^2), u = (y - z) / (scale sqrt(df)): Student's t around z, without the constants.
// In double, whatever T.
struct StudentT : LossDefaults {
  static constexpr std::string_view name = "student_t";
  static constexpr OutputForm fisher_form = OutputForm::identity,
                              hessian_form = OutputForm::diagonal;
  static constexpr bool hessian_needs_targets = true, hessian_is_semidefinite = false;

  double df = 1, scale = 1;

  template <class F>
  void each_parameter(F f) {
    f("df", df);
    f("scale", scale);
  }

  double spread() const { return scale * std::sqrt(df); }
  double identity() const { return (df + 1) / ((df + 3) * scale * scale); }

  // Where u^2 is so large that 1 + u^2 rounds to it, log(1 + u^2) is 2 log(1 + |u|) up to 2 / |u|.
  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    const double factor = 0.5 * (df + 1), unit = spread();
    sum_outputs<T>(z, y, sums, [=](double zc, double yc) {
      const double u = std::abs(yc - zc) / unit;
      const bool huge = u > 0x1p60;
      return (huge ? 2 * factor : factor) * elementary::log1p(huge ? u : u * u);
    });
  }

  // (df + 1) / spread / (u + 1 / u), where u^2 may overflow.
  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    const double unit = spread(), factor = (df + 1) / unit;
    map_outputs<T>(z, y, g, [=](double zc, double yc) {
      const double u = (zc - yc) / unit;
      return factor / (u + 1 / u);
    });
  }

  // (df + 1) (1 - u^2) / (spread (1 + u^2))^2 = (df + 1) / spread / (spread + u r) (2 / (1 + u^2) - 1)
  template <class T>
  void hessian(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> m) const {
    const double unit = spread(), factor = (df + 1) / unit;
    map_outputs<T>(z, y, m, [=](double zc, double yc) {
      const double r = yc - zc, u = r / unit;
      return factor / (unit + u * r) * (2 / (1 + u * u) - 1);
    });
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    m = z;
  }

  // u = N(0, 1) / sqrt(chi^2_df)
  template <class T>
  void draw(CaseOutputs<const T>, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    std::normal_distribution<double> normal;
    for (Index c = 0; c < num_outputs; ++c) {
      const double u = normal(bits) / std::sqrt(std::chi_squared_distribution<double>(df)(bits));
      g[c] = static_cast<T>(-(df + 1) / spread() / (u + 1 / u));
    }
  }
};

}  // namespace natgrad
