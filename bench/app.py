"""The benchmark as a program: measure, write, compare."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import comparison, machine, suites
from .options import parse
from .processes import WorkerError, jobs, messages, peak_bytes
from .progress import Progress
from .results import Result, Run, read_run
from .tables import markdown
from .timing import QUICK, Plan

INTERRUPTED = 130
# Peak memory is asked of these; a process for each row
WITH_MEMORY = suites.PRODUCTS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    args = parse(argv)
    started = time.monotonic()
    try:
        old = read_run(args.compare) if args.compare else None
        run = read_run(args.source) if args.source else measured(args)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not run.results:
        print("nothing was measured", file=sys.stderr)
        return INTERRUPTED if run.interrupted else 2
    changes = None if old is None else comparison.compare(old, run)
    report(run, changes, args)
    print(f"{len(run.results)} rows in {time.monotonic() - started:.0f} s")
    if run.interrupted:
        return INTERRUPTED
    for failure in run.failures:
        print(f"error: {failure}", file=sys.stderr)
    wrong = [result for result in run.results if not result.is_right]
    for result in wrong:
        print(f"WRONG: {result.row}: {result.record['errors']}", file=sys.stderr)
    worse = comparison.regressions(changes or [])
    for change in worse:
        print(f"regression: {change.row}: speed {change.quotient}", file=sys.stderr)
    return int(bool(wrong or worse or run.failures))


def measured(args: argparse.Namespace) -> Run:
    """Measure; what is there at Ctrl-C is kept."""
    run = Run(machine.facts())
    rows = suites.rows(
        args.suite,
        quick=args.quick,
        threads=args.threads,
        dtypes=args.dtype,
        cases=args.cases,
        quantities=args.quantities,
        vectors=args.vectors,
    )
    progress = Progress(sys.stderr)
    begins = progress.of(len(rows))
    try:
        for group in jobs(rows):
            run_job(run, group, plan(args), args.peers, begins)
        if not args.no_memory:
            measure_memory(run, args.quick, progress)
    except KeyboardInterrupt:
        run.interrupted = True
        progress.end()
        print("interrupted; writing what was measured", file=sys.stderr)
    progress.end()
    return run


def plan(args: argparse.Namespace) -> Plan:
    chosen = QUICK if args.quick else Plan()
    if args.rounds is None:
        return chosen
    return dataclasses.replace(chosen, min_rounds=args.rounds, max_rounds=args.rounds)


def run_job(
    run: Run,
    group: list[suites.Row],
    chosen: Plan,
    peers: Sequence[str],
    begins: Callable[[str], None],
) -> None:
    """Rows of one process; its facts go to the machine's."""
    key = f"{group[0].threads} threads, {group[0].dtype}"
    facts: dict[str, Any] = run.machine.setdefault("processes", {}).setdefault(key, {})
    try:
        for message in messages(group, chosen, peers):
            if "begins" in message:
                begins(message["begins"])
            elif "result" in message:
                run.add(message["result"])
            else:
                facts |= message
    except WorkerError as error:
        run.failures.append(str(error))


def measure_memory(run: Run, quick: bool, progress: Progress) -> None:
    asked = [result for result in run.results if has_memory(result, quick)]
    begins = progress.of(len(asked), "peak memory of ")
    for result in asked:
        begins(str(result.row))
        result.record["peak_bytes"] = peak_bytes(result.row)


def has_memory(result: Result, quick: bool) -> bool:
    """Quick runs ask for the products of the largest nets and batches only."""
    if result.row.quantity not in WITH_MEMORY:
        return False
    if not quick:
        return True
    large = result.num_cases >= 10_000 or result.record["net"]["num_params"] > 1e6
    return large and result.row.quantity == "ggn" and result.row.suite != "sweeps"


def report(run: Run, changes: list[comparison.Change] | None, args: argparse.Namespace) -> None:
    """Print the tables; write the files beside each other."""
    text = markdown(run, changes)
    print(text)
    written = []
    if args.source is None:
        run.write(args.output.with_suffix(".json"))
        written.append(".json")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    written.append(".md")
    try:
        from .page import page
    except ImportError as error:  # matplotlib is an extra
        print(f"no HTML page: {error}; pip install 'natgrad_fast[bench]'", file=sys.stderr)
    else:
        path = args.output.with_suffix(".html")
        path.write_text(page(run, changes), encoding="utf-8")
        written.append(".html")
    print(f"written: {os.path.abspath(args.output)}{{{','.join(written)}}}")
