"""Solves for rows of the user's own, in their space of samples."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_name, as_number, as_numbers, core_for
from .._typing import Array, CoreDenseMatrix
from ..config import physical_memory
from ..operators.rows import Rows
from .results import (
    BlockSolveResult,
    KernelSpectrum,
    MultishiftResult,
    RowsSolveResult,
    Status,
)
from .right_hand_side import as_damping_values, check_one_damping, in_units, power_of_two

__all__ = ["rows_solve"]

METHODS = ("auto", "cholesky", "eigh")
# A solve with eigenvectors takes 2 times as long as one with a Cholesky factorisation at m = 500,
# 3 times at 1000, 5 times at 2000; forming the kernel, m^2 P flops, is most of both.
_CHEAP_EIGH = 1000
# Cholesky factorisations in the time of an eigendecomposition, as for the matrix (P, P).
_CHOLESKYS_PER_EIGH = 15
_REFINEMENTS = 3
# Above 2^this beside a kernel of elements below P, damping is all there is.
_OVERWHELMING = 128
_POWER_ITERATIONS = 20
_EPSILON = float(np.finfo(np.float64).eps)
# What the core calls definite.
_DEFINITE = 0


def rows_solve(
    rows: ArrayLike,
    rhs: ArrayLike,
    *,
    damping: float | ArrayLike,
    method: str,
    rtol: float,
    center: bool,
    weights: ArrayLike | None,
    real_solution: bool,
    num_threads: int | None,
) -> RowsSolveResult | BlockSolveResult | MultishiftResult:
    """Solve as `sample_space_solve` does for rows."""
    start = time.perf_counter()
    chosen = as_name(method, "method", METHODS)
    rtol = as_number(rtol, "rtol", minimum=0.0)
    dampings, is_scalar = as_damping_values(damping)
    if not isinstance(real_solution, bool):
        raise TypeError(f"real_solution must be True or False, got {real_solution!r}")
    matrix = Rows(rows, weights=weights, center=center, num_threads=num_threads)
    sides, exponents, is_block = _as_sides(rhs, matrix, center)
    if is_block:
        check_one_damping(is_scalar, len(sides), "rhs (n,)")
    if chosen == "auto":
        few = len(dampings) < _CHOLESKYS_PER_EIGH and matrix.size > _CHEAP_EIGH
        chosen = "cholesky" if few else "eigh"
    solve = _RowsSolve(matrix, sides, exponents, chosen, rtol, is_complex=not real_solution)
    solve.run(dampings)
    results = solve.results(time.perf_counter() - start)
    if is_block:
        return BlockSolveResult.of(results, time.perf_counter() - start)
    if is_scalar:
        return results[0]
    return MultishiftResult.of_dampings(results, dampings, time.perf_counter() - start)


def _as_sides(rhs: ArrayLike, rows: Rows, center: bool) -> tuple[Array, list[int], bool]:
    """sqrt(w_i) (e_i - mean) / 2^exponent, as rows (K, m); exponents; whether it was a block."""
    a = as_numbers(rhs, "rhs")
    count = rows.shape[0]
    if a.ndim not in (1, 2) or a.shape[0] != count:
        raise ValueError(f"rhs has shape {a.shape}, wanted ({count},) or ({count}, K)")
    if a.ndim == 2 and a.shape[1] == 0:
        raise ValueError("rhs has no columns, wanted at least one")
    if a.dtype.kind == "c" and not rows.is_complex:
        raise TypeError(
            "rhs is complex and rows are real: solve for rhs.real and rhs.imag, as two columns"
        )
    columns = a.reshape(count, -1)[rows.kept].T
    parts = [columns.real, columns.imag] if rows.is_complex else [columns]
    with np.errstate(over="ignore"):  # what does not fit is reported as Inf
        sides = np.stack([part.astype(np.float64) for part in parts], axis=1)
    if not np.isfinite(sides).all():
        place = np.argwhere(~np.isfinite(sides))[0]
        raise ValueError(
            f"rhs has NaN or Inf at row {rows.kept[place[2]]}"
            + (f", column {place[0]}" if a.ndim == 2 else "")
        )
    exponents = [int(np.frexp(np.abs(side).max())[1]) for side in sides]
    sides = np.ldexp(sides, -np.array(exponents)[:, None, None])
    if center:
        sides -= (rows.weights * sides).sum(axis=2, keepdims=True)
    sides *= rows.roots
    return sides.reshape(len(sides), rows.size), exponents, a.ndim == 2


@dataclass(frozen=True)
class _Column:
    """One solution: the right-hand side r of index `side`, and 2^shift_exponent `shift` I.

    `exponent` is that of x; the shift is between 1/2 and 1 where its exponent is not 0.
    """

    side: int
    shift: float
    shift_exponent: int
    exponent: int
    largest: float  # eigenvalue of the kernel, in units
    spectrum: KernelSpectrum
    method: str
    is_definite: bool


class _RowsSolve:
    """Solutions x = U a, (K + s I) a = r, of all right-hand sides and dampings, in units.

    The rows T of `Rows` are U^H in the unit 2^p, real and imaginary parts by themselves, and the
    right-hand sides are r in units 2^q. With s = 2^(2 p + f) s', f >= 0, and x = 2^(q - p - f) x'

        x' = T'a',   (2^-f T T' + s' I) a' = r',   gradient 2^(p + q) (T'(r' - 2^-f T x') - s' x')

    Complex vectors are twice as long: real parts, then imaginary ones.
    """

    def __init__(
        self,
        rows: Rows,
        sides: Array,
        exponents: list[int],
        method: str,
        rtol: float,
        *,
        is_complex: bool,
    ) -> None:
        self.rows, self.sides, self.exponents = rows, sides, exponents
        self.method, self.rtol = method, rtol
        self.is_complex = is_complex and rows.is_complex
        self.num_rows = len(rows.kept) if self.is_complex else rows.size  # n of K
        self.columns: list[_Column] = []
        self.matvecs = 0
        self.flops = 0.0

    def run(self, dampings: NDArray[np.float64]) -> None:
        _check_memory(self.rows.size, self.method)
        self.dense = self._form()
        solutions = []
        for damping in dampings:
            solutions.append(self._solve_damping(float(damping)))
        self._right = self.sides[[column.side for column in self.columns]]
        self._scales = np.array([math.ldexp(1.0, -c.shift_exponent) for c in self.columns])
        self._shifts = np.array([c.shift for c in self.columns])
        self._refine(np.concatenate(solutions))

    def _form(self) -> CoreDenseMatrix:
        """K, complex ones as [Re, -Im; Im, Re]."""
        gram = self.rows.gram()
        self.flops += float(self.rows.size) ** 2 * self.rows.shape[1]
        if self.is_complex:
            n = self.num_rows
            real, imaginary = gram[:n, :n] + gram[n:, n:], gram[n:, :n] - gram[:n, n:]
            gram = np.block([[real, -imaginary], [imaginary, real]])
        dense: CoreDenseMatrix = core_for(gram.dtype).DenseMatrix.of_array(
            gram, num_threads=self.rows.num_threads
        )
        return dense

    def _solve_damping(self, damping: float) -> Array:
        """Solutions a' (K, m) for one damping and all right-hand sides."""
        p = self.rows.exponent
        mantissa, exponent = math.frexp(damping)
        whole = exponent - 2 * p if damping > 0.0 else 0
        f = max(whole, 0)
        shift = power_of_two(whole - f, mantissa)
        solutions, is_definite = self._solve_kernel(self.sides, shift, f)
        largest, spectrum = self._spectrum(shift, f)
        for side, q in enumerate(self.exponents):
            self.columns.append(
                _Column(side, shift, f, q - p - f, largest, spectrum, self.method, is_definite)
            )
        return solutions

    def _solve_kernel(self, b: Array, shift: float, exponent: int) -> tuple[Array, bool]:
        """(2^-exponent K + shift I)^+ b for rows b (K, m), and whether that is no ^+ but ^-1."""
        if exponent > _OVERWHELMING:
            return b / shift, True
        b = np.ascontiguousarray(b)
        whole = math.ldexp(shift, exponent)
        x, _, used, kind, choleskys, eigenbases = self.dense.solve(whole, self.method, b)
        self.method = used
        size = float(self.rows.size)
        self.flops += (choleskys / 3.0 + eigenbases * 14.0 / 3.0) * size**3
        self.flops += 2.0 * len(b) * (2.0 if used == "cholesky" else 3.0) * size**2
        return np.ldexp(np.asarray(x, np.float64), exponent), kind == _DEFINITE

    def _spectrum(self, shift: float, exponent: int) -> tuple[float, KernelSpectrum]:
        """Largest eigenvalue in units, and the whole in units of the caller."""
        rank = None
        if self.method == "eigh":
            values = np.array(self.dense.eigenvalues())
            smallest, largest = max(float(values[0]), 0.0), max(float(values[-1]), 0.0)
            rank = int((values > self.rows.size * _EPSILON * largest).sum())
            rank //= 2 if self.is_complex else 1
        else:
            smallest, largest = self._extremes(shift, exponent)
        bottom = math.ldexp(smallest, -exponent) + shift
        top = math.ldexp(largest, -exponent) + shift
        unit = 2 * self.rows.exponent
        return largest, KernelSpectrum(
            power_of_two(unit, smallest),
            power_of_two(unit, largest),
            rank,
            top / bottom if bottom > 0.0 and top / bottom < math.inf else math.inf,
            self.method == "eigh",
        )

    def _extremes(self, shift: float, exponent: int) -> tuple[float, float]:
        """Smallest and largest eigenvalue, by power iterations with the inverse and with K."""
        start: Array = np.random.default_rng(0).standard_normal((1, self.rows.size))
        v, largest = start, 0.0
        for _ in range(_POWER_ITERATIONS):
            v = v / math.sqrt(float((v * v).sum()))
            image = self.dense.apply(v)
            largest = float((v * image).sum())
            if not largest > 0.0:
                return 0.0, 0.0
            v = image
        if exponent > _OVERWHELMING:
            return 0.0, largest
        v, bottom = start, 0.0
        for _ in range(_POWER_ITERATIONS):
            v = v / math.sqrt(float((v * v).sum()))
            image = self._solve_kernel(v, shift, exponent)[0]
            bottom = 1.0 / float((v * image).sum())
            v = image
        return max(math.ldexp(bottom - shift, exponent), 0.0), largest

    def _refine(self, a: Array) -> None:
        """Add T'a' to x' = 0, look at the gradient, and correct it while that pays.

        r' - 2^-f T x' - s' a' is what is left in the space of samples; it is free of the rounding
        of the kernel.
        """
        parts = 2 if self.is_complex else 1
        x = np.zeros((len(a), parts, self.rows.shape[1]), self.rows.dtype)
        left = self._right - self._scales[:, None] * self._add(a, x)
        norms, sides, quadratics = self._gradients(left, x)
        tolerances = self._tolerances(sides)
        for _ in range(_REFINEMENTS):
            pending = np.flatnonzero(norms > tolerances)
            if len(pending) == 0:
                break
            correction = self._correct(pending, left - self._shifts[:, None] * a)
            candidate = x.copy()
            rest = self._right - self._scales[:, None] * self._add(correction, candidate)
            new_norms, _, new_quadratics = self._gradients(rest, candidate)
            better = new_norms < norms
            if not better.any():
                break
            a = np.where(better[:, None], a + correction, a)
            x[better], left[better] = candidate[better], rest[better]
            norms = np.where(better, new_norms, norms)
            quadratics = np.where(better, new_quadratics, quadratics)
        self.x, self.norms, self.sides_norms, self.quadratics = x, norms, sides, quadratics
        self.tolerances = tolerances

    def _correct(self, pending: NDArray[np.intp], left: Array) -> Array:
        """Corrections of a', 0 for the columns that need none."""
        correction = np.zeros_like(left)
        shifts = [(c.shift, c.shift_exponent) for c in self.columns]
        for (shift, exponent), group in itertools.groupby(pending, key=shifts.__getitem__):
            some = list(group)
            correction[some] = self._solve_kernel(left[some], shift, exponent)[0]
        return correction

    def _tolerances(self, sides: Array) -> Array:
        """Norms of gradients: rtol |U r|, or what rounding leaves of U r where that cancels."""
        length = math.sqrt(max(column.largest for column in self.columns))
        lengths = np.sqrt((self._right * self._right).sum(axis=1))
        tolerances: Array = np.maximum(
            self.rtol * sides, self.rows.size * _EPSILON * length * lengths
        )
        return tolerances

    def _spread(self, a: Array) -> Array:
        """Vectors of samples as T' takes them: those of Re x, and of Im x where it is complex."""
        if not self.is_complex:
            return a[:, None]
        n = self.num_rows
        return np.stack([a, np.concatenate([a[:, n:], -a[:, :n]], axis=1)], axis=1)

    def _gather(self, images: Array) -> Array:
        """T x' (K, parts, m) as vectors of samples (K, m)."""
        if not self.is_complex:
            return images[:, 0]
        n, (real, imaginary) = self.num_rows, (images[:, 0], images[:, 1])
        return np.concatenate(
            [real[:, :n] - imaginary[:, n:], real[:, n:] + imaginary[:, :n]], axis=1
        )

    def _add(self, a: Array, x: Array) -> Array:
        """Add T'a to x' in place, block by block; returns T x' of what it then holds."""
        count, parts, _ = x.shape
        spread = self._spread(a).reshape(count * parts, self.rows.size, 1)
        images = np.zeros((count * parts, self.rows.size))
        for columns, block in self.rows.blocks():
            x[:, :, columns] += block.vjp(spread).reshape(count, parts, -1)
            piece = x[:, :, columns].astype(np.float64, order="C")
            images += block.jvp(piece.reshape(count * parts, -1))[:, :, 0]
        self.matvecs += 1
        self.flops += 4.0 * images.size * self.rows.shape[1]
        return self._gather(images.reshape(count, parts, self.rows.size))

    def _gradients(self, left: Array, x: Array) -> tuple[Array, Array, Array]:
        """Norms (K,) of T'left - s' x' and of T'r', and -x'(T'r' + the former) / 2."""
        count, parts, _ = x.shape
        both = np.concatenate([left, self.sides])
        spread = self._spread(both).reshape(len(both) * parts, self.rows.size, 1)
        places = [column.side for column in self.columns]
        squares, side_squares, products = np.zeros((3, count))
        for columns, block in self.rows.blocks():
            pulled = block.vjp(spread).reshape(len(both), parts, -1)
            piece = x[:, :, columns].astype(np.float64)
            gradient = pulled[:count] - self._shifts[:, None, None] * piece
            side = pulled[count:][places]
            squares += (gradient * gradient).sum(axis=(1, 2))
            side_squares += (side * side).sum(axis=(1, 2))
            products += (piece * (side + gradient)).sum(axis=(1, 2))
        self.flops += 2.0 * spread.size * self.rows.shape[1]
        return np.sqrt(squares), np.sqrt(side_squares), -0.5 * products

    def results(self, seconds: float) -> list[RowsSolveResult]:
        """In the units of the caller; what does not fit into them is told of."""
        pairs = [in_units(x, c.exponent) for x, c in zip(self.x, self.columns, strict=True)]
        is_lost = [held is not None for _, held in pairs]
        if any(is_lost):
            held = np.stack(
                [x if h is None else h for x, (_, h) in zip(self.x, pairs, strict=True)]
            )
            images = self._add(np.zeros_like(self._right), held)
            left = self._right - self._scales[:, None] * images
            self.norms, _, self.quadratics = self._gradients(left, held)
        return [
            self._result(k, x, is_lost[k], seconds, self.flops / len(pairs))
            for k, (x, _) in enumerate(pairs)
        ]

    def _result(
        self, k: int, x: Array, is_lost: bool, seconds: float, flops: float
    ) -> RowsSolveResult:
        column = self.columns[k]
        unit = self.rows.exponent + self.exponents[column.side]
        norm = float(self.norms[k])
        return RowsSolveResult(
            status=self._status(column, norm, float(self.tolerances[k]), is_lost),
            iterations=0,
            residual_norm=power_of_two(unit, norm),
            quadratic=power_of_two(
                2 * self.exponents[column.side] - column.shift_exponent, float(self.quadratics[k])
            ),
            matvecs=self.matvecs,
            seconds=seconds,
            flops=flops,
            x=_joined(x) if self.is_complex else x[0],
            method=f"sample_space_{column.method}",
            spectrum=column.spectrum,
            right_hand_side_norm=power_of_two(unit, float(self.sides_norms[k])),
        )

    @staticmethod
    def _status(column: _Column, norm: float, tolerance: float, is_lost: bool) -> Status:
        if norm <= tolerance:
            return Status.CONVERGED
        if is_lost:
            return Status.OUT_OF_RANGE
        return Status.STAGNATED if column.is_definite else Status.SINGULAR


def _joined(parts: Array) -> Array:
    """Complex numbers (P,) of their parts (2, P)."""
    x = np.empty(parts.shape[1], np.result_type(parts.dtype, np.complex64))
    x.real, x.imag = parts
    return cast(Array, x)


def _check_memory(size: int, method: str) -> None:
    """Refuse kernels that this machine could never hold, before anything is computed."""
    needed, memory = 8 * size**2 * (7 if method == "eigh" else 4), physical_memory()
    if memory is not None and needed > memory:
        raise MemoryError(
            f"the kernel of rows ({size}, {size}) in float64 and its factorisation take {needed:,} "
            f"bytes, this machine has {memory:,}: solve for fewer rows at once"
        )
