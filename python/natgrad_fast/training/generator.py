"""The random state of an optimizer, in a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._state import StateReader

__all__ = ["as_generator"]


def as_generator(reader: StateReader, key: str = "rng") -> np.random.Generator:
    """A generator with the state of `numpy.random.default_rng`'s, PCG64."""
    names = ("bit_generator", "state", "has_uint32", "uinteger")
    outer = StateReader(reader[key], reader.path(key), names)
    outer.same("bit_generator", "PCG64")
    inner = StateReader(outer["state"], outer.path("state"), ("state", "inc"))
    state: Mapping[str, Any] = {
        "bit_generator": "PCG64",
        "state": {name: inner.integer(name, 0, 2**128 - 1) for name in ("state", "inc")},
        "has_uint32": outer.integer("has_uint32", 0, 1),
        "uinteger": outer.integer("uinteger", 0, 2**32 - 1),
    }
    generator = np.random.default_rng(0)
    generator.bit_generator.state = state
    return generator
