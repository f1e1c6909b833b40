"""Medians and ratios with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and the bootstrap interval around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.median):
            return "-"
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap_medians(values: Any, seed: int = 0) -> np.ndarray:
    """Medians of resampled values."""
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).choice(values, (BOOTSTRAP_SAMPLES, values.size))
    return np.median(draws, axis=1)


def percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The central interval of draws that has this share of them."""
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def median_interval(values: Any, level: float = LEVEL, seed: int = 0) -> Interval:
    """Median with a percentile bootstrap interval."""
    low, high = percentiles(bootstrap_medians(values, seed), level)
    return Interval(float(np.median(values)), low, high)


def ratio(other: Sequence[float], ours: Sequence[float], level: float = LEVEL) -> Interval:
    """How many times faster we are, from paired rounds."""
    return median_interval(np.asarray(other) / np.asarray(ours), level)


def quotient(new: Any, old: Any, level: float) -> Interval:
    """Median of `new` over median of `old`, two samples that are not paired."""
    draws = bootstrap_medians(new, 1) / bootstrap_medians(old, 2)
    low, high = percentiles(draws, level)
    return Interval(float(np.median(new) / np.median(old)), low, high)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of log y against log x."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))
