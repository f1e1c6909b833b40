// Row-major matrices: views, and owners of their numbers.
#pragma once

#include "linalg/panels.hpp"

namespace natgrad {

// Row stride of at least `cols` elements, an odd number of cache lines: the rows of a register tile
// then lie in different cache sets for any width.
template <class T>
Index padded_stride(Index cols) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  return ((cols + line - 1) / line | 1) * line;
}

// A (rows x cols) row-major matrix with `ld` elements from row to row.
template <class T>
struct RowMajor {
  const T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index ld = 0;
};

// An owning row-major (rows x cols) matrix.
template <class T>
struct Matrix {
  Matrix() = default;
  // `stride` >= cols elements from row to row; 0: cols.
  Matrix(Index row_count, Index col_count, Index stride = 0)
      : rows(row_count),
        cols(col_count),
        ld(stride == 0 ? col_count : stride),
        data(checked_product(rows, ld, "matrix size")) {}
  RowMajor<T> view() const { return {data.data(), rows, cols, ld}; }
  T* row(Index i) { return data.data() + i * ld; }
  const T* row(Index i) const { return data.data() + i * ld; }

  Index rows = 0, cols = 0, ld = 0;
  Buffer<T> data;
};

}  // namespace natgrad
