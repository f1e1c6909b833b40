#include "curvature/case_block.hpp"

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// Panels of T, narrower ones of double for every one of them.
template <class T>
inline constexpr Index split = Tile<T>::width / Tile<double>::width;

template <class T>
void widen(const T* panel, Index rows, PanelView<double> out, Index first) {
  constexpr Index narrow = Tile<double>::width;
  for (Index part = 0; part < split<T>; ++part) {
    double* to = out.panel(first + part);
    const T* from = panel + part * narrow;
    for (Index r = 0; r < rows; ++r)
      for (Index q = 0; q < narrow; ++q)
        to[r * narrow + q] = static_cast<double>(from[r * Tile<T>::width + q]);
  }
}

// The block of panels [first, first + count) of the batch.
template <class T>
class BlockMaker {
 public:
  BlockMaker(CurvatureOperator<T>& curvature)
      : curvature_(curvature), lin_(curvature.linearization()) {
    const Index cases = std::min(lin_.num_panels() * Tile<T>::width, Tile<T>::depth);
    const auto panels = [&](Index rows) { return Panels<double>(rows, cases); };
    for (const Layer& layer : lin_.net().layers) block_.inputs.push_back(panels(layer.inputs));
    columns_ = columns_per_block<T>(lin_.net(), curvature_.output().num_columns());
    for (Index c = 0; c < columns_; ++c) {
      auto& deltas = block_.deltas.emplace_back();
      for (const Layer& layer : lin_.net().layers) deltas.push_back(panels(layer.outputs));
      if (!curvature_.output().positive_semidefinite()) block_.signs.emplace_back(cases);
    }
  }

  void visit(const ChunkView<T>& chunk, const std::function<void(const CaseBlock&)>& f) {
    constexpr Index most = Tile<T>::depth / Tile<T>::width;
    const Index num_columns = curvature_.output().num_columns();
    for (Index first = 0; first < chunk.count(); first += most) {
      const Index count = std::min(most, chunk.count() - first);
      for (Index column = 0; column < num_columns; column += columns_) {
        make(chunk, first, count, column, std::min(columns_, num_columns - column));
        f(block_);
      }
    }
  }

 private:
  void make(const ChunkView<T>& chunk, Index first, Index count, Index column, Index columns) {
    block_.count = count * split<T>;
    block_.num_columns = static_cast<std::size_t>(columns);
    const double flops = 2.0 * static_cast<double>(count * Tile<T>::width * columns) *
                         static_cast<double>(lin_.net().num_params);
    const int threads = flops < serial_flops ? 1 : lin_.num_threads();
    const Index tile = threads == 1 ? count : std::min<Index>(count, max_tile_panels<T> / 2);
    const Index tiles = (count + tile - 1) / tile;
    if (column == 0)
      parallel_for(count, threads, [&](Index j, int) {
        for (std::size_t l = 0; l < block_.inputs.size(); ++l) {
          const PanelView<const T> a = chunk.activations(l);
          widen<T>(a.panel(first + j), a.rows, block_.inputs[l].view(), j * split<T>);
        }
      });
    parallel_for(columns * tiles, threads, [&](Index task, int) {
      const Index begin = task % tiles * tile;
      sweep(chunk, first, begin, std::min(tile, count - begin), column, task / tiles);
    });
  }

  // The deltas of column + k for the panels [first + begin, first + begin + count) of the chunk.
  void sweep(
      const ChunkView<T>& chunk, Index first, Index begin, Index count, Index column, Index k) {
    constexpr Index width = Tile<T>::width;
    const Architecture& net = lin_.net();
    const Index place = chunk.first() + first + begin;  // in the batch
    Panels<T> upper(net.max_width, count * width), lower(net.max_width, count * width);
    PanelView<T> u = upper.view(), next = lower.view();
    u.rows = net.num_outputs();
    curvature_.output().factor_column(place, column + k, u);
    curvature_.weights().apply_root(place, u);
    for (std::size_t l = net.layers.size(); l-- > 0;) {
      PanelView<const T> slope = chunk.derivatives(l);
      if (slope.data) slope = slope.slice(first + begin, count);
      if (l + 1 == net.layers.size() && slope.data)
        for (Index j = 0; j < count; ++j)
          for (Index i = 0; i < u.rows * width; ++i) u.panel(j)[i] *= slope.panel(j)[i];
      const PanelView<double> out = block_.deltas[static_cast<std::size_t>(k)][l].view();
      for (Index j = 0; j < count; ++j) widen<T>(u.panel(j), u.rows, out, (begin + j) * split<T>);
      if (l == 0) break;
      ProductOptions<T> options;
      if (const PanelView<const T> below = chunk.derivatives(l - 1); below.data)
        options.scale = below.slice(first + begin, count);
      next.rows = net.layers[l].inputs;
      multiply<T>(lin_.transposed_weights(l), u, next, options);
      std::swap(u, next);
    }
    if (block_.signs.empty()) return;
    T signs[width];
    for (Index j = 0; j < count; ++j) {
      curvature_.output().factor_sign(place + j, column + k, 1, signs);
      std::copy_n(
          signs, width, block_.signs[static_cast<std::size_t>(k)].data() + (begin + j) * width);
    }
  }

  CurvatureOperator<T>& curvature_;
  Linearization<T>& lin_;
  Index columns_ = 0;
  CaseBlock block_;
};

}  // namespace

double delta_bytes(const Architecture& net) {
  double units = 0;
  for (const Layer& layer : net.layers) units += static_cast<double>(layer.outputs);
  return units * sizeof(double);
}

template <class T>
Index columns_per_block(const Architecture& net, Index num_columns) {
  constexpr double most = 32 << 20;
  const double bytes = delta_bytes(net) * static_cast<double>(Tile<T>::depth);
  return std::clamp<Index>(static_cast<Index>(most / bytes), 1, num_columns);
}

template <class T>
void visit_case_blocks(CurvatureOperator<T>& curvature,
                       const std::function<void(const CaseBlock&)>& f) {
  BlockMaker<T> maker(curvature);
  curvature.linearization().visit_chunks(curvature.prepare_outputs(),
                                         [&](const ChunkView<T>& chunk) { maker.visit(chunk, f); });
}

#define NATGRAD_INSTANTIATE(T)                                     \
  template Index columns_per_block<T>(const Architecture&, Index); \
  template void visit_case_blocks(CurvatureOperator<T>&,           \
                                  const std::function<void(const CaseBlock&)>&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
