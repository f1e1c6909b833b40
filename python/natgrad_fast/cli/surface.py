"""Demonstration: a smooth function of two variables, where curvature decides; Adam beside it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.batch import Batch
from ..model.mlp import MLP
from ..training.callbacks import TrainingContext
from ..training.optimizer import NaturalGradient

__all__ = ["GOAL", "Fit", "draw_surface", "surface_table", "train_surface"]

SIZES = (2, 64, 64, 1)
CASES, BATCH = 1000, 100
SECONDS, ADAM_SECONDS = 3.0, 4.0
RATES = (1e-3, 3e-3, 1e-2)
GOAL = 1e-4  # half the mean squared error whose time is reported
GRID = 60


@dataclass
class Fit:
    """What a training reached, point by point, and the net that it left."""

    name: str
    net: MLP
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def seconds_to(self, goal: float) -> float:
        """When the loss was at most `goal` first; NaN if never."""
        return next(
            (s for s, h in zip(self.seconds, self.loss, strict=True) if h <= goal), math.nan
        )


def surface(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heights (N, 1) over places (N, 2) in [-1, 1]^2."""
    return np.sin(3 * X[:, :1]) * np.cos(4 * X[:, 1:])


def train_surface(fits: list[Fit], seed: int, num_threads: int) -> bool:
    """Train the same net by all contestants; True after Ctrl-C."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.0, 1.0, (CASES, 2))
    y = surface(X)
    print(
        f"sin(3 x) cos(4 y) from {CASES:,} places, net {'-'.join(map(str, SIZES))}, tanh, float64, "
        f"{num_threads} thread{'s' * (num_threads > 1)}.\n"
        "Loss: half the mean squared error. Seconds: training alone.\n"
    )
    try:
        _natural_gradient(_begin(fits, "natgrad_fast, defaults", seed), X, y, num_threads)
        for rate in RATES:
            _adam(_begin(fits, f"Adam {rate:g}", seed), X, y, rate, seed, num_threads)
    except KeyboardInterrupt:
        return True
    return False


def _begin(fits: list[Fit], name: str, seed: int) -> Fit:
    fits.append(Fit(name, MLP(SIZES, dtype="float64", seed=seed)))
    return fits[-1]


def _natural_gradient(
    fit: Fit, X: NDArray[np.float64], y: NDArray[np.float64], num_threads: int
) -> None:
    """Steps on all cases, with nothing but the defaults."""
    optimizer = NaturalGradient(fit.net, "squared_error", num_threads=num_threads)
    spent = 0.0

    def look(context: TrainingContext) -> bool:
        nonlocal spent
        spent += context.info.seconds
        fit.seconds.append(spent)
        fit.loss.append(context.info.new_loss if context.info.accepted else context.info.loss)
        return spent >= SECONDS

    history = optimizer.fit(X, y, epochs=100_000, callbacks=[look])
    if history.stop_reason == "interrupted":
        raise KeyboardInterrupt


def _adam(
    fit: Fit,
    X: NDArray[np.float64],
    y: NDArray[np.float64],
    rate: float,
    seed: int,
    num_threads: int,
) -> None:
    """Adam on the same gradients, batches of 100; the clock stands while the loss is measured."""
    rng, net = np.random.default_rng(seed), fit.net
    whole = Batch(net, "squared_error", X, y, num_threads=num_threads)
    first, second = np.zeros_like(net.params), np.zeros_like(net.params)
    spent, steps = 0.0, 0
    while spent < ADAM_SECONDS:
        start = time.perf_counter()
        order = rng.permutation(CASES)
        for begin in range(0, CASES, BATCH):
            places, steps = order[begin : begin + BATCH], steps + 1
            batch = Batch(net, "squared_error", X[places], y[places], num_threads=num_threads)
            _, g = batch.value_and_grad()
            first += 0.1 * (g - first)
            second += 0.001 * (g * g - second)
            scale = rate * math.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
            net.params -= scale * first / (np.sqrt(second) + 1e-8)
        spent += time.perf_counter() - start
        fit.seconds.append(spent)
        fit.loss.append(whole.value())


def surface_table(fits: list[Fit]) -> str:
    """The results, one line each."""
    lines = [f"{'':24s}{'loss':>10s}  seconds  seconds to {GOAL:g}"]
    for fit in fits:
        if not fit.seconds:
            continue
        reached = fit.seconds_to(GOAL)
        shown = "never" if math.isnan(reached) else f"{reached:.2f}"
        lines.append(f"{fit.name:24s}{fit.loss[-1]:10.2g}  {fit.seconds[-1]:7.2f}  {shown:>16s}")
    return "\n".join(lines)


def draw_surface(figure: Any, fits: list[Fit]) -> None:
    """Draw loss against seconds, the function, and what ours and the best Adam miss of it."""
    fits = [fit for fit in fits if fit.seconds]
    ours, others = fits[0], fits[1:]
    best = min(others, key=lambda fit: fit.loss[-1], default=None)
    nets = [ours] if best is None else [ours, best]
    axes = figure.subplots(1, 2 + len(nets), width_ratios=(2.2, *([1] * (1 + len(nets)))))
    curves = axes[0]
    for fit, color in zip(fits, ("#c2410c", "#93c5fd", "#3b82f6", "#1e3a8a"), strict=False):
        label = f"{fit.name}: {fit.loss[-1]:.1g}"
        curves.plot(fit.seconds, fit.loss, color=color, lw=1.6, label=label)
    curves.set(yscale="log", xlabel="seconds of training")
    curves.set_title("Loss (half the mean squared error)", fontsize=10)
    curves.axhline(GOAL, color="0.6", lw=0.8, ls="--")
    curves.grid(color="0.92")
    curves.legend(frameon=False, fontsize=8)
    curves.spines[["top", "right"]].set_visible(False)
    line = np.linspace(-1.0, 1.0, GRID)
    places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    wanted = surface(places)
    span = {"origin": "lower", "extent": (-1, 1, -1, 1)}
    axes[1].imshow(wanted.reshape(GRID, GRID), cmap="RdBu_r", vmin=-1, vmax=1, **span)
    axes[1].set_title("sin(3 x) cos(4 y)", fontsize=10)
    for axis, fit in zip(axes[2:], nets, strict=True):
        missed = fit.net(places) - wanted
        shown = axis.imshow(missed.reshape(GRID, GRID), cmap="PuOr", **span)
        figure.colorbar(shown, ax=axis, shrink=0.7, format="%.0e")
        axis.set_title(f"error of {fit.name.split(',')[0]}", fontsize=10)
    for axis in axes[1:]:
        axis.set(xticks=(), yticks=())
    figure.suptitle(f"A smooth function, net {'-'.join(map(str, SIZES))}, float64", fontsize=13)
