"""The folder of a run: model, settings, records, figure and report."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..io import load
from ..model.mlp import MLP
from ..training.history_figure import draw
from ..training.optimizer import NaturalGradient
from .data import Columns, Scale
from .mistake import Mistake

__all__ = ["Options", "Run"]

FORMAT = 1
MODEL, BEST, SETTINGS = "model.safetensors", "best.safetensors", "run.json"
RECORDS, FIGURE, REPORT = "log.jsonl", "curves.png", "report.md"
# What the figure shows of the records.
DRAWN = ("step", "epoch", "loss", "damping", "reduction_ratio", "learning_rate",
         "solve_iterations", "accepted", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a run is made with; the same when it is resumed."""

    data: str
    targets: list[str]
    drop: list[str]
    delimiter: str | None
    net: list[int]
    activation: str
    solver: str
    damping: str
    l2: float
    batch_size: int | str
    validation: float
    seed: int
    scale: bool
    dtype: str


@dataclass
class Run:
    """A run, and where it is kept.

    Attributes
    ----------
    folder : Path
    options : Options
    columns : Columns
    inputs, targets : Scale
    fingerprint : str
        Of the data, before they are scaled.
    epochs : int
        That are wanted.
    epochs_before : int
        Of the fits that have ended before the last one.
    stop_reason : str
        Of the last fit; "" while it runs.
    best : dict
        ``loss`` and ``epoch`` of the best validation loss, or nothing.
    """

    folder: Path
    options: Options
    columns: Columns
    inputs: Scale
    targets: Scale
    fingerprint: str
    epochs: int
    epochs_before: int = 0
    stop_reason: str = ""
    best: dict[str, float] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A file of the folder."""
        return self.folder / name

    def write(self) -> None:
        """Write the settings; an older file is replaced when the new one is on the disk."""
        state = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}
        for name in ("options", "columns", "inputs", "targets"):
            state[name] = asdict(state[name])
        text = json.dumps({"format": FORMAT, "version": __version__, **state}, indent=1)
        write_whole(self.path(SETTINGS), text + "\n")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Run:
        """Read the settings.

        Raises
        ------
        Mistake
            If it is no folder of a run, or a damaged one.
        """
        place = Path(folder)
        path = place / SETTINGS
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise Mistake(f"{os.fspath(folder)!r} is no folder of a run: no {SETTINGS}") from None
        except (OSError, ValueError) as error:
            raise Mistake(f"{path}: {error}") from None
        try:
            if state.pop("format") != FORMAT:
                raise Mistake(f"{path} was written by natgrad_fast {state.get('version')}")
            del state["version"]
            return cls(
                place,
                Options(**state.pop("options")),
                Columns(**state.pop("columns")),
                Scale(**state.pop("inputs")),
                Scale(**state.pop("targets")),
                **state,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Mistake(f"{path} is damaged: {error}") from None

    def load(self, num_threads: int | None) -> tuple[MLP, NaturalGradient]:
        """The net and its optimizer, where the training was left."""
        net, optimizer = self._load(MODEL, num_threads)
        if optimizer is None:
            raise Mistake(f"{self.path(MODEL)} holds no optimizer")
        return net, optimizer

    def load_best(self) -> MLP:
        """The net of the best epoch, or without validation data of the last one."""
        return self._load(BEST if self.path(BEST).is_file() else MODEL, None)[0]

    def _load(self, name: str, num_threads: int | None) -> tuple[MLP, NaturalGradient | None]:
        try:
            return load(self.path(name), num_threads=num_threads)
        except (OSError, ValueError) as error:
            raise Mistake(f"{self.path(name)}: {error}") from None

    def records(self) -> list[dict[str, Any]]:
        """Records of all steps; lines that were cut off are left out."""
        found = []
        if self.path(RECORDS).is_file():
            for line in self.path(RECORDS).read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found

    def keep_records(self, num_steps: int) -> None:
        """Remove the records of steps that came after the checkpoint."""
        kept = [record for record in self.records() if record["step"] < num_steps]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_whole(self.path(RECORDS), text)

    def draw(self) -> None:
        """Draw the records; an ImportError names what it needs."""
        records = self.records()
        arrays: dict[str, NDArray[Any]] = {
            name: np.array([_number(record[name]) for record in records]) for name in DRAWN
        }
        arrays["elapsed"] = np.cumsum(arrays["seconds"])
        losses = {r["epoch"]: r["validation_loss"] for r in records if "validation_loss" in r}
        epochs, arrays["epoch"] = np.unique(arrays["epoch"], return_inverse=True)
        figure = draw(arrays, [losses.get(epoch) for epoch in epochs.tolist()], "step")
        figure.axes[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.savefig(self.path(FIGURE), dpi=130)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for JSON, in which numbers that are not finite are null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
