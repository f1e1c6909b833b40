"""Kronecker-factored approximations of the Fisher matrix: KFAC, EKFAC, TKFAC, TEKFAC."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_count, as_name, as_number, as_vector, core_for
from ..losses import Loss, LossName
from ..model.batch import Batch
from ..model.mlp import MLP
from .base import Preconditioner, refuse_without_batch

__all__ = ["EKFAC", "KFAC", "TEKFAC", "TKFAC"]

_PI = ("trace", "frobenius", "unit", "exact")


class KroneckerPreconditioner(Preconditioner):
    """Base of the Kronecker-factored approximations, one block for each layer."""

    def _build(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None,
        y: ArrayLike | None,
        *,
        pi: str = "exact",
        basis_period: int = 1,
        damping: float | None,
        sample_weight: ArrayLike | None,
        **options: Any,
    ) -> None:
        self._set_up(net, loss, **options)
        pi = as_name(pi, "pi", _PI)
        if damping is not None:
            damping = as_number(damping, "damping", above=0.0)
        self.core = core_for(net.dtype).KroneckerFactors(
            net._architecture,
            kind=self.kind,
            pi=pi,
            basis_period=as_count(basis_period, "basis_period", 1),
            num_threads=self.num_threads,
        )
        if X is None:
            refuse_without_batch(y=y, sample_weight=sample_weight, damping=damping)
            return
        self.update_on(self._batch(X, y, sample_weight))
        if damping is not None:
            self.refresh(damping)

    @property
    def num_updates(self) -> int:
        """Batches in the moving averages."""
        return int(self.core.num_updates)

    def update(self, X: ArrayLike, *, sample_weight: ArrayLike | None = None) -> None:
        """Measure a batch at the net's present parameters.

        The moving averages become keep * old + (1 - keep) * batch, keep = min(1 - 1/k, ema) in the
        k-th call, so the first batch replaces. ``M @ g`` stays as it is until `refresh`.

        Parameters
        ----------
        X : (N, d_0) array_like
        sample_weight : (N,) array_like, optional
            w_i >= 0, equal by default.

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range.
        FloatingPointError
            If the outputs of the net or their curvature are too large for the dtype; the averages
            stay as they were.
        """
        self.update_on(self._batch(X, None, sample_weight))

    def update_on(self, batch: Batch, linearization: Any = None) -> None:
        """Measure a batch; see `Preconditioner.update_on`."""
        self.check_belongs(batch.net, batch.loss)
        finite = self.core.update(
            batch.linearize() if linearization is None else linearization,
            self.loss.core,
            num_samples=self.samples or 0,
            seed=self._seed_of_update(),
            weights=batch.weights,
            decay=self.ema,
        )
        if not finite:
            raise FloatingPointError(
                f"the moments of this batch have NaN or Inf (in {self.dtype}): the outputs of the "
                "net are too large; the averages stay as they were"
            )

    def _refresh(self, damping: float) -> None:
        self.core.refresh(damping)

    def _state(self) -> dict[str, Any]:
        numbers, _, _, inverse_is_current = self.core.state()
        return {"numbers": numbers, "inverse_is_current": inverse_is_current}

    def _load(self, state: dict[str, Any]) -> None:
        size = self.core.state()[0].size
        self.core.set_state(
            as_vector(state["numbers"], "numbers", size, self.dtype),
            int(state["num_updates"]),
            state["damping"] or 0.0,
            bool(state["inverse_is_current"]),
        )

    def _factors(self, layer: int, damped: bool) -> tuple[Any, Any, Any]:
        layer = as_count(layer, "layer", 0)
        if layer >= self.net.num_layers:
            raise ValueError(f"layer must be < {self.net.num_layers}, got {layer}")
        left, right, scales = self.core.block(layer, damped=damped)
        return left, right, scales

    def block(self, layer: int, *, damped: bool = False) -> Any:
        """Block of one layer: of the approximation, or of the matrix that ``@`` inverts.

        Parameters
        ----------
        layer : int
            From 0.
        damped : bool
            Whether the damping of the last `refresh` is in it; asks for one after `update`.

        Returns
        -------
        (p, p) float64 array
            Rows and columns in the order of the layer's parameters: W in C order, then b.

        Raises
        ------
        ValueError
            Before `update`; with `damped`, also between `update` and `refresh`.
        """
        left, right, scales = self._factors(layer, damped)
        dense = np.kron(left, right)
        if scales is not None:
            dense = (dense.T * scales.ravel()) @ dense
        order = self._order(layer)
        return dense[np.ix_(order, order)]

    def _order(self, layer: int) -> Any:
        """Places of the layer's parameters in [W b] (d, n) in C order."""
        inputs, outputs = self.net.sizes[layer : layer + 2]
        columns = inputs + int(self.net.biases[layer].size > 0)
        places = np.arange(outputs * columns).reshape(outputs, columns)
        return np.concatenate([places[:, :inputs].ravel(), places[:, inputs:].ravel()])

    def to_dense(self, *, damped: bool = False) -> Any:
        """Form the approximation (P, P), or with `damped` the matrix that ``@`` inverts; float64.

        Not the matrix of ``@`` itself: that is the inverse of ``to_dense(damped=True)``.
        """
        dense = np.zeros(self.shape)
        at = 0
        for layer in range(self.net.num_layers):
            block = self.block(layer, damped=damped)
            dense[at : at + len(block), at : at + len(block)] = block
            at += len(block)
        return dense

    def diagonal(self) -> Any:
        """Diagonal (P,) of the approximation, not damped; float64."""
        parts = []
        for layer in range(self.net.num_layers):
            left, right, scales = self._factors(layer, False)
            if scales is None:
                entries = np.outer(left.diagonal(), right.diagonal())
            else:
                entries = (left**2).T @ scales @ right**2
            parts.append(entries.ravel()[self._order(layer)])
        return np.concatenate(parts)

    def trace(self) -> float:
        """Trace of the approximation, not damped."""
        return float(self.diagonal().sum())


class KFAC(KroneckerPreconditioner):
    """K-FAC: F_l ~ G (x) A for each layer (Martens & Grosse, arXiv 1503.05671).

    A is the mean of a a' over cases, a the inputs of the layer and a 1 for the bias; G the mean of
    u u', u the gradients of the log-likelihood in the layer's pre-activations, for targets of the
    net's own predictive distribution. ``M @ g`` approximates (F + damping I)^-1 g, for `cg`, for
    SciPy's ``M=`` and for steps; ``M.to_dense()`` is the approximation of F.

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        Names the predictive distribution.
    X : (N, d_0) array_like, optional
        First batch; without it call `update`.
    y : array_like, optional
        Checked and not used: the Fisher matrix does not depend on labels.
    samples : int, optional
        None for the exact expectation, by a backward sweep for each of the C outputs; S for S
        draws per case, by S sweeps.
    seed : int
        Of the draws; every update draws anew, in a fixed sequence.
    damping : float, optional
        Given, `refresh` is called for the first batch.
    pi : {"trace", "frobenius", "unit", "exact"}
        Damping of the factors, (G + gamma / pi I) (x) (A + pi gamma I) with gamma = sqrt(damping)
        and pi^2 the ratio of mean eigenvalues, or of Frobenius norms over root dimensions, of A
        and G, or 1. "exact" inverts G (x) A + damping I by eigenbases, which is dearer.
    ema : float
        Weight of the past in the moving averages, in [0, 1).
    sample_weight : (N,) array_like, optional
        Of the first batch.
    num_threads : int, optional
        Results have the same bits for any number.
    chunk_size : int, optional
        Cases whose activations are alive at once; the bits are the same for any.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    The operator is positive definite for any batch and damping. Where a factor's shift is lost in
    the rounding of the dtype (below 64 eps of its trace), its eigenvalues are clipped at 0 and,
    damped, at 64 eps of the largest. Costs for a layer of n = d_in + 1 inputs and d outputs:
    `update` N (n^2 + C d^2) and C sweeps of 2 N P flops, `refresh` O(n^3 + d^3), ``@``
    2 d n (d + n).
    """

    kind = "kfac"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        samples: int | None = None,
        seed: int = 0,
        damping: float | None = None,
        pi: str = "trace",
        ema: float = 0.95,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self._build(
            net,
            loss,
            X,
            y,
            samples=samples,
            seed=seed,
            damping=damping,
            pi=pi,
            ema=ema,
            sample_weight=sample_weight,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )


class TKFAC(KFAC):
    """TKFAC: F_l ~ delta Psi (x) Phi with the trace of F_l (Gao et al., arXiv 2011.10741).

    delta = E[|a|^2 |u|^2], Phi = E[|u|^2 a a'] / delta, Psi = E[|a|^2 u u'] / delta; damped as
    (sqrt(delta) Psi + gamma I) (x) (sqrt(delta) Phi + gamma I) with gamma = sqrt(damping).

    Parameters
    ----------
    net, loss, X, y, samples, seed, damping, ema, sample_weight, num_threads, chunk_size
        As in `KFAC`.
    pi : {"unit", "trace", "frobenius", "exact"}
        As in `KFAC`, for the factors sqrt(delta) Phi and sqrt(delta) Psi.
    """

    kind = "tkfac"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        pi: str = "unit",
        **options: Any,
    ) -> None:
        super().__init__(net, loss, X, y, pi=pi, **options)


class EKFAC(KroneckerPreconditioner):
    """EKFAC: the diagonal of F_l in K-FAC's eigenbasis (George et al., arXiv 1806.03884).

    F_l ~ U diag(S) U', U = U_G (x) U_A of the eigenvectors of K-FAC's G and A, S the exact
    diagonal of U'F_l U: no choice of S is nearer to F_l in the Frobenius norm, and the trace is
    that of F_l. ``M @ g`` divides by S + damping in that basis.

    Parameters
    ----------
    net, loss, X, y, samples, seed, damping, ema, sample_weight, num_threads, chunk_size
        As in `KFAC`.
    basis_period : int
        Updates from one eigenbasis to the next.

    Notes
    -----
    `update` measures the factors, every `basis_period`-th time takes their eigenbasis
    (O(n^3 + d^3)), and then measures S of the same batch in the basis of that moment by a second
    pass. S of the past is carried over into a new basis as the diagonal, there, of the
    approximation it belonged to, which keeps the trace. `refresh` costs O(P) and a copy of the
    bases; ``@`` costs 4 d n (d + n) flops for a layer.
    """

    kind = "ekfac"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        samples: int | None = None,
        seed: int = 0,
        damping: float | None = None,
        basis_period: int = 1,
        ema: float = 0.95,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self._build(
            net,
            loss,
            X,
            y,
            samples=samples,
            seed=seed,
            damping=damping,
            basis_period=basis_period,
            ema=ema,
            sample_weight=sample_weight,
            num_threads=num_threads,
            chunk_size=chunk_size,
        )


class TEKFAC(EKFAC):
    """TEKFAC: as `EKFAC`, in the eigenbasis of TKFAC's factors (arXiv 2011.13609)."""

    kind = "tekfac"
