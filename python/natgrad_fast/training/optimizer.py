"""Natural-gradient optimizer: one step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Decay, all_finite, as_count, as_decay, as_name, as_num_threads
from .._typing import State
from ..losses import Loss, LossName, as_loss
from ..model.batch import Batch
from ..model.mlp import MLP, as_net
from ..solvers import StepSolver, as_solver
from .averaging import Averaging
from .callbacks import Callback
from .convergence import Tolerance
from .cursor import Cursor
from .damping import DampingPolicy, as_policy, check_policy
from .evidence import BayesianRegularization
from .exact import CURVATURES, ExactSteps
from .fit import fit
from .history import History, StepInfo
from .identity import identity
from .progress import Progress
from .rescale import as_momentum
from .schedule import BatchSchedule
from .state import load_optimizer_state, optimizer_state
from .step_cases import (
    as_batch,
    as_curvature_batch,
    as_share,
    check_backtracking,
    share_of,
)
from .stochastic import StochasticSteps
from .trials import StepCases

__all__ = ["NaturalGradient"]


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
        How to solve; "auto" is for a Fisher matrix or GGN ``solvers.Dense()`` of up to 300
        parameters and ``solvers.Kronecker()`` of more, else ``solvers.CG()``. The optimizer works
        with a copy.
    damping : DampingPolicy, float or "auto"
        "auto" is ``LevenbergMarquardt(1.0)``; a number stands for ``Tikhonov(number)``.
    momentum : bool or "auto"
        Whether learning_rate and momentum minimise the damped quadratic model over the new
        direction and the previous step (the 2 x 2 system of K-FAC, Martens & Grosse 2015, sec. 7),
        as with "auto". Otherwise they are 1 and 0, as they are where a policy bounds the step.
    l2 : float, (float, float) or BayesianRegularization
        Weight decay of all parameters, or of weights and of biases; part of the objective and of B.
        The last chooses it from the data, after every step.
    curvature_share : float
        Share in (0, 1] of a batch's cases that B, statistics and model are made of, every step the
        next ones in an order drawn from `seed`; gradient and acceptance remain those of all cases.
        A solve fits its few cases, so the model promises too much and the reduction ratio is too
        small, which the damping answers; `line_search` helps. Below 1, and with `line_search`,
        steps on mini-batches are judged on their own batch, as with a solver of one's own.
    line_search : bool
        Whether a step d that does not lower the objective by 1e-2 |g'd| is tried .8, .64, .. times
        as long, with as much less to show, 60 at most, before it is rejected. Damping learns from
        the whole step.
    seed : int
        Order of the mini-batches in `fit`, draws of the solver, order of curvature cases.
    num_threads : int, optional
        Training has the same bits for any number.

    Attributes
    ----------
    net, loss, curvature, momentum, l2, curvature_share, num_threads
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
        damping: DampingPolicy | float | Literal["auto"] | None = "auto",
        momentum: bool | Literal["auto"] = "auto",
        l2: float | tuple[float, float] | BayesianRegularization = 0.0,
        curvature_share: float = 1.0,
        line_search: bool = False,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.net = as_net(net)
        self.loss = as_loss(loss)
        self.loss.num_targets(net.sizes[-1])  # refuses widths that the loss is not made for
        self.curvature = as_name(curvature, "curvature", CURVATURES)
        policy = as_policy(None if isinstance(damping, str) and damping == "auto" else damping)
        check_policy(policy, self.loss, momentum)
        self.momentum = as_momentum(momentum)
        self.curvature_share = as_share(curvature_share)
        if not isinstance(line_search, bool):
            raise TypeError(f"line_search must be True or False, got {line_search!r}")
        # Mini-batches that do not see all data get steps that are not judged on themselves.
        self._is_automatic = (
            curvature == "fisher"
            and self.curvature_share == 1.0
            and not line_search
            and not isinstance(l2, BayesianRegularization)
            and isinstance(solver, str)
            and (damping is None or isinstance(damping, str))
            and isinstance(momentum, str)
        )
        self._evidence = l2 if isinstance(l2, BayesianRegularization) else None
        first = l2.initial if isinstance(l2, BayesianRegularization) else l2
        self._given_l2 = as_decay(first, "l2")
        self.num_threads = as_num_threads(num_threads)
        seed = as_count(seed, "seed", 0)
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        own = copy.copy(as_solver(solver, self.net, self.curvature))
        own.init(self.net, self.loss, seed=seed, num_threads=self.num_threads)
        self._exact = ExactSteps(
            self.curvature, self.momentum, own, policy, line_search, self._evidence
        )
        self._stochastic: StochasticSteps | None = None  # made when the first one is due
        self._progress = Progress()
        self._unfinished: Cursor | Callable[[], Cursor] | None = None

    def __repr__(self) -> str:
        """What is trained, and how."""
        return (
            f"NaturalGradient({self.net!r}, {self.loss!r}, curvature={self.curvature!r}, "
            f"solver={self.solver!r}, damping={self.damping_policy!r}, step={self._progress.step})"
        )

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay of the next step: a number, or (weights, biases) if they differ."""
        return self._l2.shown

    @property
    def _l2(self) -> Decay:
        chosen = self._progress.l2
        return self._given_l2 if chosen is None else Decay(chosen, chosen)

    @property
    def solver(self) -> StepSolver:
        """The optimizer's own copy of the step solver."""
        return self._exact.solver

    @property
    def damping(self) -> float:
        """Damping of the next step; a number or policy that is assigned replaces the policy."""
        return self._exact.policy.value

    @damping.setter
    def damping(self, damping: DampingPolicy | float) -> None:
        self.damping_policy = damping

    @property
    def damping_policy(self) -> DampingPolicy:
        """What chooses the damping; can be replaced by a number or policy."""
        return self._exact.policy

    @damping_policy.setter
    def damping_policy(self, damping: DampingPolicy | float) -> None:
        policy = as_policy(damping)
        check_policy(policy, self.loss, "auto")
        self._exact.policy = policy

    @property
    def last_info(self) -> StepInfo | None:
        """Record of the last step; None before the first."""
        return self._progress.info

    def step(
        self,
        X: ArrayLike | Batch,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        X_curvature: ArrayLike | Batch | None = None,
        y_curvature: ArrayLike | None = None,
        backtrack_on: Batch | None = None,
    ) -> StepInfo:
        """Take one step on a batch.

        Parameters
        ----------
        X : (N, d_0) array_like, or Batch
            A `Batch` of the same net, loss and l2 comes with its targets and weights.
        y : array_like
            Targets as in `value_and_grad`.
        sample_weight : (N,) array_like, optional
            Of the cases of X only; those of X_curvature count equally, unless it is a `Batch`.
        X_curvature : (M, d_0) array_like, or Batch, optional
            Cases that B, the solver's statistics and the quadratic model are made of, in place of
            X or its `curvature_share`. Gradient, reduction ratio and acceptance remain those of X:
            the ratio is biased, as it says there.
        y_curvature : array_like, optional
            Their targets, needed by matrices that depend on targets.
        backtrack_on : Batch, optional
            Whose objective chooses among the iterates of a solver that keeps them, such as
            ``solvers.CG(backtracking=True)``; X by default.

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
        pass, and one more for each iterate or length that is tried. In this order: backtracking
        chooses the direction D by the objective at params + D, as if it were the step; then
        learning_rate and momentum minimise the model; then the line search, if there is one.
        """
        batch = as_batch(self, X, y, sample_weight)
        curvature = self._curvature_part(batch)
        if X_curvature is not None:
            curvature = as_curvature_batch(self, batch, self.curvature, X_curvature, y_curvature)
        elif y_curvature is not None:
            raise ValueError("X_curvature is missing, y_curvature is given")
        if backtrack_on is not None:
            check_backtracking(self, backtrack_on, self.solver)
        return self._exact_step(StepCases(batch, curvature, backtrack_on or batch))

    def _curvature_part(self, batch: Batch) -> Batch:
        return share_of(batch, self.curvature_share, self._seed, self._progress.step)

    def _step_of(self, batch: Batch, num_cases: float | None) -> StepInfo:
        """Take one step on a batch out of so many cases; inf: unknown; None: it is all there is."""
        if self._is_automatic and num_cases is not None and batch.num_cases < num_cases:
            return self._stochastic_step(batch, num_cases)
        return self._exact_step(StepCases(batch, self._curvature_part(batch), batch))

    def _exact_step(self, cases: StepCases) -> StepInfo:
        if self._evidence is not None:
            cases = cases.with_l2(self._l2)
        before, params = self._progress, self.net.params.copy()

        def undo() -> bool:
            if self._progress is before:
                self.net.params[...] = params
            return self._progress is before

        with self._exact.kept_if_it_fails(undo):
            candidate, progress = self._exact.attempt(cases, before)
            if candidate is not None:
                self.net.params[...] = candidate
            self._progress = progress
        return progress.told

    def _stochastic_step(self, batch: Batch, num_cases: float) -> StepInfo:
        steps = self._stochastic
        if steps is None:
            steps = self._stochastic = self._make_stochastic()
        before, params = self._progress, self.net.params.copy()
        snapshot = steps.snapshot()
        try:
            candidate, progress = steps.attempt(batch, num_cases, before)
            self.net.params[...] = candidate
            self._progress = progress
        except BaseException:
            if self._progress is before:
                self.net.params[...] = params
                steps.restore(snapshot)
            raise
        return progress.told

    def _make_stochastic(self) -> StochasticSteps:
        return StochasticSteps.of(self.net, self.loss, self._seed, self.num_threads)

    def _grown(self) -> bool:
        """Whether batches are to grow; the question begins a new period."""
        moving = self._progress.moving
        if not moving.controller.wants_growth:
            return False
        moving = moving._replace(controller=moving.controller.grown())
        self._progress = self._progress._replace(moving=moving)
        return True

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

    def fit(
        self,
        X: ArrayLike | Iterable[object],
        y: ArrayLike | None = None,
        *,
        epochs: int = 1,
        batch_size: int | BatchSchedule | Literal["auto"] | None = "auto",
        sample_weight: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        callbacks: Callback | Iterable[Callback] = (),
        progress: bool = False,
        time_limit: float | None = None,
        ftol: Tolerance = "auto",
        gtol: Tolerance = "auto",
        xtol: Tolerance = "auto",
        averaging: Averaging = None,
        on_bad_batch: Literal["raise", "skip"] = "raise",
        resume: bool = False,
    ) -> History:
        """Train for some epochs, or until nothing is to be gained any more.

        Parameters
        ----------
        X, y, sample_weight : array_like
            The data, as in `step`. With mini-batches X and y stay where they are, such as in a
            memory map: only the cases of a mini-batch are converted.
            Without y, X is an iterable of batches: each a `Batch`, or a tuple or list (X, y) or
            (X, y, sample_weight). Lists and tuples are read so too, other arrays are refused. Their
            sizes may vary; each is checked when it comes, which is one ahead of the step.
        epochs : int
            Passes through the data. An iterator serves one: training ends then as "exhausted".
        batch_size : int, BatchSchedule, "auto" or None
            Cases per step, drawn without replacement in an order from `seed`; the last batch of an
            epoch may be smaller. None: all at once. "auto": all at once where a
            step on them costs little (below 2e9 flops for a gradient), else from 500 on, and
            growing where the signal in a gradient falls below a fifth.
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
        averaging : {"polyak", "exponential"}, float or None
            The average of the parameters after each step, in `History.averaged_params` and measured
            as `EpochInfo.averaged_validation_loss`; the net keeps the iterate. "polyak" is the
            plain mean; a number in (0, 1) is the decay of exponential weights that sum to 1,
            "exponential" 0.99. It begins anew in every call, and is in no state.
        on_bad_batch : {"raise", "skip"}
            What happens to a batch of an iterable that can not be used, as where it has NaN or
            another width: a ValueError with its number, all steps before it being taken; or one
            warning for all, and `History.skipped`.
        resume : bool
            Go on with the last call if that was left before its end, by Ctrl-C, a time limit, a
            callback or an exception, also by another optimizer whose state this one has: `epochs`
            counts from its beginning. With the same data and options the bits are those of a run
            that was not left. The elements of an iterable that were used are asked for again.

        Returns
        -------
        History
            What was done until the end, a limit, a tolerance, a callback or Ctrl-C stopped it.

        Raises
        ------
        ValueError, TypeError
            For bad data or options, before anything has changed; later only for a bad batch. What
            an iterable or a callback raises comes out as it is, and callbacks are told of all
            steps that were taken.
        ImportError
            If `progress` is asked for and tqdm is missing.

        Warns
        -----
        NatgradWarning
            Once, if data are far from unit scale, on which training takes many times as long:
            a column of X has a root mean square above 30, or a mean of more than 10 standard
            deviations and 10, or no element is above 1/30; a column of targets of squared_error and
            the like has a root mean square above 100, or no element is above 1/100.

        Examples
        --------
        >>> import numpy as np, natgrad_fast as ng
        >>> X = np.linspace(-1, 1, 600)[:, None]
        >>> batches = [(X[k::6], np.sin(3 * X[k::6])) for k in range(6)]
        >>> opt = ng.NaturalGradient(ng.MLP([1, 8, 1], seed=0), "squared_error")
        >>> history = opt.fit(batches, epochs=5, averaging="exponential")
        >>> len(history.steps), history.averaged_params.shape
        (30, (25,))
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
            averaging=averaging,
            on_bad_batch=on_bad_batch,
            resume=resume,
        )

    def state_dict(self) -> State:
        """Everything that a resumed run needs besides the net: copies, plain types and arrays.

        Returns
        -------
        dict
            What the state belongs to (architecture, loss, curvature and the order of its cases,
            momentum, l2), step number, warm start, previous step, random state, the states of
            damping and solver, and where a `fit` that has not ended is. The same for every
            instruction set and number of threads.
        """
        return optimizer_state(self)

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
        load_optimizer_state(self, state)

    def _identity(self) -> State:
        share, seed = self.curvature_share, self._seed
        return identity(self.net, self.loss, self._exact, self._given_l2, share, seed)
