"""Losses: functions of targets y and of the net's outputs z, the natural parameters.

Each is summed over the outputs of a case and averaged over cases; the link function belongs to
the loss.
"""

from .base import Loss
from .standard import (
    BernoulliCrossEntropy,
    GaussianMeanVariance,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
    StudentT,
    as_loss,
)

__all__ = [
    "BernoulliCrossEntropy",
    "GaussianMeanVariance",
    "Loss",
    "Poisson",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StudentT",
    "as_loss",
]
