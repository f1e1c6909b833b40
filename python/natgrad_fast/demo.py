"""Demonstration: natural gradient beside scikit-learn's Adam on real handwritten digits."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .config import default_num_threads
from .damping import LevenbergMarquardt
from .history import StepInfo
from .mlp import MLP
from .objective import value
from .optimizer import NaturalGradient
from .solvers import CG

__all__ = ["run_demo"]

SIZES = (64, 128, 64, 10)
ACTIVATION = "tanh"
LOSS = "softmax_cross_entropy"
L2 = 1e-4
DAMPING = 1.0
CG_ITERATIONS = 50
TEST_IMAGES = 360
GOAL = 0.97  # test accuracy whose time is reported
INSTALL = 'pip install "natgrad_fast[demo]"'
INTERRUPTED = 130  # exit code of a shell command ended by Ctrl-C


@dataclass
class Digits:
    """The split data: images (N, 64) in [0, 1], float32, and labels (N,)."""

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any


@dataclass
class Curve:
    """What a training reached, point by point; its clock runs during training only."""

    name: str
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # mean cross-entropy of the training images
    accuracy: list[float] = field(default_factory=list)  # share of test images
    labels: Any = None  # of the test images, at the last point
    note: str = ""

    def add(self, seconds: float, loss: float, labels: Any, truth: Any) -> None:
        """Append a point that took `seconds` of training."""
        self.seconds.append(seconds + (self.seconds[-1] if self.seconds else 0.0))
        self.loss.append(loss)
        self.accuracy.append(float(np.mean(labels == truth)))
        self.labels = labels

    def seconds_to(self, accuracy: float) -> float:
        """When `accuracy` was reached first; NaN if never."""
        times = [s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= accuracy]
        return times[0] if times else math.nan


def run_demo(
    output: str | Path = "natgrad_fast_demo.png",
    *,
    epochs: int = 20,
    seed: int = 0,
    num_threads: int | None = None,
) -> int:
    """Train a classifier of handwritten digits, compare it with Adam, and draw both.

    Parameters
    ----------
    output : path
        PNG file to write.
    epochs : int
        Natural-gradient steps; each sees all training images.
    seed : int
        Of the split and of the initial weights.
    num_threads : int, optional
        For both trainings.

    Returns
    -------
    int
        Exit code: 0, 1 if something is missing, 130 after Ctrl-C (with what was done until then).
    """
    output = Path(output).resolve()
    try:
        import matplotlib.figure
        import sklearn.neural_network  # noqa: F401
    except ImportError as error:
        print(f"the demo needs {error.name or error}: {INSTALL}", file=sys.stderr)
        return 1
    if not output.parent.is_dir() or output.is_dir():
        print(f"cannot write {output}: not a file in an existing directory", file=sys.stderr)
        return 1
    num_threads = default_num_threads() if num_threads is None else num_threads
    data = load_digits(seed)
    print(
        f"Handwritten digits: {len(data.y_train):,} training and {len(data.y_test)} test images "
        f"of 8 x 8 pixels.\nNet {'-'.join(map(str, SIZES))}, {ACTIVATION}, float32, "
        f"{num_threads} thread{'s' * (num_threads > 1)}. "
        "Seconds are training alone; loss and accuracy are measured outside them.\n"
    )
    curves: list[Curve] = []
    interrupted = train_natural_gradient(data, curves, epochs, seed, num_threads)
    if not interrupted:
        interrupted = train_adam(data, curves, seed, num_threads)
    print(summary(curves))
    draw(matplotlib.figure.Figure, curves, data, num_threads).savefig(output, format="png")
    print(f"\nCurves: {output}", flush=True)
    return INTERRUPTED if interrupted else 0


def load_digits(seed: int) -> Digits:
    """scikit-learn's 1,797 digits, stratified into training and test images."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    x, y = load(return_X_y=True)
    x = (x / 16).astype(np.float32)
    split = train_test_split(x, y, test_size=TEST_IMAGES, stratify=y, random_state=seed)
    return Digits(split[0], split[2], split[1], split[3])


def train_natural_gradient(
    data: Digits, curves: list[Curve], epochs: int, seed: int, num_threads: int
) -> bool:
    """Train on all images at once and print a row per step; True after Ctrl-C."""
    net = MLP(SIZES, activation=ACTIVATION, dtype="float32", seed=seed)
    optimizer = NaturalGradient(
        net,
        LOSS,
        solver=CG(max_iter=CG_ITERATIONS),
        damping=LevenbergMarquardt(DAMPING),
        l2=L2,
        num_threads=num_threads,
    )
    curve = Curve("natgrad_fast")
    curves.append(curve)

    def record(seconds: float) -> str:
        labels = net(data.x_test, num_threads=num_threads).argmax(axis=1)
        loss = value(net, LOSS, data.x_train, data.y_train, num_threads=num_threads)
        curve.add(seconds, loss, labels, data.y_test)
        return f"{100 * curve.accuracy[-1]:7.2f} %  {curve.seconds[-1]:7.2f}"

    def print_row(info: StepInfo) -> None:
        loss = info.new_loss if info.accepted else info.loss
        stop = f"{info.solve.status}{'' if info.accepted else ', step rejected'}"
        print(
            f"{info.step + 1:4d}  {loss:9.5f}  {info.reduction_ratio:6.2f}  {info.damping:8.2g}  "
            f"{info.solve.iterations:4d}  {stop:18s}{record(info.seconds)}",
            flush=True,
        )

    print(f"natgrad_fast: natural gradient, l2 {L2:g}, Levenberg-Marquardt damping from {DAMPING:g}")
    print("step       loss   ratio   damping    CG  stopped by        test acc.  seconds")
    print(f"{0:4d}{'':39s}{'':10s}{record(0.0)}", flush=True)
    history = optimizer.fit(data.x_train, data.y_train, epochs=epochs, callbacks=[print_row])
    print(f"ended by: {history.stop_reason.replace('_', ' ')}\n", flush=True)
    curve.note = f"{len(history.steps)} steps"
    return history.stop_reason == "interrupted"


def train_adam(data: Digits, curves: list[Curve], seed: int, num_threads: int) -> bool:
    """Train MLPClassifier with its defaults, by epochs, up to its own stop; True after Ctrl-C."""
    from sklearn.neural_network import MLPClassifier

    # A generator, not a number: partial_fit would otherwise shuffle alike in every epoch.
    random_state = np.random.RandomState(seed)
    model = MLPClassifier(SIZES[1:-1], activation=ACTIVATION, random_state=random_state)
    curve = Curve("scikit-learn Adam")
    curves.append(curve)
    print(f"scikit-learn: MLPClassifier(solver={model.solver!r}), all defaults")
    print("epoch      loss  test acc.  seconds")
    with thread_limit(num_threads):
        try:
            for epoch in range(1, model.max_iter + 1):
                start = time.perf_counter()
                model.partial_fit(data.x_train, data.y_train, classes=np.arange(SIZES[-1]))
                seconds = time.perf_counter() - start
                curve.add(seconds, log_loss(model, data), model.predict(data.x_test), data.y_test)
                done = adam_stops(model)
                if done or epoch % 20 == 0 or epoch == 1:
                    print(
                        f"{epoch:5d}  {curve.loss[-1]:8.5f}  {100 * curve.accuracy[-1]:7.2f} %  "
                        f"{curve.seconds[-1]:7.2f}",
                        flush=True,
                    )
                if done:
                    break
            reason = "its convergence rule" if done else f"max_iter={model.max_iter}"
            interrupted = False
        except KeyboardInterrupt:
            reason, interrupted = "interrupted", True
    print(f"ended by: {reason}\n", flush=True)
    curve.note = f"{len(curve.seconds)} epochs"
    return interrupted


def adam_stops(model: Any) -> bool:
    """Tell whether `fit` would stop here: partial_fit leaves that rule to its caller.

    It stops after more than `n_iter_no_change` epochs in a row whose loss is not `tol` below the best.
    """
    best, stale = math.inf, 0
    for loss in model.loss_curve_:
        stale = stale + 1 if loss > best - model.tol else 0
        best = min(best, loss)
    return stale > int(model.n_iter_no_change)


def log_loss(model: Any, data: Digits) -> float:
    """Mean cross-entropy of the training images."""
    p = model.predict_proba(data.x_train)[np.arange(len(data.y_train)), data.y_train]
    return float(-np.mean(np.log(np.maximum(p, np.finfo(np.float32).tiny), dtype=np.float64)))


@contextlib.contextmanager
def thread_limit(num_threads: int) -> Iterator[None]:
    """Give NumPy's BLAS the same number of threads."""
    from threadpoolctl import threadpool_limits  # scikit-learn requires it

    with threadpool_limits(num_threads, user_api="blas"):
        yield


def summary(curves: list[Curve]) -> str:
    """Both results, one line each."""
    lines = [f"{'':19s}test accuracy  training loss  seconds  seconds to {100 * GOAL:.0f} %"]
    for curve in curves:
        if not curve.seconds:
            continue
        reached = curve.seconds_to(GOAL)
        lines.append(
            f"{curve.name:19s}{100 * curve.accuracy[-1]:11.2f} %  {curve.loss[-1]:13.5f}  "
            f"{curve.seconds[-1]:7.2f}  {'never' if math.isnan(reached) else f'{reached:.2f}':>15s}"
        )
    return "\n".join(lines)


def draw(figure_class: Any, curves: list[Curve], data: Digits, num_threads: int) -> Any:
    """Test accuracy and training loss against seconds, and the test images that are still wrong."""
    colors = ("#c2410c", "#1d4ed8")
    figure = figure_class(figsize=(11, 6.4), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(4.2, 1), hspace=0.06)
    accuracy, loss = grid[0].subgridspec(1, 2, wspace=0.06).subplots()
    for curve, color in zip(curves, colors, strict=False):
        if not curve.seconds:
            continue
        label = f"{curve.name}: {100 * curve.accuracy[-1]:.1f} %, {curve.seconds[-1]:.2f} s, {curve.note}"
        style = {"color": color, "lw": 1.8, "marker": "o", "ms": 3.2 if len(curve.loss) < 60 else 0}
        accuracy.plot(curve.seconds, 100 * np.array(curve.accuracy), label=label, **style)
        loss.plot(curve.seconds, curve.loss, **style)
        for axes, points in ((accuracy, 100 * curve.accuracy[-1]), (loss, curve.loss[-1])):
            axes.plot(curve.seconds[-1], points, "o", color=color, ms=7)
    accuracy.set(title="Test accuracy, %", ylim=(88, 100))
    accuracy.axhline(100 * GOAL, color="0.6", lw=0.8, ls="--")
    accuracy.legend(loc="lower right", frameon=False, fontsize=9)
    loss.set(title="Training loss (mean cross-entropy)", yscale="log")
    for axes in (accuracy, loss):
        axes.set(xlabel="seconds of training")
        axes.set_xlim(left=0)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    draw_mistakes(figure, grid[1], curves[0], data)
    figure.suptitle(
        f"{len(data.y_train):,} handwritten digits, net {'-'.join(map(str, SIZES))}, "
        f"{num_threads} thread{'s' * (num_threads > 1)}"
    )
    return figure


def draw_mistakes(figure: Any, place: Any, curve: Curve, data: Digits, columns: int = 12) -> None:
    """Draw the first test images that the net gets wrong, with truth and answer."""
    wrong = np.flatnonzero(curve.labels != data.y_test)
    all_axes = place.subgridspec(1, columns).subplots()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, index in zip(all_axes, wrong, strict=False):
        axes.imshow(data.x_test[index].reshape(8, 8), cmap="gray_r", interpolation="nearest")
        axes.set_title(f"{data.y_test[index]} read as {curve.labels[index]}", fontsize=8)
    figure.text(
        0.012,
        0.215,
        f"Test images that natgrad_fast gets wrong: {wrong.size} of {len(data.y_test)}",
        fontsize=10,
    )
