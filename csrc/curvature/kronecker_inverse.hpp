// Inverses of Kronecker-factored matrices, as they are multiplied with vectors. V (d_l x n) holds the
// entries of a vector that belong to [W_l b_l] of a layer with n inputs, the constant 1 among them.
//
//   of factors     M V = L V R                            L (d_l x d_l), R (n x n)
//   in a basis     M V = U_G (Q . (U_G' V U_A)) U_A'      Q (d_l x n) > 0
//
// and S with S S' = M:
//
//   of factors     S V = L_c V R_c',    L = L_c L_c', R = R_c R_c' by Cholesky, lower triangles
//   in a basis     S V = U_G (Q^(1/2) . V) U_A'
#pragma once

#include <memory>
#include <vector>

#include "linalg/factorization.hpp"
#include "net/mlp.hpp"

namespace natgrad {

// Columns of a row-major matrix into panels, zero where the last one is filled up; and back.
template <class T>
void pack_columns(const Matrix<T>& from, PanelView<T> to);
template <class T>
Matrix<T> unpack_columns(const Panels<T>& from);

// left (d x d) and right (n x n) of V -> left V right, zero at first.
template <class T>
struct KroneckerPair {
  KroneckerPair(Index d, Index n);
  Matrix<T> left;  // rows an odd number of cache lines apart
  Panels<T> right;
};

// [layer]: V -> U_G' V U_A and V -> U_G V U_A'.
template <class T>
struct KroneckerBasis {
  // A layer, from U_A' (n x n) and U_G' (d_l x d_l).
  void add(const Matrix<T>& inputs_transposed, const Matrix<T>& outputs_transposed);
  std::vector<KroneckerPair<T>> to, from;
};

// Scratch and tasks of the products with one net's vectors.
template <class T>
class KroneckerScratch {
 public:
  // Rows [begin, end) of a layer's V, or panels of its columns.
  struct Task {
    std::size_t layer;
    Index begin, end;
  };

  KroneckerScratch(const Architecture& net, int num_threads);
  // f(task) by all threads, for blocks of rows or of panels of all layers.
  template <class F>
  void each_row_block(const F& f) const;
  template <class F>
  void each_panel_block(const F& f) const;

  const Architecture net;
  std::vector<Matrix<T>> rows;            // [layer]: (d_l x n)
  std::vector<Panels<T>> images, scaled;  // [layer]: (d_l x n)

 private:
  int num_threads_;
  std::vector<Task> row_tasks_, panel_tasks_;
};

template <class T>
class KroneckerInverse {
 public:
  using Pairs = std::vector<KroneckerPair<T>>;

  explicit KroneckerInverse(Pairs factors) : factors_(std::move(factors)) {}
  // Q as panels, [layer]: (d_l x n).
  KroneckerInverse(std::shared_ptr<const KroneckerBasis<T>> basis,
                   std::vector<Panels<T>> reciprocals)
      : basis_(std::move(basis)), reciprocals_(std::move(reciprocals)) {}

  // y = M x;  2 d_l n (d_l + n) flops a layer, twice that in a basis. Nothing is allocated.
  void apply(KroneckerScratch<T>& scratch, const T* x, T* y) const;
  // y = S x;  2 d_l n (d_l + n) flops a layer. The first call factorises L and R.
  void apply_root(KroneckerScratch<T>& scratch, int num_threads, const T* x, T* y);

  bool in_basis() const { return basis_ != nullptr; }
  const Pairs& factors() const { return factors_; }
  const std::shared_ptr<const KroneckerBasis<T>>& basis() const { return basis_; }
  const std::vector<Panels<T>>& reciprocals() const { return reciprocals_; }

 private:
  void make_roots(int num_threads);

  Pairs factors_, roots_;  // of factors
  std::shared_ptr<const KroneckerBasis<T>> basis_;
  std::vector<Panels<T>> reciprocals_;
};

}  // namespace natgrad
