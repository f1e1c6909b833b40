"""Figures of a run, as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .peers import NAME
from .results import Result, Run
from .tables import FLAT_FROM, quantity, scaling_slopes

# Middle lightness: legible on white and on near-black. Ours is the warm one.
COLOURS = {
    NAME: "#e4572e",
    "numpy": "#3b8ea5",
    "jax": "#8f6bd9",
    "jax, kept": "#c252a8",
    "torch.func": "#7a9a2b",
    "curvlinops": "#b98a1d",
}
OWN_WAYS = ("#f2a07b", "#c23b22", "#f07c4a", "#a8553a", "#f7b538")  # other ways of ours, warm too
MARKERS = {NAME: "o", "numpy": "s", "jax": "^", "jax, kept": "D", "torch.func": "v"}
INK = "#010203"  # stands for the text colour of the page
PIXELS_PER_INCH = 105
LEAST_SCALE = 0.68  # letters of 10 pixels
NARROW, WIDE, WHOLE = 3.3, 4.9, 7.4  # inches of a panel: 346 pixels fit a phone, two of 514 a page
WORDS = {
    "jvp": "J v",
    "vjp": "J'u",
    "ggn": "GGN product",
    "mc fisher": "Monte-Carlo Fisher product",
    "empirical fisher": "empirical Fisher product",
    "hessian": "Hessian product",
    "kfac update": "K-FAC update",
    "kfac refresh": "K-FAC refresh",
    "kfac apply": "K-FAC apply",
}  # of panels
ON_ROOFLINE = ("gradient", "ggn", "hessian")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "natgrad_fast",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    name: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Drawing:
    """Panels with the sentence that says how to read them, and one legend for all of them.

    Each panel is a picture of its own, so that a page can put as many side by side as there is
    room for, and none gets smaller than its text can be read.
    """

    title: str
    caption: str
    panels: list[Figure]
    legend: list[Entry]

    def svgs(self) -> list[str]:
        """Inline SVG: no header, text as text, ink in the page's own colour."""
        return [svg(panel) for panel in self.panels]


def svg(panel: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        panel.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', sized, text, count=1)
    return text.replace(INK, "currentColor")


def sized(match: re.Match[str]) -> str:
    """As wide as there is room for, and never so narrow that its text gets too small."""
    width = float(match[1]) / 72 * PIXELS_PER_INCH
    least = LEAST_SCALE * width
    return f'role="img" style="width: {width:.0f}px; max-width: 100%; min-width: {least:.0f}px"'


def panel_of(width: float, height: float, title: str = "") -> tuple[Figure, Any]:
    """A panel of inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title)
    return figure, axis


def colour(run: Run, name: str) -> str:
    if name in COLOURS:
        return COLOURS[name]
    ours = [other for other in run.contestants if other not in COLOURS]
    return OWN_WAYS[ours.index(name) % len(OWN_WAYS)] if name in ours else INK


def marker(name: str) -> str:
    return MARKERS.get(name, "o")


def drawings(run: Run) -> list[Drawing]:
    """Every figure that the run has data for."""
    with mpl.rc_context(STYLE):
        made = [ratios(run), roofline(run), solves(run), sweeps(run), scaling(run), threads(run)]
    return [drawing for drawing in made if drawing is not None]


def main_results(run: Run, suites: Sequence[str]) -> list[Result]:
    """float32 (or what there is) on the most threads, right and timed."""
    results = [r for r in run.select(suites) if NAME in r.seconds]
    if not results:
        return []
    most = max(r.row.threads for r in results)
    results = [r for r in results if r.row.threads == most]
    dtypes = {r.row.dtype for r in results}
    dtype = "float32" if "float32" in dtypes else "float64"
    return [r for r in results if r.row.dtype == dtype]


def setting(results: Sequence[Result]) -> str:
    row = results[0].row
    return f"{row.dtype}, {row.threads} thread{'s' if row.threads > 1 else ''}"


def ratios(run: Run) -> Drawing | None:
    """Panels of quantities, rows of nets: how many times as long each peer takes."""
    results = [r for r in main_results(run, ["products", "kfac"]) if len(r.seconds) > 1]
    if not results:
        return None
    of: dict[str, list[Result]] = {}
    for result in results:
        of.setdefault(words(result), []).append(result)
    names = [n for n in run.contestants if n != NAME and any(n in r.seconds for r in results)]
    medians = [s.median for r in results for n in names if (s := r.slowness(n)) is not None]
    limits = min(0.8, *medians) / 1.25, max(2.0, *medians) * 1.25
    panels = []
    for title in sorted(of, key=lambda title: -len(of[title])):
        present = [n for n in names if any(n in r.seconds for r in of[title])]
        height = len(of[title]) * (0.12 * len(present) + 0.14) + 0.85
        panel, axis = panel_of(NARROW, height, title)
        ratio_panel(run, axis, of[title], present)
        log_ticks(axis.xaxis, *limits)
        axis.set_xlabel("times as long as natgrad_fast")
        panels.append(panel)
    caption = (
        f"How many times as long as natgrad_fast a peer takes ({setting(results)}): right of the "
        "line natgrad_fast is faster. Bars end at the median of the paired ratios; whiskers are "
        "its 95 % bootstrap interval."
    )
    return Drawing("Beside the peers", caption, panels, legend(run, names))


def words(result: Result) -> str:
    name, _, vectors = quantity(result).partition(" K=")
    return WORDS.get(name, name) + (f", {vectors} vectors" if vectors else "")


def ratio_panel(run: Run, axis: Any, results: Sequence[Result], names: Sequence[str]) -> None:
    height = 0.82 / len(names)
    for place, result in enumerate(results):
        for index, name in enumerate(names):
            slowness = result.slowness(name)
            if slowness is None:
                continue
            y = place + (index - (len(names) - 1) / 2) * height
            width = slowness.median - 1
            axis.barh(y, width, height * 0.86, left=1, color=colour(run, name))
            axis.plot([slowness.low, slowness.high], [y, y], color=INK, linewidth=1)
    axis.set_xscale("log")
    axis.axvline(1, color=COLOURS[NAME], linewidth=1.6)
    axis.set_yticks(range(len(results)), [r.row.case for r in results])
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axis.set_axisbelow(True)


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Limits, and as many labels as there is room for."""
    steps = (1, 2, 5) if high / low < 100 else (1,)
    axis.axes.set_xlim(low, high)
    axis.set_major_locator(mpl.ticker.LogLocator(10, steps, numticks=12))
    axis.set_minor_locator(mpl.ticker.NullLocator())
    axis.set_major_formatter(plain)


def plain(value: float, _: int = 0) -> str:
    """Ticks without exponents where they are short."""
    if value == 0 or 1e-3 <= value < 1e5:
        return f"{value:g}"
    return f"$10^{{{round(np.log10(value))}}}$"


def legend(run: Run, names: Sequence[str]) -> list[Entry]:
    return [Entry(name, colour(run, name), marker(name)) for name in names]


def roofline(run: Run) -> Drawing | None:
    """GF/s against flops per byte; roofs are the measured peak and copy bandwidth."""
    results = [r for r in main_results(run, ["products"]) if r.row.quantity in ON_ROOFLINE]
    if not results:
        return None
    row = results[0].row
    bandwidth = run.machine["processes"][f"{row.threads} threads, {row.dtype}"].get("bandwidth")
    peak = float(np.median([p for r in results for p in r.record["peak_gflops"]] or [np.nan]))
    figure, axis = panel_of(WHOLE, 4.8)
    names = [n for n in run.contestants if any(n in r.seconds for r in results)]
    for name in reversed(names):
        points = [
            (r.flops / r.record["bytes"], rate)
            for r in results
            if r.flops is not None and (rate := r.rate(name)) is not None
        ]
        ours = name == NAME
        axis.plot(*zip(*points, strict=True), marker(name), color=colour(run, name),
                  markersize=7 if ours else 4.5, alpha=1 if ours else 0.75,
                  markeredgewidth=0)  # fmt: skip
    low = min(r.flops / r.record["bytes"] for r in results if r.flops) / 1.6
    high = max(r.flops / r.record["bytes"] for r in results if r.flops) * 1.6
    draw_roofs(axis, low, high, peak, bandwidth)
    label_points(axis, results, (low * high) ** 0.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(low, high)
    axis.set_xlabel("flops per byte (formula)")
    axis.set_ylabel("GF/s")
    axis.set_ylim(top=2 * peak)
    axis.yaxis.set_major_formatter(plain)
    log_ticks(axis.xaxis, low, high)
    axis.grid(color=INK, alpha=0.12, linewidth=0.6)
    caption = (
        f"Gradients, GGN and Hessian products ({setting(results)}) under the measured roofs: the "
        "multiply-add peak, and the copy bandwidth of memory. Both counts are those of the minimum "
        "that keeps the forward pass, so that whoever computes more stands lower. What fits the "
        "caches may stand above the slope."
    )
    return Drawing("Roofline", caption, [figure], legend(run, names))


def draw_roofs(axis: Any, low: float, high: float, peak: float, bandwidth: float | None) -> None:
    line = {"color": INK, "linewidth": 1.3}
    knee = low
    if bandwidth:
        knee = min(max(peak * 1e9 / bandwidth, low), high)
        axis.plot([low, knee], [bandwidth * low / 1e9, bandwidth * knee / 1e9], **line)
        text = f"copy bandwidth {bandwidth / 1e9:.0f} GB/s"
        if knee > 1.5 * low:
            place = (low * 1.1, bandwidth * low / 1e9 * 0.85)
            axis.annotate(text, place, fontsize=9, va="top")
    axis.plot([knee, high], [peak, peak], **line)
    axis.annotate(
        f"multiply-add peak {peak:.0f} GF/s", (high / 1.05, peak * 1.15), ha="right", fontsize=9
    )


def label_points(axis: Any, results: Sequence[Result], middle: float) -> None:
    """Names of the GGN products, on the side where there is room, clear of each other."""
    points = [
        (r.row.case, r.flops / r.record["bytes"], rate)
        for r in results
        if r.row.quantity == "ggn" and r.row.num_vectors == 1 and r.flops
        if (rate := r.rate()) is not None
    ]

    def near(x: float, y: float) -> list[tuple[str, float, float]]:
        return [p for p in points if max(p[1] / x, x / p[1]) < 2 and max(p[2] / y, y / p[2]) < 1.4]

    for name, x, y in points:
        group = sorted(near(x, y), key=lambda p: -p[2])
        left = x > middle
        edge = (min if left else max)(p[1] for p in group)
        line = next(index for index, p in enumerate(group) if p[0] == name)
        offset = (-9 if left else 9, 4 - 11 * line)
        axis.annotate(name, (edge, group[0][2]), xytext=offset, fontsize=8.5, va="center",
                      textcoords="offset points", ha="right" if left else "left")  # fmt: skip


def solves(run: Run) -> Drawing | None:
    """A panel for each problem: ms of every method."""
    results = main_results(run, ["solvers"])
    if not results:
        return None
    panels, drawn = [], set()
    for result in results:
        names = sorted(result.seconds, key=lambda n: -(result.milliseconds(n) or 0))
        drawn |= set(names)
        times = [result.milliseconds(n) or np.nan for n in names]
        title = f"{result.row.case.removeprefix('solve-')} {quantity(result)}"
        panel, axis = panel_of(WIDE, 0.3 * len(names) + 0.9, title)
        axis.barh(names, times, 0.7, color=[colour(run, n) for n in names])
        for y, (name, ms) in enumerate(zip(names, times, strict=True)):
            count = result.record["iterations"].get(name)
            text = f"{ms:.3g} ms" + (f", {count} it." if count is not None else "")
            axis.annotate(
                text, (ms, y), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
        axis.set_xlim(0, max(times) * 1.5)
        axis.set_xlabel("ms")
        axis.tick_params(axis="y", length=0)
        panels.append(panel)
    caption = (
        f"Solves of (F + 0.01 I) x = g, all set-up counted ({setting(results)}); every residual "
        "was checked in float64. Methods that did not reach it are left out. it.: iterations."
    )
    return Drawing(
        "Solves", caption, panels, legend(run, [n for n in run.contestants if n in drawn])
    )


def curves(
    run: Run,
    axis: Any,
    results: Sequence[Result],
    x: Callable[[Result], float],
    peaks: bool = False,
) -> list[str]:
    """ms against x of every contestant; the names that were drawn."""
    names = [n for n in run.contestants if any(n in r.seconds for r in results)]
    for name in names:
        points = sorted((x(r), r.milliseconds(name)) for r in results if name in r.seconds)
        axis.plot(*zip(*points, strict=True), marker=marker(name), markersize=4.5,
                  color=colour(run, name), linewidth=2.2 if name == NAME else 1.4,
                  zorder=3 if name == NAME else 2)  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylabel("ms")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(plain)
        one.set_minor_formatter(mpl.ticker.NullFormatter())
    places = sorted({x(r) for r in results})
    if max(places) <= 10_000 and len(places) <= 10:  # labels of that many have room
        axis.set_xticks(places, [f"{place:g}" for place in places], fontsize=9)
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.grid(color=INK, alpha=0.12, linewidth=0.6)
    return names


def sweeps(run: Run) -> Drawing | None:
    results = [r for r in main_results(run, ["sweeps"]) if r.row.quantity == "ggn"]
    axes_of = {
        "width": ("width of two hidden layers (batch 256)", lambda r: r.record["net"]["sizes"][1]),
        "batch": ("batch (256-512-512-10)", lambda r: r.num_cases),
    }
    return curve_drawing(run, results, axes_of, "Width and batch", "Milliseconds of a GGN product")


def scaling(run: Run) -> Drawing | None:
    results = [r for r in main_results(run, ["scaling"]) if NAME in r.seconds]
    axes_of = {
        "cases": ("cases N (16-32-32-3)", lambda r: r.num_cases),
        "digits": ("vectors K at once (64-128-64-10, N = 1797)", lambda r: r.row.num_vectors),
    }
    slopes = ", ".join(f"{name} {value:.2f}" for name, value in scaling_slopes(run).items())
    text = "Milliseconds of a GGN product"
    if slopes:
        text += f". Slopes of the logarithms from {FLAT_FROM} cases on: {slopes}"
    return curve_drawing(run, results, axes_of, "Cases and vectors", text)


def curve_drawing(
    run: Run, results: Sequence[Result], axes_of: dict[str, Any], title: str, caption: str
) -> Drawing | None:
    groups = {a: [r for r in results if r.row.case.startswith(a)] for a in axes_of}
    groups = {a: group for a, group in groups.items() if len(group) > 1}
    if not groups:
        return None
    panels: list[Figure] = []
    names: list[str] = []
    for key, group in groups.items():
        label, x = axes_of[key]
        panel, axis = panel_of(WIDE, 3.9)
        drawn = curves(run, axis, group, x)
        names += [name for name in drawn if name not in names]
        axis.set_xlabel(label)
        panels.append(panel)
    return Drawing(title, f"{caption} ({setting(results)}).", panels, legend(run, names))


def threads(run: Run) -> Drawing | None:
    """Speed on the most threads over speed on one."""
    results = [
        r for r in run.select(["products"]) if r.row.dtype == "float32" and NAME in r.seconds
    ]
    counts = sorted({r.row.threads for r in results})
    if len(counts) < 2:
        return None
    one = {(r.row.case, quantity(r)): r for r in results if r.row.threads == counts[0]}
    pairs = [
        (one[r.row.case, quantity(r)], r)
        for r in results
        if r.row.threads == counts[-1] and (r.row.case, quantity(r)) in one
    ]
    if not pairs:
        return None
    names = [n for n in run.contestants if any(n in a.seconds and n in b.seconds for a, b in pairs)]
    figure, axis = panel_of(WHOLE, 0.3 * len(pairs) + 0.8)
    for place, (few, many) in enumerate(pairs):
        for name in reversed(names):
            if name in few.seconds and name in many.seconds:
                gain = np.median(few.seconds[name]) / np.median(many.seconds[name])
                axis.plot(gain, place, marker(name), color=colour(run, name),
                          markersize=9 if name == NAME else 6, markeredgewidth=0)  # fmt: skip
    for line in (1, counts[-1] / counts[0]):
        axis.axvline(line, color=INK, linewidth=1, linestyle="--", alpha=0.6)
    axis.set_yticks(range(len(pairs)), [f"{b.row.case} {quantity(b)}" for _, b in pairs])
    axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axis.invert_yaxis()
    axis.set_xlabel(f"time on {counts[0]} over time on {counts[-1]} threads")
    caption = (
        f"Gain of {counts[-1]} threads over {counts[0]}, float32, from medians of two processes "
        "(not paired). Dashed: no gain, and the full one."
    )
    return Drawing("Threads", caption, [figure], legend(run, names))
