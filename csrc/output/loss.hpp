// Losses L(y, z) of one case, summed over the C outputs, z the natural parameters. Views hold one tile
// of cases: z (C x cases), y (num_targets x cases) in panels.
//
// Scale conventions of the whole library, fixed by CaseWeights and used nowhere else:
//   h = sum_i w_i L(y_i, z_i) / sum_i w_i + (l2 / 2) |params|^2,    w_i = 1 by default,
// and curvature carries the same weights.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "output/losses/bernoulli_cross_entropy.hpp"
#include "output/losses/gaussian_mean_variance.hpp"
#include "output/losses/poisson.hpp"
#include "output/losses/softmax_cross_entropy.hpp"
#include "output/losses/squared_error.hpp"
#include "output/losses/student_t.hpp"

namespace natgrad {

// One of the losses, with its parameters. Everything that depends on which one asks it by visit().
class Loss {
 public:
  using Any = std::variant<SquaredError,
                           SoftmaxCrossEntropy,
                           BernoulliCrossEntropy,
                           Poisson,
                           StudentT,
                           GaussianMeanVariance>;
  using Parameters = std::map<std::string, double, std::less<>>;

  Loss() = default;
  // The loss of this name; needs a value for each of its parameters.
  Loss(std::string_view name, const Parameters& parameters);
  static std::vector<std::string_view> names();

  // f(struct of the loss)
  template <class F>
  decltype(auto) visit(F&& f) const {
    return std::visit(std::forward<F>(f), any_);
  }

  // See LossDefaults.
  Index num_targets(Index num_outputs) const;
  bool hessian_needs_targets() const;

 private:
  Any any_;
};

// values[i] = L(y_i, z_i), one per column of the view (count * width of them).
template <class T>
void loss_values(const Loss& loss, PanelView<const T> z, PanelView<const T> y, double* values);

// g = dL/dz, (C x cases).
template <class T>
void loss_gradient(const Loss& loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g);

// Means of the predictive laws (N x num_targets) at outputs z (N x C), both row-major.
template <class T>
void predictive_mean(
    const Loss& loss, const T* z, Index num_cases, Index num_outputs, int num_threads, T* mean);

}  // namespace natgrad
