// Inverses and eigenbases of symmetric positive semi-definite matrices, in double whatever T is, on
// tiles that threads share. What takes no number of threads runs on the calling one. The bits do not
// depend on threads.
#pragma once

#include <Eigen/Core>
#include <limits>
#include <vector>

#include "linalg/dense.hpp"
#include "linalg/matrix.hpp"
#include "linalg/vectors.hpp"

namespace natgrad {

// Eigenvalues below this part of the trace are noise of sums that were accumulated in T.
template <class T>
inline constexpr double relative_noise = 64.0 * std::numeric_limits<T>::epsilon();

template <class T>
double trace(const Matrix<T>& s);
// Frobenius norm.
template <class T>
double frobenius_norm(const Matrix<T>& s);

// The shifted matrix that invert_shifted() inverts, D = scale S + shift I, as (n x n) row-major.
//
// Where shift >= relative_noise tr(scale S) that is what it is. A smaller shift would leave the
// sign of small eigenvalues to rounding, and the inverse in T indefinite: there the eigenvalues of
// scale S are clipped at 0, and those of D at relative_noise times the largest.
struct ScaleAndShift {
  double scale, shift;
};
template <class T>
void shift_matrix(const Matrix<T>& s, ScaleAndShift d, double* out);

// out = D^-1 (n x n), exactly symmetric. By Cholesky, n^3 flops on fixed tiles, or by the eigenbasis
// where D was clipped.
template <class T>
void invert_shifted(const Matrix<T>& s, ScaleAndShift d, int num_threads, Matrix<T>& out);

// log det D for the eigenvalues of S, ascending.
template <class T>
double log_det_shifted(const Matrix<T>& s, ScaleAndShift d, const std::vector<double>& values);

// Eigenvalues of S, ascending; rounding may leave some below 0. 4 n^3 / 3 flops.
template <class T>
std::vector<double> eigenvalues(const Matrix<T>& s, int num_threads);

// out = L (n x n) with S = L L', zero above the diagonal, for positive definite S; throws if S is not.
template <class T>
void cholesky_lower(const Matrix<T>& s, int num_threads, Matrix<T>& out);

// S = U diag(values) U': U' (n x n, a row is an eigenvector), values ascending. Up to 14 n^3 / 3 flops.
template <class T>
void decompose_indefinite(const Matrix<T>& s,
                          int num_threads,
                          Matrix<T>& vectors_transposed,
                          double* values);
// The same with values >= 0: negative ones are rounding.
template <class T>
void decompose(const Matrix<T>& s, int num_threads, Matrix<T>& vectors_transposed, double* values);

// Both bases transposed, a row is a vector.
template <class T>
struct BasisChange {
  const Matrix<T>& from;
  const Matrix<T>& to;
};
// The diagonal in another basis of the matrix that has the diagonal `scales` (d x n) in this one:
//   out = (R . R)_left scales (R . R)_right',  R = (new basis)'(old basis)
// The sum stays, since the rows and columns of R . R sum to 1.
template <class T>
void rotate_diagonal(const BasisChange<T>& left,
                     const BasisChange<T>& right,
                     const Matrix<T>& scales,
                     Matrix<T>& out);

// A = R'R in place for the upper triangle of A (n x n), in double; false if A is not positive
// definite to rounding. Eigen's factorisation of diagonal blocks, the rest on fixed tiles shared by
// threads; n^3 / 3 flops.
bool cholesky_upper(Eigen::Ref<Eigen::MatrixXd> a, int num_threads);

}  // namespace natgrad
