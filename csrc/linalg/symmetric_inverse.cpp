#include "linalg/symmetric_inverse.hpp"

#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"
#include "linalg/factorization.hpp"

namespace natgrad {

SymmetricCholesky::SymmetricCholesky(const Matrix<double>& a, double shift, int num_threads)
    : n_(a.rows), shift_(shift), upper_(checked_product(n_, n_, "Cholesky factor")) {
  constexpr Index block = rows_per_task;
  parallel_for((n_ + block - 1) / block, num_threads, [&](Index task, int) {
    for (Index j = task * block; j < std::min(n_, (task + 1) * block); ++j) {
      double* column = upper_.data() + j * n_;
      std::copy_n(a.row(j), j + 1, column);
      column[j] += shift;
    }
  });
  for (Index j = 0; j < n_; ++j) largest_ = std::max(largest_, upper_[j * n_ + j]);
  Eigen::Map<Eigen::MatrixXd> factor(upper_.data(), n_, n_);
  if (!cholesky_upper(factor, num_threads)) return;
  smallest_ = factor.diagonal().minCoeff();
  smallest_ *= smallest_;
}

bool SymmetricCholesky::is_definite(double noise) const {
  return smallest_ > noise * largest_;
}

void SymmetricCholesky::solve(double* x) const {
  const Eigen::Map<const Eigen::MatrixXd> factor(upper_.data(), n_, n_);
  const auto upper = factor.triangularView<Eigen::Upper>();
  Eigen::Map<Eigen::VectorXd> v(x, n_);
  upper.transpose().solveInPlace(v);
  upper.solveInPlace(v);
}

SymmetricEigenbasis::SymmetricEigenbasis(const Matrix<double>& a, int num_threads)
    : values_(static_cast<std::size_t>(a.rows)), vectors_(a.rows, a.rows) {
  decompose_indefinite(a, num_threads, vectors_, values_.data());
}

double SymmetricEigenbasis::cutoff(double shift, double noise) const {
  return noise * std::max(std::abs(values_.front() + shift), std::abs(values_.back() + shift));
}

Definiteness SymmetricEigenbasis::definiteness(double shift, double noise) const {
  const double smallest = values_.front() + shift, bound = cutoff(shift, noise);
  if (smallest > bound) return Definiteness::positive;
  return smallest >= -bound ? Definiteness::singular : Definiteness::indefinite;
}

void SymmetricEigenbasis::solve(double shift, double noise, double* x) const {
  using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Index n = vectors_.rows;
  const Eigen::Map<const RowMajorMatrix> v(vectors_.data.data(), n, n);
  Eigen::Map<Eigen::VectorXd> out(x, n);
  Eigen::VectorXd coordinates = v * out;
  const double bound = cutoff(shift, noise);
  for (Index i = 0; i < n; ++i) {
    const double value = values_[static_cast<std::size_t>(i)] + shift;
    coordinates[i] = value > bound ? coordinates[i] / value : 0.0;
  }
  out.noalias() = v.transpose() * coordinates;
}

}  // namespace natgrad
