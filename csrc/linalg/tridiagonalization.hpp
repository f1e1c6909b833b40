// Householder reduction of a symmetric matrix to tridiagonal form, A = Q T Q' (Golub & Van Loan,
// "Matrix Computations", sec. 8.3; in panels as by Dongarra, Sorensen and Hammarling, J. Comput. Appl.
// Math. 27, 1989). Q = H_0 H_1 .. H_{n-3}, H_j = I - tau_j v_j v_j', v_j zero up to row j, 1 in the
// next one.
#pragma once

#include <vector>

#include "linalg/matrix.hpp"

namespace natgrad {

class Tridiagonalization {
 public:
  // Overwrites `a` (n x n, upper triangle, rows as long as whole panels): its rows become those of the
  // v_j behind the diagonal. 4 n^3 / 3 flops, half of them in products of A with single vectors, which
  // read the triangle once each. The bits do not depend on threads.
  Tridiagonalization(Matrix<double>& a, int num_threads);

  // Elements of T: diagonal (n,), and the ones beside it (n - 1,).
  const std::vector<double>& diagonal() const { return diagonal_; }
  const std::vector<double>& off_diagonal() const { return off_diagonal_; }
  // rows = rows Q' for a square matrix of rows (n x n), in panels; 2 n^3 flops.
  void multiply_transposed(PanelView<double> rows, int num_threads) const;

 private:
  void reduce_panel(Index begin, Index end, int num_threads);
  void multiply(Index row, const double* v, double* p, int num_threads);
  void update_trailing(Index end, int num_threads);

  Matrix<double>& a_;
  std::vector<double> diagonal_, off_diagonal_, tau_;
  Matrix<double> v_, w_;         // of one panel, (panel x n)
  Matrix<double> partial_;       // sums of the tasks of a product
  Panels<double> left_, right_;  // -[V W] (n x 2 panel) in panels of columns, [W V]' (2 panel x n)
};

}  // namespace natgrad
