"""Exact steps in the space of samples, for small batches of any net; SPRING."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from .._arrays import as_name, as_number
from .._state import StateReader
from .._typing import Array, Linearization, State
from ..linear.results import SolveResult
from ..linear.sample_space import METHODS
from ..linear.sample_space import SampleSpace as Space
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators import EmpiricalFisher, Fisher
from ..operators.base import Operator
from ..operators.curvature import GaussNewtonMatrix
from .base import Direction, StepSolver
from .dense import MOST_CHOLESKYS

__all__ = ["SampleSpace"]

# The largest kernel that is formed without being asked for.
LARGEST_FORMED = 4096
KERNELS = ("exact", "sampled", "empirical")


@dataclass(frozen=True)
class SampleSpace(StepSolver):
    """Exact steps by the kernel (n, n) of the batch, n = N C or N, for nets of any size.

    The step solves (U U' + damping I) x = g through K + damping I, K = U'U (Woodbury; minSR, ENGD-W
    and dual Gauss-Newton are other names); K is a sum over layers of products of Gram matrices, and
    nothing of size N x P is formed. For n up to about 4,000.

    Parameters
    ----------
    kernel : {"exact", "sampled", "empirical"}
        That of the optimizer's own matrix (n = N C, for softmax N (C - 1)); of the Fisher matrix
        with one draw per case (n = N); of the empirical Fisher (n = N). The last two are other
        matrices, which stand in for the curvature in the direction alone: rescaling, trust and
        reduction ratio are those of the optimizer's matrix.
    momentum : float
        In [0, 1): SPRING (Goldshlager, Abrahamsen, Lin, arXiv 2401.10190) with

            d = argmin |U'd + r|^2 / 2 + damping |d - momentum d_prev|^2 / 2

        where the last direction was kept. It accumulates what small batches show one after the
        other; an optimizer's ``momentum=False`` leaves it the only one.
    method : {"auto", "cholesky", "eigh", "cg"}
        See `natgrad_fast.sample_space_solve`. "auto": a Cholesky factorisation for each of up to
        three dampings of a step, beyond one eigendecomposition; iterations for n > 4,096.

    Notes
    -----
    2 n P + n^2 (sum of widths) + n^3 / 3 flops for the first damping. ``damping + l2`` must be > 0.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> net = ng.MLP([1, 64, 64, 1], dtype="float64", seed=0)
    >>> solver = ng.solvers.SampleSpace(momentum=0.9)
    >>> opt = ng.NaturalGradient(net, "squared_error", solver=solver, momentum=False)
    >>> opt.step(X, np.sin(3 * X)).solve.status.success
    True
    """

    kernel: Literal["exact", "sampled", "empirical"] = "exact"
    momentum: float = 0.0
    method: Literal["auto", "cholesky", "eigh", "cg"] = "auto"

    # What `init` and `update` make, in a copy that an optimizer works with: the batch of the step
    # and its linearisation, the number of steps, the space and of which matrix it is.
    _seed: ClassVar[int] = 0
    _num_steps: ClassVar[int] = 0
    _batch: ClassVar[Any] = None
    _source: ClassVar[Any] = None
    _space: ClassVar[Any] = None
    _gradient: ClassVar[Any] = None  # the first right-hand side of the step
    _asked: ClassVar[frozenset[float]] = frozenset()
    _expected: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_name(self.kernel, "kernel", KERNELS)
        if as_number(self.momentum, "momentum", minimum=0.0) >= 1.0:
            raise ValueError(f"momentum must be < 1, got {self.momentum}")
        as_name(self.method, "method", METHODS)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what belongs to one step."""
        kept = ("kernel", "momentum", "method", "_seed", "_num_steps")
        return {name: getattr(self, name) for name in kept}

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Take the seed of the draws; see `StepSolver.init`."""
        self._forget()
        vars(self).update(_seed=seed, _num_steps=0)

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Remember the batch; see `StepSolver.update`."""
        self._forget()
        vars(self).update(_batch=(batch, linearization), _num_steps=self._num_steps + 1)

    def expect(self, num_dampings: int) -> None:
        """Choose the factorisation that so many dampings are worth; see `StepSolver.expect`."""
        vars(self).update(_expected=num_dampings)

    def _forget(self) -> None:
        vars(self).update(_batch=None, _source=None, _space=None, _gradient=None)
        vars(self).update(_asked=frozenset(), _expected=1)

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Solve in sample space; `start` is d_prev of SPRING. See `StepSolver.direction`."""
        own = getattr(matrix, "damping", 0.0)
        if self._source is None or self._source[0] is not matrix or self._source[1] != own:
            space = Space(self._kernel_of(matrix))
            vars(self).update(_source=(matrix, own), _space=space, _gradient=g, _asked=frozenset())
        vars(self).update(_asked=self._asked | {damping})
        # Let go of what the last step added: (B + damping I)(x - p) = g - B p, p = momentum d_prev.
        past = None if start is None or self.momentum == 0.0 else self.momentum * start
        right = g if past is None else g - self._space._matrix @ past
        result = self._space.solve(
            right, y=self._targets_of(right), damping=damping, method=self._method()
        )
        assert isinstance(result, SolveResult)
        x = result.x if past is None else result.x + past
        return Direction(x.astype(g.dtype, copy=False), result.info)

    def _targets_of(self, right: Array) -> Array | None:
        """Targets, where the right-hand side is the gradient of the batch."""
        if right is not self._gradient or self._batch is None or self.kernel != "exact":
            return None
        targets: Array | None = self._batch[0].targets
        return targets

    def _method(self) -> str:
        if self.method != "auto" or self._space.shape[0] > LARGEST_FORMED:
            return self.method
        is_many = max(len(self._asked), self._expected) > MOST_CHOLESKYS
        return "eigh" if is_many else "cholesky"

    def _kernel_of(self, matrix: Operator) -> GaussNewtonMatrix:
        if self.kernel == "exact" or self._batch is None:
            if not isinstance(matrix, GaussNewtonMatrix):
                raise TypeError(
                    f"solvers.SampleSpace needs a Fisher, GGN or EmpiricalFisher, got {matrix!r}"
                )
            return matrix
        batch, linearization = self._batch
        if self.kernel == "empirical":
            return EmpiricalFisher.on(batch, linearization)
        seed = np.random.SeedSequence([self._seed, self._num_steps]).generate_state(1)[0]
        return Fisher.on(batch, linearization, samples=1, seed=int(seed))

    def accepted(self, accepted: bool) -> None:
        """Give the memory back: the next step has another kernel; see `StepSolver.accepted`."""
        self._forget()

    def state_dict(self) -> State:
        """Return the number of steps, from which the draws follow."""
        return {"num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; see `StepSolver.load_state_dict`."""
        num_steps = StateReader(state, "state", ("num_steps",)).integer("num_steps")
        self._forget()
        vars(self).update(_num_steps=num_steps)
