"""Losses: functions of targets y and of the net's outputs z, the natural parameters.

Each is summed over the outputs of a case and averaged over cases; the link function belongs to
the loss.

Values, gradients, matrices and means are within 8 units in the last place of the net's dtype, or
below its smallest normal number, for outputs of any size; where two terms of opposite sign cancel,
as in exp(z) - y, in units of the larger one. Diagonals of the Fisher matrix of
softmax_cross_entropy are within 12 units.
"""

from . import standard
from .base import Loss
from .standard import *  # noqa: F403

__all__ = ["Loss"]
__all__ += standard.__all__
