"""Conjugate gradients for several dampings in one Krylov run."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_dampings, as_num_threads, as_number, as_vector, core_for
from .._typing import Callback
from ..operators.linear_map import as_linear_map
from .cg import as_callback
from .results import CGResult, MultishiftResult, Status, solve_flops

__all__ = ["multishift_cg"]


def multishift_cg(
    A: object,
    b: ArrayLike,
    dampings: ArrayLike,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iter: int = 250,
    callback: Callback | None = None,
    num_threads: int | None = None,
    verify: bool = False,
) -> MultishiftResult:
    """Conjugate gradients for (A + damping I) x = b with several dampings in one Krylov run.

    Parameters
    ----------
    A : operator
        As in `cg`.
    b : (P,) array_like
    dampings : (m,) array_like
        >= 0, in any order, repeated or not.
    rtol, atol : float
        Tolerance max(rtol |b|, atol) of every residual.
    max_iter : int
    callback : callable, optional
        ``callback(iteration, residual_norms, quadratics)`` after every iteration, with arrays (m,);
        True stops.
    num_threads : int, optional
        Threads for the vector operations; the products have those of A.
    verify : bool
        Compute all residuals from x at the end, by m more products. Otherwise that is done for the
        smallest damping alone, and what rounding added to it is assumed of the others in proportion
        to |x|. A residual above twice its tolerance is "stagnated".

    Returns
    -------
    MultishiftResult
        x (P, m), and a `CGResult` for every damping by indexing.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    As many products as CG needs for the smallest damping alone, the check included; `cg`, which may
    stop at a mean of iterates, needs fewer where their residuals oscillate. The other systems ride
    along by the recursions of Frommer and Maass (1999), and stop when they have converged. There is
    no preconditioner: it would have to commute with A. Sizes and verdicts are as in `cg`; a damping
    for which the system is singular or indefinite ends for itself, and the larger ones start again.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "squared_error", X)
    >>> many = ng.multishift_cg(F, np.ones(26), [1e-2, 1.0])
    >>> many.x.shape
    (26, 2)
    """
    start = time.perf_counter()
    operator = as_linear_map(A)
    size, dtype = operator.size, operator.dtype
    shifts = as_dampings(dampings, "dampings")
    if not isinstance(verify, bool):
        raise TypeError(f"verify must be True or False, got {verify!r}")
    x = np.empty((shifts.size, size), dtype)
    records, matvecs = core_for(dtype).multishift_conjugate_gradients(
        operator.core,
        b=as_vector(b, "b", size, dtype),
        dampings=shifts,
        x=x,
        rtol=as_number(rtol, "rtol", minimum=0.0),
        atol=as_number(atol, "atol", minimum=0.0, may_be_infinite=True),
        max_iter=as_count(max_iter, "max_iter", 0),
        verify=verify,
        num_threads=as_num_threads(operator.num_threads if num_threads is None else num_threads),
        callback=as_callback(callback),
    )
    seconds = time.perf_counter() - start
    last = max(iterations for _, iterations, *_ in records)
    vector_flops = 6.0 * size * last + sum(4.0 * size * iterations for _, iterations, *_ in records)
    flops = solve_flops(matvecs, operator.flops_per_product, vector_flops)
    columns = tuple(
        CGResult(Status(status), iterations, norm, quadratic, matvecs, seconds, flops, x[k])
        for k, (status, iterations, _, norm, quadratic) in enumerate(records)
    )
    return MultishiftResult(x.T, columns, matvecs, seconds, flops, shifts.copy())
