"""Likelihoods of the losses: their constants, and roots of their output matrices."""

from __future__ import annotations

import math
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..losses import Loss, StudentT

__all__ = ["fisher_roots", "log_constant"]

Matrix: TypeAlias = NDArray[np.float64]


def fisher_roots(loss: Loss, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Roots Q_i (N, C, C) of the Fisher matrices F_R(z_i) = Q_i Q_i' in the outputs z (N, C).

    For a categorical law with probabilities p, Q = diag(sqrt p) - p sqrt(p)'.
    """
    count, width = z.shape
    if loss.name == "softmax_cross_entropy":
        p = cast(Matrix, loss.mean(z, num_threads=1))
        root = np.sqrt(p)
        return root[:, :, None] * np.eye(width) - p[:, :, None] * root[:, None, :]
    scales: Matrix = np.ones((count, width))
    if loss.name == "bernoulli_cross_entropy":
        p = cast(Matrix, loss.mean(z, num_threads=1)).reshape(z.shape)
        scales = p * cast(Matrix, loss.mean(-z, num_threads=1)).reshape(z.shape)
    elif loss.name == "poisson":
        scales = cast(Matrix, loss.mean(z, num_threads=1)).reshape(z.shape)
    elif isinstance(loss, StudentT):
        scales *= (loss.df + 1.0) / ((loss.df + 3.0) * loss.scale**2)
    elif loss.name == "gaussian_mean_variance":
        half = width // 2
        scales = np.hstack([np.exp(-z[:, half:]), np.full((count, half), 0.5)])
    return cast(Matrix, np.sqrt(scales)[:, :, None] * np.eye(width))


def log_constant(
    loss: Loss, targets: NDArray[np.float64], weights: NDArray[np.float64], sigma: float
) -> float:
    """What -(loss) / sigma^2, summed over cases, lacks of the log-likelihood of the targets."""
    count = float(weights.sum()) * targets.shape[1]
    if loss.name == "squared_error":
        return float(-0.5 * count * math.log(2.0 * math.pi * sigma**2))
    if loss.name == "poisson":
        log_factorials = np.vectorize(math.lgamma, otypes=[float])(targets + 1.0)
        return -float(weights @ log_factorials.sum(axis=1))
    if loss.name == "gaussian_mean_variance":
        return float(-0.5 * count * math.log(2.0 * math.pi))
    if isinstance(loss, StudentT):
        gammas = math.lgamma((loss.df + 1.0) / 2.0) - math.lgamma(loss.df / 2.0)
        return float(count * (gammas - 0.5 * math.log(loss.df * math.pi) - math.log(loss.scale)))
    return 0.0
