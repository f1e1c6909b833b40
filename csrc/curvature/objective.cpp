#include "curvature/objective.hpp"

#include <utility>

#include "linalg/vectors.hpp"

namespace natgrad {
namespace {

// theta' S theta / 2
template <class T>
double penalty(const Architecture& net, const T* theta, Shift l2, int num_threads) {
  double form = excess_form(net, l2, theta, theta);
  if (l2.weights != 0.0)
    form += l2.weights * Vectors<T>(net.num_params, num_threads).dot(theta, theta);
  return 0.5 * form;
}

}  // namespace

template <class T>
Objective<T>::Objective(Loss loss, Panels<T> targets, CaseWeights<T> weights)
    : loss_(loss), targets_(std::move(targets)), weights_(std::move(weights)) {}

template <class T>
double Objective<T>::value(
    const Architecture& net, const T* theta, const T* x, Shift l2, int num_threads) const {
  Buffer<double> values(targets_.count() * Tile<T>::width);
  evaluate<T>(net, theta, x, num_cases(), num_threads, [&](Index, Index first, PanelView<T> z) {
    loss_values<T>(
        loss_, z, targets_.view().slice(first, z.count), values.data() + first * Tile<T>::width);
  });
  return weights_.mean(values.data()) + penalty(net, theta, l2, num_threads);
}

template <class T>
double Objective<T>::value_and_gradient(Linearization<T>& linearization, Shift l2, T* g) const {
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
  const Architecture& net = linearization.net();
  const T* theta = linearization.theta();
  const int num_threads = linearization.num_threads();
  if (l2.weights != 0.0) Vectors<T>(net.num_params, num_threads).add(l2.weights, theta, g);
  add_excess(net, l2, theta, 1, g);
  return weights_.mean(values.data()) + penalty(net, theta, l2, num_threads);
}

template class Objective<float>;
template class Objective<double>;

}  // namespace natgrad
