"""Predictions from the command line: `natgrad-fast predict`."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from .data import inputs
from .mistake import Mistake
from .quality import predict
from .run import Run
from .table import STDIN, read_table

__all__ = ["run_predict"]


def run_predict(args: argparse.Namespace) -> int:
    """Predict the rows of a table, in their order, and write CSV; the exit code."""
    run = Run.read(args.run_folder)
    if args.proba and run.columns.classes is None:
        raise Mistake(f"--proba: {run.folder} predicts numbers, not classes")
    net = run.load_best()
    table = read_table(args.data, args.delimiter)
    x = inputs(table, run.columns.features, run.columns.is_named)
    try:
        guess = predict(run, net, x)
    except ValueError as error:
        raise Mistake(f"{table.source}: {error}") from None
    header, rows = _cells(run, guess, args.proba)
    if args.output in (None, STDIN):
        _write(sys.stdout, header, rows)
        sys.stdout.flush()
        return 0
    path = Path(args.output)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            _write(file, header, rows)
        os.replace(part, path)
    except OSError as error:
        raise Mistake(f"--output {args.output}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"{len(x)} predictions: {path}", file=sys.stderr)
    return 0


def _write(file: TextIO, header: list[str], rows: Iterator[list[object]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def _cells(run: Run, guess: NDArray[Any], proba: bool) -> tuple[list[str], Iterator[list[object]]]:
    """Names of columns, and rows of text."""
    classes = run.columns.classes
    digits = ".17g" if guess.dtype == np.float64 and run.options.dtype == "float64" else ".9g"
    if classes is None or proba:
        names = run.columns.targets if classes is None else [f"p_{name}" for name in classes]
        return list(names), ([format(float(v), digits) for v in row] for row in guess)
    return list(run.columns.targets), ([classes[k]] for k in guess.argmax(axis=1))
