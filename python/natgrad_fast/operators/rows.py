"""Rows of the user's own, multiplied in blocks of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._arrays import as_num_threads, as_numbers, as_sample_weight, core_for, is_array, is_sparse
from .._typing import Array, DType, Linearization, NumberArray
from ..losses import SquaredError

__all__ = ["Rows"]

# Numbers of a block of columns: 16 MiB in float64. Fixed, as the order of sums follows from it.
_BLOCK = 1 << 21
_LEAST_WIDTH = 64
# Exponents up to which a power of two is a factor like others.
_ORDINARY = 500


class Rows:
    """Rows O (n, P), real or complex, as the real matrix T (m, P) that their solves need.

    T has the rows sqrt(w_i) (O_i - mean) / 2^exponent for weights w_i > 0 that add up to 1: those
    of real numbers, or 2 n of them, the real parts and then the imaginary ones. It is made in
    float64 in blocks of columns, and never as a whole.

    Parameters
    ----------
    rows : (n, P) array_like
    weights : (n,) array_like, optional
        >= 0; rows of weight 0 are left out.
    center : bool
        Subtract the weighted mean of the rows.
    num_threads : int, optional
        The bits do not depend on it.

    Attributes
    ----------
    shape : (n, P)
        Of what was given.
    size : int
        m.
    is_complex : bool
    dtype : float32 or float64
        Of real and imaginary parts of solutions: that of the rows, float64 for other numbers.
    exponent : int
        Of the largest element of T, which is between 1/2 and 1 before the mean is subtracted.
    kept : (k,) array of int
        Rows of positive weight.
    weights : (k,) array
        Theirs, normalised.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range, and rows that are not finite.
    """

    def __init__(
        self,
        rows: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        center: bool = False,
        num_threads: int | None = None,
    ) -> None:
        self._rows = _as_matrix(rows)
        self._core = core_for(np.dtype(np.float64))
        self.shape = self._rows.shape
        self.is_complex = self._rows.dtype.kind == "c"
        self.dtype = _float_type(self._rows.dtype)
        self.num_threads = as_num_threads(num_threads)
        if not isinstance(center, bool):
            raise TypeError(f"center must be True or False, got {center!r}")
        count = self.shape[0]
        w = np.ones(count) if weights is None else as_sample_weight(weights, count, "weights")
        self.kept = np.flatnonzero(w)
        self._selection = slice(None) if len(self.kept) == count else self.kept
        self.weights = w[self.kept] / w.sum()
        self.roots = np.sqrt(self.weights)
        self.exponent = self._measure()
        self.size = len(self.kept) * (2 if self.is_complex else 1)
        self._width = max(_LEAST_WIDTH, _BLOCK // self.size // _LEAST_WIDTH * _LEAST_WIDTH)
        # Weighted means of parts and columns in units, and how many columns of them are known.
        self._means = np.empty((1 + self.is_complex, self.shape[1])) if center else None
        self._known = 0
        self._only: Linearization | None = None

    def _measure(self) -> int:
        """Exponent of the largest sqrt(w_i) |O_ij|, real and imaginary parts by themselves."""
        largest = np.zeros(len(self.kept))
        for part in self._parts(self._rows):
            with np.errstate(invalid="ignore", over="ignore"):
                tops = (part.max(axis=1), part.min(axis=1))
                for top in tops:  # no temporary of the size of the rows
                    np.maximum(largest, np.abs(top[self.kept].astype(float)), out=largest)
        if not np.isfinite(largest).all():
            row = int(self.kept[np.flatnonzero(~np.isfinite(largest))[0]])
            column = int(np.flatnonzero(~np.isfinite(self._rows[row].astype(complex)))[0])
            raise ValueError(f"rows has NaN or Inf at row {row}, column {column}")
        some = largest > 0.0
        exponents = np.frexp(largest[some])[1] + np.frexp(self.roots[some])[1]
        return int(exponents.max(initial=-10_000)) if some.any() else 0

    def _parts(self, a: NumberArray) -> list[NumberArray]:
        return [a.real, a.imag] if self.is_complex else [a]

    def _cut(self, columns: slice) -> Array:
        """Columns of T."""
        count, width = len(self.kept), columns.stop - columns.start
        block = np.empty((self.size, width))
        roots = self.roots[:, None]
        parts = self._parts(self._rows[self._selection, columns])
        for k, part in enumerate(parts):
            half = block[k * count : (k + 1) * count]
            if abs(self.exponent) > _ORDINARY:
                np.ldexp(part.astype(float), -self.exponent, out=half)
                part = half
            unit = 1.0 if part is half else math.ldexp(1.0, -self.exponent)
            if self._means is None:
                np.multiply(part, unit * roots, out=half, dtype=np.float64)
                continue
            np.multiply(part, unit, out=half, dtype=np.float64)
            mean = self._means[k, columns]
            if columns.start >= self._known:  # plain loops: no BLAS, whose bits depend on threads
                np.einsum("i,ij->j", self.weights, half, out=mean)
            half -= mean
            half *= roots
        self._known = max(self._known, columns.stop)
        return block

    def blocks(self) -> Iterator[tuple[slice, Linearization]]:
        """Columns, and what multiplies with those of T.

        T v is the Jacobian of a net of one layer without biases over the cases T.
        """
        if self._only is not None:
            yield slice(0, self.shape[1]), self._only
            return
        for start in range(0, self.shape[1], self._width):
            columns = slice(start, min(start + self._width, self.shape[1]))
            width = columns.stop - columns.start
            block: Linearization = self._core.Linearization(
                _core.Architecture([width, 1], ["identity"], [False]),
                params=np.zeros(width),
                x=self._cut(columns),
                num_threads=self.num_threads,
                chunk_size=0,
            )
            if width == self.shape[1]:
                self._only = block
            yield columns, block

    def gram(self) -> NDArray[np.float64]:
        """T T' (m, m), symmetric to the bit; m^2 P flops."""
        loss = SquaredError().core
        gram = np.zeros((self.size, self.size))
        for _, block in self.blocks():
            matrix = self._core.Curvature(
                block,
                loss,
                kind="fisher",
                num_samples=0,
                seed=0,
                targets=None,
                weights=None,
                total_weight=1.0,
                shift=(0.0, 0.0),
            )
            gram += self._core.SampleSpace(matrix).kernel()
        return gram


def _float_type(dtype: np.dtype[np.generic]) -> DType:
    single = dtype.newbyteorder("=") in (np.float32, np.complex64)
    return np.dtype(np.float32 if single else np.float64)


def _as_matrix(rows: ArrayLike) -> NumberArray:
    if not is_array(rows) and not is_sparse(rows) and hasattr(rows, "shape"):
        raise TypeError(
            f"rows must be an array (n, P), got {rows!r}: pass its to_dense(), or a Fisher, GGN or "
            "EmpiricalFisher as matrix"
        )
    a = as_numbers(rows, "rows")
    if a.ndim != 2:
        raise ValueError(f"rows has {a.ndim} dimensions (shape {a.shape}), wanted 2: (n, P)")
    if a.size == 0:
        raise ValueError(f"rows has shape {a.shape}, wanted at least one row and one column")
    return a
