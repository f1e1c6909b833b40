#include "base/memory.hpp"

#include <algorithm>
#include <limits>
#include <mutex>
#include <sstream>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace natgrad {
namespace {

constexpr Index huge_page = Index{2} << 20;
constexpr std::size_t max_kept_blocks = 256;

// Whole huge pages, or 64 KiB; small blocks as they are.
Index round_up(Index bytes) {
  if (bytes < large_block_bytes) return bytes;
  const Index unit = bytes < huge_page ? Index{64} << 10 : huge_page;
  return (bytes + unit - 1) / unit * unit;
}

std::align_val_t alignment(Index bytes) {
  const Index boundary = bytes < large_block_bytes ? 64 : bytes < huge_page ? 4096 : huge_page;
  return std::align_val_t{static_cast<std::size_t>(boundary)};
}

// Null if there is no memory.
void* allocate(Index bytes) {
  void* block = ::operator new(static_cast<std::size_t>(bytes), alignment(bytes), std::nothrow);
#ifdef MADV_HUGEPAGE
  if (block && bytes >= huge_page) ::madvise(block, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
#endif
  return block;
}

// Bytes that may be kept: a sixteenth of the memory of the machine, at most 1 GiB.
Index max_kept_bytes() {
  constexpr Index most = Index{1} << 30;
#ifdef _SC_PHYS_PAGES
  const Index pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) return std::min(most, pages / 16 * page);
#endif
  return most / 4;
}

class Store {
 public:
  Store() : limit_(max_kept_bytes()) {}

  // A kept block of this size, the newest; null if there is none. Whoever finds the store locked
  // does without it: the lock may be a copy that a fork left behind.
  void* take(Index bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
      if (block->bytes == bytes) best = block;
    if (best == blocks_.end()) return nullptr;
    void* data = best->data;
    total_ -= best->bytes;
    blocks_.erase(best);
    return data;
  }

  // Whether the block was kept. The oldest ones make room.
  bool give(void* data, Index bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || bytes > limit_) return false;
    while (total_ + bytes > limit_ || blocks_.size() == max_kept_blocks) {
      total_ -= blocks_.front().bytes;
      ::operator delete(blocks_.front().data, alignment(blocks_.front().bytes));
      blocks_.erase(blocks_.begin());
    }
    try {
      blocks_.push_back({data, bytes});
    } catch (const std::bad_alloc&) {
      return false;
    }
    total_ += bytes;
#ifdef MADV_FREE
    if (bytes >= huge_page) ::madvise(data, static_cast<std::size_t>(bytes), MADV_FREE);
#endif
    return true;
  }

  // Bytes that were kept and no longer are.
  Index clear() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return 0;
    const Index bytes = total_;
    for (const Block& block : blocks_) ::operator delete(block.data, alignment(block.bytes));
    blocks_.clear();
    total_ = 0;
    return bytes;
  }

 private:
  struct Block {
    void* data;
    Index bytes;
  };
  std::mutex mutex_;
  Index limit_, total_ = 0;
  std::vector<Block> blocks_;  // oldest first
};

// Never destroyed: arrays that outlive the interpreter give their memory back to it.
Store& store() {
  static auto* const the_store = new Store;
  return *the_store;
}

}  // namespace

OutOfMemory::OutOfMemory(Index bytes) {
  std::ostringstream text;
  text << "cannot allocate ";
  if (bytes < Index{1} << 20)
    text << bytes << " bytes";
  else
    text << (bytes >> 20) << " MiB";
  message_ = text.str();
}

void* take_memory(Index bytes) {
  if (bytes > std::numeric_limits<Index>::max() - huge_page) throw OutOfMemory(bytes);
  const Index size = round_up(bytes);
  void* block = size < large_block_bytes ? nullptr : store().take(size);
  if (!block) block = allocate(size);
  if (!block && store().clear() > 0) block = allocate(size);
  if (!block) throw OutOfMemory(bytes);
  return block;
}

void give_memory(void* block, Index bytes) {
  const Index size = round_up(bytes);
  if (size < large_block_bytes || !store().give(block, size))
    ::operator delete(block, alignment(size));
}

Index release_memory() {
  return store().clear();
}

}  // namespace natgrad
