#pragma once

#include <random>

#include "output/losses/common.hpp"

namespace natgrad {

// (z - y)^2 / 2: a Gaussian with mean z and unit variance.
struct SquaredError : LossDefaults {
  static constexpr std::string_view name = "squared_error";
  static constexpr OutputForm fisher_form = OutputForm::identity, hessian_form = fisher_form;

  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    sum_outputs<T>(z, y, sums, [](T zc, T yc) {
      const double r = static_cast<double>(zc) - static_cast<double>(yc);
      return 0.5 * r * r;
    });
  }

  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    g = z - y;
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    m = z;
  }

  template <class T>
  void draw(CaseOutputs<const T>, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    std::normal_distribution<double> normal;
    for (Index c = 0; c < num_outputs; ++c) g[c] = static_cast<T>(normal(bits));
  }
};

}  // namespace natgrad
