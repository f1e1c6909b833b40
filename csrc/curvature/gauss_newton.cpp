#include "curvature/gauss_newton.hpp"

#include <utility>

#include "base/parallel.hpp"
#include "curvature/unit_curvature.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {

template <class T>
CurvatureOperator<T>::CurvatureOperator(std::shared_ptr<Linearization<T>> linearization,
                                        CurvatureSpec<T> spec,
                                        CaseWeights<T> weights,
                                        Shift shift)
    : linearization_(std::move(linearization)),
      spec_(std::move(spec)),
      output_(spec_.loss,
              spec_.kind,
              linearization_->net().num_outputs(),
              spec_.num_samples,
              spec_.seed,
              linearization_->chunk_panels()),
      weights_(std::move(weights)),
      shift_(shift),
      multiply_output_{prepare_outputs(), [this](Index, Index first, PanelView<T> r) {
                         output_.multiply(first, r);
                         weights_.apply(first, r);
                       }} {
  check(weights_.num_cases() == linearization_->num_cases(),
        "weights for ",
        weights_.num_cases(),
        " cases, batch of ",
        linearization_->num_cases());
  linearization_->reserve(1);
}

template <class T>
OutputReader<T> CurvatureOperator<T>::prepare_outputs() {
  return [this](Index first, PanelView<const T> z) {
    PanelView<const T> y = {};
    if (output_.needs_targets()) y = std::as_const(spec_.targets).view().slice(first, z.count);
    output_.prepare(first, z, y, linearization_->work_threads());
  };
}

template <class T>
void CurvatureOperator<T>::multiply(const T* x, Index num_vectors, Shift shift, T* y) {
  linearization_->multiply_gauss_newton(x, num_vectors, multiply_output_, shift.weights, y);
  add_excess(linearization_->net(), shift, x, num_vectors, y);
}

template <class T>
double CurvatureOperator<T>::quadratic_form(const T* v, const T* w) {
  const Shift shift = shift_.get();
  Buffer<double> values(linearization_->num_panels() * Tile<T>::width);
  linearization_->push_forward_pair(
      v, w, multiply_output_.prepare, [&](Index first, PanelView<T> jv, PanelView<T> jw) {
        output_.inner(first, jv, jw, values.data() + first * Tile<T>::width);
      });
  double sum = weights_.mean(values.data());
  if (shift.weights != 0.0)
    sum += shift.weights * Vectors<T>(size(), linearization_->num_threads()).dot(v, w);
  return sum + excess_form(linearization_->net(), shift, v, w);
}

template <class T>
std::array<double, 3> CurvatureOperator<T>::quadratic_forms(const T* v, const T* w) {
  const Shift shift = shift_.get();
  const Index size_of_values = linearization_->num_panels() * Tile<T>::width;
  Buffer<double> vv(size_of_values), vw(size_of_values), ww(size_of_values);
  linearization_->push_forward_pair(
      v, w, multiply_output_.prepare, [&](Index first, PanelView<T> jv, PanelView<T> jw) {
        const Index place = first * Tile<T>::width;
        output_.inner(first, jv, jv, vv.data() + place);
        output_.inner(first, jv, jw, vw.data() + place);
        output_.inner(first, jw, jw, ww.data() + place);
      });
  std::array<double, 3> forms{
      weights_.mean(vv.data()), weights_.mean(vw.data()), weights_.mean(ww.data())};
  const std::array<std::pair<const T*, const T*>, 3> pairs{{{v, v}, {v, w}, {w, w}}};
  Vectors<T> vectors(size(), linearization_->num_threads());
  for (std::size_t i = 0; i < 3; ++i) {
    const auto [a, b] = pairs[i];
    if (shift.weights != 0.0) forms[i] += shift.weights * vectors.dot(a, b);
    forms[i] += excess_form(linearization_->net(), shift, a, b);
  }
  return forms;
}

template <class T>
OutputPass<T> CurvatureOperator<T>::factor_pass() {
  return {multiply_output_.prepare, [this](Index column, Index first, PanelView<T> u) {
            output_.factor_column(first, column, u);
          }};
}

namespace {

// Flops of so many columns of h for one case.
double column_flops(const Architecture& net, Index num_columns) {
  double flops = 0;
  for (const Layer& layer : net.layers) {
    const auto inputs = &layer == &net.layers.front() ? 0.0 : static_cast<double>(layer.inputs);
    flops += static_cast<double>(layer.outputs) * (2.0 * inputs + 8.0);
  }
  return flops * static_cast<double>(num_columns);
}

// out (+)= sign . u^2 for one panel; sign (width,) is that of the cases.
template <class T>
void add_squares(PanelView<const T> u, Index j, const T* sign, bool accumulate, T* out) {
  constexpr Index width = Tile<T>::width;
  const T* in = u.panel(j);
  for (Index r = 0; r < u.rows; ++r)
    for (Index q = 0; q < width; ++q) {
      const T square = sign[q] * in[r * width + q] * in[r * width + q];
      out[r * width + q] = accumulate ? out[r * width + q] + square : square;
    }
}

}  // namespace

template <class T>
bool CurvatureOperator<T>::goes_by_units() const {
  return unit_curvature_flops(linearization_->net(), true) <
         column_flops(linearization_->net(), output_.num_columns());
}

template <class T>
double CurvatureOperator<T>::estimate_diagonal_flops(const Architecture& net,
                                                     Index num_columns,
                                                     Index num_cases) {
  const double h = std::min(column_flops(net, num_columns), unit_curvature_flops(net, true));
  return (h + 2.0 * static_cast<double>(net.num_params)) * static_cast<double>(num_cases);
}

template <class T>
std::vector<Panels<T>> CurvatureOperator<T>::unit_panels() const {
  std::vector<Panels<T>> h;
  for (const Layer& layer : linearization_->net().layers)
    h.emplace_back(layer.outputs, linearization_->chunk_panels() * Tile<T>::width);
  return h;
}

template <class T>
void CurvatureOperator<T>::each_chunk_of_units(std::vector<Panels<T>>& h,
                                               const Progress& progress,
                                               const ChunkFunction& f) {
  Linearization<T>& lin = *linearization_;
  UnitCurvature<T> units(lin, output_);
  const double flops = unit_curvature_flops(lin.net(), true) * Tile<T>::width;
  lin.visit_chunks(prepare_outputs(), [&](const ChunkView<T>& chunk) {
    units.measure(chunk, h, progress, flops * static_cast<double>(chunk.first()));
    f(chunk);
  });
}

// h column by column, for the diagonal.
template <class T>
void CurvatureOperator<T>::sweep_columns(std::vector<Panels<T>>& h,
                                         const Progress& progress,
                                         const ChunkFunction& f) {
  Linearization<T>& lin = *linearization_;
  const Index columns = output_.num_columns();
  lin.sweep_backward(factor_pass(), columns, [&](const Deltas<T>& deltas) {
    const Index first = deltas.chunk.first();
    parallel_for(deltas.count, lin.work_threads(), [&](Index j, int) {
      T sign[Tile<T>::width];
      for (Index k = 0; k < deltas.num_vectors; ++k) {
        const Index column = deltas.first_vector + k;
        output_.factor_sign(first + j, column, 1, sign);
        for (std::size_t l = 0; l < h.size(); ++l)
          add_squares(deltas(k, l), j, sign, column > 0, h[l].view().panel(j));
      }
    });
    report_columns(deltas, progress);
    if (deltas.first_vector + deltas.num_vectors == columns) f(deltas.chunk);
  });
}

template <class T>
void CurvatureOperator<T>::report_columns(const Deltas<T>& deltas, const Progress& progress) const {
  if (!progress) return;
  const Index first = deltas.chunk.first(), columns = output_.num_columns();
  const Index done = first * columns + deltas.count * (deltas.first_vector + deltas.num_vectors);
  progress(column_flops(linearization_->net(), 1) * static_cast<double>(done * Tile<T>::width));
}

template <class T>
void CurvatureOperator<T>::diagonal(T* out, const Progress& progress) {
  const Shift shift = shift_.get();
  Linearization<T>& lin = *linearization_;
  std::vector<Panels<T>> h = unit_panels();
  const auto add = [&](const ChunkView<T>& chunk) {
    parallel_for(chunk.count(), lin.work_threads(), [&](Index j, int) {
      for (Panels<T>& layer : h) weights_.apply(chunk.first() + j, layer.view().slice(j, 1));
    });
    add_diagonal(lin, chunk, h, chunk.first() > 0, out);
  };
  if (goes_by_units())
    each_chunk_of_units(h, progress, add);
  else
    sweep_columns(h, progress, add);
  for (Index p = 0; shift.weights != 0.0 && p < size(); ++p)
    out[p] += static_cast<T>(shift.weights);
  each_bias_range(lin.net(), [&](Index p, Index end) {
    for (; p < end; ++p) out[p] += static_cast<T>(shift.excess());
  });
}

// values[i] += sum_c s_ic sum_l |u_l^{ic}|^2 (|a_{l-1}^i|^2 + 1)
template <class T>
void CurvatureOperator<T>::sweep_traces(double* values, const Progress& progress) {
  constexpr Index width = Tile<T>::width;
  Linearization<T>& lin = *linearization_;
  const Architecture& net = lin.net();
  lin.sweep_backward(factor_pass(), output_.num_columns(), [&](const Deltas<T>& deltas) {
    const Index first = deltas.chunk.first();
    parallel_for(deltas.count, lin.work_threads(), [&](Index j, int) {
      T sign[width];
      double* value = values + (first + j) * width;
      Buffer<double> inputs(static_cast<Index>(net.layers.size()) * width);  // |a_{l-1}|^2
      std::fill(inputs.data(), inputs.data() + inputs.size(), 0.0);
      for (std::size_t l = 0; l < net.layers.size(); ++l)
        add_squared_norms<T>(deltas.chunk.activations(l).slice(j, 1),
                             inputs.data() + static_cast<Index>(l) * width);
      // Column by column: the order of the sum does not depend on how many fit into one pass.
      for (Index k = 0; k < deltas.num_vectors; ++k) {
        output_.factor_sign(first + j, deltas.first_vector + k, 1, sign);
        for (std::size_t l = 0; l < net.layers.size(); ++l) {
          double norms[width] = {};
          add_squared_norms<T>(deltas(k, l).slice(j, 1), norms);
          const double* input = inputs.data() + static_cast<Index>(l) * width;
          for (Index q = 0; q < width; ++q)
            value[q] += static_cast<double>(sign[q]) * norms[q] *
                        (input[q] + (net.layers[l].has_bias ? 1.0 : 0.0));
        }
      }
    });
    report_columns(deltas, progress);
  });
}

template <class T>
double CurvatureOperator<T>::trace(const Progress& progress) {
  const Shift shift = shift_.get();
  Linearization<T>& lin = *linearization_;
  Buffer<double> values(lin.num_panels() * Tile<T>::width);
  std::fill(values.data(), values.data() + values.size(), 0.0);
  if (goes_by_units()) {
    std::vector<Panels<T>> h = unit_panels();
    each_chunk_of_units(
        h, progress, [&](const ChunkView<T>& chunk) { add_traces(lin, chunk, h, values.data()); });
  } else {
    sweep_traces(values.data(), progress);
  }
  Index num_biases = 0;
  each_bias_range(lin.net(), [&](Index begin, Index end) { num_biases += end - begin; });
  return weights_.mean(values.data()) + shift.weights * static_cast<double>(size()) +
         shift.excess() * static_cast<double>(num_biases);
}

// out += the block of units r and s: sum over cases of h a_bar a_bar', h the only row of
// pair_weights.
template <class T>
void CurvatureOperator<T>::add_to_block(std::size_t l,
                                        const ChunkView<T>& chunk,
                                        const Panels<T>& pair_weights,
                                        Index r,
                                        Index s,
                                        T* out) {
  constexpr Index width = Tile<T>::width;
  const Linearization<T>& lin = *linearization_;
  const Layer& layer = lin.net().layers[l];
  const Index d = layer.inputs, count = chunk.count();
  const Index p = d * layer.outputs + (layer.has_bias ? layer.outputs : 0);
  const bool accumulate = chunk.first() > 0;
  Panels<T> scaled(d, count * width);
  const PanelView<const T> a = chunk.activations(l), h = pair_weights.view();
  for (Index j = 0; j < count; ++j)
    for (Index i = 0; i < d; ++i)
      for (Index q = 0; q < width; ++q)
        scaled.view().panel(j)[i * width + q] = h.panel(j)[q] * a.panel(j)[i * width + q];
  Buffer<T> gram(d * d), edge(d + 1);
  T* corner = out + r * d * p + s * d;
  for (Index i = 0; accumulate && i < d; ++i) std::copy_n(corner + i * p, d, gram.data() + i * d);
  multiply_outer<T>(scaled.view(), chunk.features(l), 0, d, d, accumulate, gram.data());
  for (Index i = 0; i < d; ++i)
    for (Index k = 0; k < d; ++k)
      out[(r * d + i) * p + s * d + k] = out[(s * d + k) * p + r * d + i] = gram[i * d + k];
  if (!layer.has_bias) return;
  const Index bias = d * layer.outputs;
  for (Index i = 0; accumulate && i < d; ++i) edge[i] = out[(bias + s) * p + r * d + i];
  edge[d] = accumulate ? out[(bias + r) * p + bias + s] : T(0);
  sum_cases<T>(scaled.view(), 0, d, accumulate, edge.data());
  sum_cases<T>(h.slice(0, count), 0, 1, accumulate, edge.data() + d);
  for (Index i = 0; i < d; ++i) {
    out[(bias + s) * p + r * d + i] = out[(r * d + i) * p + bias + s] = edge[i];
    out[(bias + r) * p + s * d + i] = out[(s * d + i) * p + bias + r] = edge[i];
  }
  out[(bias + r) * p + bias + s] = out[(bias + s) * p + bias + r] = edge[d];
}

template <class T>
void CurvatureOperator<T>::layer_block(std::size_t l, T* out) {
  constexpr Index width = Tile<T>::width;
  const Shift shift = shift_.get();
  Linearization<T>& lin = *linearization_;
  const Layer& layer = lin.net().layers.at(l);
  const Index columns = output_.num_columns(), units = layer.outputs;
  // h_i[r, s] = sum_c s_ic u^{ic}[r] u^{ic}[s] for r >= s, row r (r + 1) / 2 + s
  Panels<T> pairs(units * (units + 1) / 2, lin.chunk_panels() * width);
  lin.sweep_backward(factor_pass(), columns, [&](const Deltas<T>& deltas) {
    const Index first = deltas.chunk.first();
    parallel_for(deltas.count, lin.work_threads(), [&](Index j, int) {
      T sign[width];
      T* h = pairs.view().panel(j);
      for (Index k = 0; k < deltas.num_vectors; ++k) {
        const Index column = deltas.first_vector + k;
        output_.factor_sign(first + j, column, 1, sign);
        const T* u = deltas(k, l).panel(j);
        Index row = 0;
        for (Index r = 0; r < units; ++r)
          for (Index s = 0; s <= r; ++s, ++row)
            for (Index q = 0; q < width; ++q) {
              const T product = sign[q] * u[r * width + q] * u[s * width + q];
              T& place = h[row * width + q];
              place = column > 0 ? place + product : product;
            }
      }
      if (deltas.first_vector + deltas.num_vectors == columns)
        weights_.apply(first + j, pairs.view().slice(j, 1));
    });
    if (deltas.first_vector + deltas.num_vectors < columns) return;
    parallel_for(units, lin.work_threads(), [&](Index r, int) {
      for (Index s = 0; s <= r; ++s) {
        poll_interrupt();
        Panels<T> h(1, deltas.count * width);
        for (Index j = 0; j < deltas.count; ++j)
          std::copy_n(
              pairs.view().panel(j) + (r * (r + 1) / 2 + s) * width, width, h.view().panel(j));
        add_to_block(l, deltas.chunk, h, r, s, out);
      }
    });
  });
  const Index p = units * (layer.inputs + (layer.has_bias ? 1 : 0));
  const Index first_bias = units * layer.inputs;
  for (Index i = 0; i < p; ++i)
    out[i * p + i] += static_cast<T>(i < first_bias ? shift.weights : shift.biases);
}

template class CurvatureOperator<float>;
template class CurvatureOperator<double>;

}  // namespace natgrad
