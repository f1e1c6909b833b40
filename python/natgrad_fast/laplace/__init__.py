"""Uncertainty of a trained net: Gaussian posteriors of its parameters."""

from .evidence import OptimizedPrior
from .posterior import Laplace

__all__ = ["Laplace", "OptimizedPrior"]
