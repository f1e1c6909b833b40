"""Which rows are measured: a case, a quantity, K, a float type and a number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .cases import SUITE, find
from .tasks import QUANTITIES

DTYPES = ("float32", "float64")
BLOCKS = (4, 16, 64)
LARGEST_BLOCK = 2**29  # bytes; a block is held several times, by every contestant
ON_ONE_THREAD = ("gradient", "ggn")
KFAC = ("kfac_update", "kfac_refresh", "kfac_apply")
PRODUCTS = ("gradient", "jvp", "vjp", "ggn", "mc_fisher", "empirical_fisher", "hessian")
SOLVES = (
    ("solve-digits", 1e-2),
    ("solve-wide", 1e-2),
    ("solve-wide", 1e-6),
    ("solve-curves", 1e-2),
)
SUITES = {
    "products": "gradient, JVP, VJP and the curvature matrices, blocks of 4, 16, 64 vectors",
    "kfac": "update, refresh and apply",
    "solvers": "solves to a residual, all set-up counted",
    "steps": "one step of NaturalGradient",
    "sweeps": "gradient and GGN product over widths 16..4096 and batches 32..8192",
    "scaling": "GGN product over 1e2..1e6 cases and over 1..256 vectors",
}


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    suite: str
    case: str
    quantity: str
    num_vectors: int = 1
    rtol: float = 0.0
    dtype: str = "float32"
    threads: int = 1

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        of = f" K={self.num_vectors}" if self.num_vectors > 1 else ""
        to = f" to {self.rtol:.0e}" if self.rtol else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.case} {self.quantity}{of}{to}, {self.dtype}, {threads}"


def rows(
    suites: Sequence[str],
    *,
    quick: bool,
    threads: Sequence[int],
    dtypes: Sequence[str],
    cases: Sequence[str] | None = None,
    quantities: Sequence[str] | None = None,
    vectors: Sequence[int] | None = None,
) -> list[Row]:
    """Rows of some suites, restricted to some cases, quantities and numbers of vectors.

    The most threads come first.
    """
    found = []
    for suite in suites:
        for row in QUICK[suite]() if quick else FULL[suite](cases):
            if cases is not None and row.case not in cases:
                continue
            if quantities is not None and row.quantity not in quantities:
                continue
            if vectors is not None and row.num_vectors not in vectors:
                continue
            found.append(row)
    return [
        Row(**{**row.record(), "dtype": dtype, "threads": number})
        for number in sorted(threads, reverse=True)
        for dtype in dtypes
        for row in found
        if wanted(row, quick, dtype, number == max(threads), dtype == dtypes[0])
    ]


def wanted(row: Row, quick: bool, dtype: str, most_threads: bool, main_dtype: bool) -> bool:
    """Fewer rows off the main road: fewer threads, other float types, blocks that fill memory."""
    itemsize = 4 if dtype == "float32" else 8
    if row.num_vectors * find(row.case).num_params * itemsize > LARGEST_BLOCK:
        return False
    if not most_threads:
        plain = row.quantity in ON_ONE_THREAD and row.num_vectors == 1
        return row.suite == "products" and plain and main_dtype and not (quick and heavy(row))
    if row.suite in ("sweeps", "scaling"):
        return main_dtype
    if quick and not main_dtype:
        return row.suite == "products" and row.quantity in ON_ONE_THREAD and not heavy(row)
    return True


def heavy(row: Row) -> bool:
    return find(row.case).num_params > 1e6 or row.num_vectors > 1


def products(cases: Sequence[str] | None = None) -> Iterator[Row]:
    for name in cases or [case.name for case in SUITE]:
        for quantity in PRODUCTS:
            yield Row("products", name, quantity)
        for k in BLOCKS:
            yield Row("products", name, "ggn", k)


def kfac(cases: Sequence[str] | None = None) -> Iterator[Row]:
    for name in cases or [case.name for case in SUITE]:
        for quantity in KFAC:
            yield Row("kfac", name, quantity)


def solvers(cases: Sequence[str] | None = None) -> Iterator[Row]:
    for name, rtol in SOLVES:
        yield Row("solvers", name, "solve", rtol=rtol)


def steps(cases: Sequence[str] | None = None) -> Iterator[Row]:
    for name in cases or [case.name for case in SUITE]:
        yield Row("steps", name, "step")


def sweeps(cases: Sequence[str] | None = None) -> Iterator[Row]:
    names = [f"width-{2**e}" for e in range(4, 13)] + [f"batch-{2**e}" for e in range(5, 14)]
    for name in names:
        for quantity in ON_ONE_THREAD:
            yield Row("sweeps", name, quantity)


def scaling(cases: Sequence[str] | None = None) -> Iterator[Row]:
    for number in (100, 316, 1000, 3162, 10_000, 31_623, 100_000, 316_228, 1_000_000):
        yield Row("scaling", f"cases-{number}", "ggn")
    for exponent in range(9):
        yield Row("scaling", "digits", "ggn", 2**exponent)


def quick_products() -> Iterator[Row]:
    for name in ("tiny", "digits", "mnist-ae", "wide"):
        for quantity in ON_ONE_THREAD:
            yield Row("products", name, quantity)
    yield Row("products", "digits", "hessian")
    yield Row("products", "digits", "empirical_fisher")
    yield Row("products", "digits", "ggn", 16)


def quick_kfac() -> Iterator[Row]:
    for quantity in KFAC:
        yield Row("kfac", "digits", quantity)


def quick_solvers() -> Iterator[Row]:
    yield Row("solvers", "solve-digits", "solve", rtol=1e-2)


def quick_steps() -> Iterator[Row]:
    yield Row("steps", "digits", "step")


def quick_sweeps() -> Iterator[Row]:
    for name in ("width-16", "width-128", "width-512", "batch-32", "batch-256", "batch-1024"):
        yield Row("sweeps", name, "ggn")


def quick_scaling() -> Iterator[Row]:
    for number in (100, 10_000, 100_000):
        yield Row("scaling", f"cases-{number}", "ggn")


FULL = {
    "products": products,
    "kfac": kfac,
    "solvers": solvers,
    "steps": steps,
    "sweeps": sweeps,
    "scaling": scaling,
}
QUICK = {
    "products": quick_products,
    "kfac": quick_kfac,
    "solvers": quick_solvers,
    "steps": quick_steps,
    "sweeps": quick_sweeps,
    "scaling": quick_scaling,
}
assert FULL.keys() == QUICK.keys() == SUITES.keys()
assert set(PRODUCTS + KFAC) <= QUANTITIES.keys()
