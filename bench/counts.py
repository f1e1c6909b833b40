"""Flops and bytes of the measured quantities, by stated formulas.

Only products of the cases with matrices of a layer's shape count, the forward pass being kept
where the quantity is a product with a vector. Two kinds of them, for d_in inputs and d outputs:

    shared   with a matrix that all K vectors share:  W Ra, W'delta     (K N, d_in) (d_in, d)
    own      with or into one of each vector:         V a, delta'a      (N, d_in) (d_in, K d)

Both have 2 K N d_in d flops. Bytes: every factor and every result moves once,

    shared   K N (d_in + d) + d_in d         own   N d_in + K N d + K d_in d        numbers,

and of the Hessian's delta'Ra, V'delta, where the deltas are shared, N d + K N d_in + K d_in d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Products:
    """How many products of each kind a layer has; the first layer lacks the "inner" ones.

    The input does not depend on parameters: the first layer has no Ra and needs no W'delta.
    """

    shared: int = 0
    own: int = 0
    inner_shared: int = 0
    inner_own: int = 0


_CURVATURE = Products(own=2, inner_shared=2)  # V a, delta'a; W Ra, W'delta
PRODUCTS = {
    "gradient": Products(shared=1, own=1, inner_shared=1),  # W a, delta'a; W'delta
    "jvp": Products(own=1, inner_shared=1),
    "vjp": Products(own=1, inner_shared=1),
    "ggn": _CURVATURE,
    "mc_fisher": _CURVATURE,
    "empirical_fisher": _CURVATURE,
    # and R(delta)'a + delta'Ra, W'R(delta) + V'delta
    "hessian": Products(own=2, inner_shared=2, inner_own=2),
}


def layers(sizes: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(d_in, d, whether it is the first) of every layer."""
    return [(i, o, index == 0) for index, (i, o) in enumerate(pairwise(sizes))]


def flops(sizes: Sequence[int], batch: int, quantity: str, num_vectors: int = 1) -> float | None:
    """Multiplications and additions; None where they depend on the run (solves, steps)."""
    n, k = batch, num_vectors
    if quantity in PRODUCTS:
        p = PRODUCTS[quantity]
        inner = p.inner_shared + p.inner_own
        return float(
            sum(
                2 * n * k * i * o * (p.shared + p.own + (0 if first else inner))
                for i, o, first in layers(sizes)
            )
        )
    if quantity == "kfac_update":  # W a, W'delta; the triangles of a a' and delta delta'
        return float(
            sum(
                2 * n * i * o * (1 if first else 2) + n * ((i + 1) ** 2 + o**2)
                for i, o, first in layers(sizes)
            )
        )
    if quantity == "kfac_refresh":  # Cholesky factorisation n^3 / 3 and inverse 2 n^3 / 3
        return float(sum((i + 1) ** 3 + o**3 for i, o, _ in layers(sizes)))
    if quantity == "kfac_apply":  # G^-1 V A^-1
        return float(sum(2 * k * (i + 1) * o * (i + 1 + o) for i, o, _ in layers(sizes)))
    return None


def bytes_moved(
    sizes: Sequence[int], batch: int, quantity: str, num_vectors: int = 1, itemsize: int = 4
) -> float | None:
    """An estimate: factors and results of every product once, whatever the caches hold."""
    n, k = batch, num_vectors
    numbers = 0.0
    for i, o, first in layers(sizes):
        a, d = i + 1, o
        if quantity in PRODUCTS:
            p = PRODUCTS[quantity]
            shared = p.shared + (0 if first else p.inner_shared)
            numbers += shared * (k * n * (i + o) + i * o)
            numbers += p.own * (n * i + k * n * o + k * i * o)
            numbers += 0 if first else p.inner_own * (n * o + k * n * i + k * i * o)
        elif quantity == "kfac_update":
            numbers += (1 if first else 2) * (n * (i + o) + i * o) + n * (a + d) + a * a + d * d
        elif quantity == "kfac_refresh":
            numbers += 2 * (a * a + d * d)
        elif quantity == "kfac_apply":
            numbers += a * a + d * d + 4 * k * a * d
        else:
            return None
    return numbers * itemsize
