"""What the Kronecker-factored approximations of the Fisher matrix have in common."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_count, as_name, as_number, core_for
from .._state import StateReader
from .._typing import Array, CoreKronecker, DType, Linearization
from ..config import physical_memory
from ..losses import Loss, LossName
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.curvature import GaussNewtonMatrix
from .base import Averages, Preconditioner, refuse_without_batch

__all__ = ["KroneckerPreconditioner", "LayerFactors"]

Pi: TypeAlias = Literal["trace", "frobenius", "unit", "exact"]
# Part of its trace below which eigenvalues of a factor are rounding, in units of eps.
_NOISE = 64.0


class LayerFactors(NamedTuple):
    """Approximation of the Fisher block of a layer with n inputs and d outputs; float64.

    The inputs are those of the layer and, where it has a bias, a constant 1 behind them. Rows and
    columns of the block are entries of [W b] (d, n) in C order:

        F_l ~ G (x) A    for KFAC and TKFAC,
        F_l ~ U diag(S) U',  U = basis_G (x) basis_A    for EKFAC and TEKFAC.

    Attributes
    ----------
    A : (n, n) array
    G : (d, d) array
    S : (d, n) array or None
    basis_A, basis_G : (n, n) and (d, d) array, or None
        Orthonormal columns: eigenvectors of A and G when the basis was last taken.
    """

    A: NDArray[np.float64]
    G: NDArray[np.float64]
    S: NDArray[np.float64] | None = None
    basis_A: NDArray[np.float64] | None = None
    basis_G: NDArray[np.float64] | None = None


class KroneckerPreconditioner(Preconditioner):
    """Base of the Kronecker-factored approximations, one block for each layer."""

    core: CoreKronecker
    has_diagonals: bool  # S in a basis, or else G (x) A

    def _build(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike | None,
        y: ArrayLike | None,
        *,
        pi: Pi = "exact",
        basis_period: int = 1,
        damping: float | None,
        sample_weight: ArrayLike | None,
        **options: Any,
    ) -> None:
        self._set_up(net, loss, **options)
        self.pi = as_name(pi, "pi", get_args(Pi))
        self.basis_period = as_count(basis_period, "basis_period", 1)
        if damping is not None:
            damping = as_number(damping, "damping", above=0.0)
        _check_memory(net)
        self.core = core_for(net.dtype).KroneckerFactors(
            net._architecture,
            kind=self.kind,
            pi=self.pi,
            basis_period=self.basis_period,
            num_threads=self.num_threads,
        )
        if X is None:
            refuse_without_batch(y=y, sample_weight=sample_weight, damping=damping)
            return
        self.update_on(self._batch(X, y, sample_weight))
        if damping is not None:
            self.refresh(damping)

    @classmethod
    def on(cls, matrix: GaussNewtonMatrix, *, damping: float | None = None, **options: Any) -> Self:
        """Build on what a matrix has linearised: no forward pass, no copy of the cases.

        Parameters
        ----------
        matrix : Fisher, GGN or EmpiricalFisher
            Gives net, loss, cases, weights and number of threads. What is approximated is the
            Fisher matrix of the predictive distribution, whatever the matrix.
        damping : float, optional
            Given, `refresh` is called.
        **options
            `samples`, `seed`, `ema`, and `pi` or `basis_period`, as in the constructor. They and
            the net's parameters at that time count for later updates.

        Returns
        -------
        Preconditioner of this class

        Raises
        ------
        FloatingPointError
            As in `update`.

        Examples
        --------
        >>> import numpy as np, natgrad_fast as ng
        >>> net = ng.MLP([3, 4, 2])
        >>> F = ng.Fisher(net, "squared_error", np.eye(3))
        >>> M = ng.KFAC.on(F, damping=0.1)
        >>> bool(np.array_equal(M.to_dense(), ng.KFAC(net, "squared_error", np.eye(3)).to_dense()))
        True
        """
        if not isinstance(matrix, GaussNewtonMatrix):
            raise TypeError(f"matrix must be a Fisher, GGN or EmpiricalFisher, got {matrix!r}")
        make: Callable[..., Self] = cls
        made = make(matrix._net, matrix.loss, num_threads=matrix.num_threads, **options)
        made._update(matrix.linearization, matrix.sample_weight, matrix.num_cases)
        if damping is not None:
            made.refresh(damping)
        return made

    @property
    def num_updates(self) -> int:
        """Batches in the moving averages."""
        return int(self.core.num_updates)

    @property
    def damping(self) -> float | None:
        """Damping of the last `refresh`; None before the first."""
        return float(self.core.damping) or None

    def update(self, X: ArrayLike, *, sample_weight: ArrayLike | None = None) -> None:
        """Measure a batch at the net's present parameters.

        The moving averages become (w old + m batch) / (w + m), m the number of cases or the sum of
        their weights, w the weight of the average so far: the first batches count by their cases,
        and all but the last share a weight that falls by the factor `ema` from call to call once
        there have been 1 / (1 - ema) of them. With equal batches, the k-th one enters with the
        share max(1 / k, 1 - ema). ``M @ g`` stays as it is until `refresh`.

        Parameters
        ----------
        X : (N, d_0) array_like
        sample_weight : (N,) array_like, optional
            w_i >= 0, equal by default: 1.

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range.
        FloatingPointError
            If the outputs of the net or their curvature are too large for the dtype; the averages
            stay as they were.
        """
        self.update_on(self._batch(X, None, sample_weight))

    def update_on(
        self,
        batch: Batch,
        linearization: Linearization | None = None,
        *,
        num_cases: int | None = None,
    ) -> None:
        """Measure a batch, or its first `num_cases` cases; see `Preconditioner.update_on`.

        With the linearisation of the whole batch a part costs its backward sweeps alone.
        """
        self.check_belongs(batch.net, batch.loss)
        if linearization is None:
            linearization = batch.linearize()
        count = batch.num_cases if num_cases is None else min(num_cases, batch.num_cases)
        weights = batch.weights
        self._update(linearization, None if weights is None else weights[:count], count)

    def _update(
        self, linearization: Linearization, weights: NDArray[np.float64] | None, num_cases: int
    ) -> None:
        """Measure where the net was linearised, on the first cases."""
        status = "outrun"
        while status == "outrun":  # by the update of another thread
            num_updates = self.num_updates
            status = self.core.update(
                linearization,
                self.loss.core,
                num_samples=self.samples or 0,
                seed=self._seed_of_update(num_updates),
                weights=weights,
                num_cases=num_cases,
                decay=self.ema,
                num_updates=num_updates,
            )
        if status == "not_finite":
            raise FloatingPointError(
                f"the moments of this batch have NaN or Inf (in {self.dtype}): the outputs of the "
                "net are too large; the averages stay as they were"
            )

    def _refresh(self, damping: float) -> None:
        self.core.refresh(damping)

    def _apply_root(self, rows: Array) -> Array:
        images: Array = self.core.apply_root(rows)
        return images

    @property
    def factors(self) -> tuple[LayerFactors, ...]:
        """`LayerFactors` of each layer, as `update` left them; copies.

        Raises
        ------
        ValueError
            Before `update`.
        """
        return tuple(
            LayerFactors(a, g, s, None if s is None else right.T, None if s is None else left.T)
            for g, a, left, right, s in self.core.factors()
        )

    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues of the approximation, not damped.

        Returns
        -------
        (P,) array
            Layer by layer, as (d, n) in C order: products of the eigenvalues of G and A, both
            ascending, or S.

        Raises
        ------
        ValueError
            Before `update`.

        Notes
        -----
        The first call after an update takes 4 (n^3 + d^3) / 3 flops for a layer of K-FAC or TKFAC.
        """
        values: NDArray[np.float64] = self.core.eigenvalues()
        return values

    def _logdet(self, damping: float) -> float:
        return float(self.core.log_det(damping))

    def block(self, layer: int, *, damped: bool = False) -> NDArray[np.float64]:
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
        layer = as_count(layer, "layer", 0)
        if layer >= self.net.num_layers:
            raise ValueError(f"layer must be < {self.net.num_layers}, got {layer}")
        return self._assemble(layer, *self.core.block(layer, damped=damped))

    def _assemble(
        self,
        layer: int,
        left: NDArray[np.float64],
        right: NDArray[np.float64],
        scales: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Left (x) right, or (left (x) right)' diag(scales) (left (x) right), in order."""
        dense = np.asarray(np.kron(left, right), np.float64)
        if scales is not None:
            dense = (dense.T * scales.ravel()) @ dense
        order = self._order(layer)
        return dense[np.ix_(order, order)]

    def _order(self, layer: int) -> NDArray[np.intp]:
        """Places of the layer's parameters in [W b] (d, n) in C order."""
        inputs, outputs = self.net.sizes[layer : layer + 2]
        columns = inputs + int(self.net.biases[layer].size > 0)
        places = np.arange(outputs * columns).reshape(outputs, columns)
        return np.concatenate([places[:, :inputs].ravel(), places[:, inputs:].ravel()])

    def to_dense(self, *, damped: bool = False) -> NDArray[np.float64]:
        """Form the approximation (P, P), or with `damped` the matrix that ``@`` inverts; float64.

        Not the matrix of ``@`` itself: that is the inverse of ``to_dense(damped=True)``.
        """
        dense = np.zeros(self.shape)
        at = 0
        for layer, factors in enumerate(self.core.blocks(damped=damped)):
            block = self._assemble(layer, *factors)
            dense[at : at + len(block), at : at + len(block)] = block
            at += len(block)
        return dense

    def diagonal(self) -> NDArray[np.float64]:
        """Diagonal (P,) of the approximation, not damped; float64."""
        parts = []
        for layer, (left, right, scales) in enumerate(self.core.blocks(damped=False)):
            if scales is None:
                entries = np.outer(left.diagonal(), right.diagonal())
            else:
                entries = (left**2).T @ scales @ right**2
            parts.append(entries.ravel()[self._order(layer)])
        return np.concatenate(parts)

    def trace(self) -> float:
        """Trace of the approximation, not damped."""
        return float(self.diagonal().sum())

    # State ---------------------------------------------------------------------------------------

    def _averages(self) -> Averages:
        layers, num_updates, refreshed_at, weight, damping = self.core.state()
        arrays = {
            f"{name}_{layer}": array
            for layer, named in enumerate(layers)
            for name, array in named.items()
        }
        return Averages(num_updates, refreshed_at, weight, damping or None, arrays)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], DType]]:
        names = ["A", "G"]
        inverse = ["inverse_A", "inverse_G"]
        if self.has_diagonals:
            names += ["S", "basis_A", "basis_G"]
        if self.has_diagonals or self.pi == "exact":
            inverse = ["inverse_S", "inverse_basis_A", "inverse_basis_G"]
        sizes, bias = self.net.layout
        shapes: dict[str, tuple[tuple[int, ...], DType]] = {}
        for layer, (inputs, d) in enumerate(pairwise(sizes)):
            n = inputs + int(bias[layer])
            of = {"A": (n, n), "G": (d, d), "S": (d, n)}
            shapes |= {f"{name}_{layer}": (of[name[-1]], self.dtype) for name in names + inverse}
        return shapes

    def _check_arrays(self, reader: StateReader, arrays: dict[str, Array]) -> None:
        noise = _NOISE * float(np.finfo(self.dtype).eps)
        for name, array in arrays.items():
            what = name.rpartition("_")[0]
            if what == "S":
                if not (array >= 0).all():
                    raise reader.refuse(name, "elements >= 0")
            elif what == "inverse_S":
                if not (array > 0).all():
                    raise reader.refuse(name, "elements > 0")
            elif "basis" in what:
                gram = array.T @ array
                if not np.abs(gram - np.eye(len(gram))).max() <= noise * len(gram):
                    raise reader.refuse(name, "orthonormal columns")
            elif not _is_positive(array, 0.0 if what.startswith("inverse") else noise):
                raise reader.refuse(name, "a symmetric positive semi-definite matrix")

    def _load(self, reader: StateReader, averages: Averages) -> None:
        layers: list[dict[str, Array]] = []
        if averages.num_updates > 0:
            layers = [{} for _ in range(self.net.num_layers)]
        for name, array in averages.arrays.items():
            what, _, layer = name.rpartition("_")
            layers[int(layer)][what] = array
        try:
            self.core.set_state(
                layers=layers,
                num_updates=averages.num_updates,
                refreshed_at=averages.refreshed_at,
                weight=averages.weight,
                damping=averages.damping or 0.0,
            )
        except RuntimeError as error:
            raise reader.refuse(
                "damping", f"one for which A and G can be inverted: {error}"
            ) from None

    def _snapshot(self) -> object:
        return self.core.snapshot()

    def _restore(self, snapshot: Any) -> None:
        self.core.restore(snapshot)


def _check_memory(net: MLP) -> None:
    """Refuse factors that this machine could never hold, before it tries."""
    memory = physical_memory()
    sizes, bias = net.layout
    orders = {
        f"{name} of layer {layer}": order
        for layer, (inputs, outputs) in enumerate(pairwise(sizes))
        for name, order in (("A", inputs + int(bias[layer])), ("G", outputs))
    }
    needed = 2 * net.dtype.itemsize * sum(order**2 for order in orders.values())
    if memory is None or needed <= memory:
        return
    name, order = max(orders.items(), key=lambda item: item[1])
    raise MemoryError(
        f"the factors and their inverses take {needed:,} bytes, this machine has {memory:,}: the "
        f"largest, {name}, is ({order}, {order}) in {net.dtype}, "
        f"{net.dtype.itemsize * order**2:,} bytes; a DiagonalPreconditioner or Nystrom needs O(P)"
    )


def _is_positive(matrix: Array, noise: float) -> bool:
    """Whether a matrix is symmetric and its eigenvalues are > 0, or > -noise * trace."""
    if not np.array_equal(matrix, matrix.T):
        return False
    if noise > 0.0 and not matrix.any():
        return True
    # of a size at which no product leaves the range
    shifted = np.ldexp(matrix.astype(np.float64), -int(np.frexp(np.abs(matrix).max())[1]))
    trace = float(np.trace(shifted))
    shifted.flat[:: len(shifted) + 1] += noise * trace
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True
