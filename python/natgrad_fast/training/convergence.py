"""When a training on all cases has converged."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import numpy as np

from .._arrays import as_number, dot
from .._state import StateReader
from .._typing import Array, DType, State
from .history import StepInfo

__all__ = ["Convergence", "Tolerance"]

Tolerance = float | Literal["auto"] | None

# Accepted steps over which the objective has to stand still, and steps at rounding in a row.
WINDOW = 10
AT_ROUNDING = 3


class Convergence:
    """Tolerances of a run, and what its steps have shown.

    Parameters
    ----------
    ftol : float, "auto" or None
        Least relative decrease of the objective over ten accepted steps; "auto" is 10 eps.
    gtol : float, "auto" or None
        Length of the gradient relative to the longest one of the run; "auto" is eps.
    xtol : float, "auto" or None
        Length of an accepted step relative to that of the parameters; "auto" is eps.
    dtype : dtype
        Of the net: eps is its machine epsilon.
    """

    def __init__(self, ftol: Tolerance, gtol: Tolerance, xtol: Tolerance, dtype: DType) -> None:
        eps = float(np.finfo(dtype).eps)
        self.ftol = _as_tolerance(ftol, "ftol", 10.0 * eps)
        self.gtol = _as_tolerance(gtol, "gtol", eps)
        self.xtol = _as_tolerance(xtol, "xtol", eps)
        self._losses: deque[float] = deque(maxlen=WINDOW + 1)
        self._longest = 0.0
        self._at_rounding = 0

    def state_dict(self) -> State:
        """What the steps have shown, by name."""
        return {
            "losses": list(self._losses),
            "longest": self._longest if math.isfinite(self._longest) else None,
            "at_rounding": self._at_rounding,
        }

    @staticmethod
    def check_state(state: object, path: str) -> StateReader:
        """Check what `state_dict` returned; a ValueError names what does not fit."""
        reader = StateReader(state, path, ("losses", "longest", "at_rounding"))
        reader.numbers("losses", WINDOW + 1)
        reader.number_or("longest", math.inf)
        reader.integer("at_rounding")
        return reader

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` returned."""
        reader = self.check_state(state, "convergence")
        self._losses = deque(reader.numbers("losses", WINDOW + 1), maxlen=WINDOW + 1)
        self._longest = reader.number_or("longest", math.inf)
        self._at_rounding = reader.integer("at_rounding")

    def reason(self, info: StepInfo, params: Array, num_threads: int) -> str | None:
        """Which tolerance is met after a step that led to `params`, or None."""
        if not math.isfinite(info.loss):
            return None
        self._longest = max(self._longest, info.gradient_norm)
        if self.gtol is not None and info.gradient_norm <= self.gtol * self._longest:
            return "gradient_tol"
        self._at_rounding = self._at_rounding + 1 if info.at_rounding else 0
        if self.ftol is not None and self._at_rounding >= AT_ROUNDING:
            return "objective_tol"
        if not info.accepted:
            return None
        length = math.sqrt(dot(params, params, num_threads))
        if self.xtol is not None and 0.0 < info.step_norm <= self.xtol * length:
            return "step_tol"
        if not self._losses:
            self._losses.append(info.loss)
        self._losses.append(info.new_loss)
        if self.ftol is None or len(self._losses) <= WINDOW:
            return None
        is_still = abs(self._losses[0] - self._losses[-1]) <= self.ftol * abs(self._losses[-1])
        return "objective_tol" if is_still else None


def _as_tolerance(x: Tolerance, name: str, automatic: float) -> float | None:
    if x is None:
        return None
    if isinstance(x, str):
        if x != "auto":
            raise ValueError(f'{name} must be a number >= 0, "auto" or None, got {x!r}')
        return automatic
    return as_number(x, name, minimum=0.0)
