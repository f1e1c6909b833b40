// The state in the layout of users, and back.
#include <algorithm>

#include "curvature/kronecker.hpp"

namespace natgrad {
namespace {

// to = from, of the same size, whatever the strides.
template <class T>
void copy_matrix(const Matrix<T>& from, Matrix<T>& to) {
  for (Index i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, to.row(i));
}

template <class T>
Matrix<T> without_padding(const Matrix<T>& from) {
  Matrix<T> result(from.rows, from.cols);
  copy_matrix(from, result);
  return result;
}

template <class T>
Matrix<T> transposed(const Matrix<T>& from) {
  Matrix<T> result(from.cols, from.rows);
  transpose(from.data.data(), from.rows, from.cols, from.ld, result.data.data(), result.ld);
  return result;
}

template <class T>
Matrix<T> as_average(const Matrix<T>& from) {
  Matrix<T> result = LayerMoments<T>::make_sums(from.rows, from.cols);
  copy_matrix(from, result);
  return result;
}

}  // namespace

template <class T>
KroneckerState<T> KroneckerFactors<T>::state() const try {
  const std::lock_guard lock(mutex_);
  KroneckerState<T> state;
  state.num_updates = data_.num_updates;
  state.refreshed_at = data_.refreshed_at;
  state.weight = data_.weight;
  state.damping = data_.damping;
  const bool has_inverse = data_.inverse && data_.refreshed_at < data_.num_updates;
  for (std::size_t l = 0; l < num_layers() && data_.num_updates > 0; ++l) {
    KroneckerArrays<T> arrays;
    arrays.a = without_padding(data_.averages->inputs[l]);
    arrays.g = without_padding(data_.averages->outputs[l]);
    if (uses_diagonals()) {
      arrays.s = without_padding(data_.averages->diagonals[l]);
      arrays.basis_a = transposed((*data_.bases)[l].inputs_transposed);
      arrays.basis_g = transposed((*data_.bases)[l].outputs_transposed);
    }
    if (has_inverse && has_basis()) {
      const KroneckerBasis<T>& basis = *data_.inverse->basis();
      arrays.inverse_s = unpack_columns(data_.inverse->reciprocals()[l]);
      arrays.inverse_basis_a = unpack_columns(basis.to[l].right);
      arrays.inverse_basis_g = without_padding(basis.from[l].left);
    } else if (has_inverse) {
      arrays.inverse_a = unpack_columns(data_.inverse->factors()[l].right);
      arrays.inverse_g = without_padding(data_.inverse->factors()[l].left);
    }
    state.layers.push_back(std::move(arrays));
  }
  return state;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "copy");
}

// The inverse of other factors than those of the state.
template <class T>
std::shared_ptr<KroneckerInverse<T>> KroneckerFactors<T>::load_inverse(
    const KroneckerState<T>& state) const {
  if (has_basis()) {
    auto basis = std::make_shared<KroneckerBasis<T>>();
    std::vector<Panels<T>> reciprocals;
    for (const KroneckerArrays<T>& arrays : state.layers) {
      basis->add(transposed(arrays.inverse_basis_a), transposed(arrays.inverse_basis_g));
      reciprocals.emplace_back(arrays.inverse_s.rows, arrays.inverse_s.cols);
      pack_columns(arrays.inverse_s, reciprocals.back().view());
    }
    return std::make_shared<KroneckerInverse<T>>(std::move(basis), std::move(reciprocals));
  }
  std::vector<KroneckerPair<T>> pairs;
  for (const KroneckerArrays<T>& arrays : state.layers) {
    KroneckerPair<T> pair(arrays.inverse_g.rows, arrays.inverse_a.rows);
    copy_matrix(arrays.inverse_g, pair.left);
    pack_columns(arrays.inverse_a, pair.right.view());
    pairs.push_back(std::move(pair));
  }
  return std::make_shared<KroneckerInverse<T>>(std::move(pairs));
}

template <class T>
void KroneckerFactors<T>::set_state(const KroneckerState<T>& state) try {
  const std::lock_guard lock(mutex_);
  check(state.layers.size() == (state.num_updates > 0 ? num_layers() : 0),
        "the state has ",
        state.layers.size(),
        " layers");
  check(state.refreshed_at >= 0 && state.refreshed_at <= state.num_updates,
        "the inverse is of update ",
        state.refreshed_at,
        " of ",
        state.num_updates);
  Data data;
  data.num_updates = state.num_updates;
  data.refreshed_at = state.refreshed_at;
  data.weight = state.weight;
  data.damping = state.damping;
  data.averages = std::make_shared<Moments<T>>();
  auto bases = std::make_shared<std::vector<LayerBasis<T>>>();
  for (const KroneckerArrays<T>& arrays : state.layers) {
    data.averages->inputs.push_back(as_average(arrays.a));
    data.averages->outputs.push_back(as_average(arrays.g));
    if (!uses_diagonals()) continue;
    data.averages->diagonals.push_back(as_average(arrays.s));
    bases->emplace_back(transposed(arrays.basis_a), transposed(arrays.basis_g));
  }
  data.bases = std::move(bases);
  if (state.refreshed_at > 0) {
    check_damping(state.damping);
    if (state.refreshed_at < state.num_updates)
      data.inverse = load_inverse(state);
    else
      invert(data, state.damping);
  }
  data_ = std::move(data);
} catch (const std::bad_alloc&) {
  throw_out_of_memory(net(), "load");
}

#define NATGRAD_INSTANTIATE(T)                                   \
  template KroneckerState<T> KroneckerFactors<T>::state() const; \
  template void KroneckerFactors<T>::set_state(const KroneckerState<T>&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
