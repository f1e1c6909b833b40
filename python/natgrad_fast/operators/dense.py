"""Symmetric matrices that are formed and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_num_threads, core_for, memory_for
from .._typing import Array, CoreDenseMatrix
from ..config import physical_memory
from .base import Operator
from .curvature import GaussNewtonMatrix
from .linear_map import LinearMap, as_linear_map

__all__ = ["DenseMatrix", "dense_bytes", "forming_flops"]

# Columns of the identity that are multiplied at once.
_BLOCK = 64


class DenseMatrix(Operator):
    """A symmetric matrix A (P, P), formed once in float64 and kept for solves of many kinds.

    Parameters
    ----------
    matrix : operator or (P, P) array_like
        A `Fisher`, `GGN` or `EmpiricalFisher`, with the damping and l2 that it has now: formed from
        blocks of per-case gradients, N P^2 flops and nothing of size N x P. Any other symmetric
        operator or array, as in `cg`: operators are multiplied with the identity.
    num_threads : int, optional
        Those of `matrix` by default. The bits do not depend on it, nor on `chunk_size`.

    Attributes
    ----------
    shape, dtype
        Of the vectors that go in and out; sums and solutions are computed in float64.
    core : operator of the core
        A, so that `cg`, `multishift_cg` and `Nystrom` take this object.

    Raises
    ------
    MemoryError
        Before anything is computed, if the machine can not hold what a solve needs.
    ValueError, TypeError
        If `matrix` is no symmetric operator or array.

    Notes
    -----
    With several columns per case in M_i = Q_i Q_i', the sums go unit by unit, with the products of
    deltas summed over the columns first: N P^2 flops instead of N C P^2.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "squared_error", np.eye(3), l2=0.1)
    >>> A = ng.DenseMatrix(F)
    >>> A
    <26x26 DenseMatrix, float64>
    >>> v = np.arange(26.0)
    >>> bool(np.allclose(A @ v, F @ v))
    True
    >>> A.solve(A @ v, damping=0.0).status.success
    True
    """

    core: CoreDenseMatrix
    solve: ClassVar[Callable[..., Any]]  # of linear/dense.py, which knows more

    def __init__(self, matrix: object, *, num_threads: int | None = None) -> None:
        if isinstance(matrix, GaussNewtonMatrix):
            _check_memory(matrix.shape[0])
            with memory_for("the matrix ", matrix.shape, " in float64"):
                self.core = core_for(matrix.dtype).DenseMatrix.of_curvature(matrix.core)
            size, self.dtype = matrix.shape[0], matrix.dtype
            self.num_threads = matrix.num_threads
            self.forming_flops = forming_flops(matrix)
        else:
            linear_map = as_linear_map(matrix)
            size, self.dtype = linear_map.size, linear_map.dtype
            _check_memory(size)
            threads = linear_map.num_threads if num_threads is None else num_threads
            self.num_threads = as_num_threads(threads)
            with memory_for("the matrix ", (size, size), " in float64"):
                self.core = core_for(self.dtype).DenseMatrix.of_array(
                    _form(linear_map), num_threads=self.num_threads
                )
            self.forming_flops = size * linear_map.flops_per_product
        self.layout = getattr(matrix, "layout", None)
        self._is_semidefinite = bool(getattr(matrix, "positive_semidefinite", False))
        self.shape = (size, size)
        self.flops_per_product = 2.0 * size**2

    @property
    def T(self) -> Operator:
        """The matrix itself: it is symmetric."""
        return self

    @property
    def positive_semidefinite(self) -> bool:
        """Whether what it was formed of is so by construction."""
        return self._is_semidefinite

    def _apply(self, rows: Array) -> Array:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Array) -> Array:
        return self.core.apply(rows)

    def to_dense(self) -> Array:
        """A (P, P) in the dtype of the operator, a new array."""
        return self.core.to_dense()

    def diagonal(self) -> Array:
        """Diagonal (P,) of A."""
        return self.core.diagonal().astype(self.dtype)

    def scaled(self, scales: NDArray[np.float64]) -> DenseMatrix:
        """Return S A S for the diagonal S of `scales` (P,), formed in float64.

        Parameters
        ----------
        scales : (P,) float64 array
        """
        scales = np.ascontiguousarray(scales, np.float64)
        if scales.shape != self.shape[:1] or not np.isfinite(scales).all():
            raise ValueError(
                f"scales must be ({self.shape[0]},) and finite, got shape {scales.shape}"
            )
        other = DenseMatrix.__new__(DenseMatrix)
        vars(other).update(vars(self))
        other.core = self.core.scaled(scales)
        return other

    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues (P,) of A, ascending; its eigenvectors are computed and kept.

        Raises
        ------
        ValueError
            If A has NaN or Inf.
        """
        return np.array(self.core.eigenvalues())


def forming_flops(matrix: GaussNewtonMatrix) -> float:
    """Flops in float64 that form a matrix, about: N P^2 and somewhat more."""
    return float(
        core_for(matrix.dtype).dense_flops(
            matrix._net._architecture,
            num_columns=matrix.core.num_columns,
            num_cases=matrix.num_cases,
        )
    )


def dense_bytes(size: int, *, eigenvectors: bool = False) -> int:
    """Bytes of A (size, size) and of its factorisation, or of what its eigenvectors take."""
    return 8 * size**2 * (6 if eigenvectors else 2)


def _check_memory(size: int) -> None:
    """Refuse matrices that this machine could never hold, before it tries."""
    needed, memory = dense_bytes(size), physical_memory()
    if memory is None or needed <= memory:
        return
    raise MemoryError(
        f"the matrix ({size}, {size}) in float64 and its factorisation take {needed:,} bytes, this "
        f"machine has {memory:,}: cg and sample_space_solve form no (P, P) matrix"
    )


def _form(linear_map: LinearMap) -> Array:
    """Products with the identity, as rows; refused where they are not symmetric."""
    size = linear_map.size
    matrix = np.empty((size, size), linear_map.dtype)
    for first in range(0, size, _BLOCK):
        count = min(_BLOCK, size - first)
        rows = np.zeros((count, size), linear_map.dtype)
        rows[np.arange(count), first + np.arange(count)] = 1
        matrix[first : first + count] = linear_map.apply(rows)
    with np.errstate(invalid="ignore", over="ignore"):  # a status tells of it
        error = float(np.abs(matrix - matrix.T).max(initial=0.0))
        bound = float(np.sqrt(np.finfo(matrix.dtype).eps) * np.abs(matrix).max(initial=0.0))
    if error > bound:
        raise ValueError(f"A must be symmetric, got A - A' of up to {error:.3g}")
    return matrix
