// Sums and products of operators, multiplied part by part.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "linalg/operator.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {

// Memory that one product at a time uses again; any other gets its own.
template <class T>
class SharedScratch {
 public:
  // f(scratch of `size` elements)
  template <class F>
  void use(Index size, const F& f) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      Buffer<T> own(size);
      f(own.data());
      return;
    }
    const Release release{busy_};
    if (kept_.size() < size) kept_ = Buffer<T>(size);
    f(kept_.data());
  }

 private:
  struct Release {
    std::atomic_flag& flag;
    ~Release() { flag.clear(std::memory_order_release); }
  };
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  Buffer<T> kept_;
};

// y = sum_i c_i A_i x, in the order of the terms. The products of all terms and 3 P flops for each.
template <class T>
class SumOperator final : public LinearOperator<T> {
 public:
  struct Term {
    double coefficient;
    std::shared_ptr<LinearOperator<T>> op;
  };
  // At least one term; all of `size`.
  SumOperator(std::vector<Term> terms, Index size, int num_threads);

  Index size() const override { return vectors_.size(); }
  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;

 private:
  std::vector<Term> terms_;
  Vectors<T> vectors_;
  SharedScratch<T> scratch_;  // (K x P)
};

// y = A_1 (A_2 (.. x))
template <class T>
class ProductOperator final : public LinearOperator<T> {
 public:
  // At least two factors; all of `size`.
  ProductOperator(std::vector<std::shared_ptr<LinearOperator<T>>> factors, Index size);

  Index size() const override { return size_; }
  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;

 private:
  std::vector<std::shared_ptr<LinearOperator<T>>> factors_;
  Index size_;
  SharedScratch<T> scratch_;  // (K x P)
};

}  // namespace natgrad
