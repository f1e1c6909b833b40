"""Learning rate, momentum, batch size and retreats of stochastic steps, from their own gradients.

All signals come from data that did not make the step. With g_k the gradient of batch k, e_k the
displacement of the parameters that it led to, M the preconditioner:

    u: q_k = g_{k+1}'e_k / |g_k'e_k|, averaged: positive where the last steps overshot
    r: the share of signal in a gradient, from its two halves:
       x = g_A'M^-1 g_B / g'M^-1 g,  r = x + (1 - x) m / N for m of N cases without replacement
    the loss of a batch before it is used: free and unbiased
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .._state import StateReader
from .._typing import State

__all__ = ["Controller", "ControllerInfo", "Guard", "Rates"]


@dataclass(frozen=True)
class ControllerInfo:
    """What a controller held when a step was made.

    Attributes
    ----------
    mode : {"exact", "stochastic"}
        Whether learning rate and momentum minimise the quadratic model of the batch, or come from
        the signals below.
    c : float
        Factor on the learning rate.
    u, r : float
        Signals, averaged; NaN while unknown.
    restores : int
        Retreats to an earlier point so far.
    restored : bool
        Whether this step was one: nothing else was done in it then.
    """

    mode: str
    c: float
    u: float
    r: float
    restores: int
    restored: bool


@dataclass(frozen=True)
class Guard:
    """The loss of fresh batches: where it was best, and whether it has risen beyond its noise.

    `mean` averages the losses by .7. Their deviation is that of differences between neighbours
    among the `recent` ones, absolute, or relative to their size: in the latter a fall through
    orders of magnitude hardly shows.
    """

    mean: float = math.nan
    recent: tuple[float, ...] = ()
    best: float = math.inf
    best_deviation: float = math.inf
    since: int = 0  # steps since the best point was kept

    KEEP_EVERY = 10
    WINDOW = 40
    FIRST_RISE = 10.0

    def look(self, loss: float) -> Guard:
        """After the loss of another batch."""
        mean = loss if math.isnan(self.mean) else 0.7 * self.mean + 0.3 * loss
        recent = (*self.recent[1 - self.WINDOW :], loss)
        return replace(self, mean=mean, recent=recent, since=self.since + 1)

    @property
    def deviation(self) -> float:
        """Standard deviation of a loss: that of a difference of two has twice its variance."""
        pairs = list(itertools.pairwise(self.recent))
        if not pairs:
            return math.inf
        squares = [(a - b) ** 2 for a, b in pairs]
        shares = [(a - b) ** 2 / max(a * a, b * b, 1e-300) for a, b in pairs]
        size = max(abs(loss) for loss in self.recent[-self.KEEP_EVERY :])
        absolute, relative = (math.sqrt(0.5 * sum(x) / len(x)) for x in (squares, shares))
        return min(absolute, size * relative)

    def is_bad(self, loss: float) -> bool:
        """Whether a retreat is due."""
        if not math.isfinite(loss):
            return True
        if math.isinf(self.best):  # nothing is known of the noise yet, but much more is a blow-up
            first = self.recent[0] if self.recent else loss
            return loss > first + self.FIRST_RISE * abs(first)
        # The best point was a lucky one; but a blow-up must not widen its own tolerance.
        d = min(max(self.best_deviation, self.deviation), 2.0 * self.best_deviation)
        return (self.since > 3 and self.mean > self.best + 3.0 * d) or loss > self.best + 10.0 * d

    @property
    def is_best(self) -> bool:
        """Whether the present point is worth keeping."""
        return len(self.recent) > self.KEEP_EVERY <= self.since and self.mean < self.best

    def kept(self) -> Guard:
        """After the present point was kept as the best one."""
        return replace(self, best=self.mean, best_deviation=self.deviation, since=0)

    def restored(self) -> Guard:
        """After a retreat: averages start from the best, and twice the deviation is borne."""
        known = math.isfinite(self.best)
        return Guard(
            mean=self.best if known else math.nan,
            best=self.best,
            best_deviation=2.0 * self.best_deviation,
        )


@dataclass(frozen=True)
class Rates:
    """Nesterov's momentum: v = momentum v + rate D, displacement e = momentum v + rate D."""

    rate: float
    momentum: float


@dataclass(frozen=True)
class Controller:
    """The state of the controller; every method returns a new one.

    `log_rate` is the averaged logarithm of the step length that minimises the model of a batch
    along D; `n` counts stochastic steps, by which momentum grows.
    """

    step: int = 0
    is_exact: bool = True
    c: float = 1.0
    n: int = 0
    log_rate: float = math.nan
    u: float = math.nan
    u_seen: int = 0
    r: float = math.nan
    restores: int = 0
    since_growth: int = 0
    largest_trace: float = 0.0
    usual_size: int = 0
    guard: Guard = Guard()

    TARGET_U = 0.05
    # Where batches may not grow, noise alone would anneal the rate to nothing.
    LEAST_C = 0.3
    LEAST_SHARE = 0.05

    @property
    def info(self) -> ControllerInfo:
        """For the record of a step."""
        mode = "exact" if self.is_exact else "stochastic"
        return ControllerInfo(mode, self.c, self.u, self.r, self.restores, restored=False)

    @property
    def wants_share(self) -> bool:
        """Whether the share of signal is due to be measured."""
        return self.step < 10 or self.step % 5 == 0

    @property
    def exact_factor(self) -> float:
        """What a step that minimises the model of its batch is multiplied with.

        Along D = -M^-1 g the objective of all cases falls by the share r of what the batch's own
        does, with the same curvature, so its minimum is at r times the length.
        """
        share = 1.0 if math.isnan(self.r) else min(max(self.r, self.LEAST_SHARE), 1.0)
        return min(self.c, 1.0) * share

    @property
    def wants_rate(self) -> bool:
        """Whether the best step length of the batch is due to be measured."""
        return self.is_exact or self.n < 10 or self.step % 5 == 0 or math.isnan(self.log_rate)

    @property
    def wants_statistics(self) -> bool:
        """Whether the preconditioner is due to be updated."""
        return self.step < 10 or self.step % 2 == 0

    @property
    def wants_refresh(self) -> bool:
        """Whether the preconditioner is due to be inverted anew."""
        return self.step < 3 or self.step % 8 == 0

    def with_size(self, batch_size: int) -> tuple[Controller, float]:
        """After a batch of so many cases; its share of a usual one, 1 from a half on."""
        if 2 * batch_size < self.usual_size:
            return self, batch_size / self.usual_size
        return replace(self, usual_size=batch_size), 1.0

    def with_overshoot(self, q: float) -> tuple[Controller, bool]:
        """After q of the last displacement; whether velocity has to be braked."""
        seen = self.u_seen + 1
        weight = max(0.1, 1.0 / seen)
        u = q if seen == 1 else (1.0 - weight) * self.u + weight * q
        brakes = not self.is_exact and q > 0.7
        c = 0.8 * self.c if brakes else self.c
        return replace(self, u=u, u_seen=seen, c=c), brakes

    def with_share(self, x: float, batch_size: int, num_cases: float) -> Controller:
        """After the share x of signal between two halves of a batch."""
        r = x + (1.0 - x) * batch_size / num_cases
        return replace(self, r=r if math.isnan(self.r) else 0.8 * self.r + 0.2 * r)

    def with_rate(self, best: float) -> Controller:
        """After the step length that minimises the model of a batch."""
        if not (best > 0.0 and math.isfinite(best)):
            return self
        log = math.log(best)
        known = not math.isnan(self.log_rate)
        return replace(self, log_rate=0.8 * self.log_rate + 0.2 * log if known else log)

    def with_mode(self) -> Controller:
        """After ten steps: stochastic where a gradient is noise in part, and back."""
        if self.step < 10 or math.isnan(self.r):
            return self
        if self.is_exact and self.r < 0.7:
            return replace(self, is_exact=False, c=2.0, n=0)
        if not self.is_exact and self.r > 0.8 and self.n > 20:
            return replace(self, is_exact=True, c=1.0)
        return self

    def rates(self) -> tuple[Controller, Rates]:
        """Learning rate and momentum of a stochastic step.

        The share of the momentum 0.95 that is reached after n steps grows as in Nesterov's method;
        rate / log_rate is bounded, since rates climb while momentum builds.
        """
        n = self.n + 1
        momentum = min(0.95, 1.0 - 1.0 / (2.0 + n / 20.0))
        c = min(self.c, (1.0 - 0.65 * momentum) / (1.0 - momentum))
        rate = c * (1.0 - momentum) * math.exp(self.log_rate)
        return replace(self, n=n, c=c), Rates(rate, momentum)

    def stepped(self) -> Controller:
        """After a step: c follows the overshoot."""
        c = self.c
        if not self.is_exact and self.u_seen > 0:
            c *= math.exp(-0.05 * min(max((self.u - self.TARGET_U) / 0.2, -0.6), 1.0))
            c = max(c, self.LEAST_C)
        return replace(self, c=c, step=self.step + 1, since_growth=self.since_growth + 1)

    def restored(self) -> Controller:
        """After a retreat."""
        return replace(
            self,
            c=max(0.5 * self.c, self.LEAST_C),
            u=math.nan,
            u_seen=0,
            restores=self.restores + 1,
            step=self.step + 1,
            since_growth=self.since_growth + 1,
            guard=self.guard.restored(),
        )

    @property
    def wants_growth(self) -> bool:
        """Whether batches are too small for what is left to learn."""
        return not self.is_exact and self.r < 0.2 and self.since_growth >= 50

    def grown(self) -> Controller:
        """After batches have grown, or might have."""
        return replace(self, since_growth=0)

    def state_dict(self) -> State:
        """Numbers by name; None for what is unknown."""
        state: State = {name: _finite_or_none(value) for name, value in self._values().items()}
        return {**state, "guard_recent": list(self.guard.recent)}

    def _values(self) -> dict[str, bool | int | float]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "guard"}
        guard = {f"guard_{f.name}": getattr(self.guard, f.name) for f in fields(Guard)}
        return {k: v for k, v in {**own, **guard}.items() if k != "guard_recent"}

    @classmethod
    def of_state(cls, state: Mapping[str, object], path: str) -> Controller:
        """The controller of a state.

        Raises
        ------
        ValueError
            If anything in it does not fit, with the name of the leaf.
        """
        wanted = cls()._values()
        reader = StateReader(state, path, (*wanted, "guard_recent"))
        values: dict[str, Any] = {}
        for name, default in wanted.items():
            if isinstance(default, bool):
                values[name] = reader.flag(name)
            elif isinstance(default, int):
                values[name] = reader.integer(name)
            elif math.isfinite(default):
                values[name] = reader.number(name)
            else:
                values[name] = reader.number_or(name, default)
        guard = {name[6:]: values.pop(name) for name in wanted if name.startswith("guard_")}
        recent = reader.numbers("guard_recent", Guard.WINDOW)
        return cls(**values, guard=Guard(**guard, recent=recent))


def _finite_or_none(value: bool | int | float) -> bool | int | float | None:
    return value if math.isfinite(value) else None
