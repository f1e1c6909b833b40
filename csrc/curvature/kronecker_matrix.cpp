// The approximation as a matrix: its blocks, factors and eigenvalues.
#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"
#include "curvature/kronecker.hpp"

namespace natgrad {
namespace {

template <class T>
std::vector<double> to_double(const Matrix<T>& m, double scale) {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(m.rows * m.cols));
  for (Index i = 0; i < m.rows; ++i)
    for (Index j = 0; j < m.cols; ++j) result.push_back(scale * static_cast<double>(m.row(i)[j]));
  return result;
}

std::vector<double> clipped(std::vector<double> values) {
  for (double& value : values) value = std::max(value, 0.0);
  return values;
}

}  // namespace

template <class T>
KroneckerBlock KroneckerFactors<T>::make_block(std::size_t l, bool damped) const {
  const Moments<T>& m = *data_.averages;
  const double scale = factor_scale(m, l);
  if (uses_diagonals() || (damped && has_basis())) {
    if (!damped)
      return {to_double((*data_.bases)[l].outputs_transposed, 1.0),
              to_double((*data_.bases)[l].inputs_transposed, 1.0),
              to_double(m.diagonals[l], 1.0)};
    const KroneckerBasis<T>& basis = *data_.inverse->basis();
    return {to_double(basis.to[l].left, 1.0),
            to_double(unpack_columns(basis.from[l].right), 1.0),
            damped_diagonal(basis_diagonals(data_)[l], data_.damping)};
  }
  if (!damped) return {to_double(m.outputs[l], scale), to_double(m.inputs[l], scale), {}};
  const Index d = m.outputs[l].rows, n = m.inputs[l].rows;
  KroneckerBlock result{std::vector<double>(static_cast<std::size_t>(d * d)),
                        std::vector<double>(static_cast<std::size_t>(n * n)),
                        {}};
  const ShiftedPair shifted =
      damped_pair(options_.damping, data_.damping, scale, m.inputs[l], m.outputs[l]);
  shift_matrix(m.outputs[l], shifted.left, result.left.data());
  shift_matrix(m.inputs[l], shifted.right, result.right.data());
  return result;
}

template <class T>
void KroneckerFactors<T>::check_block(bool damped) const {
  check(data_.num_updates > 0, "there are no factors yet: call update() first");
  check(!damped || data_.refreshed_at == data_.num_updates,
        "the inverse is not that of the factors: call refresh(damping)");
}

template <class T>
KroneckerBlock KroneckerFactors<T>::block(std::size_t l, bool damped) const {
  const std::lock_guard lock(mutex_);
  check_block(damped);
  return make_block(l, damped);
}

template <class T>
std::vector<KroneckerBlock> KroneckerFactors<T>::blocks(bool damped) const try {
  const std::lock_guard lock(mutex_);
  check_block(damped);
  std::vector<KroneckerBlock> result;
  for (std::size_t l = 0; l < num_layers(); ++l) result.push_back(make_block(l, damped));
  return result;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "copy");
}

template <class T>
std::vector<std::pair<KroneckerBlock, KroneckerBlock>> KroneckerFactors<T>::factors() const try {
  const std::lock_guard lock(mutex_);
  check_block(false);
  const Moments<T>& m = *data_.averages;
  std::vector<std::pair<KroneckerBlock, KroneckerBlock>> result;
  for (std::size_t l = 0; l < num_layers(); ++l) {
    const double scale = factor_scale(m, l);
    result.emplace_back();
    result.back().first = {to_double(m.outputs[l], scale), to_double(m.inputs[l], scale), {}};
    if (uses_diagonals()) result.back().second = make_block(l, false);
  }
  return result;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "copy");
}

template <class T>
const std::vector<typename KroneckerFactors<T>::Spectrum>& KroneckerFactors<T>::spectra() {
  if (!data_.spectra) {
    auto spectra = std::make_shared<std::vector<Spectrum>>(num_layers());
    each_factor([&](std::size_t l, bool is_output, int num_threads) {
      if (is_output)
        (*spectra)[l].outputs = natgrad::eigenvalues(data_.averages->outputs[l], num_threads);
      else
        (*spectra)[l].inputs = natgrad::eigenvalues(data_.averages->inputs[l], num_threads);
    });
    data_.spectra = std::move(spectra);
  }
  return *data_.spectra;
}

template <class T>
std::vector<std::vector<double>> KroneckerFactors<T>::eigenvalues() try {
  const std::lock_guard lock(mutex_);
  check_block(false);
  std::vector<std::vector<double>> result;
  for (std::size_t l = 0; l < num_layers(); ++l) {
    if (uses_diagonals()) {
      result.push_back(to_double(data_.averages->diagonals[l], 1.0));
      continue;
    }
    const double scale = std::pow(factor_scale(*data_.averages, l), 2);
    const std::vector<double> a = clipped(spectra()[l].inputs), g = clipped(spectra()[l].outputs);
    std::vector<double> products;
    products.reserve(a.size() * g.size());
    for (const double g_r : g)
      for (const double a_s : a) products.push_back(scale * g_r * a_s);
    result.push_back(std::move(products));
  }
  return result;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "decompose");
}

template <class T>
double KroneckerFactors<T>::log_det(double damping) try {
  const std::lock_guard lock(mutex_);
  check_block(false);
  check_damping(damping);
  if (!uses_diagonals()) spectra();
  std::vector<double> sums(num_layers());
  parallel_for(static_cast<Index>(num_layers()), options_.num_threads, [&](Index i, int) {
    const std::size_t l = static_cast<std::size_t>(i);
    const Moments<T>& m = *data_.averages;
    const double scale = factor_scale(m, l);
    if (uses_diagonals()) {
      sums[l] = damped_log_sum<T>({&m.diagonals[l]}, damping);
      return;
    }
    const Spectrum& values = (*data_.spectra)[l];
    if (options_.damping == KroneckerDamping::exact) {
      const std::vector<double> a = clipped(values.inputs), g = clipped(values.outputs);
      sums[l] = damped_log_sum<T>({nullptr, scale * scale, &g, &a}, damping);
      return;
    }
    const ShiftedPair shifted =
        damped_pair(options_.damping, damping, scale, m.inputs[l], m.outputs[l]);
    sums[l] = static_cast<double>(m.inputs[l].rows) *
                  log_det_shifted(m.outputs[l], shifted.left, values.outputs) +
              static_cast<double>(m.outputs[l].rows) *
                  log_det_shifted(m.inputs[l], shifted.right, values.inputs);
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "decompose");
}

#define NATGRAD_INSTANTIATE(T)                                                                   \
  template KroneckerBlock KroneckerFactors<T>::block(std::size_t, bool) const;                   \
  template std::vector<KroneckerBlock> KroneckerFactors<T>::blocks(bool) const;                  \
  template std::vector<std::pair<KroneckerBlock, KroneckerBlock>> KroneckerFactors<T>::factors() \
      const;                                                                                     \
  template std::vector<std::vector<double>> KroneckerFactors<T>::eigenvalues();                  \
  template double KroneckerFactors<T>::log_det(double);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
