#include <chrono>
#include <optional>

#include "krylov.hpp"
#include "registry.hpp"
#include "vectors.hpp"

namespace natgrad {
namespace {

// In the order of CgStatus.
constexpr std::array<const char*, 9> status_names = {"converged",
                                                     "relative_progress",
                                                     "max_iterations",
                                                     "stagnated",
                                                     "negative_curvature",
                                                     "indefinite_preconditioner",
                                                     "non_finite",
                                                     "stopped",
                                                     "interrupted"};

// y = f(x) by a Python callable (P,) -> (P,); takes the GIL for the call.
template <class T>
class CallableOperator final : public LinearOperator<T> {
 public:
  CallableOperator(py::object f, Index size) : f_(std::move(f)), size_(size) {}
  Index size() const override { return size_; }
  void apply(const T* x, T* y) override {
    const py::gil_scoped_acquire gil;
    auto argument = out<T>({size_});
    std::copy(x, x + size_, argument.mutable_data());
    const py::array result = f_(argument).template cast<py::array>();
    const T* data = in_shape<T>(result, "product of the operator", {size_});
    std::copy(data, data + size_, y);
  }

 private:
  py::object f_;
  Index size_;
};

// Asks Python for pending signals at most every 20 ms, and the user's callback after every
// iteration.
class Poll {
 public:
  explicit Poll(py::object callback)
      : callback_(std::move(callback)), has_callback_(!callback_.is_none()) {}

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
          callback_(progress.iteration, progress.residual_norm, progress.quadratic);
      return PyObject_IsTrue(answer.ptr()) == 1 ? CgSignal::stop : CgSignal::go_on;
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_KeyboardInterrupt)) throw;
      return CgSignal::interrupt;
    }
  }

 private:
  py::object callback_;
  bool has_callback_;
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

}  // namespace

template <class T>
void register_vectors(py::module_& m) {
  m.def(
      "dot",
      [](const py::array& x, const py::array& y, int num_threads) {
        const T* x_data = in<T>(x, "x", 1);
        const T* y_data = in_shape<T>(y, "y", {x.shape(0)});
        return Vectors<T>(x.shape(0), check_threads(num_threads)).dot(x_data, y_data);
      },
      py::arg("x"),
      py::arg("y"),
      py::kw_only(),
      py::arg("num_threads"),
      "x'y in double; bits independent of threads.");
  m.def(
      "all_finite",
      [](const py::array& x, int num_threads) {
        check_array<T>(x, "x", x.ndim());
        return Vectors<T>(x.size(), check_threads(num_threads))
            .all_finite(static_cast<const T*>(x.data()));
      },
      py::arg("x"),
      py::kw_only(),
      py::arg("num_threads"),
      "Whether no element is NaN or infinite.");
}

template <class T>
void register_krylov(py::module_& m) {
  m.def(
      "conjugate_gradients",
      [](const py::object& a,
         const py::object& preconditioner,
         const py::array& b,
         py::array& x,
         double damping,
         double rtol,
         double atol,
         Index max_iter,
         Index min_iter,
         bool relative_progress,
         int num_threads,
         py::object callback) {
        const T* b_data = in<T>(b, "b", 1);
        in_shape<T>(x, "x", {b.shape(0)});
        T* x_data = static_cast<T*>(x.mutable_data());
        AnyOperator<T> op(a, b.shape(0)), inverse(preconditioner, b.shape(0));
        CgOptions options{damping,
                          rtol,
                          atol,
                          max_iter,
                          min_iter,
                          CgStopping::residual,
                          check_threads(num_threads),
                          {}};
        if (relative_progress) options.stopping = CgStopping::relative_progress;
        options.poll = Poll(std::move(callback));
        CgSummary summary;
        {
          py::gil_scoped_release release;
          summary = conjugate_gradients<T>(*op.get(), inverse.get(), b_data, x_data, options);
        }
        return py::make_tuple(status_names[static_cast<std::size_t>(summary.status)],
                              summary.iterations,
                              summary.matvecs,
                              summary.residual_norm,
                              summary.quadratic);
      },
      py::arg("a"),
      py::kw_only(),
      py::arg("preconditioner"),
      py::arg("b"),
      py::arg("x"),
      py::arg("damping"),
      py::arg("rtol"),
      py::arg("atol"),
      py::arg("max_iter"),
      py::arg("min_iter"),
      py::arg("relative_progress"),
      py::arg("num_threads"),
      py::arg("callback"),
      "Solves (A + damping I) x = b from the start x (P,), in place; (status, iterations, matvecs, "
      "residual_norm, "
      "quadratic).");
}

template void register_vectors<float>(py::module_&);
template void register_vectors<double>(py::module_&);
template void register_krylov<float>(py::module_&);
template void register_krylov<double>(py::module_&);

}  // namespace natgrad
