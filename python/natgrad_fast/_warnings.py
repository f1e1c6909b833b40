"""Warnings to whoever called the package."""

from __future__ import annotations

import sys
import warnings

__all__ = ["NatgradRuntimeWarning", "NatgradWarning", "warn"]


class NatgradWarning(UserWarning):
    """Category of the package's warnings.

    Examples
    --------
    >>> import warnings, natgrad_fast as ng
    >>> warnings.filterwarnings("error", category=ng.NatgradWarning)  # doctest: +SKIP
    """


class NatgradRuntimeWarning(NatgradWarning, RuntimeWarning):
    """Of what was found while the package was imported."""


def warn(message: str) -> None:
    """Give a NatgradWarning that names the line by which the package was entered."""
    level = 1
    package = __name__.partition(".")[0]
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == package:
        if sys._getframe(level).f_back is None:
            break
        level += 1
    warnings.warn(message, NatgradWarning, stacklevel=level + 1)
