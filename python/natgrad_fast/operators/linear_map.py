"""What solvers multiply with: the operators that users pass, made ready for the core."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import as_real, as_vector, core_for
from .base import Operator

FLOAT_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class LinearMap:
    """A symmetric operator.

    `core` is an operator of the core, or a function of rows (K, P) that returns rows.
    """

    core: Any
    size: int
    dtype: np.dtype[Any]
    flops_per_product: float
    num_threads: int | None

    def apply(self, rows: Any) -> Any:
        """A x for the rows of a (K, P) array."""
        return self.core(rows) if callable(self.core) else self.core.apply(rows)


def as_linear_map(A: Any) -> LinearMap:
    """An operator with a `core`, a square array, or an object with shape, dtype and matvec."""
    dtype = _core_dtype(A)
    if dtype is not None:
        flops = float(getattr(A, "flops_per_product", math.nan))
        threads = getattr(A, "num_threads", None)
        return LinearMap(A.core, int(A.core.size), dtype, flops, threads)
    if isinstance(A, np.ndarray):
        A = as_real(A, "A")
    elif not all(hasattr(A, name) for name in ("shape", "dtype", "matvec")):
        raise TypeError(f"A must be an operator with shape, dtype and matvec, got {A!r}")
    shape = tuple(A.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"A must be square, got shape {shape}")
    kind = np.dtype(A.dtype if A.dtype is not None else np.float64)
    if kind.kind not in "biuf":
        raise TypeError(f"A has dtype {kind}, wanted real numbers")
    dtype = np.dtype(np.float32 if kind == np.float32 else np.float64)
    size = int(shape[0])
    is_dense = isinstance(A, np.ndarray)
    flops = 2.0 * size**2 if is_dense else float(getattr(A, "flops_per_product", math.nan))
    return LinearMap(_as_function(A, size, dtype, "A"), size, dtype, flops, None)


def as_preconditioner(
    preconditioner: Any, size: int, dtype: np.dtype[Any], layout: Any = None
) -> Any:
    """What the core takes: None, a diagonal (P,), an operator of its own or a function of rows.

    `layout` is that of the net of A, if A has one.
    """
    if preconditioner is None:
        return None
    if getattr(preconditioner, "role", "inverse") == "matrix":
        raise TypeError("preconditioner must approximate the inverse of A, got a curvature matrix")
    if isinstance(preconditioner, Operator) and getattr(preconditioner, "damping", 0.0) is None:
        raise ValueError("preconditioner has no inverse yet: call its refresh(damping) first")
    ndim = getattr(preconditioner, "ndim", None)
    if ndim == 1 or isinstance(preconditioner, list | tuple):
        return as_vector(preconditioner, "preconditioner", size, dtype)
    shape = getattr(preconditioner, "shape", None)
    if shape is not None and tuple(shape) != (size, size):
        raise ValueError(f"preconditioner has shape {tuple(shape)}, wanted ({size}, {size})")
    other = getattr(preconditioner, "layout", layout)
    if layout is not None and other != layout:
        raise ValueError(f"preconditioner is of a net {other[0]}, A of a net {layout[0]}")
    diagonal = getattr(preconditioner, "core", None)
    if isinstance(diagonal, np.ndarray):
        if diagonal.dtype != dtype:
            raise ValueError(
                f"preconditioner is of {diagonal.dtype}, A of {dtype}: build it in {dtype}"
            )
        return diagonal
    kind = _core_dtype(preconditioner)
    if kind is not None:
        if kind != dtype:
            raise ValueError(f"preconditioner is of {kind}, A of {dtype}: build it in {dtype}")
        if preconditioner.core.size != size:
            raise ValueError(f"preconditioner has size {preconditioner.core.size}, wanted {size}")
        return preconditioner.core
    if hasattr(preconditioner, "matvec") or hasattr(preconditioner, "__matmul__"):
        return _as_function(preconditioner, size, dtype, "preconditioner")
    raise TypeError(f"preconditioner must have matvec or @, got {preconditioner!r}")


def _core_dtype(A: Any) -> np.dtype[Any] | None:
    """Float type of the operator of the core that A holds, if it holds one."""
    core = getattr(A, "core", None)
    for dtype in FLOAT_TYPES:
        if isinstance(core, core_for(dtype).LinearOperator):
            return dtype
    return None


def _as_function(A: Any, size: int, dtype: np.dtype[Any], name: str) -> Callable[[Any], Any]:
    """Return rows times A, contiguous and of `dtype`; NaN passes, the solver reports it."""
    is_dense = isinstance(A, np.ndarray)
    multiply = A.matvec if hasattr(A, "matvec") else A.__matmul__
    multiply_block = A.__matmul__ if is_dense else getattr(A, "matmat", None)

    def one(x: Any) -> Any:
        y = as_real(multiply(x), f"the product with {name}")
        if y.size != size:
            raise ValueError(f"the product with {name} has shape {y.shape}, wanted ({size},)")
        return y.reshape(1, size)

    def function(rows: Any) -> Any:
        count = rows.shape[0]
        if count == 1:
            products = one(rows[0])
        elif multiply_block is None:
            products = np.concatenate([one(row) for row in rows])
        else:
            block = as_real(multiply_block(rows.T), f"the product with {name}")
            if block.shape != (size, count):
                wanted = f"({size}, {count})"
                raise ValueError(
                    f"the product with {name} has shape {block.shape}, wanted {wanted}"
                )
            products = block.T
        return np.ascontiguousarray(products, dtype)

    return function
