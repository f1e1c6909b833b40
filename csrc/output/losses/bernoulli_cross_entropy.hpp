#pragma once

#include <cmath>

#include "output/losses/common.hpp"

namespace natgrad {

// log(1 + e^z) - y z, C independent Bernoulli variables with logits z. With e = e^-|z|, the smaller one
// of p and 1 - p is e / (1 + e).
struct BernoulliCrossEntropy : LossDefaults {
  static constexpr std::string_view name = "bernoulli_cross_entropy";
  static constexpr OutputForm fisher_form = OutputForm::diagonal, hessian_form = fisher_form;
  static constexpr bool prepares_draws = true;

  // (1 - y) z + log(1 + e) for z > 0, y |z| + log(1 + e) else: no term is negative.
  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    sum_outputs<T>(z, y, sums, [](T zc, T yc) {
      const T size = std::abs(zc), wrong = zc > 0 ? 1 - yc : yc;
      const T linear = wrong == 0 ? 0 : wrong * size;
      return linear + elementary::log1p_unit(elementary::exponential(-size).value);
    });
  }

  // p - y = (1 - y) - (1 - p)
  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    map_outputs<T>(z, y, g, [](T zc, T yc) {
      const T small = smaller(zc);
      return zc > 0 ? (1 - yc) - small : small - yc;
    });
  }

  // p (1 - p) = e / (1 + e)^2
  template <class T>
  void fisher(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    map_outputs<T>(z, m, [](T zc) {
      const T e = elementary::exponential(-std::abs(zc)).value, large = 1 / (1 + e);
      return e * large * large;
    });
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    map_outputs<T>(z, m, [](T zc) {
      const T e = elementary::exponential(-std::abs(zc)).value;
      return (zc > 0 ? 1 : e) / (1 + e);
    });
  }

  template <class T>
  void prepare_draw(const ConstPanelMap<T>& z, PanelMap<T> g) const {
    map_outputs<T>(z, g, [](T zc) { return smaller(zc); });
  }

  template <class T>
  void draw(CaseOutputs<const T> z, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    for (Index c = 0; c < num_outputs; ++c) {
      const double small = static_cast<double>(g[c]), large = 1 - small;
      const bool negative = z[c] < 0;
      const double p = negative ? small : large;
      g[c] = static_cast<T>(bits.uniform() < p ? (negative ? -large : -small) : p);
    }
  }

 private:
  template <class T>
  static T smaller(T z) {
    const T e = elementary::exponential(-std::abs(z)).value;
    return e / (1 + e);
  }
};

}  // namespace natgrad
