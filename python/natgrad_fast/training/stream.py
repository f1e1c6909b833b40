"""An iterable of batches as the data of a training run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import numpy as np

from .._arrays import is_array
from ..model.batch import Batch
from .scales import advice_on_scales, sampled_cases
from .step_cases import as_batch
from .trainee import Trainee

__all__ = ["BadBatch", "Stream"]


class BadBatch(ValueError):
    """A batch of an iterable that can not be used; the message has its number, and why."""


class Stream:
    """Batches that somebody else makes; how many cases there are in all is unknown.

    Parameters
    ----------
    optimizer : NaturalGradient
    X : iterable
        Of (X, y), (X, y, sample_weight) or `Batch`. Lists and tuples are read as iterables of
        batches too, other arrays are refused: their targets are missing.
    batch_size : "auto"
        The sizes of the batches are those that come.
    sample_weight : None
        Weights come with the batches.

    Raises
    ------
    ValueError, TypeError
        For other arguments.
    """

    num_cases = math.inf
    is_full = False
    size = 0
    position = 0

    def __init__(
        self, optimizer: Trainee, X: object, batch_size: object, sample_weight: object
    ) -> None:
        if is_array(X) and not isinstance(X, list | tuple):
            raise ValueError("y is missing: the objective depends on targets")
        if not isinstance(X, Iterable):
            raise TypeError(f"X must be array_like, with y, or an iterable of batches, got {X!r}")
        if not (isinstance(batch_size, str) and batch_size == "auto"):
            raise ValueError(f"batch_size is that of the batches of X, got {batch_size!r}")
        if sample_weight is not None:
            raise TypeError("sample_weight comes with each batch of X: (X, y, sample_weight)")
        self._optimizer = optimizer
        self._source: Iterable[object] = X

    @property
    def batches_per_epoch(self) -> int | None:
        """Steps of an epoch, where the iterable has a length."""
        try:
            return len(cast(Sized, self._source))
        except TypeError:  # of a loader of an iterable, say
            return None

    def batches(self, rng: np.random.Generator, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, each checked when it is asked for.

        One that can not be used raises `BadBatch`, after which the next one can be asked for. The
        first `start` elements are asked for and not looked at.
        """
        self.position = start
        return map(self._read, itertools.count(start), itertools.islice(self._source, start, None))

    def _read(self, number: int, item: Any) -> Batch:
        self.position = number + 1
        try:
            if isinstance(item, Batch):
                if item.targets is None:
                    raise ValueError("y is missing: the objective depends on targets")
                return as_batch(self._optimizer, item, None, None)
            if not isinstance(item, tuple | list) or len(item) not in (2, 3):
                raise TypeError(
                    f"got {_shown(item)}, wanted (X, y), (X, y, sample_weight) or a Batch"
                )
            X, y, *weights = item
            return as_batch(self._optimizer, X, y, weights[0] if weights else None)
        except (ValueError, TypeError) as error:
            raise BadBatch(f"batch {number} of X: {error}") from error

    def resize(self, step: int) -> bool:
        """Sizes are those of the batches."""
        return False

    def grow(self) -> None:
        """Nothing: sizes are those of the batches."""

    def set_size(self, size: int) -> None:
        """Nothing: sizes are those of the batches."""

    def advice(self, first: Batch) -> str | None:
        """What to do about data far from unit scale, by the first batch."""
        rows = sampled_cases(*first.x.shape)
        assert first.targets is not None
        return advice_on_scales(first.x[rows], first.targets[rows], first.loss)


def _shown(item: object) -> str:
    kind = type(item).__name__
    return f"a {kind} of {len(item)} elements" if isinstance(item, Sized) else f"a {kind}"
