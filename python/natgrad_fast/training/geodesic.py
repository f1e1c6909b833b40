"""Geodesic acceleration of least-squares steps: the second derivative along the step."""

from __future__ import annotations

import math

from .._arrays import dot
from .._typing import Array, Linearization
from ..losses import Loss, SquaredError
from ..model.batch import Batch
from ..operators.base import Operator
from ..solvers import StepSolver

__all__ = ["check_geodesic", "with_acceleration"]

# Length of the difference in units of the step (Transtrum & Sethna, arXiv 1201.5885, section 4),
# and the largest 2 |a| / |d| of a series that is still believed.
DIFFERENCE, LARGEST_RATIO = 0.1, 0.75


def check_geodesic(loss: Loss) -> None:
    """Raise ValueError unless the loss is that of least squares."""
    if not isinstance(loss, SquaredError):
        raise ValueError(f"geodesic acceleration is for squared_error, the loss is {loss.name}")


def with_acceleration(
    x: Array,
    batch: Batch,
    linearization: Linearization,
    solver: StepSolver,
    matrix: Operator,
    damping: float,
) -> Array:
    """Solution x (P,), so that d = -x, and what its own curvature adds.

        d + a / 2,   (B + damping I) a = -J'W z'',   z'' = (2 / h) ((z(theta + h d) - z) / h - J d)

    with outputs z (N, C) and weights W of the cases. Where 2 |a| / |d| > 0.75 the series is not to
    be believed, and x stays.

    Notes
    -----
    Two forward passes, a product with J and one with J', and a solve with what was factorised.
    """
    net, threads = batch.net, batch.num_threads
    scalar = net.dtype.type

    def outputs(params: Array) -> Array:
        z: Array = net._core.predict(
            net._architecture, params=params, x=batch.x, num_threads=threads
        )
        return z

    h = scalar(DIFFERENCE)
    slope = linearization.jvp(-x[None])[0]
    second = (outputs(net.params - h * x) - outputs(net.params)) / h - slope
    second *= scalar(2.0) / h
    weights = scalar(1.0) if batch.weights is None else batch.weights[:, None]
    right = (second * weights / batch.total_weight).astype(net.dtype)
    a = solver.direction(matrix, linearization.vjp(right[None])[0], damping, None).x
    lengths = [math.sqrt(dot(v, v, threads)) for v in (a, x)]
    if not 2.0 * lengths[0] <= LARGEST_RATIO * lengths[1]:
        return x
    bent: Array = x + scalar(0.5) * a
    return bent
