#include "curvature/kronecker.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/parallel.hpp"

namespace natgrad {
namespace {

// Rows or columns of a layer in one task of a product, whole register tiles and panels.
template <class T>
constexpr Index task_size = 96;

// pi outside of these would put one of the shifts out of the range of float.
constexpr double max_pi = 1e8;

// A row stride that is an odd number of cache lines: the rows of a register tile lie in different
// cache sets.
template <class T>
Matrix<T> padded_matrix(Index rows, Index cols) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  Matrix<T> result(rows, cols, ((cols + line - 1) / line | 1) * line);
  std::fill_n(result.data.data(), result.data.size(), T(0));
  return result;
}

template <class T>
Panels<T> zero_panels(Index rows, Index cols) {
  Panels<T> result(rows, cols);
  std::fill_n(result.view().data, result.view().stride * result.count(), T(0));
  return result;
}

template <class T>
LayerBasis<T> zero_basis(Index n, Index d) {
  LayerBasis<T> basis{Matrix<T>(n, n), Buffer<T>(n), Matrix<T>(d, d)};
  for (Buffer<T>* buffer :
       {&basis.inputs_transposed.data, &basis.constant, &basis.outputs_transposed.data})
    std::fill_n(buffer->data(), buffer->size(), T(0));
  return basis;
}

// to = from', from (n x n).
template <class T>
void copy_transposed(const Matrix<T>& from, Matrix<T>& to) {
  transpose(from.data.data(), from.rows, from.cols, from.ld, to.data.data(), to.ld);
}

// Columns of a row-major matrix into panels.
template <class T>
void pack_columns(const Matrix<T>& from, PanelView<T> to) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < to.count; ++j) {
    const Index cols = std::min(width, from.cols - j * width);
    for (Index i = 0; i < from.rows; ++i) {
      T* out = to.panel(j) + i * width;
      std::fill(std::copy_n(from.row(i) + j * width, cols, out), out + width, T(0));
    }
  }
}

template <class T>
std::vector<double> to_double(const Matrix<T>& m, double scale) {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(m.rows * m.cols));
  for (Index i = 0; i < m.rows; ++i)
    for (Index j = 0; j < m.cols; ++j) result.push_back(scale * static_cast<double>(m.row(i)[j]));
  return result;
}

}  // namespace

template <class T>
KroneckerFactors<T>::KroneckerFactors(const Architecture& net, const KroneckerOptions& options)
    : net_(net),
      options_(options),
      moments_(net, uses_traces() ? MomentWeighting::traces : MomentWeighting::cases),
      input_values_(net.layers.size()),
      output_values_(net.layers.size()) {
  check(options.basis_period >= 1, "basis_period must be >= 1, got ", options.basis_period);
  double flops = 0;
  for (const Layer& layer : net_.layers) {
    const Index d = layer.outputs, n = LayerMoments<T>::num_inputs(layer);
    inputs_.push_back(LayerMoments<T>::make_sums(n, n));
    outputs_.push_back(LayerMoments<T>::make_sums(d, d));
    if (uses_diagonals()) diagonals_.push_back(LayerMoments<T>::make_sums(d, n));
    if (has_basis()) bases_.push_back(zero_basis<T>(n, d));
    Inverse inverse{padded_matrix<T>(d, d), {}, zero_panels<T>(n, n), {}, {}};
    if (has_basis()) {
      inverse.left_back = padded_matrix<T>(d, d);
      inverse.right_back = zero_panels<T>(n, n);
      inverse.scales = zero_panels<T>(d, n);
    }
    inverses_.push_back(std::move(inverse));
    rows_.push_back(padded_matrix<T>(d, n));
    images_.emplace_back(d, n);
    scaled_.emplace_back(d, n);
    flops += 2.0 * static_cast<double>(d) * static_cast<double>(n) * static_cast<double>(d + n);
  }
  work_threads_ = flops < serial_flops ? 1 : options_.num_threads;
  make_tasks();
}

template <class T>
void KroneckerFactors<T>::make_tasks() {
  static_assert(task_size<T> % Tile<T>::width == 0 && task_size<T> % Tile<T>::rows == 0);
  constexpr Index panels = task_size<T> / Tile<T>::width;
  for (std::size_t l = 0; l < net_.layers.size(); ++l) {
    const Index d = rows_[l].rows, count = images_[l].count();
    for (Index r = 0; r < d; r += task_size<T>)
      row_tasks_.push_back({l, r, std::min(d, r + task_size<T>)});
    for (Index j = 0; j < count; j += panels)
      panel_tasks_.push_back({l, j, std::min(count, j + panels)});
  }
}

// ---- Moving averages ----------------------------------------------------------------------------

template <class T>
void KroneckerFactors<T>::blend(Moment moment, double keep, std::vector<Matrix<T>>& averages) {
  constexpr Index piece = Index{1} << 14;
  const T old = static_cast<T>(keep), fresh = static_cast<T>(1.0 - keep);
  std::vector<Task> tasks;
  for (std::size_t l = 0; l < averages.size(); ++l)
    for (Index k = 0; k < averages[l].data.size(); k += piece)
      tasks.push_back({l, k, std::min(averages[l].data.size(), k + piece)});
  parallel_for(static_cast<Index>(tasks.size()), options_.num_threads, [&](Index i, int) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    const T* data = (moments_.*moment)(task.layer).data.data();
    T* average = averages[task.layer].data.data();
    for (Index k = task.begin; k < task.end; ++k)
      average[k] = keep == 0.0 ? data[k] : old * average[k] + fresh * data[k];
  });
}

template <class T>
bool KroneckerFactors<T>::update(Linearization<T>& lin,
                                 OutputMatrices<T>& output,
                                 const CaseWeights<T>& weights,
                                 double decay) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(lin.net().num_params == net_.num_params,
        "the net has ",
        lin.net().num_params,
        " parameters, the factors have ",
        net_.num_params);
  if (!moments_.measure_factors(lin, output, weights)) return false;
  const double keep = std::min(1.0 - 1.0 / static_cast<double>(num_updates_ + 1), decay);
  blend(&LayerMoments<T>::inputs, keep, inputs_);
  blend(&LayerMoments<T>::outputs, keep, outputs_);
  basis_is_current_ = inverse_is_current_ = false;
  if (uses_diagonals()) {
    if (num_updates_ % options_.basis_period == 0) update_bases();
    moments_.measure_diagonals(lin, output, weights, bases_);
    for (std::size_t l = 0; l < net_.layers.size(); ++l) {
      const Buffer<T>& diagonal = moments_.diagonals(l).data;
      if (!all_finite(diagonal.data(), diagonal.size())) return false;
    }
    blend(&LayerMoments<T>::diagonals, keep, diagonals_);
  }
  ++num_updates_;
  return true;
}

template <class T>
std::vector<Index> KroneckerFactors<T>::factors_by_size() const {
  std::vector<Index> order(2 * net_.layers.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return factor(a).rows > factor(b).rows;
  });
  return order;
}

template <class T>
void KroneckerFactors<T>::update_bases() {
  const Index num_layers = static_cast<Index>(net_.layers.size());
  std::vector<LayerBasis<T>> bases;
  for (const LayerBasis<T>& old : bases_) {
    const Index n = old.inputs_transposed.rows, d = old.outputs_transposed.rows;
    bases.push_back(zero_basis<T>(n, d));
    const std::size_t l = bases.size() - 1;
    input_values_[l].resize(static_cast<std::size_t>(n));
    output_values_[l].resize(static_cast<std::size_t>(d));
  }
  const std::vector<Index> order = factors_by_size();
  parallel_for(2 * num_layers, options_.num_threads, [&](Index i, int) {
    const Index k = order[static_cast<std::size_t>(i)];
    const std::size_t l = static_cast<std::size_t>(k / 2);
    if (k % 2 == 1) {
      decompose(outputs_[l], bases[l].outputs_transposed, output_values_[l].data());
      return;
    }
    decompose(inputs_[l], bases[l].inputs_transposed, input_values_[l].data());
    const Index n = inputs_[l].rows;
    for (Index r = 0; r < n; ++r) bases[l].constant[r] = bases[l].inputs_transposed.row(r)[n - 1];
  });
  if (uses_diagonals() && num_updates_ > 0)
    parallel_for(num_layers, options_.num_threads, [&](Index i, int) {
      const std::size_t l = static_cast<std::size_t>(i);
      rotate_diagonal<T>({bases_[l].outputs_transposed, bases[l].outputs_transposed},
                         {bases_[l].inputs_transposed, bases[l].inputs_transposed},
                         diagonals_[l]);
    });
  bases_ = std::move(bases);
  basis_is_current_ = true;
}

// ---- Damping and inverses -----------------------------------------------------------------------

template <class T>
double KroneckerFactors<T>::factor_scale(std::size_t l) const {
  if (!uses_traces()) return 1.0;
  const double delta = trace(inputs_[l]);
  return delta > 0.0 ? 1.0 / std::sqrt(delta) : 0.0;
}

template <class T>
std::pair<double, double> KroneckerFactors<T>::shifts(std::size_t l, double damping) const {
  const double gamma = std::sqrt(damping);
  const double n = static_cast<double>(inputs_[l].rows);
  const double d = static_cast<double>(outputs_[l].rows);
  double pi = 1.0;
  if (options_.damping == KroneckerDamping::trace)
    pi = std::sqrt(trace(inputs_[l]) / n / (trace(outputs_[l]) / d));
  if (options_.damping == KroneckerDamping::frobenius)
    pi = std::sqrt(frobenius_norm(inputs_[l]) / std::sqrt(n) /
                   (frobenius_norm(outputs_[l]) / std::sqrt(d)));
  if (!(pi > 0.0) || !std::isfinite(pi)) pi = 1.0;
  pi = std::clamp(pi, 1.0 / max_pi, max_pi);
  return {pi * gamma, gamma / pi};
}

template <class T>
std::vector<double> KroneckerFactors<T>::damped_scales(std::size_t l, double damping) const {
  std::vector<double> scales;
  if (uses_diagonals()) {
    scales = to_double(diagonals_[l], 1.0);
  } else {
    const double scale = std::pow(factor_scale(l), 2);
    for (const double g : output_values_[l])
      for (const double a : input_values_[l]) scales.push_back(scale * g * a);
  }
  double largest = 0.0;
  for (double& s : scales) largest = std::max(largest, s = std::max(s, 0.0) + damping);
  // A smaller part of the largest is lost twice in the rounding of T.
  const double eps = std::numeric_limits<T>::epsilon();
  for (double& s : scales) s = std::max(s, eps * eps * largest);
  return scales;
}

template <class T>
void KroneckerFactors<T>::refresh(double damping) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(num_updates_ > 0, "there are no factors yet: call update() first");
  check(damping > 0.0 && std::isfinite(damping), "damping must be > 0 and finite, got ", damping);
  check(std::isfinite(static_cast<T>(1.0 / damping)),
        "damping is too small for the float type, got ",
        damping);
  has_basis() ? refresh_bases(damping) : refresh_factors(damping);
  damping_ = damping;
  inverse_is_current_ = true;
}

template <class T>
void KroneckerFactors<T>::refresh_factors(double damping) {
  // A factor that would keep a thread longer than its share of the rest is worked at by all threads,
  // the others by one each.
  const std::vector<Index> order = factors_by_size();
  const auto flops = [&](Index i) { return std::pow(static_cast<double>(factor(i).rows), 3); };
  double rest = 0;
  for (const Index i : order) rest += flops(i);
  auto first = order.begin();
  for (; first != order.end() && flops(*first) * options_.num_threads > rest; ++first) {
    rest -= flops(*first);
    invert_factor(*first, damping, options_.num_threads);
  }
  parallel_for(order.end() - first, options_.num_threads, [&](Index i, int) {
    invert_factor(first[i], damping, 1);
  });
}

template <class T>
void KroneckerFactors<T>::invert_factor(Index i, double damping, int num_threads) {
  const std::size_t l = static_cast<std::size_t>(i / 2);
  const auto [input_shift, output_shift] = shifts(l, damping);
  const double scale = factor_scale(l);
  if (i % 2 == 1) {
    invert_shifted(outputs_[l], scale, output_shift, num_threads, inverses_[l].left);
  } else {
    Matrix<T> inverse(inputs_[l].rows, inputs_[l].cols);
    invert_shifted(inputs_[l], scale, input_shift, num_threads, inverse);
    pack_columns(inverse, inverses_[l].right.view());
  }
}

template <class T>
void KroneckerFactors<T>::refresh_bases(double damping) {
  if (!uses_diagonals() && !basis_is_current_) update_bases();
  parallel_for(static_cast<Index>(net_.layers.size()), options_.num_threads, [&](Index i, int) {
    const std::size_t l = static_cast<std::size_t>(i);
    Inverse& inverse = inverses_[l];
    const LayerBasis<T>& basis = bases_[l];
    for (Index r = 0; r < inverse.left.rows; ++r)
      std::copy_n(basis.outputs_transposed.row(r), inverse.left.cols, inverse.left.row(r));
    copy_transposed(basis.outputs_transposed, inverse.left_back);
    pack_columns(basis.inputs_transposed, inverse.right_back.view());
    Matrix<T> inputs(basis.inputs_transposed.rows, basis.inputs_transposed.cols);
    copy_transposed(basis.inputs_transposed, inputs);
    pack_columns(inputs, inverse.right.view());
    const std::vector<double> scales = damped_scales(l, damping);
    Matrix<T> reciprocals(rows_[l].rows, rows_[l].cols);
    for (std::size_t k = 0; k < scales.size(); ++k)
      reciprocals.data[static_cast<Index>(k)] = static_cast<T>(1.0 / scales[k]);
    pack_columns(reciprocals, inverse.scales.view());
  });
}

template <class T>
KroneckerBlock KroneckerFactors<T>::block(std::size_t l, bool damped) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(num_updates_ > 0, "there are no factors yet: call update() first");
  check(!damped || inverse_is_current_,
        "the inverse is not that of the factors: call refresh(damping)");
  const double scale = factor_scale(l);
  if (uses_diagonals() || (damped && has_basis())) {
    std::vector<double> scales =
        damped ? damped_scales(l, damping_) : to_double(diagonals_[l], 1.0);
    return {to_double(bases_[l].outputs_transposed, 1.0),
            to_double(bases_[l].inputs_transposed, 1.0),
            std::move(scales)};
  }
  if (!damped) return {to_double(outputs_[l], scale), to_double(inputs_[l], scale), {}};
  const Index d = outputs_[l].rows, n = inputs_[l].rows;
  KroneckerBlock result{std::vector<double>(static_cast<std::size_t>(d * d)),
                        std::vector<double>(static_cast<std::size_t>(n * n)),
                        {}};
  const auto [input_shift, output_shift] = shifts(l, damping_);
  shift_matrix(outputs_[l], scale, output_shift, result.left.data());
  shift_matrix(inputs_[l], scale, input_shift, result.right.data());
  return result;
}

// ---- State --------------------------------------------------------------------------------------

template <class T>
template <class Self, class F>
void KroneckerFactors<T>::each_buffer(Self& self, const F& f) {
  const auto matrix = [&](auto& m) { f(m.data.data(), m.data.size()); };
  const auto panels = [&](auto& p) { f(p.view().data, p.view().stride * p.view().count); };
  for (auto& m : self.inputs_) matrix(m);
  for (auto& m : self.outputs_) matrix(m);
  for (auto& m : self.diagonals_) matrix(m);
  for (auto& basis : self.bases_) {
    matrix(basis.inputs_transposed);
    f(basis.constant.data(), basis.constant.size());
    matrix(basis.outputs_transposed);
  }
  for (auto& inverse : self.inverses_) {
    matrix(inverse.left);
    matrix(inverse.left_back);
    panels(inverse.right);
    panels(inverse.right_back);
    panels(inverse.scales);
  }
}

template <class T>
Index KroneckerFactors<T>::state_size() const {
  Index total = 0;
  each_buffer(*this, [&](const T*, Index count) { total += count; });
  return total;
}

template <class T>
void KroneckerFactors<T>::get_state(T* numbers) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  each_buffer(*this,
              [&](const T* data, Index count) { numbers = std::copy_n(data, count, numbers); });
}

template <class T>
void KroneckerFactors<T>::set_state(const T* numbers,
                                    Index num_updates,
                                    double damping,
                                    bool inverse_is_current) {
  const std::lock_guard<std::mutex> lock(mutex_);
  each_buffer(*this, [&](T* data, Index count) {
    std::copy_n(numbers, count, data);
    numbers += count;
  });
  num_updates_ = num_updates;
  damping_ = damping;
  // Eigenvalues of the factors are no part of the state: "exact" damping takes the bases anew.
  basis_is_current_ = false;
  const bool has_values = uses_diagonals() || options_.damping != KroneckerDamping::exact;
  inverse_is_current_ = inverse_is_current && has_values;
}

// ---- Products -----------------------------------------------------------------------------------

template <class T>
void KroneckerFactors<T>::apply(const T* x, T* y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (damping_ == 0.0)
    throw std::runtime_error("the preconditioner has no inverse yet: call refresh(damping) first");
  const auto each = [&](const std::vector<Task>& tasks, auto&& f) {
    parallel_for(static_cast<Index>(tasks.size()), work_threads_, [&](Index i, int) {
      f(tasks[static_cast<std::size_t>(i)]);
    });
  };
  each(row_tasks_, [&](const Task& task) { multiply_right(task, x); });
  each(panel_tasks_, [&](const Task& task) { multiply_left(task, y); });
  if (has_basis()) each(row_tasks_, [&](const Task& task) { multiply_right_back(task, y); });
}

// images = V right, for rows of V.
template <class T>
void KroneckerFactors<T>::multiply_right(const Task& task, const T* x) {
  const Layer& layer = net_.layers[task.layer];
  Matrix<T>& v = rows_[task.layer];
  for (Index r = task.begin; r < task.end; ++r) {
    std::copy_n(x + layer.weight_offset + r * layer.inputs, layer.inputs, v.row(r));
    if (layer.has_bias) v.row(r)[layer.inputs] = x[layer.bias_offset + r];
  }
  PanelView<T> image = images_[task.layer].view();
  image.data += task.begin * Tile<T>::width;
  multiply<T>({v.row(task.begin), task.end - task.begin, v.cols, v.ld},
              inverses_[task.layer].right.view(),
              image);
}

// y = left images, or V = left_back (scales . (left images)), for panels of images.
template <class T>
void KroneckerFactors<T>::multiply_left(const Task& task, T* y) {
  constexpr Index width = Tile<T>::width;
  const Layer& layer = net_.layers[task.layer];
  const Inverse& inverse = inverses_[task.layer];
  Matrix<T>& v = rows_[task.layer];
  const auto part = [&](PanelView<T> view) {
    return view.slice(task.begin, task.end - task.begin);
  };
  PanelView<T> image = part(images_[task.layer].view());
  PanelView<T> result = image;
  if (has_basis()) {
    const PanelView<T> scaled = part(scaled_[task.layer].view());
    ProductOptions<T> options;
    options.scale = inverse.scales.view().slice(task.begin, task.end - task.begin);
    multiply<T>(inverse.left.view(), image, scaled, options);
    multiply<T>(inverse.left_back.view(), scaled, result);
  } else {
    result = part(scaled_[task.layer].view());
    multiply<T>(inverse.left.view(), image, result);
  }
  for (Index j = 0; j < result.count; ++j) {
    const Index first = (task.begin + j) * width;
    const Index weights = std::clamp<Index>(layer.inputs - first, 0, width);
    const Index cols = std::min(width, v.cols - first);
    for (Index r = 0; r < v.rows; ++r) {
      const T* row = result.panel(j) + r * width;
      if (has_basis()) {
        std::copy_n(row, cols, v.row(r) + first);
        continue;
      }
      std::copy_n(row, weights, y + layer.weight_offset + r * layer.inputs + first);
      if (cols > weights) y[layer.bias_offset + r] = row[weights];
    }
  }
}

// y = V right_back, for rows of V.
template <class T>
void KroneckerFactors<T>::multiply_right_back(const Task& task, T* y) {
  constexpr Index width = Tile<T>::width;
  const Layer& layer = net_.layers[task.layer];
  const Matrix<T>& v = rows_[task.layer];
  PanelView<T> image = images_[task.layer].view();
  image.data += task.begin * width;
  multiply<T>({v.row(task.begin), task.end - task.begin, v.cols, v.ld},
              inverses_[task.layer].right_back.view(),
              image);
  for (Index j = 0; j < image.count; ++j) {
    const Index first = j * width, weights = std::clamp<Index>(layer.inputs - first, 0, width);
    for (Index r = task.begin; r < task.end; ++r) {
      const T* row = image.panel(j) + (r - task.begin) * width;
      std::copy_n(row, weights, y + layer.weight_offset + r * layer.inputs + first);
      if (layer.has_bias && first + width > layer.inputs && first <= layer.inputs)
        y[layer.bias_offset + r] = row[weights];
    }
  }
}

template class KroneckerFactors<float>;
template class KroneckerFactors<double>;

}  // namespace natgrad
