"""The border: whatever users pass becomes what the core takes, or an error that names the argument.

Conversions (dtype, byte order, memory order) happen here, once and nowhere else.
"""

from __future__ import annotations

import difflib
import math
import mmap
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from ._typing import Array, DType, NumberArray, RealArray
from .config import MAX_THREADS, default_num_threads

# Elements from which on several threads read an array.
_LARGE = 1 << 20
# Kinds of dtypes that are read: booleans, integers and floats.
_REAL = "biuf"
# Real by name alone: what is true is not 1, and what lasts a second neither.
_NOT_NUMBERS = (bool, np.bool_, np.timedelta64)


class memory_for:
    """Says what memory was wanted for where there is not enough of it: MemoryError within.

    The message is made only then.
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __enter__(self) -> None:
        """Nothing is done."""

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        """Raise the error anew, with the purpose."""
        if kind is not None and issubclass(kind, MemoryError):
            said = str(error)
            if not said or said.startswith("std::"):
                said = "cannot allocate memory"
            raise MemoryError(f"{said}, for {''.join(map(str, self._parts))}") from None


def core_for(dtype: np.dtype[np.generic]) -> ModuleType:
    """Core functions for float32 or float64."""
    core: ModuleType = _core.f32 if dtype.char == "f" else _core.f64
    return core


def as_float_dtype(dtype: DTypeLike) -> DType:
    """float32 or float64."""
    try:
        result = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from None
    if result.newbyteorder("=") not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {result}")
    return np.dtype(np.float32) if result.itemsize == 4 else np.dtype(np.float64)


def all_finite(a: Array, num_threads: int = 1) -> bool:
    """Whether a contiguous array has neither NaN nor Inf."""
    return bool(core_for(a.dtype).all_finite(a, num_threads=num_threads))


def dot(v: Array, w: Array, num_threads: int = 1) -> float:
    """Inner product of two contiguous vectors, accumulated in double; same bits for any threads."""
    return float(core_for(v.dtype).dot(v, w, num_threads=num_threads))


def _threads_for(size: int, num_threads: int | None = None) -> int:
    """Threads that read an array; no more than the user allows."""
    if size < _LARGE:
        return 1
    return default_num_threads() if num_threads is None else num_threads


def is_sparse(x: object) -> bool:
    """Whether it is a sparse matrix, of SciPy or of a package that follows it."""
    return hasattr(x, "nnz") and (hasattr(x, "toarray") or hasattr(x, "todense"))


def is_array(x: object) -> TypeGuard[ArrayLike]:
    """Whether it can be read as an array: no operator, no sparse matrix."""
    if isinstance(x, np.ndarray | list | tuple):
        return True
    names = ("__array__", "__array_interface__", "__dlpack__")
    return any(hasattr(x, name) for name in names) and not hasattr(x, "matvec")


def as_real(x: ArrayLike, name: str) -> RealArray:
    """An array of booleans, integers or floats, not converted yet."""
    a: RealArray = _as_array(x, name, _REAL)
    return a


def as_numbers(x: ArrayLike, name: str) -> NumberArray:
    """The same where complex numbers are read as well."""
    a: NumberArray = _as_array(x, name, _REAL + "c")
    return a


def _as_array(x: ArrayLike, name: str, kinds: str) -> Any:
    if type(x) is not np.ndarray:
        x = _as_plain(x, name)
    try:
        a = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {error}") from None
    except (TypeError, RuntimeError) as error:  # e.g. a tensor that requires grad
        raise TypeError(f"{name} can not be read as an array: {error}") from None
    if a.dtype.kind not in kinds:
        raise _not_read(a.dtype, name, "real numbers" if kinds == _REAL else "numbers")
    return a


def _not_read(dtype: object, name: str, wanted: str = "real numbers", hint: str = "") -> TypeError:
    if str(dtype) == "object":
        hint = ": convert it, such as by astype(float)"
    return TypeError(f"{name} has dtype {dtype}, wanted {wanted}{hint}")


def _as_plain(x: ArrayLike, name: str) -> ArrayLike:
    """What NumPy reads: not sparse, nothing masked or missing."""
    if is_sparse(x):
        raise TypeError(f"{name} is sparse, wanted a dense array: pass {name}.toarray()")
    if isinstance(x, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(x)
        if mask.any():
            raise ValueError(f"{name} is masked at {_first(mask)}, wanted a number everywhere")
        return x.data
    if hasattr(x, "to_numpy") and hasattr(x, "isna"):
        return _frame_as_plain(x, name)
    others = ("__array__", "__array_interface__", "__array_struct__")
    if hasattr(x, "__dlpack__") and not any(hasattr(x, other) for other in others):
        try:
            return np.from_dlpack(cast(Any, x))
        except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
            raise TypeError(f"{name} can not be read by its __dlpack__: {error}") from None
    return x


def _first(mask: NDArray[np.bool_]) -> str:
    """Place of the first element of a mask that is True, in words."""
    place = np.argwhere(mask)[0]
    if mask.ndim == 2:
        return f"row {place[0]}, column {place[1]}"
    return f"position {', '.join(str(i) for i in place)}"


def _frame_as_plain(x: Any, name: str) -> RealArray:
    """A pandas frame or series, whose columns may have types of their own (Int64, Arrow)."""
    if x.ndim == 1:
        return _column_as_plain(x, name)
    if all(isinstance(dtype, np.dtype) for dtype in x.dtypes):
        a: RealArray = x.to_numpy()
        if a.dtype.kind in _REAL:
            return a
    columns = [
        _column_as_plain(x.iloc[:, j], f"column {label!r} of {name}")
        for j, label in enumerate(x.columns)
    ]
    return np.stack(columns, axis=1) if columns else np.empty(x.shape)


def _column_as_plain(column: Any, name: str) -> RealArray:
    kind = getattr(column.dtype, "kind", "O")
    if kind not in _REAL:
        raise _not_read(column.dtype, name, hint=": convert it or leave it out")
    a: RealArray
    if isinstance(column.dtype, np.dtype):
        a = column.to_numpy()
        return a
    missing = np.asarray(column.isna(), bool)
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(f"{name} has a missing value at row {row}: fill or drop it")
    dtype = np.float64 if kind == "f" else {"b": np.bool_, "i": np.int64, "u": np.uint64}[kind]
    a = column.to_numpy(dtype=dtype)
    return a


def as_floats(
    x: ArrayLike,
    name: str,
    dtype: DType,
    ndim: int | tuple[int, ...],
    num_threads: int | None = None,
) -> Array:
    """A finite, C-contiguous, aligned array of `dtype`; `x` itself where it is one already."""
    a = _as_contiguous(x, name, dtype, ndim)
    threads = 1 if a.size < _LARGE else _threads_for(a.size, num_threads)
    if not all_finite(a, threads):
        raise _not_finite(a, name)
    return a


def _as_contiguous(x: Any, name: str, dtype: DType, ndim: int | tuple[int, ...]) -> Array:
    """As `as_floats`, for elements that somebody else looks at."""
    ready = type(x) is np.ndarray and x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned
    a: Any = x if ready else as_real(x, name)
    if a.ndim != ndim and (isinstance(ndim, int) or a.ndim not in ndim):
        allowed = (ndim,) if isinstance(ndim, int) else ndim
        wanted = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} has {a.ndim} dimensions (shape {a.shape}), wanted {wanted}")
    if not ready:
        with np.errstate(over="ignore"):  # what does not fit is reported as Inf
            a = np.require(a, dtype=dtype, requirements=["C", "A"])
        a = a.view(np.ndarray)
    result: Array = a
    return result


def _not_finite(a: Array, name: str) -> ValueError:
    """Name the first element that is NaN or Inf."""
    return ValueError(f"{name} has NaN or Inf (in {a.dtype}) at {_first(~np.isfinite(a))}")


def as_cases(x: ArrayLike, num_inputs: int, dtype: DType, num_threads: int | None = None) -> Array:
    """Inputs X (N, num_inputs), N >= 1."""
    result = as_floats(x, "X", dtype, 2, num_threads)
    _check_shape(result, num_inputs)
    return result


def _check_shape(x: NDArray[np.generic], num_inputs: int) -> None:
    if x.shape[1] != num_inputs:
        raise ValueError(f"X has {x.shape[1]} columns, the net expects {num_inputs}")
    if x.shape[0] == 0:
        raise ValueError("X has no rows, wanted at least one case")


Rows = NDArray[np.intp] | slice


def as_mapped_cases(
    x: ArrayLike,
    places: NDArray[np.intp] | None,
    num_inputs: int,
    dtype: DType,
    num_threads: int | None = None,
) -> RealArray:
    """Inputs X (N, num_inputs) that are converted by `rows_of`, some rows at a time.

    X is read once, in pieces, to look for NaN in the rows at `places` (in all of them for None),
    and is not copied: maps of files stay where they are. An exception are arrays in memory in
    column order, out of which rows are gathered slowly: they become an array of `dtype`.
    """
    a = as_real(x, "X")
    if a.ndim != 2:
        as_cases(a, num_inputs, dtype)  # says what is wrong
    _check_shape(a, num_inputs)
    for rows in pieces(a.shape[0], num_inputs, places):
        _check_piece(a, rows, dtype, num_threads)
    if abs(a.strides[1]) > abs(a.strides[0]) and not _is_mapped(a):
        return rows_of(a, slice(None), dtype)
    return a


def _check_piece(a: RealArray, rows: Rows, dtype: DType, num_threads: int | None) -> None:
    piece = rows_of(a, rows, dtype)
    if not all_finite(piece, _threads_for(piece.size, num_threads)):
        i, j = np.argwhere(~np.isfinite(piece))[0]
        place = f"row {row_of(rows, int(i))}, column {j}"
        raise ValueError(f"X has NaN or Inf (in {dtype}) at {place}")


def pieces(num_rows: int, num_columns: int, places: NDArray[np.intp] | None) -> Iterator[Rows]:
    """All rows, or those at `places`, in pieces of about 4 million elements."""
    count = num_rows if places is None else len(places)
    step = max(1, 4 * _LARGE // max(1, num_columns))
    for start in range(0, count, step):
        piece = slice(start, min(start + step, count))
        yield piece if places is None else places[piece]


def row_of(rows: Rows, i: int) -> int:
    """Number of the i-th row of a piece."""
    return int(rows.start) + i if isinstance(rows, slice) else int(rows[i])


def rows_of(a: RealArray, rows: Rows, dtype: DType) -> Array:
    """Some rows, as a C-contiguous array of `dtype`."""
    with np.errstate(over="ignore"):  # what does not fit is reported as Inf
        return cast(Array, np.require(a[rows], dtype=dtype, requirements=["C", "A"]))


def _is_mapped(a: object) -> bool:
    """Whether an array is a map of a file, or a view of one."""
    while isinstance(a, np.ndarray):
        a = a.base
    return isinstance(a, mmap.mmap)


def as_vector(v: ArrayLike, name: str, size: int, dtype: DType) -> Array:
    """A vector (size,)."""
    result = as_floats(v, name, dtype, 1)
    if result.shape[0] != size:
        raise ValueError(f"{name} has length {result.shape[0]}, wanted {size}")
    return result


def as_rows(
    v: ArrayLike, name: str, size: int, dtype: DType, num_threads: int | None = None
) -> tuple[Array, bool]:
    """A vector (size,) or block (size, K) as K contiguous rows; and whether it was a block."""
    a: Any = v if type(v) is np.ndarray else as_real(v, name)
    if a.ndim not in (1, 2) or a.shape[0] != size:
        raise ValueError(f"{name} has shape {a.shape}, wanted ({size},) or ({size}, K)")
    if a.ndim == 2 and a.shape[1] == 0:
        raise ValueError(f"{name} has no columns, wanted at least one vector")
    if a.ndim == 1:
        return as_floats(a, name, dtype, 1, num_threads)[None], False
    core, threads = core_for(dtype), _threads_for(a.size, num_threads)
    if a.flags.f_contiguous:
        rows = _as_contiguous(a.T, name, dtype, 2)
        finite = core.all_finite(rows, num_threads=threads)
    else:
        with memory_for(name, " of shape ", a.shape, " as vectors that are contiguous"):
            columns = _as_contiguous(a, name, dtype, 2)
            rows, finite = core.transposed(columns, num_threads=threads)
    if not finite:
        raise _not_finite(rows.T, name)
    return rows, True


def as_right_hand_sides(g: ArrayLike, name: str, size: int, dtype: DType) -> tuple[Array, bool]:
    """One right-hand side (size,) or K of them (size, K), as rows; and whether it was a block."""
    a = as_real(g, name)
    if a.ndim == 2:
        return as_rows(a, name, size, dtype)
    return as_vector(a, name, size, dtype)[None], False


def as_sample_weight(
    sample_weight: ArrayLike, num_cases: int, name: str = "sample_weight"
) -> NDArray[np.float64]:
    """Weights (N,) >= 0 with a positive sum."""
    w = as_vector(sample_weight, name, num_cases, np.dtype(np.float64))
    if (w < 0).any():
        i = int(np.argmax(w < 0))
        raise ValueError(f"{name} must be >= 0, got {w[i]} at position {i}")
    with np.errstate(over="ignore"):
        total = float(w.sum())
    if not 0.0 < total < math.inf:
        raise ValueError(f"{name} must have a positive finite sum, got {total}")
    return cast(NDArray[np.float64], w)


def as_number(
    x: object,
    name: str,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    may_be_infinite: bool = False,
) -> float:
    """A finite real number, >= minimum and > above; +Inf too where it is said."""
    number = x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x
    # asking the abstract class takes a microsecond
    if type(number) is not float and (
        not isinstance(number, numbers.Real) or isinstance(number, _NOT_NUMBERS)
    ):
        raise TypeError(f"{name} must be a real number, got {x!r}")
    try:
        value = float(number)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {_shown(number)}") from None
    if not (math.isfinite(value) or (may_be_infinite and value > 0.0)):
        raise ValueError(f"{name} must be finite, got {value}")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum:g}, got {value}")
    if value <= above:
        raise ValueError(f"{name} must be > {above:g}, got {value}")
    return value


class Decay(NamedTuple):
    """Weight decay of weights and of biases."""

    weights: float
    biases: float

    @property
    def shown(self) -> float | tuple[float, float]:
        """As users write it: a number where both are the same."""
        return self.weights if self.weights == self.biases else self


def as_decay(x: object, name: str) -> Decay:
    """One number >= 0 for weights and biases, or two."""
    if not isinstance(x, tuple | list):
        return Decay(*2 * (as_number(x, name, minimum=0.0),))
    if len(x) != 2:
        raise ValueError(f"{name} must be a number or (weights, biases), got {len(x)} numbers")
    weights, biases = (
        as_number(part, f"{name} of {what}", minimum=0.0)
        for part, what in zip(x, Decay._fields, strict=True)
    )
    return Decay(weights, biases)


def _shown(x: object) -> str:
    """A number in an error message: Python prints no integers of more than 4300 digits."""
    if not isinstance(x, numbers.Integral):
        return "a number beyond the range of floats"
    bits = int(x).bit_length()
    return str(x) if bits <= 256 else f"an integer of {bits} bits"


def as_dampings(x: ArrayLike, name: str) -> NDArray[np.float64]:
    """Dampings (m,), m >= 1, finite and >= 0."""
    a = as_real(x, name)
    if a.dtype.kind == "b":
        raise TypeError(f"{name} has dtype bool, wanted numbers")
    dampings = cast(NDArray[np.float64], as_floats(a, name, np.dtype(np.float64), 1))
    if dampings.size == 0:
        raise ValueError(f"{name} is empty, wanted at least one number")
    if (dampings < 0).any():
        k = int(np.argmax(dampings < 0))
        raise ValueError(f"{name} must be >= 0, got {dampings[k]} at position {k}")
    return dampings


def as_count(x: object, name: str, minimum: int) -> int:
    """An integer >= minimum."""
    if type(x) is not int and (not isinstance(x, numbers.Integral) or isinstance(x, _NOT_NUMBERS)):
        raise TypeError(f"{name} must be an integer, got {x!r}")
    count = int(x)
    if count < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {_shown(count)}")
    if count >= 2**63:
        raise ValueError(f"{name} must be < 2**63, got {_shown(count)}")
    return count


Call = TypeVar("Call", bound=Callable[..., object])


def as_callable(callback: Call | None, name: str = "callback") -> Call | None:
    """A function, or None."""
    if callback is not None and not callable(callback):
        raise TypeError(f"{name} must be callable, got {callback!r}")
    return callback


def as_chunk_size(chunk_size: int | None) -> int:
    """An integer >= 1; 0, which stands for all cases, for None."""
    return 0 if chunk_size is None else as_count(chunk_size, "chunk_size", 1)


def as_num_threads(num_threads: int | None) -> int:
    """An integer >= 1; None asks `default_num_threads`."""
    if num_threads is None:
        return default_num_threads()
    count = as_count(num_threads, "num_threads", 1)
    if count > MAX_THREADS:
        raise ValueError(f"num_threads must be <= {MAX_THREADS}, got {count}")
    return count


def as_name(
    name: object, what: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None
) -> str:
    """One of the known names; the error lists them and the one that is meant.

    `synonyms` are names from elsewhere, in lower case without punctuation, and what to say of them:
    the known name, or an advice.
    """
    names = tuple(known)
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name, got {name!r}; known: {', '.join(names)}")
    if name in names:
        return name
    plain = re.sub("[^a-z0-9]", "", name.lower())
    meant = (synonyms or {}).get(plain)
    if meant is None:
        meant = next((n for n in names if n.replace("_", "") == plain), None)
    if meant is None:
        meant = next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), None)
    hint = "" if meant is None else f"; did you mean {meant!r}?" if meant in names else f"; {meant}"
    raise ValueError(f"unknown {what} {name!r}; known: {', '.join(names)}{hint}")
