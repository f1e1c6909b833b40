"""A contestant's answer against numpy in float64, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .numpy_peer import Numpy
from .tasks import DAMPING, Task

# Relative, in the norm. float32: sums of up to 8192 terms through up to 16 layers, about 100 eps.
# float64 is checked for scale and formula, not for the last digit.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
# Inverses of K-FAC's damped factors lose up to their condition, about 1e3 at damping 1e-2.
KFAC_TOLERANCES = {"float32": 1e-3, "float64": 1e-9}
# Residual over the wanted one: the recursion's residual drifts from the true one by rounding of
# about 1e-6 of the right-hand side in float32, which matters where 1e-6 is wanted.
SOLVE_SLACK = 1.01
SOLVE_ROUNDING = {"float32": 1e-6, "float64": 1e-13}


class Check:
    """Error of answers to one task; the reference is computed once."""

    def __init__(self, task: Task, dtype: str) -> None:
        self.task, self.dtype = task, dtype
        reference_task = task.as_float64()
        self.reference = Numpy(task.case, reference_task.data)
        self.allowed = TOLERANCES[dtype]
        if task.quantity.startswith("kfac"):
            self.allowed = KFAC_TOLERANCES[dtype]
        elif task.quantity == "solve":
            self.allowed = SOLVE_SLACK * task.rtol + SOLVE_ROUNDING[dtype]
        self.error: Callable[[Any], float] = {
            "solve": self.prepare_residual,
            "step": self.prepare_step,
        }.get(task.quantity, self.prepare_product)(reference_task)

    def prepare_product(self, task: Task) -> Callable[[Any], float]:
        """A block is checked through a random combination of its columns: (G V) c = G (V c)."""
        size, k = task.v.size // task.num_vectors, task.num_vectors
        c = np.float64(1) if k == 1 else np.random.default_rng(1).standard_normal(k)
        combined = Task(
            task.case, task.data, task.quantity, 1,
            np.dot(task.v, c), np.dot(task.u, c), task.draws,
        )  # fmt: skip
        want = getattr(self.reference, task.quantity)(combined).answer()

        def error(got: Any) -> float:
            got = np.asarray(got, np.float64)
            if k > 1 and got.shape not in ((size, k), (task.u.shape[0], k)):
                return np.inf
            return relative_error(np.dot(got, c), want)

        return error

    def prepare_residual(self, task: Task) -> Callable[[Any], float]:
        """|g - (F + damping I) x| / |g|."""
        multiply = self.reference.linearize().gauss_newton("ggn", task)
        norm = np.linalg.norm(task.v)

        def error(got: Any) -> float:
            x = solution(got).astype(np.float64)
            if x.shape != task.v.shape:
                return np.inf
            return float(np.linalg.norm(task.v - multiply(x) - DAMPING * x) / norm)

        return error

    def prepare_step(self, task: Task) -> Callable[[Any], float]:
        """Loss at the new parameters against what the step says of it; Inf if it did not fall."""
        before = self.reference.linearize().loss()

        def error(got: Any) -> float:
            info, params = got
            data = task.data
            moved = type(data)(data.x, data.y, params.astype(np.float64), data.rng)
            after = Numpy(task.case, moved).linearize().loss()
            return abs(after - info.new_loss) / abs(after) if after < before else np.inf

        return error

    def passes(self, error: float) -> bool:
        return bool(error <= self.allowed)  # NaN does not


def relative_error(got: Any, want: np.ndarray) -> float:
    """|got - want| / |want| in float64; Inf for a wrong shape."""
    got = np.asarray(got)
    if got.shape != want.shape:
        return np.inf
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def solution(got: Any) -> np.ndarray:
    """x of what a solve returned: an array, an array with iterations, or a result with `.x`."""
    if isinstance(got, tuple):
        got = got[0]
    x = np.asarray(getattr(got, "x", got))
    return x[:, 0] if x.ndim == 2 else x  # of several dampings the first


def iterations(got: Any) -> int | None:
    """How many a solve needed, where it tells."""
    if isinstance(got, tuple) and isinstance(got[-1], int):
        return got[-1]
    if hasattr(got, "columns"):
        return int(got.columns[0].iterations)
    found = getattr(got, "iterations", None)
    return None if found is None else int(found)
