"""Arguments of `natgrad-fast train` and `natgrad-fast predict`."""

from __future__ import annotations

import argparse
import math
from typing import Any

from .. import _core
from .._arrays import as_name
from ..losses import as_loss

__all__ = ["add_predict", "add_train", "positive", "seed"]

CODES = """exit codes:
  0    done
  1    a file could not be written, or something is missing in the installation
  2    wrong arguments or data; standard error says what, with file, column and row
  130  interrupted by Ctrl-C; the training is saved, and --resume goes on with it
  141  what read the output has gone away"""
DATA = """DATA: a data set that is known by name (digits, breast_cancer, diabetes, sinc, mnist5k),
a file .csv (first line: names of columns), .npz (arrays X and y) or .parquet, or - for CSV from
standard input."""
SOLVERS = ("auto", "cg", "dense", "kfac", "ekfac", "sample-space")
PRESETS = ("hf", "kfac", "trainlm")
Raw = argparse.RawDescriptionHelpFormatter


def add_train(commands: Any, run: Any) -> None:
    """The parser of `train`; options of the run are None where they are not given."""
    train = commands.add_parser(
        "train",
        help="train a net on a table, and keep it in a folder",
        description="Train a net on a table. " + DATA,
        epilog=EPILOG + CODES,
        formatter_class=Raw,
    )
    add = train.add_argument
    add("data", metavar="DATA", nargs="?", help="see above; not needed with --resume")
    add("--target", metavar="COL", action="append",
        help="column to predict, more than once for several (default: target, y, label or class, "
             "else the last one)")  # fmt: skip
    add("--drop", metavar="COL", action="append", help="column to leave out")
    add("--delimiter", metavar="CHAR", help="of CSV (default: the one that splits the first line)")
    add("--out", metavar="DIR", help="folder of the run (default: DATA-run)")
    add("--resume", metavar="RUN", help="go on with a run where it was left, with the same bits")
    model = train.add_argument_group("net and training (fixed when a run is resumed)")
    add = model.add_argument
    add("--net", metavar="WIDTHS", type=widths,
        help='of hidden layers, as 64,32 (the default); "none" for a linear model')  # fmt: skip
    add("--activation", metavar="NAME", type=activation, help="of hidden layers (default: tanh)")
    add("--loss", metavar="NAME", type=loss,
        help=f"{', '.join(_core.loss_names)} (default: picked from the target)")  # fmt: skip
    add("--solver", choices=SOLVERS, help="default: auto")
    add("--damping", metavar="D", type=damping,
        help=f"auto (the default), a number, or a preset: {', '.join(PRESETS)}")  # fmt: skip
    add("--l2", metavar="A", type=not_negative, help="weight decay (default: 1e-4)")
    add("--batch-size", metavar="B", type=batch_size, help="auto (the default), all, or a number")
    add("--validation", metavar="SHARE", type=share,
        help="of the rows, drawn by --seed (default: 0.2; 0: none)")  # fmt: skip
    add("--seed", metavar="S", type=seed, help="of weights, split and batches (default: 0)")
    add("--scale", action=argparse.BooleanOptionalAction,
        help="standardise inputs, and targets that are numbers (default: yes)")  # fmt: skip
    add("--dtype", choices=("float32", "float64"), help="default: float32")
    limits = train.add_argument_group("when to stop")
    add = limits.add_argument
    add("--epochs", metavar="N", type=positive,
        help="of the whole run (default: 100, without bound with --time-limit)")  # fmt: skip
    add("--time-limit", metavar="SECONDS", type=above_zero, help="of this call")
    add("--patience", metavar="N", type=positive,
        help="epochs without a better validation loss (default: no end)")  # fmt: skip
    add("--threads", metavar="T", type=positive, help="default: all; any number gives the same net")
    train.set_defaults(run=run)


EPILOG = """RUN holds model.safetensors (net and optimizer), best.safetensors (the net of the best
validation loss, which predict uses), run.json (options, scales), log.jsonl (a line for every step),
curves.png and report.md. The report goes to standard output, everything else to standard error.

"""


def add_predict(commands: Any, run: Any) -> None:
    """The parser of `predict`."""
    predict = commands.add_parser(
        "predict",
        help="predict the rows of a table by a net of `train`",
        description="Predict the rows of a table, as CSV. " + DATA + "\nColumns are found by name; "
        "others, such as the target, are passed over.",
        epilog=CODES,
        formatter_class=Raw,
    )
    add = predict.add_argument
    add("run_folder", metavar="RUN", help="folder that train has written")
    add("data", metavar="DATA")
    add("--output", metavar="FILE", help="default: - (standard output)")
    add("--proba", action="store_true", help="probabilities of all classes")
    add("--delimiter", metavar="CHAR", help="of CSV (default: the one that splits the first line)")
    predict.set_defaults(run=run)


def widths(text: str) -> list[int]:
    """Parse widths of hidden layers."""
    if text.strip().lower() in ("", "none"):
        return []
    return [positive(part.strip()) for part in text.split(",")]


def activation(text: str) -> str:
    """Parse the name of an activation."""
    try:
        return as_name(text, "activation", _core.activation_names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def loss(text: str) -> str:
    """Parse the name of a loss."""
    try:
        given: Any = text
        return as_loss(given).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def damping(text: str) -> str:
    """Parse a damping: it is kept as it is written."""
    if text not in ("auto", *PRESETS):
        not_negative(text)
    return text


def batch_size(text: str) -> int | str:
    """Parse a number of cases, "auto" or "all"."""
    return text if text in ("auto", "all") else positive(text)


def number(text: str, wanted: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
    return value


def not_negative(text: str) -> float:
    """Parse a number >= 0."""
    value = number(text, wanted := "a number >= 0")
    if value < 0.0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted {wanted}")
    return value


def above_zero(text: str) -> float:
    """Parse a number > 0."""
    value = number(text, wanted := "a number > 0")
    if value <= 0.0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted {wanted}")
    return value


def share(text: str) -> float:
    """Parse a number in [0, 1)."""
    value = number(text, wanted := "a share >= 0 and < 1")
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"got {text}, wanted {wanted}")
    return value


def positive(text: str) -> int:
    """Parse a count of at least 1."""
    return as_int(text, 1, None)


def seed(text: str) -> int:
    """Parse a seed that NumPy's and scikit-learn's generators take."""
    return as_int(text, 0, 2**32 - 1)


def as_int(text: str, low: int, high: int | None) -> int:
    """Parse an integer within bounds; argparse prints the error."""
    wanted = f"wanted an integer >= {low}" + ("" if high is None else f" and <= {high}")
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, {wanted}") from None
    if value < low or (high is not None and value > high):
        raise argparse.ArgumentTypeError(f"got {value}, {wanted}")
    return value
