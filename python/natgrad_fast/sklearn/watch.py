"""When a training of an estimator ends, as scikit-learn's multi-layer perceptrons say it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._typing import Array
from ..training import History
from ..training.callbacks import TrainingContext

__all__ = ["Watch"]


class Watch:
    """Keeps losses and scores of the epochs, and ends a training that does not get better.

    Parameters
    ----------
    estimator : NaturalGradientEstimator
        Whose attributes are kept up to date: `loss_curve_`, `n_iter_`, `t_`, `best_loss_`,
        `validation_scores_`, `best_validation_score_`.
    num_cases : int
        Of an epoch.
    validation : (X, y) or None
        Held back for early stopping.
    is_partial : bool
        Whether nothing is to be ended.
    """

    def __init__(
        self, estimator: Any, num_cases: int, validation: Any, *, is_partial: bool
    ) -> None:
        self.estimator, self.num_cases, self.is_partial = estimator, num_cases, is_partial
        self.validation, self.waited = None, 0
        self.best: Array | None = None
        self.best_score = -math.inf
        if validation is not None:
            x, y = validation
            scaled = estimator._scaling.apply(x, estimator.net_.dtype)
            self.validation = scaled, y
            estimator.validation_scores_ = []
            estimator.best_loss_ = None

    def __call__(self, context: TrainingContext) -> bool:
        """Whether to stop."""
        if not context.is_epoch_end:
            return False
        estimator = self.estimator
        loss = context.history.epochs[-1].loss
        estimator.loss_curve_.append(loss)
        estimator.n_iter_ += 1
        estimator.t_ += self.num_cases
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")
        is_better = self._by_loss(loss) if self.validation is None else self._by_score(context)
        self.waited = 0 if is_better else self.waited + 1
        return not self.is_partial and self.waited >= estimator.n_iter_no_change

    def _by_loss(self, loss: float) -> bool:
        estimator = self.estimator
        best = math.inf if estimator.best_loss_ is None else float(estimator.best_loss_)
        estimator.best_loss_ = min(best, loss)
        return loss < best - float(estimator.tol)

    def _by_score(self, context: TrainingContext) -> bool:
        assert self.validation is not None
        estimator = self.estimator
        score = float(estimator._score_of(context.net, *self.validation))
        estimator.validation_scores_.append(score)
        if estimator.verbose:
            print(f"Validation score: {score:.6f}")
        is_better = score > self.best_score + float(estimator.tol)
        if score > self.best_score:
            self.best_score, self.best = score, context.net.params.copy()
        estimator.best_validation_score_ = self.best_score
        return is_better

    def finish(self, history: History) -> None:
        """Put the best parameters back; the last loss."""
        estimator = self.estimator
        if self.best is not None and np.isfinite(self.best_score):
            estimator.net_.params = self.best
        if estimator.loss_curve_:
            estimator.loss_ = estimator.loss_curve_[-1]
        elif history.steps:
            estimator.loss_ = history.steps[-1].loss
