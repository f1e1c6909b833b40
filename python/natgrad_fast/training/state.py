"""The state of an optimizer: what a resumed run needs besides the net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from .._state import StateReader, inside
from .._typing import State
from ..model.mlp import MLP
from ..solvers import StepSolver
from .cursor import Cursor
from .damping import DampingPolicy
from .exact import ExactSteps
from .generator import as_generator
from .progress import Progress
from .stochastic import StochasticSteps

__all__ = ["load_optimizer_state", "optimizer_state"]


class Resumable(Protocol):
    """What a state is of."""

    net: MLP
    _exact: ExactSteps
    _progress: Progress
    _stochastic: StochasticSteps | None
    _rng: np.random.Generator
    _unfinished: Cursor | Callable[[], Cursor] | None

    @property
    def solver(self) -> StepSolver:
        """The step solver."""

    @property
    def damping_policy(self) -> DampingPolicy:
        """What chooses the damping."""

    def _identity(self) -> State:
        """What has to be the same where the state is put back."""

    def _make_stochastic(self) -> StochasticSteps:
        """Steps on mini-batches that have not begun."""


def optimizer_state(optimizer: Resumable) -> State:
    """See `NaturalGradient.state_dict`."""
    steps, unfinished = optimizer._stochastic, optimizer._unfinished
    cursor = unfinished() if callable(unfinished) else unfinished
    return {
        **optimizer._identity(),
        **optimizer._progress.state(),
        "damping": optimizer.damping_policy.state_dict(),
        "solver": optimizer.solver.state_dict(),
        "statistics": None if steps is None else steps.preconditioner.state_dict(),
        "rng": optimizer._rng.bit_generator.state,
        "fit": None if cursor is None else cursor.state(),
    }


def load_optimizer_state(optimizer: Resumable, state: Mapping[str, object]) -> None:
    """See `NaturalGradient.load_state_dict`."""
    fixed, net = optimizer._identity(), optimizer.net
    names = (*optimizer._progress.state(), "damping", "solver", "statistics", "rng", "fit")
    reader = StateReader(state, "state", (*fixed, *names))
    for name, wanted in fixed.items():
        reader.same(name, wanted)
    progress = Progress.of_state(reader, net.num_params, net.dtype)
    rng = as_generator(reader)
    cursor = None
    if reader["fit"] is not None:
        cursor = Cursor.of_state(reader["fit"], reader.path("fit"), net.num_params)
    stochastic = None
    if reader["statistics"] is not None:
        stochastic = optimizer._make_stochastic()
        with inside(reader.path("statistics")):
            stochastic.preconditioner.load_state_dict(reader["statistics"])
    with optimizer._exact.kept_if_it_fails():
        with inside(reader.path("damping")):
            optimizer.damping_policy.load_state_dict(reader["damping"])
        with inside(reader.path("solver")):
            optimizer.solver.load_state_dict(reader["solver"])
    optimizer._rng, optimizer._progress, optimizer._stochastic = rng, progress, stochastic
    optimizer._unfinished = cursor
