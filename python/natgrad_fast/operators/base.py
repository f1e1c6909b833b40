"""Matrices as operators, multiplied but never formed: their common face.

An operator is a snapshot of the net at the parameters it was built with. SciPy's sparse linear
algebra takes operators as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import (
    as_floats,
    as_num_threads,
    as_number,
    as_real,
    as_rows,
    as_vector,
    dot,
    memory_for,
)
from .._typing import Array, DType, Layout

__all__ = ["Operator", "Role"]

Role = Literal["matrix", "inverse"]
# Columns of the identity that are multiplied at once where a matrix is formed or measured.
_BLOCK = 64


class Operator:
    """Linear map with `shape` and `dtype`; subclasses multiply contiguous rows of vectors.

    Operators of one shape, dtype and role add up, and are multiplied by numbers and by one another:
    ``F + 2.0 * G``, ``F - G``, ``F / 2``, ``-F``, ``J.T @ J``. Nothing is formed; the parts are
    shared, so that a damping that is set on one of them counts in the sum.

    Attributes
    ----------
    shape, dtype
    role : {"matrix", "inverse"}
        Whether it stands for a matrix, or for the inverse of one, as preconditioners do.
    layout : tuple or None
        Of the net whose parameters are the columns, where there is one.
    num_threads : int or None
        Threads of its products, where it has a number of its own.
    flops_per_product : float
        Multiplications and additions of one product with a vector; NaN if they are not known.
    """

    __array_ufunc__ = None  # `array @ operator` is left to __rmatmul__, not looped over
    # Set by composition.py, which builds on this file.
    _sum_of: ClassVar[Callable[[Sequence[tuple[float, object]]], Operator]]
    _product_of: ClassVar[Callable[[Operator, Operator], Operator]]
    shape: tuple[int, int]
    dtype: DType
    role: Role = "matrix"
    layout: Layout | None = None
    num_threads: int | None = None
    flops_per_product: float = math.nan

    def _apply(self, rows: Array) -> Array:
        """A x for the rows of a (K, shape[1]) array, as a contiguous (K, shape[0]) array."""
        raise NotImplementedError

    def _apply_transpose(self, rows: Array) -> Array:
        """A'x for the rows of a (K, shape[0]) array, as a contiguous (K, shape[1]) array."""
        raise NotImplementedError

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse copies and pickles: they would share, or lose, memory of the core."""
        raise TypeError(f"{type(self).__name__} can not be copied or pickled: build it anew")

    def __repr__(self) -> str:
        """Name, shape and dtype."""
        return f"<{self.shape[0]}x{self.shape[1]} {type(self).__name__}, {self.dtype}>"

    if not TYPE_CHECKING:  # which is to say the same of np.asarray(operator)

        def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
            """Refuse to become an array by accident."""
            raise TypeError(
                f"{self!r} is no array: multiply with @, or form the matrix with its to_dense()"
            )

    @overload
    def __matmul__(self, v: Operator) -> Operator: ...
    @overload
    def __matmul__(self, v: ArrayLike) -> Array: ...
    def __matmul__(self, v: Operator | ArrayLike) -> Operator | Array:
        """A v for a vector (n,) or a block of K vectors (n, K); A B for an operator B."""
        if type(v) is not np.ndarray and isinstance(v, Operator):
            return Operator._product_of(self, v)
        rows, is_block = as_rows(v, "v", self.shape[1], self.dtype, self.num_threads)
        product = self._multiplied(rows)
        result: Array = product.T if is_block else product[0]
        return result

    def _multiplied(self, rows: Array) -> Array:
        try:  # which costs less than `with`
            return self._apply(rows)
        except MemoryError:
            with memory_for("the product of ", self, f" and {len(rows)} vectors"):
                raise

    def _multiplied_transposed(self, rows: Array) -> Array:
        with memory_for("the product of ", self.T, f" and {len(rows)} vectors"):
            return self._apply_transpose(rows)

    def __rmatmul__(self, u: ArrayLike) -> Array:
        """Row vector (m,), or K of them (K, m), times A."""
        a, size = as_real(u, "u"), self.shape[0]
        if a.ndim not in (1, 2) or a.shape[-1] != size:
            raise ValueError(f"u has shape {a.shape}, wanted ({size},) or (K, {size})")
        if a.ndim == 1:
            return first_row(self._apply_transpose(as_floats(a, "u", self.dtype, 1)[None]))
        if a.shape[0] == 0:
            raise ValueError("u has no rows, wanted at least one vector")
        return self._multiplied_transposed(as_floats(a, "u", self.dtype, 2))

    def __add__(self, other: object) -> Operator:
        """A + B for an operator B."""
        return Operator._sum_of([(1.0, self), (1.0, other)])

    def __radd__(self, other: object) -> Operator:
        """0 + A, with which Python's `sum` begins; refused for anything else."""
        if type(other) is int and other == 0:
            return self
        return Operator._sum_of([(1.0, other), (1.0, self)])

    def __sub__(self, other: object) -> Operator:
        """A - B for an operator B."""
        return Operator._sum_of([(1.0, self), (-1.0, other)])

    def __rsub__(self, other: object) -> Operator:
        """Refused: `other` is no operator."""
        return Operator._sum_of([(1.0, other), (-1.0, self)])

    def __mul__(self, factor: float) -> Operator:
        """A times a number."""
        return Operator._sum_of([(_as_factor(factor, self), self)])

    def __rmul__(self, factor: float) -> Operator:
        """A number times A."""
        return self * factor

    def __truediv__(self, divisor: float) -> Operator:
        """A divided by a number."""
        number = _as_factor(divisor, self)
        if number == 0.0:
            raise ZeroDivisionError(f"{self!r} is divided by 0")
        return self * (1.0 / number)

    def __neg__(self) -> Operator:
        """-A."""
        return self * -1.0

    def matvec(self, v: ArrayLike) -> Array:
        """A v for a vector (n,) or (n, 1), as SciPy calls it."""
        return self @ np.ravel(as_real(v, "v"))

    def matmat(self, V: ArrayLike) -> Array:
        """A V for a block (n, K)."""
        rows, _ = as_rows(V, "V", self.shape[1], self.dtype, self.num_threads)
        return self._multiplied(rows).T

    def rmatvec(self, u: ArrayLike) -> Array:
        """A'u for a vector (m,) or (m, 1)."""
        rows, _ = as_rows(
            np.ravel(as_real(u, "u")), "u", self.shape[0], self.dtype, self.num_threads
        )
        return first_row(self._apply_transpose(rows))

    def rmatmat(self, U: ArrayLike) -> Array:
        """A'U for a block (m, K)."""
        rows, _ = as_rows(U, "U", self.shape[0], self.dtype, self.num_threads)
        return self._multiplied_transposed(rows).T

    @property
    def T(self) -> Operator:
        """Transpose."""
        return TransposedOperator(self)

    @property
    def H(self) -> Operator:
        """Adjoint; the transpose, for real matrices."""
        return self.T

    @property
    def positive_semidefinite(self) -> bool:
        """Whether it is known to be symmetric positive semi-definite, by its construction."""
        return False

    def quadratic_form(self, v: ArrayLike, w: ArrayLike | None = None) -> float:
        """Return v'A w, with w = v by default; by one product.

        Parameters
        ----------
        v : (m,) array_like
        w : (n,) array_like

        Returns
        -------
        float
        """
        left, right = self._two_vectors(v, w)
        product = first_row(self._apply(right[None]))
        return dot(left, product, as_num_threads(self.num_threads))

    def quadratic_forms(self, v: ArrayLike, w: ArrayLike) -> tuple[float, float, float]:
        """Return v'A v, v'A w and w'A w of a square A; by two products.

        Parameters
        ----------
        v, w : (n,) array_like

        Returns
        -------
        tuple of three floats
        """
        self._check_square("quadratic_forms(v, w)")
        left, right = self._two_vectors(v, w)
        products = self._apply(np.stack([left, right]))
        pairs = ((left, products[0]), (left, products[1]), (right, products[1]))
        threads = as_num_threads(self.num_threads)
        first, second, third = (dot(a, b, threads) for a, b in pairs)
        return first, second, third

    def _two_vectors(self, v: ArrayLike, w: ArrayLike | None) -> tuple[Array, Array]:
        first = as_vector(v, "v", self.shape[0], self.dtype)
        if w is None:
            self._check_square("quadratic_form(v)")
            return first, first
        return first, as_vector(w, "w", self.shape[1], self.dtype)

    def diagonal(self) -> Array:
        """Diagonal (n,) of a square A; by n products."""
        self._check_square("diagonal()")
        diagonal = np.empty(self.shape[0], self.dtype)
        for columns, products in self._columns():
            diagonal[columns] = products[np.arange(columns.size), columns]
        return diagonal

    def trace(self) -> float:
        """Trace of a square A: the sum of its `diagonal`."""
        self._check_square("trace()")
        return float(self.diagonal().sum(dtype=np.float64))

    def to_dense(self) -> Array:
        """Form the matrix, column by column: shape[1] products, shape[0] * shape[1] numbers."""
        dense = np.empty(self.shape, self.dtype)
        for columns, products in self._columns():
            dense[:, columns] = products.T
        return dense

    def _columns(self) -> Iterator[tuple[NDArray[np.intp], Array]]:
        """Numbers of columns, and these columns as rows; a block of them at a time."""
        size = self.shape[1]
        for first in range(0, size, _BLOCK):
            columns = np.arange(first, min(size, first + _BLOCK))
            rows = np.zeros((columns.size, size), self.dtype)
            rows[columns - first, columns] = 1
            yield columns, self._apply(rows)

    def _check_square(self, what: str) -> None:
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{what} needs a square operator, got shape {self.shape}")


class TransposedOperator(Operator):
    """A' for an operator A."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype = operator.dtype
        self.role = operator.role
        self.num_threads = operator.num_threads
        self.flops_per_product = operator.flops_per_product

    @property
    def T(self) -> Operator:
        """The operator that was transposed."""
        return self._operator

    def _apply(self, rows: Array) -> Array:
        return self._operator._apply_transpose(rows)

    def _apply_transpose(self, rows: Array) -> Array:
        return self._operator._apply(rows)


def first_row(rows: Array) -> Array:
    """The vector that is the only row of a block."""
    row: Array = rows[0]
    return row


def _as_factor(factor: object, operator: Operator) -> float:
    try:
        return as_number(factor, "the factor of an operator")
    except TypeError as error:
        raise TypeError(f"{error}; products of {operator!r} are written with @") from None
