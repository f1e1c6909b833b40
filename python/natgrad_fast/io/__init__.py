"""Files, and nets of other libraries."""

from .checkpoint import load, save
from .periodic import Checkpoint

__all__ = ["Checkpoint", "load", "save"]
