// Work that takes long asks now and then whether it shall end.
#pragma once

#include <atomic>

namespace natgrad {

// What embeds the core says which threads may be asked, and is asked at most every 20 ms.
struct InterruptHook {
  bool (*listens)();  // whether the calling thread is one of those; takes a few cycles
  void (*ask)();      // throws to end the work
};

// A hook that stays for good; null for none.
void set_interrupt_hook(const InterruptHook* hook);

// Throws what the hook throws. A few ns between two questions.
void poll_interrupt();

}  // namespace natgrad
