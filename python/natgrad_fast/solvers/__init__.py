"""How an optimizer solves (B + damping I) d = -g: strategies, chosen by the user."""

from .cg import CG

__all__ = ["CG"]
