"""Solves in the space of samples, which has n = N columns dimensions instead of P."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    Decay,
    as_count,
    as_name,
    as_number,
    as_right_hand_sides,
    core_for,
    memory_for,
)
from .._typing import Array, Callback, CoreSampleSpace
from ..operators.sample_space import SampleSpace, kernel_flops
from .cg import as_callback, cg
from .results import (
    BlockSolveResult,
    CGResult,
    MultishiftResult,
    SolveResult,
    Status,
)
from .right_hand_side import RightHandSide, as_damping_values, check_one_damping, power_of_two

__all__ = ["SampleSpace", "solve_space"]

METHODS = ("auto", "cholesky", "eigh", "cg")
# Up to this size "auto" forms the kernel; n^3 / 3 flops are then few beside those that form it.
_LARGEST_DENSE = 4096
# Cholesky factorisations in the time of an eigendecomposition: 41 at n = 1152, 162 at n = 2700 on
# two threads, which the latter does not use.
_CHOLESKYS_PER_EIGH = 100
_REFINEMENTS = 3


def solve_space(
    space: SampleSpace,
    g: ArrayLike | None = None,
    *,
    y: ArrayLike | None = None,
    damping: float | ArrayLike = 0.0,
    method: Literal["auto", "cholesky", "eigh", "cg"] = "auto",
    rtol: float = 1e-5,
    max_iter: int = 250,
    callback: Callback | None = None,
) -> SolveResult | BlockSolveResult | MultishiftResult:
    """Solve as `sample_space_solve`; what was formed or factorised is kept for the next call."""
    start = time.perf_counter()
    matrix = space._matrix
    chosen = as_name(method, "method", METHODS)
    rtol = as_number(rtol, "rtol", minimum=0.0)
    max_iter = as_count(max_iter, "max_iter", 1)
    callback = as_callback(callback)
    dampings, is_scalar = as_damping_values(damping)
    fixed = Decay(*(part + matrix.damping for part in matrix.decay))
    if dampings.min() + min(fixed) <= 0.0:
        raise ValueError("damping + l2 must be > 0: the matrix alone is singular")
    if chosen == "auto":
        chosen = _choose(space, len(dampings))

    def begin(side: RightHandSide, value: float, callback: Callback | None) -> _Solve:
        return _Solve(space, side, value, fixed, chosen, rtol, max_iter, callback)

    rows, is_block = None, False
    if g is not None:
        rows, is_block = as_right_hand_sides(g, "g", matrix.shape[0], matrix.dtype)
    if rows is not None and is_block:
        if y is not None:
            raise ValueError(f"y is the origin of a single g (P,), got K = {len(rows)} columns")
        check_one_damping(is_scalar, len(rows), "g (P,)")
        sides = [RightHandSide(space, row, None) for row in rows]
        columns = _solve_columns(
            sides, lambda side, call: begin(side, float(dampings[0]), call), callback
        )
        return BlockSolveResult.of(columns, time.perf_counter() - start)
    side = RightHandSide(space, None if rows is None else rows[0], y)
    results = []
    for value in dampings:
        solve = begin(side, float(value), callback)
        results.append(solve.run())
        if solve.halt is not None:
            break
    if is_scalar:
        return results[0]
    return MultishiftResult.of_dampings(results, dampings, time.perf_counter() - start)


SampleSpace.solve = solve_space


def _choose(space: SampleSpace, num_dampings: int) -> str:
    if space.shape[0] > _LARGEST_DENSE:
        return "cg"
    return "cholesky" if num_dampings < _CHOLESKYS_PER_EIGH else "eigh"


def _solve_columns(
    sides: Sequence[RightHandSide],
    begin: Callable[[RightHandSide, Callback | None], _Solve],
    callback: Callback | None,
) -> list[SolveResult]:
    """One column after the other; those behind a stop are not begun and x = 0."""
    norms, quadratics = np.array([side.norm for side in sides]), np.zeros(len(sides))
    calls = itertools.count(1)
    results: list[SolveResult] = []
    halt: Status | None = None
    for k, side in enumerate(sides):
        if halt is not None:
            results.append(_not_begun(side, results[-1], halt))
            continue

        def of_block(_: int, norm: float, phi: float, k: int = k) -> object:
            assert callback is not None
            norms[k], quadratics[k] = norm, phi
            return callback(next(calls), norms.copy(), quadratics.copy())

        solve = begin(side, None if callback is None else of_block)
        results.append(solve.run())
        halt = solve.halt
        norms[k], quadratics[k] = results[-1].residual_norm, results[-1].quadratic
    return results


def _not_begun(side: RightHandSide, last: SolveResult, halt: Status) -> SolveResult:
    """The result x = 0 of a column behind one that was stopped."""
    return dataclasses.replace(
        last,
        status=halt,
        iterations=0,
        residual_norm=side.norm,
        quadratic=0.0,
        matvecs=0,
        seconds=0.0,
        flops=0.0,
        x=np.zeros_like(side.g),
    )


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
        side: RightHandSide,
        damping: float,
        fixed: Decay,
        method: str,
        rtol: float,
        max_iter: int,
        callback: Callback | None,
    ) -> None:
        self.shift, shift_of_biases = (damping + part for part in fixed)
        self.shifts = self.shift, shift_of_biases
        self.bias_scale = self.shift / shift_of_biases
        self.space = space.with_bias_scale(self.bias_scale)
        self.matrix, self.side = space._matrix, side
        self._core = core_for(space.dtype)
        self.method, self.max_iter = method, max_iter
        self.callback = None if callback is None else side.told_in_callers_units(callback)
        self.tolerance = rtol * side.norm
        self.iterations = self.matvecs = 0
        self.flops = 0.0
        self.inner: CGResult | None = None
        self.interrupted = False
        self.failure: Status | None = None
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
                    with np.errstate(invalid="ignore", over="ignore"):  # a status tells of it
                        candidate += x
                new_residual, new_norm, new_quadratic = self._residual(candidate)
                self.failure = None if math.isfinite(new_norm) else self._why()
                if not new_norm < norm:
                    if r is None or self._stopped():
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
        with memory_for(f"the kernel {self.space.shape} in float64: method='cg' takes less"):
            self._factorize(core)

    def _factorize(self, core: CoreSampleSpace) -> None:
        n = self.space.shape[0]
        if core.form():
            self.flops += kernel_flops(self.matrix.sizes, self.matrix.num_cases, n)
        if self.method == "cholesky":
            self.cholesky, is_new = core.factorize(self.shift)
            self.flops += n**3 / 3 if is_new else 0
            if not self.cholesky.is_definite:
                self.method = "eigh"  # negative by rounding: the eigenvalues can be clipped
        if self.method == "eigh":
            self.eigenbasis, is_new = core.decompose()
            self.flops += 9 * n**3 if is_new else 0

    def _correction(self, r: Array | None, h: Array | None) -> Array:
        """(U U' + s D^-1)^-1 (U r + h), D = I but for two shifts."""
        core, half = self.space.core, self.matrix.flops_per_product / 2
        if h is None:
            assert r is not None
            self.flops += half
            return self._scaled(self.space.multiply_factor(self._solve_kernel(r)))
        a = self._solve_kernel(core.multiply_factor_transposed(self._scaled(h, copy=True)))
        x = self._times(1.0 / self.shift, h)
        core.add_factor(self._times(-1.0 / self.shift, a), x)
        x = self._scaled(x)
        self.flops += 2 * half
        cancels = self.method == "cg" or self._cancellation() > 0.1 * self.tolerance
        if (r is None and not cancels) or self._stopped():
            return x
        coordinates = np.zeros_like(a) if r is None else r
        if cancels:
            with np.errstate(invalid="ignore", over="ignore"):  # a status tells of it
                coordinates = coordinates + (a - core.multiply_factor_transposed(x))
            self.flops += half
        self.flops += half
        if self.bias_scale != 1.0:
            return x + self._scaled(self.space.multiply_factor(self._solve_kernel(coordinates)))
        core.add_factor(self._solve_kernel(coordinates), x)
        return x

    def _scaled(self, v: Array, *, copy: bool = False) -> Array:
        """D v, in place or not, D = diag(1 for weights, ratio of the shifts for biases)."""
        if self.bias_scale != 1.0:
            v = v.copy() if copy else v
            for place in self.matrix.bias_places:
                v[place] *= v.dtype.type(self.bias_scale)
        return v

    def _cancellation(self) -> float:
        """Residual that rounding of h - U a leaves, about: eps |g| times |K| / s."""
        eps = float(np.finfo(self.matrix.dtype).eps)
        return float(eps * self.side.norm * self.space.core.largest_diagonal() / self.shift)

    def _solve_kernel(self, b: Array) -> Array:
        if self.method == "cholesky":
            return self.cholesky.solve(b)
        if self.method == "eigh":
            return self.eigenbasis.solve(self.shift, b)
        if self.iterations >= self.max_iter or self.halt is not None:
            return np.zeros_like(b)
        if math.isnan(self.scale):
            self.scale = self._largest_eigenvalue(b)
        if self.scale <= 0.0:  # K b = 0
            return self._times(1.0 / self.shift, b)
        # |g - A x| = |U d| <= sqrt(lambda_max) |d| for the residual d in sample space.
        inner = cg(
            self.space,
            b,
            damping=self.shift,
            rtol=0.0,
            atol=self.tolerance / math.sqrt(self.scale),
            max_iter=self.max_iter - self.iterations,
            callback=self.callback,
        )
        assert isinstance(inner, CGResult)
        self.inner = inner
        self.iterations += inner.iterations
        self.flops += inner.flops
        return inner.x

    def _times(self, factor: float, v: Array) -> Array:
        product: Array = self._core.scaled(factor, v, num_threads=self.space.num_threads)
        return product

    def _dot(self, v: Array, w: Array) -> float:
        return float(self._core.dot(v, w, num_threads=self.space.num_threads))

    def _largest_eigenvalue(self, b: Array) -> float:
        """Rayleigh quotient of K after two power iterations from b."""
        quotient = 0.0
        v = b
        for _ in range(2):
            norm = math.sqrt(self._dot(v, v))
            if not 0.0 < norm < math.inf:
                return quotient
            v = self._times(1.0 / norm, v)
            image = self.space.matvec(v)
            quotient = self._dot(v, image)
            v = image
        self.flops += 2 * self.space.flops_per_product
        return quotient

    def _why(self) -> Status:
        """What made the residual NaN or Inf: the matrix, or a solution that is too long."""
        finite = math.isfinite(self._residual(self.side.g)[1])
        return Status.OUT_OF_RANGE if finite else Status.NON_FINITE

    def _residual(self, x: Array) -> tuple[Array, float, float]:
        self.matvecs += 1
        self.flops += self.matrix.flops_per_product
        residual: tuple[Array, float, float]
        residual = self.space.core.residual(self.side.g, x, shift=self.shifts)
        return residual

    @property
    def halt(self) -> Status | None:
        """The stop that was asked for while it ran, whatever the residual is."""
        if self.interrupted:
            return Status.INTERRUPTED
        inner = None if self.inner is None else self.inner.status
        return inner if inner in (Status.STOPPED, Status.INTERRUPTED) else None

    def _stopped(self) -> bool:
        stops = (Status.STOPPED, Status.INTERRUPTED, Status.NON_FINITE)
        exhausted = self.method == "cg" and self.iterations >= self.max_iter
        return exhausted or (self.inner is not None and self.inner.status in stops)

    def _status(self, norm: float) -> Status:
        if self.halt is not None:
            return self.halt
        if norm <= self.tolerance:
            return Status.CONVERGED
        inner = None if self.inner is None else self.inner.status
        if not math.isfinite(norm) or inner is Status.NON_FINITE:
            return Status.NON_FINITE
        if self.failure is not None:
            return self.failure
        if self.method == "cg" and self.iterations >= self.max_iter:
            return Status.MAX_ITERATIONS
        return Status.STAGNATED

    def _result(self, x: Array, norm: float, quadratic: float, start: float) -> SolveResult:
        status, side = self._status(norm), self.side
        x, held = side.in_callers_units(x)
        if held is not None:
            _, norm, quadratic = self._residual(held)
            if self.halt is None and not norm <= self.tolerance:
                status = Status.OUT_OF_RANGE
        return SolveResult(
            status=status,
            iterations=self.iterations,
            residual_norm=power_of_two(side.exponent, norm),
            quadratic=power_of_two(2 * side.exponent, quadratic),
            matvecs=self.matvecs,
            seconds=time.perf_counter() - start,
            flops=self.flops,
            x=x,
            method=f"sample_space_{self.method}",
        )
