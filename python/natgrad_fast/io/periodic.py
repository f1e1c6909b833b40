"""Checkpoints while a training runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from .._arrays import as_count, as_number
from ..training import NaturalGradient
from ..training.callbacks import TrainingContext
from .checkpoint import save

__all__ = ["Checkpoint"]


class Checkpoint:
    """Write the run to a file from time to time, and at its end, whatever ends it.

    ``net, opt = ng.load(path)`` and ``opt.fit(..., resume=True)`` go on from there with the bits of
    a run that was not left. Called after all other callbacks, whose states it keeps.

    Parameters
    ----------
    path : path
        Always holds the newest checkpoint; replaced at once, so that it is whole at any moment.
    every_steps : int, optional
    every_seconds : float, optional
        After so many steps or seconds, whichever comes first; without either at the end of every
        epoch.
    keep : int
        Checkpoints that are kept: `path`, and those before it beside it, as ``run-120.safetensors``
        for ``run.safetensors`` after 120 steps.

    Raises
    ------
    ValueError, TypeError
        For options out of range, or a path in a folder that does not exist.

    Notes
    -----
    Costs a copy of the optimizer's state, and the time to bring it to the disk.

    Examples
    --------
    >>> import os, tempfile, numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 8, 1], seed=0), "squared_error")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.safetensors")
    ...     every = ng.callbacks.Checkpoint(path, every_steps=5)
    ...     history = opt.fit(X, np.sin(3 * X), epochs=12, callbacks=every)
    ...     net, again = ng.load(path)
    >>> bool(np.array_equal(net.params, opt.net.params))
    True
    """

    runs_last = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int = 1,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if not os.path.isdir(os.path.dirname(self.path)):
            raise ValueError(f"path {os.fspath(path)!r} is in a folder that does not exist")
        if os.path.isdir(self.path):
            raise ValueError(f"path {os.fspath(path)!r} is a folder")
        self.every_steps = None if every_steps is None else as_count(every_steps, "every_steps", 1)
        self.every_seconds = None
        if every_seconds is not None:
            self.every_seconds = as_number(every_seconds, "every_seconds", above=0.0)
        self.keep = as_count(keep, "keep", 1)
        self.begin()

    def __repr__(self) -> str:
        """Where it writes, and when."""
        return (
            f"Checkpoint({self.path!r}, every_steps={self.every_steps}, "
            f"every_seconds={self.every_seconds}, keep={self.keep})"
        )

    def begin(self) -> None:
        """Start to count: a training begins."""
        self._steps, self._time = 0, time.monotonic()
        self._written: int | None = None  # step of the newest checkpoint

    def __call__(self, context: TrainingContext) -> None:
        """Write, if it is time."""
        self._steps += 1
        is_due = self.every_steps is not None and self._steps >= self.every_steps
        if self.every_seconds is not None:
            is_due = is_due or time.monotonic() - self._time >= self.every_seconds
        if self.every_steps is None and self.every_seconds is None:
            is_due = context.is_epoch_end
        if is_due:
            self._write(context)

    def end(self, context: TrainingContext) -> None:
        """Write what the training left."""
        self._write(context)

    def _write(self, context: TrainingContext) -> None:
        optimizer = context.optimizer
        assert isinstance(optimizer, NaturalGradient)
        step = context.info.step + 1
        if self.keep > 1 and self._written not in (None, step):
            self._set_aside(self._written)
        save(self.path, optimizer.net, optimizer)
        self._steps, self._time, self._written = 0, time.monotonic(), step

    def _set_aside(self, step: int | None) -> None:
        """Give the newest file another name too, and remove those that are too old."""
        path = Path(self.path)
        if not path.is_file():
            return
        older = path.with_name(f"{path.stem}-{step}{path.suffix}")
        with contextlib.suppress(FileNotFoundError):
            older.unlink()
        try:
            os.link(path, older)
        except OSError:  # a file system without links
            shutil.copyfile(path, older)
        pattern = re.compile(rf"{re.escape(path.stem)}-(\d+){re.escape(path.suffix)}")
        found = {
            int(match[1]): one
            for one in path.parent.iterdir()
            if (match := pattern.fullmatch(one.name)) is not None
        }
        for number in sorted(found)[: -(self.keep - 1)]:
            found[number].unlink(missing_ok=True)
