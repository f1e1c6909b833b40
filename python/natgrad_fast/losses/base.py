"""What a loss is: a function of targets y and of the net's outputs z, the natural parameters.

Each is summed over the outputs of a case and averaged over cases; the link function belongs to
the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._arrays import as_floats, as_real

__all__ = ["Loss"]


class Loss:
    """Base of the losses; compare and print by name and parameters.

    Attributes
    ----------
    name : str
        Name that stands for the loss with its default parameters.
    fisher_is_ggn : bool
        Whether the Fisher matrix and the generalized Gauss-Newton matrix are the same: z are the
        natural parameters of an exponential family with fixed dispersion.
    ggn_needs_targets : bool
        Whether the Hessian of the loss in z, and so the GGN, depends on y.
    """

    name: str = ""
    fisher_is_ggn: bool = True
    ggn_needs_targets: bool = False

    def __repr__(self) -> str:
        """Class name and parameters, as it is called."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._parameters().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        """Losses of one class with equal parameters are equal."""
        return (
            isinstance(other, Loss)
            and type(self) is type(other)
            and self._parameters() == other._parameters()
        )

    def __hash__(self) -> int:
        """Hash of name and parameters."""
        return hash((self.name, *self._parameters().values()))

    def _parameters(self) -> dict[str, float]:
        return {}

    @property
    def core(self) -> Any:
        """The loss as functions of the core take it."""
        return _core.Loss(self.name)

    def num_targets(self, num_outputs: int) -> int:
        """Return the number of targets of a case for C = `num_outputs` outputs.

        Raises
        ------
        ValueError
            If the loss is not defined for that many outputs.
        """
        return num_outputs

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: np.dtype[Any]) -> Any:
        """Check targets and bring them to the form of the core.

        Parameters
        ----------
        y : (N, num_targets) array_like
            Targets; (N,) stands for (N, 1).
        num_cases, num_outputs : int
            N and C.
        dtype : numpy.dtype
            float32 or float64.

        Returns
        -------
        (N, num_targets) array of `dtype`

        Raises
        ------
        ValueError, TypeError
            For targets of a wrong shape, type or range.
        """
        a = as_real(y, "y")
        num_targets = self.num_targets(num_outputs)
        if a.ndim == 1 and num_targets == 1:
            a = a[:, None]
        if a.shape != (num_cases, num_targets):
            raise ValueError(f"y has shape {a.shape}, wanted ({num_cases}, {num_targets})")
        return as_floats(a, "y", dtype, 2)
