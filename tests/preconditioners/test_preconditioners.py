"""Preconditioners in use: updates, inverses, cg, threads, state, wrong input; the diagonal one."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, run_python, same_bits

FACTORED = {"kfac": ng.KFAC, "tkfac": ng.TKFAC}
KINDS = {**FACTORED, "ekfac": ng.EKFAC, "tekfac": ng.TEKFAC, "kl": ng.KLFAC}
kinds = pytest.mark.parametrize("kind", KINDS)
DIAGONAL = [
    Case("4-3-diagonal-softmax", (4, 3), SOFTMAX),
    Case("3-4-2-diagonal", (3, 4, 2), SQUARED),
    Case("5-6-4-diagonal", (5, 6, 4), BERNOULLI, activation="silu", bias=False, weighted=True),
]


def build(kind, problem, loss, **options):
    options.setdefault("sample_weight", problem.weight)
    return KINDS[kind](problem.net, loss, problem.x, **options)


@kinds
def test_products_change_with_refresh_only(kind, rng):
    case = Case("4-5-3-kron-snapshot", (4, 5, 3), SOFTMAX)
    problem = case.problem("float64")
    m = build(kind, problem, case.loss, damping=0.1)
    v = rng.standard_normal(m.shape[0])
    before = m @ v
    problem.net.params = 2 * problem.net.params
    m.update(problem.x + 1)
    assert same_bits(m @ v, before)
    with pytest.raises(ValueError, match="refresh"):
        m.to_dense(damped=True)
    m.refresh(0.1)
    assert not np.allclose(m @ v, before)
    after = m @ v
    m.refresh(0.2)
    assert m.damping == 0.2
    assert np.linalg.norm(m @ v) < np.linalg.norm(after)
    m.refresh(0.1)
    assert same_bits(m @ v, after)


BITS = [
    Case("20-33-17-10-kron-bits", (20, 33, 17, 10), SOFTMAX, n=700, weighted=True),
    Case("70-129-19-70-kron-bits", (70, 129, 19, 70), BERNOULLI, n=600, activation="logistic"),
]


@pytest.mark.parametrize("case", BITS, ids=cases.ids)
@pytest.mark.parametrize("samples", [None, 2])
@kinds
def test_bits_do_not_depend_on_threads_or_chunks(case, kind, samples, dtype, rng):
    problem = case.problem(dtype)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)

    def product(num_threads, chunk_size):
        options = {"num_threads": num_threads, "chunk_size": chunk_size}
        m = build(kind, problem, case.loss, samples=samples, damping=0.1, **options)
        m.update(problem.x[::2])
        m.refresh(0.02)
        return m @ v

    expected = product(1, None)
    for num_threads, chunk_size in [(2, None), (3, 256), (4, 1), (1, 300), (1, None)]:
        assert same_bits(product(num_threads, chunk_size), expected), (num_threads, chunk_size)


@kinds
def test_speeds_up_cg_on_an_ill_conditioned_problem(kind, dtype):
    """Features of scales from 5 to 0.01, mixed, so that no diagonal helps."""
    case = Case("20-30-8-30-20-kron-cg", (20, 30, 8, 30, 20), BERNOULLI, n=300)
    problem = case.problem(dtype)
    mix = np.random.default_rng(3).standard_normal((20, 20))
    x = (problem.x @ (mix * np.logspace(0.7, -2, 20))).astype(dtype)
    fisher = ng.Fisher(problem.net, case.loss, x)
    _, g = ng.value_and_grad(problem.net, case.loss, x, problem.y)
    m = KINDS[kind](problem.net, case.loss, x, damping=1e-3)
    # much at the accuracy at which an optimizer stops, less at a higher one; a bound for the worst
    # kind, on the residuals that both solves smooth
    for rtol, part in [(0.1, 0.5), (0.01, 0.6)]:
        options = {"damping": 1e-3, "rtol": rtol, "max_iter": 1000}
        plain = ng.cg(fisher, g, **options)
        helped = ng.cg(fisher, g, preconditioner=m, **options)
        assert plain.status == helped.status == "converged"
        assert helped.iterations <= part * plain.iterations


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"kl"}))
def test_exact_inverse_needs_one_iteration(kind):
    """One case and one layer: the approximation is the matrix, and EKFAC inverts it exactly."""
    problem = Case("6-4-kron-one", (6, 4), SOFTMAX, n=1).problem("float64")
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    options = {"pi": "exact"} if kind in FACTORED else {}
    m = build(kind, problem, SOFTMAX, damping=0.01, **options)
    result = ng.cg(fisher, problem.net.params, damping=0.01, rtol=1e-8, preconditioner=m)
    assert result.status == "converged"
    assert result.iterations == 1


def test_cg_with_a_preconditioner_that_is_not_ready(small):
    fisher = ng.Fisher(small.net, SOFTMAX, small.x)
    m = ng.KFAC(small.net, SOFTMAX, small.x)
    with pytest.raises(ValueError, match=r"preconditioner has no inverse yet"):
        ng.cg(fisher, small.net.params, preconditioner=m)


def test_cg_with_a_preconditioner_of_another_net_or_dtype(small):
    """As many parameters, 43 each: only the layout tells."""
    fisher = ng.Fisher(small.net, SOFTMAX, small.x)
    other = ng.MLP([42, 1], dtype=small.net.dtype)
    assert small.net.num_params == other.num_params
    m = ng.KFAC(other, "squared_error", np.ones((5, 42)), damping=1.0)
    with pytest.raises(ValueError, match=r"preconditioner is of a net \(42, 1\), A of a net"):
        ng.cg(fisher, small.net.params, preconditioner=m)
    wrong = "float32" if small.net.dtype == np.float64 else "float64"
    net = ng.MLP(small.net.sizes, dtype=wrong)
    m = ng.DiagonalPreconditioner(net, SOFTMAX, small.x, small.y, damping=1.0)
    with pytest.raises(ValueError, match="build it in"):
        ng.cg(fisher, small.net.params, preconditioner=m)


def test_usable_by_scipy(dtype):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    case = Case("4-5-3-kron-scipy", (4, 5, 3), SOFTMAX)
    problem = case.problem(dtype)
    fisher = ng.Fisher(problem.net, case.loss, problem.x, damping=0.01)
    m = build("kfac", problem, case.loss, damping=0.01)
    b = problem.net.params
    x, status = linalg.cg(fisher, b, M=m, rtol=1e-3)
    assert status == 0
    assert np.linalg.norm(fisher @ x - b) <= 2e-3 * np.linalg.norm(b)  # and its own recurrence


# -------------------------------------------------------------------------------------------------
# Wrong input


@pytest.fixture
def small():
    return Case("4-5-3-kron-wrong", (4, 5, 3), SOFTMAX).problem("float32")


@kinds
def test_wrong_arguments(kind, small):
    make, net, x = KINDS[kind], small.net, small.x
    with pytest.raises(TypeError, match="net must be an MLP"):
        make(None, SOFTMAX, x)
    with pytest.raises(ValueError, match="unknown loss"):
        make(net, "softmx", x)
    with pytest.raises(ValueError, match="X has 3 columns, the net expects 4"):
        make(net, SOFTMAX, x[:, :3])
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        make(net, SOFTMAX, x, samples=0)
    with pytest.raises(ValueError, match="seed must be < 2"):
        make(net, SOFTMAX, x, seed=2**64)
    with pytest.raises(ValueError, match="ema must be < 1, got 1"):
        make(net, SOFTMAX, x, ema=1.0)
    with pytest.raises(ValueError, match="chunk_size must be >= 1"):
        make(net, SOFTMAX, x, chunk_size=0)
    with pytest.raises(ValueError, match="y has 2 labels"):
        make(net, SOFTMAX, x, [0, 1])
    with pytest.raises(ValueError, match="sample_weight has length 2"):
        make(net, SOFTMAX, x, sample_weight=[1, 1])
    for damping in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="damping must be"):
            make(net, SOFTMAX, x, damping=damping)
        with pytest.raises(ValueError, match="damping must be"):
            make(net, SOFTMAX, x).refresh(damping)
    with pytest.raises(ValueError, match="damping is too small"):
        make(net, SOFTMAX, x).refresh(1e-44)


def test_wrong_options(small):
    with pytest.raises(ValueError, match=r"unknown pi 'traces'.*did you mean 'trace'"):
        ng.KFAC(small.net, SOFTMAX, small.x, pi="traces")
    with pytest.raises(ValueError, match="basis_period must be >= 1"):
        ng.EKFAC(small.net, SOFTMAX, small.x, basis_period=0)
    m = ng.KFAC(small.net, SOFTMAX, small.x)
    with pytest.raises(ValueError, match="layer must be < 2, got 2"):
        m.block(2)
    with pytest.raises(ValueError, match="v has shape"):
        m @ np.zeros(3)


@kinds
def test_calls_in_a_wrong_order(kind, small):
    m = KINDS[kind](small.net, SOFTMAX)
    v = small.net.params
    with pytest.raises(ValueError, match=r"call update\(X\) first"):
        m.refresh(0.1)
    with pytest.raises(ValueError, match="update"):
        m.to_dense()
    m.update(small.x)
    with pytest.raises(RuntimeError, match=r"call refresh\(damping\) first"):
        m @ v
    assert m.damping is None
    m.refresh(0.1)
    assert same_bits(m @ v, KINDS[kind](small.net, SOFTMAX, small.x, damping=0.1) @ v)
    for name, value in {"y": small.y, "damping": 0.1, "sample_weight": [1.0]}.items():
        with pytest.raises(ValueError, match=f"{name} needs X"):
            KINDS[kind](small.net, SOFTMAX, **{name: value})


@kinds
def test_overflow_leaves_the_averages_alone(kind, small):
    m = KINDS[kind](small.net, SQUARED, small.x, damping=0.1)
    dense = m.to_dense()
    good = small.net.params.copy()
    small.net.params = np.full(good.size, 1e30, "float32")
    with pytest.raises(FloatingPointError, match="averages stay"):
        m.update(np.full_like(small.x, 1e30))
    assert m.num_updates == 1
    assert same_bits(m.to_dense(), dense)


# -------------------------------------------------------------------------------------------------
# The diagonal


@pytest.mark.parametrize("kind", ["empirical", "fisher"])
@pytest.mark.parametrize("case", DIAGONAL, ids=cases.ids)
def test_diagonal(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    net, x, y, weight = problem.net, problem.x, problem.y, problem.weight
    m = ng.DiagonalPreconditioner(
        net,
        case.loss,
        x,
        y if kind == "empirical" else None,
        kind=kind,
        sample_weight=weight,
        damping=0.1,
        l2=0.02,
    )
    theta = np.asarray(net.params, float)
    if kind == "empirical":
        w = np.ones(len(x)) if weight is None else np.asarray(weight, float)
        gradients = [
            reference.gradient(problem.oracle, case.loss, theta, x[i : i + 1], y[i : i + 1])
            for i in range(len(x))
        ]
        expected = (w / w.sum()) @ np.square(gradients)
    else:
        expected = np.diag(reference.fisher(problem.oracle, case.loss, theta, x, weight))
    assert_close(m.diagonal(), expected, tol.product)
    assert_close(np.diag(m.to_dense()), expected, tol.product)
    assert m.trace() == pytest.approx(expected.sum(), rel=tol.product)
    v, block = rng.standard_normal(net.num_params), rng.standard_normal((net.num_params, 2))
    damped = (expected + 0.12) ** 0.75
    assert_close(m @ v, v / damped, tol.product)
    assert_close(m @ block, block / damped[:, None], tol.product)
    assert_close(np.diag(m.to_dense(damped=True)), damped, tol.product)
    assert m.core.dtype == dtype


def test_diagonal_moves_and_refreshes(small):
    net, x, y = small.net, small.x, small.y
    options = {"exponent": 1.0, "ema": 0.25}
    m = ng.DiagonalPreconditioner(net, SOFTMAX, x, y, **options)
    first = m.diagonal()
    with pytest.raises(RuntimeError, match="refresh"):
        m @ net.params
    m.update(2 * x, y)
    second = ng.EmpiricalFisher(net, SOFTMAX, 2 * x, y).diagonal()
    # float32 diagonals, averaged in float64
    assert_close(m.diagonal(), 0.25 * first + 0.75 * second, 1e-12)
    m.refresh(0.5)
    assert_close(m @ np.ones(net.num_params), 1 / (m.diagonal() + 0.5), 1e-6)
    result = ng.cg(ng.Fisher(net, SOFTMAX, x), net.params, damping=0.5, preconditioner=m)
    assert result.status == "converged"


def test_wrong_arguments_of_the_diagonal(small):
    net, x, y = small.net, small.x, small.y
    make = ng.DiagonalPreconditioner
    with pytest.raises(ValueError, match="y is missing"):
        make(net, SOFTMAX, x)
    with pytest.raises(ValueError, match=r"unknown kind 'fishr'.*did you mean 'fisher'"):
        make(net, SOFTMAX, x, y, kind="fishr")
    with pytest.raises(ValueError, match="exponent must be <= 1"):
        make(net, SOFTMAX, x, y, exponent=2.0)
    with pytest.raises(ValueError, match="exponent must be > 0"):
        make(net, SOFTMAX, x, y, exponent=0.0)
    with pytest.raises(ValueError, match="l2 must be >= 0"):
        make(net, SOFTMAX, x, y, l2=-1.0)
    with pytest.raises(ValueError, match="damping must be > 0"):
        make(net, SOFTMAX, x, y, damping=0.0)
    with pytest.raises(ValueError, match="y has 2 labels"):
        make(net, SOFTMAX, x, [0, 1])
    with pytest.raises(ValueError, match="update"):
        make(net, SOFTMAX).refresh(0.1)
    with pytest.raises(ValueError, match="y needs X"):
        make(net, SOFTMAX, None, y)
    with pytest.raises(ValueError, match="damping yet"):
        make(net, SOFTMAX, x, y).to_dense(damped=True)


# -------------------------------------------------------------------------------------------------
# Memory and threads


def test_factors_larger_than_the_machine_are_refused_by_name():
    net = ng.MLP([2_000_000, 3, 2])
    message = r"largest, A of layer 0, is \(2000001, 2000001\) in float32, 16,000,016,000,004 bytes"
    for make in KINDS.values():
        with pytest.raises(MemoryError, match=message):
            make(net, SOFTMAX)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_factors_that_find_no_memory_are_named():
    """Address space for one factor of 100 MB, not for its scratch."""
    script = """
        import resource
        import numpy as np, natgrad_fast as ng
        net = ng.MLP([5000, 4, 2])
        x = np.ones((3, 5000), "f4")
        ng.value(net, "squared_error", x, np.ones((3, 2)))  # everything is loaded and started
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (150 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for call in (lambda: ng.EKFAC(net, "softmax_cross_entropy", x), lambda: ng.KFAC.on(matrix)):
            matrix = ng.Fisher(net, "softmax_cross_entropy", x)
            try:
                m = call()
                m.refresh(0.1)
            except MemoryError as error:
                print(error)
    """
    lines = run_python(script).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "the largest one, A of layer 0 (5001 x 5001), takes 1.0004e+08 bytes" in line


@kinds
def test_calls_of_several_threads_are_as_one_after_the_other(kind, dtype, rng):
    case = Case("20-33-10-kron-threads", (20, 33, 10), SOFTMAX, n=200)
    problem = case.problem(dtype)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    m = build(kind, problem, case.loss, samples=1, damping=0.1, num_threads=2)
    for _ in range(8):
        m.update(problem.x)
    wanted = copy.deepcopy(m)
    images, logdets = {}, set()
    for damping in (0.1, 0.3):
        wanted.refresh(damping)
        images[damping] = wanted @ v
        logdets.add(wanted.logdet(damping))

    shared = build(kind, problem, case.loss, samples=1, damping=0.1, num_threads=2)
    with ThreadPoolExecutor(4) as pool:  # the draws depend on the number of updates before
        list(pool.map(lambda _: shared.update(problem.x), range(8)))
    for name, array in m.state_dict().items():
        found = shared.state_dict()[name]
        assert same_bits(found, array) if isinstance(array, np.ndarray) else found == array

    shared.refresh(0.1)
    state = shared.state_dict()

    def work(number):
        damping = (0.1, 0.3)[number % 2]
        shared.refresh(damping)
        product = shared @ v
        assert any(same_bits(product, image) for image in images.values())
        assert shared.logdet(damping) in logdets
        assert shared.damping in images
        if number % 5 == 0:
            shared.load_state_dict(state)
        assert shared.state_dict()["num_updates"] == 9
        assert same_bits(shared.to_dense(), to_dense)

    to_dense = shared.to_dense()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))


def test_the_diagonal_from_several_threads(dtype):
    case = Case("20-33-10-diagonal-threads", (20, 33, 10), SOFTMAX, n=200)
    problem = case.problem(dtype)
    options = {"kind": "fisher", "samples": 1}
    one, shared = (ng.DiagonalPreconditioner(problem.net, SOFTMAX, **options) for _ in range(2))
    for _ in range(8):
        one.update(problem.x)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: shared.update(problem.x), range(8)))
    assert same_bits(one.diagonal(), shared.diagonal())
