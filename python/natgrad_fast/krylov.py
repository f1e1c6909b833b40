"""Krylov solvers."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import as_count, as_name, as_num_threads, as_number, as_real, as_vector, core_for
from .curvature import CurvatureMatrix

__all__ = ["CGResult", "SolveInfo", "Status", "cg"]


class Status(enum.StrEnum):
    """Why a solver stopped; equal to its name as a string."""

    CONVERGED = "converged"
    RELATIVE_PROGRESS = "relative_progress"
    MAX_ITERATIONS = "max_iterations"
    STAGNATED = "stagnated"
    NEGATIVE_CURVATURE = "negative_curvature"
    INDEFINITE_PRECONDITIONER = "indefinite_preconditioner"
    NON_FINITE = "non_finite"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def success(self) -> bool:
        """Whether the stopping rule that was asked for is met."""
        return self in (Status.CONVERGED, Status.RELATIVE_PROGRESS)

    @property
    def advice(self) -> str:
        """What it means and what to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Status.CONVERGED: "The true residual is within the tolerance.",
    Status.RELATIVE_PROGRESS: "The quadratic hardly decreases any more.",
    Status.MAX_ITERATIONS: "Not converged: raise max_iter or damping, or use a preconditioner.",
    Status.STAGNATED: "Out of reach of this float type: use float64, raise rtol or damping.",
    Status.NEGATIVE_CURVATURE: "A + damping I is not positive definite: raise damping.",
    Status.INDEFINITE_PRECONDITIONER: "The preconditioner is not positive definite.",
    Status.NON_FINITE: "NaN or Inf in a product or in b: check the operator, the net and the data.",
    Status.STOPPED: "The callback asked to stop.",
    Status.INTERRUPTED: "Stopped by Ctrl-C; x is the last iterate.",
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
    """

    status: Status
    iterations: int
    residual_norm: float
    quadratic: float
    matvecs: int
    seconds: float


@dataclass(frozen=True)
class CGResult(SolveInfo):
    """`SolveInfo` with the solution `x` (P,)."""

    x: Any

    @property
    def info(self) -> SolveInfo:
        """The record without the vector."""
        return SolveInfo(
            self.status,
            self.iterations,
            self.residual_norm,
            self.quadratic,
            self.matvecs,
            self.seconds,
        )


def cg(
    A: Any,
    b: ArrayLike,
    *,
    damping: float = 0.0,
    preconditioner: Any = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iter: int = 250,
    min_iter: int = 1,
    x0: ArrayLike | None = None,
    stopping: str = "residual",
    callback: Callable[[int, float, float], Any] | None = None,
    num_threads: int | None = None,
) -> CGResult:
    """Preconditioned conjugate gradients for (A + damping I) x = b.

    Parameters
    ----------
    A : operator
        Symmetric positive semi-definite: a `Fisher` or `GGN`, a square array, or anything with
        ``shape``, ``dtype`` and ``matvec``, such as a SciPy LinearOperator.
    b : (P,) array_like
    damping : float
        Absolute, >= 0, on top of what A contains.
    preconditioner : operator or (P,) array, optional
        Symmetric positive definite approximation of the *inverse* of A + damping I, as in SciPy:
        something with ``matvec`` or ``@``, or the diagonal of such an inverse.
    rtol, atol : float
        Tolerance max(rtol |b|, atol) of the residual; `rtol` counts for stopping="residual" only.
    max_iter, min_iter : int
    x0 : (P,) array_like, optional
        Start, zero by default.
    stopping : {"residual", "relative_progress"}
        "residual" stops on the true residual. "relative_progress" stops when the quadratic phi
        fell by less than 5e-4 of its value per iteration over the last k = max(10, ceil(0.1 i))
        iterations: the rule of Hessian-free optimisation (Martens 2010).
    callback : callable, optional
        ``callback(iteration, residual_norm, quadratic)`` after every iteration; True stops.
    num_threads : int, optional
        Threads for the vector operations; the products have those of A.

    Returns
    -------
    CGResult
        With the true residual, whatever the reason of the stop. x is never worse in the quadratic
        than x0; Ctrl-C gives status "interrupted" and the last iterate.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    One product per iteration, one to check the residual before "converged" is said and one per 50
    iterations. b is scaled to length 1 inside, so its size does not matter, in float32 either.
    """
    start = time.perf_counter()
    operator, size, dtype = _as_operator(A)
    b = as_vector(b, "b", size, dtype)
    x = np.zeros(size, dtype) if x0 is None else as_vector(x0, "x0", size, dtype).copy()
    min_iter = as_count(min_iter, "min_iter", 0)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    if num_threads is None and isinstance(A, CurvatureMatrix):
        num_threads = A.num_threads
    status, iterations, matvecs, residual_norm, quadratic = core_for(dtype).conjugate_gradients(
        operator,
        preconditioner=_as_preconditioner(preconditioner, size, dtype),
        b=b,
        x=x,
        damping=as_number(damping, "damping", minimum=0.0),
        rtol=as_number(rtol, "rtol", minimum=0.0),
        atol=as_number(atol, "atol", minimum=0.0),
        max_iter=as_count(max_iter, "max_iter", 0),
        min_iter=min_iter,
        relative_progress=as_name(stopping, "stopping", ("residual", "relative_progress"))
        == "relative_progress",
        num_threads=as_num_threads(num_threads),
        callback=callback,
    )
    return CGResult(
        status=Status(status),
        iterations=iterations,
        residual_norm=residual_norm,
        quadratic=quadratic,
        matvecs=matvecs,
        seconds=time.perf_counter() - start,
        x=x,
    )


def _as_operator(A: Any) -> tuple[Any, int, np.dtype[Any]]:
    """What the core multiplies with, its size, and the float type to work in."""
    if isinstance(A, CurvatureMatrix):
        return A.core, A.shape[0], A.dtype
    if isinstance(A, np.ndarray):
        A = as_real(A, "A")
    elif not all(hasattr(A, name) for name in ("shape", "dtype", "matvec")):
        raise TypeError(f"A must be an operator with shape, dtype and matvec, got {A!r}")
    shape = tuple(A.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"A must be square, got shape {shape}")
    kind = np.dtype(A.dtype if A.dtype is not None else np.float64)
    if kind.kind not in "biuf":
        raise TypeError(f"A has dtype {kind}, wanted real numbers")
    dtype = np.dtype(np.float32 if kind == np.float32 else np.float64)
    multiply = A.__matmul__ if isinstance(A, np.ndarray) else A.matvec
    return _as_function(multiply, shape[0], dtype, "A"), int(shape[0]), dtype


def _as_preconditioner(preconditioner: Any, size: int, dtype: np.dtype[Any]) -> Any:
    if preconditioner is None:
        return None
    if isinstance(preconditioner, CurvatureMatrix):
        raise TypeError("preconditioner must approximate the inverse of A, got a curvature matrix")
    ndim = getattr(preconditioner, "ndim", None)
    if ndim == 1 or isinstance(preconditioner, list | tuple):
        return as_vector(preconditioner, "preconditioner", size, dtype)
    shape = getattr(preconditioner, "shape", None)
    if shape is not None and tuple(shape) != (size, size):
        raise ValueError(f"preconditioner has shape {tuple(shape)}, wanted ({size}, {size})")
    for name in ("matvec", "__matmul__"):
        if hasattr(preconditioner, name):
            return _as_function(getattr(preconditioner, name), size, dtype, "preconditioner")
    raise TypeError(f"preconditioner must have matvec or @, got {preconditioner!r}")


def _as_function(
    multiply: Callable[[Any], Any], size: int, dtype: np.dtype[Any], name: str
) -> Callable[[Any], Any]:
    """Return x -> A x as a contiguous vector of `dtype`; NaN passes, the solver reports it."""

    def function(x: Any) -> Any:
        y = as_real(multiply(x), f"the product with {name}")
        if y.size != size:
            raise ValueError(f"the product with {name} has shape {y.shape}, wanted ({size},)")
        return np.ascontiguousarray(y.reshape(size), dtype)

    return function
