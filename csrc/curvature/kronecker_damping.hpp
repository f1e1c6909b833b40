// Damping of Kronecker-factored matrices: what stands for G (x) A + damping I, gamma = sqrt(damping).
//
//   trace, frobenius, unit   (G + gamma / pi I) (x) (A + pi gamma I),   pi^2 the ratio of the mean
//                            eigenvalues of A and G, or of their Frobenius norms over the roots of
//                            their orders, or 1
//   exact                    G (x) A + damping I, by eigenbases
//   diagonals (EKFAC)        S + damping
//
// Where one of the factors is a number, or zero, the first row is exact, too: the other factor takes
// all of the damping.
#pragma once

#include <array>
#include <string_view>

#include "curvature/kronecker_inverse.hpp"

namespace natgrad {

enum class KroneckerDamping { trace, frobenius, unit, exact };
inline constexpr std::array<std::string_view, 4> kronecker_damping_names = {
    "trace", "frobenius", "unit", "exact"};

// The damped matrix (left.scale G + left.shift I) (x) (right.scale A + right.shift I).
struct ShiftedPair {
  ScaleAndShift left, right;
};

// For the factors s A and s G; not for `exact`.
template <class T>
ShiftedPair damped_pair(
    KroneckerDamping rule, double damping, double s, const Matrix<T>& a, const Matrix<T>& g);

// The diagonal B (d x n) of an undamped matrix in its basis: S, or scale g a' for eigenvalues g (d)
// of G and a (n) of A, >= 0 and ascending.
template <class T>
struct BasisDiagonal {
  const Matrix<T>* s = nullptr;
  double scale = 1;
  const std::vector<double>*g = nullptr, *a = nullptr;
};

// D = max(B, 0) + damping, with the part of its largest element that is lost twice in the rounding of
// T as a floor; row-major.
template <class T>
std::vector<double> damped_diagonal(const BasisDiagonal<T>& b, double damping);
// sum log D
template <class T>
double damped_log_sum(const BasisDiagonal<T>& b, double damping);
// 1 / D of every layer, in panels; O(P).
template <class T>
std::vector<Panels<T>> damped_reciprocals(const std::vector<BasisDiagonal<T>>& layers,
                                          double damping,
                                          int num_threads);

}  // namespace natgrad
