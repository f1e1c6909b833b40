"""Training from the command line: `natgrad-fast train`."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io import Checkpoint, save
from ..losses import as_loss
from ..model.mlp import MLP
from ..solvers import CG, Dense, Kronecker, SampleSpace, StepSolver
from ..training.damping import DampingPolicy, LevenbergMarquardt
from ..training.history import History
from ..training.optimizer import NaturalGradient
from .data import CLASSES, SCALED, Scale, choose, fingerprint, inputs, targets
from .live import Best, Live, Records
from .mistake import Mistake
from .report import report
from .run import FIGURE, MODEL, REPORT, SETTINGS, Options, Run, write_whole
from .table import STDIN, read_table

__all__ = ["run_train"]

INTERRUPTED = 130  # exit code of a shell command ended by Ctrl-C
CHECKPOINT_SECONDS = 20.0
WITHOUT_LIMIT = 10**9  # epochs
SOLVERS: dict[str, Any] = {
    "auto": lambda: "auto",
    "cg": CG,
    "dense": Dense,
    "kfac": Kronecker,
    "ekfac": lambda: Kronecker(kind="ekfac"),
    "sample-space": SampleSpace,
}
PRESETS = ("hf", "kfac", "trainlm")


@dataclass(frozen=True)
class Split:
    """Cases to train on and to validate with, as they are in the data."""

    x: NDArray[np.float64]
    y: NDArray[Any]
    x_check: NDArray[np.float64]
    y_check: NDArray[Any]


def run_train(args: argparse.Namespace) -> int:
    """Train, or go on with a training; the exit code.

    Raises
    ------
    Mistake
        For arguments or data that a training can not be made with; nothing has been written then.
    """
    if args.resume is None:
        run, split = _begin(args)
        net, optimizer = _make(run, args.threads)
        run.folder.mkdir(parents=True, exist_ok=True)
        save(run.path(MODEL), net, optimizer)
    else:
        run, split = _go_on(args)
        net, optimizer = run.load(args.threads)
        state: Any = optimizer.state_dict()
        is_over = state["fit"] is None and state["step"] > 0
        if is_over and args.epochs is None:
            words = run.stop_reason.replace("_", " ") or "epochs"
            _say(f"{run.folder}: the training has ended ({words}); --epochs N goes further")
            return 0
        run.keep_records(state["step"])
        _set_epochs(run, args, is_over)
    run.stop_reason = ""
    run.write()
    history = _fit(run, split, net, optimizer, args)
    run.stop_reason = history.stop_reason
    run.write()
    _finish(run, split, net, history)
    return INTERRUPTED if history.stop_reason == "interrupted" else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _begin(args: argparse.Namespace) -> tuple[Run, Split]:
    """A new run; only its folder's place is looked at."""
    if args.data is None:
        raise Mistake("DATA is missing: a file, a known data set, or - for standard input")
    options = Options(
        data=args.data,
        targets=args.target or [],
        drop=args.drop or [],
        delimiter=args.delimiter,
        **{name: _given(args, name) for name in DEFAULTS},
    )
    folder = _folder(args.out, options.data)
    table = read_table(options.data, options.delimiter)
    columns = choose(table, options.targets, options.drop, args.loss)
    x, y = inputs(table, columns.features, columns.is_named), targets(table, columns)
    split = _split(x, y, options)
    is_scaled = options.scale and columns.loss in SCALED
    run = Run(
        folder,
        options,
        columns,
        Scale.of(split.x) if options.scale else Scale.none(x.shape[1]),
        Scale.of(split.y) if is_scaled else Scale.none(len(columns.targets)),
        fingerprint({"X": x, "y": y}),
        _epochs(args),
    )
    names = ", ".join(map(repr, columns.targets))
    _say(f"{table.source}: {len(x)} rows, {x.shape[1]} inputs, target {names}")
    _say(f"loss {columns.loss}: {columns.why}")
    return run, split


DEFAULTS: dict[str, Any] = {
    "net": [64, 32],
    "activation": "tanh",
    "solver": "auto",
    "damping": "auto",
    "l2": 1e-4,
    "batch_size": "auto",
    "validation": 0.2,
    "seed": 0,
    "scale": True,
    "dtype": "float32",
}


def _given(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    return DEFAULTS[name] if value is None else value


def _epochs(args: argparse.Namespace) -> int:
    if args.epochs is not None:
        return int(args.epochs)
    return 100 if args.time_limit is None else WITHOUT_LIMIT


def _folder(out: str | None, data: str) -> Path:
    """Where the run is kept; a name that is free where none is given."""
    if out is None:
        stem = "stdin" if data == STDIN else Path(data).stem
        names = [f"{stem}-run", *(f"{stem}-run-{k}" for k in range(2, 10_000))]
        return next(Path(name) for name in names if not Path(name).exists())
    folder = Path(out)
    if (folder / SETTINGS).exists():
        raise Mistake(f"{out!r} holds a run: go on with it by --resume {out}, or name another")
    if folder.exists() and not folder.is_dir():
        raise Mistake(f"--out {out!r} is no folder")
    return folder


def _split(x: NDArray[np.float64], y: NDArray[Any], options: Options) -> Split:
    """Draw the validation's cases; the others keep their order."""
    count = round(options.validation * len(x))
    if options.validation > 0.0:
        count = max(count, 1)
    if len(x) - count < 1:
        raise Mistake(f"{len(x)} rows are too few for --validation {options.validation:g}")
    order = np.random.default_rng(options.seed).permutation(len(x))
    check, rest = np.sort(order[:count]), np.sort(order[count:])
    return Split(x[rest], y[rest], x[check], y[check])


def _make(run: Run, num_threads: int | None) -> tuple[MLP, NaturalGradient]:
    options, loss = run.options, as_loss(run.columns.loss)
    num_outputs = len(run.columns.targets)
    if run.columns.loss == CLASSES:
        num_outputs = len(run.columns.classes or ())
    elif run.columns.loss == "gaussian_mean_variance":
        num_outputs *= 2
    sizes = [len(run.columns.features), *options.net, num_outputs]
    activation: Any = options.activation
    try:
        net = MLP(sizes, activation, dtype=options.dtype, seed=options.seed)
        solver: StepSolver | Any = SOLVERS[options.solver]()
        optimizer = NaturalGradient(
            net,
            loss,
            solver=solver,
            damping=_damping(options.damping),
            l2=options.l2,
            seed=options.seed,
            num_threads=num_threads,
        )
    except (ValueError, TypeError, MemoryError) as error:
        raise Mistake(str(error)) from None
    return net, optimizer


def _damping(text: str) -> DampingPolicy | float | Any:
    if text in PRESETS:
        preset: Any = text
        return LevenbergMarquardt(preset=preset)
    return "auto" if text == "auto" else float(text)


def _go_on(args: argparse.Namespace) -> tuple[Run, Split]:
    """A run that was left, with the same data."""
    run = Run.read(args.resume)
    fixed = [*DEFAULTS, "loss", "target", "drop", "delimiter", "out"]
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(args, name) is not None]
    if given:
        raise Mistake(
            f"{', '.join(given)}: fixed by the run that is resumed; with --resume only DATA, "
            "--epochs, --time-limit, --patience and --threads can be given"
        )
    source = args.data or run.options.data
    if source == STDIN and args.data is None:
        raise Mistake("the run was trained on standard input: give DATA again (- or a file)")
    table = read_table(source, run.options.delimiter)
    columns = choose(table, run.columns.targets, run.options.drop, run.columns.loss)
    x = inputs(table, run.columns.features, run.columns.is_named)
    y = targets(table, columns)
    if fingerprint({"X": x, "y": y}) != run.fingerprint or columns.classes != run.columns.classes:
        raise Mistake(f"{source}: not the data that {run.folder} was trained on")
    return run, _split(x, y, run.options)


def _set_epochs(run: Run, args: argparse.Namespace, is_over: bool) -> None:
    """Epochs of the whole; a fit that has ended is followed by another one."""
    wanted = run.epochs if args.epochs is None else args.epochs
    if is_over:
        records = run.records()
        run.epochs_before = int(records[-1]["epoch"]) + 1 if records else 0
    if wanted <= run.epochs_before:
        raise Mistake(f"{run.folder}: {run.epochs_before} epochs are done, --epochs {wanted}")
    run.epochs = wanted


def _fit(
    run: Run, split: Split, net: MLP, optimizer: NaturalGradient, args: argparse.Namespace
) -> History:
    """Train; warnings become lines."""
    scale, to = run.inputs, run.targets
    is_numbers = split.y.ndim == 2
    x, x_check = (scale.apply(part).astype(net.dtype) for part in (split.x, split.x_check))
    y, y_check = (to.apply(p) if is_numbers else p for p in (split.y, split.y_check))
    batch_size: Any = run.options.batch_size
    live = Live(sys.stderr, run.epochs, run.epochs_before, args.time_limit)
    callbacks: list[Any] = [Records(run)]
    if len(x_check):
        callbacks.append(Best(run, args.patience))
    checkpoint = Checkpoint(run.path(MODEL), every_seconds=CHECKPOINT_SECONDS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = optimizer.fit(
                x,
                y,
                epochs=run.epochs - run.epochs_before,
                batch_size=None if batch_size == "all" else batch_size,
                validation=(x_check, y_check) if len(x_check) else None,
                callbacks=[*callbacks, live, checkpoint],
                time_limit=args.time_limit,
                resume=True,
            )
        except ValueError as error:
            raise Mistake(str(error)) from error
    for text in dict.fromkeys(str(one.message) for one in caught):
        _say(f"warning: {text}")
    return history


def _finish(run: Run, split: Split, net: MLP, history: History) -> None:
    """Figure and report."""
    if run.records():
        try:
            run.draw()
        except ImportError:
            _say(f"no {FIGURE}: pip install 'natgrad_fast[plots]'")
    text = report(run, (split.x, split.y), (split.x_check, split.y_check), history)
    write_whole(run.path(REPORT), text)
    print(text, end="", flush=True)
