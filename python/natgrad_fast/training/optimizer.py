"""Natural-gradient optimizer: one step, and the loop over epochs and mini-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    as_cases,
    as_count,
    as_name,
    as_num_threads,
    as_number,
    as_real,
    as_sample_weight,
    core_for,
)
from ..linear.results import SolveInfo, Status
from ..losses.base import Loss
from ..losses.standard import as_loss
from ..model.batch import Objective, value
from ..model.mlp import MLP, as_net
from ..operators.curvature import GGN, CurvatureMatrix, Fisher, curvature_of_objective
from ..solvers.cg import CG
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .history import EpochInfo, History, StepInfo

__all__ = ["NaturalGradient"]

_CURVATURES: dict[str, type[CurvatureMatrix]] = {"fisher": Fisher, "ggn": GGN}


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
    curvature : {"fisher", "ggn"}
        The matrix B.
    solver : solvers.CG or "auto"
        How to solve; "auto" is ``solvers.CG()`` with its defaults.
    damping : DampingPolicy or float, optional
        ``LevenbergMarquardt(1.0)`` by default; a number stands for ``Tikhonov(number)``.
    momentum : bool
        Whether learning_rate and momentum minimise the damped quadratic model over the new
        direction and the previous step (the 2 x 2 system of K-FAC, Martens & Grosse 2015, sec. 7).
        Otherwise they are 1 and 0.
    l2 : float
        Weight decay, part of the objective and of B.
    seed : int
        Order of the mini-batches in `fit`.
    num_threads : int, optional
        Training has the same bits for any number.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong type or range.
    """

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        *,
        curvature: str = "fisher",
        solver: CG | str = "auto",
        damping: DampingPolicy | float | None = None,
        momentum: bool = True,
        l2: float = 0.0,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.net = as_net(net)
        self.loss = as_loss(loss)
        self._matrix_kind = _CURVATURES[as_name(curvature, "curvature", _CURVATURES)]
        if not (isinstance(solver, CG) or solver == "auto"):
            raise TypeError(f'solver must be "auto" or one of natgrad_fast.solvers, got {solver!r}')
        self.solver = solver if isinstance(solver, CG) else CG()
        self.damping_policy = _as_policy(damping)
        self.momentum = bool(momentum)
        self.l2 = as_number(l2, "l2", minimum=0.0)
        self.num_threads = as_num_threads(num_threads)
        self._rng = np.random.default_rng(as_count(seed, "seed", 0))
        self._step = 0
        self._last_solution: Any = None  # (P,), of the last solve: the next one's start
        self._last_update: Any = None  # (P,), d_prev
        self._core = core_for(net.dtype)

    @property
    def damping(self) -> float:
        """Damping of the next step."""
        return self.damping_policy.value

    def step(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> StepInfo:
        """Take one step on a batch.

        Parameters
        ----------
        X : (N, d_0) array_like
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
            On Ctrl-C; nothing has changed then.

        Notes
        -----
        Cost: one gradient, the products of the solver, up to two linearised and one plain forward
        pass.
        """
        start = time.perf_counter()
        objective = Objective(
            self.net,
            self.loss,
            X,
            y,
            sample_weight=sample_weight,
            l2=self.l2,
            num_threads=self.num_threads,
        )
        linearization = objective.linearize()
        loss, gradient = objective.value_and_grad(linearization)
        damping = self.damping_policy.value
        gradient_norm = math.sqrt(self._dot(gradient, gradient))
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return self._reject_before_solve(loss, gradient_norm, damping, start)
        matrix = curvature_of_objective(self._matrix_kind, objective, linearization)
        result = self.solver.solve(matrix, gradient, damping, self._last_solution)
        if result.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        update, alpha, mu, change = self._rescale(matrix, gradient, result.x, damping)

        candidate = self.net.params + update
        new_loss = objective.value(candidate)
        accepted = math.isfinite(new_loss) and new_loss <= loss
        ratio = _reduction_ratio(loss, new_loss, change)
        if accepted:
            self.net.params[...] = candidate
            self._last_update = update
        finite = bool(self._core.all_finite(result.x, num_threads=1))
        self._last_solution = result.x if finite and accepted else None
        self.damping_policy.update(ratio, accepted)
        self._step += 1
        return StepInfo(
            step=self._step - 1,
            loss=loss,
            new_loss=new_loss,
            reduction_ratio=ratio,
            damping=damping,
            gradient_norm=gradient_norm,
            step_norm=math.sqrt(self._dot(update, update)) if accepted else 0.0,
            learning_rate=alpha,
            momentum=mu,
            accepted=accepted,
            solve=result.info,
            seconds=time.perf_counter() - start,
        )

    def _dot(self, v: Any, w: Any) -> float:
        return float(self._core.dot(v, w, num_threads=self.num_threads))

    def _reject_before_solve(
        self, loss: float, gradient_norm: float, damping: float, start: float
    ) -> StepInfo:
        self.damping_policy.update(math.nan, False)
        self._last_solution = None
        self._step += 1
        nan = math.nan
        return StepInfo(
            step=self._step - 1,
            loss=loss,
            new_loss=loss,
            reduction_ratio=nan,
            damping=damping,
            gradient_norm=gradient_norm,
            step_norm=0.0,
            learning_rate=0.0,
            momentum=0.0,
            accepted=False,
            solve=SolveInfo(Status.NON_FINITE, 0, nan, nan, 0, 0.0, 0.0),
            seconds=time.perf_counter() - start,
        )

    def _rescale(
        self, matrix: Any, gradient: Any, solution: Any, damping: float
    ) -> tuple[Any, float, float, float]:
        """Step d = alpha D + mu d_prev with D = -solution, alpha, mu, and M(d) - M(0).

        With A = B + l2 I + damping I:
            [alpha; mu] = -[D'AD  D'Ad_prev; d_prev'AD  d_prev'Ad_prev]^+ [g'D; g'd_prev]
            M(d) - M(0) = g'd + d'Ad / 2,     less damping |d|^2 / 2 where the policy says
            "undamped".
        """
        directions = [-solution]
        if self.momentum and self._last_update is not None:
            directions.append(self._last_update)
        n = len(directions)
        if n == 1:
            forms = np.array([[matrix.core.quadratic_form(directions[0], directions[0])]])
        else:
            vv, vw, ww = matrix.core.quadratic_forms(*directions)
            forms = np.array([[vv, vw], [vw, ww]])
        slopes = np.array([self._dot(gradient, v) for v in directions])
        dots = np.array([[self._dot(v, w) for v in directions] for w in directions])
        a = forms + damping * dots
        if not (np.isfinite(a).all() and np.isfinite(slopes).all()):
            return directions[0], 1.0, 0.0, math.nan
        factors = np.zeros(n)
        factors[0] = 1.0
        if self.momentum:
            # Cut-off: below the rounding errors of the quadratic forms the two directions are
            # parallel.
            cutoff = float(np.finfo(self.net.dtype).eps)
            factors = -np.linalg.pinv(a, rcond=cutoff, hermitian=True) @ slopes
        update = sum(self.net.dtype.type(f) * v for f, v in zip(factors, directions, strict=True))
        change = float(slopes @ factors + 0.5 * factors @ a @ factors)
        if self.damping_policy.denominator == "undamped":
            change -= 0.5 * damping * self._dot(update, update)
        return update, float(factors[0]), float(factors[1]) if n == 2 else 0.0, change

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        sample_weight: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        callbacks: Iterable[Callable[[StepInfo], Any]] = (),
        progress: bool = False,
        time_limit: float | None = None,
    ) -> History:
        """Train for some epochs.

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
            Each is called with the `StepInfo` of every step; True ends the training.
        progress : bool
            Show a progress bar; needs tqdm (``pip install natgrad_fast[progress]``).
        time_limit : float, optional
            Seconds after which no further step begins.

        Returns
        -------
        History
            What was done until the end, a limit, a callback or Ctrl-C stopped it.

        Raises
        ------
        ValueError, TypeError
            For bad data or options, before anything has changed.
        ImportError
            If `progress` is asked for and tqdm is missing.
        """
        data = _Data(self, X, y, sample_weight)
        epochs = as_count(epochs, "epochs", 0)
        size = data.num_cases
        if batch_size is not None:
            size = min(size, as_count(batch_size, "batch_size", 1))
        if time_limit is not None:
            time_limit = as_number(time_limit, "time_limit", minimum=0.0)
        callbacks = _as_callbacks(callbacks)
        check = None if validation is None else _as_validation(self, validation)
        steps_per_epoch = -(-data.num_cases // size)
        bar = _progress_bar(epochs * steps_per_epoch) if progress else None
        history = History()
        start = time.perf_counter()
        try:
            for epoch in range(epochs):
                epoch_start = time.perf_counter()
                first = len(history.steps)
                for batch in self._batches(data, size):
                    if time_limit is not None and time.perf_counter() - start >= time_limit:
                        history.stop_reason = "time_limit"
                        break
                    info = self.step(*batch)
                    history.steps.append(info)
                    if bar is not None:
                        bar.set_postfix(loss=f"{info.loss:.4g}", refresh=False)
                        bar.update()
                    # No generator: every callback sees every step.
                    if any([bool(callback(info)) for callback in callbacks]):
                        history.stop_reason = "callback"
                        break
                    if not info.accepted and info.damping >= self.damping_policy.maximum:
                        history.stop_reason = "damping_limit"
                        break
                if len(history.steps) > first:
                    history.epochs.append(
                        EpochInfo(
                            epoch=epoch,
                            loss=float(np.mean([s.loss for s in history.steps[first:]])),
                            validation_loss=None if check is None else check(),
                            seconds=time.perf_counter() - epoch_start,
                        )
                    )
                if history.stop_reason != "epochs":
                    break
        except KeyboardInterrupt:
            history.stop_reason = "interrupted"
        finally:
            if bar is not None:
                bar.close()
        history.seconds = time.perf_counter() - start
        return history

    def _batches(self, data: _Data, size: int) -> Iterator[tuple[Any, Any, Any]]:
        if size == data.num_cases:
            yield data.x, data.y, data.weight
            return
        order = self._rng.permutation(data.num_cases)
        for first in range(0, data.num_cases, size):
            cases = order[first : first + size]
            weight = None if data.weight is None else data.weight[cases]
            if weight is not None and not weight.any():
                continue  # nothing in it counts
            yield data.x[cases], data.y[cases], weight

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the net: copies, plain types and arrays.

        Returns
        -------
        dict
            Damping, step number, warm start, previous step and random state.
        """
        return {
            "step": self._step,
            "damping": self.damping_policy.state_dict(),
            "last_solution": _copy(self._last_solution),
            "last_update": _copy(self._last_update),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; training then goes on bit for bit."""
        vectors = {}
        for name in ("last_solution", "last_update"):
            vector = _copy(state[name])
            if vector is not None and (
                vector.shape != (self.net.num_params,) or vector.dtype != self.net.dtype
            ):
                raise ValueError(
                    f"{name} has shape {vector.shape} and dtype {vector.dtype}, wanted "
                    f"({self.net.num_params},) and {self.net.dtype}"
                )
            vectors[name] = vector
        self.damping_policy.load_state_dict(state["damping"])
        self._rng.bit_generator.state = state["rng"]
        self._step = int(state["step"])
        self._last_solution, self._last_update = vectors["last_solution"], vectors["last_update"]


class _Data:
    """The whole of the data, checked once: X and y in the form of the core."""

    def __init__(self, optimizer: NaturalGradient, X: Any, y: Any, sample_weight: Any) -> None:
        net = optimizer.net
        self.x = as_cases(X, net.sizes[0], net.dtype)
        self.num_cases = self.x.shape[0]
        optimizer.loss.targets(y, self.num_cases, net.sizes[-1], net.dtype)
        self.y = as_real(y, "y")  # not the core's form: labels are small, rows of probabilities not
        self.weight = as_sample_weight(sample_weight, self.num_cases)


def _as_policy(damping: DampingPolicy | float | None) -> DampingPolicy:
    if damping is None:
        return LevenbergMarquardt(1.0)
    if isinstance(damping, DampingPolicy):
        return damping
    return Tikhonov(as_number(damping, "damping", minimum=0.0))


def _as_callbacks(callbacks: Any) -> list[Callable[[StepInfo], Any]]:
    if callable(callbacks):
        return [callbacks]
    result = list(callbacks)
    for callback in result:
        if not callable(callback):
            raise TypeError(f"callbacks must be callable, got {callback!r}")
    return result


def _as_validation(optimizer: NaturalGradient, validation: Any) -> Callable[[], float]:
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise TypeError("validation must be a pair (X, y)")

    def check() -> float:
        return value(
            optimizer.net,
            optimizer.loss,
            *validation,
            l2=optimizer.l2,
            num_threads=optimizer.num_threads,
        )

    Objective(optimizer.net, optimizer.loss, *validation)  # its errors belong to the call
    return check


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install natgrad_fast[progress]") from None
    return tqdm(total=total, unit="step")


def _reduction_ratio(loss: float, new_loss: float, change: float) -> float:
    if not math.isfinite(new_loss):
        return -math.inf
    return (new_loss - loss) / change if change != 0.0 else math.nan


def _copy(vector: Any) -> Any:
    return None if vector is None else np.array(vector)
