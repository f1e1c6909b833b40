"""Policies that bound the length of a step instead of choosing its damping."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .._arrays import as_count, as_number
from .._state import StateReader
from .._typing import State
from .damping import DampingPolicy
from .trials import Trial, Trials

__all__ = ["RadiusSearch", "TrustRegion"]


class _Bounded(DampingPolicy):
    """What policies of a radius share: the radius, and the damping that went with the last one."""

    has_momentum = False

    def __init__(self, radius: float | None, max_radius: float) -> None:
        self.max_radius = as_number(max_radius, "max_radius", above=0.0)
        self.initial = None if radius is None else as_number(radius, "radius", above=0.0)
        if self.initial is not None and self.initial > self.max_radius:
            raise ValueError(f"radius must be <= max_radius = {max_radius:g}, got {radius}")
        self._radius = self.initial
        self._damping = 0.0
        self._tried: tuple[float, float] | None = None  # radius and length of the last step

    def __repr__(self) -> str:
        """Name and radius of the next step."""
        radius = "not chosen yet" if self._radius is None else f"{self._radius:g}"
        return f"<{type(self).__name__}, radius {radius}>"

    @property
    def value(self) -> float:
        """Damping that the last step turned out to have; 0 before the first."""
        return self._damping

    @property
    def radius(self) -> float | None:
        """Radius of the next step; None before the first one, which chooses it."""
        return self._radius

    def _begin(self, trials: Trials) -> float:
        """The radius, by default that of the Cauchy step."""
        if self._radius is None:
            length = trials.cauchy_length()
            bounded = math.isfinite(length) and length > 0.0
            self._radius = min(length, self.max_radius) if bounded else self.max_radius
        return self._radius

    def state_dict(self) -> State:
        """Radius, damping and options."""
        return {"radius": self._radius, "damping": self._damping, **self._options()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `DampingPolicy.load_state_dict`."""
        options = self._options()
        reader = StateReader(state, "state", ("radius", "damping", *options))
        for name, wanted in options.items():
            reader.same(name, wanted)
        radius = None
        if reader["radius"] is not None:
            radius = reader.number("radius", above=0.0, maximum=self.max_radius)
        damping = reader.number("damping", minimum=0.0)
        self._radius, self._damping, self._tried = radius, damping, None

    def _options(self) -> State:
        raise NotImplementedError


class TrustRegion(_Bounded):
    """The step minimises the undamped model over |d| <= radius (Moré & Sorensen 1983).

    The damping follows from the radius: by conjugate gradients that end at the boundary (Steihaug
    1983) for ``solvers.CG``, else by Newton's method on 1 / |d(damping)| = 1 / radius, whose
    iterations cost a factorisation each; ``solvers.Dense`` and ``solvers.SampleSpace`` keep
    eigenvectors from the fourth on.

    Parameters
    ----------
    radius : float, optional
        First radius, > 0; the length of the Cauchy step by default.
    shrink, grow : float
        Factors of the radius, in (0, 1) and > 1.
    low, high : float
        Reduction ratio below which the radius shrinks, and above which it grows if the step ended
        at the boundary (Nocedal & Wright 2006, algorithm 4.1).
    max_radius : float

    Notes
    -----
    Steps have neither learning rate nor momentum. The region is a ball in the parameters as they
    are, and d(damping) minimises the model over |d| <= |d(damping)|: the same path of steps as that
    of Tikhonov dampings.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error", damping=ng.TrustRegion(0.5))
    >>> info = opt.step(X, np.sin(3 * X))
    >>> info.accepted, info.step_norm < 0.55
    (True, True)
    """

    def __init__(
        self,
        radius: float | None = None,
        *,
        shrink: float = 0.25,
        grow: float = 2.0,
        low: float = 0.25,
        high: float = 0.75,
        max_radius: float = 1e10,
    ) -> None:
        super().__init__(radius, max_radius)
        self.shrink = as_number(shrink, "shrink", above=0.0)
        self.grow = as_number(grow, "grow", above=1.0)
        if self.shrink >= 1.0:
            raise ValueError(f"shrink must be < 1, got {shrink}")
        self.low, self.high = as_number(low, "low"), as_number(high, "high")
        if self.low >= self.high:
            raise ValueError(f"low must be < high, got {low} and {high}")

    def search(self, trials: Trials) -> Trial:
        """Solve within the radius."""
        radius = self._begin(trials)
        trial = trials.within(radius, self._damping)
        self._damping, self._tried = trial.damping, (radius, trial.length)
        return trial

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Shrink or grow the radius."""
        if self._radius is None or self._tried is None:
            return
        radius, length = self._tried
        if not accepted or reduction_ratio < self.low:
            self._radius = max(self.shrink * min(radius, length), np.finfo(float).tiny)
        elif reduction_ratio > self.high and length >= 0.8 * radius:
            self._radius = min(self.grow * radius, self.max_radius)

    def _options(self) -> State:
        names = ("initial", "shrink", "grow", "low", "high", "max_radius")
        return {name: getattr(self, name) for name in names}


class RadiusSearch(_Bounded):
    """After one factorisation many radii, of which the largest that keeps its promise is taken.

    Radii from ``span * radius`` down to ``radius / span``, on a logarithmic grid of dampings, are
    tried until the reduction ratio is at least `threshold`: a much lower bound than that of trust
    regions, since what was tried is known (radius probing, as for residual nets). The radius that
    was taken is the middle of the next search.

    Parameters
    ----------
    radius : float, optional
        First radius, > 0; the length of the Cauchy step by default.
    num_radii : int
        Most steps that are tried, >= 2.
    span : float
        > 1.
    threshold : float
        Least reduction ratio, in (0, 1).
    max_radius : float

    Notes
    -----
    For ``solvers.Dense`` and ``solvers.SampleSpace``, where a damping costs little after the
    first; every radius that is tried costs a forward pass and a quadratic form. Steps have neither
    learning rate nor momentum. A `maximum` damping ends a fit, as for other policies.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> solver = ng.solvers.Dense()
    >>> opt = ng.NaturalGradient(net, "squared_error", solver=solver, damping=ng.RadiusSearch())
    >>> opt.step(X, np.sin(3 * X)).reduction_ratio >= 0.1
    True
    """

    def __init__(
        self,
        radius: float | None = None,
        *,
        num_radii: int = 24,
        span: float = 3.0,
        threshold: float = 0.1,
        max_radius: float = 1e10,
    ) -> None:
        super().__init__(radius, max_radius)
        self.num_radii = as_count(num_radii, "num_radii", 2)
        self.span = as_number(span, "span", above=1.0)
        self.threshold = as_number(threshold, "threshold", above=0.0)
        if self.threshold >= 1.0:
            raise ValueError(f"threshold must be < 1, got {threshold}")

    def search(self, trials: Trials) -> Trial:
        """Try radii from the largest on."""
        radius = self._begin(trials)
        trials.solver.expect(self.num_radii)
        largest = min(self.span * radius, self.max_radius)
        trial = trials.within(largest, self._damping)
        if not self._keeps_promise(trial, trials.loss):
            trial = self._scan(trials, largest, radius / self.span, trial.damping)
        self._damping, self._tried = trial.damping, (radius, trial.length)
        return trial

    def _scan(self, trials: Trials, largest: float, smallest: float, damping: float) -> Trial:
        """The first of the smaller radii that keeps its promise, or the last one."""
        end = trials.within(smallest, max(damping, self._damping))
        if end.damping > 0.0:
            first = max(damping, np.finfo(float).eps * end.damping)
            grid = np.geomspace(first, end.damping, self.num_radii)
            others = (trials.at(float(value), fixed=True) for value in grid[1:-1])
        else:  # the solver finds the boundary without a damping
            grid = np.geomspace(largest, smallest, self.num_radii)
            others = (trials.within(float(value), 0.0) for value in grid[1:-1])
        kept = (trial for trial in others if self._keeps_promise(trial, trials.loss))
        return next(kept, end)

    def _keeps_promise(self, trial: Trial, loss: float) -> bool:
        return trial.at_rounding or (trial.is_descent(loss) and trial.ratio(loss) >= self.threshold)

    def update(self, reduction_ratio: float, accepted: bool) -> None:
        """Search about the radius that was taken, or about smaller ones."""
        if self._radius is None or self._tried is None:
            return
        radius, length = self._tried
        if not accepted:
            radius /= self.span**2
        elif not math.isnan(reduction_ratio) and length > 0.0:
            radius = length
        self._radius = min(max(radius, np.finfo(float).tiny), self.max_radius)

    def _options(self) -> State:
        names = ("initial", "num_radii", "span", "threshold", "max_radius")
        return {name: getattr(self, name) for name in names}
