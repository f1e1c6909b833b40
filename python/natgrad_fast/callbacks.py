"""What `NaturalGradient.fit` can call after every step."""

from .io import Checkpoint
from .training.callbacks import (
    Callback,
    EarlyStopping,
    JSONLines,
    Log,
    StopTraining,
    TrainingContext,
)

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "JSONLines",
    "Log",
    "StopTraining",
    "TrainingContext",
]
