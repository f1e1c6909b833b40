"""Damping policies: the lambda of (B + lambda I) d = -g, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from .._arrays import as_count, as_name, as_number
from .._state import StateReader
from .._typing import State

__all__ = ["DampingPolicy", "LevenbergMarquardt", "Tikhonov", "as_policy"]


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
    """

    minimum: float = 0.0
    maximum: float = 1e10
    denominator: Literal["undamped", "damped"] = "undamped"

    def __repr__(self) -> str:
        """Name and value of the next step."""
        return f"<{type(self).__name__}, {self.value:g}>"

    @property
    def value(self) -> float:
        """Damping of the next step."""
        raise NotImplementedError

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


class LevenbergMarquardt(DampingPolicy):
    """Damping from how well the quadratic model predicted the last decrease (Martens 2010).

    rho = actual / predicted change of the objective: rho < low, or a rejected step, divides the
    damping by `factor`; rho > high multiplies by it. From a step of which rho is rounding nothing
    is learned: the damping returns towards the first one, so that training goes on well where the
    data change after it has converged.

    Parameters
    ----------
    initial : float
        First damping, > 0. A good one shows rho in about 0.75 .. 0.95 at once.
    factor : float
        In (0, 1); applied ``factor ** period`` when `period` > 1.
    low, high : float
        Bounds of rho, low < high.
    minimum, maximum : float
        Bounds of the damping.
    denominator : {"undamped", "damped"}
        Predicted change by the quadratic without damping (Hessian-free) or with it (K-FAC); both
        contain l2.
    period : int
        Steps between adaptations to rho. A rejection counts at once.
    """

    def __init__(
        self,
        initial: float = 1.0,
        *,
        factor: float = 2.0 / 3.0,
        low: float = 0.25,
        high: float = 0.75,
        minimum: float = 1e-8,
        maximum: float = 1e10,
        denominator: Literal["undamped", "damped"] = "undamped",
        period: int = 1,
    ) -> None:
        self.factor = as_number(factor, "factor", above=0.0)
        if self.factor >= 1.0:
            raise ValueError(f"factor must be < 1, got {factor}")
        self.low, self.high = as_number(low, "low"), as_number(high, "high")
        if self.low >= self.high:
            raise ValueError(f"low must be < high, got {low} and {high}")
        self.minimum = as_number(minimum, "minimum", minimum=0.0)
        self.maximum = as_number(maximum, "maximum", above=self.minimum)
        as_name(denominator, "denominator", ("undamped", "damped"))
        self.denominator = denominator
        self.period = as_count(period, "period", 1)
        self.initial = self._value = as_number(initial, "initial", above=0.0)
        if not self.minimum <= self._value <= self.maximum:
            raise ValueError(
                f"initial must be in [{self.minimum:g}, {self.maximum:g}], got {initial}"
            )
        self._steps = 0

    @property
    def value(self) -> float:
        """Damping of the next step."""
        return self._value

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Divide or multiply by `factor`, within the bounds."""
        self._steps += 1
        if not accepted:
            self._value /= self.factor
        elif self._steps % self.period == 0:
            factor = self.factor**self.period
            if math.isnan(reduction_ratio):
                self._return(factor)
            elif reduction_ratio < self.low:
                self._value /= factor
            elif reduction_ratio > self.high:
                self._value *= factor
        self._value = min(max(self._value, self.minimum), self.maximum)

    def _return(self, factor: float) -> None:
        """Go towards the first value, and not beyond it."""
        if self._value > self.initial:
            self._value = max(self._value * factor, self.initial)
        else:
            self._value = min(self._value / factor, self.initial)

    def state_dict(self) -> State:
        """Damping, number of steps, and the options."""
        return {"value": self._value, "steps": self._steps, **self._options()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `DampingPolicy.load_state_dict`."""
        options = self._options()
        reader = StateReader(state, "state", ("value", "steps", *options))
        for name, wanted in options.items():
            reader.same(name, wanted)
        value = reader.number("value", minimum=self.minimum, maximum=self.maximum)
        self._value, self._steps = value, reader.integer("steps")

    def _options(self) -> State:
        names = ("initial", "factor", "low", "high", "minimum", "maximum", "denominator", "period")
        return {name: getattr(self, name) for name in names}


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
