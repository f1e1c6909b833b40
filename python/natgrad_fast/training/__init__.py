"""The optimizer, its damping, and the loop over epochs and mini-batches."""

from . import callbacks
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .history import EpochInfo, History, StepInfo
from .optimizer import NaturalGradient

__all__ = [
    "DampingPolicy",
    "EpochInfo",
    "History",
    "LevenbergMarquardt",
    "NaturalGradient",
    "StepInfo",
    "Tikhonov",
    "callbacks",
]
