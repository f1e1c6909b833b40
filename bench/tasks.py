"""What is asked of a contestant, and what it answers with.

A contestant is built for one case and its data and has a method for each quantity that it offers:
`peer.ggn(task)` sets up what is not timed and returns an `Entry`. Products with a vector are timed
on a linearisation that is kept where the contestant can keep one; the gradient, the K-FAC update,
the solves and the step have their forward passes inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .cases import Case, Data

DAMPING = 1e-2  # of K-FAC and of the solves
MAX_ITERATIONS = 500
QUANTITIES = {
    "gradient": "loss and gradient, forward pass included",
    "jvp": "J v",
    "vjp": "J'u",
    "ggn": "G v, generalized Gauss-Newton matrix",
    "mc_fisher": "F v, one draw per case; the draws are kept and the same for everyone",
    "empirical_fisher": "E v, second moment of the gradients of the cases",
    "hessian": "H v",
    "kfac_update": "K-FAC: forward pass, backward pass of one draw per case, moments of the layers",
    "kfac_refresh": "K-FAC: inverses of the damped factors",
    "kfac_apply": "K-FAC: inverse of the approximation times v",
    "solve": "(F + 1e-2 I) x = g from the net on: linearisation, preconditioner and iterations",
    "step": "one step of the optimizer on the batch",
}


@dataclass(frozen=True)
class Entry:
    """What is timed; and how its answer for the check is had, if not by calling it."""

    run: Callable[[], Any]
    probe: Callable[[], Any] | None = None

    def answer(self) -> Any:
        return (self.probe or self.run)()


@dataclass(frozen=True)
class Task:
    """One row: a quantity of a case, with vectors that are the same for every contestant."""

    case: Case
    data: Data
    quantity: str
    num_vectors: int
    v: np.ndarray  # (P,) or (P, K); of a solve the right-hand side
    u: np.ndarray  # (N C,) or (N C, K), for J'u
    draws: np.ndarray | None  # (N, C), gradients q_i of the loss at drawn targets
    rtol: float = 0.0

    def as_float64(self) -> Task:
        """The same numbers for the reference."""
        v, u = self.v.astype(np.float64), self.u.astype(np.float64)
        draws = None if self.draws is None else self.draws.astype(np.float64)
        data = self.data.as_float64()
        return Task(self.case, data, self.quantity, self.num_vectors, v, u, draws, self.rtol)


def split(sizes: tuple[int, ...], params: Any) -> list[tuple[Any, Any]]:
    """(..., P) -> per layer W (..., d_l, d_{l-1}) and b (..., d_l), as views."""
    layers, at = [], 0
    for i, o in pairwise(sizes):
        w = params[..., at : at + i * o].reshape(*params.shape[:-1], o, i)
        layers.append((w, params[..., at + i * o : at + (i + 1) * o]))
        at += (i + 1) * o
    return layers
