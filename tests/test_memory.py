"""Memory that is kept for reuse, where memory is short."""

import sys

import natgrad_fast as ng
import pytest
from cases import run_python

# In a process of its own, which limits its address space. The blocks (P, 8) of products are 64 MB.
PROGRAM = """
    import resource
    import numpy as np, natgrad_fast as ng

    net = ng.MLP([1000, 1000], dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((64, 1000))
    F = ng.Fisher(net, "squared_error", x, num_threads=1)
    V = np.asfortranarray(np.random.default_rng(1).standard_normal((net.num_params, 8)))
    expected = F @ V
    first = expected[:, :6].copy()
    del expected
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
"""
AGAIN = """
    # 48 MB: no kept block has this size, and the address space has no room beside the kept ones
    assert np.array_equal(F @ V[:, :6], first)
    del first
"""
REFUSED = """
    space = ng.SampleSpace(ng.Fisher(net, "squared_error", x, num_threads=1))
    try:
        space.kernel()
    except MemoryError as error:
        assert "cannot allocate" in str(error), error
        assert "MiB, for the kernel (64000, 64000) in float64" in str(error), error
    else:
        raise SystemExit("64,000 squared doubles fit")
    wide = ng.MLP([1, 4000, 1], dtype="float64", seed=0)
    try:
        ng.Fisher(wide, "squared_error", np.zeros((20_000, 1)))
    except MemoryError as error:
        assert "MiB, for the activations of 20000 cases: a smaller chunk_size" in str(error), error
    else:
        raise SystemExit("80 million activations fit")
    assert np.array_equal(F @ V[:, :6], first)

    def purpose(call):
        try:
            call()
        except MemoryError as error:
            return str(error)
        raise SystemExit("it fits")

    large = np.broadcast_to(np.ones(1), (net.num_params, 100))
    assert "for v of shape (1001000, 100)" in purpose(lambda: F @ large)
    J = ng.Jacobian(net, x[:1])
    assert "and 100 vectors" in purpose(lambda: J.T @ np.ones((1000, 100)))
    assert "rank 900 of (1001000, 1001000)" in purpose(lambda: ng.Nystrom(F, rank=900, damping=1.0))
    few = ng.Fisher(ng.MLP([1, 800, 1], dtype="float64"), "squared_error", np.ones((3, 1)))
    assert "for the matrix (2401, 2401)" in purpose(lambda: ng.DenseMatrix(few))
    assert "for the matrix (2401, 2401)" in purpose(lambda: few.to_dense())
"""

limited = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc and limits the address space"
)


@limited
def test_kept_memory_is_given_back_where_an_allocation_fails():
    run_python(PROGRAM + AGAIN)


@limited
def test_a_failed_allocation_says_how_much_was_asked_for():
    run_python(PROGRAM + REFUSED)


def test_release_memory_gives_everything_back_once():
    net = ng.MLP([300, 300], dtype="float64", seed=0)
    product = net.params * 2.0
    before = ng.MLP([300, 300], dtype="float64", seed=0)(product[:90_000].reshape(300, 300))
    del before
    assert ng.release_memory() > 0
    assert ng.release_memory() == 0
