"""Where a `fit` is that has not come to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._state import StateReader
from .._typing import State
from .averaging import ParameterAverage
from .convergence import Convergence
from .generator import as_generator

__all__ = ["Cursor"]

# Callbacks whose state is kept.
MOST_CALLBACKS = 10_000


class Cursor(NamedTuple):
    """What the loop over epochs needs after a step to go on as if it had not been left."""

    epoch: int  # of the next step
    position: int  # cases of the epoch's order that were taken, or elements of an iterable
    num_steps: int  # so far
    num_cases: float  # that there are; infinite for an iterable
    size: int  # of the batches, 0 for an iterable
    is_sized: bool  # whether the size has followed the last step
    skipped: int  # batches
    non_finite: int  # batches in a row
    order: State  # random state that the order of the epoch is drawn with
    losses: NDArray[np.float64]  # (k,), of the epoch's steps
    convergence: State
    average: State | None
    callbacks: tuple[State | None, ...]  # name of the class, and its state

    @classmethod
    def start(cls, num_cases: float, size: int, rng: np.random.Generator) -> Cursor:
        """Before the first step."""
        order = dict(rng.bit_generator.state)
        nothing = np.empty(0)
        return cls(0, 0, 0, num_cases, size, True, 0, 0, order, nothing, {}, None, ())

    def state(self) -> State:
        """Plain values and arrays by name."""
        is_known = math.isfinite(self.num_cases)
        return {
            **self._asdict(),
            "num_cases": int(self.num_cases) if is_known else None,
            "losses": self.losses.copy(),
            "callbacks": list(self.callbacks),
        }

    @classmethod
    def of_state(cls, state: object, path: str, num_params: int) -> Cursor:
        """Check and read what `state` returned.

        Raises
        ------
        ValueError
            If anything in it does not fit, with the name of the leaf.
        """
        reader = StateReader(state, path, cls._fields)
        num_steps = reader.integer("num_steps")
        losses = reader["losses"]
        shape = losses.shape if isinstance(losses, np.ndarray) else (0,)
        if len(shape) != 1 or shape[0] > num_steps:
            raise reader.refuse("losses", f"an array (k,) of float64, k <= {num_steps}")
        average = reader["average"]
        if average is not None:
            ParameterAverage.check_state(average, reader.path("average"), num_params)
        Convergence.check_state(reader["convergence"], reader.path("convergence"))
        as_generator(reader, "order")
        is_known = reader["num_cases"] is not None
        return cls(
            epoch=reader.integer("epoch"),
            position=reader.integer("position"),
            num_steps=num_steps,
            num_cases=reader.integer("num_cases", 1) if is_known else math.inf,
            size=reader.integer("size"),
            is_sized=reader.flag("is_sized"),
            skipped=reader.integer("skipped"),
            non_finite=reader.integer("non_finite"),
            order=_plain(reader["order"]),
            losses=reader.array("losses", shape, np.dtype(np.float64)).astype(np.float64),
            convergence=_plain(reader["convergence"]),
            average=None if average is None else _plain(average),
            callbacks=_callbacks(reader),
        )


def _plain(state: Mapping[str, Any]) -> State:
    return dict(state)


def _callbacks(reader: StateReader) -> tuple[State | None, ...]:
    found = reader["callbacks"]
    if not isinstance(found, list | tuple) or len(found) > MOST_CALLBACKS:
        raise reader.refuse("callbacks", "a list of states")
    result: list[State | None] = []
    for place, item in enumerate(found):
        if item is not None:
            inner = StateReader(item, f"{reader.path('callbacks')}[{place}]", ("name", "state"))
            if not isinstance(inner["name"], str):
                raise inner.refuse("name", "the name of a class")
            if not isinstance(inner["state"], Mapping):
                raise inner.refuse("state", "a mapping")
        result.append(None if item is None else _plain(item))
    return tuple(result)
