"""The average of the parameters that a training goes through."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_name, as_number
from .._state import StateReader
from .._typing import Array, State

__all__ = ["Averaging", "ParameterAverage", "as_average"]

Averaging = Literal["polyak", "exponential"] | float | None

DECAY = 0.99  # that of K-FAC's published runs


class Mean(NamedTuple):
    """The mean of so many points; replaced at once, so that an interrupt leaves a whole one."""

    steps: int
    params: NDArray[np.float64] | None


class ParameterAverage:
    """A running mean of points theta_1, theta_2, ..., in float64.

    theta_1 weighs as much as (1 - w_2)(1 - w_3)..., where the k-th point comes in with the weight

        w_k = 1 / k                          uniform: Polyak & Juditsky 1992
        w_k = (1 - decay) / (1 - decay^k)    exponential: weights fall by `decay`, and sum to 1

    so that neither knows of where the training started.

    Parameters
    ----------
    decay : float or None
        In (0, 1); None for the uniform mean.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self._mean = Mean(0, None)

    def include(self, params: Array, count: int) -> None:
        """Take the point after step number `count`, from 1; a step that is there already is not.

        Cost: three passes over float64 vectors of length P.
        """
        if count <= self._mean.steps:
            return
        if self._mean.params is None:
            self._mean = Mean(count, params.astype(np.float64))
            return
        weight = 1.0 / count
        if self.decay is not None:
            weight = (1.0 - self.decay) / (1.0 - self.decay**count)
        difference = params - self._mean.params
        difference *= weight
        difference += self._mean.params
        self._mean = Mean(count, difference)

    def state_dict(self) -> State:
        """Decay, steps and mean, by name; a copy."""
        steps, params = self._mean
        return {
            "decay": self.decay,
            "steps": steps,
            "params": None if params is None else params.copy(),
        }

    @staticmethod
    def check_state(state: object, path: str, num_params: int) -> StateReader:
        """Check what `state_dict` returned; a ValueError names what does not fit."""
        reader = StateReader(state, path, ("decay", "steps", "params"))
        reader.integer("steps")
        reader.optional_array("params", (num_params,), np.dtype(np.float64))
        if reader["decay"] is not None:
            reader.number("decay", minimum=0.0, maximum=1.0)
        return reader

    def load_state_dict(self, state: State, num_params: int) -> None:
        """Put back what `state_dict` returned, of the same decay."""
        reader = self.check_state(state, "average", num_params)
        reader.same("decay", self.decay)
        params = reader.optional_array("params", (num_params,), np.dtype(np.float64))
        self._mean = Mean(
            reader.integer("steps"), None if params is None else params.astype(np.float64)
        )

    def params(self, like: Array) -> Array | None:
        """Return the mean (P,), a copy in the dtype of `like`; None before the first point."""
        mean = self._mean.params
        return None if mean is None else mean.astype(like.dtype)


def as_average(averaging: Averaging) -> ParameterAverage | None:
    """What the option of `fit` stands for.

    Raises
    ------
    ValueError, TypeError
        For other names and numbers that are no decay.
    """
    if averaging is None:
        return None
    if isinstance(averaging, str):
        name = as_name(averaging, "averaging", ("polyak", "exponential"))
        return ParameterAverage(None if name == "polyak" else DECAY)
    decay = as_number(averaging, "averaging", above=0.0)
    if decay >= 1.0:
        raise ValueError(f"averaging must be a decay < 1, got {decay}")
    return ParameterAverage(decay)
