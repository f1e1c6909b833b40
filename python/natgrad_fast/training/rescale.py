"""Step length and momentum that minimise the damped quadratic model of the objective."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arrays import dot
from .._typing import Array
from ..operators.curvature import CurvatureMatrix

__all__ = ["Update", "rescale"]


class Update(NamedTuple):
    """A step d (P,) = learning_rate D + momentum d_prev, and how the model sees it.

    `change` is M(d) - M(0) of the damped model, `square` is |d|^2.
    """

    d: Array
    learning_rate: float
    momentum: float
    change: float
    square: float


def rescale(
    matrix: CurvatureMatrix,
    gradient: Array,
    direction: Array,
    last: Array | None,
    damping: float,
    *,
    fixed: bool,
) -> Update:
    """Combine a direction and the last step.

    With A = B + l2 I + damping I, D = `direction` and d_prev = `last`:

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

    Returns
    -------
    Update
        With alpha = 1 and a change of NaN if the numbers are not finite.

    Notes
    -----
    One linearised forward pass for each vector.
    """
    directions = [direction] if last is None or fixed else [direction, last]
    n, threads = len(directions), matrix.num_threads
    if n == 1:
        forms = np.array([[matrix.quadratic_form(direction)]])
    else:
        vv, vw, ww = matrix.quadratic_forms(*directions)
        forms = np.array([[vv, vw], [vw, ww]])
    slopes = np.array([dot(gradient, v, threads) for v in directions])
    dots = np.array([[dot(v, w, threads) for v in directions] for w in directions])
    a = forms + damping * dots
    if not (np.isfinite(a).all() and np.isfinite(slopes).all()):
        return Update(direction, 1.0, 0.0, np.nan, float(dots[0, 0]))
    factors = np.zeros(n)
    factors[0] = 1.0
    if not fixed:
        # Cut-off: below the rounding errors of the quadratic forms the directions are parallel.
        cutoff = float(np.finfo(direction.dtype).eps)
        factors = -np.linalg.pinv(a, rcond=cutoff, hermitian=True) @ slopes
    scalar = direction.dtype.type
    d = scalar(factors[0]) * direction
    if n == 2:
        d += scalar(factors[1]) * directions[1]
    change = float(slopes @ factors + 0.5 * factors @ a @ factors)
    momentum = float(factors[1]) if n == 2 else 0.0
    return Update(d, float(factors[0]), momentum, change, dot(d, d, threads))
