"""Matrices as operators, multiplied but never formed: their common face.

An operator is a snapshot of the net at the parameters it was built with. SciPy's sparse linear
algebra takes operators as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_real, as_rows

__all__ = ["Operator"]


class Operator:
    """Linear map with `shape` and `dtype`; subclasses multiply contiguous rows of vectors."""

    __array_ufunc__ = None  # ndarray @ operator is refused, not looped over
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def _apply(self, rows: Any) -> Any:
        """A x for the rows of a (K, shape[1]) array, as a (K, shape[0]) array."""
        raise NotImplementedError

    def _apply_transpose(self, rows: Any) -> Any:
        """A'x for the rows of a (K, shape[0]) array, as a (K, shape[1]) array."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        """Refuse copies and pickles: they would share, or lose, memory of the core."""
        raise TypeError(f"{type(self).__name__} can not be copied or pickled: build it anew")

    def __repr__(self) -> str:
        """Name, shape and dtype."""
        return f"<{self.shape[0]}x{self.shape[1]} {type(self).__name__}, {self.dtype}>"

    def __matmul__(self, v: ArrayLike) -> Any:
        """A v for a vector (n,) or a block of K vectors (n, K)."""
        rows, is_block = as_rows(v, "v", self.shape[1], self.dtype)
        product = self._apply(rows)
        return product.T if is_block else product[0]

    def matvec(self, v: ArrayLike) -> Any:
        """A v for a vector (n,) or (n, 1), as SciPy calls it."""
        return self @ np.ravel(as_real(v, "v"))

    def matmat(self, V: ArrayLike) -> Any:
        """A V for a block (n, K)."""
        rows, _ = as_rows(V, "V", self.shape[1], self.dtype)
        return self._apply(rows).T

    def rmatvec(self, u: ArrayLike) -> Any:
        """A'u for a vector (m,) or (m, 1)."""
        rows, _ = as_rows(np.ravel(as_real(u, "u")), "u", self.shape[0], self.dtype)
        return self._apply_transpose(rows)[0]

    def rmatmat(self, U: ArrayLike) -> Any:
        """A'U for a block (m, K)."""
        rows, _ = as_rows(U, "U", self.shape[0], self.dtype)
        return self._apply_transpose(rows).T

    @property
    def T(self) -> Operator:
        """Transpose."""
        return TransposedOperator(self)

    @property
    def H(self) -> Operator:
        """Adjoint; the transpose, for real matrices."""
        return self.T

    def to_dense(self) -> Any:
        """Form the matrix, column by column: shape[1] products, shape[0] * shape[1] numbers."""
        size, block = self.shape[1], 64
        dense = np.empty(self.shape, self.dtype)
        for first in range(0, size, block):
            columns = np.arange(first, min(size, first + block))
            rows = np.zeros((columns.size, size), self.dtype)
            rows[columns - first, columns] = 1
            dense[:, columns] = self._apply(rows).T
        return dense


class TransposedOperator(Operator):
    """A' for an operator A."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype = operator.dtype

    @property
    def T(self) -> Operator:
        """The operator that was transposed."""
        return self._operator

    def _apply(self, rows: Any) -> Any:
        return self._operator._apply_transpose(rows)

    def _apply_transpose(self, rows: Any) -> Any:
        return self._operator._apply(rows)
