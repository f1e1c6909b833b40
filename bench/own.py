"""This library as a contestant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import natgrad_fast as ng
import numpy as np
from natgrad_fast.losses import as_loss

from . import counts
from .cases import Case, Data
from .tasks import DAMPING, MAX_ITERATIONS, Entry, Task

NAME = "natgrad_fast"
SHIFTS = (DAMPING, 3e-2, 1e-1, 3e-1, 1.0)


class Own:
    name = NAME

    def __init__(self, case: Case, data: Data, num_threads: int) -> None:
        dtype = data.params.dtype.name
        self.net = ng.MLP(case.sizes, activation=case.activation, dtype=dtype, init="zeros")
        self.net.params = data.params
        self.loss, self.x, self.y = case.loss, data.x, data.y
        self.threads = {"num_threads": num_threads}
        self.options = {"num_threads": num_threads, "chunk_size": case.chunk_size}

    def draws(self, seed: int = 0) -> np.ndarray:
        """(N, C): for every case the gradient of the loss at one drawn target."""
        return as_loss(self.loss).draw_gradients(self.net(self.x), seed=seed)[:, 0]

    def gradient(self, task: Task) -> Entry:
        args = (self.net, self.loss, self.x, self.y)
        return Entry(lambda: ng.value_and_grad(*args, **self.threads)[1])

    def jvp(self, task: Task) -> Entry:
        jacobian = ng.Jacobian(self.net, self.x, **self.options)
        return Entry(lambda: jacobian @ task.v)

    def vjp(self, task: Task) -> Entry:
        transposed = ng.Jacobian(self.net, self.x, **self.options).T
        return Entry(lambda: transposed @ task.u)

    def ggn(self, task: Task) -> Entry:
        return product(ng.GGN(self.net, self.loss, self.x, self.y, **self.options), task)

    def mc_fisher(self, task: Task) -> Entry:
        return product(ng.Fisher(self.net, self.loss, self.x, samples=1, **self.options), task)

    def empirical_fisher(self, task: Task) -> Entry:
        matrix = ng.EmpiricalFisher(self.net, self.loss, self.x, self.y, **self.options)
        return product(matrix, task)

    def hessian(self, task: Task) -> Entry:
        return product(ng.Hessian(self.net, self.loss, self.x, self.y, **self.options), task)

    def kfac(self, **options: Any) -> ng.KFAC:
        return ng.KFAC(self.net, self.loss, self.x, samples=1, **options, **self.options)

    def kfac_update(self, task: Task) -> Entry:
        factors = self.kfac()
        # the draws of later updates are others; those of the first are the task's
        return Entry(lambda: factors.update(self.x), lambda: self.kfac(damping=DAMPING) @ task.v)

    def kfac_refresh(self, task: Task) -> Entry:
        factors = self.kfac()

        def probe() -> np.ndarray:
            factors.refresh(DAMPING)
            return factors @ task.v

        return Entry(lambda: factors.refresh(DAMPING), probe)

    def kfac_apply(self, task: Task) -> Entry:
        return product(self.kfac(damping=DAMPING), task)

    def fisher(self) -> ng.Fisher:
        return ng.Fisher(self.net, self.loss, self.x, **self.options)

    def solve(self, task: Task) -> dict[str, Entry]:
        """Every way to solve; each builds its operator, and its preconditioner, anew."""
        options = {"rtol": task.rtol, "max_iter": MAX_ITERATIONS}
        fixed = {"damping": DAMPING, **options}

        def with_kfac() -> Any:
            kfac = self.kfac(damping=DAMPING)
            return ng.cg(self.fisher(), task.v, preconditioner=kfac, **fixed)

        ways: dict[str, Callable[[], Any]] = {
            NAME: lambda: ng.cg(self.fisher(), task.v, **fixed),
            f"{NAME}, auto": lambda: ng.solve(self.fisher(), task.v, y=self.y, **fixed),
            f"{NAME}, 5 dampings": lambda: ng.multishift_cg(
                self.fisher(), task.v, SHIFTS, **options
            ),
        }
        if self.kfac_pays(task.case):
            ways[f"{NAME}, K-FAC"] = with_kfac
        if self.sample_space_pays(task.case):
            ways[f"{NAME}, sample space"] = lambda: ng.sample_space_solve(
                self.fisher(), task.v, y=self.y, **fixed
            )
        return {name: Entry(run) for name, run in ways.items()}

    @staticmethod
    def sample_space_pays(case: Case) -> bool:
        """Kernels of more rows than this are neither formed nor multiplied in reasonable time."""
        return case.batch * case.sizes[-1] <= 4096

    @staticmethod
    def kfac_pays(case: Case) -> bool:
        """Not where one application has more flops than the product it is to save."""
        apply, product = (
            counts.flops(case.sizes, case.batch, quantity) for quantity in ("kfac_apply", "ggn")
        )
        return apply is not None and product is not None and apply < product

    def step(self, task: Task) -> Entry:
        """From the same parameters each time: net and optimizer are put back, (P,) copies."""
        optimizer = ng.NaturalGradient(self.net, self.loss, **self.threads)
        start, state = self.net.params.copy(), optimizer.state_dict()

        def run() -> Any:
            self.net.params[...] = start
            optimizer.load_state_dict(state)
            info = optimizer.step(self.x, self.y)
            return info, self.net.params

        def probe() -> Any:
            info, params = run()
            params = params.copy()
            self.net.params[...] = start
            return info, params

        return Entry(run, probe)


def product(matrix: Any, task: Task) -> Entry:
    return Entry(lambda: matrix @ task.v)
