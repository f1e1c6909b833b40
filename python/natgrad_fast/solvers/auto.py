"""Which step solver stands for what a user gives."""

from __future__ import annotations

from ..model.mlp import MLP
from .base import StepSolver
from .cg import CG
from .dense import Dense
from .kronecker import Kronecker
from .sample_space import SampleSpace

__all__ = ["as_solver"]

# Up to so many parameters (measured: 61 and 241) exact steps are ahead after the same time; beyond
# (340 to 17,000) those of K-FAC are, by a factor of 2 to 10.
FEW_PARAMETERS = 300


def as_solver(solver: object, net: MLP, curvature: str) -> StepSolver:
    """Return a step solver: the one that is given, or what "auto" stands for.

    "auto" is for a Fisher matrix or GGN ``Dense()`` of few parameters and ``Kronecker()`` of more,
    else ``CG()``.

    Raises
    ------
    TypeError, ValueError
        For anything else, or a solver that can not work with the curvature.
    """
    if isinstance(solver, SampleSpace) and solver.kernel == "exact" and curvature == "hessian":
        raise ValueError("a Hessian has no sample space: solvers.CG() solves with it")
    if isinstance(solver, StepSolver):
        return solver
    if isinstance(solver, str) and solver == "auto":
        if curvature not in ("fisher", "ggn"):
            return CG()
        return Dense() if net.num_params <= FEW_PARAMETERS else Kronecker()
    hint = ": call it, to make one" if isinstance(solver, type) else ""
    raise TypeError(
        f'solver must be "auto" or one of natgrad_fast.solvers, such as solvers.CG(), '
        f"got {solver!r}{hint}"
    )
