"""Losses: functions of targets y and of the net's outputs z, the natural parameters.

Each is summed over the C outputs of a case and averaged over cases; the link function belongs to
the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import as_floats, as_name, as_real

__all__ = [
    "BernoulliCrossEntropy",
    "Loss",
    "SoftmaxCrossEntropy",
    "SquaredError",
]


class Loss:
    """Base of the losses; compare and print by name."""

    name: str = ""

    def __repr__(self) -> str:
        """Class name, as it is called."""
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        """Losses of one class are equal."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        """Hash of the name."""
        return hash(self.name)

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: np.dtype[Any]) -> Any:
        """Check targets and bring them to the form of the core.

        Parameters
        ----------
        y : (N, C) array_like
            Targets; (N,) stands for (N, 1).
        num_cases, num_outputs : int
            N and C.
        dtype : numpy.dtype
            float32 or float64.

        Returns
        -------
        (N, C) array of `dtype`

        Raises
        ------
        ValueError, TypeError
            For targets of a wrong shape, type or range.
        """
        a = as_real(y, "y")
        if a.ndim == 1 and num_outputs == 1:
            a = a[:, None]
        if a.shape != (num_cases, num_outputs):
            raise ValueError(f"y has shape {a.shape}, wanted ({num_cases}, {num_outputs})")
        return as_floats(a, "y", dtype, 2)


class SquaredError(Loss):
    """Half the squared distance |y - z|^2 / 2: a Gaussian with mean z and unit variance."""

    name = "squared_error"


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of a categorical distribution with logits z.

    Targets are (N,) integer labels in [0, C) or (N, C) rows of probabilities.
    """

    name = "softmax_cross_entropy"

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: np.dtype[Any]) -> Any:
        """Rows of probabilities; labels become rows with a single 1. See `Loss.targets`."""
        a = as_real(y, "y")
        if a.ndim == 1:
            return self._one_hot(a, num_cases, num_outputs, dtype)
        p = super().targets(a, num_cases, num_outputs, dtype)
        if (p < 0).any():
            i, c = np.argwhere(p < 0)[0]
            raise ValueError(
                f"y must hold probabilities >= 0, got {p[i, c]} at row {i}, column {c}"
            )
        sums = p.sum(axis=1, dtype=np.float64)
        off = np.abs(sums - 1.0) > 1e-3
        if off.any():
            i = int(np.argmax(off))
            raise ValueError(f"each row of y must sum to 1, got {sums[i]:.6g} in row {i}")
        return p

    def _one_hot(self, y: Any, num_cases: int, num_outputs: int, dtype: np.dtype[Any]) -> Any:
        if y.shape != (num_cases,):
            raise ValueError(f"y has {y.shape[0]} labels, X has {num_cases} cases")
        if y.dtype.kind == "f":
            bad = ~np.isfinite(y)
            if bad.any():
                raise ValueError(f"y has NaN or Inf at position {int(np.argmax(bad))}")
            bad = y != np.floor(y)
            if bad.any():
                i = int(np.argmax(bad))
                raise ValueError(f"y must hold integer labels, got {y[i]} at position {i}")
        bad = (y < 0) | (y >= num_outputs)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"y must hold labels in [0, {num_outputs}), got {y[i]} at position {i}"
            )
        p = np.zeros((num_cases, num_outputs), dtype)
        p[np.arange(num_cases), y.astype(np.intp)] = 1
        return p


class BernoulliCrossEntropy(Loss):
    """Cross-entropy of C independent Bernoulli variables with logits z; targets in [0, 1]."""

    name = "bernoulli_cross_entropy"

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: np.dtype[Any]) -> Any:
        """(N, C) targets in [0, 1]. See `Loss.targets`."""
        t = super().targets(y, num_cases, num_outputs, dtype)
        bad = (t < 0) | (t > 1)
        if bad.any():
            i, c = np.argwhere(bad)[0]
            raise ValueError(f"y must be in [0, 1], got {t[i, c]} at row {i}, column {c}")
        return t


_BY_NAME: dict[str, type[Loss]] = {
    kind.name: kind for kind in (SquaredError, SoftmaxCrossEntropy, BernoulliCrossEntropy)
}


def as_loss(loss: str | Loss) -> Loss:
    """Return a loss from its name, or the loss itself."""
    if isinstance(loss, Loss):
        return loss
    return _BY_NAME[as_name(loss, "loss", _BY_NAME)]()
