"""Tables: named columns of numbers or words, from .csv, .parquet, .npz and known data sets."""

from __future__ import annotations

import csv
import importlib
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from .. import datasets
from .mistake import Mistake

__all__ = ["BUILT_IN", "Table", "few", "read_table"]

BUILT_IN: dict[str, Callable[[], datasets.Dataset]] = {
    "breast_cancer": datasets.breast_cancer,
    "diabetes": datasets.diabetes,
    "digits": datasets.digits,
    "mnist5k": datasets.mnist5k,
    "sinc": datasets.sinc,
}
DELIMITERS = ",;\t|"
MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"}  # in any case of letters
STDIN = "-"
BLOCK = 2000  # rows that are turned into numbers at once: they stay in the cache


@dataclass(frozen=True)
class Table:
    """Columns of N rows.

    Attributes
    ----------
    source : str
        Where it comes from, for messages.
    names : list of str
        Of the columns, each once.
    columns : list of (N,) arrays
        float64, NaN where a value is missing; or str objects, "" where one is missing.
    rows : (N,) array of int
        Where the rows are in the source: lines of a text, else counted from 1.
    row_word : str
        "line" or "row".
    is_named : bool
        Whether the source names the columns; else they are x0, x1, ..
    targets : tuple of str
        Columns that the source itself calls targets.
    unnamed : tuple of str
        Columns whose name is empty in the source, which are called by their number.
    """

    source: str
    names: list[str]
    columns: list[NDArray[Any]]
    rows: NDArray[np.intp]
    row_word: str = "row"
    is_named: bool = True
    targets: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The column of a name."""
        return self.columns[self.names.index(name)]

    def place(self, index: int) -> str:
        """Where a row is, in words."""
        return f"{self.row_word} {self.rows[index]}"

    def refuse_missing(self, names: Sequence[str]) -> None:
        """Raise a `Mistake` that names columns and rows, if a value of these columns is missing."""
        found = {}
        for name in names:
            column = self[name]
            places = np.flatnonzero(column == "" if column.dtype == object else np.isnan(column))
            if places.size:
                found[name] = places
        if not found:
            return
        lines = [
            f"  {name!r}: {len(places)} ({self.row_word} "
            f"{few([str(self.rows[i]) for i in places[:6]], len(places))})"
            for name, places in list(found.items())[:10]
        ]
        if len(found) > 10:
            lines.append(f"  and {len(found) - 10} more columns")
        raise Mistake(
            f"{self.source}: values are missing in {len(found)} of the columns:\n"
            + "\n".join(lines)
            + "\nfill them in, remove the rows, or leave the columns out with --drop"
        )


def few(words: Sequence[str], total: int | None = None, most: int = 6) -> str:
    """Join the first words of a list, and say how many there are besides."""
    rest = (len(words) if total is None else total) - min(len(words), most)
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def read_table(source: str, delimiter: str | None = None) -> Table:
    """Read a table by the name of a known data set, a file, or "-" for CSV from standard input.

    Parameters
    ----------
    source : str
    delimiter : str, optional
        Of CSV; by default that of comma, semicolon, tab and bar which splits the header most.

    Raises
    ------
    Mistake
        For whatever can not be read, with file, line and column.
    """
    if source == STDIN:
        return _from_csv("standard input", _standard_input(), delimiter)
    path = Path(source)
    if source in BUILT_IN and not path.is_file():
        try:
            X, y = BUILT_IN[source]()
        except ImportError as error:
            raise Mistake(str(error)) from None
        return _from_arrays(source, {"X": X, "y": y}, is_target_needed=True)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file and no known data set"
        raise Mistake(f"{source!r} {what}; known: {', '.join(BUILT_IN)}")
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv", ".txt"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return _from_csv(source, file, "\t" if kind == ".tsv" else delimiter)
        if kind == ".npz":
            return _from_npz(source)
        if kind in (".parquet", ".pq"):
            return _from_parquet(source)
    except OSError as error:
        raise Mistake(f"{source}: {error.strerror or error}") from None
    raise Mistake(f"{source}: wanted a file .csv, .npz or .parquet")


def _standard_input() -> TextIO:
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        return sys.stdin
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _from_csv(source: str, file: TextIO, delimiter: str | None) -> Table:
    """Read text whose first line names the columns; empty lines are passed over."""
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise Mistake(f"--delimiter must be one character or tab, got {delimiter!r}")
    lines: list[int] = []
    reader: Any = None
    try:
        before, first = _first_line(file)
        delimiter = delimiter or _delimiter_of(first)
        reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        unnamed = _check_header(source, header)
        columns = [_Cells() for _ in header]
        records = _records(source, reader, len(header), before, lines)
        while block := list(islice(records, BLOCK)):
            for column, cells in zip(columns, zip(*block, strict=True), strict=True):
                column.add(cells)
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{error.object[error.start]:02x}"
        line = lines[-1] if lines else 1
        raise Mistake(f"{source}: not UTF-8: {wrong}, behind line {line}") from None
    except csv.Error as error:
        line = before + reader.line_num if reader is not None else 1
        raise Mistake(f"{source}, line {line}: {error}") from None
    if not lines:
        raise Mistake(f"{source}: no row below the line of column names")
    rows = np.array(lines, np.intp)
    arrays = [column.array() for column in columns]
    return Table(source, header, arrays, rows, "line", unnamed=unnamed)


def _first_line(file: TextIO) -> tuple[int, str]:
    """How many empty lines there are, and the line behind them."""
    before = 0
    for line in file:
        if line.strip():
            return before, line
        before += 1
    return before, ""


def _delimiter_of(line: str) -> str:
    """The one that splits a line most; the comma of several."""
    try:
        return max(DELIMITERS, key=lambda one: len(next(csv.reader([line], delimiter=one), [])))
    except csv.Error:
        return DELIMITERS[0]


def _records(
    source: str, reader: Any, width: int, before: int, lines: list[int]
) -> Iterator[list[str]]:
    """Rows that are not empty; the last line of each is added to `lines`."""
    for record in reader:
        if not record or (width > 1 and len(record) == 1 and not record[0].strip()):
            continue
        line = before + reader.line_num
        if len(record) != width:
            raise Mistake(
                f"{source}, line {line}: {len(record)} fields, the line of column names has {width}"
            )
        lines.append(line)
        yield record


class _Cells:
    """A column that is read block by block: numbers until a word is met.

    Of blocks of numbers the text is kept as one string, for columns whose words come later.
    """

    def __init__(self) -> None:
        self.blocks: list[NDArray[np.float64]] = []
        self.texts: list[str] = []  # cells with NUL between, which no number has inside
        self.words: list[str] | None = None

    def add(self, cells: Sequence[str]) -> None:
        """Take the next cells."""
        numbers = None if self.words is not None else _as_numbers(cells)
        if numbers is not None:
            self.blocks.append(numbers)
            self.texts.append("\0".join(cells))
            return
        if self.words is None:
            self.words = [cell.strip() for text in self.texts for cell in text.split("\0")]
            self.blocks, self.texts = [], []
        self.words += [cell.strip() for cell in cells]

    def array(self) -> NDArray[Any]:
        """All of it: float64 with NaN, or str objects with "", where a value is missing."""
        if self.words is None:
            return np.concatenate(self.blocks)
        known = ["" if word.casefold() in MISSING else word for word in self.words]
        return np.array(known, object)


def _as_numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """Numbers (N,), NaN for those that are missing; None if there are words."""
    if "_" in "".join(cells):  # Python's own notation, 1_000, is a word
        return None
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        pass
    try:
        kept = [cell if cell.strip().casefold() not in MISSING else "nan" for cell in cells]
        return np.fromiter(map(float, kept), np.float64, len(cells))
    except ValueError:
        return None


def _check_header(source: str, header: list[str]) -> tuple[str, ...]:
    """Refuse names that appear twice, and a first line of data; name what has no name."""
    if header in ([], [""]):
        raise Mistake(f"{source}: empty; wanted a line of column names and rows below it")
    seen: set[str] = set()
    twice = []
    for name in header:
        if name and name in seen:
            twice.append(name)
        seen.add(name)
    is_data = all(_is_number(name) for name in header)
    if is_data and (twice or not all(name.isdecimal() for name in header)):
        raise Mistake(f"{source}: the first line is all numbers: wanted a line of column names")
    if twice:
        raise Mistake(f"{source}: columns appear twice: {few(list(map(repr, twice)))}")
    empty = [place for place, name in enumerate(header) if not name]
    for place in empty:
        header[place] = f"column {place + 1}"
    return tuple(header[place] for place in empty)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _from_npz(source: str) -> Table:
    try:
        with np.load(source, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise Mistake(f"{source}: a single array; wanted arrays X and y (np.savez)")
            if "X" not in file.files:
                raise Mistake(f"{source}: wanted arrays X and y, got {few(file.files)}")
            here = [name for name in ("X", "y") if name in file.files]
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in here}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise Mistake(f"{source}: {error}") from None
    return _from_arrays(source, arrays)


def _from_arrays(
    source: str, arrays: dict[str, NDArray[Any]], is_target_needed: bool = False
) -> Table:
    """X (N, d), and y of (N,) or (N, C) if there is one."""
    X = arrays["X"]
    if X.ndim != 2 or X.size == 0 or X.dtype.kind not in "fiub":
        raise Mistake(f"{source}: X must be (N, d) of numbers, got {X.shape} of {X.dtype}")
    columns: list[NDArray[Any]] = list(np.asarray(X, np.float64).T)
    names = [f"x{k}" for k in range(X.shape[1])]
    targets: list[str] = []
    if "y" in arrays:
        y = arrays["y"]
        if y.ndim not in (1, 2) or len(y) != len(X) or y.size == 0 or y.dtype.kind not in "fiubU":
            raise Mistake(
                f"{source}: y must be (N,) or (N, C) of numbers or words with N = {len(X)}, "
                f"got {y.shape} of {y.dtype}"
            )
        block = y[:, None] if y.ndim == 1 else y
        targets = ["y"] if block.shape[1] == 1 else [f"y{k}" for k in range(block.shape[1])]
        columns += list(block.astype(object if y.dtype.kind == "U" else np.float64).T)
    rows = np.arange(1, len(X) + 1)
    return Table(source, names + targets, columns, rows, "row", False, tuple(targets))


def _from_parquet(source: str) -> Table:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise Mistake(f"{source}: reading .parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise Mistake(f"{source}: {str(error).splitlines()[0]}") from None
    if not table.num_rows or not table.num_columns:
        raise Mistake(f"{source}: {table.num_rows} rows of {table.num_columns} columns")
    columns = [
        _arrow_column(pyarrow, source, name, table.column(place))
        for place, name in enumerate(table.column_names)
    ]
    names = list(map(str, table.column_names))
    _check_header(source, names)
    return Table(source, names, columns, np.arange(1, table.num_rows + 1))


def _arrow_column(pyarrow: Any, source: str, name: str, column: Any) -> NDArray[Any]:
    kinds = pyarrow.types
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kinds.is_boolean(column.type):
        column = column.cast(pyarrow.int8())
    kind = column.type
    is_number = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
    if is_number or kinds.is_null(kind):
        numbers = column.cast(pyarrow.float64(), safe=False).to_numpy()
        return np.asarray(numbers, np.float64)
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return np.array(["" if word is None else word for word in column.to_pylist()], object)
    raise Mistake(f"{source}: column {name!r} is of type {kind}; wanted numbers or words")
