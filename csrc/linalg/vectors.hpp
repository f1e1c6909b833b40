// Operations on vectors of length P, shared by threads in blocks of fixed length. Sums are taken in
// double, per block, and added up in the order of the blocks: the same bits for any number of
// threads.
#pragma once

#include <array>

#include "linalg/panels.hpp"

namespace natgrad {

// sum_i f(i) for i in [begin, end), in double, by independent partial sums: the additions do not wait
// for each other.
template <class F>
double chained_sum(Index begin, Index end, const F& f) {
  constexpr Index chains = 16;
  double sums[chains] = {};
  Index i = begin;
  for (; i + chains <= end; i += chains)
    for (Index c = 0; c < chains; ++c) sums[c] += f(i + c);
  for (Index c = 0; i < end; ++i, ++c) sums[c] += f(i);
  double sum = 0;
  for (Index c = 0; c < chains; ++c) sum += sums[c];
  return sum;
}

// On the calling thread.
template <class T>
bool all_finite(const T* x, Index size) {
  int bad = 0;
  for (Index i = 0; i < size; ++i) bad |= x[i] - x[i] != T(0);  // NaN unless x is finite
  return bad == 0;
}

// One of several systems that share the residual r, up to a factor.
template <class T>
struct ShiftedStep {
  double length, decay;
  T* x;
  T* p;
};

template <class T>
class Vectors {
 public:
  Vectors(Index size, int num_threads);
  Index size() const { return size_; }

  double dot(const T* x, const T* y);
  // Infinite only if |x| itself leaves the range of double; NaN if an element is not finite.
  double norm(const T* x);
  // max |x_i|; infinite if an element is not finite.
  double largest(const T* x);
  bool all_finite(const T* x);
  void copy(const T* x, T* y);
  void fill(T value, T* y);
  void scale(double a, const T* x, T* y);  // y = a x
  // y = 2^exponent x, which has to be within the range of T; y may be x.
  void scale_by_power(int exponent, const T* x, T* y);
  // Rounds x to what 2^exponent x can be in T, below the normal numbers; returns |change of x| / |x|.
  double round_in_unit(int exponent, T* x);
  void add(double a, const T* x, T* y);         // y += a x
  void add_scaled(const T* x, double b, T* y);  // y = x + b y
  // x'(a b + r)
  double dot_with_sum(const T* x, double a, const T* b, const T* r);
  // r = a b - (q + shift x); returns r'r and the norm of the change of r.
  std::array<double, 2> replace_residual(
      double a, const T* b, double shift, const T* x, const T* q, T* r);
  // p'(q + shift p)
  double shifted_dot(double shift, const T* p, const T* q);
  // x += a p, r -= a (q + shift p); returns r'r.
  double cg_update(double a, double shift, const T* p, const T* q, T* x, T* r);
  // y += weight (x - y), s += weight (r - s), or y = x, s = r for weight 1; then cg_update of x and r.
  // Returns r'r, s'r and s's.
  std::array<double, 3> smoothed_update(
      double weight, double a, double shift, const T* p, const T* q, T* x, T* r, T* y, T* s);
  // x = y + weight (x - y)
  void blend(double weight, const T* y, T* x);
  // q = g - q; returns q'q and x'(g + q) of the new q.
  std::array<double, 2> subtract_and_dot(const T* g, const T* x, T* q);
  // x'x, x'p, p'p
  std::array<double, 3> ball_dots(const T* x, const T* p);
  // r -= a (q + shift p); returns r'r.
  double residual_update(double a, double shift, const T* p, const T* q, T* r);
  // x_j += length_j p_j, then p_j = r + decay_j p_j, in one sweep: r is read once.
  void shifted_updates(const T* r, const ShiftedStep<T>* steps, Index num_steps);

 private:
  template <class F>
  void each_block(const F& f);
  template <class F>
  double sum_blocks(const F& f);
  // Adds up the k-th sums of all blocks, in order.
  double add_up(Index k) const;

  Index size_;
  int num_threads_;
  Index num_blocks_;
  Buffer<double> partial_;  // (3 x num_blocks)
};

}  // namespace natgrad
