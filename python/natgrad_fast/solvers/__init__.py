"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from .auto import as_solver
from .base import Direction, StepSolver
from .cg import CG
from .dense import Dense
from .kronecker import Kronecker

__all__ = ["CG", "Dense", "Direction", "Kronecker", "StepSolver", "as_solver"]
