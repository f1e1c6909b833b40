"""Data that are far from unit scale, for which initialisations and dampings are not made.

Measured with the defaults, nets of 32 tanh units, objective after a fixed number of steps beside
that of standardised columns:

    one column in 30 times 10, or times 100     breast cancer: as good; 2 to 200 times as large
    all columns times 0.6, 3 or 16 (max. 255)   digits, rms 8, 24, 120: as good; 5; 100 times
    all columns divided by 100, 1000            digits: 60 times; hardly falls
    offsets of 3, 10, 30 standard deviations    digits: as good; up to 1000 times; hardly falls
    targets times 10, 77; 25 to 346             diabetes: 1.05, 1.2, 1.5 times
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..losses import Loss

__all__ = ["advice_on_scales", "sampled_cases"]

MOST_CASES, MOST_ELEMENTS, LEAST_CASES = 10_000, 1 << 16, 100
# Root mean square of a column of X and of y that is too large, and its inverse for a largest
# element that makes all of them too small; standard deviations between a column of X and 0.
FAR, FAR_TARGET, OFFSET = 30.0, 100.0, 10.0
# Share of subnormal inputs. Measured on a Xeon: with 6 % of them a step takes 15 times as long.
MOST_SUBNORMAL = 1e-3
# Losses whose targets are compared with the outputs as they are.
OF_DIFFERENCES = ("squared_error", "student_t", "gaussian_mean_variance")


def sampled_cases(num_cases: int, num_columns: int) -> NDArray[np.intp]:
    """Places of some cases, evenly spaced: about 2^16 elements, read in half a millisecond."""
    most = max(LEAST_CASES, min(MOST_CASES, MOST_ELEMENTS // num_columns))
    if num_cases <= most:
        return np.arange(num_cases)
    return np.arange(most) * num_cases // most


def advice_on_scales(x: Array, targets: Array, loss: Loss) -> str | None:
    """What to do about data that are far from unit scale; None where they are not.

    Parameters
    ----------
    x : (n, d_0) array
        Inputs of some cases. Columns in which they are all the same say nothing, and columns of
        zeros and ones are never far from unit scale, however rare the ones are.
    targets : (n, num_targets) array
        Looked at for losses of differences, such as squared_error.
    """
    fault = _fault(x, "X", FAR, OFFSET)
    if fault is not None:
        return (
            f"{fault}: training may be slow or fail. Standardise the columns that are not "
            "constant, X = (X - X.mean(0)) / X.std(0), and later inputs by the same numbers"
        )
    tiny = float(np.finfo(x.dtype).tiny)
    share = float(np.mean((x != 0.0) & (np.abs(x) < tiny)))
    if share > MOST_SUBNORMAL:
        return (
            f"{share:.2%} of the elements of X are below the smallest normal number of {x.dtype} "
            f"({tiny:.2g}), with which some processors compute ten times more slowly: set them to "
            f"0, X[abs(X) < {tiny:.2g}] = 0"
        )
    if loss.name in OF_DIFFERENCES:
        fault = _fault(targets, "y", FAR_TARGET, math.inf)
        if fault is not None:
            return (
                f"{fault}: training may be slow or fail. Standardise the targets, "
                "y = (y - y.mean(0)) / y.std(0), and undo that in predictions"
            )
    return None


def _fault(a: Array, name: str, far: float, offset: float) -> str | None:
    """Which columns are far from unit scale, in words."""
    columns = np.array(a.T, dtype=np.float64, order="C")
    low, high = columns.min(axis=1), columns.max(axis=1)
    varies = low < high
    size = np.maximum(np.abs(low), np.abs(high))
    largest = float(size[varies].max(initial=0.0))
    if not varies.any() or largest == 0.0:
        return None
    if largest < 1.0 / far:
        return f"{name} is far from unit scale (no element is larger than {largest:.3g})"
    with np.errstate(over="ignore", invalid="ignore"):  # Inf, and NaN from it, count as large
        mean = columns.sum(axis=1) / a.shape[0]
        columns -= mean[:, None]
        square = np.einsum("ij,ij->i", columns, columns) / a.shape[0]
        deviation = np.nan_to_num(np.sqrt(square), nan=np.inf)
        length = np.hypot(mean, deviation)
        is_offset = np.abs(mean) > offset * np.maximum(deviation, 1.0)
    bad = np.flatnonzero(varies & ((length > far) | is_offset))
    if bad.size == 0:
        return None
    j = int(bad[np.argmax(length[bad])])
    several = "" if bad.size == 1 else f", the furthest of {bad.size}"
    return (
        f"column {j} of {name} is far from unit scale "
        f"(mean {mean[j]:.3g}, standard deviation {deviation[j]:.3g}{several})"
    )
