"""Nets as ONNX models (``pip install 'natgrad_fast[onnx]'``)."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from .. import _core
from .._typing import ActivationName
from ..losses import Loss, LossName, as_loss
from ..model.mlp import MLP

__all__ = ["export"]

# The operators below have their present meaning from here on.
OPSET = 13
# Activations that are one operator, with its attributes.
OPERATORS: dict[str, tuple[str, dict[str, float]]] = {
    "tanh": ("Tanh", {}),
    "logistic": ("Sigmoid", {}),
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "softplus": ("Softplus", {}),
    "sin": ("Sin", {}),
}
LINKS = {
    "softmax_cross_entropy": "softmax",
    "bernoulli_cross_entropy": "logistic",
    "poisson": "exp",
    "squared_error": "identity",
    "student_t": "identity",
}


def _library() -> Any:
    try:
        import onnx
    except ImportError:
        raise ImportError("export needs onnx: pip install 'natgrad_fast[onnx]'") from None
    return onnx


class _Graph:
    """Nodes one after the other, and their constants."""

    def __init__(self, onnx: Any, dtype: np.dtype[np.floating]) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: object) -> str:
        array = np.asarray(value, self.dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        made = self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(made)
        return output

    def activation(self, name: str, x: str, place: str) -> str:
        """Nodes of phi(x), as products and sums where there is no operator of their own."""
        if name == "identity":
            return x
        if name in OPERATORS:
            operator, attributes = OPERATORS[name]
            is_double = self.dtype == np.float64
            if not is_double or operator in ("Tanh", "Sigmoid", "Relu"):
                return self.node(operator, [x], f"{place}_{name}", **attributes)
            return self._double(name, x, place)
        if name == "silu":  # x logistic(x)
            gate = self.node("Sigmoid", [x], f"{place}_gate")
            return self.node("Mul", [x, gate], f"{place}_silu")
        if name == "gelu":  # x (1 + erf(x / sqrt 2)) / 2
            if self.dtype == np.float64:
                raise ValueError(
                    f"{place}: gelu in float64 can not be exported: onnxruntime has no erf of "
                    "float64. Export a float32 net"
                )
            half = self.constant(f"{place}_half", 0.5)
            root = self.constant(f"{place}_root", np.sqrt(0.5))
            one = self.constant(f"{place}_one", 1.0)
            scaled = self.node("Mul", [x, root], f"{place}_scaled")
            erf = self.node("Erf", [scaled], f"{place}_erf")
            share = self.node("Add", [erf, one], f"{place}_share")
            product = self.node("Mul", [x, share], f"{place}_product")
            return self.node("Mul", [product, half], f"{place}_gelu")
        raise ValueError(f"{place}: the activation {name!r} can not be exported")

    def _double(self, name: str, x: str, place: str) -> str:
        """Activations that onnxruntime has in float32 alone, from operators that it has in both."""
        if name == "sin":
            return self.node("Sin", [x], f"{place}_sin")
        zero = self.constant(f"{place}_zero", 0.0)
        positive = self.node("Relu", [x], f"{place}_positive")
        if name == "softplus":  # max(x, 0) + log(1 + exp(-|x|))
            size = self.node("Abs", [x], f"{place}_abs")
            minus = self.node("Sub", [zero, size], f"{place}_minus")
            power = self.node("Exp", [minus], f"{place}_exp")
            one = self.constant(f"{place}_one", 1.0)
            total = self.node("Add", [power, one], f"{place}_sum")
            log = self.node("Log", [total], f"{place}_log")
            return self.node("Add", [positive, log], f"{place}_softplus")
        negative = self.node("Sub", [x, positive], f"{place}_negative")  # min(x, 0)
        if name == "leaky_relu":
            slope = self.constant(f"{place}_slope", 0.01)
            part = self.node("Mul", [negative, slope], f"{place}_part")
        else:  # elu: exp(min(x, 0)) - 1
            one = self.constant(f"{place}_one", 1.0)
            power = self.node("Exp", [negative], f"{place}_exp")
            part = self.node("Sub", [power, one], f"{place}_part")
        return self.node("Add", [positive, part], f"{place}_{name}")

    def link(self, name: str, z: str) -> str:
        """Nodes of the mean of a predictive law."""
        if name == "identity":
            return z
        if name == "softmax":
            return self.node("Softmax", [z], "mean_softmax", axis=-1)
        operator = {"logistic": "Sigmoid", "exp": "Exp"}[name]
        return self.node(operator, [z], f"mean_{name}")


def export(
    net: MLP,
    path: str | os.PathLike[str],
    *,
    loss: LossName | Loss | None = None,
) -> None:
    """Write a net as an ONNX model.

    Parameters
    ----------
    net : MLP
    path : path
        Replaced when the new file is whole.
    loss : str or Loss, optional
        Given, the model's output is the mean of the predictive law, such as probabilities, as
        `Loss.mean` for several targets; else the outputs of the net.

    Raises
    ------
    ImportError
        Without onnx.
    ValueError
        For an activation or loss that has no operators of ONNX in the net's dtype: gelu in
        float64, and gaussian_mean_variance.

    Notes
    -----
    Input "X" (N, d_0) with any N, output "output" (N, C), both in the dtype of the net, opset 13.

    Examples
    --------
    >>> import os, tempfile, natgrad_fast as ng
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "net.onnx")
    ...     ng.onnx.export(ng.MLP([3, 8, 2]), path, loss="softmax_cross_entropy")
    ...     os.path.getsize(path) > 100
    True
    """
    onnx = _library()
    if not isinstance(net, MLP):
        raise TypeError(f"net must be an MLP, got {net!r}")
    graph = _Graph(onnx, net.dtype)
    x = "X"
    names: tuple[ActivationName, ...] = net.activations  # type: ignore[assignment]
    for number, (w, b, name) in enumerate(zip(net.weights, net.biases, names, strict=True)):
        place = f"layer{number}"
        inputs = [x, graph.constant(f"{place}_weight", w)]
        if b.size:
            inputs.append(graph.constant(f"{place}_bias", b))
        x = graph.node("Gemm", inputs, f"{place}_gemm", transB=1)
        x = graph.activation(name, x, place)
    if loss is not None:
        chosen = as_loss(loss)
        chosen.num_targets(net.sizes[-1])
        if chosen.name not in LINKS:
            raise ValueError(f"the mean of {chosen.name} can not be exported: leave loss out")
        x = graph.link(LINKS[chosen.name], x)
    graph.node("Identity", [x], "output")
    helper = onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(net.dtype)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "natgrad_fast",
            [helper.make_tensor_value_info("X", kind, ["N", net.sizes[0]])],
            [helper.make_tensor_value_info("output", kind, ["N", net.sizes[-1]])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="natgrad_fast",
        producer_version=_core.__version__,
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    target = os.path.realpath(os.fspath(path))
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
