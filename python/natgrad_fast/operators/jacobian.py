"""The Jacobian of a net's outputs in its parameters, multiplied but never formed."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .._arrays import as_cases, as_chunk_size, as_num_threads
from .._typing import Array
from ..model.mlp import MLP, as_net
from .base import Operator
from .costs import product_flops

__all__ = ["Jacobian"]


class Jacobian(Operator):
    """Jacobian J (N C, P) of the outputs in the parameters; row i C + c is output c of case i.

    Parameters
    ----------
    net : MLP
    X : (N, d_0) array_like
    num_threads : int, optional
    chunk_size : int, optional
        Cases whose activations are alive at once, all by default; see `Fisher`.

    Notes
    -----
    A product costs 4 N P flops either way (2 N P in the first layer); nothing is formed.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 2], dtype="float64")
    >>> J = ng.Jacobian(net, np.ones((5, 3)))
    >>> J
    <10x26 Jacobian, float64>
    >>> (J @ net.params).shape, (np.ones(10) @ J).shape
    ((10,), (26,))
    """

    def __init__(
        self,
        net: MLP,
        X: ArrayLike,
        *,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        threads, chunk = as_num_threads(num_threads), as_chunk_size(chunk_size)
        x = as_cases(X, as_net(net).sizes[0], net.dtype, threads)
        self._linearization = net.linearize_checked(x, threads, chunk)
        self._output_shape = (x.shape[0], net.sizes[-1])
        self.shape = (x.shape[0] * net.sizes[-1], net.num_params)
        self.dtype = net.dtype
        self.num_threads = int(self._linearization.num_threads)
        self.flops_per_product = product_flops(
            net.sizes, x.shape[0], "jacobian", recompute=self._linearization.num_chunks > 1
        )

    def _apply(self, rows: Array) -> Array:
        return self._linearization.jvp(rows).reshape(rows.shape[0], self.shape[0])

    def _apply_transpose(self, rows: Array) -> Array:
        return self._linearization.vjp(rows.reshape(rows.shape[0], *self._output_shape))
