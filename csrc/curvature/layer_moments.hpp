// Second moments of the layers of a net over one batch, the statistics of Kronecker-factored
// curvature. For layer l, with a = (a_{l-1}, 1) (n = d_{l-1} + 1; n = d_{l-1}, a = a_{l-1} without
// bias), w_i the weights of cases, sum w_i = 1, and u_ic the deltas of the columns Q_i e_c of the
// factors of M_i = Q_i Q_i':
//
//              cases (K-FAC)                      traces (TKFAC)
//   inputs     sum_i w_i a_i a_i'                 sum_i w_i (sum_c |u_ic|^2) a_i a_i'     (n x n)
//   outputs    sum_i w_i sum_c u_ic u_ic'         sum_i w_i |a_i|^2 sum_c u_ic u_ic'      (d_l x d_l)
//   diagonals  sum_i w_i (sum_c (U_G'u_ic)^2) ((U_A'a_i)^2)'                              (d_l x n)
//
// and for metrics L (d_l x d_l) and R (n x n), positive definite, which take the place of the
// identity in the traces, t_i = sum_c u_ic'L u_ic, f_i = a_i'R a_i, sigma = sum_i w_i t_i f_i:
//
//   inputs  A = sum_i w_i t_i a_i a_i',   outputs  G = sum_i w_i f_i sum_c u_ic u_ic',
//   scaled to tr A = tr G = T so that G (x) A / T is G (x) A / sigma before: T = tr A tr G / sigma
#pragma once

#include <array>

#include "linalg/factorization.hpp"
#include "net/linearization.hpp"
#include "output/case_weights.hpp"
#include "output/output_matrix.hpp"

namespace natgrad {

enum class MomentWeighting { cases, traces };

// Orthogonal bases of the inputs and outputs of one layer, or its metrics R and L.
template <class T>
struct LayerBasis {
  LayerBasis(Matrix<T> inputs, Matrix<T> outputs);

  Matrix<T> inputs_transposed;   // U_A' or R (n x n)
  Matrix<T> outputs_transposed;  // U_G' or L (d_l x d_l)
  Buffer<T> constant;            // U_A'e_n or R e_n (n), the image of the constant 1
};

// The second moments of every layer; diagonals only where they were asked for.
template <class T>
struct Moments {
  std::vector<Matrix<T>> inputs, outputs, diagonals;
};

template <class T>
class LayerMoments {
 public:
  LayerMoments(const Architecture& net, MomentWeighting weighting);

  // inputs and outputs; then diagonals in `bases`. One backward sweep for every column each:
  // 2 N P flops a column, and 2 N (n^2 + columns d_l^2) / 2 a layer for the factors, twice that and
  // 2 N n d_l for the diagonals, twice that again for metrics. The cases are those of `weights`, the
  // first ones of the linearisation. The bits do not depend on threads or chunks. Returns whether
  // all elements of the factors are finite. What an exception leaves in the sums is overwritten by
  // the next call. `metrics` are for traces; null: the identity.
  bool measure_factors(Linearization<T>& linearization,
                       OutputMatrices<T>& output,
                       const CaseWeights<T>& weights,
                       const std::vector<LayerBasis<T>>* metrics = nullptr);
  void measure_diagonals(Linearization<T>& linearization,
                         OutputMatrices<T>& output,
                         const CaseWeights<T>& weights,
                         const std::vector<LayerBasis<T>>& bases);

  // What was measured last. The caller may change it, take it, or exchange it for matrices of
  // make_sums().
  Moments<T>& sums() { return sums_; }
  // Rows a whole number of panels long, as the sums want them.
  static Matrix<T> make_sums(Index rows, Index cols);

 private:
  void reserve(Linearization<T>& lin, const CaseWeights<T>& weights);
  void reserve_sums();
  void reserve_factors(Index num_columns);
  void reserve_images();
  void reserve_diagonals();
  Index columns_at_once(const Linearization<T>& lin, Index num_columns) const;
  // t_i of the columns at hand, and f_i with the first of them.
  void add_forms(const Deltas<T>& deltas, const std::vector<LayerBasis<T>>& metrics, bool is_first);
  // Added to what is in the sums if `add`.
  void add_outputs(const Deltas<T>& deltas, bool has_metrics, bool add);
  void add_inputs(const ChunkView<T>& chunk);
  bool finish_factors(bool has_metrics);
  void add_squares(const Deltas<T>& deltas, const std::vector<LayerBasis<T>>& bases);
  void add_diagonals(const ChunkView<T>& chunk, const std::vector<LayerBasis<T>>& bases);
  static void scale_features(const T* scales, Index first, Index count, PanelView<T> out);

  const Architecture net_;
  MomentWeighting weighting_;
  int threads_ = 1;
  Moments<T> sums_;

  Index chunk_ = 0;                                 // cases of a chunk, filled up
  Buffer<T> weights_;                               // w_i of the batch, 0 past N
  std::vector<Buffer<double>> traces_;              // sum_c |u_ic|^2, [layer][case], or t_i
  std::vector<Buffer<double>> forms_;               // f_i, [layer][case]
  std::vector<std::vector<Panels<T>>> transposed_;  // [column][layer]: w_i u_ic, (chunk x d_l)
  std::vector<Panels<T>> scaled_;                   // [layer]: w_i a_i, (d_{l-1} x chunk)
  std::vector<Panels<T>> squares_;                  // [layer]: sum_c (U_G'u_ic)^2, (d_l x chunk)
  Buffer<T> rotated_, rotated_transposed_;  // (widest layer x chunk), (chunk x widest layer)
};

}  // namespace natgrad
