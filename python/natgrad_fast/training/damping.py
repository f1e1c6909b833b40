"""Damping policies: the lambda of (B + lambda I) d = -g, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from .._arrays import as_count, as_name, as_number
from .._state import StateReader
from .._typing import State
from ..losses import Loss
from .geodesic import check_geodesic
from .trials import Trial, Trials

__all__ = ["DampingPolicy", "LevenbergMarquardt", "Tikhonov", "as_policy", "check_policy"]


class DampingPolicy:
    """Base of the policies.

    Attributes
    ----------
    value : float
        Damping of the next step.
    minimum, maximum : float
        Bounds of `value`. An optimizer gives up when a step is rejected at `maximum`.
    denominator : {"undamped", "damped"}
        Which quadratic predicts the decrease that the reduction ratio divides by.
    has_momentum : bool
        Whether steps may be combined with the last one; not where their length is bounded.
    geodesic : bool
        Whether the second derivative along a step bends it.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> class Halved(ng.DampingPolicy):
    ...     value = 1.0
    ...     def update(self, reduction_ratio, accepted):
    ...         self.value *= 0.5 if accepted else 4.0
    ...     def state_dict(self):
    ...         return {"value": self.value}
    ...     def load_state_dict(self, state):
    ...         self.value = state["value"]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1]), "squared_error", damping=Halved())
    >>> opt.step([[0.0], [1.0]], [[1.0], [2.0]]).accepted, opt.damping
    (True, 0.5)
    """

    minimum: float = 0.0
    maximum: float = 1e10
    denominator: Literal["undamped", "damped"] = "undamped"
    has_momentum: ClassVar[bool] = True
    geodesic: bool = False

    def __repr__(self) -> str:
        """Name and value of the next step."""
        return f"<{type(self).__name__}, {self.value:g}>"

    @property
    def value(self) -> float:
        """Damping of the next step."""
        raise NotImplementedError

    def search(self, trials: Trials) -> Trial:
        """Choose the step: by default the one with the damping `value`.

        Parameters
        ----------
        trials : Trials
            What can be tried.

        Returns
        -------
        Trial
            Kept if the objective does not grow. `update` is called with its ratio next.
        """
        return trials.at(self.value, geodesic=self.geodesic)

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Choose the next damping from the actual over the predicted decrease of the last step.

        A ratio of NaN with an accepted step says that there was nothing but rounding to learn from.
        """
        raise NotImplementedError

    def state_dict(self) -> State:
        """Everything that changes, for resuming."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned.

        Raises
        ------
        ValueError
            If anything in it does not fit, with the name of the leaf; nothing has changed then.
        """
        raise NotImplementedError


class Tikhonov(DampingPolicy):
    """Damping given beforehand.

    Parameters
    ----------
    value_or_schedule : float or callable
        The damping, or ``schedule(step) -> damping`` for step 0, 1, ...

    Notes
    -----
    A rejected step doubles the damping; every accepted one takes back one doubling.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> policy = ng.Tikhonov(lambda step: 0.9**step)
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1]), "squared_error", damping=policy)
    >>> infos = [opt.step([[0.0], [1.0]], [[1.0], [2.0]]) for _ in range(2)]
    >>> [info.damping for info in infos]
    [1.0, 0.9]
    """

    def __init__(self, value_or_schedule: float | Callable[[int], float]) -> None:
        self._constant: float | None = None
        self._schedule: Callable[[int], float] | None = None
        if callable(value_or_schedule):
            self._schedule = value_or_schedule
        else:
            self._constant = as_number(value_or_schedule, "value_or_schedule", minimum=0.0)
        self._step = 0
        self._doublings = 0

    @property
    def value(self) -> float:
        """Damping of the next step."""
        if self._schedule is None:
            assert self._constant is not None
            scheduled = self._constant
        else:
            scheduled = self._schedule(self._step)
            scheduled = as_number(scheduled, "damping from the schedule", minimum=0.0)
        # From 0 there is nothing to double: start at a value that float32 solves still notice.
        base = max(scheduled, 1e-6) if self._doublings else scheduled
        return min(base * 2.0 ** min(self._doublings, 1023), self.maximum)

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Go on in the schedule; double after a rejection, as often as a float can be doubled."""
        self._step += 1
        doublings = self._doublings - 1 if accepted else self._doublings + 1
        self._doublings = min(max(0, doublings), 2000)

    def state_dict(self) -> State:
        """Place in the schedule, number of doublings, and the constant value if it is one."""
        return {"constant": self._constant, "step": self._step, "doublings": self._doublings}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `DampingPolicy.load_state_dict`."""
        reader = StateReader(state, "state", ("constant", "step", "doublings"))
        reader.same("constant", self._constant)
        step, doublings = reader.integer("step"), reader.integer("doublings", 0, 2000)
        self._step, self._doublings = step, doublings


# Options by preset, and those of none: Martens 2010; Martens & Grosse 2015; MATLAB's trainlm, which
# lowers after every step that is kept, whatever its ratio.
PRESETS: dict[str | None, dict[str, Any]] = {
    None: {
        "initial": 1.0,
        "factor": 2.0 / 3.0,
        "increase": None,
        "low": 0.25,
        "high": 0.75,
        "minimum": 1e-8,
        "maximum": 1e10,
        "denominator": "undamped",
        "period": 1,
    },
    "hf": {"initial": 45.0},
    "kfac": {"initial": 150.0, "factor": 0.95, "denominator": "damped", "period": 5},
    "trainlm": {
        "initial": 1e-3,
        "factor": 0.1,
        "increase": 10.0,
        "low": -1.0,
        "high": 0.0,
        "minimum": 1e-20,
    },
}
# Calibration: how many dampings are tried, and their ratio.
MOST_TRIES, TRY_FACTOR = 12, 10.0


class LevenbergMarquardt(DampingPolicy):
    """Damping from how well the quadratic model predicted the last decrease (Martens 2010).

    rho = actual / predicted change of the objective: rho < low, or a rejected step, multiplies the
    damping by `increase`; rho > high multiplies it by `factor`. From a step of which rho is
    rounding nothing is learned: the damping returns towards the first one, so that training goes on
    well where the data change after it has converged.

    Parameters
    ----------
    initial : float or "calibrated", optional
        First damping, > 0. A good one shows rho in about 0.75 .. 0.95 at once; "calibrated" looks
        for it in the first step, among powers of ten times g'Bg / g'g, by at most 12 solves and
        evaluations of the objective.
    preset : {"hf", "kfac", "trainlm"}, optional
        Constants of Hessian-free (Martens 2010; initial 45), K-FAC (Martens & Grosse 2015; 150,
        factor 0.95 every 5 steps, damped denominator) or MATLAB's trainlm (mu = 1e-3, mu_dec = 0.1,
        mu_inc = 10, mu_max = 1e10), for the options that are not given.
    factor : float, optional
        In (0, 1), 2/3 by default; applied ``factor ** period`` when `period` > 1.
    increase : float, optional
        > 1; 1 / factor by default.
    low, high : float, optional
        Bounds of rho, low < high; 0.25 and 0.75 by default.
    minimum, maximum : float, optional
        Bounds of the damping, 1e-8 and 1e10 by default.
    denominator : {"undamped", "damped"}, optional
        Predicted change by the quadratic without damping (Hessian-free, the default) or with it
        (K-FAC); both contain l2.
    period : int, optional
        Steps between adaptations to rho. A rejection counts at once.
    geodesic : bool
        Geodesic acceleration for squared_error (Transtrum & Sethna, arXiv 1201.5885): the step is
        bent by the second derivative of the outputs along it, for two forward passes, a product
        with J, one with J' and a further solve. For small nets, float64 and ``solvers.Dense``.

    Notes
    -----
    trainlm has no momentum: ``NaturalGradient(..., solver=solvers.Dense(), momentum=False,
    damping=LevenbergMarquardt(preset="trainlm"))``. What it calls "Maximum mu reached" is
    "damping_limit" of `History.stop_reason`, "Minimum gradient reached" is "gradient_tol", "Maximum
    epoch reached" is "epochs", and "Validation stop" is `callbacks.EarlyStopping`.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.LevenbergMarquardt(preset="kfac")
    <LevenbergMarquardt, 150>
    >>> ng.LevenbergMarquardt(5.0, preset="trainlm").increase
    10.0
    """

    factor: float
    increase: float
    low: float
    high: float
    period: int

    def __init__(
        self,
        initial: float | Literal["calibrated"] | None = None,
        *,
        preset: Literal["hf", "kfac", "trainlm"] | None = None,
        factor: float | None = None,
        increase: float | None = None,
        low: float | None = None,
        high: float | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
        denominator: Literal["undamped", "damped"] | None = None,
        period: int | None = None,
        geodesic: bool = False,
    ) -> None:
        if preset is not None:
            as_name(preset, "preset", [name for name in PRESETS if name is not None])
        given = {
            "initial": initial,
            "factor": factor,
            "increase": increase,
            "low": low,
            "high": high,
            "minimum": minimum,
            "maximum": maximum,
            "denominator": denominator,
            "period": period,
        }
        self._take(
            PRESETS[None] | PRESETS[preset] | {k: v for k, v in given.items() if v is not None}
        )
        if not isinstance(geodesic, bool):
            raise TypeError(f"geodesic must be True or False, got {geodesic!r}")
        self.preset, self.geodesic = preset, geodesic
        self._steps = 0

    def _take(self, options: dict[str, Any]) -> None:
        """Check and take the options, all of them."""
        self.factor = as_number(options["factor"], "factor", above=0.0)
        if self.factor >= 1.0:
            raise ValueError(f"factor must be < 1, got {options['factor']}")
        given = options["increase"]
        self.increase = 1.0 / self.factor if given is None else as_number(given, "increase")
        if self.increase <= 1.0:
            raise ValueError(f"increase must be > 1, got {given}")
        self.low, self.high = as_number(options["low"], "low"), as_number(options["high"], "high")
        if self.low >= self.high:
            raise ValueError(f"low must be < high, got {self.low} and {self.high}")
        self.minimum = as_number(options["minimum"], "minimum", minimum=0.0)
        self.maximum = as_number(options["maximum"], "maximum", above=self.minimum)
        as_name(options["denominator"], "denominator", ("undamped", "damped"))
        self.denominator = options["denominator"]
        self.period = as_count(options["period"], "period", 1)
        initial = options["initial"]
        self.initial: float | None = None  # to be calibrated
        if not isinstance(initial, str) or initial != "calibrated":
            self.initial = as_number(initial, "initial", above=0.0)
            if not self.minimum <= self.initial <= self.maximum:
                raise ValueError(
                    f"initial must be in [{self.minimum:g}, {self.maximum:g}], got {initial}"
                )
        self._value, self._first = self.initial, self.initial

    @property
    def value(self) -> float:
        """Damping of the next step; NaN before it is calibrated."""
        return math.nan if self._value is None else self._value

    def search(self, trials: Trials) -> Trial:
        """Take the step with the damping `value`, which the first one may have to find."""
        if self._value is not None:
            return super().search(trials)
        trial = self._calibrated(trials)
        self._value = self._first = trial.damping
        return trial

    def _calibrated(self, trials: Trials) -> Trial:
        """The first damping of a ladder for which rho is good, or the best below it."""
        quotient = trials.rayleigh_quotient()
        start = 0.1 * quotient if 0.0 < quotient < math.inf else 1.0

        def tried(damping: float) -> tuple[Trial, bool]:
            damping = min(max(damping, self.minimum), self.maximum)
            trial = trials.at(damping, geodesic=self.geodesic)
            ratio = trial.ratio(trials.loss, self.denominator)
            return trial, trial.is_descent(trials.loss) and ratio >= 0.75

        trial, is_good = tried(start)
        rises = not is_good
        for _ in range(MOST_TRIES - 1):
            other, is_good = tried(trial.damping * (TRY_FACTOR if rises else 1.0 / TRY_FACTOR))
            gains = rises or (is_good and other.new_loss < trial.new_loss)
            if other.damping == trial.damping or not gains:
                break
            trial = other
            if rises and is_good:
                break
        return trial

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Raise or lower the damping, within the bounds."""
        if self._value is None:
            return  # nothing was tried where the objective is not finite
        self._steps += 1
        if not accepted:
            self._value *= self.increase
        elif self._steps % self.period == 0:
            factor = self.factor**self.period
            if math.isnan(reduction_ratio):
                self._return(factor)
            elif reduction_ratio < self.low:
                self._value *= self.increase**self.period
            elif reduction_ratio > self.high:
                self._value *= factor
        self._value = min(max(self._value, self.minimum), self.maximum)

    def _return(self, factor: float) -> None:
        """Go towards the first value, and not beyond it."""
        assert self._value is not None
        assert self._first is not None
        if self._value > self._first:
            self._value = max(self._value * factor, self._first)
        else:
            self._value = min(self._value / factor, self._first)

    def state_dict(self) -> State:
        """Damping, the first one, number of steps, and the options."""
        return {
            "value": self._value,
            "first": self._first,
            "steps": self._steps,
            **self._options(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `DampingPolicy.load_state_dict`."""
        options = self._options()
        reader = StateReader(state, "state", ("value", "first", "steps", *options))
        for name, wanted in options.items():
            reader.same(name, wanted)
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        value = first = None
        if self.initial is not None or reader["value"] is not None:
            value, first = reader.number("value", **bounds), reader.number("first", **bounds)
        self._steps = reader.integer("steps")
        self._value, self._first = value, first

    def _options(self) -> State:
        names = ("initial", "factor", "increase", "low", "high", "minimum", "maximum")
        return {name: getattr(self, name) for name in (*names, "denominator", "period", "geodesic")}


def as_policy(damping: object) -> DampingPolicy:
    """Return a policy: the given one, `Tikhonov` for a number, `LevenbergMarquardt` for None.

    Raises
    ------
    TypeError
        For anything else.
    """
    if damping is None:
        return LevenbergMarquardt(1.0)
    if isinstance(damping, DampingPolicy):
        return damping
    if callable(damping):
        what = "a class: call it" if isinstance(damping, type) else "a schedule: Tikhonov(schedule)"
        raise TypeError(f"damping must be a number or a DampingPolicy, got {damping!r}, {what}")
    return Tikhonov(as_number(damping, "damping", minimum=0.0))


def check_policy(policy: DampingPolicy, loss: Loss, momentum: object) -> None:
    """Raise ValueError unless a policy goes with a loss and with what is said of momentum."""
    if policy.geodesic:
        check_geodesic(loss)
    if momentum is True and not policy.has_momentum:
        raise ValueError(f'momentum must be "auto" or False with {policy!r}, which bounds steps')
