"""The same minimum of products with what numpy offers. In float64 it is the reference.

Forward: a_0 = x, s_l = W_l a_{l-1} + b_l, a_l = phi(s_l), z = s_L; R is the derivative along v.
Blocks have their K vectors first: (K, N, d_l).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Case, Data
from .tasks import DAMPING, MAX_ITERATIONS, Entry, Task, split


class Linearization:
    """Inputs a_{l-1} (N, d_{l-1}) of every layer, phi'(s_l), and z (N, C)."""

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data = case, data
        self.layers = split(case.sizes, data.params)
        self.inputs, self.slopes = [data.x], []
        for w, b in self.layers[:-1]:
            s = self.inputs[-1] @ w.T + b
            if case.activation == "tanh":
                self.inputs.append(np.tanh(s))
                self.slopes.append(1 - self.inputs[-1] ** 2)
            elif case.activation == "relu":
                self.inputs.append(np.maximum(s, 0))
                self.slopes.append((s > 0).astype(s.dtype))
            else:
                raise ValueError(f"no {case.activation} here")
        w, b = self.layers[-1]
        self.z = self.inputs[-1] @ w.T + b

    def mean(self, out: np.ndarray) -> np.ndarray:
        return out / out.dtype.type(self.case.batch)

    def residual(self) -> np.ndarray:
        """d loss / d z of every case, (N, C)."""
        if self.case.loss == "squared_error":
            return self.z - self.data.y
        if self.case.loss == "bernoulli_cross_entropy":
            return logistic(self.z) - self.data.y
        p = softmax(self.z)
        p[np.arange(len(p)), self.data.y] -= 1
        return p

    def loss(self) -> float:
        """Mean over cases."""
        z, y = self.z, self.data.y
        if self.case.loss == "squared_error":
            total = 0.5 * np.sum((z - y) ** 2)
        elif self.case.loss == "bernoulli_cross_entropy":
            total = np.sum(np.logaddexp(0, z) - y * z)
        else:
            top = z.max(axis=1)
            norm = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
            total = np.sum(norm - z[np.arange(len(z)), y])
        return float(total) / self.case.batch

    def push(self, v: np.ndarray) -> list[np.ndarray]:
        """R s_l (..., N, d_l) of every layer for v (..., P); the last is J v."""
        pre: list[np.ndarray] = []
        for index, (dw, db) in enumerate(split(self.case.sizes, v)):
            rs = self.inputs[index] @ dw.swapaxes(-1, -2)
            rs += db[..., None, :]
            if pre:
                rs += (pre[-1] * self.slopes[index - 1]) @ self.layers[index][0].T
            pre.append(rs)
        return pre

    def pull(self, delta: np.ndarray, keep: list[np.ndarray] | None = None) -> np.ndarray:
        """J'delta (..., P) for delta (..., N, C); d(.)/ds_l are kept, last layer first."""
        out = np.empty((*delta.shape[:-2], self.case.num_params), delta.dtype)
        parts = split(self.case.sizes, out)
        for index in range(len(self.layers) - 1, -1, -1):
            grad_w, grad_b = parts[index]
            np.matmul(delta.swapaxes(-1, -2), self.inputs[index], out=grad_w)
            np.sum(delta, axis=-2, out=grad_b)
            if keep is not None:
                keep.append(delta)
            if index:
                delta = (delta @ self.layers[index][0]) * self.slopes[index - 1]
        return out

    def output_hessian(self) -> Callable[[np.ndarray], np.ndarray]:
        """M r of every case, for the Hessian M of the loss in z; also its Fisher matrix here."""
        if self.case.loss == "squared_error":
            return lambda r: r
        if self.case.loss == "bernoulli_cross_entropy":
            p = logistic(self.z)
            return lambda r: p * (1 - p) * r
        p = softmax(self.z)
        return lambda r: p * (r - np.sum(p * r, axis=-1, keepdims=True))

    def hessian(self) -> Callable[[np.ndarray], np.ndarray]:
        """H v (..., P) for v (..., P): the derivative of the backward pass along v."""
        deltas: list[np.ndarray] = []  # d loss / d s_l
        self.pull(self.residual(), deltas)
        deltas.reverse()
        upstream = [  # d loss / d a_l times phi''(s_l)
            curve * (delta @ w)
            for curve, delta, (w, _) in zip(self.curves(), deltas[1:], self.layers[1:], strict=True)
        ]
        multiply = self.output_hessian()

        def product(v: np.ndarray) -> np.ndarray:
            pre, tangents = self.push(v), split(self.case.sizes, v)
            out = np.empty_like(v)
            parts = split(self.case.sizes, out)
            r_delta = multiply(pre[-1])
            for index in range(len(self.layers) - 1, -1, -1):
                grad_w, grad_b = parts[index]
                np.matmul(r_delta.swapaxes(-1, -2), self.inputs[index], out=grad_w)
                np.sum(r_delta, axis=-2, out=grad_b)
                if index:
                    ra = pre[index - 1] * self.slopes[index - 1]
                    grad_w += deltas[index].T @ ra
                    inner = r_delta @ self.layers[index][0] + deltas[index] @ tangents[index][0]
                    r_delta = inner * self.slopes[index - 1] + upstream[index - 1] * pre[index - 1]
            return self.mean(out)

        return product

    def curves(self) -> list[np.ndarray]:
        """phi''(s_l) of the hidden layers."""
        if self.case.activation == "tanh":
            hidden = zip(self.inputs[1:], self.slopes, strict=True)
            return [-2 * a * slope for a, slope in hidden]
        return [np.zeros_like(slope) for slope in self.slopes]

    def gauss_newton(self, quantity: str, task: Task) -> Callable[[np.ndarray], np.ndarray]:
        """B v (..., P) for v (..., P): GGN, or with rank-one matrices q q' of the outputs."""
        if quantity == "ggn":
            multiply = self.output_hessian()
        else:
            q = self.residual() if quantity == "empirical_fisher" else task.draws
            multiply = lambda r: q * np.sum(q * r, axis=-1, keepdims=True)  # noqa: E731
        return lambda v: self.mean(self.pull(multiply(self.push(v)[-1])))


class Numpy:
    name = "numpy"

    def __init__(self, case: Case, data: Data) -> None:
        self.case, self.data = case, data

    def linearize(self) -> Linearization:
        return Linearization(self.case, self.data)

    def gradient(self, task: Task) -> Entry:
        def run() -> np.ndarray:
            at = self.linearize()
            at.loss()
            return at.mean(at.pull(at.residual()))

        return Entry(run)

    def jvp(self, task: Task) -> Entry:
        at, k = self.linearize(), task.num_vectors
        rows = lambda: np.ascontiguousarray(task.v.T)  # noqa: E731
        shape = (-1,) if k == 1 else (k, -1)
        return Entry(lambda: at.push(rows())[-1].reshape(shape).T)

    def vjp(self, task: Task) -> Entry:
        at = self.linearize()
        shape = at.z.shape if task.num_vectors == 1 else (task.num_vectors, *at.z.shape)
        return Entry(lambda: at.pull(np.ascontiguousarray(task.u.T).reshape(shape)).T)

    def ggn(self, task: Task) -> Entry:
        product = self.linearize().gauss_newton(task.quantity, task)
        return Entry(lambda: product(np.ascontiguousarray(task.v.T)).T)

    mc_fisher = empirical_fisher = ggn

    def hessian(self, task: Task) -> Entry:
        product = self.linearize().hessian()
        return Entry(lambda: product(np.ascontiguousarray(task.v.T)).T)

    def kfac_update(self, task: Task) -> Entry:
        run = lambda: factors(self.linearize(), task.draws)  # noqa: E731
        return Entry(run, lambda: apply_inverses(self.case, inverses(run()), task.v))

    def kfac_refresh(self, task: Task) -> Entry:
        made = factors(self.linearize(), task.draws)
        run = lambda: inverses(made)  # noqa: E731
        return Entry(run, lambda: apply_inverses(self.case, run(), task.v))

    def kfac_apply(self, task: Task) -> Entry:
        made = inverses(factors(self.linearize(), task.draws))
        return Entry(lambda: apply_inverses(self.case, made, task.v))

    def solve(self, task: Task) -> Entry:
        def run() -> tuple[np.ndarray, int]:
            product = self.linearize().gauss_newton("ggn", task)
            return conjugate_gradients(lambda v: product(v) + DAMPING * v, task.v, task.rtol)

        return Entry(run)


def factors(at: Linearization, draws: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Second moments G (d, d) of the deltas and A (n, n) of the inputs with a 1, per layer."""
    deltas: list[np.ndarray] = []
    delta = draws
    for index in range(len(at.layers) - 1, -1, -1):
        deltas.append(delta)
        if index:
            delta = (delta @ at.layers[index][0]) * at.slopes[index - 1]
    made = []
    for a, delta in zip(at.inputs, reversed(deltas), strict=True):
        with_one = np.hstack([a, np.ones((len(a), 1), a.dtype)])
        made.append((at.mean(delta.T @ delta), at.mean(with_one.T @ with_one)))
    return made


def inverses(made: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(G + gamma / pi I)^-1 and (A + pi gamma I)^-1, gamma^2 = damping, pi^2 = mean eigenvalues."""
    found = []
    for g, a in made:
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        shifts = np.sqrt(DAMPING) / pi, np.sqrt(DAMPING) * pi
        left, right = (
            np.linalg.inv(m + m.dtype.type(s) * np.eye(len(m), dtype=m.dtype))
            for m, s in zip((g, a), shifts, strict=True)
        )
        found.append((left, right))
    return found


def apply_inverses(
    case: Case, made: list[tuple[np.ndarray, np.ndarray]], v: np.ndarray
) -> np.ndarray:
    """G^-1 [W b] A^-1 of every layer, for v (P,) or (P, K)."""
    rows = np.ascontiguousarray(v.T)
    out = np.empty_like(rows)
    parts = zip(split(case.sizes, rows), split(case.sizes, out), made, strict=True)
    for (w, b), (out_w, out_b), (left, right) in parts:
        both = left @ np.concatenate([w, b[..., None]], axis=-1) @ right
        out_w[...], out_b[...] = both[..., :-1], both[..., -1]
    return out.T


def conjugate_gradients(
    multiply: Callable[[np.ndarray], np.ndarray], b: np.ndarray, rtol: float
) -> tuple[np.ndarray, int]:
    """x with |b - A x| <= rtol |b| by the recursion's residual, and the iterations."""
    x, r = np.zeros_like(b), b.copy()
    p, rr = r.copy(), float(b @ b)
    goal = rtol**2 * rr
    for iteration in range(MAX_ITERATIONS):
        if rr <= goal:
            return x, iteration
        ap = multiply(p)
        alpha = b.dtype.type(rr / float(p @ ap))
        x += alpha * p
        r -= alpha * ap
        before, rr = rr, float(r @ r)
        p *= b.dtype.type(rr / before)
        p += r
    return x, MAX_ITERATIONS


def softmax(z: Any) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def logistic(z: Any) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))
