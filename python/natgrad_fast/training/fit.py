"""The loop over epochs and mini-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_name, as_number
from .._typing import Array, State
from .._warnings import warn
from ..model.batch import Batch, BatchOptions
from .averaging import Averaging, ParameterAverage, as_average
from .batches import Cases, Data
from .callbacks import Callback, StopTraining, TrainingContext, as_callbacks
from .convergence import Convergence, Tolerance
from .cursor import Cursor
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
    resume: bool,
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
    if not isinstance(resume, bool):
        raise TypeError(f"resume must be True or False, got {resume!r}")
    unfinished = optimizer._unfinished
    if resume and isinstance(unfinished, Cursor):
        loop.go_on_from(unfinished)
    if progress:
        steps = data.batches_per_epoch
        loop.bar = _progress_bar(None if steps is None else epochs * steps)
    return loop.run(epochs)


# What ends a training for good: `resume` then begins a new one.
ENDS = {
    "epochs",
    "objective_tol",
    "gradient_tol",
    "step_tol",
    "damping_limit",
    "exhausted",
    "non_finite",
}
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
        self.optimizer, self.data = optimizer, data
        # Checkpoints hold what the others have seen.
        self.callbacks = sorted(callbacks, key=lambda one: getattr(one, "runs_last", False))
        self.check, self.time_limit, self.convergence = check, time_limit, convergence
        self.average: ParameterAverage | None = None
        self.skips = False
        self.bar: Bar | None = None
        self.history = History()
        self.start = time.perf_counter()
        self.non_finite = 0  # batches in a row
        self.last: TrainingContext | None = None
        self.before = optimizer.last_info
        self.start_of_run = Cursor.start(data.num_cases, data.size, optimizer._rng)
        # of the next step
        self.number, self.position, self.next_position = 0, 0, 0
        self.order: State = self.start_of_run.order
        self.is_sized, self.is_exhausted = True, False

    @property
    def num_steps(self) -> int:
        """Steps of the whole training, before it was left too."""
        return self.start_of_run.num_steps + len(self.history.steps)

    def go_on_from(self, cursor: Cursor) -> None:
        """Begin where another call was left, with the same data and options."""
        if cursor.num_cases != self.data.num_cases:
            raise ValueError(
                f"X has {self.data.num_cases:g} cases, the training that is resumed "
                f"{cursor.num_cases:g}"
            )
        if (cursor.average is None) != (self.average is None):
            raise ValueError("averaging must be as in the training that is resumed")
        if self.average is not None and cursor.average is not None:
            self.average.load_state_dict(cursor.average, self.optimizer.net.num_params)
        self.convergence.load_state_dict(cursor.convergence)
        self.start_of_run, self.number, self.order = cursor, cursor.epoch, cursor.order
        self.position = self.next_position = cursor.position
        self.is_sized, self.non_finite = cursor.is_sized, cursor.non_finite
        self.history.skipped = cursor.skipped
        self.data.set_size(cursor.size)

    def cursor(self) -> Cursor:
        """Where the training is: after the last step that was recorded."""
        optimizer, begun = self.optimizer, self.start_of_run
        epoch_losses = [
            info.loss
            for info, epoch in zip(self.history.steps, self.history.epoch_of_step, strict=False)
            if epoch == self.number
        ]
        earlier = begun.losses if self.number == begun.epoch else ()
        # An interrupt may have come between the last batch and the look for another one.
        is_between = self.is_exhausted or self.position >= self.data.num_cases
        return Cursor(
            epoch=self.number + int(is_between),
            position=0 if is_between else self.position,
            num_steps=self.num_steps,
            num_cases=self.data.num_cases,
            size=self.data.size,
            is_sized=self.is_sized,
            skipped=self.history.skipped,
            non_finite=self.non_finite,
            order=dict(optimizer._rng.bit_generator.state) if is_between else self.order,
            losses=np.array([] if is_between else [*earlier, *epoch_losses], np.float64),
            convergence=self.convergence.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            callbacks=tuple(map(_state_of, self.callbacks)),
        )

    def begin(self) -> None:
        """Tell the callbacks; those of the same class at the same place go on as well."""
        for place, callback in enumerate(self.callbacks):
            getattr(callback, "begin", _nothing)()
            known = self.start_of_run.callbacks[place : place + 1]
            if known and known[0] is not None and known[0]["name"] == type(callback).__name__:
                getattr(callback, "load_state_dict", _nothing)(known[0]["state"])

    def run(self, epochs: int) -> History:
        """Train; Ctrl-C ends it, and a step that was taken is in the history."""
        self.begin()
        optimizer, is_ended = self.optimizer, False
        before, order = optimizer._unfinished, optimizer._rng.bit_generator.state
        optimizer._unfinished = self.cursor
        try:
            for epoch in range(self.number, epochs):
                self.epoch(epoch)
                if self.is_over:
                    break
            is_ended = self.history.stop_reason in ENDS
        except KeyboardInterrupt:
            self.history.stop_reason = "interrupted"
        finally:
            if self.history.steps:
                optimizer._unfinished = None if is_ended else self.cursor()
            else:  # nothing has happened
                optimizer._unfinished, optimizer._rng.bit_generator.state = before, order
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
        self.begin_order(number)
        if not self.is_sized:
            self.resize()
        batches = self.data.batches(self.optimizer._rng, self.position)
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
            self.resize()
            try:
                batch = self.upcoming(batches)
            except BaseException:
                self.tell(info, number, False, None)  # the step was taken
                raise
            is_end = batch is None or self.is_over
            validation = self.end_epoch(number, start, first) if is_end else None
            self.tell(info, number, is_end, validation)

    def begin_order(self, number: int) -> None:
        """An epoch's order is drawn anew, or for one that goes on once more."""
        rng = self.optimizer._rng
        if number == self.number:
            rng.bit_generator.state = self.order
            return
        self.order = dict(rng.bit_generator.state)
        self.number, self.position, self.is_exhausted = number, 0, False

    def resize(self) -> None:
        """Let the size of the batches follow a step."""
        if self.data.resize(self.num_steps) and self.optimizer._grown():
            self.data.grow()
        self.is_sized = True

    def upcoming(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch that can be used; None if there is none, or no time to look for it."""
        while True:
            try:
                batch = next(batches, None)
                self.next_position = self.data.position
                self.is_exhausted = batch is None
                return batch
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
            if self.num_steps == 0:
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
        self.is_sized, self.position = False, self.next_position
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
                loss=self.mean_loss(number, steps),
                validation_loss=validation,
                seconds=time.perf_counter() - start,
                averaged_validation_loss=averaged,
            )
        )
        return validation

    def mean_loss(self, number: int, steps: list[StepInfo]) -> float:
        """Over the batches of an epoch, those before it was left too."""
        begun = self.start_of_run
        earlier = begun.losses if number == begun.epoch else begun.losses[:0]
        total = math.fsum([*earlier, *(info.loss for info in steps)])
        return total / (len(earlier) + len(steps))

    def include(self) -> None:
        """Take the parameters after the last step into the average, once."""
        if self.average is not None and self.history.steps:
            self.average.include(self.optimizer.net.params, self.num_steps)

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


def _state_of(callback: Callback) -> State | None:
    make = getattr(callback, "state_dict", None)
    return None if make is None else {"name": type(callback).__name__, "state": make()}


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
