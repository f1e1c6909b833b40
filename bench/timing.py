"""Interleaved rounds.

A round times every contestant once, in random order, so that a slow spell of the machine falls on
all of them; only the median of the ratios *within* rounds is compared.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FEWEST_ROUNDS = 5  # however long they take
PATIENCE = 4  # budgets, after which no more than the fewest rounds are waited for


@dataclass(frozen=True)
class Plan:
    """How long to measure: `min_rounds`, then until `max_rounds` or `budget` seconds of a row."""

    min_rounds: int = 15
    max_rounds: int = 41
    budget: float = 10.0
    sample_seconds: float = 0.005
    # Threads spin for a while after a call; the next contestant must not share the cores with them.
    settle_seconds: float = 0.03
    long_seconds: float = 0.1  # of calls that need no untimed one before them
    longest_seconds: float = 20.0  # of a call; what takes longer is not timed

    def is_over(self, rounds: int, seconds: float) -> bool:
        if rounds >= self.max_rounds:
            return True
        if seconds > PATIENCE * self.budget:
            return rounds >= min(FEWEST_ROUNDS, self.min_rounds)
        return rounds >= self.min_rounds and seconds > self.budget


QUICK = Plan(
    min_rounds=7,
    max_rounds=11,
    budget=0.6,
    sample_seconds=0.002,
    settle_seconds=0.01,
    long_seconds=0.02,
    longest_seconds=2.0,
)


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
    """Seconds per call of every contestant, round by round, and the FMA peak of every round.

    The contestants have been called before: nothing is compiled here.
    """
    repeats = {
        name: max(1, round(plan.sample_seconds / max(timed(run, 1), 1e-7)))
        for name, run in runs.items()
    }
    order, shuffle = list(runs), random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    peaks: list[float] = []
    if not runs:
        return samples, peaks
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        rounds = 0
        while not plan.is_over(rounds, time.perf_counter() - start):
            shuffle(order)
            for name in order:
                time.sleep(plan.settle_seconds)
                if not samples[name] or samples[name][-1] < plan.long_seconds:
                    runs[name]()  # threads awake, caches warm
                samples[name].append(timed(runs[name], repeats[name]))
            if peak is not None:
                time.sleep(plan.settle_seconds)
                peaks.append(peak())
            rounds += 1
    finally:
        gc.enable()
    return samples, peaks
