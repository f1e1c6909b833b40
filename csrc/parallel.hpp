// The only file that knows OpenMP. Work is cut into tasks whose arithmetic does not depend on the
// thread that runs them, so results have the same bits for any number of threads.
#pragma once

#include <atomic>
#include <exception>

#include "types.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace natgrad {

#ifdef _OPENMP
inline constexpr bool has_openmp = true;
inline int max_threads() {
  return omp_get_max_threads();
}
#else
inline constexpr bool has_openmp = false;
inline int max_threads() {
  return 1;
}
#endif

// Set in a forked child: the threads of the parent's team do not exist there, and libgomp would
// wait for them forever.
inline std::atomic<bool> threads_disabled{false};

// Calls f(task, thread) for every task in [0, num_tasks), thread in [0, num_threads), handing tasks
// out in order to whichever thread is free. The first exception is rethrown after the last task.
template <class F>
void parallel_for(Index num_tasks, int num_threads, F&& f) {
#ifdef _OPENMP
  if (num_threads > 1 && num_tasks > 1 && !threads_disabled) {
    const int team = num_tasks < num_threads ? static_cast<int>(num_tasks) : num_threads;
    std::exception_ptr error;
    std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (Index task = 0; task < num_tasks; ++task) {
      if (failed.load(std::memory_order_relaxed)) continue;
      try {
        f(task, omp_get_thread_num());
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  (void)num_threads;
  for (Index task = 0; task < num_tasks; ++task) f(task, 0);
}

}  // namespace natgrad
