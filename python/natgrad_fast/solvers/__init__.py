"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from .auto import as_solver
from .base import Direction, StepSolver
from .cg import CG
from .dense import Dense
from .kronecker import Kronecker
from .sample_space import SampleSpace

__all__ = ["CG", "Dense", "Direction", "Kronecker", "SampleSpace", "StepSolver", "as_solver"]
