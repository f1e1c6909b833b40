"""Damping policies: the lambda of (B + lambda I) d = -g, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._arrays import as_count, as_name, as_number

__all__ = ["DampingPolicy", "LevenbergMarquardt", "Tikhonov"]


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
    denominator: str = "undamped"

    @property
    def value(self) -> float:
        """Damping of the next step."""
        raise NotImplementedError

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Choose the next damping from the actual over the predicted decrease of the last step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, for resuming."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
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
        self._schedule: Callable[[int], float]
        if callable(value_or_schedule):
            self._schedule = value_or_schedule
        else:
            constant = as_number(value_or_schedule, "value_or_schedule", minimum=0.0)
            self._schedule = lambda step: constant
        self._step = 0
        self._doublings = 0

    @property
    def value(self) -> float:
        """Damping of the next step."""
        scheduled = as_number(self._schedule(self._step), "damping from the schedule", minimum=0.0)
        # From 0 there is nothing to double: start at a value that float32 solves still notice.
        base = max(scheduled, 1e-6) if self._doublings else scheduled
        return min(base * 2.0**self._doublings, self.maximum)

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Go on in the schedule; double after a rejection."""
        self._step += 1
        self._doublings = max(0, self._doublings - 1) if accepted else self._doublings + 1

    def state_dict(self) -> dict[str, Any]:
        """Place in the schedule and number of doublings."""
        return {"step": self._step, "doublings": self._doublings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._step, self._doublings = int(state["step"]), int(state["doublings"])


class LevenbergMarquardt(DampingPolicy):
    """Damping from how well the quadratic model predicted the last decrease (Martens 2010).

    rho = actual / predicted change of the objective: rho < low, or a rejected step, divides the
    damping by `factor`; rho > high multiplies by it.

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
        denominator: str = "undamped",
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
        self.denominator = as_name(denominator, "denominator", ("undamped", "damped"))
        self.period = as_count(period, "period", 1)
        self._value = as_number(initial, "initial", above=0.0)
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
            if math.isnan(reduction_ratio) or reduction_ratio < self.low:
                self._value /= factor
            elif reduction_ratio > self.high:
                self._value *= factor
        self._value = min(max(self._value, self.minimum), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        """Damping and number of steps."""
        return {"value": self._value, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._value, self._steps = float(state["value"]), int(state["steps"])
