#include "krylov/cg.hpp"

#include <algorithm>

namespace natgrad {
namespace {

// K solves side by side: what they need is asked for in one call.
template <class T>
class Lockstep {
 public:
  Lockstep(LinearOperator<T>& a,
           LinearOperator<T>* preconditioner,
           Index num_columns,
           T* x,
           const CgOptions& options,
           std::vector<CgIterate<T>>* iterates)
      : a_(a),
        preconditioner_(preconditioner),
        options_(options),
        vectors_(a.size(), options.num_threads),
        num_columns_(num_columns) {
    const Index total = checked_product(num_columns, a.size(), "block of vectors");
    for (Buffer<T>* buffer : {&r_, &p_, &q_}) *buffer = Buffer<T>(total);
    if (preconditioner) z_ = Buffer<T>(total);
    const bool smooths = options.stopping == CgStopping::residual;
    if (smooths)
      for (Buffer<T>* buffer : {&y_, &s_}) *buffer = Buffer<T>(total);
    const auto n = static_cast<std::size_t>(num_columns);
    solves_.reserve(n);
    waiting_.reserve(n);
    alone_.reserve(n);
    residual_norms_.resize(n);
    quadratics_.resize(n);
    for (Index k = 0; k < num_columns; ++k) {
      const Index at = k * a.size();
      const auto part = [&](Buffer<T>& buffer) {
        return buffer.size() > 0 ? buffer.data() + at : nullptr;
      };
      solves_.emplace_back(
          a.size(),
          preconditioner != nullptr,
          num_columns > 1,
          CgVectors<T>{x + at, part(r_), part(p_), part(q_), part(z_), part(y_), part(s_)},
          options,
          iterates);
    }
  }

  std::vector<CgSummary> run(const T* b) {
    for (Index k = 0; k < num_columns_; ++k)
      solves_[static_cast<std::size_t>(k)].begin(b + k * a_.size());
    do {
      poll();
      // more than once where a solve learns the unit of the preconditioner
      while (preconditioner_ && multiply(*preconditioner_, [](CgNeed n) {
               return n == CgNeed::preconditioned_residual;
             })) {
      }
    } while (multiply(a_, [](CgNeed n) {
      return n == CgNeed::product_of_x || n == CgNeed::product_of_p || n == CgNeed::product_of_q;
    }));
    std::vector<CgSummary> summaries;
    for (const Recurrence<T>& solve : solves_) summaries.push_back(solve.summary());
    return summaries;
  }

 private:
  void poll() {
    const bool asked = std::any_of(solves_.begin(), solves_.end(), [](const Recurrence<T>& solve) {
      return solve.need() == CgNeed::poll;
    });
    if (!asked) return;
    const CgSignal signal = options_.poll ? options_.poll(progress()) : CgSignal::go_on;
    for (Recurrence<T>& solve : solves_) {
      if (signal == CgSignal::stop) {
        solve.stop(CgStatus::stopped);
      } else if (signal == CgSignal::interrupt) {
        solve.stop(CgStatus::interrupted);
      } else if (solve.need() == CgNeed::poll) {
        solve.advance();
      }
    }
  }

  CgProgress progress() {
    Index iteration = 0;
    for (std::size_t k = 0; k < solves_.size(); ++k) {
      iteration = std::max(iteration, solves_[k].summary().iterations);
      residual_norms_[k] = solves_[k].residual_norm();
      quadratics_[k] = solves_[k].value();
    }
    return {iteration, num_columns_, residual_norms_.data(), quadratics_.data()};
  }

  // Serves all solves with such a need; whether there were any.
  template <class Wanted>
  bool multiply(LinearOperator<T>& op, const Wanted& wanted) {
    waiting_.clear();
    alone_.clear();
    for (Recurrence<T>& solve : solves_)
      if (wanted(solve.need())) (solve.alone() ? alone_ : waiting_).push_back(&solve);
    if (waiting_.empty() && alone_.empty()) return false;
    try {
      if (!waiting_.empty())
        multiply_together(op, waiting_.data(), static_cast<Index>(waiting_.size()));
      for (Recurrence<T>*& solve : alone_) multiply_together(op, &solve, 1);
    } catch (const Interrupted&) {
      for (Recurrence<T>& solve : solves_) solve.interrupt();
      return true;
    }
    for (const auto* solves : {&waiting_, &alone_})
      for (Recurrence<T>* solve : *solves) solve->advance();
    return true;
  }

  // Products of `count` solves as one block, where they are or by way of the stage.
  void multiply_together(LinearOperator<T>& op, Recurrence<T>* const* solves, Index count) {
    if (is_in_place(solves, count)) {
      op.apply_block(solves[0]->input(), count, solves[0]->output());
      return;
    }
    if (staged_input_.size() == 0) {
      staged_input_ = Buffer<T>(num_columns_ * op.size());
      staged_output_ = Buffer<T>(num_columns_ * op.size());
    }
    for (Index k = 0; k < count; ++k)
      move(solves[k]->unit().factor_in(), solves[k]->input(), staged_input_.data() + k * op.size());
    op.apply_block(staged_input_.data(), count, staged_output_.data());
    for (Index k = 0; k < count; ++k)
      move(solves[k]->unit().factor_out(),
           staged_output_.data() + k * op.size(),
           solves[k]->output());
  }

  void move(double factor, const T* x, T* y) {
    factor == 1.0 ? vectors_.copy(x, y) : vectors_.scale(factor, x, y);
  }

  bool is_in_place(Recurrence<T>* const* solves, Index count) const {
    for (Index k = 0; k < count; ++k)
      if (!solves[k]->unit().is_one() || solves[k]->input() != solves[0]->input() + k * a_.size() ||
          solves[k]->output() != solves[0]->output() + k * a_.size())
        return false;
    return true;
  }

  LinearOperator<T>& a_;
  LinearOperator<T>* preconditioner_;
  const CgOptions& options_;
  Vectors<T> vectors_;
  Index num_columns_;
  Buffer<T> r_, p_, q_, z_, y_, s_;         // (K x P)
  Buffer<T> staged_input_, staged_output_;  // (K x P), once columns have dropped out
  std::vector<Recurrence<T>> solves_;
  std::vector<Recurrence<T>*> waiting_, alone_;  // for a product together, for one of their own
  std::vector<double> residual_norms_, quadratics_;
};

}  // namespace

template <class T>
std::vector<CgSummary> conjugate_gradients(LinearOperator<T>& a,
                                           LinearOperator<T>* preconditioner,
                                           const T* b,
                                           Index num_columns,
                                           T* x,
                                           const CgOptions& options,
                                           std::vector<CgIterate<T>>* iterates) {
  check(!iterates || num_columns == 1, "iterates are kept for one right-hand side only");
  return Lockstep<T>(a, preconditioner, num_columns, x, options, iterates).run(b);
}

template <class T>
CgSummary conjugate_gradients(LinearOperator<T>& a,
                              LinearOperator<T>* preconditioner,
                              const T* b,
                              T* x,
                              const CgOptions& options) {
  return conjugate_gradients<T>(a, preconditioner, b, 1, x, options).front();
}

#define NATGRAD_INSTANTIATE(T)                                                     \
  template std::vector<CgSummary> conjugate_gradients(LinearOperator<T>&,          \
                                                      LinearOperator<T>*,          \
                                                      const T*,                    \
                                                      Index,                       \
                                                      T*,                          \
                                                      const CgOptions&,            \
                                                      std::vector<CgIterate<T>>*); \
  template CgSummary conjugate_gradients(                                          \
      LinearOperator<T>&, LinearOperator<T>*, const T*, T*, const CgOptions&);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
