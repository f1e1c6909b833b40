"""The results as tables: header and rows of text, and as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .comparison import Change
from .intervals import geometric_mean, slope
from .peers import NAME
from .results import Result, Run
from .rounds import SLOW
from .suites import SUITES

FLAT_FROM = 10_000  # cases; below, calls cost more than the work
TEXT_COLUMNS = 2  # the first ones, aligned to the left


# What stands in a cell in the place of a number.
MEANINGS = {
    "-": "-: in a peer's column, it does not offer this quantity; elsewhere, there is no such "
    "number for this row, or it was not asked for",
    "slow": "slow: right, but a call takes longer than there is time for, so it was not timed; the "
    "seconds are those of one call",
    "wrong": "wrong: the peer's answer was outside the tolerance, so it was not timed",
    "failed": "failed: the peer raised an error, which the JSON file has",
    "WRONG": "WRONG: the answer of natgrad_fast was outside the tolerance; this is a bug",
}


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]

    @property
    def notes(self) -> list[str]:
        """In words, what stands in its cells in the place of numbers."""
        cells = {cell.partition(":")[0] for row in self.rows for cell in row}
        return [meaning for word, meaning in MEANINGS.items() if word in cells]

    def markdown(self) -> str:
        """An aligned table below its title, and notes on it."""
        columns = zip(self.header, *self.rows, strict=True)
        widths = [max(3, *(len(cell) for cell in column)) for column in columns]

        def line(cells: Sequence[str]) -> str:
            pairs = enumerate(zip(cells, widths, strict=True))
            aligned = [c.ljust(w) if i < TEXT_COLUMNS else c.rjust(w) for i, (c, w) in pairs]
            return "| " + " | ".join(aligned) + " |"

        rule = ["-" * w if i < TEXT_COLUMNS else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [f"## {self.title}", "", line(self.header), line(rule), *map(line, self.rows)]
        return "\n".join([*lines, *("\n" + note + "." for note in self.notes)])


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent where one can do without."""
    if value is None or math.isnan(value):
        return "-"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    text = f"{value:#.{digits}g}"
    return text.rstrip(".") if value >= 10 ** (digits - 1) else text


def size(count: float | None) -> str:
    """Bytes, readable."""
    if count is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"


def quantity(result: Result) -> str:
    row = result.row
    text = row.quantity.replace("_", " ")
    if row.num_vectors > 1:
        text += f" K={row.num_vectors}"
    if row.rtol:
        text += f" to {row.rtol:.0e}".replace("e-0", "e-")
    return text


def label(result: Result) -> str:
    """The quantity, with what differs from the usual."""
    row = result.row
    return f"{quantity(result)}, {row.dtype}, {row.threads}T"


def suite_table(run: Run, suite: str) -> Table | None:
    """All rows of a suite; a column for each peer that took part in it."""
    results = run.select([suite])
    if not results:
        return None
    names = [n for n in run.contestants if n != NAME and any(n in r.others for r in results)]
    header = ["case", "quantity", "ms", "GF/s", "of peak", "bytes", "GB/s", "memory", "first ms",
              "error", *(f"{name}: times slower" for name in names)]  # fmt: skip
    rows = [
        [*own_cells(result), *(peer_cell(result, name) for name in names)] for result in results
    ]
    return Table(f"{suite}: {SUITES[suite]}", header, rows)


def own_cells(result: Result) -> list[str]:
    record, share = result.record, result.share()
    error = record["errors"].get(NAME, float("nan"))
    cells = [result.row.case, label(result)]
    if NAME not in result.seconds:
        return [*cells, "WRONG", *["-"] * 6, f"{error:.0e}"]
    first = record["first_seconds"].get(NAME)
    moved, seconds = record["bytes"], result.milliseconds()
    return [
        *cells,
        number(seconds),
        number(result.rate()),
        "-" if share is None else f"{100 * share.median:.0f} %",
        size(moved),
        "-" if moved is None or seconds is None else number(moved / seconds / 1e6),
        size(record.get("peak_bytes")),
        number(None if first is None else 1e3 * first),
        f"{error:.0e}",
    ]


def peer_cell(result: Result, name: str) -> str:
    if name not in result.record["errors"]:
        return "-"
    slowness = result.slowness(name)
    if slowness is not None:
        return str(slowness)
    note = result.record["notes"].get(name)
    if note is None:
        return "wrong"
    if not note.startswith(SLOW):
        return "failed"
    seconds = re.search(r"[\d.]+ s", note)
    return f"slow: {seconds[0]}" if seconds else "slow"


def solver_table(run: Run) -> Table | None:
    """A line for each way to solve: the solves differ more among themselves than between peers."""
    results = run.select(["solvers"])
    rows = []
    for result in results:
        record = result.record
        for name in record["errors"]:
            slowness = result.slowness(name)
            error, count = record["errors"][name], record["iterations"].get(name)
            rows.append(
                [
                    f"{result.row.case.removeprefix('solve-')} {label(result)}",
                    name,
                    number(result.milliseconds(name))
                    if name in result.seconds
                    else peer_cell(result, name),
                    "-" if count is None else str(count),
                    f"{error:.1e}",
                    "-" if slowness is None else str(slowness),
                ]
            )
    header = ["problem", "method", "ms", "iterations", "residual", f"times as long as {NAME}"]
    return Table(f"solvers: {SUITES['solvers']}", header, rows) if rows else None


def mean_slowness(group: Sequence[Result], name: str) -> tuple[float, int]:
    """Geometric mean of the median ratios of a contestant, and how many there are."""
    ratios = [s.median for r in group if (s := r.slowness(name)) is not None]
    return (geometric_mean(ratios), len(ratios)) if ratios else (math.nan, 0)


def summary_table(run: Run) -> Table | None:
    """Geometric means over the nets of the median ratios."""
    results = [r for r in run.results if r.row.suite in ("products", "kfac")]
    names = [n for n in run.contestants if any(n in r.seconds for r in results)]
    rows = []
    for key in dict.fromkeys(map(label, results)):
        group = [r for r in results if label(r) == key and NAME in r.seconds]
        cells = []
        for name in names[1:]:
            mean, nets = mean_slowness(group, name)
            cells.append(f"{mean:.2f} ({nets})" if nets else "-")
        if any(cell != "-" for cell in cells):
            rows.append([key, f"{len(group)}", *cells])
    header = ["quantity", "nets", *(f"{name}: times slower" for name in names[1:])]
    title = "Summary: geometric means over nets (how many took part)"
    return Table(title, header, rows) if rows else None


def scaling_slopes(run: Run) -> dict[str, float]:
    """By contestant: slope of log ms against log N beyond FLAT_FROM cases."""
    results = [r for r in run.select(["scaling"]) if r.row.case.startswith("cases-")]
    slopes = {}
    for name in run.contestants:
        points = [(r.num_cases, ms) for r in results if (ms := r.milliseconds(name)) is not None]
        points = [(n, ms) for n, ms in points if n >= FLAT_FROM]
        if len(points) > 1:
            slopes[name] = slope(*zip(*points, strict=True))
    return slopes


def slope_table(run: Run) -> Table | None:
    rows = [[name, f"{value:.2f}"] for name, value in scaling_slopes(run).items()]
    title = f"Slope of log ms against log N from {FLAT_FROM} cases on"
    return Table(title, ["contestant", "slope"], rows) if rows else None


def comparison_table(changes: list[Change]) -> Table:
    order = {"regression": 0, "improvement": 1, "noise": 2}
    rows = [
        [c.row, c.verdict, c.yardstick, str(c.quotient), *map(number, c.milliseconds)]
        for c in sorted(changes, key=lambda change: order[change.verdict])
    ]
    header = ["row", "verdict", "in units of", "speed, new / old", "ms before", "ms now"]
    return Table("Comparison: speed in units of a common yardstick", header, rows)


def tables(run: Run, changes: list[Change] | None = None) -> list[Table]:
    found: list[Any] = [summary_table(run)]
    if changes is not None:
        found.insert(0, comparison_table(changes))
    for suite in SUITES:
        found.append(solver_table(run) if suite == "solvers" else suite_table(run, suite))
    found.append(slope_table(run))
    return [table for table in found if table is not None]


def title_lines(run: Run) -> list[str]:
    """The machine, the build and the peers, for the head of a report."""
    machine = run.machine
    build = machine["natgrad_fast"]
    versions = {name: v for name, v in machine["packages"].items() if v}
    peak = [r.record["peak_gflops"] for r in run.results if r.row.dtype == "float32"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs; {machine['platform']}; {machine['time']}",
        f"natgrad_fast {build['version']}, commit {build.get('commit') or 'not known'} "
        f"({build['compiler']}, {build['isa']}); "
        + ", ".join(f"{name} {v}" for name, v in versions.items()),
    ]
    best = max((max(values) for values in peak if values), default=None)
    if best is not None:
        lines.append(f"Multiply-add (FMA) peak, float32: up to {best:.0f} GF/s")
    if run.interrupted:
        lines.append("INTERRUPTED: not all rows were measured.")
    return [*lines, *(f"FAILED: {failure}" for failure in run.failures)]


def markdown(run: Run, changes: list[Change] | None = None) -> str:
    head = ["# Benchmarks of natgrad_fast", "", *(f"{line}  " for line in title_lines(run))]
    return "\n".join([*head, "", "\n\n".join(t.markdown() for t in tables(run, changes)), ""])
