"""Names of the types that signatures share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # f64 has the same classes; those of f32 stand for both, as the functions of a core go together.
    from ._core.f32 import Curvature as CoreCurvature
    from ._core.f32 import DenseMatrix as CoreDenseMatrix
    from ._core.f32 import Hessian as CoreHessian
    from ._core.f32 import KroneckerFactors as CoreKronecker
    from ._core.f32 import Linearization
    from ._core.f32 import LinearOperator as CoreOperator
    from ._core.f32 import Nystrom as CoreNystrom
    from ._core.f32 import Objective as CoreObjective
    from ._core.f32 import SampleSpace as CoreSampleSpace
else:  # the core's classes have no place in annotations that are looked at while running
    Linearization = CoreOperator = CoreObjective = CoreCurvature = CoreHessian = object
    CoreKronecker = CoreNystrom = CoreSampleSpace = CoreDenseMatrix = object

__all__ = [
    "ActivationName",
    "Array",
    "Callback",
    "CoreCurvature",
    "CoreDenseMatrix",
    "CoreHessian",
    "CoreKronecker",
    "CoreNystrom",
    "CoreObjective",
    "CoreOperator",
    "CoreSampleSpace",
    "DType",
    "Layout",
    "Linearization",
    "Multiply",
    "NumberArray",
    "Progress",
    "RealArray",
    "State",
]

Array: TypeAlias = NDArray[np.floating]  # float32 or float64, that of a net or an operator
RealArray: TypeAlias = NDArray[np.floating | np.integer | np.bool_]  # as it came
NumberArray: TypeAlias = NDArray[np.number | np.bool_]  # as it came, complex numbers too
Layout: TypeAlias = tuple[tuple[int, ...], tuple[bool, ...]]  # widths, and which layers have biases
DType: TypeAlias = np.dtype[np.floating]
Multiply: TypeAlias = Callable[[Array], Array]  # rows (K, n) times a matrix, as rows (K, m)
# (iteration, residual_norm, quadratic), numbers or arrays; true stops
Callback: TypeAlias = Callable[[int, Any, Any], object]
Progress: TypeAlias = Callable[[float, float], object]  # (done, total) in flops; true stops
State: TypeAlias = dict[str, object]  # plain values, named arrays, and states of parts
ActivationName: TypeAlias = Literal[
    "identity",
    "tanh",
    "logistic",
    "relu",
    "leaky_relu",
    "elu",
    "softplus",
    "gelu",
    "silu",
    "sin",
]
