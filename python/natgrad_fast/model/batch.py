"""The objective h = weighted mean over cases of the loss, plus (l2 / 2) |params|^2."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from .._arrays import as_cases, as_num_threads, as_number, as_sample_weight, core_for
from ..losses.base import Loss
from ..losses.standard import as_loss
from .mlp import MLP, as_net

__all__ = ["Objective", "value", "value_and_grad"]


class Objective:
    """A net's objective on one checked batch; arguments as in `value_and_grad`."""

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        l2: float = 0.0,
        num_threads: int | None = None,
    ) -> None:
        self.net = as_net(net)
        self.loss = as_loss(loss)
        self.x = as_cases(X, net.sizes[0], net.dtype)
        num_cases = self.x.shape[0]
        targets = self.loss.targets(y, num_cases, net.sizes[-1], net.dtype)
        self.sample_weight = as_sample_weight(sample_weight, num_cases)
        self.l2 = as_number(l2, "l2", minimum=0.0)
        self.num_threads = as_num_threads(num_threads)
        self._core = core_for(net.dtype).Objective(
            self.loss.core, targets=targets, weights=self.sample_weight
        )
        self.targets = targets

    def value(self, params: Any) -> float:
        """Return h at params (P,) of the net's dtype; a forward pass."""
        return float(
            self._core.value(
                self.net._architecture,
                params=params,
                x=self.x,
                l2=self.l2,
                num_threads=self.num_threads,
            )
        )

    def linearize(self, chunk_size: int | None = None) -> Any:
        """Linearise the net at its present parameters over the batch."""
        return self.net.linearize(self.x, num_threads=self.num_threads, chunk_size=chunk_size)

    def value_and_grad(self, linearization: Any) -> tuple[float, Any]:
        """Return h and its gradient (P,) where the net was linearised."""
        h, g = self._core.value_and_gradient(linearization, l2=self.l2)
        return float(h), g


def value(
    net: MLP,
    loss: str | Loss,
    X: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    l2: float = 0.0,
    num_threads: int | None = None,
) -> float:
    """Objective h of a net on a batch, by one forward pass (2 N P flops).

    Parameters, errors and scale are those of `value_and_grad`.
    """
    objective = Objective(
        net, loss, X, y, sample_weight=sample_weight, l2=l2, num_threads=num_threads
    )
    return objective.value(net.params)


def value_and_grad(
    net: MLP,
    loss: str | Loss,
    X: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    l2: float = 0.0,
    num_threads: int | None = None,
) -> tuple[float, Any]:
    """Objective h of a net on a batch and its gradient.

    h = sum_i w_i L(y_i, net(x_i)) / sum_i w_i + (l2 / 2) |params|^2, each L summed over outputs.

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        One of `losses`, or its name: "squared_error", "softmax_cross_entropy",
        "bernoulli_cross_entropy", "poisson", "student_t", "gaussian_mean_variance".
    X : (N, d_0) array_like
        Inputs, N >= 1, finite.
    y : (N, C) array_like
        Targets; (N,) labels for softmax_cross_entropy, (N,) for C = 1.
    sample_weight : (N,) array_like, optional
        w_i >= 0 with a positive sum; equal weights by default.
    l2 : float
        Weight decay of all parameters, biases too.
    num_threads : int, optional
        The result has the same bits for any number.

    Returns
    -------
    h : float
    g : (P,) array of the net's dtype

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    About 6 N P flops. Cases go through in chunks, so that memory does not grow with N.
    """
    objective = Objective(
        net, loss, X, y, sample_weight=sample_weight, l2=l2, num_threads=num_threads
    )
    return objective.value_and_grad(objective.linearize(net.one_pass_chunk_size))
