"""jax, compiled: as it is written down first, and with the linearisation kept.

`jax` linearises in every call: jvp, the output's matrix, vjp in one jit. `jax, kept` has the
residuals of jax.linearize as arguments of the compiled product. Blocks go through vmap. Compiling
is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from .cases import Case, Data
from .tasks import DAMPING, MAX_ITERATIONS, Entry, Task, split


class Jax:
    name = "jax"

    def __init__(self, case: Case, data: Data) -> None:
        if data.params.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        self.case = case
        self.phi = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.activation]
        self.x, self.y = jnp.asarray(data.x), jnp.asarray(data.y)
        self.params = jnp.asarray(data.params)

        def net(params: Any) -> Any:
            a = self.x
            layers = split(case.sizes, params)
            for w, b in layers[:-1]:
                a = self.phi(a @ w.T + b)
            w, b = layers[-1]
            return a @ w.T + b

        self.net = net

    def loss(self, z: Any) -> Any:
        """Mean over cases."""
        y = self.y
        if self.case.loss == "squared_error":
            return 0.5 * jnp.sum((z - y) ** 2) / self.case.batch
        if self.case.loss == "bernoulli_cross_entropy":
            return jnp.sum(jax.nn.softplus(z) - y * z) / self.case.batch
        log_p = jax.nn.log_softmax(z)
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))

    def middle(self, quantity: str, draws: Any) -> Callable[[Any, Any], Any]:
        """(z, R z) -> M R z / N."""
        n = self.case.batch
        if quantity == "ggn":
            return lambda z, rz: jax.jvp(jax.grad(self.loss), (z,), (rz,))[1]

        def rank_one(z: Any, rz: Any) -> Any:
            q = n * jax.grad(self.loss)(z) if quantity == "empirical_fisher" else draws
            return q * jnp.sum(q * rz, axis=1, keepdims=True) / n

        return rank_one

    def product(self, function: Callable[..., Any], v: np.ndarray, *args: Any) -> Entry:
        """Compile function(*args, v) for a vector or for the columns of a block."""
        if v.ndim > 1:
            axes = (*(None for _ in args), 1)
            function = jax.vmap(function, in_axes=axes, out_axes=1)
        compiled, on_device = jax.jit(function), jnp.asarray(v)
        return Entry(lambda: compiled(*args, on_device).block_until_ready())

    def gradient(self, task: Task) -> Entry:
        compiled = jax.jit(jax.value_and_grad(lambda params: self.loss(self.net(params))))
        return Entry(lambda: compiled(self.params)[1].block_until_ready())

    def jvp(self, task: Task) -> Entry:
        def one(params: Any, v: Any) -> Any:
            return jax.jvp(self.net, (params,), (v,))[1].ravel()

        return self.product(one, task.v, self.params)

    def vjp(self, task: Task) -> Entry:
        def one(params: Any, u: Any) -> Any:
            z, pull = jax.vjp(self.net, params)
            return pull(u.reshape(z.shape))[0]

        return self.product(one, task.u, self.params)

    def ggn(self, task: Task) -> Entry:
        middle = self.middle(task.quantity, task.draws)

        def one(params: Any, v: Any) -> Any:
            z, rz = jax.jvp(self.net, (params,), (v,))
            return jax.vjp(self.net, params)[1](middle(z, rz))[0]

        return self.product(one, task.v, self.params)

    mc_fisher = empirical_fisher = ggn

    def hessian(self, task: Task) -> Entry:
        gradient = jax.grad(lambda params: self.loss(self.net(params)))
        return self.product(
            lambda params, v: jax.jvp(gradient, (params,), (v,))[1], task.v, self.params
        )

    def factors(self, params: Any, x: Any, draws: Any) -> list[tuple[Any, Any]]:
        """Second moments G of the deltas and A of the inputs with a 1, per layer.

        x is an argument, lest the compiler computes its moments once for all.
        """
        layers, inputs = split(self.case.sizes, params), [x]
        for w, b in layers[:-1]:
            inputs.append(self.phi(inputs[-1] @ w.T + b))
        deltas = [draws]
        for (w, _), a in zip(reversed(layers[1:]), reversed(inputs[1:]), strict=True):
            slope = 1 - a**2 if self.case.activation == "tanh" else (a > 0).astype(a.dtype)
            deltas.append((deltas[-1] @ w) * slope)
        ones = jnp.ones((self.case.batch, 1), draws.dtype)
        made = []
        for a, delta in zip(inputs, reversed(deltas), strict=True):
            with_one = jnp.hstack([a, ones])
            made.append((delta.T @ delta / len(a), with_one.T @ with_one / len(a)))
        return made

    def kfac_update(self, task: Task) -> Entry:
        compiled, draws = jax.jit(self.factors), jnp.asarray(task.draws)
        run = lambda: jax.block_until_ready(compiled(self.params, self.x, draws))  # noqa: E731
        return Entry(run, lambda: apply_inverses(self.case, inverses(run()), self.on_device(task)))

    def kfac_refresh(self, task: Task) -> Entry:
        made = self.factors(self.params, self.x, jnp.asarray(task.draws))
        compiled = jax.jit(inverses)
        run = lambda: jax.block_until_ready(compiled(made))  # noqa: E731
        return Entry(run, lambda: apply_inverses(self.case, run(), self.on_device(task)))

    def kfac_apply(self, task: Task) -> Entry:
        made = inverses(self.factors(self.params, self.x, jnp.asarray(task.draws)))
        compiled = jax.jit(lambda made, v: apply_inverses(self.case, made, v))
        v = self.on_device(task)
        return Entry(lambda: compiled(made, v).block_until_ready())

    @staticmethod
    def on_device(task: Task) -> Any:
        return jnp.asarray(task.v)

    def solve(self, task: Task) -> Entry:
        def run(params: Any, b: Any) -> Any:
            z, push = jax.linearize(self.net, params)
            pull = jax.linear_transpose(push, params)
            middle = self.middle("ggn", None)

            def multiply(v: Any) -> Any:
                return pull(middle(z, push(v)))[0] + DAMPING * v

            return cg(multiply, b, tol=task.rtol, maxiter=MAX_ITERATIONS)[0]

        compiled, b = jax.jit(run), jnp.asarray(task.v)
        return Entry(lambda: compiled(self.params, b).block_until_ready())


def inverses(made: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(G + gamma / pi I)^-1 and (A + pi gamma I)^-1, gamma^2 = damping, pi^2 = mean eigenvalues."""
    found = []
    for g, a in made:
        pi = jnp.sqrt((jnp.trace(a) / len(a)) / (jnp.trace(g) / len(g)))
        left = jnp.linalg.inv(g + DAMPING**0.5 / pi * jnp.eye(len(g), dtype=g.dtype))
        right = jnp.linalg.inv(a + DAMPING**0.5 * pi * jnp.eye(len(a), dtype=a.dtype))
        found.append((left, right))
    return found


def apply_inverses(case: Case, made: list[tuple[Any, Any]], v: Any) -> Any:
    """G^-1 [W b] A^-1 of every layer, for v (P,)."""
    parts = []
    for (w, b), (left, right) in zip(split(case.sizes, v), made, strict=True):
        both = left @ jnp.concatenate([w, b[:, None]], axis=1) @ right
        parts += [both[:, :-1].ravel(), both[:, -1]]
    return jnp.concatenate(parts)


class KeptJax(Jax):
    name = "jax, kept"
    # nothing to keep between calls
    gradient = solve = kfac_update = kfac_refresh = kfac_apply = None

    def linearize(self) -> tuple[Any, Callable[..., Any], list[Any]]:
        """z, push(v, *kept) and what it keeps."""
        z, push = jax.linearize(self.net, self.params)
        push, kept = jax.closure_convert(push, self.params)
        return z, push, kept

    def jvp(self, task: Task) -> Entry:
        _, push, kept = self.linearize()
        return self.product(lambda kept, v: push(v, *kept).ravel(), task.v, kept)

    def vjp(self, task: Task) -> Entry:
        z, push, kept = self.linearize()

        def one(kept: Any, u: Any) -> Any:
            transposed = jax.linear_transpose(lambda v: push(v, *kept), self.params)
            return transposed(u.reshape(z.shape))[0]

        return self.product(one, task.u, kept)

    def ggn(self, task: Task) -> Entry:
        z, push, kept = self.linearize()
        middle = self.middle(task.quantity, task.draws)

        def one(kept: Any, z: Any, v: Any) -> Any:
            rz = push(v, *kept)
            return jax.linear_transpose(lambda v: push(v, *kept), v)(middle(z, rz))[0]

        return self.product(one, task.v, kept, z)

    mc_fisher = empirical_fisher = ggn

    def hessian(self, task: Task) -> Entry:
        gradient = jax.grad(lambda params: self.loss(self.net(params)))
        _, push = jax.linearize(gradient, self.params)
        push, kept = jax.closure_convert(push, self.params)
        return self.product(lambda kept, v: push(v, *kept), task.v, kept)
