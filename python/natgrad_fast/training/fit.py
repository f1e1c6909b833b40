"""The loop over epochs and mini-batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_number
from ..losses import Loss
from ..model.batch import Batch, BatchOptions
from ..model.mlp import MLP
from .batches import Cases
from .damping import DampingPolicy
from .history import EpochInfo, History, StepInfo

__all__ = ["Trainee", "fit"]


class Bar(Protocol):
    """What the loop asks of tqdm's progress bar."""

    def set_postfix(self, *, refresh: bool, **shown: str) -> None:
        """Show some numbers."""

    def update(self) -> object:
        """Count a step."""

    def close(self) -> None:
        """End the display."""


class Trainee(Protocol):
    """What the loop asks of an optimizer."""

    net: MLP
    loss: Loss
    num_threads: int
    _rng: np.random.Generator

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay."""

    @property
    def damping_policy(self) -> DampingPolicy:
        """What chooses the damping."""

    @property
    def last_info(self) -> StepInfo | None:
        """Record of the last step."""

    def step(self, X: Batch) -> StepInfo:
        """Take a step on a batch."""


def fit(
    optimizer: Trainee,
    X: ArrayLike,
    y: ArrayLike,
    *,
    epochs: int,
    batch_size: int | None,
    sample_weight: ArrayLike | None,
    validation: tuple[ArrayLike, ArrayLike] | None,
    callbacks: Iterable[Callable[[StepInfo], object]],
    progress: bool,
    time_limit: float | None,
) -> History:
    """Train an optimizer's net for some epochs; see `NaturalGradient.fit`."""
    epochs = as_count(epochs, "epochs", 0)
    if batch_size is not None:
        batch_size = as_count(batch_size, "batch_size", 1)
    if time_limit is not None:
        time_limit = as_number(time_limit, "time_limit", minimum=0.0)
    options: BatchOptions = {"l2": optimizer.l2, "num_threads": optimizer.num_threads}
    check = None if validation is None else _as_validation(optimizer, validation, options)
    options["sample_weight"] = sample_weight
    data = Cases(optimizer.net, optimizer.loss, X, y, options, batch_size)
    loop = _Loop(optimizer, data, _as_callbacks(callbacks), check, time_limit)
    if progress:
        loop.bar = _progress_bar(epochs * data.batches_per_epoch)
    return loop.run(epochs)


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        optimizer: Trainee,
        data: Cases,
        callbacks: list[Callable[[StepInfo], object]],
        check: Batch | None,
        time_limit: float | None,
    ) -> None:
        self.optimizer, self.data, self.callbacks = optimizer, data, callbacks
        self.check, self.time_limit = check, time_limit
        self.bar: Bar | None = None
        self.history = History()
        self.start = time.perf_counter()

    def run(self, epochs: int) -> History:
        """Train; Ctrl-C ends it, and a step that was taken is in the history."""
        before = self.optimizer.last_info
        try:
            for epoch in range(epochs):
                self.epoch(epoch)
                if self.history.stop_reason != "epochs":
                    break
        except KeyboardInterrupt:
            self.history.stop_reason = "interrupted"
            last, steps = self.optimizer.last_info, self.history.steps
            if last is not None and last is not (steps[-1] if steps else before):
                steps.append(last)
        finally:
            if self.bar is not None:
                self.bar.close()
        self.history.seconds = time.perf_counter() - self.start
        return self.history

    def epoch(self, number: int) -> None:
        """Take the steps of an epoch, and record it if there was one."""
        start, history = time.perf_counter(), self.history
        first = len(history.steps)
        for batch in self.data.batches(self.optimizer._rng):
            if self.time_limit is not None and time.perf_counter() - self.start >= self.time_limit:
                history.stop_reason = "time_limit"
                break
            self.step(batch)
            if history.stop_reason != "epochs":
                break
        if len(history.steps) > first:
            history.epochs.append(
                EpochInfo(
                    epoch=number,
                    loss=float(np.mean([info.loss for info in history.steps[first:]])),
                    validation_loss=None if self.check is None else self.check.value(),
                    seconds=time.perf_counter() - start,
                )
            )

    def step(self, batch: Batch) -> None:
        """Take and record a step, and ask whether to stop."""
        info = self.optimizer.step(batch)
        self.history.steps.append(info)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{info.loss:.4g}", refresh=False)
            self.bar.update()
        # No generator: every callback sees every step.
        if any([bool(callback(info)) for callback in self.callbacks]):
            self.history.stop_reason = "callback"
        elif not info.accepted and info.damping >= self.optimizer.damping_policy.maximum:
            self.history.stop_reason = "damping_limit"


def _as_callbacks(
    callbacks: Callable[[StepInfo], object] | Iterable[Callable[[StepInfo], object]],
) -> list[Callable[[StepInfo], object]]:
    if callable(callbacks):
        return [callbacks]
    result = list(callbacks)
    for callback in result:
        if not callable(callback):
            raise TypeError(f"callbacks must be callable, got {callback!r}")
    return result


def _as_validation(optimizer: Trainee, validation: object, options: BatchOptions) -> Batch:
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise TypeError("validation must be a pair (X, y)")
    X, y = validation
    if y is None:
        raise ValueError("y of the validation data is missing")
    return Batch(optimizer.net, optimizer.loss, X, y, **options)


def _progress_bar(total: int) -> Bar:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install natgrad_fast[progress]") from None
    bar: Bar = tqdm(total=total, unit="step")
    return bar
