"""The record of a run: raw samples and machine facts, written and read as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .intervals import Interval, median_interval, ratio
from .peers import NAME, ORDER
from .suites import Row

FORMAT = 2


class Result:
    """One row that was measured; what the tables and figures need of it."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.row = Row(**{field: record[field] for field in Row.__dataclass_fields__})
        self.seconds: dict[str, list[float]] = record["seconds"]

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same row in another run."""
        row = self.row
        return row.case, row.quantity, row.num_vectors, row.rtol, row.dtype, row.threads

    @property
    def num_cases(self) -> int:
        return int(self.record["net"]["batch"])

    @property
    def flops(self) -> float | None:
        return self.record["flops"]

    @property
    def is_right(self) -> bool:
        """Whether our own answer passed, in all the ways we gave it."""
        ours = [e for name, e in self.record["errors"].items() if name.startswith(NAME)]
        return bool(ours) and all(e <= self.record["allowed"] for e in ours)

    @property
    def others(self) -> list[str]:
        """Contestants other than the library's main one, timed or refused."""
        return [name for name in self.record["errors"] if name != NAME]

    def milliseconds(self, name: str = NAME) -> float | None:
        return 1e3 * float(np.median(self.seconds[name])) if name in self.seconds else None

    def rate(self, name: str = NAME) -> float | None:
        """GF/s, by the flops of the minimum."""
        if self.flops is None or name not in self.seconds:
            return None
        return float(self.flops / 1e9 / np.median(self.seconds[name]))

    def peak_shares(self, name: str = NAME) -> np.ndarray | None:
        """GF/s over the FMA peak, round by round; of solves and steps 1 / (peak x seconds)."""
        peaks = self.record["peak_gflops"]
        if not peaks or name not in self.seconds:
            return None
        return (self.flops or 1.0) / 1e9 / (np.asarray(self.seconds[name]) * np.asarray(peaks))

    def share(self) -> Interval | None:
        shares = self.peak_shares()
        return None if shares is None or self.flops is None else median_interval(shares)

    def slowness(self, name: str) -> Interval | None:
        """How many times as long another contestant takes, from paired rounds."""
        if name not in self.seconds or NAME not in self.seconds:
            return None
        return ratio(self.seconds[name], self.seconds[NAME])


class Run:
    """Everything of one call of the benchmark."""

    def __init__(self, machine: dict[str, Any], records: Iterable[dict[str, Any]] = ()) -> None:
        self.machine = machine
        self.results = [Result(record) for record in records]
        self.interrupted = False
        self.failures: list[str] = []  # workers that ended early, with what is lost

    def add(self, record: dict[str, Any]) -> None:
        self.results.append(Result(record))

    @property
    def contestants(self) -> list[str]:
        """In a fixed order, so that columns and colours are stable."""
        names = dict.fromkeys(name for result in self.results for name in result.record["errors"])
        known = [name for name in ORDER if name in names]
        return known + [name for name in names if name not in ORDER]

    def select(self, suites: Sequence[str], **fields: Any) -> list[Result]:
        """Results of some suites whose rows have these values."""
        return [
            result
            for result in self.results
            if result.row.suite in suites
            and all(getattr(result.row, field) == value for field, value in fields.items())
        ]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "interrupted": self.interrupted,
            "failures": self.failures,
            "machine": self.machine,
            "results": [result.record for result in self.results],
        }
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_run(path: Path) -> Run:
    """A run from its JSON file.

    Raises ValueError if the file is none of this harness, OSError if it cannot be read.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of this harness (format {FORMAT})")
    run = Run(content["machine"], content["results"])
    run.interrupted, run.failures = content["interrupted"], content["failures"]
    return run
