"""Preconditioners: approximations of curvature matrices whose damped inverse costs little.

Three costs, three calls: `update` measures a batch, `refresh` inverts for a damping, `@` applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    as_chunk_size,
    as_count,
    as_num_threads,
    as_number,
    as_rows,
)
from .._state import StateReader
from .._typing import Array, DType, Linearization, State
from ..losses import Loss, LossName, as_loss
from ..model.batch import Batch
from ..model.mlp import MLP, as_net
from ..operators.base import Operator, Role

__all__ = ["Averages", "Preconditioner", "refuse_without_batch"]


class Averages(NamedTuple):
    """What a state holds besides the description of its preconditioner."""

    num_updates: int
    refreshed_at: int  # the inverse is of that update; 0 if there is none
    weight: float
    damping: float | None
    arrays: dict[str, Array]


class Preconditioner(Operator):
    """Base: an approximation B of a curvature matrix; as an operator, the inverse of B damped.

    ``M @ g`` is (B + damping I)^-1 g up to the form of the damping, while ``M.to_dense()``,
    ``M.block()``, ``M.diagonal()`` and ``M.trace()`` describe B itself.

    Attributes
    ----------
    shape, dtype
    net : MLP
    loss : Loss
    num_updates : int
        Batches in the moving averages.
    core
        What `cg` multiplies with, without a detour through Python.
    follows_batches : bool
        Whether `update_on` measures batches of its net.

    Notes
    -----
    Calls of several threads wait for each other, and a call that raises leaves everything as it
    was. Copies (`copy.deepcopy`, pickle, joblib) go on with the same bits as the original; like it,
    they measure the net that they hold.
    """

    role: Role = "inverse"
    follows_batches: bool = True
    kind: str
    net: MLP
    loss: Loss
    core: Any

    def _set_up(
        self,
        net: MLP,
        loss: LossName | Loss,
        *,
        samples: int | None,
        seed: int,
        ema: float,
        num_threads: int | None,
        chunk_size: int | None,
    ) -> None:
        self.net, self.loss = as_net(net), as_loss(loss)
        self.layout = net.layout
        self.loss.num_targets(net.sizes[-1])  # refuses outputs the loss is not defined for
        self.shape, self.dtype = (net.num_params, net.num_params), net.dtype
        self.samples = None if samples is None else as_count(samples, "samples", 1)
        self.seed = as_count(seed, "seed", 0)
        self.ema = as_number(ema, "ema", minimum=0.0)
        if self.ema >= 1.0:
            raise ValueError(f"ema must be < 1, got {ema}")
        self.num_threads = as_num_threads(num_threads)
        as_chunk_size(chunk_size)
        self.chunk_size = chunk_size

    @property
    def num_updates(self) -> int:
        """Batches in the moving averages."""
        raise NotImplementedError

    @property
    def damping(self) -> float | None:
        """Damping of the last `refresh`; None before the first."""
        raise NotImplementedError

    @property
    def T(self) -> Operator:
        """The operator itself: it is symmetric."""
        return self

    @property
    def positive_semidefinite(self) -> bool:
        """True: the inverse is positive definite for any batch and damping."""
        return True

    def update_on(self, batch: Batch, linearization: Linearization | None = None) -> None:
        """Measure a batch at the net's present parameters, as ``update`` does.

        Parameters
        ----------
        batch : Batch
            Of the net and loss of the preconditioner.
        linearization : optional
            From ``batch.linearize()``, to share one linearisation; made anew by default.
        """
        raise NotImplementedError

    def _batch(self, X: ArrayLike, y: ArrayLike | None, sample_weight: ArrayLike | None) -> Batch:
        return Batch(
            self.net,
            self.loss,
            X,
            y,
            sample_weight=sample_weight,
            num_threads=self.num_threads,
            chunk_size=self.chunk_size,
        )

    def check_belongs(self, net: MLP, loss: Loss) -> None:
        """Raise ValueError unless the preconditioner is of this net, the very object, and loss."""
        if net is not self.net or loss != self.loss:
            raise ValueError(
                f"the preconditioner is of another net or loss: {self.net!r} and {self.loss!r}, "
                f"wanted {net!r} and {loss!r}"
            )

    def _apply(self, rows: Array) -> Array:
        images: Array = self.core.apply(rows)
        return images

    def _apply_transpose(self, rows: Array) -> Array:
        return self._apply(rows)

    def refresh(self, damping: float) -> None:
        """Invert what `update` measured, with `damping` (which includes the l2 of the objective).

        Parameters
        ----------
        damping : float
            > 0.

        Raises
        ------
        ValueError
            If damping is not > 0 and finite, or nothing was measured yet.
        """
        self._refresh(self._as_damping(damping))

    def _as_damping(self, damping: float) -> float:
        damping = as_number(damping, "damping", above=0.0)
        if self.num_updates == 0:
            raise ValueError("there is nothing to invert yet: call update(X) first")
        return damping

    def _refresh(self, damping: float) -> None:
        raise NotImplementedError

    def logdet(self, damping: float) -> float:
        """Logarithm of the determinant of the matrix that ``@`` inverts after `refresh`.

        Parameters
        ----------
        damping : float
            > 0; that of the last `refresh` does not matter.

        Raises
        ------
        ValueError
            As in `refresh`.
        """
        return self._logdet(self._as_damping(damping))

    def _logdet(self, damping: float) -> float:
        raise NotImplementedError

    def sqrt_solve(self, v: ArrayLike) -> Array:
        """Multiply with a root S of the operator, S S' = M.

        The image of standard normal vectors has the covariance M, the damped inverse.

        Parameters
        ----------
        v : (P,) or (P, K) array_like

        Returns
        -------
        array of the shape of `v`

        Raises
        ------
        ValueError, TypeError
            If v has a wrong shape or type.
        RuntimeError
            Before `refresh`.

        Examples
        --------
        >>> import numpy as np, natgrad_fast as ng
        >>> net = ng.MLP([3, 4, 2], dtype="float64")
        >>> M = ng.KFAC(net, "squared_error", np.eye(3), damping=0.1)
        >>> root = M.sqrt_solve(np.eye(net.num_params))
        >>> bool(np.allclose(root @ root.T, M @ np.eye(net.num_params)))
        True
        """
        rows, is_block = as_rows(v, "v", self.shape[0], self.dtype)
        images: Array = self._apply_root(rows)
        return images.T if is_block else images[0]

    def _apply_root(self, rows: Array) -> Array:
        """S x for the rows of a (K, P) array."""
        raise NotImplementedError

    def state_dict(self) -> State:
        """Moving averages, counters and what describes the preconditioner; copies.

        Returns
        -------
        dict
            Plain values and named arrays, the same names and shapes for every instruction set and
            number of threads. The inverse is in it where there was an update after the last
            `refresh`; else `load_state_dict` makes it anew.
        """
        averages = self._averages()
        return {
            **self._description(),
            "num_updates": averages.num_updates,
            "refreshed_at": averages.refreshed_at,
            "weight": averages.weight,
            "damping": averages.damping,
            **averages.arrays,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` of a preconditioner like this one returned.

        What follows has the same bits as without a break, or the same up to rounding if the state
        was written with another instruction set. Costs a `refresh`.

        Parameters
        ----------
        state : Mapping

        Raises
        ------
        ValueError
            If anything in it does not fit: names, shapes, dtypes, ranges, NaN, or a state of
            another kind, dtype, architecture, loss or of other options. Nothing has changed then.
        """
        description = self._description()
        counters = ("num_updates", "refreshed_at", "weight", "damping")
        present = set(state) & set(self._shapes()) if isinstance(state, Mapping) else set()
        reader = StateReader(state, "state", {*description, *counters, *present})
        for name, wanted in description.items():
            reader.same(name, wanted)
        num_updates = reader.integer("num_updates")
        refreshed_at = reader.integer("refreshed_at", maximum=num_updates)
        weight = _read_weight(reader, num_updates)
        damping = _read_damping(reader, refreshed_at)
        self._check_names(reader, present, num_updates, refreshed_at)
        arrays = {
            name: reader.array(name, *of) for name, of in self._shapes().items() if name in present
        }
        self._check_arrays(reader, arrays)
        self._load(reader, Averages(num_updates, refreshed_at, weight, damping, arrays))

    def _check_names(
        self, reader: StateReader, present: set[str], num_updates: int, refreshed_at: int
    ) -> None:
        """Refuse arrays that do not go with the counters."""
        at = f"with state['num_updates'] = {num_updates}, state['refreshed_at'] = {refreshed_at}"
        for name in self._shapes():
            is_inverse = name.startswith("inverse")
            wanted = 0 < refreshed_at < num_updates if is_inverse else num_updates > 0
            if wanted != (name in present):
                raise ValueError(
                    f"{reader.path(name)} is {'missing' if wanted else 'unknown'} {at}"
                )

    def _description(self) -> State:
        """What a state has to belong to, as plain values."""
        sizes, bias = self.net.layout
        return {
            "kind": self.kind,
            "dtype": str(self.dtype),
            "sizes": tuple(sizes),
            "activations": tuple(self.net.activations),
            "bias": tuple(bias),
            "loss": repr(self.loss),
            **{name: value for name, value in self._options().items() if name != "kind"},
        }

    def _options(self) -> State:
        """Options that change what is computed, as the constructor takes them."""
        return {"samples": self.samples, "seed": self.seed, "ema": self.ema}

    def _averages(self) -> Averages:
        raise NotImplementedError

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], DType]]:
        """Shape and dtype of every array that a state may have; those of inverses say so."""
        raise NotImplementedError

    def _check_arrays(self, reader: StateReader, arrays: dict[str, Array]) -> None:
        """Refuse arrays that can not be what their names say."""
        raise NotImplementedError

    def _load(self, reader: StateReader, averages: Averages) -> None:
        raise NotImplementedError

    def _snapshot(self) -> object:
        """Everything that calls change, for `_restore`; free, it shares memory."""
        raise NotImplementedError

    def _restore(self, snapshot: object) -> None:
        """Go back to a snapshot of this object."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies from the options and the state."""
        options = {
            **self._options(),
            "num_threads": self.num_threads,
            "chunk_size": self.chunk_size,
        }
        return _rebuild, (type(self), self.net, self.loss, options, self.state_dict())

    def _seed_of_update(self, num_updates: int) -> int:
        """`seed` for the first update, a mix of it and the number of updates later on."""
        if num_updates == 0:
            return self.seed
        mix = np.random.SeedSequence((self.seed, num_updates))
        return int(mix.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _read_weight(reader: StateReader, num_updates: int) -> float:
    if not isinstance(reader["weight"], float | np.floating):
        raise reader.refuse("weight", "a float")
    if num_updates == 0:
        reader.same("weight", 0.0)
        return 0.0
    return reader.number("weight", above=0.0)


def _read_damping(reader: StateReader, refreshed_at: int) -> float | None:
    wanted = "None" if refreshed_at == 0 else "a float > 0"
    if (reader["damping"] is None) != (refreshed_at == 0):
        raise reader.refuse("damping", f"{wanted} with state['refreshed_at'] = {refreshed_at}")
    if refreshed_at == 0:
        return None
    if not isinstance(reader["damping"], float | np.floating):
        raise reader.refuse("damping", wanted)
    return reader.number("damping", above=0.0)


def _rebuild(
    make: Callable[..., Preconditioner],
    net: MLP,
    loss: Loss,
    options: State,
    state: State,
) -> Preconditioner:
    copy = make(net, loss, **options)
    copy.load_state_dict(state)
    return copy


def refuse_without_batch(**given: object) -> None:
    """Raise ValueError if any of the arguments that belong to a first batch is given."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} needs X: there is no batch to measure")
