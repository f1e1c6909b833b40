"""Which instruction set a process computes with.

A build holds one extension module for each x86-64 level, ``_core_v2``, ``_core_v3``, ...; builds
for one processor and other architectures hold a single one. All are compiled from the same sources
and become ``natgrad_fast._core``, so a process has exactly one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from types import ModuleType

from . import _cpu
from ._warnings import NatgradRuntimeWarning

__all__ = ["VARIABLE", "built", "load", "supported"]

VARIABLE = "NATGRAD_FAST_ISA"
PREFIX = "x86-64-"
# Best first. `native` and `baseline` are what a build for one processor and a build for an
# architecture without levels are called.
KNOWN = ("native", f"{PREFIX}v4", f"{PREFIX}v3", f"{PREFIX}v2", "baseline")


def built() -> dict[str, str]:
    """The file of each instruction set that this installation has, best first."""
    files = {}
    for isa in KNOWN:
        spec = importlib.util.find_spec(f"{__package__}._core_{isa.removeprefix(PREFIX)}")
        if spec is not None and spec.origin is not None:
            files[isa] = spec.origin
    return files


def supported() -> tuple[str, ...]:
    """The x86-64 levels of this processor, best first; empty on other architectures."""
    return tuple(_cpu.levels())[::-1]


def load(name: str) -> ModuleType:
    """Load the core for the best instruction set, or for the one that the environment names.

    Parameters
    ----------
    name : str
        The full name that the module gets.

    Returns
    -------
    module
        If the file for the best instruction set cannot be loaded, that of the next lower one, with
        a warning. What `NATGRAD_FAST_ISA` asks for is loaded or refused with an ImportError.
    """
    files = built()
    wanted = os.environ.get(VARIABLE, "")
    candidates = [requested(wanted, files)] if wanted else usable(files)
    errors = []
    for isa in candidates:
        try:
            module = load_file(name, files[isa])
        except ImportError as error:
            errors.append(f"{isa}: {error}")
            continue
        if errors:
            message = f"natgrad_fast runs with {isa}, since better modules failed: "
            warnings.warn(message + "; ".join(errors), NatgradRuntimeWarning, stacklevel=2)
        return module
    raise ImportError("the compiled core of natgrad_fast could not be loaded: " + "; ".join(errors))


def requested(wanted: str, files: dict[str, str]) -> str:
    """The instruction set that the environment names, if it can be had."""
    isa = wanted if wanted in KNOWN else PREFIX + wanted
    if isa not in KNOWN:
        names = ", ".join(known.removeprefix(PREFIX) for known in KNOWN)
        raise ImportError(f"{VARIABLE}: got {wanted!r}, wanted one of {names}")
    if isa not in files:
        raise ImportError(f"{VARIABLE}: got {wanted!r}, this build has {listed(files)}")
    if not runs(isa):
        raise ImportError(f"{VARIABLE}: got {wanted!r}, this processor has {listed(supported())}")
    return isa


def usable(files: dict[str, str]) -> list[str]:
    """Instruction sets that are built and run here, best first; at least one."""
    if not files:
        raise ImportError(
            "natgrad_fast has no compiled core for this Python: install it anew, "
            "and do not import it from its source tree"
        )
    found = [isa for isa in files if runs(isa)]
    if not found:
        raise ImportError(
            f"natgrad_fast is built for {listed(files)}, this processor has "
            f"{listed(supported())}: build it from source with "
            "-C cmake.define.NATGRAD_ISA_LEVELS=baseline"
        )
    return found


def runs(isa: str) -> bool:
    """Whether this processor has a level; who builds for one processor knows where it will run."""
    return not isa.startswith(PREFIX) or isa in supported()


def listed(names: dict[str, str] | tuple[str, ...]) -> str:
    """Names for a message."""
    return ", ".join(names) or "none"


def load_file(name: str, path: str) -> ModuleType:
    """Load an extension module from a file under a name of our choice."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
