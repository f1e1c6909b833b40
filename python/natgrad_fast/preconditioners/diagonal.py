"""A power of a damped diagonal as a preconditioner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_name, as_number, as_vector
from .._typing import Array
from ..losses import Loss, LossName
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.curvature import EmpiricalFisher, Fisher
from .base import Preconditioner, refuse_without_batch

__all__ = ["DiagonalPreconditioner"]


class DiagonalPreconditioner(Preconditioner):
    """Power of a damped diagonal: ``M @ g`` is g / (diag + damping + l2)^exponent.

    With the empirical Fisher matrix and exponent 3/4 it is that of Hessian-free optimisation
    (Martens 2010).

    Parameters
    ----------
    net, loss, X, damping, ema, sample_weight, num_threads, chunk_size
        As in `KFAC`.
    y : array_like, optional
        Targets; needed for kind="empirical".
    kind : {"empirical", "fisher"}
        Diagonal of the empirical Fisher or of the Fisher matrix.
    exponent : float
        In (0, 1].
    l2 : float
        Weight decay of the objective, added to `damping`.
    samples, seed
        As in `KFAC`, for kind="fisher".
    """

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        kind: str = "empirical",
        exponent: float = 0.75,
        damping: float | None = None,
        l2: float = 0.0,
        samples: int | None = None,
        seed: int = 0,
        ema: float = 0.95,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self._set_up(
            net,
            loss,
            samples=samples,
            seed=seed,
            ema=ema,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )
        self.kind = as_name(kind, "kind", ("empirical", "fisher"))
        self.exponent = as_number(exponent, "exponent", above=0.0)
        if self.exponent > 1.0:
            raise ValueError(f"exponent must be <= 1, got {exponent}")
        self.l2 = as_number(l2, "l2", minimum=0.0)
        if damping is not None:
            damping = as_number(damping, "damping", above=0.0)
        self._num_updates = 0
        self._diagonal: Array = np.zeros(net.num_params)
        self._inverse: Any = None
        if X is None:
            refuse_without_batch(y=y, sample_weight=sample_weight, damping=damping)
            return
        self.update(X, y, sample_weight=sample_weight)
        if damping is not None:
            self.refresh(damping)

    @property
    def num_updates(self) -> int:
        """Batches in the moving average."""
        return self._num_updates

    @property
    def core(self) -> Any:
        """Diagonal (P,) of ``@``."""
        if self._inverse is None:
            raise RuntimeError("the preconditioner has no inverse yet: call refresh(damping) first")
        return self._inverse

    def _apply(self, rows: Any) -> Any:
        return rows * self.core

    def update(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> None:
        """Measure a batch at the net's present parameters; the average is that of `KFAC.update`.

        Parameters
        ----------
        X : (N, d_0) array_like
        y : array_like, optional
            Targets; needed for kind="empirical".
        sample_weight : (N,) array_like, optional

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range, or if y is missing where it is needed.
        FloatingPointError
            If the diagonal is not finite; the average stays as it was.
        """
        self.update_on(self._batch(X, y, sample_weight))

    def update_on(self, batch: Batch, linearization: Any = None) -> None:
        """Measure a batch; see `Preconditioner.update_on`."""
        self.check_belongs(batch.net, batch.loss)
        matrix: Fisher | EmpiricalFisher
        if self.kind == "empirical":
            if batch.targets is None:
                raise ValueError("y is missing: kind='empirical' is made of gradients at targets")
            matrix = EmpiricalFisher.on(batch.without_l2(), linearization)
        else:
            seed = self._seed_of_update()
            matrix = Fisher.on(batch.without_l2(), linearization, samples=self.samples, seed=seed)
        diagonal = matrix.diagonal()
        if not np.isfinite(diagonal).all():
            raise FloatingPointError(
                f"the diagonal of this batch has NaN or Inf (in {self.dtype}): the outputs of the "
                "net are too large; the average stays as it was"
            )
        self._num_updates += 1
        keep = min(1.0 - 1.0 / self._num_updates, self.ema)
        self._diagonal = keep * self._diagonal + (1.0 - keep) * diagonal

    def _refresh(self, damping: float) -> None:
        inverse = self._damped(damping) ** -self.exponent
        if inverse.max() > np.finfo(self.dtype).max:
            raise ValueError(f"damping is too small for {self.dtype}, got {damping}")
        self._inverse = inverse.astype(self.dtype)

    def _state(self) -> dict[str, Any]:
        inverse = None if self._inverse is None else self._inverse.copy()
        return {"diagonal": self._diagonal.copy(), "inverse": inverse}

    def _load(self, state: dict[str, Any]) -> None:
        size = self.shape[0]
        diagonal = as_vector(state["diagonal"], "diagonal", size, np.dtype(np.float64))
        inverse = state["inverse"]
        if inverse is not None:
            inverse = as_vector(inverse, "inverse", size, self.dtype).copy()
        self._diagonal, self._inverse = diagonal.copy(), inverse
        self._num_updates = int(state["num_updates"])

    def _damped(self, damping: float) -> Any:
        return np.maximum(self._diagonal, 0.0) + damping + self.l2

    def diagonal(self) -> Any:
        """Diagonal (P,) of the approximation, not damped; float64."""
        return self._diagonal.copy()

    def trace(self) -> float:
        """Trace of the approximation, not damped."""
        return float(self._diagonal.sum())

    def to_dense(self, *, damped: bool = False) -> Any:
        """Form the diagonal matrix (P, P), or with `damped` the one that ``@`` inverts; float64."""
        if not damped:
            return np.diag(self._diagonal)
        if self._damping is None:
            raise ValueError("there is no damping yet: call refresh(damping) first")
        return np.diag(self._damped(self._damping) ** self.exponent)
