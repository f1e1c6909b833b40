// Products with the matrices and factors of output_matrix.hpp for the cases of one panel; m, p, g
// are what is stored of them.
#pragma once

#include <limits>

#include "linalg/panel_arrays.hpp"

namespace natgrad {

inline constexpr double sqrt_half = 0.70710678118654752440;

// Largest entry of e / q that divide_factor lets pass.
template <class T>
inline constexpr T divide_limit = sizeof(T) == 4 ? T(1e2) : T(1e4);

// p (r - p'r), with r counted from that of the largest p: what is left of a case where p is near 1
// is then made of the small p, not of rounding.
template <class T>
void multiply_softmax(const ConstPanelMap<T>& p, PanelMap<T> r) {
  LaneArray<T> top = p.row(0), origin = r.row(0), mean = LaneArray<T>::Zero();
  for (Index c = 1; c < r.rows(); ++c) {
    origin = (p.row(c) > top).select(r.row(c), origin);
    top = top.max(p.row(c));
  }
  for (Index c = 0; c < r.rows(); ++c) {
    r.row(c) -= origin;
    mean += p.row(c) * r.row(c);
  }
  for (Index c = 0; c < r.rows(); ++c) r.row(c) = p.row(c) * (r.row(c) - mean);
}

// Of softmax: what is stored behind the C probabilities, the place k of the largest one and its root.
// Selections are products with 0 or 1, for Eigen vectorises those.
template <class T>
struct Pivot {
  LaneArray<T> place, q;

  Pivot(const ConstPanelMap<T>& m, Index num_outputs)
      : place(m.row(num_outputs)), q(m.row(num_outputs + 1)) {}
  // 1 where k = c, else 0.
  LaneArray<T> at(Index c) const { return (T(1) - (place - T(c)).abs()).max(T(0)); }
};

// p (1 - p), where 1 - p is the sum of the other p at the place of the largest one.
template <class T>
void softmax_diagonal(const ConstPanelMap<T>& p, PanelMap<T> d) {
  const Pivot<T> k(p, d.rows());
  LaneArray<T> others = LaneArray<T>::Zero();
  for (Index c = 0; c < d.rows(); ++c) others += (T(1) - k.at(c)) * p.row(c);
  for (Index c = 0; c < d.rows(); ++c) {
    const LaneArray<T> at = k.at(c);
    d.row(c) = p.row(c) * (at * others + (T(1) - at) * (T(1) - p.row(c)));
  }
}

// With v = q + e_k, the reflector is I - v v' / (1 + q_k). Its column of output c > 0 is column c - 1
// of H; if output 0 is not k, its column stands where that of k would be. H w needs
// t = sum_{c != k} q_c w_c, w_c at the column of c:
//   u_k = -q_k t,   u_c = q_c (w_c - q_c t / (1 + q_k)).
// w (columns of H x cases).
template <class T>
void softmax_factor(const ConstPanelMap<T>& p, const ConstPanelMap<T>& w, PanelMap<T> u) {
  const Pivot<T> k(p, u.rows());
  LaneArray<T> w_0 = LaneArray<T>::Zero(), t = w_0;
  for (Index c = 1; c < u.rows(); ++c) {
    const LaneArray<T> at = k.at(c), w_c = w.row(c - 1);
    w_0 += at * w_c;
    u.row(c) = p.row(c).sqrt() * ((T(1) - at) * w_c);
    t += u.row(c);
  }
  u.row(0) = p.row(0).sqrt() * w_0;
  t += u.row(0);
  const LaneArray<T> share = t / (T(1) + k.q), along = -k.q * t;
  for (Index c = 0; c < u.rows(); ++c) {
    const LaneArray<T> at = k.at(c);
    u.row(c) += at * along - (T(1) - at) * (p.row(c) * share);
  }
}

// The same for the unit vector of a column of H, that of output j or, where j = k, of output 0.
template <class T>
void softmax_factor_column(const ConstPanelMap<T>& p, Index j, PanelMap<T> u) {
  const Pivot<T> k(p, u.rows());
  const LaneArray<T> swapped = k.at(j);
  const LaneArray<T> q = (swapped * p.row(0) + (T(1) - swapped) * p.row(j)).sqrt();
  const LaneArray<T> share = q / (T(1) + k.q), along = -k.q * q;
  for (Index c = 0; c < u.rows(); ++c) {
    const LaneArray<T> at = k.at(c);
    u.row(c) = at * along - (T(1) - at) * (p.row(c) * share);
  }
  u.row(0) += swapped * q;
  u.row(j) += (T(1) - swapped) * q;
}

// H'x:  w_c = x_c - q_c (x_k + sum_{i != k} q_i x_i / (1 + q_k)); x(c) gives row c.
template <class T, class X>
void reflect(const ConstPanelMap<T>& p, Index num_outputs, const X& x, PanelMap<T> w) {
  const Pivot<T> k(p, num_outputs);
  const LaneArray<T> x_0 = x(0), at_0 = k.at(0);
  LaneArray<T> x_k = at_0 * x_0, sum = (T(1) - at_0) * (p.row(0).sqrt() * x_0);
  for (Index c = 1; c < num_outputs; ++c) {
    const LaneArray<T> at = k.at(c), x_c = x(c);
    x_k += at * x_c;
    sum += (T(1) - at) * (p.row(c).sqrt() * x_c);
    w.row(c - 1) = x_c;
  }
  const LaneArray<T> along = x_k + sum / (T(1) + k.q), w_0 = x_0 - p.row(0).sqrt() * along;
  for (Index c = 1; c < num_outputs; ++c) {
    const LaneArray<T> at = k.at(c), w_c = w.row(c - 1) - p.row(c).sqrt() * along;
    w.row(c - 1) = (T(1) - at) * w_c + at * w_0;
  }
  if (num_outputs == 1) w.setZero();
}

// (a x_m + b x_s)(a y_m + b y_s) - b^2 x_s y_s / 2
template <class T>
LaneArray<T, double> inner_blocks(const ConstPanelMap<T>& m,
                                  const ConstPanelMap<T>& r,
                                  const ConstPanelMap<T>& s) {
  const Index k = m.rows() / 2;
  LaneArray<T, double> out = LaneArray<T, double>::Zero();
  for (Index c = 0; c < k; ++c) {
    const LaneArray<T, double> a = wide<T>(m, c), b = wide<T>(m, k + c), bx = b * wide<T>(r, k + c),
                               by = b * wide<T>(s, k + c);
    out += (a * wide<T>(r, c) + bx) * (a * wide<T>(s, c) + by) - 0.5 * bx * by;
  }
  return out;
}

template <class T>
LaneArray<T, double> inner_softmax(const ConstPanelMap<T>& p,
                                   const ConstPanelMap<T>& r,
                                   const ConstPanelMap<T>& s) {
  LaneArray<T, double> r_mean = LaneArray<T, double>::Zero(), s_mean = r_mean, out = r_mean;
  for (Index c = 0; c < r.rows(); ++c) {
    r_mean += (p.row(c) * r.row(c)).template cast<double>();
    s_mean += (p.row(c) * s.row(c)).template cast<double>();
  }
  for (Index c = 0; c < r.rows(); ++c)
    out += wide<T>(p, c) * (wide<T>(r, c) - r_mean) * (wide<T>(s, c) - s_mean);
  return out;
}

template <class T>
LaneArray<T, double> inner_outer(const ConstPanelMap<T>& g,
                                 const ConstPanelMap<T>& r,
                                 const ConstPanelMap<T>& s) {
  LaneArray<T, double> out = LaneArray<T, double>::Zero();
  for (Index at = 0; at < g.rows(); at += r.rows()) {
    LaneArray<T, double> gr = LaneArray<T, double>::Zero(), gs = gr;
    for (Index c = 0; c < r.rows(); ++c) {
      gr += wide<T>(g, at + c) * wide<T>(r, c);
      gs += wide<T>(g, at + c) * wide<T>(s, c);
    }
    out += gr * gs;
  }
  return out;
}

// Cases that are not bad: rest 0; the others: r 0.
template <class T>
void split(const LaneArray<T>& bad, PanelMap<T> e, PanelMap<T> r) {
  for (Index c = 0; c < r.rows(); ++c) r.row(c) = (bad == T(0)).select(r.row(c), T(0));
  for (Index c = 0; c < e.rows(); ++c) e.row(c) = (bad == T(0)).select(T(0), e.row(c));
}

// e / q with 0 / 0 = 0
template <class E, class Q>
auto ratio(const E& e, const Q& q) {
  using Scalar = typename E::Scalar;
  return (e == Scalar(0)).select(Scalar(0), e / q);
}

template <class T>
void divide_diagonal(const ConstPanelMap<T>& m, PanelMap<T> e, PanelMap<T> r) {
  LaneArray<T> bad = LaneArray<T>::Zero();
  for (Index c = 0; c < m.rows(); ++c) {
    r.row(c) = ratio(e.row(c), m.row(c).abs().sqrt());
    bad = (r.row(c).abs() <= divide_limit<T>).select(bad, T(1));
  }
  split<T>(bad, e, r);
}

// Q H'(e / q) = e - p sum_c e_c, so the sum has to vanish up to rounding.
template <class T>
void divide_softmax(const ConstPanelMap<T>& p, PanelMap<T> e, PanelMap<T> r) {
  const auto x = [&](Index c) { return ratio(e.row(c), p.row(c).sqrt()); };
  LaneArray<T> sum = LaneArray<T>::Zero(), bad = sum;
  for (Index c = 0; c < e.rows(); ++c) {
    sum += e.row(c);
    bad = (x(c).abs() <= divide_limit<T>).select(bad, T(1));
  }
  const T tolerance = T(4) * T(e.rows() + 4) * std::numeric_limits<T>::epsilon();
  bad = (sum.abs() <= tolerance).select(bad, T(1));
  reflect<T>(p, e.rows(), x, r);
  split<T>(bad, e, r);
}

template <class T>
void divide_blocks(const ConstPanelMap<T>& m, PanelMap<T> e, PanelMap<T> r) {
  const Index k = m.rows() / 2;
  LaneArray<T> bad = LaneArray<T>::Zero();
  for (Index c = 0; c < k; ++c) {
    r.row(c) = ratio(e.row(c), m.row(c));
    const LaneArray<T> left = e.row(k + c) - m.row(k + c) * r.row(c);
    r.row(k + c) = ratio(left, m.row(k + c) * T(sqrt_half));
    bad = (r.row(c).abs().max(r.row(k + c).abs()) <= divide_limit<T>).select(bad, T(1));
  }
  split<T>(bad, e, r);
}

template <class T>
void divide_empirical(const ConstPanelMap<T>& g, PanelMap<T> e, PanelMap<T> r) {
  LaneArray<T> bad = LaneArray<T>::Zero();
  for (Index c = 0; c < g.rows(); ++c) bad = (e.row(c) == g.row(c)).select(bad, T(1));
  r.setOnes();
  split<T>(bad, e, r);
}

}  // namespace natgrad
