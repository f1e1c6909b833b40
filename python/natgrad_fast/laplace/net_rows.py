"""Rows of a net's Jacobian, case by case, and nets that are parts of others."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..model.mlp import MLP

__all__ = ["double_copy", "jacobian_rows", "split_last_layer"]


def jacobian_rows(net: MLP, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jacobian (N, C, P) of the outputs of a float64 net; 2 N C P flops.

    Every case is linearised by itself, so that no row is multiplied with other cases.
    """
    width = net.sizes[-1]
    rows = np.empty((len(x), width, net.num_params))
    one_hot = np.eye(width)[:, None, :]
    for i in range(len(x)):
        rows[i] = net.linearize_checked(x[i : i + 1], 1, 0).vjp(one_hot)
    return rows


def double_copy(net: MLP) -> MLP:
    """Return the net with float64 parameters of its own."""
    other = _like(net, 0, net.num_layers)
    other.params = net.params
    return other


def split_last_layer(net: MLP) -> tuple[MLP | None, MLP]:
    """Return the layers below the last one, None if there are none, and the last one; float64."""
    below = None
    if net.num_layers > 1:
        below = _like(net, 0, net.num_layers - 1)
        below.params = net.params[: below.num_params]
    head = _like(net, net.num_layers - 1, net.num_layers)
    head.params = net.params[net.num_params - head.num_params :]
    return below, head


def _like(net: MLP, first: int, stop: int) -> MLP:
    """A float64 net of some of the layers, all parameters 0."""
    return MLP(
        net.sizes[first : stop + 1],
        cast(Any, net.activations[first:stop]),
        bias=net.layout[1][first:stop],
        dtype="float64",
        init="zeros",
    )
