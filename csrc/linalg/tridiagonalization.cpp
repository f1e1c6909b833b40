#include "linalg/tridiagonalization.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/parallel.hpp"
#include "linalg/dense.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

constexpr Index width = Tile<double>::width;
// Rows that are reduced before the rest of the matrix is updated.
constexpr Index panel = 32;
// Reflectors that are applied to eigenvectors at once.
constexpr Index block = 32;
// A product with a vector has a task for so many rows: below that, threads cost more than they bring.
constexpr Index product_rows = 256, max_product_tasks = 8;

double dot(const double* x, const double* y, Index n) {
  return chained_sum(0, n, [=](Index i) { return x[i] * y[i]; });
}

void add(double factor, const double* x, Index n, double* y) {
  for (Index i = 0; i < n; ++i) y[i] += factor * x[i];
}

// x (n,) becomes v, v_0 = 1, with (I - tau v v') x = beta e_0.
double make_reflector(double* x, Index n, double& tau) {
  const double alpha = x[0], square = dot(x + 1, x + 1, n - 1);
  x[0] = 1.0;
  tau = 0.0;
  if (square == 0.0) return alpha;
  const double beta = -std::copysign(std::sqrt(alpha * alpha + square), alpha);
  tau = (beta - alpha) / beta;
  const double factor = 1.0 / (alpha - beta);
  for (Index i = 1; i < n; ++i) x[i] *= factor;
  return beta;
}

}  // namespace

Tridiagonalization::Tridiagonalization(Matrix<double>& a, int num_threads)
    : a_(a),
      diagonal_(static_cast<std::size_t>(a.rows)),
      off_diagonal_(static_cast<std::size_t>(std::max<Index>(a.rows - 1, 0))),
      tau_(off_diagonal_.size()),
      v_(panel, a.ld),
      w_(panel, a.ld),
      partial_(max_product_tasks, a.ld),
      left_(a.rows, 2 * panel),
      right_(2 * panel, a.ld) {
  const Index n = a.rows;
  for (Index begin = 0; begin < n; begin += panel) {
    const Index end = std::min(n, begin + panel);
    reduce_panel(begin, end, num_threads);
    if (end < n) update_trailing(end, num_threads);
  }
}

// Rows [begin, end): each is brought up to date, reflected, and multiplied with what is left of A,
//   p = (A - V'W - W'V) v,   w = tau (p - tau (p'v) v / 2),   A - v w' - w v' = H A H.
void Tridiagonalization::reduce_panel(Index begin, Index end, int num_threads) {
  const Index n = a_.rows;
  for (Index j = begin; j < end; ++j) {
    double* row = a_.row(j);
    const Index done = j - begin;
    for (Index k = 0; k < done; ++k) {
      const double v_kj = v_.row(k)[j], w_kj = w_.row(k)[j];
      const double *v = v_.row(k), *w = w_.row(k);
      for (Index c = j; c < n; ++c) row[c] -= v_kj * w[c] + w_kj * v[c];
    }
    diagonal_[static_cast<std::size_t>(j)] = row[j];
    double *v = v_.row(done), *w = w_.row(done);
    std::fill_n(v, a_.ld, 0.0);
    std::fill_n(w, a_.ld, 0.0);
    if (j + 1 == n) continue;
    const Index first = j + 1, size = n - first;
    double tau = 0;
    off_diagonal_[static_cast<std::size_t>(j)] = make_reflector(row + first, size, tau);
    tau_[static_cast<std::size_t>(j)] = tau;
    std::copy_n(row + first, size, v + first);
    if (tau == 0.0) continue;
    multiply(first, v, w, num_threads);
    for (Index k = 0; k < done; ++k) {
      const double *v_k = v_.row(k) + first, *w_k = w_.row(k) + first;
      const double w_v = dot(w_k, v + first, size), v_v = dot(v_k, v + first, size);
      for (Index c = 0; c < size; ++c) w[first + c] -= w_v * v_k[c] + v_v * w_k[c];
    }
    for (Index c = first; c < n; ++c) w[c] *= tau;
    add(-0.5 * tau * dot(w + first, v + first, size), v + first, size, w + first);
  }
}

// p = A[first:, first:] v, by tasks of about equally many elements.
void Tridiagonalization::multiply(Index first, const double* v, double* p, int num_threads) {
  const Index n = a_.rows, size = n - first;
  const Index tasks = std::clamp<Index>(size / product_rows, 1, max_product_tasks);
  if (tasks == 1) {
    multiply_upper(a_.data.data(), a_.ld, n, first, n, v, p);
    return;
  }
  const auto begin = [&](Index task) {
    const double rest = std::sqrt(1.0 - static_cast<double>(task) / static_cast<double>(tasks));
    return task == tasks ? n : n - static_cast<Index>(rest * static_cast<double>(size));
  };
  parallel_for(tasks, num_threads, [&](Index task, int) {
    double* sums = partial_.row(task);
    std::fill(sums + begin(task), sums + n, 0.0);
    multiply_upper(a_.data.data(), a_.ld, n, begin(task), begin(task + 1), v, sums);
  });
  for (Index task = 0; task < tasks; ++task)
    for (Index c = begin(task); c < n; ++c) p[c] += partial_.row(task)[c];
}

// A[end:, end:] -= V'W + W'V above the diagonal.
void Tridiagonalization::update_trailing(Index end, int num_threads) {
  const Index n = a_.rows, count = 2 * panel, first_panel = end / width;
  const PanelView<double> left = left_.view(), right = right_.view();
  const auto factor = [&](Index k) { return k < panel ? v_.row(k) : w_.row(k - panel); };
  const auto other = [&](Index k) { return k < panel ? w_.row(k) : v_.row(k - panel); };
  for (Index k = 0; k < count; ++k) {
    for (Index c = first_panel; c < right.count; ++c)
      std::copy_n(other(k) + c * width, width, right.panel(c) + k * width);
    double* column = left.panel(k / width) + k % width;
    const double* from = factor(k);
    for (Index r = end; r < n; ++r) column[r * width] = -from[r];
  }
  const Index tasks = (n - end + rows_per_task - 1) / rows_per_task;
  parallel_for(tasks, num_threads, [&](Index task, int) {
    const Index r0 = end + task * rows_per_task, r1 = std::min(n, r0 + rows_per_task),
                p = r0 / width;
    multiply_outer<double>(
        left, right.slice(p, right.count - p), r0, r1, a_.ld, true, a_.data.data() + p * width);
  });
}

// A block of reflectors H_b .. H_e = I - V T V' (Schreiber & Van Loan, SIAM J. Sci. Stat. Comput. 10,
// 1989), so rows (H_b .. H_e)' = rows - (rows V T') V'. Rows do not depend on one another.
void Tridiagonalization::multiply_transposed(PanelView<double> rows, int num_threads) const {
  const Index n = a_.rows, count = (n - 1 + block - 1) / block;
  struct Reflectors {
    Index first_panel;         // where the v begin
    Panels<double> vt, minus;  // V T' (rest x block) and -V' (block x rest)
  };
  std::vector<Reflectors> blocks(static_cast<std::size_t>(count));
  parallel_for(count, num_threads, [&](Index b, int) {
    const Index j0 = b * block, j1 = std::min(n - 1, j0 + block), p = (j0 + 1) / width;
    const Index first = p * width, rest = rows.count * width - first;
    Panels<double> vt(rest, block), minus(block, rest);
    const auto v = [&](Index k) { return a_.row(j0 + k); };
    std::array<std::array<double, block>, block> t{};
    for (Index k = 0; k < j1 - j0; ++k) {
      const double tau = tau_[static_cast<std::size_t>(j0 + k)];
      std::array<double, block> products{};
      for (Index i = 0; i < k; ++i)
        products[i] = dot(v(i) + j0 + k + 1, v(k) + j0 + k + 1, n - j0 - k - 1);
      for (Index i = 0; i < k; ++i) {
        double sum = 0;
        for (Index q = i; q < k; ++q) sum += t[i][q] * products[q];
        t[i][k] = -tau * sum;
      }
      t[k][k] = tau;
    }
    for (Index c = 0; c < minus.count(); ++c) {
      double* out = minus.view().panel(c);
      for (Index k = 0; k < block; ++k)
        for (Index q = 0; q < width; ++q) {
          const Index at = first + c * width + q;
          const bool inside = k < j1 - j0 && at > j0 + k && at < n;
          out[k * width + q] = inside ? -v(k)[at] : 0.0;
        }
      for (Index k = 0; k < block; ++k) {
        std::array<double, width> sums{};
        for (Index i = k; i < j1 - j0; ++i)
          for (Index q = 0; q < width; ++q) sums[q] -= t[k][i] * out[i * width + q];
        double* column = vt.view().panel(k / width) + k % width;
        for (Index q = 0; q < width; ++q) column[(c * width + q) * width] = sums[q];
      }
    }
    blocks[static_cast<std::size_t>(b)] = {p, std::move(vt), std::move(minus)};
  });
  const Index tasks = (n + rows_per_task - 1) / rows_per_task;
  parallel_for(tasks, num_threads, [&](Index task, int) {
    const Index r0 = task * rows_per_task, size = std::min(n, r0 + rows_per_task) - r0;
    Panels<double> product(size, block);
    for (auto b = blocks.rbegin(); b != blocks.rend(); ++b) {
      PanelView<double> part = rows.slice(b->first_panel, rows.count - b->first_panel);
      part.data += r0 * width;
      part.rows = size;
      multiply_cases<double>(part, b->vt.view(), product.view());
      ProductOptions<double> options;
      options.accumulate = true;
      multiply_cases<double>(product.view(), b->minus.view(), part, options);
    }
  });
}

}  // namespace natgrad
