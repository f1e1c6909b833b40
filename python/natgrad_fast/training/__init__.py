"""The optimizer, its damping, and the loop over epochs and mini-batches."""

from . import callbacks
from .controller import ControllerInfo
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .evidence import BayesianRegularization
from .history import EpochInfo, History, StepInfo
from .optimizer import NaturalGradient
from .schedule import BatchSchedule
from .trials import Trial, Trials
from .trust_region import RadiusSearch, TrustRegion

__all__ = [
    "BatchSchedule",
    "BayesianRegularization",
    "ControllerInfo",
    "DampingPolicy",
    "EpochInfo",
    "History",
    "LevenbergMarquardt",
    "NaturalGradient",
    "RadiusSearch",
    "StepInfo",
    "Tikhonov",
    "Trial",
    "Trials",
    "TrustRegion",
    "callbacks",
]
