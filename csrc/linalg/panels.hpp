// Panels: the layout in which activations, tangents and deltas live.
//
// A (rows x cols) matrix is cut into panels of `width` columns; a panel is (rows x width)
// row-major:
//   element (r, c) = panel(c / width)[r * width + c % width].
// Activations are panels of (d_l x N): one panel holds `width` cases, one row a feature. The result
// of W * panel is a panel again, so a sweep through the layers never repacks; element-wise work is
// contiguous. The last panel is filled up: see pad rules at each producer.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "base/check.hpp"
#include "base/memory.hpp"
#include "base/types.hpp"

namespace natgrad {

// Geometry of the register tile, (rows x width) accumulators of T, for the vector registers of this
// build.
template <class T>
struct Tile {
#if defined(__AVX512F__)
  static constexpr Index vector_bytes = 64, rows = 12;
#elif defined(__AVX__)
  static constexpr Index vector_bytes = 32, rows = 6;
#elif defined(__aarch64__)
  static constexpr Index vector_bytes = 16, rows = 12;
#else
  static constexpr Index vector_bytes = 16, rows = 6;
#endif
  static constexpr Index lanes = vector_bytes / static_cast<Index>(sizeof(T));
  static constexpr Index width = 2 * lanes;
  // Terms of an inner product summed in registers before they are added to memory: a (depth x
  // width) block of a panel stays in the first-level cache while (rows x depth) blocks pass by.
  // Also the number of cases after which sums over cases are added up, so any chunk of the batch
  // that is a multiple of it leaves the bits alone.
  static constexpr Index first_level_bytes = 28 << 10;
  static constexpr Index depth = std::min<Index>(
      256, first_level_bytes / ((rows + width) * static_cast<Index>(sizeof(T))) / 64 * 64);
};

// Uninitialised memory on a cache-line boundary.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size) : size_(size) {
    const Index bytes = checked_product(size, sizeof(T), "buffer size");
    data_ = std::unique_ptr<T[], Free>(static_cast<T*>(take_memory(bytes)), Free{bytes});
  }
  // Memory of somebody else, who outlives the buffer.
  Buffer(T* data, Index size) : data_(data, Free{borrowed}), size_(size) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  Index size() const { return size_; }
  T& operator[](Index i) { return data_.get()[i]; }
  const T& operator[](Index i) const { return data_.get()[i]; }

 private:
  static constexpr Index borrowed = -1;
  struct Free {
    Index bytes = 0;
    void operator()(T* p) const {
      if (bytes != borrowed) give_memory(p, bytes);
    }
  };
  std::unique_ptr<T[], Free> data_;
  Index size_ = 0;
};

// Buffers of one owner side by side, so that small ones lie on huge pages too.
template <class T>
class Arena {
 public:
  Buffer<T> take(Index size) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(T)), most = Index{16} << 20;
    const Index padded = checked_product(size / line + 1, line, "buffer size");
    if (padded > left_) {
      const Index length = std::max(padded, std::min(total_, most));
      chunks_.emplace_back(length);
      left_ = length;
      next_ = chunks_.back().data();
      total_ += length;
    }
    T* data = next_;
    next_ += padded;
    left_ -= padded;
    return Buffer<T>(data, size);
  }

 private:
  std::vector<Buffer<T>> chunks_;  // each as long as all before it, within limits
  Index total_ = 0, left_ = 0;
  T* next_ = nullptr;
};

// `count` consecutive panels of `rows` rows. T may be const.
template <class T>
struct PanelView {
  T* data = nullptr;
  Index rows = 0;
  Index stride = 0;  // elements from one panel to the next
  Index count = 0;

  T* panel(Index j) const { return data + j * stride; }
  PanelView slice(Index first, Index n) const { return {data + first * stride, rows, stride, n}; }
  operator PanelView<const T>() const { return {data, rows, stride, count}; }
};

template <class T>
class Panels {
 public:
  static constexpr Index width = Tile<T>::width;

  Panels() = default;
  Panels(Index rows, Index cols) : rows_(rows), cols_(cols), buffer_(size_for(rows, cols)) {}
  Panels(Index rows, Index cols, Arena<T>& arena)
      : rows_(rows), cols_(cols), buffer_(arena.take(size_for(rows, cols))) {}

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  bool empty() const { return buffer_.size() == 0; }
  Index count() const { return count_for(cols_); }
  PanelView<T> view() { return {buffer_.data(), rows_, stride_for(rows_), count()}; }
  PanelView<const T> view() const { return {buffer_.data(), rows_, stride_for(rows_), count()}; }

  static Index count_for(Index cols) { return cols / width + (cols % width != 0 ? 1 : 0); }
  // An odd number of rows per panel, so that equal rows of neighbouring panels fall into different
  // cache sets.
  static Index stride_for(Index rows) { return (rows | 1) * width; }
  // Elements of (rows x cols), in double: for sizes that nobody has allocated yet.
  static double elements_for(double rows, double cols) {
    const auto w = static_cast<double>(width);
    return (2.0 * std::floor(rows / 2.0) + 1.0) * w * std::ceil(cols / w);
  }

 private:
  static Index size_for(Index rows, Index cols) {
    return checked_product(
        checked_product(rows | 1, width, "panel size"), count_for(cols), "panel size");
  }

  Index rows_ = 0;
  Index cols_ = 0;
  Buffer<T> buffer_;
};

// norms[i] += |a_i|^2 for the columns a_i
template <class T>
void add_squared_norms(PanelView<const T> a, double* norms) {
  constexpr Index width = Tile<T>::width;
  for (Index j = 0; j < a.count; ++j)
    for (Index r = 0; r < a.rows; ++r)
      for (Index q = 0; q < width; ++q) {
        const double value = static_cast<double>(a.panel(j)[r * width + q]);
        norms[j * width + q] += value * value;
      }
}

}  // namespace natgrad
