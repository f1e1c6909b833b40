#pragma once

#include <vector>

#include "krylov/recurrence.hpp"
#include "linalg/operator.hpp"

namespace natgrad {

struct MultishiftOptions {
  double rtol = 1e-5;
  double atol = 0.0;
  Index max_iter = 250;
  bool verify = false;
  int num_threads = 1;
  // Asked between iterations, on the calling thread, with the norms and quadratics of all shifts.
  std::function<CgSignal(const CgProgress&)> poll;
};

struct MultishiftSummary {
  std::vector<CgSummary> shifts;  // (m,); their matvecs are left at zero, being shared
  Index matvecs = 0;
};

// Conjugate gradients for (A + dampings_j I) x_j = b, j < m, in one Krylov run: shifted systems have
// collinear residuals, r_j = zeta_j r for those r of the system with the smallest damping
// (Frommer and Maass, SIAM J. Sci. Comput. 20, 1999; Jegerlehner, hep-lat/9612014).
//
// x (m x P) receives the solutions, started from zero. A shift stops when |zeta_j r| <=
// max(rtol |b|, atol) and costs nothing any more. residual_norm is that of the recurrence; with
// `verify` it is computed from x by one block product, and a shift that is off by more than a
// factor 2 of its tolerance is `stagnated`.
// If A + dampings_j I is found not to be positive definite, or singular to rounding, shift j stops with
// its last iterate and the larger dampings, where they are not refuted by the same direction, start
// again without it; all residuals are then computed from x. Units and verdicts are those of
// conjugate_gradients.
// One iteration costs one product, 6 P flops, and 4 P for each shift that has not stopped.
template <class T>
MultishiftSummary multishift_conjugate_gradients(LinearOperator<T>& a,
                                                 const T* b,
                                                 const std::vector<double>& dampings,
                                                 T* x,
                                                 const MultishiftOptions& options);

}  // namespace natgrad
