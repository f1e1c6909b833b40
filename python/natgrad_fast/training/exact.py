"""Steps that are judged on the batch they were made from: the whole data, or what stands for it."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from .._arrays import all_finite, dot
from .._typing import Array
from ..linear.results import Status
from ..model.batch import Batch
from ..operators import GGN, EmpiricalFisher, Fisher, Hessian
from ..operators.curvature import CurvatureMatrix
from ..solvers import StepSolver
from .damping import DampingPolicy
from .history import StepInfo
from .progress import Progress
from .rescale import Update, rescale
from .search import backtrack, line_search
from .step_cases import StepCases

__all__ = ["CURVATURES", "ExactSteps"]

CURVATURES: dict[str, type[CurvatureMatrix]] = {
    "fisher": Fisher,
    "ggn": GGN,
    "empirical_fisher": EmpiricalFisher,
    "hessian": Hessian,
}


class ExactSteps:
    """Makes the steps, with a solver and a damping policy of its own.

    Parameters
    ----------
    curvature : str
        One of CURVATURES.
    momentum : bool
        Whether learning rate and momentum minimise the model.
    line_search : bool
        Whether a step that does not lower the objective enough is tried shorter.
    """

    def __init__(
        self,
        curvature: str,
        momentum: bool,
        solver: StepSolver,
        policy: DampingPolicy,
        line_search: bool = False,
    ) -> None:
        self.curvature, self.momentum, self.line_search = curvature, momentum, line_search
        self.solver, self.policy = solver, policy

    def attempt(self, cases: StepCases, past: Progress) -> tuple[Array | None, Progress]:
        """The next parameters, None for the same, and the progress; solver and policy changed."""
        start = time.perf_counter()
        batch, curvature = cases.batch, cases.curvature
        params, threads = batch.net.params, batch.num_threads
        linearization = curvature.linearize()
        loss, gradient = batch.value_and_grad(linearization if curvature is batch else None)
        damping = self.policy.value
        norm = math.sqrt(dot(gradient, gradient, threads))
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if not (is_finite and all_finite(params, threads)):
            # No damping helps where one stands.
            info = self._record(batch, past, start, loss, damping, norm, new_loss=loss)
            return None, past._replace(step=info.step + 1, last_solution=None, info=info)
        matrix = CURVATURES[self.curvature].on(curvature, linearization)
        self.solver.update(curvature, linearization)
        self.solver.refresh(damping)
        solution = self.solver.direction(matrix, gradient, damping, past.last_solution)
        if solution.info.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        chosen = backtrack(solution, params, cases.backtracking.value)
        last = past.last_update
        update = rescale(matrix, gradient, -chosen.x, last, damping, fixed=not self.momentum)
        candidate = params + update.d
        new_loss = batch.value(candidate)
        accepted = math.isfinite(new_loss) and new_loss <= loss
        ratio = self._reduction_ratio(loss, new_loss, update, damping)
        at_rounding = math.isfinite(new_loss) and _is_rounding(update, loss, params, threads)
        evaluations = chosen.evaluations + 1
        if self.line_search and not at_rounding:
            slope = dot(gradient, update.d, threads)
            found = line_search(update.d, params, batch.value, loss, new_loss, slope)
            update, new_loss, accepted = update.scaled(found.rate), found.value, found.rate > 0.0
            candidate, evaluations = params + update.d, evaluations + found.evaluations
        # From numbers that are rounding nothing is learned, whichever way they fell.
        self.policy.update(math.nan if at_rounding else ratio, accepted or at_rounding)
        self.solver.accepted(accepted)
        info = self._record(
            batch,
            past,
            start,
            loss,
            damping,
            norm,
            new_loss=new_loss,
            reduction_ratio=ratio,
            step_norm=math.sqrt(update.square) if accepted else 0.0,
            learning_rate=update.learning_rate,
            momentum=update.momentum,
            accepted=accepted,
            solve=solution.info,
            at_rounding=at_rounding,
            curvature_size=curvature.num_cases,
            backtracked=chosen.skipped,
            evaluations=evaluations,
        )
        if not accepted:
            return None, past._replace(step=info.step + 1, last_solution=None, info=info)
        # The next solve goes on from the last iterate, also where the step was by an earlier one.
        x = solution.x if all_finite(solution.x) else None
        return candidate, Progress(info.step + 1, x, update.d, past.moving, info, candidate)

    def _reduction_ratio(
        self, loss: float, new_loss: float, update: Update, damping: float
    ) -> float:
        """Actual over predicted change, the latter without damping where the policy says so."""
        if not math.isfinite(new_loss):
            return -math.inf
        change = update.change
        if self.policy.denominator == "undamped":
            change -= 0.5 * damping * update.square
        return (new_loss - loss) / change if change != 0.0 else math.nan

    def _record(
        self,
        batch: Batch,
        past: Progress,
        start: float,
        loss: float,
        damping: float,
        norm: float,
        **further: Any,
    ) -> StepInfo:
        return StepInfo(
            step=past.step,
            loss=loss,
            damping=damping,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            batch_size=batch.num_cases,
            solver=type(self.solver).__name__,
            **further,
        )


def _is_rounding(update: Update, loss: float, params: Array, num_threads: int) -> bool:
    """Whether the step, or the decrease that it promises, is below the dtype's rounding."""
    eps = float(np.finfo(params.dtype).eps)
    length = math.sqrt(dot(params, params, num_threads))
    is_short = math.sqrt(update.square) <= 4.0 * eps * length
    return is_short or abs(update.change) <= eps * abs(loss)
