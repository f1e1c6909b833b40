// Draws from the law that a loss is the negative log-likelihood of.
#pragma once

#include "output/loss.hpp"

namespace natgrad {

// Column s of case i is factor dL/dz at a y drawn from the model's law at z_i. Fixed by seed, case and
// s alone. z (C x cases), the first one `first_case`; g (S C x cases), column after column. With factor
// 1 / sqrt(S), E[G G'] = F_R.
template <class T>
void draw_gradients(const Loss& loss,
                    std::uint64_t seed,
                    Index first_case,
                    Index num_samples,
                    double factor,
                    PanelView<const T> z,
                    PanelView<T> g);

// The same with factor 1 for outputs z (N x C), row-major; g (N x S x C).
template <class T>
void draw_gradients(const Loss& loss,
                    std::uint64_t seed,
                    Index num_samples,
                    const T* z,
                    Index num_cases,
                    Index num_outputs,
                    int num_threads,
                    T* g);

}  // namespace natgrad
