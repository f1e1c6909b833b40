"""Rows of a net's Jacobian, case by case, and nets that are parts of others."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..model.mlp import MLP

__all__ = ["double_copy", "jacobian_rows", "layer_rows", "split_last_layer"]


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


def layer_rows(
    net: MLP, x: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Parts of the Jacobian of each layer, whose rows for [W b] are deltas (x) inputs.

    Returns
    -------
    list of (inputs, deltas)
        Inputs (N, n) of the layer, and a constant 1 where it has a bias; derivatives (N, C, d) of
        the outputs in its pre-activations.
    """
    bias = net.layout[1]
    biased = _like(net, 0, net.num_layers, True)  # derivatives in biases are the deltas
    for w, b, own_w, own_b in zip(
        biased.weights, biased.biases, net.weights, net.biases, strict=True
    ):
        w[...] = own_w
        b[...] = own_b if own_b.size else 0.0
    places, deltas = biased.bias_places, []
    one_hot = np.eye(net.sizes[-1])[:, None, :]
    for i in range(len(x)):
        rows: NDArray[np.float64] = cast(
            Any, biased.linearize_checked(x[i : i + 1], 1, 0).vjp(one_hot)
        )
        deltas.append([rows[:, place] for place in places])
    parts = []
    for layer in range(net.num_layers):
        inputs = x
        if layer > 0:
            below = _like(net, 0, layer)
            below.params = net.params[: below.num_params]
            inputs = cast(NDArray[np.float64], below(x, num_threads=1))
        if bias[layer]:
            inputs = np.hstack([inputs, np.ones((len(x), 1))])
        parts.append((inputs, np.stack([of_case[layer] for of_case in deltas])))
    return parts


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


def _like(net: MLP, first: int, stop: int, bias: bool | None = None) -> MLP:
    """A float64 net of some of the layers, all parameters 0."""
    return MLP(
        net.sizes[first : stop + 1],
        cast(Any, net.activations[first:stop]),
        bias=net.layout[1][first:stop] if bias is None else bias,
        dtype="float64",
        init="zeros",
    )
