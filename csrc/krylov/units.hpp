// Powers of two in which a system is solved, so that no number leaves the range of T, whatever the
// sizes of A, b and the start: scaling by them is exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "linalg/vectors.hpp"

namespace natgrad {

// log2 x to the next integer, within what exponents of doubles and of their quotients can be.
inline int exponent_of(double log2_x) {
  return static_cast<int>(std::lround(std::clamp(log2_x, -3000.0, 3000.0)));
}

// log2 |x| for x with this norm, also where that is beyond the range of double.
template <class T>
double log2_of(Vectors<T>& vectors, const T* x, double norm) {
  return std::log2(std::isinf(norm) ? vectors.largest(x) : norm);
}

// The unit 2^exponent of an operator B, which is multiplied as B / 2^exponent: a part of the power goes
// to the factor, the rest to the product. It is 1, and costs nothing, unless |B| is extreme.
template <class T>
class OperatorUnit {
 public:
  bool is_known() const { return is_known_; }
  bool is_one() const { return exponent_ == 0; }
  int exponent() const { return exponent_; }
  double factor_in() const { return std::exp2(-before()); }
  double factor_out() const { return std::exp2(before() - exponent_); }

  // Learns the unit from a product: |v| and |B v| as they are now, and log2 of the least and of the
  // greatest number that bounds x as one on the diagonal of B would, in the caller's units. Returns
  // whether the product has to be made again, in another unit.
  bool learn(double length, double image, double least, double greatest) {
    if (is_known_) return false;
    const int before = exponent_;
    const bool is_lost = !std::isfinite(image), has_vanished = image == 0.0 && std::isinf(least);
    if (is_lost || has_vanished) {
      is_known_ = is_second_;
      is_second_ = true;
      exponent_ = is_known_ ? 0 : is_lost ? 2 * half : -2 * half;
      return exponent_ != before;
    }
    is_known_ = true;
    const double size = std::max(std::log2(image) - std::log2(length) + exponent_, least);
    const double top = std::max(size, greatest);
    const bool is_ordinary = std::abs(size) <= ordinary && top <= ordinary;
    exponent_ = is_ordinary ? 0 : exponent_of(size + 0.5 * std::min(top - size, 2.0 * half));
    return exponent_ != before;
  }

 private:
  // Sizes from 2^-ordinary to 2^ordinary leave room in T for squares of residuals and for x.
  static constexpr int ordinary = std::numeric_limits<T>::max_exponent / 4 - 2;
  static constexpr int half = std::numeric_limits<T>::max_exponent / 2 - 4;
  int before() const { return std::clamp(exponent_ / 2, -half, half); }

  int exponent_ = 0;
  bool is_known_ = false, is_second_ = false;
};

enum class Fit { exact, rounded, overflowed, lost };

// Makes x what remains of it when 2^exponent x is returned in T: shrunk if that overflows, rounded
// where that falls below the normal numbers. `lost`: x is not finite.
template <class T>
Fit fit_to_range(Vectors<T>& vectors, int exponent, T* x) {
  using Limits = std::numeric_limits<T>;
  const double top = vectors.largest(x);
  if (!std::isfinite(top)) return Fit::lost;
  if (top == 0.0) return Fit::exact;
  const int above = std::ilogb(top) + 1 + exponent;  // 2^exponent x < 2^above
  if (above > Limits::max_exponent) {
    vectors.scale_by_power(Limits::max_exponent - above, x, x);
    return Fit::overflowed;
  }
  // What is lost of elements 2^-digits times smaller than the largest does not count.
  if (above > Limits::min_exponent + 2 * Limits::digits) return Fit::exact;
  constexpr double eps = static_cast<double>(Limits::epsilon());
  return vectors.round_in_unit(exponent, x) <= 0.01 * eps ? Fit::exact : Fit::rounded;
}

}  // namespace natgrad
