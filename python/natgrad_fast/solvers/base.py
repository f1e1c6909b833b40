"""The protocol of step solvers: what an optimizer asks of whoever solves its systems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_num_threads, dot
from .._state import StateReader
from .._typing import Array, Linearization, State
from ..linear.results import SolveInfo, Status
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.base import Operator
from ..operators.dense import DenseMatrix

__all__ = ["Direction", "StepSolver"]

# Of the radius: how near |x| has to come; iterations of the search for it.
CLOSENESS, MOST_ITERATIONS = 0.1, 25


class Direction(NamedTuple):
    """Solution `x` (P,) of (B + damping I) x = g, and the record of the solve.

    `earlier` are iterates (P,) that were kept on the way to x, from the first to the last: an
    optimizer steps by one of them where the objective says that x goes too far. The next solve
    starts from x all the same.
    """

    x: Array
    info: SolveInfo
    earlier: tuple[Array, ...] = ()


class StepSolver:
    """Base of the ways to solve (B + damping I) x = g for a step; x = D is subtracted.

    An optimizer calls, once, `init`, and then for every step in this order: `update` (measures
    statistics on the batch), `refresh` (factorises for a damping), `direction` (solves), `accepted`
    (says what became of it). Each has a cost of its own, and each may do nothing, as here. A
    subclass has to define `direction`.

    An optimizer works with a copy (`copy.copy`) of the solver that it is given, so one set of
    options can serve several optimizers.

    Attributes
    ----------
    keeps_iterates : bool
        Whether `direction` gives earlier iterates.
    metric : (P,) array or None
        D^2 where the last `direction` solved (B + damping D^2) x = g.
    """

    @property
    def metric(self) -> Array | None:
        """Diagonal (P,) of what damping multiplied in the last `direction`; None for I."""
        return None

    @property
    def keeps_iterates(self) -> bool:
        """Whether `direction` gives earlier iterates: no."""
        return False

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Get ready for a net and a loss; nothing is measured.

        Parameters
        ----------
        net : MLP
        loss : Loss
        seed : int
            Of whatever is drawn.
        num_threads : int, optional
        """

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Measure statistics on a batch.

        Parameters
        ----------
        batch : Batch
            Whose matrix `direction` gets; l2 is in it.
        linearization
            Of the net over the batch.
        """

    def refresh(self, damping: float) -> None:
        """Factorise, for a damping of the model that goes with the last `update`."""

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Solve (matrix + damping I) x = g.

        Parameters
        ----------
        matrix : Operator
            B on the batch of `update`, l2 included, damping not.
        g : (P,) array
            Gradient of the objective, perhaps on more cases.
        damping : float
        start : (P,) array or None
            The last solution, if the step that it made was accepted.

        Returns
        -------
        Direction
        """
        raise NotImplementedError

    def expect(self, num_dampings: int) -> None:
        """Learn that so many dampings will be asked for in this step."""

    def within(
        self, matrix: Operator, g: Array, radius: float, damping: float
    ) -> tuple[Direction, float]:
        """Minimise x'(matrix) x / 2 - g'x over |x| <= radius: a solution for a damping >= 0.

        Parameters
        ----------
        matrix, g
            As in `direction`.
        radius : float
        damping : float
            To begin the search with; 0 where there is none.

        Returns
        -------
        direction : Direction
        damping : float
            The least one for which |x| <= radius, up to a tenth of the radius.

        Notes
        -----
        Newton's method on 1 / |x(damping)| = 1 / radius (Moré & Sorensen 1983), of which an
        iteration costs one `refresh` and two calls of `direction`.
        """
        return _boundary_solution(self, matrix, g, radius, damping)

    def eigenvalues(self, matrix: Operator) -> NDArray[np.float64]:
        """Eigenvalues (P,) of the matrix of `direction`, ascending; formed for it by default."""
        return DenseMatrix(matrix).eigenvalues()

    def accepted(self, accepted: bool) -> None:
        """Learn whether the step made from the last direction was kept."""

    def state_dict(self) -> State:
        """Everything that changes from step to step: plain values and named arrays, copies."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned, after `init`; all of it or nothing.

        Raises
        ------
        ValueError
            If anything in it does not fit.
        """
        StateReader(state, "state", ())


def _boundary_solution(
    solver: StepSolver, matrix: Operator, g: Array, radius: float, damping: float
) -> tuple[Direction, float]:
    """The way of `StepSolver.within`."""
    threads = as_num_threads(matrix.num_threads)
    square = dot(g, g, threads)
    scale = abs(matrix.quadratic_form(g)) / square if square > 0.0 else 0.0
    # Below the floor a damping is rounding of the matrix. At |g| / radius |x| is short enough for
    # every semi-definite one.
    floor = max(10.0 * float(np.finfo(g.dtype).eps) * scale, float(np.finfo(np.float32).tiny))
    low, high, at_floor = floor, math.inf, False
    damping = max(damping if damping > 0.0 else 1e-3 * math.sqrt(square) / radius, floor)
    best: tuple[Direction, float] | None = None
    for _ in range(MOST_ITERATIONS):
        solver.refresh(damping)
        direction = solver.direction(matrix, g, damping, None)
        length = math.sqrt(dot(direction.x, direction.x, threads))
        if direction.info.status is Status.INTERRUPTED:
            return direction, damping
        is_convex = direction.info.status is not Status.NEGATIVE_CURVATURE
        if is_convex and length <= (1.0 + CLOSENESS) * radius:
            best, high = (direction, damping), damping
            if length >= (1.0 - CLOSENESS) * radius or damping <= low:
                break
        else:
            low = damping
        at_floor = at_floor or damping == floor
        damping = _next_damping(solver, matrix, direction.x, length, radius, damping, threads)
        if low < damping < high:
            continue
        if low == floor and not at_floor and damping <= floor:
            damping = floor
        elif high == math.inf:
            damping = 10.0 * low
        elif high > (1.0 + CLOSENESS) * low:
            damping = math.sqrt(low * high)
        else:
            break
    return best if best is not None else (direction, damping)


def _next_damping(
    solver: StepSolver,
    matrix: Operator,
    x: Array,
    length: float,
    radius: float,
    damping: float,
    threads: int,
) -> float:
    """Newton's next damping; NaN where there is none."""
    if not 0.0 < length < math.inf:
        return math.nan
    slope = dot(x, solver.direction(matrix, x, damping, None).x, threads)
    return damping + length**2 / slope * (length - radius) / radius if slope > 0.0 else math.nan
