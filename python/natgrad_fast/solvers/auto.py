"""Which step solver stands for what a user gives."""

from __future__ import annotations

from ..model.mlp import MLP
from .base import StepSolver
from .cg import CG
from .kronecker import Kronecker

__all__ = ["as_solver"]

# Up to so many parameters solving exactly takes fewer seconds than many approximate steps; beyond,
# measured from 700 to 17,000, it is the other way round by a factor of 2 to 10.
FEW_PARAMETERS = 600


def as_solver(solver: object, net: MLP, curvature: str) -> StepSolver:
    """Return a step solver: the one that is given, or what "auto" stands for.

    "auto" is ``Kronecker()`` for a Fisher matrix or GGN of more than a few hundred parameters, else
    ``CG()``.

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(solver, StepSolver):
        return solver
    if isinstance(solver, str) and solver == "auto":
        is_fisher = curvature in ("fisher", "ggn")
        return Kronecker() if is_fisher and net.num_params > FEW_PARAMETERS else CG()
    hint = ": call it, to make one" if isinstance(solver, type) else ""
    raise TypeError(
        f'solver must be "auto" or one of natgrad_fast.solvers, such as solvers.CG(), '
        f"got {solver!r}{hint}"
    )
