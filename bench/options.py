"""Arguments of `natgrad-fast bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .cases import NAMED, find
from .machine import num_cpus
from .peers import PEERS, installed
from .suites import DTYPES, SUITES
from .tasks import QUANTITIES

EPILOG = """Results go to --output: NAME.json (raw samples, machine facts), NAME.md and NAME.html.
The exit code is 1 if an answer of natgrad_fast was wrong, or if --compare found a regression."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="natgrad-fast bench",
        description="natgrad_fast beside its peers: checked, then timed in interleaved rounds.",
        epilog=EPILOG,
    )
    known = "; ".join(f"{name}: {text}" for name, text in SUITES.items())
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: two minutes")
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), metavar="NAME",
                        help=f"default: all. {known}")  # fmt: skip
    parser.add_argument("--cases", nargs="+", type=case_name, metavar="NAME",
                        help=f"{', '.join(NAMED)}; and of the sweeps, e.g. width-256")  # fmt: skip
    parser.add_argument("--quantities", nargs="+", choices=list(QUANTITIES), metavar="NAME",
                        help=", ".join(QUANTITIES))  # fmt: skip
    parser.add_argument("--vectors", nargs="+", type=count, metavar="K",
                        help="only rows with so many vectors at once")  # fmt: skip
    parser.add_argument("--threads", nargs="+", type=count, metavar="T",
                        help="for every contestant (default: 1 and all CPUs)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), metavar="NAME",
                        help=f"of {', '.join(PEERS)}; default: all that are installed")  # fmt: skip
    parser.add_argument("--rounds", type=count, metavar="R", help="exactly so many in each row")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), metavar="NAME",
                        help="of the files, without suffix (default: %(default)s)")  # fmt: skip
    parser.add_argument("--from", dest="source", type=Path, metavar="RUN.json",
                        help="measure nothing: report on this run")  # fmt: skip
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="with an earlier run")
    args = parser.parse_args(argv)
    most = num_cpus()
    if args.threads is not None and max(args.threads) > most:
        parser.error(f"--threads: got {max(args.threads)}, this process has {most} CPUs")
    args.threads = sorted(set(args.threads or (1, most)))
    args.suite = args.suite or list(SUITES)
    here = installed()
    absent = [name for name in args.peers or () if name not in here]
    if absent:
        parser.error(f"--peers: not installed: {', '.join(absent)}")
    args.peers = here if args.peers is None else args.peers
    for path in (args.source, args.compare):
        if path is not None and not path.is_file():
            parser.error(f"no such file: {path}")
    return args


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted an integer >= 1")
    return number


def case_name(text: str) -> str:
    try:
        find(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
