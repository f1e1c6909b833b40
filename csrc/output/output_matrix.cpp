#include "output/output_matrix.hpp"

#include <algorithm>
#include <cmath>

#include "base/parallel.hpp"
#include "output/output_kernels.hpp"
#include "output/sampling.hpp"

namespace natgrad {
namespace {

// Memory of this thread that outlives a product and grows with the largest one.
template <class T>
T* scratch(Index size) {
  static thread_local Buffer<T> buffer;
  if (buffer.size() < size) buffer = Buffer<T>(size);
  return buffer.data();
}

template <class T, class Law>
void fisher_panel(const Law& law, const ConstPanelMap<T>& z, PanelMap<T> m) {
  if constexpr (Law::fisher_form != OutputForm::identity) law.template fisher<T>(z, m);
}

template <class T, class Law>
void hessian_panel(const Law& law, PanelView<const T> z, PanelView<const T> y, PanelMap<T> m) {
  if constexpr (Law::hessian_needs_targets) {
    law.template hessian<T>(array(z, 0), array(y, 0), m);
  } else {
    static_assert(Law::hessian_form == Law::fisher_form,
                  "a Hessian for every y is its expectation");
    fisher_panel<T>(law, array(z, 0), m);
  }
}

}  // namespace

template <class T>
OutputMatrices<T>::OutputMatrices(const Loss& loss,
                                  OutputMatrixKind kind,
                                  Index num_outputs,
                                  Index num_samples,
                                  std::uint64_t seed,
                                  Index max_panels)
    : loss_(loss), kind_(kind), num_outputs_(num_outputs), seed_(seed) {
  choose_form();
  num_columns_ = num_outputs;
  if (form_ == OutputForm::softmax) num_columns_ = std::max<Index>(1, num_outputs - 1);
  if (form_ == OutputForm::outer) num_columns_ = 1;
  if (kind == OutputMatrixKind::sampled_fisher) {
    check(num_samples >= 1, "samples must be >= 1, got ", num_samples);
    num_columns_ = num_samples;
  }
  if (form_ == OutputForm::identity) return;
  Index rows = num_outputs;
  if (form_ == OutputForm::softmax) rows += 2;
  if (form_ == OutputForm::outer)
    rows = checked_product(num_columns_, num_outputs, "samples * outputs");
  data_ = Panels<T>(rows, checked_product(max_panels, Tile<T>::width, "number of cases"));
}

template <class T>
void OutputMatrices<T>::choose_form() {
  loss_.visit([this](const auto& law) {
    identity_ = law.identity();
    switch (kind_) {
      case OutputMatrixKind::fisher:
        form_ = law.fisher_form;
        break;
      case OutputMatrixKind::hessian:
        form_ = law.hessian_form;
        semidefinite_ = law.hessian_is_semidefinite;
        break;
      case OutputMatrixKind::sampled_fisher:
      case OutputMatrixKind::empirical_fisher:
        form_ = OutputForm::outer;
        break;
    }
  });
}

template <class T>
bool OutputMatrices<T>::needs_targets() const {
  return kind_ == OutputMatrixKind::empirical_fisher ||
         (kind_ == OutputMatrixKind::hessian && loss_.hessian_needs_targets());
}

template <class T>
void OutputMatrices<T>::prepare(Index first,
                                PanelView<const T> z,
                                PanelView<const T> y,
                                int num_threads) {
  if (first == first_ && z.count == count_) return;
  if (form_ == OutputForm::identity) return;
  first_ = first;
  count_ = 0;  // until all is there
  parallel_for(z.count, num_threads, [&](Index j, int) {
    prepare_panel(j,
                  (first + j) * Tile<T>::width,
                  z.slice(j, 1),
                  y.data ? y.slice(j, 1) : PanelView<const T>{});
  });
  count_ = z.count;
}

template <class T>
void OutputMatrices<T>::prepare_panel(Index j,
                                      Index case_of_lane_0,
                                      PanelView<const T> z,
                                      PanelView<const T> y) {
  const PanelView<T> m = data_.view().slice(j, 1);
  switch (kind_) {
    case OutputMatrixKind::fisher:
      loss_.visit([&](const auto& law) { fisher_panel<T>(law, array(z, 0), array(m, 0)); });
      break;
    case OutputMatrixKind::hessian:
      loss_.visit([&](const auto& law) { hessian_panel<T>(law, z, y, array(m, 0)); });
      break;
    case OutputMatrixKind::sampled_fisher:
      draw_gradients<T>(loss_,
                        seed_,
                        case_of_lane_0,
                        num_columns_,
                        1 / std::sqrt(static_cast<double>(num_columns_)),
                        z,
                        m);
      break;
    case OutputMatrixKind::empirical_fisher:
      loss_gradient<T>(loss_, z, y, m);
      break;
  }
}

template <class T>
ConstPanelMap<T> OutputMatrices<T>::stored(Index panel) const {
  eigen_assert(panel >= first_ && panel < first_ + count_);
  return array(data_.view(), panel - first_);
}

template <class T>
void OutputMatrices<T>::multiply(Index first, PanelView<T> r) const {
  if (form_ == OutputForm::identity && identity_ == 1) return;
  for (Index j = 0; j < r.count; ++j) {
    auto rj = array(r, j);
    switch (form_) {
      case OutputForm::identity:
        rj *= T(identity_);
        break;
      case OutputForm::diagonal:
        rj *= stored(first + j);
        break;
      case OutputForm::softmax:
        multiply_softmax<T>(stored(first + j), rj);
        break;
      case OutputForm::blocks: {
        const auto m = stored(first + j);
        for (Index c = 0, k = m.rows() / 2; c < k; ++c) {
          const LaneArray<T> half = T(0.5) * m.row(k + c) * rj.row(k + c),
                             sum = m.row(c) * rj.row(c) + T(2) * half;
          rj.row(c) = m.row(c) * sum;
          rj.row(k + c) = m.row(k + c) * (sum - half);
        }
        break;
      }
      case OutputForm::outer: {
        constexpr Index width = Tile<T>::width;
        const Index size = num_columns_ * width;
        const PanelView<T> w{scratch<T>(size), num_columns_, size, 1}, u = r.slice(j, 1);
        multiply_factor_transposed(first + j, u, w);
        multiply_factor(first + j, w, u);
        break;
      }
    }
  }
}

template <class T>
void OutputMatrices<T>::inner(Index first,
                              PanelView<const T> r,
                              PanelView<const T> s,
                              double* values) const {
  for (Index j = 0; j < r.count; ++j) {
    const auto rj = array(r, j);
    const auto sj = array(s, j);
    LaneMap<T> out(values + j * Tile<T>::width);
    switch (form_) {
      case OutputForm::identity:
        out.setZero();
        for (Index c = 0; c < r.rows; ++c) out += wide<T>(rj, c) * wide<T>(sj, c);
        out *= identity_;
        break;
      case OutputForm::diagonal: {
        const auto m = stored(first + j);
        out.setZero();
        for (Index c = 0; c < r.rows; ++c) out += wide<T>(rj, c) * wide<T>(sj, c) * wide<T>(m, c);
        break;
      }
      case OutputForm::softmax:
        out = inner_softmax<T>(stored(first + j), rj, sj);
        break;
      case OutputForm::blocks:
        out = inner_blocks<T>(stored(first + j), rj, sj);
        break;
      case OutputForm::outer:
        out = inner_outer<T>(stored(first + j), rj, sj);
        break;
    }
  }
}

template <class T>
void OutputMatrices<T>::diagonal(Index first, PanelView<T> d) const {
  for (Index j = 0; j < d.count; ++j) {
    auto dj = array(d, j);
    switch (form_) {
      case OutputForm::identity:
        dj.setConstant(T(identity_));
        break;
      case OutputForm::diagonal:
        dj = stored(first + j);
        break;
      case OutputForm::softmax:
        softmax_diagonal<T>(stored(first + j), dj);
        break;
      case OutputForm::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        dj = m.square();
        dj.bottomRows(k) *= T(0.5);
        break;
      }
      case OutputForm::outer: {
        const auto g = stored(first + j);
        dj.setZero();
        for (Index s = 0; s < num_columns_; ++s)
          dj += g.middleRows(s * num_outputs_, num_outputs_).square();
        break;
      }
    }
  }
}

template <class T>
void OutputMatrices<T>::factor_column(Index first, Index column, PanelView<T> u) const {
  for (Index j = 0; j < u.count; ++j) {
    auto uj = array(u, j);
    switch (form_) {
      case OutputForm::identity:
        uj.setZero();
        uj.row(column).setConstant(T(std::sqrt(identity_)));
        break;
      case OutputForm::diagonal:
        uj.setZero();
        uj.row(column) = stored(first + j).row(column).abs().sqrt();
        break;
      case OutputForm::softmax:
        if (num_outputs_ == 1) {
          uj.setZero();
        } else {
          softmax_factor_column<T>(stored(first + j), column + 1, uj);
        }
        break;
      case OutputForm::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        uj.setZero();
        if (column < k) uj.row(column) = m.row(column);
        uj.row(k + column % k) = m.row(k + column % k) * T(column < k ? 1 : sqrt_half);
        break;
      }
      case OutputForm::outer:
        uj = stored(first + j).middleRows(column * num_outputs_, num_outputs_);
        break;
    }
  }
}

template <class T>
void OutputMatrices<T>::factor_sign(Index first, Index column, Index count, T* signs) const {
  constexpr Index width = Tile<T>::width;
  const bool negative = form_ == OutputForm::blocks && column >= num_outputs_ / 2;
  std::fill(signs, signs + count * width, negative ? T(-1) : T(1));
  if (semidefinite_ || form_ != OutputForm::diagonal) return;
  for (Index j = 0; j < count; ++j)
    for (Index lane = 0; lane < width; ++lane)
      if (stored(first + j)(column, lane) < T(0)) signs[j * width + lane] = T(-1);
}

template <class T>
void OutputMatrices<T>::multiply_factor(Index first, PanelView<const T> w, PanelView<T> u) const {
  for (Index j = 0; j < w.count; ++j) {
    const auto wj = array(w, j);
    auto uj = array(u, j);
    switch (form_) {
      case OutputForm::identity:
        uj = T(std::sqrt(identity_)) * wj;
        break;
      case OutputForm::diagonal:
        uj = stored(first + j).abs().sqrt() * wj;
        break;
      case OutputForm::softmax:
        softmax_factor<T>(stored(first + j), wj, uj);
        break;
      case OutputForm::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        uj.topRows(k) = m.topRows(k) * wj.topRows(k);
        uj.bottomRows(k) = m.bottomRows(k) * (wj.topRows(k) + T(sqrt_half) * wj.bottomRows(k));
        break;
      }
      case OutputForm::outer: {
        const auto g = stored(first + j);
        uj.setZero();
        for (Index s = 0; s < num_columns_; ++s)
          for (Index c = 0; c < num_outputs_; ++c)
            uj.row(c) += g.row(s * num_outputs_ + c) * wj.row(s);
        break;
      }
    }
  }
}

template <class T>
void OutputMatrices<T>::multiply_factor_transposed(Index first,
                                                   PanelView<const T> r,
                                                   PanelView<T> w) const {
  for (Index j = 0; j < r.count; ++j) {
    const auto rj = array(r, j);
    auto wj = array(w, j);
    switch (form_) {
      case OutputForm::identity:
        wj = T(std::sqrt(identity_)) * rj;
        break;
      case OutputForm::diagonal:
        wj = stored(first + j).abs().sqrt() * rj;
        break;
      case OutputForm::softmax: {
        const auto p = stored(first + j);
        reflect<T>(p, num_outputs_, [&](Index c) { return p.row(c).sqrt() * rj.row(c); }, wj);
        break;
      }
      case OutputForm::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        wj.bottomRows(k) = m.bottomRows(k) * rj.bottomRows(k);
        wj.topRows(k) = m.topRows(k) * rj.topRows(k) + wj.bottomRows(k);
        wj.bottomRows(k) *= T(sqrt_half);
        break;
      }
      case OutputForm::outer: {
        const auto g = stored(first + j);
        wj.setZero();
        for (Index s = 0; s < num_columns_; ++s)
          for (Index c = 0; c < num_outputs_; ++c)
            wj.row(s) += g.row(s * num_outputs_ + c) * rj.row(c);
        break;
      }
    }
  }
}

template <class T>
void OutputMatrices<T>::divide_factor(Index first, PanelView<T> e, PanelView<T> r) const {
  for (Index j = 0; j < e.count; ++j) {
    auto ej = array(e, j), rj = array(r, j);
    switch (form_) {
      case OutputForm::identity:
        rj = ej / T(std::sqrt(identity_));
        ej.setZero();
        break;
      case OutputForm::diagonal:
        divide_diagonal<T>(stored(first + j), ej, rj);
        break;
      case OutputForm::softmax:
        divide_softmax<T>(stored(first + j), ej, rj);
        break;
      case OutputForm::blocks:
        divide_blocks<T>(stored(first + j), ej, rj);
        break;
      case OutputForm::outer:
        if (kind_ == OutputMatrixKind::empirical_fisher) {
          divide_empirical<T>(stored(first + j), ej, rj);
        } else {
          rj.setZero();  // a draw is not the label
        }
        break;
    }
  }
}

template class OutputMatrices<float>;
template class OutputMatrices<double>;

}  // namespace natgrad
