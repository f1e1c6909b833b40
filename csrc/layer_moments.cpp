#include "layer_moments.hpp"

#include "parallel.hpp"

namespace natgrad {
namespace {

// Bytes of deltas in one sweep; not above what a sweep of the linearisation takes at once, so that
// the order of sums depends on the size of the batch alone.
constexpr Index sweep_bytes = Index{32} << 20;

// Rows of a sum in one task, whole register tiles and whole panels.
template <class T>
constexpr Index task_rows = 96;

// C += sum over pairs of U B, for rows [r0, r1) and the panels of B from `first_panel` on. The
// order of sums is by Tile::depth cases, then by pairs: chunks of the batch leave no trace.
template <class T, class Pair>
void add_rows(
    Index num_pairs, const Pair& pair, Index r0, Index r1, Index first_panel, Matrix<T>& sum) {
  constexpr Index width = Tile<T>::width, block = Tile<T>::depth / width;
  const Index count = pair(0).first.count;
  for (Index p = 0; p < count; p += block)
    for (Index k = 0; k < num_pairs; ++k) {
      const auto [u, b] = pair(k);
      const PanelView<const T> rows{b.panel(first_panel) + p * width * width,
                                    b.rows - p * width,
                                    b.stride,
                                    b.count - first_panel};
      T* out = sum.data.data() + first_panel * width;
      multiply_outer<T>(u.slice(p, std::min(block, count - p)), rows, r0, r1, sum.ld, true, out);
    }
}

// The same for all rows of U; of a symmetric sum only the panels from the diagonal on.
template <class T, class Pair>
void add_products(
    Index num_pairs, const Pair& pair, bool symmetric, int num_threads, Matrix<T>& sum) {
  static_assert(task_rows<T> % Tile<T>::width == 0 && task_rows<T> % Tile<T>::rows == 0);
  const Index rows = pair(0).first.rows;
  parallel_for((rows + task_rows<T> - 1) / task_rows<T>, num_threads, [&](Index task, int) {
    const Index r0 = task * task_rows<T>, r1 = std::min(rows, r0 + task_rows<T>);
    add_rows<T>(num_pairs, pair, r0, r1, symmetric ? r0 / Tile<T>::width : 0, sum);
  });
}

// norms[i] += |a_i|^2
template <class T>
void add_squared_norms(PanelView<const T> a, double* norms) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < a.count; ++j)
    for (Index r = 0; r < a.rows; ++r)
      for (Index q = 0; q < width; ++q) {
        const double value = static_cast<double>(a.panel(j)[r * width + q]);
        norms[j * width + q] += value * value;
      }
}

// (cases of `panels` x d) in panels of features.
template <class T>
PanelView<T> features_view(T* data, Index panels, Index d) {
  const Index cases = panels * Tile<T>::width;
  return {data, cases, Panels<T>::stride_for(cases), Panels<T>::count_for(d)};
}

template <class T>
OutputPass<T> columns_of(OutputMatrices<T>& output, Index first_column, int num_threads) {
  return {[&output, num_threads](Index first, PanelView<const T> z) {
            output.prepare(first, z, {}, num_threads);
          },
          [&output, first_column](Index k, Index first, PanelView<T> u) {
            output.factor_column(first, first_column + k, u);
          }};
}

}  // namespace

template <class T>
Matrix<T> LayerMoments<T>::make_sums(Index rows, Index cols) {
  Matrix<T> sums(rows, cols, Panels<T>::count_for(cols) * Tile<T>::width);
  std::fill_n(sums.data.data(), sums.data.size(), T(0));
  return sums;
}

template <class T>
LayerMoments<T>::LayerMoments(const Architecture& net, MomentWeighting weighting)
    : net_(net), weighting_(weighting) {
  for (const Layer& layer : net_.layers) {
    inputs_.push_back(make_sums(num_inputs(layer), num_inputs(layer)));
    outputs_.push_back(make_sums(layer.outputs, layer.outputs));
  }
}

template <class T>
void LayerMoments<T>::set_zero(std::vector<Matrix<T>>& sums) {
  parallel_for(static_cast<Index>(sums.size()), threads_, [&](Index l, int) {
    Buffer<T>& data = sums[static_cast<std::size_t>(l)].data;
    std::fill_n(data.data(), data.size(), T(0));
  });
}

template <class T>
Index LayerMoments<T>::columns_at_once(const Linearization<T>& lin, Index num_columns) const {
  Index elements = 0;
  for (const Layer& layer : net_.layers)
    elements += Panels<T>::stride_for(layer.outputs) * lin.num_panels();
  return std::clamp<Index>(
      sweep_bytes / (elements * static_cast<Index>(sizeof(T))), 1, num_columns);
}

template <class T>
void LayerMoments<T>::reserve(Linearization<T>& lin,
                              const CaseWeights<T>& weights,
                              Index num_columns) {
  constexpr Index width = Tile<T>::width;
  threads_ = lin.work_threads();
  const Index cases = lin.num_panels() * width, chunk = lin.chunk_panels() * width;
  const Index size = Panels<T>::stride_for(chunk) * Panels<T>::count_for(net_.max_width + 1);
  if (weights_.size() != cases) {
    weights_ = Buffer<T>(cases);
    traces_.clear();
  }
  std::fill_n(weights_.data(), cases, T(1));
  weights.apply(0, {weights_.data(), 1, width, lin.num_panels()});
  if (scales_.size() != chunk) {
    scales_ = Buffer<T>(chunk);
    transposed_.clear();
    squares_.clear();
    rotated_ = Buffer<T>();
  }
  while (static_cast<Index>(transposed_.size()) < num_columns) transposed_.emplace_back(size);
  while (weighting_ == MomentWeighting::traces && traces_.size() < net_.layers.size())
    traces_.emplace_back(cases);
}

template <class T>
void LayerMoments<T>::scale_and_transpose(
    PanelView<const T> a, Index n, Index first, Index count, PanelView<T> out) const {
  constexpr Index width = Tile<T>::width;
  const Index begin = first * width, end = (first + count) * width;
  transpose_panels<T>(a, first, count, out.slice(0, Panels<T>::count_for(a.rows)));
  if (n > a.rows) {
    T* panel = out.panel(a.rows / width);
    for (Index i = begin; i < end; ++i) {
      if (a.rows % width == 0) std::fill_n(panel + i * width, width, T(0));
      panel[i * width + a.rows % width] = T(1);
    }
  }
  for (Index j = 0; j < Panels<T>::count_for(n); ++j)
    for (Index i = begin; i < end; ++i)
      for (Index q = 0; q < width; ++q) out.panel(j)[i * width + q] *= scales_[i];
}

template <class T>
void LayerMoments<T>::measure_factors(Linearization<T>& lin,
                                      OutputMatrices<T>& output,
                                      const CaseWeights<T>& weights) {
  const Index columns = output.num_columns(), size = columns_at_once(lin, columns);
  reserve(lin, weights, size);
  set_zero(inputs_);
  set_zero(outputs_);
  for (Buffer<double>& traces : traces_) std::fill_n(traces.data(), traces.size(), 0.0);
  for (Index c = 0; c < columns; c += size)
    lin.sweep_backward(columns_of(output, c, lin.num_threads()),
                       std::min(size, columns - c),
                       [&](const Deltas<T>& deltas) { add_outputs(lin, deltas); });
  for (Index chunk = 0; chunk < lin.num_chunks(); ++chunk) {
    lin.load(chunk);
    add_inputs(lin);
  }
  finish_factors();
}

template <class T>
void LayerMoments<T>::add_outputs(Linearization<T>& lin, const Deltas<T>& deltas) {
  constexpr Index width = Tile<T>::width;
  const Index cases = lin.chunk_first() * width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const auto features = [&](Index k) {
      T* data = transposed_[static_cast<std::size_t>(k)].data();
      return features_view(data, deltas.count, layer.outputs);
    };
    parallel_for(lin.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * lin.tile_panels(), count = lin.tile_count(first);
      const Index begin = first * width, end = begin + count * width;
      std::copy(
          weights_.data() + cases + begin, weights_.data() + cases + end, scales_.data() + begin);
      if (weighting_ == MomentWeighting::traces) {
        Buffer<double> norms(end - begin);
        std::fill_n(norms.data(), norms.size(), layer.has_bias ? 1.0 : 0.0);
        add_squared_norms<T>(lin.activations(l).slice(first, count), norms.data());
        for (Index i = begin; i < end; ++i)
          scales_[i] = static_cast<T>(static_cast<double>(scales_[i]) * norms[i - begin]);
      }
      for (Index k = 0; k < deltas.num_vectors; ++k) {
        scale_and_transpose(deltas(k, l), layer.outputs, first, count, features(k));
        if (weighting_ == MomentWeighting::traces)
          add_squared_norms<T>(deltas(k, l).slice(first, count), traces_[l].data() + cases + begin);
      }
    });
    add_products<T>(
        deltas.num_vectors,
        [&](Index k) {
          return std::pair<PanelView<const T>, PanelView<const T>>(deltas(k, l), features(k));
        },
        true,
        threads_,
        outputs_[l]);
  }
}

// The loaded chunk. The last row of the sum is left to finish_factors() but for its last element.
template <class T>
void LayerMoments<T>::add_inputs(Linearization<T>& lin) {
  constexpr Index width = Tile<T>::width;
  const Index cases = lin.chunk_first() * width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const Index n = num_inputs(layer);
    const PanelView<const T> a = lin.activations(l);
    const PanelView<T> features = features_view(transposed_[0].data(), lin.chunk_count(), n);
    parallel_for(lin.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * lin.tile_panels(), count = lin.tile_count(first);
      for (Index i = first * width; i < (first + count) * width; ++i) {
        const double trace = traces_.empty() ? 1.0 : traces_[l][cases + i];
        scales_[i] = static_cast<T>(static_cast<double>(weights_[cases + i]) * trace);
      }
      scale_and_transpose(a, n, first, count, features);
    });
    add_products<T>(
        1,
        [&](Index) { return std::pair<PanelView<const T>, PanelView<const T>>(a, features); },
        true,
        threads_,
        inputs_[l]);
  }
}

template <class T>
void LayerMoments<T>::finish_factors() {
  const auto mirror = [](Matrix<T>& sum) {
    for (Index i = 0; i < sum.rows; ++i)
      for (Index j = 0; j < i; ++j) sum.row(i)[j] = sum.row(j)[i];
  };
  parallel_for(static_cast<Index>(net_.layers.size()), threads_, [&](Index i, int) {
    const std::size_t l = static_cast<std::size_t>(i);
    Matrix<T>& inputs = inputs_[l];
    if (net_.layers[l].has_bias) {
      double sum = 0;
      for (Index j = 0; j < weights_.size(); ++j)
        sum += static_cast<double>(weights_[j]) * (traces_.empty() ? 1.0 : traces_[l][j]);
      inputs.row(inputs.rows - 1)[inputs.rows - 1] = static_cast<T>(sum);
    }
    mirror(inputs);
    mirror(outputs_[l]);
  });
}

template <class T>
void LayerMoments<T>::measure_diagonals(Linearization<T>& lin,
                                        OutputMatrices<T>& output,
                                        const CaseWeights<T>& weights,
                                        const std::vector<LayerBasis<T>>& bases) {
  reserve(lin, weights, 1);
  const Index chunk = lin.chunk_panels() * Tile<T>::width, columns = output.num_columns();
  if (rotated_.size() == 0)
    rotated_ = Buffer<T>(lin.chunk_panels() * Panels<T>::stride_for(net_.max_width + 1));
  for (const Layer& layer : net_.layers) {
    if (squares_.size() < net_.layers.size()) squares_.emplace_back(layer.outputs, chunk);
    if (diagonals_.size() < net_.layers.size())
      diagonals_.push_back(make_sums(layer.outputs, num_inputs(layer)));
  }
  set_zero(diagonals_);
  lin.sweep_backward(
      columns_of(output, 0, lin.num_threads()), columns, [&](const Deltas<T>& deltas) {
        add_squares(lin, deltas, bases);
        if (deltas.first_vector + deltas.num_vectors == columns) add_diagonals(lin, bases);
      });
}

// squares = sum_c (U_G'u_ic)^2; column after column, so the passes of a sweep leave no trace.
template <class T>
void LayerMoments<T>::add_squares(Linearization<T>& lin,
                                  const Deltas<T>& deltas,
                                  const std::vector<LayerBasis<T>>& bases) {
  constexpr Index width = Tile<T>::width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Index d = net_.layers[l].outputs;
    const PanelView<T> rotated{rotated_.data(), d, Panels<T>::stride_for(d), deltas.count};
    parallel_for(lin.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * lin.tile_panels(), count = lin.tile_count(first);
      const PanelView<T> sum = squares_[l].view().slice(first, count);
      for (Index k = 0; k < deltas.num_vectors; ++k) {
        const PanelView<T> image = rotated.slice(first, count);
        multiply<T>(bases[l].outputs_transposed.view(), deltas(k, l).slice(first, count), image);
        const bool start = deltas.first_vector + k == 0;
        for (Index j = 0; j < count; ++j)
          for (Index i = 0; i < d * width; ++i) {
            const T square = image.panel(j)[i] * image.panel(j)[i];
            sum.panel(j)[i] = start ? square : sum.panel(j)[i] + square;
          }
      }
    });
  }
}

template <class T>
void LayerMoments<T>::add_diagonals(Linearization<T>& lin,
                                    const std::vector<LayerBasis<T>>& bases) {
  constexpr Index width = Tile<T>::width;
  std::copy_n(
      weights_.data() + lin.chunk_first() * width, lin.chunk_count() * width, scales_.data());
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const Index n = num_inputs(layer);
    const PanelView<T> rotated{rotated_.data(), n, Panels<T>::stride_for(n), lin.chunk_count()};
    const PanelView<T> features = features_view(transposed_[0].data(), lin.chunk_count(), n);
    parallel_for(lin.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * lin.tile_panels(), count = lin.tile_count(first);
      const PanelView<T> image = rotated.slice(first, count);
      RowMajor<T> basis = bases[l].inputs_transposed.view();
      basis.cols = layer.inputs;
      ProductOptions<T> options;
      if (layer.has_bias) options.bias = bases[l].constant.data();
      multiply<T>(basis, lin.activations(l).slice(first, count), image, options);
      for (Index j = 0; j < count; ++j)
        for (Index i = 0; i < n * width; ++i) image.panel(j)[i] *= image.panel(j)[i];
      scale_and_transpose(rotated, n, first, count, features);
    });
    const PanelView<const T> squares = squares_[l].view().slice(0, lin.chunk_count());
    add_products<T>(
        1,
        [&](Index) { return std::pair<PanelView<const T>, PanelView<const T>>(squares, features); },
        false,
        threads_,
        diagonals_[l]);
  }
}

template class LayerMoments<float>;
template class LayerMoments<double>;

}  // namespace natgrad
