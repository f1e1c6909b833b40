"""How the weights of a net start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["INITIALIZERS", "Initializer"]

Arrays = Sequence[NDArray[np.floating]]
# f(weights, biases, activations, rng) writes the weights (d_l, d_{l-1}) and biases (d_l,) or (0,),
# which are zero before.
# numpy.random, which is slow to import, is not imported for it.
Initializer = Callable[[Arrays, Arrays, Sequence[str], "np.random.Generator"], None]


def _glorot(
    weights: Arrays, biases: Arrays, activations: Sequence[str], rng: np.random.Generator
) -> None:
    for w in weights:
        limit = np.sqrt(6.0 / sum(w.shape))
        w[...] = rng.uniform(-limit, limit, w.shape)


def _he(
    weights: Arrays, biases: Arrays, activations: Sequence[str], rng: np.random.Generator
) -> None:
    for w in weights:
        w[...] = rng.standard_normal(w.shape) * np.sqrt(2.0 / w.shape[1])


def _lecun(
    weights: Arrays, biases: Arrays, activations: Sequence[str], rng: np.random.Generator
) -> None:
    for w in weights:
        w[...] = rng.standard_normal(w.shape) * np.sqrt(1.0 / w.shape[1])


def _sparse(
    weights: Arrays, biases: Arrays, activations: Sequence[str], rng: np.random.Generator
) -> None:
    # Every unit: 15 draws among its inputs, with replacement, so at most 15 weights are not 0.
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        scale = {"tanh": 0.5, "softplus": 0.1}.get(activations[layer], 1.0)
        if layer > 0 and activations[layer - 1] == "tanh":
            scale *= 0.5
        columns = rng.integers(w.shape[1], size=(w.shape[0], 15))
        w[np.arange(w.shape[0])[:, None], columns] = scale * rng.standard_normal(columns.shape)
        if activations[layer] == "tanh":
            b[...] = 0.5


def _zeros(
    weights: Arrays, biases: Arrays, activations: Sequence[str], rng: np.random.Generator
) -> None:
    pass


INITIALIZERS: dict[str, Initializer] = {
    "glorot": _glorot,
    "he": _he,
    "lecun": _lecun,
    "sparse": _sparse,
    "zeros": _zeros,
}
