#include "curvature/unit_curvature.hpp"

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// An elementwise flop, in flops of products.
constexpr double elementwise = 4.0;
// Of a part between two calls of progress, per thread: a few hundredths of a second.
constexpr double flops_per_part = 2e8;

double layer_flops(const Architecture& net, std::size_t l, bool with_outputs) {
  double flops = 0;
  for (std::size_t k = l + 1; k < net.layers.size(); ++k) {
    const auto outputs = static_cast<double>(net.layers[k].outputs);
    flops += 2.0 * elementwise * outputs;
    if (k > l + 1) flops += 2.0 * outputs * static_cast<double>(net.layers[k].inputs);
  }
  if (with_outputs) flops += 6.0 * elementwise * static_cast<double>(net.num_outputs());
  return flops;
}

template <class T>
std::size_t layers_to_pass(const Linearization<T>& lin, const OutputMatrices<T>* output) {
  std::size_t top = lin.net().layers.size();
  if (output) return top;
  while (top > 0 && is_piecewise_linear(lin.net().layers[top - 1].activation)) --top;
  return top;
}

}  // namespace

double unit_curvature_flops(const Architecture& net, bool with_outputs) {
  double flops = 0;
  for (std::size_t l = 0; l + 1 < net.layers.size(); ++l)
    flops += static_cast<double>(net.layers[l].outputs) * layer_flops(net, l, with_outputs);
  return flops;
}

template <class T>
UnitCurvature<T>::UnitCurvature(const Linearization<T>& lin,
                                const OutputMatrices<T>* output,
                                const std::vector<Panels<T>>* curved)
    : lin_(lin), output_(output), curved_(curved), top_(layers_to_pass(lin, output)) {
  for (int i = 0; i < lin.num_threads(); ++i) {
    scratch_.emplace_back(
        checked_product(2 * lin.tile_panels(), Panels<T>::stride_for(lin.net().max_width), "tile"));
    values_.emplace_back(lin.tile_panels() * Tile<T>::width);
  }
}

template <class T>
UnitCurvature<T>::UnitCurvature(const Linearization<T>& lin, const OutputMatrices<T>& output)
    : UnitCurvature(lin, &output, nullptr) {}

template <class T>
UnitCurvature<T>::UnitCurvature(const Linearization<T>& lin, const std::vector<Panels<T>>& curved)
    : UnitCurvature(lin, nullptr, &curved) {}

template <class T>
bool UnitCurvature<T>::is_curved(std::size_t l) const {
  return curved_ && !is_piecewise_linear(lin_.net().layers[l].activation);
}

template <class T>
double UnitCurvature<T>::flops_per_unit(const ChunkView<T>& chunk, std::size_t l) const {
  const auto cases = static_cast<double>(chunk.count() * Tile<T>::width);
  return cases * layer_flops(lin_.net(), l, output_ != nullptr);
}

template <class T>
void UnitCurvature<T>::measure(const ChunkView<T>& chunk,
                               std::vector<Panels<T>>& h,
                               const Progress& progress,
                               double done) {
  const Architecture& net = lin_.net();
  const std::size_t last = net.layers.size() - 1;
  last_layer(chunk, h[last]);
  const Index tile = lin_.tile_panels(), tiles = chunk.num_tiles();
  for (std::size_t l = 0; l < last; ++l) {
    const double flops = flops_per_unit(chunk, l);
    const double most = flops_per_part * lin_.num_threads() / std::max(flops, 1.0);
    const Index units = net.layers[l].outputs;
    const Index part = std::max<Index>(1, static_cast<Index>(std::min(most, 1e6)));
    for (Index begin = 0; begin < units; begin += part) {
      const Index count = std::min(part, units - begin);
      const bool shared = flops * static_cast<double>(count) > 1e6;
      parallel_for(count * tiles, shared ? lin_.num_threads() : 1, [&](Index task, int thread) {
        const Index first = task % tiles * tile;
        measure_unit(chunk, l, begin + task / tiles, first, chunk.tile_count(first), thread, h[l]);
      });
      done += flops * static_cast<double>(count);
      if (progress) progress(done);
    }
  }
}

// phi'^2 diag(M) + e of the outputs themselves.
template <class T>
void UnitCurvature<T>::last_layer(const ChunkView<T>& chunk, Panels<T>& h) const {
  const std::size_t l = lin_.net().layers.size() - 1;
  parallel_for(chunk.count(), lin_.work_threads(), [&](Index j, int) {
    const PanelView<T> out = h.view().slice(j, 1);
    const Index size = out.rows * Tile<T>::width;
    if (output_) {
      output_->diagonal(chunk.first() + j, out);
      if (const PanelView<const T> d = chunk.derivatives(l); d.data)
        for (Index i = 0; i < size; ++i) out.data[i] *= d.panel(j)[i] * d.panel(j)[i];
    } else if (is_curved(l)) {
      std::copy_n((*curved_)[l].view().panel(j), size, out.data);
    } else {
      std::fill_n(out.data, size, T(0));
    }
  });
}

// R s_{l+1} = W_{l+1}[:, unit] phi'_l[unit]
template <class T>
void UnitCurvature<T>::start(
    const ChunkView<T>& chunk, std::size_t l, Index unit, Index first, PanelView<T> r) const {
  constexpr Index width = Tile<T>::width;
  const RowMajor<T> w = lin_.transposed_weights(l + 1);
  const T* column = w.data + unit * w.ld;
  const PanelView<const T> derivative = chunk.derivatives(l);
  for (Index j = 0; j < r.count; ++j) {
    T scale[width];
    for (Index q = 0; q < width; ++q)
      scale[q] = derivative.data ? derivative.panel(first + j)[unit * width + q] : T(1);
    for (Index i = 0; i < r.rows; ++i)
      for (Index q = 0; q < width; ++q) r.panel(j)[i * width + q] = column[i] * scale[q];
  }
}

// values += e_l . r^2, added up over the units.
template <class T>
void UnitCurvature<T>::add_curved(std::size_t l,
                                  Index first,
                                  PanelView<const T> r,
                                  double* values) const {
  constexpr Index width = Tile<T>::width;
  const PanelView<const T> e = (*curved_)[l].view();
  for (Index j = 0; j < r.count; ++j) {
    const T *in = r.panel(j), *factor = e.panel(first + j);
    for (Index i = 0; i < r.rows; ++i)
      for (Index q = 0; q < width; ++q) {
        const auto x = static_cast<double>(in[i * width + q]);
        values[j * width + q] += static_cast<double>(factor[i * width + q]) * x * x;
      }
  }
}

template <class T>
void UnitCurvature<T>::measure_unit(const ChunkView<T>& chunk,
                                    std::size_t l,
                                    Index unit,
                                    Index first,
                                    Index count,
                                    int thread,
                                    Panels<T>& h) {
  constexpr Index width = Tile<T>::width;
  const auto t = static_cast<std::size_t>(thread);
  const Architecture& net = lin_.net();
  const Index stride = Panels<T>::stride_for(net.max_width);
  T* buffer = scratch_[t].data();
  PanelView<T> r{buffer, 0, stride, count},
      next{buffer + lin_.tile_panels() * stride, 0, stride, count};
  double* values = values_[t].data();
  std::fill_n(values, count * width, 0.0);
  for (std::size_t k = l + 1; k < top_; ++k) {
    next.rows = net.layers[k].outputs;
    const PanelView<const T> d = chunk.derivatives(k);
    ProductOptions<T> options;
    const bool fuses = !curved_ && d.data && k > l + 1;  // with e_k, R s_k is wanted too
    if (fuses) options.scale = d.slice(first, count);
    if (k == l + 1)
      start(chunk, l, unit, first, next);
    else
      multiply<T>(lin_.weights(k), r, next, options);
    std::swap(r, next);
    if (is_curved(k)) add_curved(k, first, r, values);
    if (!d.data || fuses || (curved_ && k + 1 == top_)) continue;
    for (Index j = 0; j < count; ++j)
      for (Index i = 0; i < r.rows * width; ++i) r.panel(j)[i] *= d.panel(first + j)[i];
  }
  if (output_) output_->inner(chunk.first() + first, r, r, values);
  for (Index j = 0; j < count; ++j)
    for (Index q = 0; q < width; ++q) {
      double sum = values[j * width + q];
      if (is_curved(l))
        sum += static_cast<double>((*curved_)[l].view().panel(first + j)[unit * width + q]);
      h.view().panel(first + j)[unit * width + q] = static_cast<T>(sum);
    }
}

template <class T>
void add_diagonal(const Linearization<T>& lin,
                  const ChunkView<T>& chunk,
                  const std::vector<Panels<T>>& h,
                  bool add,
                  T* out) {
  constexpr Index width = Tile<T>::width;
  const Architecture& net = lin.net();
  const Index count = chunk.count();
  std::vector<Panels<T>> squares;  // a_{l-1}^2, (cases x d_{l-1})
  for (std::size_t l = 0; l < h.size(); ++l) {
    squares.emplace_back(lin.chunk_panels() * width, net.layers[l].inputs);
    const PanelView<const T> from = chunk.features(l);
    const PanelView<T> to = squares[l].view();
    parallel_for(from.count, lin.work_threads(), [&](Index j, int) {
      for (Index i = 0; i < count * width * width; ++i)
        to.panel(j)[i] = from.panel(j)[i] * from.panel(j)[i];
    });
  }
  const std::vector<RowTask>& tasks = lin.row_tasks();
  parallel_for(static_cast<Index>(tasks.size()), lin.work_threads(), [&](Index i, int) {
    const auto [l, begin, end] = tasks[static_cast<std::size_t>(i)];
    const Layer& layer = net.layers[l];
    const PanelView<const T> u = h[l].view().slice(0, count);
    multiply_outer<T>(
        u, squares[l].view(), begin, end, layer.inputs, add, out + layer.weight_offset);
    if (layer.has_bias) sum_cases(u, begin, end, add, out + layer.bias_offset);
  });
}

template <class T>
void add_traces(const Linearization<T>& lin,
                const ChunkView<T>& chunk,
                const std::vector<Panels<T>>& h,
                double* values) {
  constexpr Index width = Tile<T>::width;
  const Architecture& net = lin.net();
  parallel_for(chunk.count(), lin.work_threads(), [&](Index j, int) {
    double* value = values + (chunk.first() + j) * width;
    for (std::size_t l = 0; l < h.size(); ++l) {
      const T *u = h[l].view().panel(j), *a = chunk.activations(l).panel(j);
      double sums[width] = {}, norms[width] = {};
      for (Index r = 0; r < net.layers[l].outputs; ++r)
        for (Index q = 0; q < width; ++q) sums[q] += static_cast<double>(u[r * width + q]);
      for (Index s = 0; s < net.layers[l].inputs; ++s)
        for (Index q = 0; q < width; ++q) {
          const auto x = static_cast<double>(a[s * width + q]);
          norms[q] += x * x;
        }
      for (Index q = 0; q < width; ++q)
        value[q] += sums[q] * (norms[q] + (net.layers[l].has_bias ? 1.0 : 0.0));
    }
  });
}

#define NATGRAD_INSTANTIATE(T)                                                                \
  template class UnitCurvature<T>;                                                            \
  template void add_diagonal(                                                                 \
      const Linearization<T>&, const ChunkView<T>&, const std::vector<Panels<T>>&, bool, T*); \
  template void add_traces(                                                                   \
      const Linearization<T>&, const ChunkView<T>&, const std::vector<Panels<T>>&, double*);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
