#include "curvature/objective.hpp"

#include <utility>

#include "linalg/vectors.hpp"

namespace natgrad {

template <class T>
Objective<T>::Objective(Loss loss, Panels<T> targets, CaseWeights<T> weights)
    : loss_(loss), targets_(std::move(targets)), weights_(std::move(weights)) {}

template <class T>
double Objective<T>::value(
    const Architecture& net, const T* theta, const T* x, double l2, int num_threads) const {
  Buffer<double> values(targets_.count() * Tile<T>::width);
  evaluate<T>(net, theta, x, num_cases(), num_threads, [&](Index, Index first, PanelView<T> z) {
    loss_values<T>(
        loss_, z, targets_.view().slice(first, z.count), values.data() + first * Tile<T>::width);
  });
  Vectors<T> vectors(net.num_params, num_threads);
  return weights_.mean(values.data()) + (l2 != 0.0 ? 0.5 * l2 * vectors.dot(theta, theta) : 0.0);
}

template <class T>
double Objective<T>::value_and_gradient(Linearization<T>& linearization, double l2, T* g) const {
  Buffer<double> values(targets_.count() * Tile<T>::width);
  PanelView<const T> outputs;
  Index chunk_first = 0;
  const auto prepare = [&](Index first, PanelView<const T> z) {
    chunk_first = first;
    outputs = z;
  };
  const TileFunction<T> seed = [&](Index, Index first, PanelView<T> u) {
    const PanelView<const T> z = outputs.slice(first - chunk_first, u.count),
                             y = targets_.view().slice(first, u.count);
    loss_values<T>(loss_, z, y, values.data() + first * Tile<T>::width);
    loss_gradient<T>(loss_, z, y, u);
    weights_.apply(first, u);
  };
  linearization.pull_back({prepare, seed}, 1, g);
  if (l2 == 0.0) return weights_.mean(values.data());
  Vectors<T> vectors(linearization.net().num_params, linearization.num_threads());
  const T* theta = linearization.theta();
  vectors.add(l2, theta, g);
  return weights_.mean(values.data()) + 0.5 * l2 * vectors.dot(theta, theta);
}

template class Objective<float>;
template class Objective<double>;

}  // namespace natgrad
