"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from .auto import as_solver
from .base import Direction, StepSolver
from .cg import CG
from .dense import Dense

__all__ = ["CG", "Dense", "Direction", "StepSolver", "as_solver"]
