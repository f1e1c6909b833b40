"""The kernel of a curvature matrix in the space of samples, as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import as_vector, core_for, memory_for
from .._typing import Array, CoreSampleSpace
from .base import Operator
from .curvature import GaussNewtonMatrix

__all__ = ["SampleSpace", "kernel_flops", "kernel_product_flops"]


class SampleSpace(Operator):
    """The kernel K = U'U (n, n) of a curvature matrix B = U U', from which B's solves follow.

    U = [sqrt(w_i) J_i' Q_i] (P, n) with M_i = Q_i Q_i' the output matrices and w_i normalised. J is
    never formed: K is a sum over layers of elementwise products of Gram matrices, of activations
    and of backpropagated deltas.

    Parameters
    ----------
    matrix : Fisher, GGN or EmpiricalFisher
        Positive semi-definite by construction. Its damping and l2 are no part of K.

    Attributes
    ----------
    shape : (n, n)
        n = N (C - 1) for softmax, N C for the other exact matrices, N samples for a Monte-Carlo
        Fisher, N for the empirical Fisher.
    dtype
    core : operator of the core
        K itself, so that `cg`, `multishift_cg` and `Nystrom` take this object.
    flops_per_product : float
        4 N P without the first layer, and 2 N^2 per unit.

    Raises
    ------
    TypeError, ValueError
        If `matrix` is none of these, or possibly indefinite.

    Notes
    -----
    A product takes no vector of length P; the first one computes the layer Grams that all of them
    need. `kernel`, `to_dense`, `diagonal` and `trace` form K, n^2 numbers in float64, which are
    kept.

    Examples
    --------
    >>> import numpy as np
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([3, 4, 2], dtype="float64")
    >>> K = ng.SampleSpace(ng.Fisher(net, "squared_error", np.ones((5, 3))))
    >>> K
    <10x10 SampleSpace of <26x26 Fisher, float64>>
    >>> w = np.arange(10.0)
    >>> U_w = K.multiply_factor(w)
    >>> bool(np.isclose(K.quadratic_form(w), U_w @ U_w))
    True
    """

    core: CoreSampleSpace
    solve: ClassVar[Callable[..., Any]]  # of linear/sample_space.py, which knows more

    def __init__(self, matrix: GaussNewtonMatrix) -> None:
        if not isinstance(matrix, GaussNewtonMatrix):
            raise TypeError(f"matrix must be a Fisher, GGN or EmpiricalFisher, got {matrix!r}")
        if not matrix.positive_semidefinite:
            raise ValueError(
                f"the GGN of {matrix.loss.name} may be indefinite and has no sample space: use cg"
            )
        self._matrix, self._bias_scale = matrix, 1.0
        self._others: dict[float, SampleSpace] = {}
        self.core = core_for(matrix.dtype).SampleSpace(matrix.core)
        self.shape = (int(self.core.size),) * 2
        self.dtype = matrix.dtype
        self.num_threads = matrix.num_threads
        self.flops_per_product = kernel_product_flops(matrix.sizes, matrix.num_cases)

    def __repr__(self) -> str:
        """Size and matrix."""
        return f"<{self.shape[0]}x{self.shape[1]} SampleSpace of {self._matrix!r}>"

    def with_bias_scale(self, scale: float) -> SampleSpace:
        """The space with the kernel U'D U, D = diag(1 for weights, `scale` for biases).

        It serves solves whose shift on biases is that on weights over `scale`; the last is kept.
        """
        if scale == self._bias_scale:
            return self
        other = self._others.get(scale)
        if other is None:
            other = SampleSpace.__new__(SampleSpace)
            vars(other).update(vars(self), _bias_scale=scale, _others={})
            other.core = core_for(self.dtype).SampleSpace(self._matrix.core, bias_scale=scale)
            self._others = {scale: other}
        return other

    @property
    def T(self) -> Operator:
        """The kernel itself: it is symmetric."""
        return self

    @property
    def positive_semidefinite(self) -> bool:
        """True: K = U'U."""
        return True

    def _apply(self, rows: Array) -> Array:
        return self.core.apply(rows)

    def _apply_transpose(self, rows: Array) -> Array:
        return self.core.apply(rows)

    def prepare(self) -> None:
        """Compute the layer Grams that products with K need; the first product does otherwise."""
        with memory_for("the layer Grams of ", self):
            self.core.prepare_products()

    def kernel(self) -> NDArray[np.float64]:
        """K (n, n) in float64, rows in the order (case, column)."""
        with memory_for(f"the kernel {self.shape} in float64: products with it take less"):
            kernel: NDArray[np.float64] = self.core.kernel()
        return kernel

    def to_dense(self) -> Array:
        """K (n, n) in the dtype of the operator; see `kernel`."""
        return self.kernel().astype(self.dtype)

    def diagonal(self) -> Array:
        """Diagonal (n,) of K."""
        return self.kernel().diagonal().astype(self.dtype)

    def trace(self) -> float:
        """Trace of K, which is that of U U'."""
        return float(self.kernel().trace())

    def multiply_factor(self, w: ArrayLike) -> Array:
        """Return U w (P,) for w (n,)."""
        w = as_vector(w, "w", self.shape[0], self.dtype)
        return self.core.multiply_factor(w, num_params=self._matrix.shape[0])

    def multiply_factor_transposed(self, v: ArrayLike) -> Array:
        """Return U'v (n,) for v (P,)."""
        return self.core.multiply_factor_transposed(
            as_vector(v, "v", self._matrix.shape[0], self.dtype)
        )


def kernel_product_flops(sizes: Sequence[int], num_cases: int) -> float:
    """Flops of K w: W'u and W Ra without the first layer, U (A'A + 1) in every layer."""
    later = sum(float(i) * o for i, o in pairwise(sizes[1:]))
    return 4.0 * num_cases * later + 2.0 * num_cases**2 * sum(sizes[1:])


def kernel_flops(sizes: Sequence[int], num_cases: int, n: int) -> float:
    """Flops that form K: n columns through W' without the first layer, the triangles of Grams."""
    later = sum(float(i) * o for i, o in pairwise(sizes[1:]))
    return (
        2.0 * n * later + float(n) ** 2 * sum(sizes[1:]) + float(num_cases) ** 2 * sum(sizes[:-1])
    )
