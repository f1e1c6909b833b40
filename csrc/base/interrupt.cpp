#include "base/interrupt.hpp"

#include <chrono>
#include <ctime>

namespace natgrad {
namespace {

using Milliseconds = long long;
constexpr Milliseconds period = 20;

std::atomic<const InterruptHook*> the_hook{nullptr};
std::atomic<Milliseconds> next_question{0};

Milliseconds now() {
#ifdef CLOCK_MONOTONIC_COARSE  // read from memory, where the finer clocks read a counter
  timespec time;
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return Milliseconds{time.tv_sec} * 1000 + time.tv_nsec / 1000000;
#else
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
#endif
}

}  // namespace

void set_interrupt_hook(const InterruptHook* hook) {
  the_hook = hook;
}

void poll_interrupt() {
  const InterruptHook* hook = the_hook.load(std::memory_order_acquire);
  if (!hook || !hook->listens()) return;
  const Milliseconds time = now();
  if (time < next_question.load(std::memory_order_relaxed)) return;
  next_question.store(time + period, std::memory_order_relaxed);
  hook->ask();
}

}  // namespace natgrad
