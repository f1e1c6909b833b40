#include "net/activation.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>

#include "linalg/elementary.hpp"

namespace natgrad {
namespace {

template <class T>
using AlignedArray = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>, Eigen::AlignedMax>;

// In double all is computed from elementary.hpp: Eigen has no double tanh, log1p, erf, sin of
// vectors, and its selections are not vectorised. In float tanh, logistic, softplus, silu are
// Eigen's.

constexpr double leaky_slope = 0.01;
constexpr double inverse_sqrt_2pi = 0.39894228040143267794;

// phi(s), phi'(s), phi''(s)
struct Jet {
  double value, slope, bend;
};

// Jets are computed in double, whatever T. They have no calls and no branches, so compilers
// vectorise the loops and leave out the members that are not stored.
template <class T, class F>
void apply(Index size, T* __restrict s, T* __restrict derivative, T* __restrict second, F jet_of) {
  if (second) {
    for (Index i = 0; i < size; ++i) {
      const Jet jet = jet_of(double(s[i]), i);
      s[i] = T(jet.value);
      derivative[i] = T(jet.slope);
      second[i] = T(jet.bend);
    }
  } else if (derivative) {
    for (Index i = 0; i < size; ++i) {
      const Jet jet = jet_of(double(s[i]), i);
      s[i] = T(jet.value);
      derivative[i] = T(jet.slope);
    }
  } else {
    for (Index i = 0; i < size; ++i) s[i] = T(jet_of(double(s[i]), i).value);
  }
}

inline Jet tanh_jet(double s, Index) {
  const double t = elementary::tanh(s);
  return {t, 1 - t * t, -2 * t * (1 - t * t)};
}

inline Jet elu_jet(double s, Index) {
  const double negative = s > 0 ? 0 : s, m = elementary::expm1_nonpositive(negative);
  return {s < 0 ? m : s, m + 1, s > 0 ? 0 : elementary::exp_nonpositive(negative)};
}

inline Jet sin_jet(double s, Index) {
  const elementary::SinCos angle = elementary::sincos(s);
  return {angle.sin, angle.cos, -angle.sin};
}

// Long formulas are evaluated in several short loops over a block: a loop whose constants fit into
// the registers and whose chains overlap takes half the time.
constexpr Index block = 64;
using Block = std::array<double, block>;

// evaluate(size, s, derivative, second) for one block after the other.
template <class T, class F>
void in_blocks(Index size, T* s, T* derivative, T* second, F evaluate) {
  for (Index i = 0; i < size; i += block)
    evaluate(std::min(block, size - i),
             s + i,
             derivative ? derivative + i : nullptr,
             second ? second + i : nullptr);
}

// Angles that sincos can not reduce are left to libm, by value, not by place.
template <class T>
void sin_block(Index size, T* s, T* derivative, T* second) {
  Block angle;
  double largest = 0;
  for (Index i = 0; i < size; ++i) angle[i] = double(s[i]);
  for (Index i = 0; i < size; ++i) largest = std::max(largest, std::abs(angle[i]));
  apply(size, s, derivative, second, sin_jet);
  if (largest <= elementary::largest_angle) return;
  for (Index i = 0; i < size; ++i) {
    if (!(std::abs(angle[i]) > elementary::largest_angle)) continue;
    s[i] = T(std::sin(angle[i]));
    if (derivative) derivative[i] = T(std::cos(angle[i]));
    if (second) second[i] = -s[i];
  }
}

// s Phi(s), Phi' = e^(-s^2 / 2) / sqrt(2 pi), from the tail Phi(-|s|), which keeps its relative
// accuracy; beyond |s| = 40 it is 0.
template <class T>
void gelu_block(Index size, T* s, T* derivative, T* second) {
  Block distance, e, tail;
  for (Index i = 0; i < size; ++i) {
    const double a = std::abs(double(s[i]));
    distance[i] = a > 40 ? 40 : a;
  }
  for (Index i = 0; i < size; ++i) e[i] = elementary::exp_minus_half_square(distance[i]);
  for (Index i = 0; i < size; ++i) tail[i] = elementary::scaled_normal_tail(distance[i]);
  apply(size, s, derivative, second, [&](double x, Index i) {
    const double t = distance[i], density = inverse_sqrt_2pi * e[i], below = e[i] * tail[i];
    const double cdf = x > 0 ? 1 - below : below;
    return Jet{(x > 0 ? x : -t) * cdf, cdf + std::copysign(t, x) * density, (2 - t * t) * density};
  });
}

// Functions of s and e^-|s|, through p = logistic(s); softplus is max(s, 0) + log(1 + e^-|s|).
void exponential_block(Activation kind, Index size, double* s, double* derivative, double* second) {
  Block e;
  for (Index i = 0; i < size; ++i) e[i] = elementary::exp_nonpositive(-std::abs(s[i]));
  if (kind == Activation::logistic) {
    apply(size, s, derivative, second, [&](double x, Index i) {
      const double p = elementary::logistic(x, e[i]);
      return Jet{p, p * (1 - p), p * (1 - p) * (1 - 2 * p)};
    });
  } else if (kind == Activation::softplus) {
    apply(size, s, derivative, second, [&](double x, Index i) {
      const double p = elementary::logistic(x, e[i]);
      return Jet{(x > 0 ? x : 0) + elementary::log1p_unit(e[i]), p, p * (1 - p)};
    });
  } else {  // silu
    apply(size, s, derivative, second, [&](double x, Index i) {
      const double p = elementary::logistic(x, e[i]), q = p * (1 - p);
      const double y = x < -800 ? -800 : x;  // p is 0
      return Jet{y * p, p * (1 + y * (1 - p)), q * (2 + y * (1 - 2 * p))};
    });
  }
}

void curved(Activation kind, Index size, double* s, double* derivative, double* second) {
  if (kind == Activation::tanh) return apply(size, s, derivative, second, tanh_jet);
  in_blocks(size, s, derivative, second, [&](Index n, double* value, double* d1, double* d2) {
    exponential_block(kind, n, value, d1, d2);
  });
}

// phi''(s), with p = logistic(s), q = p (1 - p):
//   tanh -2 t (1 - t^2),  logistic q (1 - 2 p),  softplus q,  silu q (2 + s (1 - 2 p))
void second_derivative(Activation kind, Index size, float* s, float* second) {
  const AlignedArray<float> a(s, size);
  AlignedArray<float> d(second, size);
  switch (kind) {
    case Activation::tanh:
      d = a.tanh();
      d = -2.0f * d * (1.0f - d.square());
      return;
    case Activation::logistic:
      d = a.logistic();
      d = d * (1.0f - d) * (1.0f - 2.0f * d);
      return;
    case Activation::softplus:
      d = a.logistic();
      d = d * (1.0f - d);
      return;
    default:  // silu
      d = a.logistic();
      d = d * (1.0f - d) * (2.0f + a * (1.0f - 2.0f * d));
  }
}

// Eigen has these functions vectorised for float, not for double.
void curved(Activation kind, Index size, float* s, float* derivative, float* second) {
  AlignedArray<float> a(s, size), d(derivative, derivative ? size : 0);
  // Eigen's logistic does not fall below 3e-39; s times that is to be small for every s < 0.
  if (kind == Activation::silu) a = a.template max<Eigen::PropagateNaN>(-104.0f);
  if (second) second_derivative(kind, size, s, second);
  switch (kind) {
    case Activation::tanh:
      a = a.tanh();
      if (derivative) d = 1.0f - a.square();
      return;
    case Activation::logistic:
      a = a.logistic();
      if (derivative) d = a * (1.0f - a);
      return;
    case Activation::softplus:
      if (derivative) d = a.logistic();
      a = a.max(0.0f) + (-a.abs()).exp().log1p();
      return;
    default:  // silu
      if (derivative) {
        d = a.logistic();
        d = d * (1.0f + a * (1.0f - d));
      }
      a = a * a.logistic();
  }
}

// phi(s) = s for s > 0, slope s else.
template <class T>
void leaky_relu(Index size, T* s, T* derivative, T* second, T slope) {
  if (second) std::fill_n(second, size, T(0));
  if (derivative)
    for (Index i = 0; i < size; ++i) derivative[i] = s[i] > T(0) ? T(1) : slope;
  for (Index i = 0; i < size; ++i) s[i] = s[i] < T(0) ? slope * s[i] : s[i];  // NaN stays NaN
}

}  // namespace

template <class T>
void activate(Activation kind, Index size, T* s, T* derivative, T* second) {
  switch (kind) {
    case Activation::identity:
      if (derivative) std::fill_n(derivative, size, T(1));
      if (second) std::fill_n(second, size, T(0));
      return;
    case Activation::relu:
      return leaky_relu(size, s, derivative, second, T(0));
    case Activation::leaky_relu:
      return leaky_relu(size, s, derivative, second, T(leaky_slope));
    case Activation::elu:
      return apply(size, s, derivative, second, elu_jet);
    case Activation::gelu:
      return in_blocks(size, s, derivative, second, gelu_block<T>);
    case Activation::sin:
      return in_blocks(size, s, derivative, second, sin_block<T>);
    default:
      return curved(kind, size, s, derivative, second);
  }
}

template void activate(Activation, Index, float*, float*, float*);
template void activate(Activation, Index, double*, double*, double*);

}  // namespace natgrad
