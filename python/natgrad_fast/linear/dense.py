"""Exact solves in the space of parameters, with the matrix (P, P) formed."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_name, as_number, as_right_hand_sides, memory_for
from .._typing import Array, DType
from ..operators.base import Operator
from ..operators.dense import DenseMatrix
from ..operators.linear_map import as_linear_map
from .results import BlockSolveResult, MultishiftResult, SolveResult, Status
from .right_hand_side import as_damping_values, check_one_damping

__all__ = ["DenseMatrix", "dense_solve", "solve_rows"]

METHODS = ("auto", "cholesky", "eigh")
# Cholesky factorisations in the time of an eigendecomposition: 15 at P = 2200 to 4400, 8 at 61.
_CHOLESKYS_PER_EIGH = 15
# What the core calls definite, singular and indefinite.
_SINGULAR, _INDEFINITE = 1, 2


def _solve(
    A: object,
    g: ArrayLike,
    *,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh"] = "auto",
    rtol: float = 1e-5,
    num_threads: int | None = None,
) -> SolveResult | BlockSolveResult | MultishiftResult:
    """Solve as `dense_solve`; what a `DenseMatrix` has factorised is kept for the next call."""
    start = time.perf_counter()
    chosen = as_name(method, "method", METHODS)
    rtol = as_number(rtol, "rtol", minimum=0.0)
    dampings, is_scalar = as_damping_values(damping)
    size, dtype = _size_and_dtype(A)
    rows, is_block = as_right_hand_sides(g, "g", size, dtype)
    if is_block:
        check_one_damping(is_scalar, len(rows), "g (P,)")
    if chosen == "auto":
        chosen = "cholesky" if len(dampings) < _CHOLESKYS_PER_EIGH else "eigh"
    dense = A if isinstance(A, DenseMatrix) else DenseMatrix(A, num_threads=num_threads)
    forming = time.perf_counter() - start
    results = [
        result
        for value in dampings
        for result in solve_rows(dense, rows, float(value), chosen, rtol)
    ]
    if dense is not A:  # the first one pays
        first = results[0]
        flops = first.flops + dense.forming_flops
        results[0] = dataclasses.replace(first, flops=flops, seconds=first.seconds + forming)
    if is_block:
        return BlockSolveResult.of(results, time.perf_counter() - start)
    if is_scalar:
        return results[0]
    return MultishiftResult.of_dampings(results, dampings, time.perf_counter() - start)


DenseMatrix.solve = _solve


def _size_and_dtype(A: object) -> tuple[int, DType]:
    if isinstance(A, Operator):
        return A.shape[0], A.dtype
    linear_map = as_linear_map(A)
    return linear_map.size, linear_map.dtype


def solve_rows(
    dense: DenseMatrix, rows: Array, damping: float, method: str, rtol: float = 1e-5
) -> list[SolveResult]:
    """Solutions for the rows (K, P), finite and contiguous, by "cholesky" or "eigh"."""
    start = time.perf_counter()
    size, count = float(rows.shape[1]), len(rows)
    if not dense.core.is_finite:
        norms = [float(np.linalg.norm(row.astype(float))) for row in rows]
        seconds = time.perf_counter() - start
        return [
            _result(Status.NON_FINITE, np.zeros_like(row), (norm, norm, 0.0), seconds, 0.0, method)
            for row, norm in zip(rows, norms, strict=True)
        ]
    with memory_for("the factorisation of ", dense):
        x, numbers, used, kind, choleskys, eigenbases = dense.core.solve(damping, method, rows)
    per_row = (4.0 if used == "cholesky" else 6.0) * size**2
    shared = (choleskys / 3.0 + eigenbases * 14.0 / 3.0) * size**3
    flops, seconds = per_row + shared / count, time.perf_counter() - start
    return [
        _result(_status(kind, number, rtol), row, number, seconds, flops, used)
        for row, number in zip(x, numbers, strict=True)
    ]


def _status(kind: int, numbers: tuple[float, float, float, bool], rtol: float) -> Status:
    norm, residual, _, out_of_range = numbers
    if kind == _INDEFINITE:
        return Status.NEGATIVE_CURVATURE
    if residual <= rtol * norm:
        return Status.CONVERGED
    if out_of_range or not math.isfinite(residual):
        return Status.OUT_OF_RANGE
    return Status.SINGULAR if kind == _SINGULAR else Status.STAGNATED


def _result(
    status: Status, x: Array, numbers: Any, seconds: float, flops: float, method: str
) -> SolveResult:
    return SolveResult(
        status=status,
        iterations=0,
        residual_norm=numbers[1],
        quadratic=numbers[2],
        matvecs=0 if status is Status.NON_FINITE else 1,
        seconds=seconds,
        flops=flops,
        x=x,
        method=f"dense_{method}",
    )


def dense_solve(
    A: object,
    g: ArrayLike,
    *,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh"] = "auto",
    rtol: float = 1e-5,
    num_threads: int | None = None,
) -> SolveResult | BlockSolveResult | MultishiftResult:
    """Solve (A + damping I) x = g exactly, with A (P, P) formed in float64.

    Parameters
    ----------
    A : operator or (P, P) array_like
        What `DenseMatrix` takes: a `Fisher`, `GGN` or `EmpiricalFisher`, whose damping and l2
        count, another symmetric operator, an array, or a `DenseMatrix` that is there already.
    g : (P,) or (P, K) array_like
        Right-hand side, or K of them, which share what is factorised.
    damping : float or sequence of m floats
        On top of what A contains, >= 0. One number for a block g.
    method : {"auto", "cholesky", "eigh"}
        A Cholesky factorisation for every damping, or one eigendecomposition for all of them.
        "auto": the latter from 15 dampings on. Where the factorisation finds a matrix that is not
        definite to rounding, the eigenvectors decide.
    rtol : float
        Of the residual, relative to |g|, for "converged".
    num_threads : int, optional
        For what has no number of its own.

    Returns
    -------
    SolveResult, or BlockSolveResult for g (P, K), or MultishiftResult for several dampings
        With `method`, "dense_cholesky" or "dense_eigh", and the residual of x as it is returned.
        "singular": x is the shortest vector of the least residual. "negative_curvature": there is a
        negative eigenvalue; x solves in the space of eigenvectors of positive ones, where x'g > 0.
        "stagnated": the float type of x holds no more digits.

    Raises
    ------
    MemoryError
        Before anything is computed, if the machine can not hold A and its factorisation.
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    N P^2 flops and a backward sweep for each column of M_i form A; P^3 / 3 for a factorisation, up
    to 14 P^3 / 3 for the eigenvectors (Gu & Eisenstat 1995); 4 P^2 or 6 P^2 for each solution and
    its residual. 16 P^2 bytes, 48 P^2 with eigenvectors. Rounding of the sums is that of float64
    also for float32, in which normal equations lose half of the digits.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([1, 20, 1], dtype="float64", seed=0)
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> _, g = ng.value_and_grad(net, "squared_error", X, np.sin(X))
    >>> F = ng.Fisher(net, "squared_error", X)
    >>> found = ng.dense_solve(F, g, damping=[1e-4, 1e-2])
    >>> found.success, found[0].method
    (True, 'dense_cholesky')
    """
    return _solve(A, g, damping=damping, method=method, rtol=rtol, num_threads=num_threads)
