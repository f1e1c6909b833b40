"""Right-hand sides of solves in the space of samples, and dampings of exact solves."""

from __future__ import annotations

import math
import numbers

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_dampings, as_number, as_real, as_vector, dot
from .._typing import Array, Callback
from ..operators.curvature import EmpiricalFisher, GaussNewtonMatrix
from ..operators.sample_space import SampleSpace

__all__ = ["RightHandSide", "as_damping_values", "check_one_damping", "in_units", "power_of_two"]


class RightHandSide:
    """The right-hand side g = U r + h: all of it in h (P,) unless targets tell its origin.

    `g`, `r`, `h` and `norm` are in units of 2^exponent, which is 1 unless |g| is extreme.
    """

    def __init__(self, space: SampleSpace, g: ArrayLike | None, y: ArrayLike | None) -> None:
        matrix = space._matrix
        self.r: Array | None = None
        self.h: Array | None = None
        self.exponent = 0
        if g is not None:
            g = as_vector(g, "g", matrix.shape[0], matrix.dtype)
            self.exponent = _exponent(g)
            if self.exponent != 0:
                g, y = np.ldexp(g, -self.exponent), None  # in its unit it is no gradient
        targets = self._targets(matrix, g, y)
        self.g: Array
        if targets is None:
            assert g is not None
            self.g = self.h = g
        else:
            self._split(space, targets)
            self.g = self._sum(space) if g is None else g
        self.norm = math.sqrt(dot(self.g, self.g, matrix.num_threads))

    @staticmethod
    def _targets(matrix: GaussNewtonMatrix, g: Array | None, y: ArrayLike | None) -> Array | None:
        if y is not None:
            return matrix.as_targets(y)
        if g is not None:
            return None
        if isinstance(matrix, EmpiricalFisher):
            return matrix.targets
        raise ValueError("g and y are missing: give the right-hand side, or the targets")

    def _split(self, space: SampleSpace, targets: Array) -> None:
        matrix = space._matrix
        self.r, rest, complete = space.core.split_gradient(targets, num_outputs=matrix.sizes[-1])
        if not complete:
            self.h = matrix.linearization.vjp(rest[None])[0]
        if any(matrix.decay):
            number = matrix.dtype.type
            decay = number(matrix.decay.weights) * matrix.linearization.params
            for place in matrix.bias_places:
                decay[place] = number(matrix.decay.biases) * matrix.linearization.params[place]
            self.h = decay if self.h is None else self.h + decay

    def _sum(self, space: SampleSpace) -> Array:
        assert self.r is not None
        g = space.multiply_factor(self.r)
        return g if self.h is None else g + self.h

    def told_in_callers_units(self, callback: Callback) -> Callback:
        """The callback, for residuals and quadratics in units of g."""
        if self.exponent == 0:
            return callback
        return lambda i, norm, phi: callback(
            i, power_of_two(self.exponent, norm), power_of_two(2 * self.exponent, phi)
        )

    def in_callers_units(self, x: Array) -> tuple[Array, Array | None]:
        """`in_units` of what the exponent says."""
        return in_units(x, self.exponent)


def in_units(x: Array, exponent: int) -> tuple[Array, Array | None]:
    """Return 2^exponent x, shrunk if that overflows, and what it is times 2^-exponent.

    The latter is None where nothing was lost, and x what was given.
    """
    if exponent == 0 or not x.any():
        return x, None
    top = int(np.frexp(np.abs(x).max())[1]) + exponent
    excess = max(0, top - int(np.finfo(x.dtype).maxexp))
    with np.errstate(under="ignore"):
        scaled = np.ldexp(x, exponent - excess)
        held = np.ldexp(scaled, -exponent)
    return scaled, None if (held == x).all() else held


def power_of_two(exponent: int, x: float) -> float:
    """Return 2^exponent x, infinite where that is beyond the range."""
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.copysign(math.inf, x)


def _exponent(g: Array) -> int:
    """Of the unit in which the squares of g neither under- nor overflow."""
    exponent = int(np.frexp(np.abs(g).max())[1])
    ordinary = np.finfo(g.dtype).maxexp // 4
    return exponent if g.any() and abs(exponent) > ordinary else 0


def check_one_damping(is_scalar: bool, count: int, what: str) -> None:
    """Raise ValueError where several dampings meet a block of right-hand sides."""
    if not is_scalar:
        raise ValueError(
            f"several dampings go with a single {what}, got K = {count} columns: "
            "solve for one damping after the other"
        )


def as_damping_values(damping: ArrayLike) -> tuple[NDArray[np.float64], bool]:
    """Dampings as (m,) numbers >= 0, and whether one number was given."""
    if not isinstance(damping, numbers.Number | str | None):
        damping = as_real(damping, "damping")
    if isinstance(damping, np.ndarray) and damping.ndim > 0:
        return as_dampings(damping, "damping"), False
    return np.array([as_number(damping, "damping", minimum=0.0)]), True
