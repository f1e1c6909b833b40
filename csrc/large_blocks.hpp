// Large blocks of memory, kept for the next user. The pages of a new block are cleared by the
// system one by one, which takes up to a sixth of the time of a product with several vectors; what
// is kept stays at the system's disposal: it may take the pages away when memory is short.
#pragma once

#include "types.hpp"

namespace natgrad {

// From this size on memory comes from here.
inline constexpr Index large_block_bytes = Index{256} << 10;

// At least `bytes`, uninitialised, on a boundary of a page; from 2 MiB on backed by huge pages where
// the system has them on request. Throws std::bad_alloc.
void* take_large_block(Index bytes);
// Returns a block that was taken with this size.
void give_large_block(void* block, Index bytes);

}  // namespace natgrad
