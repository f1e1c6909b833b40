#include "linalg/factorization.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"
#include "linalg/divide_and_conquer.hpp"
#include "linalg/tridiagonalization.hpp"

namespace natgrad {
namespace {

using MatrixXd = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
auto map(const Matrix<T>& m) {
  using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const Dense, 0, Eigen::OuterStride<>>(
      m.data.data(), m.rows, m.cols, Eigen::OuterStride<>(m.ld));
}

// The cut of an (n x n) matrix into square tiles; the last ones are smaller.
struct Tiles {
  explicit Tiles(Index rows) : n(rows), count((rows + width - 1) / width) {}
  Index begin(Index i) const { return i * width; }
  Index size(Index i) const { return std::min(width, n - begin(i)); }
  template <class M>
  auto block(M& a, Index i, Index j) const {
    return a.block(begin(i), begin(j), size(i), size(j));
  }
  static constexpr Index width = 96;
  Index n, count;
};

// S over a power of two next to its largest element, with rows as long as whole panels.
struct Scaled {
  double factor = 1;
  Matrix<double> matrix;
};
template <class T>
Scaled scaled_copy(const Matrix<T>& s, int num_threads) {
  const Index n = s.rows, panels = Panels<double>::count_for(n);
  Scaled scaled{1.0, Matrix<double>(n, n, panels * Tile<double>::width)};
  int exponent = 0;
  std::frexp(static_cast<double>(map(s).cwiseAbs().maxCoeff()), &exponent);
  scaled.factor = std::ldexp(1.0, exponent);
  // In two parts: the inverse of a number below the normal ones is beyond the range.
  const double half = std::ldexp(1.0, -(exponent / 2)),
               rest = std::ldexp(1.0, exponent / 2 - exponent);
  const Tiles tiles(n);
  parallel_for(tiles.count, num_threads, [&](Index i, int) {
    for (Index r = tiles.begin(i); r < tiles.begin(i) + tiles.size(i); ++r) {
      double* out = scaled.matrix.row(r);
      for (Index c = 0; c < n; ++c) out[c] = half * static_cast<double>(s.row(r)[c]) * rest;
      std::fill(out + n, out + scaled.matrix.ld, 0.0);
    }
  });
  return scaled;
}

using Solver = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>;
// Below this order, measured, Eigen's QR iteration takes less time than panels and their merging.
constexpr Index blocked_order = 120;

void check_converged(const Solver& solver) {
  if (solver.info() != Eigen::Success)
    throw std::runtime_error("the eigendecomposition of a symmetric matrix did not converge");
}

TridiagonalEigen solve_small(const Matrix<double>& s) {
  constexpr Index width = Tile<double>::width;
  const Index n = s.rows;
  const Solver solver(map(s));
  check_converged(solver);
  const auto& values = solver.eigenvalues();
  TridiagonalEigen eigen{{values.data(), values.data() + n}, {}, Panels<double>(n, n)};
  const PanelView<double> rows = eigen.vectors.view();
  for (Index i = 0; i < n; ++i) {
    eigen.rows.push_back(i);
    for (Index c = 0; c < n; ++c)
      rows.panel(c / width)[i * width + c % width] = solver.eigenvectors()(c, i);
  }
  return eigen;
}

// S = sum_i values_i u_i u_i', values ascending.
class Eigensystem {
 public:
  template <class T>
  Eigensystem(const Matrix<T>& s, int num_threads) {
    Scaled scaled = scaled_copy(s, num_threads);
    if (s.rows < blocked_order) {
      eigen_ = solve_small(scaled.matrix);
    } else {
      const Tridiagonalization reduced(scaled.matrix, num_threads);
      eigen_ = solve_tridiagonal(reduced.diagonal(), reduced.off_diagonal(), num_threads);
      reduced.multiply_transposed(eigen_.vectors.view(), num_threads);
    }
    for (double& value : eigen_.values) value *= scaled.factor;
  }
  Eigen::Map<const Eigen::VectorXd> values() const {
    return {eigen_.values.data(), static_cast<Index>(eigen_.values.size())};
  }
  // out = u_i
  template <class T>
  void copy_vector(Index i, T* out) const {
    constexpr Index width = Tile<double>::width;
    const PanelView<const double> view = eigen_.vectors.view();
    const Index row = eigen_.rows[static_cast<std::size_t>(i)];
    for (Index c = 0; c < view.rows; ++c)
      out[c] = static_cast<T>(view.panel(c / width)[row * width + c % width]);
  }
  // U diag(values) U', exactly symmetric.
  Eigen::MatrixXd with_values(const Eigen::VectorXd& values, int num_threads) const {
    const Tiles tiles(values.size());
    Eigen::MatrixXd u(tiles.n, tiles.n), scaled(tiles.n, tiles.n), result(tiles.n, tiles.n);
    parallel_for(tiles.n, num_threads, [&](Index i, int) {
      copy_vector(i, u.col(i).data());
      scaled.col(i) = values[i] * u.col(i);
    });
    parallel_for(tiles.count * tiles.count, num_threads, [&](Index task, int) {
      const Index i = task / tiles.count, j = task % tiles.count;
      if (i > j) return;
      const auto rows = [&](const Eigen::MatrixXd& m, Index k) {
        return m.middleRows(tiles.begin(k), tiles.size(k));
      };
      const Eigen::MatrixXd block = rows(scaled, i) * rows(u, j).transpose();
      for (Index c = 0; c < block.cols(); ++c)
        for (Index r = 0; r < (i == j ? c + 1 : block.rows()); ++r) {
          const Index row = tiles.begin(i) + r, col = tiles.begin(j) + c;
          result(row, col) = result(col, row) = block(r, c);
        }
    });
    return result;
  }

 private:
  TridiagonalEigen eigen_;
};

// Eigenvalues of D from those of scale S, ascending.
template <class T>
Eigen::VectorXd clip(const Eigen::VectorXd& values, double shift) {
  const Eigen::VectorXd shifted = values.cwiseMax(0.0).array() + shift;
  return shifted.cwiseMax(relative_noise<T> * shifted[shifted.size() - 1]);
}

// out = the symmetric matrix with the block `b` at (first_row, first_col) and its mirror image; a
// block on the diagonal is read above it.
template <class T>
void store_symmetric(const Eigen::MatrixXd& b, Index first_row, Index first_col, Matrix<T>& out) {
  for (Index c = 0; c < b.cols(); ++c) {
    const Index rows = first_row == first_col ? c + 1 : b.rows();
    for (Index r = 0; r < rows; ++r)
      out.row(first_col + c)[first_row + r] = out.row(first_row + r)[first_col + c] =
          static_cast<T>(b(r, c));
  }
}

// out = (R'R)^-1 = X X', X = R^-1, for R in the upper triangle of r; 2 n^3 / 3 flops. Row i of X
// follows from left to right: X_ij = -(sum_{i <= k < j} X_ik R_kj) R_jj^-1.
template <class T>
void invert_factored(const Eigen::Ref<Eigen::MatrixXd>& r, int num_threads, Matrix<T>& out) {
  const Tiles tiles(r.rows());
  Buffer<double> data(checked_product(r.rows(), r.rows(), "Kronecker factor"));
  Eigen::Map<Eigen::MatrixXd> x(data.data(), r.rows(), r.rows());
  const auto triangle = [&](Index j) {
    return tiles.block(r, j, j).template triangularView<Eigen::Upper>();
  };
  parallel_for(tiles.count, num_threads, [&](Index i, int) {
    auto corner = tiles.block(x, i, i);
    corner.setIdentity();
    triangle(i).solveInPlace(corner);
    for (Index j = i + 1; j < tiles.count; ++j) {
      const Index done = tiles.begin(j) - tiles.begin(i);
      auto block = tiles.block(x, i, j);
      block.noalias() = -x.block(tiles.begin(i), tiles.begin(i), tiles.size(i), done) *
                        r.block(tiles.begin(i), tiles.begin(j), done, tiles.size(j));
      triangle(j).template solveInPlace<Eigen::OnTheRight>(block);
    }
  });
  parallel_for(tiles.count * tiles.count, num_threads, [&](Index task, int) {
    const Index j = task / tiles.count, i = task % tiles.count;  // the deepest products first
    if (i > j) return;
    const Index depth = tiles.n - tiles.begin(j);
    const auto rows = [&](Index k) {
      return x.block(tiles.begin(k), tiles.begin(j), tiles.size(k), depth);
    };
    Eigen::MatrixXd block(tiles.size(i), tiles.size(j));
    block.noalias() = rows(i) * rows(j).transpose();
    store_symmetric(block, tiles.begin(i), tiles.begin(j), out);
  });
}

template <class T>
bool is_clipped(const Matrix<T>& s, ScaleAndShift d) {
  return !(d.shift >= relative_noise<T> * d.scale * trace(s));
}

// d = scale S + shift I above the diagonal; row j of S is column j of D.
template <class T>
void copy_shifted(const Matrix<T>& s,
                  ScaleAndShift shifted,
                  int num_threads,
                  Eigen::Ref<Eigen::MatrixXd> d) {
  const Tiles tiles(s.rows);
  parallel_for(tiles.count, num_threads, [&](Index j, int) {
    for (Index c = tiles.begin(j); c < tiles.begin(j) + tiles.size(j); ++c) {
      for (Index r = 0; r <= c; ++r) d(r, c) = shifted.scale * static_cast<double>(s.row(c)[r]);
      d(c, c) += shifted.shift;
    }
  });
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
void shift_matrix(const Matrix<T>& s, ScaleAndShift shifted, double* out) {
  Eigen::Map<MatrixXd> d(out, s.rows, s.rows);
  if (is_clipped(s, shifted)) {
    const Eigensystem eigen(s, 1);
    d = eigen.with_values(clip<T>(shifted.scale * eigen.values(), shifted.shift), 1);
  } else {
    d = shifted.scale * map(s).template cast<double>();
    d.diagonal().array() += shifted.shift;
  }
}

template <class T>
void invert_shifted(const Matrix<T>& s, ScaleAndShift shifted, int num_threads, Matrix<T>& out) {
  const Index n = s.rows;
  if (is_clipped(s, shifted)) {
    const Eigensystem eigen(s, num_threads);
    const Eigen::VectorXd values = clip<T>(shifted.scale * eigen.values(), shifted.shift);
    store_symmetric(eigen.with_values(values.cwiseInverse(), num_threads), 0, 0, out);
    return;
  }
  Buffer<double> data(checked_product(n, n, "Kronecker factor"));
  Eigen::Map<Eigen::MatrixXd> d(data.data(), n, n);
  copy_shifted(s, shifted, num_threads, d);
  if (!cholesky_upper(d, num_threads))
    throw std::runtime_error("the Cholesky decomposition of a Kronecker factor failed");
  invert_factored(d, num_threads, out);
}

template <class T>
double log_det_shifted(const Matrix<T>& s,
                       ScaleAndShift shifted,
                       const std::vector<double>& values) {
  const Eigen::VectorXd scaled =
      shifted.scale * Eigen::Map<const Eigen::VectorXd>(values.data(), s.rows);
  if (is_clipped(s, shifted)) return clip<T>(scaled, shifted.shift).array().log().sum();
  return (scaled.array() + shifted.shift).log().sum();
}

template <class T>
std::vector<double> eigenvalues(const Matrix<T>& s, int num_threads) {
  Scaled scaled = scaled_copy(s, num_threads);
  const Tridiagonalization reduced(scaled.matrix, num_threads);
  const auto vector = [](const std::vector<double>& v) -> Eigen::VectorXd {
    return Eigen::Map<const Eigen::VectorXd>(v.data(), static_cast<Index>(v.size()));
  };
  Solver solver;
  solver.computeFromTridiagonal(
      vector(reduced.diagonal()), vector(reduced.off_diagonal()), Eigen::EigenvaluesOnly);
  check_converged(solver);
  std::vector<double> values(static_cast<std::size_t>(s.rows));
  for (Index i = 0; i < s.rows; ++i)
    values[static_cast<std::size_t>(i)] = scaled.factor * solver.eigenvalues()[i];
  return values;
}

template <class T>
void cholesky_lower(const Matrix<T>& s, int num_threads, Matrix<T>& out) {
  const Index n = s.rows;
  Buffer<double> data(checked_product(n, n, "Kronecker factor"));
  Eigen::Map<Eigen::MatrixXd> r(data.data(), n, n);
  copy_shifted(s, {1.0, 0.0}, num_threads, r);
  if (!cholesky_upper(r, num_threads))
    throw std::runtime_error("an inverse is not positive definite: refresh with a larger damping");
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) out.row(i)[j] = j <= i ? static_cast<T>(r(j, i)) : T(0);
}

template <class T>
void decompose_indefinite(const Matrix<T>& s,
                          int num_threads,
                          Matrix<T>& vectors_transposed,
                          double* values) {
  const Eigensystem eigen(s, num_threads);
  const Tiles tiles(s.rows);
  parallel_for(tiles.count, num_threads, [&](Index i, int) {
    for (Index k = tiles.begin(i); k < tiles.begin(i) + tiles.size(i); ++k) {
      values[k] = eigen.values()[k];
      eigen.copy_vector(k, vectors_transposed.row(k));
    }
  });
}

template <class T>
void decompose(const Matrix<T>& s, int num_threads, Matrix<T>& vectors_transposed, double* values) {
  decompose_indefinite(s, num_threads, vectors_transposed, values);
  for (Index k = 0; k < s.rows; ++k) values[k] = std::max(0.0, values[k]);
}

template <class T>
void rotate_diagonal(const BasisChange<T>& left,
                     const BasisChange<T>& right,
                     const Matrix<T>& scales,
                     Matrix<T>& out) {
  const auto squares = [](const BasisChange<T>& change) -> Eigen::MatrixXd {
    return (map(change.to).template cast<double>() *
            map(change.from).template cast<double>().transpose())
        .cwiseAbs2();
  };
  const Eigen::MatrixXd rotated =
      squares(left) * map(scales).template cast<double>() * squares(right).transpose();
  for (Index i = 0; i < scales.rows; ++i)
    for (Index j = 0; j < scales.cols; ++j) out.row(i)[j] = static_cast<T>(rotated(i, j));
}

// Row k of R follows from the rows above by products as deep as they go. The task of the next
// diagonal block, the longest, comes first and factorises it, so nobody waits for that.
bool cholesky_upper(Eigen::Ref<Eigen::MatrixXd> a, int num_threads) {
  const Tiles tiles(a.rows());
  const auto above = [&](Index k, Index j) {
    return a.block(0, tiles.begin(j), tiles.begin(k), tiles.size(j));
  };
  const auto factorize = [&](Index k) {
    auto corner = tiles.block(a, k, k);
    if (k > 0)
      corner.template triangularView<Eigen::Upper>() -= above(k, k).transpose() * above(k, k);
    return Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Upper>(corner).info() == Eigen::Success;
  };
  bool is_definite = factorize(0);
  for (Index k = 0; k + 1 < tiles.count && is_definite; ++k)
    parallel_for(tiles.count - k - 1, num_threads, [&](Index task, int) {
      const Index j = k + 1 + task;
      auto block = tiles.block(a, k, j);
      if (k > 0) block.noalias() -= above(k, k).transpose() * above(k, j);
      tiles.block(a, k, k).template triangularView<Eigen::Upper>().transpose().solveInPlace(block);
      if (task == 0) is_definite = factorize(j);
    });
  return is_definite && a.diagonal().allFinite();
}

#define NATGRAD_INSTANTIATE(T)                                                                  \
  template double trace(const Matrix<T>&);                                                      \
  template double frobenius_norm(const Matrix<T>&);                                             \
  template void shift_matrix(const Matrix<T>&, ScaleAndShift, double*);                         \
  template void invert_shifted(const Matrix<T>&, ScaleAndShift, int, Matrix<T>&);               \
  template double log_det_shifted(const Matrix<T>&, ScaleAndShift, const std::vector<double>&); \
  template std::vector<double> eigenvalues(const Matrix<T>&, int);                              \
  template void cholesky_lower(const Matrix<T>&, int, Matrix<T>&);                              \
  template void decompose_indefinite(const Matrix<T>&, int, Matrix<T>&, double*);               \
  template void decompose(const Matrix<T>&, int, Matrix<T>&, double*);                          \
  template void rotate_diagonal(                                                                \
      const BasisChange<T>&, const BasisChange<T>&, const Matrix<T>&, Matrix<T>&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
