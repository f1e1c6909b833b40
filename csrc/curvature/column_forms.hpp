// Quadratic forms of the columns of a matrix in one metric.
#pragma once

#include "linalg/dense.hpp"
#include "linalg/factorization.hpp"

namespace natgrad {

// out[i] += c a_i' M a_i for the columns a_i of `a` and M (rows x rows) positive definite, where
// 1 / c is the mean of M's diagonal, so that the size of M does not matter. With a constant the
// columns are (a_i, 1) and M has a row and column more, the last one being `constant`. `image` is
// scratch, with stride enough for the rows of M. 2 rows^2 flops a column; sums in double.
template <class T>
void add_forms_of_columns(
    const Matrix<T>& m, const T* constant, PanelView<const T> a, PanelView<T> image, double* out);

}  // namespace natgrad
