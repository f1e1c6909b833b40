"""What is trained: data, net, objective, and what is measured while the clock stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from natgrad_fast import MLP, datasets, value

Data = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """A training problem.

    `error` of a net is the objective without l2, or the mean squared reconstruction error, summed
    over outputs, where `reconstructs`; on `measured` cases at most.
    """

    name: str
    sizes: tuple[int, ...]
    loss: str
    load: Callable[[], Data]
    seconds: float
    activation: Any = "tanh"
    init: str = "glorot"
    l2: float = 0.0
    dtype: str = "float32"
    batch_size: Any = "auto"
    reconstructs: bool = False
    measured: int = 5000
    quick_seconds: float | None = None  # None: not in the quick form
    goal: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def net(self, seed: int) -> MLP:
        return MLP(self.sizes, self.activation, dtype=self.dtype, seed=seed, init=self.init)

    def error(self, net: MLP, data: Data) -> float:
        X, y = data[0][: self.measured], data[1][: self.measured]
        if self.reconstructs:
            return float(np.mean(np.sum((net.predict_mean(X, self.loss) - y) ** 2, axis=1)))
        return value(net, self.loss, X, y)


def _autoencoder(load: Callable[[], np.ndarray]) -> Callable[[], Data]:
    def both() -> Data:
        X = load()
        return X, X

    return both


def _friedman() -> Data:
    """4,000 cases of Friedman's first function, noise 0.1, standardised."""
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(4000, 10))
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3]
    y = y + 5 * X[:, 4] + 0.1 * rng.standard_normal(len(X))
    return (X - 0.5) * 12**0.5, ((y - y.mean()) / y.std())[:, None]


def _two_variables() -> Data:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (1000, 2))
    return X, np.sin(3 * X[:, :1]) * np.cos(4 * X[:, 1:])


MIRROR = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)
DIGITS = ((64, 128, 64, 10), "softmax_cross_entropy", datasets.digits, 2.0)
CANCER = ((30, 32, 16, 1), "bernoulli_cross_entropy", datasets.breast_cancer, 1.0)

PROBLEMS = [
    Problem(
        "curves",
        MIRROR,
        "bernoulli_cross_entropy",
        _autoencoder(lambda: datasets.curves(20000)),
        120.0,
        activation=("logistic",) * 5 + ("identity",) + ("logistic",) * 5,
        init="sparse",
        l2=1e-5,
        reconstructs=True,
        quick_seconds=12.0,
        goal=0.79,
    ),
    Problem(
        "mnist5k",
        (784, 1000, 500, 250, 30, 250, 500, 1000, 784),
        "bernoulli_cross_entropy",
        _autoencoder(lambda: datasets.mnist5k().X),
        120.0,
        activation=("relu",) * 3 + ("identity",) + ("relu",) * 3,
        init="he",
        reconstructs=True,
    ),
    *(
        Problem(f"digits-{size or 'full'}", *DIGITS, l2=1e-4, batch_size=size, goal=1e-2,
                quick_seconds=1.0 if size in (None, 32) else None)
        for size in (16, 32, 128, None)
    ),
    *(
        Problem(f"cancer-{size or 'full'}", *CANCER, l2=1e-3, batch_size=size, goal=1e-2,
                quick_seconds=0.5 if size in (None, 32) else None)
        for size in (16, 32, 128, None)
    ),
    Problem("diabetes", (10, 32, 1), "squared_error", datasets.diabetes, 1.0, l2=1e-2,
            quick_seconds=0.5),
    Problem("friedman", (10, 64, 64, 1), "squared_error", _friedman, 5.0, l2=1e-5,
            quick_seconds=2.0),
    Problem("sinc", (1, 20, 1), "squared_error", datasets.sinc, 2.0, dtype="float64", goal=5e-10,
            quick_seconds=2.0),
    Problem("two-variables", (2, 64, 64, 1), "squared_error", _two_variables, 4.0,
            dtype="float64", goal=5e-10, quick_seconds=2.0),
]  # fmt: skip
BY_NAME = {problem.name: problem for problem in PROBLEMS}
