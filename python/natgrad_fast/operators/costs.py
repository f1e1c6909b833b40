"""Flops and bytes, known before anything is computed or allocated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from .._arrays import as_chunk_size, as_count, as_name, as_num_threads, core_for
from ..losses import Loss, LossName, as_loss
from ..model.mlp import MLP, as_net

__all__ = ["estimate_memory", "product_flops"]

# Products of one case with weight matrices in one product with a vector: in every layer, and how
# many of them the first layer does without.
#   jacobian      V a, W Ra                     first: no W Ra
#   gauss_newton  V a, W Ra, W'u, u a'          first: no W Ra, no W'u
#   hessian       V a, W Ra, V'u, W'Ru, Ru a', u Ra'   first: V a and Ru a' only
_PRODUCTS = {"jacobian": (2, 1), "gauss_newton": (4, 2), "hessian": (6, 4)}


def product_flops(
    sizes: Sequence[int], num_cases: int, kind: str, *, recompute: bool = False
) -> float:
    """Flops of the matrix products in one product with a vector.

    Parameters
    ----------
    sizes : sequence of int
        Widths d_0 .. d_L.
    num_cases : int
    kind : {"jacobian", "gauss_newton", "hessian"}
    recompute : bool
        Whether the forward pass is computed anew, as it is with `chunk_size`.
    """
    every, not_first = _PRODUCTS[kind]
    weights = [float(i) * o for i, o in pairwise(sizes)]
    products = (every + int(recompute)) * sum(weights) - not_first * weights[0]
    return 2.0 * num_cases * products


def estimate_memory(
    net: MLP,
    num_cases: int,
    *,
    matrix: Literal["fisher", "ggn", "empirical_fisher", "hessian", "jacobian"] = "fisher",
    loss: LossName | Loss = "squared_error",
    samples: int | None = None,
    num_vectors: int = 1,
    chunk_size: int | None = None,
    num_threads: int | None = None,
) -> int:
    """Bytes that an operator allocates, its products included; nothing is allocated to tell.

    Parameters
    ----------
    net : MLP
    num_cases : int
        N.
    matrix : {"fisher", "ggn", "empirical_fisher", "hessian", "jacobian"}
    loss : str or Loss
    samples : int, optional
        Of a Monte-Carlo Fisher.
    num_vectors : int
        K, vectors in one product.
    chunk_size, num_threads : int, optional
        As the operator gets them.

    Returns
    -------
    int
        Kept activations, copies of the weights, scratch of the threads, targets and the result of a
        product. Arrays of the caller are not counted, nor are the copies that other dtypes, memory
        orders and labels need.

    Examples
    --------
    >>> import natgrad_fast as ng
    >>> net = ng.MLP([64, 128, 10], seed=0)
    >>> ng.estimate_memory(net, 10**6, chunk_size=1000) < 10**8 < ng.estimate_memory(net, 10**6)
    True
    """
    net, loss = as_net(net), as_loss(loss)
    n = as_count(num_cases, "num_cases", 1)
    as_name(matrix, "matrix", ("fisher", "ggn", "empirical_fisher", "hessian", "jacobian"))
    vectors = as_count(num_vectors, "num_vectors", 1)
    columns = 1 if samples is None else as_count(samples, "samples", 1)
    chunk = as_chunk_size(chunk_size)
    threads = as_num_threads(num_threads)
    core, outputs = core_for(net.dtype), net.sizes[-1]
    common: dict[str, Any] = {"num_cases": n, "chunk_size": chunk, "num_threads": threads}
    if matrix == "hessian":
        total = core.hessian_bytes(net._architecture, **common)
    else:
        total = core.linearization_bytes(net._architecture, num_vectors=vectors, **common)
    itemsize = net.dtype.itemsize
    needs_targets = matrix in ("empirical_fisher", "hessian")
    if needs_targets or (matrix == "ggn" and loss.ggn_needs_targets):
        total += n * loss.num_targets(outputs) * itemsize
    if matrix != "jacobian":  # the matrices M_i of the cases alive, and the weights of all
        rows = outputs * columns
        total += (min(n, chunk) if chunk else n) * rows * itemsize
        total += n * (8 + 2 * itemsize)  # in double; rounded, and their roots
    length = n * outputs if matrix == "jacobian" else net.num_params
    return int(total + vectors * length * itemsize)
