#pragma once

#include <array>
#include <string_view>

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

// Names in the order of the enumerators.
inline constexpr std::array<std::string_view, 10> activation_names = {
    "identity", "tanh", "logistic", "relu", "leaky_relu", "elu", "softplus", "gelu", "silu", "sin"};

// s = phi(s) in place and, unless null, derivative = phi'(s), second = phi''(s). leaky_relu has
// slope 0.01, elu alpha 1, gelu is s Phi(s) with the exact normal distribution function. In double
// phi is within 3 units in the last place (gelu 6) where Phi(s) and logistic(s) are normal numbers;
// phi', phi'' are accurate relative to 1. At a kink
// derivatives are the left ones, relu'(0) = 0; relu'', leaky_relu'' are 0 everywhere. `size` is a
// multiple of Tile<T>::width and the arrays are aligned to vector registers, so that every element
// takes the same (vector) path wherever it stands. second needs derivative.
template <class T>
void activate(Activation kind, Index size, T* s, T* derivative, T* second = nullptr);

}  // namespace natgrad
