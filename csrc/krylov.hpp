#pragma once

#include <functional>

#include "types.hpp"

namespace natgrad {

enum class CgStatus {
  converged,
  relative_progress,
  max_iterations,
  stagnated,
  negative_curvature,
  indefinite_preconditioner,
  non_finite,
  stopped,
  interrupted
};

enum class CgStopping { residual, relative_progress };

enum class CgSignal { go_on, stop, interrupt };

struct CgProgress {
  Index iteration;
  double residual_norm;  // by the recurrence
  double quadratic;
};

struct CgOptions {
  double damping = 0.0;
  double rtol = 1e-5;
  double atol = 0.0;
  Index max_iter = 250;
  Index min_iter = 1;
  CgStopping stopping = CgStopping::residual;
  int num_threads = 1;
  // Asked between iterations, on the calling thread.
  std::function<CgSignal(const CgProgress&)> poll;
};

struct CgSummary {
  CgStatus status = CgStatus::max_iterations;
  Index iterations = 0;
  Index matvecs = 0;
  double residual_norm = 0.0;  // |b - (A + damping I) x|, computed from x
  double quadratic = 0.0;      // x' (A + damping I) x / 2 - b'x
};

// y = d . x
template <class T>
class DiagonalOperator final : public LinearOperator<T> {
 public:
  DiagonalOperator(const T* diagonal, Index size) : diagonal_(diagonal), size_(size) {}
  Index size() const override { return size_; }
  void apply(const T* x, T* y) override;

 private:
  const T* diagonal_;
  Index size_;
};

// Preconditioned conjugate gradients for (A + damping I) x = b.
//
// x holds the start on entry, the solution on return. `preconditioner` approximates the inverse of
// A + damping I; null for none. Stopping:
//   residual           |r| <= max(rtol |b|, atol), r = b - (A + damping I) x computed from x
//   relative_progress  i > k, phi_i < 0 and (phi_i - phi_{i-k}) / phi_i < 5e-4 k, for phi the
//                      quadratic and k = max(10, ceil(0.1 i)): the rule and the constants of
//                      Martens' Hessian-free code; or |r| <= atol
// b is scaled to a length near 1, so that inner products neither under- nor overflow. r is computed
// from x every 50 iterations, before `converged` is returned and at the end; an accuracy out of
// reach of T is `stagnated`. A stop for negative curvature or a bad preconditioner leaves the last
// iterate in x, and x is never worse in the quadratic than the start.
// One iteration costs one product and about 10 P flops.
template <class T>
CgSummary conjugate_gradients(LinearOperator<T>& a,
                              LinearOperator<T>* preconditioner,
                              const T* b,
                              T* x,
                              const CgOptions& options);

}  // namespace natgrad
