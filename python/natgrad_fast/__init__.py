"""Natural-gradient optimisation of dense feed-forward nets on CPUs.

Shapes, in every docstring: N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0
inputs), K vectors at once. Arrays are in C order; blocks of vectors are (P, K). Objectives and
curvature are means over cases; damping is absolute: B + damping * I.
"""

from . import losses, solvers
from ._core import __version__
from .config import default_num_threads, show_config
from .damping import DampingPolicy, LevenbergMarquardt, Tikhonov
from .history import EpochInfo, History, StepInfo
from .krylov import cg, multishift_cg
from .mlp import MLP
from .nystrom import Nystrom
from .objective import value, value_and_grad
from .operators import GGN, Fisher, Jacobian
from .optimizer import NaturalGradient
from .results import BlockCGResult, CGIterate, CGResult, MultishiftResult, SolveInfo, Status

__all__ = [
    "GGN",
    "MLP",
    "BlockCGResult",
    "CGIterate",
    "CGResult",
    "DampingPolicy",
    "EpochInfo",
    "Fisher",
    "History",
    "Jacobian",
    "LevenbergMarquardt",
    "MultishiftResult",
    "NaturalGradient",
    "Nystrom",
    "SolveInfo",
    "Status",
    "StepInfo",
    "Tikhonov",
    "__version__",
    "cg",
    "default_num_threads",
    "losses",
    "multishift_cg",
    "show_config",
    "solvers",
    "value",
    "value_and_grad",
]
