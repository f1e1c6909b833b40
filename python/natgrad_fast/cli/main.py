"""Command line: ``natgrad-fast train``, ``predict``, ``demo``, ``info`` and ``bench``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..config import show_config
from .arguments import add_predict, add_train, positive, seed
from .mistake import Mistake

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
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as `head` leaves behind; Python writes once more when it ends
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """One subparser for each command; its `run` takes the arguments and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="natgrad-fast", description="Natural-gradient training of dense nets on CPUs."
    )
    parser.add_argument("--version", action="version", version=f"natgrad_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_train(commands, run_train)
    add_predict(commands, run_predict)
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


def run_train(args: argparse.Namespace) -> int:
    """`natgrad-fast train`."""
    from .train import run_train as run

    return run(args)


def run_predict(args: argparse.Namespace) -> int:
    """`natgrad-fast predict`."""
    from .predict import run_predict as run

    return run(args)


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
