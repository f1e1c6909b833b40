"""One call for every way to solve with a curvature matrix, and the cost model that picks one."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import pairwise
from typing import Any, Literal

from numpy.typing import ArrayLike

from .._arrays import as_count, as_name, as_number, as_right_hand_sides, core_for
from .._typing import Array, Callback
from ..operators.curvature import CurvatureMatrix, GaussNewtonMatrix
from ..operators.dense import dense_bytes, forming_flops
from ..operators.sample_space import SampleSpace, kernel_flops, kernel_product_flops
from ..preconditioners.kfac import KFAC
from .cg import cg
from .dense import dense_solve
from .results import BlockSolveResult, CGResult, Estimate, SolveResult

__all__ = ["estimate_solve", "solve"]

METHODS = ("auto", "cg", "kfac_cg", "sample_space", "sample_space_cg", "dense")
# A flop of factorisations in double, in flops of products: 2.3 to 4.4 were measured.
_CHOLESKY_FLOP = 4.0
# A flop of K-FAC's moments and deltas, in flops of products: 1.3 to 2.5 were measured.
_MOMENT_FLOP = 2.0


def solve(
    matrix: CurvatureMatrix,
    g: ArrayLike,
    *,
    damping: float = 0.0,
    method: Literal["auto", "cg", "kfac_cg", "sample_space", "sample_space_cg", "dense"] = "auto",
    y: ArrayLike | None = None,
    preconditioner: object = None,
    rtol: float = 1e-5,
    max_iter: int = 250,
    max_bytes: float = 2.0**31,
    callback: Callback | None = None,
) -> SolveResult | BlockSolveResult:
    """Solve (B + (l2 + damping) I) x = g by the method that is expected to be the cheapest.

    Parameters
    ----------
    matrix : Fisher, GGN, EmpiricalFisher or Hessian
        B, with its own damping and l2.
    g : (P,) or (P, K) array_like
        Right-hand side, or K of them, which share factorisations and products of blocks.
    damping : float
        On top of what `matrix` contains.
    method : {"auto", "cg", "kfac_cg", "sample_space", "sample_space_cg", "dense"}
        "cg": conjugate gradients in parameter space. "kfac_cg": the same, preconditioned by K-FAC
        of one draw per case on the batch of `matrix`. "sample_space": exact, by the kernel (n, n).
        "sample_space_cg": conjugate gradients in the space of samples. "dense": exact, by the
        matrix (P, P) of `dense_solve`, for any of them. "auto" takes the least `Estimate.cost`
        among those that fit into `max_bytes`, else the least bytes; it is "cg" for a Hessian, an
        indefinite GGN, without damping and l2, or with a preconditioner.
    y : array_like, optional
        Targets, if g (P,) is the gradient of the objective there; see `sample_space_solve`.
    preconditioner : optional
        For "cg", as in `natgrad_fast.cg`.
    rtol : float
        Of the residual, relative to |g|.
    max_iter : int
        Most iterations of the iterative methods.
    max_bytes : float
        Memory that "auto" lets a method take besides the matrix.
    callback : callable, optional
        For the iterative methods, as in `natgrad_fast.cg`.

    Returns
    -------
    SolveResult, or BlockSolveResult for g (P, K)
        With the `method` used, and `estimates`: flops, bytes, cost and iterations expected of each.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    See `estimate_solve` for the cost model.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "squared_error", X)
    >>> F.solve(np.ones(26), damping=1e-2).status.success
    True
    """
    start = time.perf_counter()
    chosen = as_name(method, "method", METHODS)
    rows, is_block = _as_right_hand_sides(matrix, g)
    if y is not None:
        if is_block:
            raise ValueError(f"y is the origin of a single g (P,), got K = {len(rows)} columns")
        matrix.as_targets(y)
    damping = as_number(damping, "damping", minimum=0.0)
    max_bytes = as_number(max_bytes, "max_bytes", above=0.0)
    estimates = _estimates(matrix, rows, damping, rtol, max_iter)
    if chosen == "auto":
        chosen = "cg" if preconditioner is not None else _cheapest(estimates, max_bytes)
    if chosen == "kfac_cg":
        preconditioner = _kfac(_as_factored(matrix, chosen, preconditioner), damping)
    right_hand_side = rows.T if is_block else rows[0]
    results: list[SolveResult]
    if chosen in ("cg", "kfac_cg"):
        answer = cg(
            matrix,
            right_hand_side,
            damping=damping,
            preconditioner=preconditioner,
            rtol=rtol,
            max_iter=max_iter,
            callback=callback,
        )
        columns = [answer] if isinstance(answer, CGResult) else answer.columns
        results = [_as_solve_result(one, chosen) for one in columns]
    elif chosen == "dense":
        _check_unconditioned(chosen, preconditioner)
        exact: Any = dense_solve(
            matrix, right_hand_side, damping=damping, method="cholesky", rtol=rtol
        )
        results = list(exact) if is_block else [exact]
    else:
        answer = SampleSpace(_as_factored(matrix, chosen, preconditioner)).solve(
            right_hand_side,
            y=y,
            damping=damping,
            method="cg" if chosen == "sample_space_cg" else "cholesky",
            rtol=rtol,
            max_iter=max_iter,
            callback=callback,
        )
        results = list(answer) if is_block else [answer]
    seconds = time.perf_counter() - start
    if is_block:
        return BlockSolveResult.of(results, seconds, estimates)
    return dataclasses.replace(results[0], seconds=seconds, estimates=estimates)


def _cheapest(estimates: dict[str, Estimate], max_bytes: float) -> str:
    """The method of least cost among those that fit, else that of the least bytes."""
    fitting = {name: e for name, e in estimates.items() if e.bytes <= max_bytes}
    if fitting:
        return min(fitting, key=lambda name: fitting[name].cost)
    return min(estimates, key=lambda name: estimates[name].bytes)


def _as_solve_result(result: CGResult, method: str) -> SolveResult:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return SolveResult(**fields, method=method)


def estimate_solve(
    matrix: CurvatureMatrix,
    g: ArrayLike,
    *,
    damping: float = 0.0,
    rtol: float = 1e-5,
    max_iter: int = 250,
) -> dict[str, Estimate]:
    """Flops, bytes and cost of the ways to solve (B + (l2 + damping) I) x = g.

    Parameters
    ----------
    matrix, g, damping, rtol, max_iter
        As in `solve`.

    Returns
    -------
    dict of Estimate
        By method; only those that can be used.

    Notes
    -----
    Iterations of CG: with s = damping + l2 and mu = g'B g / g'g, which for gradients is near the
    largest eigenvalue, min(P, n, max_iter, sqrt(1 + mu / s) log(2 / rtol) / 2), the classical bound
    for the condition number 1 + mu / s. It takes one linearised forward pass to know mu.

    cg                product and 10 P flops per iteration; 5 P numbers
    kfac_cg           10 iterations and a share of those of CG, 1/4 to rtol = 1e-2 and 1/5 more for
                      each digit beyond, with 2 d n (d + n) flops more per layer of d outputs and n
                      inputs; before them a backward sweep and N (n^2 + d^2), counted twice since
                      they are slower, and n^3 + d^3 in double, counted 4 times; 10 P numbers, and
                      n^2 + d^2 four times
    sample_space_cg   4 N P + 2 N^2 D without the first layer per iteration, layer Grams before it;
                      N^2 numbers per layer
    dense             N P^2 or somewhat more (`DenseMatrix`) and P^3 / 3 in double, which counts
                      twice for float32, and 6 P^2 for the solution and the check; 2 P^2 numbers in
                      double
    sample_space      2 n P + n^2 D + n^3 / 3, the last counted 4 times since it is in double and on
                      smaller tiles; n^2 numbers three times, and n D; D the sum of the widths
    All but "dense": two products for the right-hand side and the check. With K right-hand sides the
    matrix, grams, moments and factorisations are shared, the rest is taken K times, with the
    iterations of the slowest.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "squared_error", X)
    >>> estimates = ng.estimate_solve(F, np.ones(26), damping=1e-2)
    >>> len(estimates) > 1
    True
    """
    rows, _ = _as_right_hand_sides(matrix, g)
    damping = as_number(damping, "damping", minimum=0.0)
    return _estimates(matrix, rows, damping, rtol, max_iter)


def _estimates(
    matrix: CurvatureMatrix, rows: Array, damping: float, rtol: float, max_iter: int
) -> dict[str, Estimate]:
    rtol = as_number(rtol, "rtol", minimum=0.0)
    max_iter = as_count(max_iter, "max_iter", 1)
    shift = min(matrix.decay) + matrix.damping + damping
    size, itemsize, count = float(matrix.shape[0]), matrix.dtype.itemsize, float(len(rows))
    product = matrix.flops_per_product
    factored = matrix if isinstance(matrix, GaussNewtonMatrix) else None
    if factored is not None and not factored.positive_semidefinite:
        factored = None
    n = math.inf if factored is None else float(factored.num_cases * factored.core.num_columns)
    most = min(size, n, float(max_iter))
    iterations = max(_cg_iterations(matrix, row, shift, rtol, most) for row in rows)
    flops = count * (iterations * (product + 10.0 * size) + product)
    estimates = {"cg": Estimate(flops, 5 * count * size * itemsize, flops, iterations)}
    if factored is None or shift <= 0.0:
        return estimates
    if factored.kind != "empirical_fisher":  # K-FAC is of the model's own distribution
        estimates["kfac_cg"] = _kfac_estimate(factored, iterations, rtol, count)
    sizes, cases = factored.sizes, factored.num_cases
    depth = len(sizes) - 1
    grams = float(cases) ** 2 * sum(sizes[:-1])
    steps = iterations * (kernel_product_flops(sizes, cases) + 10.0 * n) + 2.0 * product
    flops = grams + count * steps
    held = (depth * float(cases) ** 2 + 6.0 * n) * itemsize
    estimates["sample_space_cg"] = Estimate(flops, held, flops, iterations)
    forming = kernel_flops(sizes, cases, int(n)) + count * 2.0 * product
    cholesky = n**3 / 3.0
    held = n**2 * (16 + itemsize) + 2.0 * n * sum(sizes[1:]) * itemsize
    estimates["sample_space"] = Estimate(
        forming + cholesky, held, forming + _CHOLESKY_FLOP * cholesky, 0
    )
    estimates["dense"] = _dense_estimate(factored, count)
    return estimates


def _dense_estimate(matrix: GaussNewtonMatrix, num_vectors: float) -> Estimate:
    size = matrix.shape[0]
    flops = forming_flops(matrix) + size**3 / 3.0 + num_vectors * 6.0 * size**2
    held = dense_bytes(size) + num_vectors * size * matrix.dtype.itemsize
    slower = 8.0 / matrix.dtype.itemsize  # products in double
    return Estimate(flops, held, slower * flops, 0)


def _kfac_estimate(
    matrix: GaussNewtonMatrix, iterations: int, rtol: float, num_vectors: float
) -> Estimate:
    layers = [(float(o), float(i + 1)) for i, o in pairwise(matrix.sizes)]  # (d, n)
    size, cases = float(matrix.shape[0]), float(matrix.num_cases)
    factors = sum(d**2 + n**2 for d, n in layers)
    share = 0.25 + 0.2 * max(0.0, -2.0 - math.log10(max(rtol, 1e-16)))
    iterations = min(iterations, 10 + math.ceil(share * iterations))
    apply = sum(2.0 * d * n * (d + n) for d, n in layers)
    product = matrix.flops_per_product
    steps = num_vectors * (iterations * (product + apply + 12.0 * size) + product)
    moments = cases * (2.0 * size + factors)
    inverses = sum(d**3 + n**3 for d, n in layers)
    return Estimate(
        flops=steps + moments + inverses,
        bytes=(10.0 * num_vectors * size + 4.0 * factors) * matrix.dtype.itemsize,
        cost=steps + _MOMENT_FLOP * moments + _CHOLESKY_FLOP * inverses,
        iterations=iterations,
    )


def _kfac(matrix: GaussNewtonMatrix, damping: float) -> KFAC | None:
    """K-FAC on what `matrix` has linearised, for `cg`; None if the moments are not finite."""
    shift = min(matrix.decay) + matrix.damping + damping
    if shift <= 0.0:
        raise ValueError("method 'kfac_cg' needs damping + l2 > 0")
    try:
        return KFAC.on(matrix, damping=shift, samples=1, ema=0.0)
    except FloatingPointError:
        return None


def _as_factored(matrix: CurvatureMatrix, method: str, preconditioner: object) -> GaussNewtonMatrix:
    if not isinstance(matrix, GaussNewtonMatrix):
        raise ValueError(f"method {method!r} needs a matrix with a factor, got {matrix!r}: use cg")
    _check_unconditioned(method, preconditioner)
    return matrix


def _check_unconditioned(method: str, preconditioner: object) -> None:
    if preconditioner is not None:
        raise ValueError(f"preconditioner is for method 'cg', got method {method!r}")


def _as_right_hand_sides(matrix: CurvatureMatrix, g: ArrayLike) -> tuple[Array, bool]:
    if not isinstance(matrix, CurvatureMatrix):
        raise TypeError(
            f"matrix must be a Fisher, GGN, EmpiricalFisher or Hessian, got {matrix!r}: use cg"
        )
    return as_right_hand_sides(g, "g", matrix.shape[0], matrix.dtype)


def _cg_iterations(
    matrix: CurvatureMatrix, g: Array, shift: float, rtol: float, most: float
) -> int:
    core = core_for(matrix.dtype)
    square = core.dot(g, g, num_threads=matrix.num_threads)
    if not 0.0 < square < math.inf:
        return 1
    if shift <= 0.0 or rtol <= 0.0:
        return int(most)
    own = matrix.decay.weights + matrix.damping
    mu = matrix.quadratic_form(g) / square - own
    if not math.isfinite(mu):
        return int(most)
    bound = 0.5 * math.sqrt(1.0 + max(mu, 0.0) / shift) * math.log(2.0 / rtol)
    return int(max(1.0, min(most, math.ceil(bound))))


CurvatureMatrix.solve = solve
