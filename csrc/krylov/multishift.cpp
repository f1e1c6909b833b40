#include "krylov/multishift.hpp"

#include <algorithm>
#include <cmath>

namespace natgrad {
namespace {

// The recursions of one shifted system, relative to those of the base (r, p, alpha, beta):
//   r_j = zeta_j r,  ratio_j = zeta_j / (zeta_j one iteration ago),  p_j = zeta_j direction
// so nothing under- or overflows but zeta_j, whose system has then long converged.
struct Shift {
  Index place;  // in the caller's order
  double damping;
  double zeta = 1.0, ratio = 1.0;
  double phi = 0.0;
};

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
    if (b_norm_ == 0.0 || !std::isfinite(b_norm_)) return;
    unit_ = std::exp2(std::max(-1000.0, std::round(std::log2(b_norm_))));
    floor_ = 0.01 * static_cast<double>(std::numeric_limits<T>::epsilon()) * b_norm_ / unit_;
    vectors_.scale(1.0 / unit_, b, b_.data());
    tolerance_ = std::max(options.atol, options.rtol * b_norm_) / unit_;
    for (std::size_t j = 0; j < m; ++j) active_.push_back({static_cast<Index>(j), dampings[j]});
    std::stable_sort(active_.begin(), active_.end(), [](const Shift& u, const Shift& v) {
      return u.damping < v.damping;
    });
  }

  MultishiftSummary solve() {
    if (!std::isfinite(b_norm_)) {
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
    options_.verify ? verify() : verify_base();
    for (Index j = 0; j < count(); ++j) scale_back(j);
    return summary_;
  }

 private:
  Index count() const { return static_cast<Index>(dampings_.size()); }
  T* x(Index place) { return x_ + place * size_; }
  T* direction(Index place) { return directions_.data() + place * size_; }
  CgSummary& summary(Index place) { return summary_.shifts[static_cast<std::size_t>(place)]; }

  // x in the caller's units, shortened where T cannot hold it:  b - A (t x) = (1 - t) b + t r.
  void scale_back(Index j) {
    constexpr double top = static_cast<double>(std::numeric_limits<T>::max());
    CgSummary& record = summary(j);
    const double own = vectors_.norm(x(j)), length = unit_ * own;
    const bool fits = length <= 0.5 * top;
    const double ratio = fits ? 1.0 : (std::isfinite(length) ? 0.25 * top / length : 0.0);
    if (ratio > 0.0) {
      vectors_.scale(ratio * unit_, x(j), x(j));
    } else {
      vectors_.fill(T(0), x(j));
    }
    record.residual_norm *= unit_ * ratio;
    record.residual_norm += (1.0 - ratio) * b_norm_;
    record.quadratic = unit_ * (unit_ * ratio * record.quadratic);
    if (fits && std::abs(vectors_.norm(x(j)) / unit_ - own) <= 1e-6 * own) return;
    if (fits) record.residual_norm = std::hypot(record.residual_norm, b_norm_);
    record.status = CgStatus::out_of_range;
  }

  // x = 0 and p = r = b for every active shift.
  void start() {
    vectors_.copy(b_.data(), r_.data());
    rr_ = vectors_.dot(r_.data(), r_.data());
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
    while (!active_.empty()) {
      if (iterations_ >= options_.max_iter) return stop_all(CgStatus::max_iterations);
      // Without its first system the run has another base.
      if (!step()) return;
      stop_where([&](const Shift& s) { return s.zeta * std::sqrt(rr_) <= tolerance_; },
                 CgStatus::converged);
      if (active_.empty()) return;
      if (std::sqrt(rr_) <= floor_) return stop_all(CgStatus::stagnated);
      const CgSignal signal = poll();
      if (signal == CgSignal::stop) return stop_all(CgStatus::stopped);
      if (signal == CgSignal::interrupt) return stop_all(CgStatus::interrupted);
    }
  }

  // One iteration of all shifts; false if the base has to be given up.
  bool step() {
    const Shift base = active_.front();
    a_.apply(direction(base.place), q_.data());
    ++summary_.matvecs;
    const double curvature = vectors_.shifted_dot(base.damping, direction(base.place), q_.data());
    const double alpha = rr_ / curvature;
    if ((iterations_ & (iterations_ - 1)) == 0) {
      const double p = vectors_.norm(direction(base.place)), q = vectors_.norm(q_.data());
      if (p > 0.0 && std::isfinite(q / p)) a_norm_ = std::max(a_norm_, q / p);
    }
    if (!std::isfinite(curvature)) {
      stop_all(CgStatus::non_finite);
      return false;
    }
    constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
    steepest_ = std::max(steepest_, curvature / rr_);
    // A step so long that A x would be nothing but rounding errors: its curvature is one.
    const bool is_flat =
        curvature / rr_ <= 100.0 * eps * steepest_ &&
        alpha * vectors_.norm(direction(base.place)) * eps * a_norm_ > b_norm_ / unit_;
    const bool diverges = std::sqrt(rr_) * unit_ * eps > b_norm_;
    if (curvature <= 0.0 || !std::isfinite(alpha) || is_flat || diverges) {
      const double p = vectors_.norm(direction(base.place)), q = vectors_.norm(q_.data());
      a_norm_ = std::max(a_norm_, p > 0.0 ? q / p : 0.0);
      const double noise = 16.0 * eps * (a_norm_ + base.damping) * p * p;
      const auto is_refuted = [&](const Shift& s) {
        return s.place == base.place || curvature + (s.damping - base.damping) * p * p <= 0.0;
      };
      stop_where(is_refuted,
                 curvature < -noise ? CgStatus::negative_curvature : CgStatus::singular);
      return false;
    }
    const double rr =
        vectors_.residual_update(alpha, base.damping, direction(base.place), q_.data(), r_.data());
    if (!std::isfinite(rr)) {
      stop_all(CgStatus::non_finite);
      return false;
    }
    update_shifts(base.damping, alpha, rr);
    ++iterations_;
    return true;
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

  void stop(const Shift& s, CgStatus status) {
    CgSummary& record = summary(s.place);
    record.status = status;
    record.iterations = iterations_;
    record.residual_norm = s.zeta * std::sqrt(rr_);
    // r may be lost with the product.
    record.quadratic = status == CgStatus::non_finite ? s.phi : quadratic(s.place, s.zeta);
  }

  // -x'(b + zeta r) / 2
  double quadratic(Index place, double zeta) {
    return -0.5 * (vectors_.dot(x(place), b_.data()) + zeta * vectors_.dot(x(place), r_.data()));
  }

  CgSignal poll() {
    if (!options_.poll) return CgSignal::go_on;
    for (Index j = 0; j < count(); ++j) {
      residual_norms_[static_cast<std::size_t>(j)] = unit_ * summary(j).residual_norm;
      quadratics_[static_cast<std::size_t>(j)] = unit_ * (unit_ * summary(j).quadratic);
    }
    for (const Shift& s : active_) {
      residual_norms_[static_cast<std::size_t>(s.place)] = unit_ * s.zeta * std::sqrt(rr_);
      quadratics_[static_cast<std::size_t>(s.place)] = unit_ * (unit_ * s.phi);
    }
    return options_.poll({iterations_, count(), residual_norms_.data(), quadratics_.data()});
  }

  // True residuals; the products take the place of the directions.
  void verify() {
    a_.apply_block(x_, count(), directions_.data());
    summary_.matvecs += count();
    for (Index j = 0; j < count(); ++j) {
      CgSummary& record = summary(j);
      const double damping = dampings_[static_cast<std::size_t>(j)];
      const double rr =
          vectors_.replace_residual(1.0, b_.data(), damping, x(j), direction(j), r_.data())[0];
      if (!std::isfinite(rr)) continue;
      record.residual_norm = std::sqrt(rr);
      record.quadratic = quadratic(j, 1.0);
      judge(record);
    }
  }

  void judge(CgSummary& record) const {
    const bool may_be_met =
        record.status == CgStatus::stagnated || record.status == CgStatus::singular;
    if (record.status == CgStatus::converged && record.residual_norm > 2.0 * tolerance_)
      record.status = CgStatus::stagnated;
    else if (may_be_met && record.residual_norm <= tolerance_)
      record.status = CgStatus::converged;
  }

  // The true residual of the smallest damping, of which r is the one of the recurrence. What rounding
  // added to it, e, is apart from r and in proportion to x:
  //   |true r_j|^2 = |r_j|^2 + |e|^2 |x_j|^2 / |x|^2.
  void verify_base() {
    const auto least = std::min_element(dampings_.begin(), dampings_.end());
    const Index place = static_cast<Index>(least - dampings_.begin());
    const CgSummary base = summary(place);
    const double length = vectors_.norm(x(place));
    const bool is_over = base.status == CgStatus::converged ||
                         base.status == CgStatus::max_iterations ||
                         base.status == CgStatus::stagnated;
    if (!is_over || !(length > 0.0) || !std::isfinite(length)) return;
    a_.apply(x(place), direction(place));
    ++summary_.matvecs;
    const double error =
        vectors_.replace_residual(1.0, b_.data(), *least, x(place), direction(place), r_.data())[1];
    for (Index j = 0; std::isfinite(error) && j < count(); ++j) {
      CgSummary& record = summary(j);
      record.residual_norm = std::hypot(record.residual_norm, error * vectors_.norm(x(j)) / length);
      judge(record);
    }
  }

  LinearOperator<T>& a_;
  T* x_;
  const MultishiftOptions& options_;
  const std::vector<double>& dampings_;
  Index size_;
  Vectors<T> vectors_;
  Buffer<T> b_, r_, q_;        // (P,); in units of the power of two next to |b|, as x until the end
  Buffer<T> directions_;       // (m x P)
  std::vector<Shift> active_;  // by damping; the first is the base
  std::vector<ShiftedStep<T>> steps_;
  std::vector<double> residual_norms_, quadratics_;
  double b_norm_ = 0.0, unit_ = 1.0, tolerance_ = 0.0;
  double rr_ = 0.0, last_alpha_ = 1.0, beta_ = 0.0;
  double floor_ = 0.0, a_norm_ = 0.0, steepest_ = 0.0;  // see Recurrence
  Index iterations_ = 0;
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
