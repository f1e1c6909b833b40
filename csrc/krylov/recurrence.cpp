#include "krylov/recurrence.hpp"

#include <algorithm>
#include <cmath>

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
constexpr double kept_ratio = 1.3;
// Of eps |b|: the residual of the recurrence goes on falling where the true one no longer does.
constexpr double floor_ratio = 0.01;
// Of eps |A| |p|^2, the rounding of p'A p.
constexpr double curvature_noise = 16.0;
// Of the tolerance, for a smoothed residual: rounding must not lift the true one above it.
constexpr double smoothed_margin = 0.99;

}  // namespace

template <class T>
void Recurrence<T>::begin(const T* b) {
  b_ = b;
  b_norm_ = vectors_.norm(b);
  if (options_.zero_start) vectors_.fill(T(0), w_.x);
  if (!std::isfinite(b_norm_)) return give_up(CgStatus::non_finite);
  if (b_norm_ == 0.0) {
    vectors_.fill(T(0), w_.x);
    summary_.status = CgStatus::converged;
    return done();
  }
  const double x_norm = options_.zero_start ? 0.0 : vectors_.norm(w_.x);
  scale_units(x_norm);
  start_is_zero_ = x_norm == 0.0;
  if (start_is_zero_) {
    vectors_.scale(1.0 / unit_, b, w_.r);
    rr_ = vectors_.dot(w_.r, w_.r);
    return started();
  }
  vectors_.scale(1.0 / unit_, w_.x, w_.x);
  vectors_.fill(T(0), w_.r);
  wait(CgNeed::product_of_x, &Recurrence<T>::started_from_x);
}

template <class T>
void Recurrence<T>::stop(CgStatus status) {
  if (!ending_) finish(status);
}

template <class T>
const T* Recurrence<T>::input() const {
  if (need_ == CgNeed::preconditioned_residual) return w_.r;
  return need_ == CgNeed::product_of_x ? w_.x : w_.p;
}

template <class T>
void Recurrence<T>::wait(CgNeed need, Continuation next) {
  need_ = need;
  next_ = next;
}

template <class T>
void Recurrence<T>::done() {
  ending_ = true;
  keep_last();
  wait(CgNeed::nothing, nullptr);
}

template <class T>
void Recurrence<T>::scale_units(double x_norm) {
  // A start much larger than b must stay within the range of T as well.
  const double top = static_cast<double>(std::numeric_limits<T>::max());
  const double length = std::max(b_norm_, x_norm / std::sqrt(top));
  // 1 / unit is finite.
  if (std::isfinite(length)) unit_ = std::exp2(std::max(-1000.0, std::round(std::log2(length))));
  tolerance_ = options_.atol / unit_;
  if (options_.stopping == CgStopping::residual)
    tolerance_ = std::max(tolerance_, options_.rtol * b_norm_ / unit_);
  floor_ = floor_ratio * static_cast<double>(std::numeric_limits<T>::epsilon()) * b_norm_ / unit_;
  is_bounded_ = std::isfinite(options_.trust_radius);
  // No further than x and its square can be represented, in either unit.
  const double largest = std::min(0.25 * top / std::max(unit_, 1.0), 1e150);
  radius_ = std::min(options_.trust_radius / unit_, largest);
}

template <class T>
double Recurrence<T>::refresh() {
  ++summary_.matvecs;
  const auto [square, drift] =
      vectors_.replace_residual(1.0 / unit_, b_, options_.damping, w_.x, w_.q, w_.r);
  rr_ = square;
  residual_is_true_ = true;
  return drift;
}

template <class T>
void Recurrence<T>::started_from_x() {
  refresh();
  started();
}

template <class T>
void Recurrence<T>::started() {
  phi_ = start_phi_ = start_is_zero_ ? 0.0 : quadratic();
  phis_.reserve(static_cast<std::size_t>(std::min<Index>(options_.max_iter, 1 << 16)) + 1);
  phis_.push_back(phi_);
  if (!std::isfinite(rr_)) return give_up(CgStatus::non_finite);
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
  if (summary_.iterations >= options_.max_iter) return finish(CgStatus::max_iterations);
  if (preconditioned_) return wait(CgNeed::preconditioned_residual, &Recurrence<T>::preconditioned);
  set_direction(w_.r, rr_);
}

template <class T>
void Recurrence<T>::preconditioned() {
  const double rz = vectors_.dot(w_.r, w_.z);
  if (!std::isfinite(rz)) return finish(CgStatus::non_finite);
  if (rz <= 0.0)
    return finish(at_floor(100.0) ? CgStatus::stagnated : CgStatus::indefinite_preconditioner);
  set_direction(w_.z, rz);
}

template <class T>
void Recurrence<T>::set_direction(const T* z, double rz) {
  if (restart_) {
    vectors_.copy(z, w_.p);
  } else {
    vectors_.add_scaled(z, rz / rz_, w_.p);
  }
  restart_ = false;
  rz_ = rz;
  wait(CgNeed::product_of_p, &Recurrence<T>::step);
}

template <class T>
void Recurrence<T>::step() {
  ++summary_.matvecs;
  const double curvature = vectors_.shifted_dot(options_.damping, w_.p, w_.q);
  const double length = rz_ / curvature;
  if (!std::isfinite(curvature)) return finish(CgStatus::non_finite);
  measure_operator();
  constexpr double top = static_cast<double>(std::numeric_limits<T>::max());
  const bool unbounded = curvature <= 0.0 || !std::isfinite(length) || is_flat(curvature);
  if (unbounded && at_floor(100.0)) return finish(CgStatus::stagnated);
  const CgStatus verdict = unbounded ? without_curvature(curvature) : CgStatus::trust_radius;
  if (is_bounded_ && crosses_sphere(unbounded, length, curvature))
    return finish(verdict == CgStatus::singular ? CgStatus::trust_radius : verdict);
  if (unbounded) return finish(verdict);
  if (length > top) return finish(CgStatus::out_of_range);
  const double before = rr_;
  if (smooths_) {
    const auto [rr, sr, ss] = vectors_.smoothed_update(
        weight_, length, options_.damping, w_.p, w_.q, w_.x, w_.r, w_.y, w_.s);
    choose_weight(rr, sr, ss);
    rr_ = rr;
  } else {
    rr_ = vectors_.cg_update(length, options_.damping, w_.p, w_.q, w_.x, w_.r);
    smooths_ = options_.stopping == CgStopping::residual && rr_ > before;
    smoothed_ = rr_;
  }
  residual_is_true_ = false;
  phi_ -= 0.5 * length * rz_;
  if (!std::isfinite(rr_)) return finish(CgStatus::non_finite);
  stepped();
}

template <class T>
void Recurrence<T>::measure_operator() {
  // In a few iterations: it costs two norms.
  const Index i = summary_.iterations;
  if ((i & (i - 1)) != 0) return;
  const double p = vectors_.norm(w_.p), q = vectors_.norm(w_.q);
  if (p > 0.0 && std::isfinite(q / p)) a_norm_ = std::max(a_norm_, q / p);
}

template <class T>
bool Recurrence<T>::is_flat(double curvature) {
  constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  const double quotient = curvature / rz_;
  steepest_ = std::max(steepest_, quotient);
  is_steep_ = quotient <= 100.0 * eps * steepest_;
  if (quotient > eps * steepest_) return false;
  const double p = vectors_.norm(w_.p);
  return curvature <= curvature_noise * eps * eps * (a_norm_ + options_.damping) * p * p;
}

template <class T>
CgStatus Recurrence<T>::without_curvature(double curvature) {
  const double p = vectors_.norm(w_.p), q = vectors_.norm(w_.q);
  const double scale = std::max(a_norm_, p > 0.0 ? q / p : 0.0) + options_.damping;
  const double noise =
      curvature_noise * static_cast<double>(std::numeric_limits<T>::epsilon()) * scale * p * p;
  return curvature < -noise ? CgStatus::negative_curvature : CgStatus::singular;
}

template <class T>
void Recurrence<T>::choose_weight(double rr, double sr, double ss) {
  const double square = ss - 2.0 * sr + rr;
  weight_ = square > 0.0 ? std::clamp((ss - sr) / square, 0.0, 1.0) : 0.0;
  smoothed_ = std::max(0.0, ss - weight_ * (2.0 * (ss - sr) - weight_ * square));
}

template <class T>
bool Recurrence<T>::smoothed_is_small() const {
  return smooths_ && std::sqrt(smoothed_) <= smoothed_margin * tolerance_;
}

template <class T>
void Recurrence<T>::take_smoothed() {
  if (weight_ == 1.0) return;
  vectors_.blend(weight_, w_.y, w_.x);
  vectors_.blend(weight_, w_.s, w_.r);
  weight_ = 1.0;
}

template <class T>
bool Recurrence<T>::crosses_sphere(bool unbounded, double length, double curvature) {
  const auto [xx, xp, pp] = vectors_.ball_dots(w_.x, w_.p);
  if (pp == 0.0) return false;
  constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  const double next = xx + length * (2.0 * xp + length * pp);
  if (!unbounded && next < radius_ * radius_ * (1.0 - 8.0 * eps)) return false;
  // Roots of pp t^2 + 2 xp t = c. That of the sign of xp cancels: it is written by the other.
  const double c = std::max(0.0, radius_ * radius_ - xx);
  const double sum = std::abs(xp) + std::sqrt(xp * xp + pp * c);
  const double with = sum > 0.0 ? c / sum : 0.0, against = -sum / pp;
  double t = xp > 0.0 ? with : -against;
  if (unbounded) {
    // phi(x + t p) - phi(x) = t (t p'Ap / 2 - r'p): the lower of both ends.
    const double other = xp > 0.0 ? against : -with;
    const auto change = [&](double s) { return s * (0.5 * s * curvature - rz_); };
    if (change(other) < change(t)) t = other;
  }
  vectors_.add(t, w_.p, w_.x);
  shrink_to_radius();
  residual_is_true_ = false;
  ++summary_.iterations;
  return true;
}

template <class T>
void Recurrence<T>::shrink_to_radius() {
  double margin = static_cast<double>(std::numeric_limits<T>::epsilon());
  for (double length = vectors_.norm(w_.x); length > radius_ * (1.0 - 1e-14);
       length = vectors_.norm(w_.x)) {
    vectors_.scale(radius_ / length * (1.0 - margin), w_.x, w_.x);
    margin *= 2.0;
  }
}

template <class T>
void Recurrence<T>::stepped() {
  const Index i = ++summary_.iterations;
  phis_.push_back(phi_);
  keep_iterate();
  // On a positive definite matrix it is at most sqrt(condition) |b|.
  constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  if (std::sqrt(rr_) * unit_ * eps > b_norm_) return finish(CgStatus::singular);
  const bool may_stop = i >= options_.min_iter;
  if (may_stop && progress_is_small(i)) return finish(CgStatus::relative_progress);
  is_small_ = may_stop && (small(rr_) || smoothed_is_small());
  if (is_small_ && !small(rr_)) take_smoothed();
  is_small_ = is_small_ || at_floor(1.0);
  if (is_small_ || is_steep_ || i % refresh_period == 0)
    return wait(CgNeed::product_of_x, &Recurrence<T>::verify);
  wait(CgNeed::poll, &Recurrence<T>::go_on);
}

template <class T>
void Recurrence<T>::verify() {
  const double last = true_norm_, drift = refresh();
  true_norm_ = std::sqrt(rr_);
  if (is_small_) phi_ = quadratic();
  if ((summary_.iterations >= options_.min_iter && small(rr_)) || rr_ == 0.0)
    return finish(CgStatus::converged);
  // Mostly rounding errors: the directions have lost their meaning, and maybe all was had that
  // can be.
  // A long step that made the residual longer than b: its curvature was rounding.
  if (is_steep_ && true_norm_ * unit_ > b_norm_) return finish(CgStatus::singular);
  restart_ = is_small_ || drift > drift_ratio * true_norm_;
  if (restart_) weight_ = 1.0;
  if (restart_ && true_norm_ > stagnation_ratio * last) {
    const bool is_near = true_norm_ <= near_ratio * tolerance_;
    // Small before its time: no iteration could add to it.
    if (small(rr_)) return finish(CgStatus::converged);
    if (alone_ && !(is_near && ++tries_ < most_tries)) return finish(CgStatus::stagnated);
    if (!alone_) {
      // A column of a block gives up where a single solve would, and no sooner.
      alone_ = true;
      true_norm_ = std::numeric_limits<double>::infinity();
      return wait(CgNeed::product_of_x, &Recurrence<T>::verify);
    }
  }
  wait(CgNeed::poll, &Recurrence<T>::go_on);
}

template <class T>
bool Recurrence<T>::progress_is_small(Index i) const {
  const Index k = look_back(i);
  if (options_.stopping != CgStopping::relative_progress || i <= k || phi_ >= 0.0) return false;
  const double before = phis_[static_cast<std::size_t>(i - k)];
  return (phi_ - before) / phi_ < progress_per_iteration * static_cast<double>(k);
}

template <class T>
void Recurrence<T>::keep_iterate() {
  if (!iterates_ || summary_.iterations < static_cast<Index>(std::ceil(next_kept_))) return;
  next_kept_ *= kept_ratio;
  iterates_->push_back(
      {summary_.iterations, unit_ * (unit_ * quadratic()), Buffer<T>(vectors_.size())});
  vectors_.scale(unit_, w_.x, iterates_->back().x.data());
}

template <class T>
void Recurrence<T>::keep_last() {
  if (!iterates_) return;
  const Index i = is_back_ ? 0 : summary_.iterations;
  if (iterates_->empty() || iterates_->back().iteration != i)
    iterates_->push_back({i, 0.0, Buffer<T>(vectors_.size())});
  iterates_->back().quadratic = summary_.quadratic;
  vectors_.copy(w_.x, iterates_->back().x.data());
}

template <class T>
void Recurrence<T>::finish(CgStatus status) {
  ending_ = true;
  summary_.status = status;
  const bool by_recurrence = status == CgStatus::non_finite && std::isfinite(rr_);
  if (by_recurrence) return compare_with_start();
  if (!residual_is_true_) return wait(CgNeed::product_of_x, &Recurrence<T>::finish_from_x);
  finish_from_residual();
}

template <class T>
void Recurrence<T>::finish_from_x() {
  refresh();
  finish_from_residual();
}

template <class T>
void Recurrence<T>::finish_from_residual() {
  phi_ = quadratic();
  compare_with_start();
}

template <class T>
void Recurrence<T>::compare_with_start() {
  if (phi_ <= start_phi_) return conclude();
  is_back_ = true;
  if (start_is_zero_) {
    vectors_.fill(T(0), w_.x);
  } else {
    vectors_.copy(start_.data(), w_.x);
  }
  wait(CgNeed::product_of_x, &Recurrence<T>::back_at_start);
}

template <class T>
void Recurrence<T>::back_at_start() {
  refresh();
  phi_ = start_phi_;
  conclude();
}

template <class T>
void Recurrence<T>::conclude() {
  summary_.residual_norm = residual_norm();
  summary_.quadratic = value();
  scale_back();
}

template <class T>
void Recurrence<T>::scale_back() {
  constexpr double top = static_cast<double>(std::numeric_limits<T>::max());
  const double own = vectors_.norm(w_.x), length = unit_ * own;
  if (!std::isfinite(length) || length > 0.5 * top) {
    shorten(std::isfinite(length) ? 0.25 * top / length : 0.0);
    return judge();
  }
  vectors_.scale(unit_, w_.x, w_.x);
  // Scaling by a power of two is exact but for what leaves the range of T below.
  if (std::abs(vectors_.norm(w_.x) / unit_ - own) <= 1e-6 * own) return judge();
  wait(CgNeed::product_of_x, &Recurrence<T>::concluded_from_x);
}

template <class T>
void Recurrence<T>::shorten(double ratio) {
  summary_.status = CgStatus::out_of_range;
  if (ratio == 0.0) {
    vectors_.fill(T(0), w_.x);
    summary_.residual_norm = b_norm_;
    summary_.quadratic = 0.0;
    return;
  }
  // b - A (ratio x) = (1 - ratio) b + ratio r, all in units;  x'A x = b'x - r'x.
  const double b = b_norm_ / unit_, rest = 1.0 - ratio, br = vectors_.dot(b_, w_.r) / unit_;
  const double square = rest * rest * b * b + 2.0 * ratio * rest * br + ratio * ratio * rr_;
  const double bx = vectors_.dot(b_, w_.x) / unit_, rx = vectors_.dot(w_.r, w_.x);
  summary_.residual_norm = unit_ * std::sqrt(std::max(0.0, square));
  summary_.quadratic = unit_ * (unit_ * ratio * (0.5 * ratio * (bx - rx) - bx));
  vectors_.scale(ratio * unit_, w_.x, w_.x);
}

template <class T>
void Recurrence<T>::concluded_from_x() {
  ++summary_.matvecs;
  vectors_.replace_residual(1.0, b_, options_.damping, w_.x, w_.q, w_.r);
  summary_.residual_norm = vectors_.norm(w_.r);
  summary_.quadratic = -0.5 * vectors_.dot_with_sum(w_.x, 1.0, b_, w_.r);
  if (summary_.status == CgStatus::converged) summary_.status = CgStatus::out_of_range;
  judge();
}

template <class T>
void Recurrence<T>::judge() {
  if (options_.stopping == CgStopping::residual && std::isfinite(summary_.residual_norm)) {
    const bool is_met = summary_.residual_norm <= unit_ * tolerance_;
    CgStatus& status = summary_.status;
    const bool may_be_met = status == CgStatus::stagnated || status == CgStatus::max_iterations ||
                            status == CgStatus::singular || status == CgStatus::out_of_range;
    if (is_met && may_be_met) status = CgStatus::converged;
    // After a return to the start.
    if (!is_met && status == CgStatus::converged) status = CgStatus::stagnated;
  }
  done();
}

template <class T>
void Recurrence<T>::give_up(CgStatus status) {
  vectors_.scale(unit_, w_.x, w_.x);
  summary_.status = status;
  summary_.residual_norm = summary_.quadratic = std::numeric_limits<double>::quiet_NaN();
  rr_ = phi_ = summary_.quadratic;
  done();
}

template class Recurrence<float>;
template class Recurrence<double>;

}  // namespace natgrad
