#include "base/interrupt.hpp"

#include <atomic>

#include "base/mutex.hpp"
#include "base/parallel.hpp"
#include "bindings/callables.hpp"

namespace natgrad {
namespace {

// Python's main thread, the one that receives signals.
std::atomic<unsigned long> main_thread{0};

bool is_main_thread() {
  return PyThread_get_thread_ident() == main_thread.load(std::memory_order_relaxed);
}

void raise_pending_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return;
  py::error_already_set error;
  if (error.matches(PyExc_KeyboardInterrupt)) throw PythonInterrupted(std::move(error));
  throw error;
}

// The owner may ask for signals, which takes the GIL.
void wait_without_gil(const std::function<void()>& wait) {
  if (PyGILState_Check() == 0) return wait();
  const py::gil_scoped_release release;
  wait();
}

constexpr InterruptHook signals{&is_main_thread, &raise_pending_signals};

void raise_again(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const PythonInterrupted& interrupted) {
    interrupted.raise();
  }
}

}  // namespace

void register_interrupt(py::module_& m) {
  const py::object main = py::module_::import("threading").attr("main_thread")();
  main_thread = main.attr("ident").cast<unsigned long>();
  set_interrupt_hook(&signals);
  set_wait_hook(&wait_without_gil);
  py::register_local_exception_translator(&raise_again);
  py::class_<Mutex>(m, "Lock", "A lock, as a context; every forked child finds it free.")
      .def(py::init<>())
      .def("__enter__", &Mutex::lock)
      .def(
          "__exit__",
          [](Mutex& mutex, const py::object&, const py::object&, const py::object&) {
            mutex.unlock();
          },
          py::arg("type"),
          py::arg("value"),
          py::arg("traceback"));
  m.def(
      "disable_threads",
      [] { threads_disabled = true; },
      "The calling thread computes everything from now on.");
  m.def(
      "after_fork",
      [] {
        threads_disabled = true;
        main_thread = PyThread_get_thread_ident();
      },
      "For a forked child: its one thread runs everything, and receives signals.");
}

}  // namespace natgrad
