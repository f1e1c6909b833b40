// The objective h(theta) = sum_i w_i L(y_i, z_i) / sum_i w_i + theta' S theta / 2 of one batch, S = l2.
#pragma once

#include "net/linearization.hpp"
#include "net/shift.hpp"
#include "output/case_weights.hpp"
#include "output/loss.hpp"

namespace natgrad {

template <class T>
class Objective {
 public:
  // Targets (C x N) in panels, columns past N repeating the last case (pack_cases).
  Objective(Loss loss, Panels<T> targets, CaseWeights<T> weights);
  Index num_cases() const { return weights_.num_cases(); }

  // h; x (N x d_0). Forward pass only: 2 N P flops, nothing kept.
  double value(
      const Architecture& net, const T* theta, const T* x, Shift l2, int num_threads) const;
  // h, and g = dh/dtheta (P,), where the net was linearised. Backward pass only: 4 N P flops.
  double value_and_gradient(Linearization<T>& linearization, Shift l2, T* g) const;
  // The same, and the gradients of the first `part` cases, whole panels and not all, and of the
  // others, each a mean over its cases, with l2; O(P) more. g differs in the last bits.
  double value_and_gradients(
      Linearization<T>& linearization, Shift l2, Index part, T* g, T* first, T* second) const;

 private:
  // `back` pulls what the pass writes back to parameters.
  double evaluate_backward(Linearization<T>& linearization,
                           const std::function<void(const OutputPass<T>&)>& back) const;
  // g += S theta
  void add_decay(Linearization<T>& linearization, Shift l2, T* g) const;

  Loss loss_;
  Panels<T> targets_;
  CaseWeights<T> weights_;
};

}  // namespace natgrad
