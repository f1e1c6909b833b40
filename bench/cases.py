"""The nets that are measured: shapes, data and flop counts.

N cases, C outputs, P parameters, K vectors at once, d_l the width of layer l. Parameters are one
flat array, layer by layer: W_l as (d_l, d_{l-1}) in C order, then b_l.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Matrix products of one case with weight matrices: (per layer, how many fewer in the first layer).
# gradient: W a; delta a', W' delta.                 GGN: W Ra + V a; delta a', W' delta.
# The first layer has no Ra and needs no W' delta: the input does not depend on parameters.
PRODUCTS = {"gradient": (3, 1), "ggn": (4, 2)}


@dataclass(frozen=True)
class Case:
    """A net, a batch size and a loss."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    activation: str = "tanh"
    loss: str = "squared_error"

    @property
    def num_params(self) -> int:
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    def flops(self, quantity: str, num_vectors: int = 1) -> int:
        """Multiplications and additions of the matrix products when the forward pass is kept."""
        every, not_first = PRODUCTS[quantity]
        weights = [i * o for i, o in pairwise(self.sizes)]
        return 2 * self.batch * num_vectors * (every * sum(weights) - not_first * weights[0])

    def data(self, dtype: str, seed: int = 0) -> Data:
        """Random inputs, targets, glorot weights with small biases, and vectors."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, self.sizes[0]))
        if self.loss == "softmax_cross_entropy":
            y = rng.integers(self.sizes[-1], size=self.batch)
        else:
            y = rng.standard_normal((self.batch, self.sizes[-1])).astype(dtype)
        layers = []
        for i, o in pairwise(self.sizes):
            bound = np.sqrt(6 / (i + o))
            layers += [rng.uniform(-bound, bound, i * o), 0.1 * rng.standard_normal(o)]
        return Data(x.astype(dtype), y, np.concatenate(layers).astype(dtype), rng)


@dataclass(frozen=True)
class Data:
    """What every contestant gets; arrays of the measured dtype, C order."""

    x: np.ndarray  # (N, d_0)
    y: np.ndarray  # (N, C), or (N,) labels
    params: np.ndarray  # (P,)
    rng: np.random.Generator

    def as_float64(self) -> Data:
        """The same numbers for the reference."""
        y = self.y if self.y.dtype.kind == "i" else self.y.astype(np.float64)
        return Data(self.x.astype(np.float64), y, self.params.astype(np.float64), self.rng)

    def vectors(self, num_vectors: int) -> np.ndarray:
        """(P,) for one vector, (P, K) for more."""
        shape = (self.params.size,) if num_vectors == 1 else (self.params.size, num_vectors)
        return self.rng.standard_normal(shape).astype(self.params.dtype)


def autoencoder(*encoder: int) -> tuple[int, ...]:
    return encoder + encoder[-2::-1]


SUITE = (
    Case("mnist-ae", autoencoder(784, 1000, 500, 250, 30), 512),
    Case("curves-ae", autoencoder(784, 400, 200, 100, 50, 25, 6), 1000),
    Case("digits", (64, 128, 64, 10), 1797),
    Case("pinn", (2, 64, 64, 64, 64, 1), 1024),
    Case("wide", (784, 2048, 2048, 10), 256),
    Case("tiny", (16, 32, 32, 3), 64),
)
# Run by name only. mnist-mlp is synthetic_mnist_mlp of curvlinops' benchmark.
EXTRA = (
    Case("mnist-mlp", (784, 1024, 512, 256, 128, 64, 10), 512, "relu", "softmax_cross_entropy"),
)
CASES = {case.name: case for case in SUITE + EXTRA}
