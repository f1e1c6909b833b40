"""The Hessian of a net's objective as an operator."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .._arrays import (
    as_cases,
    as_chunk_size,
    as_num_threads,
    as_number,
    as_sample_weight,
    core_for,
)
from ..losses.base import Loss
from ..losses.standard import as_loss
from ..model.mlp import MLP, as_net
from .costs import product_flops
from .curvature import CurvatureMatrix

__all__ = ["Hessian"]


class Hessian(CurvatureMatrix):
    """Hessian H + damping I of the objective: of the mean loss plus (l2 / 2) |params|^2.

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size
        As in `Fisher`.
    y : array_like
        Targets as in `value_and_grad`.

    Notes
    -----
    Exact products by the R-operator (Pearlmutter 1994), 12 N P flops (4 N P in the first layer).
    Second derivatives of relu and leaky_relu are 0 everywhere, that of elu at its kink is the left
    one, 1: for these the matrix is the Hessian wherever it exists. The Hessian may be indefinite.
    `diagonal` and `trace` take P products.
    """

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        x = as_cases(X, as_net(net).sizes[0], net.dtype)
        loss = as_loss(loss)
        if y is None:
            raise ValueError("y is missing: the Hessian of the objective depends on targets")
        targets = loss.targets(y, x.shape[0], net.sizes[-1], net.dtype)
        weights = as_sample_weight(sample_weight, x.shape[0])
        damping = as_number(damping, "damping", minimum=0.0)
        l2 = as_number(l2, "l2", minimum=0.0)
        chunk = as_chunk_size(chunk_size)
        self._set_up(net, loss, as_num_threads(num_threads), damping, l2)
        self.num_cases = x.shape[0]
        self.core = core_for(net.dtype).Hessian(
            net._architecture,
            loss.core,
            params=net.params,
            x=x,
            targets=targets,
            weights=weights,
            shift=l2 + damping,
            chunk_size=chunk,
            num_threads=self.num_threads,
        )
        self.flops_per_product = product_flops(
            net.sizes, x.shape[0], "hessian", recompute=self.core.num_chunks > 1
        )
