"""Outputs and draws of a net whose parameters have a Gaussian posterior."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_cases, as_count, as_name
from ..losses import Loss, SquaredError
from ..model.mlp import MLP
from .net_rows import jacobian_rows, layer_rows
from .spectrum import KroneckerSpectrum, SpectrumLike

__all__ = ["Predictive"]

Matrix: TypeAlias = NDArray[np.float64]
# Numbers of the Jacobian of a chunk of new cases: 64 MiB.
_CHUNK = 1 << 23
_CLASSES = ("softmax_cross_entropy", "bernoulli_cross_entropy")


class Predictive:
    """Base of the posterior: what follows from its mean and eigensystem."""

    loss: Loss
    sigma: float
    num_threads: int
    _whole: MLP
    _head: MLP  # the layers that are uncertain
    _below: MLP | None  # the others
    _pattern: Matrix
    _scale: float  # the prior is _scale * diag(_pattern)
    _spectrum: SpectrumLike

    @property
    def params(self) -> Matrix:
        """Mean (P,) of the posterior of all parameters of the net; a copy."""
        return cast(Matrix, self._whole.params.copy())

    @property
    def num_params(self) -> int:
        """Parameters that are uncertain."""
        return self._head.num_params

    def _precisions(self) -> Matrix:
        """Eigenvalues (m,) of the posterior precision in the coordinates of the prior."""
        return self._spectrum.values / self.sigma**2 + self._scale

    def predict(
        self, X: ArrayLike, *, covariance: bool = False, noise: bool = False
    ) -> tuple[Matrix, Matrix]:
        """Gaussian of the outputs z: their mean and variance under the linearised net.

        Parameters
        ----------
        X : (N, d_0) array_like
        covariance : bool
            Whether the covariances of the outputs of a case are wanted.
        noise : bool
            Add sigma^2, for squared_error: the variance of new targets.

        Returns
        -------
        mean : (N, C) float64 array
        variance : (N, C) or (N, C, C) float64 array

        Notes
        -----
        2 N C P m flops for m eigenvectors ("dense": P; "samples": N C of the data, twice); for
        "kronecker" about 2 N (C d^2 + n^2 + n d) for each layer of n inputs and d outputs, besides
        the 2 N C P of the Jacobian. Memory is bounded by chunks.
        """
        if noise and not isinstance(self.loss, SquaredError):
            raise ValueError(f"noise is that of squared_error, got {self.loss!r}")
        x = cast(Matrix, as_cases(X, self._whole.sizes[0], self._whole.dtype, self.num_threads))
        mean = cast(Matrix, self._whole(x, num_threads=self.num_threads))
        if self._below is not None:
            x = cast(Matrix, self._below(x, num_threads=self.num_threads))
        width = mean.shape[1]
        variance = np.empty((len(x), width, width) if covariance else mean.shape)
        step = max(1, _CHUNK // (width * self.num_params))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            variance[part] = self._variances(x[part], covariance)
        if noise:
            variance += self.sigma**2 * (np.eye(width) if covariance else 1.0)
        return mean, variance

    def _variances(self, x: Matrix, covariance: bool) -> Matrix:
        """J H^-1 J' (k, C, C) or its diagonals (k, C)."""
        if isinstance(self._spectrum, KroneckerSpectrum):
            parts_of_layers = layer_rows(self._head, x)
            whole_matrix = self._spectrum.covariances(
                parts_of_layers, self._precisions(), self._pattern
            )
            return whole_matrix if covariance else np.einsum("icc->ic", whole_matrix)
        shape = (len(x), self._head.sizes[-1], -1)
        rows = jacobian_rows(self._head, x).reshape(-1, self.num_params)
        rows /= np.sqrt(self._pattern)
        coordinates = self._spectrum.project(rows)
        parts = [coordinates / np.sqrt(self._precisions())]
        if not self._spectrum.complete:
            rows -= self._spectrum.lift(coordinates)
            parts.append(rows / math.sqrt(self._scale))
        if not covariance:
            total = sum(np.einsum("ij,ij->i", part, part) for part in parts)
            return cast(Matrix, np.reshape(total, shape[:2]))
        whole = [part.reshape(shape) for part in parts]
        return cast(Matrix, sum(part @ part.transpose(0, 2, 1) for part in whole))

    def predict_proba(
        self,
        X: ArrayLike,
        *,
        method: Literal["probit", "monte_carlo", "mean"] = "probit",
        samples: int = 100,
        seed: int = 0,
    ) -> Matrix:
        """Probabilities of classes, averaged over the posterior.

        Parameters
        ----------
        X : (N, d_0) array_like
        method : {"probit", "monte_carlo", "mean"}
            Link of z / sqrt(1 + pi var / 8) (MacKay 1992), for several classes output by output;
            mean of the link over draws of the outputs; link of the mean.
        samples, seed : int
            Of "monte_carlo".

        Returns
        -------
        (N, C) float64 array

        Raises
        ------
        ValueError, TypeError
            For other losses than cross-entropies, and wrong arguments.
        """
        known = ("probit", "monte_carlo", "mean")
        method = cast(Any, as_name(method, "method", known))
        samples, seed = as_count(samples, "samples", 1), as_count(seed, "seed", 0)
        if self.loss.name not in _CLASSES:
            raise ValueError(f"predict_proba is for {' and '.join(_CLASSES)}, got {self.loss!r}")
        if method == "mean":
            return self._link(cast(Matrix, self._whole(X, num_threads=self.num_threads)))
        if method == "probit":
            mean, variance = self.predict(X)
            return self._link(mean / np.sqrt(1.0 + math.pi / 8.0 * variance))
        mean, covariances = self.predict(X, covariance=True)
        values, vectors = np.linalg.eigh(covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        generator, total = np.random.default_rng(seed), np.zeros_like(mean)
        for _ in range(samples):
            draw = generator.standard_normal(mean.shape)
            total += self._link(mean + (roots @ draw[:, :, None])[:, :, 0])
        return total / samples

    def _link(self, z: Matrix) -> Matrix:
        mean = self.loss.mean(z, num_threads=self.num_threads)
        return cast(Matrix, mean.reshape(z.shape))

    def predict_mean(self, X: ArrayLike) -> Matrix:
        """Mean of new targets (N, C): z, exp(z + var / 2) for poisson, `predict_proba` for classes.

        For gaussian_mean_variance only the first half of the outputs, the means.
        """
        if self.loss.name in _CLASSES:
            return self.predict_proba(X)
        mean, variance = self.predict(X)
        if self.loss.name == "poisson":
            return cast(Matrix, np.exp(mean + 0.5 * variance))
        return mean[:, : self.loss.num_targets(mean.shape[1])]

    def sample(self, n: int = 1, seed: int = 0) -> Matrix:
        """Draws from the posterior of the parameters.

        Parameters
        ----------
        n : int
        seed : int

        Returns
        -------
        (n, P) float64 array
            In the order of ``net.params``; for "last_layer" the other layers are those of the net.
        """
        count = as_count(n, "n", 1)
        generator = np.random.default_rng(as_count(seed, "seed", 0))
        noise = generator.standard_normal((count, self.num_params))
        coordinates = self._spectrum.project(noise)
        roots = 1.0 / np.sqrt(self._precisions())
        if self._spectrum.complete:
            draws = self._spectrum.lift(coordinates * roots)
        else:
            rest = 1.0 / math.sqrt(self._scale)
            draws = noise * rest + self._spectrum.lift(coordinates * (roots - rest))
        result = np.tile(self.params, (count, 1))
        result[:, -self.num_params :] += draws / np.sqrt(self._pattern)
        return result
