#include "curvature/dense_matrix.hpp"

#include <Eigen/Core>
#include <cmath>
#include <limits>

#include "base/parallel.hpp"
#include "curvature/block_sum.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();

// f(begin, end) for blocks of the rows of an (n x n) matrix, in `flops` of work.
template <class F>
void each_rows(Index n, double flops, int num_threads, const F& f) {
  constexpr Index block = rows_per_task;
  parallel_for((n + block - 1) / block,
               flops < serial_flops ? 1 : num_threads,
               [&](Index task, int) { f(task * block, std::min(n, (task + 1) * block)); });
}

double square(Index n) {
  return static_cast<double>(n) * static_cast<double>(n);
}

// The exponent of the largest element, for a unit in which squares stay within the range.
template <class T>
int unit_of(const T* x, Index n) {
  double largest = 0;
  for (Index i = 0; i < n; ++i) largest = std::max(largest, std::abs(static_cast<double>(x[i])));
  return largest > 0.0 && std::isfinite(largest) ? std::ilogb(largest) : 0;
}

// Euclidean norm, whatever the size of the elements.
double norm_of(const Eigen::VectorXd& r) {
  const int unit = unit_of(r.data(), r.size());
  double sum = 0;
  for (Index i = 0; i < r.size(); ++i) {
    const double value = std::ldexp(r[i], -unit);
    sum += value * value;
  }
  return std::ldexp(std::sqrt(sum), unit);
}

}  // namespace

template <class T>
DenseMatrix<T>::DenseMatrix(CurvatureOperator<T>& curvature)
    : a_(curvature.size(), curvature.size()),
      num_threads_(curvature.linearization().num_threads()) {
  // Rows of J have errors of some eps of T each, so null vectors of A get their squares.
  const double rounding = 16.0 * static_cast<double>(std::numeric_limits<T>::epsilon());
  noise_ = std::max(static_cast<double>(size()) * epsilon, rounding * rounding);
  Linearization<T>& lin = curvature.linearization();
  const Index columns = curvature.output().num_columns();
  BlockSum sum(lin.net(),
               columns_per_block<T>(lin.net(), columns),
               std::min(lin.num_panels() * Tile<T>::width, Tile<T>::depth),
               num_threads_);
  double* a = a_.data.data();
  std::fill(a, a + a_.data.size(), 0.0);
  visit_case_blocks<T>(curvature, [&](const CaseBlock& block) { sum.add(block, a); });
  const Shift shift = curvature.shift();
  for (Index p = 0; p < size(); ++p) a_.row(p)[p] += shift.weights;
  each_bias_range(lin.net(), [&](Index p, Index end) {
    for (; p < end; ++p) a_.row(p)[p] += shift.excess();
  });
  mirror();
}

template <class T>
DenseMatrix<T>::DenseMatrix(const T* a, Index size, int num_threads)
    : a_(size, size), noise_(static_cast<double>(size) * epsilon), num_threads_(num_threads) {
  each_rows(size, square(size), num_threads_, [&](Index begin, Index end) {
    for (Index p = begin; p < end; ++p)
      for (Index q = 0; q <= p; ++q) a_.row(p)[q] = static_cast<double>(a[p * size + q]);
  });
  mirror();
}

template <class T>
DenseMatrix<T>::DenseMatrix(const DenseMatrix& other, const double* scales)
    : a_(other.size(), other.size()), noise_(other.noise_), num_threads_(other.num_threads_) {
  each_rows(size(), square(size()), num_threads_, [&](Index begin, Index end) {
    for (Index p = begin; p < end; ++p)
      for (Index q = 0; q <= p; ++q) a_.row(p)[q] = scales[p] * scales[q] * other.a_.row(p)[q];
  });
  mirror();
}

template <class T>
void DenseMatrix<T>::copy_diagonal(double* out) const {
  for (Index p = 0; p < size(); ++p) out[p] = a_.row(p)[p];
}

template <class T>
double DenseMatrix<T>::estimate_flops(const Architecture& net, Index num_columns, Index num_cases) {
  const Index columns = columns_per_block<T>(net, num_columns);
  const Index groups = (num_columns + columns - 1) / columns;
  return static_cast<double>(groups) * BlockSum::estimate_flops(net, columns, num_cases);
}

// Copies what is below the diagonal to above it.
template <class T>
void DenseMatrix<T>::mirror() {
  constexpr Index block = 32;
  const Index n = size(), blocks = (n + block - 1) / block;
  parallel_for(blocks, square(n) < serial_flops ? 1 : num_threads_, [&](Index i, int) {
    for (Index j = i; j < blocks; ++j)
      for (Index p = j * block; p < std::min(n, (j + 1) * block); ++p)
        for (Index q = i * block; q < std::min(p, (i + 1) * block); ++q)
          a_.row(q)[p] = a_.row(p)[q];
  });
  is_finite_ = natgrad::all_finite(a_.data.data(), a_.data.size());
}

template <class T>
void DenseMatrix<T>::copy(T* out) const {
  each_rows(size(), square(size()), num_threads_, [&](Index begin, Index end) {
    for (Index i = begin * size(); i < end * size(); ++i) out[i] = static_cast<T>(a_.data[i]);
  });
}

template <class T>
void DenseMatrix<T>::residual(double shift, const double* b, const double* x, double* r) const {
  const Eigen::Map<const Eigen::VectorXd> v(x, size());
  each_rows(size(), 2.0 * square(size()), num_threads_, [&](Index begin, Index end) {
    for (Index p = begin; p < end; ++p) {
      const Eigen::Map<const Eigen::VectorXd> row(a_.row(p), size());
      r[p] = b[p] - (row.dot(v) + shift * x[p]);
    }
  });
}

template <class T>
void DenseMatrix<T>::apply(const T* x, T* y) {
  const Eigen::VectorXd v =
      Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>>(x, size()).template cast<double>();
  const Eigen::VectorXd zero = Eigen::VectorXd::Zero(size());
  Eigen::VectorXd product(size());
  residual(0.0, zero.data(), v.data(), product.data());
  for (Index p = 0; p < size(); ++p) y[p] = static_cast<T>(-product[p]);
}

template <class T>
bool DenseMatrix<T>::keep_eigenbasis() {
  if (eigenbasis_) return false;
  eigenbasis_ = std::make_shared<SymmetricEigenbasis>(a_, num_threads_);
  return true;
}

template <class T>
std::vector<double> DenseMatrix<T>::eigenvalues() {
  check(is_finite_, "the matrix has NaN or Inf: it has no eigenvalues");
  const std::lock_guard lock(mutex_);
  keep_eigenbasis();
  return eigenbasis_->values();
}

template <class T>
void DenseMatrix<T>::Inverse::solve(double* x) const {
  if (cholesky)
    cholesky->solve(x);
  else
    eigenbasis->solve(shift, noise, x);
}

template <class T>
auto DenseMatrix<T>::decompose(double shift, DenseMethod method, Decomposition& made) -> Inverse {
  const std::lock_guard lock(mutex_);
  if (method == DenseMethod::cholesky) {
    if (!cholesky_ || cholesky_->shift() != shift) {
      cholesky_.reset();  // its memory first
      cholesky_ = std::make_shared<SymmetricCholesky>(a_, shift, num_threads_);
      ++made.new_factorizations;
    }
    if (cholesky_->is_definite(noise_)) return {cholesky_, nullptr, shift, noise_};
  }
  made.method = DenseMethod::eigh;
  made.new_eigenbases += keep_eigenbasis();
  made.definiteness = eigenbasis_->definiteness(shift, noise_);
  return {nullptr, eigenbasis_, shift, noise_};
}

// In a unit of b, 2^unit, in which nothing under- or overflows on the way.
template <class T>
DenseSolution DenseMatrix<T>::solve_one(const Inverse& inverse, const T* b, T* x) const {
  const Index n = size();
  const int unit = unit_of(b, n);
  Eigen::VectorXd right(n), v(n), r(n);
  for (Index p = 0; p < n; ++p) right[p] = std::ldexp(static_cast<double>(b[p]), -unit);
  v = right;
  inverse.solve(v.data());
  // What T can hold of it; shrunk where it is too long.
  constexpr int most = std::numeric_limits<T>::max_exponent - 1;
  const bool is_finite = v.allFinite();
  const int excess = is_finite ? std::max(0, unit_of(v.data(), n) + unit + 1 - most) : 0;
  bool is_lost = !is_finite || excess > 0;
  for (Index p = 0; p < n; ++p) {
    x[p] = static_cast<T>(is_finite ? std::ldexp(v[p], unit - excess) : 0.0);
    const double held = std::ldexp(static_cast<double>(x[p]), -unit);
    v[p] = held;
  }
  residual(inverse.shift, right.data(), v.data(), r.data());
  const double product = v.dot(right + r);
  return {std::ldexp(norm_of(right), unit),
          std::ldexp(norm_of(r), unit),
          std::ldexp(-0.5 * product, 2 * unit),
          is_lost};
}

template <class T>
auto DenseMatrix<T>::solve(
    double shift, DenseMethod method, const T* b, Index num_vectors, T* x, DenseSolution* solutions)
    -> Decomposition {
  check(is_finite_, "the matrix has NaN or Inf");
  Decomposition made{method, Definiteness::positive, 0, 0};
  const Inverse inverse = decompose(shift, method, made);
  for (Index k = 0; k < num_vectors; ++k)
    solutions[k] = solve_one(inverse, b + k * size(), x + k * size());
  return made;
}

template class DenseMatrix<float>;
template class DenseMatrix<double>;

}  // namespace natgrad
