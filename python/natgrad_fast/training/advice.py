"""Warnings to whoever called the package."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]


def warn(message: str) -> None:
    """Give a UserWarning that names the line by which the package was entered."""
    level = 1
    package = __name__.partition(".")[0]
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == package:
        if sys._getframe(level).f_back is None:
            break
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)
