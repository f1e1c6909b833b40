// A symmetric matrix that is held, (P x P) in double, with what its solves need.
#pragma once

#include <memory>

#include "base/mutex.hpp"
#include "curvature/gauss_newton.hpp"
#include "linalg/operator.hpp"
#include "linalg/symmetric_inverse.hpp"

namespace natgrad {

enum class DenseMethod { cholesky, eigh };

// How a vector x of T solves (A + s I) x = b. `norm`, `residual` and `quadratic`: |b|, |b - (A + s I) x|
// and x'(A + s I) x / 2 - b'x.
struct DenseSolution {
  double norm, residual, quadratic;
  bool out_of_range;  // x had to be shrunk, or rounded to nothing, to be held in T
};

template <class T>
class DenseMatrix final : public LinearOperator<T> {
 public:
  // B + S of the curvature, S its shift at this time: sums over the rows of J in blocks of cases
  // (BlockSum), in double. No more than some tens of MiB besides the matrix.
  explicit DenseMatrix(CurvatureOperator<T>& curvature);
  // The matrix that is given (P x P, row-major), read at and below the diagonal.
  DenseMatrix(const T* a, Index size, int num_threads);
  // S A S for another A and a diagonal S (P).
  DenseMatrix(const DenseMatrix& other, const double* scales);

  // Flops that form the former, in double: N P^2 and what goes with it, about.
  static double estimate_flops(const Architecture& net, Index num_columns, Index num_cases);

  Index size() const override { return a_.rows; }
  void apply(const T* x, T* y) override;  // 2 P^2 flops
  bool is_finite() const { return is_finite_; }
  // out = diagonal (P).
  void copy_diagonal(double* out) const;
  // out = A (P x P), row-major.
  void copy(T* out) const;

  // x_k ~ (A + shift I)^{-1} b_k;  b, x (K x P), solutions (K,). By a Cholesky factorisation of
  // A + shift I or the eigenvectors of A, which are kept for the next time; and by the latter where
  // the former finds a matrix that is not definite to rounding. 2 P^2 or 4 P^2 flops each, and as many
  // for the residual. A must be finite.
  struct Decomposition {
    DenseMethod method;
    Definiteness definiteness;
    Index new_factorizations, new_eigenbases;
  };
  Decomposition solve(double shift,
                      DenseMethod method,
                      const T* b,
                      Index num_vectors,
                      T* x,
                      DenseSolution* solutions);
  // Eigenvalues of A, ascending.
  std::vector<double> eigenvalues();

 private:
  struct Inverse {
    std::shared_ptr<const SymmetricCholesky> cholesky;  // one of the two
    std::shared_ptr<const SymmetricEigenbasis> eigenbasis;
    double shift, noise;
    void solve(double* x) const;
  };
  void mirror();
  Inverse decompose(double shift, DenseMethod method, Decomposition& made);
  DenseSolution solve_one(const Inverse& inverse, const T* b, T* x) const;
  // r = b - (A + shift I) x
  void residual(double shift, const double* b, const double* x, double* r) const;
  bool keep_eigenbasis();  // with mutex_ held; whether it is new

  Matrix<double> a_;  // symmetric
  double noise_;      // eigenvalues below this part of the largest may be rounding
  int num_threads_;
  bool is_finite_ = false;
  Mutex mutex_;  // guards what is kept
  std::shared_ptr<const SymmetricCholesky> cholesky_;
  std::shared_ptr<const SymmetricEigenbasis> eigenbasis_;
};

}  // namespace natgrad
