#pragma once

#include <vector>

#include "base/mutex.hpp"
#include "linalg/operator.hpp"
#include "linalg/panels.hpp"

namespace natgrad {

// Orthonormalises the rows of q (l x P) in place, in double, by Cholesky factors of Gram matrices,
// twice (Yamamoto et al., ETNA 44, 2015). A row that depends on those before it, up to a part of
// 1e-6 of its length, becomes zero. Cost 8 P l^2 flops.
template <class T>
void orthonormalise_rows(Index rank, Index size, int num_threads, T* q);

// Preconditioner from a low-rank approximation A_hat = U L U' of a positive semi-definite A, after
// Frangella, Tropp and Udell (SIAM J. Matrix Anal. Appl. 44, 2023):
//   M = U (L + mu I)^-1 U' + (I - U U') / (l_min + mu)  ~  (A + mu I)^-1
// for l_min the smallest of the eigenvalues L. apply() multiplies with M = s (I + U C U').
template <class T>
class NystromOperator final : public LinearOperator<T> {
 public:
  NystromOperator(Index size, int num_threads) : size_(size), num_threads_(num_threads) {}

  Index size() const override { return size_; }
  // Copies: another thread may update. (rank,), decreasing
  std::vector<double> eigenvalues() const;
  // (rank x P); rows of eigenvalues 0 are zero.
  Buffer<T> vectors() const;

  // A_hat = Y'(Y omega')^+ Y from omega (rank x P), of orthonormal rows, and Y = omega A. Where A is
  // of lower rank, the eigenvalues left over are 0. Cost about 16 P rank^2 flops.
  void update(Index rank, const T* omega, const T* y);
  // A_hat of eigenvalues (rank,), decreasing and >= 0, and vectors (rank x P) as above.
  void set_approximation(Index rank, const double* eigenvalues, const T* vectors);
  // Sets mu.
  void refresh(double damping);
  // log det of the inverse of M for this mu.
  double log_determinant(double damping) const;
  // M of the last refresh.
  struct Inverse {
    std::vector<double> coefficients;  // C (rank,), (l_min + mu) / (l_i + mu) - 1
    double scale = 1.0;                // s, 1 / (l_min + mu)
  };
  Inverse inverse() const;

  // 4 P rank flops for each vector.
  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;
  // y = M^(1/2) x, symmetric; of the same cost.
  void apply_root(const T* x, Index num_vectors, T* y);

 private:
  void replace(std::vector<double> eigenvalues, Buffer<T> u);
  // With mutex_ held:
  Index rank() const { return static_cast<Index>(eigenvalues_.size()); }
  Inverse invert(double damping) const;
  void multiply(const Inverse& m, const T* x, Index num_vectors, T* y);

  Index size_;
  int num_threads_;
  mutable Mutex mutex_;  // guards what follows
  Buffer<T> u_;          // (rank x P)
  std::vector<double> eigenvalues_;
  Inverse inverse_;
  Buffer<double> partial_;  // (tasks x K x rank)
  Buffer<double> inner_;    // (K x rank): coefficients . U x
};

}  // namespace natgrad
