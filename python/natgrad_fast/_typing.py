"""Names of the types that signatures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # f64 has the same classes; those of f32 stand for both, as the functions of a core go together.
    from ._core.f32 import Curvature as CoreCurvature
    from ._core.f32 import Hessian as CoreHessian
    from ._core.f32 import Linearization
    from ._core.f32 import LinearOperator as CoreOperator
    from ._core.f32 import Objective as CoreObjective
else:  # the core's classes have no place in annotations that are looked at while running
    Linearization = CoreOperator = CoreObjective = CoreCurvature = CoreHessian = object

__all__ = [
    "ActivationName",
    "Array",
    "CoreCurvature",
    "CoreHessian",
    "CoreObjective",
    "CoreOperator",
    "DType",
    "Linearization",
    "LossName",
    "State",
]

Array: TypeAlias = NDArray[np.floating]  # float32 or float64, that of a net or an operator
DType: TypeAlias = np.dtype[np.floating]
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
LossName: TypeAlias = Literal[
    "squared_error",
    "softmax_cross_entropy",
    "bernoulli_cross_entropy",
    "poisson",
    "student_t",
    "gaussian_mean_variance",
]
