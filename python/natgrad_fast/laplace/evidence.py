"""Where the evidence of a Gaussian posterior is largest: MacKay's conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["OptimizedPrior", "best_noise", "best_prior"]

Matrix: TypeAlias = NDArray[np.float64]


class OptimizedPrior(NamedTuple):
    """What `Laplace.optimize_prior` found.

    Attributes
    ----------
    prior_precision : float or (P,) array
    sigma : float
    log_evidence : float
    history : tuple of float
        Log evidence at the start and after every sweep.
    converged : bool
    """

    prior_precision: float | Matrix
    sigma: float
    log_evidence: float
    history: tuple[float, ...]
    converged: bool


def best_prior(values: Matrix, square: float, start: float) -> float:
    """Prior precision a with a |theta|^2 = gamma, for the eigenvalues of the data's curvature."""
    return falling_root(lambda a: float(np.sum(values / (values + a))) - a * square, start)


def best_noise(values: Matrix, total: float, count: float, start: float) -> float:
    """Precision b of the noise with count - gamma = 2 b total, total the sum of the losses.

    `values` are those of the curvature over the prior precision, before b multiplies them.
    """
    return falling_root(
        lambda b: count - float(np.sum(b * values / (b * values + 1.0))) - 2.0 * b * total, start
    )


def falling_root(falling: Callable[[float], float], start: float) -> float:
    """Root of a falling function of a positive number, by bisection of its logarithm."""
    low = high = start
    while falling(low) <= 0.0 and low > 1e-300:
        low /= 16.0
    while falling(high) >= 0.0 and high < 1e300:
        high *= 16.0
    for _ in range(200):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        if falling(middle) > 0.0:
            low = middle
        else:
            high = middle
    return math.sqrt(low) * math.sqrt(high)
