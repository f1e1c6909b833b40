#include "curvature/layer_moments.hpp"

#include <atomic>

#include "base/parallel.hpp"
#include "curvature/column_forms.hpp"

namespace natgrad {
namespace {

// Bytes of deltas in one sweep; not above what a sweep of the linearisation takes at once, so that
// the order of sums depends on the size of the batch alone.
constexpr Index sweep_bytes = Index{32} << 20;

// C = [C] + sum over pairs of U B, for rows [r0, r1) and the panels of B from `first_panel` on. The
// order of sums is by Tile::depth cases, then by pairs: chunks of the batch leave no trace.
template <class T, class Pair>
void add_rows(Index num_pairs,
              const Pair& pair,
              Index r0,
              Index r1,
              Index first_panel,
              bool add,
              Matrix<T>& sum) {
  constexpr Index width = Tile<T>::width, block = Tile<T>::depth / width;
  const Index count = pair(0).first.count;
  for (Index p = 0; p < count; p += block)
    for (Index k = 0; k < num_pairs; ++k) {
      const auto [u, b] = pair(k);
      const PanelView<const T> rows{b.panel(first_panel) + p * width * width,
                                    b.rows - p * width,
                                    b.stride,
                                    b.count - first_panel};
      const bool accumulate = add || p > 0 || k > 0;
      T* out = sum.data.data() + first_panel * width;
      multiply_outer<T>(
          u.slice(p, std::min(block, count - p)), rows, r0, r1, sum.ld, accumulate, out);
    }
}

// f(layer, r0, r1) for blocks of the rows of every sum, those with the most elements above the
// diagonal first.
template <class T, class F>
void each_row_block(const std::vector<Matrix<T>>& sums, int num_threads, const F& f) {
  static_assert(rows_per_task % Tile<T>::width == 0 && rows_per_task % Tile<T>::rows == 0);
  struct Block {
    std::size_t layer;
    Index begin, end, elements;
  };
  std::vector<Block> blocks;
  for (std::size_t l = 0; l < sums.size(); ++l)
    for (Index r = 0; r < sums[l].rows; r += rows_per_task) {
      const Index end = std::min(sums[l].rows, r + rows_per_task);
      blocks.push_back({l, r, end, (end - r) * (sums[l].cols - r)});
    }
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return a.elements > b.elements;
  });
  parallel_for(static_cast<Index>(blocks.size()), num_threads, [&](Index i, int) {
    const Block& block = blocks[static_cast<std::size_t>(i)];
    f(block.layer, block.begin, block.end);
  });
}

// f(layer, first, count) for the tiles of the loaded chunk, for every layer.
template <class T, class F>
void each_layer_tile(const ChunkView<T>& chunk,
                     std::size_t num_layers,
                     int num_threads,
                     const F& f) {
  const Index tiles = chunk.num_tiles();
  parallel_for(static_cast<Index>(num_layers) * tiles, num_threads, [&](Index i, int) {
    const Index first = i % tiles * chunk.tile_panels();
    f(static_cast<std::size_t>(i / tiles), first, chunk.tile_count(first));
  });
}

// The lower triangle from the upper one, for the columns [r0, r1); whether rows [r0, r1) are finite
// from there on.
template <class T>
bool mirror(Index r0, Index r1, Matrix<T>& sum) {
  bool is_finite = true;
  for (Index i = r0; i < r1; ++i) {
    for (Index j = r0; j < i; ++j) sum.row(i)[j] = sum.row(j)[i];
    is_finite &= all_finite(sum.row(i) + i, sum.cols - i);
  }
  if (r1 < sum.rows)
    transpose(sum.row(r0) + r1, r1 - r0, sum.rows - r1, sum.ld, sum.row(r1) + r0, sum.ld);
  return is_finite;
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
LayerBasis<T>::LayerBasis(Matrix<T> inputs, Matrix<T> outputs)
    : inputs_transposed(std::move(inputs)),
      outputs_transposed(std::move(outputs)),
      constant(inputs_transposed.rows) {
  const Index n = inputs_transposed.rows;
  for (Index r = 0; r < n; ++r) constant[r] = inputs_transposed.row(r)[n - 1];
}

template <class T>
Matrix<T> LayerMoments<T>::make_sums(Index rows, Index cols) {
  Matrix<T> sums(rows, cols, Panels<T>::count_for(cols) * Tile<T>::width);
  std::fill_n(sums.data.data(), sums.data.size(), T(0));
  return sums;
}

template <class T>
LayerMoments<T>::LayerMoments(const Architecture& net, MomentWeighting weighting)
    : net_(net), weighting_(weighting) {
  reserve_sums();
}

template <class T>
void LayerMoments<T>::reserve_sums() {
  if (!sums_.inputs.empty()) return;
  Moments<T> sums;
  for (const Layer& layer : net_.layers) {
    const Index n = layer.augmented_inputs();
    sums.inputs.push_back(make_sums(n, n));
    sums.outputs.push_back(make_sums(layer.outputs, layer.outputs));
  }
  sums_ = std::move(sums);
}

template <class T>
Index LayerMoments<T>::columns_at_once(const Linearization<T>& lin, Index num_columns) const {
  Index elements = 0;
  for (const Layer& layer : net_.layers)
    elements += Panels<T>::stride_for(layer.outputs) * lin.num_panels();
  return std::clamp<Index>(
      sweep_bytes / (elements * static_cast<Index>(sizeof(T))), 1, num_columns);
}

// Scratch is made whole or not at all: a failing allocation leaves what was there.
template <class T>
void LayerMoments<T>::reserve(Linearization<T>& lin, const CaseWeights<T>& weights) {
  constexpr Index width = Tile<T>::width;
  threads_ = lin.work_threads();
  const Index panels = Panels<T>::count_for(weights.num_cases());
  const Index cases = panels * width, chunk = lin.chunk_panels() * width;
  if (weights_.size() != cases) {
    weights_ = Buffer<T>(cases);
    traces_.clear();
    forms_.clear();
  }
  std::fill_n(weights_.data(), cases, T(1));
  weights.apply(0, {weights_.data(), 1, width, panels});
  if (chunk_ != chunk) {
    chunk_ = chunk;
    transposed_.clear();
    scaled_.clear();
    squares_.clear();
    rotated_ = Buffer<T>();
    rotated_transposed_ = Buffer<T>();
  }
}

template <class T>
void LayerMoments<T>::reserve_factors(Index num_columns) {
  while (static_cast<Index>(transposed_.size()) < num_columns) {
    std::vector<Panels<T>> column;
    for (const Layer& layer : net_.layers) column.emplace_back(chunk_, layer.outputs);
    transposed_.push_back(std::move(column));
  }
  if (scaled_.empty()) {
    std::vector<Panels<T>> scaled;
    for (const Layer& layer : net_.layers) scaled.emplace_back(layer.inputs, chunk_);
    scaled_ = std::move(scaled);
  }
  if (weighting_ == MomentWeighting::traces && traces_.empty()) {
    std::vector<Buffer<double>> traces;
    for (std::size_t l = 0; l < net_.layers.size(); ++l) traces.emplace_back(weights_.size());
    traces_ = std::move(traces);
  }
}

template <class T>
void LayerMoments<T>::reserve_images() {
  if (rotated_.size() == 0)
    rotated_ = Buffer<T>(chunk_ / Tile<T>::width * Panels<T>::stride_for(net_.max_width + 1));
  if (forms_.empty()) {
    std::vector<Buffer<double>> forms;
    for (std::size_t l = 0; l < net_.layers.size(); ++l) forms.emplace_back(weights_.size());
    forms_ = std::move(forms);
  }
}

template <class T>
void LayerMoments<T>::reserve_diagonals() {
  reserve_images();
  if (rotated_transposed_.size() == 0)
    rotated_transposed_ =
        Buffer<T>(Panels<T>::stride_for(chunk_) * Panels<T>::count_for(net_.max_width + 1));
  if (squares_.empty()) {
    std::vector<Panels<T>> squares;
    for (const Layer& layer : net_.layers) squares.emplace_back(layer.outputs, chunk_);
    squares_ = std::move(squares);
  }
  if (sums_.diagonals.empty()) {
    std::vector<Matrix<T>> diagonals;
    for (const Layer& layer : net_.layers)
      diagonals.push_back(make_sums(layer.outputs, layer.augmented_inputs()));
    sums_.diagonals = std::move(diagonals);
  }
}

template <class T>
bool LayerMoments<T>::measure_factors(Linearization<T>& lin,
                                      OutputMatrices<T>& output,
                                      const CaseWeights<T>& weights,
                                      const std::vector<LayerBasis<T>>* metrics) {
  const Index columns = output.num_columns(), size = columns_at_once(lin, columns);
  reserve(lin, weights);
  reserve_sums();
  reserve_factors(size);
  if (metrics) reserve_images();
  for (Buffer<double>& traces : traces_) std::fill_n(traces.data(), traces.size(), 0.0);
  for (Index c = 0; c < columns; c += size)
    lin.sweep_backward(
        columns_of(output, c, lin.num_threads()),
        std::min(size, columns - c),
        [&](const Deltas<T>& deltas) {
          if (metrics) add_forms(deltas, *metrics, c == 0 && deltas.first_vector == 0);
          add_outputs(deltas, metrics != nullptr, c > 0 || deltas.chunk.first() > 0);
        },
        weights.num_cases());
  lin.visit_chunks({}, [&](const ChunkView<T>& chunk) { add_inputs(chunk); }, weights.num_cases());
  return finish_factors(metrics != nullptr);
}

template <class T>
void LayerMoments<T>::add_forms(const Deltas<T>& deltas,
                                const std::vector<LayerBasis<T>>& metrics,
                                bool is_first) {
  const ChunkView<T>& chunk = deltas.chunk;
  constexpr Index width = Tile<T>::width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const LayerBasis<T>& metric = metrics[l];
    const Index n = layer.augmented_inputs(), d = layer.outputs;
    const PanelView<T> images{
        rotated_.data(), 0, Panels<T>::stride_for(std::max(n, d)), deltas.count};
    parallel_for(chunk.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * chunk.tile_panels(), count = chunk.tile_count(first);
      const Index begin = (chunk.first() + first) * width;
      const PanelView<T> image = images.slice(first, count);
      if (is_first) {
        std::fill_n(forms_[l].data() + begin, count * width, 0.0);
        const T* constant = layer.has_bias ? metric.constant.data() : nullptr;
        add_forms_of_columns<T>(metric.inputs_transposed,
                                constant,
                                chunk.activations(l).slice(first, count),
                                image,
                                forms_[l].data() + begin);
      }
      for (Index k = 0; k < deltas.num_vectors; ++k)
        add_forms_of_columns<T>(metric.outputs_transposed,
                                nullptr,
                                deltas(k, l).slice(first, count),
                                image,
                                traces_[l].data() + begin);
    });
  }
}

// `scales` of the features (cases x d) in panels, for the cases of panels [first, first + count).
template <class T>
void LayerMoments<T>::scale_features(const T* scales, Index first, Index count, PanelView<T> out) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < out.count; ++j)
    for (Index i = 0; i < count * width; ++i)
      for (Index q = 0; q < width; ++q) out.panel(j)[(first * width + i) * width + q] *= scales[i];
}

template <class T>
void LayerMoments<T>::add_outputs(const Deltas<T>& deltas, bool has_metrics, bool add) {
  constexpr Index width = Tile<T>::width;
  const ChunkView<T>& chunk = deltas.chunk;
  const Index cases = chunk.first() * width;
  const bool traces = weighting_ == MomentWeighting::traces;
  const auto features = [&](Index k, std::size_t l) {
    return transposed_[static_cast<std::size_t>(k)][l].view();
  };
  each_layer_tile(
      chunk, net_.layers.size(), threads_, [&](std::size_t l, Index first, Index count) {
        const Index begin = cases + first * width, size = count * width;
        std::array<T, max_tile_panels<T> * width> scales;
        std::copy_n(weights_.data() + begin, size, scales.data());
        if (traces) {
          std::array<double, max_tile_panels<T> * width> norms;
          if (has_metrics) {
            std::copy_n(forms_[l].data() + begin, size, norms.data());
          } else {
            norms.fill(net_.layers[l].has_bias ? 1.0 : 0.0);
            add_squared_norms<T>(chunk.activations(l).slice(first, count), norms.data());
          }
          for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i)
            scales[i] = static_cast<T>(static_cast<double>(scales[i]) * norms[i]);
        }
        for (Index k = 0; k < deltas.num_vectors; ++k) {
          transpose_panels<T>(deltas(k, l), first, count, features(k, l));
          scale_features(scales.data(), first, count, features(k, l));
          if (traces && !has_metrics)
            add_squared_norms<T>(deltas(k, l).slice(first, count), traces_[l].data() + begin);
        }
      });
  each_row_block(sums_.outputs, threads_, [&](std::size_t l, Index r0, Index r1) {
    const auto pair = [&](Index k) {
      return std::pair<PanelView<const T>, PanelView<const T>>(deltas(k, l), features(k, l));
    };
    add_rows<T>(deltas.num_vectors, pair, r0, r1, r0 / width, add, sums_.outputs[l]);
  });
}

// The loaded chunk; the sums with the constant 1 go to the last row.
template <class T>
void LayerMoments<T>::add_inputs(const ChunkView<T>& chunk) {
  constexpr Index width = Tile<T>::width;
  const Index cases = chunk.first() * width;
  const bool add = cases > 0;
  each_layer_tile(
      chunk, net_.layers.size(), threads_, [&](std::size_t l, Index first, Index count) {
        for (Index j = first; j < first + count; ++j) {
          const Index begin = cases + j * width;
          T scales[width];
          for (Index q = 0; q < width; ++q) {
            const double trace = traces_.empty() ? 1.0 : traces_[l][begin + q];
            scales[q] = static_cast<T>(static_cast<double>(weights_[begin + q]) * trace);
          }
          const T* a = chunk.activations(l).panel(j);
          T* out = scaled_[l].view().panel(j);
          for (Index r = 0; r < scaled_[l].rows(); ++r)
            for (Index q = 0; q < width; ++q) out[r * width + q] = scales[q] * a[r * width + q];
        }
      });
  each_row_block(sums_.inputs, threads_, [&](std::size_t l, Index r0, Index r1) {
    Matrix<T>& sum = sums_.inputs[l];
    const PanelView<const T> u = scaled_[l].view().slice(0, chunk.count());
    const Index end = std::min(r1, u.rows);
    if (net_.layers[l].has_bias) sum_cases(u, r0, end, add, sum.row(sum.rows - 1));
    const auto pair = [&](Index) {
      return std::pair<PanelView<const T>, PanelView<const T>>(u, chunk.features(l));
    };
    if (r0 < end) add_rows<T>(1, pair, r0, end, r0 / width, add, sum);
  });
}

template <class T>
bool LayerMoments<T>::finish_factors(bool has_metrics) {
  for (std::size_t l = 0; l < sums_.inputs.size(); ++l) {
    if (!net_.layers[l].has_bias) continue;
    Matrix<T>& inputs = sums_.inputs[l];
    const Index last = inputs.rows - 1;
    double sum = 0;
    for (Index j = 0; j < weights_.size(); ++j)
      sum += static_cast<double>(weights_[j]) * (traces_.empty() ? 1.0 : traces_[l][j]);
    inputs.row(last)[last] = static_cast<T>(sum);
    for (Index i = 0; i < last; ++i) inputs.row(i)[last] = inputs.row(last)[i];
  }
  std::vector<std::array<double, 2>> scales(sums_.inputs.size(), {1.0, 1.0});
  for (std::size_t l = 0; has_metrics && l < scales.size(); ++l) {
    double sigma = 0;
    for (Index i = 0; i < weights_.size(); ++i)
      sigma += static_cast<double>(weights_[i]) * traces_[l][i] * forms_[l][i];
    // T / tr A and T / tr G; without any delta A and G are zero.
    if (sigma > 0.0) scales[l] = {trace(sums_.outputs[l]) / sigma, trace(sums_.inputs[l]) / sigma};
  }
  std::atomic<bool> is_finite{true};
  for (const std::size_t side : {std::size_t{0}, std::size_t{1}}) {
    std::vector<Matrix<T>>& sums = side == 0 ? sums_.inputs : sums_.outputs;
    each_row_block(sums, threads_, [&](std::size_t l, Index r0, Index r1) {
      const T scale = static_cast<T>(scales[l][side]);
      for (Index i = r0; has_metrics && i < r1; ++i)
        for (Index j = r0; j < sums[l].cols; ++j) sums[l].row(i)[j] *= scale;
      if (!mirror(r0, r1, sums[l])) is_finite = false;
    });
  }
  return is_finite;
}

template <class T>
void LayerMoments<T>::measure_diagonals(Linearization<T>& lin,
                                        OutputMatrices<T>& output,
                                        const CaseWeights<T>& weights,
                                        const std::vector<LayerBasis<T>>& bases) {
  reserve(lin, weights);
  const Index columns = output.num_columns();
  reserve_diagonals();
  lin.sweep_backward(
      columns_of(output, 0, lin.num_threads()),
      columns,
      [&](const Deltas<T>& deltas) {
        add_squares(deltas, bases);
        if (deltas.first_vector + deltas.num_vectors == columns) add_diagonals(deltas.chunk, bases);
      },
      weights.num_cases());
}

// squares = sum_c (U_G'u_ic)^2; column after column, so the passes of a sweep leave no trace.
template <class T>
void LayerMoments<T>::add_squares(const Deltas<T>& deltas,
                                  const std::vector<LayerBasis<T>>& bases) {
  const ChunkView<T>& chunk = deltas.chunk;
  constexpr Index width = Tile<T>::width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Index d = net_.layers[l].outputs;
    const PanelView<T> rotated{rotated_.data(), d, Panels<T>::stride_for(d), deltas.count};
    parallel_for(chunk.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * chunk.tile_panels(), count = chunk.tile_count(first);
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
void LayerMoments<T>::add_diagonals(const ChunkView<T>& chunk,
                                    const std::vector<LayerBasis<T>>& bases) {
  constexpr Index width = Tile<T>::width;
  const T* scales = weights_.data() + chunk.first() * width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const Index n = layer.augmented_inputs();
    const PanelView<T> rotated{rotated_.data(), n, Panels<T>::stride_for(n), chunk.count()};
    const PanelView<T> features{rotated_transposed_.data(),
                                chunk.count() * width,
                                Panels<T>::stride_for(chunk_),
                                Panels<T>::count_for(n)};
    parallel_for(chunk.num_tiles(), threads_, [&](Index tile, int) {
      const Index first = tile * chunk.tile_panels(), count = chunk.tile_count(first);
      const PanelView<T> image = rotated.slice(first, count);
      RowMajor<T> basis = bases[l].inputs_transposed.view();
      basis.cols = layer.inputs;
      ProductOptions<T> options;
      if (layer.has_bias) options.bias = bases[l].constant.data();
      multiply<T>(basis, chunk.activations(l).slice(first, count), image, options);
      for (Index j = 0; j < count; ++j)
        for (Index i = 0; i < n * width; ++i) image.panel(j)[i] *= image.panel(j)[i];
      transpose_panels<T>(rotated, first, count, features);
      scale_features(scales + first * width, first, count, features);
    });
    const PanelView<const T> squares = squares_[l].view().slice(0, chunk.count());
    const auto pair = [&](Index) {
      return std::pair<PanelView<const T>, PanelView<const T>>(squares, features);
    };
    parallel_for(
        (layer.outputs + rows_per_task - 1) / rows_per_task, threads_, [&](Index task, int) {
          const Index r0 = task * rows_per_task, r1 = std::min(layer.outputs, r0 + rows_per_task);
          add_rows<T>(1, pair, r0, r1, 0, chunk.first() > 0, sums_.diagonals[l]);
        });
  }
}

template struct LayerBasis<float>;
template struct LayerBasis<double>;
template class LayerMoments<float>;
template class LayerMoments<double>;

}  // namespace natgrad
