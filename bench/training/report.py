"""Tables and figures of the suite `training`, from its JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .contestants import OURS

# Share of the seconds at which the table shows errors.
MARKS = (0.1, 0.25, 0.5, 1.0)


def error_at(points: list[list[float]], seconds: float) -> float:
    """The error at the last point up to then."""
    return [error for s, error in points if s <= seconds * 1.02][-1]


def seconds_to(points: list[list[float]], goal: float) -> float:
    """When the error was at most `goal` for the first time; infinite for never."""
    return next((s for s, error in points if error <= goal), math.inf)


def best_setting(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the least error at its end."""
    return min(runs, key=lambda run: _or_infinite(run["points"][-1][1]))


def _or_infinite(x: float) -> float:
    return x if math.isfinite(x) else math.inf


def rows(result: dict[str, Any], problem: str) -> list[dict[str, Any]]:
    """Of every contestant the curve that is quoted: ours the worst, others the best."""
    found = []
    runs = [run for run in result["runs"] if run["problem"] == problem]
    for name in dict.fromkeys(run["contestant"] for run in runs):
        own = [run for run in runs if run["contestant"] == name]
        if name == OURS:
            quoted = max(own, key=lambda run: _or_infinite(run["points"][-1][1]))
            note = f"defaults, worst of {len(own)} seeds"
        else:
            quoted = best_setting(own)
            note = f"best of {len(own)}: {quoted['setting']}" if len(own) > 1 else ""
        found.append({**quoted, "note": note})
    return found


def markdown(result: dict[str, Any]) -> str:
    """One table a problem."""
    facts = result["facts"]
    lines = ["# Training: error against seconds", ""]
    lines += [f"{facts.get('cpu', '')}, {result['threads']} threads, {facts.get('date', '')}", ""]
    for problem in result["problems"]:
        name, seconds, goal = problem["name"], problem["seconds"], problem["goal"]
        marks = [share * seconds for share in MARKS]
        lines += [f"## {name}: {problem['what']}", ""]
        head = ["", *(f"{mark:g} s" for mark in marks)]
        if goal is not None:
            head.append(f"seconds to {goal:g}")
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in rows(result, name):
            cells = [f"{row['contestant']} ({row['note']})".replace(" ()", "")]
            cells += [f"{error_at(row['points'], mark):.3g}" for mark in marks]
            if goal is not None:
                at = seconds_to(row["points"], goal)
                cells.append("never" if math.isinf(at) else f"{at:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if result["missing"]:
        lines.append(f"Not installed, so not measured: {', '.join(result['missing'])}.")
    return "\n".join(lines) + "\n"


def figure(result: dict[str, Any], path: Path) -> None:
    """A panel a problem: all seeds of ours, the best setting of others."""
    from matplotlib.figure import Figure

    problems = [problem["name"] for problem in result["problems"]]
    columns = min(3, len(problems))
    height = -(-len(problems) // columns)
    canvas = Figure(figsize=(4.6 * columns, 3.4 * height), layout="constrained")
    axes = canvas.subplots(height, columns, squeeze=False).ravel()
    colors = ["#c2410c", "#1d4ed8", "#15803d", "#7c3aed", "#0e7490", "#4d4d4d"]
    names = list(dict.fromkeys(run["contestant"] for run in result["runs"]))
    for axis, name in zip(axes, problems, strict=False):
        for row in rows(result, name):
            own = [run for run in result["runs"] if run["problem"] == name]
            shown = (
                [r for r in own if r["contestant"] == OURS] if row["contestant"] == OURS else [row]
            )
            color = colors[names.index(row["contestant"]) % len(colors)]
            for k, run in enumerate(shown):
                points = [p for p in run["points"] if p[0] > 0 and math.isfinite(p[1])]
                axis.plot(
                    *zip(*points, strict=True),
                    color=color,
                    lw=1.8 if row["contestant"] == OURS else 1.2,
                    label=row["contestant"] if k == 0 else None,
                )
        axis.set(title=name, xscale="log", yscale="log", xlabel="seconds", ylabel="error")
        axis.grid(color="0.92")
        axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(problems) :]:
        axis.set_axis_off()
    canvas.savefig(path, dpi=110)
