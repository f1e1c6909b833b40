// Second derivatives of the losses of single cases in the pre-activations s_l of single units,
//
//   h_l[r] = d2L / ds_l[r]^2 = (R z)' M (R z) + sum_{k >= l} sum_j e_k[j] (R s_k[j])^2,
//
// for the tangents that start from R s_l = e_r (linearization.hpp), M the output matrix and
// e_k = phi''_k . dL/da_k, without which it is that of the Gauss-Newton matrix. A layer is linear in its
// own parameters, hence the diagonal of the whole matrix is
//
//   diag_{W_l}[r, s] = sum_i w_i h_l^i[r] a_{l-1}^i[s]^2,   diag_{b_l}[r] = sum_i w_i h_l^i[r].
#pragma once

#include "base/progress.hpp"
#include "net/linearization.hpp"
#include "output/output_matrix.hpp"

namespace natgrad {

// Flops for one case of the sums of h_l, about, an elementwise one counted four times: it is that much
// slower. `with_outputs` says whether (R z)' M (R z) is in it.
double unit_curvature_flops(const Architecture& net, bool with_outputs);

// By one forward pass for every unit, through the layers above it.
template <class T>
class UnitCurvature {
 public:
  // The part with M, for the cases that `output` was prepared for.
  UnitCurvature(const Linearization<T>& lin, const OutputMatrices<T>& output);
  // The part with e_k, (d_k x cases), empty where it is 0.
  UnitCurvature(const Linearization<T>& lin, const std::vector<Panels<T>>& curved);

  // h_l (d_l x cases) for every layer; progress counts from `done`.
  void measure(const ChunkView<T>& chunk,
               std::vector<Panels<T>>& h,
               const Progress& progress,
               double done);

 private:
  UnitCurvature(const Linearization<T>& lin,
                const OutputMatrices<T>* output,
                const std::vector<Panels<T>>* curved);
  double flops_per_unit(const ChunkView<T>& chunk, std::size_t l) const;
  // Whether e_l is there.
  bool is_curved(std::size_t l) const;
  void last_layer(const ChunkView<T>& chunk, Panels<T>& h) const;
  void measure_unit(const ChunkView<T>& chunk,
                    std::size_t l,
                    Index unit,
                    Index first,
                    Index count,
                    int thread,
                    Panels<T>& h);
  void add_curved(std::size_t l, Index first, PanelView<const T> r, double* values) const;
  // r of layer l from R s_l = e_unit of the layer below.
  void start(
      const ChunkView<T>& chunk, std::size_t l, Index unit, Index first, PanelView<T> r) const;

  const Linearization<T>& lin_;
  const OutputMatrices<T>* output_;
  const std::vector<Panels<T>>* curved_;
  std::size_t top_ = 0;                 // layers that a tangent has to pass
  std::vector<Buffer<T>> scratch_;      // per thread: 2 x (max_width x tile)
  std::vector<Buffer<double>> values_;  // per thread: (tile,)
};

// out (P,) = [out] + diagonal of the weighted h of the loaded chunk, with a start if `add`.
template <class T>
void add_diagonal(const Linearization<T>& lin,
                  const ChunkView<T>& chunk,
                  const std::vector<Panels<T>>& h,
                  bool add,
                  T* out);

// values[i] += sum_l sum_r h_l^i[r] (|a_{l-1}^i|^2 + 1) for the cases of the loaded chunk; (N filled up,).
template <class T>
void add_traces(const Linearization<T>& lin,
                const ChunkView<T>& chunk,
                const std::vector<Panels<T>>& h,
                double* values);

}  // namespace natgrad
