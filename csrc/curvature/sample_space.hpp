// The sample space of a curvature matrix B = U U': its kernel K = U'U, without J.
//
//   U = [ sqrt(w_i) J_i' Q_i ]_i  (P x n),   n = N x columns of Q,   w_i normalised
//   K[(i,c), (j,d)] = sum_l (a_{l-1}^i . a_{l-1}^j + 1) (u_l^{ic} . u_l^{jd})
// with u_l^{ic} the deltas of column c of sqrt(w_i) Q_i: Gram matrices of activations and of deltas,
// multiplied elementwise (Ren & Goldfarb, arXiv 1906.02353). By Woodbury
//   (U U' + s I)^{-1} g = (g - U (K + s I)^{-1} U'g) / s,   (U U' + s I)^{-1} U r = U (K + s I)^{-1} r.
#pragma once

#include <memory>

#include "base/mutex.hpp"
#include "curvature/gauss_newton.hpp"
#include "curvature/kernel_inverse.hpp"
#include "linalg/operator.hpp"

namespace natgrad {

// Vectors of the sample space are (N x columns), row-major.
template <class T>
class SampleSpace final : public LinearOperator<T> {
 public:
  // The matrices M_i of the curvature must be positive semi-definite. With a bias_scale r other than
  // 1 the kernel is K = U'D U, D = diag(1 for weights, r for biases): for shifts s on weights and
  // s / r on biases,   (U U' + s D^{-1})^{-1} g = D (g - U (K + s I)^{-1} U'D g) / s.
  explicit SampleSpace(std::shared_ptr<CurvatureOperator<T>> curvature, double bias_scale = 1);

  Index size() const override { return num_cases() * columns(); }
  // y = K x by backward deltas, layer Grams and a forward pass (Linearization::multiply_kernel).
  void apply(const T* x, T* y) override;
  // Layer Grams A'A + r (N x N), which the first product makes otherwise: 2 N^2 flops per unit, kept.
  void prepare_products();

  // v = [v] + U w, with a start if `add`;  w (n,), v (P,).   4 N P flops.
  void multiply_factor(const T* w, T* v, bool add = false);
  // out = g - A x for A = U U' + S; returns its norm, and x'A x / 2 - g'x = -x'(g + out) / 2.
  std::array<double, 2> residual(const T* g, const T* x, Shift shift, T* out);
  // w = U'v.   4 N P flops.
  void multiply_factor_transposed(const T* v, T* w);
  // sqrt(w_i) r_i and w_i rest_i with dL/dz_i = Q_i r_i + rest_i (OutputMatrices::divide_factor), for
  // the gradient sum_i w_i J_i' dL/dz_i = U r + J'rest. r (n,), rest (N x C); targets (num_targets x
  // N). Returns whether the rest is 0.
  bool split_gradient(const Panels<T>& targets, T* r, T* rest);

  // Forms K (n x n): columns backward sweeps of 2 N P flops, then n^2 flops per unit; kept.
  // Returns whether that was done now.
  bool form();
  double largest_diagonal();
  // K in the order of vectors, row-major.
  void copy_kernel(double* k);
  // The decompositions of K, which is formed where it is not yet. The last one of each kind is kept,
  // and `is_new` tells whether it was made now.
  template <class Inverse>
  struct Kept {
    std::shared_ptr<const Inverse> inverse;
    bool is_new;
  };
  Kept<KernelCholesky<T>> factorize(double shift);
  Kept<KernelEigenbasis<T>> decompose();

 private:
  Linearization<T>& lin() const { return curvature_->linearization(); }
  Index num_cases() const { return lin().num_cases(); }
  Index columns() const { return curvature_->output().num_columns(); }
  void gather(std::vector<Panels<T>>& deltas, std::vector<Panels<T>>& inputs);
  Panels<T> layer_gram(std::size_t l, PanelView<const T> inputs) const;
  void add_layer(PanelView<const T> deltas, const Panels<T>& input_gram, bool first, Panels<T>& k);
  OutputPass<T> seed_pass(const T* w);
  OutputPass<T> finish_pass(T* w);
  void write_tile(Index first, PanelView<const T> packed, T* w) const;
  void read_tile(const T* w, Index first, PanelView<T> packed) const;
  SampleOrder order() const { return {num_cases(), columns()}; }
  bool form_once();  // with mutex_ held

  std::shared_ptr<CurvatureOperator<T>> curvature_;
  T bias_scale_;
  Mutex mutex_;                    // guards the making of what is kept, below
  Panels<T> packed_;               // (columns x N), scratch of products
  std::vector<Panels<T>> grams_;   // A_{l-1}'A_{l-1} + r, (N x N)
  std::vector<Panels<T>> deltas_;  // (d_l x N), scratch of products over several chunks
  Matrix<double> kernel_;          // K at and below its diagonal, in kernel order
  std::shared_ptr<const KernelCholesky<T>> cholesky_;
  std::shared_ptr<const KernelEigenbasis<T>> eigenbasis_;
};

}  // namespace natgrad
