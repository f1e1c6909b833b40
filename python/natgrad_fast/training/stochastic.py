"""Steps on mini-batches that do not see all data: K-FAC directions, a controller for the rest."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from .._arrays import all_finite, dot
from .._typing import Array, Linearization
from ..linear.results import SolveInfo, Status
from ..losses import Loss
from ..model.batch import Batch, Parts
from ..model.mlp import MLP
from ..operators import Fisher
from ..preconditioners import KFAC
from .controller import Controller
from .history import StepInfo
from .progress import Moving, Progress
from .rescale import Update, rescale

__all__ = ["StochasticSteps"]

# Damping of the factors, and of the model, in units of the largest mean eigenvalue of F so far.
FACTOR_DAMPING, MODEL_DAMPING = 0.003, 0.05
# Of a step that applies the preconditioner once.
APPLIED = SolveInfo(Status.APPROXIMATE, 0, math.nan, math.nan, 0, 0.0, 0.0)
# Cases of a batch that the statistics are made of: a share of them, and no fewer than some.
STATISTICS_SHARE, LEAST_STATISTICS = 8, 64


class StochasticSteps:
    """Makes the steps; the preconditioner is its own.

    Parameters
    ----------
    preconditioner : KFAC
        Made with one draw per case and long averages.
    """

    def __init__(self, preconditioner: KFAC) -> None:
        self.preconditioner = preconditioner

    @classmethod
    def of(cls, net: MLP, loss: Loss, seed: int, num_threads: int) -> StochasticSteps:
        """With K-FAC, one draw per case and long averages."""
        return cls(KFAC(net, loss, samples=1, ema=0.97, seed=seed, num_threads=num_threads))

    def snapshot(self) -> object:
        """What `restore` puts back."""
        return self.preconditioner._snapshot()

    def restore(self, snapshot: object) -> None:
        """Put the preconditioner back."""
        self.preconditioner._restore(snapshot)

    def attempt(self, batch: Batch, num_cases: float, past: Progress) -> tuple[Array, Progress]:
        """The next parameters and progress; only the preconditioner has changed.

        Parameters
        ----------
        batch : Batch
        num_cases : float
            Of all data that batches are drawn from; infinite for a stream.
        past : Progress
        """
        start = time.perf_counter()
        net, moving, threads = batch.net, past.moving, batch.num_threads
        linearization = batch.linearize()
        parts = None
        if moving.controller.wants_share:
            parts = batch.value_and_grad_of_parts(linearization, batch.num_cases // 2)
        loss, gradient = parts[:2] if parts else batch.value_and_grad(linearization)
        norm = math.sqrt(dot(gradient, gradient, threads))
        if moving.good is None:
            moving = moving._replace(good=net.params.copy())
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        is_finite = is_finite and all_finite(net.params, threads)
        control = moving.controller
        # The rest of an epoch may be few cases: too noisy to look at, and for a whole step.
        control, share = control.with_size(batch.num_cases)
        if is_finite and share == 1.0:
            control = replace(control, guard=control.guard.look(loss))
        if not is_finite or (share == 1.0 and control.guard.is_bad(loss)):
            return self._retreat(batch, past, moving, control, loss, norm, start)
        if control.guard.is_best and share == 1.0:
            control = replace(control, guard=control.guard.kept())
            moving = moving._replace(good=net.params.copy())
        velocity = moving.velocity
        if share == 1.0 and moving.displacement is not None and moving.slope != 0.0:
            q = dot(gradient, moving.displacement, threads) / abs(moving.slope)
            control, brakes = control.with_overshoot(min(max(q, -1.0), 1.0))
            if brakes and velocity is not None:
                velocity = velocity.dtype.type(0.5) * velocity
        try:
            control = self._measure(batch, linearization, control)
        except FloatingPointError:  # outputs beyond the range of squares
            return self._retreat(batch, past, moving, control, loss, norm, start)
        direction = -(self.preconditioner @ gradient)
        if control.wants_share and share == 1.0:
            x = self._share(batch, gradient, direction, parts)
            control = control.with_share(x, batch.num_cases, num_cases)
        control = control.with_mode()
        damping = MODEL_DAMPING * control.largest_trace
        matrix = Fisher.on(batch, linearization)
        control, update, velocity = self._move(
            matrix, gradient, direction, velocity, damping, control, share
        )
        info = StepInfo(
            step=past.step,
            loss=loss,
            damping=damping,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            batch_size=batch.num_cases,
            solver="Kronecker",
            step_norm=math.sqrt(update.square),
            learning_rate=update.learning_rate,
            momentum=update.momentum,
            accepted=True,
            solve=APPLIED,
            curvature_size=batch.num_cases,
            controller=control.info,
        )
        slope = dot(gradient, update.d, threads)
        after = Moving(control.stepped(), velocity, update.d, slope, moving.good)
        candidate = net.params + update.d
        if not all_finite(candidate, threads):
            return self._retreat(batch, past, moving, control, loss, norm, start)
        return candidate, Progress(past.step + 1, None, None, after, info, candidate)

    def _retreat(
        self,
        batch: Batch,
        past: Progress,
        moving: Moving,
        control: Controller,
        loss: float,
        norm: float,
        start: float,
    ) -> tuple[Array, Progress]:
        """Back to the last good point."""
        control = control.restored()
        assert moving.good is not None
        info = StepInfo(
            step=past.step,
            loss=loss,
            damping=MODEL_DAMPING * control.largest_trace,
            gradient_norm=norm,
            seconds=time.perf_counter() - start,
            batch_size=batch.num_cases,
            solver="Kronecker",
            solve=APPLIED,
            controller=replace(control.info, restored=True),
        )
        after = Moving(control, good=moving.good)
        return moving.good, Progress(past.step + 1, None, None, after, info, moving.good)

    def _measure(
        self, batch: Batch, linearization: Linearization, control: Controller
    ) -> Controller:
        """Statistics on a share of the batch and the inverse, when they are due."""
        m = self.preconditioner
        if control.wants_statistics or m.num_updates == 0:
            count = max(LEAST_STATISTICS, batch.num_cases // STATISTICS_SHARE)
            m.update_on(batch, linearization, num_cases=count)
        if control.wants_refresh or m.damping is None:
            trace = max(control.largest_trace, m.trace() / m.shape[0])
            control = replace(control, largest_trace=trace)
            m.refresh(max(FACTOR_DAMPING * trace + batch.decay.weights, 1e-30))
        return control

    def _share(self, batch: Batch, gradient: Array, direction: Array, parts: Parts | None) -> float:
        """g_A'M^-1 g_B / g'M^-1 g for two parts A and B of the batch, each with l2.

        0 for a single case: there is nothing in it to tell signal from noise.
        """
        if batch.num_cases == 1:
            return 0.0
        threads = batch.num_threads
        whole = -dot(gradient, direction, threads)
        if not whole > 0.0:
            return 0.0
        if parts is not None:
            first, second = parts.first, parts.second
        else:
            half = _first(batch, batch.num_cases // 2)
            _, first = half.value_and_grad()
            scalar, share = gradient.dtype.type, half.weight / batch.weight
            second = (gradient - scalar(share) * first) / scalar(1.0 - share)
        return dot(first, self.preconditioner @ second, threads) / whole

    def _move(
        self,
        matrix: Fisher,
        gradient: Array,
        direction: Array,
        velocity: Array | None,
        damping: float,
        control: Controller,
        share: float,
    ) -> tuple[Controller, Update, Array]:
        """The displacement: by the model of the batch, or by the controller's rates."""
        if share == 1.0 and control.wants_rate:
            control = control.with_rate(self._best_rate(matrix, gradient, direction, damping))
        scalar = direction.dtype.type
        if control.is_exact or math.isnan(control.log_rate):
            update = rescale(matrix, gradient, direction, velocity, damping, fixed=False)
            update = update.scaled(control.exact_factor * share)
            return control, update, update.d
        control, rates = control.rates()
        along = scalar(share * rates.rate) * direction
        velocity = along if velocity is None else scalar(rates.momentum) * velocity + along
        d = scalar(rates.momentum) * velocity + along
        square = dot(d, d, matrix.num_threads)
        return control, Update(d, rates.rate, rates.momentum, math.nan, square), velocity

    @staticmethod
    def _best_rate(matrix: Fisher, gradient: Array, direction: Array, damping: float) -> float:
        """-g'D / D'(F + l2 I + damping I)D."""
        threads = matrix.num_threads
        form = matrix.quadratic_form(direction) + damping * dot(direction, direction, threads)
        return -dot(gradient, direction, threads) / form if form > 0.0 else math.nan


def _first(batch: Batch, count: int) -> Batch:
    """The batch of the first cases; batches are drawn at random."""
    count = min(count, batch.num_cases)
    if count == batch.num_cases:
        return batch
    assert batch.targets is not None
    return batch.take(np.arange(count), batch.targets[:count])
