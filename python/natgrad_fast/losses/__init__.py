"""Losses: functions of targets y and of the net's outputs z, the natural parameters.

Each is summed over the outputs of a case and averaged over cases; the link function belongs to
the loss.
"""

from . import standard
from .base import Loss
from .standard import *  # noqa: F403

__all__ = ["Loss"]
__all__ += standard.__all__
