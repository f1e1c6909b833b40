// What rounding may be held responsible for.
#pragma once

#include <limits>

namespace natgrad {

template <class T>
struct Rounding {
  static constexpr double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  // Error of a product, relative to |A| |x|: sums of many terms, through several layers.
  static constexpr double of_product = 100.0 * eps;
  // Error of p'A p, relative to |A| |p|^2: the components of that of A p have all signs.
  static constexpr double of_curvature = 16.0 * eps;
  // A residual of the recurrence below this part of |b| is shorter than the rounding of b - A x: no
  // further iteration can be checked.
  static constexpr double exhausted = 0.1 * eps;
};

}  // namespace natgrad
