// (A + s I)^{-1} for a symmetric A, in double, by two decompositions. Objects are immutable: threads
// share them.
#pragma once

#include <vector>

#include "linalg/matrix.hpp"

namespace natgrad {

// The sign of A + s I, as far as rounding lets one see.
enum class Definiteness { positive, singular, indefinite };

// A + s I = R'R for one shift s.
class SymmetricCholesky {
 public:
  // A at and below its diagonal; n^3 / 3 flops.
  SymmetricCholesky(const Matrix<double>& a, double shift, int num_threads);
  double shift() const { return shift_; }
  // Whether A + s I is positive definite: no pivot is below `noise` times the largest element of the
  // diagonal.
  bool is_definite(double noise) const;
  // x = (A + s I)^{-1} x in place, where it is definite.   2 n^2 flops.
  void solve(double* x) const;

 private:
  Index n_;
  double shift_, largest_ = 0, smallest_ = 0;  // elements of the diagonal, pivots
  Buffer<double> upper_;                       // R, column by column
};

// A = V' diag(values) V.
class SymmetricEigenbasis {
 public:
  // Up to 14 n^3 / 3 flops.
  SymmetricEigenbasis(const Matrix<double>& a, int num_threads);
  const std::vector<double>& values() const { return values_; }  // ascending
  // Eigenvalues of A + s I up to `noise` times the largest are 0.
  Definiteness definiteness(double shift, double noise) const;
  // x = (A + s I)^+ x in place, on the space of eigenvectors whose values are positive: where A + s I
  // is singular the shortest vector of least residual, where it is indefinite a direction in which
  // x'(A + s I) x > 0.   4 n^2 flops.
  void solve(double shift, double noise, double* x) const;

 private:
  double cutoff(double shift, double noise) const;

  std::vector<double> values_;
  Matrix<double> vectors_;  // V (n x n): a row is an eigenvector
};

}  // namespace natgrad
