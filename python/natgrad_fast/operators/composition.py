"""Sums, multiples and products of operators, multiplied part by part and never formed."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_num_threads, core_for, is_array, is_sparse
from .._typing import Array, CoreOperator, Multiply
from .base import Operator, TransposedOperator

__all__ = ["Product", "WeightedSum"]


class WeightedSum(Operator):
    """c_1 A_1 + c_2 A_2 + ..: what ``F + G``, ``F - G``, ``2.0 * F``, ``F / 2`` and ``-F`` make.

    Attributes
    ----------
    shape, dtype, role
        Those of the parts, which have them in common.
    terms : tuple of (float, Operator)
        The c_i and A_i. The A_i are shared, not copied.
    flops_per_product : float
        Those of the parts together.

    Raises
    ------
    ValueError, TypeError
        For a part that is no operator or of another shape, dtype, role or net.

    Notes
    -----
    Where the parts are matrices, so is the sum: `diagonal`, `trace` and `quadratic_form` ask the
    parts, which may know cheaper ways than products, and `damping` is that of the parts together.
    A sum of inverses (preconditioners) is the approximate inverse ``M @ v`` alone: `to_dense`,
    `diagonal` and `trace` describe that matrix, by P products.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 2], dtype="float64")
    >>> X, y = np.ones((5, 3)), np.zeros((5, 2))
    >>> F, H = ng.Fisher(net, "squared_error", X), ng.Hessian(net, "squared_error", X, y)
    >>> A = 0.9 * F + 0.1 * H
    >>> A
    <26x26 0.9 * Fisher + 0.1 * Hessian, float64>
    >>> bool(np.allclose(A @ net.params, 0.9 * (F @ net.params) + 0.1 * (H @ net.params)))
    True
    """

    def __init__(self, terms: Sequence[tuple[float, object]]) -> None:
        self.terms = tuple(_flattened(terms))
        parts = self.parts
        first = parts[0]
        for part in parts[1:]:
            _check_addends(first, part)
        self.shape, self.dtype, self.role = first.shape, first.dtype, first.role
        largest = float(np.finfo(self.dtype).max)
        if any(abs(c) > largest for c, _ in self.terms):
            raise ValueError(f"a factor in {self!r} is too large for {self.dtype}")
        self.layout = next((part.layout for part in parts if part.layout is not None), None)
        self.num_threads = _most_threads(parts)
        self.flops_per_product = sum(part.flops_per_product for part in parts)

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The A_i."""
        return tuple(part for _, part in self.terms)

    def __repr__(self) -> str:
        """Shape, parts and dtype."""
        text = ""
        for c, part in self.terms:
            sign = ("- " if c < 0.0 else "+ ") if text else ("-" if c < 0.0 else "")
            factor = "" if abs(c) == 1.0 else f"{abs(c):g} * "
            text += f"{' ' if text else ''}{sign}{factor}{_name(part)}"
        return f"<{self.shape[0]}x{self.shape[1]} {text}, {self.dtype}>"

    @property
    def core(self) -> CoreOperator:
        """The sum as an operator of the core, for solvers; square sums have one."""
        if self.shape[0] != self.shape[1]:
            raise AttributeError(f"{self!r} is not square: the core has no such operators")
        operator: CoreOperator = core_for(self.dtype).SumOperator(
            [_core_of(part) for part in self.parts],
            np.array([c for c, _ in self.terms]),
            size=self.shape[0],
            num_threads=as_num_threads(self.num_threads),
        )
        return operator

    @property
    def T(self) -> Operator:
        """Sum of the transposes; the sum itself if all parts are symmetric."""
        if all(part.T is part for part in self.parts):
            return self
        return WeightedSum([(c, part.T) for c, part in self.terms])

    @property
    def positive_semidefinite(self) -> bool:
        """Whether all parts are known to be so, and no coefficient is negative."""
        return all(c >= 0.0 and part.positive_semidefinite for c, part in self.terms)

    @property
    def damping(self) -> float:
        """Multiple of I that is in the sum as damping of its parts; set it on them."""
        if self.role == "inverse":
            raise AttributeError(f"{self!r} is a sum of inverses, which has no one damping")
        return float(sum(c * getattr(part, "damping", 0.0) for c, part in self.terms))

    def quadratic_form(self, v: ArrayLike, w: ArrayLike | None = None) -> float:
        """Return v'A w, with w = v by default, as the sum of those of the parts.

        Parameters
        ----------
        v : (m,) array_like
        w : (n,) array_like

        Returns
        -------
        float
        """
        left, right = self._two_vectors(v, w)
        return float(sum(c * part.quadratic_form(left, right) for c, part in self.terms))

    def quadratic_forms(self, v: ArrayLike, w: ArrayLike) -> tuple[float, float, float]:
        """Return v'A v, v'A w and w'A w of a square A, as the sums of those of the parts.

        Parameters
        ----------
        v, w : (n,) array_like

        Returns
        -------
        tuple of three floats
        """
        self._check_square("quadratic_forms(v, w)")
        left, right = self._two_vectors(v, w)
        forms = np.array([part.quadratic_forms(left, right) for part in self.parts])
        first, second, third = np.array([c for c, _ in self.terms]) @ forms
        return float(first), float(second), float(third)

    def diagonal(self) -> Array:
        """Diagonal (n,): the sum of those of the parts, where they are matrices."""
        if self.role == "inverse":
            return super().diagonal()
        total = sum(c * part.diagonal().astype(np.float64) for c, part in self.terms)
        return np.asarray(total).astype(self.dtype)

    def trace(self) -> float:
        """Trace: the sum of those of the parts, where they are matrices."""
        if self.role == "inverse":
            return super().trace()
        return float(sum(c * part.trace() for c, part in self.terms))

    def _apply(self, rows: Array) -> Array:
        if self.shape[0] == self.shape[1]:
            return self.core.apply(rows)
        return _sum_of_products(self.terms, Operator._apply.__name__, rows)

    def _apply_transpose(self, rows: Array) -> Array:
        if self.T is self:
            return self._apply(rows)
        return _sum_of_products(self.terms, Operator._apply_transpose.__name__, rows)


class Product(Operator):
    """A_1 A_2 .. A_n: what ``A @ B`` makes of two operators, such as ``J.T @ J``.

    Attributes
    ----------
    shape, dtype
    role : {"matrix", "inverse"}
        "inverse" if more of the factors are inverses than matrices, as in ``M @ F @ M``.
    parts : tuple of Operator
        The factors; shared, not copied.
    flops_per_product : float
        Those of the factors together.

    Raises
    ------
    ValueError
        For factors whose inner dimensions or dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 2])
    >>> J = ng.Jacobian(net, np.ones((5, 3)))
    >>> J.T @ J
    <26x26 Jacobian.T @ Jacobian, float32>
    >>> (J.T @ J).positive_semidefinite
    True
    """

    def __init__(self, left: Operator, right: Operator) -> None:
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{left!r} @ {right!r}: inner dimensions differ")
        if left.dtype != right.dtype:
            raise ValueError(f"{left!r} @ {right!r}: dtypes differ, build both in one")
        self.parts = (*_factors(left), *_factors(right))
        self.shape, self.dtype = (left.shape[0], right.shape[1]), left.dtype
        balance = sum(1 if factor.role == "matrix" else -1 for factor in self.parts)
        self.role = "inverse" if balance < 0 else "matrix"
        layouts = {factor.layout for factor in self.parts} - {None}
        if len(layouts) == 1 and all(factor.layout is not None for factor in self.parts):
            self.layout = layouts.pop()
        self.num_threads = _most_threads(self.parts)
        self.flops_per_product = sum(factor.flops_per_product for factor in self.parts)

    @property
    def core(self) -> CoreOperator:
        """The product as an operator of the core, where all factors have one."""
        cores = [getattr(factor, "core", None) for factor in self.parts]
        if any(core is None for core in cores):
            raise AttributeError(f"{self!r} has factors that the core does not know")
        operator: CoreOperator = core_for(self.dtype).ProductOperator(cores, size=self.shape[0])
        return operator

    def __repr__(self) -> str:
        """Shape, factors and dtype."""
        text = " @ ".join(_name(factor) for factor in self.parts)
        return f"<{self.shape[0]}x{self.shape[1]} {text}, {self.dtype}>"

    @property
    def T(self) -> Operator:
        """Product of the transposes, in reverse; the product itself if that is the same."""
        if self._is_symmetric:
            return self
        left, *others = (factor.T for factor in reversed(self.parts))
        product: Operator = left
        for factor in others:
            product = Product(product, factor)
        return product

    @property
    def _is_symmetric(self) -> bool:
        pairs = zip(self.parts, reversed(self.parts), strict=True)
        return all(_are_transposes(left, right) for left, right in pairs)

    @property
    def positive_semidefinite(self) -> bool:
        """Whether it is B'B or B'A B for some A that is known to be so."""
        middle, odd = divmod(len(self.parts), 2)
        return self._is_symmetric and (not odd or self.parts[middle].positive_semidefinite)

    def _apply(self, rows: Array) -> Array:
        for factor in reversed(self.parts):
            rows = factor._apply(rows)
        return rows

    def _apply_transpose(self, rows: Array) -> Array:
        for factor in self.parts:
            rows = factor._apply_transpose(rows)
        return rows


def _flattened(terms: Sequence[tuple[float, object]]) -> list[tuple[float, Operator]]:
    """Terms without sums among them."""
    flat: list[tuple[float, Operator]] = []
    for coefficient, part in terms:
        if not isinstance(part, Operator):
            others = [other for _, other in terms if isinstance(other, Operator)]
            raise TypeError(_refusal(part, others[0]))
        if isinstance(part, WeightedSum):
            flat += [(coefficient * c, inner) for c, inner in part.terms]
        else:
            flat.append((coefficient, part))
    return flat


def _refusal(other: object, operator: Operator) -> str:
    words = f"only operators are added to {operator!r}, got {other!r}"
    if isinstance(other, numbers.Number):
        return f"{words}: a multiple of the identity is the `damping`, of it or of a solver"
    if is_array(other) or is_sparse(other):
        return f"{words}: form the matrix with its to_dense() to add an array"
    return words


def _check_addends(first: Operator, other: Operator) -> None:
    both = f"{first!r} + {other!r}"
    if first.role != other.role:
        raise TypeError(
            f"{both}: one stands for a matrix, the other for the inverse of one; their sum is "
            "neither. The matrix that a preconditioner approximates is its to_dense()"
        )
    if first.shape != other.shape:
        raise ValueError(f"{both}: shapes differ")
    if first.dtype != other.dtype:
        raise ValueError(f"{both}: dtypes differ, build both in one")
    if first.layout and other.layout and first.layout != other.layout:
        raise ValueError(f"{both}: they are of nets {first.layout[0]} and {other.layout[0]}")


def _most_threads(parts: Sequence[Operator]) -> int | None:
    return max((part.num_threads for part in parts if part.num_threads is not None), default=None)


def _name(part: Operator) -> str:
    if isinstance(part, TransposedOperator):
        return f"{_name(part.T)}.T"
    if isinstance(part, WeightedSum | Product):
        return f"({repr(part).partition(' ')[2].rpartition(',')[0]})"
    return type(part).__name__


def _core_of(part: Operator) -> CoreOperator | Array | Multiply:
    """What the core multiplies with: an operator of its own, a diagonal or a function of rows."""
    return getattr(part, "core", part._apply)


def _sum_of_products(terms: Sequence[tuple[float, Operator]], method: str, rows: Array) -> Array:
    """Sum of the products that one method of the parts makes."""
    products = [getattr(part, method)(rows) for _, part in terms]
    total: Array = sum(c * product for (c, _), product in zip(terms, products, strict=True))
    return total.astype(products[0].dtype, copy=False)


def _factors(operator: Operator) -> tuple[Operator, ...]:
    return operator.parts if isinstance(operator, Product) else (operator,)


def _are_transposes(left: Operator, right: Operator) -> bool:
    if isinstance(left, TransposedOperator):
        return left.T is right
    if isinstance(right, TransposedOperator):
        return right.T is left
    return left is right and left.T is left


Operator._sum_of = WeightedSum
Operator._product_of = Product
