#include "output/case_weights.hpp"

#include <algorithm>
#include <cmath>

#include "linalg/panel_arrays.hpp"

namespace natgrad {

template <class T>
CaseWeights<T>::CaseWeights(Index num_cases, const double* weights, double total)
    : num_cases_(num_cases),
      data_(Panels<T>::count_for(num_cases) * Tile<T>::width),
      roots_(data_.size()),
      exact_(num_cases) {
  double sum = total;
  for (Index i = 0; total == 0 && i < num_cases; ++i) sum += weights ? weights[i] : 1.0;
  std::fill(data_.data(), data_.data() + data_.size(), T(0));
  std::fill(roots_.data(), roots_.data() + roots_.size(), T(0));
  for (Index i = 0; i < num_cases; ++i) {
    exact_[i] = (weights ? weights[i] : 1.0) / sum;
    data_[i] = static_cast<T>(exact_[i]);
    roots_[i] = static_cast<T>(std::sqrt(exact_[i]));
  }
}

template <class T>
CaseWeights<T>::CaseWeights(const CaseWeights& other)
    : num_cases_(other.num_cases_),
      data_(other.data_.size()),
      roots_(data_.size()),
      exact_(num_cases_) {
  std::copy_n(other.data_.data(), data_.size(), data_.data());
  std::copy_n(other.roots_.data(), roots_.size(), roots_.data());
  std::copy_n(other.exact_.data(), exact_.size(), exact_.data());
}

template <class T>
void CaseWeights<T>::scale(const Buffer<T>& factors, Index first, PanelView<T> u) const {
  for (Index j = 0; j < u.count; ++j) {
    auto uj = array(u, j);
    const Eigen::Map<const LaneArray<T>> w(factors.data() + (first + j) * Tile<T>::width);
    for (Index c = 0; c < u.rows; ++c) uj.row(c) = zero_times(w, uj.row(c));
  }
}

template <class T>
double CaseWeights<T>::share(Index begin, Index end) const {
  double sum = 0;
  for (Index i = begin; i < end; ++i) sum += exact_[i];
  return sum;
}

template <class T>
double CaseWeights<T>::mean(const double* values) const {
  double sum = 0;
  for (Index i = 0; i < num_cases_; ++i)
    if (exact_[i] > 0) sum += exact_[i] * values[i];
  return sum;
}

template class CaseWeights<float>;
template class CaseWeights<double>;

}  // namespace natgrad
