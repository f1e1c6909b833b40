// A dense feed-forward net and its linearisation at one point, over one batch.
//
//   s_l = W_l a_{l-1} + b_l,   a_l = phi_l(s_l),   a_0 = x,   z = a_L
//   R s_l = V_l a_{l-1} + W_l R a_{l-1} + v_l,   R a_l = phi'_l . R s_l,   R a_0 = 0,   J v = R z
//   u_l = phi'_l . W_{l+1}' u_{l+1},   u_L = phi'_L . u
//   (J'u)_{W_l} = sum over cases of u_l a_{l-1}',   (J'u)_{b_l} = sum over cases of u_l
#pragma once

#include <algorithm>
#include <functional>
#include <mutex>
#include <vector>

#include "activation.hpp"
#include "dense.hpp"

namespace natgrad {

struct Layer {
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

// Keeps, at fixed parameters and batch, what every product with the Jacobian J (N C x P) needs: the
// weights and their transposes, activations in both layouts, phi'. Products allocate nothing after
// reserve(). Products of one object from several threads wait for each other.
template <class T>
class Linearization {
 public:
  Linearization(
      const Architecture& net, const T* theta, const T* x, Index num_cases, int num_threads);

  const Architecture& net() const { return net_; }
  Index num_cases() const { return num_cases_; }
  int num_threads() const { return num_threads_; }
  PanelView<const T> outputs() const { return activations_.back().view(); }  // Z (C x N)
  // Makes scratch for blocks of `num_vectors`; what does not fit goes through in several passes.
  void reserve(Index num_vectors);

  // J v_k as row-major (K x N x C);  v (K x P).
  void jvp(const T* v, Index num_vectors, T* jv);
  // J'u_k (K x P);  u row-major (K x N x C).
  void vjp(const T* u, Index num_vectors, T* out);

  // f gets the tiles of J v_k; v (K x P).   4 N P flops each, 2 N P in the first layer.
  void push_forward(const T* v, Index num_vectors, const TileFunction<T>& f);
  // f gets the tile of J v and of J w of equal cases.
  void push_forward_pair(
      const T* v,
      const T* w,
      const std::function<void(Index first, PanelView<T> jv, PanelView<T> jw)>& f);
  // out_k = J'u_k; f writes the tiles of u_k, zero in columns past N. out (K x P); 4 N P flops each.
  void pull_back(const TileFunction<T>& f, Index num_vectors, T* out);
  // out_k = J' f(J v_k) + shift v_k; f works in place and leaves zero in columns past N.
  // v, out (K x P); 8 N P flops each, 4 N P in the first layer.
  void multiply_gauss_newton(
      const T* v, Index num_vectors, const TileFunction<T>& f, double shift, T* out);

 private:
  struct OuterTask {
    std::size_t layer;
    Index row_begin, row_end;
  };

  Index num_panels() const { return Panels<T>::count_for(num_cases_); }
  Index num_tiles() const { return (num_panels() + tile_panels_ - 1) / tile_panels_; }
  Index tile_count(Index first) const { return std::min(tile_panels_, num_panels() - first); }
  void reserve_scratch();
  void reserve_deltas(Index num_vectors);
  void copy_weights(const T* theta);
  void forward_tile(const T* theta, const T* x, Index first);
  PanelView<T> tangent_tile(const T* v, Index first, int thread, int pair);
  template <class Seed>
  void backward_tile(std::vector<Panels<T>>& deltas, Index first, const Seed& seed);
  void outer_products(Index num_vectors, const T* v, double shift, T* out);
  // Vectors that go through in one pass, out of `num_vectors`.
  Index pass_size(Index num_vectors) const;

  Architecture net_;
  Index num_cases_;
  int num_threads_;
  int work_threads_;  // 1 when the work is too small to share
  Index tile_panels_;

  struct Weights {
    Weights() = default;
    Weights(Index rows, Index cols);
    Index ld = 0;  // rows an odd number of cache lines apart
    Buffer<T> data;
  };
  // Layer l + 1 of the equations above is element l of these.
  std::vector<Weights> weights_;        // W_l, (d_l x d_{l-1}), from the second layer on
  std::vector<Weights> transposed_;     // W_l', (d_{l-1} x d_l), from the second layer on
  std::vector<Panels<T>> activations_;  // a_0 .. a_L, (d_l x N); one more than layers
  std::vector<Panels<T>> derivatives_;  // phi'_l, (d_l x N); empty where phi is the identity
  std::vector<Panels<T>> features_;  // a_0 .. a_{L-1} again, as panels of features, (N x d_{l-1})
  std::vector<OuterTask> outer_tasks_;

  std::mutex mutex_;                            // guards what follows
  std::vector<Buffer<T>> scratch_;              // per thread: 4 x (max_width x tile)
  std::vector<std::vector<Panels<T>>> deltas_;  // [vector of a pass][layer]: u_l, (d_l x N)
};

}  // namespace natgrad
