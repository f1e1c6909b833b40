#include "krylov/recurrence.hpp"

#include <algorithm>
#include <cmath>

#include "krylov/rounding.hpp"

namespace natgrad {
namespace {

constexpr Index refresh_period = 50;
// A residual computed from x that differs by this part of its norm from the recurrence's consists
// of rounding errors; if it is also more than stagnation_ratio of the one before, no more digits
// are to be had.
constexpr double drift_ratio = 0.5;
constexpr double stagnation_ratio = 0.5;
// But where the tolerance lies at the rounding of A x, chance decides on which side of it a residual
// falls: close to it a solve is begun anew from its iterate, a few iterations each, this many times.
constexpr double near_ratio = 4.0;
constexpr int most_tries = 10;
// Relative-progress stop: smallest mean progress per iteration, and iterations looked back.
constexpr double progress_per_iteration = 5e-4;
Index look_back(Index i) {
  return std::max<Index>(10, (i + 9) / 10);
}

}  // namespace

template <class T>
void Recurrence<T>::begin(const T* b) {
  b_ = b;
  const double length = vectors_.norm(b);
  if (options_.zero_start) vectors_.fill(T(0), w_.x);
  if (std::isnan(length)) return give_up(CgStatus::non_finite);
  if (length == 0.0) {
    vectors_.fill(T(0), w_.x);
    summary_.status = CgStatus::converged;
    return done();
  }
  const double x_norm = options_.zero_start ? 0.0 : vectors_.norm(w_.x);
  b_length_ = log2_of(vectors_, b, length);
  start_length_ = log2_of(vectors_, w_.x, x_norm);
  start_is_zero_ = residual_is_true_ = x_norm == 0.0;
  choose_units();
  if (start_is_zero_) return started();
  vectors_.scale_by_power(-x_exponent(), w_.x, w_.x);
  wait(CgNeed::product_of_x, &Recurrence<T>::started_from_x);
}

template <class T>
void Recurrence<T>::stop(CgStatus status) {
  if (!ending_) finish(status);
}

template <class T>
const T* Recurrence<T>::input() const {
  if (need_ == CgNeed::preconditioned_residual) return w_.r;
  if (need_ == CgNeed::product_of_q) return w_.q;
  return need_ == CgNeed::product_of_x ? w_.x : w_.p;
}

template <class T>
T* Recurrence<T>::output() const {
  if (need_ == CgNeed::product_of_q) return w_.r;
  return need_ == CgNeed::preconditioned_residual ? w_.z : w_.q;
}

template <class T>
void Recurrence<T>::wait(CgNeed need, Continuation next) {
  need_ = need;
  next_ = next;
}

template <class T>
void Recurrence<T>::choose_units() {
  constexpr double top = static_cast<double>(std::numeric_limits<T>::max());
  // A start much larger than b, and its product, must stay within the range of T as well.
  const double start = start_length_ + a_unit_.exponent() - 0.5 * std::log2(top);
  b_exponent_ = std::clamp(exponent_of(std::max(b_length_, start)), -1000, 1022);
  unit_ = std::exp2(b_exponent_);
  shift_ = std::ldexp(options_.damping, -a_unit_.exponent());
  vectors_.scale(1.0 / unit_, b_, w_.r);
  rr_ = vectors_.dot(w_.r, w_.r);
  b_norm_ = std::sqrt(rr_);
  tolerance_ = options_.atol / unit_;
  if (options_.stopping == CgStopping::residual)
    tolerance_ = std::max(tolerance_, options_.rtol * b_norm_);
  ball_.set(options_.trust_radius, x_exponent());
}

template <class T>
bool Recurrence<T>::learn_unit(const T* v) {
  if (a_unit_.is_known()) return false;
  // |x| <= radius is about what a damping |b| / radius does.
  const double damping = std::log2(options_.damping);
  const double bound = b_length_ - std::log2(options_.trust_radius);
  return a_unit_.learn(vectors_.norm(v), vectors_.norm(w_.q), damping, std::max(damping, bound));
}

template <class T>
double Recurrence<T>::refresh() {
  ++summary_.matvecs;
  const auto [square, drift] = vectors_.replace_residual(1.0 / unit_, b_, shift_, w_.x, w_.q, w_.r);
  if (!std::isfinite(square)) return std::numeric_limits<double>::quiet_NaN();
  rr_ = square;
  residual_is_true_ = true;
  // r may have held anything
  return std::isnan(drift) ? std::numeric_limits<double>::infinity() : drift;
}

template <class T>
void Recurrence<T>::measure() {
  next_measured_ = std::max<Index>(1, 4 * summary_.iterations);
  p_norm_ = vectors_.norm(w_.p);
  q_norm_ = vectors_.norm(w_.q);
  a_norm_ = std::max(a_norm_, q_norm_ / p_norm_ + shift_);
}

template <class T>
bool Recurrence<T>::is_rounding() {
  return std::sqrt(rr_) <= Rounding<T>::of_product * (a_norm_ * vectors_.norm(w_.x) + b_norm_);
}

template <class T>
bool Recurrence<T>::is_too_long(double margin) {
  const double rounding = margin * Rounding<T>::eps * a_norm_ * vectors_.norm(w_.x);
  return rounding > std::max(b_norm_, std::sqrt(start_rr_));
}

template <class T>
void Recurrence<T>::started_from_x() {
  const int before = x_exponent();
  if (learn_unit(w_.x)) {
    ++summary_.matvecs;
    choose_units();
    vectors_.scale_by_power(before - x_exponent(), w_.x, w_.x);
    return wait(CgNeed::product_of_x, &Recurrence<T>::started_from_x);
  }
  if (std::isnan(refresh())) return give_up(CgStatus::non_finite);
  started();
}

template <class T>
void Recurrence<T>::started() {
  start_rr_ = rr_;
  phi_ = start_phi_ = start_is_zero_ ? 0.0 : quadratic();
  phis_.reserve(static_cast<std::size_t>(std::min<Index>(options_.max_iter, 1 << 16)) + 1);
  phis_.push_back(phi_);
  if (!start_is_zero_) {
    start_ = Buffer<T>(vectors_.size());
    vectors_.copy(w_.x, start_.data());
  }
  const bool at_once = options_.stopping == CgStopping::residual || options_.min_iter == 0;
  if (rr_ == 0.0 || (at_once && small(rr_))) return finish(CgStatus::converged);
  go_on();
}

template <class T>
void Recurrence<T>::go_on() {
  if (summary_.iterations >= options_.max_iter) {
    if (first_ > 0) return stagnate();
    take_best(std::sqrt(rr_));
    return finish(CgStatus::max_iterations);
  }
  if (preconditioned_) return wait(CgNeed::preconditioned_residual, &Recurrence<T>::preconditioned);
  set_direction(w_.r, rr_);
}

template <class T>
void Recurrence<T>::preconditioned() {
  const double length = std::sqrt(rr_);
  if (!m_unit_.is_known()) {
    const double image = vectors_.norm(w_.z);
    constexpr double none = -std::numeric_limits<double>::infinity();
    if (m_unit_.learn(length, image, none, none))
      return wait(CgNeed::preconditioned_residual, &Recurrence<T>::preconditioned);
    m_norm_ = image / length;
  }
  const double rz = vectors_.dot(w_.r, w_.z);
  if (!std::isfinite(rz)) return finish(CgStatus::non_finite);
  if (rz > 0.0) return set_direction(w_.z, rz);
  const double image = vectors_.norm(w_.z);
  m_norm_ = std::max(m_norm_, image / length);
  const bool is_rounding = rz >= -Rounding<T>::of_product * m_norm_ * rr_ && image > 0.0;
  break_down(is_rounding ? CgStatus::stagnated : CgStatus::indefinite_preconditioner);
}

template <class T>
void Recurrence<T>::set_direction(const T* z, double rz) {
  if (restart_) {
    vectors_.copy(z, w_.p);
    pp_ = rz;
  } else {
    const double decay = rz / rz_;
    vectors_.add_scaled(z, decay, w_.p);
    pp_ = rz + decay * decay * pp_;
  }
  restart_ = false;
  rz_ = rz;
  wait(CgNeed::product_of_p, &Recurrence<T>::step);
}

template <class T>
void Recurrence<T>::step() {
  ++summary_.matvecs;
  if (learn_unit(w_.p)) {
    choose_units();
    return wait(CgNeed::product_of_p, &Recurrence<T>::step);
  }
  curvature_ = vectors_.shifted_dot(shift_, w_.p, w_.q);
  const double length = rz_ / curvature_;
  if (!std::isfinite(curvature_)) return finish(CgStatus::non_finite);
  top_ = std::max(top_, curvature_ / pp_);
  const bool is_doubtful =
      !(curvature_ > Rounding<T>::of_product * top_ * pp_) || !std::isfinite(length);
  if (is_doubtful || summary_.iterations >= next_measured_) {
    measure();
    // Of length p, relative to the residual: the step is rounding itself.
    const double least = Rounding<T>::eps * a_norm_ * p_norm_ * rz_ / std::sqrt(rr_);
    if ((is_doubtful && !(curvature_ > least && std::isfinite(length))) || is_too_long(1.0))
      return break_down(CgStatus::singular);
  }
  if (ball_.is_bounded() && ball_.stops(vectors_, length, w_.p, w_.x))
    return finish_at_sphere(ball_.is_range() ? CgStatus::out_of_range : CgStatus::trust_radius);
  update(length);
}

template <class T>
void Recurrence<T>::update(double length) {
  const double before = rr_;
  if (smoothing_.is_on()) {
    rr_ = smoothing_.step(vectors_, length, shift_, w_.p, w_.q, w_.x, w_.r);
  } else {
    rr_ = vectors_.cg_update(length, shift_, w_.p, w_.q, w_.x, w_.r);
    if (options_.stopping == CgStopping::residual && rr_ > before)
      smoothing_.begin(vectors_, length, shift_, w_.p, w_.q, w_.x, w_.r);
  }
  residual_is_true_ = false;
  phi_ -= 0.5 * length * rz_;
  if (!std::isfinite(rr_)) return finish(CgStatus::non_finite);
  stepped();
}

template <class T>
void Recurrence<T>::break_down(CgStatus status) {
  doubt_ = status;
  if (status == CgStatus::singular) {
    // A product that is rounding tells nothing of |A|, but that of it does. It takes the place of r.
    residual_is_true_ = false;
    return wait(CgNeed::product_of_q, &Recurrence<T>::probed);
  }
  if (residual_is_true_) return judge();
  wait(CgNeed::product_of_x, &Recurrence<T>::judge_from_x);
}

template <class T>
void Recurrence<T>::probed() {
  ++summary_.matvecs;
  if (q_norm_ > 0.0) a_norm_ = std::max(a_norm_, vectors_.norm(w_.r) / q_norm_ + shift_);
  if (curvature_ < -Rounding<T>::of_curvature * a_norm_ * p_norm_ * p_norm_) {
    doubt_ = CgStatus::negative_curvature;
  } else if (!ball_.is_bounded()) {
    // There is no least quadratic: the least residual is what can be had.
    smoothing_.take(vectors_, w_.x, w_.r);
  }
  wait(CgNeed::product_of_x, &Recurrence<T>::judge_from_x);
}

template <class T>
void Recurrence<T>::judge_from_x() {
  if (std::isnan(refresh())) return finish(CgStatus::non_finite);
  judge();
}

template <class T>
void Recurrence<T>::judge() {
  true_norm_ = std::sqrt(rr_);
  if (small(rr_)) return finish(CgStatus::converged);
  if (doubt_ == CgStatus::stagnated || is_rounding()) return stagnate();
  const bool is_of_matrix = doubt_ != CgStatus::indefinite_preconditioner;
  // Nothing but the radius bounds the step.
  if (!ball_.is_bounded() || !is_of_matrix || !ball_.reach(vectors_, curvature_, rz_, w_.p, w_.x))
    return finish(doubt_);
  const bool is_minimum = doubt_ == CgStatus::singular && !ball_.is_range();
  finish_at_sphere(is_minimum ? CgStatus::trust_radius : doubt_);
}

template <class T>
void Recurrence<T>::finish_at_sphere(CgStatus status) {
  ++summary_.iterations;
  residual_is_true_ = false;
  finish(ball_.is_faint() ? CgStatus::out_of_range : status);
}

template <class T>
void Recurrence<T>::stepped() {
  const Index i = ++summary_.iterations;
  phis_.push_back(phi_);
  keep_iterate();
  const Index own = i - first_;
  const bool may_stop = own >= options_.min_iter;
  if (may_stop && progress_is_small(i)) return finish(CgStatus::relative_progress);
  is_small_ = may_stop && (small(rr_) || smoothing_.is_small(tolerance_));
  if (is_small_ && !small(rr_)) smoothing_.take(vectors_, w_.x, w_.r);
  is_exhausted_ = std::sqrt(rr_) <= Rounding<T>::exhausted * b_norm_;
  if (is_small_ || is_exhausted_ || own % refresh_period == 0)
    return wait(CgNeed::product_of_x, &Recurrence<T>::verify);
  wait(CgNeed::poll, &Recurrence<T>::go_on);
}

template <class T>
void Recurrence<T>::verify() {
  const double last = true_norm_, drift = refresh();
  if (std::isnan(drift)) return finish(CgStatus::non_finite);
  true_norm_ = std::sqrt(rr_);
  if (is_small_ || is_exhausted_) phi_ = quadratic();
  const bool may_stop = is_exhausted_ || summary_.iterations - first_ >= options_.min_iter;
  if (may_stop && small(rr_)) return finish(CgStatus::converged);
  if (is_exhausted_ && options_.stopping == CgStopping::relative_progress)
    return finish(CgStatus::relative_progress);
  // Mostly rounding errors: the directions have lost their meaning, and maybe all was had that
  // can be.
  restart_ = restart_ || is_small_ || is_exhausted_ || drift > drift_ratio * true_norm_;
  if (restart_) smoothing_.restart();
  if (restart_ && true_norm_ > stagnation_ratio * last) {
    const bool is_near = true_norm_ <= near_ratio * tolerance_;
    if (alone_ && !(is_near && ++tries_ < most_tries)) return stagnate();
    if (!alone_) {
      // A column of a block gives up where a single solve would, and no sooner.
      alone_ = true;
      true_norm_ = std::numeric_limits<double>::infinity();
      return wait(CgNeed::product_of_x, &Recurrence<T>::verify);
    }
  }
  if (restart_) keep_best();
  wait(CgNeed::poll, &Recurrence<T>::go_on);
}

template <class T>
void Recurrence<T>::keep_best() {
  if (true_norm_ >= best_norm_ || options_.stopping != CgStopping::residual) return;
  if (best_.size() == 0) best_ = Buffer<T>(vectors_.size());
  vectors_.copy(w_.x, best_.data());
  best_norm_ = true_norm_;
}

template <class T>
void Recurrence<T>::take_best(double norm) {
  if (best_norm_ >= norm) return;
  vectors_.copy(best_.data(), w_.x);
  residual_is_true_ = false;
}

template <class T>
void Recurrence<T>::stagnate() {
  // Where the residual is rounding, so is what the quadratic could still decrease.
  const bool by_residual = options_.stopping == CgStopping::residual;
  const bool makes_progress = by_residual || !is_rounding();
  if (shared_ && by_residual && true_norm_ <= near_ratio * tolerance_) return begin_again();
  take_best(true_norm_);
  finish(makes_progress ? CgStatus::stagnated : CgStatus::relative_progress);
}

template <class T>
void Recurrence<T>::copy_start() {
  if (start_is_zero_) {
    vectors_.fill(T(0), w_.x);
  } else {
    vectors_.copy(start_.data(), w_.x);
  }
}

template <class T>
void Recurrence<T>::begin_again() {
  keep_best();
  shared_ = false;
  first_ = summary_.iterations;
  tries_ = 0;
  true_norm_ = std::numeric_limits<double>::infinity();
  restart_ = true;
  smoothing_ = Smoothing<T>(w_.y, w_.s);
  copy_start();
  wait(CgNeed::product_of_x, &Recurrence<T>::begun_again);
}

template <class T>
void Recurrence<T>::begun_again() {
  if (std::isnan(refresh())) return finish(CgStatus::non_finite);
  phi_ = start_phi_;
  wait(CgNeed::poll, &Recurrence<T>::go_on);
}

template <class T>
bool Recurrence<T>::progress_is_small(Index i) const {
  const Index k = look_back(i);
  if (options_.stopping != CgStopping::relative_progress || i <= k || phi_ >= 0.0) return false;
  const double before = phis_[static_cast<std::size_t>(i - k)];
  return (phi_ - before) / phi_ < progress_per_iteration * static_cast<double>(k);
}

template class Recurrence<float>;
template class Recurrence<double>;

}  // namespace natgrad
