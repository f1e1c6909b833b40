// Eigenvectors of a symmetric tridiagonal matrix by divide and conquer (Cuppen, Numer. Math. 36, 1981;
// Gu & Eisenstat, SIAM J. Matrix Anal. Appl. 16, 1995; deflation as in LAPACK's dlaed2).
#pragma once

#include <vector>

#include "linalg/panels.hpp"

namespace natgrad {

struct TridiagonalEigen {
  std::vector<double> values;  // ascending
  std::vector<Index> rows;     // rows[i] is the row of `vectors` with the vector of values[i]
  Panels<double> vectors;      // (n x n): rows are orthonormal vectors
};

// T = tridiag(off_diagonal, diagonal, off_diagonal). At most 4 n^3 / 3 flops, in products of matrices;
// fewer where eigenvalues are close or the halves hardly coupled. The bits do not depend on threads.
TridiagonalEigen solve_tridiagonal(std::vector<double> diagonal,
                                   const std::vector<double>& off_diagonal,
                                   int num_threads);

}  // namespace natgrad
