"""Approximations of curvature matrices whose damped inverse costs little."""

from .base import Preconditioner
from .diagonal import DiagonalPreconditioner
from .kfac import EKFAC, KFAC, KLFAC, TEKFAC, TKFAC
from .nystrom import Nystrom

__all__ = [
    "EKFAC",
    "KFAC",
    "KLFAC",
    "TEKFAC",
    "TKFAC",
    "DiagonalPreconditioner",
    "Nystrom",
    "Preconditioner",
]
