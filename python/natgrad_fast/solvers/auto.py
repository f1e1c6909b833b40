"""Which step solver stands for what a user gives."""

from __future__ import annotations

from .base import StepSolver
from .cg import CG

__all__ = ["as_solver"]


def as_solver(solver: object) -> StepSolver:
    """Return a step solver: the one that is given, or ``CG()`` for "auto".

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(solver, StepSolver):
        return solver
    if isinstance(solver, str) and solver == "auto":
        return CG()
    hint = ": call it, to make one" if isinstance(solver, type) else ""
    raise TypeError(
        f'solver must be "auto" or one of natgrad_fast.solvers, such as solvers.CG(), '
        f"got {solver!r}{hint}"
    )
