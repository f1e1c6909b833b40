#pragma once

#include "output/losses/common.hpp"

namespace natgrad {

// sum_c y_c (log sum_k e^z_k - z_c), one distribution over C classes; sum_c y_c = 1.
struct SoftmaxCrossEntropy : LossDefaults {
  static constexpr std::string_view name = "softmax_cross_entropy";
  static constexpr OutputForm fisher_form = OutputForm::softmax, hessian_form = fisher_form;
  static constexpr bool prepares_draws = true;

  // sum_c y_c ((top - z_c) + log(1 + rest))
  template <class T>
  void values(const ConstPanelMap<T>& z,
              const ConstPanelMap<T>& y,
              LaneArray<T, double>& sums) const {
    const Top<T> top(z);
    LaneArray<T, double> log_sum = LaneArray<T, double>::Zero();
    each_exponential(z, top, [&](Index, int lane, T e, bool at_top) {
      log_sum[lane] += at_top ? 0 : static_cast<double>(e);
    });
    for (int lane = 0; lane < num_lanes<T>; ++lane)
      log_sum[lane] = elementary::log1p(log_sum[lane]);
    sums.setZero();
    for (Index c = 0; c < z.rows(); ++c)
      for (int lane = 0; lane < num_lanes<T>; ++lane) {
        const double gap = static_cast<double>(top.value[lane]) - static_cast<double>(z(c, lane));
        const double yc = static_cast<double>(y(c, lane));
        sums[lane] += yc == 0 ? 0 : yc * (gap + log_sum[lane]);
      }
  }

  // p - y; at the top (1 - y) - (1 - p), for p may be near 1.
  template <class T>
  void gradient(const ConstPanelMap<T>& z, const ConstPanelMap<T>& y, PanelMap<T> g) const {
    const Top<T> top(z);
    const LaneArray<T, double> rest = probabilities<T>(z, top, g);
    const LaneArray<T> others = (rest / (1 + rest)).template cast<T>();
    for (Index c = 0; c < z.rows(); ++c)
      for (int lane = 0; lane < num_lanes<T>; ++lane) {
        const bool at_top = top.place[lane] == static_cast<T>(c);
        g(c, lane) = at_top ? (1 - y(c, lane)) - others[lane] : g(c, lane) - y(c, lane);
      }
  }

  // p (C x cases), then the place of the largest one and its root.
  template <class T>
  void fisher(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    const Top<T> top(z);
    const LaneArray<T, double> rest = probabilities<T>(z, top, m);
    m.row(z.rows()) = top.place;
    m.row(z.rows() + 1) = (1 / (1 + rest)).sqrt().template cast<T>();
  }

  template <class T>
  void mean(const ConstPanelMap<T>& z, PanelMap<T> m) const {
    probabilities<T>(z, Top<T>(z), m);
  }

  template <class T>
  void prepare_draw(const ConstPanelMap<T>& z, PanelMap<T> g) const {
    mean<T>(z, g);
  }

  template <class T>
  void draw(CaseOutputs<const T>, Index num_outputs, Philox& bits, CaseOutputs<T> g) const {
    double total = 0;
    for (Index c = 0; c < num_outputs; ++c) total += static_cast<double>(g[c]);
    const double place = total * bits.uniform();
    double sum = 0;
    Index drawn = 0;
    for (Index c = 0; c < num_outputs; ++c) {
      if (g[c] > T(0)) drawn = c;
      sum += static_cast<double>(g[c]);
      if (sum > place) break;
    }
    g[drawn] -= T(1);
  }

 private:
  // The largest output of every case and its place, the first one if there are several.
  template <class T>
  struct Top {
    LaneArray<T> value, place;

    explicit Top(const ConstPanelMap<T>& z) : value(z.row(0)), place(LaneArray<T>::Zero()) {
      for (Index c = 1; c < z.rows(); ++c)
        for (int lane = 0; lane < num_lanes<T>; ++lane) {
          const bool above = z(c, lane) > value[lane];
          place[lane] = above ? static_cast<T>(c) : place[lane];
          value[lane] = above ? z(c, lane) : value[lane];
        }
    }
  };

  // f(c, lane, e^(z_c - top), whether c is the place of the top). The exponent is a rounded difference
  // and what rounding has lost of it, which would be an error of |z_c - top| / 2 ulp.
  template <class T, class F>
  static void each_exponential(const ConstPanelMap<T>& z, const Top<T>& top, F f) {
    for (Index c = 0; c < z.rows(); ++c)
      for (int lane = 0; lane < num_lanes<T>; ++lane) {
        const T zc = z(c, lane), most = top.value[lane];
        const T gap = zc - most, subtracted = gap - zc;
        const T lost = (zc - (gap - subtracted)) - (most + subtracted);
        const bool far = gap < elementary::Format<T>::lowest;
        f(c, lane, elementary::exp_of_sum(gap, far ? T(0) : lost), top.place[lane] == T(c));
      }
  }

  // p; returns the sums of e^(z_c - top) over all c but the place of the top, where it is 1.
  template <class T>
  static LaneArray<T, double> probabilities(const ConstPanelMap<T>& z,
                                            const Top<T>& top,
                                            PanelMap<T> p) {
    LaneArray<T, double> rest = LaneArray<T, double>::Zero();
    each_exponential(z, top, [&](Index c, int lane, T e, bool at_top) {
      p(c, lane) = e;
      rest[lane] += at_top ? 0 : static_cast<double>(e);
    });
    const LaneArray<T> inverse = (1 / (1 + rest)).template cast<T>();
    for (Index c = 0; c < z.rows(); ++c) p.row(c) *= inverse;
    return rest;
  }
};

}  // namespace natgrad
