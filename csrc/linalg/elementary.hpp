// Elementary functions that compilers vectorise: no calls, no tables, and selections between
// finished values instead of branches, so a loop over them takes the same path for every element.
// NaN comes out as NaN. Errors are in units in the last place of the result (ulp), the largest found
// against extended precision; T is float or double.
//
// Polynomials are Taylor sums, whose coefficients are 1 / j! or 1 / (2 j + 1), long enough for the
// first neglected term to be below 2^-56 (float: 2^-27) of the result; the one other is described at
// its place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace natgrad::elementary {

// How a T is stored, and constants that depend on its precision.
template <class T>
struct Format;

template <>
struct Format<double> {
  using Bits = std::uint64_t;
  static constexpr int fraction_bits = 52, bias = 1023;
  // x + 1.5 2^52 has the nearest integer to x in its low bits (two's complement), |x| < 2^51.
  static constexpr double to_integer = 0x1.8p52;
  // ln 2 = high + low, high of so few bits that k high is exact for every exponent k.
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  // e^lowest rounds to 0, e^highest to Inf; 2^k is normal for |k| <= one_step.
  static constexpr double lowest = -746, highest = 710, one_step = 1000;
};

template <>
struct Format<float> {
  using Bits = std::uint32_t;
  static constexpr int fraction_bits = 23, bias = 127;
  static constexpr float to_integer = 0x1.8p23f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float lowest = -104, highest = 89, one_step = 100;
};

template <class T>
inline typename Format<T>::Bits to_bits(T x) {
  typename Format<T>::Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <class T>
inline T from_bits(typename Format<T>::Bits bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^(n - bias) for n + to_integer, 0 < n < 2 bias + 2: n moves into the exponent.
template <class T>
inline T power_of_two(T shifted) {
  return from_bits<T>(to_bits(shifted) << Format<T>::fraction_bits);
}

// x = k ln 2 + r, |r| <= ln(2) / 2.
template <class T>
struct Reduced {
  T shifted, k, r;  // k + origin + to_integer
};

template <int origin, class T>
inline Reduced<T> reduce(T x) {
  using F = Format<T>;
  constexpr T zero = F::to_integer + origin;
  const T shifted = x * T(0x1.71547652b82fep0) + zero;  // x / ln 2
  const T k = shifted - zero;
  return {shifted, k, (x - k * F::ln2_high) - k * F::ln2_low};
}

// e^r - 1 = r + r^2 (1 / 2! + r / 3! + .. + r^11 / 13!), |r| <= 0.35; even and odd powers apart, for
// two short chains.
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

// The same with the polynomial of degree 4 whose relative error is smallest, 0.3 units of 2^-24.
inline float expm1_near_zero(float r) {
  const float z = r * r;
  const float low = 0x1.5554b0p-3f * r + 0x1.fffffep-2f;
  const float high = (0x1.122776p-7f * r + 0x1.555674p-5f) + 0x1.6bec06p-10f * z;
  return r + z * (low + z * high);
}

// 2^k and r of x <= 0. 2^k is 2^(k + lift), which is normal, times 2^-lift.
template <class T>
struct Scaled {
  T scale, r;
};

template <class T>
inline Scaled<T> scaled(T x) {
  using F = Format<T>;
  constexpr int lift = F::fraction_bits + 1;
  const Reduced<T> part = reduce<F::bias + lift>(x < F::lowest ? F::lowest : x);
  return {power_of_two(part.shifted) * (T(1) / T(std::uint64_t{1} << lift)), part.r};
}

// e^x and e^x - 1.
template <class T>
struct Exponential {
  T value, minus_one;
};

// For x <= 0, with m = e^r - 1: e^x = 2^k m + 2^k to 1.1 ulp, e^x - 1 = 2^k m + (2^k - 1) to 1.2 ulp,
// exact where it rounds to x.
template <class T>
inline Exponential<T> exponential(Scaled<T> x) {
  const T m = x.scale * expm1_near_zero(x.r);
  return {m + x.scale, m + (x.scale - 1)};
}
template <class T>
inline Exponential<T> exponential(T x) {
  return exponential(scaled(x));
}

// e^(x + correction) for x <= 0, |correction| < 1e-4: 1.1 ulp.
template <class T>
inline T exp_of_sum(T x, T correction) {
  const Scaled<T> part = scaled(x);
  return part.scale * expm1_near_zero(part.r + correction) + part.scale;
}

// e^x for any x: 1.1 ulp. 2^k is multiplied in two steps, as results that are not normal need.
template <class T>
inline T exp(T x) {
  using F = Format<T>;
  const Reduced<T> part = reduce<0>(x < F::lowest ? F::lowest : x > F::highest ? F::highest : x);
  const T k = part.k, most = k < 0 ? -F::one_step : F::one_step;
  const T first = std::abs(k) < F::one_step ? k : most;
  const T scale = power_of_two(first + (F::to_integer + F::bias));
  const T rest = power_of_two((k - first) + (F::to_integer + F::bias));
  return (expm1_near_zero(part.r) + 1) * scale * rest;
}

// log(1 + u) for 0 <= u <= 1: 1.9 ulp. For u > sqrt(2) - 1 it is ln 2 + log(1 + v), v = (u - 1) / 2.
// With s = v / (2 + v), z = s^2 <= 0.03,
//   log(1 + v) = 2 artanh s = v - s (v - 2 z (1 / 3 + z / 5 + .. + z^9 / 21)),  float: .. + z^3 / 9
template <class T>
inline T log1p_unit(T u) {
  constexpr int last = sizeof(T) == 4 ? 9 : 21;
  const bool upper = u > T(0.41421356237309504880);
  const T v = upper ? T(0.5) * (u - 1) : u;
  const T s = v / (2 + v), z = s * s;
  T sum = T(1.0 / last);
  for (int j = last - 2; j >= 3; j -= 2) sum = sum * z + T(1.0 / j);
  return (v - s * (v - 2 * z * sum)) + (upper ? T(0.69314718055994530942) : 0);
}

// log(1 + u) for u >= 0: 1 ulp. With 1 + u = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), and what the
// sum has lost it is k ln 2 + log(1 + f) + lost / (1 + u), the logarithm by the series above.
inline double log1p(double u) {
  using F = Format<double>;
  const double sum = 1 + u, lost = sum < 0x1p54 ? u - (sum - 1) : 0;
  constexpr std::uint64_t one = 0x3FF0000000000000, root_half = 0x3FE6A09E667F3BCD;
  const std::uint64_t bits = to_bits(sum) + (one - root_half);
  // the integer in the low bits of 2^52, to a double
  const double k = from_bits<double>((bits >> 52) | to_bits(0x1p52)) - (0x1p52 + F::bias);
  const double f = from_bits<double>((bits & ((std::uint64_t{1} << 52) - 1)) + root_half) - 1;
  const double s = f / (2 + f), z = s * s;
  double series = 1.0 / 21;
  for (int j = 19; j >= 3; j -= 2) series = series * z + 1.0 / j;
  const double low = k * F::ln2_low + lost / sum;
  const double result = k * F::ln2_high + ((low - s * (f - 2 * z * series)) + f);
  return sum < INFINITY ? result : u;
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
  return exp_of_sum(-0.5 * h * h, -0.5 * (t - h) * (t + h));
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
  const double shifted = a * 0x1.45f306dc9c883p-1 + Format<double>::to_integer;  // a / (pi / 2)
  const double k = shifted - Format<double>::to_integer;
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
  return {from_bits<double>(sin_bits ^ (((quadrant << 62) ^ to_bits(x)) & sign)),
          from_bits<double>(cos_bits ^ (((quadrant + 1) << 62) & sign))};
}

}  // namespace natgrad::elementary
