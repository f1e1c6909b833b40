// (K + s I)^{-1} for the kernel K of a sample space, in double, by two decompositions. Objects are
// immutable: threads share them.
#pragma once

#include <Eigen/Core>

#include "linalg/matrix.hpp"

namespace natgrad {

// Vectors are (N x columns), element i columns + c; rows of kernels are in the order c N + i.
struct SampleOrder {
  Index num_cases, columns;
  Index size() const { return num_cases * columns; }
  // Place in a kernel of element w of a vector.
  Index place(Index w) const { return w % columns * num_cases + w / columns; }
};

// K + s I = R'R for one shift s.
template <class T>
class KernelCholesky {
 public:
  // K at and below its diagonal; n^3 / 3 flops.
  KernelCholesky(const Matrix<double>& kernel, SampleOrder order, double shift, int num_threads);
  double shift() const { return shift_; }
  // False if K + s I is not positive definite to rounding: then there is no solve().
  bool is_definite() const { return is_definite_; }
  // x = (K + s I)^{-1} b;  b, x (n,).   2 n^2 flops.
  void solve(const T* b, T* x) const;
  Index size() const { return order_.size(); }

 private:
  SampleOrder order_;
  double shift_;
  Buffer<double> upper_;  // R, column by column
  bool is_definite_;
};

// K = V D V'. Negative eigenvalues are rounding, and 0.
template <class T>
class KernelEigenbasis {
 public:
  // K at and below its diagonal; about 9 n^3 flops.
  KernelEigenbasis(const Matrix<double>& kernel, SampleOrder order);
  // x = (K + shift I)^{-1} b;  b, x (n,).   4 n^2 flops.
  void solve(double shift, const T* b, T* x) const;
  Index size() const { return order_.size(); }

 private:
  SampleOrder order_;
  Eigen::MatrixXd vectors_;
  Eigen::VectorXd values_;
};

}  // namespace natgrad
