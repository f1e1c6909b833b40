// The linearisation of a net at one point, over one batch.
//
//   R s_l = V_l a_{l-1} + W_l R a_{l-1} + v_l,   R a_l = phi'_l . R s_l,   R a_0 = 0,   J v = R z
//   u_l = phi'_l . W_{l+1}' u_{l+1},   u_L = phi'_L . u
//   (J'u)_{W_l} = sum over cases of u_l a_{l-1}',   (J'u)_{b_l} = sum over cases of u_l
//
// Cases go through in chunks: only the activations of one chunk are alive. A chunk is a whole
// number of blocks of Tile::depth cases, after which sums over cases are added up, so the results
// have the same bits for any chunk size.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "base/mutex.hpp"
#include "net/mlp.hpp"

namespace natgrad {

// Reads outputs z (C x cases) of the batch from panel `first` on.
template <class T>
using OutputReader = std::function<void(Index first, PanelView<const T> z)>;

// What a pass does in the space of outputs. prepare() is called before the tiles of every chunk, on
// the calling thread: first is the chunk's first panel in the batch, z (C x cases) its outputs.
template <class T>
struct OutputPass {
  OutputReader<T> prepare;
  TileFunction<T> work;
};

template <class T>
class Linearization;

// What is kept of the cases of one chunk. Whoever has a view has the chunk: passes hand one to their
// callbacks, anybody else gets it with a lock (Linearization::hold).
template <class T>
class ChunkView {
 public:
  Index first() const;                                  // in panels of the batch
  Index count() const;                                  // in panels
  PanelView<const T> activations(std::size_t l) const;  // a_l, (d_l x cases), l = 0 .. L
  // phi'_l and phi''_l, (d_l x cases), data null where phi is the identity; l = 0 is layer 1.
  PanelView<const T> derivatives(std::size_t l) const;
  PanelView<const T> second_derivatives(std::size_t l) const;
  // a_l' as panels of features, (cases x d_l).
  PanelView<const T> features(std::size_t l) const;
  // next = (V_l a_{l-1} + v_l) . scale for the panels [first, first + next.count); l = 0 is layer 1.
  void multiply_params(
      std::size_t l, const T* v, Index first, PanelView<const T> scale, PanelView<T> next) const;
  Index tile_panels() const;
  Index num_tiles() const;
  Index tile_count(Index first) const;

 private:
  friend class Linearization<T>;
  explicit ChunkView(const Linearization<T>& lin) : lin_(&lin) {}
  const Linearization<T>* lin_;
};

// A chunk that stays loaded as long as this lives: passes of other threads wait.
template <class T>
class Chunk : public ChunkView<T> {
 private:
  friend class Linearization<T>;
  Chunk(const ChunkView<T>& view, std::unique_lock<Mutex> lock)
      : ChunkView<T>(view), lock_(std::move(lock)) {}
  std::unique_lock<Mutex> lock_;
};

// u_l (d_l x cases of the chunk) for the vectors [first_vector, first_vector + num_vectors).
template <class T>
struct Deltas {
  ChunkView<T> chunk;
  const std::vector<std::vector<Panels<T>>>& panels;  // [vector][layer]
  Index first_vector, num_vectors, count;
  PanelView<const T> operator()(Index vector, std::size_t layer) const {
    return panels[static_cast<std::size_t>(vector)][layer].view().slice(0, count);
  }
};

// Rows of the weight matrix of a layer (from 0) that one thread sums up over the cases.
struct RowTask {
  std::size_t layer;
  Index begin, end;
};

struct LinearizationOptions {
  int num_threads = 1;
  Index chunk_size = 0;  // cases, rounded up to whole blocks; 0: all
  bool second_derivatives = false;
};

// Keeps, at fixed parameters and batch, what every product with the Jacobian J (N C x P) needs: the
// weights and their transposes, activations in both layouts, phi'. With several chunks these are
// computed anew for every chunk of every product, and x must outlive the object. Products allocate
// nothing after reserve(). Products of one object from several threads wait for each other.
template <class T>
class Linearization {
 public:
  Linearization(const Architecture& net,
                const T* theta,
                const T* x,
                Index num_cases,
                const LinearizationOptions& options);

  // Bytes that the constructor and reserve(num_vectors) allocate.
  static double estimate_bytes(const Architecture& net,
                               Index num_cases,
                               Index num_vectors,
                               const LinearizationOptions& options);

  // Panels of one chunk, for a chunk size in cases.
  static Index choose_chunk_panels(Index num_cases, Index chunk_size);

  const Architecture& net() const { return net_; }
  Index num_cases() const { return num_cases_; }
  Index num_panels() const { return Panels<T>::count_for(num_cases_); }
  int num_threads() const { return options_.num_threads; }
  int work_threads() const { return work_threads_; }
  const T* theta() const { return theta_.data(); }
  Index chunk_panels() const { return chunk_panels_; }
  Index num_chunks() const { return (num_panels() + chunk_panels_ - 1) / chunk_panels_; }
  // Makes scratch for blocks of `num_vectors`; what does not fit goes through in several passes.
  void reserve(Index num_vectors);

  // J v_k as row-major (K x N x C);  v (K x P).
  void jvp(const T* v, Index num_vectors, T* jv);
  // J'u_k (K x P);  u row-major (K x N x C).
  void vjp(const T* u, Index num_vectors, T* out);

  // pass.work gets the tiles of J v_k; v (K x P).   4 N P flops each, 2 N P in the first layer.
  void push_forward(const T* v, Index num_vectors, const OutputPass<T>& pass);
  // f gets the tile of J v and of J w of equal cases.
  void push_forward_pair(
      const T* v,
      const T* w,
      const OutputReader<T>& prepare,
      const std::function<void(Index first, PanelView<T> jv, PanelView<T> jw)>& f);
  // out_k = [out_k] + J'u_k, with a start if `add`; pass.work writes the tiles of u_k, zero in
  // columns past N. out (K x P); 4 N P flops each.
  void pull_back(const OutputPass<T>& pass, Index num_vectors, T* out, bool add = false);
  // first = J'u of the first `num_cases` cases, a whole number of panels, and out = J'u of all, for
  // one vector.
  void pull_back_parts(const OutputPass<T>& pass, Index num_cases, T* first, T* out);
  // out_k = J' f(J v_k) + shift v_k for f = pass.work, which works in place and leaves zero in
  // columns past N. v, out (K x P); 8 N P flops each, 4 N P in the first layer.
  void multiply_gauss_newton(
      const T* v, Index num_vectors, const OutputPass<T>& pass, double shift, T* out);
  // f gets the tiles of the outputs.
  void visit_outputs(const OutputReader<T>& prepare, const OutputReader<T>& f);
  // f(chunk) for one chunk after the other, of the first `num_cases` cases; 0: all.
  void visit_chunks(const OutputReader<T>& prepare,
                    const std::function<void(const ChunkView<T>&)>& f,
                    Index num_cases = 0);
  // The deltas alone: pass.work writes u_k as in pull_back; consume() is called for every chunk and
  // as many vectors as fit, in order, on the calling thread, with the chunk loaded.
  // 2 N P flops each, none in the first layer. Of the first `num_cases` cases, which fill up their
  // last panel; 0: all.
  void sweep_backward(const OutputPass<T>& pass,
                      Index num_vectors,
                      const std::function<void(const Deltas<T>&)>& consume,
                      Index num_cases = 0);
  // J J'u without a vector of length P: seed.work writes u, finish.work gets the tiles of J J'u.
  //   R s_l = U_l (A_{l-1}'A_{l-1} + 1) + W_l R a_{l-1},   U_l (d_l x N) the deltas of u,
  // for the layer Grams A'A + 1 (N x N), in panels; deltas (d_l x N) is scratch where the batch has
  // several chunks. 4 N P flops without the first layer, and 2 N^2 d_l in every layer.
  void multiply_kernel(const OutputPass<T>& seed,
                       const std::vector<Panels<T>>& grams,
                       std::vector<Panels<T>>& deltas,
                       const OutputPass<T>& finish);

  // A chunk, loaded and kept from other threads. Passes of this object wait until it is gone.
  Chunk<T> hold(Index chunk);
  RowMajor<T> weights(std::size_t l) const { return weight_matrix(theta_.data(), net_.layers[l]); }
  // next = (next + W_l r) . scale
  void add_propagated(std::size_t l,
                      PanelView<const T> r,
                      PanelView<const T> scale,
                      PanelView<T> next) const;
  RowMajor<T> transposed_weights(std::size_t l) const { return transposed_[l].view(); }
  const std::vector<RowTask>& row_tasks() const { return row_tasks_; }
  Index tile_panels() const { return tile_panels_; }

 private:
  friend class ChunkView<T>;
  struct TransposedWeights {
    TransposedWeights() = default;
    TransposedWeights(Index rows, Index cols, Arena<T>& arena);
    RowMajor<T> view() const { return {data.data(), rows, cols, ld}; }
    Index rows = 0, cols = 0;
    Index ld = 0;  // rows an odd number of cache lines apart
    Buffer<T> data;
  };

  PanelView<const T> slice(const Panels<T>& panels) const {
    return panels.empty() ? PanelView<const T>{} : panels.view().slice(0, count_);
  }
  // With mutex_ held:
  void load(Index chunk);
  PanelView<const T> activations(std::size_t l) const {
    return activations_[l].view().slice(0, count_);
  }
  PanelView<const T> derivatives(std::size_t l) const { return slice(derivatives_[l]); }
  PanelView<const T> features(std::size_t l) const { return features_[l].view(); }
  Index num_tiles() const { return (count_ + tile_panels_ - 1) / tile_panels_; }
  Index tile_count(Index first) const { return std::min(tile_panels_, count_ - first); }
  void reserve_scratch();
  void reserve_deltas(Index num_vectors);
  void copy_weights(const T* theta);
  void forward_tile(Index first);
  template <class Source>
  PanelView<T> tangent_tile(const Source& source, Index first, Index count, int thread, int pair);
  PanelView<T> tangent_of_params(const T* v, Index first, Index count, int thread, int pair);
  template <class Seed>
  void backward_tile(std::vector<Panels<T>>& deltas, Index first, Index count, const Seed& seed);
  // f(vector, first, count, thread) for the tiles of the loaded chunk, for each of `num_vectors`.
  template <class F>
  void each_tile(Index num_vectors, const F& f);
  void outer_products(Index num_vectors, const T* v, double shift, bool add, T* out);
  // out = [out] + sums over the cases of panels [first, end) of the loaded chunk, of one vector.
  void add_outer_products(Index first, Index end, bool add, T* out);
  void outer_product(
      const RowTask& task, PanelView<const T> u, const T* v, double shift, bool add, T* out) const;
  template <class F>
  void each_chunk(const OutputPass<T>& pass, const F& f, Index num_cases = 0);
  // Vectors that go through in one pass, out of `num_vectors`.
  Index pass_size(Index num_vectors) const;
  static double delta_bytes(const Architecture& net, Index panels);

  Architecture net_;
  Index num_cases_;
  LinearizationOptions options_;
  int work_threads_;  // 1 when the work is too small to share
  Index chunk_panels_;
  Index tile_panels_;   // of passes with one vector
  Index largest_tile_;  // of passes with many, in panels
  Arena<T> arena_;      // of everything below
  Buffer<T> theta_;
  const T* x_;  // (N x d_0), read while loading

  // Layer l + 1 of the equations above is element l of these.
  std::vector<TransposedWeights> transposed_;  // W_l', (d_{l-1} x d_l), from the second layer on
  std::vector<RowTask> row_tasks_;

  Mutex mutex_;  // guards what follows
  Index loaded_ = -1, first_ = 0, count_ = 0;
  std::vector<Panels<T>> activations_;  // a_0 .. a_L, (d_l x cases); one more than layers
  std::vector<Panels<T>> derivatives_;  // phi'_l, (d_l x cases); empty where phi is the identity
  std::vector<Panels<T>> seconds_;      // phi''_l likewise; empty unless asked for
  std::vector<Panels<T>> features_;     // a_0 .. a_{L-1} as panels of features, (cases x d_{l-1})
  std::vector<Buffer<T>> scratch_;      // per thread: 4 x (max_width x largest tile)
  std::vector<std::vector<Panels<T>>> deltas_;  // [vector of a pass][layer]: u_l, (d_l x cases)
};

template <class T>
Index ChunkView<T>::first() const {
  return lin_->first_;
}
template <class T>
Index ChunkView<T>::count() const {
  return lin_->count_;
}
template <class T>
PanelView<const T> ChunkView<T>::activations(std::size_t l) const {
  return lin_->activations(l);
}
template <class T>
PanelView<const T> ChunkView<T>::derivatives(std::size_t l) const {
  return lin_->derivatives(l);
}
template <class T>
PanelView<const T> ChunkView<T>::second_derivatives(std::size_t l) const {
  return lin_->slice(lin_->seconds_[l]);
}
template <class T>
PanelView<const T> ChunkView<T>::features(std::size_t l) const {
  return lin_->features(l);
}
template <class T>
Index ChunkView<T>::tile_panels() const {
  return lin_->tile_panels_;
}
template <class T>
Index ChunkView<T>::num_tiles() const {
  return lin_->num_tiles();
}
template <class T>
Index ChunkView<T>::tile_count(Index first) const {
  return lin_->tile_count(first);
}

}  // namespace natgrad
