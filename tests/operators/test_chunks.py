"""Batches that go through in chunks of cases: equal bits, bounded memory, and how much of it."""

import gc
import os
import sys

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import quantities
from cases import MEAN_VARIANCE, SOFTMAX, SQUARED, STUDENT, Case, curvature, run_python, same_bits
from natgrad_fast.operators.costs import product_flops

# A chunk is a whole number of blocks of up to 256 cases: several chunks, the last one not full.
BATCHES = [
    Case("20-31-9-5-chunks", (20, 31, 9, 5), SOFTMAX, n=1000, weighted=True),
    Case("64-96-10-chunks", (64, 96, 10), SOFTMAX, n=1025, activation="gelu"),
    Case("9-40-4-chunks-student", (9, 40, 4), STUDENT, n=777, activation="silu", weighted=True),
    Case("9-11-6-chunks-mean-variance", (9, 11, 6), MEAN_VARIANCE, n=600, bias=False),
]
SIZES = [1, 131, 256, 10_000]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_size", SIZES)
@pytest.mark.parametrize("case", BATCHES, ids=cases.ids)
def test_bits_do_not_depend_on_chunks(case, chunk_size, threads, dtype):
    problem = case.problem(dtype)
    whole = quantities.of_problem(problem, case.loss, 1)
    chunked = quantities.of_problem(problem, case.loss, threads, chunk_size)
    for (name, expected), (_, found) in zip(whole, chunked, strict=True):
        assert same_bits(found, expected), name


@pytest.mark.parametrize("case", BATCHES, ids=cases.ids)
def test_chunks_are_chunks(case, dtype):
    """What the test above compares is not the same thing twice."""
    problem = case.problem(dtype)
    counts = [
        problem.net.linearize(problem.x, chunk_size=size).num_chunks for size in [*SIZES, None]
    ]
    assert counts[0] >= counts[1] >= counts[2] > 1
    assert counts[3:] == [1, 1]


@pytest.mark.parametrize("kind", cases.GAUSS_NEWTON)
def test_bits_do_not_depend_on_passes(kind):
    """Deltas of many columns go through in several passes of at most 64 MB: fewer for chunks."""
    problem = Case("64-128-64-10-passes", (64, 128, 64, 10), SQUARED, n=12_000).problem("float32")
    chosen = {"samples": 20} if kind == "sampled" else {}
    whole, chunked = (
        ng.Fisher(problem.net, SQUARED, problem.x, chunk_size=size, **chosen)
        if kind in ("fisher", "sampled")
        else curvature(kind, problem, SQUARED, chunk_size=size)
        for size in (None, 3000)
    )
    assert chunked.trace() == whole.trace()
    assert same_bits(chunked.diagonal(), whole.diagonal())
    assert same_bits(chunked.block(2), whole.block(2))


@pytest.mark.parametrize("num_vectors", [1, 9])
def test_bits_of_blocks_do_not_depend_on_passes(num_vectors, rng):
    problem = Case("64-128-64-10-passes", (64, 128, 64, 10), SQUARED, n=12_000).problem("float32")
    block = rng.standard_normal((problem.net.num_params, num_vectors)).astype("float32")
    u = rng.standard_normal((problem.x.shape[0] * 10, num_vectors)).astype("float32")
    whole, chunked = (ng.Jacobian(problem.net, problem.x, chunk_size=size) for size in (None, 3000))
    assert same_bits(chunked @ block, whole @ block)
    assert same_bits(chunked.T @ u, whole.T @ u)
    whole, chunked = (curvature("fisher", problem, SQUARED, chunk_size=c) for c in (None, 3000))
    assert same_bits(chunked @ block, whole @ block)


@pytest.mark.parametrize("case", BATCHES, ids=cases.ids)
def test_one_pass_functions_do_not_depend_on_chunks(case, dtype, monkeypatch, rng):
    """The gradient and the products of a net choose their chunks themselves."""
    problem = case.problem(dtype)
    net, x, y = problem.net, problem.x, problem.y
    v = rng.standard_normal((net.num_params, 2)).astype(dtype)
    u = rng.standard_normal((len(x), net.sizes[-1])).astype(dtype)

    def results():
        h, g = ng.value_and_grad(net, case.loss, x, y, sample_weight=problem.weight, l2=0.1)
        return [h, g, net.jvp(x, v), net.vjp(x, u)]

    whole = results()
    monkeypatch.setattr(ng.MLP, "one_pass_chunk_size", 200)
    for found, expected in zip(results(), whole, strict=True):
        assert same_bits(found, expected)


FORMS = {
    "other-dtype": lambda x: x.astype("float32"),
    "list": np.ndarray.tolist,
    "view": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "same": np.ndarray.copy,
}


@pytest.mark.parametrize("kind", [*cases.CURVATURES, "jacobian"])
@pytest.mark.parametrize("form", FORMS)
def test_inputs_outlive_their_names(form, kind, rng):
    """The operator reads X again in every product: whatever it reads must stay alive."""
    problem = BATCHES[0].problem("float64")
    v = rng.standard_normal(problem.net.num_params)

    def build(chunk_size):
        x = FORMS[form](problem.x)
        if kind == "jacobian":
            return ng.Jacobian(problem.net, x, chunk_size=chunk_size)
        return curvature(kind, problem._replace(x=x), SOFTMAX, chunk_size=chunk_size)

    expected = build(None) @ v
    operator = build(1)
    gc.collect()
    others = [rng.standard_normal(problem.x.shape) for _ in range(20)]  # where X was, if it is gone
    assert same_bits(operator @ v, expected)
    assert len(others) == 20


def test_flops_know_whether_the_forward_pass_is_repeated():
    problem = BATCHES[0].problem("float64")
    for kind in cases.CURVATURES:
        name = "hessian" if kind == "hessian" else "gauss_newton"
        for size, repeated in [(None, False), (1, True), (999, False), (1000, False)]:
            operator = curvature(kind, problem, SOFTMAX, chunk_size=size)
            flops = product_flops(problem.net.sizes, 1000, name, recompute=repeated)
            assert operator.flops_per_product == flops, (kind, size)


# ------------------------------------------------------------------------------------------------
# Memory


# A process for every operator, since memory is kept and used again. Small pieces come from the
# system one by one, so that what is resident is what is alive; the files of /proc are Linux's.
ESTIMATE = """
    import sys, numpy as np, natgrad_fast as ng

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * {page}

    def product(matrix, n, chunk, k, samples=None, loss="squared_error"):
        options = dict(chunk_size=chunk, num_threads=2)
        x, y = X[:n], Y[:n]
        before = resident()
        if matrix == "jacobian":
            operator = ng.Jacobian(net, x, **options)
        elif matrix == "fisher":
            operator = ng.Fisher(net, loss, x, samples=samples, **options)
        else:
            kind = dict(ggn=ng.GGN, empirical_fisher=ng.EmpiricalFisher, hessian=ng.Hessian)[matrix]
            operator = kind(net, loss, x, y, **options)
        if matrix == "jacobian":
            result = operator.T @ (operator @ V[:, 0])  # both products: each has scratch of its own
        result = operator @ V[:, :k]
        grown = resident() - before
        estimate = ng.estimate_memory(
            net, n, matrix=matrix, loss=loss, samples=samples, num_vectors=k, **options
        )
        return f"{{grown}} {{estimate}}"

    rng = np.random.default_rng(0)
    X = rng.standard_normal((60_000, 64), dtype="float32")
    Y = rng.random((60_000, 10), dtype="float32")
    net = ng.MLP([64, 128, 64, 10], {activation!r}, dtype="float32")
    V = np.ascontiguousarray(rng.standard_normal((4, net.num_params), dtype="float32")).T
    ng.Fisher(net, "squared_error", X[:2000], num_threads=2) @ V[:, 0]  # starts the threads
    print(product(n={n}, chunk={chunk}, **{case}))
"""
ESTIMATED = [
    {"matrix": "fisher", "k": 1},
    {"matrix": "fisher", "k": 4},
    {"matrix": "fisher", "k": 1, "loss": "softmax_cross_entropy"},
    {"matrix": "fisher", "k": 1, "samples": 20},
    {"matrix": "ggn", "k": 1, "loss": "bernoulli_cross_entropy"},
    {"matrix": "ggn", "k": 1, "loss": "student_t"},
    {"matrix": "empirical_fisher", "k": 1, "loss": "bernoulli_cross_entropy"},
    {"matrix": "hessian", "k": 4, "loss": "poisson"},
    {"matrix": "jacobian", "k": 1},
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("activation", ["tanh", "identity"])
@pytest.mark.parametrize(("chunk", "n"), [(None, 30_000), (30_000, 60_000)])
@pytest.mark.parametrize("case", ESTIMATED, ids=lambda case: "-".join(map(str, case.values())))
def test_memory_is_as_estimated(case, chunk, n, activation):
    """Resident memory after a product, over the estimate, at some 100 MB.

    Within 5 % and two huge pages of 2 MiB: large arrays end within one, and beside the arrays there
    are the allocator's own numbers and Python's objects, some 1 MB in all.
    """
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = ESTIMATE.format(
        page=os.sysconf("SC_PAGE_SIZE"), activation=activation, n=n, chunk=chunk, case=case
    )
    grown, estimate = map(int, run_python(program, env=env).split())
    assert 0.95 * estimate < grown < 1.05 * estimate + 2 * (2 << 20)


def test_estimate_falls_with_the_chunk_and_grows_with_everything_else():
    net = ng.MLP([64, 128, 64, 10])

    def estimate(num_cases=100_000, **options):
        return ng.estimate_memory(net, num_cases, num_threads=1, **options)

    for matrix in ["fisher", "ggn", "empirical_fisher", "hessian", "jacobian"]:
        whole = estimate(matrix=matrix)
        assert isinstance(whole, int)
        assert estimate(matrix=matrix, chunk_size=1000) < 0.2 * whole
        assert estimate(matrix=matrix, chunk_size=10**9) == whole
        assert estimate(200_000, matrix=matrix) > 1.9 * whole
        assert estimate(matrix=matrix, num_vectors=2) > whole
    assert estimate(samples=50) > estimate(samples=1) >= estimate()
    assert estimate(matrix="hessian") > estimate(matrix="fisher") > estimate(matrix="jacobian")
    # sixteen bytes a case are left of the weights, whatever the number of cases
    growth = estimate(10**7, chunk_size=1000) - estimate(10**6, chunk_size=1000)
    assert growth <= 17 * 9 * 10**6


MILLION = """
    import resource, sys, numpy as np, natgrad_fast as ng
    n = 1_000_000
    rng = np.random.default_rng(0)
    X = np.empty((n, 64), np.float32)
    for first in range(0, n, 10_000):
        rng.standard_normal(out=X[first:first + 10_000], dtype=np.float32)
    y = (np.arange(n) % 10).astype(np.uint8)
    net = ng.MLP([64, 128, 64, 10], dtype="float32")
    F = ng.Fisher(net, "softmax_cross_entropy", X, chunk_size=8192, num_threads=2)
    product = F @ net.params
    h, g = ng.value_and_grad(net, "softmax_cross_entropy", X, y, num_threads=2)
    assert np.isfinite(product).all() and np.isfinite(g).all() and 1.0 < h < 10.0
    if sys.platform == "linux":  # ru_maxrss counts what the parent had before exec
        lines = open("/proc/self/status").read().splitlines()
        print(1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_a_million_cases_fit_into_one_gigabyte():
    """X alone is 256 MB; all the activations of the net would be 3.7 GB."""
    assert int(run_python(MILLION)) < 2**30
