"""The command ``natgrad-fast``."""

from .main import main

__all__ = ["main"]
