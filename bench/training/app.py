"""`make bench-training`: runs, JSON, tables and a figure."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import machine
from . import contestants as who
from . import report
from .problems import BY_NAME, PROBLEMS, Problem

SEEDS, QUICK_SEEDS = 5, 2
WARM_UP = 0.5  # seconds


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="natgrad_fast.bench.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer problems, seeds and seconds")
    parser.add_argument(
        "--problems",
        nargs="+",
        choices=list(BY_NAME),
        metavar="NAME",
        help=f"of {', '.join(BY_NAME)}",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=list(who.BY_NAME),
        metavar="NAME",
        help=f"of {'; '.join(who.BY_NAME)}",
    )
    parser.add_argument("--seeds", type=int, help="runs of natgrad_fast, the worst is quoted")
    parser.add_argument("--seconds", type=float, help="of every run, in the place of the problem's")
    parser.add_argument("--threads", type=int, default=machine.num_cpus())
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results-training"), help="of .json, .md and .png"
    )
    parser.add_argument("--from", dest="source", type=Path, help="report of an earlier .json")
    return parser.parse_args(argv)  # fmt: skip


def one_run(job: dict[str, Any]) -> dict[str, Any]:
    """A training in a process of its own; what it measured."""
    warnings.simplefilter("ignore")
    problem, contestant = BY_NAME[job["problem"]], who.BY_NAME[job["contestant"]]
    try:
        data = problem.load()
        for module in contestant.imports:  # before the clock runs
            importlib.import_module(module)
        # What a process does once (threads, imports, compilation) is not training: a first run of
        # the same on other weights goes before.
        for seconds in (min(WARM_UP, job["seconds"]), job["seconds"]):
            net = problem.net(job["seed"])
            clock = who.Clock(problem, data, net, seconds)
            with contextlib.suppress(who.OutOfTime):
                contestant.run(
                    problem, data, net, clock, job["setting"], job["seed"], job["threads"]
                )
        return {**job, "points": clock.points}
    except Exception as error:
        return {**job, "points": [], "failure": f"{type(error).__name__}: {error}"}


def jobs(args: argparse.Namespace, problem: Problem) -> list[dict[str, Any]]:
    """Every contestant, setting and seed of a problem: peers are tuned on the first seed."""
    seeds = args.seeds or (QUICK_SEEDS if args.quick else SEEDS)
    quick = problem.quick_seconds if args.quick else None
    seconds = args.seconds or quick or problem.seconds
    found = []
    for contestant in who.CONTESTANTS:
        if args.contestants and contestant.name not in args.contestants:
            continue
        if not contestant.is_there or not contestant.takes(problem):
            continue
        settings = contestant.settings
        if args.quick and len(settings) > 2:
            settings = settings[1:3]
        for setting in settings:
            for seed in range(seeds if contestant.name == who.OURS else 1):
                found.append(
                    {"problem": problem.name, "contestant": contestant.name, "setting": setting,
                     "seed": seed, "seconds": seconds, "threads": args.threads}
                )  # fmt: skip
    return found


@contextlib.contextmanager
def inherited(variables: dict[str, str]) -> Iterator[None]:
    """Within it, processes are started with this environment."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All runs, one after the other."""
    named = [BY_NAME[name] for name in args.problems] if args.problems else PROBLEMS
    chosen = [p for p in named if args.problems or not args.quick or p.quick_seconds]
    result: dict[str, Any] = {
        "facts": machine.facts(),
        "threads": args.threads,
        "problems": [],
        "runs": [],
        "missing": [c.name for c in who.CONTESTANTS if not c.is_there],
    }
    context = multiprocessing.get_context("spawn")
    for problem in chosen:
        planned = jobs(args, problem)
        kept = []
        for job in planned:
            start = time.perf_counter()
            with inherited(machine.thread_environment(args.threads)), context.Pool(1) as pool:
                run = pool.apply(one_run, (job,))
            took = time.perf_counter() - start
            last = run["points"][-1] if run["points"] else (math.nan, math.nan)
            print(
                f"{problem.name:14s} {job['contestant']:24s} {job['setting'] or '':>7} "
                f"seed {job['seed']}: {last[1]:.3g} after {last[0]:.2f} s ({took:.0f} s in all) "
                f"{run.get('failure', '')}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            if run["points"]:
                kept.append(run)
        if kept:
            what = f"{'-'.join(map(str, problem.sizes))}, {problem.loss}, l2 {problem.l2:g}"
            result["problems"].append(
                {"name": problem.name, "what": what, "goal": problem.goal,
                 "seconds": planned[0]["seconds"]}
            )  # fmt: skip
            result["runs"] += kept
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and write the report; the exit code."""
    args = arguments(argv)
    if args.source is not None:
        result = json.loads(args.source.read_text())
    else:
        result = measure(args)
        args.output.with_suffix(".json").write_text(json.dumps(result, indent=1))
    text = report.markdown(result)
    args.output.with_suffix(".md").write_text(text)
    print(text)
    try:
        report.figure(result, args.output.with_suffix(".png"))
    except ImportError:
        print("no figure: pip install matplotlib", file=sys.stderr)
    return 0
