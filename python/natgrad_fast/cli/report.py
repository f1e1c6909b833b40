"""The report of a run, as Markdown."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.mlp import MLP
from ..training.history import History
from .quality import measure
from .run import BEST, FIGURE, MODEL, Run
from .table import few

__all__ = ["report"]

REASONS = {
    "epochs": "all epochs are done",
    "time_limit": "the time limit",
    "callback": "no better validation loss for --patience epochs",
    "interrupted": "Ctrl-C",
    "objective_tol": "converged: the objective falls no more",
    "gradient_tol": "converged: the gradient is zero",
    "step_tol": "converged: steps are below rounding",
    "damping_limit": "no step lowers the objective any more",
    "non_finite": "the objective was not finite; the last good parameters are kept",
}
Cases = tuple[NDArray[np.float64], NDArray[Any]]


def report(run: Run, training: Cases, validation: Cases, history: History) -> str:
    """Data, net, loss, final figures, time, why it stopped, and how to go on."""
    columns, options = run.columns, run.options
    net = run.load_best()
    records = run.records()
    target = ", ".join(columns.targets)
    lines = [f"# Training on {options.data}", ""]
    facts = {
        "data": f"{len(training[0])} rows to train on, {len(validation[0])} to validate",
        "inputs": f"{len(columns.features)} ({few(columns.features)})",
        "target": target + _classes(run),
        "net": _net(net),
        "loss": f"{columns.loss}, l2 {options.l2:g} ({columns.why})",
        "solver": f"{options.solver}, damping {options.damping}, batch size {options.batch_size}",
        "scaled": "inputs" + (" and targets" if set(run.targets.width) != {1.0} else "")
        if options.scale
        else "nothing",
        "steps": f"{len(records)} in {sum(r['seconds'] for r in records):.1f} s of steps; "
        f"this call took {history.seconds:.1f} s",
        "stopped by": REASONS.get(history.stop_reason, history.stop_reason),
    }
    lines += [f"- {name}: {fact}" for name, fact in facts.items()]
    lines += ["", *_figures(run, net, training, validation), ""]
    file = BEST if run.path(BEST).is_file() else MODEL
    lines.append(f"The figures are those of `{file}`; the curves are in `{FIGURE}`.")
    folder = shlex.quote(str(run.folder))
    lines += ["", f"Predict: `natgrad-fast predict {folder} DATA`"]
    lines.append(f"Go on: `natgrad-fast train --resume {folder}{_more(run)}`")
    return "\n".join(lines) + "\n"


def _classes(run: Run) -> str:
    found = run.columns.classes
    return "" if found is None else f", {len(found)} classes ({few([str(c) for c in found])})"


def _net(net: MLP) -> str:
    widths = "-".join(map(str, net.sizes))
    hidden = f", {net.activations[0]}" if net.num_layers > 1 else ""
    return f"{widths}{hidden}, {net.dtype}, {net.num_params} parameters"


def _figures(run: Run, net: MLP, training: Cases, validation: Cases) -> list[str]:
    """A table of the figures of merit."""
    found = {
        name: measure(run, net, *cases)
        for name, cases in (("training", training), ("validation", validation))
        if len(cases[0])
    }
    names = list(found["training"])
    lines = [f"| cases | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for cases, figures in found.items():
        cells = [_cell(name, figures[name]) for name in names]
        lines.append(f"| {cases} | {' | '.join(cells)} |")
    return lines


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"


def _more(run: Run) -> str:
    """What has to be given to go on."""
    data = " -" if run.options.data == "-" else ""
    if run.stop_reason in ("interrupted", "time_limit", "callback"):
        return data
    return f"{data} --epochs {2 * run.epochs}"
