"""Who takes part: this library, and every peer that is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from .cases import Case, Data
from .own import NAME, Own

# name: (module, class, package that must be there, whether the class is told the threads)
PEERS = {
    "numpy": ("numpy_peer", "Numpy", "numpy", False),
    "jax": ("jax_peer", "Jax", "jax", False),
    "jax, kept": ("jax_peer", "KeptJax", "jax", False),
    "torch.func": ("torch_peer", "Torch", "torch", True),
    "curvlinops": ("curvlinops_peer", "Curvlinops", "curvlinops", True),
}
ORDER = (NAME, *PEERS)


def installed() -> list[str]:
    """Peers that can be had here."""
    return [name for name, peer in PEERS.items() if importlib.util.find_spec(peer[2])]


def contestants(
    case: Case, data: Data, names: Sequence[str], num_threads: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """This library first, then the named peers; and why some of them cannot take part."""
    everyone: dict[str, Any] = {NAME: Own(case, data, num_threads)}
    absent = {}
    for name in names:
        module, class_name, _, told_threads = PEERS[name]
        make = getattr(importlib.import_module(f".{module}", __package__), class_name)
        try:
            everyone[name] = make(case, data, *([num_threads] if told_threads else []))
        except (ValueError, KeyError) as error:  # an activation or loss that it lacks
            absent[name] = str(error)
    return everyone, absent
