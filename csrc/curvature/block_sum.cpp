#include "curvature/block_sum.hpp"

#include <utility>

#include "base/parallel.hpp"
#include "linalg/panel_arrays.hpp"

namespace natgrad {
namespace {

constexpr Index width = Tile<double>::width;

constexpr double written = 8.0;  // an element of rows or of V, in flops of products

// Of a case, about, half of the products above the diagonal.
double flops_by_rows(const Architecture& net, Index columns) {
  const auto size = static_cast<double>(net.num_params);
  return static_cast<double>(columns) * size * (size + written);
}
double flops_by_units(const Architecture& net, Index columns) {
  double products = 0, units = 0;
  for (const Layer& layer : net.layers) {
    const auto inputs = static_cast<double>((layer.inputs + width - 1) / width * width);
    products += static_cast<double>(layer.outputs) * (inputs + written);
    units += static_cast<double>(layer.outputs);
  }
  return products * static_cast<double>(net.num_params) +
         static_cast<double>(columns) * units * units;
}

// out = x . y for `rows` rows of one panel, x one row that is used for all.
void scale_rows(const double* x, const double* y, Index rows, double* out) {
  const Eigen::Map<const LaneArray<double>> factor(x);
  for (Index r = 0; r < rows; ++r)
    LaneMap<double>(out + r * width) = factor * LaneArray<double>::Map(y + r * width);
}

PanelView<const double> as_const(PanelView<double> v) {
  return {v.data, v.rows, v.stride, v.count};
}

}  // namespace

double BlockSum::estimate_flops(const Architecture& net, Index columns, Index cases) {
  return static_cast<double>(cases) *
         std::min(flops_by_rows(net, columns), flops_by_units(net, columns));
}

BlockSum::BlockSum(const Architecture& net, Index columns, Index cases, int num_threads)
    : net_(net), num_threads_(num_threads) {
  const auto size_ = static_cast<double>(size());
  if (size_ * size_ * static_cast<double>(cases * columns) < 2.0 * serial_flops) num_threads_ = 1;
  if (flops_by_rows(net, columns) <= flops_by_units(net, columns)) {
    rows_ = Panels<double>(size(), cases);
    columns_ = Panels<double>(cases, size());
    return;
  }
  Index max_width = 0, max_inputs = 0;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    max_width = std::max(max_width, layer.outputs);
    max_inputs = std::max(max_inputs, layer.inputs);
    for (Index r = 0; r < layer.outputs; ++r) units_.push_back({l, r});
    features_.emplace_back(cases, layer.inputs);
  }
  for (int i = 0; i < num_threads_; ++i)
    scratch_.push_back({Panels<double>(max_width, cases),
                        Panels<double>(rows_per_task, cases),
                        Buffer<double>(rows_per_task * max_inputs)});
}

void BlockSum::add(const CaseBlock& block, double* f) {
  if (!units_.empty()) return add_units(block, f);
  for (std::size_t c = 0; c < block.num_columns; ++c) add_rows(block, c, f);
}

void BlockSum::add_rows(const CaseBlock& block, std::size_t column, double* f) {
  // Whole register tiles, and few of them above the diagonal of a small matrix.
  const Index per_task = size() < 4 * rows_per_task ? Index{12} : rows_per_task;
  parallel_for(block.count, num_threads_, [&](Index j, int) { write_rows(block, column, j); });
  const Index num_tasks = (size() + per_task - 1) / per_task;
  const PanelView<const double> rows = as_const(rows_.view()).slice(0, block.count),
                                columns = as_const(columns_.view());
  parallel_for(num_tasks, num_threads_, [&](Index task, int) {
    const Index begin = (num_tasks - 1 - task) * per_task;  // long ones first
    const Index end = std::min(size(), begin + per_task);
    multiply_outer<double>(
        rows, columns.slice(0, Panels<double>::count_for(end)), begin, end, size(), true, f);
  });
}

// Panel j of the rows (P x cases), its transpose, and then the signs.
void BlockSum::write_rows(const CaseBlock& block, std::size_t column, Index j) {
  double* out = rows_.view().panel(j);
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    const double *u = block.deltas[column][l].view().panel(j), *a = block.inputs[l].view().panel(j);
    for (Index r = 0; r < layer.outputs; ++r)
      scale_rows(
          u + r * width, a, layer.inputs, out + (layer.weight_offset + r * layer.inputs) * width);
    if (layer.has_bias) std::copy_n(u, layer.outputs * width, out + layer.bias_offset * width);
  }
  transpose_panels<double>(as_const(rows_.view()), j, 1, columns_.view());
  if (!block.signs.empty()) scale_rows(block.signs[column].data() + j * width, out, size(), out);
}

void BlockSum::add_units(const CaseBlock& block, double* f) {
  parallel_for(block.count, num_threads_, [&](Index j, int) {
    for (std::size_t l = 0; l < features_.size(); ++l)
      transpose_panels<double>(block.inputs[l].view(), j, 1, features_[l].view());
  });
  parallel_for(static_cast<Index>(units_.size()), num_threads_, [&](Index i, int thread) {
    add_unit(
        block, units_[static_cast<std::size_t>(i)], scratch_[static_cast<std::size_t>(thread)], f);
  });
}

// h (d_l' x cases) for the units of layer l'.
void BlockSum::write_pairs(const CaseBlock& block,
                           Unit unit,
                           std::size_t l,
                           PanelView<double> h) const {
  for (std::size_t c = 0; c < block.num_columns; ++c)
    for (Index j = 0; j < h.count; ++j) {
      const double* one = block.deltas[c][unit.layer].view().panel(j) + unit.row * width;
      LaneArray<double> factor = LaneArray<double>::Map(one);
      if (!block.signs.empty()) factor *= LaneArray<double>::Map(block.signs[c].data() + j * width);
      const double* all = block.deltas[c][l].view().panel(j);
      double* out = h.panel(j);
      if (c == 0) {
        scale_rows(factor.data(), all, h.rows, out);
        continue;
      }
      for (Index r = 0; r < h.rows; ++r)
        LaneMap<double>(out + r * width) += factor * LaneArray<double>::Map(all + r * width);
    }
}

void BlockSum::add_unit(const CaseBlock& block, Unit unit, Scratch& scratch, double* f) const {
  for (std::size_t l = unit.layer; l < net_.layers.size(); ++l) {
    const Layer& layer = net_.layers[l];
    PanelView<double> h = scratch.pairs.view().slice(0, block.count), v = scratch.rows.view();
    h.rows = layer.outputs;
    v.count = block.count;
    write_pairs(block, unit, l, h);
    const Index d = layer.inputs, end = d * layer.outputs;
    for (Index p = l == unit.layer ? unit.row * d : 0; p < end; p += v.rows) {
      v.rows = std::min(rows_per_task, end - p);
      for (Index j = 0; j < v.count; ++j) {
        const double *a = block.inputs[l].view().panel(j), *pairs = h.panel(j);
        for (Index i = 0; i < v.rows;) {  // the part of one unit
          const Index s = (p + i) % d, count = std::min(d - s, v.rows - i);
          scale_rows(pairs + (p + i) / d * width, a + s * width, count, v.panel(j) + i * width);
          i += count;
        }
      }
      add_products(as_const(v), layer.weight_offset + p, unit, scratch, f);
    }
    for (Index r = 0; layer.has_bias && r < layer.outputs; r += rows_per_task) {
      const PanelView<const double> part{
          h.data + r * width, std::min(rows_per_task, layer.outputs - r), h.stride, h.count};
      add_products(part, layer.bias_offset + r, unit, scratch, f);
    }
  }
}

void BlockSum::add_products(
    PanelView<const double> v, Index p, Unit unit, Scratch& scratch, double* f) const {
  const Layer& layer = net_.layers[unit.layer];
  const Index d = layer.inputs, n = size();
  double* product = scratch.product.data();
  multiply_outer<double>(v, features_[unit.layer].view(), 0, v.rows, d, false, product);
  for (Index i = 0; i < v.rows; ++i) {
    double* out = f + (p + i) * n + layer.weight_offset + unit.row * d;
    for (Index s = 0; s < d; ++s) out[s] += product[i * d + s];
  }
  const Index bias = layer.bias_offset + unit.row;
  if (!layer.has_bias || p + v.rows <= bias) return;
  sum_cases<double>(v, 0, v.rows, false, product);
  for (Index i = std::max<Index>(0, bias - p); i < v.rows; ++i) f[(p + i) * n + bias] += product[i];
}

}  // namespace natgrad
