"""The preconditioners that step solvers know by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..losses import Loss
from ..model.mlp import MLP
from .base import Preconditioner
from .diagonal import DiagonalPreconditioner
from .kfac import EKFAC, KFAC, KLFAC, TEKFAC, TKFAC
from .nystrom import Nystrom

__all__ = ["PRECONDITIONERS"]


def _nystrom(net: MLP, loss: Loss, *, seed: int, num_threads: int | None) -> Nystrom:
    rank = min(20, net.num_params)
    return Nystrom(net, loss, rank=rank, seed=seed, num_threads=num_threads)


# Each is made for a net and a loss, with seed and num_threads, and measures nothing yet.
PRECONDITIONERS: dict[str, Callable[..., Preconditioner]] = {
    "kfac": partial(KFAC, samples=1),
    "ekfac": partial(EKFAC, samples=1),
    "tkfac": partial(TKFAC, samples=1),
    "tekfac": partial(TEKFAC, samples=1),
    "kl": partial(KLFAC, samples=1),
    "diagonal": DiagonalPreconditioner,
    "nystrom": _nystrom,
}
