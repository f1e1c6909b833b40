"""Kronecker-factored and diagonal preconditioners against their definitions and identities."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
import reference_kronecker
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits

KINDS = {"kfac": ng.KFAC, "tkfac": ng.TKFAC, "ekfac": ng.EKFAC, "tekfac": ng.TEKFAC}
FACTORED = ["kfac", "tkfac"]
IN_BASIS = {"ekfac": "kfac", "tekfac": "tkfac"}
NETS = [
    Case("4-3-kron-softmax", (4, 3), SOFTMAX),
    Case("3-4-2-kron", (3, 4, 2), SQUARED),
    Case("5-4-kron-no-bias", (5, 6, 4), BERNOULLI, activation="silu", bias=False, weighted=True),
    Case("4-6-5-2-kron", (4, 6, 5, 2), SOFTMAX, activation="softplus", bias=(True, False, True)),
    Case("9-12-3-12-9-kron", (9, 12, 3, 12, 9), BERNOULLI, n=40, activation="logistic"),
    # input layers of a whole number of panels, where the constant 1 begins a new one
    Case("16-8-3-kron-panels", (16, 8, 3), SOFTMAX, n=300, weighted=True),
    Case("20-33-17-10-kron", (20, 33, 17, 10), SOFTMAX, n=300, weighted=True),
]
nets = pytest.mark.parametrize("case", NETS, ids=cases.ids)
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind, problem, loss, **options):
    options.setdefault("sample_weight", problem.weight)
    return KINDS[kind](problem.net, loss, problem.x, **options)


def oracle_layers(problem, loss):
    theta, x, _ = problem.args
    return reference_kronecker.layers(problem.oracle, loss, theta, x, problem.weight)


def fisher_blocks(problem, loss):
    """F without the blocks between layers, in the order of the parameters."""
    return reference_kronecker.dense(
        oracle_layers(problem, loss), reference_kronecker.fisher_block
    )


def basis_of(preconditioner, layer):
    """Columns U of a layer of EKFAC, and its factors U_G and U_A, in the order of [W b]."""
    left, right, scales = preconditioner.core.block(layer, damped=False)
    return np.kron(left, right).T, left.T, right.T, scales.ravel()


@nets
def test_oracle_blocks_are_those_of_the_fisher_matrix(case):
    problem = case.problem("float64")
    theta, x, _ = problem.args
    dense = reference.fisher(problem.oracle, case.loss, theta, x, problem.weight)
    blocks = fisher_blocks(problem, case.loss)
    # equal sums in another order: rounding of up to 300 terms
    assert_close(np.where(blocks != 0, dense, 0), blocks, 1e-12)


@nets
@pytest.mark.parametrize("kind", FACTORED)
def test_factors(case, kind, dtype, tol):
    problem = case.problem(dtype)
    expected = reference_kronecker.dense(
        oracle_layers(problem, case.loss),
        lambda layer: np.kron(*reference_kronecker.factors(kind, layer)),
    )
    m = build(kind, problem, case.loss)
    assert_close(m.to_dense(), expected, tol.product)
    assert_close(m.diagonal(), np.diag(expected), tol.product)
    assert m.trace() == pytest.approx(np.trace(expected), rel=tol.product)


@nets
@pytest.mark.parametrize("kind", IN_BASIS)
def test_eigenbases_and_diagonal(case, kind, dtype, tol):
    problem = case.problem(dtype)
    m = build(kind, problem, case.loss)
    for index, layer in enumerate(oracle_layers(problem, case.loss)):
        basis, *sides, scales = basis_of(m, index)
        factors = reference_kronecker.factors(IN_BASIS[kind], layer)
        for side, factor in zip(sides, factors, strict=True):
            # a column is rounded to the dtype, entry by entry
            assert_close(side.T @ side, np.eye(len(side)), 4 * tol.eps * len(side))
            rotated = side.T @ factor @ side
            off_diagonal = rotated - np.diag(np.diag(rotated))
            assert np.abs(off_diagonal).max() <= tol.product * np.abs(rotated).max()
        block = reference_kronecker.fisher_block(layer)
        assert_close(scales, reference_kronecker.best_diagonal(block, basis), tol.product)
    blocks = [m.block(layer) for layer in range(problem.net.num_layers)]
    dense = m.to_dense()
    assert_close(m.diagonal(), np.diag(dense), 1e-12)  # the same factors, in float64
    assert m.trace() == pytest.approx(sum(np.trace(b) for b in blocks), rel=1e-12)


@nets
@pytest.mark.parametrize("pi", ["trace", "frobenius", "unit", "exact"])
@pytest.mark.parametrize("kind", FACTORED)
def test_damped_factors(case, kind, pi, dtype, tol):
    problem = case.problem(dtype)
    m = build(kind, problem, case.loss, damping=0.01, pi=pi)
    expected = reference_kronecker.dense(
        oracle_layers(problem, case.loss),
        lambda layer: reference_kronecker.damped(kind, layer, 0.01, pi),
    )
    assert_close(m.to_dense(damped=True), expected, tol.product)


@nets
@kinds
def test_product_is_the_inverse_of_the_damped_matrix(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    m = build(kind, problem, case.loss, damping=0.05)
    dense = m.to_dense(damped=True)
    v, block = rng.standard_normal(m.shape[0]), rng.standard_normal((m.shape[0], 3))
    # the rounding of an inverse grows with the condition of the matrix
    condition = np.linalg.cond(dense)
    assert condition < 1e5
    bound = 100 * tol.eps * condition**0.5
    assert_close(m @ v, np.linalg.solve(dense, v), max(bound, tol.product))
    assert_close(m @ block, np.linalg.solve(dense, block), max(bound, tol.product))
    assert (m @ v).dtype == dtype


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
@pytest.mark.parametrize(("kind", "pi"), [("kfac", "trace"), ("kfac", "exact"), ("ekfac", None)])
def test_product_on_several_tiles_and_panels(case, kind, pi, dtype, tol, rng):
    """Too large for dense matrices: layer by layer, left V right with the exported factors."""
    problem = case.problem(dtype)
    options = {} if pi is None else {"pi": pi}
    m = build(kind, problem, case.loss, samples=1, damping=0.1, **options)
    g = rng.standard_normal(m.shape[0])
    found, at = m @ g, 0
    for index, (w, b) in enumerate(zip(problem.net.weights, problem.net.biases, strict=True)):
        left, right, scales = m.core.block(index, damped=True)
        v = g[at : at + w.size].reshape(w.shape)
        if b.size:
            v = np.hstack([v, g[at + w.size : at + w.size + b.size][:, None]])
        if scales is None:
            image = np.linalg.solve(left, np.linalg.solve(right, v.T).T)
        else:
            image = left.T @ ((left @ v @ right.T) / scales) @ right
        size = w.size + b.size
        expected = np.concatenate([image[:, : w.shape[1]].ravel(), image[:, w.shape[1] :].ravel()])
        # sums of up to 400 terms on both sides of V
        assert_close(found[at : at + size], expected, tol.product)
        at += size


@nets
@pytest.mark.parametrize("kind", FACTORED)
def test_exact_damping_is_tikhonov(case, kind, dtype, tol):
    m = build(kind, case.problem(dtype), case.loss, pi="exact", damping=0.03)
    expected = m.to_dense() + 0.03 * np.eye(m.shape[0])
    assert_close(m.to_dense(damped=True), expected, tol.product)


@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX, BERNOULLI])
@kinds
def test_single_case_is_the_fisher_block(loss, kind, dtype, tol):
    """One case: F_l = Gam (x) a a' is a Kronecker product itself."""
    case = Case(f"5-7-4-kron-single-{loss}", (5, 7, 4), loss, n=1)
    problem = case.problem(dtype)
    m = build(kind, problem, loss)
    fisher = ng.Fisher(problem.net, loss, problem.x)
    for layer in range(2):
        assert_close(m.block(layer), fisher.block(layer), tol.product)


@nets
@pytest.mark.parametrize("kind", IN_BASIS)
def test_best_diagonal_is_nearer_to_the_fisher_matrix(case, kind):
    problem = case.problem("float64")
    blocks = fisher_blocks(problem, case.loss)
    near, far = build(kind, problem, case.loss), build(IN_BASIS[kind], problem, case.loss)
    for index, layer in enumerate(oracle_layers(problem, case.loss)):
        order = np.ix_(layer.order, layer.order)
        block = reference_kronecker.fisher_block(layer)[order]
        scale = np.linalg.norm(block)
        distances = [np.linalg.norm(block - m.block(index)) / scale for m in (near, far)]
        # equal where all Gam_i are, as in the last layer for squared error
        assert distances[0] <= distances[1] + 1e-12
    distances = [np.linalg.norm(blocks - m.to_dense()) for m in (near, far)]
    assert distances[0] < 0.999 * distances[1]


@nets
@pytest.mark.parametrize("kind", ["tkfac", "ekfac", "tekfac"])
@pytest.mark.parametrize("samples", [None, 2])
def test_traces_of_the_blocks_are_exact(case, kind, samples, dtype, tol):
    problem = case.problem(dtype)
    m = build(kind, problem, case.loss, samples=samples, seed=5)
    fisher = ng.Fisher(
        problem.net,
        case.loss,
        problem.x,
        samples=samples,
        seed=5,
        sample_weight=problem.weight,
    )
    for layer in range(problem.net.num_layers):
        trace = np.trace(np.asarray(fisher.block(layer), float))
        assert np.trace(m.block(layer)) == pytest.approx(trace, rel=tol.product)
    assert m.trace() == pytest.approx(fisher.trace(), rel=tol.product)


@kinds
def test_sampled_factors_converge(kind):
    case = Case("4-5-3-kron-sampled", (4, 5, 3), SOFTMAX, n=30)
    problem = case.problem("float64")
    exact = build(kind, problem, case.loss).to_dense()
    errors = []
    for samples in (40, 4000):
        sampled = build(kind, problem, case.loss, samples=samples, seed=7).to_dense()
        errors.append(np.linalg.norm(sampled - exact) / np.linalg.norm(exact))
    # 1 / sqrt(30 * samples) times a spread of the squared scores of about 2: 6e-3 for 4000
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3  # sqrt(100) = 10 on average


@kinds
def test_each_update_draws_anew_in_a_fixed_sequence(kind):
    case = Case("4-5-3-kron-draws", (4, 5, 3), SOFTMAX)
    problem = case.problem("float64")

    def after_updates(number, seed):
        m = build(kind, problem, case.loss, samples=1, seed=seed, ema=0.0)
        for _ in range(number - 1):
            m.update(problem.x)
        return m.to_dense()

    assert same_bits(after_updates(2, 0), after_updates(2, 0))
    assert not np.allclose(after_updates(1, 0), after_updates(2, 0))
    assert not np.allclose(after_updates(1, 1), after_updates(2, 0))


def dead(problem):
    """The first hidden layer gets no signal and passes none on."""
    problem.net.weights[1][...] = 0
    problem.x[...] = 0
    return problem


HARD = {
    "dead": (Case("3-40-4-kron-dead", (3, 40, 4), SOFTMAX, activation="relu"), dead),
    "single": (Case("30-40-5-kron-single", (30, 40, 5), BERNOULLI, n=1), lambda p: p),
    "deficient": (Case("60-50-9-kron-deficient", (60, 50, 9), SQUARED, n=4), lambda p: p),
    "saturated": (
        Case("5-9-4-kron-saturated", (5, 9, 4), SOFTMAX, activation="logistic"),
        lambda p: p._replace(x=30 * p.x),
    ),
    "large": (
        Case("6-9-3-kron-large", (6, 9, 3), SQUARED, activation="identity"),
        lambda p: p._replace(x=1e4 * p.x),
    ),
}


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-8])
@pytest.mark.parametrize("pi", [None, "frobenius", "exact"])
@kinds
def test_positive_definite_for_every_input(hard, damping, kind, pi, dtype, rng):
    case, change = HARD[hard]
    problem = change(case.problem(dtype))
    if pi is not None and kind not in FACTORED:
        pytest.skip("has no pi")
    m = build(kind, problem, case.loss, damping=damping, **({} if pi is None else {"pi": pi}))
    vectors = rng.standard_normal((m.shape[0], 20))
    images = np.asarray(m @ vectors, float)
    assert np.isfinite(images).all()
    assert ((vectors * images).sum(axis=0) > 0).all()
    for layer in range(problem.net.num_layers):
        for factor in m.core.block(layer, damped=True)[: 2 if kind in FACTORED else 0]:
            assert np.linalg.eigvalsh(factor).min() > 0 or pi == "exact"


@pytest.mark.parametrize("kind", FACTORED)
def test_curvature_of_dead_units_is_damping_alone(kind, dtype, tol, rng):
    case, change = HARD["dead"]
    m = build(kind, change(case.problem(dtype)), case.loss, damping=0.25)
    v = rng.standard_normal(m.shape[0])
    size = len(m.block(0))
    assert not m.block(0).any()
    # G = 0: gamma / pi and A + pi gamma I, or for TKFAC (delta = 0) gamma and gamma
    expected = v[:size] / 0.25
    if kind == "kfac":
        expected[-40:] *= 0.5 / (1 + 0.5)  # only the constant 1 is alive in A
    assert_close((m @ v)[:size], expected, tol.product)


def test_moving_averages(dtype, tol):
    case = Case("4-5-3-kron-ema", (4, 5, 3), SOFTMAX)
    problem, other = case.problem(dtype), case.problem(dtype)
    other.net.params = -0.5 * other.net.params
    x = 0.3 + problem.x[::-1]
    for ema, weights in [(0.95, (1 / 3, 1 / 3, 1 / 3)), (0.4, (0.16, 0.24, 0.6))]:
        m = ng.KFAC(problem.net, case.loss, problem.x, ema=ema)
        m.net.params = other.net.params
        m.update(x)
        m.update(problem.x)
        m.net.params = case.problem(dtype).net.params
        batches = [
            ng.KFAC(problem.net, case.loss, problem.x),
            ng.KFAC(other.net, case.loss, x),
            ng.KFAC(other.net, case.loss, problem.x),
        ]
        assert m.num_updates == 3
        for layer in range(2):
            found = m.core.block(layer, damped=False)[:2]
            each = [batch.core.block(layer, damped=False)[:2] for batch in batches]
            for side in range(2):
                mean = sum(w * b[side] for w, b in zip(weights, each, strict=True))
                assert_close(found[side], mean, tol.product)


@pytest.mark.parametrize("kind", ["tkfac", "ekfac", "tekfac"])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_moving_averages_keep_the_trace(kind, period, dtype, tol):
    """Also where the diagonal moves from one eigenbasis to the next."""
    case = Case("4-5-3-kron-trace", (4, 5, 3), SOFTMAX)
    problem = case.problem(dtype)
    options = {} if kind == "tkfac" else {"basis_period": period}
    batches = [problem.x, 0.3 + problem.x, -2 * problem.x]
    m = ng.__dict__[kind.upper()](problem.net, case.loss, batches[0], ema=0.6, **options)
    for x in batches[1:]:
        m.update(x)
    traces = [ng.Fisher(problem.net, case.loss, x).trace() for x in batches]
    expected = np.dot([0.3, 0.3, 0.4], traces)  # 1 - 1/2 = 0.5, then 0.6
    if kind == "tkfac":
        # averages of the moments: the trace is exact in expectation of equal weights
        blocks = [ng.TKFAC(problem.net, case.loss, x).trace() for x in batches]
        assert_close(blocks, traces, tol.product)
    assert m.trace() == pytest.approx(np.dot([0.3, 0.3, 0.4], traces), rel=tol.product)
    assert expected > 0


def test_diagonal_in_a_new_basis_is_that_of_the_old_approximation():
    """With the batch's share near 0, S is the diagonal of the old matrix in the new basis."""
    case = Case("4-5-3-kron-rotation", (4, 5, 3), SOFTMAX)
    problem = case.problem("float64")
    m = ng.EKFAC(problem.net, case.loss, problem.x, ema=0.999999)
    for _ in range(2):
        m.update(problem.x)
    old = [m.block(layer) for layer in range(2)]
    m.update(0.1 * problem.x)  # keep = 3/4
    new = ng.EKFAC(problem.net, case.loss, 0.1 * problem.x)
    for index, layer in enumerate(oracle_layers(problem._replace(x=0.1 * problem.x), case.loss)):
        basis, _, _, scales = basis_of(m, index)
        inverse = np.argsort(layer.order)
        carried = reference_kronecker.best_diagonal(old[index][np.ix_(inverse, inverse)], basis)
        batch = reference_kronecker.best_diagonal(reference_kronecker.fisher_block(layer), basis)
        assert_close(scales, 0.75 * carried + 0.25 * batch, 1e-10)
    assert new.num_updates == 1


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
@pytest.mark.parametrize("damping", [1e-2, 1e-3])
def test_speeds_up_cg_on_an_ill_conditioned_problem(kind, damping, dtype):
    """Features of scales from 1 to 1e-3: diagonal in no basis of the parameters."""
    case = Case("12-20-6-kron-cg", (12, 20, 6), SOFTMAX, n=200)
    problem = case.problem(dtype)
    mix = np.random.default_rng(3).standard_normal((12, 12))
    x = (problem.x @ (mix * np.logspace(0.7, -2, 12))).astype(dtype)
    fisher = ng.Fisher(problem.net, case.loss, x)
    _, g = ng.value_and_grad(problem.net, case.loss, x, problem.y)
    m = KINDS[kind](problem.net, case.loss, x, damping=damping)
    plain = ng.cg(fisher, g, damping=damping, rtol=1e-2, max_iter=2000)
    helped = ng.cg(fisher, g, damping=damping, rtol=1e-2, max_iter=2000, preconditioner=m)
    print(plain.iterations, helped.iterations)
    assert plain.status == helped.status == "converged"
    assert helped.iterations <= 0.6 * plain.iterations


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
    with pytest.raises(ValueError, match="unknown pi 'traces'.*did you mean 'trace'"):
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
@pytest.mark.parametrize("case", NETS[:5], ids=cases.ids)
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
    with pytest.raises(ValueError, match="unknown kind 'fishr'.*did you mean 'fisher'"):
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
