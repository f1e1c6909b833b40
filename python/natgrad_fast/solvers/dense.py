"""Exact steps for small nets: the batch's matrix is formed and factorised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_name
from .._typing import Array, Linearization
from ..linear.dense import METHODS, solve_rows
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.base import Operator
from ..operators.dense import DenseMatrix
from .base import Direction, StepSolver

__all__ = ["Dense"]

# Dampings of a step up to which each is factorised by itself.
MOST_CHOLESKYS = 3
# Of the largest element of the diagonal: smaller ones, as of dead units, count as this.
LEAST_DIAGONAL = 1e-12


@dataclass(frozen=True)
class Dense(StepSolver):
    """Exact steps: Gauss-Newton and Levenberg-Marquardt for nets of up to about 5,000 parameters.

    The (P, P) matrix of the batch is formed once per step, N P^2 flops in float64; see
    `natgrad_fast.dense_solve`.

    Parameters
    ----------
    method : {"auto", "cholesky", "eigh"}
        A Cholesky factorisation for every damping that is asked for in a step, or one
        eigendecomposition, which costs as much as 15 of them, and after which each costs O(P^2).
        "auto": the former for three dampings, the latter beyond.
    scaling : {"identity", "diagonal"}
        What the damping multiplies: I, or the diagonal of the matrix, so that steps do not depend
        on the scale of each parameter (Marquardt 1963). The latter takes half to a third of the
        steps of some least-squares fits to high accuracy; it does not damp what has hardly any
        curvature, such as saturated probabilities, which may then never recover. Where a policy
        bounds the step, and for matrices that are not semi-definite, it is I.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error", solver=ng.solvers.Dense())
    >>> opt.step(X, np.sin(3 * X)).solve.status.success
    True
    """

    method: Literal["auto", "cholesky", "eigh"] = "auto"
    scaling: Literal["identity", "diagonal"] = "identity"

    # What `direction` makes, in a copy that an optimizer works with: of which matrix with which
    # damping of its own, what was formed, the scales that it was multiplied with from both sides,
    # whether there may be any, the dampings that were asked for, and how many will be.
    _source: ClassVar[Any] = None
    _formed: ClassVar[Any] = None
    _scales: ClassVar[Any] = None
    _is_bounded: ClassVar[bool] = False
    _asked: ClassVar[frozenset[float]] = frozenset()
    _expected: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_name(self.method, "method", METHODS)
        as_name(self.scaling, "scaling", ("identity", "diagonal"))

    def __getstate__(self) -> dict[str, Any]:
        """The options: what was formed belongs to one step and is not copied."""
        return {"method": self.method, "scaling": self.scaling}

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Forget what was formed; see `StepSolver.init`."""
        self._forget()

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Forget the last batch; see `StepSolver.update`."""
        self._forget()

    def _forget(self) -> None:
        vars(self).update(_source=None, _formed=None, _scales=None, _is_bounded=False)
        vars(self).update(_asked=frozenset(), _expected=1)

    def expect(self, num_dampings: int) -> None:
        """Choose the factorisation that so many dampings are worth; see `StepSolver.expect`."""
        vars(self).update(_expected=num_dampings)

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Form the matrix, unless it was that of the last call, and solve; `start` is not used.

        See `StepSolver.direction`.
        """
        own = getattr(matrix, "damping", 0.0)
        if self._source is None or self._source[0] is not matrix or self._source[1] != own:
            formed = DenseMatrix(matrix)
            scales = self._scales_of(formed)
            vars(self).update(
                _source=(matrix, own),
                _formed=formed if scales is None else formed.scaled(scales),
                _scales=scales,
                _asked=frozenset(),
            )
        vars(self).update(_asked=self._asked | {damping})
        method: str = self.method
        if method == "auto":
            is_many = max(len(self._asked), self._expected) > MOST_CHOLESKYS
            method = "eigh" if is_many else "cholesky"
        result = solve_rows(self._formed, self._scaled(g)[None], damping, method)[0]
        return Direction(self._scaled(result.x), result.info)

    def _scaled(self, v: Array) -> Array:
        """Times the scales; what leaves the range of the dtype is infinite, and not warned of."""
        if self._scales is None:
            return v
        with np.errstate(over="ignore"):
            scaled: Array = (self._scales * v).astype(v.dtype)
        return scaled

    def _scales_of(self, formed: DenseMatrix) -> NDArray[np.float64] | None:
        """1 / sqrt of the diagonal, of which nothing is below a part of the largest."""
        if self.scaling == "identity" or self._is_bounded or not formed.positive_semidefinite:
            return None
        diagonal: NDArray[np.float64] = formed.core.diagonal()
        largest = float(diagonal.max(initial=0.0))
        if not (np.isfinite(diagonal).all() and largest > 0.0):
            return None
        return 1.0 / np.sqrt(np.maximum(diagonal, LEAST_DIAGONAL * largest))

    @property
    def metric(self) -> Array | None:
        """Diagonal of the matrix, or None; see `StepSolver.metric`."""
        if self._scales is None:
            return None
        metric: Array = (self._scales**-2.0).astype(self._formed.dtype)
        return metric

    def within(
        self, matrix: Operator, g: Array, radius: float, damping: float
    ) -> tuple[Direction, float]:
        """Solve without scaling, since the ball has none; see `StepSolver.within`."""
        if self._scales is not None:
            self._forget()
        vars(self).update(_is_bounded=True)
        return super().within(matrix, g, radius, damping)

    def eigenvalues(self, matrix: Operator) -> NDArray[np.float64]:
        """Eigenvalues of what was formed, see `StepSolver.eigenvalues`."""
        if self._source is None or self._source[0] is not matrix or self._scales is not None:
            return super().eigenvalues(matrix)
        values: NDArray[np.float64] = self._formed.eigenvalues()
        return values

    def accepted(self, accepted: bool) -> None:
        """Give the memory back: the next step has another matrix; see `StepSolver.accepted`."""
        self._forget()
