"""The preconditioners that step solvers know by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .base import Preconditioner
from .diagonal import DiagonalPreconditioner
from .kfac import EKFAC, KFAC, TEKFAC, TKFAC

__all__ = ["PRECONDITIONERS"]

# Each is made for a net and a loss, with seed and num_threads, and measures nothing yet.
PRECONDITIONERS: dict[str, Callable[..., Preconditioner]] = {
    "kfac": partial(KFAC, samples=1),
    "ekfac": partial(EKFAC, samples=1),
    "tkfac": partial(TKFAC, samples=1),
    "tekfac": partial(TEKFAC, samples=1),
    "diagonal": DiagonalPreconditioner,
}
