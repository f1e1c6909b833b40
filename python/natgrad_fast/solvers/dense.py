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

    # What `direction` makes, in a copy that an optimizer works with: of which matrix with which
    # damping of its own, what was formed, the dampings that were asked for, and how many will be.
    _source: ClassVar[Any] = None
    _formed: ClassVar[Any] = None
    _asked: ClassVar[frozenset[float]] = frozenset()
    _expected: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_name(self.method, "method", METHODS)

    def __getstate__(self) -> dict[str, Any]:
        """The options: what was formed belongs to one step and is not copied."""
        return {"method": self.method}

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Forget what was formed; see `StepSolver.init`."""
        self._forget()

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Forget the last batch; see `StepSolver.update`."""
        self._forget()

    def _forget(self) -> None:
        vars(self).update(_source=None, _formed=None, _asked=frozenset(), _expected=1)

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
            vars(self).update(
                _source=(matrix, own), _formed=DenseMatrix(matrix), _asked=frozenset()
            )
        vars(self).update(_asked=self._asked | {damping})
        method: str = self.method
        if method == "auto":
            is_many = max(len(self._asked), self._expected) > MOST_CHOLESKYS
            method = "eigh" if is_many else "cholesky"
        result = solve_rows(self._formed, g[None], damping, method)[0]
        return Direction(result.x, result.info)

    def eigenvalues(self, matrix: Operator) -> NDArray[np.float64]:
        """Eigenvalues of what was formed, see `StepSolver.eigenvalues`."""
        if self._source is None or self._source[0] is not matrix:
            return super().eigenvalues(matrix)
        values: NDArray[np.float64] = self._formed.eigenvalues()
        return values

    def accepted(self, accepted: bool) -> None:
        """Give the memory back: the next step has another matrix; see `StepSolver.accepted`."""
        self._forget()
