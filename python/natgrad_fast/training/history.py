"""Records of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..linear.results import SolveInfo

__all__ = ["EpochInfo", "History", "StepInfo"]


@dataclass(frozen=True)
class StepInfo:
    """Record of one step; the keys never vary.

    Attributes
    ----------
    step : int
        Number of the step, from 0.
    loss, new_loss : float
        Objective of the batch before the step, and after it (tried, if it was rejected).
    reduction_ratio : float
        Actual over predicted change of the objective; -inf if `new_loss` is not finite.
    damping : float
        Damping that was used.
    gradient_norm, step_norm : float
        Euclidean; `step_norm` is 0 for a rejected step.
    learning_rate, momentum : float
        Factors of the solution and of the previous step.
    accepted : bool
    solve : SolveInfo
        Status, iterations and so on of the solver.
    seconds : float
    """

    step: int
    loss: float
    new_loss: float
    reduction_ratio: float
    damping: float
    gradient_norm: float
    step_norm: float
    learning_rate: float
    momentum: float
    accepted: bool
    solve: SolveInfo
    seconds: float


@dataclass(frozen=True)
class EpochInfo:
    """Record of one epoch.

    Attributes
    ----------
    epoch : int
        Number of the epoch, from 0.
    loss : float
        Mean of the objectives of its batches, each before its step.
    validation_loss : float or None
        Objective of the validation data after the epoch.
    seconds : float
    """

    epoch: int
    loss: float
    validation_loss: float | None
    seconds: float


@dataclass
class History:
    """Records of a call of `NaturalGradient.fit`.

    Attributes
    ----------
    steps : list of StepInfo
    epochs : list of EpochInfo
        One for every epoch of which at least one step was done.
    stop_reason : {"epochs", "time_limit", "callback", "interrupted", "damping_limit"}
        "damping_limit": a step was rejected at the largest damping that the policy allows, as
        happens when the objective can not be lowered any further in this float type.
    seconds : float
    """

    steps: list[StepInfo] = field(default_factory=list)
    epochs: list[EpochInfo] = field(default_factory=list)
    stop_reason: str = "epochs"
    seconds: float = 0.0
