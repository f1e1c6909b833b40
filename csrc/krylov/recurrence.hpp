// Conjugate gradients for one right-hand side, without the products.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "linalg/vectors.hpp"

namespace natgrad {

enum class CgStatus {
  converged,
  relative_progress,
  trust_radius,
  max_iterations,
  stagnated,
  negative_curvature,
  indefinite_preconditioner,
  non_finite,
  stopped,
  interrupted,
  singular,
  out_of_range
};

enum class CgStopping { residual, relative_progress };

enum class CgSignal { go_on, stop, interrupt };

// Of K solves that run together.
struct CgProgress {
  Index iteration;  // of those that have come furthest
  Index num_columns;
  const double* residual_norms;  // (K,), by the recurrence
  const double* quadratics;      // (K,)
};

struct CgOptions {
  double damping = 0.0;
  double rtol = 1e-5;
  double atol = 0.0;
  Index max_iter = 250;
  Index min_iter = 1;
  CgStopping stopping = CgStopping::residual;
  double trust_radius = std::numeric_limits<double>::infinity();
  bool zero_start = false;  // x may be uninitialised, the start is 0
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

template <class T>
struct CgIterate {
  Index iteration;
  double quadratic;
  Buffer<T> x;  // (P,)
};

// Vectors (P,) of one solve, owned by the caller; y and s are used for CgStopping::residual alone, z
// with a preconditioner alone.
template <class T>
struct CgVectors {
  T *x, *r, *p, *q, *z, *y, *s;
};

enum class CgNeed { nothing, poll, preconditioned_residual, product_of_x, product_of_p };

// One solve as a state machine: it stops whenever it needs a product, names the factor (`input`)
// and the place of the result (`output`), and goes on by `advance`. In units of the power of two
// next to |b|: dividing b, x and r by it is exact, and inner products neither under- nor overflow.
template <class T>
class Recurrence {
 public:
  // `shared`: its products are made together with those of other solves.
  Recurrence(Index size,
             bool preconditioned,
             bool shared,
             const CgVectors<T>& w,
             const CgOptions& options,
             std::vector<CgIterate<T>>* iterates)
      : preconditioned_(preconditioned),
        alone_(!shared),
        w_(w),
        options_(options),
        iterates_(iterates),
        vectors_(size, options.num_threads) {}

  void begin(const T* b);

  void advance() { (this->*next_)(); }

  // Ends the solve before its time, unless it is ending already.
  void stop(CgStatus status);

  CgNeed need() const { return need_; }
  const T* input() const;
  T* output() const { return need_ == CgNeed::preconditioned_residual ? w_.z : w_.q; }
  // Whether its products are to be those of a single vector: those of a block are rounded otherwise,
  // and where they put the residual above the tolerance, a single solve might still meet it.
  bool alone() const { return alone_; }
  const CgSummary& summary() const { return summary_; }
  double residual_norm() const { return unit_ * std::sqrt(rr_); }
  double value() const { return unit_ * (unit_ * phi_); }

 private:
  using Continuation = void (Recurrence::*)();

  void wait(CgNeed need, Continuation next);
  void done();
  void scale_units(double x_norm);
  bool small(double rr) const { return std::sqrt(rr) <= tolerance_ || rr == 0.0; }
  // Whether the residual of the recurrence is `times` its floor at most, far below the rounding of
  // A x: it says nothing about x, and inner products with it nothing about A.
  bool at_floor(double times) const { return std::sqrt(rr_) <= times * floor_; }

  // r = b - (A + damping I) x, given q = A x; returns how far r was from it.
  double refresh();
  // phi = x' (A + damping I) x / 2 - b'x = -x'(b + r) / 2
  double quadratic() { return -0.5 * vectors_.dot_with_sum(w_.x, 1.0 / unit_, b_, w_.r); }

  // The way from the start through the iterations: every function goes on to the next one or waits.
  void started_from_x();
  void started();
  void go_on();
  void preconditioned();
  void set_direction(const T* z, double rz);
  // x += length p, given q = A p. Where that can not be done, x stays the iterate before or goes to
  // the sphere.
  void step();
  void stepped();
  // What a direction p without positive curvature says of A + damping I. Beyond the rounding of
  // p'(A + damping I) p, eps |A| |p|^2, it is negative.
  CgStatus without_curvature(double curvature);
  // Whether p'(A + damping I) p is what an error eps |p| of p adds to it: eps^2 |A| |p|^2.
  bool is_flat(double curvature);
  void measure_operator();
  void verify();

  // Residual smoothing (Schoenauer; Weiss 1996): y_k = y_{k-1} + weight (x_k - y_{k-1}) with the
  // residual s_k = s_{k-1} + weight (r_k - s_{k-1}), weight in [0, 1] so that |s_k| is least. Without
  // preconditioner |s_k| is what MINRES attains. It begins with the first residual that is longer
  // than the one before, and y replaces x as soon as s is small enough.
  void choose_weight(double rr, double sr, double ss);
  bool smoothed_is_small() const;
  void take_smoothed();

  // Whether |x + length p| reaches the radius, or nothing but the radius bounds the step; x then is
  // the point of the sphere. The margin is the rounding of x + length p, whose terms are at most 2
  // radii long.
  bool crosses_sphere(bool unbounded, double length, double curvature);
  // |x| <= radius in spite of rounding, also when the squares are added up in another order.
  void shrink_to_radius();
  bool progress_is_small(Index i) const;
  void keep_iterate();
  void keep_last();

  // The true residual and quadratic of the iterate, or of the start if that was better. Where
  // products are not finite any more, what the recurrence says of the last iterate.
  void finish(CgStatus status);
  void finish_from_x();
  void finish_from_residual();
  void compare_with_start();
  void back_at_start();
  void conclude();
  // x in the caller's units; where T cannot hold them, what is left of it, and its true residual.
  void scale_back();
  void shorten(double ratio);
  void concluded_from_x();
  void judge();
  // Nothing can be said about x: it is left as it is.
  void give_up(CgStatus status);

  bool preconditioned_, alone_;
  CgVectors<T> w_;
  const T* b_ = nullptr;  // in the caller's units
  const CgOptions& options_;
  std::vector<CgIterate<T>>* iterates_;
  Vectors<T> vectors_;
  Buffer<T> start_;
  CgNeed need_ = CgNeed::nothing;
  Continuation next_ = nullptr;
  double b_norm_ = 0.0, unit_ = 1.0, tolerance_ = 0.0, radius_ = 0.0, floor_ = 0.0;
  double a_norm_ = 0.0;                                       // largest |q| / |p| seen, at most |A|
  double steepest_ = 0.0;                                     // largest p'(A + damping I) p / r'z
  double rr_ = 0.0, rz_ = 0.0, phi_ = 0.0, start_phi_ = 0.0;  // r'r, r'z, quadratic
  double true_norm_ = std::numeric_limits<double>::infinity();  // |r| when last computed from x
  double next_kept_ = 5.0;  // the first iterate at or after it is kept
  bool restart_ = true;     // the next direction is z, without the one before
  bool start_is_zero_ = true, residual_is_true_ = true, is_bounded_ = false;
  bool is_small_ = false;  // by the recurrence
  bool is_steep_ = false;  // whether the last step was long: of curvature next to the rounding of A
  bool smooths_ = false;
  double weight_ = 1.0, smoothed_ = 0.0;  // of x_k in y_k, |s_k|^2; y and s are one step behind
  bool ending_ = false, is_back_ = false;
  int tries_ = 0;             // at a residual that no longer falls
  std::vector<double> phis_;  // phi_0 .. phi_i
  CgSummary summary_;
};

}  // namespace natgrad
