#include "linalg/vectors.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.hpp"

namespace natgrad {
namespace {

constexpr Index block = Index{1} << 14;
// Vectors shorter than this are left to one thread.
constexpr Index serial_size = Index{1} << 16;

}  // namespace

template <class T>
Vectors<T>::Vectors(Index size, int num_threads)
    : size_(size),
      num_threads_(size < serial_size ? 1 : num_threads),
      num_blocks_((size + block - 1) / block),
      partial_(3 * num_blocks_) {}

template <class T>
template <class F>
void Vectors<T>::each_block(const F& f) {
  parallel_for<Polling::never>(num_blocks_, num_threads_, [&](Index i, int) {
    f(i * block, std::min(size_, (i + 1) * block));
  });
}

template <class T>
template <class F>
double Vectors<T>::sum_blocks(const F& f) {
  parallel_for<Polling::never>(num_blocks_, num_threads_, [&](Index i, int) {
    partial_[i] = f(i * block, std::min(size_, (i + 1) * block));
  });
  return add_up(0);
}

template <class T>
double Vectors<T>::add_up(Index k) const {
  double sum = 0;
  for (Index i = 0; i < num_blocks_; ++i) sum += partial_[k * num_blocks_ + i];
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
  const double top = largest(x);
  if (top == 0.0) return 0.0;
  return top * std::sqrt(sum_blocks([=](Index begin, Index end) {
           return chained_sum(begin, end, [=](Index i) {
             const double ratio = static_cast<double>(x[i]) / top;
             return ratio * ratio;
           });
         }));
}

template <class T>
double Vectors<T>::largest(const T* x) {
  each_block([=](Index begin, Index end) {
    T top = 0;
    for (Index i = begin; i < end; ++i) top = std::max(top, std::abs(x[i]));
    const bool finite = natgrad::all_finite(x + begin, end - begin);
    partial_[begin / block] =
        finite ? static_cast<double>(top) : std::numeric_limits<double>::infinity();
  });
  double top = 0.0;
  for (Index i = 0; i < num_blocks_; ++i) top = std::max(top, partial_[i]);
  return top;
}

template <class T>
bool Vectors<T>::all_finite(const T* x) {
  return sum_blocks([=](Index begin, Index end) {
           return natgrad::all_finite(x + begin, end - begin) ? 0.0 : 1.0;
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
void Vectors<T>::scale_by_power(int exponent, const T* x, T* y) {
  // 2^exponent is a double
  if (std::abs(exponent) <= 1000) return scale(std::exp2(exponent), x, y);
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      y[i] = static_cast<T>(std::ldexp(static_cast<double>(x[i]), exponent));
  });
}

template <class T>
double Vectors<T>::round_in_unit(int exponent, T* x) {
  each_block([=](Index begin, Index end) {
    double squares = 0.0, changes = 0.0;
    for (Index i = begin; i < end; ++i) {
      const double before = static_cast<double>(x[i]);
      const T rounded = static_cast<T>(std::ldexp(before, exponent));
      const double after = std::ldexp(static_cast<double>(rounded), -exponent);
      squares += before * before;
      changes += (after - before) * (after - before);
      x[i] = static_cast<T>(after);
    }
    partial_[begin / block] = squares;
    partial_[num_blocks_ + begin / block] = changes;
  });
  const double squares = add_up(0);
  return squares > 0.0 ? std::sqrt(add_up(1) / squares) : 0.0;
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
double Vectors<T>::dot_with_sum(const T* x, double a, const T* b, const T* r) {
  return sum_blocks([=](Index begin, Index end) {
    return chained_sum(begin, end, [=](Index i) {
      return static_cast<double>(x[i]) *
             (a * static_cast<double>(b[i]) + static_cast<double>(r[i]));
    });
  });
}

template <class T>
std::array<double, 2> Vectors<T>::replace_residual(
    double a, const T* b, double shift, const T* x, const T* q, T* r) {
  const T factor = static_cast<T>(shift);
  // Short enough for the first-level cache.
  constexpr Index piece = Index{1} << 10;
  each_block([=](Index first, Index last) {
    double squares = 0, changes = 0;
    T fresh[piece];
    for (Index begin = first; begin < last; begin += piece) {
      const Index size = std::min(piece, last - begin);
      T* old = r + begin;
      for (Index i = 0; i < size; ++i)
        fresh[i] = static_cast<T>(a * static_cast<double>(b[begin + i])) -
                   (q[begin + i] + factor * x[begin + i]);
      changes += chained_sum(0, size, [=, &fresh](Index i) {
        const double change = static_cast<double>(fresh[i] - old[i]);
        return change * change;
      });
      squares += chained_sum(0, size, [&fresh](Index i) {
        return static_cast<double>(fresh[i]) * static_cast<double>(fresh[i]);
      });
      std::copy_n(fresh, size, old);
    }
    partial_[first / block] = squares;
    partial_[num_blocks_ + first / block] = changes;
  });
  return {add_up(0), std::sqrt(add_up(1))};
}

template <class T>
double Vectors<T>::shifted_dot(double shift, const T* p, const T* q) {
  const T factor = static_cast<T>(shift);
  return sum_blocks([=](Index begin, Index end) {
    return chained_sum(begin, end, [=](Index i) {
      return static_cast<double>(p[i]) * static_cast<double>(q[i] + factor * p[i]);
    });
  });
}

template <class T>
double Vectors<T>::cg_update(double a, double shift, const T* p, const T* q, T* x, T* r) {
  const T factor = static_cast<T>(a), damping = static_cast<T>(shift);
  return sum_blocks([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      x[i] += factor * p[i];
      r[i] -= factor * (q[i] + damping * p[i]);
    }
    return chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(r[i]) * static_cast<double>(r[i]); });
  });
}

template <class T>
std::array<double, 3> Vectors<T>::smoothed_update(
    double weight, double a, double shift, const T* p, const T* q, T* x, T* r, T* y, T* s) {
  const T part = static_cast<T>(weight), factor = static_cast<T>(a),
          damping = static_cast<T>(shift);
  // Shorter than the blocks of sums: r and s stay in the first-level cache.
  constexpr Index piece = Index{1} << 11;
  each_block([=](Index first, Index last) {
    double sums[3] = {};
    for (Index begin = first; begin < last; begin += piece) {
      const Index end = std::min(last, begin + piece);
      if (weight == 1.0) {
        std::copy(x + begin, x + end, y + begin);
        std::copy(r + begin, r + end, s + begin);
      } else {
        for (Index i = begin; i < end; ++i) y[i] += part * (x[i] - y[i]);
        for (Index i = begin; i < end; ++i) s[i] += part * (r[i] - s[i]);
      }
      for (Index i = begin; i < end; ++i) {
        x[i] += factor * p[i];
        r[i] -= factor * (q[i] + damping * p[i]);
      }
      const auto part_of = [=](const T* u, const T* v) {
        return chained_sum(begin, end, [=](Index i) {
          return static_cast<double>(u[i]) * static_cast<double>(v[i]);
        });
      };
      sums[0] += part_of(r, r);
      sums[1] += part_of(s, r);
      sums[2] += part_of(s, s);
    }
    for (Index k = 0; k < 3; ++k) partial_[k * num_blocks_ + first / block] = sums[k];
  });
  return {add_up(0), add_up(1), add_up(2)};
}

template <class T>
void Vectors<T>::blend(double weight, const T* y, T* x) {
  const T part = static_cast<T>(weight);
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) x[i] = y[i] + part * (x[i] - y[i]);
  });
}

template <class T>
std::array<double, 2> Vectors<T>::subtract_and_dot(const T* g, const T* x, T* q) {
  each_block([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) q[i] = g[i] - q[i];
    partial_[begin / block] = chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(q[i]) * static_cast<double>(q[i]); });
    partial_[num_blocks_ + begin / block] = chained_sum(begin, end, [=](Index i) {
      return static_cast<double>(x[i]) * (static_cast<double>(g[i]) + static_cast<double>(q[i]));
    });
  });
  return {add_up(0), add_up(1)};
}

template <class T>
std::array<double, 3> Vectors<T>::ball_dots(const T* x, const T* p) {
  parallel_for<Polling::never>(num_blocks_, num_threads_, [&](Index task, int) {
    const Index begin = task * block, end = std::min(size_, begin + block);
    const auto part = [=](const T* u, const T* v) {
      return chained_sum(begin, end, [=](Index i) {
        return static_cast<double>(u[i]) * static_cast<double>(v[i]);
      });
    };
    partial_[task] = part(x, x);
    partial_[num_blocks_ + task] = part(x, p);
    partial_[2 * num_blocks_ + task] = part(p, p);
  });
  return {add_up(0), add_up(1), add_up(2)};
}

template <class T>
double Vectors<T>::residual_update(double a, double shift, const T* p, const T* q, T* r) {
  const T factor = static_cast<T>(a), damping = static_cast<T>(shift);
  return sum_blocks([=](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) r[i] -= factor * (q[i] + damping * p[i]);
    return chained_sum(
        begin, end, [=](Index i) { return static_cast<double>(r[i]) * static_cast<double>(r[i]); });
  });
}

template <class T>
void Vectors<T>::shifted_updates(const T* r, const ShiftedStep<T>* steps, Index num_steps) {
  // Shorter than the blocks of sums: r stays in the first-level cache for all systems.
  constexpr Index piece = Index{1} << 11;
  each_block([=](Index first, Index last) {
    for (Index begin = first; begin < last; begin += piece) {
      const Index end = std::min(last, begin + piece);
      for (Index j = 0; j < num_steps; ++j) {
        const T length = static_cast<T>(steps[j].length), decay = static_cast<T>(steps[j].decay);
        T* x = steps[j].x;
        T* p = steps[j].p;
        for (Index i = begin; i < end; ++i) {
          x[i] += length * p[i];
          p[i] = r[i] + decay * p[i];
        }
      }
    }
  });
}

template class Vectors<float>;
template class Vectors<double>;

}  // namespace natgrad
