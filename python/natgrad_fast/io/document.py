"""States as a JSON document and named arrays, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._typing import Array
from .tensors import _parse

__all__ = ["join", "split"]

# Marks an object that stands for something that JSON does not have.
ARRAY, FLOAT = "$array", "$float"


def split(state: Mapping[str, Any]) -> tuple[str, dict[str, Array]]:
    """The document of a state, and its arrays by their place in it.

    Floats are written so that they are read with the same bits.
    """
    arrays: dict[str, Array] = {}
    return json.dumps(_plain(state, "", arrays), allow_nan=False), arrays


def _plain(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {FLOAT: repr(value)}
    if isinstance(value, np.ndarray):
        if value.dtype not in (np.float32, np.float64):
            raise TypeError(f"{place} is an array of {value.dtype}, which files do not hold")
        arrays[place] = value
        return {ARRAY: place}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and not key.startswith("$") for key in value):
            raise TypeError(f"{place} has a key that is no name")
        return {key: _plain(item, f"{place}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}/{i}", arrays) for i, item in enumerate(value)]
    raise TypeError(f"{place} is {value!r}, which files do not hold")


def join(document: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The state of a document and its arrays, each of which stands in it once.

    Raises
    ------
    ValueError
        If it is no such document.
    """
    left = dict(arrays)
    try:
        state = _whole(_parse(document), left)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if left:
        raise ValueError(f"its document does not name the array {min(left)!r}")
    if not isinstance(state, dict):
        raise ValueError("its document is no object")
    return state


def _whole(value: Any, left: dict[str, Array]) -> Any:
    if isinstance(value, list):
        return [_whole(item, left) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {ARRAY}:
        if not isinstance(value[ARRAY], str) or value[ARRAY] not in left:
            raise ValueError(f"its document names an array {value[ARRAY]!r} that is not there")
        return left.pop(value[ARRAY])
    if set(value) == {FLOAT}:
        if value[FLOAT] not in ("inf", "-inf", "nan"):
            raise ValueError(f"its document has a number {value[FLOAT]!r}")
        return float(value[FLOAT])
    return {key: _whole(item, left) for key, item in value.items()}
