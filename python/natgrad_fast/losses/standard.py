"""The losses, each the negative log-likelihood of a predictive law up to a constant."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._arrays import as_name, as_number, as_real
from .._typing import Array, DType, RealArray
from .base import Loss

__all__ = [
    "BernoulliCrossEntropy",
    "GaussianMeanVariance",
    "LossName",
    "Poisson",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StudentT",
    "as_loss",
]


class SquaredError(Loss):
    """Half the squared distance |y - z|^2 / 2: a Gaussian with mean z and unit variance.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.value(ng.MLP([1, 1], init="zeros"), ng.losses.SquaredError(), [[1.0]], [[3.0]])
    4.5
    """

    name = "squared_error"


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of a categorical distribution with logits z.

    Targets are (N,) integer labels in [0, C) or (N, C) rows of probabilities.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.losses.SoftmaxCrossEntropy().mean([[0.0, 0.0]])
    array([[0.5, 0.5]])
    """

    name = "softmax_cross_entropy"

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: DType) -> Array:
        """Rows of probabilities; labels become rows with a single 1. See `Loss.targets`."""
        a = as_real(y, "y")
        if a.ndim == 1:
            return self._one_hot(a, num_cases, num_outputs, dtype)
        if a.shape != (num_cases, num_outputs):
            wanted = f"labels ({num_cases},) or probabilities ({num_cases}, {num_outputs})"
            raise ValueError(f"y has shape {a.shape}, wanted {wanted}")
        p = super().targets(a, num_cases, num_outputs, dtype)
        if (p < 0).any():
            i, c = np.argwhere(p < 0)[0]
            raise ValueError(
                f"y must hold probabilities >= 0, got {p[i, c]} at row {i}, column {c}"
            )
        sums = p.sum(axis=1, dtype=np.float64)
        off = np.abs(sums - 1.0) > 1e-3
        if off.any():
            i = int(np.argmax(off))
            raise ValueError(f"each row of y must sum to 1, got {sums[i]:.6g} in row {i}")
        return p

    def _in_shape_of_targets(self, mean: Array) -> Array:
        return mean  # rows of probabilities

    def _one_hot(self, y: RealArray, num_cases: int, num_outputs: int, dtype: DType) -> Array:
        if y.shape != (num_cases,):
            raise ValueError(f"y has {y.shape[0]} labels, X has {num_cases} cases")
        if y.dtype.kind == "f":
            bad = ~np.isfinite(y)
            if bad.any():
                raise ValueError(f"y has NaN or Inf at position {int(np.argmax(bad))}")
            bad = y != np.floor(y)
            if bad.any():
                i = int(np.argmax(bad))
                raise ValueError(f"y must hold integer labels, got {y[i]} at position {i}")
        bad = (y < 0) | (y >= num_outputs)
        if bad.any():
            i = int(np.argmax(bad))
            hint = ""
            if num_outputs == 1 and np.isin(y, [0, 1]).all():
                hint = "; for two classes with one output the loss is bernoulli_cross_entropy"
            raise ValueError(
                f"y must hold labels in [0, {num_outputs}), got {y[i]} at position {i}{hint}"
            )
        p = np.zeros((num_cases, num_outputs), dtype)
        p[np.arange(num_cases), y.astype(np.intp)] = 1
        return p


class BernoulliCrossEntropy(Loss):
    """Cross-entropy of C independent Bernoulli variables with logits z; targets in [0, 1].

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.losses.BernoulliCrossEntropy().mean([[0.0], [0.0]])
    array([0.5, 0.5])
    """

    name = "bernoulli_cross_entropy"

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: DType) -> Array:
        """(N, C) targets in [0, 1]. See `Loss.targets`."""
        t = super().targets(y, num_cases, num_outputs, dtype)
        bad = (t < 0) | (t > 1)
        if bad.any():
            i, c = np.argwhere(bad)[0]
            raise ValueError(f"y must be in [0, 1], got {t[i, c]} at row {i}, column {c}")
        return t


class Poisson(Loss):
    """Poisson counts with log-rates z: exp(z) - y z, without the constant log y!; targets >= 0.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.losses.Poisson().mean([[0.0]])
    array([1.])
    """

    name = "poisson"

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: DType) -> Array:
        """(N, C) targets >= 0. See `Loss.targets`."""
        t = super().targets(y, num_cases, num_outputs, dtype)
        if (t < 0).any():
            i, c = np.argwhere(t < 0)[0]
            raise ValueError(f"y must be >= 0, got {t[i, c]} at row {i}, column {c}")
        return t


class StudentT(Loss):
    """Student's t around z, for targets with outliers.

    L = (df + 1)/2 log(1 + r^2 / (df scale^2)), r = y - z, for each output. Its Fisher matrix is
    the constant (df + 1) / ((df + 3) scale^2), while its Hessian is negative where
    |r| > scale sqrt(df): Fisher and GGN differ, and the GGN is indefinite.

    Parameters
    ----------
    df : float
        Degrees of freedom, > 0. The default 4 is a usual choice for robust regression (Lange,
        Little, Taylor, "Robust statistical modeling using the t distribution", 1989).
    scale : float
        Scale of the residuals, > 0.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.losses.StudentT(df=3.0).fisher_is_ggn
    False
    """

    name = "student_t"

    def __init__(self, df: float = 4.0, scale: float = 1.0) -> None:
        self._df = as_number(df, "df", above=0.0)
        self._scale = as_number(scale, "scale", above=0.0)

    @property
    def df(self) -> float:
        """Degrees of freedom."""
        return self._df

    @property
    def scale(self) -> float:
        """Scale of the residuals."""
        return self._scale

    def _parameters(self) -> dict[str, float]:
        return {"df": self._df, "scale": self._scale}


class GaussianMeanVariance(Loss):
    """Gaussian whose mean and variance are both outputs of the net.

    Of C = 2k outputs the first k are the means m and the last k the logarithms s of the variances:
    L = (y - m)^2 exp(-s) / 2 + s / 2, without the constant log(2 pi) / 2, for each of the k
    targets; y is (N, k). The Fisher matrix diag(exp(-s), 1/2) is not the GGN, which is indefinite.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.losses.GaussianMeanVariance().num_targets(4)
    2
    """

    name = "gaussian_mean_variance"


LossName: TypeAlias = Literal[
    "squared_error",
    "softmax_cross_entropy",
    "bernoulli_cross_entropy",
    "poisson",
    "student_t",
    "gaussian_mean_variance",
]
_KINDS: tuple[type[Loss], ...] = (
    SquaredError,
    SoftmaxCrossEntropy,
    BernoulliCrossEntropy,
    Poisson,
    StudentT,
    GaussianMeanVariance,
)
_BY_NAME: dict[str, type[Loss]] = {kind.name: kind for kind in _KINDS}

# What losses are called elsewhere, in lower case without punctuation; "loss" may stand behind it.
_ELSEWHERE = {
    "squared_error": "mse sse l2 square squared leastsquares meansquarederror gaussian normal",
    "softmax_cross_entropy": "crossentropy ce nll softmax categorical multinomial logsoftmax "
    "categoricalcrossentropy sparsecategoricalcrossentropy softmaxcrossentropywithlogits "
    "negativeloglikelihood",
    "bernoulli_cross_entropy": "bce bcewithlogits binary bernoulli sigmoid binarycrossentropy "
    "sigmoidcrossentropy sigmoidcrossentropywithlogits sigmoidbinarycrossentropy",
    "poisson": "poissonnll poissonregression count counts",
    "student_t": "t studentst huber smoothl1 l1 mae meanabsoluteerror absoluteerror robust cauchy "
    "logcosh tukey",
    "gaussian_mean_variance": "gaussiannll heteroscedastic meanvariance normalnll",
    "for classes it is 'softmax_cross_entropy', for one output with targets in [0, 1] "
    "'bernoulli_cross_entropy'": "log logistic logit deviance",
}
_SYNONYMS = {
    synonym + end: meant
    for meant, synonyms in _ELSEWHERE.items()
    for synonym in synonyms.split()
    for end in ("", "loss")
}


def as_loss(loss: LossName | Loss) -> Loss:
    """Return a loss from its name, with its default parameters, or the loss itself."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, type) and issubclass(loss, Loss):
        raise TypeError(f"loss is the class {loss.__name__}, wanted an instance: {loss.__name__}()")
    return _BY_NAME[as_name(loss, "loss", _core.loss_names, _SYNONYMS)]()
