"""Check, then time: interleaved rounds, paired ratios, machine facts.

A round times every contestant once, in random order, so that a slow spell of the machine falls on
all of them; only the median of the ratios *within* rounds is compared.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Worker threads of OpenBLAS spin for tens of milliseconds after a product; the next contestant
# must not share the cores with them.
SETTLE_SECONDS = 0.05
LONG_SECONDS = 0.1  # calls longer than this are not repeated within a sample, nor warmed up for it
BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_LEVEL = 0.95


@dataclass(frozen=True)
class Plan:
    """How long to measure: at least `min_rounds`, then until `max_rounds` or `budget` seconds."""

    min_rounds: int = 15
    max_rounds: int = 41
    budget: float = 15.0
    sample_seconds: float = 0.005


QUICK = Plan(max_rounds=15, budget=0.0, sample_seconds=0.003)


@dataclass(frozen=True)
class Interval:
    """A median and the bootstrap interval around it."""

    median: float
    low: float
    high: float


def relative_error(got: Any, want: np.ndarray) -> float:
    """|got - want| / |want| in float64; Inf for a wrong shape."""
    got = np.asarray(got)
    if got.shape != want.shape:
        return np.inf
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def measure(
    runs: Mapping[str, Callable[[], Any]],
    plan: Plan,
    peak: Callable[[], float] | None = None,
    seed: int = 0,
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds per call of every contestant, round by round, and the FMA peak of every round."""
    repeats = {}
    for name, run in runs.items():
        run()  # compilation, first touch of memory
        repeats[name] = max(1, round(plan.sample_seconds / max(timed(run, 1), 1e-7)))
    order, shuffle = list(runs), random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    peaks: list[float] = []
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(plan.max_rounds):
            if done >= plan.min_rounds and time.perf_counter() - start > plan.budget:
                break
            shuffle(order)
            for name in order:
                time.sleep(SETTLE_SECONDS)
                if not samples[name] or samples[name][-1] < LONG_SECONDS:
                    runs[name]()  # threads awake, caches warm
                samples[name].append(timed(runs[name], repeats[name]))
            if peak is not None:
                time.sleep(SETTLE_SECONDS)
                peaks.append(peak())
    finally:
        gc.enable()
    return samples, peaks


def median_interval(values: Any, seed: int = 0) -> Interval:
    """Median with a percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).choice(values, (BOOTSTRAP_SAMPLES, values.size))
    tail = 50 * (1 - BOOTSTRAP_LEVEL)
    low, high = np.percentile(np.median(draws, axis=1), [tail, 100 - tail])
    return Interval(float(np.median(values)), float(low), float(high))


def ratio(other: list[float], ours: list[float]) -> Interval:
    """How many times faster we are, from paired rounds."""
    return median_interval(np.asarray(other) / np.asarray(ours))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """An aligned table; the first two columns are text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "| " + " | ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in pairs) + " |"

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def machine_facts(num_threads: int) -> dict[str, Any]:
    """What a reader of the numbers needs to know about where they come from."""
    import natgrad_fast as ng

    facts = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "num_threads": num_threads,
        "platform": platform.platform(),
        "packages": {name: version(name) for name in ("numpy", "jax", "jaxlib")},
        "natgrad_fast": ng.show_config(),
    }
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return facts
    return facts | {
        "thread_pools": [
            {key: pool.get(key) for key in ("internal_api", "version", "num_threads")}
            for pool in threadpool_info()
        ]
    }


def cpu_model() -> str:
    for line in (read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
