#include "vectors.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.hpp"

namespace natgrad {
namespace {

constexpr Index block = Index{1} << 14;
// Vectors shorter than this are left to one thread.
constexpr Index serial_size = Index{1} << 16;

// Independent partial sums, so that the additions of a block do not wait for each other.
constexpr Index chains = 16;

// sum_i f(i) for i in [begin, end), in double.
template <class F>
double chained_sum(Index begin, Index end, const F& f) {
  double sums[chains] = {};
  Index i = begin;
  for (; i + chains <= end; i += chains)
    for (Index c = 0; c < chains; ++c) sums[c] += f(i + c);
  for (Index c = 0; i < end; ++i, ++c) sums[c] += f(i);
  double sum = 0;
  for (Index c = 0; c < chains; ++c) sum += sums[c];
  return sum;
}

}  // namespace

template <class T>
Vectors<T>::Vectors(Index size, int num_threads)
    : size_(size),
      num_threads_(size < serial_size ? 1 : num_threads),
      partial_((size + block - 1) / block) {}

template <class T>
template <class F>
void Vectors<T>::each_block(const F& f) {
  parallel_for(partial_.size(), num_threads_, [&](Index i, int) {
    f(i * block, std::min(size_, (i + 1) * block));
  });
}

template <class T>
template <class F>
double Vectors<T>::sum_blocks(const F& f) {
  parallel_for(partial_.size(), num_threads_, [&](Index i, int) {
    partial_[i] = f(i * block, std::min(size_, (i + 1) * block));
  });
  double sum = 0;
  for (Index i = 0; i < partial_.size(); ++i) sum += partial_[i];
  return sum;
}

template <class T>
double Vectors<T>::dot(const T* x, const T* y) {
  return sum_blocks([=](Index begin, Index end) {
    return chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  });
}

template <class T>
double Vectors<T>::norm(const T* x) {
  const double squares = dot(x, x);
  if (squares > 1e-200 && std::isfinite(squares)) return std::sqrt(squares);
  if (!all_finite(x)) return std::numeric_limits<double>::quiet_NaN();
  // The squares leave the range of double: in units of the largest element.
  double top = 0.0;
  for (Index i = 0; i < size_; ++i) top = std::max(top, std::abs(static_cast<double>(x[i])));
  if (top == 0.0) return 0.0;
  return top * std::sqrt(sum_blocks([=](Index begin, Index end) {
           return chained_sum(begin, end, [=](Index i) {
             const double ratio = static_cast<double>(x[i]) / top;
             return ratio * ratio;
           });
         }));
}

template <class T>
bool Vectors<T>::all_finite(const T* x) {
  return sum_blocks([=](Index begin, Index end) {
           int bad = 0;
           for (Index i = begin; i < end; ++i)
             bad |= x[i] - x[i] != T(0);  // NaN unless x is finite
           return static_cast<double>(bad);
         }) == 0.0;
}

template <class T>
void Vectors<T>::copy(const T* x, T* y) {
  each_block([=](Index begin, Index end) { std::copy(x + begin, x + end, y + begin); });
}

template <class T>
void Vectors<T>::fill(T value, T* y) {
  each_block([=](Index begin, Index end) { std::fill(y + begin, y + end, value); });
}

template <class T>
void Vectors<T>::scale(double a, const T* x, T* y) {
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) y[i] = static_cast<T>(a * static_cast<double>(x[i]));
  });
}

template <class T>
void Vectors<T>::add(double a, const T* x, T* y) {
  const T factor = static_cast<T>(a);
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) y[i] += factor * x[i];
  });
}

template <class T>
void Vectors<T>::add_scaled(const T* x, double b, T* y) {
  const T factor = static_cast<T>(b);
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) y[i] = x[i] + factor * y[i];
  });
}

template <class T>
double Vectors<T>::replace_residual(const T* b, const T* q, T* r, double* drift) {
  *drift = std::sqrt(sum_blocks([=](Index begin, Index end) {
    return chained_sum(begin, end, [=](Index i) {
      const double change = static_cast<double>((b[i] - q[i]) - r[i]);
      return change * change;
    });
  }));
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) r[i] = b[i] - q[i];
  });
  return dot(r, r);
}

template <class T>
double Vectors<T>::shift_and_dot(double shift, const T* p, T* q) {
  const T factor = static_cast<T>(shift);
  return sum_blocks([=](Index begin, Index end) {
    if (factor != T(0))
      for (Index i = begin; i < end; ++i) q[i] += factor * p[i];
    return chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(p[i]) * static_cast<double>(q[i]); });
  });
}

template <class T>
double Vectors<T>::cg_update(double a, const T* p, const T* q, T* x, T* r) {
  const T factor = static_cast<T>(a);
  return sum_blocks([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      x[i] += factor * p[i];
      r[i] -= factor * q[i];
    }
    return chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(r[i]) * static_cast<double>(r[i]); });
  });
}

template class Vectors<float>;
template class Vectors<double>;

}  // namespace natgrad
