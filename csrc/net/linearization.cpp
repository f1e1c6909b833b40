#include "net/linearization.hpp"

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// Vectors in one pass, out of `num_vectors`, whose deltas take `bytes` each: 64 MiB, and passes of
// equal length.
Index choose_pass_size(Index num_vectors, double bytes) {
  constexpr double block_bytes = 64 << 20;
  const Index most = std::clamp<Index>(static_cast<Index>(block_bytes / bytes), 1, num_vectors);
  const Index passes = num_vectors / most + (num_vectors % most != 0 ? 1 : 0);
  return num_vectors / passes + (num_vectors % passes != 0 ? 1 : 0);
}

// Rows of a weight matrix in one task of the outer products: about a sixteenth of all, whole
// register tiles.
Index task_rows(Index num_params, Index inputs, Index tile_rows) {
  const Index rows = num_params / (16 * inputs);
  return std::clamp<Index>(
      (rows + tile_rows - 1) / tile_rows * tile_rows, tile_rows, rows_per_task);
}

double sweep_flops(const Architecture& net, double num_cases) {
  return 2.0 * num_cases * static_cast<double>(net.num_params);
}

}  // namespace

template <class T>
Index Linearization<T>::choose_chunk_panels(Index num_cases, Index chunk_size) {
  constexpr Index block = Tile<T>::depth / Tile<T>::width;  // in panels
  const Index all = Panels<T>::count_for(num_cases), wanted = Panels<T>::count_for(chunk_size);
  if (chunk_size <= 0 || wanted >= all) return all;
  return std::min(all, (wanted + block - 1) / block * block);
}

template <class T>
Linearization<T>::Linearization(const Architecture& net,
                                const T* theta,
                                const T* x,
                                Index num_cases,
                                const LinearizationOptions& options)
    : net_(net),
      num_cases_(num_cases),
      options_(options),
      chunk_panels_(choose_chunk_panels(num_cases, options.chunk_size)),
      theta_(arena_.take(net.num_params)),
      x_(x) {
  const Index filled = chunk_panels_ * Tile<T>::width;
  work_threads_ =
      sweep_flops(net, static_cast<double>(filled)) < serial_flops ? 1 : options.num_threads;
  tile_panels_ = choose_tile_panels<T>(chunk_panels_, work_threads_);
  largest_tile_ = std::min(chunk_panels_, max_tile_panels<T>);
  transposed_.resize(net_.layers.size());
  activations_.emplace_back(net_.num_inputs(), filled, arena_);
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const bool curved = layer.activation != Activation::identity;
    activations_.emplace_back(layer.outputs, filled, arena_);
    derivatives_.push_back(curved ? Panels<T>(layer.outputs, filled, arena_) : Panels<T>());
    seconds_.push_back(curved && options.second_derivatives
                           ? Panels<T>(layer.outputs, filled, arena_)
                           : Panels<T>());
    features_.emplace_back(filled, layer.inputs, arena_);
    const Index rows = task_rows(net_.num_params, layer.inputs, Tile<T>::rows);
    for (Index r = 0; r < layer.outputs; r += rows)
      row_tasks_.push_back({l, r, std::min(layer.outputs, r + rows)});
    if (l == 0) continue;
    transposed_[l] = TransposedWeights(layer.inputs, layer.outputs, arena_);
  }
  copy_weights(theta);
  load(0);
}

template <class T>
double Linearization<T>::estimate_bytes(const Architecture& net,
                                        Index num_cases,
                                        Index num_vectors,
                                        const LinearizationOptions& options) {
  const Index chunk = choose_chunk_panels(num_cases, options.chunk_size);
  const double filled = static_cast<double>(chunk) * static_cast<double>(Tile<T>::width);
  const auto panels = [](Index rows, double cols) {
    return Panels<T>::elements_for(static_cast<double>(rows), cols);
  };
  const int threads = sweep_flops(net, filled) < serial_flops ? 1 : options.num_threads;
  double elements = static_cast<double>(net.num_params) + panels(net.num_inputs(), filled);
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    const double kinds = layer.activation == Activation::identity ? 1
                         : options.second_derivatives             ? 3
                                                                  : 2;
    elements += kinds * panels(layer.outputs, filled);
    elements += Panels<T>::elements_for(filled, static_cast<double>(layer.inputs));
    if (l > 0)
      elements +=
          static_cast<double>(layer.inputs) * static_cast<double>(padded_stride<T>(layer.outputs));
  }
  const double tile = static_cast<double>(std::min(chunk, max_tile_panels<T>) * Tile<T>::width);
  elements += 4.0 * threads * panels(net.max_width, tile);
  const double one = delta_bytes(net, chunk);
  const Index vectors = num_vectors > 0 ? choose_pass_size(num_vectors, one) : 0;
  return elements * sizeof(T) + static_cast<double>(vectors) * one;
}

template <class T>
Linearization<T>::TransposedWeights::TransposedWeights(Index row_count,
                                                       Index col_count,
                                                       Arena<T>& arena)
    : rows(row_count),
      cols(col_count),
      ld(padded_stride<T>(col_count)),
      data(arena.take(checked_product(rows, ld, "transposed weights"))) {}

template <class T>
void Linearization<T>::load(Index chunk) {
  if (chunk == loaded_) return;
  loaded_ = -1;
  first_ = chunk * chunk_panels_;
  count_ = std::min(chunk_panels_, num_panels() - first_);
  parallel_for(
      num_tiles(), work_threads_, [&](Index tile, int) { forward_tile(tile * tile_panels_); });
  loaded_ = chunk;
}

template <class T>
void Linearization<T>::copy_weights(const T* theta) {
  parallel_for(static_cast<Index>(row_tasks_.size()), work_threads_, [&](Index i, int) {
    const RowTask& task = row_tasks_[static_cast<std::size_t>(i)];
    const Layer& layer = net_.layers[task.layer];
    const Index first = layer.weight_offset + task.begin * layer.inputs;
    const Index rows = task.end - task.begin;
    std::copy_n(theta + first, rows * layer.inputs, theta_.data() + first);
    if (layer.has_bias) {
      const Index bias = layer.bias_offset + task.begin;
      std::copy_n(theta + bias, rows, theta_.data() + bias);
    }
    if (task.layer == 0) return;
    TransposedWeights& w = transposed_[task.layer];
    transpose(theta + first, rows, layer.inputs, layer.inputs, w.data.data() + task.begin, w.ld);
  });
}

template <class T>
void Linearization<T>::forward_tile(Index first) {
  const Index count = tile_count(first), width = Tile<T>::width, row = first_ * width;
  const Index d = net_.num_inputs(), rest = num_cases_ - row;
  const T* theta = theta_.data();
  pack_cases(x_ + row * d, rest, d, first, count, Fill::last_case, activations_[0].view());
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const PanelView<const T> input = activations_[l].view();
    transpose_panels(input, first, count, features_[l].view());
    const auto tile = [&](Panels<T>& panels) {
      return panels.empty() ? PanelView<T>{} : panels.view().slice(first, count);
    };
    forward_layer<T>(layer,
                     theta,
                     input.slice(first, count),
                     {tile(activations_[l + 1]), tile(derivatives_[l]), tile(seconds_[l])});
  }
}

template <class T>
double Linearization<T>::delta_bytes(const Architecture& net, Index panels) {
  double bytes = 0;
  for (const Layer& layer : net.layers)
    bytes += static_cast<double>(Panels<T>::stride_for(layer.outputs)) *
             static_cast<double>(panels) * sizeof(T);
  return bytes;
}

template <class T>
Index Linearization<T>::pass_size(Index num_vectors) const {
  return choose_pass_size(num_vectors, delta_bytes(net_, chunk_panels_));
}

template <class T>
void Linearization<T>::reserve_scratch() {
  const Index size = 4 * largest_tile_ * Panels<T>::stride_for(net_.max_width);
  while (static_cast<int>(scratch_.size()) < work_threads_) scratch_.push_back(arena_.take(size));
}

template <class T>
void Linearization<T>::reserve_deltas(Index num_vectors) {
  while (static_cast<Index>(deltas_.size()) < pass_size(num_vectors)) {
    std::vector<Panels<T>> deltas;
    for (const Layer& layer : net_.layers)
      deltas.emplace_back(layer.outputs, chunk_panels_ * Tile<T>::width, arena_);
    deltas_.push_back(std::move(deltas));
  }
}

template <class T>
Chunk<T> Linearization<T>::hold(Index chunk) {
  std::unique_lock lock(mutex_);
  load(chunk);
  return {ChunkView<T>(*this), std::move(lock)};
}

template class Linearization<float>;
template class Linearization<double>;

}  // namespace natgrad
