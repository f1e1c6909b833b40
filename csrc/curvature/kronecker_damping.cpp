#include "curvature/kronecker_damping.hpp"

#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// pi outside of these would put one of the shifts out of the range of float.
constexpr double max_pi = 1e8;

// Rows of a diagonal in one task.
constexpr Index task_rows = 32;

template <class T>
double ratio_of_factors(KroneckerDamping rule, const Matrix<T>& a, const Matrix<T>& g) {
  const double n = static_cast<double>(a.rows), d = static_cast<double>(g.rows);
  double square = 1.0;
  if (rule == KroneckerDamping::trace) square = trace(a) / n / (trace(g) / d);
  if (rule == KroneckerDamping::frobenius)
    square = frobenius_norm(a) / std::sqrt(n) / (frobenius_norm(g) / std::sqrt(d));
  const double pi = std::sqrt(square);
  return std::isfinite(pi) ? std::clamp(pi, 1.0 / max_pi, max_pi) : 1.0;
}

template <class T>
Index num_rows(const BasisDiagonal<T>& b) {
  return b.s ? b.s->rows : static_cast<Index>(b.g->size());
}
template <class T>
Index num_cols(const BasisDiagonal<T>& b) {
  return b.s ? b.s->cols : static_cast<Index>(b.a->size());
}

template <class T>
double largest_element(const BasisDiagonal<T>& b) {
  if (!b.s) return b.scale * b.g->back() * b.a->back();
  constexpr Index chains = 32;
  T largest[chains] = {};
  for (Index r = 0; r < b.s->rows; ++r) {
    const T* row = b.s->row(r);
    Index c = 0;
    for (; c + chains <= b.s->cols; c += chains)
      for (Index q = 0; q < chains; ++q)
        largest[q] = row[c + q] > largest[q] ? row[c + q] : largest[q];
    for (; c < b.s->cols; ++c) largest[0] = std::max(largest[0], row[c]);
  }
  return static_cast<double>(*std::max_element(largest, largest + chains));
}

// Row r of D.
template <class T>
void damped_row(const BasisDiagonal<T>& b, double damping, double floor, Index r, double* out) {
  const auto element = [=](double value) {
    return std::max(std::max(value, 0.0) + damping, floor);
  };
  const Index cols = num_cols(b);
  if (b.s) {
    const T* row = b.s->row(r);
    for (Index c = 0; c < cols; ++c) out[c] = element(static_cast<double>(row[c]));
  } else {
    const double g = b.scale * (*b.g)[static_cast<std::size_t>(r)];
    const double* a = b.a->data();
    for (Index c = 0; c < cols; ++c) out[c] = element(g * a[c]);
  }
}

template <class T>
double floor_of(const BasisDiagonal<T>& b, double damping) {
  const double eps = std::numeric_limits<T>::epsilon();
  return eps * eps * (std::max(largest_element(b), 0.0) + damping);
}

}  // namespace

template <class T>
ShiftedPair damped_pair(
    KroneckerDamping rule, double damping, double s, const Matrix<T>& a, const Matrix<T>& g) {
  const ScaleAndShift identity{0.0, 1.0};
  if (!(s > 0.0 && trace(a) > 0.0 && trace(g) > 0.0)) return {identity, {0.0, damping}};
  if (g.rows == 1) return {identity, {s * s * static_cast<double>(g.row(0)[0]), damping}};
  if (a.rows == 1) return {{s * s * static_cast<double>(a.row(0)[0]), damping}, identity};
  const double gamma = std::sqrt(damping), pi = ratio_of_factors(rule, a, g);
  return {{s, gamma / pi}, {s, pi * gamma}};
}

template <class T>
std::vector<double> damped_diagonal(const BasisDiagonal<T>& b, double damping) {
  const double floor = floor_of(b, damping);
  const Index rows = num_rows(b), cols = num_cols(b);
  std::vector<double> result(static_cast<std::size_t>(rows * cols));
  for (Index r = 0; r < rows; ++r) damped_row(b, damping, floor, r, result.data() + r * cols);
  return result;
}

template <class T>
double damped_log_sum(const BasisDiagonal<T>& b, double damping) {
  const double floor = floor_of(b, damping);
  std::vector<double> row(static_cast<std::size_t>(num_cols(b)));
  double sum = 0;
  for (Index r = 0; r < num_rows(b); ++r) {
    damped_row(b, damping, floor, r, row.data());
    double part = 0;
    for (const double value : row) part += std::log(value);
    sum += part;
  }
  return sum;
}

template <class T>
std::vector<Panels<T>> damped_reciprocals(const std::vector<BasisDiagonal<T>>& layers,
                                          double damping,
                                          int num_threads) {
  constexpr Index width = Tile<T>::width;
  struct Task {
    std::size_t layer;
    Index begin, end;
  };
  std::vector<Panels<T>> result;
  std::vector<Task> tasks;
  std::vector<double> floors(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Index rows = num_rows(layers[l]);
    result.emplace_back(rows, num_cols(layers[l]));
    for (Index r = 0; r < rows; r += task_rows)
      tasks.push_back({l, r, std::min(rows, r + task_rows)});
  }
  parallel_for(static_cast<Index>(layers.size()), num_threads, [&](Index l, int) {
    floors[static_cast<std::size_t>(l)] = floor_of(layers[static_cast<std::size_t>(l)], damping);
  });
  parallel_for(static_cast<Index>(tasks.size()), num_threads, [&](Index i, int) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    const PanelView<T> out = result[task.layer].view();
    // Columns that fill up the last panel become 1 / Inf = 0.
    std::vector<double> row(static_cast<std::size_t>(out.count * width),
                            std::numeric_limits<double>::infinity());
    for (Index r = task.begin; r < task.end; ++r) {
      damped_row(layers[task.layer], damping, floors[task.layer], r, row.data());
      for (Index j = 0; j < out.count; ++j)
        for (Index q = 0; q < width; ++q)
          out.panel(j)[r * width + q] =
              static_cast<T>(1.0 / row[static_cast<std::size_t>(j * width + q)]);
    }
  });
  return result;
}

#define NATGRAD_INSTANTIATE(T)                                                   \
  template ShiftedPair damped_pair(                                              \
      KroneckerDamping, double, double, const Matrix<T>&, const Matrix<T>&);     \
  template std::vector<double> damped_diagonal(const BasisDiagonal<T>&, double); \
  template double damped_log_sum(const BasisDiagonal<T>&, double);               \
  template std::vector<Panels<T>> damped_reciprocals(                            \
      const std::vector<BasisDiagonal<T>>&, double, int);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
