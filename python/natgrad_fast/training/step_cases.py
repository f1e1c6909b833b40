"""The cases of a step: whose objective, whose curvature, whose objective chooses an iterate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import as_number
from ..losses import Loss
from ..model.batch import Batch, BatchOptions
from ..solvers import StepSolver
from .trainee import Trainee

__all__ = [
    "as_batch",
    "as_curvature_batch",
    "as_share",
    "check_backtracking",
    "share_of",
]


def as_batch(
    optimizer: Trainee, X: ArrayLike | Batch, y: ArrayLike | None, sample_weight: ArrayLike | None
) -> Batch:
    """The batch of a step, with targets; see `NaturalGradient.step`."""
    if isinstance(X, Batch):
        if y is not None or sample_weight is not None:
            raise TypeError("a Batch comes with its targets and weights: leave y and weights out")
        check_belongs(optimizer, X, "batch")
        return X
    if y is None:
        raise ValueError("y is missing: the objective depends on targets")
    return Batch(
        optimizer.net,
        optimizer.loss,
        X,
        y,
        sample_weight=sample_weight,
        l2=optimizer.l2,
        num_threads=optimizer.num_threads,
    )


def as_curvature_batch(
    optimizer: Trainee, batch: Batch, curvature: str, X: ArrayLike | Batch, y: ArrayLike | None
) -> Batch:
    """The batch of the curvature of a step on `batch`; see `NaturalGradient.step`."""
    if isinstance(X, Batch):
        if y is not None:
            raise TypeError("X_curvature is a Batch with its targets: leave y_curvature out")
        check_belongs(optimizer, X, "X_curvature")
        other = X
    else:
        options: BatchOptions = {"l2": optimizer.l2, "num_threads": optimizer.num_threads}
        try:
            other = Batch(optimizer.net, optimizer.loss, X, y, **options)
        except (ValueError, TypeError) as error:
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(f"X_curvature or y_curvature: {error}") from None
    if other.targets is None and _needs_targets(curvature, optimizer.loss):
        raise ValueError(
            f"y_curvature is missing: the matrix {curvature!r} of {optimizer.loss.name} depends "
            f"on targets"
        )
    check_scale(batch, other, "X_curvature")
    return other


def check_backtracking(optimizer: Trainee, batch: object, solver: StepSolver) -> None:
    """Raise unless backtracking can be on a batch; see `NaturalGradient.step`."""
    if not isinstance(batch, Batch):
        raise TypeError(f"backtrack_on must be a Batch, got {type(batch).__name__}")
    if batch.targets is None:
        raise ValueError("backtrack_on has no targets: its objective depends on them")
    check_belongs(optimizer, batch, "backtrack_on")
    if not solver.keeps_iterates:
        raise ValueError(
            "backtrack_on needs a solver that keeps iterates, such as solvers.CG(backtracking=True)"
        )


def check_belongs(optimizer: Trainee, batch: Batch, name: str) -> None:
    """Raise ValueError unless a batch has the optimizer's net, the very object, loss and l2."""
    fits = batch.net is optimizer.net and batch.loss == optimizer.loss
    if not fits or (batch.l2 != optimizer.l2 and optimizer._evidence is None):
        raise ValueError(
            f"{name} is of {batch.net!r}, {batch.loss!r} and l2 = {batch.l2}, the optimizer of "
            f"{optimizer.net!r}, {optimizer.loss!r} and l2 = {optimizer.l2}"
        )


def check_scale(batch: Batch, other: Batch, name: str) -> None:
    """Raise ValueError unless both have the same share in a larger batch, as `total_weight` says.

    The gradient and the matrix are those of one objective then.
    """
    share, wanted = (one.weight / one.total_weight for one in (other, batch))
    if abs(share - wanted) > 1e-9 * wanted:  # sums in another order differ
        raise ValueError(
            f"{name} has weight / total_weight = {share:g}, the batch of the step {wanted:g}: "
            f"give it as a Batch with total_weight"
        )


def _needs_targets(curvature: str, loss: Loss) -> bool:
    if curvature == "ggn":
        return loss.ggn_needs_targets
    return curvature in ("empirical_fisher", "hessian")


def as_share(x: object) -> float:
    """A `curvature_share` in (0, 1]."""
    share = as_number(x, "curvature_share", above=0.0)
    if share > 1.0:
        raise ValueError(f"curvature_share must be <= 1, got {share}")
    return share


def share_of(batch: Batch, share: float, seed: int, step: int) -> Batch:
    """The batch of `share` of the cases, at least one, whose turn it is.

    In an order drawn from `seed` for this number of cases, step k takes the next count cases after
    those of step k - 1, around the end, so that all cases get their turn equally often and nothing
    has to be remembered but k (Martens 2010 cycles through fixed parts in the same way).
    """
    num_cases = batch.num_cases
    count = max(1, round(share * num_cases))
    if count >= num_cases:
        return batch
    order = np.random.default_rng(seed).permutation(num_cases)
    cases = order[(step * count + np.arange(count)) % num_cases]
    assert batch.targets is not None
    return batch.take(cases, batch.targets[cases])
