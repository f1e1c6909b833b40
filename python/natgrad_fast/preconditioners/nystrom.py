"""Randomised low-rank preconditioner of any positive semi-definite operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import (
    all_finite,
    as_count,
    as_num_threads,
    as_number,
    as_rows,
    core_for,
    memory_for,
)
from .._core import Lock
from .._state import StateReader
from .._typing import Array, CoreNystrom, Linearization, State
from ..losses import Loss, LossName, as_loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.curvature import Fisher
from ..operators.linear_map import LinearMap, as_linear_map
from .base import Preconditioner, refuse_without_batch

__all__ = ["Nystrom"]


class Nystrom(Preconditioner):
    """Inverse of U L U' + damping I for a randomised Nystrom approximation U L U' of A.

    ``M @ g`` multiplies with U (L + damping I)^-1 U' + (I - U U') / (l_min + damping), l_min the
    smallest of the eigenvalues L (Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44, 2023).
    It is positive definite for every A, so `cg` takes it as preconditioner.

    Parameters
    ----------
    A : operator or MLP
        Positive semi-definite, as in `cg`: with its own damping, if it has one. A net stands for
        its Fisher matrix over X.
    loss : str or Loss, optional
        With a net: names the predictive distribution.
    X : (N, d_0) array_like, optional
        With a net: the cases; without them call `update`.
    rank : int
        Columns of the sketch, at most P.
    damping : float
        Of the inverse, >= 0; `refresh` changes it.
    seed : int
        Of the Gaussian test matrix. Every update draws the same.
    adaptive : bool
        Double the rank until the smallest eigenvalue is at most 10 * damping.
    max_rank : int, optional
        Bound of the adaptive rank; P by default.
    sample_weight : (N,) array_like, optional
        Of the cases X.
    num_threads : int, optional
        Those of A by default. The bits do not depend on it.

    Attributes
    ----------
    rank : int
        Columns in use.
    eigenvalues : (rank,) array
        L, decreasing; zeros where A is of lower rank.
    net, loss : MLP and Loss, or None
        What it was built with, if it was built with a net.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    Three calls of three costs: `update` takes `rank` products with A, as one block, and 24 P rank^2
    flops; `refresh` is free; ``M @ g`` costs 4 P rank flops. The memory is P rank numbers, and
    three times that on top while `update` runs. Unlike with other preconditioners, the inverse is
    that of the new approximation at once, with the present damping.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> A = np.diag([100.0, 10.0, 1.0, 1.0])
    >>> M = ng.Nystrom(A, rank=3, damping=1.0)
    >>> bool(np.allclose(M.to_dense(damped=True) @ (M @ np.ones(4)), 1.0))
    True
    """

    kind = "nystrom"
    chunk_size = None

    def __init__(
        self,
        A: object,
        loss: LossName | Loss | None = None,
        X: ArrayLike | None = None,
        *,
        rank: int = 20,
        damping: float = 0.0,
        seed: int = 0,
        adaptive: bool = False,
        max_rank: int | None = None,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> None:
        operator: LinearMap | None = None
        self.follows_batches = isinstance(A, MLP)
        if isinstance(A, MLP):
            if loss is None:
                raise ValueError("loss and X are missing: a net needs both")
            if X is None:
                refuse_without_batch(sample_weight=sample_weight)
            self.net, self.loss = A, as_loss(loss)
            self.loss.num_targets(A.sizes[-1])  # refuses outputs the loss is not defined for
            size, self.dtype, self.layout, threads = A.num_params, A.dtype, A.layout, num_threads
        else:
            if not (loss is None and X is None and sample_weight is None):
                raise TypeError(f"loss and X go with a net as first argument, got {A!r}")
            operator = as_linear_map(A)
            size, self.dtype = operator.size, operator.dtype
            self.layout = getattr(A, "layout", None)
            threads = operator.num_threads if num_threads is None else num_threads
        self.shape = (size, size)
        self._first_rank = _as_rank(rank, "rank", size)
        self._max_rank = size if max_rank is None else _as_rank(max_rank, "max_rank", size)
        if self._max_rank < self._first_rank:
            raise ValueError(f"max_rank must be >= rank = {rank}, got {max_rank}")
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive must be True or False, got {adaptive!r}")
        self._adaptive = adaptive
        self._seed = as_count(seed, "seed", 0)
        self._damping = as_number(damping, "damping", minimum=0.0)
        self.num_threads = as_num_threads(threads)
        self._num_updates = 0
        self._lock = Lock()  # of what an update replaces
        self.core = self._new_core()
        if operator is not None:
            self._update_with(operator)
        elif X is not None:
            self.update(X, sample_weight=sample_weight)

    def _new_core(self) -> CoreNystrom:
        core: CoreNystrom = core_for(self.dtype).Nystrom(
            self.shape[0], num_threads=self.num_threads
        )
        return core

    @property
    def num_updates(self) -> int:
        """Matrices that were approximated; only the last one counts."""
        return self._num_updates

    @property
    def rank(self) -> int:
        """Columns in use."""
        return len(self.eigenvalues)

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues (rank,) of the approximation, decreasing."""
        return np.asarray(self.core.eigenvalues)

    @property
    def damping(self) -> float | None:
        """Damping of the inverse; None before the first `update`."""
        return self._damping if self._num_updates > 0 else None

    def update(self, A: Any, *, sample_weight: ArrayLike | None = None) -> None:
        """Approximate A anew: `rank` products, more if adaptive.

        Parameters
        ----------
        A : operator or (N, d_0) array_like
            Of the shape and dtype that it was built with; cases X if it was built with a net, whose
            present parameters count.
        sample_weight : (N,) array_like, optional
            Of the cases X.

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range, or an operator whose products are not
            finite.
        FloatingPointError
            If the products are not finite because the outputs of the net are too large.

        Notes
        -----
        Where it raises, and where a product of A does, the approximation stays as it was.
        """
        if self.follows_batches and not hasattr(A, "matvec"):
            return self.update_on(self._batch(A, None, sample_weight))
        if sample_weight is not None:
            raise TypeError("sample_weight goes with cases X of the net it was built with")
        self._update_with(as_linear_map(A))

    def update_on(self, batch: Batch, linearization: Linearization | None = None) -> None:
        """Approximate the Fisher matrix of a batch; see `Preconditioner.update_on`."""
        self.check_belongs(batch.net, batch.loss)
        self._update(as_linear_map(Fisher.on(batch.without_l2(), linearization)))

    def check_belongs(self, net: MLP, loss: Loss) -> None:
        """Raise ValueError unless it is of this net and loss; see `Preconditioner`."""
        if not self.follows_batches:
            raise ValueError(f"{self!r} was built with an operator: it has no net and no loss")
        super().check_belongs(net, loss)

    def _update_with(self, operator: LinearMap) -> None:
        if (operator.size, operator.size) != self.shape:
            raise ValueError(f"A has shape {(operator.size,) * 2}, wanted {self.shape}")
        if operator.dtype != self.dtype:
            raise ValueError(f"A has dtype {operator.dtype}, wanted {self.dtype}")
        try:
            self._update(operator)
        except FloatingPointError as error:
            raise ValueError(str(error)) from None

    def _update(self, operator: LinearMap) -> None:
        rng = np.random.default_rng(self._seed)
        omega = np.empty((0, operator.size), self.dtype)
        products = omega
        rank, core = self._first_rank, self._new_core()
        tail = 10.0 * (self._damping or 0.0)
        while True:
            with memory_for(f"an approximation of rank {rank} of {self.shape}"):
                omega = self._extend(omega, rank, rng)
                products = np.concatenate([products, _products(operator, omega[len(products) :])])
                core.update(omega, y=products)
            smallest = float(core.eigenvalues[-1])
            if not self._adaptive or rank == self._max_rank or smallest <= tail:
                break
            rank = min(2 * rank, self._max_rank)
        self._replace(core, self._num_updates + 1)

    def _replace(self, core: CoreNystrom, num_updates: int, damping: float | None = None) -> None:
        """Take over a new approximation, and a new damping if one is given."""
        with self._lock:
            damping = (self._damping or 0.0) if damping is None else damping
            core.refresh(damping)
            self.core, self._damping, self._num_updates = core, damping, num_updates
            self.flops_per_product = 4.0 * self.shape[0] * self.rank

    def refresh(self, damping: float) -> None:
        """Set the damping of the inverse; no products.

        Parameters
        ----------
        damping : float
            >= 0.

        Raises
        ------
        ValueError, TypeError
            If damping is no finite number >= 0, or nothing was measured yet.
        """
        damping = as_number(damping, "damping", minimum=0.0)
        self._check_measured()
        with self._lock:
            self.core.refresh(damping)
            self._damping = damping

    def to_dense(self, *, damped: bool = False) -> Array:
        """Form the approximation U L U' (P, P) of A, or with `damped` the matrix ``@`` inverts.

        Not the matrix of ``@`` itself: that is the inverse of ``to_dense(damped=True)``.
        """
        core = self._measured_core()
        vectors = np.asarray(core.vectors, np.float64)
        if not damped:
            return ((vectors.T * core.eigenvalues) @ vectors).astype(self.dtype)
        coefficients, scale = core.inverse
        weights = 1.0 / (1.0 + coefficients) - 1.0
        dense = np.eye(self.shape[0]) + (vectors.T * weights) @ vectors
        return (dense / scale).astype(self.dtype)

    def diagonal(self) -> Array:
        """Diagonal (P,) of the approximation U L U', not damped; float64."""
        core = self._measured_core()
        return core.eigenvalues @ np.square(core.vectors, dtype=np.float64)

    def trace(self) -> float:
        """Trace of the approximation U L U', not damped."""
        return float(self._measured_core().eigenvalues.sum())

    def logdet(self, damping: float) -> float:
        """Logarithm of the determinant of the matrix that ``@`` inverts with this damping.

        Parameters
        ----------
        damping : float
            >= 0; that of the last `refresh` does not matter.

        Returns
        -------
        float
        """
        damping = as_number(damping, "damping", minimum=0.0)
        return float(self._measured_core().log_determinant(damping))

    def sqrt_solve(self, v: ArrayLike) -> Array:
        """Multiply with the symmetric square root of the inverse: R v with R R = R R' = M.

        Of standard normal v it makes samples of covariance M, at the costs of ``M @ v``.

        Parameters
        ----------
        v : (P,) or (P, K) array_like

        Returns
        -------
        (P,) or (P, K) array
        """
        rows, is_block = as_rows(v, "v", self.shape[0], self.dtype)
        roots = self._measured_core().apply_root(rows)
        return roots.T if is_block else roots[0]

    def _apply(self, rows: Array) -> Array:
        return self._measured_core().apply(rows)

    def _measured_core(self) -> CoreNystrom:
        self._check_measured()
        core: CoreNystrom = self.core
        return core

    def _check_measured(self) -> None:
        if self._num_updates == 0:
            raise ValueError("there is nothing to invert yet: call update(X) first")

    def _extend(self, omega: Array, rank: int, rng: np.random.Generator) -> Array:
        """Orthonormal rows (rank, P), the first of which are those of omega."""
        rows = np.empty((rank, omega.shape[1]), self.dtype)
        rows[: len(omega)] = omega
        for row in rows[len(omega) :]:
            row[...] = rng.standard_normal(row.size)
        core_for(self.dtype).orthonormalise_rows(rows, num_threads=self.num_threads)
        rows[: len(omega)] = omega  # their products are known
        return rows

    def state_dict(self) -> State:
        """Approximation, damping and counter: copies, plain types and arrays.

        Returns
        -------
        dict
        """
        with self._lock:
            return {
                "kind": self.kind,
                "dtype": str(self.dtype),
                "num_updates": self._num_updates,
                "damping": self._damping,
                "rank": self.rank,
                "eigenvalues": self.core.eigenvalues,
                "vectors": self.core.vectors,
            }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` of an approximation of the same size and dtype returned.

        Parameters
        ----------
        state : dict

        Raises
        ------
        ValueError
            If the state is not one, which leaf it is that is refused; nothing is changed then.
        """
        self._replace(*self._read(state))

    def _read(self, state: Mapping[str, object]) -> tuple[CoreNystrom, int, float]:
        """Core, number of updates and damping of a state, checked."""
        names = ("kind", "dtype", "num_updates", "damping", "rank", "eigenvalues", "vectors")
        reader = StateReader(state, "state", names)
        reader.same("kind", self.kind)
        reader.same("dtype", str(self.dtype))
        num_updates, damping = reader.integer("num_updates"), reader.number("damping", minimum=0.0)
        size = self.shape[0]
        rank = reader.integer("rank", min(num_updates, 1), size if num_updates > 0 else 0)
        values = reader.array("eigenvalues", (rank,), np.dtype(np.float64))
        if (np.diff(values) > 0.0).any() or (values < 0.0).any():
            raise reader.refuse("eigenvalues", "numbers >= 0 that do not increase")
        core = self._new_core()
        vectors = reader.array("vectors", (rank, size), self.dtype)
        core.set_approximation(values, vectors=vectors)
        return core, num_updates, damping

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by the state."""
        return _from_state, (type(self), self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        """Attributes, with arrays in place of the core."""
        attributes = {k: v for k, v in self.__dict__.items() if k not in ("core", "_lock")}
        return {**attributes, "approximation": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the core anew."""
        attributes = dict(state)
        approximation = attributes.pop("approximation")
        self.__dict__.update(attributes)
        self._lock = Lock()
        self._replace(*self._read(approximation))


def _from_state(kind: type[Nystrom], state: dict[str, Any]) -> Nystrom:
    nystrom = kind.__new__(kind)
    nystrom.__setstate__(state)
    return nystrom


def _as_rank(rank: object, name: str, size: int) -> int:
    count = as_count(rank, name, 1)
    if count > size:
        raise ValueError(f"{name} must be <= P = {size}, got {count}")
    return count


def _products(operator: LinearMap, rows: Array) -> Array:
    products: Array = operator.apply(rows)
    if not all_finite(products):
        raise FloatingPointError("A has products with NaN or Inf")
    return products
