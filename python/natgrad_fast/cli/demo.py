"""Demonstration: natural gradient beside Adam, on a smooth function and on handwritten digits."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._typing import ActivationName
from ..config import default_num_threads
from ..losses import LossName
from ..model.batch import value
from ..model.mlp import MLP
from ..training.callbacks import TrainingContext
from ..training.optimizer import NaturalGradient
from .surface import Fit, draw_surface, surface_table, train_surface

__all__ = ["run_demo"]

SIZES = (64, 128, 64, 10)
ACTIVATION: ActivationName = "tanh"
LOSS: LossName = "softmax_cross_entropy"
L2 = 1e-4
EVERY = 10  # steps from one row of the table to the next
TEST_IMAGES = 360
GOAL = 0.97  # test accuracy whose time is reported
INSTALL = 'pip install "natgrad_fast[demo]"'
INTERRUPTED = 130  # exit code of a shell command ended by Ctrl-C


@dataclass
class Digits:
    """The split data: images (N, 64) in [0, 1], float32, and labels (N,)."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.intp]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.intp]


@dataclass
class Curve:
    """What a training reached, point by point; its clock runs during training only."""

    name: str
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # mean cross-entropy of the training images
    accuracy: list[float] = field(default_factory=list)  # share of test images
    labels: NDArray[np.intp] | None = None  # of the test images, at the last point
    note: str = ""

    def add(
        self, seconds: float, loss: float, labels: NDArray[np.intp], truth: NDArray[np.intp]
    ) -> None:
        """Append a point that took `seconds` of training."""
        self.seconds.append(seconds + (self.seconds[-1] if self.seconds else 0.0))
        self.loss.append(loss)
        self.accuracy.append(float(np.mean(labels == truth)))
        self.labels = labels

    def last(self) -> str:
        """Format the last point for the table."""
        return f"{self.loss[-1]:9.5f}  {100 * self.accuracy[-1]:7.2f} %  {self.seconds[-1]:7.2f}"

    def seconds_to(self, accuracy: float) -> float:
        """When `accuracy` was reached first; NaN if never."""
        times = [s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= accuracy]
        return times[0] if times else math.nan


def run_demo(
    output: str | Path = "natgrad_fast_demo.png",
    *,
    epochs: int = 60,
    seed: int = 0,
    num_threads: int | None = None,
) -> int:
    """Fit a function and classify handwritten digits, compare both with Adam, and draw all.

    Parameters
    ----------
    output : path
        PNG file to write.
    epochs : int
        Natural-gradient steps on the digits; each sees all training images.
    seed : int
        Of data, split and initial weights.
    num_threads : int, optional
        For all trainings.

    Returns
    -------
    int
        Exit code: 0, 1 if something is missing, 130 after Ctrl-C (with what was done until then).
    """
    output = Path(output).resolve()
    try:
        import matplotlib.figure
        import sklearn.neural_network  # noqa: F401
    except ImportError:
        print(f"the demo needs scikit-learn and matplotlib: {INSTALL}", file=sys.stderr)
        return 1
    if not output.parent.is_dir() or output.is_dir():
        print(f"cannot write {output}: not a file in an existing directory", file=sys.stderr)
        return 1
    num_threads = default_num_threads() if num_threads is None else num_threads
    fits: list[Fit] = []
    interrupted = train_surface(fits, seed, num_threads)
    print(surface_table(fits), flush=True)
    data = load_digits(seed)
    curves: list[Curve] = []
    if not interrupted:
        interrupted = train_digits(data, curves, epochs, seed, num_threads)
    figure = draw(matplotlib.figure.Figure, fits, curves, data, num_threads)
    figure.savefig(output, format="png")
    print(f"\nCurves: {output}", flush=True)
    return INTERRUPTED if interrupted else 0


def train_digits(
    data: Digits, curves: list[Curve], epochs: int, seed: int, num_threads: int
) -> bool:
    """Train and compare; True after Ctrl-C."""
    print(
        f"\nHandwritten digits: {len(data.y_train):,} training and {len(data.y_test)} test images "
        f"of 8 x 8 pixels.\nNet {'-'.join(map(str, SIZES))}, {ACTIVATION}, "
        f"{threads(num_threads)}. Loss: mean cross-entropy of the training images.\n"
        "Seconds: training alone, without the measuring of loss and accuracy.\n"
    )
    interrupted = train_natural_gradient(data, curves, epochs, seed, num_threads)
    if not interrupted:
        interrupted = train_adam(data, curves, seed, num_threads)
    print(summary(curves))
    return interrupted


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
    optimizer = NaturalGradient(net, LOSS, l2=L2, num_threads=num_threads)
    curve = Curve("natgrad_fast")
    curves.append(curve)

    def record(seconds: float) -> str:
        labels = net(data.x_test, num_threads=num_threads).argmax(axis=1)
        loss = value(net, LOSS, data.x_train, data.y_train, num_threads=num_threads)
        curve.add(seconds, loss, labels, data.y_test)
        return curve.last()

    def print_row(context: TrainingContext) -> None:
        info, row = context.info, record(context.info.seconds)
        if info.step == 0 or (info.step + 1) % EVERY == 0:
            what = "" if info.accepted else "step rejected"
            print(
                f"{info.step + 1:5d}  {row}  {info.reduction_ratio:9.2f}  {info.damping:8.2g}  "
                f"{info.learning_rate:9.2g}  {info.momentum:8.2g}  {what}".rstrip(),
                flush=True,
            )

    print(f"natgrad_fast: all defaults, which are solvers.{type(optimizer.solver).__name__}()")
    print(" step       loss  test acc.  seconds  red.ratio   damping      rate  momentum")
    print(f"{0:5d}  {record(0.0)}", flush=True)
    history = optimizer.fit(data.x_train, data.y_train, epochs=epochs, callbacks=[print_row])
    interrupted = history.stop_reason == "interrupted"
    reason = "Ctrl-C" if interrupted else history.stop_reason.replace("_", " ")
    print(f"ended by: {reason}\n", flush=True)
    curve.note = f"{len(history.steps)} steps"
    return interrupted


def train_adam(data: Digits, curves: list[Curve], seed: int, num_threads: int) -> bool:
    """Train MLPClassifier with all its defaults, up to its own stop; True after Ctrl-C."""
    from sklearn.neural_network import MLPClassifier

    threadpoolctl: Any = importlib.import_module("threadpoolctl")  # scikit-learn requires it
    model = MLPClassifier(SIZES[1:-1], activation=ACTIVATION, random_state=seed, verbose=True)
    curve = Curve("scikit-learn Adam")
    curves.append(curve)
    print(f"scikit-learn: MLPClassifier(solver={model.solver!r}), all defaults")
    print("epoch       loss  test acc.  seconds")
    watch = EpochWatch(model, data, curve)
    limit = threadpoolctl.threadpool_limits(num_threads, user_api="blas")
    interrupted = False
    # fit() turns Ctrl-C into a warning, and warns if max_iter comes before convergence.
    with limit, warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(watch):
        warnings.simplefilter("always")
        watch.start()
        try:
            model.fit(data.x_train, data.y_train)
        except KeyboardInterrupt:
            interrupted = True
    interrupted = interrupted or any("interrupted" in str(w.message) for w in caught)
    reason = "Ctrl-C"
    if not interrupted:
        reason = "its convergence rule" if model.n_iter_ < model.max_iter else "its max_iter"
        if len(curve.seconds) % EpochWatch.EVERY:
            print(watch.row())
    print(f"ended by: {reason}\n", flush=True)
    curve.note = f"{len(curve.seconds)} epochs"
    return interrupted


class EpochWatch(io.TextIOBase):
    """Standard output of a verbose `fit`, a line per epoch: there the model is measured.

    So the clock is that of a plain `fit`; partial_fit takes a third longer per epoch. It stands
    still while the model is measured.
    """

    EVERY = 20  # epochs from one row of the table to the next

    def __init__(self, model: Any, data: Digits, curve: Curve) -> None:
        self.model, self.data, self.curve = model, data, curve
        self.out = sys.stdout
        self.since = 0.0

    def start(self) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def write(self, text: str) -> int:
        """Measure at each line about an epoch; nothing is passed on."""
        if text.startswith("Iteration"):
            seconds = time.perf_counter() - self.since
            labels = self.model.predict(self.data.x_test)
            self.curve.add(seconds, log_loss(self.model, self.data), labels, self.data.y_test)
            if len(self.curve.seconds) == 1 or len(self.curve.seconds) % self.EVERY == 0:
                print(self.row(), file=self.out, flush=True)
            self.start()
        return len(text)

    def row(self) -> str:
        """Format the last point."""
        return f"{len(self.curve.seconds):5d}  {self.curve.last()}"


def log_loss(model: Any, data: Digits) -> float:
    """Mean cross-entropy of the training images."""
    p = model.predict_proba(data.x_train)[np.arange(len(data.y_train)), data.y_train]
    return float(-np.mean(np.log(np.maximum(p, np.finfo(np.float32).tiny), dtype=np.float64)))


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


def draw(
    figure_class: Any, fits: list[Fit], curves: list[Curve], data: Digits, num_threads: int
) -> Any:
    """Draw the function above, and below it, if they were begun, the digits."""
    if not curves:
        figure = figure_class(figsize=(12, 3.6), dpi=130, layout="constrained")
        draw_surface(figure, fits)
        return figure
    figure = figure_class(figsize=(12, 10.5), dpi=130, layout="constrained")
    first, top, bottom = figure.subfigures(3, 1, height_ratios=(3.6, 4.4, 1))
    draw_surface(first, fits)
    draw_digits(top, curves, data, num_threads)
    draw_mistakes(bottom, curves[0], data)
    return figure


def draw_digits(top: Any, curves: list[Curve], data: Digits, num_threads: int) -> None:
    """Test accuracy and training loss against seconds."""
    accuracy, loss = top.subplots(1, 2)
    for curve, color in zip(curves, ("#c2410c", "#1d4ed8"), strict=False):
        if not curve.seconds:
            continue
        percent = 100 * np.array(curve.accuracy)
        label = f"{curve.name}: {percent[-1]:.1f} % after {curve.seconds[-1]:.2f} s, {curve.note}"
        marker = "o" if len(percent) < 60 else ""
        for axes, points in ((accuracy, percent), (loss, curve.loss)):
            axes.plot(curve.seconds, points, color=color, lw=1.6, marker=marker, ms=3, label=label)
            axes.plot(curve.seconds[-1], points[-1], "o", color=color, ms=7)
    accuracy.set(title="Test accuracy, %", ylim=(88, 100))
    accuracy.axhline(100 * GOAL, color="0.6", lw=0.8, ls="--")
    accuracy.legend(loc="lower right", frameon=False)
    loss.set(title="Training loss (mean cross-entropy)", yscale="log")
    for axes in (accuracy, loss):
        axes.set(xlabel="seconds of training")
        axes.set_xlim(left=0)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    top.suptitle(
        f"{len(data.y_train) + len(data.y_test):,} handwritten digits, "
        f"net {'-'.join(map(str, SIZES))} ({ACTIVATION}), {threads(num_threads)}",
        fontsize=13,
    )


def draw_mistakes(figure: Any, curve: Curve, data: Digits, columns: int = 12) -> None:
    """Draw the first test images that the net gets wrong, with truth and answer."""
    wrong = np.flatnonzero(curve.labels != data.y_test)
    figure.suptitle(
        f"Test images that {curve.name} gets wrong: {wrong.size} of {len(data.y_test)}",
        fontsize=11,
    )
    assert curve.labels is not None
    all_axes = figure.subplots(1, columns)
    for axes in all_axes:
        axes.set_axis_off()
    for axes, index in zip(all_axes, wrong, strict=False):
        axes.imshow(data.x_test[index].reshape(8, 8), cmap="gray_r")
        axes.set_title(f"{data.y_test[index]} read as {curve.labels[index]}", fontsize=8)


def threads(num_threads: int) -> str:
    """Format a number of threads."""
    return f"{num_threads} thread{'s' * (num_threads > 1)}"
