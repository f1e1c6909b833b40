"""Solvers of (A + damping I) x = b."""

from .auto import estimate_solve, solve
from .cg import cg
from .dense import dense_solve
from .multishift import multishift_cg
from .results import (
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
)
from .samples import sample_space_solve

__all__ = [
    "BlockCGResult",
    "BlockSolveResult",
    "CGIterate",
    "CGResult",
    "Estimate",
    "KernelSpectrum",
    "MultishiftResult",
    "RowsSolveResult",
    "SolveInfo",
    "SolveResult",
    "Status",
    "cg",
    "dense_solve",
    "estimate_solve",
    "multishift_cg",
    "sample_space_solve",
    "solve",
]
