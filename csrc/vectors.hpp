// Operations on vectors of length P, shared by threads in blocks of fixed length. Sums are taken in
// double, per block, and added up in the order of the blocks: the same bits for any number of
// threads.
#pragma once

#include "panels.hpp"

namespace natgrad {

template <class T>
class Vectors {
 public:
  Vectors(Index size, int num_threads);
  Index size() const { return size_; }

  double dot(const T* x, const T* y);
  double norm(const T* x);
  bool all_finite(const T* x);
  void copy(const T* x, T* y);
  void fill(T value, T* y);
  void scale(double a, const T* x, T* y);       // y = a x
  void add(double a, const T* x, T* y);         // y += a x
  void add_scaled(const T* x, double b, T* y);  // y = x + b y
  // r = b - q; returns r'r, and in drift the norm of the change of r.
  double replace_residual(const T* b, const T* q, T* r, double* drift);
  // q += shift p; returns p'q.
  double shift_and_dot(double shift, const T* p, T* q);
  // x += a p, r -= a q; returns r'r.
  double cg_update(double a, const T* p, const T* q, T* x, T* r);

 private:
  template <class F>
  void each_block(const F& f);
  template <class F>
  double sum_blocks(const F& f);

  Index size_;
  int num_threads_;
  Buffer<double> partial_;
};

}  // namespace natgrad
