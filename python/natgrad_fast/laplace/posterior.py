"""Gaussian posteriors of a net's parameters around its trained ones."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_count, as_name, as_number, as_real, as_vector
from ..losses import Loss, LossName, SquaredError
from ..model.batch import Batch
from ..model.mlp import MLP, as_net
from ..operators.curvature import GGN, Fisher, GaussNewtonMatrix
from ..preconditioners.kfac import EKFAC, KFAC
from .evidence import OptimizedPrior, best_noise, best_prior
from .likelihood import fisher_roots, log_constant
from .net_rows import double_copy, jacobian_rows, split_last_layer
from .predictive import Predictive
from .spectrum import KroneckerSpectrum, Spectrum, SpectrumLike

__all__ = ["Laplace"]

Curvature: TypeAlias = Literal["fisher", "ggn", "kfac", "ekfac", "last_layer"]
Route: TypeAlias = Literal["auto", "dense", "samples"]
Matrix: TypeAlias = NDArray[np.float64]
# Orders up to which an eigendecomposition takes minutes at most.
_MOST_ORDER = 10_000


class Laplace(Predictive):
    """Laplace approximation N(theta, H^-1) of the posterior of a trained net's parameters.

    H = sum_i w_i J_i' M_i J_i / sigma^2 + diag(prior_precision), M_i the Fisher matrix or Hessian
    of the loss in the outputs; outputs for new cases follow from the net linearised at theta
    (MacKay 1992; Immer et al., arXiv 2008.08400; Daxberger et al., arXiv 2106.14806).

    Parameters
    ----------
    net : MLP
        Its parameters are copied, in float64, and everything is computed from the copy.
    loss : str or Loss
    X : (N, d_0) array_like
    y : array_like, optional
        Targets; for `log_evidence` and `optimize_prior`, and where the GGN depends on them.
    curvature : {"fisher", "ggn", "kfac", "ekfac", "last_layer"}
        "last_layer" is the exact Fisher matrix of the last layer, all others being certain.
    prior_precision : float, (L,) or (P,) array_like
        > 0: of all parameters, of those of each layer, or of each parameter (of those of the last
        layer for "last_layer"). K-FAC and EKFAC take no (P,). A net trained with the mean loss and
        weight decay l2 is at the mode for prior_precision = N l2 / sigma^2.
    sigma : float
        Standard deviation of the noise of squared_error, whose targets are N(z, sigma^2).
    sample_weight : (N,) array_like, optional
        w_i, which count cases: a case of weight 2 is as two of them. They are not normalised.
    route : {"auto", "dense", "samples"}
        How "fisher", "ggn" and "last_layer" are computed: by the (P, P) matrix, 9 P^3 flops and
        24 P^2 bytes, or by the (N C, P) rows of its root, N C <= P, about 6 (N C)^2 P flops. The
        results are the same; "auto" takes the smaller order.
    num_threads : int, optional

    Attributes
    ----------
    route : str
        "dense", "samples" or "kronecker".
    params : (P,) float64 array
        Mean of the posterior.
    sigma : float
    num_params : int
        P, or the number of parameters of the last layer.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range; if y is missing where it is needed; if the
        posterior of an indefinite GGN is not positive definite; for too large exact posteriors.

    Notes
    -----
    One eigendecomposition in the coordinates sqrt(prior_precision) theta serves every multiple of
    the prior and every sigma, so that `optimize_prior` costs nothing besides.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1.0, 1.0, 30)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> history = ng.NaturalGradient(net, "squared_error", l2=1e-4).fit(X, np.sin(3 * X), epochs=30)
    >>> post = ng.Laplace(net, "squared_error", X, np.sin(3 * X), sigma=0.1, prior_precision=0.3)
    >>> post
    <Laplace of 25 parameters, fisher by dense, 30 cases>
    >>> mean, var = post.predict([[0.0], [4.0]])
    >>> bool(var[1, 0] > 10 * var[0, 0])  # far from the cases
    True
    """

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        curvature: Curvature = "fisher",
        prior_precision: float | ArrayLike = 1.0,
        sigma: float = 1.0,
        sample_weight: ArrayLike | None = None,
        route: Route = "auto",
        num_threads: int | None = None,
    ) -> None:
        self.curvature = as_name(curvature, "curvature", get_args(Curvature))
        route = cast(Route, as_name(route, "route", get_args(Route)))
        self._whole = double_copy(as_net(net))
        if not np.isfinite(self._whole.params).all():
            raise ValueError("net has parameters that are NaN or Inf")
        self._below: MLP | None = None
        self._head = self._whole
        batch = Batch(self._whole, loss, X, y, sample_weight=sample_weight, num_threads=num_threads)
        self.loss, self.num_threads = batch.loss, batch.num_threads
        self.sigma = self._as_sigma(sigma)
        if self.curvature == "last_layer":
            self._below, self._head = split_last_layer(self._whole)
            batch = self._on_head(batch)
        self.num_cases, self._weight = batch.num_cases, batch.weight
        self._pattern, self._scale = self._as_prior(prior_precision)
        self._log_likelihood_parts = self._measure(batch)
        self._spectrum = self._decompose(batch, route)
        if not (self._precisions() > 0.0).all():
            raise ValueError(
                f"the GGN of {self.loss.name} with this prior_precision is not positive definite "
                "(smallest eigenvalue, in units of the prior, "
                f"{self._precisions().min():.3g}): take curvature='fisher' or a larger prior"
            )

    def __repr__(self) -> str:
        """Size, matrix and route."""
        return (
            f"<Laplace of {self.num_params} parameters, {self.curvature} by {self.route}, "
            f"{self.num_cases} cases>"
        )

    # Building ------------------------------------------------------------------------------------

    def _as_sigma(self, sigma: float) -> float:
        value = as_number(sigma, "sigma", above=0.0)
        if value != 1.0 and not isinstance(self.loss, SquaredError):
            raise ValueError(f"sigma is the noise of squared_error, got {sigma} for {self.loss!r}")
        return value

    def _on_head(self, batch: Batch) -> Batch:
        x = batch.x if self._below is None else self._below(batch.x, num_threads=self.num_threads)
        head = Batch(self._head, self.loss, x, num_threads=self.num_threads)
        return head.with_cases(x, cast(Matrix, batch.targets), batch.weights)

    def _as_prior(self, prior: float | ArrayLike) -> tuple[Matrix, float]:
        """Pattern (P,) and factor of the prior."""
        size, layers = self._head.num_params, self._whole.num_layers
        if np.ndim(cast(Matrix, prior)) == 0:
            return np.ones(size), as_number(prior, "prior_precision", above=0.0)
        length = as_real(cast(ArrayLike, prior), "prior_precision").size
        wanted = size if self._below is not None or length == size else layers
        values = as_vector(
            cast(ArrayLike, prior), "prior_precision", wanted, np.dtype(np.float64)
        ).astype(np.float64)
        if not (values > 0.0).all():
            raise ValueError(f"prior_precision must be > 0, got {values.min():g}")
        if wanted == size and length != layers:
            if self.curvature in ("kfac", "ekfac"):
                raise ValueError(
                    f"prior_precision has {size} values: {self.curvature} takes one, or one for "
                    f"each of the {layers} layers"
                )
            return values, 1.0
        return np.repeat(values, self._layer_sizes()), 1.0

    def _layer_sizes(self) -> list[int]:
        net = self._head
        return [w.size + b.size for w, b in zip(net.weights, net.biases, strict=True)]

    def _measure(self, batch: Batch) -> tuple[float, Matrix, Matrix] | None:
        if batch.targets is None:
            return None
        weights = np.ones(batch.num_cases) if batch.weights is None else batch.weights
        return batch.weight * batch.value(), cast(Matrix, batch.targets), weights

    def _decompose(self, batch: Batch, route: Route) -> SpectrumLike:
        if self.curvature in ("kfac", "ekfac"):
            if route != "auto":
                raise ValueError(f"route must be 'auto' for {self.curvature}, got {route!r}")
            kind = KFAC if self.curvature == "kfac" else EKFAC
            approximation = kind(self._head, self.loss, num_threads=self.num_threads)
            approximation.update_on(batch)
            starts = np.cumsum([0, *self._layer_sizes()[:-1]])
            self.route = "kronecker"
            return KroneckerSpectrum(
                self._head, approximation.factors, self._weight / self._pattern[starts]
            )
        matrix: GaussNewtonMatrix = (GGN if self.curvature == "ggn" else Fisher).on(batch)
        self.route = self._choose(matrix, route)
        if self.route == "samples":
            return Spectrum.of_rows(self._roots(batch))
        dense = matrix.to_dense().astype(np.float64)
        dense *= self._weight
        root = np.sqrt(self._pattern)
        dense /= root[:, None]
        dense /= root
        if not np.isfinite(dense).all():
            raise ValueError("the curvature matrix has NaN or Inf: the outputs are too large")
        return Spectrum.of_matrix(dense, matrix.positive_semidefinite)

    def _choose(self, matrix: GaussNewtonMatrix, route: Route) -> str:
        count, size = matrix.num_cases * self._head.sizes[-1], matrix.shape[0]
        if route == "samples" and not matrix.positive_semidefinite:
            raise ValueError(f"the GGN of {self.loss.name} may be indefinite: take route='dense'")
        if route == "samples" and count > size:
            raise ValueError(f"route 'samples' needs N C <= P, got {count} > {size}: take 'dense'")
        if route == "auto":
            thin = count < size and matrix.positive_semidefinite
            route = "samples" if thin else "dense"
        order = count if route == "samples" else size
        if order > _MOST_ORDER:
            raise ValueError(
                f"an exact posterior would need an eigendecomposition of order {order} (P = {size},"
                f" N C = {count}), more than {_MOST_ORDER}: take curvature='kfac', 'ekfac' or "
                "'last_layer'"
            )
        return route

    def _roots(self, batch: Batch) -> Matrix:
        """Rows sqrt(w_i) Q_i' J_i (N C, P) in the coordinates of the prior."""
        x = cast(Matrix, batch.x)
        z = cast(Matrix, self._head(x, num_threads=self.num_threads))
        roots = fisher_roots(self.loss, z)
        if batch.weights is not None:
            roots *= np.sqrt(batch.weights)[:, None, None]
        rows = np.matmul(roots.transpose(0, 2, 1), jacobian_rows(self._head, x))
        if not np.isfinite(rows).all():
            raise ValueError("the curvature matrix has NaN or Inf: the outputs are too large")
        return cast(Matrix, rows.reshape(-1, self.num_params) / np.sqrt(self._pattern))

    # What is known -------------------------------------------------------------------------------

    @property
    def prior_precision(self) -> float | Matrix:
        """Number, or (num_params,) where they differ."""
        if (self._pattern == 1.0).all():
            return self._scale
        return self._pattern * self._scale

    @property
    def effective_parameters(self) -> float:
        """Gamma = sum_j m_j / (m_j + prior), the parameters that the data determine."""
        return float(np.sum(1.0 - self._scale / self._precisions()))

    def log_evidence(self) -> float:
        """Log marginal likelihood of the targets, log p(y | X), by Laplace's approximation.

        log p(y | theta) - (1/2) theta' Lambda theta + (1/2) log det Lambda - (1/2) log det H, with
        Lambda the prior and all constants of the likelihood (2 pi, y! of poisson, ...) included.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If y was not given.
        """
        total, targets, weights = self._targets_known()
        constant = log_constant(self.loss, targets, weights, self.sigma)
        log_ratio = float(np.sum(np.log(self._precisions() / self._scale)))
        prior = 0.5 * self._scale * self._square()
        return constant - total / self.sigma**2 - prior - 0.5 * log_ratio

    def _targets_known(self) -> tuple[float, Matrix, Matrix]:
        if self._log_likelihood_parts is None:
            raise ValueError("y is missing: the evidence depends on targets")
        return self._log_likelihood_parts

    def _square(self) -> float:
        """Square of the parameters in units of the pattern of the prior."""
        return float(np.sum(self._pattern * self._head.params.astype(np.float64) ** 2))

    def optimize_prior(
        self, *, optimize_sigma: bool = False, max_iter: int = 200, rtol: float = 1e-8
    ) -> OptimizedPrior:
        """Maximise `log_evidence` over a factor of the prior, and over sigma, at fixed parameters.

        Parameters
        ----------
        optimize_sigma : bool
            For squared_error.
        max_iter : int
            Sweeps over the two.
        rtol : float
            Relative change of both at which it ends.

        Returns
        -------
        OptimizedPrior
            Its values are those of this posterior from now on.

        Raises
        ------
        ValueError
            If y was not given; where the evidence has no maximum, as for parameters that are all 0
            or, with sigma, an exact fit; for an indefinite matrix.

        Notes
        -----
        At a maximum prior |theta|^2 = gamma and sigma^2 (N C - gamma) = sum of squares (MacKay
        1992). One side of each rises and the other falls, so that bisection finds the only root.
        """
        total, targets, weights = self._targets_known()
        as_number(rtol, "rtol", above=0.0)
        as_count(max_iter, "max_iter", 1)
        count, square = float(weights.sum()) * targets.shape[1], self._square()
        values = self._spectrum.values
        if optimize_sigma and not isinstance(self.loss, SquaredError):
            raise ValueError(f"optimize_sigma is for squared_error, got {self.loss!r}")
        if not values.max(initial=0.0) > 0.0 or values.min(initial=0.0) < 0.0 or square == 0.0:
            raise ValueError(
                "the evidence has no maximum: parameters or curvature are 0 or negative"
            )
        if optimize_sigma and total == 0.0:
            raise ValueError("the evidence has no maximum in sigma: the fit is exact")
        before = self._scale, self.sigma
        history, converged = [self.log_evidence()], False
        try:
            for _ in range(max_iter):
                old = np.array([self._scale, self.sigma])
                self._scale = best_prior(values / self.sigma**2, square, self._scale)
                if optimize_sigma:
                    beta = best_noise(values / self._scale, total, count, self.sigma**-2)
                    self.sigma = beta**-0.5
                history.append(self.log_evidence())
                change = np.abs(np.array([self._scale, self.sigma]) / old - 1.0).max()
                converged = not optimize_sigma or bool(change <= rtol)
                if converged:
                    break
        except BaseException:
            self._scale, self.sigma = before
            raise
        return OptimizedPrior(
            self.prior_precision, self.sigma, history[-1], tuple(history), converged
        )
