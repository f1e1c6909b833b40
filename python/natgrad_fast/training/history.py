"""Records of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..linear.results import SolveInfo, Status
from .controller import ControllerInfo
from .history_figure import draw

__all__ = ["NO_SOLVE", "EpochInfo", "History", "StepInfo"]

# Of a step without a solve.
NO_SOLVE = SolveInfo(Status.NON_FINITE, 0, math.nan, math.nan, 0, 0.0, 0.0)


@dataclass(frozen=True)
class StepInfo:
    """Record of one step; the keys never vary.

    Attributes
    ----------
    step : int
        Number of the step, from 0.
    loss, new_loss : float
        Objective of the batch before the step, and after it (tried, if it was rejected; NaN where a
        step is judged by the next batch).
    damping : float
        Damping that was used.
    gradient_norm, step_norm : float
        Euclidean; `step_norm` is 0 for a rejected step.
    seconds : float
    batch_size, curvature_size : int
        Cases of the batch, and of those that the matrix was made of.
    solver : str
        Which step solver it was.
    reduction_ratio : float
        Actual over predicted change of the objective; -inf if `new_loss` is not finite.
    learning_rate, momentum : float
        Factors of the solution and of the previous step; that of a line search is in them.
    backtracked : int
        How many of the iterates that a solver kept were left behind, counted from the last one: 0
        if the step was made from the last one.
    evaluations : int
        Of objectives at trial points, a forward pass each: those of backtracking, those of the
        steps that the damping policy tried, those of a line search.
    accepted : bool
    solve : SolveInfo
        Status, iterations and so on of the solver.
    at_rounding : bool
        Whether the step, or the decrease that the model promised, was below the rounding of the
        float type: nothing can be learned from its ratio, and the damping returns to its first
        value.
    effective_parameters : float
        Number of parameters that the data determine, of `BayesianRegularization`; NaN without.
    controller : ControllerInfo or None
        Of a step on a mini-batch with the defaults.
    """

    step: int
    loss: float
    damping: float
    gradient_norm: float
    seconds: float
    batch_size: int
    solver: str
    new_loss: float = math.nan
    reduction_ratio: float = math.nan
    step_norm: float = 0.0
    learning_rate: float = 0.0
    momentum: float = 0.0
    accepted: bool = False
    solve: SolveInfo = NO_SOLVE
    at_rounding: bool = False
    curvature_size: int = 0
    backtracked: int = 0
    evaluations: int = 0
    effective_parameters: float = math.nan
    controller: ControllerInfo | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name; those of `solve` as ``solve_status`` and so on.

        Likewise ``controller_mode`` where there was a controller.
        """
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        solve: SolveInfo = record.pop("solve")
        for name, value in dataclasses.asdict(solve).items():
            record[f"solve_{name}"] = str(value.value) if name == "status" else value
        controller: ControllerInfo | None = record.pop("controller")
        if controller is not None:
            record |= {f"controller_{k}": v for k, v in dataclasses.asdict(controller).items()}
        return record


@dataclass(frozen=True)
class EpochInfo:
    """Record of one epoch.

    Attributes
    ----------
    epoch : int
        Number of the epoch, from 0.
    loss : float
        Mean of the objectives of its batches, each before its step.
    validation_loss : float or None
        Objective of the validation data after the epoch; None without such data, and for an epoch
        that an error or Ctrl-C ended.
    seconds : float
    averaged_validation_loss : float or None
        That of the average of the parameters, with `averaging`.
    """

    epoch: int
    loss: float
    validation_loss: float | None
    seconds: float
    averaged_validation_loss: float | None = None


@dataclass
class History:
    """Records of a call of `NaturalGradient.fit`.

    Attributes
    ----------
    steps : list of StepInfo
    epochs : list of EpochInfo
        One for every epoch of which at least one step was done.
    stop_reason : str
        What ended the training.

        - "epochs": all were done.
        - "exhausted": an iterable of batches gave none that could be used, as an iterator does
          after its first epoch.
        - "time_limit", "callback", "interrupted": the limit, a callback, or Ctrl-C.
        - "objective_tol", "gradient_tol", "step_tol": converged, by that tolerance of `fit`.
        - "damping_limit": a step was rejected at the largest damping that the policy allows, as
          happens when the objective can not be lowered any further in this float type.
        - "non_finite": the parameters, or the objective on several batches in a row, were not
          finite; the parameters are those of the last good point.
    seconds : float
    skipped : int
        Batches that could not be used, with ``on_bad_batch="skip"``.
    averaged_params : (P,) array or None
        With `averaging`: the average of the parameters after each step, in the dtype of the net, as
        of the last end of an epoch, or of the training. ``net.params = history.averaged_params``
        uses it; the training itself goes on from the iterate.

    Examples
    --------
    >>> import numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> opt = ng.NaturalGradient(ng.MLP([1, 4, 1], seed=0), "squared_error")
    >>> history = opt.fit(X, X**2, epochs=5)
    >>> history.to_dict()["loss"].shape, history.stop_reason
    ((5,), 'epochs')
    """

    steps: list[StepInfo] = field(default_factory=list)
    epochs: list[EpochInfo] = field(default_factory=list)
    stop_reason: str = "epochs"
    seconds: float = 0.0
    skipped: int = 0
    averaged_params: Array | None = field(default=None, repr=False, compare=False)
    epoch_of_step: list[int] = field(default_factory=list, repr=False)
    skipped_before_step: list[int] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays with an element for every step, by name of the record's attribute.

        ``epoch``, ``elapsed`` (seconds of all steps up to and with this one) and ``skipped``
        (batches before this step that could not be used) come with them; and ``validation_loss``
        and ``averaged_validation_loss`` where they were measured, NaN but at ends of epochs.
        """
        records = [info.to_dict() for info in self.steps]
        names = list(dict.fromkeys(name for record in records for name in record))
        arrays: dict[str, NDArray[Any]] = {
            name: np.array([record.get(name, math.nan) for record in records]) for name in names
        }
        if records:
            arrays["epoch"] = np.array(self.epoch_of_step)
            arrays["elapsed"] = np.cumsum(arrays["seconds"])
            arrays["skipped"] = np.array(self.skipped_before_step)
            for name in ("validation_loss", "averaged_validation_loss"):
                losses = {info.epoch: getattr(info, name) for info in self.epochs}
                if any(loss is not None for loss in losses.values()):
                    arrays[name] = self._at_ends_of_epochs(losses)
        return arrays

    def _at_ends_of_epochs(self, values: Mapping[int, float | None]) -> NDArray[np.float64]:
        """An element for every step: the value of its epoch for the last one of it, else NaN."""
        last = {epoch: step for step, epoch in enumerate(self.epoch_of_step)}
        array = np.full(len(self.steps), math.nan)
        for epoch, value in values.items():
            array[last[epoch]] = math.nan if value is None else value
        return array

    def to_frame(self) -> Any:
        """A pandas data frame of `to_dict`; needs pandas."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_frame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.to_dict())

    def plot(self, against: str = "step") -> Any:
        """Draw loss, damping, reduction ratio, learning rate and iterations; needs matplotlib.

        Parameters
        ----------
        against : {"step", "seconds"}
            What the horizontal axis shows.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return draw(self.to_dict(), [epoch.validation_loss for epoch in self.epochs], against)
