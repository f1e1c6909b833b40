"""The loop over epochs and mini-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_name, as_number
from .._typing import Array
from ..model.batch import Batch, BatchOptions
from .advice import warn
from .averaging import Averaging, ParameterAverage, as_average
from .batches import Cases, Data
from .callbacks import Callback, StopTraining, TrainingContext, as_callbacks
from .convergence import Convergence, Tolerance
from .history import EpochInfo, History, StepInfo
from .schedule import BatchSchedule
from .stream import BadBatch, Stream
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
    X: ArrayLike | Iterable[object],
    y: ArrayLike | None,
    *,
    epochs: int,
    batch_size: int | BatchSchedule | Literal["auto"] | None,
    sample_weight: ArrayLike | None,
    validation: tuple[ArrayLike, ArrayLike] | None,
    callbacks: Callback | Iterable[Callback],
    progress: bool,
    time_limit: float | None,
    tolerances: tuple[Tolerance, Tolerance, Tolerance],
    averaging: Averaging,
    on_bad_batch: Literal["raise", "skip"],
) -> History:
    """Train an optimizer's net for some epochs; see `NaturalGradient.fit`."""
    epochs = as_count(epochs, "epochs", 0)
    if time_limit is not None:
        time_limit = as_number(time_limit, "time_limit", minimum=0.0)
    as_name(on_bad_batch, "on_bad_batch", ("raise", "skip"))
    convergence = Convergence(*tolerances, optimizer.net.dtype)
    options: BatchOptions = {"l2": optimizer.l2, "num_threads": optimizer.num_threads}
    check = None if validation is None else _as_validation(optimizer, validation, options)
    data: Data
    if y is None:
        data = Stream(optimizer, X, batch_size, sample_weight)
    else:
        options["sample_weight"] = sample_weight
        data = Cases(optimizer.net, optimizer.loss, cast(ArrayLike, X), y, options, batch_size)
    loop = _Loop(optimizer, data, as_callbacks(callbacks), check, time_limit, convergence)
    loop.average = as_average(averaging)
    loop.skips = on_bad_batch == "skip"
    if progress:
        steps = data.batches_per_epoch
        loop.bar = _progress_bar(None if steps is None else epochs * steps)
    return loop.run(epochs)


# Batches in a row whose objective is not finite, after which a training ends.
MOST_NON_FINITE = 3


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        optimizer: Trainee,
        data: Data,
        callbacks: list[Callback],
        check: Batch | None,
        time_limit: float | None,
        convergence: Convergence,
    ) -> None:
        self.optimizer, self.data, self.callbacks = optimizer, data, callbacks
        self.check, self.time_limit, self.convergence = check, time_limit, convergence
        self.average: ParameterAverage | None = None
        self.skips = False
        self.bar: Bar | None = None
        self.history = History()
        self.start = time.perf_counter()
        self.non_finite = 0  # batches in a row
        self.last: TrainingContext | None = None
        self.before = optimizer.last_info

    def run(self, epochs: int) -> History:
        """Train; Ctrl-C ends it, and a step that was taken is in the history."""
        for callback in self.callbacks:
            getattr(callback, "begin", _nothing)()
        try:
            for epoch in range(epochs):
                self.epoch(epoch)
                if self.is_over:
                    break
        except KeyboardInterrupt:
            self.history.stop_reason = "interrupted"
        finally:
            if self.bar is not None:
                self.bar.close()
        self.keep_average()
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
        """Take the steps of an epoch, and record it if there was one, whatever ends it."""
        start, first = time.perf_counter(), len(self.history.steps)
        try:
            self.steps(number, start, first)
        except BaseException:
            last, steps = self.optimizer.last_info, self.history.steps
            if last is not None and last is not (steps[-1] if steps else self.before):
                self.record(last, number)
            self.end_epoch(number, start, first, is_measured=False)
            raise
        self.end_epoch(number, start, first)

    def steps(self, number: int, start: float, first: int) -> None:
        """Take the steps of an epoch."""
        batches = self.data.batches(self.optimizer._rng)
        batch = self.upcoming(batches)
        self.begin_epoch(number, batch)
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
            if self.data.resize(len(self.history.steps)) and self.optimizer._grown():
                self.data.grow()
            try:
                batch = self.upcoming(batches)
            except BaseException:
                self.tell(info, number, False, None)  # the step was taken
                raise
            is_end = batch is None or self.is_over
            validation = self.end_epoch(number, start, first) if is_end else None
            self.tell(info, number, is_end, validation)

    def upcoming(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch that can be used; None if there is none, or no time to look for it."""
        while True:
            try:
                return next(batches, None)
            except BadBatch as bad:
                if not self.skips:
                    raise
                self.history.skipped += 1
                if self.history.skipped == 1:
                    warn(f"{bad}. It is skipped; History.skipped counts the others, if any")
            if self.is_late:
                self.history.stop_reason = "time_limit"
                return None

    def begin_epoch(self, number: int, batch: Batch | None) -> None:
        """Look at the first batch of an epoch."""
        if batch is None and not self.is_over:
            if number == 0:
                skipped = self.history.skipped
                why = f": all {skipped} of them were skipped" if skipped else ""
                raise ValueError(f"X has no batch that can be used{why}")
            self.history.stop_reason = "exhausted"
        elif batch is not None and number == 0:
            advice = self.data.advice(batch)
            if advice is not None:
                warn(advice)

    def record(self, info: StepInfo, epoch: int) -> None:
        """Keep the record of a step."""
        history = self.history
        here = len(history.steps)  # an interrupt may have come before the last line
        history.epoch_of_step[here:] = [epoch]
        history.skipped_before_step[here:] = [history.skipped]
        history.steps.append(info)
        self.include()
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

    def end_epoch(
        self, number: int, start: float, first: int, *, is_measured: bool = True
    ) -> float | None:
        """Record an epoch, once, if it has a step; its validation loss."""
        epochs, steps = self.history.epochs, self.history.steps[first:]
        if not steps or (epochs and epochs[-1].epoch == number):
            return None
        validation = averaged = None
        if self.check is not None and is_measured:
            validation = self.check.value()
        mean = self.keep_average()
        if self.check is not None and is_measured and mean is not None:
            averaged = self.check.value(mean)
        epochs.append(
            EpochInfo(
                epoch=number,
                loss=math.fsum(info.loss for info in steps) / len(steps),
                validation_loss=validation,
                seconds=time.perf_counter() - start,
                averaged_validation_loss=averaged,
            )
        )
        return validation

    def include(self) -> None:
        """Take the parameters after the last step into the average, once."""
        if self.average is not None and self.history.steps:
            self.average.include(self.optimizer.net.params, len(self.history.steps))

    def keep_average(self) -> Array | None:
        """The average so far, which goes into the history."""
        self.include()
        if self.average is not None:
            self.history.averaged_params = self.average.params(self.optimizer.net.params)
        return self.history.averaged_params

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


def _progress_bar(total: int | None) -> Bar:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install natgrad_fast[progress]") from None
    bar: Bar = tqdm(total=total, unit="step")
    return bar
