"""Preconditioned conjugate gradients."""

from __future__ import annotations

import math
import time
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    as_count,
    as_name,
    as_num_threads,
    as_number,
    as_rows,
    as_vector,
    core_for,
    dot,
)
from .._typing import Array, Callback, DType
from ..operators.linear_map import as_linear_map, as_preconditioner
from .results import (
    BlockCGResult,
    CGIterate,
    CGResult,
    Status,
    solve_flops,
)

__all__ = ["as_callback", "cg"]


def cg(
    A: object,
    b: ArrayLike,
    *,
    damping: float = 0.0,
    preconditioner: object = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iter: int = 250,
    min_iter: int = 1,
    x0: ArrayLike | None = None,
    stopping: Literal["residual", "relative_progress"] = "residual",
    trust_radius: float | None = None,
    keep_iterates: bool = False,
    callback: Callback | None = None,
    num_threads: int | None = None,
) -> CGResult | BlockCGResult:
    """Preconditioned conjugate gradients for (A + damping I) x = b.

    Parameters
    ----------
    A : operator
        Symmetric positive semi-definite: a `Fisher` or `GGN`, sums of such, a square array, dense
        or SciPy sparse, or anything with ``shape``, ``dtype`` and ``matvec``, such as a SciPy
        LinearOperator; ``matmat`` is used for blocks and ``flops_per_product`` for the record, if
        there.
    b : (P,) or (P, K) array_like
        K right-hand sides are solved in lockstep, with products of blocks; every column has its own
        stop.
    damping : float
        Absolute, >= 0, on top of what A contains.
    preconditioner : operator or (P,) array, optional
        Symmetric positive definite approximation of the *inverse* of A + damping I, as in SciPy:
        something with ``matvec`` or ``@``, or the diagonal of such an inverse.
    rtol, atol : float
        Tolerance max(rtol |b|, atol) of the residual; `rtol` counts for stopping="residual" only,
        `atol` may be infinite.
    max_iter, min_iter : int
        Fewer than `min_iter` are made where rounding leaves nothing to iterate on.
    x0 : array_like, optional
        Start, of the shape of b; zero by default.
    stopping : {"residual", "relative_progress"}
        "residual" stops on the true residual. "relative_progress" stops when the quadratic phi
        fell by less than 5e-4 of its value per iteration over the last k = max(10, ceil(0.1 i))
        iterations: the rule of Hessian-free optimisation (Martens 2010).
    trust_radius : float, optional
        Bound of |x| (Steihaug 1983): where the next iterate would leave the ball, x becomes the
        point on its boundary, |x| = trust_radius, with status "trust_radius"; where the curvature
        is negative, the point of the boundary in that direction.
    keep_iterates : bool
        Keep the iterates i = ceil(5 * 1.3**j), j = 0, 1, .., and the last one, as
        ``result.iterates``; for a single right-hand side.
    callback : callable, optional
        ``callback(iteration, residual_norm, quadratic)`` after every iteration; True stops. For a
        block the norms and quadratics are arrays (K,).
    num_threads : int, optional
        Threads for the vector operations; the products have those of A.

    Returns
    -------
    CGResult or BlockCGResult
        The latter for b (P, K). With the true residual, whatever the reason of the stop. x is never
        worse in the quadratic than x0; Ctrl-C gives status "interrupted" and the last iterate.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    One product per iteration, one to check the residual before "converged" is said and one per 50
    iterations. With stopping="residual" and residuals that do not fall monotonically, x is the mean
    of the iterates that has the least residual as soon as that is small enough: what MINRES returns
    where there is no preconditioner. Any other stop returns the last iterate, of least quadratic.
    A, b and the preconditioner are scaled by powers of two inside, so their sizes do not matter, in
    float32 either: only x itself can leave the range of the float type. It then is shrunk or
    rounded to what can be held, with status "out_of_range".

    What rounding may have done is not said of the matrix: "negative_curvature" is a
    p'(A + damping I)p below -16 eps of its largest size, at a residual that is longer than its
    rounding. "singular" is a direction without curvature along which b still pulls: raise damping.
    "stagnated" is an accuracy that the float type does not give.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "squared_error", X)
    >>> r = ng.cg(F, np.ones(26), damping=1e-2, rtol=1e-8)
    >>> r.status.success, bool(np.allclose(F @ r.x + 1e-2 * r.x, np.ones(26)))
    (True, True)
    """
    start = time.perf_counter()
    operator = as_linear_map(A)
    size, dtype = operator.size, operator.dtype
    rows, is_block = as_rows(b, "b", size, dtype)
    x = np.empty(rows.shape, dtype) if x0 is None else _as_start(x0, rows.shape, is_block, dtype)
    threads = as_num_threads(operator.num_threads if num_threads is None else num_threads)
    radius = math.inf
    if trust_radius is not None:
        radius = as_number(trust_radius, "trust_radius", above=0.0)
        if x0 is not None:
            _check_within(x, radius, threads)
    if not isinstance(keep_iterates, bool):
        raise TypeError(f"keep_iterates must be True or False, got {keep_iterates!r}")
    if keep_iterates and is_block:
        raise ValueError(f"keep_iterates needs a single b (P,), got shape {rows.shape[::-1]}")
    records, iterates = core_for(dtype).conjugate_gradients(
        operator.core,
        preconditioner=as_preconditioner(preconditioner, size, dtype, getattr(A, "layout", None)),
        b=rows,
        x=x,
        zero_start=x0 is None,
        damping=as_number(damping, "damping", minimum=0.0),
        rtol=as_number(rtol, "rtol", minimum=0.0),
        atol=as_number(atol, "atol", minimum=0.0, may_be_infinite=True),
        max_iter=as_count(max_iter, "max_iter", 0),
        min_iter=as_count(min_iter, "min_iter", 0),
        relative_progress=as_name(stopping, "stopping", ("residual", "relative_progress"))
        == "relative_progress",
        trust_radius=radius,
        keep_iterates=keep_iterates,
        num_threads=threads,
        is_block=is_block,
        callback=as_callback(callback),
    )
    seconds = time.perf_counter() - start
    kept = tuple(CGIterate(*iterate) for iterate in iterates)
    columns = tuple(
        CGResult(
            status=Status(status),
            iterations=iterations,
            residual_norm=residual_norm,
            quadratic=quadratic,
            matvecs=matvecs,
            seconds=seconds,
            flops=solve_flops(matvecs, operator.flops_per_product, 10.0 * size * iterations),
            x=x[k],
            iterates=kept,
        )
        for k, (status, iterations, matvecs, residual_norm, quadratic) in enumerate(records)
    )
    if not is_block:
        return columns[0]
    return BlockCGResult(
        x=x.T,
        columns=columns,
        matvecs=sum(column.matvecs for column in columns),
        seconds=seconds,
        flops=sum(column.flops for column in columns),
    )


def _as_start(x0: ArrayLike, shape: tuple[int, int], is_block: bool, dtype: DType) -> Array:
    """A copy of the start as K rows."""
    if not is_block:
        return as_vector(x0, "x0", shape[1], dtype)[None].copy()
    rows, _ = as_rows(x0, "x0", shape[1], dtype)
    if rows.shape != shape:
        raise ValueError(f"x0 has {rows.shape[0]} columns, wanted {shape[0]} as in b")
    return rows.copy()


def _check_within(x: Array, radius: float, num_threads: int) -> None:
    for k, row in enumerate(x):
        top = float(np.abs(row).max(initial=0.0))
        # squares of x0 in this unit stay within the range
        unit = 2.0 ** max(-1000, min(-math.frexp(top)[1], 1000))
        scaled = core_for(x.dtype).scaled(unit, row, num_threads=num_threads)
        length = math.sqrt(dot(scaled, scaled, num_threads)) / unit
        if not length <= radius:
            column = f" in column {k}" if len(x) > 1 else ""
            raise ValueError(f"x0 has length {length:g}{column}, outside trust_radius {radius:g}")


def as_callback(callback: Callback | None) -> Callback | None:
    """Return a callable, or None."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    return callback
