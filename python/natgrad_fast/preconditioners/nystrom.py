"""Randomised low-rank preconditioner of any positive semi-definite operator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_count, as_num_threads, as_number, core_for
from .._typing import LossName
from ..losses.base import Loss
from ..model.mlp import MLP
from ..operators.base import Operator
from ..operators.curvature import Fisher
from ..operators.linear_map import LinearMap, as_linear_map

__all__ = ["Nystrom"]


class Nystrom(Operator):
    """Inverse of U L U' + damping I for a randomised Nystrom approximation U L U' of A.

    ``M @ g`` multiplies with U (L + damping I)^-1 U' + (I - U U') / (l_min + damping), l_min the
    smallest of the eigenvalues L (Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44, 2023).
    It is positive definite for every A, so `cg` takes it as preconditioner.

    Parameters
    ----------
    A : operator or MLP
        Positive semi-definite, as in `cg`: with its own damping, if it has one. A net stands for
        its Fisher matrix over X.
    loss : str or Loss, optional
        With a net: names the predictive distribution.
    X : (N, d_0) array_like, optional
        With a net: the cases.
    rank : int
        Columns of the sketch, at most P.
    damping : float
        Of the inverse, >= 0; `refresh` changes it.
    seed : int
        Of the Gaussian test matrix. Every update draws the same.
    adaptive : bool
        Double the rank until the smallest eigenvalue is at most 10 * damping.
    max_rank : int, optional
        Bound of the adaptive rank; P by default.
    num_threads : int, optional
        Those of A by default. The bits do not depend on it.

    Attributes
    ----------
    rank : int
        Columns in use.
    eigenvalues : (rank,) array
        L, decreasing; zeros where A is of lower rank.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    Three calls of three costs: `update` takes `rank` products with A, as one block, and 24 P rank^2
    flops; `refresh` is free; ``M @ g`` costs 4 P rank flops. The memory is P rank numbers, three
    times that while `update` runs.
    """

    def __init__(
        self,
        A: Any,
        loss: LossName | Loss | None = None,
        X: ArrayLike | None = None,
        *,
        rank: int = 20,
        damping: float = 0.0,
        seed: int = 0,
        adaptive: bool = False,
        max_rank: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._net_and_loss = (A, loss) if isinstance(A, MLP) else None
        if self._net_and_loss is None and (loss is not None or X is not None):
            raise TypeError(f"loss and X go with a net as first argument, got {A!r}")
        if self._net_and_loss is not None:
            A = self._fisher(X, num_threads)
        operator = as_linear_map(A)
        size = operator.size
        self.shape, self.dtype = (size, size), operator.dtype
        self._first_rank = _as_rank(rank, "rank", size)
        self._max_rank = size if max_rank is None else _as_rank(max_rank, "max_rank", size)
        if self._max_rank < self._first_rank:
            raise ValueError(f"max_rank must be >= rank = {rank}, got {max_rank}")
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive must be True or False, got {adaptive!r}")
        self._adaptive = adaptive
        self._seed = as_count(seed, "seed", 0)
        self._damping = as_number(damping, "damping", minimum=0.0)
        self._threads = as_num_threads(operator.num_threads if num_threads is None else num_threads)
        self.core = core_for(self.dtype).Nystrom(size, num_threads=self._threads)
        self.update(A)

    @property
    def rank(self) -> int:
        """Columns in use."""
        return len(self.eigenvalues)

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues (rank,) of the approximation, decreasing."""
        return np.asarray(self.core.eigenvalues)

    @property
    def damping(self) -> float:
        """Damping of the inverse; `refresh` changes it."""
        return self._damping

    @property
    def T(self) -> Operator:
        """The matrix itself: it is symmetric."""
        return self

    def _fisher(self, X: Any, num_threads: int | None) -> Fisher:
        assert self._net_and_loss is not None
        net, loss = self._net_and_loss
        if loss is None or X is None:
            raise ValueError("loss and X are missing: a net needs both")
        return Fisher(net, loss, X, num_threads=num_threads)

    def update(self, A: Any) -> None:
        """Approximate A anew: `rank` products, more if adaptive.

        Parameters
        ----------
        A : operator or (N, d_0) array_like
            Of the shape and dtype that it was built with; cases X if it was built with a net, whose
            present parameters count.
        """
        if self._net_and_loss is not None and not hasattr(A, "matvec"):
            A = self._fisher(A, self._threads)
        operator = as_linear_map(A)
        if (operator.size, operator.size) != self.shape:
            raise ValueError(f"A has shape {(operator.size,) * 2}, wanted {self.shape}")
        if operator.dtype != self.dtype:
            raise ValueError(f"A has dtype {operator.dtype}, wanted {self.dtype}")
        rng = np.random.default_rng(self._seed)
        omega = np.empty((0, operator.size), self.dtype)
        products = omega
        rank = self._first_rank
        while True:
            omega = self._extend(omega, rank, rng)
            products = np.concatenate([products, _products(operator, omega[len(products) :])])
            self.core.update(omega, y=products)
            smallest = float(self.core.eigenvalues[-1])
            if not self._adaptive or rank == self._max_rank or smallest <= 10.0 * self._damping:
                break
            rank = min(2 * rank, self._max_rank)
        self.core.refresh(self._damping)

    def refresh(self, damping: float) -> None:
        """Set the damping of the inverse; no products.

        Parameters
        ----------
        damping : float
            >= 0.
        """
        self._damping = as_number(damping, "damping", minimum=0.0)
        self.core.refresh(self._damping)

    def to_dense(self) -> Any:
        """Form the approximation U L U' (P, P) of A, without damping: not the inverse."""
        vectors = np.asarray(self.core.vectors, np.float64)
        return ((vectors.T * self.eigenvalues) @ vectors).astype(self.dtype)

    def _extend(self, omega: Any, rank: int, rng: np.random.Generator) -> Any:
        """Orthonormal rows (rank, P), the first of which are those of omega."""
        rows = np.empty((rank, omega.shape[1]), self.dtype)
        rows[: len(omega)] = omega
        for row in rows[len(omega) :]:
            row[...] = rng.standard_normal(row.size)
        core_for(self.dtype).orthonormalise_rows(rows, num_threads=self._threads)
        rows[: len(omega)] = omega  # their products are known
        return rows

    def _apply(self, rows: Any) -> Any:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Any) -> Any:
        return self.core.apply(rows)


def _as_rank(rank: Any, name: str, size: int) -> int:
    count = as_count(rank, name, 1)
    if count > size:
        raise ValueError(f"{name} must be <= P = {size}, got {count}")
    return count


def _products(operator: LinearMap, rows: Any) -> Any:
    products = operator.apply(rows)
    if not core_for(operator.dtype).all_finite(products, num_threads=1):
        raise ValueError("A has products with NaN or Inf")
    return products
