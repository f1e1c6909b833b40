"""What Krylov solvers return."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._typing import Array

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
]


class Status(enum.StrEnum):
    """Why a solver stopped; equal to its name as a string."""

    CONVERGED = "converged"
    RELATIVE_PROGRESS = "relative_progress"
    TRUST_RADIUS = "trust_radius"
    MAX_ITERATIONS = "max_iterations"
    STAGNATED = "stagnated"
    NEGATIVE_CURVATURE = "negative_curvature"
    INDEFINITE_PRECONDITIONER = "indefinite_preconditioner"
    NON_FINITE = "non_finite"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    SINGULAR = "singular"
    OUT_OF_RANGE = "out_of_range"
    APPROXIMATE = "approximate"

    @property
    def success(self) -> bool:
        """Whether the stopping rule that was asked for is met."""
        return self in (Status.CONVERGED, Status.RELATIVE_PROGRESS, Status.TRUST_RADIUS)

    @property
    def advice(self) -> str:
        """What it means and what to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: "The true residual is within the tolerance.",
    Status.RELATIVE_PROGRESS: "The quadratic hardly decreases any more.",
    Status.TRUST_RADIUS: "The solution lies outside of the trust radius: x is on its boundary.",
    Status.MAX_ITERATIONS: "Not converged: raise max_iter or damping, or use a preconditioner.",
    Status.STAGNATED: (
        "Rounding leaves no more digits: raise rtol or damping, or use float64 in place of float32."
    ),
    Status.NEGATIVE_CURVATURE: "A + damping I is not positive definite: raise damping.",
    Status.INDEFINITE_PRECONDITIONER: "The preconditioner is not positive definite.",
    Status.NON_FINITE: "NaN or Inf in a product or in b: check the operator, the net and the data.",
    Status.STOPPED: "The callback asked to stop.",
    Status.INTERRUPTED: "Stopped by Ctrl-C; x is the last iterate.",
    Status.SINGULAR: (
        "A + damping I is singular, at least to rounding: raise damping. x has the least residual "
        "that was found."
    ),
    Status.APPROXIMATE: "x is that of an approximate inverse; nothing was iterated.",
    Status.OUT_OF_RANGE: (
        "The solution is too large or too small for this float type: scale A or b, or use float64 "
        "in place of float32."
    ),
}


@dataclass(frozen=True)
class SolveInfo:
    """Record of one solve of (A + damping I) x = b.

    Attributes
    ----------
    status : Status
    iterations : int
    residual_norm : float
        |b - (A + damping I) x|, computed from x.
    quadratic : float
        x' (A + damping I) x / 2 - b'x.
    matvecs : int
        Products with A, those for the true residual included.
    seconds : float
    flops : float
        Of the products and the vector operations; NaN if A does not tell `flops_per_product`. Those
        of the preconditioner are not counted.
    """

    status: Status
    iterations: int
    residual_norm: float
    quadratic: float
    matvecs: int
    seconds: float
    flops: float


class CGIterate(NamedTuple):
    """Iterate `x` (P,) of number `iteration`, with its value of the quadratic."""

    iteration: int
    x: Array
    quadratic: float


@dataclass(frozen=True, eq=False)
class CGResult(SolveInfo):
    """`SolveInfo` with the solution `x` (P,), and the `iterates` that were kept."""

    x: Array
    iterates: tuple[CGIterate, ...] = ()

    @property
    def info(self) -> SolveInfo:
        """The record without the vectors."""
        return SolveInfo(
            self.status,
            self.iterations,
            self.residual_norm,
            self.quadratic,
            self.matvecs,
            self.seconds,
            self.flops,
        )


class Estimate(NamedTuple):
    """What a way to solve is expected to take.

    `cost` is in flops at the rate of products, where slower ones count several times; `iterations`
    is 0 for exact methods.
    """

    flops: float
    bytes: float
    cost: float
    iterations: int


@dataclass(frozen=True, eq=False)
class SolveResult(CGResult):
    """`CGResult` with the `method` that was used, and the `estimates` it was picked by, if any."""

    method: str = ""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


class KernelSpectrum(NamedTuple):
    """What is known of the eigenvalues of a kernel K = U'U (n, n).

    Attributes
    ----------
    smallest, largest : float
        Eigenvalues of K. Those that are negative by rounding are 0.
    rank : int or None
        Eigenvalues above n eps times the largest; None if they were not computed.
    condition : float
        Of K + damping I; infinite where that is singular.
    is_exact : bool
        From an eigendecomposition. Otherwise estimates by power and inverse iteration, inner
        bounds: mostly within some percent of the largest, and of the smallest + damping.
    """

    smallest: float
    largest: float
    rank: int | None
    condition: float
    is_exact: bool


_UNKNOWN = KernelSpectrum(0.0, math.inf, None, math.inf, False)


@dataclass(frozen=True, eq=False)
class RowsSolveResult(SolveResult):
    """`SolveResult` for rows of the user's own, with the `spectrum` of their kernel.

    The residual and its `right_hand_side_norm` are |U (r - U'x) - damping x| and |U r|.
    """

    spectrum: KernelSpectrum = _UNKNOWN
    right_hand_side_norm: float = math.nan


@dataclass(frozen=True, eq=False)
class BlockCGResult:
    """Solutions for K right-hand sides; `result[k]` is the `CGResult` of column k.

    Attributes
    ----------
    x : (P, K) array
    columns : tuple of CGResult
        Their `x` are views; their `seconds` are those of all.
    matvecs : int
        Vectors multiplied with A, all columns together.
    seconds, flops : float
        As in `SolveInfo`, all columns together.
    """

    x: Array
    columns: tuple[CGResult, ...]
    matvecs: int
    seconds: float
    flops: float

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.columns)

    def __getitem__(self, k: int) -> CGResult:
        """Return the result of column k."""
        return self.columns[k]

    def __iter__(self) -> Iterator[CGResult]:
        """Columns in order."""
        return iter(self.columns)

    @property
    def status(self) -> tuple[Status, ...]:
        """Status of every column."""
        return tuple(column.status for column in self.columns)

    @property
    def success(self) -> bool:
        """Whether all columns met the stopping rule."""
        return all(column.status.success for column in self.columns)

    @property
    def iterations(self) -> NDArray[np.int64]:
        """Iterations (K,)."""
        return np.array([column.iterations for column in self.columns], np.int64)

    @property
    def residual_norm(self) -> NDArray[np.float64]:
        """Norms of the residuals (K,)."""
        return np.array([column.residual_norm for column in self.columns])

    @property
    def quadratic(self) -> NDArray[np.float64]:
        """Values of the quadratics (K,)."""
        return np.array([column.quadratic for column in self.columns])


@dataclass(frozen=True, eq=False)
class BlockSolveResult(BlockCGResult):
    """`BlockCGResult` of `SolveResult`s, with the `method` used, and its `estimates`, if any."""

    method: str = ""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        columns: Sequence[SolveResult],
        seconds: float,
        estimates: Mapping[str, Estimate] | None = None,
    ) -> BlockSolveResult:
        """Put the results of K right-hand sides together; `seconds` are those of all."""
        rows = np.stack([column.x for column in columns])
        estimates = {} if estimates is None else estimates
        return cls(
            x=rows.T,
            columns=tuple(
                dataclasses.replace(column, x=row, seconds=seconds, estimates=estimates)
                for column, row in zip(columns, rows, strict=True)
            ),
            matvecs=sum(column.matvecs for column in columns),
            seconds=seconds,
            flops=sum(column.flops for column in columns),
            method=columns[0].method,
            estimates=estimates,
        )


@dataclass(frozen=True, eq=False)
class MultishiftResult(BlockCGResult):
    """Solutions for m dampings: a `BlockCGResult` with a column for each of `dampings` (m,).

    The products are shared: `matvecs` and `seconds` of a column are those of all. Residuals are as
    `multishift_cg` says.
    """

    dampings: NDArray[np.float64]

    @classmethod
    def of_dampings(
        cls, results: Sequence[SolveResult], dampings: NDArray[np.float64], seconds: float
    ) -> MultishiftResult:
        """Results of solves for one damping after the other, as many as there are."""
        return cls(
            x=np.stack([result.x for result in results], axis=1),
            columns=tuple(results),
            matvecs=sum(result.matvecs for result in results),
            seconds=seconds,
            flops=sum(result.flops for result in results),
            dampings=dampings[: len(results)],
        )


def solve_flops(matvecs: int, flops_per_product: float, vector_flops: float) -> float:
    """Flops of a solve: products and vector operations."""
    return matvecs * flops_per_product + vector_flops
