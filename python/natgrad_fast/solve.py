"""One call for every way to solve with a curvature matrix, and the cost model that picks one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from numpy.typing import ArrayLike

from ._arrays import as_count, as_name, as_number, as_vector, core_for
from .curvature import CurvatureMatrix, GaussNewtonMatrix
from .krylov import cg
from .results import Estimate, SolveResult
from .sample_space import SampleSpace, kernel_flops, kernel_product_flops

__all__ = ["estimate_solve", "solve"]

METHODS = ("auto", "cg", "sample_space", "sample_space_cg")
# A flop of the Cholesky factorisation, in double, in flops of products: 2.6 to 4.4 were measured.
_CHOLESKY_FLOP = 4.0


def solve(
    matrix: CurvatureMatrix,
    g: ArrayLike,
    *,
    damping: float = 0.0,
    method: str = "auto",
    y: ArrayLike | None = None,
    preconditioner: Any = None,
    rtol: float = 1e-5,
    max_iter: int = 250,
    max_bytes: float = 2.0**31,
    callback: Any = None,
) -> SolveResult:
    """Solve (B + (l2 + damping) I) x = g by the method that is expected to be the cheapest.

    Parameters
    ----------
    matrix : Fisher, GGN, EmpiricalFisher or Hessian
        B, with its own damping and l2.
    g : (P,) array_like
    damping : float
        On top of what `matrix` contains.
    method : {"auto", "cg", "sample_space", "sample_space_cg"}
        "cg": conjugate gradients in parameter space. "sample_space": exact, by the kernel (n, n).
        "sample_space_cg": conjugate gradients in the space of samples. "auto" takes the least
        `Estimate.cost` among those that fit into `max_bytes`, else the least bytes; it is "cg" for
        a Hessian, an indefinite GGN, without damping and l2, or with a preconditioner.
    y : array_like, optional
        Targets, if g is the gradient of the objective there; see `sample_space_solve`.
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
    SolveResult
        With the `method` used, and `estimates`: flops, bytes, cost and iterations expected of each.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    See `estimate_solve` for the cost model.
    """
    method = as_name(method, "method", METHODS)
    g = _as_right_hand_side(matrix, g)
    if y is not None:
        matrix.loss.targets(y, matrix.num_cases, matrix.sizes[-1], matrix.dtype)
    damping = as_number(damping, "damping", minimum=0.0)
    max_bytes = as_number(max_bytes, "max_bytes", above=0.0)
    estimates = estimate_solve(matrix, g, damping=damping, rtol=rtol, max_iter=max_iter)
    if method == "auto":
        method = "cg"
        if preconditioner is None:
            fitting = {k: e for k, e in estimates.items() if e.bytes <= max_bytes}
            if fitting:
                method = min(fitting, key=lambda name: fitting[name].cost)
            else:
                method = min(estimates, key=lambda name: estimates[name].bytes)
    if method == "cg":
        result = cg(
            matrix,
            g,
            damping=damping,
            preconditioner=preconditioner,
            rtol=rtol,
            max_iter=max_iter,
            callback=callback,
        )
        fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return SolveResult(**fields, method="cg", estimates=estimates)
    if not isinstance(matrix, GaussNewtonMatrix):
        raise ValueError(f"method {method!r} needs a matrix with a factor, got {matrix!r}: use cg")
    if preconditioner is not None:
        raise ValueError(f"preconditioner is for method 'cg', got method {method!r}")
    answer = SampleSpace(matrix).solve(
        g,
        y=y,
        damping=damping,
        method="cg" if method == "sample_space_cg" else "cholesky",
        rtol=rtol,
        max_iter=max_iter,
        callback=callback,
    )
    assert isinstance(answer, SolveResult)
    return dataclasses.replace(answer, estimates=estimates)


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

    cg                product and 10 P flops per iteration; 6 P numbers
    sample_space_cg   4 N P + 2 N^2 D without the first layer per iteration, layer Grams before it;
                      N^2 numbers per layer
    sample_space      2 n P + n^2 D + n^3 / 3, the last counted 4 times since it is in double and on
                      smaller tiles; n^2 numbers three times, and n D; D the sum of the widths
    All of them: two products for the right-hand side and the check.
    """
    g = _as_right_hand_side(matrix, g)
    rtol = as_number(rtol, "rtol", minimum=0.0)
    max_iter = as_count(max_iter, "max_iter", 1)
    shift = matrix.l2 + matrix.damping + as_number(damping, "damping", minimum=0.0)
    size, itemsize = float(matrix.shape[0]), matrix.dtype.itemsize
    product = matrix.flops_per_product
    factored = matrix if isinstance(matrix, GaussNewtonMatrix) else None
    if factored is not None and not factored.positive_semidefinite:
        factored = None
    n = math.inf if factored is None else float(factored.num_cases * factored.core.num_columns)
    iterations = _cg_iterations(matrix, g, shift, rtol, min(size, n, float(max_iter)))
    flops = iterations * (product + 10.0 * size) + product
    estimates = {"cg": Estimate(flops, 6 * size * itemsize, flops, iterations)}
    if factored is None or shift <= 0.0:
        return estimates
    sizes, cases = factored.sizes, factored.num_cases
    depth = len(sizes) - 1
    grams = float(cases) ** 2 * sum(sizes[:-1])
    flops = iterations * (kernel_product_flops(sizes, cases) + 10.0 * n) + grams + 2.0 * product
    held = (depth * float(cases) ** 2 + 6.0 * n) * itemsize
    estimates["sample_space_cg"] = Estimate(flops, held, flops, iterations)
    forming = kernel_flops(sizes, cases, int(n)) + 2.0 * product
    cholesky = n**3 / 3.0
    held = n**2 * (16 + itemsize) + 2.0 * n * sum(sizes[1:]) * itemsize
    estimates["sample_space"] = Estimate(
        forming + cholesky, held, forming + _CHOLESKY_FLOP * cholesky, 0
    )
    return estimates


def _as_right_hand_side(matrix: Any, g: ArrayLike) -> Any:
    if not isinstance(matrix, CurvatureMatrix):
        raise TypeError(
            f"matrix must be a Fisher, GGN, EmpiricalFisher or Hessian, got {matrix!r}: use cg"
        )
    return as_vector(g, "g", matrix.shape[0], matrix.dtype)


def _cg_iterations(matrix: CurvatureMatrix, g: Any, shift: float, rtol: float, most: float) -> int:
    core = core_for(matrix.dtype)
    square = core.dot(g, g, num_threads=matrix.num_threads)
    if not 0.0 < square < math.inf:
        return 1
    if shift <= 0.0 or rtol <= 0.0:
        return int(most)
    own = matrix.l2 + matrix.damping
    mu = matrix.quadratic_form(g) / square - own
    if not math.isfinite(mu):
        return int(most)
    bound = 0.5 * math.sqrt(1.0 + max(mu, 0.0) / shift) * math.log(2.0 / rtol)
    return int(max(1.0, min(most, math.ceil(bound))))
