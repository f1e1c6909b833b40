"""What this build and this process run with."""

from __future__ import annotations

import functools
import operator
import os
import platform
import re
import warnings
from typing import Any

import numpy as np

from . import _core, _isa
from ._warnings import NatgradRuntimeWarning

__all__ = ["default_num_threads", "fma_peak", "release_memory", "show_config"]

MAX_THREADS = 4096

# libgomp's threads do not survive a fork; a child computes on one thread, with the same bits.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core.after_fork)


# Of a worker thread; decompositions keep a few blocks there.
LEAST_STACK = 32 << 10
STACK_VARIABLES = ("OMP_STACKSIZE", "GOMP_STACKSIZE")


def stack_bytes(text: str) -> int | None:
    """Bytes that the value of OMP_STACKSIZE stands for, in KiB by default; None if it is none."""
    match = re.fullmatch(r"\s*(\d{1,18})\s*([bkmg]?)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    return int(match[1]) << {"b": 0, "": 10, "k": 10, "m": 20, "g": 30}[match[2].lower()]


for _name in STACK_VARIABLES:
    _size = stack_bytes(os.environ.get(_name, ""))
    if _size is not None and _size < LEAST_STACK:
        warnings.warn(
            f"{_name}={os.environ[_name]} is too little for worker threads, which need 32 KiB: "
            "natgrad_fast computes on the calling thread alone",
            NatgradRuntimeWarning,
            stacklevel=2,
        )
        _core.disable_threads()


def default_num_threads() -> int:
    """Threads used when ``num_threads`` is None.

    The smaller of OpenMP's own limit (``OMP_NUM_THREADS`` and threadpoolctl count) and the CPUs
    that this process may use.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.default_num_threads() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return max(1, min(_core.max_threads(), cpus))


def show_config() -> dict[str, Any]:
    """Versions, build flags and run-time settings, for reports.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``cxx_flags``, ``build_type``, ``isa``, ``eigen_version``,
        ``eigen_origin``, ``pybind11_version``, ``openmp`` of the loaded core; ``isa_built`` and
        ``isa_supported``, tuples of the instruction sets that this installation holds and of the
        x86-64 levels that this processor has, best first; ``python``, ``numpy``, ``platform``,
        ``default_num_threads`` of the process.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> sorted(ng.show_config())[:3]
    ['build_type', 'compiler', 'cxx_flags']
    """
    return {
        **_core.build_info(),
        "isa_built": tuple(_isa.built()),
        "isa_supported": _isa.supported(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "default_num_threads": default_num_threads(),
    }


@functools.cache
def physical_memory() -> int | None:
    """Bytes of memory that this machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def release_memory() -> int:
    """Give memory that the package keeps for reuse back to the system.

    Large arrays and buffers that are gone are kept, up to a sixteenth of the memory of the machine
    and 1 GiB at most: the next of their size needs no new pages. An allocation of the core that
    fails does this by itself and is tried again; call it before other libraries need the memory,
    or where the address space is limited.

    Returns
    -------
    int
        Bytes given back.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> ng.release_memory() >= 0
    True
    >>> ng.release_memory()
    0
    """
    return _core.release_memory()


def fma_peak(num_threads: int, seconds: float = 0.004) -> float:
    """Measure the float32 multiply-add peak of now: the roof of every product of this process.

    A loop of independent multiply-adds on registers, compiled for the instruction set in use; each
    thread runs it once. The peak of float64 is half of it.

    Parameters
    ----------
    num_threads : int
        Threads that compute at the same time.
    seconds : float
        How long the loop runs.

    Returns
    -------
    float
        In 1e9 flop/s; a multiply-add counts as two.

    Raises
    ------
    ValueError
        For a number of threads outside [1, 4096], or seconds outside (0, 3600].

    Examples
    --------
    >>> from natgrad_fast.config import fma_peak
    >>> fma_peak(1) > 0
    True
    """
    if not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"num_threads must be in [1, {MAX_THREADS}], got {num_threads}")
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds must be in (0, 3600], got {seconds}")
    return float(_core.fma_peak(operator.index(num_threads), float(seconds)))
