"""What the estimators have in common."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight

from .._arrays import as_count, as_number
from .._typing import Array
from .._warnings import NatgradWarning
from ..losses import Loss
from ..model.mlp import MLP
from ..solvers import Dense, Kronecker
from ..solvers.auto import FEW_PARAMETERS
from ..training import BatchSchedule, NaturalGradient
from ..training.schedule import CHEAP_FLOPS, FIRST_SIZE
from .scaling import Scaling
from .tables import checked_inputs
from .watch import Watch

__all__ = ["NaturalGradientEstimator"]

# Outputs up to which the statistics of a step are expectations, a backward sweep each.
MOST_EXACT = 16
# Cases of a step of `partial_fit`.
PARTIAL_BATCH = 200


class NaturalGradientEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of classifier and regressor; their docstrings have the parameters."""

    net_: MLP
    loss_curve_: list[float]
    _scaling: Scaling
    _optimizer: NaturalGradient | None
    _optimizer_state: Any

    # What a subclass tells of its targets.
    def _loss(self) -> Loss:
        raise NotImplementedError

    def _targets(self, y: Any, *, reset: bool, weights: NDArray[np.float64] | None) -> Array:
        """Targets as the loss takes them."""
        raise NotImplementedError

    def _score_of(self, net: MLP, x: Array, y: Any) -> float:
        """Score of scaled inputs and the user's targets."""
        raise NotImplementedError

    def _num_outputs(self) -> int:
        raise NotImplementedError

    # Fitting -------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        as_count(self.max_iter, "max_iter", 1)
        as_number(self.tol, "tol", minimum=0.0)
        as_number(self.alpha, "alpha", minimum=0.0)
        as_count(self.n_iter_no_change, "n_iter_no_change", 1)
        if self.early_stopping:
            share = as_number(self.validation_fraction, "validation_fraction", above=0.0)
            if share >= 1.0:
                raise ValueError(f"validation_fraction must be in (0, 1), got {share}")
        if self.scale not in ("auto", True, False):
            raise ValueError(f'scale must be "auto", True or False, got {self.scale!r}')
        if self.dtype not in ("auto", "float32", "float64", np.float32, np.float64):
            raise ValueError(f'dtype must be "auto", "float32" or "float64", got {self.dtype!r}')

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if np.ndim(sizes) == 0 else list(sizes)
        return [as_count(size, "hidden_layer_sizes", 1) for size in sizes]

    def _weights(self, sample_weight: Any, x: Array) -> NDArray[np.float64] | None:
        if sample_weight is None:
            return None
        weights: NDArray[np.float64] = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if (weights < 0).any() or not weights.any():
            raise ValueError("sample_weight must be >= 0, and not 0 everywhere")
        return weights

    def _begin(self, x: Array, weights: NDArray[np.float64] | None) -> None:
        """Make scaling and net."""
        dtype = x.dtype if self.dtype == "auto" else np.dtype(self.dtype)
        is_scaled = self.scale in ("auto", True)
        self._scaling = Scaling.of(x, weights) if is_scaled else Scaling.none(x.shape[1])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        sizes = [x.shape[1], *self._hidden(), self._num_outputs()]
        self.net_ = MLP(sizes, self.activation, dtype=dtype, seed=seed, init=self.init)
        self._seed = seed
        self._optimizer = self._optimizer_state = None
        self.n_iter_, self.t_, self.loss_curve_ = 0, 0, []
        self.n_layers_ = len(sizes)
        self.n_outputs_ = sizes[-1]
        self.best_loss_: float | None = math.inf
        self.validation_scores_ = self.best_validation_score_ = None

    def _batch_size(self, num_cases: int) -> Any:
        size = self.batch_size
        if size is None or isinstance(size, str | BatchSchedule):
            return size
        return min(as_count(size, "batch_size", 1), num_cases)

    def _make_optimizer(
        self, num_cases: float, num_rows: int, *, is_partial: bool
    ) -> NaturalGradient:
        """An optimizer with alpha (weights only) as scikit-learn divides it: by the batch."""
        size = self._batch_size(num_rows)
        if is_partial and not isinstance(size, int):
            size = min(PARTIAL_BATCH, num_rows)
        share = 1.0
        if isinstance(size, int):
            share = size / num_rows
        elif isinstance(size, BatchSchedule):
            share = min(1.0, size.size(0) / num_rows)
        elif size == "auto" and 6.0 * num_rows * self.net_.num_params > CHEAP_FLOPS:
            share = min(1.0, FIRST_SIZE / num_rows)
        decay = self.alpha * self._loss_scale() / (share * num_cases)
        optimizer = NaturalGradient(
            self.net_,
            self._loss(),
            solver=self.solver if is_partial else self._chosen_solver(size, num_rows),
            damping=self.damping,
            l2=(decay, 0.0),
            seed=self._seed,
            num_threads=self.num_threads,
        )
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def _chosen_solver(self, size: Any, num_rows: int) -> Any:
        """Statistics without draws where they cost little: weights then count as repeated cases."""
        is_automatic = isinstance(self.solver, str) and self.solver == "auto"
        is_full = size is None or (isinstance(size, int) and size >= num_rows)
        if size == "auto":
            is_full = 6.0 * num_rows * self.net_.num_params <= CHEAP_FLOPS
        if not is_automatic or not is_full or self.n_outputs_ > MOST_EXACT:
            return self.solver
        few = self.net_.num_params <= FEW_PARAMETERS
        return Dense() if few else Kronecker(samples=None)

    def _loss_scale(self) -> float:
        """Of our objective in units of scikit-learn's."""
        return 1.0

    def _train(
        self,
        x: Array,
        y: Any,
        weights: NDArray[np.float64] | None,
        *,
        epochs: int,
        is_partial: bool,
    ) -> Self:
        """Train the net on checked inputs and the user's targets."""
        validation = None
        if self.early_stopping and not is_partial:
            x, y, weights, validation = self._split(x, y, weights)
        targets = self._targets(y, reset=not is_partial, weights=weights)
        total = float(x.shape[0]) if weights is None else float(weights.sum())
        if self._optimizer is None or not is_partial:
            self._optimizer = self._make_optimizer(total, x.shape[0], is_partial=is_partial)
        scaled = self._scaling.apply(x, self.net_.dtype)
        watch = Watch(self, scaled.shape[0], validation, is_partial=is_partial)
        with warnings.catch_warnings():
            # Columns were brought to unit scale, or the user did not want that.
            warnings.filterwarnings("ignore", message=".*far from unit scale.*")
            if is_partial:  # some of data without end
                batches = self._pieces(scaled, targets, weights)
                history = self._optimizer.fit(batches, callbacks=watch)
            else:
                history = self._optimizer.fit(
                    scaled,
                    targets,
                    epochs=epochs,
                    batch_size=self._batch_size(x.shape[0]),
                    sample_weight=weights,
                    callbacks=watch,
                    time_limit=self.time_limit,
                )
        self.history_ = history
        watch.finish(history)
        if history.stop_reason == "interrupted":
            warnings.warn("Training interrupted by user.", NatgradWarning, stacklevel=3)
        if history.stop_reason == "epochs" and not is_partial and epochs > 1:
            warnings.warn(
                f"max_iter={epochs} passes through the data were made, and the training has not "
                "converged yet",
                ConvergenceWarning,
                stacklevel=3,
            )
        if not is_partial:
            self._optimizer = None
        return self

    def _pieces(self, x: Array, y: Array, weights: NDArray[np.float64] | None) -> list[Any]:
        """Batches of a call of `partial_fit`, of about equal sizes, in a random order of cases."""
        size = self._batch_size(len(x))
        size = size if isinstance(size, int) else PARTIAL_BATCH
        order = np.random.default_rng([self._seed, self.t_]).permutation(len(x))
        if weights is not None:
            order = order[weights[order] > 0]
        rows = np.array_split(order, -(-len(order) // size))
        if weights is None:
            return [(x[one], y[one]) for one in rows]
        return [(x[one], y[one], weights[one]) for one in rows]

    def _split(self, x: Array, y: Any, weights: NDArray[np.float64] | None) -> Any:
        from sklearn.model_selection import train_test_split

        stratify = self._stratify(y)
        arrays = [x, y] if weights is None else [x, y, weights]
        try:
            parts = train_test_split(
                *arrays,
                test_size=self.validation_fraction,
                random_state=self._seed,
                stratify=stratify,
            )
        except ValueError as error:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} can not be held back for "
                f"early_stopping: {error}"
            ) from error
        if weights is None:
            return parts[0], parts[2], None, (parts[1], parts[3])
        return parts[0], parts[2], parts[4], (parts[1], parts[3])

    def _stratify(self, y: Any) -> Any:
        return None

    # Predicting ----------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        """Outputs (n, C) of the net for the user's inputs."""
        try:
            net = self.net_
        except AttributeError:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with "
                "appropriate arguments before using this estimator."
            ) from None
        # A plain array of the right shape needs no more than the question whether it is finite.
        is_plain = (
            type(X) is np.ndarray
            and X.ndim == 2
            and X.dtype.kind == "f"
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
            and bool(np.isfinite(X.sum()))
        )
        x = X if is_plain else checked_inputs(self, X, reset=False)
        return net(self._scaling.apply(x, net.dtype), num_threads=self.num_threads)

    @property
    def coefs_(self) -> list[Array]:
        """Weights of the layers, (inputs, outputs) each, for inputs as they are given."""
        weights = [w.T.copy() for w in self.net_.weights]
        weights[0] /= self._scaling.deviation[:, None].astype(weights[0].dtype)
        return weights

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of the layers, for inputs as they are given."""
        biases = [b.copy() for b in self.net_.biases]
        shift = self._scaling.mean / self._scaling.deviation
        biases[0] -= (self.net_.weights[0] @ shift).astype(biases[0].dtype)
        return biases

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the optimizer, whose state is kept."""
        state: dict[str, Any] = dict(super().__getstate__())
        optimizer = state.pop("_optimizer", None)
        if optimizer is not None:
            state["_optimizer_state"] = optimizer.state_dict()
        if "net_" in state:
            state["_optimizer"] = None
        return state
