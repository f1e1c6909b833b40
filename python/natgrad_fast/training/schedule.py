"""How many cases a step sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._arrays import as_count, as_number
from ..model.mlp import MLP

__all__ = ["BatchSchedule", "BatchSizes"]

# A gradient of all cases below so many flops is no reason for mini-batches.
CHEAP_FLOPS = 2e9
FIRST_SIZE = 500
# Growth of batches that the controller asks for, and the size up to which it is always followed.
GROWTH, USUAL_SIZE = 1.41, 2000


@dataclass(frozen=True)
class BatchSchedule:
    """Batches that grow geometrically.

    Parameters
    ----------
    initial : int
        Cases of the first batches.
    factor : float
        At least 1; the size is multiplied by it, and rounded down, after every `every` steps.
    every : int
    maximum : int, optional
        All cases by default.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> [ng.BatchSchedule(100, factor=2.0, every=10).size(step) for step in (0, 9, 10, 25)]
    [100, 100, 200, 400]
    """

    initial: int
    factor: float = 1.0
    every: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_count(self.initial, "initial", 1)
        as_number(self.factor, "factor", minimum=1.0)
        as_count(self.every, "every", 1)
        if self.maximum is not None:
            as_count(self.maximum, "maximum", self.initial)

    def size(self, step: int) -> int:
        """Cases of a step, counted from 0; no bound by the number of cases there are."""
        most = 2**62 if self.maximum is None else self.maximum
        size = self.initial
        for _ in range(step // self.every):
            if self.factor == 1.0 or size >= most:
                break
            size = min(most, int(size * self.factor))
        return size


class BatchSizes:
    """What `batch_size` of a run stands for; the size of the next batch as `size`."""

    def __init__(
        self,
        batch_size: int | BatchSchedule | Literal["auto"] | None,
        num_cases: int,
        net: MLP,
    ) -> None:
        self.num_cases = num_cases
        self.schedule: BatchSchedule | None = None
        self.may_grow = False
        self._most = num_cases
        if batch_size is None:
            self.size = num_cases
        elif isinstance(batch_size, BatchSchedule):
            self.schedule = batch_size
            self.size = min(batch_size.size(0), num_cases)
        elif isinstance(batch_size, str):
            if batch_size != "auto":
                raise ValueError(
                    f'batch_size must be an integer, a BatchSchedule, "auto" or None, '
                    f"got {batch_size!r}"
                )
            is_cheap = 6.0 * num_cases * net.num_params <= CHEAP_FLOPS
            self.size = num_cases if is_cheap else min(FIRST_SIZE, num_cases)
            self.may_grow = not is_cheap
            self._most = _largest_useful(net)
        else:
            self.size = min(as_count(batch_size, "batch_size", 1), num_cases)

    def advance(self, step: int) -> None:
        """The size for a step, counted from 0, by the schedule if there is one."""
        if self.schedule is not None:
            self.size = min(self.schedule.size(step), self.num_cases)

    def grow(self) -> None:
        """Grow, until the fixed costs of a step are small, or to all cases where that is near."""
        if self.size >= self._most:
            return
        size = int(self.size * GROWTH)
        self.size = self.num_cases if 1.5 * size >= self.num_cases else size


def _largest_useful(net: MLP) -> int:
    """Cases at which the fixed part of a step is a quarter of its gradient, 6 flops a parameter.

    The fixed part: applying K-FAC, an eighth of inverting it, and vectors of length P, which cost
    about as much time as 600 flops of products for each parameter.
    """
    fixed = 600.0 * net.num_params
    for n, d in zip(net.sizes[:-1], net.sizes[1:], strict=True):
        fixed += 2.0 * n * d * (n + d) + (n**3 + d**3) / 8.0
    return max(USUAL_SIZE, int(4.0 * fixed / (6.0 * net.num_params)))
