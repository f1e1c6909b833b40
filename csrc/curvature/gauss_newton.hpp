#pragma once

#include <array>
#include <memory>

#include "base/progress.hpp"
#include "linalg/operator.hpp"
#include "net/linearization.hpp"
#include "net/shift.hpp"
#include "output/case_weights.hpp"
#include "output/output_matrix.hpp"

namespace natgrad {

// What says which curvature matrix: per-case output matrices M_i and the weights of cases.
template <class T>
struct CurvatureSpec {
  Loss loss;
  OutputMatrixKind kind = OutputMatrixKind::fisher;
  Index num_samples = 0;   // of sampled_fisher
  std::uint64_t seed = 0;  // likewise
  Panels<T> targets;       // (num_targets x N), empty where not needed
};

// B + S with B = sum_i w_i J_i' M_i J_i / sum_i w_i: the Fisher matrix, exact or sampled, the
// generalized Gauss-Newton matrix and the empirical Fisher matrix (Martens, arXiv 1412.1193).
// S = damping + l2, for weights and for biases.
template <class T>
class CurvatureOperator final : public LinearOperator<T> {
 public:
  CurvatureOperator(std::shared_ptr<Linearization<T>> linearization,
                    CurvatureSpec<T> spec,
                    CaseWeights<T> weights,
                    Shift shift);

  Index size() const override { return linearization_->net().num_params; }
  Shift shift() const { return shift_.get(); }
  void set_shift(Shift shift) { shift_.set(shift); }
  Linearization<T>& linearization() { return *linearization_; }
  const OutputMatrices<T>& output() const { return output_; }
  const CaseWeights<T>& weights() const { return weights_; }
  const CurvatureSpec<T>& spec() const { return spec_; }

  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override {
    multiply(x, num_vectors, shift_.get(), y);
  }
  // y_k = (B + S) x_k for an S of the caller.
  void multiply(const T* x, Index num_vectors, Shift shift, T* y);
  // v' (B + S) w by two linearised forward passes, (Q'J v).(Q'J w) summed over cases; one if
  // v == w.
  double quadratic_form(const T* v, const T* w);
  // v'Av, v'Aw, w'Aw for A = B + S, by one linearised forward pass for each vector.
  std::array<double, 3> quadratic_forms(const T* v, const T* w);

  // With h_l^i[r] = d2L_i / ds_l[r]^2 of the Gauss-Newton approximation:
  //   diag_{W_l}[r, s] = sum_i w_i h_l^i[r] a_{l-1}^i[s]^2,   one sum of outer products
  // h = sum_c s_ic (u_l^{ic})^2 for the deltas u_l^{ic} of column c of Q_i, s_ic = +-1 its sign: by
  // num_columns backward sweeps of 2 N P flops; or unit by unit (UnitCurvature), if that is cheaper, as
  // where there are many more columns than units. Nothing of size N x P.
  void diagonal(T* out, const Progress& progress = {});
  // sum_i w_i sum_l sum_r h_l^i[r] (|a_{l-1}^i|^2 + 1), tr S added.
  double trace(const Progress& progress = {});
  // Flops of the one or the other, about: what they report as done at their end.
  double diagonal_flops() const {
    return estimate_diagonal_flops(
        linearization_->net(), output_.num_columns(), weights_.num_cases());
  }
  static double estimate_diagonal_flops(const Architecture& net,
                                        Index num_columns,
                                        Index num_cases);
  // The block of layer l (from 0), (p x p) with p its number of parameters. For each pair of units
  // a weighted Gram matrix of the inputs: N p^2 flops.
  void layer_block(std::size_t l, T* out);

  // Called by passes over outputs: prepares M_i for a chunk.
  OutputReader<T> prepare_outputs();

 private:
  using ChunkFunction = std::function<void(const ChunkView<T>&)>;
  OutputPass<T> factor_pass();
  bool goes_by_units() const;
  std::vector<Panels<T>> unit_panels() const;
  // f() for every chunk with h there, not weighted.
  void each_chunk_of_units(std::vector<Panels<T>>& h,
                           const Progress& progress,
                           const ChunkFunction& f);
  void sweep_columns(std::vector<Panels<T>>& h, const Progress& progress, const ChunkFunction& f);
  void sweep_traces(double* values, const Progress& progress);
  void report_columns(const Deltas<T>& deltas, const Progress& progress) const;
  void add_to_block(std::size_t l,
                    const ChunkView<T>& chunk,
                    const Panels<T>& pair_weights,
                    Index r,
                    Index s,
                    T* out);

  std::shared_ptr<Linearization<T>> linearization_;
  CurvatureSpec<T> spec_;
  OutputMatrices<T> output_;
  CaseWeights<T> weights_;
  SharedShift shift_;
  OutputPass<T> multiply_output_;
};

}  // namespace natgrad
