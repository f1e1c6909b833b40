"""curvlinops' operators on a torch.nn.Sequential of the same net.

Its Monte-Carlo Fisher and K-FAC draw their own targets, so that their results cannot be compared;
they take no part.
"""

from __future__ import annotations

from typing import Any

import torch
from curvlinops import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)

from .cases import Case, Data
from .tasks import Entry, Task, split


class HalfSquaredError(torch.nn.Module):
    """scale |z - y|^2 / 2, summed over cases."""

    reduction = "sum"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Any, y: Any) -> Any:
        return 0.5 * self.scale * ((z - y) ** 2).sum()


class Curvlinops:
    name = "curvlinops"

    def __init__(self, case: Case, data: Data, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.case = case
        activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[case.activation]
        modules: list[torch.nn.Module] = []
        for w, b in split(case.sizes, torch.from_numpy(data.params.copy())):
            linear = torch.nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype)
            with torch.no_grad():
                linear.weight.copy_(w)
                linear.bias.copy_(b)
            modules += [linear, activation()]
        self.model = torch.nn.Sequential(*modules[:-1])
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.batches = [(torch.from_numpy(data.x), torch.from_numpy(data.y))]
        if case.loss not in ("squared_error", "softmax_cross_entropy"):
            raise ValueError(f"no {case.loss} here")

    def loss(self) -> torch.nn.Module:
        if self.case.loss == "softmax_cross_entropy":
            return torch.nn.CrossEntropyLoss()
        return HalfSquaredError(1 / self.case.batch)

    def product(self, kind: Any, v: Any, *loss: Any) -> Entry:
        args = (self.model, *loss, self.params, self.batches)
        operator = kind(*args, check_deterministic=False, num_data=self.case.batch)
        tensor = torch.from_numpy(v)
        return Entry(lambda: operator @ tensor)

    def jvp(self, task: Task) -> Entry:
        return self.product(JacobianLinearOperator, task.v)

    def vjp(self, task: Task) -> Entry:
        return self.product(TransposedJacobianLinearOperator, task.u)

    def ggn(self, task: Task) -> Entry:
        return self.product(GGNLinearOperator, task.v, self.loss())

    def hessian(self, task: Task) -> Entry:
        return self.product(HessianLinearOperator, task.v, self.loss())

    def empirical_fisher(self, task: Task) -> Entry:
        if self.case.loss == "softmax_cross_entropy":
            return self.product(EFLinearOperator, task.v, self.loss())
        # it takes torch's own loss only: |z - y|^2, summed over cases; so 4 N times the matrix
        summed = self.product(EFLinearOperator, task.v, torch.nn.MSELoss(reduction="sum"))
        return Entry(lambda: summed.run() / (4 * self.case.batch))
