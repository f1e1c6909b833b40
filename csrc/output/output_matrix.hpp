// Per-case (C x C) symmetric matrices M_i in the space of outputs, and their factors.
#pragma once

#include <array>

#include "output/loss.hpp"

namespace natgrad {

//   fisher            F_R(z_i) = E[g g'], g = dL/dz at y drawn from the model's law at z_i
//   sampled_fisher    (1/S) sum_s g_s g_s' for S such draws, fixed by seed, case and sample
//   hessian           d2L/dz2 at (y_i, z_i)
//   empirical_fisher  g g', g = dL/dz at (y_i, z_i)
enum class OutputMatrixKind { fisher, sampled_fisher, hessian, empirical_fisher };

inline constexpr std::array<std::string_view, 4> output_matrix_names = {
    "fisher", "sampled_fisher", "hessian", "empirical_fisher"};

// M_i = Q_i S_i Q_i' for the cases prepared last, each of one form (output_form.hpp).
// Views hold tiles of cases, (rows x cases), and `first` is the first panel of a tile in the batch.
// Columns past the last case hold whatever comes of the z and y there. Products are const and may
// run at once for different tiles.
template <class T>
class OutputMatrices {
 public:
  // prepare() takes at most max_panels panels. num_samples and seed are those of sampled_fisher.
  OutputMatrices(const Loss& loss,
                 OutputMatrixKind kind,
                 Index num_outputs,
                 Index num_samples,
                 std::uint64_t seed,
                 Index max_panels);

  // Makes M_i for the cases of panels [first, first + z.count) of the batch; z (C x cases), y
  // (num_targets x cases), null where not needed. Nothing is done if these panels were prepared
  // last: z and y of a batch do not change.
  void prepare(Index first, PanelView<const T> z, PanelView<const T> y, int num_threads);
  bool needs_targets() const;
  // Whether M_i is positive semi-definite by construction, for every y.
  bool positive_semidefinite() const { return semidefinite_; }

  // r = M_i r in place.
  void multiply(Index first, PanelView<T> r) const;
  // values[i] = r_i' M_i s_i by the factors, so >= 0 for r = s where M_i is semi-definite.
  void inner(Index first, PanelView<const T> r, PanelView<const T> s, double* values) const;
  // d = diag(M_i).
  void diagonal(Index first, PanelView<T> d) const;

  // softmax: max(1, C - 1), the only column for C = 1 is zero; sampled_fisher: S;
  // empirical_fisher: 1; else C.
  Index num_columns() const { return num_columns_; }
  // u = Q_i e_column.
  void factor_column(Index first, Index column, PanelView<T> u) const;
  // +-1 for the cases of `count` panels.
  void factor_sign(Index first, Index column, Index count, T* signs) const;
  // u = Q_i w;  w (num_columns x cases), apart from u.
  void multiply_factor(Index first, PanelView<const T> w, PanelView<T> u) const;
  // w = Q_i' r;  w (num_columns x cases), apart from r.
  void multiply_factor_transposed(Index first, PanelView<const T> r, PanelView<T> w) const;
  // e = Q_i r + rest for e = dL/dz; e is overwritten by the rest. Of each case, either rest = 0, or
  // r = 0 and rest = e: where e is not in the range of Q_i, or |r| would pass 1e2 (float) or 1e4
  // (double), so that its rounding would drown what the other cases have.
  void divide_factor(Index first, PanelView<T> e, PanelView<T> r) const;

 private:
  void choose_form();
  void prepare_panel(Index j, Index case_of_lane_0, PanelView<const T> z, PanelView<const T> y);
  // What data_ holds for a panel of the batch.
  ConstPanelMap<T> stored(Index panel) const;

  Loss loss_;
  OutputMatrixKind kind_;
  Index num_outputs_;
  std::uint64_t seed_;
  OutputForm form_ = OutputForm::identity;
  bool semidefinite_ = true;
  double identity_ = 1;  // m of the scaled identity
  Index num_columns_ = 0;
  Index first_ = 0, count_ = 0;  // panels prepared last
  // identity: empty; diagonal: m; blocks: a, then b; each (C x cases). softmax: p, then the place of
  // the largest one and its root, (C + 2 x cases).
  // outer: G of a case column after column, (S C x cases).
  Panels<T> data_;
};

}  // namespace natgrad
