// Elementary functions of a double that compilers vectorise: no calls, no tables, and selections
// between finished values instead of branches, so a loop over them takes the same path for every
// element. NaN comes out as NaN. Errors are in units in the last place of the result (ulp), the
// largest found against quadruple precision.
//
// Polynomials are Taylor sums, whose coefficients are 1 / j! or 1 / (2 j + 1), long enough for the
// first neglected term to be below 2^-56 of the result; the one other is described at its place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace natgrad::elementary {

inline std::uint64_t to_bits(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline double from_bits(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// x + 1.5 2^52 has the nearest integer to x in its low bits (two's complement), |x| < 2^51.
inline constexpr double to_integer = 0x1.8p52;

// 2^k from k + 1.5 2^52, -1022 <= k <= 1023: k + 1023 moves into the exponent.
inline double power_of_two(double shifted) {
  return from_bits((to_bits(shifted) + 1023) << 52);
}

// x = k ln 2 + r, |r| <= ln(2) / 2. ln 2 = high + low, high of 32 bits, so k high is exact.
struct Reduced {
  double shifted, k, r;
};

inline Reduced reduce(double x) {
  const double shifted = x * 0x1.71547652b82fep0 + to_integer;  // x / ln 2
  const double k = shifted - to_integer;
  return {shifted, k, (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33};
}

// e^r - 1 = r + r^2 (1 / 2! + r / 3! + .. + r^11 / 13!), |r| <= 0.35; even and odd powers apart,
// for two short chains.
inline double expm1_near_zero(double r) {
  const double z = r * r;
  double even = 1.0 / 479001600, odd = 1.0 / 6227020800;
  even = even * z + 1.0 / 3628800;
  odd = odd * z + 1.0 / 39916800;
  even = even * z + 1.0 / 40320;
  odd = odd * z + 1.0 / 362880;
  even = even * z + 1.0 / 720;
  odd = odd * z + 1.0 / 5040;
  even = even * z + 1.0 / 24;
  odd = odd * z + 1.0 / 120;
  even = even * z + 0.5;
  odd = odd * z + 1.0 / 6;
  return r + z * (even + r * odd);
}

// e^(x - correction) for x <= 0, |correction| < 1e-4: 0.8 ulp. 2^k is multiplied in two steps, as
// results below 2^-1022 need; they are rounded once. e^-746 rounds to 0.
inline double exp_nonpositive(double x, double correction = 0) {
  const Reduced part = reduce(x < -746 ? -746 : x);
  const double first = part.shifted < to_integer - 1000 ? to_integer - 1000 : part.shifted;
  const double scale = power_of_two(first), rest = power_of_two(part.shifted - first + to_integer);
  return (expm1_near_zero(part.r - correction) + 1) * scale * rest;
}

// e^x - 1 = 2^k (e^r - 1) + (2^k - 1) for x <= 0: 1.2 ulp, exact where the result rounds to x.
inline double expm1_nonpositive(double x) {
  const Reduced part = reduce(x < -60 ? -60 : x);
  const double scale = power_of_two(part.shifted);
  return scale * expm1_near_zero(part.r) + (scale - 1);
}

// log(1 + u) for 0 <= u <= 1: 1 ulp. For u > sqrt(2) - 1 it is ln 2 + log(1 + v), v = (u - 1) / 2.
// With s = v / (2 + v), z = s^2 <= 0.03,
//   log(1 + v) = 2 artanh s = v - s (v - 2 z (1 / 3 + z / 5 + .. + z^9 / 21)).
inline double log1p_unit(double u) {
  const bool upper = u > 0.41421356237309504880;
  const double v = upper ? 0.5 * (u - 1) : u;
  const double s = v / (2 + v), z = s * s;
  double sum = 1.0 / 21;
  for (int j = 19; j >= 3; j -= 2) sum = sum * z + 1.0 / j;
  return (v - s * (v - 2 * z * sum)) + (upper ? 0.69314718055994530942 : 0);
}

// tanh x = -m / (2 + m), m = e^(-2 |x|) - 1, with the sign of x: 2.5 ulp.
inline double tanh(double x) {
  const double m = expm1_nonpositive(-2 * std::abs(x));
  return std::copysign(m / (2 + m), x);
}

// 1 / (1 + e^-x), from e = e^-|x|: 2 ulp.
inline double logistic(double x, double e) {
  return (x < 0 ? e : 1) / (1 + e);
}

// The normal distribution function at -t, t >= 0, times e^(t^2 / 2) = erfcx(t / sqrt 2) / 2. With
// w = (t - 4) / (t + 4) it is P(w) / (t + 4), P of degree 24 the expansion of the product in
// Chebyshev polynomials on -1 <= w <= 1 (0 <= t), relative error 2^-53, up to 3 ulp from the sum;
// made with 60 digits.
inline double scaled_normal_tail(double t) {
  const double inverse = 1 / (t + 4), w = (t - 4) * inverse, z = w * w;
  double even = 0x1.7632b9abf4551p-32, odd = -0x1.07d58223c51cep-33;
  even = even * z - 0x1.005e33cce7d68p-28;
  odd = odd * z - 0x1.42e7f2a5c068ap-31;
  even = even * z + 0x1.701f992bce412p-26;
  odd = odd * z + 0x1.3292d28465126p-26;
  even = even * z - 0x1.7516b1aa499dap-24;
  odd = odd * z - 0x1.571caa09004cep-23;
  even = even * z + 0x1.248e0cffdabe2p-22;
  odd = odd * z + 0x1.1316b229f307ap-20;
  even = even * z - 0x1.522419ffbc1cfp-21;
  odd = odd * z - 0x1.8d6480ccf6cacp-18;
  even = even * z + 0x1.80c0d49e14a63p-21;
  odd = odd * z + 0x1.26d18d992c1cap-15;
  even = even * z - 0x1.001ed86a94b40p-19;
  odd = odd * z - 0x1.e4a43156c4564p-13;
  even = even * z + 0x1.17a4ae564635dp-13;
  odd = odd * z + 0x1.ab825feed60c0p-10;
  even = even * z - 0x1.c81719d54e26dp-9;
  odd = odd * z - 0x1.ee2761054501fp-8;
  even = even * z + 0x1.eec4cc3e4d100p-5;
  odd = odd * z - 0x1.7dff2bff68080p-3;
  even = even * z + 0x1.8c6dbf2cfc2b6p-2;
  odd = odd * z - 0x1.373e3a893c28cp-1;
  even = even * z + 0x1.82b4bb8c94dcep-1;
  return (even + w * odd) * inverse;
}

// e^(-t^2 / 2) for 0 <= t <= 40: 1 ulp. The rounding error of t^2 would be an error of t^2 / 2 ulp:
// with h = t to 20 bits after the point, t^2 / 2 = h^2 / 2 + (t - h) (t + h) / 2, the first exact.
inline double exp_minus_half_square(double t) {
  constexpr double to_twenty_bits = 0x1.8p32;
  const double h = (t + to_twenty_bits) - to_twenty_bits;
  return exp_nonpositive(-0.5 * h * h, 0.5 * (t - h) * (t + h));
}

struct SinCos {
  double sin, cos;
};

// Arguments up to here can be reduced by the three-part pi / 2 below.
inline constexpr double largest_angle = 0x1p19;

// |x| = k pi / 2 + r, |r| <= pi / 4, k < 2^19: 1.3 ulp. pi / 2 is split into 33 + 33 + 53 bits, so
// the products with the first two and the first difference are exact; c is the rounding error of
// the second. Odd k exchange sin r and cos r.
inline SinCos sincos(double x) {
  const double a = std::abs(x);
  const double shifted = a * 0x1.45f306dc9c883p-1 + to_integer;  // a / (pi / 2)
  const double k = shifted - to_integer;
  const double t = a - k * 0x1.921fb544p0, second = k * 0x1.0b4611a6p-34;
  const double u = t - second, c = (t - u) - second;
  const double r = u - (k * 0x1.3198a2e037073p-69 - c), z = r * r;
  double s = 1.0 / 355687428096000, p = 1.0 / 20922789888000;
  s = s * z - 1.0 / 1307674368000;
  p = p * z - 1.0 / 87178291200;
  s = s * z + 1.0 / 6227020800;
  p = p * z + 1.0 / 479001600;
  s = s * z - 1.0 / 39916800;
  p = p * z - 1.0 / 3628800;
  s = s * z + 1.0 / 362880;
  p = p * z + 1.0 / 40320;
  s = s * z - 1.0 / 5040;
  p = p * z - 1.0 / 720;
  s = s * z + 1.0 / 120;
  p = p * z + 1.0 / 24;
  s = s * z - 1.0 / 6;
  p = p * z - 0.5;
  const double sin_r = r + r * (z * s), cos_r = 1 + z * p;
  const std::uint64_t quadrant = to_bits(shifted), sign = std::uint64_t{1} << 63;
  const bool odd = quadrant & 1;
  const std::uint64_t sin_bits = to_bits(odd ? cos_r : sin_r);
  const std::uint64_t cos_bits = to_bits(odd ? sin_r : cos_r);
  return {from_bits(sin_bits ^ (((quadrant << 62) ^ to_bits(x)) & sign)),
          from_bits(cos_bits ^ (((quadrant + 1) << 62) & sign))};
}

}  // namespace natgrad::elementary
