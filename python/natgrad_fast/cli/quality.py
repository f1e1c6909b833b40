"""How good the predictions of a net are, in the units of its data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..losses import as_loss
from ..model.mlp import MLP
from .data import PROBABILITIES, SCALED
from .run import Run

__all__ = ["measure", "predict"]


def predict(run: Run, net: MLP, x: NDArray[np.float64]) -> NDArray[Any]:
    """Means of the predictive law (N, C) for inputs as they are in the data.

    Probabilities of the classes, where there are classes; else numbers in the units of the data.
    """
    scaled = run.inputs.apply(x).astype(net.dtype)
    mean = net.predict_mean(scaled, as_loss(run.columns.loss)).reshape(len(x), -1)
    if run.columns.classes is not None and run.columns.loss == PROBABILITIES:
        return np.concatenate([1.0 - mean, mean], axis=1)
    return run.targets.undo(mean) if run.columns.loss in SCALED else mean


def measure(run: Run, net: MLP, x: NDArray[np.float64], y: NDArray[Any]) -> dict[str, float]:
    """Figures of merit by name: accuracy for classes, else R2 and root mean square error.

    R2 is the mean over the targets, NaN where a target is constant.
    """
    guess = predict(run, net, x)
    if run.columns.classes is not None:
        return {"accuracy": float(np.mean(guess.argmax(axis=1) == y.reshape(len(x))))}
    errors = np.mean((guess - y) ** 2, axis=0)
    spread = np.var(y, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0.0, 1.0 - errors / spread, np.nan)
    return {"R2": float(np.mean(r2)), "RMSE": float(np.sqrt(np.mean(errors)))}
