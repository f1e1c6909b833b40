"""The data of a training run, checked once, and the mini-batches made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import (
    Rows,
    as_mapped_cases,
    as_real,
    as_sample_weight,
    pieces,
    row_of,
    rows_of,
)
from .._typing import Array
from ..losses import Loss
from ..model.batch import Batch, BatchOptions
from ..model.mlp import MLP
from .scales import advice_on_scales, sampled_cases
from .schedule import BatchSchedule, BatchSizes

__all__ = ["Cases", "Data"]


class Data(Protocol):
    """What the loop over epochs asks of data."""

    @property
    def num_cases(self) -> float:
        """Of all data; infinite where that is unknown."""

    @property
    def is_full(self) -> bool:
        """Whether a batch holds all cases."""

    @property
    def batches_per_epoch(self) -> int | None:
        """Steps of an epoch, if the size stays; None where that is unknown."""

    position: int  # cases of the epoch that were taken, or elements of an iterable

    @property
    def size(self) -> int:
        """Cases of the next batch; 0 where others choose it."""

    def batches(self, rng: np.random.Generator, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, those before the position `start` left out."""

    def set_size(self, size: int) -> None:
        """Go on with batches of so many cases."""

    def resize(self, step: int) -> bool:
        """Set the size of the batch for a step, counted from 0; whether it may grow beyond."""

    def grow(self) -> None:
        """Make the batches larger."""

    def advice(self, first: Batch) -> str | None:
        """What to do about data far from unit scale, of which the first batch is known."""


class Cases:
    """All cases of a run in arrays; arguments as in `Batch`.

    Parameters
    ----------
    batch_size : int, BatchSchedule, "auto" or None
        As in `NaturalGradient.fit`. Where there are mini-batches, inputs and targets stay as the
        user has them, in memory or in a map of a file: they are read once, in pieces, to check
        them, and those of a mini-batch become what the core takes when it is made.
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
        self._net, self._loss, self._options = net, loss, options
        self._x, self._y = as_real(X, "X"), as_real(y, "y")
        self._places: NDArray[np.intp] | None = None
        self._weights: NDArray[np.float64] | None = None
        self._all: Batch | None = None
        if self._x.ndim != 2 or self._x.shape[0] == 0:
            self._whole()  # says what is wrong
        sample_weight = options.get("sample_weight")
        if sample_weight is not None:
            self._weights = as_sample_weight(sample_weight, self._x.shape[0])
            # A case of weight 0 does not count, so it has no place in the order either.
            if not self._weights.all():
                self._places = np.flatnonzero(self._weights)
        self.num_cases = self._x.shape[0] if self._places is None else len(self._places)
        self._sizes = BatchSizes(batch_size, self.num_cases, net)
        self._template: Batch | None = None
        self.position = 0
        if self.is_full:
            self._whole()
        else:
            threads = options["num_threads"]
            self._x = as_mapped_cases(self._x, self._places, net.sizes[0], net.dtype, threads)
            self._check_targets()
            self._template = self._first()

    def _whole(self) -> Batch:
        if self._all is None:
            self._all = Batch(self._net, self._loss, self._x, self._y, **self._options)
        return self._all

    def _first(self) -> Batch:
        """The first case, as what other batches are made from."""
        options = self._options.copy()
        options["sample_weight"] = None
        rows = self._rows(np.arange(1))
        return Batch(self._net, self._loss, self._x[rows], self._y[rows], **options)

    @property
    def is_full(self) -> bool:
        """Whether a batch holds all cases."""
        return self._sizes.size >= self.num_cases

    @property
    def batches_per_epoch(self) -> int:
        """Steps of an epoch, if the size stays."""
        return -(-self.num_cases // self._sizes.size)

    def resize(self, step: int) -> bool:
        """Set the size of the batch for a step, by the schedule if there is one."""
        self._sizes.advance(step)
        return self._sizes.may_grow

    def grow(self) -> None:
        """Make the batches larger."""
        self._sizes.grow()

    @property
    def size(self) -> int:
        """Cases of the next batch."""
        return self._sizes.size

    def set_size(self, size: int) -> None:
        """Go on with batches of so many cases."""
        self._sizes.size = min(max(size, 1), self.num_cases)

    def batches(self, rng: np.random.Generator, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch: `size` cases each, the last one perhaps fewer.

        Where sizes may grow, the last one is larger or smaller by up to a half instead. They are
        drawn without replacement; all cases at once are one batch, and nothing is drawn. Sizes that
        change in between count at once.
        """
        self.position = start
        if self.is_full and start == 0:
            self.position = self.num_cases
            yield self._whole()
            return
        order = rng.permutation(self.num_cases)
        first = start
        while first < self.num_cases:
            size, rest = min(self._sizes.size, self.num_cases), self.num_cases - first
            is_last = rest <= size
            if self._sizes.may_grow:
                is_last = 2 * rest < 3 * size
            end = self.num_cases if is_last else first + size
            batch = self._take(order[first:end])
            self.position = first = end
            yield batch

    def advice(self, first: Batch) -> str | None:
        """What to do about data far from unit scale, by cases from all of them."""
        cases = sampled_cases(self.num_cases, self._net.sizes[0] + self._net.sizes[-1])
        rows = self._rows(cases)
        x = rows_of(self._x, rows, self._net.dtype)
        return advice_on_scales(x, self._targets(rows, len(cases)), self._loss)

    def _rows(self, cases: NDArray[np.intp]) -> NDArray[np.intp]:
        return cases if self._places is None else self._places[cases]

    def _take(self, cases: NDArray[np.intp]) -> Batch:
        assert self._template is not None
        rows = self._rows(cases)
        x = rows_of(self._x, rows, self._net.dtype)
        weights = None if self._weights is None else self._weights[rows]
        return self._template.with_cases(x, self._targets(rows, len(cases)), weights)

    def _targets(self, rows: Rows, count: int) -> Array:
        net = self._net
        return self._loss.targets(self._y[rows], count, net.sizes[-1], net.dtype)

    def _check_targets(self) -> None:
        """As a `Batch` of all does, in pieces."""
        x, y, net = self._x, self._y, self._net
        if y.ndim == 0 or y.shape[0] != x.shape[0]:
            self._loss.targets(y, x.shape[0], net.sizes[-1], net.dtype)  # says what is wrong
        for rows in pieces(x.shape[0], net.sizes[-1], self._places):
            count = len(range(x.shape[0])[rows]) if isinstance(rows, slice) else len(rows)
            try:
                self._targets(rows, count)
            except ValueError as error:
                if "has shape" in str(error):
                    self._loss.targets(y, x.shape[0], net.sizes[-1], net.dtype)  # says that of all
                raise ValueError(_in_all(str(error), rows)) from None


def _in_all(message: str, rows: Rows) -> str:
    """A message on some rows, with the places that these have among all."""

    def place(match: re.Match[str]) -> str:
        return f"{match[1]} {row_of(rows, int(match[2]))}"

    return re.sub(r"\b(row|position) (\d+)", place, message)
