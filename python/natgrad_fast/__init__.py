"""Natural-gradient optimisation of dense feed-forward nets on CPUs.

Shapes, in every docstring: N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0
inputs), K vectors at once. Arrays are in C order; blocks of vectors are (P, K). Objectives and
curvature are means over cases; damping is absolute: B + damping * I.
"""

from . import losses, solvers
from ._core import __version__
from .config import default_num_threads, release_memory, show_config
from .linear import (
    BlockCGResult,
    BlockSolveResult,
    CGIterate,
    CGResult,
    Estimate,
    KernelSpectrum,
    MultishiftResult,
    RowsSolveResult,
    SolveInfo,
    SolveResult,
    Status,
    cg,
    dense_solve,
    estimate_solve,
    multishift_cg,
    sample_space_solve,
    solve,
)
from .model import MLP, Batch, value, value_and_grad
from .operators import (
    GGN,
    DenseMatrix,
    EmpiricalFisher,
    Fisher,
    Hessian,
    Jacobian,
    SampleSpace,
    estimate_memory,
)
from .preconditioners import EKFAC, KFAC, TEKFAC, TKFAC, DiagonalPreconditioner, Nystrom
from .training import (
    BatchSchedule,
    ControllerInfo,
    DampingPolicy,
    EpochInfo,
    History,
    LevenbergMarquardt,
    NaturalGradient,
    StepInfo,
    Tikhonov,
    callbacks,
)

__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "MLP",
    "TEKFAC",
    "TKFAC",
    "Batch",
    "BatchSchedule",
    "BlockCGResult",
    "BlockSolveResult",
    "CGIterate",
    "CGResult",
    "ControllerInfo",
    "DampingPolicy",
    "DenseMatrix",
    "DiagonalPreconditioner",
    "EmpiricalFisher",
    "EpochInfo",
    "Estimate",
    "Fisher",
    "Hessian",
    "History",
    "Jacobian",
    "KernelSpectrum",
    "LevenbergMarquardt",
    "MultishiftResult",
    "NaturalGradient",
    "Nystrom",
    "RowsSolveResult",
    "SampleSpace",
    "SolveInfo",
    "SolveResult",
    "Status",
    "StepInfo",
    "Tikhonov",
    "__version__",
    "callbacks",
    "cg",
    "default_num_threads",
    "dense_solve",
    "estimate_memory",
    "estimate_solve",
    "losses",
    "multishift_cg",
    "release_memory",
    "sample_space_solve",
    "show_config",
    "solve",
    "solvers",
    "value",
    "value_and_grad",
]
