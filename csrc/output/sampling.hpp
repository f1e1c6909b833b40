// Draws from the law that a loss is the negative log-likelihood of.
#pragma once

#include "output/loss.hpp"

namespace natgrad {

// G with E[G G'] = F_R: column s of case i is dL/dz / sqrt(S) at a y drawn from the model's law at
// z_i. Fixed by seed, case and s alone. z (C x cases), the first one `first_case`; g (S C x cases),
// column after column.
template <class T>
void sample_gradients(Loss loss,
                      std::uint64_t seed,
                      Index first_case,
                      Index num_samples,
                      PanelView<const T> z,
                      PanelView<T> g);

}  // namespace natgrad
