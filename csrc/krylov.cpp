#include "krylov.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "vectors.hpp"

namespace natgrad {
namespace {

constexpr Index refresh_period = 50;
// A residual computed from x that differs by this part of its norm from the recurrence's consists
// of rounding errors; if it is also more than stagnation_ratio of the one before, no more digits
// are to be had.
constexpr double drift_ratio = 0.5;
constexpr double stagnation_ratio = 0.5;
// Relative-progress stop: smallest mean progress per iteration, and iterations looked back.
constexpr double progress_per_iteration = 5e-4;
Index look_back(Index i) {
  return std::max<Index>(10, (i + 9) / 10);
}

// One solve, in units of the power of two next to |b|: dividing b, x and r by it is exact, and inner
// products neither under- nor overflow.
template <class T>
class Solve {
 public:
  Solve(LinearOperator<T>& a,
        LinearOperator<T>* preconditioner,
        const T* b,
        T* x,
        const CgOptions& options)
      : a_(a),
        preconditioner_(preconditioner),
        x_(x),
        options_(options),
        vectors_(a.size(), options.num_threads),
        b_(a.size()),
        r_(a.size()),
        p_(a.size()),
        q_(a.size()) {
    if (preconditioner) z_ = Buffer<T>(a.size());
    b_norm_ = vectors_.norm(b);
    if (!std::isfinite(b_norm_) || b_norm_ == 0.0) return;
    // A start much larger than b must stay within the range of T as well.
    const double range = std::sqrt(static_cast<double>(std::numeric_limits<T>::max()));
    const double length = std::max(b_norm_, vectors_.norm(x) / range);
    if (std::isfinite(length)) unit_ = std::exp2(std::round(std::log2(length)));
    vectors_.scale(1.0 / unit_, b, b_.data());
  }

  CgSummary run() {
    if (!std::isfinite(b_norm_)) return give_up(CgStatus::non_finite);
    if (b_norm_ == 0.0) {
      vectors_.fill(T(0), x_);
      summary_.status = CgStatus::converged;
      return summary_;
    }
    start();
    if (!std::isfinite(rr_)) return give_up(CgStatus::non_finite);
    if (!start_is_zero_) {
      start_ = Buffer<T>(a_.size());
      vectors_.copy(x_, start_.data());
    }
    tolerance_ = options_.atol / unit_;
    if (options_.stopping == CgStopping::residual)
      tolerance_ = std::max(tolerance_, options_.rtol * b_norm_ / unit_);
    return finish(iterate());
  }

 private:
  bool small(double rr) const { return std::sqrt(rr) <= tolerance_ || rr == 0.0; }

  void start() {
    vectors_.scale(1.0 / unit_, x_, x_);
    start_is_zero_ = vectors_.norm(x_) == 0.0;
    if (start_is_zero_) {
      vectors_.copy(b_.data(), r_.data());
      rr_ = vectors_.dot(r_.data(), r_.data());
    } else {
      vectors_.fill(T(0), r_.data());
      refresh();
    }
    phi_ = start_phi_ = quadratic();
    phis_.reserve(static_cast<std::size_t>(std::min<Index>(options_.max_iter, 1 << 16)) + 1);
    phis_.push_back(phi_);
  }

  // r = b - (A + damping I) x, from x; returns how far r was from it.
  double refresh() {
    a_.apply(x_, q_.data());
    ++summary_.matvecs;
    vectors_.add(options_.damping, x_, q_.data());
    double drift = 0.0;
    rr_ = vectors_.replace_residual(b_.data(), q_.data(), r_.data(), &drift);
    residual_is_true_ = true;
    return drift;
  }

  // phi = x' (A + damping I) x / 2 - b'x = -x'(b + r) / 2
  double quadratic() { return -0.5 * (vectors_.dot(x_, b_.data()) + vectors_.dot(x_, r_.data())); }

  CgStatus iterate() {
    const bool at_once = options_.stopping == CgStopping::residual || options_.min_iter == 0;
    if (rr_ == 0.0 || (at_once && small(rr_))) return CgStatus::converged;
    for (Index i = 1; i <= options_.max_iter; ++i) {
      if (const auto failure = step()) return *failure;
      summary_.iterations = i;
      phis_.push_back(phi_);
      const bool may_stop = i >= options_.min_iter;
      if (may_stop && progress_is_small(i)) return CgStatus::relative_progress;
      const bool verify = may_stop && small(rr_);
      if (verify || i % refresh_period == 0) {
        const double last = true_norm_, drift = refresh();
        true_norm_ = std::sqrt(rr_);
        if (may_stop && small(rr_)) return CgStatus::converged;
        // Mostly rounding errors: the directions have lost their meaning, and maybe all was had
        // that can be.
        restart_ = verify || drift > drift_ratio * true_norm_;
        if (restart_ && true_norm_ > stagnation_ratio * last) return CgStatus::stagnated;
      }
      const CgSignal signal = poll(i);
      if (signal == CgSignal::stop) return CgStatus::stopped;
      if (signal == CgSignal::interrupt) return CgStatus::interrupted;
    }
    return CgStatus::max_iterations;
  }

  // One iteration; a status if it can not be done, x then is the iterate before.
  std::optional<CgStatus> step() {
    const T* z = r_.data();
    double rz = rr_;
    if (preconditioner_) {
      preconditioner_->apply(r_.data(), z_.data());
      z = z_.data();
      rz = vectors_.dot(r_.data(), z);
      if (!std::isfinite(rz)) return CgStatus::non_finite;
      if (rz <= 0.0) return CgStatus::indefinite_preconditioner;
    }
    if (restart_) {
      vectors_.copy(z, p_.data());
    } else {
      vectors_.add_scaled(z, rz / rz_, p_.data());
    }
    restart_ = false;
    rz_ = rz;
    a_.apply(p_.data(), q_.data());
    ++summary_.matvecs;
    const double curvature = vectors_.shift_and_dot(options_.damping, p_.data(), q_.data());
    const double length = rz / curvature;
    if (!std::isfinite(curvature)) return CgStatus::non_finite;
    if (curvature <= 0.0 || !std::isfinite(length)) return CgStatus::negative_curvature;
    rr_ = vectors_.cg_update(length, p_.data(), q_.data(), x_, r_.data());
    residual_is_true_ = false;
    phi_ -= 0.5 * length * rz;
    if (!std::isfinite(rr_)) return CgStatus::non_finite;
    return std::nullopt;
  }

  bool progress_is_small(Index i) const {
    const Index k = look_back(i);
    if (options_.stopping != CgStopping::relative_progress || i <= k || phi_ >= 0.0) return false;
    const double before = phis_[static_cast<std::size_t>(i - k)];
    return (phi_ - before) / phi_ < progress_per_iteration * static_cast<double>(k);
  }

  CgSignal poll(Index i) const {
    if (!options_.poll) return CgSignal::go_on;
    return options_.poll({i, unit_ * std::sqrt(rr_), unit_ * (unit_ * phi_)});
  }

  // The true residual and quadratic of the iterate, or of the start if that was better; back to the
  // units of b. Where products are not finite any more, what the recurrence says of the last iterate.
  CgSummary finish(CgStatus status) {
    const bool by_recurrence = status == CgStatus::non_finite && std::isfinite(rr_);
    if (!by_recurrence) {
      if (!residual_is_true_) refresh();
      phi_ = quadratic();
    }
    if (!(phi_ <= start_phi_)) back_to_start();
    vectors_.scale(unit_, x_, x_);
    summary_.status = status;
    summary_.residual_norm = unit_ * std::sqrt(rr_);
    summary_.quadratic = unit_ * (unit_ * phi_);
    return summary_;
  }

  void back_to_start() {
    if (start_is_zero_) {
      vectors_.fill(T(0), x_);
    } else {
      vectors_.copy(start_.data(), x_);
    }
    refresh();
    phi_ = start_phi_;
  }

  // Nothing can be said about x: it is left as it is.
  CgSummary give_up(CgStatus status) {
    vectors_.scale(unit_, x_, x_);
    summary_.status = status;
    summary_.residual_norm = summary_.quadratic = std::numeric_limits<double>::quiet_NaN();
    return summary_;
  }

  LinearOperator<T>& a_;
  LinearOperator<T>* preconditioner_;
  T* x_;
  const CgOptions& options_;
  Vectors<T> vectors_;
  Buffer<T> b_, r_, p_, q_, z_, start_;
  double b_norm_ = 0.0, unit_ = 1.0, tolerance_ = 0.0;
  double rr_ = 0.0, rz_ = 0.0, phi_ = 0.0, start_phi_ = 0.0;    // r'r, r'z, quadratic
  double true_norm_ = std::numeric_limits<double>::infinity();  // |r| when last computed from x
  bool restart_ = true;  // the next direction is z, without the one before
  bool start_is_zero_ = true, residual_is_true_ = true;
  std::vector<double> phis_;  // phi_0 .. phi_i
  CgSummary summary_;
};

}  // namespace

template <class T>
void DiagonalOperator<T>::apply(const T* x, T* y) {
  for (Index i = 0; i < size_; ++i) y[i] = diagonal_[i] * x[i];
}

template <class T>
CgSummary conjugate_gradients(LinearOperator<T>& a,
                              LinearOperator<T>* preconditioner,
                              const T* b,
                              T* x,
                              const CgOptions& options) {
  return Solve<T>(a, preconditioner, b, x, options).run();
}

#define NATGRAD_INSTANTIATE(T)            \
  template class DiagonalOperator<T>;     \
  template CgSummary conjugate_gradients( \
      LinearOperator<T>&, LinearOperator<T>*, const T*, T*, const CgOptions&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
