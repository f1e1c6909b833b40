// The lock of an object that several threads use. Three things are beyond std::mutex:
//  - Whoever waits may hold a lock of the embedding program (Python's) that the owner asks for on
//    its way (interrupt.hpp). A hook lets go of it for the wait.
//  - A wait can be interrupted like other work.
//  - In a forked child the other threads of the parent are gone, with what they had locked. There
//    every lock is free.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>

namespace natgrad {

// Forks between the process that loaded the core and this one.
unsigned num_forks();

// Calls wait() with the locks of the embedding program released.
using WaitHook = void (*)(const std::function<void()>& wait);
void set_wait_hook(WaitHook hook);

class Mutex {
 public:
  Mutex();
  ~Mutex();
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Throws what poll_interrupt() throws while it waits.
  void lock();
  void unlock();

 private:
  std::timed_mutex& of_this_process();

  std::atomic<std::timed_mutex*> mutex_;
  std::atomic<unsigned> num_forks_;  // when it was made
};

}  // namespace natgrad
