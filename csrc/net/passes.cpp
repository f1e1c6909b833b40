#include "base/parallel.hpp"
#include "net/linearization.hpp"
#include "net/shift.hpp"

namespace natgrad {
namespace {

// Another value for as long as this lives.
template <class V>
class Restored {
 public:
  Restored(V& value, V other) : value_(value), before_(value) { value = other; }
  ~Restored() { value_ = before_; }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  V& value_;
  const V before_;
};

// Lets the system back the pages of uninitialised memory.
template <class T>
void touch_pages(T* data, Index size) {
  constexpr Index page = 4096 / static_cast<Index>(sizeof(T));
  for (Index i = 0; i < size; i += page) data[i] = T(0);
}

}  // namespace

template <class T>
void Linearization<T>::reserve(Index num_vectors) {
  const std::lock_guard lock(mutex_);
  reserve_scratch();
  reserve_deltas(num_vectors);
  // By the threads that will write to them, and not in the first product.
  parallel_for(work_threads_, work_threads_, [&](Index i, int) {
    Buffer<T>& scratch = scratch_[static_cast<std::size_t>(i)];
    touch_pages(scratch.data(), scratch.size());
  });
  each_tile(pass_size(num_vectors), [&](Index k, Index first, Index count, int) {
    for (Panels<T>& u : deltas_[static_cast<std::size_t>(k)]) {
      const PanelView<T> tile = u.view().slice(first, count);
      touch_pages(tile.data, tile.count * tile.stride);
    }
  });
}

template <class T>
void ChunkView<T>::multiply_params(
    std::size_t l, const T* v, Index first, PanelView<const T> scale, PanelView<T> next) const {
  const Layer& layer = lin_->net().layers[l];
  ProductOptions<T> options;
  if (layer.has_bias) options.bias = v + layer.bias_offset;
  options.scale = scale;
  multiply<T>(weight_matrix(v, layer), activations(l).slice(first, next.count), next, options);
}

template <class T>
void Linearization<T>::add_propagated(std::size_t l,
                                      PanelView<const T> r,
                                      PanelView<const T> scale,
                                      PanelView<T> next) const {
  ProductOptions<T> options;
  options.accumulate = true;
  options.scale = scale;
  multiply<T>(weights(l), r, next, options);
}

// R z of one tile. source(l, next, scale) writes (V_l a_{l-1} + v_l) . scale of this tile. The two
// buffers of `pair` (0 or 1) of this thread take turns as input and output of a layer.
template <class T>
template <class Source>
PanelView<T> Linearization<T>::tangent_tile(
    const Source& source, Index first, Index count, int thread, int pair) {
  const Index stride = Panels<T>::stride_for(net_.max_width), size = largest_tile_ * stride;
  T* buffer = scratch_[static_cast<std::size_t>(thread)].data() + 2 * pair * size;
  PanelView<T> r{buffer, 0, stride, count}, next{buffer + size, 0, stride, count};
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    next.rows = layer.outputs;
    PanelView<const T> scale = {};
    if (!derivatives_[l].empty()) scale = derivatives_[l].view().slice(first, count);
    source(l, next, l == 0 ? scale : PanelView<const T>{});
    if (l > 0) add_propagated(l, r, scale, next);
    std::swap(r, next);
  }
  return r;
}

template <class T>
PanelView<T> Linearization<T>::tangent_of_params(
    const T* v, Index first, Index count, int thread, int pair) {
  const auto source = [&](std::size_t l, PanelView<T> next, PanelView<const T> scale) {
    ChunkView<T>(*this).multiply_params(l, v, first, scale, next);
  };
  return tangent_tile(source, first, count, thread, pair);
}

// The deltas of one tile, from the outputs, where seed(u) writes u, down to the first layer.
template <class T>
template <class Seed>
void Linearization<T>::backward_tile(std::vector<Panels<T>>& deltas,
                                     Index first,
                                     Index count,
                                     const Seed& seed) {
  constexpr Index width = Tile<T>::width;
  PanelView<T> u = deltas.back().view().slice(first, count);
  seed(u);
  if (!derivatives_.back().empty()) {
    const PanelView<const T> derivative = derivatives_.back().view().slice(first, count);
    for (Index j = 0; j < count; ++j)
      for (Index i = 0; i < u.rows * width; ++i) u.panel(j)[i] *= derivative.panel(j)[i];
  }
  for (std::size_t l = net_.layers.size() - 1; l > 0; --l) {
    const PanelView<T> lower = deltas[l - 1].view().slice(first, count);
    ProductOptions<T> options;
    if (!derivatives_[l - 1].empty())
      options.scale = derivatives_[l - 1].view().slice(first, count);
    multiply<T>(transposed_[l].view(), u, lower, options);
    u = lower;
  }
}

template <class T>
void Linearization<T>::outer_product(
    const RowTask& task, PanelView<const T> u, const T* v, double shift, bool add, T* out) const {
  const Layer& layer = net_.layers[task.layer];
  multiply_outer<T>(u,
                    features_[task.layer].view(),
                    task.begin,
                    task.end,
                    layer.inputs,
                    add,
                    out + layer.weight_offset);
  if (layer.has_bias) sum_cases(u, task.begin, task.end, add, out + layer.bias_offset);
  if (v && first_ + count_ == num_panels())
    add_shift(layer, task.begin, task.end, {shift, shift}, v, out);
}

// Adds the cases of the loaded chunk, to what is in `out` if that is not the first one or if `add`;
// `shift` v comes with the last chunk.
template <class T>
void Linearization<T>::outer_products(
    Index num_vectors, const T* v, double shift, bool add, T* out) {
  const Index num_tasks = static_cast<Index>(row_tasks_.size());
  parallel_for(num_vectors * num_tasks, work_threads_, [&](Index i, int) {
    const RowTask& task = row_tasks_[static_cast<std::size_t>(i % num_tasks)];
    const Index k = i / num_tasks, offset = k * net_.num_params;
    const PanelView<const T> u = deltas_[static_cast<std::size_t>(k)][task.layer].view();
    const T* v_k = v ? v + offset : nullptr;
    outer_product(task, u.slice(0, count_), v_k, shift, add || first_ > 0, out + offset);
  });
}

template <class T>
template <class F>
void Linearization<T>::each_chunk(const OutputPass<T>& pass, const F& f, Index num_cases) {
  const Index panels = num_cases == 0 ? num_panels() : Panels<T>::count_for(num_cases);
  for (Index chunk = 0; chunk * chunk_panels_ < panels; ++chunk) {
    load(chunk);
    const Restored<Index> count(count_, std::min(count_, panels - first_));
    if (pass.prepare) pass.prepare(first_, activations(net_.layers.size()));
    f();
  }
}

template <class T>
template <class F>
void Linearization<T>::each_tile(Index num_vectors, const F& f) {
  const Index tile =
      std::min(largest_tile_, choose_tile_panels<T>(count_ * num_vectors, work_threads_));
  const Index tiles = (count_ + tile - 1) / tile;
  parallel_for(num_vectors * tiles, work_threads_, [&](Index i, int thread) {
    const Index first = i % tiles * tile;
    f(i / tiles, first, std::min(tile, count_ - first), thread);
  });
}

template <class T>
void Linearization<T>::push_forward(const T* v, Index num_vectors, const OutputPass<T>& pass) {
  const std::lock_guard lock(mutex_);
  reserve_scratch();
  each_chunk(pass, [&] {
    each_tile(num_vectors, [&](Index k, Index first, Index count, int thread) {
      const T* v_k = v + k * net_.num_params;
      pass.work(k, first_ + first, tangent_of_params(v_k, first, count, thread, 0));
    });
  });
}

template <class T>
void Linearization<T>::push_forward_pair(
    const T* v,
    const T* w,
    const OutputReader<T>& prepare,
    const std::function<void(Index first, PanelView<T> jv, PanelView<T> jw)>& f) {
  const std::lock_guard lock(mutex_);
  reserve_scratch();
  each_chunk({prepare, {}}, [&] {
    each_tile(1, [&](Index, Index first, Index count, int thread) {
      const PanelView<T> jv = tangent_of_params(v, first, count, thread, 0);
      f(first_ + first, jv, v == w ? jv : tangent_of_params(w, first, count, thread, 1));
    });
  });
}

template <class T>
void Linearization<T>::jvp(const T* v, Index num_vectors, T* jv) {
  const Index outputs = net_.num_outputs();
  const TileFunction<T> store = [=](Index k, Index first, PanelView<T> r) {
    const Index row = first * Tile<T>::width;
    unpack_cases<T>(r, num_cases_ - row, jv + (k * num_cases_ + row) * outputs);
  };
  push_forward(v, num_vectors, {{}, store});
}

template <class T>
void Linearization<T>::vjp(const T* u, Index num_vectors, T* out) {
  const Index outputs = net_.num_outputs();
  const TileFunction<T> seed = [=](Index k, Index first, PanelView<T> tile) {
    const Index row = first * Tile<T>::width, rest = num_cases_ - row;
    const T* u_tile = u + (k * num_cases_ + row) * outputs;
    pack_cases(u_tile, rest, outputs, 0, tile.count, Fill::zero, tile);
  };
  pull_back({{}, seed}, num_vectors, out);
}

template <class T>
void Linearization<T>::visit_outputs(const OutputReader<T>& prepare, const OutputReader<T>& f) {
  const std::lock_guard lock(mutex_);
  each_chunk({prepare, {}}, [&] {
    const PanelView<const T> z = activations(net_.layers.size());
    each_tile(
        1, [&](Index, Index first, Index count, int) { f(first_ + first, z.slice(first, count)); });
  });
}

template <class T>
void Linearization<T>::visit_chunks(const OutputReader<T>& prepare,
                                    const std::function<void(const ChunkView<T>&)>& f,
                                    Index num_cases) {
  const std::lock_guard lock(mutex_);
  each_chunk({prepare, {}}, [&] { f(ChunkView<T>(*this)); }, num_cases);
}

template <class T>
void Linearization<T>::sweep_backward(const OutputPass<T>& pass,
                                      Index num_vectors,
                                      const std::function<void(const Deltas<T>&)>& consume,
                                      Index num_cases) {
  const std::lock_guard lock(mutex_);
  reserve_deltas(num_vectors);
  const Index most = pass_size(num_vectors);
  const auto sweep = [&] {
    for (Index k0 = 0; k0 < num_vectors; k0 += most) {
      const Index size = std::min(most, num_vectors - k0);
      each_tile(size, [&](Index k, Index first, Index count, int) {
        const auto seed = [&](PanelView<T> u) { pass.work(k0 + k, first_ + first, u); };
        backward_tile(deltas_[static_cast<std::size_t>(k)], first, count, seed);
      });
      consume({ChunkView<T>(*this), deltas_, k0, size, count_});
    }
  };
  each_chunk(pass, sweep, num_cases);
}

template <class T>
void Linearization<T>::pull_back(const OutputPass<T>& pass, Index num_vectors, T* out, bool add) {
  sweep_backward(pass, num_vectors, [&](const Deltas<T>& deltas) {
    outer_products(
        deltas.num_vectors, nullptr, 0.0, add, out + deltas.first_vector * net_.num_params);
  });
}

template <class T>
void Linearization<T>::add_outer_products(Index first, Index end, bool add, T* out) {
  const Index num_tasks = static_cast<Index>(row_tasks_.size());
  parallel_for(num_tasks, work_threads_, [&](Index i, int) {
    const RowTask& task = row_tasks_[static_cast<std::size_t>(i)];
    const Layer& layer = net_.layers[task.layer];
    const PanelView<const T> u = deltas_[0][task.layer].view().slice(first, end - first);
    PanelView<const T> a = features_[task.layer].view();
    a.data += first * Tile<T>::width * Tile<T>::width;
    a.rows -= first * Tile<T>::width;
    multiply_outer<T>(u, a, task.begin, task.end, layer.inputs, add, out + layer.weight_offset);
    if (layer.has_bias) sum_cases(u, task.begin, task.end, add, out + layer.bias_offset);
  });
}

template <class T>
void Linearization<T>::pull_back_parts(const OutputPass<T>& pass,
                                       Index num_cases,
                                       T* part,
                                       T* out) {
  const Index end = num_cases / Tile<T>::width;  // in panels of the batch
  sweep_backward(pass, 1, [&](const Deltas<T>& deltas) {
    const Index first = deltas.chunk.first(), cut = std::clamp<Index>(end - first, 0, deltas.count);
    if (cut > 0) {
      add_outer_products(0, cut, first > 0, part);
      if (first + cut == end) std::copy_n(part, net_.num_params, out);
    }
    if (cut < deltas.count) add_outer_products(cut, deltas.count, true, out);
  });
}

template <class T>
void Linearization<T>::multiply_gauss_newton(
    const T* v, Index num_vectors, const OutputPass<T>& pass, double shift, T* out) {
  const std::lock_guard lock(mutex_);
  reserve_scratch();
  reserve_deltas(num_vectors);
  const Index most = pass_size(num_vectors);
  each_chunk(pass, [&] {
    for (Index k0 = 0; k0 < num_vectors; k0 += most) {
      const Index size = std::min(most, num_vectors - k0);
      const T* v_pass = v + k0 * net_.num_params;
      each_tile(size, [&](Index k, Index first, Index count, int thread) {
        const PanelView<T> r =
            tangent_of_params(v_pass + k * net_.num_params, first, count, thread, 0);
        backward_tile(deltas_[static_cast<std::size_t>(k)], first, count, [&](PanelView<T> u) {
          for (Index j = 0; j < u.count; ++j)
            std::copy_n(r.panel(j), u.rows * Tile<T>::width, u.panel(j));
          pass.work(k0 + k, first_ + first, u);
        });
      });
      outer_products(size, v_pass, shift, false, out + k0 * net_.num_params);
    }
  });
}

template <class T>
void Linearization<T>::multiply_kernel(const OutputPass<T>& seed,
                                       const std::vector<Panels<T>>& grams,
                                       std::vector<Panels<T>>& deltas,
                                       const OutputPass<T>& finish) {
  const std::lock_guard lock(mutex_);
  reserve_scratch();
  reserve_deltas(1);
  const bool single = num_chunks() == 1;
  each_chunk(seed, [&] {
    each_tile(1, [&](Index, Index first, Index count, int) {
      backward_tile(
          deltas_[0], first, count, [&](PanelView<T> u) { seed.work(0, first_ + first, u); });
      for (std::size_t l = 0; !single && l < deltas.size(); ++l) {
        const PanelView<T> from = deltas_[0][l].view(), to = deltas[l].view();
        for (Index j = first; j < first + count; ++j)
          std::copy_n(from.panel(j), from.rows * Tile<T>::width, to.panel(first_ + j));
      }
    });
  });
  const std::vector<Panels<T>>& all = single ? deltas_[0] : deltas;
  each_chunk(finish, [&] {
    each_tile(1, [&](Index, Index first, Index count, int thread) {
      const auto source = [&](std::size_t l, PanelView<T> next, PanelView<const T> scale) {
        ProductOptions<T> options;
        options.scale = scale;
        multiply_cases<T>(
            all[l].view(), grams[l].view().slice(first_ + first, next.count), next, options);
      };
      finish.work(0, first_ + first, tangent_tile(source, first, count, thread, 0));
    });
  });
}

template class ChunkView<float>;
template class ChunkView<double>;
template class Linearization<float>;
template class Linearization<double>;

}  // namespace natgrad
