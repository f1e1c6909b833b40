"""The loop over epochs and mini-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_number
from ..model.batch import Batch, BatchOptions
from .batches import Cases
from .callbacks import Callback, StopTraining, TrainingContext, as_callbacks
from .convergence import Convergence, Tolerance
from .history import EpochInfo, History, StepInfo
from .schedule import BatchSchedule
from .trainee import Trainee

__all__ = ["fit"]


class Bar(Protocol):
    """What the loop asks of tqdm's progress bar."""

    def set_postfix(self, *, refresh: bool, **shown: str) -> None:
        """Show some numbers."""

    def update(self) -> object:
        """Count a step."""

    def close(self) -> None:
        """End the display."""


def fit(
    optimizer: Trainee,
    X: ArrayLike,
    y: ArrayLike,
    *,
    epochs: int,
    batch_size: int | BatchSchedule | Literal["auto"] | None,
    sample_weight: ArrayLike | None,
    validation: tuple[ArrayLike, ArrayLike] | None,
    callbacks: Callback | Iterable[Callback],
    progress: bool,
    time_limit: float | None,
    tolerances: tuple[Tolerance, Tolerance, Tolerance],
) -> History:
    """Train an optimizer's net for some epochs; see `NaturalGradient.fit`."""
    epochs = as_count(epochs, "epochs", 0)
    if time_limit is not None:
        time_limit = as_number(time_limit, "time_limit", minimum=0.0)
    convergence = Convergence(*tolerances, optimizer.net.dtype)
    options: BatchOptions = {"l2": optimizer.l2, "num_threads": optimizer.num_threads}
    check = None if validation is None else _as_validation(optimizer, validation, options)
    options["sample_weight"] = sample_weight
    data = Cases(optimizer.net, optimizer.loss, X, y, options, batch_size)
    loop = _Loop(optimizer, data, as_callbacks(callbacks), check, time_limit, convergence)
    if progress:
        loop.bar = _progress_bar(epochs * data.batches_per_epoch)
    return loop.run(epochs)


# Batches in a row whose objective is not finite, after which a training ends.
MOST_NON_FINITE = 3


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        optimizer: Trainee,
        data: Cases,
        callbacks: list[Callback],
        check: Batch | None,
        time_limit: float | None,
        convergence: Convergence,
    ) -> None:
        self.optimizer, self.data, self.callbacks = optimizer, data, callbacks
        self.check, self.time_limit, self.convergence = check, time_limit, convergence
        self.bar: Bar | None = None
        self.history = History()
        self.start = time.perf_counter()
        self.non_finite = 0  # batches in a row
        self.last: TrainingContext | None = None

    def run(self, epochs: int) -> History:
        """Train; Ctrl-C ends it, and a step that was taken is in the history."""
        before = self.optimizer.last_info
        for callback in self.callbacks:
            getattr(callback, "begin", _nothing)()
        try:
            for epoch in range(epochs):
                self.epoch(epoch)
                if self.is_over:
                    break
        except KeyboardInterrupt:
            self.history.stop_reason = "interrupted"
            last, steps = self.optimizer.last_info, self.history.steps
            if last is not None and last is not (steps[-1] if steps else before):
                self.record(last, epoch)
        finally:
            if self.bar is not None:
                self.bar.close()
        if self.last is not None:
            for callback in self.callbacks:
                getattr(callback, "end", _nothing)(self.last)
        self.history.seconds = time.perf_counter() - self.start
        return self.history

    @property
    def is_over(self) -> bool:
        """Whether something has ended the training."""
        return self.history.stop_reason != "epochs"

    @property
    def is_late(self) -> bool:
        """Whether no further step may begin."""
        return self.time_limit is not None and time.perf_counter() - self.start >= self.time_limit

    def epoch(self, number: int) -> None:
        """Take the steps of an epoch, and record it if there was one."""
        start, first = time.perf_counter(), len(self.history.steps)
        batches = self.data.batches(self.optimizer._rng)
        batch = next(batches, None)
        is_recorded = False
        while batch is not None and not self.is_over:
            if self.is_late:
                self.history.stop_reason = "time_limit"
                break
            if self.optimizer.restore():
                self.history.stop_reason = "non_finite"
                break
            info = self.optimizer._step_of(batch, self.data.num_cases)
            self.record(info, number)
            self.judge(info)
            self.resize()
            batch = next(batches, None)
            is_recorded = batch is None or self.is_over
            validation = self.end_epoch(number, start, first) if is_recorded else None
            self.tell(info, number, is_recorded, validation)
        if not is_recorded and len(self.history.steps) > first:
            self.end_epoch(number, start, first)

    def record(self, info: StepInfo, epoch: int) -> None:
        """Keep the record of a step."""
        self.history.steps.append(info)
        self.history.epoch_of_step.append(epoch)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{info.loss:.4g}", refresh=False)
            self.bar.update()

    def judge(self, info: StepInfo) -> None:
        """Whether the step says that the training is over."""
        optimizer, history = self.optimizer, self.history
        self.non_finite = 0 if math.isfinite(info.loss) else self.non_finite + 1
        if optimizer.restore() or self.non_finite >= MOST_NON_FINITE:
            history.stop_reason = "non_finite"
        elif not info.accepted and info.damping >= optimizer.damping_policy.maximum:
            history.stop_reason = "damping_limit"
        elif self.data.is_full:
            params = optimizer.net.params
            reason = self.convergence.reason(info, params, optimizer.num_threads)
            history.stop_reason = reason or history.stop_reason

    def resize(self) -> None:
        """The size of the next batch."""
        sizes = self.data.sizes
        sizes.advance(len(self.history.steps))
        if sizes.may_grow and self.optimizer._grown():
            sizes.grow()

    def end_epoch(self, number: int, start: float, first: int) -> float | None:
        """Record an epoch; its validation loss."""
        validation = None if self.check is None else self.check.value()
        self.history.epochs.append(
            EpochInfo(
                epoch=number,
                loss=float(np.mean([info.loss for info in self.history.steps[first:]])),
                validation_loss=validation,
                seconds=time.perf_counter() - start,
            )
        )
        return validation

    def tell(self, info: StepInfo, epoch: int, is_end: bool, validation: float | None) -> None:
        """Call the callbacks: every one sees every step, also where one of them ends it."""
        optimizer = self.optimizer
        self.last = TrainingContext(
            info, epoch, is_end, validation, optimizer.net, optimizer, self.history
        )
        stops = False
        for callback in self.callbacks:
            try:
                answer = callback(self.last)
            except StopTraining:
                answer = True
            # What a callback returns by accident, such as the count of `write`, ends nothing.
            stops = stops or answer is True or (isinstance(answer, np.bool_) and bool(answer))
        if stops and not self.is_over:
            self.history.stop_reason = "callback"


def _nothing(*_: object) -> None:
    """What callbacks without `begin` or `end` do."""


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
