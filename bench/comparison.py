"""Two runs, row by row: regression, improvement or noise.

Times of two runs are not comparable, since clocks differ. A row is compared by yardsticks that
were measured in its rounds both times: the FMA peak, and peers of the same version. For each, the
quotient is our speed in its units, new over old, so that a slower clock divides out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import Interval, quotient
from .peers import NAME
from .results import Result, Run

MARGIN = 0.05  # smaller changes are placements of memory and code
LEVEL = 0.99  # of the intervals: a run has many rows
PEAK = "FMA peak"
# A round whose FMA peak is below this share of the run's best lost a core to others for a while.
# Products of several threads lose more by that than the peak does, so the round says nothing.
QUIET = 0.8
FEWEST_QUIET = 5
BUSY = "too few quiet rounds"
PACKAGE_OF = {"torch.func": "torch", "jax, kept": "jax", "curvlinops": "curvlinops-for-pytorch"}


@dataclass(frozen=True)
class Change:
    """What became of one row."""

    row: str
    verdict: str  # "regression", "improvement" or "noise"
    yardstick: str
    quotient: Interval  # speed, new over old
    milliseconds: tuple[float, float]  # old, new


def compare(old: Run, new: Run) -> list[Change]:
    """Rows that both runs measured and that have a common yardstick."""
    before = {result.key: result for result in old.results}
    changes = []
    for result in new.results:
        if result.key in before:
            pair = quiet(old, before[result.key]), quiet(new, result)
            change = compare_row(*pair, same_versions(old, new))
            if change is not None:
                changes.append(change)
    return changes


def same_versions(old: Run, new: Run) -> set[str]:
    """Packages that did not change between the runs."""
    versions = [run.machine.get("packages", {}) for run in (old, new)]
    return {name for name, version in versions[0].items() if version == versions[1].get(name)}


def quiet(run: Run, result: Result) -> Result:
    """A result without the rounds in which others took part of the machine."""
    row, peaks = result.row, np.asarray(result.record["peak_gflops"])
    if not peaks.size:
        return result
    best = max(
        max(other.record["peak_gflops"], default=0.0)
        for other in run.results
        if (other.row.threads, other.row.dtype) == (row.threads, row.dtype)
    )
    kept = np.flatnonzero(peaks >= QUIET * best)
    seconds = {name: np.asarray(s)[kept].tolist() for name, s in result.seconds.items()}
    return Result({**result.record, "seconds": seconds, "peak_gflops": peaks[kept].tolist()})


def compare_row(old: Result, new: Result, packages: set[str]) -> Change | None:
    """The narrowest interval decides, and no yardstick's median may contradict it."""
    rounds = [min(map(len, result.seconds.values()), default=0) for result in (old, new)]
    if min(rounds) < FEWEST_QUIET:
        nan = float("nan")
        return Change(str(new.row), "noise", BUSY, Interval(nan, nan, nan), (nan, nan))
    found = quotients(old, new, packages)
    if not found:
        return None
    name, sharpest = min(found.items(), key=lambda item: item[1].high / item[1].low)
    verdict = "noise"
    if sharpest.high < 1 - MARGIN and all(q.median < 1 for q in found.values()):
        verdict = "regression"
    elif sharpest.low > 1 / (1 - MARGIN) and all(q.median > 1 for q in found.values()):
        verdict = "improvement"
    times = old.milliseconds(), new.milliseconds()
    assert times[0] is not None
    assert times[1] is not None
    return Change(str(new.row), verdict, name, sharpest, (times[0], times[1]))


def quotients(old: Result, new: Result, packages: set[str]) -> dict[str, Interval]:
    """By yardstick: our speed in its units, new over old."""
    if NAME not in old.seconds or NAME not in new.seconds:
        return {}
    found: dict[str, Interval] = {}
    shares = old.peak_shares(), new.peak_shares()
    if shares[0] is not None and shares[1] is not None:
        found[PEAK] = quotient(shares[1], shares[0], LEVEL)
    for name in new.seconds:
        same = PACKAGE_OF.get(name, name) in packages
        if not name.startswith(NAME) and name in old.seconds and same:
            found[name] = quotient(slownesses(new, name), slownesses(old, name), LEVEL)
    return found


def slownesses(result: Result, name: str) -> Any:
    return np.asarray(result.seconds[name]) / np.asarray(result.seconds[NAME])


def regressions(changes: list[Change]) -> list[Change]:
    return [change for change in changes if change.verdict == "regression"]
