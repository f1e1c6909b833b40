#pragma once

#include <sstream>
#include <stdexcept>

#include "base/types.hpp"

namespace natgrad {

// Throws std::invalid_argument (ValueError in Python) with the message made of `parts` unless `ok`.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// a * b, refused when the product does not fit an Index.
inline Index checked_product(Index a, Index b, const char* what) {
  Index product = 0;
  check(!__builtin_mul_overflow(a, b, &product), what, " overflows: ", a, " * ", b);
  return product;
}

inline Index checked_sum(Index a, Index b, const char* what) {
  Index sum = 0;
  check(!__builtin_add_overflow(a, b, &sum), what, " overflows: ", a, " + ", b);
  return sum;
}

}  // namespace natgrad
