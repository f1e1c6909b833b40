"""Eigensystems of curvature matrices, summed over cases, in which every prior is diagonal."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..model.mlp import MLP
from ..preconditioners.kronecker import LayerFactors

__all__ = ["KroneckerSpectrum", "Spectrum", "SpectrumLike"]

Matrix = NDArray[np.float64]


class SpectrumLike(Protocol):
    """Eigenvalues (m,), and products of rows (K, P) with the orthonormal eigenvectors (P, m)."""

    values: Matrix
    complete: bool  # m = P; else the eigenvalues of the complement are 0

    def project(self, rows: Matrix) -> Matrix:
        """Return rows Q (K, m)."""

    def lift(self, coordinates: Matrix) -> Matrix:
        """Return coordinates Q' (K, P)."""


class Spectrum:
    """Eigensystem that is kept as one matrix Q (P, m)."""

    def __init__(self, values: Matrix, basis: Matrix) -> None:
        self.values, self.basis = values, basis
        self.complete = basis.shape[0] == basis.shape[1]

    @classmethod
    def of_matrix(cls, matrix: Matrix, semidefinite: bool) -> Spectrum:
        """Of a symmetric matrix (P, P); with `semidefinite`, rounding below 0 is cut off."""
        values, basis = np.linalg.eigh(matrix)
        return cls(np.maximum(values, 0.0) if semidefinite else values, basis)

    @classmethod
    def of_rows(cls, rows: Matrix) -> Spectrum:
        """Of rows' rows for rows (n, P), n <= P: the thin singular value decomposition."""
        _, singular, basis = np.linalg.svd(rows, full_matrices=False)
        kept = singular > singular.max(initial=0.0) * np.finfo(float).eps * max(rows.shape)
        return cls(singular[kept] ** 2, np.ascontiguousarray(basis[kept].T))

    def project(self, rows: Matrix) -> Matrix:
        """Return rows Q (K, m); 2 K P m flops."""
        return rows @ self.basis

    def lift(self, coordinates: Matrix) -> Matrix:
        """Return coordinates Q' (K, P); 2 K P m flops."""
        return coordinates @ self.basis.T


class KroneckerSpectrum:
    """Eigensystem of one Kronecker-factored block for each layer: Q_l = Q_G (x) Q_A.

    Parameters
    ----------
    net : MLP
    factors : sequence of LayerFactors
        Of a mean over cases.
    scale : (L,) array
        Factors of the layers' blocks.
    """

    complete = True

    def __init__(self, net: MLP, factors: tuple[LayerFactors, ...], scale: Matrix) -> None:
        self._layers: list[tuple[slice, int, Matrix, Matrix]] = []
        values, start = [], 0
        for (inputs, d), layer, bias, s in zip(
            pairwise(net.sizes), factors, net.layout[1], scale, strict=True
        ):
            if layer.S is None:
                of_g, g = np.linalg.eigh(layer.G)
                of_a, a = np.linalg.eigh(layer.A)
                eigenvalues = np.outer(np.maximum(of_g, 0.0), np.maximum(of_a, 0.0))
            else:
                g, a = cast(Matrix, layer.basis_G), cast(Matrix, layer.basis_A)
                eigenvalues = layer.S
            stop = start + d * (inputs + int(bias))
            self._layers.append((slice(start, stop), inputs, g, a))
            values.append(s * eigenvalues.ravel())
            start = stop
        self.values = np.concatenate(values)

    def project(self, rows: Matrix) -> Matrix:
        """Return rows Q (K, P); 2 K n d (n + d) flops for a layer of n inputs and d outputs."""
        result = np.empty_like(rows)
        for place, inputs, g, a in self._layers:
            d, n = len(g), len(a)
            block = np.empty((len(rows), d, n))
            part = rows[:, place]
            block[:, :, :inputs] = part[:, : d * inputs].reshape(-1, d, inputs)
            block[:, :, inputs:] = part[:, d * inputs :].reshape(len(rows), d, n - inputs)
            result[:, place] = (g.T @ (block @ a)).reshape(len(rows), d * n)
        return result

    def lift(self, coordinates: Matrix) -> Matrix:
        """Return coordinates Q' (K, P), at the same cost."""
        result = np.empty_like(coordinates)
        count = len(coordinates)
        for place, inputs, g, a in self._layers:
            d, n = len(g), len(a)
            block = g @ (coordinates[:, place].reshape(count, d, n) @ a.T)
            weights = block[:, :, :inputs].reshape(count, d * inputs)
            result[:, place] = np.hstack([weights, block[:, :, inputs:].reshape(count, -1)])
        return result

    def covariances(
        self, parts: list[tuple[Matrix, Matrix]], precisions: Matrix, pattern: Matrix
    ) -> Matrix:
        """Covariances (N, C, C) of outputs whose Jacobian has the `parts` of `layer_rows`.

        With a' = inputs Q_A and u' = deltas Q_G a layer adds sum_rs u'_r u''_r a'_s^2 / H_rs to
        the covariance of two outputs: 2 N d (C d + C^2 + n) flops, and 2 N n^2.
        """
        total = 0.0
        for (place, _, g, a), (inputs, deltas) in zip(self._layers, parts, strict=True):
            inverse = 1.0 / precisions[place].reshape(len(g), len(a))
            weights = ((inputs @ a) ** 2 @ inverse.T) / pattern[place.start]  # (N, d)
            turned = deltas @ g
            total = total + (turned * weights[:, None, :]) @ turned.transpose(0, 2, 1)
        return cast(Matrix, total)
