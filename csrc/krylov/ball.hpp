// The ball |x| <= radius of a trust region, and where a step leaves it (Steihaug 1983, Toint 1981).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "linalg/vectors.hpp"

namespace natgrad {

template <class T>
class Ball {
 public:
  // `radius` in the caller's units, infinite for none; x in those of 2^exponent.
  void set(double radius, int exponent) {
    constexpr double top = static_cast<double>(std::numeric_limits<T>::max());
    is_bounded_ = std::isfinite(radius);
    const double wanted = std::ldexp(radius, -exponent);
    // No further than x and its square can be represented.
    radius_ = std::min({wanted, 0.25 * top, 1e150});
    is_range_ = radius_ < wanted;
  }
  bool is_bounded() const { return is_bounded_; }
  // Whether it is the range of T that bounds x, before the radius does.
  bool is_range() const { return is_range_; }

  // Whether it is so small that T can not hold its points in this unit.
  bool is_faint() const {
    return radius_ < std::max(1e-150, static_cast<double>(std::numeric_limits<T>::min()) / eps);
  }

  // Whether x + length p reaches the sphere; x then is where it does. The margin is the rounding of
  // x + length p, whose terms are at most 2 radii long.
  bool stops(Vectors<T>& vectors, double length, const T* p, T* x) const {
    const auto [xx, xp, pp] = vectors.ball_dots(x, p);
    const double next = xx + length * (2.0 * xp + length * pp);
    if (pp == 0.0 || next < radius_ * radius_ * (1.0 - 8.0 * eps)) return false;
    const auto [ahead, behind] = roots(xx, xp, pp);
    vectors.add(ahead, p, x);
    shrink(vectors, x);
    return true;
  }

  // Follows p from x to the sphere, ahead or back, to the end where the quadratic is lower:
  // phi(x + t p) - phi(x) = t (t p'Ap / 2 - r'p). False if p = 0.
  bool reach(Vectors<T>& vectors, double curvature, double slope, const T* p, T* x) const {
    const auto [xx, xp, pp] = vectors.ball_dots(x, p);
    if (pp == 0.0) return false;
    const auto [ahead, behind] = roots(xx, xp, pp);
    const auto change = [&](double t) { return t * (0.5 * t * curvature - slope); };
    vectors.add(change(behind) < change(ahead) ? behind : ahead, p, x);
    shrink(vectors, x);
    return true;
  }

 private:
  static constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());

  // t >= 0 and t <= 0 with pp t^2 + 2 xp t = radius^2 - xx. That of the sign of xp cancels: it is
  // written by the other.
  std::array<double, 2> roots(double xx, double xp, double pp) const {
    const double c = std::max(0.0, radius_ * radius_ - xx);
    const double sum = std::abs(xp) + std::sqrt(xp * xp + pp * c);
    const double near = sum > 0.0 ? c / sum : 0.0, far = sum / pp;
    return xp > 0.0 ? std::array{near, -far} : std::array{far, -near};
  }

  // |x| <= radius in spite of rounding, also when the squares are added up in another order.
  void shrink(Vectors<T>& vectors, T* x) const {
    double margin = eps;
    for (double length = vectors.norm(x); length > radius_ * (1.0 - 1e-14);
         length = vectors.norm(x)) {
      vectors.scale(radius_ / length * (1.0 - margin), x, x);
      margin *= 2.0;
    }
  }

  double radius_ = 0.0;
  bool is_bounded_ = false, is_range_ = false;
};

}  // namespace natgrad
