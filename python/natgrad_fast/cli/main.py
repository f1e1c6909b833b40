"""Command line: ``natgrad-fast demo``, ``natgrad-fast info``, ``natgrad-fast bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..config import show_config

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `natgrad-fast`.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words[:1] == ["bench"]:  # has a parser of its own
            from ..bench.app import main as bench

            return int(bench(words[1:]))
        args = build_parser().parse_args(words)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """One subparser for each command; its `run` takes the arguments and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="natgrad-fast", description="Natural-gradient training of dense nets on CPUs."
    )
    parser.add_argument("--version", action="version", version=f"natgrad_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="fit a function and classify handwritten digits, beside Adam"
    )
    demo.add_argument(
        "--output", metavar="PNG", default="natgrad_fast_demo.png", help="default: %(default)s"
    )
    demo.add_argument(
        "--epochs",
        metavar="N",
        type=positive,
        default=60,
        help="steps on digits (default: %(default)s)",
    )
    demo.add_argument(
        "--seed", metavar="S", type=seed, default=0, help="of data and weights (default: 0)"
    )
    demo.add_argument(
        "--threads", metavar="T", type=positive, help="for all trainings (default: all)"
    )
    demo.set_defaults(run=run_demo)

    info = commands.add_parser("info", help="versions, build flags, instruction set, threads")
    info.set_defaults(run=run_info)
    commands.add_parser("bench", help="benchmarks beside numpy and what peers are installed")
    return parser


def run_demo(args: argparse.Namespace) -> int:
    """`natgrad-fast demo`."""
    from .demo import run_demo as run

    return run(args.output, epochs=args.epochs, seed=args.seed, num_threads=args.threads)


def run_info(args: argparse.Namespace) -> int:
    """`natgrad-fast info`."""
    facts: dict[str, Any] = {
        **show_config(),
        "cpus": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        text = ", ".join(fact) if isinstance(fact, tuple) else fact
        print(f"{name:{width}s}  {text}")
    return 0


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
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, {wanted}") from None
    if number < low or (high is not None and number > high):
        raise argparse.ArgumentTypeError(f"got {number}, {wanted}")
    return number
