#include "curvature/hessian.hpp"

#include <utility>

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// f(u, ...) on every element of one tile.
template <class T, class F>
void each_element(PanelView<T> u, const F& f) {
  for (Index j = 0; j < u.count; ++j)
    for (Index i = 0; i < u.rows * Tile<T>::width; ++i) f(j, i);
}

}  // namespace

template <class T>
HessianOperator<T>::HessianOperator(std::unique_ptr<Linearization<T>> linearization,
                                    Loss loss,
                                    Panels<T> targets,
                                    CaseWeights<T> weights,
                                    Shift shift)
    : linearization_(std::move(linearization)),
      loss_(loss),
      targets_(std::move(targets)),
      weights_(std::move(weights)),
      output_(loss,
              OutputMatrixKind::hessian,
              linearization_->net().num_outputs(),
              0,
              0,
              linearization_->chunk_panels()),
      shift_(shift) {
  const Index filled = linearization_->chunk_panels() * Tile<T>::width;
  for (const Layer& layer : linearization_->net().layers) {
    const bool first = deltas_.empty();
    deltas_.emplace_back(layer.outputs, filled);
    curved_.push_back(layer.activation == Activation::identity ? Panels<T>()
                                                               : Panels<T>(layer.outputs, filled));
    tangents_.emplace_back(layer.outputs, filled);
    outputs_.emplace_back(layer.outputs, filled);
    features_.push_back(first ? Panels<T>() : Panels<T>(filled, layer.inputs));
    r_deltas_.emplace_back(layer.outputs, filled);
    transposed_.emplace_back(first ? 0 : layer.inputs * layer.outputs);
  }
}

template <class T>
double HessianOperator<T>::estimate_bytes(const Architecture& net,
                                          Index num_cases,
                                          const LinearizationOptions& options) {
  const Index chunk = Linearization<T>::choose_chunk_panels(num_cases, options.chunk_size);
  double elements = 0;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    const double kinds = layer.activation == Activation::identity ? 4 : 5;
    elements += kinds * static_cast<double>(Panels<T>::stride_for(layer.outputs) * chunk);
    if (l == 0) continue;
    elements += static_cast<double>(Panels<T>::stride_for(chunk * Tile<T>::width) *
                                    Panels<T>::count_for(layer.inputs));
    elements += static_cast<double>(layer.inputs * layer.outputs);
  }
  return Linearization<T>::estimate_bytes(net, num_cases, 0, options) + elements * sizeof(T);
}

// u_l and e_l of one tile, from the outputs down.
template <class T>
void HessianOperator<T>::load_tile(const ChunkView<T>& chunk, Index first) {
  const Linearization<T>& lin = *linearization_;
  const Index count = chunk.tile_count(first), in_batch = chunk.first() + first;
  const std::size_t num_layers = deltas_.size();
  for (std::size_t l = num_layers; l-- > 0;) {
    const PanelView<T> u = deltas_[l].view().slice(first, count);
    if (l + 1 == num_layers) {
      const PanelView<const T> z = chunk.activations(num_layers).slice(first, count);
      loss_gradient<T>(loss_, z, std::as_const(targets_).view().slice(in_batch, count), u);
      weights_.apply(in_batch, u);
    } else {
      multiply<T>(lin.transposed_weights(l + 1), deltas_[l + 1].view().slice(first, count), u);
    }
    if (curved_[l].empty()) continue;
    const PanelView<T> e = curved_[l].view().slice(first, count);
    const PanelView<const T> d1 = chunk.derivatives(l).slice(first, count),
                             d2 = chunk.second_derivatives(l).slice(first, count);
    each_element(u, [&](Index j, Index i) {
      e.panel(j)[i] = d2.panel(j)[i] * u.panel(j)[i];
      u.panel(j)[i] *= d1.panel(j)[i];
    });
  }
}

template <class T>
void HessianOperator<T>::load(const ChunkView<T>& chunk) {
  if (chunk.first() == loaded_) return;
  loaded_ = -1;
  const Linearization<T>& lin = *linearization_;
  const PanelView<const T> z = chunk.activations(deltas_.size());
  output_.prepare(chunk.first(),
                  z,
                  std::as_const(targets_).view().slice(chunk.first(), z.count),
                  lin.work_threads());
  parallel_for(chunk.num_tiles(), lin.work_threads(), [&](Index tile, int) {
    load_tile(chunk, tile * lin.tile_panels());
  });
  loaded_ = chunk.first();
}

// R s_l, R a_l of one tile and the transposes of R a_l; then e_l . R s_l in place of R s_l.
template <class T>
void HessianOperator<T>::forward_tile(const ChunkView<T>& chunk, const T* v, Index first) {
  const Linearization<T>& lin = *linearization_;
  const Index count = chunk.tile_count(first);
  for (std::size_t l = 0; l < deltas_.size(); ++l) {
    const PanelView<T> s = tangents_[l].view().slice(first, count),
                       a = outputs_[l].view().slice(first, count);
    chunk.multiply_params(l, v, first, {}, s);
    if (l > 0) {
      transpose_panels<T>(outputs_[l - 1].view(), first, count, features_[l].view());
      lin.add_propagated(l, outputs_[l - 1].view().slice(first, count), {}, s);
    }
    if (curved_[l].empty()) {
      each_element(s, [&](Index j, Index i) { a.panel(j)[i] = s.panel(j)[i]; });
      continue;
    }
    const PanelView<const T> d1 = chunk.derivatives(l).slice(first, count),
                             e = curved_[l].view().slice(first, count);
    each_element(s, [&](Index j, Index i) {
      a.panel(j)[i] = d1.panel(j)[i] * s.panel(j)[i];
      s.panel(j)[i] *= e.panel(j)[i];
    });
  }
}

// R u_l of one tile, from the outputs down.
template <class T>
void HessianOperator<T>::backward_tile(const ChunkView<T>& chunk, Index first) {
  const Linearization<T>& lin = *linearization_;
  const Index count = chunk.tile_count(first), in_batch = chunk.first() + first;
  const std::size_t num_layers = deltas_.size();
  for (std::size_t l = num_layers; l-- > 0;) {
    const PanelView<T> r = r_deltas_[l].view().slice(first, count);
    if (l + 1 == num_layers) {
      const PanelView<const T> z = outputs_[l].view().slice(first, count);
      each_element(r, [&](Index j, Index i) { r.panel(j)[i] = z.panel(j)[i]; });
      output_.multiply(in_batch, r);
      weights_.apply(in_batch, r);
    } else {
      const Layer& above = lin.net().layers[l + 1];
      ProductOptions<T> add;
      add.accumulate = true;
      multiply<T>({transposed_[l + 1].data(), above.inputs, above.outputs, above.outputs},
                  deltas_[l + 1].view().slice(first, count),
                  r);
      multiply<T>(
          lin.transposed_weights(l + 1), r_deltas_[l + 1].view().slice(first, count), r, add);
    }
    if (curved_[l].empty()) continue;
    const PanelView<const T> d1 = chunk.derivatives(l).slice(first, count),
                             q = tangents_[l].view().slice(first, count);
    each_element(r, [&](Index j, Index i) {
      r.panel(j)[i] = q.panel(j)[i] + d1.panel(j)[i] * r.panel(j)[i];
    });
  }
}

template <class T>
void HessianOperator<T>::transpose_params(const T* v) {
  const auto& layers = linearization_->net().layers;
  parallel_for(
      static_cast<Index>(layers.size()) - 1, linearization_->work_threads(), [&](Index i, int) {
        const std::size_t l = static_cast<std::size_t>(i) + 1;
        transpose(v + layers[l].weight_offset,
                  layers[l].outputs,
                  layers[l].inputs,
                  layers[l].inputs,
                  transposed_[l].data(),
                  layers[l].outputs);
      });
}

// The sums of both products alternate every Tile::depth cases: the same bits for any chunk size.
template <class T>
void HessianOperator<T>::outer_products(const ChunkView<T>& chunk,
                                        const T* v,
                                        Shift shift,
                                        T* out) {
  constexpr Index width = Tile<T>::width, step = Tile<T>::depth / width;
  const Linearization<T>& lin = *linearization_;
  const Architecture& net = lin.net();
  const Index count = chunk.count();
  const bool later = chunk.first() > 0, last = chunk.first() + count == lin.num_panels();
  const std::vector<RowTask>& tasks = lin.row_tasks();
  parallel_for(static_cast<Index>(tasks.size()), lin.work_threads(), [&](Index i, int) {
    const auto [l, begin, end] = tasks[static_cast<std::size_t>(i)];
    const Layer& layer = net.layers[l];
    const PanelView<const T> ru = std::as_const(r_deltas_[l]).view(),
                             u = std::as_const(deltas_[l]).view();
    for (Index j = 0; j < count; j += step) {
      const Index n = std::min(step, count - j);
      const auto from = [&](PanelView<const T> features) {
        features.data += j * width * width;
        return features;
      };
      T* w = out + layer.weight_offset;
      multiply_outer<T>(
          ru.slice(j, n), from(chunk.features(l)), begin, end, layer.inputs, later || j > 0, w);
      if (l > 0)
        multiply_outer<T>(u.slice(j, n),
                          from(std::as_const(features_[l]).view()),
                          begin,
                          end,
                          layer.inputs,
                          true,
                          w);
    }
    if (layer.has_bias) sum_cases(ru.slice(0, count), begin, end, later, out + layer.bias_offset);
    if (last) add_shift(layer, begin, end, shift, v, out);
  });
}

template <class T>
void HessianOperator<T>::apply_block(const T* x, Index num_vectors, T* y) {
  const Shift shift = shift_.get();
  const std::lock_guard lock(mutex_);
  Linearization<T>& lin = *linearization_;
  for (Index chunk = 0; chunk < lin.num_chunks(); ++chunk) {
    const Chunk<T> held = lin.hold(chunk);
    load(held);
    for (Index k = 0; k < num_vectors; ++k) {
      const T* v = x + k * size();
      transpose_params(v);
      parallel_for(held.num_tiles(), lin.work_threads(), [&](Index tile, int) {
        forward_tile(held, v, tile * lin.tile_panels());
        backward_tile(held, tile * lin.tile_panels());
      });
      outer_products(held, v, shift, y + k * size());
    }
  }
}

template class HessianOperator<float>;
template class HessianOperator<double>;

}  // namespace natgrad
