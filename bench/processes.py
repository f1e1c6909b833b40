"""The parent's side of the worker processes: started on their CPUs, read line by line, stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from .machine import bound_to, thread_environment
from .suites import Row
from .timing import Plan

STOP_SECONDS = 10.0  # between two requests to stop, gentle first


class WorkerError(RuntimeError):
    """A worker ended before its rows did."""


def jobs(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that one process can measure, in a stable order; rows of one case are neighbours."""

    def process(row: Row) -> tuple[int, str]:
        return -row.threads, row.dtype

    return [list(group) for _, group in groupby(sorted(rows, key=process), key=process)]


def messages(rows: Sequence[Row], plan: Plan, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a worker says while it measures these rows; it is stopped if the reader leaves."""
    job = {"rows": [row.record() for row in rows], "plan": asdict(plan), "peers": list(peers)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        with start("worker", [str(path)], rows[0].threads) as worker:
            assert worker.stdout is not None
            try:
                for line in worker.stdout:
                    yield json.loads(line)
            finally:
                code = stop(worker)
    if code != 0:
        what = f"{rows[0].threads} threads, {rows[0].dtype}"
        raise WorkerError(
            f"the worker of {what} ended with exit code {code}; its last rows are lost"
        )


def peak_bytes(row: Row) -> int | None:
    """Peak memory of this library alone, in a process of its own."""
    with start("memory", [json.dumps(row.record())], row.threads) as process:
        try:
            output, _ = process.communicate()
        finally:
            stop(process)
    if process.returncode != 0:
        return None
    found = json.loads(output)["peak_bytes"]
    return None if found is None else int(found)


def start(module: str, arguments: list[str], threads: int) -> subprocess.Popen[str]:
    with bound_to(threads):
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", *arguments],
            stdout=subprocess.PIPE,
            env=thread_environment(threads),
            text=True,
        )


def stop(process: subprocess.Popen[str]) -> int:
    """End a process that may have ended by itself; its exit code."""
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.stdout is None or process.stdout.closed or process.poll() is not None:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)  # it said its last word and is about to leave
        process.send_signal(request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_SECONDS)
    return process.wait()
