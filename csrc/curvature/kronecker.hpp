// Kronecker-factored approximations of the Fisher matrix, one block a layer. V (d_l x n) holds the
// entries of a vector that belong to [W_l b_l]; A and G are the moments of layer_moments.hpp.
//
//   kfac     F_l ~ G (x) A              (Martens & Grosse, arXiv 1503.05671)
//   tkfac    F_l ~ G (x) A / delta,     G, A weighted by traces, delta = tr A = tr G = tr F_l
//                                       (Gao et al., arXiv 2011.10741)
//   kl      F_l ~ G (x) A / T,          the same with traces in the metrics G^-1 and A^-1 of the
//                                       damped factors before: the fixed point minimises
//                                       KL(N(0, F_l) | N(0, G (x) A / T))
//   ekfac    F_l ~ (U_G (x) U_A) diag(S) (U_G (x) U_A)',   U the eigenbases of K-FAC's factors,
//            S = diagonal of F_l in that basis, the best one in the Frobenius norm
//                                       (George et al., arXiv 1806.03884)
//   tekfac   the same in the eigenbases of TKFAC's factors (arXiv 2011.13609)
//
// The damping of these is that of kronecker_damping.hpp, for the factors s A and s G, s = 1 or
// 1 / sqrt(delta).
#pragma once

#include "base/mutex.hpp"
#include "curvature/kronecker_damping.hpp"
#include "curvature/layer_moments.hpp"
#include "linalg/operator.hpp"

namespace natgrad {

enum class KroneckerKind { kfac, ekfac, tkfac, tekfac, kl };
inline constexpr std::array<std::string_view, 5> kronecker_names = {
    "kfac", "ekfac", "tkfac", "tekfac", "kl"};

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

// One layer of a state, row-major without padding, so the same for every instruction set. Empty is
// what the kind does not have, and the inverse where it is that of the factors as they are.
template <class T>
struct KroneckerArrays {
  Matrix<T> a, g, s;               // averages: (n x n), (d_l x d_l), (d_l x n)
  Matrix<T> basis_a, basis_g;      // U_A, U_G: columns are vectors
  Matrix<T> inverse_a, inverse_g;  // R and L of kronecker_inverse.hpp, or
  Matrix<T> inverse_s, inverse_basis_a, inverse_basis_g;  // Q, U_A and U_G
};

// All that update() and refresh() left.
template <class T>
struct KroneckerState {
  std::vector<KroneckerArrays<T>> layers;   // empty before the first update
  Index num_updates = 0, refreshed_at = 0;  // the inverse is of that update, 0: there is none
  double weight = 0, damping = 0;           // of the averages; of the inverse
};

struct KroneckerUpdate {
  Index num_updates;  // so far, as the caller knows
  double weight;      // of the batch: its number of cases, or the sum of their weights
  double decay;       // in [0, 1)
};
enum class UpdateStatus { done, not_finite, outrun };
inline constexpr std::array<std::string_view, 3> update_status_names = {
    "done", "not_finite", "outrun"};

// Weight w of an average of `num_updates` batches that counts beside the weight m of the next one:
// the averages become (w old + m new) / (w + m), and w + m their weight. Batches count by their
// cases, all alike until there are 1 / (1 - decay) of them; from then on w is `decay` times the
// weight. With equal batches, the k-th one enters with max(1 / k, 1 - decay).
double remembered_weight(Index num_updates, double weight, double decay);

// Three costs, three calls: update() passes over a batch, refresh() decomposes, apply() multiplies.
// Calls from several threads wait for each other. A call that throws changes nothing.
template <class T>
class KroneckerFactors final : public LinearOperator<T> {
 public:
  KroneckerFactors(const Architecture& net, const KroneckerOptions& options);

  // Moving averages of the moments. EKFAC takes new eigenbases in every basis_period-th call,
  // carries S over into them, and averages it with S of the batch, which needs a second backward
  // sweep. "kl" weighs by the inverse that apply() multiplies with, or before the first one as
  // TKFAC. The cases are those of `weights`, the first ones of the linearisation. `not_finite` is a
  // moment of the batch, `outrun` a call for another number of updates: nothing has changed then.
  UpdateStatus update(Linearization<T>& linearization,
                      OutputMatrices<T>& output,
                      const CaseWeights<T>& weights,
                      const KroneckerUpdate& options);
  // Takes the factors as they are for the products to come. Cost O(n^3 + d_l^3) a layer; O(P) for
  // EKFAC, and for "exact" damping unless there was an update.
  void refresh(double damping);

  const Architecture& net() const { return scratch_.net; }
  Index num_updates() const;
  double damping() const;  // 0 before refresh()
  Index size() const override { return net().num_params; }
  // y = M^-1 x for the damped M, and y = S x for a root S S' = M^-1, as in kronecker_inverse.hpp.
  void apply(const T* x, T* y) override { apply_block(x, 1, y); }
  void apply_block(const T* x, Index num_vectors, T* y) override;
  void apply_root(const T* x, Index num_vectors, T* y);

  // The approximation of every layer as update() left it, or the damped matrix that apply() inverts,
  // which is known from refresh() to the next update().
  KroneckerBlock block(std::size_t l, bool damped) const;
  std::vector<KroneckerBlock> blocks(bool damped) const;
  // left = s G and right = s A of every layer, whatever the kind; and, of EKFAC, what blocks(false)
  // gives.
  std::vector<std::pair<KroneckerBlock, KroneckerBlock>> factors() const;
  // Eigenvalues of the approximation, [layer]: (d_l x n), in the order of the eigenvalues of G and
  // of A (ascending), or of the basis. The first call after an update decomposes.
  std::vector<std::vector<double>> eigenvalues();
  // log det of the matrix that refresh(damping) would invert. The first call after an update
  // decomposes, others cost O(P).
  double log_det(double damping);

  KroneckerState<T> state() const;
  // Goes on from there, with the same bits as without a break in a build of the same instruction
  // set. Shapes must fit; what is in the arrays is believed. Costs a refresh.
  void set_state(const KroneckerState<T>& state);

 private:
  struct Spectrum {
    std::vector<double> inputs, outputs;  // ascending
  };
  // Everything that calls change. What the pointers lead to does not change while they are shared,
  // so a copy is a snapshot, and a call makes a new one before it takes the place of the old.
  struct Data {
    Index num_updates = 0, refreshed_at = 0;  // the inverse is of that update, 0: there is none
    double weight = 0, damping = 0;
    std::shared_ptr<Moments<T>> averages;
    std::shared_ptr<const std::vector<LayerBasis<T>>> bases;  // of S
    std::shared_ptr<const KroneckerBasis<T>> basis;           // of averages, for products; or null
    std::shared_ptr<const std::vector<Spectrum>> basis_values;  // of averages in it, for "exact"
    std::shared_ptr<const std::vector<Spectrum>> spectra;       // of averages, when asked for
    std::shared_ptr<KroneckerInverse<T>> inverse;
  };

 public:
  // All that calls change, at no cost: it shares memory with the factors as long as they do not move
  // on. restore() goes back to it.
  class Snapshot {
    friend class KroneckerFactors;
    Snapshot(const KroneckerFactors* owner, const Data& data) : owner_(owner), data_(data) {}
    const KroneckerFactors* owner_;
    Data data_;
  };
  Snapshot snapshot() const;
  void restore(const Snapshot& snapshot);

 private:
  bool uses_diagonals() const {
    return options_.kind == KroneckerKind::ekfac || options_.kind == KroneckerKind::tekfac;
  }
  bool uses_traces() const {
    return options_.kind == KroneckerKind::tkfac || options_.kind == KroneckerKind::tekfac ||
           options_.kind == KroneckerKind::kl;
  }
  bool has_basis() const { return uses_diagonals() || options_.damping == KroneckerDamping::exact; }
  std::size_t num_layers() const { return net().layers.size(); }
  // std::bad_alloc that says what for.
  [[noreturn]] static void throw_out_of_memory(const Architecture& net, const char* call);

  void check_damping(double damping) const;  // its range
  void check_net(const Architecture& other) const;
  // s of the factors s A and s G.
  double factor_scale(const Moments<T>& m, std::size_t l) const;
  // batch = keep old + (1 - keep) batch
  void blend(const std::vector<Matrix<T>>& old, double keep, std::vector<Matrix<T>>& batch) const;
  // f(layer, is_output, num_threads) for all factors, the large ones first: those that would keep a
  // thread longer than its share of the rest by all threads, the others by one each.
  void each_factor(const std::function<void(std::size_t, bool, int)>& f) const;
  std::vector<LayerBasis<T>> make_bases(const Moments<T>& m, std::vector<Spectrum>& values) const;
  // R and L of the inverse, of "kl"; empty without one.
  std::vector<LayerBasis<T>> make_metrics() const;
  std::vector<Matrix<T>> carry_over(const std::vector<LayerBasis<T>>& bases) const;
  const std::vector<Spectrum>& spectra();

  // Puts the inverse into data, and the basis if it is missing.
  void invert(Data& data, double damping) const;
  std::shared_ptr<KroneckerInverse<T>> invert_factors(const Moments<T>& m, double damping) const;
  void make_basis(Data& data) const;
  std::vector<BasisDiagonal<T>> basis_diagonals(const Data& data) const;
  void check_block(bool damped) const;
  KroneckerBlock make_block(std::size_t l, bool damped) const;
  std::shared_ptr<KroneckerInverse<T>> load_inverse(const KroneckerState<T>& state) const;

  KroneckerOptions options_;
  mutable Mutex mutex_;  // guards what follows
  LayerMoments<T> moments_;
  KroneckerScratch<T> scratch_;
  Data data_;
};

}  // namespace natgrad
