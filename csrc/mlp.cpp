#include "mlp.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace natgrad {
namespace {

// Below this many flops a second thread costs more than it brings.
constexpr double serial_flops = 1e6;
// Scratch for blocks of vectors, in bytes.
constexpr Index block_bytes = Index{64} << 20;

// Row stride of at least `cols` elements, an odd number of cache lines: the rows of a register tile
// then lie in different cache sets for any width.
template <class T>
Index padded_stride(Index cols) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  return ((cols + line - 1) / line | 1) * line;
}

// Cases per tile, in panels: enough tiles for the threads to share them evenly, each large enough
// to read a weight matrix few times.
Index choose_tile_panels(Index num_panels, int num_threads) {
  return std::clamp<Index>(num_panels / (4 * num_threads), 1, 8);
}

// Rows of a weight matrix in one task of the outer products: about a sixteenth of all, whole
// register tiles.
Index task_rows(Index num_params, Index inputs, Index tile_rows) {
  const Index rows = num_params / (16 * inputs);
  return std::clamp<Index>((rows + tile_rows - 1) / tile_rows * tile_rows, tile_rows, 96);
}

}  // namespace

Architecture::Architecture(const std::vector<Index>& sizes,
                           const std::vector<Activation>& activations,
                           const std::vector<bool>& biases) {
  check(sizes.size() >= 2, "sizes must hold at least 2 widths, got ", sizes.size());
  const std::size_t num_layers = sizes.size() - 1;
  check(activations.size() == num_layers,
        "got ",
        activations.size(),
        " activations for ",
        num_layers,
        " layers");
  check(biases.size() == num_layers,
        "got ",
        biases.size(),
        " bias flags for ",
        num_layers,
        " layers");
  for (std::size_t l = 0; l <= num_layers; ++l) {
    check(sizes[l] >= 1, "sizes must be >= 1, got ", sizes[l], " at position ", l);
    max_width = std::max(max_width, sizes[l]);
  }
  for (std::size_t l = 0; l < num_layers; ++l) {
    Layer layer{
        sizes[l], sizes[l + 1], activations[l], static_cast<bool>(biases[l]), num_params, 0};
    layer.bias_offset = checked_sum(num_params,
                                    checked_product(sizes[l], sizes[l + 1], "number of parameters"),
                                    "number of parameters");
    num_params =
        checked_sum(layer.bias_offset, layer.has_bias ? layer.outputs : 0, "number of parameters");
    layers.push_back(layer);
  }
}

template <class T>
void evaluate(const Architecture& net,
              const T* theta,
              const T* x,
              Index num_cases,
              int num_threads,
              const TileFunction<T>& f) {
  const Index num_panels = Panels<T>::count_for(num_cases);
  if (2.0 * static_cast<double>(num_cases) * static_cast<double>(net.num_params) < serial_flops)
    num_threads = 1;
  const Index tile_panels = choose_tile_panels(num_panels, num_threads);
  const Index num_tiles = (num_panels + tile_panels - 1) / tile_panels;
  const Index stride = Panels<T>::stride_for(net.max_width);
  std::vector<Buffer<T>> scratch;
  for (int i = 0; i < 2 * num_threads; ++i) scratch.emplace_back(tile_panels * stride);
  parallel_for(num_tiles, num_threads, [&](Index tile, int thread) {
    const Index first = tile * tile_panels, count = std::min(tile_panels, num_panels - first);
    PanelView<T> a{
        scratch[2 * static_cast<std::size_t>(thread)].data(), net.num_inputs(), stride, count};
    PanelView<T> next{scratch[2 * static_cast<std::size_t>(thread) + 1].data(), 0, stride, count};
    const Index row = first * Tile<T>::width;
    pack_cases(x + row * net.num_inputs(),
               num_cases - row,
               net.num_inputs(),
               0,
               count,
               Fill::last_case,
               a);
    for (const Layer& layer : net.layers) {
      next.rows = layer.outputs;
      ProductOptions<T> options;
      if (layer.has_bias) options.bias = theta + layer.bias_offset;
      multiply<T>({theta + layer.weight_offset, layer.outputs, layer.inputs, layer.inputs},
                  a,
                  next,
                  options);
      if (layer.activation != Activation::identity)
        for (Index j = 0; j < count; ++j)
          activate<T>(layer.activation, layer.outputs * Tile<T>::width, next.panel(j), nullptr);
      std::swap(a, next);
    }
    f(0, first, a);
  });
}

template <class T>
void predict(
    const Architecture& net, const T* theta, const T* x, Index num_cases, int num_threads, T* z) {
  evaluate<T>(
      net, theta, x, num_cases, num_threads, [=, &net](Index, Index first, PanelView<T> tile) {
        const Index row = first * Tile<T>::width;
        unpack_cases<T>(tile, num_cases - row, z + row * net.num_outputs());
      });
}

template <class T>
Linearization<T>::Linearization(
    const Architecture& net, const T* theta, const T* x, Index num_cases, int num_threads)
    : net_(net), num_cases_(num_cases), num_threads_(num_threads) {
  const double flops = 2.0 * static_cast<double>(num_cases) * static_cast<double>(net.num_params);
  work_threads_ = flops < serial_flops ? 1 : num_threads;
  tile_panels_ = choose_tile_panels(num_panels(), work_threads_);
  const Index filled = num_panels() * Tile<T>::width;
  weights_.resize(net_.layers.size());
  transposed_.resize(net_.layers.size());
  activations_.emplace_back(net_.num_inputs(), filled);
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    activations_.emplace_back(layer.outputs, filled);
    derivatives_.emplace_back();
    if (layer.activation != Activation::identity)
      derivatives_.back() = Panels<T>(layer.outputs, filled);
    features_.emplace_back(filled, layer.inputs);
    const Index rows = task_rows(net_.num_params, layer.inputs, Tile<T>::rows);
    for (Index r = 0; r < layer.outputs; r += rows)
      outer_tasks_.push_back({l, r, std::min(layer.outputs, r + rows)});
    if (l == 0) continue;
    weights_[l] = Weights(layer.outputs, layer.inputs);
    transposed_[l] = Weights(layer.inputs, layer.outputs);
  }
  copy_weights(theta);
  parallel_for(num_tiles(), work_threads_, [&](Index tile, int) {
    forward_tile(theta, x, tile * tile_panels_);
  });
}

template <class T>
Linearization<T>::Weights::Weights(Index rows, Index cols)
    : ld(padded_stride<T>(cols)), data(checked_product(rows, ld, "weight copy")) {}

template <class T>
void Linearization<T>::copy_weights(const T* theta) {
  parallel_for(static_cast<Index>(outer_tasks_.size()), work_threads_, [&](Index i, int) {
    const OuterTask& task = outer_tasks_[static_cast<std::size_t>(i)];
    if (task.layer == 0) return;
    const Layer& layer = net_.layers[task.layer];
    const T* rows = theta + layer.weight_offset + task.row_begin * layer.inputs;
    Weights& w = weights_[task.layer];
    Weights& wt = transposed_[task.layer];
    for (Index r = task.row_begin; r < task.row_end; ++r)
      std::copy_n(
          theta + layer.weight_offset + r * layer.inputs, layer.inputs, w.data.data() + r * w.ld);
    transpose(rows,
              task.row_end - task.row_begin,
              layer.inputs,
              layer.inputs,
              wt.data.data() + task.row_begin,
              wt.ld);
  });
}

template <class T>
void Linearization<T>::forward_tile(const T* theta, const T* x, Index first) {
  const Index count = tile_count(first), width = Tile<T>::width;
  pack_cases(
      x, num_cases_, net_.num_inputs(), first, count, Fill::last_case, activations_[0].view());
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const PanelView<const T> input = activations_[l].view();
    const PanelView<T> output = activations_[l + 1].view().slice(first, count);
    transpose_panels(input, first, count, features_[l].view());
    ProductOptions<T> options;
    if (layer.has_bias) options.bias = theta + layer.bias_offset;
    multiply<T>({theta + layer.weight_offset, layer.outputs, layer.inputs, layer.inputs},
                input.slice(first, count),
                output,
                options);
    if (layer.activation == Activation::identity) continue;
    const PanelView<T> derivative = derivatives_[l].view().slice(first, count);
    for (Index j = 0; j < count; ++j)
      activate(layer.activation, layer.outputs * width, output.panel(j), derivative.panel(j));
  }
}

template <class T>
Index Linearization<T>::pass_size(Index num_vectors) const {
  Index bytes = 0;
  for (const Layer& layer : net_.layers)
    bytes += Panels<T>::stride_for(layer.outputs) * num_panels() * static_cast<Index>(sizeof(T));
  return std::clamp<Index>(block_bytes / bytes, 1, num_vectors);
}

template <class T>
void Linearization<T>::reserve(Index num_vectors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserve_scratch();
  reserve_deltas(num_vectors);
}

template <class T>
void Linearization<T>::reserve_scratch() {
  const Index size = 4 * tile_panels_ * Panels<T>::stride_for(net_.max_width);
  while (static_cast<int>(scratch_.size()) < work_threads_) scratch_.emplace_back(size);
}

template <class T>
void Linearization<T>::reserve_deltas(Index num_vectors) {
  while (static_cast<Index>(deltas_.size()) < pass_size(num_vectors)) {
    deltas_.emplace_back();
    for (const Layer& layer : net_.layers)
      deltas_.back().emplace_back(layer.outputs, num_panels() * Tile<T>::width);
  }
}

// R z of one tile; the two buffers of `pair` (0 or 1) of this thread take turns as input and output
// of a layer.
template <class T>
PanelView<T> Linearization<T>::tangent_tile(const T* v, Index first, int thread, int pair) {
  const Index count = tile_count(first), stride = Panels<T>::stride_for(net_.max_width);
  T* buffer = scratch_[static_cast<std::size_t>(thread)].data() + 2 * pair * tile_panels_ * stride;
  PanelView<T> r{buffer, 0, stride, count}, next{buffer + tile_panels_ * stride, 0, stride, count};
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    next.rows = layer.outputs;
    ProductOptions<T> from_v, from_r;
    if (layer.has_bias) from_v.bias = v + layer.bias_offset;
    from_r.accumulate = true;
    PanelView<const T>& scale = l == 0 ? from_v.scale : from_r.scale;
    if (!derivatives_[l].empty()) scale = derivatives_[l].view().slice(first, count);
    multiply<T>({v + layer.weight_offset, layer.outputs, layer.inputs, layer.inputs},
                activations_[l].view().slice(first, count),
                next,
                from_v);
    if (l > 0)
      multiply<T>(
          {weights_[l].data.data(), layer.outputs, layer.inputs, weights_[l].ld}, r, next, from_r);
    std::swap(r, next);
  }
  return r;
}

// The deltas of one tile, from the outputs, where seed(u) writes u, down to the first layer.
template <class T>
template <class Seed>
void Linearization<T>::backward_tile(std::vector<Panels<T>>& deltas,
                                     Index first,
                                     const Seed& seed) {
  const Index count = tile_count(first), width = Tile<T>::width;
  PanelView<T> u = deltas.back().view().slice(first, count);
  seed(u);
  if (!derivatives_.back().empty()) {
    const PanelView<const T> derivative = derivatives_.back().view().slice(first, count);
    for (Index j = 0; j < count; ++j)
      for (Index i = 0; i < u.rows * width; ++i) u.panel(j)[i] *= derivative.panel(j)[i];
  }
  for (std::size_t l = net_.layers.size() - 1; l > 0; --l) {
    const Layer& layer = net_.layers[l];
    const PanelView<T> lower = deltas[l - 1].view().slice(first, count);
    ProductOptions<T> options;
    if (!derivatives_[l - 1].empty())
      options.scale = derivatives_[l - 1].view().slice(first, count);
    multiply<T>({transposed_[l].data.data(), layer.inputs, layer.outputs, transposed_[l].ld},
                u,
                lower,
                options);
    u = lower;
  }
}

template <class T>
void Linearization<T>::outer_products(Index num_vectors, const T* v, double shift, T* out) {
  const Index num_tasks = static_cast<Index>(outer_tasks_.size());
  parallel_for(num_vectors * num_tasks, work_threads_, [&](Index i, int) {
    const OuterTask& task = outer_tasks_[static_cast<std::size_t>(i % num_tasks)];
    const Layer& layer = net_.layers[task.layer];
    const Index k = i / num_tasks;
    const PanelView<const T> u = deltas_[static_cast<std::size_t>(k)][task.layer].view();
    T* out_k = out + k * net_.num_params;
    multiply_outer<T>(u,
                      features_[task.layer].view(),
                      task.row_begin,
                      task.row_end,
                      layer.inputs,
                      false,
                      out_k + layer.weight_offset);
    if (layer.has_bias)
      sum_cases(u, task.row_begin, task.row_end, false, out_k + layer.bias_offset);
    if (shift == 0.0) return;
    const T* v_k = v + k * net_.num_params;
    const auto add_shift = [&](Index begin, Index end) {
      for (Index p = begin; p < end; ++p) out_k[p] += static_cast<T>(shift) * v_k[p];
    };
    add_shift(layer.weight_offset + task.row_begin * layer.inputs,
              layer.weight_offset + task.row_end * layer.inputs);
    if (layer.has_bias)
      add_shift(layer.bias_offset + task.row_begin, layer.bias_offset + task.row_end);
  });
}

template <class T>
void Linearization<T>::push_forward(const T* v, Index num_vectors, const TileFunction<T>& f) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserve_scratch();
  parallel_for(num_vectors * num_tiles(), work_threads_, [&](Index i, int thread) {
    const Index k = i / num_tiles(), first = i % num_tiles() * tile_panels_;
    f(k, first, tangent_tile(v + k * net_.num_params, first, thread, 0));
  });
}

template <class T>
void Linearization<T>::push_forward_pair(
    const T* v,
    const T* w,
    const std::function<void(Index first, PanelView<T> jv, PanelView<T> jw)>& f) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserve_scratch();
  parallel_for(num_tiles(), work_threads_, [&](Index tile, int thread) {
    const Index first = tile * tile_panels_;
    const PanelView<T> jv = tangent_tile(v, first, thread, 0);
    f(first, jv, v == w ? jv : tangent_tile(w, first, thread, 1));
  });
}

template <class T>
void Linearization<T>::jvp(const T* v, Index num_vectors, T* jv) {
  const Index outputs = net_.num_outputs();
  push_forward(v, num_vectors, [=](Index k, Index first, PanelView<T> r) {
    const Index row = first * Tile<T>::width;
    unpack_cases<T>(r, num_cases_ - row, jv + (k * num_cases_ + row) * outputs);
  });
}

template <class T>
void Linearization<T>::vjp(const T* u, Index num_vectors, T* out) {
  const Index outputs = net_.num_outputs();
  const TileFunction<T> seed = [=](Index k, Index first, PanelView<T> tile) {
    const Index row = first * Tile<T>::width;
    pack_cases(u + (k * num_cases_ + row) * outputs,
               num_cases_ - row,
               outputs,
               0,
               tile.count,
               Fill::zero,
               tile);
  };
  pull_back(seed, num_vectors, out);
}

template <class T>
void Linearization<T>::pull_back(const TileFunction<T>& f, Index num_vectors, T* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserve_deltas(num_vectors);
  const Index pass = pass_size(num_vectors);
  for (Index k0 = 0; k0 < num_vectors; k0 += pass) {
    const Index size = std::min(pass, num_vectors - k0);
    parallel_for(size * num_tiles(), work_threads_, [&](Index i, int) {
      const Index k = i / num_tiles(), first = i % num_tiles() * tile_panels_;
      backward_tile(deltas_[static_cast<std::size_t>(k)], first, [&](PanelView<T> u) {
        f(k0 + k, first, u);
      });
    });
    outer_products(size, nullptr, 0.0, out + k0 * net_.num_params);
  }
}

template <class T>
void Linearization<T>::multiply_gauss_newton(
    const T* v, Index num_vectors, const TileFunction<T>& f, double shift, T* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserve_scratch();
  reserve_deltas(num_vectors);
  const Index pass = pass_size(num_vectors);
  for (Index k0 = 0; k0 < num_vectors; k0 += pass) {
    const Index size = std::min(pass, num_vectors - k0);
    const T* v_pass = v + k0 * net_.num_params;
    parallel_for(size * num_tiles(), work_threads_, [&](Index i, int thread) {
      const Index k = i / num_tiles(), first = i % num_tiles() * tile_panels_;
      const PanelView<T> r = tangent_tile(v_pass + k * net_.num_params, first, thread, 0);
      backward_tile(deltas_[static_cast<std::size_t>(k)], first, [&](PanelView<T> u) {
        for (Index j = 0; j < u.count; ++j)
          std::copy_n(r.panel(j), u.rows * Tile<T>::width, u.panel(j));
        f(k0 + k, first, u);
      });
    });
    outer_products(size, v_pass, shift, out + k0 * net_.num_params);
  }
}

#define NATGRAD_INSTANTIATE(T)                                                      \
  template void evaluate(                                                           \
      const Architecture&, const T*, const T*, Index, int, const TileFunction<T>&); \
  template void predict(const Architecture&, const T*, const T*, Index, int, T*);   \
  template class Linearization<T>;
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
