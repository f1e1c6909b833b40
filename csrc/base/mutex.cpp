#include "base/mutex.hpp"

#include <chrono>

#include "base/interrupt.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace natgrad {
namespace {

std::atomic<unsigned> forks{0};
std::atomic<WaitHook> wait_hook{nullptr};

// Guards the making of new mutexes in a child; whoever forks takes it along.
std::mutex& renewal() {
  static auto* const the_mutex = new std::mutex;
  return *the_mutex;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int is_registered = ::pthread_atfork([] { renewal().lock(); },
                                                            [] { renewal().unlock(); },
                                                            [] {
                                                              ++forks;
                                                              renewal().unlock();
                                                            });
#endif

bool try_for_a_while(std::timed_mutex& mutex) {
  constexpr std::chrono::milliseconds while_(20);
#ifdef __SANITIZE_THREAD__
  // It does not know the system call behind waits by the steady clock.
  return mutex.try_lock_until(std::chrono::system_clock::now() + while_);
#else
  return mutex.try_lock_for(while_);
#endif
}

}  // namespace

unsigned num_forks() {
  return forks.load(std::memory_order_relaxed);
}

void set_wait_hook(WaitHook hook) {
  wait_hook = hook;
}

Mutex::Mutex() : mutex_(new std::timed_mutex), num_forks_(num_forks()) {}

Mutex::~Mutex() {
  // A mutex that is locked for ever must not be destroyed.
  if (num_forks_ == num_forks()) delete mutex_.load();
}

std::timed_mutex& Mutex::of_this_process() {
  if (num_forks_.load(std::memory_order_acquire) != num_forks()) {
    const std::lock_guard<std::mutex> guard(renewal());
    if (num_forks_.load(std::memory_order_relaxed) != num_forks()) {
      mutex_.store(new std::timed_mutex, std::memory_order_relaxed);
      num_forks_.store(num_forks(), std::memory_order_release);
    }
  }
  return *mutex_.load(std::memory_order_relaxed);
}

void Mutex::lock() {
  std::timed_mutex& mutex = of_this_process();
  if (mutex.try_lock()) return;
  const auto wait = [&] {
    while (!try_for_a_while(mutex)) poll_interrupt();
  };
  const WaitHook hook = wait_hook;
  hook ? hook(wait) : wait();
}

void Mutex::unlock() {
  mutex_.load(std::memory_order_relaxed)->unlock();
}

}  // namespace natgrad
