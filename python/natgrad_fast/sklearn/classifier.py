"""Classification."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .._typing import Array
from ..losses import BernoulliCrossEntropy, Loss, SoftmaxCrossEntropy
from ..model.mlp import MLP
from .base import NaturalGradientEstimator
from .tables import with_targets

__all__ = ["NaturalGradientClassifier"]


class NaturalGradientClassifier(ClassifierMixin, NaturalGradientEstimator):  # type: ignore[misc]
    """A dense net for classes, trained by natural-gradient steps.

    Parameters have the names of `sklearn.neural_network.MLPClassifier` where they mean the same.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
    activation : str or sequence of str
        "tanh", "logistic", "relu", "identity", and the others of `MLP`.
    alpha : float
        Weight decay of the weights, not of biases: alpha / (2 n) |W|^2 is added to the mean loss,
        n being the cases of a batch, as in scikit-learn.
    batch_size : int, BatchSchedule, "auto" or None
        See `NaturalGradient.fit`: "auto" is all cases where a step on them costs little.
    max_iter : int
        Most passes through the data.
    tol, n_iter_no_change : float, int
        Training ends when the loss, or with `early_stopping` the score, has not become better by
        `tol` for so many passes; or earlier, when nothing is to be gained any more.
    early_stopping, validation_fraction : bool, float
        Hold a share of the cases back and keep the parameters with the best score on it.
    random_state : int, RandomState or None
    warm_start : bool
        Whether `fit` goes on from the parameters of the last call.
    verbose : bool
    solver, damping
        Of `NaturalGradient`.
    scale : {"auto", True, False}
        Whether columns of X are brought to mean 0 and standard deviation 1 inside, so that raw
        units work; "auto" does.
    class_weight : dict, "balanced" or None
        As in scikit-learn; not for several labels.
    init : str
        Of `MLP`.
    dtype : {"auto", "float32", "float64"}
        "auto" is that of X, float64 for what is no float.
    num_threads : int, optional
        The result has the same bits for any number.
    time_limit : float, optional
        Seconds after which no further step begins.

    Attributes
    ----------
    classes_ : array
    net_ : MLP
        On scaled inputs.
    coefs_, intercepts_ : list of arrays
        Of the layers, (inputs, outputs) and (outputs,), for inputs as they are given.
    loss_, best_loss_ : float
    loss_curve_ : list of float
        Loss of every pass.
    validation_scores_, best_validation_score_
        With `early_stopping`, else None.
    history_ : History
        Records of the last fit.
    n_iter_, t_, n_layers_, n_outputs_, n_features_in_, feature_names_in_, out_activation_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import natgrad_fast as ng
    >>> X, y = load_iris(return_X_y=True)
    >>> model = ng.sklearn.NaturalGradientClassifier((10,), random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.97
    True
    >>> model.predict_proba(X[:2]).shape
    (2, 3)
    """

    classes_: NDArray[Any]
    _kind: str  # "binary", "multiclass" or "multilabel"

    def __init__(
        self,
        hidden_layer_sizes: object = (100,),
        activation: object = "tanh",
        *,
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
        class_weight: object = None,
        init: str = "glorot",
        dtype: object = "auto",
        num_threads: int | None = None,
        time_limit: float | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
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
        self.class_weight = class_weight
        self.init = init
        self.dtype = dtype
        self.num_threads = num_threads
        self.time_limit = time_limit

    def fit(self, X: object, y: object, sample_weight: ArrayLike | None = None) -> Self:
        """Train on inputs (n, n_features) and labels (n,), or flags (n, n_labels).

        Parameters
        ----------
        X : array_like or data frame
            Of pandas, polars and others by narwhals.
        y : array_like
            Labels of any kind, or an indicator matrix for several labels a case.
        sample_weight : (n,) array_like, optional

        Raises
        ------
        ValueError, TypeError
            For data or parameters that can not be used.
        """
        self._check_options()
        x, y = with_targets(self, X, y, multi_output=True)
        weights = self._weights(sample_weight, x)
        y, kind = _labels(y)
        known = self._classes_of(y, kind)
        is_warm = self.warm_start and hasattr(self, "net_")
        if is_warm:
            if kind != self._kind or not np.array_equal(known, self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the "
                    f"previous call to fit. Previously got {self.classes_}, now {known}"
                )
        else:
            self._kind, self.classes_ = kind, known
            self._begin(x, self._counted(y, weights))
        return self._train(x, y, self._counted(y, weights), epochs=self.max_iter, is_partial=False)

    def partial_fit(
        self,
        X: object,
        y: object,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train by one pass through some data.

        The first call fixes classes and scales; the optimizer goes on from call to call.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array_like
            All labels that will come; needed in the first call only.
        """
        self._check_options()
        is_first = not hasattr(self, "net_")
        x, y = with_targets(self, X, y, multi_output=True, reset=is_first)
        weights = self._weights(sample_weight, x)
        y, kind = _labels(y)
        if is_first:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self._kind, self.classes_ = kind, unique_labels(classes)
            if kind != "multilabel" and len(self.classes_) < 2:
                raise ValueError("classes must name at least two classes")
            self._begin(x, None)
        elif classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"`classes={classes}` is not the same as on last call to partial_fit")
        return self._train(x, y, self._counted(y, weights), epochs=1, is_partial=True)

    def predict(self, X: object) -> NDArray[Any]:
        """Most probable labels (n,), or flags (n, n_labels)."""
        z = self._outputs(X)
        if self._kind == "multilabel":
            return (z > 0).astype(int)
        places = z.argmax(axis=1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(int)
        labels: NDArray[Any] = self.classes_[places]
        return labels

    def predict_proba(self, X: object) -> Array:
        """Probabilities of the classes (n, n_classes), or of the labels (n, n_labels)."""
        probabilities: Array = np.exp(self.predict_log_proba(X))
        if self._kind == "multiclass":
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        if self._kind == "multilabel":  # no label is certain, as scikit-learn wants it
            probabilities = probabilities.clip(max=np.nextafter(1.0, 0.0))
        return probabilities

    def predict_log_proba(self, X: object) -> Array:
        """Logarithms of `predict_proba`, exact where those are 0."""
        z = self._outputs(X).astype(np.float64)
        if self._kind == "multiclass":
            z -= z.max(axis=1, keepdims=True)
            log_proba: Array = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
            return log_proba
        yes, no = -np.logaddexp(0.0, -z), -np.logaddexp(0.0, z)
        return yes if self._kind == "multilabel" else np.hstack([no, yes])

    @property
    def out_activation_(self) -> str:
        """Name of what turns outputs into probabilities, "softmax" or "logistic"."""
        return "softmax" if self._kind == "multiclass" else "logistic"

    # What the base asks for ----------------------------------------------------------------------

    def _classes_of(self, y: NDArray[Any], kind: str) -> NDArray[Any]:
        if kind == "multilabel":
            return np.arange(y.shape[1])
        known = np.unique(y)
        if len(known) < 2:
            raise ValueError(f"y has only one class, {known[0]}: a classifier needs two or more")
        return known

    def _counted(
        self, y: NDArray[Any], weights: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        """Weights of the cases times those of their classes."""
        if self.class_weight is None:
            return weights
        if self._kind == "multilabel":
            raise ValueError("class_weight is not for several labels")
        own: NDArray[np.float64] = compute_sample_weight(self.class_weight, y)
        return own if weights is None else own * weights

    def _num_outputs(self) -> int:
        return 1 if self._kind == "binary" else len(self.classes_)

    def _loss(self) -> Loss:
        return SoftmaxCrossEntropy() if self._kind == "multiclass" else BernoulliCrossEntropy()

    def _targets(
        self, y: NDArray[Any], *, reset: bool, weights: NDArray[np.float64] | None
    ) -> NDArray[Any]:
        if self._kind == "multilabel":
            if y.ndim != 2 or y.shape[1] != len(self.classes_):
                raise ValueError(f"y must have {len(self.classes_)} labels")
            return y.astype(float)
        places = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        unknown = self.classes_[places] != y
        if np.any(unknown):
            raise ValueError(
                f"y has classes that were not there before: {np.unique(y[unknown])}, known are "
                f"{self.classes_}"
            )
        return places if self._kind == "multiclass" else places[:, None].astype(float)

    def _score_of(self, net: MLP, x: Array, y: NDArray[Any]) -> float:
        z = net(x, num_threads=self.num_threads)
        targets = self._targets(y, reset=False, weights=None)
        if self._kind == "multiclass":
            return float(np.mean(z.argmax(axis=1) == targets))
        return float(np.mean(((z > 0) == (targets > 0.5)).all(axis=1)))

    def _stratify(self, y: NDArray[Any]) -> NDArray[Any] | None:
        return None if self._kind == "multilabel" else y

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn from 1.6 on."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        """Tags of scikit-learn before 1.6."""
        return {"multilabel": True}


def _labels(y: Any) -> tuple[NDArray[Any], str]:
    """Labels, and whether they are "binary", "multiclass" or "multilabel"."""
    check_classification_targets(y)
    if type_of_target(y).startswith("multilabel"):
        return np.asarray(y), "multilabel"
    y = column_or_1d(y, warn=True)
    return y, "binary" if len(np.unique(y)) <= 2 else "multiclass"
