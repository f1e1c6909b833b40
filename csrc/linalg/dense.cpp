#include "linalg/dense.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "base/parallel.hpp"
#include "linalg/vectors.hpp"

#if !defined(__GNUC__)
#error "dense.cpp uses the vector extensions of GCC and Clang"
#endif

namespace natgrad {
namespace {

// Vector of `lanes` elements; the unaligned variant is for loads from and stores to user arrays.
template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(Tile<T>::vector_bytes)));
  typedef T Unaligned
      __attribute__((vector_size(Tile<T>::vector_bytes), aligned(alignof(T)), may_alias));
};

// Left operand A(i, k), i < Tile::rows, k < kc, of the register tile: runs of consecutive k, the
// elements of a run next to each other.
template <class T>
struct RowOperand {  // rows of a row-major matrix: one run
  const T* data;
  Index row_stride;
  static constexpr Index run_stride = 0;
  static constexpr Index run_length(Index kc) { return kc; }
};
template <class T>
struct CaseOperand {  // rows of panels of cases, k counts the cases: a run per panel
  const T* data;
  Index run_stride;
  static constexpr Index row_stride = Tile<T>::width;
  static constexpr Index run_length(Index) { return Tile<T>::width; }
};

template <class T>
struct Epilogue {
  bool accumulate;
  const T* bias;   // (M,) or null
  const T* scale;  // (M x width), row stride `ldc`, or null
};

// c (M x width, row stride ldc) = [c] + A (M x kc) B (kc x width). The 2 M accumulators stay in
// registers.
template <class T, int M, class Operand>
void register_tile(
    const Operand& a, Index kc, const T* b, T* c, Index ldc, const Epilogue<T>& epilogue) {
  using Vector = typename Simd<T>::Vector;
  using Unaligned = typename Simd<T>::Unaligned;
  constexpr Index lanes = Tile<T>::lanes;
  Vector sum[M][2];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) sum[i][0] = sum[i][1] = Vector{};
  if (epilogue.scale) {  // needed last, and seldom in the first-level cache by then
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) __builtin_prefetch(epilogue.scale + i * ldc);
  }
  const Index run_length = a.run_length(kc);
  const T* run = a.data;
  for (Index k = 0; k < kc; k += run_length, run += a.run_stride) {
    for (Index q = 0; q < run_length; ++q, b += 2 * lanes) {
      const Vector b0 = *reinterpret_cast<const Unaligned*>(b);
      const Vector b1 = *reinterpret_cast<const Unaligned*>(b + lanes);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vector a_ik = run[i * a.row_stride + q] - Vector{};  // broadcast
        sum[i][0] += a_ik * b0;
        sum[i][1] += a_ik * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      auto* out = reinterpret_cast<Unaligned*>(c + i * ldc + h * lanes);
      Vector value = sum[i][h];
      if (epilogue.accumulate) value += *out;
      if (epilogue.bias) value += epilogue.bias[i] - Vector{};
      if (epilogue.scale)
        value *= *reinterpret_cast<const Unaligned*>(epilogue.scale + i * ldc + h * lanes);
      *out = value;
    }
  }
}

template <class T, class Operand, int M = static_cast<int>(Tile<T>::rows)>
void register_tile_rows(
    Index rows, const Operand& a, Index kc, const T* b, T* c, Index ldc, const Epilogue<T>& e) {
  if (rows == M) {
    register_tile<T, M>(a, kc, b, c, ldc, e);
  } else if constexpr (M > 1) {
    register_tile_rows<T, Operand, M - 1>(rows, a, kc, b, c, ldc, e);
  }
}

// Rows of A that are kept in the second-level cache while the panels of B pass by.
constexpr Index block_rows = rows_per_task;

// Swaps the off-diagonal halves of every (2 s x 2 s) diagonal block of the rows a (row i) and b
// (row i + s).
template <int s, class Vector, std::size_t... k>
void swap_halves(Vector& a, Vector& b, std::index_sequence<k...>) {
  constexpr std::size_t lanes = sizeof...(k);
  const Vector upper =
      __builtin_shufflevector(a, b, static_cast<int>(k & s ? lanes + (k ^ s) : k)...);
  b = __builtin_shufflevector(a, b, static_cast<int>(k & s ? lanes + k : k ^ s)...);
  a = upper;
}

template <class Vector, int lanes, int s = 1>
void transpose_registers(Vector (&rows)[lanes]) {
  if constexpr (s < lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
      if ((i & s) == 0) swap_halves<s>(rows[i], rows[i + s], std::make_index_sequence<lanes>());
    transpose_registers<Vector, lanes, 2 * s>(rows);
  }
}

// Transposes a (rows x cols) block of at most (width x width); a full one in registers.
template <class T>
void transpose_block(const T* in, Index ld_in, Index rows, Index cols, T* out, Index ld_out) {
  using Unaligned = typename Simd<T>::Unaligned;
  constexpr int lanes = static_cast<int>(Tile<T>::lanes);
  if (rows != Tile<T>::width || cols != Tile<T>::width) {
    for (Index j = 0; j < cols; ++j)
      for (Index i = 0; i < rows; ++i) out[j * ld_out + i] = in[i * ld_in + j];
    return;
  }
  for (Index i = 0; i < rows; i += lanes)
    for (Index j = 0; j < cols; j += lanes) {
      typename Simd<T>::Vector block[lanes];
      for (int q = 0; q < lanes; ++q)
        block[q] = *reinterpret_cast<const Unaligned*>(in + (i + q) * ld_in + j);
      transpose_registers(block);
      for (int q = 0; q < lanes; ++q)
        *reinterpret_cast<Unaligned*>(out + (j + q) * ld_out + i) = block[q];
    }
}

}  // namespace

namespace {

// C = [C] + A B for A (m x k), whose register-tile operands operand(r, k0) gives.
template <class T, class MakeOperand>
void multiply_operand(Index m,
                      Index k,
                      const MakeOperand& operand,
                      PanelView<const T> b,
                      PanelView<T> c,
                      const ProductOptions<T>& options) {
  constexpr Index width = Tile<T>::width, depth = Tile<T>::depth, tile_rows = Tile<T>::rows;
  for (Index k0 = 0; k0 < k; k0 += depth) {
    const Index kc = std::min(depth, k - k0);
    const bool first = k0 == 0, last = k0 + kc == k;
    for (Index block = 0; block < m; block += block_rows) {
      const Index block_end = std::min(m, block + block_rows);
      for (Index j = 0; j < b.count; ++j) {
        const T* b_panel = b.panel(j) + k0 * width;
        for (Index r = block; r < block_end; r += tile_rows) {
          Epilogue<T> epilogue;
          epilogue.accumulate = !first || options.accumulate;
          epilogue.bias = first && options.bias ? options.bias + r : nullptr;
          epilogue.scale =
              last && options.scale.data ? options.scale.panel(j) + r * width : nullptr;
          register_tile_rows<T>(std::min(tile_rows, block_end - r),
                                operand(r, k0),
                                kc,
                                b_panel,
                                c.panel(j) + r * width,
                                width,
                                epilogue);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void multiply(const RowMajor<T>& a,
              PanelView<const T> b,
              PanelView<T> c,
              const ProductOptions<T>& options) {
  const auto operand = [&](Index r, Index k0) {
    return RowOperand<T>{a.data + r * a.ld + k0, a.ld};
  };
  multiply_operand<T>(a.rows, a.cols, operand, b, c, options);
}

template <class T>
void multiply_cases(PanelView<const T> u,
                    PanelView<const T> b,
                    PanelView<T> c,
                    const ProductOptions<T>& options) {
  constexpr Index width = Tile<T>::width;
  const auto operand = [&](Index r, Index k0) {
    return CaseOperand<T>{u.panel(k0 / width) + r * width, u.stride};
  };
  multiply_operand<T>(u.rows, u.count * width, operand, b, c, options);
}

template <class T>
void multiply_outer(PanelView<const T> u,
                    PanelView<const T> b,
                    Index row_begin,
                    Index row_end,
                    Index d_in,
                    bool accumulate,
                    T* c) {
  constexpr Index width = Tile<T>::width, depth = Tile<T>::depth, tile_rows = Tile<T>::rows;
  const Index num_cases = u.count * width;
  alignas(64) T edge[tile_rows * width];
  for (Index k0 = 0; k0 < num_cases; k0 += depth) {
    const Index kc = std::min(depth, num_cases - k0);
    const Epilogue<T> epilogue{accumulate || k0 > 0, nullptr, nullptr};
    for (Index block = row_begin; block < row_end; block += block_rows) {
      const Index block_end = std::min(row_end, block + block_rows);
      for (Index j = 0; j < b.count; ++j) {
        const T* b_panel = b.panel(j) + k0 * width;
        const Index cols = std::min(width, d_in - j * width);
        for (Index r = block; r < block_end; r += tile_rows) {
          const Index rows = std::min(tile_rows, block_end - r);
          const CaseOperand<T> operand{u.panel(k0 / width) + r * width, u.stride};
          T* out = c + r * d_in + j * width;
          if (cols == width) {
            register_tile_rows<T>(rows, operand, kc, b_panel, out, d_in, epilogue);
            continue;
          }
          register_tile_rows<T>(
              rows, operand, kc, b_panel, edge, width, Epilogue<T>{false, nullptr, nullptr});
          for (Index i = 0; i < rows; ++i)
            for (Index q = 0; q < cols; ++q) {
              T& target = out[i * d_in + q];
              target = epilogue.accumulate ? target + edge[i * width + q] : edge[i * width + q];
            }
        }
      }
    }
  }
}

template <class T>
void sum_cases(PanelView<const T> u, Index row_begin, Index row_end, bool accumulate, T* out) {
  constexpr Index width = Tile<T>::width, panels = Tile<T>::depth / width;
  for (Index r = row_begin; r < row_end; ++r) {
    T total = accumulate ? out[r] : T(0);
    for (Index j0 = 0; j0 < u.count; j0 += panels) {
      T lane_sums[width] = {};
      for (Index j = j0; j < std::min(u.count, j0 + panels); ++j)
        for (Index q = 0; q < width; ++q) lane_sums[q] += u.panel(j)[r * width + q];
      T block_sum = 0;
      for (Index q = 0; q < width; ++q) block_sum += lane_sums[q];
      total += block_sum;
    }
    out[r] = total;
  }
}

namespace {

// y += S_rows' x_rows and sums of S_rows x, for `rows` rows of S next to one another and columns
// [begin, n); the sums of row i are added to y_rows[i].
template <class T, int rows>
void multiply_upper_rows(
    const T* s, Index ld, Index begin, Index n, const T* x, const T* x_rows, T* y, T* y_rows) {
  using Vector = typename Simd<T>::Vector;
  using Unaligned = typename Simd<T>::Unaligned;
  constexpr Index lanes = Tile<T>::lanes, step = 2 * lanes;
  Vector sum[rows][2], factor[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    sum[i][0] = sum[i][1] = Vector{};
    factor[i] = x_rows[i] - Vector{};
  }
  Index c = begin;
  for (; c + step <= n; c += step) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const Index at = c + h * lanes;
      const Vector x_c = *reinterpret_cast<const Unaligned*>(x + at);
      auto* out = reinterpret_cast<Unaligned*>(y + at);
      Vector value = *out;
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) {
        const Vector s_ic = *reinterpret_cast<const Unaligned*>(s + i * ld + at);
        sum[i][h] += s_ic * x_c;
        value += s_ic * factor[i];
      }
      *out = value;
    }
  }
  for (int i = 0; i < rows; ++i) {
    T total = 0;
    for (Index q = 0; q < lanes; ++q) total += sum[i][0][q] + sum[i][1][q];
    for (Index q = c; q < n; ++q) {
      total += s[i * ld + q] * x[q];
      y[q] += s[i * ld + q] * x_rows[i];
    }
    y_rows[i] += total;
  }
}

}  // namespace

template <class T>
void multiply_upper(
    const T* s, Index ld, Index n, Index row_begin, Index row_end, const T* x, T* y) {
  constexpr int block = 4;
  for (Index r = row_begin; r < row_end; r += block) {
    const Index rows = std::min<Index>(block, row_end - r);
    for (Index i = r; i < r + rows; ++i) {  // the corner on the diagonal
      y[i] += s[i * ld + i] * x[i];
      for (Index c = i + 1; c < r + rows; ++c) {
        y[i] += s[i * ld + c] * x[c];
        y[c] += s[i * ld + c] * x[i];
      }
    }
    if (rows == block) {
      multiply_upper_rows<T, block>(s + r * ld, ld, r + rows, n, x, x + r, y, y + r);
      continue;
    }
    for (Index i = r; i < r + rows; ++i)
      multiply_upper_rows<T, 1>(s + i * ld, ld, r + rows, n, x, x + i, y, y + i);
  }
}

template <class T>
void pack_cases(
    const T* x, Index num_cases, Index d, Index first, Index count, Fill fill, PanelView<T> out) {
  constexpr Index width = Tile<T>::width;
  for (Index j = first; j < first + count; ++j) {
    T* panel = out.panel(j);
    const Index valid = std::min(width, num_cases - j * width);
    for (Index f = 0; f < d; f += width)
      transpose_block(
          x + j * width * d + f, d, valid, std::min(width, d - f), panel + f * width, width);
    for (Index f = 0; f < d && valid < width; ++f)
      std::fill(panel + f * width + valid,
                panel + (f + 1) * width,
                fill == Fill::zero ? T(0) : panel[f * width + valid - 1]);
  }
}

template <class T>
void transpose_panels(PanelView<const T> a, Index first, Index count, PanelView<T> out) {
  constexpr Index width = Tile<T>::width;
  for (Index i = first; i < first + count; ++i)
    for (Index j = 0; j < out.count; ++j) {
      const Index features = std::min(width, a.rows - j * width);
      T* block = out.panel(j) + i * width * width;
      if (features < width) std::fill(block, block + width * width, T(0));
      transpose_block(a.panel(i) + j * width * width, width, features, width, block, width);
    }
}

template <class T>
void unpack_cases(PanelView<const T> panels, Index num_cases, T* out) {
  constexpr Index width = Tile<T>::width;
  const Index d = panels.rows;
  for (Index j = 0; j < panels.count; ++j) {
    const Index valid = std::min(width, num_cases - j * width);
    for (Index f = 0; f < d; f += width)
      transpose_block(panels.panel(j) + f * width,
                      width,
                      std::min(width, d - f),
                      valid,
                      out + j * width * d + f,
                      d);
  }
}

template <class T>
void transpose(const T* in, Index rows, Index cols, Index ld_in, T* out, Index ld_out) {
  constexpr Index block = Tile<T>::width;
  for (Index i = 0; i < rows; i += block)
    for (Index j = 0; j < cols; j += block)
      transpose_block(in + i * ld_in + j,
                      ld_in,
                      std::min(block, rows - i),
                      std::min(block, cols - j),
                      out + j * ld_out + i,
                      ld_out);
}

template <class T>
double measure_fma_peak(int num_threads, double seconds) {
  using Vector = typename Simd<T>::Vector;
  constexpr int chains = 10, steps = 10000;
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(static_cast<std::size_t>(num_threads), 0.0);
  parallel_for(num_threads, num_threads, [&](Index task, int) {
    // volatile: a chain whose values the compiler can compute ahead would be counted, not run.
    const volatile T start_value = 2, decay = T(0.999), rest = T(0.001);
    Vector sum[chains];
    for (int i = 0; i < chains; ++i) sum[i] = (start_value + T(i)) - Vector{};
    const Vector factor = decay - Vector{}, term = rest - Vector{};
    double flops = 0, elapsed = 0;
    const auto start = Clock::now();
    while (elapsed < seconds) {
      for (int s = 0; s < steps; ++s) {
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
      }
      flops += 2.0 * chains * steps * static_cast<double>(Tile<T>::lanes);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    for (int i = 1; i < chains; ++i) sum[0] += sum[i];
    // The result is used, so the loop can not be removed.
    rates[static_cast<std::size_t>(task)] = sum[0][0] > T(-1) ? flops / elapsed * 1e-9 : 0.0;
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

template <class T>
bool transpose_and_check(const T* a, Index rows, Index cols, int num_threads, T* out) {
  constexpr Index strip = 1024;
  std::atomic<bool> is_finite{true};
  parallel_for((rows + strip - 1) / strip, num_threads, [&](Index i, int) {
    const Index first = i * strip, count = std::min(strip, rows - first);
    const T* a_strip = a + first * cols;
    if (!all_finite(a_strip, count * cols)) is_finite = false;
    transpose(a_strip, count, cols, cols, out + first, rows);
  });
  return is_finite;
}

#define NATGRAD_INSTANTIATE(T)                                                         \
  template void multiply(                                                              \
      const RowMajor<T>&, PanelView<const T>, PanelView<T>, const ProductOptions<T>&); \
  template void multiply_cases(                                                        \
      PanelView<const T>, PanelView<const T>, PanelView<T>, const ProductOptions<T>&); \
  template void multiply_outer(                                                        \
      PanelView<const T>, PanelView<const T>, Index, Index, Index, bool, T*);          \
  template void sum_cases(PanelView<const T>, Index, Index, bool, T*);                 \
  template void multiply_upper(const T*, Index, Index, Index, Index, const T*, T*);    \
  template void pack_cases(const T*, Index, Index, Index, Index, Fill, PanelView<T>);  \
  template void transpose_panels(PanelView<const T>, Index, Index, PanelView<T>);      \
  template void unpack_cases(PanelView<const T>, Index, T*);                           \
  template void transpose(const T*, Index, Index, Index, T*, Index);                   \
  template bool transpose_and_check(const T*, Index, Index, int, T*);                  \
  template double measure_fma_peak<T>(int, double);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
