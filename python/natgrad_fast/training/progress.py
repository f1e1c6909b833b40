"""Where a run is: what the next step starts from."""

from __future__ import annotations

import math
from typing import NamedTuple

from .._state import StateReader
from .._typing import Array, DType, State
from .controller import Controller
from .history import StepInfo

__all__ = ["Moving", "Progress"]


class Moving(NamedTuple):
    """What a stochastic step starts from."""

    controller: Controller = Controller()
    velocity: Array | None = None  # (P,)
    displacement: Array | None = None  # (P,), e of the last step
    slope: float = math.nan  # g'e of the last step
    good: Array | None = None  # (P,), the point to retreat to


class Progress(NamedTuple):
    """The whole; replaced at once, after the parameters."""

    step: int = 0  # number of the next step
    last_solution: Array | None = None  # (P,), of the last solve: the next one's start
    last_update: Array | None = None  # (P,), d_prev of an exact step
    moving: Moving = Moving()
    info: StepInfo | None = None  # of the last step
    params: Array | None = None  # (P,), where the last accepted step led to
    l2: float | None = None  # of the next step, where the data choose it

    @property
    def told(self) -> StepInfo:
        """The record of the last step, of which there is one."""
        assert self.info is not None
        return self.info

    def state(self) -> State:
        """What a resumed run needs, by name; arrays are copies."""
        arrays = {
            "last_solution": self.last_solution,
            "last_update": self.last_update,
            "velocity": self.moving.velocity,
            "displacement": self.moving.displacement,
            "good": self.moving.good,
        }
        return {
            "step": self.step,
            "chosen_l2": self.l2,
            **{name: None if array is None else array.copy() for name, array in arrays.items()},
            "slope": self.moving.slope if math.isfinite(self.moving.slope) else None,
            "controller": self.moving.controller.state_dict(),
        }

    @classmethod
    def of_state(cls, reader: StateReader, num_params: int, dtype: DType) -> Progress:
        """Check and read what `state` returned."""

        def array(name: str) -> Array | None:
            return reader.optional_array(name, (num_params,), dtype)

        moving = Moving(
            Controller.of_state(reader["controller"], reader.path("controller")),
            array("velocity"),
            array("displacement"),
            reader.number_or("slope", math.nan),
            array("good"),
        )
        chosen = reader["chosen_l2"]
        l2 = None if chosen is None else reader.number("chosen_l2", above=0.0)
        step, solution, update = (
            reader.integer("step"),
            array("last_solution"),
            array("last_update"),
        )
        return cls(step, solution, update, moving, l2=l2)
