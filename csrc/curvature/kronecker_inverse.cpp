#include "curvature/kronecker_inverse.hpp"

#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"

namespace natgrad {
namespace {

template <class T>
Matrix<T> padded_matrix(Index rows, Index cols) {
  Matrix<T> result(rows, cols, padded_stride<T>(cols));
  std::fill_n(result.data.data(), result.data.size(), T(0));
  return result;
}

template <class T>
Panels<T> zero_panels(Index rows, Index cols) {
  Panels<T> result(rows, cols);
  std::fill_n(result.view().data, result.view().stride * result.count(), T(0));
  return result;
}

// Rows of V from x, times the square roots of `scales` (d x n) if there are any.
template <class T>
void gather_rows(const Layer& layer,
                 Index begin,
                 Index end,
                 const T* x,
                 PanelView<const T> scales,
                 Matrix<T>& v) {
  constexpr Index width = Tile<T>::width;
  for (Index r = begin; r < end; ++r) {
    T* row = v.row(r);
    std::copy_n(x + layer.weight_offset + r * layer.inputs, layer.inputs, row);
    if (layer.has_bias) row[layer.inputs] = x[layer.bias_offset + r];
    if (!scales.data) continue;
    for (Index j = 0; j < scales.count; ++j) {
      const Index cols = std::min(width, v.cols - j * width);
      for (Index q = 0; q < cols; ++q)
        row[j * width + q] *= std::sqrt(scales.panel(j)[r * width + q]);
    }
  }
}

// Rows [begin, end) of Y into y, for panels that hold the columns from `first` panels on; row r of Y
// is row r - row_offset of the panels.
template <class T>
void scatter(const Layer& layer,
             PanelView<const T> panels,
             Index first,
             Index begin,
             Index end,
             Index row_offset,
             T* y) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < panels.count; ++j) {
    const Index col = (first + j) * width;
    const Index weights = std::clamp<Index>(layer.inputs - col, 0, width);
    const bool has_constant = layer.has_bias && col <= layer.inputs && layer.inputs < col + width;
    for (Index r = begin; r < end; ++r) {
      const T* row = panels.panel(j) + (r - row_offset) * width;
      std::copy_n(row, weights, y + layer.weight_offset + r * layer.inputs + col);
      if (has_constant) y[layer.bias_offset + r] = row[weights];
    }
  }
}

template <class T>
using Task = typename KroneckerScratch<T>::Task;

// images = V right for rows of V; the panels of `images` from row task.begin on.
template <class T>
PanelView<T> multiply_right(const Task<T>& task,
                            const Panels<T>& right,
                            KroneckerScratch<T>& scratch) {
  Matrix<T>& v = scratch.rows[task.layer];
  PanelView<T> image = scratch.images[task.layer].view();
  image.data += task.begin * Tile<T>::width;
  multiply<T>({v.row(task.begin), task.end - task.begin, v.cols, v.ld}, right.view(), image);
  return image;
}

template <class T>
PanelView<T> part(Panels<T>& panels, const Task<T>& task) {
  return panels.view().slice(task.begin, task.end - task.begin);
}

// y = left V right, V = x with `scales` as in gather_rows.
template <class T>
void multiply_pairs(KroneckerScratch<T>& scratch,
                    const std::vector<KroneckerPair<T>>& pairs,
                    const std::vector<Panels<T>>& scales,
                    const T* x,
                    T* y) {
  scratch.each_row_block([&](const Task<T>& task) {
    const std::size_t l = task.layer;
    const PanelView<const T> scale = scales.empty() ? PanelView<const T>{} : scales[l].view();
    gather_rows(scratch.net.layers[l], task.begin, task.end, x, scale, scratch.rows[l]);
    multiply_right<T>(task, pairs[l].right, scratch);
  });
  scratch.each_panel_block([&](const Task<T>& task) {
    const std::size_t l = task.layer;
    const PanelView<T> result = part<T>(scratch.scaled[l], task);
    multiply<T>(pairs[l].left.view(), part<T>(scratch.images[l], task), result);
    scatter<T>(scratch.net.layers[l], result, task.begin, 0, result.rows, 0, y);
  });
}

}  // namespace

template <class T>
void pack_columns(const Matrix<T>& from, PanelView<T> to) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < to.count; ++j) {
    const Index cols = std::min(width, from.cols - j * width);
    for (Index i = 0; i < from.rows; ++i) {
      T* out = to.panel(j) + i * width;
      std::fill(std::copy_n(from.row(i) + j * width, cols, out), out + width, T(0));
    }
  }
}

template <class T>
Matrix<T> unpack_columns(const Panels<T>& from) {
  constexpr Index width = Tile<T>::width;
  const PanelView<const T> view = from.view();
  Matrix<T> to(from.rows(), from.cols());
  for (Index j = 0; j < view.count; ++j) {
    const Index cols = std::min(width, to.cols - j * width);
    for (Index i = 0; i < to.rows; ++i)
      std::copy_n(view.panel(j) + i * width, cols, to.row(i) + j * width);
  }
  return to;
}

template <class T>
KroneckerPair<T>::KroneckerPair(Index d, Index n)
    : left(padded_matrix<T>(d, d)), right(zero_panels<T>(n, n)) {}

template <class T>
void KroneckerBasis<T>::add(const Matrix<T>& inputs_transposed,
                            const Matrix<T>& outputs_transposed) {
  const Index n = inputs_transposed.rows, d = outputs_transposed.rows;
  KroneckerPair<T> forth(d, n), back(d, n);
  for (Index r = 0; r < d; ++r) std::copy_n(outputs_transposed.row(r), d, forth.left.row(r));
  transpose(outputs_transposed.data.data(),
            d,
            d,
            outputs_transposed.ld,
            back.left.data.data(),
            back.left.ld);
  Matrix<T> inputs(n, n);
  transpose(
      inputs_transposed.data.data(), n, n, inputs_transposed.ld, inputs.data.data(), inputs.ld);
  pack_columns(inputs, forth.right.view());
  pack_columns(inputs_transposed, back.right.view());
  to.push_back(std::move(forth));
  from.push_back(std::move(back));
}

template <class T>
KroneckerScratch<T>::KroneckerScratch(const Architecture& architecture, int num_threads)
    : net(architecture) {
  static_assert(rows_per_task % Tile<T>::width == 0 && rows_per_task % Tile<T>::rows == 0);
  constexpr Index panels = rows_per_task / Tile<T>::width;
  double flops = 0;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Index d = net.layers[l].outputs, n = net.layers[l].augmented_inputs();
    rows.push_back(padded_matrix<T>(d, n));
    images.emplace_back(d, n);
    scaled.emplace_back(d, n);
    const Index count = images.back().count();
    for (Index r = 0; r < d; r += rows_per_task)
      row_tasks_.push_back({l, r, std::min(d, r + rows_per_task)});
    for (Index j = 0; j < count; j += panels)
      panel_tasks_.push_back({l, j, std::min(count, j + panels)});
    flops += 2.0 * static_cast<double>(d) * static_cast<double>(n) * static_cast<double>(d + n);
  }
  num_threads_ = flops < serial_flops ? 1 : num_threads;
}

template <class T>
template <class F>
void KroneckerScratch<T>::each_row_block(const F& f) const {
  parallel_for(static_cast<Index>(row_tasks_.size()), num_threads_, [&](Index i, int) {
    f(row_tasks_[static_cast<std::size_t>(i)]);
  });
}

template <class T>
template <class F>
void KroneckerScratch<T>::each_panel_block(const F& f) const {
  parallel_for(static_cast<Index>(panel_tasks_.size()), num_threads_, [&](Index i, int) {
    f(panel_tasks_[static_cast<std::size_t>(i)]);
  });
}

template <class T>
void KroneckerInverse<T>::apply(KroneckerScratch<T>& scratch, const T* x, T* y) const {
  if (!in_basis()) {
    multiply_pairs<T>(scratch, factors_, {}, x, y);
    return;
  }
  scratch.each_row_block([&](const Task<T>& task) {
    const std::size_t l = task.layer;
    gather_rows<T>(scratch.net.layers[l], task.begin, task.end, x, {}, scratch.rows[l]);
    multiply_right<T>(task, basis_->to[l].right, scratch);
  });
  // V = U_G (Q . (U_G' images))
  scratch.each_panel_block([&](const Task<T>& task) {
    constexpr Index width = Tile<T>::width;
    const std::size_t l = task.layer;
    const PanelView<T> image = part<T>(scratch.images[l], task);
    const PanelView<T> scaled = part<T>(scratch.scaled[l], task);
    ProductOptions<T> options;
    options.scale = reciprocals_[l].view().slice(task.begin, task.end - task.begin);
    multiply<T>(basis_->to[l].left.view(), image, scaled, options);
    multiply<T>(basis_->from[l].left.view(), scaled, image);
    Matrix<T>& v = scratch.rows[l];
    for (Index j = 0; j < image.count; ++j) {
      const Index first = (task.begin + j) * width, cols = std::min(width, v.cols - first);
      for (Index r = 0; r < v.rows; ++r)
        std::copy_n(image.panel(j) + r * width, cols, v.row(r) + first);
    }
  });
  scratch.each_row_block([&](const Task<T>& task) {
    const PanelView<T> image = multiply_right<T>(task, basis_->from[task.layer].right, scratch);
    scatter<T>(scratch.net.layers[task.layer], image, 0, task.begin, task.end, task.begin, y);
  });
}

template <class T>
void KroneckerInverse<T>::apply_root(KroneckerScratch<T>& scratch,
                                     int num_threads,
                                     const T* x,
                                     T* y) {
  if (in_basis()) {
    multiply_pairs<T>(scratch, basis_->from, reciprocals_, x, y);
    return;
  }
  if (roots_.empty()) make_roots(num_threads);
  multiply_pairs<T>(scratch, roots_, {}, x, y);
}

template <class T>
void KroneckerInverse<T>::make_roots(int num_threads) {
  Pairs roots;
  for (const KroneckerPair<T>& pair : factors_) {
    const Index d = pair.left.rows, n = pair.right.rows();
    KroneckerPair<T> root(d, n);
    cholesky_lower(pair.left, num_threads, root.left);
    Matrix<T> lower(n, n), upper(n, n);
    cholesky_lower(unpack_columns(pair.right), num_threads, lower);
    transpose(lower.data.data(), n, n, lower.ld, upper.data.data(), upper.ld);
    pack_columns(upper, root.right.view());
    roots.push_back(std::move(root));
  }
  roots_ = std::move(roots);
}

#define NATGRAD_INSTANTIATE(T)                                \
  template void pack_columns(const Matrix<T>&, PanelView<T>); \
  template Matrix<T> unpack_columns(const Panels<T>&);        \
  template struct KroneckerPair<T>;                           \
  template struct KroneckerBasis<T>;                          \
  template class KroneckerScratch<T>;                         \
  template class KroneckerInverse<T>;
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
