// A dense feed-forward net:
//
//   s_l = W_l a_{l-1} + b_l,   a_l = phi_l(s_l),   a_0 = x,   z = a_L
#pragma once

#include <functional>
#include <vector>

#include "linalg/dense.hpp"
#include "net/activation.hpp"

namespace natgrad {

struct Layer {
  // n, the columns of [W_l b_l]: inputs, and the constant 1 if there is a bias.
  Index augmented_inputs() const { return inputs + (has_bias ? 1 : 0); }

  Index inputs, outputs;
  Activation activation;
  bool has_bias;
  // Places of W_l (outputs x inputs, row-major) and b_l in the flat parameters.
  Index weight_offset, bias_offset;
};

struct Architecture {
  // sizes d_0 .. d_L, one activation and one flag per layer; throws std::invalid_argument.
  Architecture(const std::vector<Index>& sizes,
               const std::vector<Activation>& activations,
               const std::vector<bool>& biases);
  Index num_inputs() const { return layers.front().inputs; }
  Index num_outputs() const { return layers.back().outputs; }

  std::vector<Layer> layers;
  Index num_params = 0;
  Index max_width = 0;  // of the layers 0 .. L
};

// W_l, or V_l, in a parameter vector.
template <class T>
RowMajor<T> weight_matrix(const T* params, const Layer& layer) {
  return {params + layer.weight_offset, layer.outputs, layer.inputs, layer.inputs};
}

// Where a layer puts its results for one tile, (d_l x cases): a_l, and phi'_l and phi''_l unless
// their data is null.
template <class T>
struct LayerTile {
  PanelView<T> output, derivative = {}, second = {};
};

// a_l = phi_l(W_l a_{l-1} + b_l) of one tile. Cost 2 d_l d_{l-1} flops a case.
template <class T>
void forward_layer(const Layer& layer,
                   const T* theta,
                   PanelView<const T> input,
                   const LayerTile<T>& to);

template <class T>
inline constexpr Index max_tile_panels = 128 / Tile<T>::width;

// Cases per tile, in panels: as large as allowed, since every tile reads the weight matrices once,
// with as many tiles for each thread.
template <class T>
Index choose_tile_panels(Index num_panels, int num_threads);

// Work on the outputs (C x cases) of one tile, panels [first, first + tile.count) of the batch.
// Called from several threads at once, for different tiles.
template <class T>
using TileFunction = std::function<void(Index vector, Index first, PanelView<T> tile)>;

// Z = net(X), nothing kept: f(0, first, z tile) for every tile. theta (P,), X row-major (N x d_0).
// Cost 2 N P flops; memory O(max_width) per thread.
template <class T>
void evaluate(const Architecture& net,
              const T* theta,
              const T* x,
              Index num_cases,
              int num_threads,
              const TileFunction<T>& f);

// Z = net(X), row-major (N x C).
template <class T>
void predict(
    const Architecture& net, const T* theta, const T* x, Index num_cases, int num_threads, T* z);

}  // namespace natgrad
