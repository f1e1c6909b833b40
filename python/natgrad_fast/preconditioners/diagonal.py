"""A power of a damped diagonal as a preconditioner."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_decay, as_name, as_number, core_for
from .._core import Lock
from .._state import StateReader
from .._typing import Array, DType, Linearization, State
from ..losses import Loss, LossName
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.curvature import EmpiricalFisher, Fisher
from .base import Averages, Preconditioner, refuse_without_batch

__all__ = ["DiagonalPreconditioner"]


class _Measured(NamedTuple):
    """What calls change; the arrays never do, so that it is a snapshot."""

    num_updates: int
    refreshed_at: int  # the inverse is of that update, 0: there is none
    weight: float
    diagonal: Array  # float64
    damping: float | None
    inverse: Array | None


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
    l2 : float or (float, float)
        Weight decay of the objective, of all parameters or of weights and of biases; added to
        `damping`.
    samples, seed
        As in `KFAC`, for kind="fisher".

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> y = np.arange(50) % 2
    >>> M = ng.DiagonalPreconditioner(net, "softmax_cross_entropy", X, y, damping=0.1)
    >>> (M @ np.ones(26)).shape
    (26,)
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
        l2: float | tuple[float, float] = 0.0,
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
        decay = as_decay(l2, "l2")
        self.l2 = decay.weights if decay.weights == decay.biases else decay
        self._decay = np.concatenate(
            [
                np.repeat(decay, (w.size, b.size))
                for w, b in zip(net.weights, net.biases, strict=True)
            ]
        )
        if damping is not None:
            damping = as_number(damping, "damping", above=0.0)
        self._lock = Lock()  # of comparing and replacing, which takes no time
        self._measured = _Measured(0, 0, 0.0, np.zeros(net.num_params), None, None)
        if X is None:
            refuse_without_batch(y=y, sample_weight=sample_weight, damping=damping)
            return
        self.update(X, y, sample_weight=sample_weight)
        if damping is not None:
            self.refresh(damping)

    @property
    def num_updates(self) -> int:
        """Batches in the moving average."""
        return self._measured.num_updates

    @property
    def damping(self) -> float | None:
        """Damping of the last `refresh`; None before the first."""
        return self._measured.damping

    @property
    def core(self) -> Array:
        """Diagonal (P,) of ``@``."""
        inverse = self._measured.inverse
        if inverse is None:
            raise RuntimeError("the preconditioner has no inverse yet: call refresh(damping) first")
        return inverse

    def _apply(self, rows: Array) -> Array:
        images: Array = rows * self.core
        return images

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

    def update_on(self, batch: Batch, linearization: Linearization | None = None) -> None:
        """Measure a batch; see `Preconditioner.update_on`."""
        self.check_belongs(batch.net, batch.loss)
        before = self._measured
        while not self._exchange(before, self._updated(before, batch, linearization)):
            before = self._measured

    def _exchange(self, before: _Measured, after: _Measured) -> bool:
        """Whether nothing came in between."""
        with self._lock:
            if self._measured is not before:
                return False
            self._measured = after
            return True

    def _updated(
        self, before: _Measured, batch: Batch, linearization: Linearization | None
    ) -> _Measured:
        matrix: Fisher | EmpiricalFisher
        if self.kind == "empirical":
            if batch.targets is None:
                raise ValueError("y is missing: kind='empirical' is made of gradients at targets")
            matrix = EmpiricalFisher.on(batch.without_l2(), linearization)
        else:
            seed = self._seed_of_update(before.num_updates)
            matrix = Fisher.on(batch.without_l2(), linearization, samples=self.samples, seed=seed)
        diagonal = matrix.diagonal()
        if not np.isfinite(diagonal).all():
            raise FloatingPointError(
                f"the diagonal of this batch has NaN or Inf (in {self.dtype}): the outputs of the "
                "net are too large; the average stays as it was"
            )
        old = core_for(self.dtype).remembered_weight(
            num_updates=before.num_updates, weight=before.weight, decay=self.ema
        )
        keep = 1.0 / (1.0 + batch.weight / old) if old > 0.0 else 0.0
        return before._replace(
            num_updates=before.num_updates + 1,
            weight=min(old + batch.weight, float(np.finfo(float).max)),
            diagonal=keep * before.diagonal + (1.0 - keep) * diagonal,
        )

    def _refresh(self, damping: float) -> None:
        before = self._measured
        while not self._exchange(before, self._refreshed(before, damping)):
            before = self._measured

    def _refreshed(self, measured: _Measured, damping: float) -> _Measured:
        inverse = self._damped(measured, damping) ** -self.exponent
        limits = np.finfo(self.dtype)
        if inverse.max() > float(limits.max):
            raise ValueError(f"damping is too small for {self.dtype}, got {damping}")
        if 1.0 / damping < float(limits.tiny):
            raise ValueError(f"damping is too large for {self.dtype}, got {damping}")
        inverse = inverse.astype(self.dtype)
        inverse.flags.writeable = False  # `core` hands it out
        return measured._replace(
            damping=damping, inverse=inverse, refreshed_at=measured.num_updates
        )

    def _apply_root(self, rows: Array) -> Array:
        images: Array = rows * np.sqrt(self.core)
        return images

    def _damped(self, measured: _Measured, damping: float) -> Array:
        damped: Array = np.maximum(measured.diagonal, 0.0) + damping + self._decay
        return damped

    def _current(self) -> _Measured:
        measured = self._measured
        if measured.num_updates == 0:
            raise ValueError("there is no diagonal yet: call update(X) first")
        return measured

    def diagonal(self) -> Array:
        """Diagonal (P,) of the approximation, not damped; float64."""
        return self._current().diagonal.copy()

    def eigenvalues(self) -> Array:
        """Eigenvalues (P,) of the approximation, not damped: its diagonal."""
        return self.diagonal()

    def _logdet(self, damping: float) -> float:
        return self.exponent * float(np.log(self._damped(self._measured, damping)).sum())

    def trace(self) -> float:
        """Trace of the approximation, not damped."""
        return float(self._current().diagonal.sum())

    def to_dense(self, *, damped: bool = False) -> Array:
        """Form the diagonal matrix (P, P), or with `damped` the one that ``@`` inverts; float64.

        Raises
        ------
        ValueError
            Before `update`; with `damped`, also between `update` and `refresh`.
        """
        measured = self._current()
        if not damped:
            return np.diag(measured.diagonal)
        if measured.damping is None:
            raise ValueError("there is no damping yet: call refresh(damping) first")
        if measured.refreshed_at < measured.num_updates:
            raise ValueError("the inverse is not that of the average: call refresh(damping)")
        return np.diag(self._damped(measured, measured.damping) ** self.exponent)

    # State ---------------------------------------------------------------------------------------

    def _options(self) -> State:
        l2 = self.l2 if isinstance(self.l2, float) else tuple(self.l2)
        options = {"kind": self.kind, "exponent": self.exponent, "l2": l2}
        return {**super()._options(), **options}

    def _averages(self) -> Averages:
        measured = self._measured
        arrays: dict[str, Array] = {}
        if measured.num_updates > 0:
            arrays["diagonal"] = measured.diagonal.copy()
        if 0 < measured.refreshed_at < measured.num_updates:
            assert measured.inverse is not None
            arrays["inverse"] = measured.inverse.copy()
        return Averages(
            measured.num_updates, measured.refreshed_at, measured.weight, measured.damping, arrays
        )

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], DType]]:
        shape = (self.shape[0],)
        return {"diagonal": (shape, np.dtype(np.float64)), "inverse": (shape, self.dtype)}

    def _check_arrays(self, reader: StateReader, arrays: dict[str, Array]) -> None:
        if "diagonal" in arrays and not (arrays["diagonal"] >= 0.0).all():
            raise reader.refuse("diagonal", "elements >= 0")
        if "inverse" in arrays and not (arrays["inverse"] > 0.0).all():
            raise reader.refuse("inverse", "elements > 0")

    def _load(self, reader: StateReader, averages: Averages) -> None:
        arrays = averages.arrays
        diagonal = arrays.get("diagonal", np.zeros(self.shape[0]))
        loaded = _Measured(
            averages.num_updates,
            averages.refreshed_at,
            averages.weight,
            diagonal,
            averages.damping,
            arrays.get("inverse"),
        )
        if averages.damping is not None and loaded.inverse is None:
            try:
                loaded = self._refreshed(loaded, averages.damping)
            except ValueError as error:
                raise reader.refuse("damping", str(error)) from None
        self._measured = loaded

    def _snapshot(self) -> object:
        return self._measured

    def _restore(self, snapshot: Any) -> None:
        self._measured = snapshot
