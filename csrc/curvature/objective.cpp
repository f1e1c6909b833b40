#include "curvature/objective.hpp"

#include <algorithm>
#include <utility>

#include "base/parallel.hpp"
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
double Objective<T>::evaluate_backward(
    Linearization<T>& linearization, const std::function<void(const OutputPass<T>&)>& back) const {
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
  back({prepare, seed});
  return weights_.mean(values.data());
}

template <class T>
void Objective<T>::add_decay(Linearization<T>& linearization, Shift l2, T* g) const {
  const Architecture& net = linearization.net();
  const T* theta = linearization.theta();
  if (l2.weights != 0.0)
    Vectors<T>(net.num_params, linearization.num_threads()).add(l2.weights, theta, g);
  add_excess(net, l2, theta, 1, g);
}

template <class T>
double Objective<T>::value_and_gradient(Linearization<T>& linearization, Shift l2, T* g) const {
  const double mean = evaluate_backward(
      linearization, [&](const OutputPass<T>& pass) { linearization.pull_back(pass, 1, g); });
  add_decay(linearization, l2, g);
  return mean +
         penalty(linearization.net(), linearization.theta(), l2, linearization.num_threads());
}

template <class T>
double Objective<T>::value_and_gradients(
    Linearization<T>& linearization, Shift l2, Index part, T* g, T* first, T* second) const {
  check(part > 0 && part < num_cases() && part % Tile<T>::width == 0,
        "the part must be whole panels and not all cases, got ",
        part);
  const double mean = evaluate_backward(linearization, [&](const OutputPass<T>& pass) {
    linearization.pull_back_parts(pass, part, first, g);
  });
  // sums over all cases and over the first, each by the weight of all: w = w_first + w_second
  const double w_first = weights_.share(0, part), w_second = weights_.share(part, num_cases());
  const T of_first = static_cast<T>((w_first + w_second) / w_first);
  const T of_second = static_cast<T>((w_first + w_second) / w_second);
  const Index size = linearization.net().num_params;
  constexpr Index piece = Index{1} << 14;
  parallel_for((size + piece - 1) / piece, linearization.num_threads(), [&](Index i, int) {
    for (Index k = i * piece; k < std::min(size, (i + 1) * piece); ++k) {
      second[k] = of_second * (g[k] - first[k]);
      first[k] *= of_first;
    }
  });
  for (T* gradient : {g, first, second}) add_decay(linearization, l2, gradient);
  return mean +
         penalty(linearization.net(), linearization.theta(), l2, linearization.num_threads());
}

template class Objective<float>;
template class Objective<double>;

}  // namespace natgrad
