// Large blocks of memory, kept for the next user: a product with 16 vectors takes 1.1 to 1.5 times
// as long where the system has to find and clear the pages of its result. What is kept stays at the
// system's disposal: it may take the pages away when memory is short.
#pragma once

#include "base/types.hpp"

namespace natgrad {

// From this size on memory comes from here.
inline constexpr Index large_block_bytes = Index{256} << 10;

// At least `bytes`, uninitialised, on a boundary of a page; from 2 MiB on backed by huge pages where
// the system has them on request. Throws std::bad_alloc.
void* take_large_block(Index bytes);
// Returns a block that was taken with this size.
void give_large_block(void* block, Index bytes);

}  // namespace natgrad
