// What a long computation tells whoever waits for it.
#pragma once

#include <functional>

namespace natgrad {

// Called between the parts of a computation, on the calling thread, with the flops that are done; may
// throw, which ends it.
using Progress = std::function<void(double flops)>;

}  // namespace natgrad
