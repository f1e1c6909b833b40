"""Steps that a damping policy may try from where a run stands, and how each turned out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .._arrays import Decay, all_finite, dot
from .._typing import Array, Linearization
from ..linear.results import SolveInfo, Status
from ..model.batch import Batch
from ..operators.curvature import CurvatureMatrix
from ..solvers import Direction, StepSolver
from .geodesic import with_acceleration
from .rescale import Update, rescale
from .search import backtrack, line_search

__all__ = ["StepCases", "Trial", "Trials"]


class StepCases(NamedTuple):
    """Batches of one net, loss and l2; the very same object where they do not differ.

    `batch` gives objective, gradient, reduction ratio and acceptance, `curvature` the matrix, the
    solver's statistics and the quadratic model, `backtracking` the objective by which backtracking
    chooses.
    """

    batch: Batch
    curvature: Batch
    backtracking: Batch

    def with_l2(self, l2: Decay) -> StepCases:
        """The same cases with another weight decay; what is one object remains one."""
        made: dict[int, Batch] = {}
        return StepCases(*(made.setdefault(id(one), one.with_l2(l2)) for one in self))


class Trial(NamedTuple):
    """A step d that was tried: `params` = theta + d.

    `change` is that of the model without damping, of the damped one it is ``update.change``.
    """

    x: Array  # (P,), the solution; d is rate (-x) + momentum d_prev, or by an earlier iterate
    update: Update
    damping: float
    params: Array
    new_loss: float
    change: float
    solve: SolveInfo
    skipped: int  # iterates of the solver that backtracking left behind
    at_rounding: bool  # whether d, or the decrease that it promises, is nothing but rounding

    @property
    def length(self) -> float:
        """|d|."""
        return math.sqrt(self.update.square)

    def ratio(self, loss: float, denominator: str = "undamped") -> float:
        """Actual over predicted change of the objective; -inf if the new one is not finite."""
        if not math.isfinite(self.new_loss):
            return -math.inf
        change = self.update.change if denominator == "damped" else self.change
        return (self.new_loss - loss) / change if change != 0.0 else math.nan

    def is_descent(self, loss: float) -> bool:
        """Whether the objective is finite and no larger."""
        return math.isfinite(self.new_loss) and self.new_loss <= loss


@dataclass
class Trials:
    """What a policy's `search` asks.

    Attributes
    ----------
    cases : StepCases
    linearization
        Of the net over the cases of the curvature.
    matrix : CurvatureMatrix
        B + l2 I.
    gradient : (P,) array
    loss : float
        Objective of the batch where one stands.
    solver : StepSolver
        That has measured the cases of the curvature.
    start, last : (P,) array or None
        The last solution and the last update.
    momentum : bool
        Whether learning rate and momentum minimise the model.
    evaluations : int
        Of objectives so far.
    """

    cases: StepCases
    linearization: Linearization
    matrix: CurvatureMatrix
    gradient: Array
    loss: float
    solver: StepSolver
    start: Array | None = None
    last: Array | None = None
    momentum: bool = True
    evaluations: int = field(default=0, init=False)

    def at(self, damping: float, *, geodesic: bool = False, fixed: bool = False) -> Trial:
        """Solve with a damping, and look where it leads.

        Parameters
        ----------
        damping : float
        geodesic : bool
            Whether the second derivative along the step bends it, see `with_acceleration`.
        fixed : bool
            Whether the solution itself is the step, without rate or momentum.
        """
        self.solver.refresh(damping)
        direction = self.solver.direction(self.matrix, self.gradient, damping, self.start)
        if geodesic and direction.info.status is not Status.INTERRUPTED:
            bent = with_acceleration(
                direction.x,
                self.cases.curvature,
                self.linearization,
                self.solver,
                self.matrix,
                damping,
            )
            direction = direction._replace(x=bent)
        return self._look(direction, damping, fixed=fixed or not self.momentum)

    def within(self, radius: float, guess: float) -> Trial:
        """Minimise the model over steps of at most this length, and look where that leads.

        Parameters
        ----------
        radius : float
        guess : float
            Damping to begin the search with.
        """
        direction, damping = self.solver.within(self.matrix, self.gradient, radius, guess)
        return self._look(direction, damping, fixed=True)

    def shortened(self, trial: Trial) -> tuple[Trial, bool]:
        """A trial by a line search along its step, and whether there is a length that does."""
        update, params = trial.update, self.cases.batch.net.params
        slope = dot(self.gradient, update.d, self.cases.batch.num_threads)
        found = line_search(
            update.d, params, self.cases.batch.value, self.loss, trial.new_loss, slope
        )
        self.evaluations += found.evaluations
        if found.rate == 1.0:
            return trial, True
        update = update.scaled(found.rate)
        shorter = trial._replace(update=update, params=params + update.d, new_loss=found.value)
        return shorter, found.rate > 0.0

    def cauchy_length(self) -> float:
        """Length of the steepest descent to the model's minimum, |g|^3 / g'Bg; 0 for g = 0."""
        square = dot(self.gradient, self.gradient, self.matrix.num_threads)
        curvature = self.rayleigh_quotient()
        return math.sqrt(square) / curvature if curvature > 0.0 else math.sqrt(square)

    def rayleigh_quotient(self) -> float:
        """Quotient g'Bg / g'g: an eigenvalue that matters."""
        square = dot(self.gradient, self.gradient, self.matrix.num_threads)
        return self.matrix.quadratic_form(self.gradient) / square if square > 0.0 else 0.0

    def _look(self, direction: Direction, damping: float, *, fixed: bool) -> Trial:
        if direction.info.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        batch = self.cases.batch
        params = batch.net.params
        chosen = backtrack(direction, params, self.cases.backtracking.value)
        metric = self.solver.metric
        if all_finite(chosen.x, batch.num_threads):
            update = rescale(
                self.matrix,
                self.gradient,
                -chosen.x,
                self.last,
                damping,
                fixed=fixed,
                metric=metric,
            )
            candidate = params + update.d
            new_loss = batch.value(candidate)
        else:  # beyond the range of the dtype: a step that is rejected
            update = Update(-chosen.x, 1.0, 0.0, math.nan, math.inf, math.inf)
            candidate, new_loss = params + update.d, math.inf
        self.evaluations += chosen.evaluations + 1
        is_rounding = _is_rounding(update, self.loss, params, batch.num_threads)
        return Trial(
            x=direction.x,
            update=update,
            damping=damping,
            params=candidate,
            new_loss=new_loss,
            change=update.change - 0.5 * damping * update.penalty,
            solve=direction.info,
            skipped=chosen.skipped,
            at_rounding=math.isfinite(new_loss) and is_rounding,
        )


def _is_rounding(update: Update, loss: float, params: Array, num_threads: int) -> bool:
    """Whether the step, or the decrease that it promises, is below the dtype's rounding."""
    eps = float(np.finfo(params.dtype).eps)
    length = math.sqrt(dot(params, params, num_threads))
    is_short = math.sqrt(update.square) <= 4.0 * eps * length
    return is_short or abs(update.change) <= eps * abs(loss)
