"""What the loop over epochs asks of an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from .cursor import Cursor
from .damping import DampingPolicy
from .evidence import BayesianRegularization
from .history import StepInfo

__all__ = ["Trainee"]


class Trainee(Protocol):
    """What the loop asks of an optimizer."""

    net: MLP
    loss: Loss
    num_threads: int
    _rng: np.random.Generator
    _evidence: BayesianRegularization | None
    _unfinished: Cursor | Callable[[], Cursor] | None  # where a `fit` was left, or is

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay."""

    @property
    def damping_policy(self) -> DampingPolicy:
        """What chooses the damping."""

    @property
    def last_info(self) -> StepInfo | None:
        """Record of the last step."""

    def _step_of(self, batch: Batch, num_cases: float | None) -> StepInfo:
        """Take a step on a batch out of so many cases."""

    def _grown(self) -> bool:
        """Whether batches are to grow now."""

    def restore(self) -> bool:
        """Put back the last good parameters where the present ones are not finite."""
