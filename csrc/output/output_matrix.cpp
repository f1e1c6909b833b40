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

}  // namespace

template <class T>
OutputMatrices<T>::OutputMatrices(Loss loss,
                                  OutputMatrixKind kind,
                                  Index num_outputs,
                                  Index num_samples,
                                  std::uint64_t seed,
                                  Index max_panels)
    : loss_(loss), kind_(kind), num_outputs_(num_outputs), seed_(seed) {
  choose_form();
  num_columns_ = num_outputs;
  if (form_ == Form::softmax) num_columns_ = std::max<Index>(1, num_outputs - 1);
  if (form_ == Form::outer) num_columns_ = 1;
  if (kind == OutputMatrixKind::sampled_fisher) {
    check(num_samples >= 1, "samples must be >= 1, got ", num_samples);
    num_columns_ = num_samples;
  }
  if (form_ == Form::identity) return;
  const Index rows = form_ == Form::outer
                         ? checked_product(num_columns_, num_outputs, "samples * outputs")
                         : num_outputs;
  data_ = Panels<T>(rows, checked_product(max_panels, Tile<T>::width, "number of cases"));
}

template <class T>
void OutputMatrices<T>::choose_form() {
  const bool hessian = kind_ == OutputMatrixKind::hessian;
  if (!hessian && kind_ != OutputMatrixKind::fisher) {
    form_ = Form::outer;
    return;
  }
  const double df = loss_.degrees_of_freedom;
  switch (loss_.kind) {
    case LossKind::squared_error:
      form_ = Form::identity;
      break;
    case LossKind::softmax_cross_entropy:
      form_ = Form::softmax;
      break;
    case LossKind::bernoulli_cross_entropy:
    case LossKind::poisson:
      form_ = Form::diagonal;
      break;
    case LossKind::student_t:
      form_ = hessian ? Form::diagonal : Form::identity;
      indefinite_diagonal_ = hessian;
      identity_ = (df + 1) / ((df + 3) * loss_.scale * loss_.scale);
      break;
    case LossKind::gaussian_mean_variance:
      form_ = hessian ? Form::blocks : Form::diagonal;
      break;
  }
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
  first_ = first;
  count_ = z.count;
  if (form_ == Form::identity) return;
  parallel_for(z.count, num_threads, [&](Index j, int) {
    prepare_panel(j,
                  (first + j) * Tile<T>::width,
                  z.slice(j, 1),
                  y.data ? y.slice(j, 1) : PanelView<const T>{});
  });
}

template <class T>
void OutputMatrices<T>::prepare_panel(Index j,
                                      Index case_of_lane_0,
                                      PanelView<const T> z,
                                      PanelView<const T> y) {
  switch (form_) {
    case Form::identity:
      break;
    case Form::diagonal:
      prepare_diagonal(j, z, y);
      break;
    case Form::softmax:
      softmax<T>(z, data_.view().slice(j, 1));
      break;
    case Form::blocks:
      prepare_blocks(j, z, y);
      break;
    case Form::outer:
      if (kind_ == OutputMatrixKind::empirical_fisher) {
        loss_gradient<T>(loss_, z, y, data_.view().slice(j, 1));
      } else {
        sample_gradients<T>(
            loss_, seed_, case_of_lane_0, num_columns_, z, data_.view().slice(j, 1));
      }
      break;
  }
}

template <class T>
void OutputMatrices<T>::prepare_diagonal(Index j, PanelView<const T> z, PanelView<const T> y) {
  auto m = array(data_.view(), j);
  const auto zj = array(z, 0);
  switch (loss_.kind) {
    case LossKind::bernoulli_cross_entropy:  // p (1 - p) = e / (1 + e)^2 with e = exp(-|z|):
      m = (-zj.abs()).exp();                 // no cancellation when p is near 1
      m = m / (T(1) + m).square();
      break;
    case LossKind::poisson:
      m = exp_of(zj);
      break;
    case LossKind::student_t: {  // (df + 1) (1 - u^2) / (spread (1 + u^2))^2 = .. h (2 h - 1)
      const double df = loss_.degrees_of_freedom, spread = loss_.scale * std::sqrt(df);
      const auto yj = array(y, 0);
      m = (T(1) + ((yj - zj) / T(spread)).square()).inverse();
      m = T((df + 1) / (spread * spread)) * m * (T(2) * m - T(1));
      break;
    }
    default: {  // gaussian_mean_variance: e^-s for the means, 1/2 for the logarithms s
      const Index k = num_outputs_ / 2;
      for (Index c = 0; c < k; ++c) m.row(c) = exp_of(-zj.row(k + c));
      m.bottomRows(k).setConstant(T(0.5));
    }
  }
}

// e^-s [[1, r], [r, r^2/2]]: a = e^(-s/2), b = r a
template <class T>
void OutputMatrices<T>::prepare_blocks(Index j, PanelView<const T> z, PanelView<const T> y) {
  auto m = array(data_.view(), j);
  const auto zj = array(z, 0);
  const auto yj = array(y, 0);
  const Index k = num_outputs_ / 2;
  for (Index c = 0; c < k; ++c) {
    m.row(c) = exp_of(T(-0.5) * zj.row(k + c));
    m.row(k + c) = zero_times(yj.row(c) - zj.row(c), m.row(c));
  }
}

template <class T>
ConstPanelMap<T> OutputMatrices<T>::stored(Index panel) const {
  eigen_assert(panel >= first_ && panel < first_ + count_);
  return array(data_.view(), panel - first_);
}

template <class T>
void OutputMatrices<T>::multiply(Index first, PanelView<T> r) const {
  if (form_ == Form::identity && identity_ == 1) return;
  for (Index j = 0; j < r.count; ++j) {
    auto rj = array(r, j);
    switch (form_) {
      case Form::identity:
        rj *= T(identity_);
        break;
      case Form::diagonal:
        rj *= stored(first + j);
        break;
      case Form::softmax:
        multiply_softmax<T>(stored(first + j), rj);
        break;
      case Form::blocks: {
        const auto m = stored(first + j);
        for (Index c = 0, k = m.rows() / 2; c < k; ++c) {
          const LaneArray<T> half = T(0.5) * m.row(k + c) * rj.row(k + c),
                             sum = m.row(c) * rj.row(c) + T(2) * half;
          rj.row(c) = m.row(c) * sum;
          rj.row(k + c) = m.row(k + c) * (sum - half);
        }
        break;
      }
      case Form::outer: {
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
      case Form::identity:
        out.setZero();
        for (Index c = 0; c < r.rows; ++c) out += wide<T>(rj, c) * wide<T>(sj, c);
        out *= identity_;
        break;
      case Form::diagonal: {
        const auto m = stored(first + j);
        out.setZero();
        for (Index c = 0; c < r.rows; ++c) out += wide<T>(rj, c) * wide<T>(sj, c) * wide<T>(m, c);
        break;
      }
      case Form::softmax:
        out = inner_softmax<T>(stored(first + j), rj, sj);
        break;
      case Form::blocks:
        out = inner_blocks<T>(stored(first + j), rj, sj);
        break;
      case Form::outer:
        out = inner_outer<T>(stored(first + j), rj, sj);
        break;
    }
  }
}

template <class T>
void OutputMatrices<T>::factor_column(Index first, Index column, PanelView<T> u) const {
  for (Index j = 0; j < u.count; ++j) {
    auto uj = array(u, j);
    if (form_ == Form::softmax) {
      const auto unit = [&](Index row) {
        return LaneArray<T>::Constant(row == column + 1 ? T(1) : T(0));
      };
      softmax_factor<T>(stored(first + j), unit, uj);
      continue;
    }
    if (form_ == Form::outer) {
      uj = stored(first + j).middleRows(column * num_outputs_, num_outputs_);
      continue;
    }
    uj.setZero();
    if (form_ == Form::identity) uj.row(column).setConstant(T(std::sqrt(identity_)));
    if (form_ == Form::diagonal) uj.row(column) = stored(first + j).row(column).abs().sqrt();
    if (form_ == Form::blocks) {
      const auto m = stored(first + j);
      const Index k = num_outputs_ / 2;
      if (column < k) uj.row(column) = m.row(column);
      uj.row(k + column % k) = m.row(k + column % k) * T(column < k ? 1 : sqrt_half);
    }
  }
}

template <class T>
void OutputMatrices<T>::factor_sign(Index first, Index column, Index count, T* signs) const {
  constexpr Index width = Tile<T>::width;
  const bool negative = form_ == Form::blocks && column >= num_outputs_ / 2;
  std::fill(signs, signs + count * width, negative ? T(-1) : T(1));
  if (!indefinite_diagonal_) return;
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
      case Form::identity:
        uj = T(std::sqrt(identity_)) * wj;
        break;
      case Form::diagonal:
        uj = stored(first + j).abs().sqrt() * wj;
        break;
      case Form::softmax:
        softmax_factor<T>(stored(first + j), [&](Index row) { return wj.row(row - 1); }, uj);
        break;
      case Form::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        uj.topRows(k) = m.topRows(k) * wj.topRows(k);
        uj.bottomRows(k) = m.bottomRows(k) * (wj.topRows(k) + T(sqrt_half) * wj.bottomRows(k));
        break;
      }
      case Form::outer: {
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
      case Form::identity:
        wj = T(std::sqrt(identity_)) * rj;
        break;
      case Form::diagonal:
        wj = stored(first + j).abs().sqrt() * rj;
        break;
      case Form::softmax: {
        const auto p = stored(first + j);
        reflect<T>(p, [&](Index c) { return p.row(c).sqrt() * rj.row(c); }, wj);
        break;
      }
      case Form::blocks: {
        const auto m = stored(first + j);
        const Index k = num_outputs_ / 2;
        wj.bottomRows(k) = m.bottomRows(k) * rj.bottomRows(k);
        wj.topRows(k) = m.topRows(k) * rj.topRows(k) + wj.bottomRows(k);
        wj.bottomRows(k) *= T(sqrt_half);
        break;
      }
      case Form::outer: {
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
      case Form::identity:
        rj = ej / T(std::sqrt(identity_));
        ej.setZero();
        break;
      case Form::diagonal:
        divide_diagonal<T>(stored(first + j), ej, rj);
        break;
      case Form::softmax:
        divide_softmax<T>(stored(first + j), ej, rj);
        break;
      case Form::blocks:
        divide_blocks<T>(stored(first + j), ej, rj);
        break;
      case Form::outer:
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
