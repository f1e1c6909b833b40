// What a solve returns: the true residual and quadratic of x, in the caller's units.
#include <algorithm>
#include <cmath>

#include "krylov/recurrence.hpp"
#include "krylov/rounding.hpp"

namespace natgrad {
namespace {

constexpr double kept_ratio = 1.3;
// Of the quadratic, that x may lose to the range of T.
constexpr double lost_progress = 1e-3;
// Rounding of the quadratic, in eps of its size.
constexpr double quadratic_margin = 4.0;

bool is_asked_for(CgStatus status) {
  return status == CgStatus::stopped || status == CgStatus::interrupted;
}

}  // namespace

template <class T>
void Recurrence<T>::interrupt() {
  if (!ending_) return finish(CgStatus::interrupted);
  if (need_ == CgNeed::nothing) return;
  summary_.status = CgStatus::interrupted;
  if (std::isinf(start_phi_)) rr_ = phi_ = std::numeric_limits<double>::quiet_NaN();
  fit_to_range(vectors_, x_exponent(), w_.x);
  publish();
}

template <class T>
void Recurrence<T>::done() {
  ending_ = true;
  keep_last();
  wait(CgNeed::nothing, nullptr);
}

template <class T>
void Recurrence<T>::keep_iterate() {
  if (!iterates_ || summary_.iterations < static_cast<Index>(std::ceil(next_kept_))) return;
  next_kept_ *= kept_ratio;
  iterates_->push_back({summary_.iterations, value_of(quadratic()), Buffer<T>(vectors_.size())});
  T* x = iterates_->back().x.data();
  vectors_.copy(w_.x, x);
  fit_to_range(vectors_, x_exponent(), x);
  vectors_.scale_by_power(x_exponent(), x, x);
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
  if (!std::isnan(refresh())) return finish_from_residual();
  if (!is_asked_for(summary_.status)) summary_.status = CgStatus::non_finite;
  compare_with_start();
}

template <class T>
void Recurrence<T>::finish_from_residual() {
  phi_ = quadratic();
  if (summary_.status == CgStatus::max_iterations && small(rr_))
    summary_.status = CgStatus::converged;
  compare_with_start();
}

template <class T>
void Recurrence<T>::compare_with_start() {
  CgStatus& status = summary_.status;
  if (status == CgStatus::converged) return conclude();
  // Where rounding or a singular matrix decided, the quadratic says little, and the residual nothing
  // either once it consists of rounding.
  const bool by_residual = options_.stopping == CgStopping::residual &&
                           (status == CgStatus::stagnated || status == CgStatus::singular);
  const bool is_noise = by_residual && rr_ > 0.25 * start_rr_ && is_too_long(10.0);
  if (is_noise) status = CgStatus::singular;
  const double margin = quadratic_margin * Rounding<T>::eps * std::abs(start_phi_);
  const bool is_better = by_residual ? rr_ <= start_rr_ : phi_ <= start_phi_ + margin;
  if (is_noise || !is_better) go_back();
  conclude();
}

template <class T>
void Recurrence<T>::go_back() {
  is_back_ = true;
  copy_start();
  rr_ = start_rr_;
  phi_ = start_phi_;
}

template <class T>
void Recurrence<T>::conclude() {
  const Fit fit = is_back_ ? Fit::exact : fit_to_range(vectors_, x_exponent(), w_.x);
  if (fit == Fit::lost) go_back();
  has_overflowed_ = fit == Fit::overflowed || fit == Fit::lost;
  if (fit == Fit::rounded || fit == Fit::overflowed)
    return wait(CgNeed::product_of_x, &Recurrence<T>::conclude_from_x);
  publish();
}

template <class T>
void Recurrence<T>::conclude_from_x() {
  const double before = phi_;
  if (!std::isnan(refresh())) phi_ = quadratic();
  if (!(phi_ <= start_phi_)) go_back();
  CgStatus& status = summary_.status;
  const bool by_progress =
      status == CgStatus::relative_progress || status == CgStatus::trust_radius;
  if ((status == CgStatus::converged && !small(rr_)) ||
      (by_progress && phi_ > before + lost_progress * std::abs(before)))
    status = CgStatus::out_of_range;
  publish();
}

template <class T>
void Recurrence<T>::publish() {
  CgStatus& status = summary_.status;
  if (has_overflowed_ && !is_asked_for(status) && status != CgStatus::negative_curvature)
    status = CgStatus::out_of_range;
  vectors_.scale_by_power(x_exponent(), w_.x, w_.x);
  summary_.residual_norm = residual_norm();
  summary_.quadratic = value();
  done();
}

template <class T>
void Recurrence<T>::give_up(CgStatus status) {
  vectors_.scale_by_power(x_exponent(), w_.x, w_.x);
  summary_.status = status;
  summary_.residual_norm = summary_.quadratic = std::numeric_limits<double>::quiet_NaN();
  rr_ = phi_ = summary_.quadratic;
  done();
}

#define NATGRAD_INSTANTIATE(T)                   \
  template void Recurrence<T>::interrupt();      \
  template void Recurrence<T>::done();           \
  template void Recurrence<T>::keep_iterate();   \
  template void Recurrence<T>::keep_last();      \
  template void Recurrence<T>::finish(CgStatus); \
  template void Recurrence<T>::give_up(CgStatus);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
