"""Natural-gradient optimisation of dense feed-forward nets on CPUs.

Shapes, in every docstring: N cases, C outputs, P parameters, L layers, d_l width of layer l (d_0
inputs), K vectors at once. Arrays are in C order; blocks of vectors are (P, K). Objectives and
curvature are means over cases; damping is absolute: B + damping * I.
"""

import importlib
from types import ModuleType

from . import callbacks, datasets, losses, solvers
from ._core import __version__
from ._warnings import NatgradWarning
from .config import default_num_threads, release_memory, show_config
from .io import load, save
from .laplace import Laplace
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
from .preconditioners import (
    EKFAC,
    KFAC,
    KLFAC,
    TEKFAC,
    TKFAC,
    DiagonalPreconditioner,
    Nystrom,
)
from .training import (
    BatchSchedule,
    BayesianRegularization,
    ControllerInfo,
    DampingPolicy,
    EpochInfo,
    History,
    LevenbergMarquardt,
    NaturalGradient,
    RadiusSearch,
    StepInfo,
    Tikhonov,
    Trial,
    Trials,
    TrustRegion,
)

__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "KLFAC",
    "MLP",
    "TEKFAC",
    "TKFAC",
    "Batch",
    "BatchSchedule",
    "BayesianRegularization",
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
    "Laplace",
    "LevenbergMarquardt",
    "MultishiftResult",
    "NatgradWarning",
    "NaturalGradient",
    "Nystrom",
    "RadiusSearch",
    "RowsSolveResult",
    "SampleSpace",
    "SolveInfo",
    "SolveResult",
    "Status",
    "StepInfo",
    "Tikhonov",
    "Trial",
    "Trials",
    "TrustRegion",
    "__version__",
    "callbacks",
    "cg",
    "datasets",
    "default_num_threads",
    "dense_solve",
    "estimate_memory",
    "estimate_solve",
    "load",
    "losses",
    "multishift_cg",
    "release_memory",
    "sample_space_solve",
    "save",
    "show_config",
    "solve",
    "solvers",
    "value",
    "value_and_grad",
]

# What needs an extra is imported when it is first used: `ng.sklearn`, `ng.torch`.
_ON_DEMAND = {
    "onnx": ".io.onnx",
    "plots": ".plots",
    "sklearn": ".sklearn",
    "torch": ".io.torch",
}


def __getattr__(name: str) -> ModuleType:
    """Import a module on demand."""
    if name in _ON_DEMAND:
        return importlib.import_module(_ON_DEMAND[name], __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names, those of modules on demand included."""
    return sorted({*globals(), *_ON_DEMAND})
