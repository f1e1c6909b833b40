"""Columns brought to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._typing import Array

__all__ = ["Scaling"]


def _median(v: NDArray[np.float64], weights: NDArray[np.float64] | None) -> float:
    """Where half of the weight is below; the mean of two values where it lies between them."""
    order = np.argsort(v, kind="stable")
    below = np.cumsum(np.ones(len(v)) if weights is None else weights[order])
    places = [np.searchsorted(below, 0.5 * below[-1], side) for side in ("left", "right")]
    return float(v[order[np.minimum(places, len(v) - 1)]].mean())


class Scaling(NamedTuple):
    """x -> (x - mean) / deviation, column by column, computed in float64."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, x: Array, weights: NDArray[np.float64] | None) -> Scaling:
        """Mean and deviation of the columns of x (n, d), cases weighted; constant ones have 1."""
        x = np.asarray(x, np.float64)
        mean = np.average(x, axis=0, weights=weights)
        distance = np.abs(x - mean)
        if weights is not None:
            distance = distance[weights > 0]
            weights = weights[weights > 0]
        # Squares of what is at most 1 stay in range; a spread of rounding is none.
        largest = distance.max(axis=0)
        is_constant = largest <= 16.0 * np.finfo(np.float64).eps * np.abs(mean)
        largest[is_constant] = 1.0
        square = np.average((distance / largest) ** 2, axis=0, weights=weights)
        deviation = np.where(is_constant, 1.0, largest * np.sqrt(square))
        return cls(mean.astype(np.float64), deviation.astype(np.float64))

    @classmethod
    def robust(cls, x: Array, weights: NDArray[np.float64] | None) -> Scaling:
        """Medians and 1.4826 times the medians of distances from them, which outliers leave alone.

        The factor makes it the standard deviation of a Gaussian; that stands in where more than
        half of the distances are 0.
        """
        plain = cls.of(x, weights)
        x = np.asarray(x, np.float64)
        middle = np.array([_median(column, weights) for column in x.T])
        spread = 1.4826 * np.array([_median(column, weights) for column in np.abs(x - middle).T])
        return cls(middle, np.where(spread > 0.0, spread, plain.deviation))

    @classmethod
    def none(cls, num_columns: int) -> Scaling:
        """Columns as they are."""
        return cls(np.zeros(num_columns), np.ones(num_columns))

    def apply(self, x: Array, dtype: np.dtype[np.floating]) -> Array:
        """Bring columns to unit scale."""
        scaled: Array = ((x - self.mean) / self.deviation).astype(dtype, copy=False)
        return scaled

    def undo(self, x: Array) -> Array:
        """Bring columns back."""
        back: Array = (x * self.deviation + self.mean).astype(x.dtype, copy=False)
        return back
