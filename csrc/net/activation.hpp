#pragma once

#include <string_view>
#include <vector>

#include "base/types.hpp"

namespace natgrad {

enum class Activation {
  identity,
  tanh,
  logistic,
  relu,
  leaky_relu,
  elu,
  softplus,
  gelu,
  silu,
  sin
};

// In the order of the enumerators.
std::vector<std::string_view> activation_names();

// Whether phi'' is 0 but at kinks.
constexpr bool is_piecewise_linear(Activation kind) {
  return kind == Activation::identity || kind == Activation::relu || kind == Activation::leaky_relu;
}

// s = phi(s) in place and, unless null, derivative = phi'(s), second = phi''(s). leaky_relu has
// slope 0.01, elu alpha 1, gelu is s Phi(s) with the exact normal distribution function. Errors are
// below 8 units in the last place, or below the smallest normal number; close to the zeros of gelu'
// (-0.75), silu' (-1.28) and silu'' (+-2.40) in units of the terms that cancel there. At a kink
// derivatives are the left ones, relu'(0) = 0; relu'', leaky_relu'' are 0 everywhere. `size` is a
// multiple of Tile<T>::width and the arrays are aligned to vector registers, so that every element
// takes the same (vector) path wherever it stands. second needs derivative.
template <class T>
void activate(Activation kind, Index size, T* s, T* derivative, T* second = nullptr);

}  // namespace natgrad
