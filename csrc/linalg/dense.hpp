// Dense products on tiles. Everything here runs on the calling thread; callers hand out the tiles.
#pragma once

#include "linalg/matrix.hpp"
#include "linalg/panels.hpp"

namespace natgrad {

// Rows in one task of a product: whole register tiles and panels of either type, and few enough to
// stay in the second-level cache.
inline constexpr Index rows_per_task = 96;

// C = [C] + A B, with an optional start and an optional scale:
//   C = (bias or C or 0) + A B, then C = C . scale
// A (m x k), B (k x n) in panels, C and scale (m x n) in panels. `bias` (m,) is added to every
// column. Cost 2 m k n flops.
template <class T>
struct ProductOptions {
  bool accumulate = false;
  const T* bias = nullptr;
  PanelView<const T> scale = {};
};
template <class T>
void multiply(const RowMajor<T>& a,
              PanelView<const T> b,
              PanelView<T> c,
              const ProductOptions<T>& options = {});

// The same for A given as U (m x cases) in panels of cases: C = [C] + U B, B (cases x n) in panels,
// with as many rows as the panels of U have columns.
template <class T>
void multiply_cases(PanelView<const T> u,
                    PanelView<const T> b,
                    PanelView<T> c,
                    const ProductOptions<T>& options = {});

// C[r, :] (+)= sum over cases of U[r, case] B[case, :] for r in [row_begin, row_end).
//   U (d_out x N) in panels of cases, B (N x d_in) in panels of features, C (d_out x d_in)
// The sum is added up every Tile::depth cases, in order. Cost 2 (row_end - row_begin) N d_in flops.
template <class T>
void multiply_outer(PanelView<const T> u,
                    PanelView<const T> b,
                    Index row_begin,
                    Index row_end,
                    Index d_in,
                    bool accumulate,
                    T* c);

// out[r] (+)= sum over cases of U[r, case], in the same order of sums as multiply_outer.
template <class T>
void sum_cases(PanelView<const T> u, Index row_begin, Index row_end, bool accumulate, T* out);

// What columns past N hold: the last case again, so that whatever is finite for the data is finite
// there, or zero.
enum class Fill { last_case, zero };

// The part of y = S x, S symmetric and given by its upper triangle (n x n, row-major, `ld`), that
// comes from its rows [row_begin, row_end):
//   y[r] += sum_{c >= r} S_rc x_c,   y[c] += S_rc x_r for c > r
// The triangle is read once; 4 flops an element.
template <class T>
void multiply_upper(
    const T* s, Index ld, Index n, Index row_begin, Index row_end, const T* x, T* y);

// Row-major (N x d) -> panels [first, first + count) of (d x N).
template <class T>
void pack_cases(
    const T* x, Index num_cases, Index d, Index first, Index count, Fill fill, PanelView<T> out);

// Panels (d x N) of cases -> panels (N x d) of features, for the cases in panels [first, first +
// count).
template <class T>
void transpose_panels(PanelView<const T> a, Index first, Index count, PanelView<T> out);

// Panels of (d x N) -> row-major (N x d); the view may reach past case N.
template <class T>
void unpack_cases(PanelView<const T> panels, Index num_cases, T* out);

// (rows x cols) -> (cols x rows), both row-major.
template <class T>
void transpose(const T* in, Index rows, Index cols, Index ld_in, T* out, Index ld_out);

// out = A' for A (rows x cols), both without gaps; whether no element of A is NaN or infinite.
template <class T>
bool transpose_and_check(const T* a, Index rows, Index cols, int num_threads, T* out);

// Peak of fused multiply-adds on registers, in 1e9 flop/s, over `num_threads` threads for about
// `seconds`.
template <class T>
double measure_fma_peak(int num_threads, double seconds);

}  // namespace natgrad
