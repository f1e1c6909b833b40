"""Step length and momentum that minimise the damped quadratic model of the objective."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._arrays import dot
from .._typing import Array
from ..operators.curvature import CurvatureMatrix

__all__ = ["Update", "as_momentum", "rescale"]


class Update(NamedTuple):
    """A step d (P,) = learning_rate D + momentum d_prev, and how the model sees it.

    `change` is M(d) - M(0) of the damped model, `square` is |d|^2, and `penalty` is d'D^2 d, what
    the damping multiplies in the model.
    """

    d: Array
    learning_rate: float
    momentum: float
    change: float
    square: float
    penalty: float = 0.0

    def scaled(self, factor: float) -> Update:
        """The step times a factor; `change` remains that of the whole step."""
        return self._replace(
            d=self.d.dtype.type(factor) * self.d,
            learning_rate=factor * self.learning_rate,
            momentum=factor * self.momentum,
            square=factor**2 * self.square,
            penalty=factor**2 * self.penalty,
        )


def rescale(
    matrix: CurvatureMatrix,
    gradient: Array,
    direction: Array,
    last: Array | None,
    damping: float,
    *,
    fixed: bool,
    metric: Array | None = None,
) -> Update:
    """Combine a direction and the last step.

    With A = B + l2 I + damping `metric`, D = `direction` and d_prev = `last`:

        [alpha; mu] = -[D'AD  D'Ad_prev; d_prev'AD  d_prev'Ad_prev]^+ [g'D; g'd_prev]
        M(d) - M(0) = g'd + d'Ad / 2

    Parameters
    ----------
    matrix : CurvatureMatrix
        B + l2 I.
    gradient, direction : (P,) arrays
    last : (P,) array or None
        Without it mu = 0.
    damping : float
    fixed : bool
        Whether alpha = 1 and mu = 0 are given, and only the model is asked.
    metric : (P,) array, optional
        A diagonal; I by default.

    Returns
    -------
    Update
        With alpha = 1 and a change of NaN if the numbers are not finite.

    Notes
    -----
    One linearised forward pass for each vector.
    """
    threads, scalar = matrix.num_threads, direction.dtype.type
    slope, square = dot(gradient, direction, threads), dot(direction, direction, threads)
    weighted = direction if metric is None else metric * direction
    penalty = square if metric is None else dot(weighted, direction, threads)
    if last is None or fixed:
        form = matrix.quadratic_form(direction) + damping * penalty
        if not (math.isfinite(form) and math.isfinite(slope)):
            return Update(direction, 1.0, 0.0, math.nan, square, penalty)
        rate = 1.0 if fixed else (-slope / form if form != 0.0 else 0.0)
        change = rate * slope + 0.5 * rate * rate * form
        d = scalar(rate) * direction
        return Update(d, rate, 0.0, change, dot(d, d, threads), rate * rate * penalty)
    vv, vw, ww = matrix.quadratic_forms(direction, last)
    mixed = dot(weighted, last, threads)
    other = dot(last if metric is None else metric * last, last, threads)
    vv += damping * penalty
    vw += damping * mixed
    ww += damping * other
    last_slope = dot(gradient, last, threads)
    if not all(map(math.isfinite, (vv, vw, ww, slope, last_slope))):
        return Update(direction, 1.0, 0.0, math.nan, square, penalty)
    # Cut-off: below the rounding errors of the quadratic forms the directions are parallel.
    cutoff = float(np.finfo(direction.dtype).eps)
    rate, momentum = _solve_symmetric(vv, vw, ww, -slope, -last_slope, cutoff)
    change = rate * slope + momentum * last_slope
    change += 0.5 * (rate * rate * vv + 2.0 * rate * momentum * vw + momentum * momentum * ww)
    d = scalar(rate) * direction
    d += scalar(momentum) * last
    penalty = rate * rate * penalty + 2.0 * rate * momentum * mixed + momentum * momentum * other
    return Update(d, rate, momentum, change, dot(d, d, threads), penalty)


def _solve_symmetric(
    a: float, b: float, c: float, s: float, t: float, cutoff: float
) -> tuple[float, float]:
    """Return [a b; b c]^+ [s; t], without eigenvalues below `cutoff` times the largest."""
    middle, radius = 0.5 * (a + c), math.hypot(0.5 * (a - c), b)
    largest = middle + math.copysign(radius, middle)
    if largest == 0.0:
        return 0.0, 0.0
    other = (a * c - b * b) / largest
    # (x, y) is the eigenvector of middle + radius, (-y, x) that of middle - radius.
    angle = 0.5 * math.atan2(2.0 * b, a - c)
    x, y = math.cos(angle), math.sin(angle)
    along, across = x * s + y * t, x * t - y * s
    first, second = (largest, other) if middle >= 0.0 else (other, largest)
    bound = cutoff * abs(largest)
    along = along / first if abs(first) > bound else 0.0
    across = across / second if abs(second) > bound else 0.0
    return x * along - y * across, y * along + x * across


def as_momentum(momentum: object) -> bool:
    """Whether learning rate and momentum are to minimise the model."""
    if isinstance(momentum, str):
        if momentum != "auto":
            raise ValueError(f'momentum must be True, False or "auto", got {momentum!r}')
        return True
    return bool(momentum)
