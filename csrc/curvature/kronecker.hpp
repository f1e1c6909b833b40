// Kronecker-factored approximations of the Fisher matrix, one block a layer. V (d_l x n) holds the
// entries of a vector that belong to [W_l b_l]; A and G are the moments of layer_moments.hpp.
//
//   kfac     F_l ~ G (x) A              (Martens & Grosse, arXiv 1503.05671)
//   tkfac    F_l ~ G (x) A / delta,     G, A weighted by traces, delta = tr A = tr G = tr F_l
//                                       (Gao et al., arXiv 2011.10741)
//   ekfac    F_l ~ (U_G (x) U_A) diag(S) (U_G (x) U_A)',   U the eigenbases of K-FAC's factors,
//            S = diagonal of F_l in that basis, the best one in the Frobenius norm
//                                       (George et al., arXiv 1806.03884)
//   tekfac   the same in the eigenbases of TKFAC's factors (arXiv 2011.13609)
//
// Damped, with gamma = sqrt(damping):
//   kfac     (G + gamma / pi I) (x) (A + pi gamma I),      pi by traces or Frobenius norms, or 1
//   tkfac    the same for G / sqrt(delta), A / sqrt(delta)
//   exact    G (x) A + damping I (and so for tkfac), by eigenbases
//   ekfac    S + damping
#pragma once

#include <memory>
#include <mutex>

#include "curvature/layer_moments.hpp"

namespace natgrad {

enum class KroneckerKind { kfac, ekfac, tkfac, tekfac };
inline constexpr std::array<std::string_view, 4> kronecker_names = {
    "kfac", "ekfac", "tkfac", "tekfac"};

enum class KroneckerDamping { trace, frobenius, unit, exact };
inline constexpr std::array<std::string_view, 4> kronecker_damping_names = {
    "trace", "frobenius", "unit", "exact"};

struct KroneckerOptions {
  KroneckerKind kind = KroneckerKind::kfac;
  KroneckerDamping damping = KroneckerDamping::trace;
  Index basis_period = 1;  // updates from one eigenbasis to the next
  int num_threads = 1;
};

// The matrix of one layer: left (x) right, or (left (x) right)' diag(scales) (left (x) right) where
// scales is not empty. All row-major in double.
struct KroneckerBlock {
  std::vector<double> left, right, scales;  // (d_l x d_l), (n x n), (d_l x n)
};

// Three costs, three calls: update() passes over a batch, refresh() decomposes, apply() multiplies.
// Calls from several threads wait for each other.
template <class T>
class KroneckerFactors final : public LinearOperator<T> {
 public:
  KroneckerFactors(const Architecture& net, const KroneckerOptions& options);

  // Moving averages of the moments: new = keep old + (1 - keep) batch, keep = min(1 - 1/k, decay)
  // in the k-th call. EKFAC takes new eigenbases in every basis_period-th call, carries S over into
  // them, and averages it with S of the batch, which needs a second backward sweep.
  // False if a moment of the batch is not finite: the average of such a moment stays as it was.
  bool update(Linearization<T>& linearization,
              OutputMatrices<T>& output,
              const CaseWeights<T>& weights,
              double decay);
  // Takes the factors as they are for the products to come. Cost O(n^3 + d_l^3) a layer, or O(P)
  // for EKFAC and when "exact" damping changes alone.
  void refresh(double damping);

  const Architecture& net() const { return net_; }
  Index num_updates() const { return num_updates_; }
  double damping() const { return damping_; }  // 0 before refresh()
  Index size() const override { return net_.num_params; }
  // y = M^-1 x for the damped M; 2 d_l n (d_l + n) flops a layer, twice that with eigenbases.
  // Nothing is allocated.
  void apply(const T* x, T* y) override;

  // The approximation of a layer as update() left it, or the damped matrix that apply() inverts,
  // which is known from refresh() to the next update().
  KroneckerBlock block(std::size_t l, bool damped) const;

  // All numbers that update() and refresh() left, (state_size(),), in an order of their own.
  Index state_size() const;
  void get_state(T* numbers) const;
  // Goes on from there: the same bits as without a break.
  void set_state(const T* numbers, Index num_updates, double damping, bool inverse_is_current);
  // Whether the inverse is that of the factors as they are.
  bool inverse_is_current() const { return inverse_is_current_; }

 private:
  // Everything apply() needs of a layer:   Y = left V right, or
  //   Y = left_back (scales . (left V right)) right_back
  struct Inverse {
    Matrix<T> left, left_back;
    Panels<T> right, right_back, scales;
  };
  struct Task {
    std::size_t layer;
    Index begin, end;
  };

  bool has_basis() const { return uses_diagonals() || options_.damping == KroneckerDamping::exact; }
  bool uses_diagonals() const {
    return options_.kind == KroneckerKind::ekfac || options_.kind == KroneckerKind::tekfac;
  }
  bool uses_traces() const {
    return options_.kind == KroneckerKind::tkfac || options_.kind == KroneckerKind::tekfac;
  }
  // s for the factors s A and s G: 1, or 1 / sqrt(delta).
  double factor_scale(std::size_t l) const;
  // Shifts of the factors s A and s G.
  std::pair<double, double> shifts(std::size_t l, double damping) const;
  using Moment = const Matrix<T>& (LayerMoments<T>::*)(std::size_t l) const;
  void blend(Moment moment, double keep, std::vector<Matrix<T>>& averages);
  void update_bases();
  // The diagonal in the eigenbasis, (d_l x n), with `damping` added.
  std::vector<double> damped_scales(std::size_t l, double damping) const;
  void refresh_factors(double damping);
  // Factor 2 l is the inputs' of layer l, 2 l + 1 the outputs'; all of them, the large ones first.
  const Matrix<T>& factor(Index i) const {
    return (i % 2 == 1 ? outputs_ : inputs_)[static_cast<std::size_t>(i / 2)];
  }
  std::vector<Index> factors_by_size() const;
  void invert_factor(Index i, double damping, int num_threads);
  void refresh_bases(double damping);
  void make_tasks();
  // f(data, size) for every buffer of the state.
  template <class Self, class F>
  static void each_buffer(Self& self, const F& f);
  void multiply_right(const Task& task, const T* x);
  void multiply_left(const Task& task, T* y);
  void multiply_right_back(const Task& task, T* y);

  Architecture net_;
  KroneckerOptions options_;
  mutable std::mutex mutex_;
  LayerMoments<T> moments_;
  Index num_updates_ = 0;
  double damping_ = 0;
  int work_threads_ = 1;
  bool basis_is_current_ = false;    // bases_ are those of the factors
  bool inverse_is_current_ = false;  // inverses_ are those of the factors

  std::vector<Matrix<T>> inputs_, outputs_, diagonals_;  // moving averages
  std::vector<LayerBasis<T>> bases_;
  std::vector<std::vector<double>> input_values_, output_values_;  // eigenvalues
  std::vector<Inverse> inverses_;
  std::vector<Task> row_tasks_, panel_tasks_;
  std::vector<Matrix<T>> rows_;             // [layer]: (d_l x n)
  std::vector<Panels<T>> images_, scaled_;  // [layer]: (d_l x n)
};

}  // namespace natgrad
