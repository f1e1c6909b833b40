"""What a loss is: a function of targets y and of the net's outputs z, the natural parameters.

Each is summed over the outputs of a case and averaged over cases; the link function belongs to
the loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._arrays import as_count, as_floats, as_num_threads, as_real, core_for
from .._typing import Array, DType

__all__ = ["Loss"]


class Loss:
    """Base of the losses; compare and print by name and parameters.

    Attributes
    ----------
    name : str
        Name that stands for the loss with its default parameters.
    """

    name: str = ""

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
    def core(self) -> _core.Loss:
        """The loss as functions of the core take it."""
        return _core.Loss(self.name, self._parameters())

    @property
    def ggn_needs_targets(self) -> bool:
        """Whether the Hessian of the loss in z, and so the GGN, depends on y."""
        return bool(self.core.hessian_needs_targets)

    @property
    def fisher_is_ggn(self) -> bool:
        """Whether the Fisher matrix and the generalized Gauss-Newton matrix are the same.

        So it is where z are the natural parameters of an exponential family with fixed dispersion.
        """
        return not self.ggn_needs_targets

    def num_targets(self, num_outputs: int) -> int:
        """Return the number of targets of a case for C = `num_outputs` outputs.

        Raises
        ------
        ValueError
            If the loss is not defined for that many outputs.
        """
        return int(self.core.num_targets(num_outputs))

    def mean(self, z: ArrayLike, *, num_threads: int | None = None) -> Array:
        """Mean of the predictive law: what the model expects y to be.

        Parameters
        ----------
        z : (N, C) array_like
            Outputs of a net; float32 stays float32, everything else becomes float64.
        num_threads : int, optional
            The result has the same bits for any number.

        Returns
        -------
        array
            In the shape that y usually has: (N,) for one target, (N, num_targets) for several. For
            softmax_cross_entropy the probabilities (N, C), of one class too.

        Raises
        ------
        ValueError, TypeError
            For outputs of a wrong shape or type.

        Examples
        --------
        >>> import natgrad_fast as ng
        >>> ng.losses.Poisson().mean([[0.0], [1.0]])
        array([1.        , 2.71828183])
        >>> ng.losses.SoftmaxCrossEntropy().mean([[0.0, 0.0]])
        array([[0.5, 0.5]])
        """
        return self.mean_of_outputs(_as_outputs(z), as_num_threads(num_threads))

    def mean_of_outputs(self, z: Array, num_threads: int) -> Array:
        """Return `mean` of outputs as a net gives them, unchecked."""
        mean = core_for(z.dtype).predictive_mean(self.core, z, num_threads=num_threads)
        return self._in_shape_of_targets(mean)

    def _in_shape_of_targets(self, mean: Array) -> Array:
        return mean[:, 0] if mean.shape[1] == 1 else mean

    def draw_gradients(
        self, z: ArrayLike, *, samples: int = 1, seed: int = 0, num_threads: int | None = None
    ) -> Array:
        """Gradients dL/dz at targets that are drawn from the predictive law.

        They are those of which `Fisher(samples=samples, seed=seed)` is made: the mean of their
        squares g g' over samples is the Monte-Carlo Fisher matrix in the space of outputs.

        Parameters
        ----------
        z : (N, C) array_like
            Outputs of a net; float32 stays float32, everything else becomes float64.
        samples : int
            S draws for every case.
        seed : int
            With the place of the case and of the sample it fixes the draw.
        num_threads : int, optional
            The result has the same bits for any number.

        Returns
        -------
        (N, S, C) array

        Raises
        ------
        ValueError, TypeError
            For arguments of a wrong shape, type or range.
        """
        outputs = _as_outputs(z)
        self.num_targets(outputs.shape[1])  # refuses widths that the loss is not made for
        g: Array = core_for(outputs.dtype).draw_gradients(
            self.core,
            outputs,
            num_samples=as_count(samples, "samples", 1),
            seed=as_count(seed, "seed", 0),
            num_threads=as_num_threads(num_threads),
        )
        return g

    def targets(self, y: ArrayLike, num_cases: int, num_outputs: int, dtype: DType) -> Array:
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
        checked: Array = as_floats(a, "y", dtype, 2)
        return checked


def _as_outputs(z: ArrayLike) -> Array:
    a = as_real(z, "z")
    dtype: DType = np.dtype(np.float32 if a.dtype == np.float32 else np.float64)
    outputs = as_floats(a, "z", dtype, 2)
    if outputs.shape[1] == 0:
        raise ValueError("z has no columns, wanted at least one output")
    return outputs
