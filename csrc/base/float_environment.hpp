// The floating-point environment of a thread: rounding mode and flush-to-zero. Arithmetic depends on
// it, so all threads that share a piece of work must have the same one.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

#include <cstdint>

namespace natgrad {

class FloatEnvironment {
 public:
#if defined(__SSE2__)
  // The control bits of MXCSR; the others are flags of what has happened.
  static FloatEnvironment current() { return FloatEnvironment(_mm_getcsr() & ~0x3Fu); }
  void set() const {
    _mm_setcsr(control_ | (_mm_getcsr() & 0x3Fu));
    __asm__ __volatile__("" : : : "memory");  // arithmetic stays on its side
  }
#elif defined(__aarch64__)
  static FloatEnvironment current() {
    std::uint64_t control;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(control));
    return FloatEnvironment(control);
  }
  void set() const { __asm__ __volatile__("msr fpcr, %0" : : "r"(control_) : "memory"); }
#else
  static FloatEnvironment current() { return FloatEnvironment(std::fegetround()); }
  void set() const { std::fesetround(control_); }
#endif
  bool operator==(const FloatEnvironment& other) const { return control_ == other.control_; }

 private:
#if defined(__SSE2__)
  using Control = std::uint32_t;
#elif defined(__aarch64__)
  using Control = std::uint64_t;
#else
  using Control = int;
#endif
  explicit FloatEnvironment(Control control) : control_(control) {}
  Control control_;
};

// Sets an environment while it lives; takes a few cycles where it is that of the thread already.
class FloatEnvironmentScope {
 public:
  explicit FloatEnvironmentScope(const FloatEnvironment& environment)
      : before_(FloatEnvironment::current()), is_changed_(!(before_ == environment)) {
    if (is_changed_) environment.set();
  }
  ~FloatEnvironmentScope() {
    if (is_changed_) before_.set();
  }
  FloatEnvironmentScope(const FloatEnvironmentScope&) = delete;
  FloatEnvironmentScope& operator=(const FloatEnvironmentScope&) = delete;

 private:
  FloatEnvironment before_;
  bool is_changed_;
};

}  // namespace natgrad
