"""Nets of torch.nn.Sequential, and back; parameters are in the same order.

Objectives: a mean loss of torch is ours times a factor, and so are gradient and curvature,

    torch.nn.CrossEntropyLoss()            1     softmax_cross_entropy
    torch.nn.BCEWithLogitsLoss()           1/C   bernoulli_cross_entropy, C outputs
    torch.nn.MSELoss()                     2/C   squared_error, half the square here
    torch.nn.PoissonNLLLoss()              1/C   poisson

with reduction="mean", which is over cases and outputs; the empirical Fisher matrix, of gradients of
single cases, takes the square of the factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .._arrays import as_float_dtype
from .._typing import ActivationName
from ..model.mlp import MLP

__all__ = ["from_sequential", "load_parameters", "to_sequential"]

CLASSES: dict[ActivationName, str] = {
    "identity": "Identity",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "softplus": "Softplus",
    "gelu": "GELU",
    "silu": "SiLU",
}
# Options that have to be these.
OPTIONS: dict[str, dict[str, object]] = {
    "LeakyReLU": {"negative_slope": 0.01},
    "ELU": {"alpha": 1.0},
    "Softplus": {"beta": 1.0},
    "GELU": {"approximate": "none"},
}
# What does nothing when a net is evaluated.
SKIPPED = ("Dropout", "AlphaDropout", "Flatten")


def _library() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError("natgrad_fast.torch needs torch: pip install torch") from None
    return torch


def from_sequential(module: Any, *, dtype: DTypeLike | None = None) -> MLP:
    """Make a net of a `torch.nn.Sequential`; its parameters are copied.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of Linear layers, with or without bias, and of Identity, Tanh, Sigmoid, ReLU, LeakyReLU,
        ELU, Softplus, GELU and SiLU between and behind them, as `MLP` has them. Sequentials inside
        are gone through; Dropout and Flatten do nothing where a net is evaluated, and are left out.
    dtype : dtype, optional
        float32 or float64; that of the first layer by default.

    Raises
    ------
    ImportError
        Without torch.
    ValueError, TypeError
        For other modules and options, with the place of the layer, its class and why.

    Examples
    --------
    ``net = ng.torch.from_sequential(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))``
    """
    torch = _library()
    linears, activations = _layers(torch, module)
    first = linears[0][1].weight
    kind = as_float_dtype(str(first.dtype).removeprefix("torch.") if dtype is None else dtype)
    sizes = [linears[0][1].in_features]
    for place, layer in linears:
        if layer.in_features != sizes[-1]:
            raise ValueError(
                f"layer {place} (Linear) takes {layer.in_features} inputs, the one before it gives "
                f"{sizes[-1]}"
            )
        sizes.append(layer.out_features)
    net = MLP(
        sizes,
        activations[:-1],
        output_activation=activations[-1],
        bias=[layer.bias is not None for _, layer in linears],
        dtype=kind,
        init="zeros",
    )
    load_parameters(net, module)
    return net


def load_parameters(net: MLP, module: Any) -> None:
    """Copy the parameters of a `torch.nn.Sequential` into a net of the same layers.

    Parameters
    ----------
    net : MLP
    module : torch.nn.Sequential

    Raises
    ------
    ImportError
        Without torch.
    ValueError, TypeError
        If the layers are others; the net is as it was.
    """
    torch = _library()
    linears, activations = _layers(torch, module)
    shapes = [(layer.in_features, layer.out_features) for _, layer in linears]
    wanted = list(zip(net.sizes[:-1], net.sizes[1:], strict=True))
    if shapes != wanted or tuple(activations) != net.activations:
        raise ValueError(f"module has the layers {shapes} {activations}, the net is {net!r}")
    parts = []
    for (place, layer), own in zip(linears, net.biases, strict=True):
        if (layer.bias is not None) != (own.size > 0):
            raise ValueError(f"layer {place} (Linear) and that of the net differ in their bias")
        for name in ("weight", "bias") if own.size else ("weight",):
            parts.append(_array(getattr(layer, name), f"layer {place} (Linear): {name}", net))
    net.params = np.concatenate([part.ravel() for part in parts])


def to_sequential(net: MLP) -> Any:
    """Make a `torch.nn.Sequential` of a net; its parameters are copied.

    Parameters
    ----------
    net : MLP
        With any activation but "sin", which torch has no module for.

    Returns
    -------
    torch.nn.Sequential
        In the dtype of the net.
    """
    torch = _library()
    modules = []
    for number, (w, b, name) in enumerate(
        zip(net.weights, net.biases, net.activations, strict=True)
    ):
        known = [torch_name for ours, torch_name in CLASSES.items() if ours == name]
        if not known:
            raise ValueError(f"layer {number}: torch has no module for the activation {name!r}")
        layer = torch.nn.Linear(
            w.shape[1], w.shape[0], bias=b.size > 0, dtype=getattr(torch, str(net.dtype))
        )
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.copy()))
            if b.size:
                layer.bias.copy_(torch.from_numpy(b.copy()))
        modules.append(layer)
        if name != "identity":
            modules.append(getattr(torch.nn, known[0])())
    return torch.nn.Sequential(*modules)


def _layers(torch: Any, module: Any) -> tuple[list[tuple[str, Any]], list[ActivationName]]:
    """Linear layers with their places, and what follows each of them."""
    if not isinstance(module, torch.nn.Sequential):
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    names = {getattr(torch.nn, known): name for name, known in CLASSES.items()}
    linears: list[tuple[str, Any]] = []
    activations: list[ActivationName] = []
    for place, layer in _flat(torch, module, ""):
        kind = type(layer)
        where = f"layer {place} ({kind.__name__})"
        if kind is torch.nn.Linear:
            linears.append((place, layer))
            activations.append("identity")
        elif kind in names:
            if not linears:
                raise ValueError(f"{where} comes before the first Linear")
            if names[kind] == "identity":
                continue
            if activations[-1] != "identity":
                raise ValueError(f"{where} follows another activation, a net has one a layer")
            _check_options(layer, where)
            activations[-1] = names[kind]
        elif kind.__name__ in ("Softmax", "LogSoftmax"):
            raise ValueError(
                f"{where}: the outputs of a net are natural parameters, the softmax belongs to the "
                "loss softmax_cross_entropy. Leave it out"
            )
        elif kind.__name__ not in SKIPPED:
            raise ValueError(f"{where} is nothing that a dense net has")
    if not linears:
        raise ValueError("module has no Linear layer")
    return linears, activations


def _flat(torch: Any, module: Any, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, child in module.named_children():
        place = f"{prefix}{name}"
        if isinstance(child, torch.nn.Sequential):
            found += _flat(torch, child, f"{place}.")
        else:
            found.append((place, child))
    return found


def _check_options(layer: Any, where: str) -> None:
    for name, wanted in OPTIONS.get(type(layer).__name__, {}).items():
        if getattr(layer, name) != wanted:
            raise ValueError(f"{where} has {name}={getattr(layer, name)}, a net has {wanted}")


def _array(tensor: Any, where: str, net: MLP) -> Any:
    if tensor.is_meta:
        raise ValueError(f"{where} is on the meta device and holds no numbers")
    if tensor.is_complex():
        raise ValueError(f"{where} is complex")
    return tensor.detach().cpu().double().numpy().astype(net.dtype)
