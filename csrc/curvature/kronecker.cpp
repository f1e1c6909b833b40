#include "curvature/kronecker.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/parallel.hpp"

namespace natgrad {
double remembered_weight(Index num_updates, double weight, double decay) {
  if (num_updates == 0) return 0.0;
  const double age = std::min(static_cast<double>(num_updates), 1.0 / (1.0 - decay));
  return weight * std::min(1.0, decay / (1.0 - decay) / age);
}

template <class T>
void KroneckerFactors<T>::throw_out_of_memory(const Architecture& net, const char* call) {
  std::size_t layer = 0;
  Index order = 0;
  bool is_input = true;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const Index n = net.layers[l].augmented_inputs(), d = net.layers[l].outputs;
    if (std::max(n, d) <= order) continue;
    layer = l;
    order = std::max(n, d);
    is_input = n >= d;
  }
  std::ostringstream text;
  text << "not enough memory to " << call << " Kronecker factors: the largest one, "
       << (is_input ? "A" : "G") << " of layer " << layer << " (" << order << " x " << order
       << "), takes " << static_cast<double>(order) * static_cast<double>(order) * sizeof(T)
       << " bytes, and its inverse and scratch as much again";
  throw OutOfMemory(text.str());
}

template <class T>
KroneckerFactors<T>::KroneckerFactors(const Architecture& net, const KroneckerOptions& options) try
    : options_(options),
      moments_(net, uses_traces() ? MomentWeighting::traces : MomentWeighting::cases),
      scratch_(net, options.num_threads) {
  check(options.basis_period >= 1, "basis_period must be >= 1, got ", options.basis_period);
  check(options.kind != KroneckerKind::kl || options.damping != KroneckerDamping::exact,
        "kl needs inverses of its factors, which exact damping does not have");
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net, "hold");
}

// ---- Moving averages ----------------------------------------------------------------------------

template <class T>
void KroneckerFactors<T>::blend(const std::vector<Matrix<T>>& old,
                                double keep,
                                std::vector<Matrix<T>>& batch) const {
  constexpr Index piece = Index{1} << 14;
  const T kept = static_cast<T>(keep), fresh = static_cast<T>(1.0 - keep);
  struct Task {
    std::size_t layer;
    Index begin, end;
  };
  std::vector<Task> tasks;
  for (std::size_t l = 0; l < batch.size(); ++l)
    for (Index k = 0; k < batch[l].data.size(); k += piece)
      tasks.push_back({l, k, std::min(batch[l].data.size(), k + piece)});
  parallel_for(static_cast<Index>(tasks.size()), options_.num_threads, [&](Index i, int) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    const T* from = old[task.layer].data.data();
    T* to = batch[task.layer].data.data();
    for (Index k = task.begin; k < task.end; ++k) to[k] = kept * from[k] + fresh * to[k];
  });
}

template <class T>
void KroneckerFactors<T>::check_net(const Architecture& other) const {
  bool is_same = other.layers.size() == num_layers();
  for (std::size_t l = 0; is_same && l < num_layers(); ++l) {
    const Layer &ours = net().layers[l], &theirs = other.layers[l];
    is_same = ours.inputs == theirs.inputs && ours.outputs == theirs.outputs &&
              ours.has_bias == theirs.has_bias;
  }
  check(is_same, "the linearised net has other layers than that of the factors");
}

template <class T>
UpdateStatus KroneckerFactors<T>::update(Linearization<T>& lin,
                                         OutputMatrices<T>& output,
                                         const CaseWeights<T>& weights,
                                         const KroneckerUpdate& options) try {
  const std::lock_guard lock(mutex_);
  check_net(lin.net());
  if (options.num_updates != data_.num_updates) return UpdateStatus::outrun;
  const std::vector<LayerBasis<T>> metrics = make_metrics();
  if (!moments_.measure_factors(lin, output, weights, metrics.empty() ? nullptr : &metrics))
    return UpdateStatus::not_finite;
  const double old = remembered_weight(data_.num_updates, data_.weight, options.decay);
  const double keep = old > 0.0 ? 1.0 / (1.0 + options.weight / old) : 0.0;
  Moments<T>& batch = moments_.sums();
  if (keep > 0.0) {
    blend(data_.averages->inputs, keep, batch.inputs);
    blend(data_.averages->outputs, keep, batch.outputs);
  }
  Data data = data_;
  if (uses_diagonals()) {
    const bool is_new = data.num_updates % options_.basis_period == 0;
    if (is_new) {
      std::vector<Spectrum> values;
      data.bases = std::make_shared<std::vector<LayerBasis<T>>>(make_bases(batch, values));
    }
    moments_.measure_diagonals(lin, output, weights, *data.bases);
    for (const Matrix<T>& diagonal : batch.diagonals)
      if (!all_finite(diagonal.data.data(), diagonal.data.size())) return UpdateStatus::not_finite;
    if (keep > 0.0 && is_new) blend(carry_over(*data.bases), keep, batch.diagonals);
    if (keep > 0.0 && !is_new) blend(data.averages->diagonals, keep, batch.diagonals);
    if (is_new) data.basis.reset();
  } else {
    data.basis.reset();
  }
  data.spectra.reset();
  data.weight = std::min(old + options.weight, std::numeric_limits<double>::max());
  ++data.num_updates;
  data.averages = std::make_shared<Moments<T>>();
  // Nothing below can fail. The old averages are the next batch's sums, unless somebody keeps them.
  std::swap(*data.averages, batch);
  std::swap(data_, data);
  if (data.averages.use_count() == 1) std::swap(*data.averages, batch);
  return UpdateStatus::done;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "measure");
}

template <class T>
void KroneckerFactors<T>::each_factor(const std::function<void(std::size_t, bool, int)>& f) const {
  std::vector<Index> order(2 * num_layers());
  std::iota(order.begin(), order.end(), Index{0});
  const auto size = [&](Index i) {
    const Layer& layer = net().layers[static_cast<std::size_t>(i / 2)];
    return i % 2 == 1 ? layer.outputs : layer.augmented_inputs();
  };
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return size(a) > size(b); });
  const auto cost = [&](Index i) { return std::pow(static_cast<double>(size(i)), 3); };
  double rest = 0;
  for (const Index i : order) rest += cost(i);
  auto first = order.begin();
  for (; first != order.end() && cost(*first) * options_.num_threads > rest; ++first) {
    rest -= cost(*first);
    f(static_cast<std::size_t>(*first / 2), *first % 2 == 1, options_.num_threads);
  }
  parallel_for(order.end() - first, options_.num_threads, [&](Index i, int) {
    f(static_cast<std::size_t>(first[i] / 2), first[i] % 2 == 1, 1);
  });
}

template <class T>
std::vector<LayerBasis<T>> KroneckerFactors<T>::make_bases(const Moments<T>& m,
                                                           std::vector<Spectrum>& values) const {
  std::vector<Matrix<T>> inputs, outputs;
  std::vector<Spectrum> spectra;
  for (std::size_t l = 0; l < num_layers(); ++l) {
    const Index n = m.inputs[l].rows, d = m.outputs[l].rows;
    inputs.emplace_back(n, n);
    outputs.emplace_back(d, d);
    spectra.push_back({std::vector<double>(static_cast<std::size_t>(n)),
                       std::vector<double>(static_cast<std::size_t>(d))});
  }
  each_factor([&](std::size_t l, bool is_output, int num_threads) {
    if (is_output)
      decompose(m.outputs[l], num_threads, outputs[l], spectra[l].outputs.data());
    else
      decompose(m.inputs[l], num_threads, inputs[l], spectra[l].inputs.data());
  });
  std::vector<LayerBasis<T>> bases;
  for (std::size_t l = 0; l < num_layers(); ++l)
    bases.emplace_back(std::move(inputs[l]), std::move(outputs[l]));
  values = std::move(spectra);
  return bases;
}

template <class T>
std::vector<LayerBasis<T>> KroneckerFactors<T>::make_metrics() const {
  std::vector<LayerBasis<T>> metrics;
  if (options_.kind != KroneckerKind::kl || !data_.inverse) return metrics;
  for (const KroneckerPair<T>& pair : data_.inverse->factors()) {
    Matrix<T> left(pair.left.rows, pair.left.cols, pair.left.ld);
    std::copy_n(pair.left.data.data(), left.data.size(), left.data.data());
    metrics.emplace_back(unpack_columns(pair.right), std::move(left));
  }
  return metrics;
}

// The averages S, in other bases.
template <class T>
std::vector<Matrix<T>> KroneckerFactors<T>::carry_over(
    const std::vector<LayerBasis<T>>& bases) const {
  std::vector<Matrix<T>> result;
  for (const Matrix<T>& s : data_.averages->diagonals)
    result.push_back(LayerMoments<T>::make_sums(s.rows, s.cols));
  parallel_for(static_cast<Index>(num_layers()), options_.num_threads, [&](Index i, int) {
    const std::size_t l = static_cast<std::size_t>(i);
    const LayerBasis<T>& old = (*data_.bases)[l];
    rotate_diagonal<T>({old.outputs_transposed, bases[l].outputs_transposed},
                       {old.inputs_transposed, bases[l].inputs_transposed},
                       data_.averages->diagonals[l],
                       result[l]);
  });
  return result;
}

// ---- Inverses -----------------------------------------------------------------------------------

template <class T>
void KroneckerFactors<T>::check_damping(double damping) const {
  check(damping > 0.0 && std::isfinite(damping), "damping must be > 0 and finite, got ", damping);
  const T reciprocal = static_cast<T>(1.0 / damping);
  check(std::isfinite(reciprocal), "damping is too small for the float type, got ", damping);
  check(reciprocal >= std::numeric_limits<T>::min(),
        "damping is too large for the float type, got ",
        damping);
}

template <class T>
double KroneckerFactors<T>::factor_scale(const Moments<T>& m, std::size_t l) const {
  if (!uses_traces()) return 1.0;
  const double delta = trace(m.inputs[l]);
  return delta > 0.0 ? 1.0 / std::sqrt(delta) : 0.0;
}

template <class T>
void KroneckerFactors<T>::refresh(double damping) try {
  const std::lock_guard lock(mutex_);
  check(data_.num_updates > 0, "there are no factors yet: call update() first");
  check_damping(damping);
  Data data = data_;
  invert(data, damping);
  data_ = std::move(data);
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "invert");
}

template <class T>
void KroneckerFactors<T>::invert(Data& data, double damping) const {
  if (has_basis()) {
    if (!data.basis) make_basis(data);
    data.inverse = std::make_shared<KroneckerInverse<T>>(
        data.basis, damped_reciprocals(basis_diagonals(data), damping, options_.num_threads));
  } else {
    data.inverse = invert_factors(*data.averages, damping);
  }
  data.damping = damping;
  data.refreshed_at = data.num_updates;
}

template <class T>
std::shared_ptr<KroneckerInverse<T>> KroneckerFactors<T>::invert_factors(const Moments<T>& m,
                                                                         double damping) const {
  std::vector<KroneckerPair<T>> pairs;
  std::vector<ShiftedPair> shifted;
  for (std::size_t l = 0; l < num_layers(); ++l) {
    pairs.emplace_back(m.outputs[l].rows, m.inputs[l].rows);
    shifted.push_back(
        damped_pair(options_.damping, damping, factor_scale(m, l), m.inputs[l], m.outputs[l]));
  }
  each_factor([&](std::size_t l, bool is_output, int num_threads) {
    if (is_output) {
      invert_shifted(m.outputs[l], shifted[l].left, num_threads, pairs[l].left);
    } else {
      Matrix<T> inverse(m.inputs[l].rows, m.inputs[l].cols);
      invert_shifted(m.inputs[l], shifted[l].right, num_threads, inverse);
      pack_columns(inverse, pairs[l].right.view());
    }
  });
  return std::make_shared<KroneckerInverse<T>>(std::move(pairs));
}

template <class T>
void KroneckerFactors<T>::make_basis(Data& data) const {
  auto basis = std::make_shared<KroneckerBasis<T>>();
  const auto add = [&](const std::vector<LayerBasis<T>>& bases) {
    for (const LayerBasis<T>& layer : bases)
      basis->add(layer.inputs_transposed, layer.outputs_transposed);
  };
  if (uses_diagonals()) {
    add(*data.bases);
  } else {
    auto values = std::make_shared<std::vector<Spectrum>>();
    add(make_bases(*data.averages, *values));
    data.basis_values = std::move(values);
  }
  data.basis = std::move(basis);
}

template <class T>
std::vector<BasisDiagonal<T>> KroneckerFactors<T>::basis_diagonals(const Data& data) const {
  std::vector<BasisDiagonal<T>> result(num_layers());
  for (std::size_t l = 0; l < num_layers(); ++l) {
    if (uses_diagonals()) {
      result[l].s = &data.averages->diagonals[l];
      continue;
    }
    result[l].scale = std::pow(factor_scale(*data.averages, l), 2);
    result[l].g = &(*data.basis_values)[l].outputs;
    result[l].a = &(*data.basis_values)[l].inputs;
  }
  return result;
}

template <class T>
void KroneckerFactors<T>::apply_block(const T* x, Index num_vectors, T* y) {
  const std::lock_guard lock(mutex_);
  if (!data_.inverse)
    throw std::runtime_error("the preconditioner has no inverse yet: call refresh(damping) first");
  for (Index k = 0; k < num_vectors; ++k)
    data_.inverse->apply(scratch_, x + k * size(), y + k * size());
}

template <class T>
void KroneckerFactors<T>::apply_root(const T* x, Index num_vectors, T* y) try {
  const std::lock_guard lock(mutex_);
  if (!data_.inverse)
    throw std::runtime_error("the preconditioner has no inverse yet: call refresh(damping) first");
  for (Index k = 0; k < num_vectors; ++k)
    data_.inverse->apply_root(scratch_, options_.num_threads, x + k * size(), y + k * size());
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "factorise");
}

template <class T>
Index KroneckerFactors<T>::num_updates() const {
  const std::lock_guard lock(mutex_);
  return data_.num_updates;
}

template <class T>
double KroneckerFactors<T>::damping() const {
  const std::lock_guard lock(mutex_);
  return data_.damping;
}

template <class T>
typename KroneckerFactors<T>::Snapshot KroneckerFactors<T>::snapshot() const {
  const std::lock_guard lock(mutex_);
  return Snapshot(this, data_);
}

template <class T>
void KroneckerFactors<T>::restore(const Snapshot& snapshot) {
  const std::lock_guard lock(mutex_);
  check(snapshot.owner_ == this, "the snapshot is of other factors");
  data_ = snapshot.data_;
}

template class KroneckerFactors<float>;
template class KroneckerFactors<double>;

}  // namespace natgrad
