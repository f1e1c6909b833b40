"""Preconditioners: approximations of curvature matrices whose damped inverse costs little.

Three costs, three calls: `update` measures a batch, `refresh` inverts for a damping, `@` applies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    as_chunk_size,
    as_count,
    as_num_threads,
    as_number,
)
from ..losses import Loss, LossName, as_loss
from ..model.batch import Batch
from ..model.mlp import MLP, as_net
from ..operators.base import Operator, Role

__all__ = ["Preconditioner", "refuse_without_batch"]


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
    follows_batches : bool
        Whether `update_on` measures batches of its net.
    """

    role: Role = "inverse"
    follows_batches: bool = True
    kind: str
    net: MLP
    loss: Loss
    core: Any
    _damping: float | None = None

    def _set_up(
        self,
        net: MLP,
        loss: LossName | Loss,
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

    @property
    def positive_semidefinite(self) -> bool:
        """True: the inverse is positive definite for any batch and damping."""
        return True

    def update_on(self, batch: Batch, linearization: Any = None) -> None:
        """Measure a batch at the net's present parameters, as ``update`` does.

        Parameters
        ----------
        batch : Batch
            Of the net and loss of the preconditioner.
        linearization : optional
            From ``batch.linearize()``, to share one linearisation; made anew by default.
        """
        raise NotImplementedError

    def _batch(self, X: ArrayLike, y: ArrayLike | None, sample_weight: ArrayLike | None) -> Batch:
        return Batch(
            self.net,
            self.loss,
            X,
            y,
            sample_weight=sample_weight,
            num_threads=self.num_threads,
            chunk_size=self.chunk_size,
        )

    def check_belongs(self, net: MLP, loss: Loss) -> None:
        """Raise ValueError unless the preconditioner is of this net, the very object, and loss."""
        if net is not self.net or loss != self.loss:
            raise ValueError(
                f"the preconditioner is of another net or loss: {self.net!r} and {self.loss!r}, "
                f"wanted {net!r} and {loss!r}"
            )

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
