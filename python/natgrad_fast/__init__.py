"""Natural-gradient optimisation of dense feed-forward nets on CPUs.

Shapes, in every docstring: N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0
inputs), K vectors at once. Arrays are in C order; blocks of vectors are (P, K). Objectives and
curvature are means over cases; damping is absolute: B + damping * I.
"""

from . import losses, solvers
from ._core import __version__
from .config import default_num_threads, show_config
from .curvature import GGN, EmpiricalFisher, Fisher, Hessian
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .estimates import estimate_memory
from .history import EpochInfo, History, StepInfo
from .kronecker import EKFAC, KFAC, TEKFAC, TKFAC
from .krylov import cg, multishift_cg
from .mlp import MLP
from .nystrom import Nystrom
from .objective import value, value_and_grad
from .operators import Jacobian
from .optimizer import NaturalGradient
from .preconditioners import DiagonalPreconditioner
from .results import (
    BlockCGResult,
    CGIterate,
    CGResult,
    Estimate,
    MultishiftResult,
    SolveInfo,
    SolveResult,
    Status,
)
from .sample_space import SampleSpace, sample_space_solve
from .solve import estimate_solve, solve

__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "MLP",
    "TEKFAC",
    "TKFAC",
    "BlockCGResult",
    "CGIterate",
    "CGResult",
    "DampingPolicy",
    "DiagonalPreconditioner",
    "EmpiricalFisher",
    "EpochInfo",
    "Estimate",
    "Fisher",
    "Hessian",
    "History",
    "Jacobian",
    "LevenbergMarquardt",
    "MultishiftResult",
    "NaturalGradient",
    "Nystrom",
    "SampleSpace",
    "SolveInfo",
    "SolveResult",
    "Status",
    "StepInfo",
    "Tikhonov",
    "__version__",
    "cg",
    "default_num_threads",
    "estimate_memory",
    "estimate_solve",
    "losses",
    "multishift_cg",
    "sample_space_solve",
    "show_config",
    "solve",
    "solvers",
    "value",
    "value_and_grad",
]
