"""Solves in the space of samples, which has n = N columns dimensions instead of P."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_count, as_dampings, as_name, as_number, as_vector, core_for
from ..operators.curvature import EmpiricalFisher, GaussNewtonMatrix
from .cg import cg
from .results import CGResult, MultishiftResult, SolveResult, Status

__all__ = ["SampleSpace", "sample_space_solve"]

METHODS = ("auto", "cholesky", "eigh", "cg")
# Up to this size "auto" forms the kernel; n^3 / 3 flops are then few beside those that form it.
_LARGEST_DENSE = 4096
# Cholesky factorisations in the time of an eigendecomposition: 41 at n = 1152, 162 at n = 2700 on
# two threads, which the latter does not use.
_CHOLESKYS_PER_EIGH = 100
_REFINEMENTS = 3


class SampleSpace:
    """The kernel K = U'U (n, n) of a curvature matrix B = U U', from which B's solves follow.

    U = [sqrt(w_i) J_i' Q_i] (P, n) with M_i = Q_i Q_i' the output matrices and w_i normalised. J is
    never formed: K is a sum over layers of elementwise products of Gram matrices, of activations
    and of backpropagated deltas.

    Parameters
    ----------
    matrix : Fisher, GGN or EmpiricalFisher
        Positive semi-definite by construction.

    Attributes
    ----------
    shape : (n, n)
        n = N (C - 1) for softmax, N C for the other exact matrices, N samples for a Monte-Carlo
        Fisher, N for the empirical Fisher.
    dtype
    core : operator of the core
        K itself, so that `cg`, `multishift_cg` and `Nystrom` take this object.
    flops_per_product : float
        4 N P without the first layer, and 2 N^2 per unit.

    Raises
    ------
    TypeError, ValueError
        If `matrix` is none of these, or possibly indefinite.
    """

    def __init__(self, matrix: GaussNewtonMatrix) -> None:
        if not isinstance(matrix, GaussNewtonMatrix):
            raise TypeError(f"matrix must be a Fisher, GGN or EmpiricalFisher, got {matrix!r}")
        if not matrix.positive_semidefinite:
            raise ValueError(
                f"the GGN of {matrix.loss.name} may be indefinite and has no sample space: use cg"
            )
        self._matrix = matrix
        self.core = core_for(matrix.dtype).SampleSpace(matrix.core)
        self.shape = (int(self.core.size),) * 2
        self.dtype = matrix.dtype
        self.num_threads = matrix.num_threads
        self.flops_per_product = kernel_product_flops(matrix.sizes, matrix.num_cases)

    def __reduce__(self) -> Any:
        """Refuse copies and pickles: they would share, or lose, memory of the core."""
        raise TypeError("SampleSpace can not be copied or pickled: build it anew")

    def __repr__(self) -> str:
        """Size and matrix."""
        return f"<{self.shape[0]}x{self.shape[1]} SampleSpace of {self._matrix!r}>"

    def matvec(self, w: ArrayLike) -> Any:
        """Return K w for w (n,), without a vector of length P."""
        return self.core.apply(as_vector(w, "w", self.shape[0], self.dtype)[None])[0]

    def __matmul__(self, w: ArrayLike) -> Any:
        """Return K w for w (n,)."""
        return self.matvec(w)

    def prepare(self) -> None:
        """Compute the layer Grams that products with K need; the first product does otherwise."""
        self.core.prepare_products()

    def kernel(self) -> NDArray[np.float64]:
        """K (n, n), rows in the order (case, column)."""
        kernel: NDArray[np.float64] = self.core.kernel()
        return kernel

    def multiply_factor(self, w: ArrayLike) -> Any:
        """Return U w (P,) for w (n,)."""
        w = as_vector(w, "w", self.shape[0], self.dtype)
        return self.core.multiply_factor(w, num_params=self._matrix.shape[0])

    def multiply_factor_transposed(self, v: ArrayLike) -> Any:
        """Return U'v (n,) for v (P,)."""
        return self.core.multiply_factor_transposed(
            as_vector(v, "v", self._matrix.shape[0], self.dtype)
        )

    def solve(
        self,
        g: ArrayLike | None = None,
        *,
        y: ArrayLike | None = None,
        damping: float | Sequence[float] | NDArray[Any] = 0.0,
        method: str = "auto",
        rtol: float = 1e-5,
        max_iter: int = 250,
        callback: Callable[[int, float, float], Any] | None = None,
    ) -> SolveResult | MultishiftResult:
        """Solve as `sample_space_solve`; what was formed is kept for the next call."""
        start = time.perf_counter()
        method = as_name(method, "method", METHODS)
        rtol = as_number(rtol, "rtol", minimum=0.0)
        max_iter = as_count(max_iter, "max_iter", 1)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        dampings, is_scalar = _as_dampings(damping)
        fixed = self._matrix.decay.weights + self._matrix.damping
        if dampings.min() + fixed <= 0.0:
            raise ValueError("damping + l2 must be > 0: the matrix alone is singular")
        if method == "auto":
            method = self._choose(len(dampings))
        side = _RightHandSide(self, g, y)
        columns = []
        for value in dampings:
            one = _Solve(self, side, float(value), fixed, method, rtol, max_iter, callback)
            columns.append(one.run())
            if columns[-1].status in (Status.STOPPED, Status.INTERRUPTED):
                break
        if is_scalar:
            return columns[0]
        return MultishiftResult(
            x=np.stack([column.x for column in columns], axis=1),
            columns=tuple(columns),
            matvecs=sum(column.matvecs for column in columns),
            seconds=time.perf_counter() - start,
            flops=sum(column.flops for column in columns),
            dampings=dampings[: len(columns)],
        )

    def _choose(self, num_dampings: int) -> str:
        if self.shape[0] > _LARGEST_DENSE:
            return "cg"
        return "cholesky" if num_dampings < _CHOLESKYS_PER_EIGH else "eigh"


class _RightHandSide:
    """The right-hand side g = U r + h: all of it in h (P,) unless targets tell its origin."""

    def __init__(self, space: SampleSpace, g: ArrayLike | None, y: ArrayLike | None) -> None:
        matrix = space._matrix
        self.r: Any = None
        self.h: Any = None
        if g is not None:
            g = as_vector(g, "g", matrix.shape[0], matrix.dtype)
        targets = self._targets(matrix, g, y)
        if targets is None:
            self.g = self.h = g
        else:
            self._split(space, targets)
            self.g = self._sum(space) if g is None else g
        core = core_for(matrix.dtype)
        self.norm = math.sqrt(core.dot(self.g, self.g, num_threads=matrix.num_threads))

    @staticmethod
    def _targets(matrix: GaussNewtonMatrix, g: Any, y: Any) -> Any:
        if y is not None:
            return matrix.as_targets(y)
        if g is not None:
            return None
        if isinstance(matrix, EmpiricalFisher):
            return matrix.targets
        raise ValueError("g and y are missing: give the right-hand side, or the targets")

    def _split(self, space: SampleSpace, targets: Any) -> None:
        matrix = space._matrix
        self.r, rest, complete = space.core.split_gradient(targets, num_outputs=matrix.sizes[-1])
        if not complete:
            self.h = matrix.linearization.vjp(rest[None])[0]
        if matrix.decay.weights > 0.0:
            decay = matrix.dtype.type(matrix.decay.weights) * matrix.linearization.params
            self.h = decay if self.h is None else self.h + decay

    def _sum(self, space: SampleSpace) -> Any:
        g = space.multiply_factor(self.r)
        return g if self.h is None else g + self.h


class _Solve:
    """One right-hand side g = U r + h and one shift s = damping + l2.

    With (K + s I) a = U'h the part of h is x = (h - U a) / s, whose own residual lies in the range
    of U whatever a is: U (a - U'x). Where digits cancel in h - U a, or a is an approximation, that
    residual is solved for as well. Then the true residual is the h of a correction, until it is
    small enough.
    """

    def __init__(
        self,
        space: SampleSpace,
        side: _RightHandSide,
        damping: float,
        fixed: float,
        method: str,
        rtol: float,
        max_iter: int,
        callback: Callable[[int, float, float], Any] | None,
    ) -> None:
        self.space, self.matrix, self.side = space, space._matrix, side
        self._core = core_for(space.dtype)
        self.shift = damping + fixed
        self.method, self.max_iter, self.callback = method, max_iter, callback
        self.tolerance = rtol * side.norm
        self.iterations = self.matvecs = 0
        self.flops = 0.0
        self.inner: CGResult | None = None
        self.interrupted = self.non_finite = False
        self.scale = math.nan  # largest eigenvalue of K, about

    def run(self) -> SolveResult:
        start = time.perf_counter()
        side = self.side
        x, residual, norm, quadratic = np.zeros_like(side.g), side.g, side.norm, 0.0
        if norm == 0.0 or not math.isfinite(norm):
            return self._result(x, norm, quadratic, start)
        try:
            self._prepare()
            r, h = side.r, side.h
            for attempt in range(1 + _REFINEMENTS):
                candidate = self._correction(r, h)
                if attempt > 0:
                    candidate += x
                new_residual, new_norm, new_quadratic = self._residual(candidate)
                self.non_finite = not math.isfinite(new_norm)
                if not new_norm < norm:
                    if r is None:
                        break
                    r, h = None, residual  # y was not where g came from
                    continue
                x, residual, norm, quadratic = candidate, new_residual, new_norm, new_quadratic
                if norm <= self.tolerance or self._stopped():
                    break
                r, h = None, residual
        except KeyboardInterrupt:
            self.interrupted = True
        return self._result(x, norm, quadratic, start)

    def _prepare(self) -> None:
        core = self.space.core
        if self.method == "cg":
            return
        core.form()
        self.flops += kernel_flops(self.matrix.sizes, self.matrix.num_cases, self.space.shape[0])
        if self.method == "cholesky" and not core.factorize(self.shift):
            self.method = "eigh"  # negative by rounding: the eigenvalues can be clipped
        if self.method == "eigh":
            core.decompose()
        self.flops += self.space.shape[0] ** 3 * (1 / 3 if self.method == "cholesky" else 9)

    def _correction(self, r: Any, h: Any) -> Any:
        """(U U' + s I)^-1 (U r + h)."""
        core, half = self.space.core, self.matrix.flops_per_product / 2
        if h is None:
            self.flops += half
            return self.space.multiply_factor(self._solve_kernel(r))
        a = self._solve_kernel(core.multiply_factor_transposed(h))
        x = self._core.scaled(1.0 / self.shift, h, num_threads=self.space.num_threads)
        core.add_factor(a * a.dtype.type(-1.0 / self.shift), x)
        self.flops += 2 * half
        cancels = self.method == "cg" or self._cancellation() > 0.1 * self.tolerance
        if r is None and not cancels:
            return x
        coordinates = 0 if r is None else r
        if cancels:
            coordinates = coordinates + (a - core.multiply_factor_transposed(x))
            self.flops += half
        core.add_factor(self._solve_kernel(coordinates), x)
        self.flops += half
        return x

    def _cancellation(self) -> float:
        """Residual that rounding of h - U a leaves, about: eps |g| times |K| / s."""
        eps = float(np.finfo(self.matrix.dtype).eps)
        return float(eps * self.side.norm * self.space.core.largest_diagonal / self.shift)

    def _solve_kernel(self, b: Any) -> Any:
        core = self.space.core
        if self.method == "cholesky":
            return core.solve(b)
        if self.method == "eigh":
            return core.solve_decomposed(self.shift, b)
        if self.iterations >= self.max_iter:
            return np.zeros_like(b)
        if math.isnan(self.scale):
            self.scale = self._largest_eigenvalue(b)
        if self.scale <= 0.0:  # K b = 0
            return b / b.dtype.type(self.shift)
        # |g - A x| = |U d| <= sqrt(lambda_max) |d| for the residual d in sample space.
        self.inner = cg(
            self.space,
            b,
            damping=self.shift,
            rtol=0.0,
            atol=self.tolerance / math.sqrt(self.scale),
            max_iter=self.max_iter - self.iterations,
            callback=self.callback,
        )
        self.iterations += self.inner.iterations
        self.flops += self.inner.flops
        return self.inner.x

    def _dot(self, v: Any, w: Any) -> float:
        return float(self._core.dot(v, w, num_threads=self.space.num_threads))

    def _largest_eigenvalue(self, b: Any) -> float:
        """Rayleigh quotient of K after two power iterations from b."""
        quotient = 0.0
        v = b
        for _ in range(2):
            norm = math.sqrt(self._dot(v, v))
            if not 0.0 < norm < math.inf:
                return quotient
            v = v / v.dtype.type(norm)
            image = self.space.matvec(v)
            quotient = self._dot(v, image)
            v = image
        self.flops += 2 * self.space.flops_per_product
        return quotient

    def _residual(self, x: Any) -> tuple[Any, float, float]:
        self.matvecs += 1
        self.flops += self.matrix.flops_per_product
        residual: tuple[Any, float, float]
        residual = self.space.core.residual(self.side.g, x, shift=(self.shift, self.shift))
        return residual

    def _stopped(self) -> bool:
        stops = (Status.STOPPED, Status.INTERRUPTED, Status.NON_FINITE)
        exhausted = self.method == "cg" and self.iterations >= self.max_iter
        return exhausted or (self.inner is not None and self.inner.status in stops)

    def _status(self, norm: float) -> Status:
        inner = None if self.inner is None else self.inner.status
        if self.interrupted:
            return Status.INTERRUPTED
        if norm <= self.tolerance:
            return Status.CONVERGED
        if self.non_finite or not math.isfinite(norm) or inner is Status.NON_FINITE:
            return Status.NON_FINITE
        if inner in (Status.STOPPED, Status.INTERRUPTED):
            return inner
        if self.method == "cg" and self.iterations >= self.max_iter:
            return Status.MAX_ITERATIONS
        return Status.STAGNATED

    def _result(self, x: Any, norm: float, quadratic: float, start: float) -> SolveResult:
        return SolveResult(
            status=self._status(norm),
            iterations=self.iterations,
            residual_norm=norm,
            quadratic=quadratic,
            matvecs=self.matvecs,
            seconds=time.perf_counter() - start,
            flops=self.flops,
            x=x,
            method=f"sample_space_{self.method}",
        )


def _as_dampings(damping: Any) -> tuple[NDArray[np.float64], bool]:
    """Dampings as (m,) numbers >= 0, and whether one number was given."""
    if np.ndim(damping) == 0:
        return np.array([as_number(damping, "damping", minimum=0.0)]), True
    return as_dampings(damping, "damping"), False


def kernel_product_flops(sizes: Sequence[int], num_cases: int) -> float:
    """Flops of K w: W'u and W Ra without the first layer, U (A'A + 1) in every layer."""
    later = sum(float(i) * o for i, o in pairwise(sizes[1:]))
    return 4.0 * num_cases * later + 2.0 * num_cases**2 * sum(sizes[1:])


def kernel_flops(sizes: Sequence[int], num_cases: int, n: int) -> float:
    """Flops that form K: n columns through W' without the first layer, the triangles of Grams."""
    later = sum(float(i) * o for i, o in pairwise(sizes[1:]))
    return (
        2.0 * n * later + float(n) ** 2 * sum(sizes[1:]) + float(num_cases) ** 2 * sum(sizes[:-1])
    )


def sample_space_solve(
    matrix: GaussNewtonMatrix,
    g: ArrayLike | None = None,
    *,
    y: ArrayLike | None = None,
    damping: float | Sequence[float] | NDArray[Any] = 0.0,
    method: str = "auto",
    rtol: float = 1e-5,
    max_iter: int = 250,
    callback: Callable[[int, float, float], Any] | None = None,
) -> SolveResult | MultishiftResult:
    """Solve (B + (l2 + damping) I) x = g in the space of samples; J is never formed.

    Parameters
    ----------
    matrix : Fisher, GGN or EmpiricalFisher
        B = U U', positive semi-definite by construction; its own damping and l2 count.
    g : (P,) array_like, optional
        Right-hand side. Without it, that of `y`.
    y : array_like, optional
        Targets: says that g is the gradient of the objective on the batch of `matrix`, l2 included,
        so that no digits cancel for small dampings. Without g and y the empirical Fisher takes the
        targets that it was made with. A wrong y costs time, not correctness.
    damping : float or sequence of m floats
        On top of what `matrix` contains; the sum with l2 must be > 0.
    method : {"auto", "cholesky", "eigh", "cg"}
        "cholesky" and "eigh" form the kernel K (n, n) and are exact; "cg" multiplies with K by
        backward deltas, a forward pass and layer Grams, without a vector of length P. "auto": the
        exact ones up to n = 4096, with "eigh" from 100 dampings on, where n^3 / 3 flops for each
        cost more than one eigendecomposition and O(n^2) for each.
    rtol : float
        Of the true residual, relative to |g|. Corrections are added until it is met or no longer
        falls.
    max_iter : int
        Iterations of "cg" in all.
    callback : callable, optional
        As in `cg`, for "cg": residual and quadratic are those in the space of samples.

    Returns
    -------
    SolveResult, or MultishiftResult for several dampings
        With `method`, and the true residual of every solution. ``stagnated``: rtol is out of reach
        of the float type.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range, or a matrix that may be indefinite.

    Notes
    -----
    With U r + h = g: x = U a + h / s, (K + s I) a = r - U'h / s, s = damping + l2 (Woodbury; the
    push-through identity where h = 0). With targets r = Q^+ dL/dz for every case where Q is well
    conditioned; cases with a saturated probability go into h.

    "cholesky" costs 2 n P + n^2 (sum of widths) + n^3 / 3 flops and 3 n^2 numbers, further dampings
    n^3 / 3; every solution one product with B to check the residual. An iteration of "cg" costs
    4 N P + 2 N^2 (sum of widths) flops, without the first layer.
    """
    return SampleSpace(matrix).solve(
        g, y=y, damping=damping, method=method, rtol=rtol, max_iter=max_iter, callback=callback
    )
