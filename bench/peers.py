"""The contestants: this library, numpy, and jax if it is installed.

A contestant is built for one (case, data) and makes functions without arguments that return the
result as something np.asarray takes: `gradient()` -> (P,), `ggn(v)` for v (P,) or (P, K) -> same.
All of them linearise once, outside the timing of `ggn`; the gradient has its forward pass inside.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from cases import Case, Data

Run = Callable[[], Any]


class Contestant(Protocol):
    def gradient(self) -> Run: ...
    def ggn(self, v: np.ndarray) -> Run: ...


class Ours:
    def __init__(self, case: Case, data: Data, num_threads: int) -> None:
        import natgrad_fast as ng

        dtype = data.params.dtype.name
        self.net = ng.MLP(case.sizes, activation=case.activation, dtype=dtype, init="zeros")
        self.net.params = data.params
        self.args = (self.net, case.loss, data.x, data.y)
        self.num_threads = num_threads

    def gradient(self) -> Run:
        import natgrad_fast as ng

        return lambda: ng.value_and_grad(*self.args, num_threads=self.num_threads)[1]

    def ggn(self, v: np.ndarray) -> Run:
        import natgrad_fast as ng

        operator = ng.GGN(*self.args, num_threads=self.num_threads)
        return lambda: operator @ v


def split(case: Case, params: Any) -> list[tuple[Any, Any]]:
    """(..., P) -> per layer W (..., d_l, d_{l-1}) and b (..., d_l), as views."""
    layers, at = [], 0
    for i, o in pairwise(case.sizes):
        w = params[..., at : at + i * o].reshape(*params.shape[:-1], o, i)
        layers.append((w, params[..., at + i * o : at + (i + 1) * o]))
        at += (i + 1) * o
    return layers


class Numpy:
    """The cached minimum of products, with what numpy offers. In float64 it is the reference."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data = case, data
        self.layers = split(case, data.params)

    def forward(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inputs a_{l-1} (N, d_{l-1}) of every layer and phi'(s_l), then z as the last input."""
        inputs, slopes = [self.data.x], []
        for w, b in self.layers[:-1]:
            s = inputs[-1] @ w.T + b
            if self.case.activation == "tanh":
                inputs.append(np.tanh(s))
                slopes.append(1 - inputs[-1] ** 2)
            elif self.case.activation == "relu":
                inputs.append(np.maximum(s, 0))
                slopes.append((s > 0).astype(s.dtype))
            else:
                raise ValueError(f"no {self.case.activation} here")
        w, b = self.layers[-1]
        return [*inputs, inputs[-1] @ w.T + b], slopes

    def residual(self, z: np.ndarray) -> np.ndarray:
        """d loss / d z of every case, (N, C)."""
        if self.case.loss == "squared_error":
            return z - self.data.y
        p = softmax(z)
        p[np.arange(len(p)), self.data.y] -= 1
        return p

    def backward(self, inputs: list, slopes: list, delta: np.ndarray) -> np.ndarray:
        """J' delta / N for delta (..., N, C), over the leading axes -> (..., P)."""
        delta = delta / delta.dtype.type(self.case.batch)
        out = np.empty((*delta.shape[:-2], self.case.num_params), delta.dtype)
        parts = split(self.case, out)
        for index in range(len(self.layers) - 1, -1, -1):
            grad_w, grad_b = parts[index]
            np.matmul(delta.swapaxes(-1, -2), inputs[index], out=grad_w)
            np.sum(delta, axis=-2, out=grad_b)
            if index:
                delta = (delta @ self.layers[index][0]) * slopes[index - 1]
        return out

    def gradient(self) -> Run:
        def run() -> np.ndarray:
            inputs, slopes = self.forward()
            return self.backward(inputs, slopes, self.residual(inputs[-1]))

        return run

    def ggn(self, v: np.ndarray) -> Run:
        inputs, slopes = self.forward()
        p = softmax(inputs[-1])

        def run() -> np.ndarray:
            tangent = None  # R a, (..., N, d_l), with the K vectors first
            for index, (dw, db) in enumerate(split(self.case, np.ascontiguousarray(v.T))):
                rs = inputs[index] @ dw.swapaxes(-1, -2)
                rs += db[..., None, :]
                if tangent is not None:
                    rs += tangent @ self.layers[index][0].T
                tangent = rs * slopes[index] if index < len(slopes) else rs
            if self.case.loss == "softmax_cross_entropy":  # (diag p - p p') Rz
                tangent = p * (tangent - np.sum(p * tangent, axis=-1, keepdims=True))
            return self.backward(inputs, slopes, tangent).T

        return run


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


class Jax:
    """jax.jit; the linearisation of the net is kept as arguments of the compiled product."""

    def __init__(self, case: Case, data: Data) -> None:
        import jax
        import jax.numpy as jnp

        if data.params.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        phi = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]
        x, y = jnp.asarray(data.x), jnp.asarray(data.y)

        def net(params: Any) -> Any:
            a = x
            layers = split(case, params)
            for w, b in layers[:-1]:
                a = phi(a @ w.T + b)
            w, b = layers[-1]
            return a @ w.T + b

        def loss(z: Any) -> Any:  # mean over cases
            if case.loss == "squared_error":
                return 0.5 * jnp.sum((z - y) ** 2) / case.batch
            log_p = jax.nn.log_softmax(z)
            return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))

        self.net, self.loss, self.params = net, loss, jnp.asarray(data.params)

    def gradient(self) -> Run:
        import jax

        fun = jax.jit(jax.value_and_grad(lambda params: self.loss(self.net(params))))
        return lambda: fun(self.params)[1].block_until_ready()

    def ggn(self, v: np.ndarray) -> Run:
        import jax

        z, pushforward = jax.linearize(self.net, self.params)
        pushforward, kept = jax.closure_convert(pushforward, self.params)

        def product(kept: Any, z: Any, v: Any) -> Any:
            def push(v: Any) -> Any:
                return pushforward(v, *kept)

            def one(v: Any) -> Any:
                rz = jax.jvp(jax.grad(self.loss), (z,), (push(v),))[1]
                return jax.linear_transpose(push, v)(rz)[0]

            return one(v) if v.ndim == 1 else jax.vmap(one, in_axes=1, out_axes=1)(v)

        fun = jax.jit(product)
        on_device = jax.numpy.asarray(v)
        return lambda: fun(kept, z, on_device).block_until_ready()
