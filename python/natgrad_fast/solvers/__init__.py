"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from .auto import as_solver
from .base import Direction, StepSolver
from .cg import CG

__all__ = ["CG", "Direction", "StepSolver", "as_solver"]
