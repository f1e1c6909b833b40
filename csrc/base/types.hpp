// Shapes, used in every comment of csrc/:
//   N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0 inputs, d_L = C), K
//   vectors.
// Scalars (losses, inner products, norms) are accumulated in double whatever the storage type T.
#pragma once

#include <cstddef>
#include <cstdint>

namespace natgrad {

using Index = std::ptrdiff_t;

}  // namespace natgrad
