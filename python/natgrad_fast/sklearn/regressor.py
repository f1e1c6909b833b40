"""Regression."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MultiOutputMixin, RegressorMixin

from .._arrays import as_name
from .._typing import Array
from ..losses import Loss, Poisson, SquaredError, StudentT
from ..model.mlp import MLP
from .base import NaturalGradientEstimator
from .scaling import Scaling
from .tables import with_targets

__all__ = ["NaturalGradientRegressor"]

LOSSES: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "poisson": Poisson,
    "student_t": StudentT,
}


class NaturalGradientRegressor(
    RegressorMixin,  # type: ignore[misc]
    MultiOutputMixin,  # type: ignore[misc]
    NaturalGradientEstimator,
):
    """A dense net for numbers, trained by natural-gradient steps.

    Parameters have the names of `sklearn.neural_network.MLPRegressor` where they mean the same.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "student_t"}
        "poisson" is for counts and rates, y >= 0; "student_t" (4 degrees of freedom) for targets
        with outliers.
    hidden_layer_sizes, activation, batch_size, max_iter, tol, n_iter_no_change
        As in `NaturalGradientClassifier`.
    alpha : float
        Weight decay of the weights, not of biases, as in scikit-learn: alpha / (2 n) |W|^2 is added
        to the loss, which is half the mean of squares over cases and outputs; of targets at unit
        scale, where these are scaled.
    early_stopping, validation_fraction, random_state, warm_start, verbose, solver, damping, init
        As in `NaturalGradientClassifier`; the score is R^2.
    scale : {"auto", True, False}
        Whether columns of X, and of y but for "poisson", are brought to mean 0 and standard
        deviation 1 inside, so that raw units work; "auto" does. For "student_t" median and spread
        of y are those that outliers leave alone.
    dtype, num_threads, time_limit
        As in `NaturalGradientClassifier`.

    Attributes
    ----------
    net_ : MLP
        On scaled inputs, for scaled targets.
    coefs_, intercepts_ : list of arrays
        Of the layers, for inputs and targets as they are given (for "poisson" its logarithm).
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, history_, n_iter_,
    t_, n_layers_, n_outputs_, n_features_in_, feature_names_in_, out_activation_
        As in `NaturalGradientClassifier`; losses are those of scaled targets, summed over outputs.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = 1000.0 * np.linspace(-1, 1, 100)[:, None]
    >>> y = 1e5 + 3e4 * np.sin(X[:, 0] / 300.0)
    >>> model = ng.sklearn.NaturalGradientRegressor((20,), random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.999
    True
    """

    _num_targets: int
    _is_flat: bool  # whether predictions are (n,)
    _target_scaling: Scaling

    def __init__(
        self,
        hidden_layer_sizes: object = (100,),
        activation: object = "tanh",
        *,
        loss: str = "squared_error",
        alpha: float = 1e-4,
        batch_size: object = "auto",
        max_iter: int = 200,
        tol: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: object = None,
        warm_start: bool = False,
        verbose: bool = False,
        solver: object = "auto",
        damping: object = "auto",
        scale: object = "auto",
        init: str = "glorot",
        dtype: object = "auto",
        num_threads: int | None = None,
        time_limit: float | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.loss = loss
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.solver = solver
        self.damping = damping
        self.scale = scale
        self.init = init
        self.dtype = dtype
        self.num_threads = num_threads
        self.time_limit = time_limit

    def fit(self, X: object, y: object, sample_weight: ArrayLike | None = None) -> Self:
        """Train on inputs (n, n_features) and targets (n,) or (n, n_targets).

        Parameters
        ----------
        X : array_like or data frame
            Of pandas, polars and others by narwhals.
        y : array_like
        sample_weight : (n,) array_like, optional

        Raises
        ------
        ValueError, TypeError
            For data or parameters that can not be used.
        """
        return self._fit(X, y, sample_weight, is_partial=False)

    def partial_fit(self, X: object, y: object, sample_weight: ArrayLike | None = None) -> Self:
        """Train by one pass through some data; the first call fixes the scales."""
        return self._fit(X, y, sample_weight, is_partial=True)

    def _fit(self, X: object, y: Any, sample_weight: Any, *, is_partial: bool) -> Self:
        self._check_options()
        as_name(self.loss, "loss", LOSSES)
        goes_on = (is_partial or self.warm_start) and hasattr(self, "net_")
        x, y = with_targets(
            self, X, y, multi_output=True, y_numeric=True, reset=not (is_partial and goes_on)
        )
        weights = self._weights(sample_weight, x)
        table = y.reshape(len(y), -1)
        if not goes_on:
            self._is_flat, self._num_targets = y.ndim == 1, table.shape[1]
            is_scaled = self.scale in ("auto", True) and self.loss != "poisson"
            measure = Scaling.robust if self.loss == "student_t" else Scaling.of
            self._target_scaling = (
                measure(table, weights) if is_scaled else Scaling.none(table.shape[1])
            )
            self._begin(x, weights)
        elif table.shape[1] != self._num_targets:
            raise ValueError(f"y has {table.shape[1]} targets, the net {self._num_targets}")
        epochs = 1 if is_partial else self.max_iter
        return self._train(x, table, weights, epochs=epochs, is_partial=is_partial)

    def predict(self, X: object) -> Array:
        """Expected targets (n,) or (n, n_targets): means, or rates for "poisson"."""
        return self._predicted(self._outputs(X))

    def _predicted(self, z: Array) -> Array:
        if self.loss == "poisson":
            with np.errstate(over="ignore"):
                mean: Array = np.exp(z)
        else:
            mean = self._target_scaling.undo(z)
        return mean[:, 0] if self._is_flat else mean

    @property
    def out_activation_(self) -> str:
        """Name of what turns outputs into targets: "identity", or "exp" for "poisson"."""
        return "exp" if self.loss == "poisson" else "identity"

    @property
    def coefs_(self) -> list[Array]:
        """Weights of the layers, for inputs and targets as they are given."""
        weights = super().coefs_
        weights[-1] *= self._target_scaling.deviation.astype(weights[-1].dtype)
        return weights

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of the layers, for inputs and targets as they are given."""
        biases = super().intercepts_
        biases[-1] = self._target_scaling.undo(biases[-1])
        return biases

    # What the base asks for ----------------------------------------------------------------------

    def _num_outputs(self) -> int:
        return self._num_targets

    def _loss(self) -> Loss:
        return LOSSES[self.loss]()

    def _loss_scale(self) -> float:
        return float(self._num_targets)

    def _targets(
        self, y: NDArray[Any], *, reset: bool, weights: NDArray[np.float64] | None
    ) -> NDArray[Any]:
        if self.loss == "poisson":
            if (y < 0).any():
                raise ValueError('y must be >= 0 for loss="poisson"')
            return y
        return self._target_scaling.apply(np.asarray(y, np.float64), np.dtype(np.float64))

    def _score_of(self, net: MLP, x: Array, y: NDArray[Any]) -> float:
        mean = self._predicted(net(x, num_threads=self.num_threads)).reshape(y.shape)
        rest, spread = np.sum((y - mean) ** 2, axis=0), np.sum((y - y.mean(axis=0)) ** 2, axis=0)
        # Where targets do not vary, as of one case, R^2 is not defined.
        scores = np.where(spread > 0.0, 1.0 - rest / np.where(spread > 0.0, spread, 1.0), -rest)
        return float(scores.mean())
