"""Matrices as operators, multiplied but never formed."""

from .base import Operator
from .composition import Product, WeightedSum
from .costs import estimate_memory
from .curvature import GGN, EmpiricalFisher, Fisher
from .hessian import Hessian
from .jacobian import Jacobian
from .sample_space import SampleSpace

__all__ = [
    "GGN",
    "EmpiricalFisher",
    "Fisher",
    "Hessian",
    "Jacobian",
    "Operator",
    "Product",
    "SampleSpace",
    "WeightedSum",
    "estimate_memory",
]
