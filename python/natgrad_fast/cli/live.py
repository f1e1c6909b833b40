"""What a training tells while it runs: a line for those who wait, records, the best net."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from .._typing import State
from ..io import load, save
from ..training.callbacks import EarlyStopping, TrainingContext
from ..training.history import StepInfo
from .run import BEST, RECORDS, Run, plain

__all__ = ["Best", "Live", "Records"]

EVERY, EVERY_ON_TERMINAL = 5.0, 0.1  # seconds from one line to the next
NEVER = 2**31  # epochs of patience without an end


class Live:
    """One line that is written over on a terminal; elsewhere a line every few seconds.

    Parameters
    ----------
    out : text file
    epochs : int
        That are wanted.
    before : int
        Epochs of fits that have ended before.
    time_limit : float or None
        Seconds of this fit.
    clock : callable
        Seconds from any beginning.
    """

    def __init__(
        self,
        out: TextIO,
        epochs: int,
        before: int = 0,
        time_limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out, self.epochs, self.before, self.time_limit = out, epochs, before, time_limit
        self.clock = clock
        self.started = clock()
        self.last = -EVERY
        self.first_epoch: int | None = None
        self.is_terminal = out.isatty()
        self.validation: float | None = None

    def __call__(self, context: TrainingContext) -> None:
        """Say where the training is, if it is time."""
        if self.first_epoch is None:
            self.first_epoch = context.epoch
        if context.validation_loss is not None:
            self.validation = context.validation_loss
        seconds = self.clock() - self.started
        wait = EVERY_ON_TERMINAL if self.is_terminal else EVERY
        if seconds - self.last >= wait:
            self.last = seconds
            self._write(self.line(context, seconds))

    def line(self, context: TrainingContext, seconds: float) -> str:
        """Epoch, losses, damping and time."""
        words = [f"epoch {self.before + context.epoch + 1}/{self.epochs}"]
        words += [f"step {context.info.step + 1}", f"loss {context.info.loss:.4g}"]
        if self.validation is not None:
            words.append(f"validation {self.validation:.4g}")
        words += [f"damping {context.info.damping:.2g}", f"{seconds:.0f} s"]
        left = self.left(context, seconds)
        if left is not None:
            words.append(f"about {left:.0f} s left")
        return "  ".join(words)

    def left(self, context: TrainingContext, seconds: float) -> float | None:
        """Seconds to the last epoch or to the time limit; None before anything is known."""
        limits = [] if self.time_limit is None else [max(self.time_limit - seconds, 0.0)]
        done = context.epoch - (self.first_epoch or 0) + int(context.is_epoch_end)
        if done:
            rest = self.epochs - self.before - context.epoch - int(context.is_epoch_end)
            limits.append(seconds / done * rest)
        return min(limits, default=None)

    def end(self, context: TrainingContext) -> None:
        """Say where the training has ended."""
        self._write(self.line(context, self.clock() - self.started).partition("  about")[0])
        if self.is_terminal:
            print(file=self.out, flush=True)

    def _write(self, text: str) -> None:
        end = "" if self.is_terminal else "\n"
        print(f"{chr(13)}\033[K{text}" if end == "" else text, end=end, file=self.out, flush=True)


class Records:
    """Add the record of every step to the run's file, a line of JSON each.

    Steps whose callbacks were interrupted are written at the end of the training.
    """

    def __init__(self, run: Run) -> None:
        self.path, self.before = run.path(RECORDS), run.epochs_before
        self.last = -1  # step that was written last

    def __call__(self, context: TrainingContext) -> None:
        """Write a line."""
        self._write(context.info, context.epoch, context.validation_loss)

    def end(self, context: TrainingContext) -> None:
        """Write what is missing, on lines of their own."""
        history = context.history
        missing = [
            (info, epoch)
            for info, epoch in zip(history.steps, history.epoch_of_step, strict=False)
            if info.step > self.last
        ]
        for info, epoch in missing:
            is_told = info is context.info
            self._write(info, epoch, context.validation_loss if is_told else None, "\n")

    def _write(
        self, info: StepInfo, epoch: int, validation: float | None, before: str = ""
    ) -> None:
        record = {"epoch": self.before + epoch, **info.to_dict()}
        if validation is not None:
            record["validation_loss"] = validation
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{before}{json.dumps(plain(record))}\n")
        self.last = info.step


class Best(EarlyStopping):
    """Keep the net of the best validation loss in a file beside the run's own.

    The training itself goes on from its last parameters when it is resumed.
    """

    def __init__(self, run: Run, patience: int | None) -> None:
        self.run = run
        self._seen: TrainingContext | None = None
        super().__init__(NEVER if patience is None else patience, restore_best=True)

    @property
    def path(self) -> Path:
        """The file of the best net."""
        return self.run.path(BEST)

    def begin(self) -> None:
        """Begin with the best of earlier fits."""
        super().begin()
        self._take_file()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what a checkpoint holds, or the file's net if that was found after it."""
        super().load_state_dict(state)
        self._take_file()

    def _take_file(self) -> None:
        loss = self.run.best.get("loss", math.inf)
        if loss < self.best_loss and self.path.is_file():
            best = load(self.path)[0].params
            known: State = {"best_loss": loss, "best_epoch": 0, "waited": 0}
            super().load_state_dict({**known, "best": best})

    def __call__(self, context: TrainingContext) -> bool:
        """Whether to stop."""
        self._seen = context
        return super().__call__(context)

    def end(self, context: TrainingContext) -> None:
        """Look at an epoch whose callbacks were interrupted, and write the best net."""
        if self._seen is not context:
            self(context)
        if self._best is None or not math.isfinite(self.best_loss):
            return
        net = context.net.copy()
        net.params = self._best
        save(self.path, net)
        self.run.best = {"loss": self.best_loss}
