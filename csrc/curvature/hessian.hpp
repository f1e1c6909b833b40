#pragma once

#include <memory>

#include "base/mutex.hpp"
#include "curvature/gauss_newton.hpp"

namespace natgrad {

// H + S, H the Hessian of the objective's data term, by Pearlmutter's R-operator. With
// g_l = dh/da_l, u_l = dh/ds_l = phi'_l . g_l, e_l = phi''_l . g_l at the parameters, and R of
// linearization.hpp:
//   R u_l = e_l . R s_l + phi'_l . R g_l
//   R g_L = w M R z,   R g_l = V_{l+1}' u_{l+1} + W_{l+1}' R u_{l+1},   M the Hessian of L in z
//   (H v)_{W_l} = sum over cases of R u_l a_{l-1}' + u_l (R a_{l-1})',   (H v)_{b_l} = of R u_l
// A product costs 12 N P flops, 4 N P in the first layer.
template <class T>
class HessianOperator final : public LinearOperator<T> {
 public:
  // The linearisation has second derivatives and is this object's own. targets (num_targets x N).
  HessianOperator(std::shared_ptr<Linearization<T>> linearization,
                  Loss loss,
                  Panels<T> targets,
                  CaseWeights<T> weights,
                  Shift shift);

  static double estimate_bytes(const Architecture& net,
                               Index num_cases,
                               const LinearizationOptions& options);

  Index size() const override { return linearization_->net().num_params; }
  int num_threads() const { return linearization_->num_threads(); }
  Index num_chunks() const { return linearization_->num_chunks(); }
  Shift shift() const { return shift_.get(); }
  void set_shift(Shift shift) { shift_.set(shift); }

  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;

  // The diagonal of the Gauss-Newton matrix (CurvatureOperator), and, unless all activations are
  // piecewise linear, the part of the e_l unit by unit (UnitCurvature).
  void diagonal(T* out, const Progress& progress = {});
  double trace(const Progress& progress = {});
  // Flops of the one or the other, about: what they report as done at their end.
  double diagonal_flops() const;

 private:
  bool is_curved() const;
  CurvatureOperator<T> gauss_newton() const;
  // f(chunk) for every chunk with h there.
  void each_chunk_of_units(std::vector<Panels<T>>& h,
                           const Progress& progress,
                           double done,
                           const std::function<void(const ChunkView<T>&)>& f);
  void load(const ChunkView<T>& chunk);
  void load_tile(const ChunkView<T>& chunk, Index first);
  void forward_tile(const ChunkView<T>& chunk, const T* v, Index first);
  void backward_tile(const ChunkView<T>& chunk, Index first);
  void transpose_params(const T* v);
  void outer_products(const ChunkView<T>& chunk, const T* v, Shift shift, T* out);

  std::shared_ptr<Linearization<T>> linearization_;
  Loss loss_;
  Panels<T> targets_;
  CaseWeights<T> weights_;
  OutputMatrices<T> output_;
  SharedShift shift_;

  Mutex mutex_;        // guards what follows
  Index loaded_ = -1;  // the first panel of the chunk that was loaded last
  // Of the loaded chunk, (d_l x cases); layer l + 1 of the equations is element l.
  std::vector<Panels<T>> deltas_;      // u_l
  std::vector<Panels<T>> curved_;      // e_l; empty where phi is the identity
  std::vector<Panels<T>> tangents_;    // R s_l, then e_l . R s_l
  std::vector<Panels<T>> outputs_;     // R a_l
  std::vector<Panels<T>> features_;    // R a_{l-1} as panels of features, (cases x d_{l-1})
  std::vector<Panels<T>> r_deltas_;    // R u_l
  std::vector<Buffer<T>> transposed_;  // V_l', (d_{l-1} x d_l), from the second layer on
};

}  // namespace natgrad
