"""Reading states: every leaf is checked before anything is changed, and named if it is refused."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ._typing import Array, DType

__all__ = ["StateReader", "inside"]


class StateReader:
    """A mapping of plain values and named arrays, with exactly the keys that are wanted.

    Parameters
    ----------
    state : Mapping
    path : str
        Name of the state in messages, such as "state" or "state['solver']".
    keys : collection of str
        The keys that it must have, all of them and no others.

    Raises
    ------
    ValueError
        From the constructor and from every method, if a leaf is not what is wanted.
    """

    def __init__(self, state: object, path: str, keys: Collection[str]) -> None:
        if not isinstance(state, Mapping):
            raise ValueError(f"{path} is {_shown(state)}, wanted a mapping")
        missing = sorted(set(keys) - set(state))
        unknown = sorted(map(repr, set(state) - set(keys)))
        if missing:
            raise ValueError(f"{path}[{missing[0]!r}] is missing")
        if unknown:
            raise ValueError(f"{path}[{unknown[0]}] is unknown, wanted {', '.join(sorted(keys))}")
        self._state, self._path = state, path

    def refuse(self, key: str, wanted: str) -> ValueError:
        """Return the error that names a leaf, what it holds and what was wanted."""
        return ValueError(f"{self._path}[{key!r}] is {_shown(self._state[key])}, wanted {wanted}")

    def same(self, key: str, wanted: object) -> None:
        """Check that a leaf equals a plain value, in type and value; a list may be a tuple."""
        got = self._state[key]
        if isinstance(wanted, tuple | list):
            fits = isinstance(got, tuple | list) and _equal(tuple(got), tuple(wanted))
        else:
            fits = _equal(got, wanted)
        if not fits:
            raise self.refuse(key, repr(wanted))

    def integer(self, key: str, minimum: int = 0, maximum: int = 2**63 - 1) -> int:
        """Return an integer leaf within bounds."""
        got = self._state[key]
        if isinstance(got, bool | np.bool_) or not isinstance(got, numbers.Integral):
            raise self.refuse(key, "an integer")
        if not minimum <= int(got) <= maximum:
            raise self.refuse(key, f"an integer in [{minimum}, {maximum}]")
        return int(got)

    def number(
        self,
        key: str,
        *,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        above: float = -math.inf,
    ) -> float:
        """Return a finite real leaf within bounds."""
        got = self._state[key]
        real = isinstance(got, numbers.Real) and not isinstance(got, bool | np.bool_)
        try:
            value = float(got) if real else math.nan
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.refuse(key, "a finite number")
        if not (minimum <= value <= maximum and value > above):
            bound = f"> {above:g}" if above > -math.inf else f"in [{minimum:g}, {maximum:g}]"
            raise self.refuse(key, f"a number {bound}")
        return value

    def number_or(self, key: str, unknown: float) -> float:
        """Return a finite real leaf, or `unknown` for None."""
        return unknown if self._state[key] is None else self.number(key)

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        """Return a list or tuple of at most so many finite numbers."""
        got = self._state[key]
        if not isinstance(got, list | tuple) or len(got) > most:
            raise self.refuse(key, f"a list of at most {most} numbers")
        names = {str(place): x for place, x in enumerate(got)}
        inner = StateReader(names, self.path(key), names)
        return tuple(inner.number(name) for name in names)

    def flag(self, key: str) -> bool:
        """Return a leaf that is True or False."""
        got = self._state[key]
        if not isinstance(got, bool | np.bool_):
            raise self.refuse(key, "True or False")
        return bool(got)

    def array(self, key: str, shape: tuple[int, ...], dtype: DType) -> Array:
        """Return a copy of a finite array of a shape and dtype, C-contiguous and writable."""
        got = self._state[key]
        wanted = f"an array {shape} of {dtype}"
        if not isinstance(got, np.ndarray) or got.shape != shape or got.dtype != dtype:
            raise self.refuse(key, wanted)
        if isinstance(got, np.ma.MaskedArray) or not np.isfinite(got).all():
            raise self.refuse(key, wanted + " without NaN or Inf")
        return np.array(got, order="C", subok=False)

    def optional_array(self, key: str, shape: tuple[int, ...], dtype: DType) -> Array | None:
        """Return None, or what `array` returns."""
        return None if self._state[key] is None else self.array(key, shape, dtype)

    def __getitem__(self, key: str) -> Any:
        """Return a leaf as it is."""
        return self._state[key]

    def path(self, key: str) -> str:
        """Name of a leaf, for the reader of a state inside."""
        return f"{self._path}[{key!r}]"


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Name the place of a state in what its reader refuses, and make it a ValueError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"in {path}: {reason}") from error


def _equal(got: object, wanted: object) -> bool:
    if isinstance(wanted, tuple):
        return (
            isinstance(got, tuple)
            and len(got) == len(wanted)
            and all(_equal(a, b) for a, b in zip(got, wanted, strict=True))
        )
    if isinstance(wanted, bool) or wanted is None or isinstance(wanted, str):
        return type(got) is type(wanted) and bool(got == wanted)
    real = isinstance(got, numbers.Real) and not isinstance(got, bool | np.bool_)
    return real and bool(got == wanted)


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
