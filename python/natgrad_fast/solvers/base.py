"""The protocol of step solvers: what an optimizer asks of whoever solves its systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .._state import StateReader
from .._typing import Array, Linearization, State
from ..linear.results import SolveInfo
from ..losses import Loss
from ..model.batch import Batch
from ..model.mlp import MLP
from ..operators.base import Operator

__all__ = ["Direction", "StepSolver"]


class Direction(NamedTuple):
    """Solution `x` (P,) of (B + damping I) x = g, and the record of the solve.

    `earlier` are iterates (P,) that were kept on the way to x, from the first to the last: an
    optimizer steps by one of them where the objective says that x goes too far. The next solve
    starts from x all the same.
    """

    x: Array
    info: SolveInfo
    earlier: tuple[Array, ...] = ()


class StepSolver:
    """Base of the ways to solve (B + damping I) x = g for a step; x = D is subtracted.

    An optimizer calls, once, `init`, and then for every step in this order: `update` (measures
    statistics on the batch), `refresh` (factorises for a damping), `direction` (solves), `accepted`
    (says what became of it). Each has a cost of its own, and each may do nothing, as here. A
    subclass has to define `direction`.

    An optimizer works with a copy (`copy.copy`) of the solver that it is given, so one set of
    options can serve several optimizers.

    Attributes
    ----------
    keeps_iterates : bool
        Whether `direction` gives earlier iterates.
    """

    @property
    def keeps_iterates(self) -> bool:
        """Whether `direction` gives earlier iterates: no."""
        return False

    def init(self, net: MLP, loss: Loss, *, seed: int = 0, num_threads: int | None = None) -> None:
        """Get ready for a net and a loss; nothing is measured.

        Parameters
        ----------
        net : MLP
        loss : Loss
        seed : int
            Of whatever is drawn.
        num_threads : int, optional
        """

    def update(self, batch: Batch, linearization: Linearization) -> None:
        """Measure statistics on a batch.

        Parameters
        ----------
        batch : Batch
            Whose matrix `direction` gets; l2 is in it.
        linearization
            Of the net over the batch.
        """

    def refresh(self, damping: float) -> None:
        """Factorise, for a damping of the model that goes with the last `update`."""

    def direction(
        self, matrix: Operator, g: Array, damping: float, start: Array | None
    ) -> Direction:
        """Solve (matrix + damping I) x = g.

        Parameters
        ----------
        matrix : Operator
            B on the batch of `update`, l2 included, damping not.
        g : (P,) array
            Gradient of the objective, perhaps on more cases.
        damping : float
        start : (P,) array or None
            The last solution, if the step that it made was accepted.

        Returns
        -------
        Direction
        """
        raise NotImplementedError

    def accepted(self, accepted: bool) -> None:
        """Learn whether the step made from the last direction was kept."""

    def state_dict(self) -> State:
        """Everything that changes from step to step: plain values and named arrays, copies."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned, after `init`; all of it or nothing.

        Raises
        ------
        ValueError
            If anything in it does not fit.
        """
        StateReader(state, "state", ())
