"""What `NaturalGradient.fit` calls after every step, and what it tells."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from .._arrays import as_count, as_number
from .._state import StateReader
from .._typing import Array, State
from ..model.mlp import MLP
from .history import History, StepInfo
from .trainee import Trainee

__all__ = ["Callback", "EarlyStopping", "JSONLines", "Log", "StopTraining", "TrainingContext"]


class StopTraining(Exception):
    """Raised by a callback to end the training; the step it was told of is kept.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> def stop(context):
    ...     if context.step == 2:
    ...         raise ng.callbacks.StopTraining
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1], seed=0), "squared_error")
    >>> len(opt.fit(X, X**2, epochs=9, callbacks=stop).steps)
    3
    """


@dataclass(frozen=True)
class TrainingContext:
    """What a callback is told after a step.

    Attributes of `info` can be read from the context too: ``context.loss``.

    Attributes
    ----------
    info : StepInfo
        Record of the step.
    epoch : int
        Number of the epoch, from 0.
    is_epoch_end : bool
        Whether the step was the last one of its epoch.
    validation_loss : float or None
        Objective of the validation data, at the end of an epoch only.
    net : MLP
    optimizer : NaturalGradient
    history : History
        All records so far, this one included.
    """

    info: StepInfo
    epoch: int
    is_epoch_end: bool
    validation_loss: float | None
    net: MLP
    optimizer: Trainee
    history: History

    def __getattr__(self, name: str) -> Any:
        """Attributes of the record."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.info, name)


Callback = Callable[[TrainingContext], object]


def as_callbacks(callbacks: Callback | Iterable[Callback]) -> list[Callback]:
    """A list of callables.

    Raises
    ------
    TypeError
        For anything else.
    """
    if callable(callbacks):
        return [callbacks]
    result = list(callbacks)
    for callback in result:
        if isinstance(callback, type):
            raise TypeError(f"callbacks must be callable, got the class {callback!r}: call it")
        if not callable(callback):
            raise TypeError(f"callbacks must be callable, got {callback!r}")
    return result


class EarlyStopping:
    """End the training when a loss no longer falls.

    The loss is that of the validation data, or without any the mean over the batches of an epoch,
    and is looked at after every epoch.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which the training ends.
    min_delta : float
        What counts as an improvement: more than that below the best.
    restore_best : bool
        Whether the parameters of the best epoch are put back at the end of the training, whatever
        ended it.

    Attributes
    ----------
    best_loss : float
        Infinite before the first epoch.
    best_epoch : int or None

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> net = ng.MLP([1, 8, 1], seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error")
    >>> stopping = ng.callbacks.EarlyStopping(patience=3)
    >>> history = opt.fit(
    ...     X[::2], np.sin(X[::2]), epochs=500, validation=(X, np.sin(X)), callbacks=stopping
    ... )
    >>> stopping.best_loss == ng.value(net, "squared_error", X, np.sin(X))
    True
    """

    def __init__(
        self, patience: int = 10, *, min_delta: float = 0.0, restore_best: bool = True
    ) -> None:
        self.patience = as_count(patience, "patience", 1)
        self.min_delta = as_number(min_delta, "min_delta", minimum=0.0)
        self.restore_best = bool(restore_best)
        self.begin()

    def __repr__(self) -> str:
        """How it is made."""
        return (
            f"EarlyStopping(patience={self.patience}, min_delta={self.min_delta}, "
            f"restore_best={self.restore_best})"
        )

    def begin(self) -> None:
        """Forget what was seen: a training begins."""
        self.best_loss, self.best_epoch = math.inf, None
        self._best: Array | None = None
        self._waited = 0

    best_epoch: int | None

    def __call__(self, context: TrainingContext) -> bool:
        """Whether to stop."""
        if not context.is_epoch_end:
            return False
        loss = context.validation_loss
        if loss is None:
            loss = context.history.epochs[-1].loss
        if loss < self.best_loss - self.min_delta or self.best_epoch is None:
            self.best_loss, self.best_epoch, self._waited = loss, context.epoch, 0
            self._best = context.net.params.copy() if self.restore_best else None
        else:
            self._waited += 1
        return self._waited >= self.patience

    def state_dict(self) -> State:
        """What was seen, for a fit that goes on later."""
        return {
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "best": None if self._best is None else self._best.copy(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; a ValueError names what does not fit."""
        reader = StateReader(state, "state", ("best_loss", "best_epoch", "waited", "best"))
        best = reader["best"]
        if best is not None:
            is_vector = isinstance(best, np.ndarray) and best.ndim == 1
            if not is_vector or best.dtype not in (np.float32, np.float64):
                raise reader.refuse("best", "a vector of parameters")
            best = reader.array("best", best.shape, best.dtype)
        epoch = None if reader["best_epoch"] is None else reader.integer("best_epoch")
        loss, waited = reader.number_or("best_loss", math.inf), reader.integer("waited")
        self.best_loss, self.best_epoch, self._best, self._waited = loss, epoch, best, waited

    def end(self, context: TrainingContext) -> None:
        """Put the best parameters back."""
        if self._best is not None and np.isfinite(self.best_loss):
            context.net.params = self._best


class JSONLines:
    """Write the record of every step to a file, a line of JSON each, while the training runs.

    Parameters
    ----------
    path : path
        Lines are added to what is there.

    Examples
    --------
    >>> import json, os, tempfile, numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1], seed=0), "squared_error")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "log.jsonl")
    ...     history = opt.fit(X, X**2, epochs=3, callbacks=ng.callbacks.JSONLines(path))
    ...     with open(path) as file:
    ...         losses = [json.loads(line)["loss"] for line in file]
    >>> losses == [info.loss for info in history.steps]
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        """How it is made."""
        return f"JSONLines({self.path!r})"

    def __call__(self, context: TrainingContext) -> None:
        """Write a line."""
        record = {"epoch": context.epoch, **context.info.to_dict()}
        if context.validation_loss is not None:
            record["validation_loss"] = context.validation_loss
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=True) + "\n")


class Log:
    """Print a line after every so many steps, and at the end of every epoch.

    Parameters
    ----------
    every_steps : int, optional
        Only at the end of epochs by default.
    file : text file, optional
        Standard output by default.

    Examples
    --------
    >>> import io, numpy as np, natgrad_fast as ng
    >>> X, file = np.linspace(-1, 1, 20)[:, None], io.StringIO()
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1], seed=0), "squared_error")
    >>> history = opt.fit(X, X**2, epochs=3, callbacks=ng.callbacks.Log(file=file))
    >>> file.getvalue().count("loss")
    3
    """

    def __init__(self, every_steps: int | None = None, file: TextIO | None = None) -> None:
        self.every_steps = None
        if every_steps is not None:
            self.every_steps = as_count(every_steps, "every_steps", 1)
        self.file = file

    def __repr__(self) -> str:
        """How it is made."""
        return f"Log(every_steps={self.every_steps})"

    def __call__(self, context: TrainingContext) -> None:
        """Print a line if it is time."""
        info = context.info
        is_due = self.every_steps is not None and (info.step + 1) % self.every_steps == 0
        if not (is_due or context.is_epoch_end):
            return
        line = f"epoch {context.epoch}  step {info.step}  loss {info.loss:.6g}"
        if context.validation_loss is not None:
            line += f"  validation {context.validation_loss:.6g}"
        print(
            f"{line}  damping {info.damping:.3g}  step length {info.step_norm:.3g}", file=self.file
        )
