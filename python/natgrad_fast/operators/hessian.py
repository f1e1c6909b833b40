"""The Hessian of a net's objective as an operator."""

from __future__ import annotations

from typing import Self, Unpack

from numpy.typing import ArrayLike

from .._arrays import core_for
from .._typing import CoreHessian, Linearization
from ..losses import Loss, LossName
from ..model.batch import Batch, BatchOptions
from ..model.mlp import MLP
from .costs import product_flops
from .curvature import CurvatureMatrix

__all__ = ["Hessian"]


class Hessian(CurvatureMatrix):
    """Hessian H + damping I of the objective: of the mean loss plus (l2 / 2) |params|^2.

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size, total_weight
        As in `Fisher`.
    y : array_like
        Targets as in `value_and_grad`.

    Notes
    -----
    Exact products by the R-operator (Pearlmutter 1994), 12 N P flops (4 N P in the first layer).
    Second derivatives of relu and leaky_relu are 0 everywhere, that of elu at its kink is the left
    one, 1: for these the matrix is the Hessian wherever it exists. The Hessian may be indefinite.
    `diagonal` and `trace` are those of the `GGN` for piecewise linear nets (identity, relu,
    leaky_relu), and cost a few products otherwise.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> H = ng.Hessian(net, "squared_error", X, X[:, :2])
    >>> v = np.ones(26)
    >>> bool(np.allclose(H @ v, H.to_dense() @ v))
    True
    """

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        y: ArrayLike,
        *,
        damping: float = 0.0,
        **options: Unpack[BatchOptions],
    ) -> None:
        self._build(Batch(net, loss, X, y, **options), damping)

    @classmethod
    def on(
        cls, batch: Batch, linearization: Linearization | None = None, *, damping: float = 0.0
    ) -> Self:
        """The Hessian of a batch; it linearises by itself, with second derivatives."""
        matrix = cls.__new__(cls)
        matrix._build(batch, damping)
        return matrix

    core: CoreHessian

    def _build(self, batch: Batch, damping: float) -> None:
        if batch.targets is None:
            raise ValueError("y is missing: the Hessian of the objective depends on targets")
        self._set_up(batch, damping)
        self.core = core_for(self.dtype).Hessian(
            batch.net._architecture,
            batch.loss.core,
            params=batch.net.params,
            x=batch.x,
            targets=batch.targets,
            weights=batch.weights,
            total_weight=batch.given_total,
            shift=self._shift(),
            chunk_size=batch.chunk_size,
            num_threads=batch.num_threads,
        )
        self.flops_per_product = product_flops(
            self.sizes, self.num_cases, "hessian", recompute=self.core.num_chunks > 1
        )
