"""The optimizer, its damping, and the loop over epochs and mini-batches."""

from . import callbacks
from .controller import ControllerInfo
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .history import EpochInfo, History, StepInfo
from .optimizer import NaturalGradient
from .schedule import BatchSchedule

__all__ = [
    "BatchSchedule",
    "ControllerInfo",
    "DampingPolicy",
    "EpochInfo",
    "History",
    "LevenbergMarquardt",
    "NaturalGradient",
    "StepInfo",
    "Tikhonov",
    "callbacks",
]
