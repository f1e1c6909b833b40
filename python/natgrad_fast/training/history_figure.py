"""The figure of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_name

__all__ = ["draw"]

# Attribute, title of its axis, whether the axis is logarithmic.
PANELS = (
    ("loss", "objective", True),
    ("damping", "damping", True),
    ("reduction_ratio", "reduction ratio", False),
    ("learning_rate", "learning rate", True),
    ("solve_iterations", "solver iterations", False),
)


def draw(
    arrays: Mapping[str, NDArray[Any]], validation: Sequence[float | None], against: str
) -> Any:
    """Draw the arrays of `History.to_dict` and the validation loss of every epoch."""
    as_name(against, "against", ("step", "seconds"))
    if not arrays:
        raise ValueError("there are no steps to plot")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from None
    x = arrays["step"] if against == "step" else arrays["elapsed"]
    rejected = ~arrays["accepted"]
    figure = Figure(figsize=(8.0, 2.0 * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), sharex=True)
    for axis, (name, title, is_logarithmic) in zip(axes, PANELS, strict=True):
        values = np.asarray(arrays[name], float)
        values = np.where(np.isfinite(values), values, np.nan)
        axis.plot(x, values, lw=1.2)
        if rejected.any():
            axis.plot(x[rejected], values[rejected], "x", ms=4, label="rejected")
        if is_logarithmic and (values > 0).any():
            axis.set_yscale("log")
        if name == "reduction_ratio":
            axis.set_ylim(-1.0, 2.0)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
    if rejected.any():
        axes[0].legend()
    if any(loss is not None for loss in validation):
        last = np.searchsorted(arrays["epoch"], np.arange(len(validation)), side="right") - 1
        losses = [np.nan if loss is None else loss for loss in validation]
        axes[0].plot(x[last], losses, ".-", lw=1.0, label="validation")
        axes[0].legend()
    axes[-1].set_xlabel("step" if against == "step" else "seconds of steps")
    return figure
