"""torch.func, eager: jvp and vjp in every call; blocks go through vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.func import grad, grad_and_value, jvp, vjp, vmap

from .cases import Case, Data
from .tasks import Entry, Task, split


class Torch:
    name = "torch.func"

    def __init__(self, case: Case, data: Data, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.case = case
        self.x, self.y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        self.params = torch.from_numpy(data.params.copy())
        self.phi = {"tanh": torch.tanh, "relu": torch.relu}[case.activation]

    def net(self, params: Any) -> Any:
        a = self.x
        layers = split(self.case.sizes, params)
        for w, b in layers[:-1]:
            a = self.phi(torch.nn.functional.linear(a, w, b))
        w, b = layers[-1]
        return torch.nn.functional.linear(a, w, b)

    def loss(self, z: Any) -> Any:
        """Mean over cases."""
        functional = torch.nn.functional
        if self.case.loss == "softmax_cross_entropy":
            return functional.cross_entropy(z, self.y)
        if self.case.loss == "squared_error":
            return 0.5 * functional.mse_loss(z, self.y, reduction="sum") / self.case.batch
        total = functional.binary_cross_entropy_with_logits(z, self.y, reduction="sum")
        return total / self.case.batch

    def product(self, function: Callable[[Any], Any], v: np.ndarray) -> Entry:
        """A function of a vector, or of the columns of a block."""
        function = function if v.ndim == 1 else vmap(function, in_dims=1, out_dims=1)
        tensor = torch.from_numpy(v)

        def run() -> Any:
            with torch.no_grad():
                return function(tensor)

        return Entry(run)

    def gradient(self, task: Task) -> Entry:
        function = grad_and_value(lambda params: self.loss(self.net(params)))
        return Entry(lambda: function(self.params)[0])

    def jvp(self, task: Task) -> Entry:
        return self.product(lambda v: jvp(self.net, (self.params,), (v,))[1].flatten(), task.v)

    def vjp(self, task: Task) -> Entry:
        def one(u: Any) -> Any:
            z, pull = vjp(self.net, self.params)
            return pull(u.reshape(z.shape))[0]

        return self.product(one, task.u)

    def ggn(self, task: Task) -> Entry:
        n = self.case.batch
        draws = None if task.draws is None else torch.from_numpy(task.draws)

        def middle(z: Any, rz: Any) -> Any:
            if task.quantity == "ggn":
                return jvp(grad(self.loss), (z,), (rz,))[1]
            q = n * grad(self.loss)(z) if task.quantity == "empirical_fisher" else draws
            return q * torch.sum(q * rz, dim=1, keepdim=True) / n

        def one(v: Any) -> Any:
            z, rz = jvp(self.net, (self.params,), (v,))
            return vjp(self.net, self.params)[1](middle(z, rz))[0]

        return self.product(one, task.v)

    mc_fisher = empirical_fisher = ggn

    def hessian(self, task: Task) -> Entry:
        gradient = grad(lambda params: self.loss(self.net(params)))
        return self.product(lambda v: jvp(gradient, (self.params,), (v,))[1], task.v)
