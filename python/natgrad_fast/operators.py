"""Matrices as operators: the Jacobian of a net and its curvature, multiplied but never formed.

An operator is a snapshot of the net at the parameters it was built with. SciPy's sparse linear
algebra takes operators as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import (
    as_cases,
    as_number,
    as_real,
    as_rows,
    as_sample_weight,
    as_vector,
    core_for,
)
from .losses import Loss, as_loss
from .mlp import MLP, as_net

__all__ = ["GGN", "Fisher", "Jacobian", "Operator"]


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


class Jacobian(Operator):
    """Jacobian J (N C, P) of the outputs in the parameters; row i C + c is output c of case i.

    Parameters
    ----------
    net : MLP
    X : (N, d_0) array_like
    num_threads : int, optional

    Notes
    -----
    A product costs 4 N P flops either way (2 N P in the first layer); nothing is formed.
    """

    def __init__(self, net: MLP, X: ArrayLike, *, num_threads: int | None = None) -> None:
        x = as_cases(X, as_net(net).sizes[0], net.dtype)
        self._linearization = net.linearize(x, num_threads=num_threads)
        self._output_shape = (x.shape[0], net.sizes[-1])
        self.shape = (x.shape[0] * net.sizes[-1], net.num_params)
        self.dtype = net.dtype

    def _apply(self, rows: Any) -> Any:
        return self._linearization.jvp(rows).reshape(rows.shape[0], self.shape[0])

    def _apply_transpose(self, rows: Any) -> Any:
        return self._linearization.vjp(rows.reshape(rows.shape[0], *self._output_shape))


class CurvatureMatrix(Operator):
    """Base of the symmetric (P, P) matrices B + (l2 + damping) I."""

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
    ) -> None:
        x = as_cases(X, as_net(net).sizes[0], net.dtype)
        weights = as_sample_weight(sample_weight, x.shape[0])
        loss, l2 = as_loss(loss), as_number(l2, "l2", minimum=0.0)
        damping = as_number(damping, "damping", minimum=0.0)
        linearization = net.linearize(x, num_threads=num_threads)
        self._set_up(net, loss, linearization, weights, damping=damping, l2=l2)

    def _set_up(
        self, net: MLP, loss: Loss, linearization: Any, weights: Any, *, damping: float, l2: float
    ) -> None:
        self.shape = (net.num_params, net.num_params)
        self.dtype = net.dtype
        self.loss = loss
        self._l2 = l2
        self._damping = damping
        self.core = core_for(net.dtype).Curvature(
            linearization, loss.core, weights=weights, shift=l2 + damping
        )
        self.num_threads = int(linearization.num_threads)

    @property
    def l2(self) -> float:
        """Weight decay that the matrix contains."""
        return self._l2

    @property
    def damping(self) -> float:
        """Damping that the matrix contains; can be set."""
        return self._damping

    @damping.setter
    def damping(self, damping: float) -> None:
        self._damping = as_number(damping, "damping", minimum=0.0)
        self.core.shift = self._l2 + self._damping

    @property
    def T(self) -> Operator:
        """The matrix itself: it is symmetric."""
        return self

    def _apply(self, rows: Any) -> Any:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Any) -> Any:
        return self.core.apply(rows)

    def quadratic_form(self, v: ArrayLike, w: ArrayLike | None = None) -> float:
        """Return v' (B + (l2 + damping) I) w, with w = v by default.

        Parameters
        ----------
        v, w : (P,) array_like

        Returns
        -------
        float

        Notes
        -----
        One linearised forward pass for each vector and no backward pass: half the flops of a
        product.
        """
        size, dtype = self.shape[0], self.dtype
        v = as_vector(v, "v", size, dtype)
        w = v if w is None else as_vector(w, "w", size, dtype)
        return float(self.core.quadratic_form(v, w))


class Fisher(CurvatureMatrix):
    """Exact Fisher matrix F + (l2 + damping) I of a net's predictive distribution.

    F = sum_i w_i J_i' F_R(z_i) J_i / sum_i w_i, F_R the expectation of the squared score over the
    model's own distribution at outputs z_i; labels do not enter (Martens, arXiv 1412.1193).

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        Names the predictive distribution.
    X : (N, d_0) array_like
    sample_weight : (N,) array_like, optional
        w_i >= 0, equal by default.
    damping, l2 : float
        Absolute, >= 0.
    num_threads : int, optional
        The products have the same bits for any number.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    A product costs 8 N P flops (half in the first layer) and allocates nothing but its result.
    """


class GGN(CurvatureMatrix):
    """Generalized Gauss-Newton matrix G + (l2 + damping) I.

    G = sum_i w_i J_i' H_L(y_i, z_i) J_i / sum_i w_i, H_L the Hessian of the loss in the outputs.
    The losses of this version have H_L = F_R, independent of y, so G equals the Fisher matrix.

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads
        As in `Fisher`.
    y : array_like, optional
        Targets; checked if given, not needed by the losses of this version.
    """

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
    ) -> None:
        if y is not None:
            num_cases = as_cases(X, as_net(net).sizes[0], net.dtype).shape[0]
            as_loss(loss).targets(y, num_cases, net.sizes[-1], net.dtype)
        super().__init__(
            net,
            loss,
            X,
            sample_weight=sample_weight,
            damping=damping,
            l2=l2,
            num_threads=num_threads,
        )


def curvature_of_objective(kind: type[CurvatureMatrix], objective: Any, linearization: Any) -> Any:
    """Fisher or GGN matrix of an `Objective` on a linearisation that exists already."""
    matrix = object.__new__(kind)
    matrix._set_up(
        objective.net,
        objective.loss,
        linearization,
        objective.sample_weight,
        damping=0.0,
        l2=objective.l2,
    )
    return matrix
