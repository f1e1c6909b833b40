"""Steps that are judged on the batch they were made from: the whole data, or what stands for it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from .._arrays import all_finite, dot
from .._typing import Array
from ..model.batch import Batch
from ..operators import GGN, EmpiricalFisher, Fisher, Hessian
from ..operators.curvature import CurvatureMatrix
from ..solvers import StepSolver
from .damping import DampingPolicy
from .evidence import BayesianRegularization, Evidence
from .history import StepInfo
from .progress import Progress
from .trials import StepCases, Trials

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
    evidence : BayesianRegularization, optional
        What chooses l2 after every step.
    """

    def __init__(
        self,
        curvature: str,
        momentum: bool,
        solver: StepSolver,
        policy: DampingPolicy,
        line_search: bool = False,
        evidence: BayesianRegularization | None = None,
    ) -> None:
        self.evidence = evidence
        self.curvature, self.momentum, self.line_search = curvature, momentum, line_search
        self.solver, self.policy = solver, policy

    @contextlib.contextmanager
    def kept_if_it_fails(self, has_failed: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Put solver and policy back where something is raised within and `has_failed()`."""
        policy, solver = self.policy.state_dict(), self.solver.state_dict()
        try:
            yield
        except BaseException:
            if has_failed():
                self.policy.load_state_dict(policy)
                self.solver.load_state_dict(solver)
            raise

    def attempt(self, cases: StepCases, past: Progress) -> tuple[Array | None, Progress]:
        """The next parameters, None for the same, and the progress; solver and policy changed."""
        start = time.perf_counter()
        batch, curvature = cases.batch, cases.curvature
        params, threads = batch.net.params, batch.num_threads
        linearization = curvature.linearize()
        loss, gradient = batch.value_and_grad(linearization if curvature is batch else None)
        norm = math.sqrt(dot(gradient, gradient, threads))
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if not (is_finite and all_finite(params, threads)):
            # No damping helps where one stands.
            info = self._record(batch, past, start, loss, self.policy.value, norm, new_loss=loss)
            return None, past._replace(step=info.step + 1, last_solution=None, info=info)
        matrix = CURVATURES[self.curvature].on(curvature, linearization)
        self.solver.update(curvature, linearization)
        trials = Trials(
            cases=cases,
            linearization=linearization,
            matrix=matrix,
            gradient=gradient,
            loss=loss,
            solver=self.solver,
            start=past.last_solution,
            last=past.last_update,
            momentum=self.momentum and self.policy.has_momentum,
        )
        trial = self.policy.search(trials)
        ratio = trial.ratio(loss, self.policy.denominator)
        accepted = trial.is_descent(loss)
        if self.line_search and not trial.at_rounding:
            trial, accepted = trials.shortened(trial)
        # From numbers that are rounding nothing is learned, whichever way they fell.
        self.policy.update(math.nan if trial.at_rounding else ratio, accepted or trial.at_rounding)
        last = math.nan if past.info is None else past.info.effective_parameters
        found = Evidence(batch.decay.weights, last)
        if self.evidence is not None and accepted:
            found = self.evidence.measured(
                batch, self.solver.eigenvalues(matrix), trial.new_loss, trial.params
            )
        self.solver.accepted(accepted)
        info = self._record(
            batch,
            past,
            start,
            loss,
            trial.damping,
            norm,
            new_loss=trial.new_loss,
            reduction_ratio=ratio,
            step_norm=trial.length if accepted else 0.0,
            learning_rate=trial.update.learning_rate,
            momentum=trial.update.momentum,
            accepted=accepted,
            solve=trial.solve,
            at_rounding=trial.at_rounding,
            curvature_size=curvature.num_cases,
            backtracked=trial.skipped,
            evaluations=trials.evaluations,
            effective_parameters=found.effective_parameters,
        )
        if not accepted:
            return None, past._replace(step=info.step + 1, last_solution=None, info=info)
        # The next solve goes on from the last iterate, also where the step was by an earlier one.
        solution = trial.x if all_finite(trial.x) else None
        d, params = trial.update.d, trial.params
        l2 = None if self.evidence is None else found.l2
        return params, Progress(info.step + 1, solution, d, past.moving, info, params, l2)

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
