"""The data of a training run, checked once, and the mini-batches made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_real
from ..losses import Loss
from ..model.batch import Batch, BatchOptions
from ..model.mlp import MLP
from .schedule import BatchSchedule, BatchSizes

__all__ = ["Cases"]


class Cases:
    """All cases of a run; arguments as in `Batch`.

    Parameters
    ----------
    batch_size : int, BatchSchedule, "auto" or None
        As in `NaturalGradient.fit`. Where there are mini-batches the targets are kept as the user
        has them, since labels are small and rows of probabilities are not: those of a mini-batch
        become what the core takes when it is made.
    """

    def __init__(
        self,
        net: MLP,
        loss: Loss,
        X: ArrayLike,
        y: ArrayLike,
        options: BatchOptions,
        batch_size: int | BatchSchedule | Literal["auto"] | None,
    ) -> None:
        if y is None:
            raise ValueError("y is missing: the objective depends on targets")
        self._all = Batch(net, loss, X, y, **options)
        self.num_cases = self._all.num_cases
        self.sizes = BatchSizes(batch_size, self.num_cases, net)
        self._targets: NDArray[np.generic] | None = None
        if not self.is_full:
            targets, weight = as_real(y, "y"), options.get("sample_weight")
            # A case of weight 0 does not count, so it has no place in the order either.
            self._targets = targets if weight is None else targets[np.asarray(weight) > 0]

    @property
    def is_full(self) -> bool:
        """Whether a batch holds all cases."""
        return self.sizes.size >= self.num_cases

    @property
    def batches_per_epoch(self) -> int:
        """Steps of an epoch, if the size stays."""
        return -(-self.num_cases // self.sizes.size)

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of an epoch: `size` cases each, the last one perhaps fewer.

        Where sizes may grow, the last one is larger or smaller by up to a half instead. They are
        drawn without replacement; all cases at once are one batch, and nothing is drawn. Sizes that
        change in between count at once.
        """
        if self.is_full:
            yield self._all
            return
        order = rng.permutation(self.num_cases)
        first = 0
        while first < self.num_cases:
            size, rest = min(self.sizes.size, self.num_cases), self.num_cases - first
            is_last = rest <= size
            if self.sizes.may_grow:
                is_last = 2 * rest < 3 * size
            end = self.num_cases if is_last else first + size
            yield self._take(order[first:end])
            first = end

    def _take(self, cases: NDArray[np.intp]) -> Batch:
        net, loss = self._all.net, self._all.loss
        assert self._targets is not None
        targets = loss.targets(self._targets[cases], len(cases), net.sizes[-1], net.dtype)
        return self._all.take(cases, targets)
