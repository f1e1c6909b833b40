"""What the state of an optimizer belongs to."""

from __future__ import annotations

from .._arrays import Decay
from .._typing import State
from ..losses import Loss
from ..model.mlp import MLP
from .exact import ExactSteps

__all__ = ["identity"]


def identity(
    net: MLP, loss: Loss, steps: ExactSteps, l2: Decay, curvature_share: float, seed: int
) -> State:
    """What has to be the same where a state is put back: plain values by name."""
    return {
        "sizes": net.sizes,
        "activations": net.activations,
        "bias": net.layout[1],
        "dtype": str(net.dtype),
        "loss": repr(loss),
        "curvature": steps.curvature,
        "momentum": steps.momentum,
        "l2": tuple(l2) if steps.evidence is None else repr(steps.evidence),
        "curvature_share": curvature_share,
        "curvature_seed": None if curvature_share == 1.0 else seed,
        "solver_name": type(steps.solver).__name__,
        "damping_name": type(steps.policy).__name__,
    }
