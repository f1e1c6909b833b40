"""Kronecker-factored approximations of the Fisher matrix: KFAC, EKFAC, TKFAC, TEKFAC, KLFAC."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from .._arrays import as_name
from .._typing import State
from ..losses import Loss, LossName
from ..model.mlp import MLP
from .kronecker import KroneckerPreconditioner, Pi

__all__ = ["EKFAC", "KFAC", "KLFAC", "TEKFAC", "TKFAC"]


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
        and G, or 1. "exact" inverts G (x) A + damping I by eigenbases, which is dearer; where A or
        G is zero or a single number, the others do so too, at no price.
    ema : float
        Weight of the past in the moving averages, in [0, 1); see `update`.
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

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> M = ng.KFAC(net, "softmax_cross_entropy", X, damping=0.1)
    >>> (M @ np.ones(26)).shape, M.eigenvalues().shape
    ((26,), (26,))
    """

    kind = "kfac"
    has_diagonals = False

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
        pi: Pi = "trace",
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

    def _options(self) -> State:
        return {**super()._options(), "pi": self.pi}


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

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> M = ng.TKFAC(net, "softmax_cross_entropy", X, damping=0.1)
    >>> (M @ np.ones(26)).shape, M.eigenvalues().shape
    ((26,), (26,))
    """

    kind = "tkfac"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        pi: Pi = "unit",
        **options: Any,
    ) -> None:
        super().__init__(net, loss, X, y, pi=pi, **options)


class KLFAC(KFAC):
    """Two-sided maximum-likelihood factors: F_l ~ G (x) A nearest in Kullback-Leibler divergence.

    A = E[(u'G^-1 u) a a'] / d and G = E[(a'A^-1 a) u u'] / n for a layer with n inputs and d
    outputs: the fixed point minimises KL(N(0, F_l) | N(0, G (x) A)), as the maximum-likelihood
    covariance of a matrix normal distribution does (Dutilleul 1999; for optimisers Lin et al.,
    arXiv 2509.03378). Where a and u are independent it is K-FAC.

    Parameters
    ----------
    net, loss, X, y, samples, seed, damping, ema, sample_weight, num_threads, chunk_size
        As in `KFAC`.
    pi : {"trace", "frobenius", "unit"}
        As in `KFAC`. "exact" has no inverse of a factor.

    Notes
    -----
    The first `update` measures TKFAC's factors, whose traces are those in the metric I; every
    later one takes for G^-1 and A^-1 the damped inverses of the last `refresh`, so updates and
    refreshes in turn are the iteration. On one batch, ``M = KLFAC(net, loss, X, damping=d,
    ema=0.0)`` and a few of ``M.update(X); M.refresh(d)`` reach the fixed point of that damping.
    `update` costs N (n^2 + d^2) flops more for each layer and draw than that of `KFAC`.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> M = ng.KLFAC(net, "softmax_cross_entropy", X, damping=1e-3, ema=0.0)
    >>> for _ in range(40):
    ...     M.update(X)
    ...     M.refresh(1e-3)
    >>> before = M.to_dense()
    >>> M.update(X)
    >>> bool(np.allclose(M.to_dense(), before, rtol=1e-6, atol=1e-9))
    True
    """

    kind = "kl"

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        pi: Pi = "trace",
        **options: Any,
    ) -> None:
        as_name(pi, "pi", ("trace", "frobenius", "unit"))
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
    approximation it belonged to, which keeps the trace. `refresh` costs O(P), and a copy of bases
    that are new; ``@`` costs 4 d n (d + n) flops for a layer.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> M = ng.EKFAC(net, "softmax_cross_entropy", X, damping=0.1)
    >>> (M @ np.ones(26)).shape, M.eigenvalues().shape
    ((26,), (26,))
    """

    kind = "ekfac"
    has_diagonals = True

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

    def _options(self) -> State:
        return {**super()._options(), "basis_period": self.basis_period}


class TEKFAC(EKFAC):
    """TEKFAC: as `EKFAC`, in the eigenbasis of TKFAC's factors (arXiv 2011.13609).

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> M = ng.TEKFAC(net, "softmax_cross_entropy", X, damping=0.1)
    >>> (M @ np.ones(26)).shape, M.eigenvalues().shape
    ((26,), (26,))
    """

    kind = "tekfac"
