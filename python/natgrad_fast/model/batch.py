"""A batch: cases with a net and a loss, checked once; and the objective on it."""

from __future__ import annotations

import copy
from typing import NamedTuple, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import (
    Decay,
    as_cases,
    as_chunk_size,
    as_decay,
    as_num_threads,
    as_number,
    as_real,
    as_sample_weight,
    core_for,
)
from .._typing import Array, CoreObjective, Linearization
from ..losses import Loss, LossName, as_loss
from .mlp import MLP, as_net

__all__ = ["Batch", "BatchOptions", "Parts", "value", "value_and_grad"]


Scalar = TypeVar("Scalar", bound=np.generic)


class BatchOptions(TypedDict, total=False):
    """The keywords that everything made from cases takes; see `Batch`."""

    sample_weight: ArrayLike | None
    l2: float | tuple[float, float]
    num_threads: int | None
    chunk_size: int | None
    total_weight: float | None


class Batch:
    """Cases with a net and a loss: what operators, preconditioners and steps are made from.

    Everything is checked here, once; X is read once to look for NaN. The net's parameters are not
    copied: a batch is measured wherever they are when it is asked.

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        One of `losses`, or its name.
    X : (N, d_0) array_like
        Inputs, N >= 1, finite. An array of the net's dtype in C order is not copied.
    y : array_like, optional
        Targets as `Loss.targets` takes them: (N, C); (N,) labels for softmax_cross_entropy, (N,)
        for one target. Without them only what does not depend on targets can be made.
    sample_weight : (N,) array_like, optional
        w_i >= 0 with a positive sum, equal by default. A case of weight 0 is left out, whatever its
        input and target hold.
    l2 : float or (float, float)
        Weight decay of all parameters, or of weights and of biases.
    num_threads : int, optional
        `default_num_threads` by default. Results have the same bits for any number.
    chunk_size : int, optional
        Cases whose activations are alive at once; see `Fisher`.
    total_weight : float, optional
        What sums over cases are divided by; the sum of the weights by default. A larger number
        makes the batch a part of a larger one, and l2 is shared out likewise: values, gradients and
        products of the parts add up to those of the whole.

    Attributes
    ----------
    num_cases : int
        Cases that count.
    counted : Counted
        Which of the cases that were given they are.
    x : (num_cases, d_0) array
    targets : (num_cases, num_targets) array or None
        As the core takes them.
    weights : (num_cases,) float64 array or None
        None where they are equal.
    weight : float
        Sum of the weights, at most `total_weight`.
    decay : (float, float)
        l2 of weights and of biases, times the share of the weights.

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 1], dtype="float64")
    >>> batch = ng.Batch(net, "squared_error", np.eye(3), np.ones(3), l2=0.1)
    >>> h, g = batch.value_and_grad()
    >>> matrix = ng.Fisher.on(batch)
    >>> matrix.shape
    (21, 21)
    """

    def __init__(
        self,
        net: MLP,
        loss: LossName | Loss,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        l2: float | tuple[float, float] = 0.0,
        num_threads: int | None = None,
        chunk_size: int | None = None,
        total_weight: float | None = None,
    ) -> None:
        self.net, self.loss = as_net(net), as_loss(loss)
        self.loss.num_targets(net.sizes[-1])  # refuses widths that the loss is not made for
        self._l2 = as_decay(l2, "l2")
        self.num_threads = as_num_threads(num_threads)
        self.chunk_size = as_chunk_size(chunk_size)
        self.counted, self.x, self.weights = _with_weights(net, X, sample_weight, self.num_threads)
        self.targets = None if y is None else self.counted.targets(self.loss, net, y)
        self._normalise(total_weight)

    def _normalise(self, total_weight: float | None) -> None:
        self.num_cases = int(self.x.shape[0])
        self.weight = float(self.num_cases if self.weights is None else self.weights.sum())
        self.total_weight = self.weight
        self.given_total: float | None = None  # for the core, which sums the weights by itself
        if total_weight is not None:
            self.total_weight = as_number(total_weight, "total_weight", above=0.0)
            self.given_total = self.total_weight
            if self.total_weight < self.weight * (1.0 - 1e-9):  # sums in another order differ
                raise ValueError(
                    f"total_weight must be >= the sum of the weights {self.weight:g}, "
                    f"got {total_weight}"
                )
        share = self.weight / self.total_weight
        self.decay = self._l2 if share == 1.0 else Decay(*(share * part for part in self._l2))
        self._objective: CoreObjective | None = None

    def take(self, cases: NDArray[np.intp], targets: Array) -> Batch:
        """Return the batch of some of the cases, whose `targets` are given, unchecked.

        It is a batch of its own, normalised by its own weight; where the whole is a share of a
        larger one, by `total_weight`, it has the same share.
        """
        weights = None if self.weights is None else self.weights[cases]
        return self.with_cases(self.x[cases], targets, weights)

    def with_cases(self, x: Array, targets: Array, weights: NDArray[np.float64] | None) -> Batch:
        """Return the batch of other cases, as the core takes them, unchecked; see `take`."""
        other = copy.copy(self)
        other.x, other.targets, other.weights = x, targets, weights
        other.counted = Counted(x.shape[0], None)
        other._normalise(None)
        if self.given_total is not None:
            other._normalise(other.weight * (self.total_weight / self.weight))
        return other

    def without_l2(self) -> Batch:
        """Return the same batch with l2 = 0."""
        return self.with_l2(Decay(0.0, 0.0))

    def with_l2(self, l2: Decay) -> Batch:
        """Return the same batch with another weight decay."""
        other = copy.copy(self)
        share = self.weight / self.total_weight
        other._l2 = l2
        other.decay = l2 if share == 1.0 else Decay(*(share * part for part in l2))
        return other

    @property
    def l2(self) -> float | tuple[float, float]:
        """Weight decay as given: a number, or (weights, biases) if they differ."""
        return self._l2.shown

    def __repr__(self) -> str:
        """Cases, loss and net."""
        return f"<Batch of {self.num_cases} cases, {self.loss!r}, {self.net!r}>"

    def linearize(self, chunk_size: int | None = None) -> Linearization:
        """Linearise the net at its present parameters over the cases; the core's object.

        Parameters
        ----------
        chunk_size : int, optional
            That of the batch by default.
        """
        chunk = self.chunk_size if chunk_size is None else chunk_size
        return self.net.linearize_checked(self.x, self.num_threads, chunk)

    def value(self, params: Array | None = None) -> float:
        """Objective h; one forward pass, 2 N P flops.

        Parameters
        ----------
        params : (P,) array of the net's dtype, optional
            Those of the net by default.
        """
        return float(
            self._core.value(
                self.net._architecture,
                params=self.net.params if params is None else params,
                x=self.x,
                l2=self.decay,
                num_threads=self.num_threads,
            )
        )

    def value_and_grad(self, linearization: Linearization | None = None) -> tuple[float, Array]:
        """Objective h and its gradient (P,).

        Parameters
        ----------
        linearization : optional
            From `linearize`; 4 N P flops then, 6 N P without, in chunks, so that memory does not
            grow with N.
        """
        if linearization is None:
            linearization = self.linearize(self.chunk_size or self.net.one_pass_chunk_size)
        h, g = self._core.value_and_gradient(linearization, l2=self.decay)
        return float(h), g

    def value_and_grad_of_parts(self, linearization: Linearization, part: int) -> Parts | None:
        """Objective, gradient, and the gradients of the first cases and of the others.

        Parameters
        ----------
        linearization
            From `linearize`.
        part : int
            Cases in the first part, rounded down to a multiple of 32, which is whole panels of the
            core on every instruction set.

        Returns
        -------
        Parts or None
            None if one of the parts has no case. Costs as `value_and_grad`, and O(P).
        """
        count = part // _PANELS * _PANELS
        if not 0 < count < self.num_cases:
            return None
        value, whole, first, second = self._core.value_and_gradients(
            linearization, l2=self.decay, part=count
        )
        return Parts(float(value), whole, first, second, count)

    @property
    def _core(self) -> CoreObjective:
        if self._objective is None:
            if self.targets is None:
                raise ValueError("y is missing: the objective depends on targets")
            self._objective = core_for(self.net.dtype).Objective(
                self.loss.core,
                targets=self.targets,
                weights=self.weights,
                total_weight=self.given_total,
            )
        return self._objective


# A whole number of panels on every instruction set, in cases.
_PANELS = 32


class Parts(NamedTuple):
    """Objective and gradient (P,) of a batch, and gradients of two parts of its cases.

    Each is a mean over its cases, with l2.
    """

    value: float
    gradient: Array
    first: Array
    second: Array
    num_cases: int  # in the first part


class Counted:
    """Which of the cases that were given count: those whose weight is not 0."""

    def __init__(self, num_given: int, weights: NDArray[np.float64] | None) -> None:
        self.num_given = num_given
        self.places: NDArray[np.intp] | None = None  # all of them
        if weights is not None and not weights.all():
            self.places = np.flatnonzero(weights)

    def rows(self, a: NDArray[Scalar]) -> NDArray[Scalar]:
        """Rows that count."""
        return a if self.places is None else a[self.places]

    def overwritten(self, a: NDArray[Scalar]) -> NDArray[Scalar]:
        """Put a row that counts in the place of those that do not.

        What these hold is not looked at then, and positions in messages are the caller's.
        """
        if self.places is None or a.ndim == 0 or a.shape[0] != self.num_given:
            return a  # of a wrong shape, which is said elsewhere
        copy = np.repeat(a[self.places[:1]], a.shape[0], axis=0)
        copy[self.places] = a[self.places]
        return copy

    def targets(self, loss: Loss, net: MLP, y: ArrayLike) -> Array:
        """Targets of the cases that count as the core takes them, from those of all."""
        given = y if self.places is None else self.overwritten(as_real(y, "y"))
        return self.rows(loss.targets(given, self.num_given, net.sizes[-1], net.dtype))


def _with_weights(
    net: MLP, X: ArrayLike, sample_weight: ArrayLike | None, num_threads: int
) -> tuple[Counted, Array, NDArray[np.float64] | None]:
    """Inputs and weights of the cases that count."""
    if sample_weight is None:
        x = as_cases(X, net.sizes[0], net.dtype, num_threads)
        return Counted(x.shape[0], None), x, None
    given = as_real(X, "X")
    if given.ndim != 2 or given.shape[0] == 0:
        as_cases(given, net.sizes[0], net.dtype)  # says what is wrong
    weights = as_sample_weight(sample_weight, given.shape[0])
    counted = Counted(given.shape[0], weights)
    if counted.places is not None:
        given = counted.overwritten(given)
    x = as_cases(given, net.sizes[0], net.dtype, num_threads)
    return counted, counted.rows(x), counted.rows(weights)


def value(
    net: MLP, loss: LossName | Loss, X: ArrayLike, y: ArrayLike, **options: Unpack[BatchOptions]
) -> float:
    """Objective h of a net on a batch, by one forward pass (2 N P flops).

    Parameters, errors and scale are those of `value_and_grad`.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    >>> h, g = ng.value_and_grad(net, "squared_error", X, X[:, :2])
    >>> ng.value(net, "squared_error", X, X[:, :2]) == h
    True
    """
    return _with_targets(net, loss, X, y, options).value()


def value_and_grad(
    net: MLP, loss: LossName | Loss, X: ArrayLike, y: ArrayLike, **options: Unpack[BatchOptions]
) -> tuple[float, Array]:
    """Objective h of a net on a batch and its gradient.

    h = sum_i w_i L(y_i, net(x_i)) / sum_i w_i + (l2 / 2) |params|^2, each L summed over outputs.

    Parameters
    ----------
    net : MLP
    loss : str or Loss
        One of `losses`, or its name: "squared_error", "softmax_cross_entropy",
        "bernoulli_cross_entropy", "poisson", "student_t", "gaussian_mean_variance".
    X : (N, d_0) array_like
        Inputs, N >= 1, finite.
    y : (N, C) array_like
        Targets; (N,) labels for softmax_cross_entropy, (N,) for C = 1.
    sample_weight : (N,) array_like, optional
        w_i >= 0 with a positive sum; equal weights by default. A case of weight 0 is left out.
    l2 : float or (float, float)
        Weight decay of all parameters, biases too; or of weights and of biases.
    num_threads, chunk_size, total_weight : optional
        As in `Batch`. The result has the same bits for any number of threads and any chunks.

    Returns
    -------
    h : float
    g : (P,) array of the net's dtype

    Raises
    ------
    ValueError, TypeError
        For arguments of a wrong shape, type or range.

    Notes
    -----
    About 6 N P flops. Cases go through in chunks, so that memory does not grow with N.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> net = ng.MLP([2, 3, 1], init="zeros")
    >>> h, g = ng.value_and_grad(net, "squared_error", np.eye(2), [1.0, 3.0])
    >>> h, g[-1]
    (2.5, np.float32(-2.0))
    """
    return _with_targets(net, loss, X, y, options).value_and_grad()


def _with_targets(
    net: MLP, loss: LossName | Loss, X: ArrayLike, y: ArrayLike, options: BatchOptions
) -> Batch:
    if y is None:
        raise ValueError("y is missing: the objective depends on targets")
    return Batch(net, loss, X, y, **options)
