// The only file that knows OpenMP. Work is cut into tasks whose arithmetic does not depend on the
// thread that runs them, so results have the same bits for any number of threads.
#pragma once

#include <atomic>
#include <exception>

#include "base/float_environment.hpp"
#include "base/interrupt.hpp"
#include "base/types.hpp"

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

// Below this many flops a second thread costs more than it brings.
inline constexpr double serial_flops = 1e6;

// Set in a forked child: the threads of the parent's team do not exist there, and libgomp would
// wait for them forever.
inline std::atomic<bool> threads_disabled{false};

#ifdef _OPENMP
// Tasks [next, end) that belong to one thread until another one has nothing left to do; a cache
// line each, since every thread writes to its own.
struct alignas(64) TaskShare {
  std::atomic<Index> next{0};
  Index end = 0;
};
#endif

// The one compiled instance of a task: inlined into both loops below, it could be contracted to
// multiply-adds in two ways, and its bits would depend on the number of threads.
template <class F>
#if defined(__GNUC__) && !defined(__clang__)
[[gnu::noipa]]
#elif defined(__clang__)
[[gnu::noinline]]
#endif
void run_task(F& f, Index task, int thread) {
  f(task, thread);
}

// Whether a loop may be interrupted. Never where what its caller has done so far would be lost, as
// in the vector operations of a solver, which returns what it has.
enum class Polling { between_tasks, never };

// Calls f(task, thread) for every task in [0, num_tasks), thread in [0, num_threads). A thread has a
// run of neighbouring tasks of its own, the same in every call, so what it wrote is still in its
// cache when it comes again; then it helps the others. All compute in the floating-point environment
// of the calling thread, which asks between its tasks whether the work shall end (interrupt.hpp). The
// first exception is rethrown after the last task that was begun; the others are left out.
template <Polling polling = Polling::between_tasks, class F>
void parallel_for(Index num_tasks, int num_threads, F&& f) {
#ifdef _OPENMP
  if (num_threads > 1 && num_tasks > 1 && !threads_disabled) {
    constexpr int max_shares = 64;
    const int team = num_tasks < num_threads ? static_cast<int>(num_tasks) : num_threads;
    const int num_shares = team < max_shares ? team : max_shares;
    TaskShare shares[max_shares];
    for (int i = 0; i < num_shares; ++i) {
      shares[i].next = num_tasks * i / num_shares;
      shares[i].end = num_tasks * (i + 1) / num_shares;
    }
    std::exception_ptr error;
    std::atomic<bool> failed{false};
    const FloatEnvironment environment = FloatEnvironment::current();
#pragma omp parallel num_threads(team)
    {
      const int thread = omp_get_thread_num();
      const FloatEnvironmentScope scope(environment);
      for (int i = 0; i < num_shares; ++i) {
        TaskShare& share = shares[(thread + i) % num_shares];
        for (;;) {
          const Index task = share.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= share.end || failed.load(std::memory_order_relaxed)) break;
          try {
            if (polling != Polling::never && thread == 0) poll_interrupt();
            run_task(f, task, thread);
          } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
          }
        }
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  (void)num_threads;
  for (Index task = 0; task < num_tasks; ++task) {
    if (polling != Polling::never) poll_interrupt();
    run_task(f, task, 0);
  }
}

}  // namespace natgrad
