"""What solvers multiply with: the operators that users pass, made ready for the core."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import as_real, as_vector, core_for, is_array, is_sparse
from .._typing import Array, CoreOperator, DType, Layout, Multiply, RealArray
from .base import Operator

FLOAT_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class LinearMap:
    """A symmetric operator.

    `core` is an operator of the core, or a function of rows (K, P) that returns rows.
    """

    core: CoreOperator | Multiply
    size: int
    dtype: DType
    flops_per_product: float
    num_threads: int | None

    def apply(self, rows: Array) -> Array:
        """A x for the rows of a (K, P) array."""
        return self.core(rows) if callable(self.core) else self.core.apply(rows)


def as_linear_map(A: Any) -> LinearMap:
    """An operator, a square array, dense or sparse, or an object with shape, dtype and matvec."""
    if isinstance(A, type):
        raise TypeError(f"A is the class {A.__name__}, wanted an instance of it")
    core: Any = getattr(A, "core", None)
    own = _core_dtype(core)
    if isinstance(A, Operator):
        size = _square_size(A.shape)
        core = A._apply if own is None else core
        return LinearMap(core, size, A.dtype, A.flops_per_product, A.num_threads)
    if own is not None:
        return LinearMap(core, int(core.size), own, _flops(A), getattr(A, "num_threads", None))
    has_matvec = all(hasattr(A, name) for name in ("shape", "dtype", "matvec"))
    if not has_matvec and not is_sparse(A) and is_array(A):
        A = as_real(A, "A")
    if not has_matvec and not is_sparse(A) and not isinstance(A, np.ndarray):
        raise TypeError(
            f"A must be an operator with shape, dtype and matvec, or a matrix, got {A!r}"
        )
    size = _square_size(tuple(A.shape))
    kind = np.dtype(A.dtype if A.dtype is not None else np.float64)
    if kind.kind not in "biuf":
        raise TypeError(f"A has dtype {kind}, wanted real numbers")
    dtype: DType = np.dtype(np.float32 if kind == np.float32 else np.float64)
    return LinearMap(_as_function(A, size, dtype, "A"), size, dtype, _flops(A), None)


def as_preconditioner(
    preconditioner: object, size: int, dtype: DType, layout: Layout | None = None
) -> CoreOperator | Array | Multiply | None:
    """What the core takes: None, a diagonal (P,), an operator of its own or a function of rows.

    `layout` is that of the net of A, if A has one.
    """
    if preconditioner is None:
        return None
    _check_kind(preconditioner)
    if is_array(preconditioner):
        preconditioner = as_real(preconditioner, "preconditioner")
        if preconditioner.ndim != 2:
            return as_vector(preconditioner, "preconditioner", size, dtype)
    _check_fit(preconditioner, size, layout)
    core = getattr(preconditioner, "core", None)
    kind = _core_dtype(core)
    if kind is None and isinstance(preconditioner, Operator):
        kind = preconditioner.dtype
        core = core if isinstance(core, np.ndarray) else preconditioner._apply
    if kind is None:
        return _as_function(preconditioner, size, dtype, "preconditioner")
    if kind != dtype:
        raise ValueError(f"preconditioner is of {kind}, A of {dtype}: build it in {dtype}")
    return core


def _check_kind(preconditioner: object) -> None:
    """Refuse what approximates no inverse, or none yet."""
    if isinstance(preconditioner, type):
        name = preconditioner.__name__
        raise TypeError(
            f"preconditioner is the class {name}, wanted an instance of it, such as "
            f"{name}(net, loss, X, damping=damping)"
        )
    if isinstance(preconditioner, str):
        raise TypeError(
            f"preconditioner must be an object, got the name {preconditioner!r}: "
            "build one, such as KFAC(net, loss, X, damping=damping)"
        )
    if getattr(preconditioner, "role", "inverse") == "matrix":
        raise TypeError(
            "preconditioner must approximate the inverse of A, got a matrix: "
            f"{preconditioner!r}; Nystrom(A, damping=damping) makes an inverse of any matrix, "
            "KFAC(net, loss, X, damping=damping) one of a net's Fisher matrix"
        )
    if not is_array(preconditioner) and not any(
        hasattr(preconditioner, name) for name in ("matvec", "__matmul__", "core")
    ):
        raise TypeError(f"preconditioner must have matvec or @, got {preconditioner!r}")
    for part in _parts(preconditioner):
        if getattr(part, "damping", 0.0) is None:
            measured = "" if getattr(part, "num_updates", 1) else "update(X) and "
            raise ValueError(
                f"preconditioner has no inverse yet: call its {measured}refresh(damping) first"
            )


def _parts(operator: object) -> list[object]:
    """The operators that a sum or product is made of, or the one that is given."""
    parts = getattr(operator, "parts", None) if isinstance(operator, Operator) else None
    if parts is None:
        return [operator]
    return [inner for part in parts for inner in _parts(part)]


def _check_fit(preconditioner: object, size: int, layout: Layout | None) -> None:
    shape = getattr(preconditioner, "shape", None)
    if shape is not None and tuple(shape) != (size, size):
        raise ValueError(f"preconditioner has shape {tuple(shape)}, wanted ({size}, {size})")
    other = getattr(preconditioner, "layout", None)
    if layout is not None and other is not None and other != layout:
        raise ValueError(f"preconditioner is of a net {other[0]}, A of a net {layout[0]}")


def _square_size(shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"A must be square, got shape {shape}")
    return int(shape[0])


def _flops(A: Any) -> float:
    if isinstance(A, np.ndarray):
        return 2.0 * A.size
    return 2.0 * A.nnz if is_sparse(A) else float(getattr(A, "flops_per_product", math.nan))


def _core_dtype(core: object) -> DType | None:
    """Float type of an operator of the core; None for anything else."""
    for dtype in FLOAT_TYPES:
        if isinstance(core, core_for(dtype).LinearOperator):
            return dtype
    return None


def _as_function(A: Any, size: int, dtype: DType, name: str) -> Multiply:
    """Return rows times A, contiguous and of `dtype`; NaN passes, the solver reports it."""
    is_matrix = isinstance(A, np.ndarray) or is_sparse(A)
    multiply = A.matvec if hasattr(A, "matvec") else A.__matmul__
    multiply_block = A.__matmul__ if is_matrix else getattr(A, "matmat", None)

    def one(x: Array) -> RealArray:
        y = as_real(multiply(x), f"the product with {name}")
        if y.size != size:
            raise ValueError(f"the product with {name} has shape {y.shape}, wanted ({size},)")
        return y.reshape(1, size)

    def function(rows: Array) -> Array:
        if not is_matrix:
            return together(rows)
        with np.errstate(over="ignore", invalid="ignore"):  # a status tells of it
            return together(rows)

    def together(rows: Array) -> Array:
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
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(products, dtype)

    return function
