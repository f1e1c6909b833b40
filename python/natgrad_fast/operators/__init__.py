"""Matrices as operators, multiplied, and formed only on request."""

from .base import Operator
from .composition import Product, WeightedSum
from .costs import estimate_memory
from .curvature import GGN, EmpiricalFisher, Fisher
from .dense import DenseMatrix
from .hessian import Hessian
from .jacobian import Jacobian
from .sample_space import SampleSpace

__all__ = [
    "GGN",
    "DenseMatrix",
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
