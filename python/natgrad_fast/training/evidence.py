"""Weight decay from the data: Bayesian regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arrays import as_number, dot
from .._typing import Array
from ..losses import SquaredError
from ..model.batch import Batch

__all__ = ["BayesianRegularization", "Evidence"]

# Bounds of the factor by which a step may change l2.
MOST_CHANGE = 10.0


class Evidence(NamedTuple):
    """What a step found: the next l2, and the effective number of parameters."""

    l2: float
    effective_parameters: float


@dataclass(frozen=True)
class BayesianRegularization:
    """Weight decay by MacKay's evidence, as in MATLAB's trainbr; given as an optimizer's `l2`.

    After every step that is kept, with the eigenvalues m_j of the curvature matrix of the data,

        gamma = sum_j m_j / (m_j + l2)                       effective number of parameters
        l2 = gamma s / (N |params|^2)
        s = 2 N h / (N C - gamma) for squared_error, the variance of the noise; else 1

    h being the mean loss without l2 (Foresee & Hagan 1997; MacKay 1992; gamma is P - alpha tr(G +
    alpha I)^-1 of theirs).

    Parameters
    ----------
    initial : float
        First l2, > 0.
    minimum, maximum : float
        Bounds of l2. A step changes it by a factor of ten at most.

    Notes
    -----
    For full batches and ``solvers.Dense``: the eigenvalues of the (P, P) matrix are needed, up to
    14 P^3 / 3 flops a step. The objective changes with l2 from step to step, so that it does not
    fall steadily.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> rng = np.random.default_rng(0)
    >>> X = np.linspace(-1, 1, 60)[:, None]
    >>> y = np.sin(3 * X) + 0.2 * rng.standard_normal(X.shape)
    >>> net = ng.MLP([1, 20, 1], dtype="float64", seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error", l2=ng.BayesianRegularization())
    >>> info = opt.fit(X, y, epochs=100).steps[-1]
    >>> 3 < info.effective_parameters < 10  # of 61
    True
    """

    initial: float = 1e-3
    minimum: float = 1e-12
    maximum: float = 1e6

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        minimum = as_number(self.minimum, "minimum", above=0.0)
        maximum = as_number(self.maximum, "maximum", above=minimum)
        initial = as_number(self.initial, "initial", above=0.0)
        if not minimum <= initial <= maximum:
            raise ValueError(f"initial must be in [{minimum:g}, {maximum:g}], got {initial:g}")

    def measured(
        self, batch: Batch, eigenvalues: NDArray[np.float64], loss: float, params: Array
    ) -> Evidence:
        """Evidence after a step to `params`, where the objective of the batch is `loss`.

        Parameters
        ----------
        batch : Batch
            Whose objective `loss` is, with the l2 of the step.
        eigenvalues : (P,) float64 array
            Of the curvature matrix, l2 included.
        loss : float
        params : (P,) array
        """
        l2 = batch.decay.weights
        data = np.maximum(eigenvalues - l2, 0.0)
        gamma = float(np.sum(data / (data + l2)))
        square = dot(params, params, batch.num_threads)
        count = float(batch.num_cases)
        scale = 1.0
        if isinstance(batch.loss, SquaredError):
            misfit = max(loss - 0.5 * l2 * square, 0.0)
            freedom = count * batch.net.sizes[-1] - gamma
            scale = 2.0 * count * misfit / freedom if freedom > 0.0 else math.nan
        found = gamma * scale / (count * square) if square > 0.0 else math.nan
        if not math.isfinite(found):
            return Evidence(l2, gamma)
        found = min(max(found, l2 / MOST_CHANGE), l2 * MOST_CHANGE)
        return Evidence(min(max(found, self.minimum), self.maximum), gamma)
