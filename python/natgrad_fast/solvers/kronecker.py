"""The inverse of a Kronecker-factored approximation as the step itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from .._arrays import as_count, as_name, as_number, dot
from .._state import StateReader, inside
from .._typing import Array, Linearization, State
from ..linear.cg import cg
from ..linear.results import CGResult, SolveInfo, Status
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.base import Operator
from ..preconditioners.kfac import EKFAC, KFAC, KLFAC, TEKFAC, TKFAC
from ..preconditioners.kronecker import KroneckerPreconditioner
from .base import Direction, StepSolver

__all__ = ["Kronecker"]

KINDS: dict[str, Callable[..., KroneckerPreconditioner]] = {
    "kfac": KFAC,
    "ekfac": EKFAC,
    "tkfac": TKFAC,
    "tekfac": TEKFAC,
    "kl": KLFAC,
}


@dataclass(frozen=True)
class Kronecker(StepSolver):
    """K-FAC and its relatives: the damped inverse of the approximation times the gradient.

    Its cost does not grow with the batch, and the optimizer's rescaling on the exact curvature
    matrix makes up for its scale (Martens & Grosse, arXiv 1503.05671, section 6.4). Where a batch
    holds all data, it goes a long way before solving more exactly pays.

    Parameters
    ----------
    kind : {"kfac", "ekfac", "tkfac", "tekfac", "kl"}
        The approximation, as `KFAC`, `EKFAC`, `TKFAC`, `TEKFAC`, `KLFAC`.
    cg_iterations : int
        Iterations of conjugate gradients on the exact matrix, preconditioned by the approximation,
        that refine the direction. On mini-batches more than a few make the net fit the batch.
    samples : int, optional
        Draws per case of the statistics; None for the exact expectation.
    ema : float
        Weight of the past in the averages, in [0, 1).
    factor_damping : float, optional
        Damping of the approximation, absolute; that of the model, and l2, by default.
    update_period, refresh_period : int
        Steps between two measurements of the statistics, and between two inversions; the first
        three steps do both.

    Notes
    -----
    A step costs one application, 2 sum_l d_l n_l (d_l + n_l) flops with n_l = d_{l-1} + 1;
    statistics cost `samples` backward sweeps, an inversion O(sum_l n_l^3 + d_l^3).

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([2, 8, 1], seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error", solver=ng.solvers.Kronecker("ekfac"))
    >>> opt.step(np.eye(2), [1.0, -1.0]).accepted
    True
    """

    kind: Literal["kfac", "ekfac", "tkfac", "tekfac", "kl"] = "kfac"
    cg_iterations: int = 0
    samples: int | None = 1
    ema: float = 0.95
    factor_damping: float | None = None
    update_period: int = 1
    refresh_period: int = 1

    # What `init` makes, in a copy that an optimizer works with.
    _current: ClassVar[Any] = None
    _num_steps: ClassVar[int] = 0
    _decay: ClassVar[float] = 0.0  # l2 of the last batch

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_name(self.kind, "kind", KINDS)
        as_count(self.cg_iterations, "cg_iterations", 0)
        if self.samples is not None:
            as_count(self.samples, "samples", 1)
        if as_number(self.ema, "ema", minimum=0.0) >= 1.0:
            raise ValueError(f"ema must be < 1, got {self.ema}")
        if self.factor_damping is not None:
            as_number(self.factor_damping, "factor_damping", above=0.0)
        as_count(self.update_period, "update_period", 1)
        as_count(self.refresh_period, "refresh_period", 1)

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Make the approximation; see `StepSolver.init`."""
        made = KINDS[self.kind](
            net, loss, samples=self.samples, ema=self.ema, seed=seed, num_threads=num_threads
        )
        vars(self).update(_current=made, _num_steps=0, _decay=0.0)

    @property
    def approximation(self) -> Any:
        """The approximation of an optimizer, a `KFAC` or relative; None before `init`."""
        return self._current

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Measure the statistics, if they are due; where not finite they stay as they were."""
        vars(self).update(_num_steps=self._num_steps + 1, _decay=batch.decay.weights)
        if self._is_due(self.update_period):
            try:
                self._current.update_on(batch, linearization)
            except FloatingPointError:
                pass

    def refresh(self, damping: float) -> None:
        """Invert, if it is due, for damping + l2 or `factor_damping`; see `StepSolver.refresh`."""
        current = self._current
        if current.num_updates == 0 or not (
            self._is_due(self.refresh_period) or current.damping is None
        ):
            return
        wanted = damping + self._decay if self.factor_damping is None else self.factor_damping
        eps = float(np.finfo(current.dtype).eps)
        current.refresh(max(wanted, eps * current.trace() / current.shape[0], 1e-30))

    def _is_due(self, period: int) -> bool:
        return self._num_steps <= 3 or self._num_steps % period == 0

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Apply the inverse, and refine by CG if that is asked for; see `StepSolver.direction`."""
        begin = time.perf_counter()
        current = self._current
        is_ready = current.damping is not None
        if self.cg_iterations > 0:
            result = cg(
                matrix,
                g,
                damping=damping,
                preconditioner=current if is_ready else None,
                rtol=0.0,
                max_iter=self.cg_iterations,
            )
            assert isinstance(result, CGResult)
            return Direction(result.x, result.info)
        x = current @ g if is_ready else g
        # The quadratic without products: that of the approximation, -g'x / 2 at its minimum.
        info = SolveInfo(
            Status.APPROXIMATE,
            iterations=0,
            residual_norm=math.nan,
            quadratic=-0.5 * dot(g, x),
            matvecs=0,
            seconds=time.perf_counter() - begin,
            flops=0.0,
        )
        return Direction(x, info)

    def state_dict(self) -> State:
        """State of the approximation, and the number of steps."""
        return {"approximation": self._current.state_dict(), "num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `StepSolver.load_state_dict`."""
        reader = StateReader(state, "state", ("approximation", "num_steps"))
        num_steps = reader.integer("num_steps")
        with inside("state['approximation']"):
            self._current.load_state_dict(state["approximation"])
        vars(self).update(_num_steps=num_steps)
