#include "curvature/sample_space.hpp"

#include <cmath>
#include <utility>

#include "base/parallel.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

// Panels of a Gram matrix that are multiplied at once, so that they are added while in the cache.
constexpr Index panels_per_step = 8;

// f(begin, end, count, thread) for blocks of rows of an (n x n) lower triangle: panels [0, count)
// hold the columns up to `end`. Long rows first, to share the work evenly.
template <class T, class F>
void each_row_block(Index n, int num_threads, const F& f) {
  const Index num_tasks = (n + rows_per_task - 1) / rows_per_task;
  parallel_for(num_tasks, num_threads, [&](Index task, int thread) {
    const Index begin = (num_tasks - 1 - task) * rows_per_task;
    const Index end = std::min(n, begin + rows_per_task);
    f(begin, end, Panels<T>::count_for(end), thread);
  });
}

// A' row-major (n x d) of A (d x n) in panels.
template <class T>
Buffer<T> transposed_rows(PanelView<const T> a, int num_threads) {
  constexpr Index width = Tile<T>::width;
  Buffer<T> rows(checked_product(a.count * width, a.rows, "sample space"));
  parallel_for(a.count, num_threads, [&](Index j, int) {
    unpack_cases<T>(a.slice(j, 1), width, rows.data() + j * width * a.rows);
  });
  return rows;
}

}  // namespace

template <class T>
SampleSpace<T>::SampleSpace(std::shared_ptr<CurvatureOperator<T>> curvature, double bias_scale)
    : curvature_(std::move(curvature)),
      bias_scale_(static_cast<T>(bias_scale)),
      packed_(columns(), lin().num_panels() * Tile<T>::width) {
  check(curvature_->output().positive_semidefinite(),
        "the matrix may be indefinite: it has no factor U U' and no sample space");
  checked_product(size(), size(), "sample space");
}

template <class T>
void SampleSpace<T>::read_tile(const T* w, Index first, PanelView<T> packed) const {
  const Index row = first * Tile<T>::width;
  pack_cases(
      w + row * columns(), num_cases() - row, columns(), 0, packed.count, Fill::zero, packed);
}

template <class T>
void SampleSpace<T>::write_tile(Index first, PanelView<const T> packed, T* w) const {
  const Index row = first * Tile<T>::width;
  unpack_cases<T>(packed, num_cases() - row, w + row * columns());
}

// Writes the output tiles sqrt(w_i) Q_i w_i, and reads sqrt(w_i) Q_i' r_i from them.
template <class T>
OutputPass<T> SampleSpace<T>::seed_pass(const T* w) {
  return {curvature_->prepare_outputs(), [this, w](Index, Index first, PanelView<T> u) {
            const PanelView<T> packed = packed_.view().slice(first, u.count);
            read_tile(w, first, packed);
            curvature_->output().multiply_factor(first, packed, u);
            curvature_->weights().apply_root(first, u);
          }};
}
template <class T>
OutputPass<T> SampleSpace<T>::finish_pass(T* w) {
  return {curvature_->prepare_outputs(), [this, w](Index, Index first, PanelView<T> r) {
            const PanelView<T> packed = packed_.view().slice(first, r.count);
            curvature_->weights().apply_root(first, r);
            curvature_->output().multiply_factor_transposed(first, r, packed);
            write_tile(first, packed, w);
          }};
}

template <class T>
void SampleSpace<T>::multiply_factor(const T* w, T* v, bool add) {
  lin().pull_back(seed_pass(w), 1, v, add);
}

template <class T>
void SampleSpace<T>::multiply_factor_transposed(const T* v, T* w) {
  lin().push_forward(v, 1, finish_pass(w));
}

template <class T>
void SampleSpace<T>::apply(const T* x, T* y) {
  prepare_products();
  lin().multiply_kernel(seed_pass(x), grams_, deltas_, finish_pass(y));
}

template <class T>
std::array<double, 2> SampleSpace<T>::residual(const T* g, const T* x, Shift shift, T* out) {
  curvature_->multiply(x, 1, shift, out);
  Vectors<T> vectors(lin().net().num_params, lin().num_threads());
  const auto [square, product] = vectors.subtract_and_dot(g, x, out);
  return {std::sqrt(square), -0.5 * product};
}

template <class T>
bool SampleSpace<T>::split_gradient(const Panels<T>& targets, T* r, T* rest) {
  const Index outputs = lin().net().num_outputs();
  Panels<T> errors(outputs, lin().num_panels() * Tile<T>::width);
  lin().visit_outputs(curvature_->prepare_outputs(), [&](Index first, PanelView<const T> z) {
    const PanelView<T> e = errors.view().slice(first, z.count),
                       packed = packed_.view().slice(first, z.count);
    loss_gradient<T>(curvature_->spec().loss, z, targets.view().slice(first, z.count), e);
    curvature_->output().divide_factor(first, e, packed);
    curvature_->weights().apply_root(first, packed);
    curvature_->weights().apply(first, e);
    write_tile(first, packed, r);
    const Index row = first * Tile<T>::width;
    unpack_cases<T>(e, num_cases() - row, rest + row * outputs);
  });
  return std::all_of(rest, rest + num_cases() * outputs, [](T x) { return x == T(0); });
}

// Deltas of all columns, (d_l x columns N) with N filled up, and the activations below them.
template <class T>
void SampleSpace<T>::gather(std::vector<Panels<T>>& deltas, std::vector<Panels<T>>& inputs) {
  constexpr Index width = Tile<T>::width;
  const Index panels = lin().num_panels();
  for (const Layer& layer : lin().net().layers) {
    deltas.emplace_back(layer.outputs, checked_product(columns(), panels * width, "sample space"));
    inputs.emplace_back(layer.inputs, panels * width);
  }
  const TileFunction<T> seed = [&](Index column, Index first, PanelView<T> u) {
    curvature_->output().factor_column(first, column, u);
    curvature_->weights().apply_root(first, u);
  };
  const auto consume = [&](const Deltas<T>& chunk) {
    const Index first = chunk.chunk.first();
    parallel_for(chunk.count, lin().work_threads(), [&](Index j, int) {
      for (std::size_t l = 0; l < deltas.size(); ++l) {
        const Layer& layer = lin().net().layers[l];
        for (Index k = 0; k < chunk.num_vectors; ++k)
          std::copy_n(chunk(k, l).panel(j),
                      layer.outputs * width,
                      deltas[l].view().panel((chunk.first_vector + k) * panels + first + j));
        if (chunk.first_vector == 0)
          std::copy_n(chunk.chunk.activations(l).panel(j),
                      layer.inputs * width,
                      inputs[l].view().panel(first + j));
      }
    });
  };
  lin().sweep_backward({curvature_->prepare_outputs(), seed}, columns(), consume);
}

template <class T>
Panels<T> SampleSpace<T>::layer_gram(std::size_t l, PanelView<const T> inputs) const {
  constexpr Index width = Tile<T>::width;
  const Index d = inputs.rows, n = inputs.count * width;
  const T bias = lin().net().layers[l].has_bias ? bias_scale_ : T(0);
  const Buffer<T> rows = transposed_rows(inputs, lin().num_threads());
  Panels<T> gram(n, n);
  const PanelView<T> g = gram.view();
  each_row_block<T>(n, lin().num_threads(), [&](Index begin, Index end, Index count, int) {
    const PanelView<T> block{g.data + begin * width, end - begin, g.stride, count};
    multiply<T>({rows.data() + begin * d, end - begin, d, d}, inputs.slice(0, count), block);
    for (Index j = 0; j < count; ++j)
      for (Index i = 0; i < block.rows * width; ++i) block.panel(j)[i] += bias;
  });
  // Above the diagonal.
  parallel_for(g.count, lin().num_threads(), [&](Index j, int) {
    for (Index p = 0; p < j; ++p)
      transpose(g.panel(p) + j * width * width,
                width,
                width,
                width,
                g.panel(j) + p * width * width,
                width);
  });
  return gram;
}

template <class T>
void SampleSpace<T>::prepare_products() {
  const std::lock_guard lock(mutex_);
  if (!grams_.empty()) return;
  const bool single = lin().num_chunks() == 1;
  std::vector<Panels<T>> inputs;
  if (!single) {
    for (const Layer& layer : lin().net().layers) {
      inputs.emplace_back(layer.inputs, lin().num_panels() * Tile<T>::width);
      deltas_.emplace_back(layer.outputs, lin().num_panels() * Tile<T>::width);
    }
    for (Index c = 0; c < lin().num_chunks(); ++c) {
      const Chunk<T> chunk = lin().hold(c);
      parallel_for(chunk.count(), lin().work_threads(), [&](Index j, int) {
        for (std::size_t l = 0; l < inputs.size(); ++l)
          std::copy_n(chunk.activations(l).panel(j),
                      inputs[l].rows() * Tile<T>::width,
                      inputs[l].view().panel(chunk.first() + j));
      });
    }
  }
  std::vector<Panels<T>> grams;
  if (single) {
    const Chunk<T> chunk = lin().hold(0);
    for (std::size_t l = 0; l < lin().net().layers.size(); ++l)
      grams.push_back(layer_gram(l, chunk.activations(l)));
  }
  for (std::size_t l = 0; l < inputs.size(); ++l)
    grams.push_back(layer_gram(l, std::as_const(inputs[l]).view()));
  grams_ = std::move(grams);
}

// K (+)= G . (D'D) for one layer: D (d x columns N) and G (N x N) repeated for every pair of columns.
template <class T>
void SampleSpace<T>::add_layer(PanelView<const T> deltas,
                               const Panels<T>& input_gram,
                               bool first,
                               Panels<T>& k) {
  constexpr Index width = Tile<T>::width;
  const Index n = deltas.count * width, d = deltas.rows, cases = input_gram.rows();
  const Buffer<T> rows = transposed_rows(deltas, lin().num_threads());
  const PanelView<T> kernel = k.view();
  const PanelView<const T> g = input_gram.view();
  std::vector<Panels<T>> scratch;
  for (int i = 0; i < lin().num_threads(); ++i)
    scratch.emplace_back(rows_per_task, panels_per_step * width);
  each_row_block<T>(n, lin().num_threads(), [&](Index begin, Index end, Index count, int thread) {
    PanelView<T> product = scratch[static_cast<std::size_t>(thread)].view();
    product.rows = end - begin;
    for (Index j0 = 0; j0 < count; j0 += panels_per_step) {
      product.count = std::min(panels_per_step, count - j0);
      multiply<T>(
          {rows.data() + begin * d, end - begin, d, d}, deltas.slice(j0, product.count), product);
      for (Index j = 0; j < product.count; ++j) {
        const T* factors = g.panel((j0 + j) % g.count);
        T* target = kernel.panel(j0 + j) + begin * width;
        for (Index r = 0; r < end - begin; ++r)
          for (Index q = 0; q < width; ++q) {
            const T term =
                product.panel(j)[r * width + q] * factors[(begin + r) % cases * width + q];
            T& place = target[r * width + q];
            place = first ? term : place + term;
          }
      }
    }
  });
}

template <class T>
bool SampleSpace<T>::form() {
  const std::lock_guard lock(mutex_);
  return form_once();
}

template <class T>
double SampleSpace<T>::largest_diagonal() {
  const std::lock_guard lock(mutex_);
  form_once();
  double largest = 0;
  for (Index i = 0; i < size(); ++i) largest = std::max(largest, kernel_.row(i)[i]);
  return largest;
}

template <class T>
bool SampleSpace<T>::form_once() {
  if (kernel_.data.size() > 0) return false;
  constexpr Index width = Tile<T>::width;
  const Index filled = lin().num_panels() * width, n = num_cases();
  std::vector<Panels<T>> deltas, inputs;
  gather(deltas, inputs);
  Panels<T> k(columns() * filled, columns() * filled);
  for (std::size_t l = 0; l < deltas.size(); ++l) {
    const Panels<T> gram = layer_gram(l, std::as_const(inputs[l]).view());
    add_layer(std::as_const(deltas[l]).view(), gram, l == 0, k);
    deltas[l] = Panels<T>();
    inputs[l] = Panels<T>();
  }
  // Without the fill.
  Matrix<double> kernel(size(), size());
  const PanelView<const T> view = std::as_const(k).view();
  parallel_for(size(), lin().num_threads(), [&](Index p, int) {
    const Index row = p / n * filled + p % n;
    for (Index c = 0; c <= p / n; ++c)
      for (Index j = 0; j < n && c * n + j <= p; ++j) {
        const Index column = c * filled + j;
        kernel.row(p)[c * n + j] =
            static_cast<double>(view.panel(column / width)[row * width + column % width]);
      }
  });
  kernel_ = std::move(kernel);
  return true;
}

template <class T>
void SampleSpace<T>::copy_kernel(double* k) {
  const std::lock_guard lock(mutex_);
  form_once();
  parallel_for(size(), lin().num_threads(), [&](Index i, int) {
    for (Index j = 0; j < size(); ++j) {
      const Index p = order().place(i), q = order().place(j);
      k[i * size() + j] = kernel_.row(std::max(p, q))[std::min(p, q)];
    }
  });
}

template <class T>
auto SampleSpace<T>::factorize(double shift) -> Kept<KernelCholesky<T>> {
  const std::lock_guard lock(mutex_);
  if (cholesky_ && cholesky_->shift() == shift) return {cholesky_, false};
  form_once();
  cholesky_.reset();  // its memory first
  cholesky_ = std::make_shared<KernelCholesky<T>>(kernel_, order(), shift, lin().num_threads());
  return {cholesky_, true};
}

template <class T>
auto SampleSpace<T>::decompose() -> Kept<KernelEigenbasis<T>> {
  const std::lock_guard lock(mutex_);
  if (eigenbasis_) return {eigenbasis_, false};
  form_once();
  eigenbasis_ = std::make_shared<KernelEigenbasis<T>>(kernel_, order());
  return {eigenbasis_, true};
}

template class SampleSpace<float>;
template class SampleSpace<double>;

}  // namespace natgrad
