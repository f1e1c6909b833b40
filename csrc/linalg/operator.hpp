// What solvers multiply with.
#pragma once

#include "base/types.hpp"

namespace natgrad {

// Thrown out of a product by an operator that was told to stop. Its output is then undefined, all else
// as before the product.
class Interrupted {
 public:
  virtual ~Interrupted() = default;
};

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

// y = d . x
template <class T>
class DiagonalOperator final : public LinearOperator<T> {
 public:
  DiagonalOperator(const T* diagonal, Index size) : diagonal_(diagonal), size_(size) {}
  Index size() const override { return size_; }
  void apply(const T* x, T* y) override {
    for (Index i = 0; i < size_; ++i) y[i] = diagonal_[i] * x[i];
  }

 private:
  const T* diagonal_;
  Index size_;
};

}  // namespace natgrad
