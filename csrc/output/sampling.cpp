#include "output/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/random.hpp"
#include "linalg/panel_arrays.hpp"

namespace natgrad {
namespace {

// Mean minus a draw. From 1e9 on a Gaussian with the two moments: its skewness is below 1e-4, and
// neither the count nor the difference has to fit an integer.
double draw_poisson(double mean, Philox& bits) {
  if (!(mean < 1e9)) return std::sqrt(mean) * std::normal_distribution<double>()(bits);
  if (mean == 0) return 0;
  return mean - static_cast<double>(std::poisson_distribution<std::int64_t>(mean)(bits));
}

// A class with probabilities p at p[0], p[stride], ...
template <class T>
Index draw_class(Index num_classes, const T* p, Index stride, Philox& bits) {
  double total = 0;
  for (Index c = 0; c < num_classes; ++c) total += static_cast<double>(p[c * stride]);
  const double place = total * bits.uniform();
  double sum = 0;
  Index last = 0;
  for (Index c = 0; c < num_classes; ++c) {
    if (p[c * stride] > T(0)) last = c;
    sum += static_cast<double>(p[c * stride]);
    if (sum > place) break;
  }
  return last;
}

// g = factor dL/dz at y drawn from the model's law at z, of one case: elements `stride` apart. The
// noise goes straight into the derivative, so nothing cancels. At first g holds p for softmax, and the
// smaller of p and 1 - p for Bernoulli.
template <class T>
void draw_gradient(
    Loss loss, Index num_outputs, const T* z, Index stride, double factor, Philox& bits, T* g) {
  if (loss.kind == LossKind::softmax_cross_entropy) {
    g[draw_class(num_outputs, g, stride, bits) * stride] -= T(1);
    for (Index c = 0; c < num_outputs; ++c) g[c * stride] *= static_cast<T>(factor);
    return;
  }
  std::normal_distribution<double> normal;
  const double df = loss.degrees_of_freedom;
  const Index num_targets = loss.num_targets(num_outputs);
  for (Index c = 0; c < num_targets; ++c) {
    const double zc = static_cast<double>(z[c * stride]);
    double gc = 0;
    switch (loss.kind) {
      case LossKind::softmax_cross_entropy:
        break;
      case LossKind::squared_error:
        gc = normal(bits);
        break;
      case LossKind::bernoulli_cross_entropy: {
        const double small = static_cast<double>(g[c * stride]), large = 1 - small;
        const double p = zc < 0 ? small : large;
        gc = bits.uniform() < p ? (zc < 0 ? -large : -small) : p;
        break;
      }
      case LossKind::poisson:
        gc = draw_poisson(std::exp(zc), bits);
        break;
      case LossKind::student_t: {  // t/sqrt(df) = N(0, 1) / sqrt(chi^2_df)
        const double t = normal(bits) / std::sqrt(std::chi_squared_distribution<double>(df)(bits));
        gc = -(df + 1) / (loss.scale * std::sqrt(df)) / (t + 1 / t);
        break;
      }
      case LossKind::gaussian_mean_variance: {
        const Index at = (num_targets + c) * stride;
        const double noise = normal(bits);
        gc = -noise * std::exp(-0.5 * static_cast<double>(z[at]));
        g[at] = static_cast<T>(factor * 0.5 * (1 - noise * noise));
        break;
      }
    }
    g[c * stride] = static_cast<T>(factor * gc);
  }
}

}  // namespace

template <class T>
void sample_gradients(Loss loss,
                      std::uint64_t seed,
                      Index first_case,
                      Index num_samples,
                      PanelView<const T> z,
                      PanelView<T> g) {
  constexpr Index width = Tile<T>::width;
  const Index size = z.rows * width;
  const double factor = 1 / std::sqrt(static_cast<double>(num_samples));
  for (Index j = 0; j < z.count; ++j) {
    T* gj = g.panel(j);
    if (loss.kind == LossKind::softmax_cross_entropy) {
      softmax<T>(z.slice(j, 1), {gj, z.rows, size, 1});
    } else if (loss.kind == LossKind::bernoulli_cross_entropy) {
      PanelMap<T> small(gj, z.rows, num_lanes<T>);
      small = (-array(z, j).abs()).exp();
      small /= T(1) + small;
    }
    const bool prepared = loss.kind == LossKind::softmax_cross_entropy ||
                          loss.kind == LossKind::bernoulli_cross_entropy;
    for (Index s = 1; s < num_samples && prepared; ++s) std::copy(gj, gj + size, gj + s * size);
    for (Index lane = 0; lane < width; ++lane)
      for (Index s = 0; s < num_samples; ++s) {
        const auto place = static_cast<std::uint64_t>(first_case + j * width + lane);
        Philox bits({seed, 0}, {0, place, static_cast<std::uint64_t>(s), 0});
        draw_gradient(loss, z.rows, z.panel(j) + lane, width, factor, bits, gj + s * size + lane);
      }
  }
}

template void sample_gradients(
    Loss, std::uint64_t, Index, Index, PanelView<const float>, PanelView<float>);
template void sample_gradients(
    Loss, std::uint64_t, Index, Index, PanelView<const double>, PanelView<double>);

}  // namespace natgrad
