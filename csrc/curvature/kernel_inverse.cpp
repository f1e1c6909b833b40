#include "curvature/kernel_inverse.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>

#include "base/parallel.hpp"
#include "linalg/factorization.hpp"

namespace natgrad {
namespace {

template <class T>
Eigen::VectorXd to_kernel_order(SampleOrder order, const T* w) {
  Eigen::VectorXd v(order.size());
  for (Index i = 0; i < order.size(); ++i) v[order.place(i)] = static_cast<double>(w[i]);
  return v;
}

template <class T>
void from_kernel_order(SampleOrder order, const Eigen::VectorXd& v, T* w) {
  for (Index i = 0; i < order.size(); ++i) w[i] = static_cast<T>(v[order.place(i)]);
}

}  // namespace

template <class T>
KernelCholesky<T>::KernelCholesky(const Matrix<double>& kernel,
                                  SampleOrder order,
                                  double shift,
                                  int num_threads)
    : order_(order),
      shift_(shift),
      upper_(checked_product(order.size(), order.size(), "kernel factor")) {
  const Index n = order_.size();
  parallel_for(n, num_threads, [&](Index j, int) {
    double* column = upper_.data() + j * n;
    std::copy_n(kernel.row(j), j + 1, column);
    column[j] += shift;
  });
  is_definite_ = cholesky_upper(Eigen::Map<Eigen::MatrixXd>(upper_.data(), n, n), num_threads);
}

template <class T>
void KernelCholesky<T>::solve(const T* b, T* x) const {
  const Index n = order_.size();
  const Eigen::Map<const Eigen::MatrixXd> factor(upper_.data(), n, n);
  const auto upper = factor.template triangularView<Eigen::Upper>();
  Eigen::VectorXd v = to_kernel_order(order_, b);
  upper.transpose().solveInPlace(v);
  upper.solveInPlace(v);
  from_kernel_order(order_, v, x);
}

template <class T>
KernelEigenbasis<T>::KernelEigenbasis(const Matrix<double>& kernel, SampleOrder order)
    : order_(order) {
  const Index n = order_.size();
  Eigen::MatrixXd lower(n, n);
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j <= i; ++j) lower(i, j) = kernel.row(i)[j];
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(lower);
  values_ = solver.eigenvalues().cwiseMax(0.0);
  vectors_ = solver.eigenvectors();
}

template <class T>
void KernelEigenbasis<T>::solve(double shift, const T* b, T* x) const {
  const Eigen::VectorXd coordinates = vectors_.transpose() * to_kernel_order(order_, b);
  const Eigen::VectorXd v = vectors_ * (coordinates.array() / (values_.array() + shift)).matrix();
  from_kernel_order(order_, v, x);
}

template class KernelCholesky<float>;
template class KernelCholesky<double>;
template class KernelEigenbasis<float>;
template class KernelEigenbasis<double>;

}  // namespace natgrad
