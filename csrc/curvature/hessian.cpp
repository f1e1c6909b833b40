#include "curvature/hessian.hpp"

#include <algorithm>
#include <utility>

#include "base/parallel.hpp"
#include "curvature/unit_curvature.hpp"

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
HessianOperator<T>::HessianOperator(std::shared_ptr<Linearization<T>> linearization,
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
  const double filled = static_cast<double>(chunk) * static_cast<double>(Tile<T>::width);
  double elements = 0;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    const double kinds = layer.activation == Activation::identity ? 4 : 5;
    const auto inputs = static_cast<double>(layer.inputs),
               outputs = static_cast<double>(layer.outputs);
    elements += kinds * Panels<T>::elements_for(outputs, filled);
    if (l == 0) continue;
    elements += Panels<T>::elements_for(filled, inputs);
    elements += inputs * outputs;
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

template <class T>
bool HessianOperator<T>::is_curved() const {
  const auto& layers = linearization_->net().layers;
  return std::any_of(layers.begin(), layers.end(), [](const Layer& layer) {
    return !is_piecewise_linear(layer.activation);
  });
}

template <class T>
CurvatureOperator<T> HessianOperator<T>::gauss_newton() const {
  const PanelView<const T> from = targets_.view();
  CurvatureSpec<T> spec{
      loss_, OutputMatrixKind::hessian, 0, 0, Panels<T>(from.rows, targets_.cols())};
  std::copy_n(from.data, from.count * from.stride, spec.targets.view().data);
  return {linearization_, std::move(spec), weights_, shift_.get()};
}

template <class T>
double HessianOperator<T>::diagonal_flops() const {
  const Architecture& net = linearization_->net();
  const double curved = is_curved() ? unit_curvature_flops(net, false) : 0.0;
  const Index cases = linearization_->num_cases();
  return CurvatureOperator<T>::estimate_diagonal_flops(net, output_.num_columns(), cases) +
         curved * static_cast<double>(cases);
}

template <class T>
void HessianOperator<T>::each_chunk_of_units(std::vector<Panels<T>>& h,
                                             const Progress& progress,
                                             double done,
                                             const std::function<void(const ChunkView<T>&)>& f) {
  Linearization<T>& lin = *linearization_;
  for (const Layer& layer : lin.net().layers)
    h.emplace_back(layer.outputs, lin.chunk_panels() * Tile<T>::width);
  UnitCurvature<T> units(lin, curved_);
  const double flops = unit_curvature_flops(lin.net(), false) * Tile<T>::width;
  for (Index chunk = 0; chunk < lin.num_chunks(); ++chunk) {
    const Chunk<T> held = lin.hold(chunk);
    load(held);
    units.measure(held, h, progress, done + flops * static_cast<double>(held.first()));
    f(held);
  }
}

template <class T>
void HessianOperator<T>::diagonal(T* out, const Progress& progress) {
  const std::lock_guard lock(mutex_);
  CurvatureOperator<T> matrix = gauss_newton();
  matrix.diagonal(out, progress);
  if (!is_curved()) return;
  std::vector<Panels<T>> h;
  each_chunk_of_units(h, progress, matrix.diagonal_flops(), [&](const ChunkView<T>& chunk) {
    add_diagonal(*linearization_, chunk, h, true, out);
  });
}

template <class T>
double HessianOperator<T>::trace(const Progress& progress) {
  const std::lock_guard lock(mutex_);
  CurvatureOperator<T> matrix = gauss_newton();
  double trace = matrix.trace(progress);
  if (!is_curved()) return trace;
  Buffer<double> values(linearization_->num_panels() * Tile<T>::width);
  std::fill(values.data(), values.data() + values.size(), 0.0);
  std::vector<Panels<T>> h;
  each_chunk_of_units(h, progress, matrix.diagonal_flops(), [&](const ChunkView<T>& chunk) {
    add_traces(*linearization_, chunk, h, values.data());
  });
  for (Index i = 0; i < linearization_->num_cases(); ++i) trace += values[i];
  return trace;
}

template class HessianOperator<float>;
template class HessianOperator<double>;

}  // namespace natgrad
