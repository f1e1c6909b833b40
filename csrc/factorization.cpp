#include "factorization.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>

#include "parallel.hpp"

namespace natgrad {
namespace {

using MatrixXd = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Solver = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>;

template <class T>
auto map(const Matrix<T>& m) {
  using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const Dense, 0, Eigen::OuterStride<>>(
      m.data.data(), m.rows, m.cols, Eigen::OuterStride<>(m.ld));
}

Solver eigen_solver(const Eigen::MatrixXd& s) {
  Solver solver(s);
  if (solver.info() != Eigen::Success)
    throw std::runtime_error("the eigendecomposition of a Kronecker factor did not converge");
  return solver;
}

// Eigenvalues of D from those of scale S, ascending.
template <class T>
Eigen::VectorXd clip(const Eigen::VectorXd& values, double shift) {
  const Eigen::VectorXd shifted = values.cwiseMax(0.0).array() + shift;
  return shifted.cwiseMax(relative_noise<T> * shifted[shifted.size() - 1]);
}

template <class T>
bool is_clipped(const Matrix<T>& s, double scale, double shift) {
  return !(shift >= relative_noise<T> * scale * trace(s));
}

}  // namespace

template <class T>
double trace(const Matrix<T>& s) {
  double sum = 0;
  for (Index i = 0; i < s.rows; ++i) sum += static_cast<double>(s.row(i)[i]);
  return sum;
}

template <class T>
double frobenius_norm(const Matrix<T>& s) {
  return map(s).template cast<double>().norm();
}

template <class T>
void shift_matrix(const Matrix<T>& s, double scale, double shift, double* out) {
  Eigen::MatrixXd d = scale * map(s).template cast<double>();
  if (is_clipped(s, scale, shift)) {
    const Solver solver = eigen_solver(d);
    const Eigen::MatrixXd& u = solver.eigenvectors();
    d = u * clip<T>(solver.eigenvalues(), shift).asDiagonal() * u.transpose();
  } else {
    d.diagonal().array() += shift;
  }
  Eigen::Map<MatrixXd>(out, s.rows, s.rows) = d;
}

template <class T>
void invert_shifted(const Matrix<T>& s, double scale, double shift, Matrix<T>& out) {
  Eigen::MatrixXd d = scale * map(s).template cast<double>(), inverse;
  if (is_clipped(s, scale, shift)) {
    const Solver solver = eigen_solver(d);
    const Eigen::MatrixXd& u = solver.eigenvectors();
    const Eigen::VectorXd values = clip<T>(solver.eigenvalues(), shift);
    inverse = u * values.cwiseInverse().asDiagonal() * u.transpose();
  } else {
    d.diagonal().array() += shift;
    const Eigen::LLT<Eigen::MatrixXd> cholesky(d);
    if (cholesky.info() != Eigen::Success)
      throw std::runtime_error("the Cholesky decomposition of a Kronecker factor failed");
    inverse = cholesky.solve(Eigen::MatrixXd::Identity(s.rows, s.rows));
  }
  for (Index i = 0; i < s.rows; ++i)
    for (Index j = 0; j <= i; ++j)
      out.row(i)[j] = out.row(j)[i] = static_cast<T>(0.5 * (inverse(i, j) + inverse(j, i)));
}

template <class T>
void decompose(const Matrix<T>& s, Matrix<T>& vectors_transposed, double* values) {
  const Solver solver = eigen_solver(map(s).template cast<double>());
  for (Index k = 0; k < s.rows; ++k) {
    values[k] = std::max(0.0, solver.eigenvalues()[k]);
    for (Index i = 0; i < s.rows; ++i)
      vectors_transposed.row(k)[i] = static_cast<T>(solver.eigenvectors()(i, k));
  }
}

template <class T>
void rotate_diagonal(const BasisChange<T>& left, const BasisChange<T>& right, Matrix<T>& scales) {
  const auto squares = [](const BasisChange<T>& change) -> Eigen::MatrixXd {
    return (map(change.to).template cast<double>() *
            map(change.from).template cast<double>().transpose())
        .cwiseAbs2();
  };
  const Eigen::MatrixXd rotated =
      squares(left) * map(scales).template cast<double>() * squares(right).transpose();
  for (Index i = 0; i < scales.rows; ++i)
    for (Index j = 0; j < scales.cols; ++j) scales.row(i)[j] = static_cast<T>(rotated(i, j));
}

bool cholesky_upper(Eigen::MatrixXd& a, int num_threads) {
  constexpr Index tile = 192;
  const Index n = a.rows(), num_tiles = (n + tile - 1) / tile;
  const auto block = [&](Index i, Index j) {
    return a.block(i * tile, j * tile, std::min(tile, n - i * tile), std::min(tile, n - j * tile));
  };
  for (Index k = 0; k < num_tiles; ++k) {
    auto corner = block(k, k);
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Upper> diagonal(corner);
    if (diagonal.info() != Eigen::Success) return false;
    const Index rest = num_tiles - k - 1;
    parallel_for(rest, num_threads, [&](Index j, int) {
      auto row = block(k, k + 1 + j);
      corner.triangularView<Eigen::Upper>().transpose().solveInPlace(row);
    });
    parallel_for(rest * rest, num_threads, [&](Index task, int) {
      const Index i = k + 1 + task / rest, j = k + 1 + task % rest;
      if (i <= j) block(i, j).noalias() -= block(k, i).transpose() * block(k, j);
    });
  }
  return a.diagonal().allFinite();
}

#define NATGRAD_INSTANTIATE(T)                                                \
  template double trace(const Matrix<T>&);                                    \
  template double frobenius_norm(const Matrix<T>&);                           \
  template void shift_matrix(const Matrix<T>&, double, double, double*);      \
  template void invert_shifted(const Matrix<T>&, double, double, Matrix<T>&); \
  template void decompose(const Matrix<T>&, Matrix<T>&, double*);             \
  template void rotate_diagonal(const BasisChange<T>&, const BasisChange<T>&, Matrix<T>&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
