"""Figures of curvature matrices and of trainings; they need matplotlib.

Nothing of pyplot is touched: a figure is an object that `savefig` writes, and that a notebook
shows by itself.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import as_count, as_dampings, as_vector
from .linear import Status, dense_solve, multishift_cg
from .operators import DenseMatrix
from .operators.linear_map import LinearMap, as_linear_map
from .training import History

__all__ = ["damping_path", "history", "spectrum"]

MOST_DENSE = 2000  # rows of a matrix whose eigenvalues are all computed
MOST_SOLVED_DENSELY = 500
TOP = 50  # eigenvalues of a larger one
# Of Okabe & Ito (2008): told apart by every kind of colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"


def _figure(axes: Any, count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """The figure of the given axes, or a new one with `count` of them, one above the other."""
    if axes is not None:
        given = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(given) != count or not all(hasattr(one, "get_figure") for one in given):
            raise TypeError(
                f"{'ax' if count == 1 else 'axes'} must be {count} of matplotlib's Axes, "
                f"got {axes!r}"
            )
        return given[0].get_figure(), given
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'natgrad_fast[plots]'") from None
    figure = module.Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, list(np.ravel(figure.subplots(count, sharex=True, squeeze=False)))


def _tidy(axis: Any) -> None:
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def spectrum(A: Any, *, k: int | None = None, ax: Any = None) -> Any:
    """Draw the eigenvalues of a curvature matrix, the largest first, on a logarithmic axis.

    Negative ones, which a Hessian may have, are drawn by their size in another colour and shape.
    What lies below P eps of the largest is rounding, and shaded.

    Parameters
    ----------
    A : operator or (P, P) array_like
        As in `cg`: a `Fisher`, `GGN`, `Hessian`, SciPy's operators, symmetric arrays.
    k : int, optional
        How many eigenvalues, those of the largest size. All of a matrix of up to 2,000 rows, else
        50 by default. At most P - 1 of a larger matrix.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure
        Of `ax`.

    Raises
    ------
    ImportError
        Without matplotlib, or for a matrix of more than 2,000 rows without SciPy.
    ValueError, TypeError
        For a matrix that is not square or of real numbers, or k out of range.

    Notes
    -----
    Up to 2,000 rows A is formed and all eigenvalues are computed in float64; else by Lanczos
    iterations with restarts (Lehoucq, Sorensen & Yang 1998; ARPACK), some 10 k products.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> figure = ng.plots.spectrum(ng.Fisher(net, "squared_error", X))
    >>> figure.axes[0].get_yscale()
    'log'
    """
    operator = as_linear_map(A)
    size = operator.size
    is_dense = size <= MOST_DENSE
    most = size if is_dense else size - 1
    count = (size if is_dense else TOP) if k is None else as_count(k, "k", 1)
    if count > most:
        raise ValueError(f"k must be <= {most} for {size} rows, got {count}")
    figure, (axis,) = _figure(ax, 1, 6.4, 4.2)
    values = _eigenvalues(A, operator, count, is_dense)
    number = np.arange(1, len(values) + 1)
    for is_it, marker, colour, label in (
        (values > 0.0, "o", BLUE, "positive"),
        (values < 0.0, "v", ORANGE, "negative (its size)"),
    ):
        if is_it.any():
            axis.plot(
                number[is_it], np.abs(values[is_it]), marker, ms=3.5, color=colour, label=label
            )
    axis.set_yscale("log")
    largest = float(np.abs(values).max())
    rounding = size * float(np.finfo(operator.dtype).eps) * largest
    smallest = float(np.abs(values[values != 0.0]).min()) if largest else 0.0
    if 0.0 < smallest < rounding:
        low = max(smallest, rounding * 1e-4)
        axis.axhspan(low / 2, rounding, color="0.9", zorder=0, label="rounding")
        axis.set_ylim(bottom=low / 2)
    if (values < 0.0).any() or smallest < rounding:
        axis.legend(frameon=False)
    of = f"{count:,} largest of {size:,}" if count < size else f"all {size:,}"
    axis.set_title(f"Eigenvalues: {of}", loc="left", fontsize=11)
    axis.set_xlabel("number, from the largest")
    axis.set_ylabel("eigenvalue")
    _tidy(axis)
    return figure


def _eigenvalues(A: Any, operator: LinearMap, count: int, is_dense: bool) -> NDArray[np.float64]:
    """The `count` eigenvalues of the largest size, from the largest down."""
    size = operator.size
    if is_dense:
        matrix = DenseMatrix(A).to_dense()
        values = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
    else:
        try:
            linalg: Any = importlib.import_module("scipy.sparse.linalg")
        except ImportError:
            raise ImportError(
                f"the spectrum of {size} rows needs SciPy: pip install scipy"
            ) from None
        product = linalg.LinearOperator(
            (size, size),
            matvec=lambda v: operator.apply(np.ravel(v).astype(operator.dtype)[None])[0],
            dtype=operator.dtype,
        )
        start = np.random.default_rng(0).normal(size=size).astype(operator.dtype)
        values = linalg.eigsh(product, count, which="LM", v0=start, return_eigenvectors=False)
    kept = np.argsort(np.abs(values))[::-1][:count]
    ordered: NDArray[np.float64] = np.sort(np.asarray(values[kept], np.float64))[::-1]
    return ordered


def damping_path(
    A: Any, g: ArrayLike, dampings: ArrayLike | None = None, *, axes: Any = None
) -> Any:
    """Draw the length of the step and what it promises against the damping.

    The step d = -(A + damping I)^-1 g promises to lower the quadratic model g'd + d'A d / 2 by
    g'x / 2 + damping |x|^2 / 2, x = -d. Where the curves bend, the damping begins to act.

    Parameters
    ----------
    A : operator or (P, P) array_like
        As in `cg`.
    g : (P,) array_like
        Gradient.
    dampings : (m,) array_like, optional
        > 0; by default 33 from 1e-6 to 1e2 of the curvature along g, g'A g / g'g.
    axes : two of matplotlib's Axes, optional
        Where to draw, the length first; a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure
        Of the first one of `axes`. Hollow points are of solves that did not converge.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    One eigendecomposition up to 500 rows; else one Krylov run for all dampings, as
    `multishift_cg` does, with residuals of 1e-4 |g| and at most 1,000 products.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X, y = np.linspace(-1, 1, 40)[:, None], np.ones(40)
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> _, g = ng.value_and_grad(net, "squared_error", X, y)
    >>> figure = ng.plots.damping_path(ng.Fisher(net, "squared_error", X), g)
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['length of the step', 'predicted reduction']
    """
    operator = as_linear_map(A)
    vector = as_vector(g, "g", operator.size, operator.dtype)
    shifts = _dampings(operator, vector, dampings)
    figure, (above, below) = _figure(axes, 2, 6.4, 5.4)
    if operator.size <= MOST_SOLVED_DENSELY:
        found: Any = dense_solve(A, vector, damping=shifts, method="eigh")
    else:
        found = multishift_cg(A, vector, shifts, rtol=1e-4, max_iter=1000)
    x = np.asarray(found.x, np.float64)  # (P, m)
    length = np.linalg.norm(x, axis=0)
    promise = 0.5 * (np.asarray(vector, np.float64) @ x) + 0.5 * shifts * length**2
    is_solved = np.array([column.status is Status.CONVERGED for column in found.columns])
    for axis, values, name in (
        (above, length, "length of the step"),
        (below, promise, "predicted reduction"),
    ):
        axis.plot(shifts, values, color=BLUE, lw=1.4)
        axis.plot(shifts[is_solved], values[is_solved], "o", ms=4, color=BLUE)
        if not is_solved.all():
            axis.plot(shifts[~is_solved], values[~is_solved], "o", ms=5, mfc="white", mec=ORANGE,
                      label="not converged")  # fmt: skip
        axis.set_xscale("log")
        if (values > 0.0).all():
            axis.set_yscale("log")
        axis.set_ylabel(name)
        _tidy(axis)
    if not is_solved.all():
        above.legend(frameon=False)
    below.set_xlabel("damping")
    return figure


def _dampings(
    operator: LinearMap, g: NDArray[Any], dampings: ArrayLike | None
) -> NDArray[np.float64]:
    """In rising order."""
    if dampings is not None:
        given = np.sort(as_dampings(dampings, "dampings"))
        if given[0] <= 0.0:
            raise ValueError(f"dampings must be > 0 on a logarithmic axis, got {given[0]:g}")
        return given
    wide = np.asarray(g, np.float64)
    along = abs(float(wide @ np.asarray(operator.apply(g[None])[0], np.float64)))
    square = float(wide @ wide)
    scale = along / square if along > 0.0 else 1.0
    return scale * np.logspace(-6.0, 2.0, 33)


def history(record: History, against: str = "step") -> Any:
    """Draw a training: the same as `History.plot`.

    Parameters
    ----------
    record : History
        What `NaturalGradient.fit` returned.
    against : {"step", "seconds"}
        What the horizontal axis shows.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError, TypeError
        For a history without steps, or anything else than a history.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 8, 1], seed=0), "squared_error")
    >>> figure = ng.plots.history(opt.fit(X, np.sin(X), epochs=5))
    >>> figure.axes[0].get_ylabel()
    'objective'
    """
    if not isinstance(record, History):
        raise TypeError(f"record must be a History, as fit returns it, got {record!r}")
    return record.plot(against)
