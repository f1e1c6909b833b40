"""Matrices as operators, multiplied but never formed."""

from .base import Operator
from .costs import estimate_memory
from .curvature import GGN, EmpiricalFisher, Fisher
from .hessian import Hessian
from .jacobian import Jacobian

__all__ = ["GGN", "EmpiricalFisher", "Fisher", "Hessian", "Jacobian", "Operator", "estimate_memory"]
