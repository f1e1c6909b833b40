// Shapes, used in every comment of csrc/:
//   N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0 inputs, d_L = C), K
//   vectors.
// Scalars (losses, inner products, norms) are accumulated in double whatever the storage type T.
#pragma once

#include <cstddef>
#include <cstdint>

namespace natgrad {

using Index = std::ptrdiff_t;

// A symmetric linear map on R^P. apply() may use scratch of its own, so it is not const.
template <class T>
class LinearOperator {
 public:
  virtual ~LinearOperator() = default;
  virtual Index size() const = 0;
  // y = A x;  x, y are (P,) and do not overlap.
  virtual void apply(const T* x, T* y) = 0;
  // y_k = A x_k;  x, y (K x P).
  virtual void apply_block(const T* x, Index num_vectors, T* y) {
    for (Index k = 0; k < num_vectors; ++k) apply(x + k * size(), y + k * size());
  }
};

}  // namespace natgrad
