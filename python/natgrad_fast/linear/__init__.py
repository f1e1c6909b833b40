"""Solvers of (A + damping I) x = b."""

from .auto import estimate_solve, solve
from .cg import cg
from .multishift import multishift_cg
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

__all__ = [
    "BlockCGResult",
    "CGIterate",
    "CGResult",
    "Estimate",
    "MultishiftResult",
    "SampleSpace",
    "SolveInfo",
    "SolveResult",
    "Status",
    "cg",
    "estimate_solve",
    "multishift_cg",
    "sample_space_solve",
    "solve",
]
