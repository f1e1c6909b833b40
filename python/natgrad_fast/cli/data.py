"""What a net is trained on: inputs and targets of a table, and their scales."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..losses import LossName
from .mistake import Mistake
from .table import Table, few

__all__ = ["Columns", "Scale", "choose", "fingerprint", "inputs", "targets"]

CLASSES: LossName = "softmax_cross_entropy"
PROBABILITIES: LossName = "bernoulli_cross_entropy"
# Losses whose targets are numbers of any size.
SCALED = ("squared_error", "student_t", "gaussian_mean_variance")
# Whole numbers are classes, if there are at most so many and each is there twice on average.
MOST_CLASSES = 20
USUAL_TARGETS = ("target", "y", "label", "class")  # looked for in this order


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    Attributes
    ----------
    features, targets : list of str
    is_named : bool
        Whether the names are those of the data, and not numbers of columns.
    loss : LossName
    classes : list of str or of int, or None
        In the order of the net's outputs; of a Bernoulli loss those of 0 and 1.
    why : str
        Why the loss was picked.
    """

    features: list[str]
    targets: list[str]
    is_named: bool
    loss: LossName
    classes: list[str] | list[int] | None
    why: str


@dataclass(frozen=True)
class Scale:
    """Columns (x - center) / width."""

    center: list[float]
    width: list[float]

    @classmethod
    def of(cls, x: NDArray[np.float64]) -> Scale:
        """Mean and standard deviation of the columns of x (N, d); 1 for constant columns."""
        largest = np.maximum(np.abs(x).max(axis=0), np.finfo(float).tiny)
        unit = x / largest  # so that no square is beyond the range
        spread = unit.std(axis=0)
        is_constant = spread <= 8.0 * np.finfo(float).eps
        width = np.where(is_constant, 1.0, spread * largest)
        return cls((unit.mean(axis=0) * largest).tolist(), width.tolist())

    @classmethod
    def none(cls, count: int) -> Scale:
        """The scale that changes nothing."""
        return cls([0.0] * count, [1.0] * count)

    def apply(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(x - center) / width."""
        result: NDArray[np.float64] = (x - np.array(self.center)) / np.array(self.width)
        return result

    def undo(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Undo `apply`, in float64."""
        result: NDArray[np.float64] = np.asarray(x, np.float64) * self.width + self.center
        return result

    def to_dict(self) -> dict[str, list[float]]:
        """For JSON."""
        return asdict(self)


def choose(
    table: Table, targets: Sequence[str], drop: Sequence[str], loss: LossName | None
) -> Columns:
    """Tell features from targets, and pick the loss where it is not given.

    Raises
    ------
    Mistake
        For columns that are not there, features that are words, or targets no loss is for.
    """
    named = [*targets, *drop]
    absent = [name for name in named if name not in table.names]
    if absent:
        raise Mistake(
            f"{table.source} has no column {few(list(map(repr, absent)))}; "
            f"it has {few(table.names, most=20)}"
        )
    usual = [name for name in USUAL_TARGETS if name in table.names and name not in drop]
    left = [name for name in table.names if name not in drop]
    chosen = list(dict.fromkeys(targets or table.targets or usual[:1] or left[-1:]))
    features = [name for name in left if name not in chosen and name not in table.targets]
    if not features:
        raise Mistake(f"{table.source}: no column is left besides the target")
    unnamed = [name for name in features if name in table.unnamed]
    if unnamed:
        raise Mistake(
            f"{table.source}: {few(unnamed)} has no name (the index of a data frame?): give it "
            f"one, or leave it out with --drop {unnamed[0]!r}"
        )
    _refuse_words(table, features)
    table.refuse_missing([*features, *chosen])
    loss, why = (loss, "as asked for") if loss else _loss_of(table, chosen)
    return Columns(features, chosen, table.is_named, loss, _classes(table, chosen, loss), why)


def _refuse_words(table: Table, features: Sequence[str]) -> None:
    words = [name for name in features if table[name].dtype == object]
    if words:
        examples = []
        for name in words[:8]:
            column = table[name]
            place = next((i for i, word in enumerate(column) if word and not _is_float(word)), 0)
            examples.append(f"  {name!r}: {column[place]!r} ({table.place(place)})")
        hint = " (a decimal comma? write a point)" if any("," in line for line in examples) else ""
        raise Mistake(
            f"{table.source}: {len(words)} of the feature columns are not numbers:\n"
            + "\n".join(examples)
            + f"\nturn them into numbers{hint}, or leave them out with --drop"
        )


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _loss_of(table: Table, targets: Sequence[str]) -> tuple[LossName, str]:
    """The loss that suits the targets, and why."""
    columns = [table[name] for name in targets]
    if len(columns) > 1:
        return "squared_error", f"{len(columns)} targets are numbers"
    column, name = columns[0], targets[0]
    if column.dtype == object:
        return CLASSES, f"{name!r} has words"
    values = np.unique(column)
    is_whole = bool(np.all(np.isfinite(values)) and np.all(values == np.round(values)))
    if is_whole and 2 <= len(values) <= MOST_CLASSES and 2 * len(values) <= len(column):
        return CLASSES, f"{name!r} has {len(values)} different whole numbers"
    return "squared_error", f"{name!r} has {len(values)} different numbers"


def _classes(table: Table, targets: Sequence[str], loss: LossName) -> list[str] | list[int] | None:
    """Classes of the target, sorted."""
    words = [name for name in targets if table[name].dtype == object]
    column = table[targets[0]]
    if loss == CLASSES:
        if len(targets) > 1:
            raise Mistake(f"--loss {loss} is for one target, got {few(list(targets))}")
    elif loss != PROBABILITIES or len(targets) > 1 or not words:
        if words:
            raise Mistake(f"{table.source}: target {words[0]!r} has words, --loss {loss} is of "
                          "numbers")  # fmt: skip
        return None
    if words:
        found = sorted(set(column))
    else:
        values = np.unique(column)
        wrong = np.flatnonzero((column != np.round(column)) | (np.abs(column) > 2.0**53))
        if wrong.size:
            raise Mistake(
                f"{table.source}: target {targets[0]!r} is {column[wrong[0]]:g} in "
                f"{table.place(int(wrong[0]))}; --loss {loss} wants whole numbers or words"
            )
        found = [int(value) for value in values]
    if len(found) < 2 or (loss == PROBABILITIES and len(found) > 2):
        wanted = "two" if loss == PROBABILITIES else "at least two"
        raise Mistake(
            f"{table.source}: target {targets[0]!r} has {len(found)} class"
            f"{'es' * (len(found) > 1)} ({few(list(map(str, found)))}), wanted {wanted}"
        )
    return found


def inputs(table: Table, features: Sequence[str], is_named: bool) -> NDArray[np.float64]:
    """Inputs (N, d) in the order of the features.

    By name, where both the training's data and these have names, else by place.

    Raises
    ------
    Mistake
        For columns that are not there, words, values that are missing or not finite.
    """
    names = list(features)
    if not (is_named and table.is_named):
        here = [name for name in table.names if name not in table.targets]
        if not set(names) <= set(table.names):
            if len(here) != len(names):
                raise Mistake(
                    f"{table.source} has {len(here)} columns, the net takes {len(names)} inputs"
                )
            names = here
    absent = [name for name in names if name not in table.names]
    if absent:
        raise Mistake(
            f"{table.source} has no column {few(list(map(repr, absent)))}, on which the net was "
            "trained"
        )
    _refuse_words(table, names)
    table.refuse_missing(names)
    X = np.stack([table[name] for name in names], axis=1)
    _refuse_infinite(table, names, X)
    return X


def _refuse_infinite(table: Table, names: Sequence[str], x: NDArray[np.float64]) -> None:
    wrong = np.argwhere(~np.isfinite(x))
    if wrong.size:
        row, column = wrong[0]
        raise Mistake(
            f"{table.source}: {names[column]!r} is {x[row, column]} in {table.place(row)} "
            f"({len(wrong)} values are infinite)"
        )


def targets(table: Table, columns: Columns) -> NDArray[Any]:
    """Labels (N,) for classes, else numbers (N, C).

    Raises
    ------
    Mistake
        For targets that the loss is not defined for.
    """
    if columns.classes is not None:
        column = table[columns.targets[0]]
        place = {name: number for number, name in enumerate(columns.classes)}
        if column.dtype == object:
            labels = np.array([place[word] for word in column], np.intp)
        else:
            labels = np.searchsorted(np.array(columns.classes, float), column)
        return labels if columns.loss == CLASSES else labels[:, None].astype(float)
    y = np.stack([table[name] for name in columns.targets], axis=1)
    _refuse_infinite(table, columns.targets, y)
    low, high = {PROBABILITIES: (0.0, 1.0), "poisson": (0.0, np.inf)}.get(
        columns.loss, (-np.inf, np.inf)
    )
    wrong = np.argwhere((y < low) | (y > high))
    if wrong.size:
        row, column = wrong[0]
        raise Mistake(
            f"{table.source}: target {columns.targets[column]!r} is {y[row, column]:g} in "
            f"{table.place(row)}; --loss {columns.loss} wants {low:g} to {high:g}"
        )
    return y


def fingerprint(arrays: Mapping[str, NDArray[Any]]) -> str:
    """A digest of values and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
