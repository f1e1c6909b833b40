"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._arrays import as_count, as_name, as_number
from ..linear.cg import cg
from ..linear.results import CGResult

__all__ = ["CG"]


@dataclass(frozen=True)
class CG:
    """Hessian-free: conjugate gradients on products with the curvature matrix.

    Parameters
    ----------
    max_iter : int
        Most iterations per step.
    rtol : float
        Residual tolerance relative to the gradient, for stopping="residual".
    stopping : {"relative_progress", "residual"}
        See `natgrad_fast.cg`.
    preconditioner : operator or (P,) array, optional
        Fixed approximation of the inverse of the damped curvature matrix.
    warm_start : float
        Factor in [0, 1] on the last solution, with which the next solve starts; 0 starts from zero.
    """

    max_iter: int = 100
    rtol: float = 1e-3
    stopping: str = "relative_progress"
    preconditioner: Any = None
    warm_start: float = 0.95

    def __post_init__(self) -> None:
        """Check the options where they are given."""
        as_count(self.max_iter, "max_iter", 1)
        as_number(self.rtol, "rtol", minimum=0.0)
        as_name(self.stopping, "stopping", ("residual", "relative_progress"))
        if as_number(self.warm_start, "warm_start", minimum=0.0) > 1.0:
            raise ValueError(f"warm_start must be <= 1, got {self.warm_start}")

    def solve(self, matrix: Any, b: Any, damping: float, last: Any) -> CGResult:
        """Solve (matrix + damping I) x = b, started from `warm_start` times `last`."""
        x0 = None if last is None or self.warm_start == 0.0 else self.warm_start * last
        result: CGResult = cg(
            matrix,
            b,
            damping=damping,
            preconditioner=self.preconditioner,
            rtol=self.rtol,
            max_iter=self.max_iter,
            x0=x0,
            stopping=self.stopping,
        )
        return result
