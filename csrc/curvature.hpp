#pragma once

#include <array>
#include <memory>

#include "mlp.hpp"
#include "output_matrix.hpp"

namespace natgrad {

// B + shift I with B = sum_i w_i J_i' M_i J_i / sum_i w_i, for per-case output matrices M_i: the
// exact Fisher matrix and the generalized Gauss-Newton matrix (Martens, arXiv 1412.1193). `shift`
// is damping + l2.
template <class T>
class CurvatureOperator final : public LinearOperator<T> {
 public:
  CurvatureOperator(std::shared_ptr<Linearization<T>> linearization,
                    Loss loss,
                    CaseWeights<T> weights,
                    double shift);

  Index size() const override { return linearization_->net().num_params; }
  double shift() const { return shift_; }
  void set_shift(double shift) { shift_ = shift; }

  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;
  // v' (B + shift I) w by two linearised forward passes, (Q'J v).(Q'J w) summed over cases; one if
  // v == w.
  double quadratic_form(const T* v, const T* w);
  // v'Av, v'Aw, w'Aw for A = B + shift I, by one linearised forward pass for each vector.
  std::array<double, 3> quadratic_forms(const T* v, const T* w);

 private:
  std::shared_ptr<Linearization<T>> linearization_;
  OutputMatrices<T> output_;
  CaseWeights<T> weights_;
  double shift_;
  TileFunction<T> multiply_output_;
};

}  // namespace natgrad
