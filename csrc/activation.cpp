#include "activation.hpp"

#include <Eigen/Core>
#include <cmath>

namespace natgrad {
namespace {

template <class T>
using AlignedArray = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>, Eigen::AlignedMax>;

constexpr double leaky_slope = 0.01;

// phi(s) = s for s > 0, slope s else; the loops have no function calls, so compilers vectorise
// them.
template <class T>
void leaky_relu(Index size, T* s, T* derivative, T slope) {
  if (derivative)
    for (Index i = 0; i < size; ++i) derivative[i] = s[i] > T(0) ? T(1) : slope;
  for (Index i = 0; i < size; ++i) s[i] = s[i] < T(0) ? slope * s[i] : s[i];  // NaN stays NaN
}

template <class T>
void elu(Index size, T* s, T* derivative) {
  for (Index i = 0; i < size; ++i) {
    const T negative = std::expm1(s[i] < T(0) ? s[i] : T(0));
    if (derivative) derivative[i] = negative + T(1);
    s[i] = s[i] < T(0) ? negative : s[i];
  }
}

// Phi(s) = erfc(-s / sqrt 2) / 2 keeps its relative accuracy in the left tail.
template <class T>
void gelu(Index size, T* s, T* derivative) {
  const T sqrt_half = T(0.70710678118654752440), inverse_sqrt_2pi = T(0.39894228040143267794);
  for (Index i = 0; i < size; ++i) {
    const T cdf = T(0.5) * std::erfc(-s[i] * sqrt_half);
    if (derivative) derivative[i] = cdf + s[i] * inverse_sqrt_2pi * std::exp(T(-0.5) * s[i] * s[i]);
    s[i] *= cdf;
  }
}

// phi''(s), with p = logistic(s), q = p (1 - p):
//   tanh -2 t (1 - t^2),  logistic q (1 - 2 p),  elu e^s for s <= 0,  softplus q,
//   gelu (2 - s^2) e^{-s^2 / 2} / sqrt(2 pi),  silu q (2 + s (1 - 2 p)),  sin -sin s,  else 0
template <class T>
void second_derivative(Activation kind, Index size, T* s, T* second) {
  const AlignedArray<T> a(s, size);
  AlignedArray<T> d(second, size);
  switch (kind) {
    case Activation::identity:
    case Activation::relu:
    case Activation::leaky_relu:
      d.setZero();
      return;
    case Activation::tanh:
      d = a.tanh();
      d = T(-2) * d * (T(1) - d.square());
      return;
    case Activation::logistic:
      d = a.logistic();
      d = d * (T(1) - d) * (T(1) - T(2) * d);
      return;
    case Activation::elu:
      for (Index i = 0; i < size; ++i) second[i] = s[i] > T(0) ? T(0) : std::exp(s[i]);
      return;
    case Activation::softplus:
      d = a.logistic();
      d = d * (T(1) - d);
      return;
    case Activation::gelu:  // exp(-750) is 0, while s^2 may overflow
      d = a.square().min(T(1500));
      d = (T(2) - d) * (T(-0.5) * d).exp() * T(0.39894228040143267794);
      return;
    case Activation::silu:
      d = a.logistic();
      d = d * (T(1) - d) * (T(2) + a * (T(1) - T(2) * d));
      return;
    case Activation::sin:
      d = -a.sin();
      return;
  }
}

}  // namespace

template <class T>
void activate(Activation kind, Index size, T* s, T* derivative, T* second) {
  if (second) second_derivative(kind, size, s, second);
  AlignedArray<T> a(s, size);
  AlignedArray<T> d(derivative, derivative ? size : 0);
  switch (kind) {
    case Activation::identity:
      d.setOnes();
      return;
    case Activation::tanh:
      a = a.tanh();
      if (derivative) d = T(1) - a.square();
      return;
    case Activation::logistic:
      a = a.logistic();
      if (derivative) d = a * (T(1) - a);
      return;
    case Activation::relu:
      return leaky_relu(size, s, derivative, T(0));
    case Activation::leaky_relu:
      return leaky_relu(size, s, derivative, T(leaky_slope));
    case Activation::elu:
      return elu(size, s, derivative);
    case Activation::softplus:
      if (derivative) d = a.logistic();
      a = a.max(T(0)) + (-a.abs()).exp().log1p();
      return;
    case Activation::gelu:
      return gelu(size, s, derivative);
    case Activation::silu:
      if (derivative) {
        d = a.logistic();
        d = d * (T(1) + a * (T(1) - d));
      }
      a = a * a.logistic();
      return;
    case Activation::sin:
      if (derivative) d = a.cos();
      a = a.sin();
      return;
  }
}

template void activate(Activation, Index, float*, float*, float*);
template void activate(Activation, Index, double*, double*, double*);

}  // namespace natgrad
