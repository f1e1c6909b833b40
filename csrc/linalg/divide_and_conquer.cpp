#include "linalg/divide_and_conquer.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/parallel.hpp"
#include "linalg/dense.hpp"
#include "linalg/matrix.hpp"

namespace natgrad {
namespace {

constexpr Index width = Tile<double>::width;
constexpr double eps = std::numeric_limits<double>::epsilon();
// Order of the matrices that are not cut, and unit of the cuts: whole panels for every instruction set.
constexpr Index leaf_size = 32;
// Roots in one task.
constexpr Index task_roots = 16;
constexpr Index chains = 8;  // of sums that do not wait for each other

Index num_tasks(Index size, Index task_size) {
  return (size + task_size - 1) / task_size;
}

// The secular equation 1 + rho sum_i w_i / (d_i - x) = 0, w_i > 0, d ascending: its j-th root lies
// between d_j and d_{j+1}, the last one within rho sum w of d_{k-1}.
struct Secular {
  double rho;
  std::vector<double> d, w;
  Index size() const { return static_cast<Index>(d.size()); }
};

// A root as the nearest pole and the distance from it, for differences of full relative accuracy.
struct Root {
  Index pole;
  double distance;
};

// Sums over i in [begin, end) of rho w_i / (d_i - x) and of its derivative.
struct PoleSums {
  double value = 0, slope = 0;
};
PoleSums sum_poles(const Secular& s, Index begin, Index end, double origin, double x) {
  std::array<double, chains> value{}, slope{};
  const double *d = s.d.data(), *w = s.w.data();
  Index i = begin;
  for (; i + chains <= end; i += chains)
    for (Index q = 0; q < chains; ++q) {
      const double inverse = 1.0 / ((d[i + q] - origin) - x), term = w[i + q] * inverse;
      value[q] += term;
      slope[q] += term * inverse;
    }
  for (Index q = 0; i < end; ++i, ++q) {
    const double inverse = 1.0 / ((d[i] - origin) - x), term = w[i] * inverse;
    value[q] += term;
    slope[q] += term * inverse;
  }
  PoleSums sums;
  for (Index q = 0; q < chains; ++q) {
    sums.value += value[q];
    sums.slope += slope[q];
  }
  return {s.rho * sums.value, s.rho * sums.slope};
}

// Steps t with c t^2 - a t + b = 0 that leave x within (low, high), or NaN.
double quadratic_step(double a, double b, double c, double x, double low, double high) {
  const double root = std::sqrt(std::max(a * a - 4.0 * b * c, 0.0));
  const double q = 0.5 * (a + std::copysign(root, a));
  const auto inside = [&](double t) { return x + t > low && x + t < high; };
  const double first = b / q, second = q / c;
  const bool first_fits = inside(first), second_fits = inside(second);
  if (first_fits && second_fits) return std::abs(first) < std::abs(second) ? first : second;
  if (first_fits) return first;
  return second_fits ? second : std::numeric_limits<double>::quiet_NaN();
}

// The sums up to d_j and from d_{j+1} on are replaced by a constant and one pole each, with the right
// value and slope at x (Bunch, Nielsen and Sorensen, Numer. Math. 31, 1978); bisection is the way out.
Root find_root(const Secular& s, Index j) {
  const Index k = s.size(), split = std::min(j, k - 2) + 1;
  double low = 0, high = 0;
  Root root{j, 0.0};
  if (j == k - 1) {
    high = s.rho * std::accumulate(s.w.begin(), s.w.end(), 0.0);
  } else {
    const double gap = s.d[j + 1] - s.d[j];
    const auto before = sum_poles(s, 0, split, s.d[j], 0.5 * gap);
    const auto behind = sum_poles(s, split, k, s.d[j], 0.5 * gap);
    const bool in_lower_half = 1.0 + before.value + behind.value >= 0.0;
    if (in_lower_half) {
      high = 0.5 * gap;
    } else {
      root.pole = j + 1;
      low = -0.5 * gap;
    }
  }
  const double origin = s.d[root.pole];
  const double left = s.d[split - 1] - origin, right = s.d[split] - origin;
  double x = 0.5 * (low + high);
  for (int step = 0; step < 200; ++step) {
    const PoleSums before = sum_poles(s, 0, split, origin, x);
    const PoleSums behind = sum_poles(s, split, k, origin, x);
    const double f = 1.0 + before.value + behind.value;
    (f < 0.0 ? low : high) = x;
    if (std::abs(f) <= 4.0 * eps * (1.0 + std::abs(before.value) + std::abs(behind.value))) break;
    const double slope = before.slope + behind.slope, to_left = left - x, to_right = right - x;
    const double a = (to_left + to_right) * f - to_left * to_right * slope;
    const double b = to_left * to_right * f;
    const double c = f - to_left * before.slope - to_right * behind.slope;
    const double t = quadratic_step(a, b, c, x, low, high);
    const double next = std::isnan(t) ? 0.5 * (low + high) : x + t;
    if (next == x || !(next > low && next < high)) break;
    x = next;
  }
  root.distance = x;
  return root;
}

// [begin, end) from the eigensystems of [begin, middle) and [middle, end).
struct Merge {
  Index begin, middle, end;
};

// A merge without the eigenvectors of the halves that are those of the whole.
struct Deflated {
  Secular secular;
  std::vector<double> z;       // signed roots of secular.w
  std::vector<Index> rows;     // with the vector of each term of the secular equation
  std::vector<Index> columns;  // place of each where those of the first half, of both, and of the
                               // second half follow one another
  Index num_first = 0, num_both = 0;
  std::vector<Index> kept;  // rows with vectors of the whole
};

class DivideAndConquer {
 public:
  DivideAndConquer(std::vector<double> diagonal,
                   const std::vector<double>& off_diagonal,
                   int num_threads);
  TridiagonalEigen take();

 private:
  void cut(Index begin, Index end, std::size_t depth);
  void solve_leaf(Index begin, Index end);
  void merge(const Merge& m, int num_threads);
  Deflated deflate(const Merge& m);
  void rotate(const Merge& m, Index row_a, Index row_b, double c, double s);
  void gather(const Merge& m, const Deflated& parts, int num_threads);
  void find_vectors(Index begin, const Deflated& parts, int num_threads);
  void multiply_vectors(const Merge& m, const Deflated& parts, int num_threads);

  double element(Index row, Index col) const {
    return vectors_.view().panel(col / width)[row * width + col % width];
  }

  Index n_;
  std::vector<double> d_, e_;  // d_[i] belongs to row i of the vectors
  std::vector<Merge> leaves_;
  std::vector<std::vector<Merge>> levels_;
  std::vector<Index> order_;           // rows of each part, ascending in d_
  Panels<double> vectors_, gathered_;  // (n x n), rows are vectors
  Matrix<double> small_;               // vectors of the secular equations, on the diagonal
};

DivideAndConquer::DivideAndConquer(std::vector<double> diagonal,
                                   const std::vector<double>& off_diagonal,
                                   int num_threads)
    : n_(static_cast<Index>(diagonal.size())),
      d_(std::move(diagonal)),
      e_(off_diagonal),
      order_(d_.size()),
      vectors_(n_, n_),
      gathered_(n_, n_),
      small_(n_, n_, padded_stride<double>(n_)) {
  cut(0, n_, 0);
  parallel_for(vectors_.count(), num_threads, [&](Index j, int) {
    const PanelView<double> view = vectors_.view();
    std::fill_n(view.panel(j), view.stride, 0.0);
  });
  parallel_for(static_cast<Index>(leaves_.size()), num_threads, [&](Index i, int) {
    const Merge& leaf = leaves_[static_cast<std::size_t>(i)];
    solve_leaf(leaf.begin, leaf.end);
  });
  for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
    const Index count = static_cast<Index>(level->size());
    const bool shares = count >= num_threads;  // one thread a merge, or all of them
    parallel_for(count, shares ? num_threads : 1, [&](Index i, int) {
      merge((*level)[static_cast<std::size_t>(i)], shares ? 1 : num_threads);
    });
  }
}

// T = diag(T_1, T_2) + rho (e_last; sign e_first)(..)' for the halves with rho = |e| off their corners.
void DivideAndConquer::cut(Index begin, Index end, std::size_t depth) {
  if (end - begin <= leaf_size) {
    leaves_.push_back({begin, begin, end});
    return;
  }
  const Index middle = begin + num_tasks((end - begin) / 2, leaf_size) * leaf_size;
  const double rho = std::abs(e_[static_cast<std::size_t>(middle - 1)]);
  d_[static_cast<std::size_t>(middle - 1)] -= rho;
  d_[static_cast<std::size_t>(middle)] -= rho;
  if (levels_.size() <= depth) levels_.emplace_back();
  levels_[depth].push_back({begin, middle, end});
  cut(begin, middle, depth + 1);
  cut(middle, end, depth + 1);
}

void DivideAndConquer::solve_leaf(Index begin, Index end) {
  const Index size = end - begin;
  const Eigen::VectorXd d = Eigen::Map<const Eigen::VectorXd>(d_.data() + begin, size);
  const Eigen::VectorXd e = Eigen::Map<const Eigen::VectorXd>(e_.data() + begin, size - 1);
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
  solver.computeFromTridiagonal(d, e);
  if (solver.info() != Eigen::Success)
    throw std::runtime_error("the eigendecomposition of a Kronecker factor did not converge");
  for (Index i = 0; i < size; ++i) {
    const Index row = begin + i;
    d_[static_cast<std::size_t>(row)] = solver.eigenvalues()[i];
    order_[static_cast<std::size_t>(row)] = row;
    for (Index c = 0; c < size; ++c) {
      const Index col = begin + c;
      vectors_.view().panel(col / width)[row * width + col % width] = solver.eigenvectors()(c, i);
    }
  }
}

void DivideAndConquer::merge(const Merge& m, int num_threads) {
  const Deflated parts = deflate(m);
  const Index k = parts.secular.size();
  if (k == 1) d_[static_cast<std::size_t>(parts.rows[0])] += parts.secular.rho * parts.secular.w[0];
  if (k > 1) {
    gather(m, parts, num_threads);
    find_vectors(m.begin, parts, num_threads);
    multiply_vectors(m, parts, num_threads);
  }
  const auto first = order_.begin() + m.begin, last = order_.begin() + m.end;
  std::iota(first, last, m.begin);
  std::sort(first, last, [&](Index a, Index b) {
    const double d_a = d_[static_cast<std::size_t>(a)], d_b = d_[static_cast<std::size_t>(b)];
    return d_a < d_b || (d_a == d_b && a < b);
  });
}

Deflated DivideAndConquer::deflate(const Merge& m) {
  const double e = e_[static_cast<std::size_t>(m.middle - 1)], rho = 2.0 * std::abs(e);
  const auto at = [](auto& v, Index i) -> auto& { return v[static_cast<std::size_t>(i)]; };
  std::vector<Index> sorted(static_cast<std::size_t>(m.end - m.begin));
  std::merge(order_.begin() + m.begin,
             order_.begin() + m.middle,
             order_.begin() + m.middle,
             order_.begin() + m.end,
             sorted.begin(),
             [&](Index a, Index b) { return at(d_, a) < at(d_, b); });
  std::vector<double> z(sorted.size());
  double scale = rho;
  for (Index row = m.begin; row < m.end; ++row) {
    const double end_of_half = row < m.middle ? element(row, m.middle - 1)
                                              : std::copysign(1.0, e) * element(row, m.middle);
    at(z, row - m.begin) = end_of_half / std::sqrt(2.0);
    scale = std::max(scale, std::abs(at(d_, row)));
  }
  const double tolerance = 4.0 * eps * scale;
  enum Kind { first, both, second };
  std::vector<Kind> kinds(sorted.size());
  for (Index row = m.begin; row < m.end; ++row)
    at(kinds, row - m.begin) = row < m.middle ? first : second;
  Deflated parts;
  parts.secular.rho = rho;
  const auto take = [&](Index row) {
    parts.rows.push_back(row);
    parts.secular.d.push_back(at(d_, row));
    parts.z.push_back(at(z, row - m.begin));
    parts.secular.w.push_back(parts.z.back() * parts.z.back());
  };
  Index last = -1;  // of those that are not small, still to be compared with the next one
  for (const Index row : sorted) {
    double& z_row = at(z, row - m.begin);
    if (rho * std::abs(z_row) <= tolerance) {
      parts.kept.push_back(row);
      continue;
    }
    if (last >= 0) {
      double& z_last = at(z, last - m.begin);
      const double norm = std::hypot(z_row, z_last), c = z_row / norm, s = -z_last / norm;
      const double gap = at(d_, row) - at(d_, last);
      if (std::abs(gap * c * s) <= tolerance) {  // turned so that z_last = 0
        z_row = norm;
        z_last = 0.0;
        if (at(kinds, row - m.begin) != at(kinds, last - m.begin)) at(kinds, row - m.begin) = both;
        rotate(m, last, row, c, s);
        const double d_last = at(d_, last), d_row = at(d_, row);
        at(d_, last) = d_last * c * c + d_row * s * s;
        at(d_, row) = d_last * s * s + d_row * c * c;
        parts.kept.push_back(last);
      } else {
        take(last);
      }
    }
    last = row;
  }
  if (last >= 0) take(last);
  std::array<Index, 3> counts{};
  for (const Index row : parts.rows) ++counts[at(kinds, row - m.begin)];
  std::array<Index, 3> next{0, counts[first], counts[first] + counts[both]};
  for (const Index row : parts.rows) parts.columns.push_back(next[at(kinds, row - m.begin)]++);
  parts.num_first = counts[first];
  parts.num_both = counts[both];
  return parts;
}

// Rows a and b become c a + s b and c b - s a.
void DivideAndConquer::rotate(const Merge& m, Index row_a, Index row_b, double c, double s) {
  const PanelView<double> view = vectors_.view();
  for (Index j = m.begin / width; j < num_tasks(m.end, width); ++j) {
    double *a = view.panel(j) + row_a * width, *b = view.panel(j) + row_b * width;
    for (Index q = 0; q < width; ++q) {
      const double a_q = a[q], b_q = b[q];
      a[q] = c * a_q + s * b_q;
      b[q] = c * b_q - s * a_q;
    }
  }
}

// Rows of `gathered_` from m.begin on: in the columns of the first half the vectors of the first half
// and of both, in those of the second half the ones of both and of the second half, without the others,
// which are zero there; behind as many rows as there are of them altogether, what is kept.
void DivideAndConquer::gather(const Merge& m, const Deflated& parts, int num_threads) {
  const Index k = parts.secular.size(), begin = m.begin / width, end = num_tasks(m.end, width);
  const Index num_upper = parts.num_first + parts.num_both;
  parallel_for(end - begin, num_threads, [&](Index i, int) {
    const Index j = begin + i;
    const double* from = vectors_.view().panel(j);
    double* to = gathered_.view().panel(j) + m.begin * width;
    const bool is_first = j * width < m.middle;
    for (std::size_t q = 0; q < parts.rows.size(); ++q) {
      const Index column = parts.columns[q] - (is_first ? 0 : parts.num_first);
      if (is_first ? column < num_upper : column >= 0)
        std::copy_n(from + parts.rows[q] * width, width, to + column * width);
    }
    for (std::size_t q = 0; q < parts.kept.size(); ++q)
      std::copy_n(from + parts.kept[q] * width, width, to + (k + static_cast<Index>(q)) * width);
  });
}

// Eigenvectors of diag(d) + rho z z' as rows of `small_`, and eigenvalues: those of the z to which the
// roots belong exactly, so that they are orthogonal,  z_i^2 ~ prod_j (d_i - x_j) / prod_{j != i} (d_i - d_j).
void DivideAndConquer::find_vectors(Index begin, const Deflated& parts, int num_threads) {
  const Secular& s = parts.secular;
  const Index k = s.size();
  const double* d = s.d.data();
  const auto row = [&](Index j) { return small_.row(begin + j) + begin; };
  std::vector<double> kept;
  for (const Index r : parts.kept) kept.push_back(d_[static_cast<std::size_t>(r)]);
  parallel_for(num_tasks(k, task_roots), num_threads, [&](Index task, int) {
    for (Index j = task * task_roots; j < std::min(k, (task + 1) * task_roots); ++j) {
      const Root root = find_root(s, j);
      const double origin = d[root.pole];
      double* differences = row(j);
      for (Index i = 0; i < k; ++i) differences[i] = (d[i] - origin) - root.distance;
      d_[static_cast<std::size_t>(begin + j)] = origin + root.distance;
    }
  });
  std::vector<double> z(static_cast<std::size_t>(k));
  constexpr Index part = 64;
  parallel_for(num_tasks(k, part), num_threads, [&](Index task, int) {
    const Index first = task * part, size = std::min(part, k - first);
    std::array<double, part> product;
    product.fill(-1.0);
    for (Index j = 0; j < k; ++j) {
      const double* differences = row(j) + first;
      const Index own = j - first;  // d_i - d_j = 0 there
      const bool has_own = own >= 0 && own < size;
      const double value = has_own ? product[own] * differences[own] : 0.0;
      for (Index i = 0; i < size; ++i) product[i] *= differences[i] / (d[first + i] - d[j]);
      if (has_own) product[own] = value;
    }
    for (Index i = 0; i < size; ++i)
      z[static_cast<std::size_t>(first + i)] =
          std::copysign(std::sqrt(std::max(product[i], 0.0)), parts.z[first + i]);
  });
  parallel_for(num_tasks(k, task_roots), num_threads, [&](Index task, int) {
    std::vector<double> vector(static_cast<std::size_t>(k));
    for (Index j = task * task_roots; j < std::min(k, (task + 1) * task_roots); ++j) {
      double* out = row(j);
      std::array<double, chains> sums{};
      Index i = 0;
      for (; i + chains <= k; i += chains)
        for (Index q = 0; q < chains; ++q) {
          const double v = z[i + q] / out[i + q];
          vector[i + q] = v;
          sums[q] += v * v;
        }
      for (Index q = 0; i < k; ++i, ++q) {
        vector[i] = z[i] / out[i];
        sums[q] += vector[i] * vector[i];
      }
      const double factor = 1.0 / std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
      for (Index c = 0; c < k; ++c) out[parts.columns[c]] = factor * vector[c];
    }
  });
  for (std::size_t i = 0; i < kept.size(); ++i)
    d_[static_cast<std::size_t>(begin + k) + i] = kept[i];
}

void DivideAndConquer::multiply_vectors(const Merge& m, const Deflated& parts, int num_threads) {
  const Index k = parts.secular.size(), blocks = num_tasks(k, rows_per_task);
  const Index begin = m.begin / width, middle = m.middle / width, end = num_tasks(m.end, width);
  parallel_for(2 * blocks, num_threads, [&](Index task, int) {
    const bool is_first = task < blocks;
    const Index r0 = m.begin + task % blocks * rows_per_task;
    const Index rows = std::min(rows_per_task, m.begin + k - r0);
    const Index p0 = is_first ? begin : middle, count = (is_first ? middle : end) - p0;
    const Index depth = is_first ? parts.num_first + parts.num_both : k - parts.num_first;
    PanelView<double> to = vectors_.view().slice(p0, count);
    to.data += r0 * width;
    to.rows = rows;
    PanelView<double> from = gathered_.view().slice(p0, count);
    from.data += m.begin * width;
    from.rows = depth;
    if (depth == 0)
      for (Index j = 0; j < count; ++j) std::fill_n(to.panel(j), rows * width, 0.0);
    const double* small = small_.row(r0) + m.begin + (is_first ? 0 : parts.num_first);
    multiply<double>({small, rows, depth, small_.ld}, from, to);
  });
  const Index kept = static_cast<Index>(parts.kept.size());
  for (Index j = begin; j < end; ++j)
    std::copy_n(gathered_.view().panel(j) + (m.begin + k) * width,
                kept * width,
                vectors_.view().panel(j) + (m.begin + k) * width);
}

TridiagonalEigen DivideAndConquer::take() {
  TridiagonalEigen result;
  for (const Index row : order_) result.values.push_back(d_[static_cast<std::size_t>(row)]);
  result.rows = std::move(order_);
  result.vectors = std::move(vectors_);
  return result;
}

}  // namespace

TridiagonalEigen solve_tridiagonal(std::vector<double> diagonal,
                                   const std::vector<double>& off_diagonal,
                                   int num_threads) {
  return DivideAndConquer(std::move(diagonal), off_diagonal, num_threads).take();
}

}  // namespace natgrad
