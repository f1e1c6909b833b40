#pragma once

#include <vector>

#include "krylov/recurrence.hpp"
#include "linalg/operator.hpp"

namespace natgrad {

// Preconditioned conjugate gradients for (A + damping I) x_k = b_k, K right-hand sides in lockstep:
// every round is one block product for the columns that have not stopped.
//
// b, x (K x P); x holds the starts on entry, unless options.zero_start, the solutions on return. `preconditioner` approximates
// the inverse of A + damping I; null for none. Stopping, for each column by itself:
//   residual           |r| <= max(rtol |b|, atol), r = b - (A + damping I) x computed from x; where
//                      |r| does not fall monotonically, x may be the mean of the iterates with the
//                      least residual (smoothing), which needs fewer iterations
//   relative_progress  i > k, phi_i < 0 and (phi_i - phi_{i-k}) / phi_i < 5e-4 k, for phi the
//                      quadratic and k = max(10, ceil(0.1 i)): the rule and the constants of
//                      Martens' Hessian-free code; or |r| <= atol
//   trust_radius       the next iterate would have |x| > trust_radius: x is where the step crosses
//                      the sphere (Steihaug 1983, Toint 1981). Starts must lie within.
// Everything is scaled by powers of two, so that no number leaves the range of T but x itself:
// `out_of_range` then, and x is shrunk or rounded to what T holds. r is computed from x every 50
// iterations, before `converged` is returned and at the end. An accuracy out of reach of T is
// `stagnated`. `negative_curvature` and `indefinite_preconditioner` are never said of what rounding
// could have done; `singular` is A + damping I without curvature along a direction of b, or so to
// rounding. x then is the iterate of least smoothed residual, for a bad preconditioner or negative
// curvature the last one, or with a finite trust_radius the point of the sphere in that direction. x
// is never worse in the quadratic than the start.
// `iterates`, for K = 1, receives the iterates i = ceil(5 1.3^j), j = 0, 1, .. and the last one.
// One iteration costs one product and about 10 P flops for each column.
template <class T>
std::vector<CgSummary> conjugate_gradients(LinearOperator<T>& a,
                                           LinearOperator<T>* preconditioner,
                                           const T* b,
                                           Index num_columns,
                                           T* x,
                                           const CgOptions& options,
                                           std::vector<CgIterate<T>>* iterates = nullptr);

// The same for one right-hand side.
template <class T>
CgSummary conjugate_gradients(LinearOperator<T>& a,
                              LinearOperator<T>* preconditioner,
                              const T* b,
                              T* x,
                              const CgOptions& options);

}  // namespace natgrad
