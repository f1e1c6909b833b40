"""One row: set up every contestant, check its answer, time those that are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import counts
from .cases import Case, Data, find
from .checks import Check, iterations
from .machine import peak_meter
from .numpy_peer import Numpy
from .peers import contestants
from .suites import Row
from .tasks import Entry, Task
from .timing import Plan, measure

SLOW = "too slow"
NEEDS_DRAWS = ("mc_fisher", "kfac_update", "kfac_refresh", "kfac_apply")


class Rounds:
    """Rows of one process; contestants and data of the last case are kept for the next row."""

    def __init__(self, plan: Plan, peers: list[str]) -> None:
        self.plan, self.peers = plan, peers
        self.key: tuple[str, str] | None = None
        self.data: Data
        self.everyone: dict[str, Any] = {}
        self.absent: dict[str, str] = {}

    def run(self, row: Row) -> dict[str, Any]:
        """The record of a row that goes into the JSON file."""
        case = find(row.case)
        if self.key != (row.case, row.dtype):
            self.everyone = {}  # frees memory before more is taken
            self.data = case.data(row.dtype)
            self.everyone, self.absent = contestants(case, self.data, self.peers, row.threads)
            self.key = (row.case, row.dtype)
        task = self.task(case, row)
        entries = offered(self.everyone, task)
        checked = verify(entries, Check(task, row.dtype), self.plan.longest_seconds)
        peak = peak_meter(row.threads, row.dtype)
        runs = {name: entries[name].run for name in checked["right"]}
        samples, peaks = measure(runs, self.plan, peak)
        itemsize = self.data.params.itemsize
        shape = (case.sizes, case.batch, row.quantity, row.num_vectors)
        return {
            **row.record(),
            "net": case.record(),
            "flops": counts.flops(*shape),
            "bytes": counts.bytes_moved(*shape, itemsize),
            "errors": checked["errors"],
            "allowed": checked["allowed"],
            "iterations": checked["iterations"],
            "notes": {**self.absent, **checked["notes"]},
            "first_seconds": checked["first_seconds"],
            "seconds": samples,
            "peak_gflops": peaks,
        }

    def task(self, case: Case, row: Row) -> Task:
        """Vectors and draws, the same for every contestant."""
        own, outputs = self.everyone["natgrad_fast"], case.batch * case.sizes[-1]
        data, k = self.data, row.num_vectors
        if row.quantity == "solve":
            at = Numpy(case, data.as_float64()).linearize()
            v = at.mean(at.pull(at.residual())).astype(row.dtype)
        else:
            v = data.vectors(case.num_params, k)
        u = (
            data.vectors(outputs, k)
            if row.quantity == "vjp"
            else np.zeros((1, *v.shape[1:]), v.dtype)
        )
        draws = own.draws() if row.quantity in NEEDS_DRAWS else None
        return Task(case, data, row.quantity, k, v, u, draws, row.rtol)


def offered(everyone: Mapping[str, Any], task: Task) -> dict[str, Callable[[], Entry] | Entry]:
    """Entries of the contestants that offer the quantity, made in turn."""
    entries: dict[str, Any] = {}
    for name, peer in everyone.items():
        method = getattr(peer, task.quantity, None)
        if method is None:
            continue
        made = method(task)
        entries |= made if isinstance(made, dict) else {name: made}
    return entries


def verify(
    entries: Mapping[str, Any], check: Check, longest_seconds: float = np.inf
) -> dict[str, Any]:
    """Errors of all answers, and who may be timed: who is right, and within the time there is."""
    found: dict[str, Any] = {
        "errors": {},
        "allowed": check.allowed,
        "iterations": {},
        "notes": {},
        "first_seconds": {},
        "right": [],
    }
    for name, entry in entries.items():
        try:
            start = time.perf_counter()
            entry.run()
            found["first_seconds"][name] = time.perf_counter() - start
            start = time.perf_counter()
            got = entry.answer()
            seconds = time.perf_counter() - start
        except (RuntimeError, NotImplementedError, MemoryError, TypeError, ValueError) as error:
            found["errors"][name] = float("inf")
            found["notes"][name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        error = found["errors"][name] = check.error(got)
        count = iterations(got)
        if count is not None:
            found["iterations"][name] = count
        if seconds > longest_seconds:
            found["notes"][name] = f"{SLOW}: {seconds:.1f} s a call, {longest_seconds:g} s at most"
        elif check.passes(error):
            found["right"].append(name)
    return found
