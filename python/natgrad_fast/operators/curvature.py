"""Curvature matrices of a net's objective as operators: Fisher, GGN, empirical Fisher.

An operator is a snapshot of the net at the parameters it was built with. SciPy's sparse linear
algebra takes operators as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from numpy.typing import ArrayLike

from .._arrays import (
    as_cases,
    as_count,
    as_number,
    as_sample_weight,
    core_for,
)
from ..losses.base import Loss
from ..losses.standard import as_loss
from ..model.mlp import MLP, as_net
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
    l2 : float
        Weight decay that the matrix contains.
    num_threads : int
    flops_per_product : float
        Multiplications and additions of the matrix products of one product with a vector.
    """

    solve: ClassVar[Callable[..., Any]]  # natgrad_fast.solve, which knows more than this layer
    loss: Loss
    num_cases: int
    num_threads: int
    flops_per_product: float
    core: Any

    def _set_up(self, net: MLP, loss: Loss, num_threads: int, damping: float, l2: float) -> None:
        self.shape = (net.num_params, net.num_params)
        self.dtype = net.dtype
        self.loss = loss
        self.num_threads = num_threads
        self.layout = net.layout
        self._l2, self._damping = l2, damping
        self.sizes = net.sizes

    @property
    def l2(self) -> float:
        """Weight decay that the matrix contains."""
        return self._l2

    @property
    def damping(self) -> float:
        """Damping that the matrix contains; can be set."""
        return self._damping

    @damping.setter
    def damping(self, damping: float) -> None:
        self._damping = as_number(damping, "damping", minimum=0.0)
        self.core.shift = self._l2 + self._damping

    @property
    def T(self) -> Operator:
        """The matrix itself: it is symmetric."""
        return self

    def _apply(self, rows: Any) -> Any:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Any) -> Any:
        return self.core.apply(rows)


class GaussNewtonMatrix(CurvatureMatrix):
    """Base of the matrices B = sum_i w_i J_i' M_i J_i / sum_i w_i with per-case matrices M_i."""

    kind: str

    def _build(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike | None,
        *,
        samples: int = 0,
        seed: int = 0,
        sample_weight: ArrayLike | None,
        damping: float,
        l2: float,
        num_threads: int | None,
        chunk_size: int | None,
    ) -> None:
        x = as_cases(X, as_net(net).sizes[0], net.dtype)
        weights = as_sample_weight(sample_weight, x.shape[0])
        loss = as_loss(loss)
        loss.num_targets(net.sizes[-1])  # refuses widths that the loss is not made for
        targets = None if y is None else loss.targets(y, x.shape[0], net.sizes[-1], net.dtype)
        damping = as_number(damping, "damping", minimum=0.0)
        l2 = as_number(l2, "l2", minimum=0.0)
        linearization = net.linearize(x, num_threads=num_threads, chunk_size=chunk_size)
        self._set_up(net, loss, int(linearization.num_threads), damping, l2)
        self._finish(linearization, x.shape[0], targets, weights, samples, seed)

    def _finish(
        self,
        linearization: Any,
        num_cases: int,
        targets: Any,
        weights: Any,
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        self.num_cases = num_cases
        self.samples, self.seed = samples, seed
        self.linearization = linearization
        self.sample_weight, self.targets = weights, targets
        is_ggn, needed = self.kind == "hessian", self.loss.ggn_needs_targets
        uses_targets = self.kind == "empirical_fisher" or (is_ggn and needed)
        self.core = core_for(self.dtype).Curvature(
            linearization,
            self.loss.core,
            kind=self.kind,
            num_samples=samples,
            seed=seed,
            targets=targets if uses_targets else None,
            weights=weights,
            shift=self._l2 + self._damping,
        )
        self.flops_per_product = product_flops(
            self.sizes, num_cases, "gauss_newton", recompute=linearization.num_chunks > 1
        )

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

    def diagonal(self) -> Any:
        """Exact diagonal (P,) of B + (l2 + damping) I.

        Notes
        -----
        Neither J nor per-case gradients are formed: with the deltas u_c of the columns of
        M_i = Q_i Q_i', the entry of W_l[r, s] is the mean of (sum_c u_c[r]^2) a[s]^2. One backward
        sweep (2 N P flops) for each column (C of them; `samples`, or 1 for the empirical Fisher).
        """
        return self.core.diagonal()

    def trace(self) -> float:
        """Exact trace of B + (l2 + damping) I, as cheap as the sweeps of `diagonal`."""
        return float(self.core.trace())

    def block(self, layer: int) -> Any:
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
        return self.core.layer_block(layer)

    def block_diagonal(self) -> list[Any]:
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
        w_i >= 0, equal by default.
    damping, l2 : float
        Absolute, >= 0.
    num_threads : int, optional
        The products have the same bits for any number.
    chunk_size : int, optional
        Cases whose activations are alive at once, rounded up to whole tiles; all by default. With
        fewer than N the forward pass is computed anew in every product (a quarter more flops),
        memory is O(P + chunk_size), the bits are the same, and X, if it is an array of the net's
        dtype in C order, is not copied and must not change. See `estimate_memory`.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    A product costs 8 N P flops (half in the first layer) and allocates nothing but its result.
    """

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        *,
        samples: int | None = None,
        seed: int = 0,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self.kind = "fisher" if samples is None else "sampled_fisher"
        seed = as_count(seed, "seed", 0)
        self._build(
            net,
            loss,
            X,
            None,
            samples=0 if samples is None else as_count(samples, "samples", 1),
            seed=seed,
            sample_weight=sample_weight,
            damping=damping,
            l2=l2,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )


class GGN(GaussNewtonMatrix):
    """Generalized Gauss-Newton matrix G + (l2 + damping) I.

    G = sum_i w_i J_i' H_L(y_i, z_i) J_i / sum_i w_i, H_L the Hessian of the loss in the outputs.
    Where z are the natural parameters of an exponential family, H_L = F_R does not depend on y and
    G equals the Fisher matrix; for student_t and gaussian_mean_variance it differs, and G may be
    indefinite (`positive_semidefinite` tells; `cg` reports negative curvature).

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size
        As in `Fisher`.
    y : array_like, optional
        Targets; needed by student_t and gaussian_mean_variance, else checked and not used.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range, or if y is missing where it is needed.
    """

    kind = "hessian"

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        loss = as_loss(loss)
        if y is None and loss.ggn_needs_targets:
            raise ValueError(f"y is missing: the output Hessian of {loss.name} depends on targets")
        self._build(
            net,
            loss,
            X,
            y,
            sample_weight=sample_weight,
            damping=damping,
            l2=l2,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )


class EmpiricalFisher(GaussNewtonMatrix):
    """Empirical Fisher matrix E + (l2 + damping) I, the second moment of per-case gradients.

    E = sum_i w_i g_i g_i' / sum_i w_i, g_i the gradient of the loss of case i at its label. It is
    neither the Fisher nor the Gauss-Newton matrix (Martens, arXiv 1412.1193, on the empirical
    Fisher).

    Parameters
    ----------
    net, loss, X, sample_weight, damping, l2, num_threads, chunk_size
        As in `Fisher`.
    y : array_like
        Targets as in `value_and_grad`.
    """

    kind = "empirical_fisher"

    def __init__(
        self,
        net: MLP,
        loss: str | Loss,
        X: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        damping: float = 0.0,
        l2: float = 0.0,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if y is None:
            raise ValueError("y is missing: the empirical Fisher is made of gradients at targets")
        self._build(
            net,
            loss,
            X,
            y,
            sample_weight=sample_weight,
            damping=damping,
            l2=l2,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )


def curvature_of_objective(kind: type[Any], objective: Any, linearization: Any) -> Any:
    """Fisher or GGN matrix of an `Objective` on a linearisation that exists already."""
    matrix = object.__new__(kind)
    matrix.kind = "fisher" if kind is Fisher else kind.kind
    matrix._set_up(objective.net, objective.loss, int(linearization.num_threads), 0.0, objective.l2)
    matrix._finish(linearization, objective.x.shape[0], objective.targets, objective.sample_weight)
    return matrix
