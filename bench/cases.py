"""The nets that are measured: shapes, data, and how a name is found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A net, a batch size and a loss."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    activation: str = "tanh"
    loss: str = "squared_error"
    inputs: str = "normal"  # or "uniform": in [0, 1], and the targets of an autoencoder
    biases: float = 0.1  # standard deviation
    chunk_size: int | None = None  # cases whose activations are alive, for this library

    @property
    def num_params(self) -> int:
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    def data(self, dtype: str, seed: int = 0) -> Data:
        """Random inputs, targets, glorot weights with normal biases, and vectors."""
        rng = np.random.default_rng(seed)
        spare = self.batch // 4 if self.activation == "relu" else 0
        shape = (self.batch + spare, self.sizes[0])
        x = rng.standard_normal(shape) if self.inputs == "normal" else rng.random(shape)
        x = x.astype(dtype)
        if self.loss == "softmax_cross_entropy":
            y = rng.integers(self.sizes[-1], size=self.batch)
        elif self.inputs == "uniform" and self.sizes[0] == self.sizes[-1]:
            y = x[: self.batch]
        else:
            y = rng.standard_normal((self.batch, self.sizes[-1])).astype(dtype)
        layers = []
        for i, o in pairwise(self.sizes):
            bound = np.sqrt(6 / (i + o))
            layers += [rng.uniform(-bound, bound, i * o), self.biases * rng.standard_normal(o)]
        params = np.concatenate(layers).astype(dtype)
        if spare:
            clear = np.argsort(-margins(self.sizes, x, params))[: self.batch]
            x = x[np.sort(clear)]
        return Data(x, y, params, rng)

    def record(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return {**asdict(self), "sizes": list(self.sizes), "num_params": self.num_params}


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

    def vectors(self, size: int, num_vectors: int = 1) -> np.ndarray:
        """(size,) for one vector, (size, K) for more."""
        shape = (size,) if num_vectors == 1 else (size, num_vectors)
        return self.rng.standard_normal(shape).astype(self.params.dtype)


def margins(sizes: tuple[int, ...], x: np.ndarray, params: np.ndarray) -> np.ndarray:
    """For each case of a relu net the least distance of a unit from its kink.

    A unit that is off in one float type and on in another is an error of no one, and not a small
    one: among a million units of 512 cases there are some.
    """
    a, at, least = x.astype(np.float64), 0, np.full(len(x), np.inf)
    for i, o in pairwise(sizes[:-1]):
        w, b = params[at : at + i * o].reshape(o, i), params[at + i * o : at + (i + 1) * o]
        s = a @ w.T.astype(np.float64) + b
        least = np.minimum(least, np.abs(s).min(axis=1))
        a, at = np.maximum(s, 0), at + (i + 1) * o
    return least


def autoencoder(*encoder: int) -> tuple[int, ...]:
    return encoder + encoder[-2::-1]


CURVES = autoencoder(784, 400, 200, 100, 50, 25, 6)
SUITE = (
    Case("mnist-ae", autoencoder(784, 1000, 500, 250, 30), 512),
    Case("curves-ae", CURVES, 1000),
    Case("digits", (64, 128, 64, 10), 1797),
    Case("pinn", (2, 64, 64, 64, 64, 1), 1024),
    Case("wide", (784, 2048, 2048, 10), 256),
    Case("tiny", (16, 32, 32, 3), 64),
    # synthetic_mnist_mlp of curvlinops' benchmark
    Case("mnist-mlp", (784, 1024, 512, 256, 128, 64, 10), 512, "relu", "softmax_cross_entropy"),
    Case("faces-ae", autoencoder(625, 2000, 1000, 500, 30), 512),
)
# Problems of the solvers: B + 1e-2 I, the gradient on the right
SOLVES = (
    Case("solve-digits", (64, 128, 64, 10), 1797, loss="softmax_cross_entropy"),
    Case("solve-wide", (784, 2048, 2048, 10), 128, loss="softmax_cross_entropy", biases=0.0),
    Case("solve-curves", CURVES, 1000, loss="bernoulli_cross_entropy", inputs="uniform"),
)
NAMED = {case.name: case for case in SUITE + SOLVES}
CHUNKED_FROM = 10_000  # cases; from where on the slope is taken
CHUNK = 8_192
SWEEPS = ("width", "batch", "cases")


def sweep(axis: str, number: int) -> Case:
    """A member of a sweep; its name tells the axis and the place on it."""
    name = f"{axis}-{number}"
    if axis == "width":
        return Case(name, (256, number, number, 10), 256)
    if axis == "batch":
        return Case(name, (256, 512, 512, 10), number)
    small = replace(NAMED["tiny"], name=name, batch=number)
    return replace(small, chunk_size=CHUNK) if number >= CHUNKED_FROM else small


def find(name: str) -> Case:
    """The case of a name; "width-64" and the like are made."""
    if name in NAMED:
        return NAMED[name]
    axis, _, number = name.rpartition("-")
    if axis in SWEEPS and number.isdecimal() and int(number) > 0:
        return sweep(axis, int(number))
    raise ValueError(
        f"unknown case {name!r}; known: {', '.join(NAMED)}, and width-, batch- or cases-NUMBER"
    )
