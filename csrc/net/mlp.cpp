#include "net/mlp.hpp"

#include <algorithm>

#include "base/parallel.hpp"

namespace natgrad {

template <class T>
Index choose_tile_panels(Index num_panels, int num_threads) {
  const auto divide_up = [](Index a, Index b) { return (a + b - 1) / b; };
  const Index rounds = divide_up(divide_up(num_panels, max_tile_panels<T>), num_threads);
  return std::max<Index>(1, divide_up(num_panels, rounds * num_threads));
}

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
void forward_layer(const Layer& layer,
                   const T* theta,
                   PanelView<const T> input,
                   const LayerTile<T>& to) {
  ProductOptions<T> options;
  if (layer.has_bias) options.bias = theta + layer.bias_offset;
  multiply<T>(weight_matrix(theta, layer), input, to.output, options);
  if (layer.activation == Activation::identity) return;
  for (Index j = 0; j < to.output.count; ++j)
    activate<T>(layer.activation,
                layer.outputs * Tile<T>::width,
                to.output.panel(j),
                to.derivative.data ? to.derivative.panel(j) : nullptr,
                to.second.data ? to.second.panel(j) : nullptr);
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
  const Index tile_panels = choose_tile_panels<T>(num_panels, num_threads);
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
      forward_layer<T>(layer, theta, a, {next});
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

#define NATGRAD_INSTANTIATE(T)                                                                  \
  template Index choose_tile_panels<T>(Index, int);                                             \
  template void forward_layer(const Layer&, const T*, PanelView<const T>, const LayerTile<T>&); \
  template void evaluate(                                                                       \
      const Architecture&, const T*, const T*, Index, int, const TileFunction<T>&);             \
  template void predict(const Architecture&, const T*, const T*, Index, int, T*);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
