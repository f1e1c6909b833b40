#include "krylov/multishift.hpp"

#include <algorithm>
#include <cmath>

#include "krylov/rounding.hpp"
#include "krylov/units.hpp"

namespace natgrad {
namespace {

// The recursions of one shifted system, relative to those of the base (r, p, alpha, beta):
//   r_j = zeta_j r,  ratio_j = zeta_j / (zeta_j one iteration ago),  p_j = zeta_j direction
// so nothing under- or overflows but zeta_j, whose system has then long converged.
struct Shift {
  Index place;     // in the caller's order
  double damping;  // in units
  double zeta = 1.0, ratio = 1.0;
  double phi = 0.0;
};

// b and r are in units of the power of two next to |b|, A and the dampings in those of `OperatorUnit`, x
// in the quotient, until the end.
template <class T>
class Run {
 public:
  Run(LinearOperator<T>& a,
      const T* b,
      const std::vector<double>& dampings,
      T* x,
      const MultishiftOptions& options)
      : a_(a),
        x_(x),
        options_(options),
        dampings_(dampings),
        size_(a.size()),
        vectors_(size_, options.num_threads),
        b_(size_),
        r_(size_),
        q_(size_),
        directions_(checked_product(static_cast<Index>(dampings.size()), size_, "directions")) {
    const std::size_t m = dampings.size();
    summary_.shifts.resize(m);
    residual_norms_.resize(m);
    quadratics_.resize(m);
    active_.reserve(m);
    steps_.reserve(m);
    for (Index j = 0; j < count(); ++j) vectors_.fill(T(0), this->x(j));
    b_norm_ = vectors_.norm(b);
    if (b_norm_ == 0.0 || std::isnan(b_norm_)) return;
    b_exponent_ = std::clamp(exponent_of(log2_of(vectors_, b, b_norm_)), -1000, 1022);
    unit_ = std::exp2(b_exponent_);
    vectors_.scale(1.0 / unit_, b, b_.data());
    b_norm_ = vectors_.norm(b_.data());
    tolerance_ = std::max(options.atol / unit_, options.rtol * b_norm_);
    for (Index j = 0; j < count(); ++j) active_.push_back({j, damping(j)});
    std::stable_sort(active_.begin(), active_.end(), [](const Shift& u, const Shift& v) {
      return u.damping < v.damping;
    });
  }

  MultishiftSummary solve() {
    if (std::isnan(b_norm_)) {
      for (CgSummary& shift : summary_.shifts) {
        shift.status = CgStatus::non_finite;
        shift.residual_norm = shift.quadratic = std::numeric_limits<double>::quiet_NaN();
      }
      return summary_;
    }
    if (b_norm_ == 0.0) {
      for (CgSummary& shift : summary_.shifts) shift.status = CgStatus::converged;
      return summary_;
    }
    while (!active_.empty()) {
      start();
      iterate();
    }
    options_.verify || has_broken_down_ ? verify() : verify_base();
    for (Index j = 0; j < count(); ++j) {
      fit(j);
      vectors_.scale_by_power(x_exponent(), x(j), x(j));
      summary(j).residual_norm *= unit_;
      summary(j).quadratic = value_of(summary(j).quadratic);
    }
    return summary_;
  }

 private:
  Index count() const { return static_cast<Index>(dampings_.size()); }
  T* x(Index place) { return x_ + place * size_; }
  T* direction(Index place) { return directions_.data() + place * size_; }
  CgSummary& summary(Index place) { return summary_.shifts[static_cast<std::size_t>(place)]; }
  int x_exponent() const { return b_exponent_ - a_unit_.exponent(); }
  double value_of(double phi) const { return std::ldexp(phi, b_exponent_ + x_exponent()); }
  double damping(Index place) const {
    return std::ldexp(dampings_[static_cast<std::size_t>(place)], -a_unit_.exponent());
  }

  // y = A v; false if that was interrupted.
  bool multiply(const T* v, T* y) {
    ++summary_.matvecs;
    try {
      if (a_unit_.is_one()) {
        a_.apply(v, y);
        return true;
      }
      if (staged_.size() == 0) staged_ = Buffer<T>(size_);
      vectors_.scale(a_unit_.factor_in(), v, staged_.data());
      a_.apply(staged_.data(), y);
    } catch (const Interrupted&) {
      return false;
    }
    vectors_.scale(a_unit_.factor_out(), y, y);
    return true;
  }

  // x = 0 and p = r = b for every active shift.
  void start() {
    vectors_.copy(b_.data(), r_.data());
    rr_ = pp_ = vectors_.dot(r_.data(), r_.data());
    for (Shift& shift : active_) {
      shift = {shift.place, shift.damping};
      vectors_.fill(T(0), x(shift.place));
      vectors_.copy(b_.data(), direction(shift.place));
    }
    last_alpha_ = 1.0;
    beta_ = 0.0;
    stop_where([&](const Shift&) { return std::sqrt(rr_) <= tolerance_; }, CgStatus::converged);
  }

  void iterate() {
    // Further iterations could not be checked.
    const double least = std::max(tolerance_, Rounding<T>::exhausted * b_norm_);
    while (!active_.empty()) {
      if (iterations_ >= options_.max_iter) return stop_all(CgStatus::max_iterations);
      // Without its first system the run has another base.
      if (!step()) return;
      stop_where([&](const Shift& s) { return s.zeta * std::sqrt(rr_) <= least; },
                 CgStatus::converged);
      if (active_.empty()) return;
      const CgSignal signal = poll();
      if (signal == CgSignal::stop) return stop_all(CgStatus::stopped);
      if (signal == CgSignal::interrupt) return stop_all(CgStatus::interrupted);
    }
  }

  // One iteration of all shifts; false if the base has to be given up.
  bool step() {
    const Shift base = active_.front();
    const T* p = direction(base.place);
    if (!multiply(p, q_.data())) return give_up(CgStatus::interrupted);
    if (!a_unit_.is_known() && learn_unit(base)) return step();
    const double curvature = vectors_.shifted_dot(base.damping, p, q_.data());
    const double alpha = rr_ / curvature;
    if (!std::isfinite(curvature)) return give_up(CgStatus::non_finite);
    top_ = std::max(top_, curvature / pp_);
    const bool is_doubtful =
        !(curvature > Rounding<T>::of_product * top_ * pp_) || !std::isfinite(alpha);
    if (is_doubtful || iterations_ >= next_measured_) {
      next_measured_ = std::max<Index>(1, 4 * iterations_);
      const double length = vectors_.norm(p);
      a_norm_ = std::max(a_norm_, vectors_.norm(q_.data()) / length + base.damping);
      // Of length p, relative to the residual: the step is rounding itself.
      const double least = Rounding<T>::eps * a_norm_ * length * std::sqrt(rr_);
      const bool is_flat = is_doubtful && !(curvature > least && std::isfinite(alpha));
      // The rounding of A x is longer than b.
      if (is_flat || Rounding<T>::eps * a_norm_ * vectors_.norm(x(base.place)) > b_norm_) {
        break_down(base.damping, curvature, length);
        return false;
      }
    }
    const double rr = vectors_.residual_update(alpha, base.damping, p, q_.data(), r_.data());
    if (!std::isfinite(rr)) return give_up(CgStatus::non_finite);
    update_shifts(base.damping, alpha, rr);
    ++iterations_;
    return true;
  }

  bool learn_unit(const Shift& base) {
    const double greatest = std::log2(*std::max_element(dampings_.begin(), dampings_.end()));
    const double least = std::log2(dampings_[static_cast<std::size_t>(base.place)]);
    const double length = vectors_.norm(direction(base.place));
    if (!a_unit_.learn(length, vectors_.norm(q_.data()), least, greatest)) return false;
    for (Shift& s : active_) s.damping = damping(s.place);
    return true;
  }

  // The base is not definite along its direction p: nor are shifts that are hardly larger.
  void break_down(double base_damping, double curvature, double length) {
    has_broken_down_ = true;
    // Products that are rounding tell nothing of |A|, but those of them do.
    const double q_norm = vectors_.norm(q_.data());
    if (q_norm > 0.0 && multiply(q_.data(), r_.data())) {
      const double found = vectors_.norm(r_.data()) / q_norm;
      if (found > a_norm_) a_norm_ = found;
    }
    const double scale = a_norm_ * length * length;
    for (const bool is_negative : {true, false}) {
      const double bound = is_negative ? -Rounding<T>::of_curvature : Rounding<T>::eps;
      const auto is_refuted = [&](const Shift& s) {
        const double own = curvature + (s.damping - base_damping) * length * length;
        return own < bound * scale || (!is_negative && s.damping <= base_damping);
      };
      stop_where(is_refuted, is_negative ? CgStatus::negative_curvature : CgStatus::singular);
    }
  }

  // With n the iteration and alpha, beta those of the base:
  //   ratio_{n+1} = 1 / (1 + alpha_n sigma + alpha_n beta_{n-1} (1 - ratio_n) / alpha_{n-1})
  //   x += alpha_n zeta_{n+1} direction_n,  direction_{n+1} = r_{n+1} + beta_n ratio_{n+1} direction_n
  void update_shifts(double base_damping, double alpha, double rr) {
    const double memory = alpha * beta_ / last_alpha_;
    beta_ = rr / rr_;
    steps_.clear();
    for (Shift& s : active_) {
      s.ratio = 1.0 / (1.0 + alpha * (s.damping - base_damping) + memory * (1.0 - s.ratio));
      s.phi -= 0.5 * alpha * s.ratio * s.zeta * s.zeta * rr_;
      s.zeta *= s.ratio;
      steps_.push_back({alpha * s.zeta, beta_ * s.ratio, x(s.place), direction(s.place)});
    }
    vectors_.shifted_updates(r_.data(), steps_.data(), static_cast<Index>(steps_.size()));
    last_alpha_ = alpha;
    pp_ = rr + beta_ * beta_ * pp_;
    rr_ = rr;
  }

  template <class Condition>
  void stop_where(const Condition& condition, CgStatus status) {
    const auto is_over = [&](const Shift& s) {
      if (!condition(s)) return false;
      stop(s, status);
      return true;
    };
    active_.erase(std::remove_if(active_.begin(), active_.end(), is_over), active_.end());
  }
  void stop_all(CgStatus status) {
    stop_where([](const Shift&) { return true; }, status);
  }
  bool give_up(CgStatus status) {
    stop_all(status);
    return false;
  }

  void stop(const Shift& s, CgStatus status) {
    CgSummary& record = summary(s.place);
    record.status = status;
    record.iterations = iterations_;
    record.residual_norm = s.zeta * std::sqrt(rr_);
    // r may be lost with the product.
    const bool is_lost = status == CgStatus::non_finite || has_broken_down_;
    record.quadratic = is_lost ? s.phi : quadratic(s.place, s.zeta);
  }

  // -x'(b + zeta r) / 2
  double quadratic(Index place, double zeta) {
    return -0.5 * (vectors_.dot(x(place), b_.data()) + zeta * vectors_.dot(x(place), r_.data()));
  }

  CgSignal poll() {
    if (!options_.poll) return CgSignal::go_on;
    for (Index j = 0; j < count(); ++j) {
      residual_norms_[static_cast<std::size_t>(j)] = unit_ * summary(j).residual_norm;
      quadratics_[static_cast<std::size_t>(j)] = value_of(summary(j).quadratic);
    }
    for (const Shift& s : active_) {
      residual_norms_[static_cast<std::size_t>(s.place)] = unit_ * s.zeta * std::sqrt(rr_);
      quadratics_[static_cast<std::size_t>(s.place)] = value_of(s.phi);
    }
    return options_.poll({iterations_, count(), residual_norms_.data(), quadratics_.data()});
  }

  // The residual of x_j, of a product with it in y; false, and nothing is changed, if that is not finite.
  bool record_residual(Index j, const T* y) {
    const double rr = vectors_.replace_residual(1.0, b_.data(), damping(j), x(j), y, r_.data())[0];
    if (!std::isfinite(rr)) return false;
    summary(j).residual_norm = std::sqrt(rr);
    summary(j).quadratic = quadratic(j, 1.0);
    return true;
  }

  // What a residual that was computed from x says about the status.
  void judge(Index j) {
    CgSummary& record = summary(j);
    const double norm = record.residual_norm;
    if (record.status == CgStatus::converged && norm > 2.0 * tolerance_)
      record.status = CgStatus::stagnated;
    const bool is_blamed =
        record.status == CgStatus::singular || record.status == CgStatus::negative_curvature;
    const double rounding = Rounding<T>::of_product * (a_norm_ * vectors_.norm(x(j)) + b_norm_);
    if (is_blamed && norm <= rounding)
      record.status = norm <= tolerance_ ? CgStatus::converged : CgStatus::stagnated;
    // There is no least quadratic, and x = 0 has the lesser residual, or one that is not rounding.
    const bool is_noise = norm > 0.5 * b_norm_ && 0.1 * rounding > b_norm_;
    const bool is_worse = (norm > b_norm_ || is_noise) && (record.status == CgStatus::singular ||
                                                           record.status == CgStatus::stagnated);
    if (is_worse || record.quadratic > 0.0) reset(j);
  }

  void reset(Index j) {
    vectors_.fill(T(0), x(j));
    summary(j).residual_norm = b_norm_;
    summary(j).quadratic = 0.0;
  }

  // True residuals of all; the products take the place of the directions.
  void verify() {
    if (!multiply_all()) return interrupt();
    for (Index j = 0; j < count(); ++j)
      if (record_residual(j, direction(j))) judge(j);
  }

  bool multiply_all() {
    if (!a_unit_.is_one()) {
      for (Index j = 0; j < count(); ++j)
        if (!multiply(x(j), direction(j))) return false;
      return true;
    }
    summary_.matvecs += count();
    try {
      a_.apply_block(x_, count(), directions_.data());
    } catch (const Interrupted&) {
      return false;
    }
    return true;
  }

  // What was to be verified was not.
  void interrupt() {
    for (CgSummary& record : summary_.shifts)
      if (record.status == CgStatus::converged) record.status = CgStatus::interrupted;
  }

  // The true residual of the smallest damping, of which r is the one of the recurrence. What rounding
  // added to it, e, is apart from r and in proportion to x:
  //   |true r_j|^2 = |r_j|^2 + |e|^2 |x_j|^2 / |x|^2.
  void verify_base() {
    const auto least = std::min_element(dampings_.begin(), dampings_.end());
    const Index place = static_cast<Index>(least - dampings_.begin());
    const CgSummary base = summary(place);
    const double length = vectors_.norm(x(place));
    const bool is_over =
        base.status == CgStatus::converged || base.status == CgStatus::max_iterations;
    if (!is_over || !(length > 0.0) || !std::isfinite(length)) return;
    if (!multiply(x(place), q_.data())) return interrupt();
    const double error = vectors_.replace_residual(
        1.0, b_.data(), damping(place), x(place), q_.data(), r_.data())[1];
    for (Index j = 0; std::isfinite(error) && j < count(); ++j) {
      CgSummary& record = summary(j);
      record.residual_norm = std::hypot(record.residual_norm, error * vectors_.norm(x(j)) / length);
      judge(j);
    }
  }

  // x_j and its record as T can hold them in the caller's units.
  void fit(Index j) {
    const Fit fit = fit_to_range(vectors_, x_exponent(), x(j));
    CgSummary& record = summary(j);
    const bool is_asked_for =
        record.status == CgStatus::stopped || record.status == CgStatus::interrupted;
    // A damping so far above the others that x_j is below the normal numbers in the unit of all.
    const bool is_faint = record.status == CgStatus::converged &&
                          vectors_.largest(x(j)) < std::numeric_limits<T>::min() / Rounding<T>::eps;
    if (fit == Fit::exact && !is_faint) return;
    const bool is_known =
        fit != Fit::lost && multiply(x(j), q_.data()) && record_residual(j, q_.data());
    if (!is_known) reset(j);
    const bool is_off =
        record.status == CgStatus::converged && record.residual_norm > 2.0 * tolerance_;
    if (!is_asked_for && (is_off || fit == Fit::overflowed || fit == Fit::lost))
      record.status = CgStatus::out_of_range;
  }

  LinearOperator<T>& a_;
  T* x_;
  const MultishiftOptions& options_;
  const std::vector<double>& dampings_;
  Index size_;
  Vectors<T> vectors_;
  Buffer<T> b_, r_, q_;        // (P,)
  Buffer<T> staged_;           // (P,), where A has a unit
  Buffer<T> directions_;       // (m x P)
  std::vector<Shift> active_;  // by damping; the first is the base
  std::vector<ShiftedStep<T>> steps_;
  std::vector<double> residual_norms_, quadratics_;
  OperatorUnit<T> a_unit_;
  int b_exponent_ = 0;
  double b_norm_ = 0.0, unit_ = 1.0, tolerance_ = 0.0;
  double rr_ = 0.0, pp_ = 0.0, last_alpha_ = 1.0, beta_ = 0.0;  // pp = p'p, by the recurrence
  double a_norm_ = 0.0, top_ = 0.0;  // |A + damping I| of the base, greatest curvature / pp
  Index iterations_ = 0, next_measured_ = 0;
  bool has_broken_down_ = false;
  MultishiftSummary summary_;
};

}  // namespace

template <class T>
MultishiftSummary multishift_conjugate_gradients(LinearOperator<T>& a,
                                                 const T* b,
                                                 const std::vector<double>& dampings,
                                                 T* x,
                                                 const MultishiftOptions& options) {
  return Run<T>(a, b, dampings, x, options).solve();
}

#define NATGRAD_INSTANTIATE(T)                               \
  template MultishiftSummary multishift_conjugate_gradients( \
      LinearOperator<T>&, const T*, const std::vector<double>&, T*, const MultishiftOptions&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
