"""Curvature matrices of a net's objective as operators: Fisher, GGN, empirical Fisher.

An operator is a snapshot of the net at the parameters it was built with. SciPy's sparse linear
algebra takes operators as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self, Unpack

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Decay, as_callable, as_count, as_number, core_for, memory_for
from .._typing import Array, CoreCurvature, CoreHessian, Linearization, Progress
from ..losses import Loss, LossName
from ..model.batch import Batch, BatchOptions
from ..model.mlp import MLP
from .base import Operator
from .costs import product_flops

__all__ = ["GGN", "CurvatureMatrix", "EmpiricalFisher", "Fisher"]


class CurvatureMatrix(Operator):
    """Base of the symmetric (P, P) matrices B + (l2 + damping) I.

    Attributes
    ----------
    shape, dtype
    loss : Loss
    damping : float
        Damping that the matrix contains; can be set.
    l2 : float or (float, float)
        Weight decay that the matrix contains.
    decay : (float, float)
        The same for weights and for biases.
    num_threads : int
    flops_per_product : float
        Multiplications and additions of the matrix products of one product with a vector.

    Notes
    -----
    Threads may share a matrix: their calls wait for each other and give the bits of calls one after
    the other. So may a child that is forked beside them. Ctrl-C is answered within a product, and
    leaves everything as it was.
    """

    solve: ClassVar[Callable[..., Any]]  # natgrad_fast.solve, which knows more than this layer
    loss: Loss
    decay: Decay
    num_cases: int
    num_threads: int
    flops_per_product: float
    core: CoreCurvature | CoreHessian

    def _set_up(self, batch: Batch, damping: float) -> None:
        net = batch.net
        self.shape = (net.num_params, net.num_params)
        self.dtype = net.dtype
        self.loss = batch.loss
        self.num_threads = batch.num_threads
        self.num_cases = batch.num_cases
        self.sample_weight, self.targets = batch.weights, batch.targets
        self.layout, self.sizes = net.layout, net.sizes
        self._counted, self._net = batch.counted, net
        self.decay = batch.decay
        self._damping = as_number(damping, "damping", minimum=0.0)

    @classmethod
    def on(
        cls, batch: Batch, linearization: Linearization | None = None, *, damping: float = 0.0
    ) -> Self:
        """The matrix of a batch.

        Parameters
        ----------
        batch : Batch
        linearization : optional
            From ``batch.linearize()``, to share one linearisation; made anew by default.
        damping : float
        """
        raise NotImplementedError

    @property
    def bias_places(self) -> list[slice]:
        """Places of the biases of every layer in a parameter vector."""
        return self._net.bias_places

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay that the matrix contains: a number, or (weights, biases) if they differ."""
        return self.decay.shown

    def as_targets(self, y: ArrayLike) -> Array:
        """Targets of the cases that count, from targets of all cases that were given.

        Parameters
        ----------
        y : array_like
            As in `value_and_grad`.

        Returns
        -------
        (num_cases, num_targets) array

        Raises
        ------
        ValueError, TypeError
            For targets of a wrong shape, type or range.
        """
        return self._counted.targets(self.loss, self._net, y)

    def _shift(self) -> tuple[float, float]:
        """Multiple of I that is added, for weights and for biases."""
        return self.decay.weights + self._damping, self.decay.biases + self._damping

    @property
    def damping(self) -> float:
        """Damping that the matrix contains; can be set."""
        return self._damping

    @damping.setter
    def damping(self, damping: float) -> None:
        self._damping = as_number(damping, "damping", minimum=0.0)
        self.core.shift = self._shift()

    @property
    def T(self) -> Operator:
        """The matrix itself: it is symmetric."""
        return self

    def _apply(self, rows: Array) -> Array:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Array) -> Array:
        return self.core.apply(rows)

    @property
    def diagonal_flops(self) -> float:
        """Flops of `diagonal` or `trace`, about, an elementwise one counted four times."""
        return float(self.core.diagonal_flops)

    def diagonal(self, *, callback: Progress | None = None) -> Array:
        """Exact diagonal (P,) of the matrix, l2 and damping included.

        Parameters
        ----------
        callback : callable, optional
            ``callback(done, total)``, in flops, after every part and at the end; True stops.

        Returns
        -------
        (P,) array
            NaN everywhere if `callback` stopped it.

        Notes
        -----
        Neither J nor per-case gradients are formed: layers are linear in their parameters, so the
        entry of W_l[r, s] is the mean of h_l[r] a[s]^2, h_l[r] the second derivative of the loss of
        a case in the pre-activation of unit r. That is made by a backward sweep (2 N P flops) for
        each column of M_i = Q_i Q_i' (C of them; `samples`, or 1 for the empirical Fisher), or by a
        forward pass through the layers above for each unit, if that is cheaper, as with very many
        classes; a `Hessian` of a net that is not piecewise linear needs the passes for its second
        part in any case. `diagonal_flops` tells beforehand.
        """
        diagonal: Array | None = self.core.diagonal(as_callable(callback))
        return np.full(self.shape[0], np.nan, self.dtype) if diagonal is None else diagonal

    def trace(self, *, callback: Progress | None = None) -> float:
        """Exact trace of the matrix, l2 and damping included, at the costs of `diagonal`.

        Parameters
        ----------
        callback : callable, optional
            As in `diagonal`.

        Returns
        -------
        float
            NaN if `callback` stopped it.
        """
        trace: float | None = self.core.trace(as_callable(callback))
        return math.nan if trace is None else trace


class GaussNewtonMatrix(CurvatureMatrix):
    """Base of the matrices B = sum_i w_i J_i' M_i J_i / sum_i w_i with per-case matrices M_i."""

    kind: str
    core: CoreCurvature

    def _build(
        self,
        batch: Batch,
        linearization: Linearization | None,
        damping: float,
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        self._set_up(batch, damping)
        self.samples, self.seed = samples, seed
        uses_targets = self.kind == "empirical_fisher"
        if self.kind == "hessian":
            uses_targets = self.loss.ggn_needs_targets
        if uses_targets and batch.targets is None:
            raise ValueError(self._missing_targets())
        self.linearization = batch.linearize() if linearization is None else linearization
        self.core = core_for(self.dtype).Curvature(
            self.linearization,
            self.loss.core,
            kind=self.kind,
            num_samples=samples,
            seed=seed,
            targets=batch.targets if uses_targets else None,
            weights=batch.weights,
            total_weight=batch.given_total,
            shift=self._shift(),
        )
        self.flops_per_product = product_flops(
            self.sizes, self.num_cases, "gauss_newton", recompute=self.linearization.num_chunks > 1
        )

    def _missing_targets(self) -> str:
        return f"y is missing: the output Hessian of {self.loss.name} depends on targets"

    @classmethod
    def on(
        cls, batch: Batch, linearization: Linearization | None = None, *, damping: float = 0.0
    ) -> Self:
        """The matrix of a batch; see `CurvatureMatrix.on`."""
        matrix = cls.__new__(cls)
        matrix._build(batch, linearization, damping)
        return matrix

    @property
    def positive_semidefinite(self) -> bool:
        """Whether B is so by construction; not the GGN of student_t and gaussian_mean_variance."""
        return bool(self.core.positive_semidefinite)

    def quadratic_form(self, v: ArrayLike, w: ArrayLike | None = None) -> float:
        """Return v' (B + (l2 + damping) I) w, with w = v by default.

        Parameters
        ----------
        v, w : (P,) array_like

        Returns
        -------
        float

        Notes
        -----
        One linearised forward pass for each vector and no backward pass: half the flops of a
        product.
        """
        return float(self.core.quadratic_form(*self._two_vectors(v, w)))

    def quadratic_forms(self, v: ArrayLike, w: ArrayLike) -> tuple[float, float, float]:
        """Return v'Av, v'Aw and w'Aw; see `Operator.quadratic_forms`."""
        first, second, third = self.core.quadratic_forms(*self._two_vectors(v, w))
        return float(first), float(second), float(third)

    def to_dense(self) -> Array:
        """Form the matrix (P, P), l2 and damping included, from blocks of per-case gradients.

        Returns
        -------
        (P, P) array
            Exactly symmetric; the sums are in float64.

        Notes
        -----
        N P^2 flops, and 8 P^2 bytes besides the result; see `DenseMatrix`, which keeps it.
        """
        with memory_for("the matrix ", self.shape, ", formed in float64"):
            dense: Array = core_for(self.dtype).DenseMatrix.of_curvature(self.core).to_dense()
        return dense

    def block(self, layer: int) -> Array:
        """Diagonal block that belongs to the parameters of one layer, dense.

        Parameters
        ----------
        layer : int
            From 0.

        Returns
        -------
        (p, p) array
            Rows and columns in the order of the layer's parameters: W in C order, then b.

        Notes
        -----
        J is never formed: a weighted Gram matrix of the inputs for each pair of units, N p^2 flops.
        """
        layer = as_count(layer, "layer", 0)
        if layer >= len(self.sizes) - 1:
            raise ValueError(f"layer must be < {len(self.sizes) - 1}, got {layer}")
        with memory_for("the block of layer ", layer):
            return self.core.layer_block(layer)

    def block_diagonal(self) -> list[Array]:
        """All diagonal blocks of `block`, layer by layer."""
        return [self.block(layer) for layer in range(len(self.sizes) - 1)]


class Fisher(GaussNewtonMatrix):
    """Fisher matrix F + (l2 + damping) I of a net's predictive distribution.

    F = sum_i w_i J_i' F_R(z_i) J_i / sum_i w_i, F_R the expectation of the squared score over the
    model's own distribution at outputs z_i; labels do not enter (Martens, arXiv 1412.1193).

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        Names the predictive distribution.
    X : (N, d_0) array_like
    samples : int, optional
        None for the exact expectation; S for the unbiased Monte-Carlo estimate with S labels drawn
        for every case.
    seed : int
        Of the draws, which are the same in every product and for any `num_threads` and
        `chunk_size`.
    sample_weight : (N,) array_like, optional
        w_i >= 0, equal by default; a case of weight 0 is left out.
    damping : float
        Absolute, >= 0.
    l2 : float or (float, float)
        Weight decay, of all parameters or of weights and of biases.
    num_threads : int, optional
        The products have the same bits for any number.
    chunk_size : int, optional
        Cases whose activations are alive at once, rounded up to whole tiles; all by default. With
        fewer than N the forward pass is computed anew in every product (a quarter more flops),
        memory is O(P + chunk_size), the bits are the same, and X, if it is an array of the net's
        dtype in C order, is not copied and must not change. See `estimate_memory`.
    total_weight : float, optional
        See `Batch`.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    A product costs 8 N P flops (half in the first layer) and allocates nothing but its result.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> F = ng.Fisher(net, "softmax_cross_entropy", X)
    >>> v = np.ones(26)
    >>> bool(np.isclose(v @ (F @ v), F.quadratic_form(v)))
    True
    >>> bool(np.isclose(F.trace(), F.diagonal().sum()))
    True
    """

    kind = "fisher"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        *,
        samples: int | None = None,
        seed: int = 0,
        damping: float = 0.0,
        **options: Unpack[BatchOptions],
    ) -> None:
        draws = self._draws(samples, seed)
        self._build(Batch(net, loss, X, **options), None, damping, *draws)

    def _draws(self, samples: int | None, seed: int) -> tuple[int, int]:
        seed = as_count(seed, "seed", 0)
        if samples is None:
            return 0, seed
        self.kind = "sampled_fisher"
        return as_count(samples, "samples", 1), seed

    @classmethod
    def on(
        cls,
        batch: Batch,
        linearization: Linearization | None = None,
        *,
        damping: float = 0.0,
        samples: int | None = None,
        seed: int = 0,
    ) -> Self:
        """The Fisher matrix of a batch, `samples` and `seed` as in `Fisher`."""
        matrix = cls.__new__(cls)
        draws = matrix._draws(samples, seed)
        matrix._build(batch, linearization, damping, *draws)
        return matrix


class GGN(GaussNewtonMatrix):
    """Generalized Gauss-Newton matrix G + (l2 + damping) I.

    G = sum_i w_i J_i' H_L(y_i, z_i) J_i / sum_i w_i, H_L the Hessian of the loss in the outputs.
    Where z are the natural parameters of an exponential family, H_L = F_R does not depend on y and
    G equals the Fisher matrix; for student_t and gaussian_mean_variance it differs, and G may be
    indefinite (`positive_semidefinite` tells; `cg` reports negative curvature).

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size, total_weight
        As in `Fisher`.
    y : array_like, optional
        Targets; needed by student_t and gaussian_mean_variance, else checked and not used.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range, or if y is missing where it is needed.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> G, F = (kind(net, "softmax_cross_entropy", X) for kind in (ng.GGN, ng.Fisher))
    >>> v = np.ones(26)
    >>> bool(np.allclose(G @ v, F @ v))  # an exponential family
    True
    """

    kind = "hessian"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        damping: float = 0.0,
        **options: Unpack[BatchOptions],
    ) -> None:
        self._build(Batch(net, loss, X, y, **options), None, damping)


class EmpiricalFisher(GaussNewtonMatrix):
    """Empirical Fisher matrix E + (l2 + damping) I, the second moment of per-case gradients.

    E = sum_i w_i g_i g_i' / sum_i w_i, g_i the gradient of the loss of case i at its label. It is
    neither the Fisher nor the Gauss-Newton matrix (Martens, arXiv 1412.1193, on the empirical
    Fisher).

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size, total_weight
        As in `Fisher`.
    y : array_like
        Targets as in `value_and_grad`.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> E = ng.EmpiricalFisher(net, "squared_error", X, X[:, :2])
    >>> (E @ np.ones((26, 4))).shape
    (26, 4)
    """

    kind = "empirical_fisher"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        y: ArrayLike,
        *,
        damping: float = 0.0,
        **options: Unpack[BatchOptions],
    ) -> None:
        self._build(Batch(net, loss, X, y, **options), None, damping)

    def _missing_targets(self) -> str:
        return "y is missing: the empirical Fisher is made of gradients at targets"
