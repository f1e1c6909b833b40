"""Searches among points that cost one evaluation of the objective each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from .._typing import Array
from ..solvers import Direction

__all__ = ["Backtracked", "LineSearch", "backtrack", "line_search"]

# Armijo's condition and the factor of the rate, of the reference code of Hessian-free optimisation.
SUFFICIENT, FACTOR, MOST_RATES = 1e-2, 0.8, 60


class Backtracked(NamedTuple):
    """The iterate `x` (P,), the number of kept ones that are left behind.

    `evaluations` of the objective is what it took.
    """

    x: Array
    skipped: int
    evaluations: int


def backtrack(
    solution: Direction, params: Array, objective: Callable[[Array], float]
) -> Backtracked:
    """Walk back from the last iterate while the objective at params - x does not rise.

    Parameters
    ----------
    solution : Direction
    params : (P,) array
    objective : callable
        Of parameters (P,); what is not finite counts as larger than anything.

    Returns
    -------
    Backtracked

    Notes
    -----
    CG-backtracking of Martens (2010): the quadratic falls with every iteration, the objective only
    as long as the quadratic is to be trusted. The first rise ends the walk, so at most one
    evaluation more than iterates are left behind, plus that of the last one.
    """
    if not solution.earlier:
        return Backtracked(solution.x, 0, 0)
    x, best, skipped, evaluations = solution.x, _height(objective(params - solution.x)), 0, 1
    for iterate in reversed(solution.earlier):
        found = _height(objective(params - iterate))
        evaluations += 1
        if found > best:
            break
        x, best, skipped = iterate, found, skipped + 1
    return Backtracked(x, skipped, evaluations)


def _height(value: float) -> float:
    return value if math.isfinite(value) else math.inf


class LineSearch(NamedTuple):
    """The factor of the step, 0 if there is none, and the objective there.

    `evaluations` of the objective is what it took.
    """

    rate: float
    value: float
    evaluations: int


def line_search(
    step: Array,
    params: Array,
    objective: Callable[[Array], float],
    loss: float,
    new_loss: float,
    slope: float,
) -> LineSearch:
    """Find the first rate of 1, .8, .64, .. with h(params + rate d) <= h + 1e-2 rate g'd.

    Parameters
    ----------
    step, params : (P,) arrays
        d, and where it starts.
    objective : callable
        Of parameters (P,).
    loss, new_loss : float
        h, and h(params + d).
    slope : float
        g'd. Where it is not negative, only the whole step is looked at.

    Returns
    -------
    LineSearch
        With rate 0 and `new_loss` if 60 rates fail.
    """
    scalar, rate, value = step.dtype.type, 1.0, new_loss
    for evaluations in range(MOST_RATES):
        if evaluations > 0:
            rate *= FACTOR
            value = objective(params + scalar(rate) * step)
        if math.isfinite(value) and value <= loss + SUFFICIENT * rate * min(slope, 0.0):
            return LineSearch(rate, value, evaluations)
        if not slope < 0.0:
            break
    return LineSearch(0.0, new_loss, evaluations)
