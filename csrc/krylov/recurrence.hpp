// Conjugate gradients for one right-hand side, without the products.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "krylov/ball.hpp"
#include "krylov/smoothing.hpp"
#include "krylov/units.hpp"

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

enum class CgNeed {
  nothing,
  poll,
  preconditioned_residual,
  product_of_x,
  product_of_p,
  product_of_q
};

// One solve as a state machine: it stops whenever it needs a product, names the factor (`input`), the
// place of the result (`output`) and the unit of the operator, and goes on by `advance`. b and r are
// in units of the power of two next to |b|, A and the preconditioner in those of `OperatorUnit`, x in
// the quotient: that is exact, and inner products neither under- nor overflow.
//
// What rounding can do is never said of the matrix. Products are taken to be right to 100 eps of their
// largest size: p'(A + damping I)p is negative only below -100 eps |A + damping I| |p|^2, and a residual
// within 100 eps (|A + damping I| |x| + |b|) is rounding. |A + damping I| is the greatest |A p| / |p| seen.
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
        shared_(shared),
        alone_(!shared),
        w_(w),
        options_(options),
        iterates_(iterates),
        vectors_(size, options.num_threads),
        smoothing_(w.y, w.s) {}

  void begin(const T* b);

  void advance() { (this->*next_)(); }

  // Ends the solve before its time, unless it is ending already.
  void stop(CgStatus status);
  // The product that is waited for will not come.
  void interrupt();

  CgNeed need() const { return need_; }
  const OperatorUnit<T>& unit() const {
    return need_ == CgNeed::preconditioned_residual ? m_unit_ : a_unit_;
  }
  const T* input() const;
  T* output() const;
  // Whether its products are to be those of a single vector: those of a block are rounded otherwise,
  // and where they put the residual above the tolerance, a single solve might still meet it.
  bool alone() const { return alone_; }
  const CgSummary& summary() const { return summary_; }
  double residual_norm() const { return unit_ * std::sqrt(rr_); }
  double value() const { return value_of(phi_); }

 private:
  using Continuation = void (Recurrence::*)();

  void wait(CgNeed need, Continuation next);
  void done();
  // Units for b, and from them all that is measured in x.
  void choose_units();
  // That of A, from q = A v, once; whether the product has to be made again.
  bool learn_unit(const T* v);
  int x_exponent() const { return b_exponent_ - a_unit_.exponent(); }
  double value_of(double phi) const { return std::ldexp(phi, b_exponent_ + x_exponent()); }
  bool small(double rr) const { return std::sqrt(rr) <= tolerance_ || rr == 0.0; }

  // r = b - (A + damping I) x, given q = A x; returns how far r was from it, or NaN, and rr as it was,
  // where the product is not finite.
  double refresh();
  // phi = x' (A + damping I) x / 2 - b'x = -x'(b + r) / 2
  double quadratic() { return -0.5 * vectors_.dot_with_sum(w_.x, 1.0 / unit_, b_, w_.r); }
  // Learns |p|, and |A + damping I| from q = A p.
  void measure();
  bool is_rounding();  // the residual, which is that of x
  // The rounding of A x is longer than b and than the first residual: so ill-conditioned is A + damping I.
  bool is_too_long(double margin);

  // The way from the start through the iterations: every function goes on to the next one or waits.
  void started_from_x();
  void started();
  void go_on();
  void preconditioned();
  void set_direction(const T* z, double rz);
  // x += length p, given q = A p. Where that can not be done, x stays the iterate before or goes to
  // the sphere.
  void step();
  void update(double length);
  // p'(A + damping I)p, or r'z, is not positive: `status`, unless the residual is rounding.
  void break_down(CgStatus status);
  void probed();
  void judge_from_x();
  void judge();
  void finish_at_sphere(CgStatus status);
  void stepped();
  void verify();
  // Of the residuals that were computed from x, when the directions began anew: x may get worse then
  // before it gets better.
  void keep_best();
  void take_best(double norm);
  // No more digits are to be had: the best x so far. But a column of a block that is near its tolerance
  // is solved anew as a single right-hand side would be, so it gives up where that does.
  void stagnate();
  void begin_again();
  void begun_again();

  bool progress_is_small(Index i) const;
  void keep_iterate();
  void keep_last();

  // The true residual and quadratic of what is returned: of the iterate, or of the start if that was
  // better, as far as T can hold it in the caller's units. Where products are not finite any more,
  // what the recurrence says of the last iterate.
  void finish(CgStatus status);
  void finish_from_x();
  void finish_from_residual();
  void compare_with_start();
  void copy_start();
  void go_back();
  void conclude();
  void conclude_from_x();
  void publish();
  // Nothing can be said about x: it is left as it is.
  void give_up(CgStatus status);

  bool preconditioned_, shared_, alone_;
  CgVectors<T> w_;
  const T* b_ = nullptr;  // in the caller's units
  const CgOptions& options_;
  std::vector<CgIterate<T>>* iterates_;
  Vectors<T> vectors_;
  Buffer<T> start_, best_;
  CgNeed need_ = CgNeed::nothing;
  Continuation next_ = nullptr;
  OperatorUnit<T> a_unit_, m_unit_;
  Ball<T> ball_;
  // It begins with the first residual that is longer than the one before; y replaces x as soon as s is
  // small enough.
  Smoothing<T> smoothing_;
  int b_exponent_ = 0;
  double unit_ = 1.0;                           // 2^b_exponent
  double b_length_ = 0.0, start_length_ = 0.0;  // log2 of |b| and |x0|, in the caller's units
  double b_norm_ = 0.0, tolerance_ = 0.0, shift_ = 0.0;
  double rr_ = 0.0, rz_ = 0.0, phi_ = 0.0;  // r'r, r'z, quadratic
  double curvature_ = 0.0;                  // p'(A + damping I)p
  double pp_ = 0.0, p_norm_ = 0.0,
         q_norm_ = 0.0;  // p'M^-1 p by the recurrence, |p| and |q| when last measured
  double start_rr_ = 0.0, start_phi_ = std::numeric_limits<double>::infinity();
  double a_norm_ = 0.0, m_norm_ = 0.0, top_ = 0.0;  // |A + damping I|, |M|, greatest curvature / pp
  double true_norm_ = std::numeric_limits<double>::infinity();  // |r| when last computed from x
  double best_norm_ = std::numeric_limits<double>::infinity();  // that of best_
  double next_kept_ = 5.0;   // the first iterate at or after it is kept
  Index first_ = 0;          // iterations before this solve was begun anew
  Index next_measured_ = 0;  // at that iteration |A + damping I| is measured
  bool restart_ = true;      // the next direction is z, without the one before
  bool start_is_zero_ = true, residual_is_true_ = true;
  bool is_small_ = false, is_exhausted_ = false;  // by the recurrence
  bool ending_ = false, is_back_ = false, has_overflowed_ = false;
  CgStatus doubt_ = CgStatus::stagnated;  // what is said if the residual is not rounding
  int tries_ = 0;                         // at a residual that no longer falls
  std::vector<double> phis_;              // phi_0 .. phi_i
  CgSummary summary_;
};

}  // namespace natgrad
