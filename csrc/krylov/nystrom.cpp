#include "krylov/nystrom.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/parallel.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

// Columns that are worked on at a time.
constexpr Index piece = 256;
// Sums over P are cut into so many parts, whatever the number of threads.
constexpr Index num_parts = 16;
// Elements that a task of apply() owns.
constexpr Index tile = 2048;

using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// A piece of columns of a (rows x size) row-major matrix, in double.
template <class T>
void load(const T* a, Index size, Index begin, Index count, RowMatrix& out) {
  for (Index i = 0; i < out.rows(); ++i)
    for (Index j = 0; j < count; ++j) out(i, j) = static_cast<double>(a[i * size + begin + j]);
}

// A B' for A, B (rank x size).
template <class T>
RowMatrix gram(const T* a, const T* b, Index rank, Index size, int num_threads) {
  std::vector<RowMatrix> parts(static_cast<std::size_t>(num_parts));
  const Index length = (size + num_parts * piece - 1) / (num_parts * piece) * piece;
  parallel_for(num_parts, num_threads, [&](Index task, int) {
    RowMatrix& sum = parts[static_cast<std::size_t>(task)];
    sum = RowMatrix::Zero(rank, rank);
    RowMatrix u(rank, piece), v(rank, piece);
    const Index last = std::min(size, (task + 1) * length);
    for (Index begin = task * length; begin < last; begin += piece) {
      const Index count = std::min(piece, last - begin);
      load(a, size, begin, count, u);
      load(b, size, begin, count, v);
      sum.noalias() += u.leftCols(count) * v.leftCols(count).transpose();
    }
  });
  RowMatrix total = RowMatrix::Zero(rank, rank);
  for (const RowMatrix& part : parts) total += part;
  return total;
}

// out = C (a + shift b) for C (rank x rank) and a, b, out (rank x size); out may be a.
template <class T>
void combine(
    const RowMatrix& c, const T* a, double shift, const T* b, Index size, int num_threads, T* out) {
  const Index rank = c.rows(), length = 16 * piece;
  parallel_for((size + length - 1) / length, num_threads, [&](Index task, int) {
    RowMatrix u(rank, piece), v(rank, piece), product(rank, piece);
    const Index last = std::min(size, (task + 1) * length);
    for (Index begin = task * length; begin < last; begin += piece) {
      const Index count = std::min(piece, last - begin);
      load(a, size, begin, count, u);
      if (shift != 0.0) {
        load(b, size, begin, count, v);
        u.leftCols(count) += shift * v.leftCols(count);
      }
      product.leftCols(count).noalias() = c * u.leftCols(count);
      for (Index i = 0; i < rank; ++i)
        for (Index j = 0; j < count; ++j) out[i * size + begin + j] = static_cast<T>(product(i, j));
    }
  });
}

// The inverse of the Cholesky factor of g, with zero rows for what depends on the rows before.
RowMatrix inverse_factor(const RowMatrix& g) {
  constexpr double smallest_part = 1e-12;  // of the squared length
  const Index rank = g.rows();
  RowMatrix factor = RowMatrix::Zero(rank, rank), inverse = RowMatrix::Zero(rank, rank);
  for (Index j = 0; j < rank; ++j) {
    for (Index k = 0; k < j; ++k)
      if (factor(k, k) > 0.0)
        factor(j, k) = (g(j, k) - factor.row(j).head(k).dot(factor.row(k).head(k))) / factor(k, k);
    const double rest = g(j, j) - factor.row(j).head(j).squaredNorm();
    if (!(rest > smallest_part * g(j, j))) continue;
    factor(j, j) = std::sqrt(rest);
    inverse(j, j) = 1.0;
    inverse.row(j).head(j) -= factor.row(j).head(j) * inverse.topLeftCorner(j, j);
    inverse.row(j) /= factor(j, j);
  }
  return inverse;
}

template <class T>
constexpr double epsilon() {
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

}  // namespace

template <class T>
void orthonormalise_rows(Index rank, Index size, int num_threads, T* q) {
  for (int pass = 0; pass < 2; ++pass)
    combine<T>(inverse_factor(gram<T>(q, q, rank, size, num_threads)),
               q,
               0.0,
               nullptr,
               size,
               num_threads,
               q);
}

// In temporaries, which take the place of what was there at the end.
template <class T>
void NystromOperator<T>::update(Index rank, const T* omega, const T* y) {
  Buffer<T> u(checked_product(rank, size_, "Nystrom vectors"));
  std::vector<double> eigenvalues(static_cast<std::size_t>(rank), 0.0);
  // omega A omega' is positive semi-definite up to the rounding of the products. A + shift I stands
  // in for A, whose eigenvalues below the shift are noise.
  double squares = 0.0;
  Vectors<T> vectors(size_, num_threads_);
  for (Index i = 0; i < rank; ++i) squares += vectors.dot(y + i * size_, y + i * size_);
  const double shift = 2.0 * epsilon<T>() * std::sqrt(squares);
  if (shift == 0.0) {
    std::fill(u.data(), u.data() + u.size(), T(0));
    return replace(std::move(eigenvalues), std::move(u));
  }
  RowMatrix core = gram<T>(omega, y, rank, size_, num_threads_);
  core = (0.5 * (core + core.transpose())).eval();
  core.diagonal().array() += shift;
  const Eigen::SelfAdjointEigenSolver<RowMatrix> sketch(core);
  // B = D^-1/2 V' (Y + shift omega), so that B'B ~ A + shift I.
  RowMatrix c = sketch.eigenvectors().transpose();
  for (Index i = 0; i < rank; ++i) {
    const double d = sketch.eigenvalues()[i];
    c.row(i) *= d > 0.1 * shift ? 1.0 / std::sqrt(d) : 0.0;
  }
  combine<T>(c, y, shift, omega, size_, num_threads_, u.data());
  // B = S U by the eigenvalues S^2 of BB', the largest first.
  const Eigen::SelfAdjointEigenSolver<RowMatrix> squared(
      gram<T>(u.data(), u.data(), rank, size_, num_threads_));
  for (Index i = 0; i < rank; ++i) {
    const Index from = rank - 1 - i;
    const double eigenvalue = squared.eigenvalues()[from] - shift;
    const bool is_noise = !(eigenvalue > shift);
    const double factor = is_noise ? 0.0 : 1.0 / std::sqrt(eigenvalue + shift);
    if (!is_noise) eigenvalues[static_cast<std::size_t>(i)] = eigenvalue;
    c.row(i) = factor * squared.eigenvectors().col(from).transpose();
  }
  combine<T>(c, u.data(), 0.0, nullptr, size_, num_threads_, u.data());
  orthonormalise_rows<T>(rank, size_, num_threads_, u.data());
  replace(std::move(eigenvalues), std::move(u));
}

template <class T>
void NystromOperator<T>::set_approximation(Index rank,
                                           const double* eigenvalues,
                                           const T* vectors) {
  Buffer<T> u(checked_product(rank, size_, "Nystrom vectors"));
  std::copy(vectors, vectors + u.size(), u.data());
  replace({eigenvalues, eigenvalues + rank}, std::move(u));
}

template <class T>
void NystromOperator<T>::replace(std::vector<double> eigenvalues, Buffer<T> u) {
  std::vector<double> coefficients(eigenvalues.size(), 0.0);
  const std::lock_guard lock(mutex_);
  eigenvalues_ = std::move(eigenvalues);
  u_ = std::move(u);
  inverse_.coefficients = std::move(coefficients);
}

template <class T>
std::vector<double> NystromOperator<T>::eigenvalues() const {
  const std::lock_guard lock(mutex_);
  return eigenvalues_;
}

template <class T>
Buffer<T> NystromOperator<T>::vectors() const {
  const std::lock_guard lock(mutex_);
  Buffer<T> copy(u_.size());
  std::copy_n(u_.data(), u_.size(), copy.data());
  return copy;
}

template <class T>
auto NystromOperator<T>::inverse() const -> Inverse {
  const std::lock_guard lock(mutex_);
  return inverse_;
}

template <class T>
auto NystromOperator<T>::invert(double damping) const -> Inverse {
  // The inverse stays positive definite in spite of the rounding of U, which is orthonormal to a
  // few units in the last place of T.
  constexpr double margin = 64.0 * epsilon<T>();
  const double top = eigenvalues_.empty() ? 0.0 : eigenvalues_.front();
  double base = (eigenvalues_.empty() ? 0.0 : eigenvalues_.back()) + damping;
  if (base == 0.0) base = top > 0.0 ? margin * top : 1.0;
  Inverse m{std::vector<double>(eigenvalues_.size()), 1.0 / base};
  for (std::size_t i = 0; i < eigenvalues_.size(); ++i) {
    const double ratio = base / (eigenvalues_[i] + damping);
    m.coefficients[i] = eigenvalues_[i] > 0.0 ? std::clamp(ratio - 1.0, margin - 1.0, 0.0) : 0.0;
  }
  return m;
}

template <class T>
void NystromOperator<T>::refresh(double damping) {
  const std::lock_guard lock(mutex_);
  inverse_ = invert(damping);
}

template <class T>
double NystromOperator<T>::log_determinant(double damping) const {
  const std::lock_guard lock(mutex_);
  const Inverse m = invert(damping);
  double sum = static_cast<double>(size_) * std::log(m.scale);
  for (const double c : m.coefficients) sum += std::log1p(c);
  return -sum;
}

template <class T>
void NystromOperator<T>::apply_block(const T* x, Index num_vectors, T* y) {
  const std::lock_guard lock(mutex_);
  multiply(inverse_, x, num_vectors, y);
}

template <class T>
void NystromOperator<T>::apply_root(const T* x, Index num_vectors, T* y) {
  const std::lock_guard lock(mutex_);
  Inverse root{inverse_.coefficients, std::sqrt(inverse_.scale)};
  for (double& c : root.coefficients) c = std::sqrt(1.0 + c) - 1.0;
  multiply(root, x, num_vectors, y);
}

template <class T>
void NystromOperator<T>::multiply(const Inverse& m, const T* x, Index num_vectors, T* y) {
  const Index num_tasks = (size_ + tile - 1) / tile, inner_size = num_vectors * rank();
  if (inner_.size() < inner_size) {
    partial_ = Buffer<double>(checked_product(num_tasks, inner_size, "Nystrom sums"));
    inner_ = Buffer<double>(inner_size);
  }
  const int num_threads = num_tasks * rank() < 64 ? 1 : num_threads_;
  parallel_for(num_tasks, num_threads, [&](Index task, int) {
    const Index begin = task * tile, end = std::min(size_, begin + tile);
    for (Index k = 0; k < num_vectors; ++k)
      for (Index i = 0; i < rank(); ++i) {
        const T* u = u_.data() + i * size_;
        const T* v = x + k * size_;
        partial_[task * inner_size + k * rank() + i] = chained_sum(begin, end, [=](Index j) {
          return static_cast<double>(u[j]) * static_cast<double>(v[j]);
        });
      }
  });
  for (Index at = 0; at < inner_size; ++at) {
    double sum = 0.0;
    for (Index task = 0; task < num_tasks; ++task) sum += partial_[task * inner_size + at];
    inner_[at] = m.coefficients[static_cast<std::size_t>(at % rank())] * sum;
  }
  parallel_for(num_tasks, num_threads, [&](Index task, int) {
    const Index begin = task * tile, count = std::min(size_ - begin, tile);
    double sums[tile];
    for (Index k = 0; k < num_vectors; ++k) {
      const T* v = x + k * size_ + begin;
      for (Index j = 0; j < count; ++j) sums[j] = static_cast<double>(v[j]);
      for (Index i = 0; i < rank(); ++i) {
        const T* u = u_.data() + i * size_ + begin;
        const double factor = inner_[k * rank() + i];
        for (Index j = 0; j < count; ++j) sums[j] += factor * static_cast<double>(u[j]);
      }
      T* out = y + k * size_ + begin;
      for (Index j = 0; j < count; ++j) out[j] = static_cast<T>(m.scale * sums[j]);
    }
  });
}

template void orthonormalise_rows<float>(Index, Index, int, float*);
template void orthonormalise_rows<double>(Index, Index, int, double*);
template class NystromOperator<float>;
template class NystromOperator<double>;

}  // namespace natgrad
