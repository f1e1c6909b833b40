"""Natural-gradient optimizer: one step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import all_finite, as_count, as_decay, as_name, as_num_threads, dot
from .._state import StateReader, inside
from .._typing import Array, State
from ..linear.results import SolveInfo, Status
from ..losses import Loss, LossName, as_loss
from ..model.batch import Batch
from ..model.mlp import MLP, as_net
from ..operators import GGN, EmpiricalFisher, Fisher, Hessian
from ..operators.curvature import CurvatureMatrix
from ..solvers import StepSolver, as_solver
from .callbacks import Callback
from .convergence import Tolerance
from .damping import DampingPolicy, as_policy
from .fit import fit
from .generator import as_generator
from .history import History, StepInfo
from .rescale import Update, rescale

__all__ = ["NaturalGradient"]

CURVATURES: dict[str, type[CurvatureMatrix]] = {
    "fisher": Fisher,
    "ggn": GGN,
    "empirical_fisher": EmpiricalFisher,
    "hessian": Hessian,
}


class _Progress(NamedTuple):
    """Where a run is; replaced as a whole, after the parameters."""

    step: int = 0  # number of the next step
    last_solution: Array | None = None  # (P,), of the last solve: the next one's start
    last_update: Array | None = None  # (P,), d_prev
    info: StepInfo | None = None  # of the last step
    params: Array | None = None  # (P,), where the last accepted step led to


class NaturalGradient:
    """Damped natural-gradient descent (Martens, arXiv 1412.1193; Hessian-free, Martens 2010).

    A step solves (B + damping I) D = -g on the batch, rescales, and keeps the result only if the
    objective of the batch does not grow:

        params += learning_rate * D + momentum * d_prev

    Parameters
    ----------
    net : MLP
        Trained in place.
    loss : str or Loss
    curvature : {"fisher", "ggn", "empirical_fisher", "hessian"}
        The matrix B. A Hessian, or the GGN of a loss that is no exponential family, may be
        indefinite: "cg" then stops at negative curvature, and the damping rises.
    solver : solvers.StepSolver or "auto"
        How to solve; "auto" is ``solvers.CG()`` with its defaults. The optimizer works with a copy.
    damping : DampingPolicy or float, optional
        ``LevenbergMarquardt(1.0)`` by default; a number stands for ``Tikhonov(number)``.
    momentum : bool
        Whether learning_rate and momentum minimise the damped quadratic model over the new
        direction and the previous step (the 2 x 2 system of K-FAC, Martens & Grosse 2015, sec. 7).
        Otherwise they are 1 and 0.
    l2 : float or (float, float)
        Weight decay of all parameters, or of weights and of biases; part of the objective and of B.
    seed : int
        Order of the mini-batches in `fit`, and draws of the solver.
    num_threads : int, optional
        Training has the same bits for any number.

    Attributes
    ----------
    net, loss, curvature, momentum, l2, num_threads
        As given; the solver as `solver`.
    last_info : StepInfo or None
        Record of the last step.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong type or range.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error", l2=1e-6)
    >>> history = opt.fit(X, np.sin(3 * X), epochs=30)
    >>> history.steps[-1].new_loss < 1e-3
    True
    """

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        *,
        curvature: Literal["fisher", "ggn", "empirical_fisher", "hessian"] = "fisher",
        solver: StepSolver | Literal["auto"] = "auto",
        damping: DampingPolicy | float | None = None,
        momentum: bool = True,
        l2: float | tuple[float, float] = 0.0,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.net = as_net(net)
        self.loss = as_loss(loss)
        self.loss.num_targets(net.sizes[-1])  # refuses widths that the loss is not made for
        self.curvature = as_name(curvature, "curvature", CURVATURES)
        self._policy = as_policy(damping)
        self.momentum = bool(momentum)
        self._l2 = as_decay(l2, "l2")
        self.num_threads = as_num_threads(num_threads)
        seed = as_count(seed, "seed", 0)
        self._rng = np.random.default_rng(seed)
        self.solver = copy.copy(as_solver(solver))
        self.solver.init(self.net, self.loss, seed=seed, num_threads=self.num_threads)
        self._progress = _Progress()

    def __repr__(self) -> str:
        """What is trained, and how."""
        return (
            f"NaturalGradient({self.net!r}, {self.loss!r}, curvature={self.curvature!r}, "
            f"solver={self.solver!r}, damping={self._policy!r}, step={self._progress.step})"
        )

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay: a number, or (weights, biases) if they differ."""
        return self._l2.shown

    @property
    def damping(self) -> float:
        """Damping of the next step; a number or policy that is assigned replaces the policy."""
        return self._policy.value

    @damping.setter
    def damping(self, damping: DampingPolicy | float) -> None:
        self._policy = as_policy(damping)

    @property
    def damping_policy(self) -> DampingPolicy:
        """What chooses the damping; can be replaced by a number or policy."""
        return self._policy

    @damping_policy.setter
    def damping_policy(self, damping: DampingPolicy | float) -> None:
        self._policy = as_policy(damping)

    @property
    def last_info(self) -> StepInfo | None:
        """Record of the last step; None before the first."""
        return self._progress.info

    def step(
        self,
        X: ArrayLike | Batch,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> StepInfo:
        """Take one step on a batch.

        Parameters
        ----------
        X : (N, d_0) array_like, or Batch
            A `Batch` of the same net, loss and l2 comes with its targets and weights.
        y : array_like
            Targets as in `value_and_grad`.
        sample_weight : (N,) array_like, optional

        Returns
        -------
        StepInfo
            ``accepted`` is False if the step would have made the objective larger or non-finite:
            the parameters then keep their bits and the damping is raised.

        Raises
        ------
        ValueError, TypeError
            For a bad batch; nothing has changed then.
        KeyboardInterrupt
            On Ctrl-C. Either nothing has changed, or the whole step was taken and `last_info` is
            its record. Likewise for whatever a damping policy or a solver of the user's raises.

        Notes
        -----
        Cost: one gradient, the products of the solver, up to two linearised and one plain forward
        pass.
        """
        start = time.perf_counter()
        batch = self._as_batch(X, y, sample_weight)
        policy, solver = self._policy.state_dict(), self.solver.state_dict()
        before = self._progress
        params = None
        try:
            candidate, progress, accepted = self._attempt(batch, start)
            if accepted:
                params = self.net.params.copy()
                self.net.params[...] = candidate
            self._progress = progress
        except BaseException:
            if self._progress is before:
                if params is not None:
                    self.net.params[...] = params
                self._policy.load_state_dict(policy)
                self.solver.load_state_dict(solver)
            raise
        assert progress.info is not None
        return progress.info

    def _as_batch(
        self, X: ArrayLike | Batch, y: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> Batch:
        if not isinstance(X, Batch):
            if y is None:
                raise ValueError("y is missing: the objective depends on targets")
            return Batch(
                self.net,
                self.loss,
                X,
                y,
                sample_weight=sample_weight,
                l2=self._l2,
                num_threads=self.num_threads,
            )
        if y is not None or sample_weight is not None:
            raise TypeError("a Batch comes with its targets and weights: leave y and weights out")
        if X.net is not self.net or X.loss != self.loss or X.l2 != self.l2:
            raise ValueError(
                f"batch is of {X.net!r}, {X.loss!r} and l2 = {X.l2}, the optimizer of "
                f"{self.net!r}, {self.loss!r} and l2 = {self.l2}"
            )
        return X

    def _attempt(self, batch: Batch, start: float) -> tuple[Array | None, _Progress, bool]:
        """The next parameters and progress, and whether the step is accepted."""
        linearization = batch.linearize()
        loss, gradient = batch.value_and_grad(linearization)
        damping = self._policy.value
        norm = math.sqrt(dot(gradient, gradient, self.num_threads))
        past = self._progress
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if not (is_finite and all_finite(self.net.params, self.num_threads)):
            # No damping helps where one stands.
            info = self._record(batch, start, (loss, loss, math.nan), damping, norm)
            return None, past._replace(step=info.step + 1, last_solution=None, info=info), False
        matrix = CURVATURES[self.curvature].on(batch, linearization)
        self.solver.update(batch, linearization)
        self.solver.refresh(damping)
        x, solve = self.solver.direction(matrix, gradient, damping, past.last_solution)
        if solve.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        last = past.last_update
        update = rescale(matrix, gradient, -x, last, damping, fixed=not self.momentum)
        candidate = self.net.params + update.d
        new_loss = batch.value(candidate)
        accepted = math.isfinite(new_loss) and new_loss <= loss
        ratio = self._reduction_ratio(loss, new_loss, update, damping)
        at_rounding = math.isfinite(new_loss) and self._is_rounding(update, loss)
        # From numbers that are rounding nothing is learned, whichever way they fell.
        self._policy.update(math.nan if at_rounding else ratio, accepted or at_rounding)
        self.solver.accepted(accepted)
        step = update if accepted else update._replace(square=0.0)
        info = self._record(
            batch, start, (loss, new_loss, ratio), damping, norm, step, solve, accepted, at_rounding
        )
        if not accepted:
            return None, past._replace(step=info.step + 1, last_solution=None, info=info), False
        solution = x if all_finite(x) else None
        return candidate, _Progress(info.step + 1, solution, update.d, info, candidate), True

    def _is_rounding(self, update: Update, loss: float) -> bool:
        """Whether the step, or the decrease that it promises, is below the dtype's rounding."""
        eps = float(np.finfo(self.net.dtype).eps)
        params = self.net.params
        length = math.sqrt(dot(params, params, self.num_threads))
        is_short = math.sqrt(update.square) <= 4.0 * eps * length
        return is_short or abs(update.change) <= eps * abs(loss)

    def restore(self) -> bool:
        """Put back the parameters of the last accepted step where the present ones are not finite.

        Returns
        -------
        bool
            Whether the present ones were not finite. Without such a step they stay.
        """
        if all_finite(self.net.params, self.num_threads):
            return False
        if self._progress.params is not None:
            self.net.params[...] = self._progress.params
        return True

    def _reduction_ratio(
        self, loss: float, new_loss: float, update: Update, damping: float
    ) -> float:
        """Actual over predicted change, the latter without damping where the policy says so."""
        if not math.isfinite(new_loss):
            return -math.inf
        change = update.change
        if self._policy.denominator == "undamped":
            change -= 0.5 * damping * update.square
        return (new_loss - loss) / change if change != 0.0 else math.nan

    def _record(
        self,
        batch: Batch,
        start: float,
        losses: tuple[float, float, float],
        damping: float,
        gradient_norm: float,
        update: Update | None = None,
        solve: SolveInfo | None = None,
        accepted: bool = False,
        at_rounding: bool = False,
    ) -> StepInfo:
        loss, new_loss, ratio = losses
        return StepInfo(
            step=self._progress.step,
            loss=loss,
            new_loss=new_loss,
            reduction_ratio=ratio,
            damping=damping,
            gradient_norm=gradient_norm,
            step_norm=0.0 if update is None else math.sqrt(update.square),
            learning_rate=0.0 if update is None else update.learning_rate,
            momentum=0.0 if update is None else update.momentum,
            accepted=accepted,
            solve=_NO_SOLVE if solve is None else solve,
            seconds=time.perf_counter() - start,
            batch_size=batch.num_cases,
            solver=type(self.solver).__name__,
            at_rounding=at_rounding,
        )

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        sample_weight: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        callbacks: Callback | Iterable[Callback] = (),
        progress: bool = False,
        time_limit: float | None = None,
        ftol: Tolerance = "auto",
        gtol: Tolerance = "auto",
        xtol: Tolerance = "auto",
    ) -> History:
        """Train for some epochs, or until nothing is to be gained any more.

        Parameters
        ----------
        X, y, sample_weight : array_like
            The data, as in `step`.
        epochs : int
        batch_size : int, optional
            Cases per step, drawn without replacement in an order from `seed`; the last batch of an
            epoch may be smaller. All cases at once by default.
        validation : (X, y), optional
            Data whose objective is recorded after every epoch.
        callbacks : iterable of callables
            Each is called with a `callbacks.TrainingContext` after every step. True, or
            `callbacks.StopTraining`, ends the training; anything else that is returned does not.
        progress : bool
            Show a progress bar; needs tqdm (``pip install natgrad_fast[progress]``).
        time_limit : float, optional
            Seconds after which no further step begins.
        ftol, gtol, xtol : float, "auto" or None
            Where all cases are one batch, the training ends when the objective fell by less than
            `ftol` of it over ten accepted steps (or promises less than rounding three times in a
            row), when the gradient is `gtol` of the longest one so far, or when an accepted step is
            `xtol` of the parameters. "auto" is 10 eps, eps and eps of the float type; None: never.

        Returns
        -------
        History
            What was done until the end, a limit, a tolerance, a callback or Ctrl-C stopped it.

        Raises
        ------
        ValueError, TypeError
            For bad data or options, before anything has changed.
        ImportError
            If `progress` is asked for and tqdm is missing.
        """
        return fit(
            self,
            X,
            y,
            epochs=epochs,
            batch_size=batch_size,
            sample_weight=sample_weight,
            validation=validation,
            callbacks=callbacks,
            progress=progress,
            time_limit=time_limit,
            tolerances=(ftol, gtol, xtol),
        )

    def state_dict(self) -> State:
        """Everything that a resumed run needs besides the net: copies, plain types and arrays.

        Returns
        -------
        dict
            What the state belongs to (architecture, loss, curvature, momentum, l2), step number,
            warm start, previous step, random state, and the states of damping and solver. The same
            for every instruction set and number of threads.
        """
        progress = self._progress
        return {
            **self._identity(),
            "step": progress.step,
            "last_solution": _copy(progress.last_solution),
            "last_update": _copy(progress.last_update),
            "damping": self._policy.state_dict(),
            "solver": self.solver.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; training then goes on bit for bit.

        Parameters
        ----------
        state : mapping

        Raises
        ------
        ValueError
            If anything in it does not fit, with the name of the leaf; nothing has changed then.
        """
        identity = self._identity()
        names = ("step", "last_solution", "last_update", "damping", "solver", "rng")
        reader = StateReader(state, "state", (*identity, *names))
        for name, wanted in identity.items():
            reader.same(name, wanted)
        size, dtype = (self.net.num_params,), self.net.dtype
        progress = _Progress(
            reader.integer("step"),
            reader.optional_array("last_solution", size, dtype),
            reader.optional_array("last_update", size, dtype),
        )
        rng = as_generator(reader)
        policy, solver = self._policy.state_dict(), self.solver.state_dict()
        try:
            with inside(reader.path("damping")):
                self._policy.load_state_dict(reader["damping"])
            with inside(reader.path("solver")):
                self.solver.load_state_dict(reader["solver"])
        except BaseException:
            self._policy.load_state_dict(policy)
            self.solver.load_state_dict(solver)
            raise
        self._rng, self._progress = rng, progress

    def _identity(self) -> State:
        return {
            "sizes": self.net.sizes,
            "activations": self.net.activations,
            "bias": self.net.layout[1],
            "dtype": str(self.net.dtype),
            "loss": repr(self.loss),
            "curvature": self.curvature,
            "momentum": self.momentum,
            "l2": tuple(self._l2),
            "solver_name": type(self.solver).__name__,
            "damping_name": type(self._policy).__name__,
        }


_NO_SOLVE = SolveInfo(Status.NON_FINITE, 0, math.nan, math.nan, 0, 0.0, 0.0)


def _copy(vector: Array | None) -> Array | None:
    return None if vector is None else np.array(vector)
