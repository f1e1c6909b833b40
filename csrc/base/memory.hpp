// Memory of buffers. Large blocks are kept for the next user: a product with 16 vectors takes 1.1 to
// 1.5 times as long where the system has to find and clear the pages of its result. What is kept
// stays at the system's disposal: it may take the pages away when memory is short, and an allocation
// that fails gives all of it back and is tried again.
#pragma once

#include <new>
#include <string>
#include <utility>

#include "base/types.hpp"

namespace natgrad {

// From this size on blocks are kept.
inline constexpr Index large_block_bytes = Index{256} << 10;

// MemoryError in Python; says what was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(Index bytes);
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// At least `bytes`, uninitialised, on a boundary of a cache line; large blocks on one of a page, and
// from 2 MiB on backed by huge pages where the system has them on request. Throws OutOfMemory.
void* take_memory(Index bytes);
// Returns what was taken with this size.
void give_memory(void* block, Index bytes);

// Gives what is kept back to the system; returns its size in bytes.
Index release_memory();

}  // namespace natgrad
