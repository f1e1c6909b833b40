"""Blocks of vectors in any memory order, and the memory of large results."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits


# Strips of 1,024 rows are transposed at a time, in blocks of 16 or 8 columns.
@pytest.mark.parametrize("num_vectors", [1, 3, 8, 16, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_in_both_orders_give_equal_bits(num_vectors, dtype, rng):
    net = ng.MLP([40, 60, 3], dtype=dtype, seed=0)  # 2,643 parameters
    fisher = ng.Fisher(net, "squared_error", rng.standard_normal((5, 40)))
    block = rng.standard_normal((net.num_params, num_vectors)).astype(dtype)
    product = fisher @ np.asfortranarray(block)
    assert same_bits(fisher @ block, product)
    wider = np.zeros((net.num_params, num_vectors + 2), dtype)
    wider[:, 1:-1] = block
    assert same_bits(fisher @ wider[:, 1:-1], product)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1023, 1024, 2642])
def test_bad_element_of_a_block_is_found(bad, row, rng):
    net = ng.MLP([40, 60, 3], dtype="float32", seed=0)
    fisher = ng.Fisher(net, "squared_error", rng.standard_normal((5, 40)))
    block = np.ones((net.num_params, 4), "float32")
    block[row, 2] = bad
    for order in ("C", "F"):
        with pytest.raises(ValueError, match=f"v has NaN or Inf .* at row {row}, column 2"):
            fisher @ np.asarray(block, order=order)


def test_results_that_share_memory_with_earlier_ones_do_not_exist(rng):
    """Memory of large results is used again, but only when nobody holds them."""
    net = ng.MLP([400, 300, 10], dtype="float64", seed=0)  # results of 1 MB
    fisher = ng.Fisher(net, "softmax_cross_entropy", rng.standard_normal((20, 400)))
    vectors = rng.standard_normal((4, net.num_params))
    results = [fisher @ v for v in vectors]
    part = (fisher @ vectors[0])[1:]  # a view keeps the memory of the whole
    copies = [result.copy() for result in results]
    del results[1]
    assert same_bits(fisher @ vectors[1], copies.pop(1))
    assert all(same_bits(a, b) for a, b in zip(results, copies, strict=True))
    assert same_bits(part, results[0][1:])
    assert results[0].flags.writeable
