"""Who trains: each yields points (seconds, error), with a clock that stands while errors are found.

A contestant is made anew for every setting and seed, and starts from the same weights as all others
of that seed.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from natgrad_fast import MLP, Batch, Jacobian, NaturalGradient

from .problems import Data, Problem

# Seconds between two points of a curve: a share of what has passed.
SPACING, FIRST = 1.25, 0.01


class OutOfTime(Exception):
    """The seconds are over."""


@dataclass
class Clock:
    """Measures errors at growing distances, and ends the run; None as a limit is never reached."""

    problem: Problem
    data: Data
    net: MLP
    limit: float

    def __post_init__(self) -> None:
        self.points: list[tuple[float, float]] = [(0.0, self.problem.error(self.net, self.data))]
        self.next, self.paused = FIRST, 0.0
        self.start = time.perf_counter()

    def __call__(self, sync: Callable[[], None] | None = None) -> None:
        now = time.perf_counter()
        seconds = now - self.start - self.paused
        if seconds < min(self.next, self.limit):
            return
        self.measure(seconds, sync)
        self.next = max(seconds, FIRST) * SPACING
        self.paused += time.perf_counter() - now
        if seconds >= self.limit:
            raise OutOfTime

    def measure(self, seconds: float, sync: Callable[[], None] | None = None) -> None:
        """Add a point."""
        if sync is not None:
            sync()
        self.points.append((seconds, self.problem.error(self.net, self.data)))

    def finish(self) -> None:
        """Add the last point of what ended by itself."""
        self.measure(time.perf_counter() - self.start - self.paused)


Run = Callable[[Problem, Data, MLP, Clock, Any, int, int], None]


def ours(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """natgrad_fast with its defaults."""
    opt = NaturalGradient(net, problem.loss, l2=problem.l2, seed=seed, num_threads=threads)  # type: ignore[arg-type]

    def look(_: object) -> bool:
        try:
            clock()
        except OutOfTime:
            return True
        return False

    opt.fit(*data, epochs=10**9, batch_size=problem.batch_size, callbacks=[look])
    clock.finish()


def _batches(problem: Problem, data: Data, seed: int) -> Iterator[Data]:
    """Mini-batches without end: of the problem's size, or of 200 where it leaves the choice."""
    count = len(data[0])
    size = {"auto": min(200, count), None: min(200, count)}.get(
        problem.batch_size, problem.batch_size
    )
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for first in range(0, count, size):
            places = order[first : first + size]
            yield data[0][places], data[1][places]


def _gradient(problem: Problem, net: MLP, X: np.ndarray, y: np.ndarray, threads: int) -> np.ndarray:
    """Ours, for the peers that have none."""
    batch = Batch(net, problem.loss, X, y, l2=problem.l2, num_threads=threads)  # type: ignore[arg-type]
    return batch.value_and_grad()[1]


def adam(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """Adam in numpy on our gradients."""
    first, second = np.zeros_like(net.params), np.zeros_like(net.params)
    for k, (X, y) in enumerate(_batches(problem, data, seed), 1):
        g = _gradient(problem, net, X, y, threads)
        first += 0.1 * (g - first)
        second += 0.001 * (g * g - second)
        rate = setting * math.sqrt(1 - 0.999**k) / (1 - 0.9**k)
        net.params -= net.dtype.type(rate) * first / (np.sqrt(second) + net.dtype.type(1e-8))
        clock()


def nesterov(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """Nesterov's momentum with the schedule of Sutskever et al. 2013, on our gradients."""
    v = np.zeros_like(net.params)
    scalar = net.dtype.type
    for k, (X, y) in enumerate(_batches(problem, data, seed)):
        mu = min(1 - 2.0 ** (-1 - math.log2(k // 250 + 1)), 0.99)
        net.params += scalar(mu) * v
        g = _gradient(problem, net, X, y, threads)
        step = -scalar(setting) * g
        net.params += step
        v *= scalar(mu)
        v += step
        if not np.isfinite(net.params).all():
            return
        clock()


def torch_adam(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """torch.optim.Adam on a torch.nn.Sequential with the same weights."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    kinds = {"tanh": nn.Tanh, "logistic": nn.Sigmoid, "relu": nn.ReLU, "identity": nn.Identity}
    layers: list[Any] = []
    for w, b, name in zip(net.weights, net.biases, net.activations, strict=True):
        linear = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(w)))
            linear.bias.copy_(torch.from_numpy(np.array(b)))
        layers += [linear, kinds[name]()]
    model = nn.Sequential(*layers).to(torch.float64 if net.dtype == np.float64 else torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting, weight_decay=problem.l2)

    def objective(z: Any, y: Any) -> Any:
        if problem.loss == "softmax_cross_entropy":
            return nn.functional.cross_entropy(z, y.long())
        y = y.reshape(len(y), -1).to(z.dtype)
        if problem.loss == "bernoulli_cross_entropy":
            loss = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
            return loss.sum(1).mean()
        return 0.5 * ((z - y) ** 2).sum(1).mean()

    def sync() -> None:
        parts = [p.detach().numpy().ravel() for p in model.parameters()]
        net.params[...] = np.concatenate(parts)

    X = torch.from_numpy(np.asarray(data[0], net.dtype))
    y = torch.from_numpy(np.asarray(data[1]))
    for places, _ in _batches(problem, (np.arange(len(X)), np.arange(len(X))), seed):
        chosen = torch.from_numpy(places)
        optimizer.zero_grad()
        objective(model(X[chosen]), y[chosen]).backward()
        optimizer.step()
        clock(sync)


def lbfgs(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """scipy's L-BFGS-B on our gradients of all cases."""
    from scipy.optimize import minimize

    batch = Batch(
        net,
        problem.loss,
        *data,
        l2=problem.l2,
        num_threads=threads,  # type: ignore[arg-type]
    )

    def objective(params: np.ndarray) -> tuple[float, np.ndarray]:
        net.params[...] = params
        clock()
        h, g = batch.value_and_grad()
        return h, g.astype(float)

    options = {"maxiter": 10**9, "maxfun": 10**9, "maxcor": setting, "ftol": 0.0, "gtol": 0.0}
    found = minimize(objective, net.params, jac=True, method="L-BFGS-B", options=options)
    net.params[...] = found.x
    clock.finish()


def least_squares(
    problem: Problem, data: Data, net: MLP, clock: Clock, setting: Any, seed: int, threads: int
) -> None:
    """scipy's least_squares(method="lm") with our Jacobian."""
    from scipy.optimize import least_squares as solve

    def residuals(params: np.ndarray) -> np.ndarray:
        net.params[...] = params
        clock()
        return (net(data[0], num_threads=threads) - data[1]).ravel()

    def jacobian(params: np.ndarray) -> np.ndarray:
        net.params[...] = params
        return Jacobian(net, data[0], num_threads=threads).to_dense()

    found = solve(residuals, net.params, jacobian, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15,
                  max_nfev=10**9)  # fmt: skip
    net.params[...] = found.x
    clock.finish()


def _always(problem: Problem) -> bool:
    return True


def _least_squares_fits(problem: Problem) -> bool:
    return problem.loss == "squared_error" and problem.l2 == 0.0 and problem.sizes[-1] == 1


@dataclass(frozen=True)
class Contestant:
    """A way to train; `needs` names the package without which it does not take part."""

    name: str
    run: Run
    settings: tuple[Any, ...] = (None,)
    needs: str | None = None
    imports: tuple[str, ...] = ()
    takes: Callable[[Problem], bool] = _always

    @property
    def is_there(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
OURS = "natgrad_fast"
CONTESTANTS = [
    Contestant(OURS, ours),
    Contestant("Adam, our gradients", adam, RATES),
    Contestant("Nesterov, our gradients", nesterov, (1e-3, 1e-2, 3e-2, 1e-1)),
    Contestant("torch Adam", torch_adam, RATES, needs="torch", imports=("torch",)),
    Contestant(
        "scipy L-BFGS-B",
        lbfgs,
        (10, 30, 100, 300),
        needs="scipy",
        imports=("scipy.optimize",),
        takes=lambda problem: problem.batch_size is None or problem.seconds <= 5.0,
    ),
    Contestant(
        "scipy lm",
        least_squares,
        needs="scipy",
        imports=("scipy.optimize",),
        takes=_least_squares_fits,
    ),
]
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
