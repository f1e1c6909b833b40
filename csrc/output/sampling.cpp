#include "output/sampling.hpp"

#include <algorithm>

#include "base/parallel.hpp"
#include "linalg/dense.hpp"

namespace natgrad {
namespace {

// One panel of cases: z (C x width), g (S C x width).
template <class T, class Law>
void draw_panel(const Law& law,
                std::uint64_t seed,
                Index first_case,
                Index num_samples,
                double factor,
                PanelView<const T> z,
                T* g) {
  constexpr Index width = Tile<T>::width;
  const Index size = z.rows * width;
  if constexpr (Law::prepares_draws) {
    law.template prepare_draw<T>(array(z, 0), PanelMap<T>(g, z.rows, num_lanes<T>));
    for (Index s = 1; s < num_samples; ++s) std::copy(g, g + size, g + s * size);
  }
  for (Index lane = 0; lane < width; ++lane)
    for (Index s = 0; s < num_samples; ++s) {
      const auto place = static_cast<std::uint64_t>(first_case + lane);
      Philox bits({seed, 0}, {0, place, static_cast<std::uint64_t>(s), 0});
      law.draw(CaseOutputs<const T>{z.data + lane, width},
               z.rows,
               bits,
               CaseOutputs<T>{g + s * size + lane, width});
    }
  if (factor == 1) return;
  for (Index i = 0; i < num_samples * size; ++i) g[i] *= static_cast<T>(factor);
}

}  // namespace

template <class T>
void draw_gradients(const Loss& loss,
                    std::uint64_t seed,
                    Index first_case,
                    Index num_samples,
                    double factor,
                    PanelView<const T> z,
                    PanelView<T> g) {
  loss.visit([&](const auto& law) {
    for (Index j = 0; j < z.count; ++j)
      draw_panel<T>(law,
                    seed,
                    first_case + j * Tile<T>::width,
                    num_samples,
                    factor,
                    z.slice(j, 1),
                    g.panel(j));
  });
}

template <class T>
void draw_gradients(const Loss& loss,
                    std::uint64_t seed,
                    Index num_samples,
                    const T* z,
                    Index num_cases,
                    Index num_outputs,
                    int num_threads,
                    T* g) {
  const Index rows = checked_product(num_samples, num_outputs, "samples * outputs");
  parallel_for(Panels<T>::count_for(num_cases), num_threads, [&](Index j, int) {
    constexpr Index width = Tile<T>::width;
    const Index row = j * width, left = num_cases - row;
    Panels<T> outputs(num_outputs, width), draws(rows, width);
    pack_cases(z + row * num_outputs, left, num_outputs, 0, 1, Fill::last_case, outputs.view());
    draw_gradients<T>(loss, seed, row, num_samples, 1.0, outputs.view(), draws.view());
    unpack_cases<T>(draws.view(), left, g + row * rows);
  });
}

#define NATGRAD_INSTANTIATE(T)                                                             \
  template void draw_gradients(                                                            \
      const Loss&, std::uint64_t, Index, Index, double, PanelView<const T>, PanelView<T>); \
  template void draw_gradients(const Loss&, std::uint64_t, Index, const T*, Index, Index, int, T*);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
