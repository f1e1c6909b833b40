"""Preconditioners: approximations of curvature matrices whose damped inverse costs little.

Three costs, three calls: `update` measures a batch, `refresh` inverts for a damping, `@` applies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import (
    as_chunk_size,
    as_count,
    as_name,
    as_num_threads,
    as_number,
    as_vector,
)
from .curvature import EmpiricalFisher, Fisher
from .losses import Loss, as_loss
from .mlp import MLP, as_net
from .operators import Operator

__all__ = ["DiagonalPreconditioner", "Preconditioner"]


class Preconditioner(Operator):
    """Base: an approximation B of a curvature matrix; as an operator, the inverse of B damped.

    ``M @ g`` is (B + damping I)^-1 g up to the form of the damping, while ``M.to_dense()``,
    ``M.block()``, ``M.diagonal()`` and ``M.trace()`` describe B itself.

    Attributes
    ----------
    shape, dtype
    net : MLP
    loss : Loss
    num_updates : int
        Batches in the moving averages.
    core
        What `cg` multiplies with, without a detour through Python.
    """

    kind: str
    net: MLP
    loss: Loss
    core: Any
    _damping: float | None = None

    def _set_up(
        self,
        net: MLP,
        loss: str | Loss,
        *,
        samples: int | None,
        seed: int,
        ema: float,
        num_threads: int | None,
        chunk_size: int | None,
    ) -> None:
        self.net, self.loss = as_net(net), as_loss(loss)
        self.layout = net.layout
        self.loss.num_targets(net.sizes[-1])  # refuses outputs the loss is not defined for
        self.shape, self.dtype = (net.num_params, net.num_params), net.dtype
        self.samples = None if samples is None else as_count(samples, "samples", 1)
        self.seed = as_count(seed, "seed", 0)
        self.ema = as_number(ema, "ema", minimum=0.0)
        if self.ema >= 1.0:
            raise ValueError(f"ema must be < 1, got {ema}")
        self.num_threads = as_num_threads(num_threads)
        as_chunk_size(chunk_size)
        self.chunk_size = chunk_size

    @property
    def num_updates(self) -> int:
        """Batches in the moving averages."""
        raise NotImplementedError

    @property
    def damping(self) -> float | None:
        """Damping of the last `refresh`; None before the first."""
        return self._damping

    @property
    def T(self) -> Operator:
        """The operator itself: it is symmetric."""
        return self

    def _apply(self, rows: Any) -> Any:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Any) -> Any:
        return self._apply(rows)

    def refresh(self, damping: float) -> None:
        """Invert what `update` measured, with `damping` (which includes the l2 of the objective).

        Parameters
        ----------
        damping : float
            > 0.

        Raises
        ------
        ValueError
            If damping is not > 0 and finite, or nothing was measured yet.
        """
        damping = as_number(damping, "damping", above=0.0)
        if self.num_updates == 0:
            raise ValueError("there is nothing to invert yet: call update(X) first")
        self._refresh(damping)
        self._damping = damping

    def _refresh(self, damping: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Moving averages, inverse and counters: copies, plain types and arrays.

        Returns
        -------
        dict
        """
        return {
            "kind": self.kind,
            "dtype": str(self.dtype),
            "num_updates": self.num_updates,
            "damping": self._damping,
            **self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` of a preconditioner of the same kind and net returned.

        What follows has the same bits as without a break; after loading, pi="exact" alone wants a
        `refresh` before ``to_dense(damped=True)``.

        Parameters
        ----------
        state : dict

        Raises
        ------
        ValueError
            If the state belongs to another kind, dtype or architecture.
        """
        for name, wanted in {"kind": self.kind, "dtype": str(self.dtype)}.items():
            if state[name] != wanted:
                raise ValueError(f"{name} of the state is {state[name]!r}, wanted {wanted!r}")
        self._load(state)
        self._damping = state["damping"]

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _seed_of_update(self) -> int:
        """`seed` for the first update, a mix of it and the number of updates later on."""
        if self.num_updates == 0:
            return self.seed
        mix = np.random.SeedSequence((self.seed, self.num_updates))
        return int(mix.generate_state(1, np.uint64)[0])


def refuse_without_batch(**given: Any) -> None:
    """Raise ValueError if any of the arguments that belong to a first batch is given."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} needs X: there is no batch to measure")


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
        loss: str | Loss,
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
        self._diagonal = np.zeros(net.num_params)
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
        options: dict[str, Any] = {
            "sample_weight": sample_weight,
            "num_threads": self.num_threads,
            "chunk_size": self.chunk_size,
        }
        matrix: Fisher | EmpiricalFisher
        if self.kind == "empirical":
            if y is None:
                raise ValueError("y is missing: kind='empirical' is made of gradients at targets")
            matrix = EmpiricalFisher(self.net, self.loss, X, y, **options)
        else:
            seed = self._seed_of_update()
            matrix = Fisher(self.net, self.loss, X, samples=self.samples, seed=seed, **options)
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
