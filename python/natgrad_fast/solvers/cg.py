"""Conjugate gradients as a step solver: Hessian-free optimisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .._arrays import as_count, as_name, as_number
from .._state import StateReader, inside
from .._typing import Array, Linearization, State
from ..linear.cg import cg
from ..linear.results import BlockCGResult, CGResult
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.base import Operator
from ..operators.linear_map import as_preconditioner
from ..preconditioners.base import Preconditioner
from ..preconditioners.named import PRECONDITIONERS
from .base import Direction, StepSolver

__all__ = ["CG"]


@dataclass(frozen=True)
class CG(StepSolver):
    """Hessian-free: conjugate gradients on products with the curvature matrix (Martens 2010).

    Parameters
    ----------
    max_iter : int
        Most iterations per step.
    rtol : float
        Residual tolerance relative to the gradient, for stopping="residual".
    stopping : {"relative_progress", "residual"}
        See `natgrad_fast.cg`.
    preconditioner : str, operator or (P,) array, optional
        Approximation of the inverse of the damped curvature matrix. A name ("kfac", "ekfac",
        "tkfac", "tekfac", "kl", "diagonal", "nystrom") stands for that preconditioner with one draw
        per case and its other defaults. Named ones, and preconditioners of the net, are updated
        with the batch and refreshed with the damping (and l2) of every step; others stay as they
        are.
    warm_start : float or callable
        Factor in [0, 1] on the last solution, with which the next solve starts; 0 starts from zero.
        Or ``schedule(step) -> factor`` for the optimizer's steps 0, 1, ..: raised from .95 towards
        .995 or more it plays the part of a momentum (Sutskever et al. 2013), as in
        ``lambda step: min(0.995, 1.0 - 0.5 / (10.0 + step / 5.0))``.
    backtracking : bool
        Whether iterates i = ceil(5 * 1.3**j), j = 0, 1, .. are kept, and the optimizer goes back
        from the last one as long as its objective does not rise (Martens 2010). The next solve
        starts from the last one all the same. Memory: 12 vectors (P,) for 100 iterations, 15 for
        250; time: one forward pass for each iterate that is looked at, a quarter of an iteration.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([2, 8, 1], seed=0)
    >>> solver = ng.solvers.CG(max_iter=20, preconditioner="kfac")
    >>> opt = ng.NaturalGradient(net, "squared_error", solver=solver)
    >>> opt.step(np.eye(2), [1.0, -1.0]).accepted
    True
    """

    max_iter: int = 100
    rtol: float = 1e-3
    stopping: Literal["relative_progress", "residual"] = "relative_progress"
    preconditioner: Any = None
    warm_start: float | Callable[[int], float] = 0.95
    backtracking: bool = False

    # What `init` makes, in a copy that an optimizer works with.
    _current: ClassVar[Any] = None  # the preconditioner, made if it was named
    _adaptive: ClassVar[bool] = False  # whether it follows the steps
    _decay: ClassVar[float] = 0.0  # l2 of the last batch
    _num_steps: ClassVar[int] = 0  # updates so far: where a schedule is

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_count(self.max_iter, "max_iter", 1)
        as_number(self.rtol, "rtol", minimum=0.0)
        as_name(self.stopping, "stopping", ("residual", "relative_progress"))
        if not callable(self.warm_start):
            _as_factor(self.warm_start, "warm_start")
        if not isinstance(self.backtracking, bool):
            raise TypeError(f"backtracking must be True or False, got {self.backtracking!r}")
        if isinstance(self.preconditioner, str):
            as_name(self.preconditioner, "preconditioner", PRECONDITIONERS)

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Make the preconditioner that is named; see `StepSolver.init`."""
        chosen = self.preconditioner
        if isinstance(chosen, str):
            chosen = PRECONDITIONERS[chosen](net, loss, seed=seed, num_threads=num_threads)
        adaptive = isinstance(chosen, Preconditioner) and chosen.follows_batches
        if adaptive:
            chosen.check_belongs(net, loss)
        elif chosen is not None:
            as_preconditioner(chosen, net.num_params, net.dtype, net.layout)
        vars(self).update(_current=chosen, _adaptive=adaptive, _decay=0.0, _num_steps=0)

    @property
    def keeps_iterates(self) -> bool:
        """Whether `direction` gives earlier iterates: with `backtracking`."""
        return self.backtracking

    @property
    def current_preconditioner(self) -> Any:
        """What preconditions the solves of an optimizer: made by `init`, None without one."""
        return self._current

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Measure the preconditioner's statistics; see `StepSolver.update`.

        Where they are not finite it stays as it was.
        """
        vars(self).update(_decay=batch.decay.weights, _num_steps=self._num_steps + 1)
        if self._adaptive:
            try:
                self._current.update_on(batch, linearization)
            except FloatingPointError:
                pass

    def refresh(self, damping: float) -> None:
        """Invert the preconditioner for damping + l2; see `StepSolver.refresh`."""
        if self._adaptive and damping + self._decay > 0.0 and self._current.num_updates > 0:
            self._current.refresh(damping + self._decay)

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Solve by `natgrad_fast.cg`; see `StepSolver.direction`."""
        factor = self._factor()
        x0 = None if start is None or factor == 0.0 else g.dtype.type(factor) * start
        result = cg(
            matrix,
            g,
            damping=damping,
            preconditioner=self._ready(),
            rtol=self.rtol,
            max_iter=self.max_iter,
            x0=x0,
            stopping=self.stopping,
            keep_iterates=self.backtracking,
        )
        return _direction_of(result)

    def _factor(self) -> float:
        """Factor of the start of this solve."""
        if not callable(self.warm_start):
            return float(self.warm_start)
        step = max(self._num_steps - 1, 0)
        return _as_factor(self.warm_start(step), "warm_start from the schedule")

    def within(
        self, matrix: Operator, g: Array, radius: float, damping: float
    ) -> tuple[Direction, float]:
        """Solve by iterations that end at the boundary (Steihaug); see `StepSolver.within`."""
        self.refresh(damping)
        result = cg(
            matrix,
            g,
            preconditioner=self._ready(),
            rtol=self.rtol,
            max_iter=self.max_iter,
            stopping=self.stopping,
            trust_radius=radius,
            keep_iterates=self.backtracking,
        )
        return _direction_of(result), 0.0

    def _ready(self) -> Any:
        """The preconditioner, where it has a damping for which it could be inverted."""
        is_ready = not self._adaptive or self._current.damping is not None
        return self._current if is_ready else None

    def state_dict(self) -> State:
        """State of the preconditioner, if it changes from step to step, and place in a schedule."""
        state: State = {"preconditioner": self._current.state_dict()} if self._adaptive else {}
        return state | ({"num_steps": self._num_steps} if callable(self.warm_start) else {})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `StepSolver.load_state_dict`."""
        names = ("preconditioner",) if self._adaptive else ()
        if not callable(self.warm_start):
            StateReader(state, "state", names)
            num_steps = self._num_steps
        else:
            num_steps = StateReader(state, "state", (*names, "num_steps")).integer("num_steps")
        if self._adaptive:
            with inside("state['preconditioner']"):
                self._current.load_state_dict(state["preconditioner"])
        vars(self).update(_num_steps=num_steps)


def _as_factor(x: object, name: str) -> float:
    """A number in [0, 1]."""
    factor = as_number(x, name, minimum=0.0)
    if factor > 1.0:
        raise ValueError(f"{name} must be <= 1, got {factor}")
    return factor


def _direction_of(result: CGResult | BlockCGResult) -> Direction:
    assert isinstance(result, CGResult)
    kept = (i.x for i in result.iterates if i.iteration < result.iterations)
    return Direction(result.x, result.info, tuple(kept))
