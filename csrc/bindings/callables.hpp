// Python objects as the core's operators and callbacks.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "base/progress.hpp"
#include "bindings/registry.hpp"
#include "krylov/cg.hpp"
#include "linalg/operator.hpp"

namespace natgrad {

// In the order of CgStatus.
inline constexpr std::array<const char*, 12> status_names = {"converged",
                                                             "relative_progress",
                                                             "trust_radius",
                                                             "max_iterations",
                                                             "stagnated",
                                                             "negative_curvature",
                                                             "indefinite_preconditioner",
                                                             "non_finite",
                                                             "stopped",
                                                             "interrupted",
                                                             "singular",
                                                             "out_of_range"};

// KeyboardInterrupt out of a Python callable, for solvers that return what they have; raised again
// where none is on the way (module.cpp).
class PythonInterrupted final : public Interrupted {
 public:
  explicit PythonInterrupted(py::error_already_set error)
      : error_(std::make_shared<py::error_already_set>(std::move(error))) {}
  void raise() const { error_->restore(); }

 private:
  std::shared_ptr<py::error_already_set> error_;
};

// Y = f(X) by a Python callable for the rows of (K, P) arrays; takes the GIL for the call.
template <class T>
class CallableOperator final : public LinearOperator<T> {
 public:
  CallableOperator(py::object f, Index size) : f_(std::move(f)), size_(size) {}
  Index size() const override { return size_; }
  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override {
    const py::gil_scoped_acquire gil;
    auto argument = out<T>({num_vectors, size_});
    std::copy(x, x + num_vectors * size_, argument.mutable_data());
    const py::array result = call(argument).template cast<py::array>();
    const T* data = in_shape<T>(result, "product of the operator", {num_vectors, size_});
    std::copy(data, data + num_vectors * size_, y);
  }

 private:
  py::object call(const py::array& argument) {
    try {
      return f_(argument);
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_KeyboardInterrupt)) throw PythonInterrupted(std::move(error));
      throw;
    }
  }

  py::object f_;
  Index size_;
};

// Asks Python for pending signals at most every 20 ms, and the user's callback after every
// iteration: with numbers, or with arrays (K,) for a block.
class Poll {
 public:
  Poll(py::object callback, bool is_block)
      : callback_(std::move(callback)), has_callback_(!callback_.is_none()), is_block_(is_block) {}

  CgSignal operator()(const CgProgress& progress) {
    const auto now = std::chrono::steady_clock::now();
    const bool check_signals = now - last_ > std::chrono::milliseconds(20);
    if (!check_signals && !has_callback_) return CgSignal::go_on;
    last_ = now;
    const py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!has_callback_) return CgSignal::go_on;
      const py::object answer =
          is_block_ ? callback_(progress.iteration,
                                copy(progress.residual_norms, progress.num_columns),
                                copy(progress.quadratics, progress.num_columns))
                    : callback_(progress.iteration, *progress.residual_norms, *progress.quadratics);
      const int is_true = PyObject_IsTrue(answer.ptr());
      if (is_true < 0) throw py::error_already_set();
      return is_true == 1 ? CgSignal::stop : CgSignal::go_on;
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_KeyboardInterrupt)) throw;
      return CgSignal::interrupt;
    }
  }

 private:
  static py::array_t<double> copy(const double* values, Index count) {
    auto result = out<double>({count});
    std::copy(values, values + count, result.mutable_data());
    return result;
  }

  py::object callback_;
  bool has_callback_, is_block_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Asks Python for pending signals at most every 20 ms, and the user's callback(done, total), in flops,
// after every part of a computation.
class ProgressPoll {
 public:
  ProgressPoll(py::object callback, double total)
      : callback_(std::move(callback)), has_callback_(!callback_.is_none()), total_(total) {}

  // f(progress) without the GIL; whether it came to its end, which is told then.
  template <class F>
  bool run(const F& f) {
    try {
      const py::gil_scoped_release release;
      f(Progress([this](double done) { report(std::min(done, total_)); }));
    } catch (const Stop&) {
      return false;
    }
    if (has_callback_) callback_(total_, total_);
    return true;
  }

 private:
  struct Stop {};

  void report(double done) {
    const auto now = std::chrono::steady_clock::now();
    if (!has_callback_ && now - last_ < std::chrono::milliseconds(20)) return;
    last_ = now;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!has_callback_) return;
    const py::object answer = callback_(done, total_);
    const int is_true = PyObject_IsTrue(answer.ptr());
    if (is_true < 0) throw py::error_already_set();
    if (is_true == 1) throw Stop();
  }

  py::object callback_;
  bool has_callback_;
  double total_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// An operator of the core as it is, an array as a diagonal, anything else as a callable; null for None.
template <class T>
class AnyOperator {
 public:
  AnyOperator(const py::object& object, Index size) {
    if (object.is_none()) return;
    if (py::isinstance<LinearOperator<T>>(object)) {
      operator_ = &object.cast<LinearOperator<T>&>();
      check(operator_->size() == size,
            "the operator has size ",
            operator_->size(),
            ", b has length ",
            size);
    } else if (py::isinstance<py::array>(object)) {
      operator_ =
          &diagonal_.emplace(in_shape<T>(object.cast<py::array>(), "preconditioner", {size}), size);
    } else {
      operator_ = &callable_.emplace(object, size);
    }
  }
  LinearOperator<T>* get() { return operator_; }

 private:
  std::optional<DiagonalOperator<T>> diagonal_;
  std::optional<CallableOperator<T>> callable_;
  LinearOperator<T>* operator_ = nullptr;
};

}  // namespace natgrad
