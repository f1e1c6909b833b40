// Residual smoothing (Schoenauer; Weiss 1996): y_k = y_{k-1} + weight (x_k - y_{k-1}) with the residual
// s_k = s_{k-1} + weight (r_k - s_{k-1}), weight in [0, 1] so that |s_k| is least. Without
// preconditioner |s_k| is what MINRES attains.
#pragma once

#include <algorithm>
#include <cmath>

#include "linalg/vectors.hpp"

namespace natgrad {

// y and s are one step behind: the weight of x_k, r_k is known, and applied with the next step.
template <class T>
class Smoothing {
 public:
  // y, s (P,) of the caller; null if it never begins.
  Smoothing(T* y, T* s) : y_(y), s_(s) {}

  bool is_on() const { return is_on_; }
  // After a step of CG, which is undone for y and s: they are the iterate before it.
  void begin(Vectors<T>& vectors,
             double length,
             double shift,
             const T* p,
             const T* q,
             const T* x,
             const T* r) {
    is_on_ = true;
    vectors.copy(x, y_);
    vectors.add(-length, p, y_);
    vectors.copy(r, s_);
    vectors.add(length, q, s_);
    vectors.add(length * shift, p, s_);
    choose(vectors.dot(r, r), vectors.dot(s_, r), vectors.dot(s_, s_));
  }
  void restart() { weight_ = 1.0; }

  // One step of CG as Vectors::cg_update; returns r'r.
  double step(
      Vectors<T>& vectors, double length, double shift, const T* p, const T* q, T* x, T* r) {
    const auto [rr, sr, ss] = vectors.smoothed_update(weight_, length, shift, p, q, x, r, y_, s_);
    choose(rr, sr, ss);
    return rr;
  }

  // The margin: rounding must not lift the true residual above the tolerance.
  bool is_small(double tolerance) const { return is_on_ && std::sqrt(square_) <= 0.99 * tolerance; }

  // x, r become y, s; whether they were not already.
  bool take(Vectors<T>& vectors, T* x, T* r) {
    if (!is_on_ || weight_ == 1.0) return false;
    vectors.blend(weight_, y_, x);
    vectors.blend(weight_, s_, r);
    weight_ = 1.0;
    return true;
  }

 private:
  void choose(double rr, double sr, double ss) {
    const double square = ss - 2.0 * sr + rr;
    weight_ = square > 0.0 ? std::clamp((ss - sr) / square, 0.0, 1.0) : 0.0;
    square_ = std::max(0.0, ss - weight_ * (2.0 * (ss - sr) - weight_ * square));
  }

  T *y_, *s_;
  bool is_on_ = false;
  double weight_ = 1.0, square_ = 0.0;  // of x_k in y_k, |s_k|^2
};

}  // namespace natgrad
