"""Kronecker-factored approximations against their definitions and identities."""

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
    return reference_kronecker.dense(oracle_layers(problem, loss), reference_kronecker.fisher_block)


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
    assert distances[0] < distances[1]


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


def extremes(m, net):
    """Vectors of each layer whose curvature is largest or smallest, (P, 4) each."""
    at = 0
    for layer in range(net.num_layers):
        left, right, scales = m.core.block(layer, damped=True)
        bases = [left.T, right.T]
        if scales is None:
            bases = [np.linalg.eigh(factor)[1] for factor in (left, right)]
        ends = [basis[:, [0, -1]] for basis in bases]
        vectors = np.kron(*ends)[m._order(layer)]
        padded = np.zeros((m.shape[0], 4))
        padded[at : at + len(vectors)] = vectors
        at += len(vectors)
        yield padded


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-8])
@pytest.mark.parametrize(
    ("kind", "pi"),
    [(kind, pi) for kind in FACTORED for pi in ("trace", "frobenius", "unit", "exact")]
    + [(kind, None) for kind in IN_BASIS],
)
def test_positive_definite_for_every_input(hard, damping, kind, pi, dtype, rng):
    case, change = HARD[hard]
    problem = change(case.problem(dtype))
    m = build(kind, problem, case.loss, damping=damping, **({} if pi is None else {"pi": pi}))
    vectors = np.hstack([rng.standard_normal((m.shape[0], 9)), *extremes(m, problem.net)])
    images = np.asarray(m @ vectors, float)
    assert np.isfinite(images).all()
    assert ((vectors * images).sum(axis=0) > 0).all()


@pytest.mark.parametrize("pi", ["trace", "frobenius", "unit", "exact"])
@pytest.mark.parametrize("kind", FACTORED)
def test_curvature_of_dead_units_is_damping_alone(kind, pi, dtype, tol, rng):
    """G = 0 in the first layer."""
    case, change = HARD["dead"]
    m = build(kind, change(case.problem(dtype)), case.loss, damping=1e-4, pi=pi)
    v = rng.standard_normal(m.shape[0])
    size = len(m.block(0))
    assert not m.block(0).any()
    assert_close((m @ v)[:size], v[:size] / 1e-4, tol.product)


@pytest.mark.parametrize("pi", ["trace", "frobenius", "unit", "exact"])
@pytest.mark.parametrize("kind", FACTORED)
def test_inputs_that_are_zero(kind, pi, dtype, tol, rng):
    """A = 0 and G = I: no bias, squared error."""
    case = Case("4-3-kron-zero-inputs", (4, 3), SQUARED, bias=False)
    problem = case.problem(dtype)
    m = build(kind, problem._replace(x=0 * problem.x), case.loss, damping=1e-4, pi=pi)
    v = rng.standard_normal(m.shape[0])
    assert_close(m @ v, v / 1e-4, tol.product)


@pytest.mark.parametrize(
    "case",
    [
        Case("5-1-kron", (5, 1), BERNOULLI, weighted=True),
        Case("4-6-1-kron", (4, 6, 1), SQUARED),
        Case("4-1-6-3-kron", (4, 1, 6, 3), SOFTMAX, bias=False),  # one output, then one input
    ],
    ids=cases.ids,
)
@pytest.mark.parametrize("pi", ["trace", "frobenius", "unit", "exact"])
@pytest.mark.parametrize("damping", [1.0, 1e-4])
@pytest.mark.parametrize("kind", FACTORED)
def test_damping_beside_a_factor_that_is_a_number_is_exact(case, pi, damping, kind, dtype, tol):
    problem = case.problem(dtype)
    m = build(kind, problem, case.loss, damping=damping, pi=pi)
    exact = 0
    for layer, of in enumerate(oracle_layers(problem, case.loss)):
        if 1 not in (of.num_outputs, of.inputs.shape[1]):
            continue
        exact += 1
        plain = m.block(layer)
        damped = plain + damping * np.eye(len(plain))
        assert_close(m.block(layer, damped=True), damped, tol.product)
    assert exact > 0
    v = np.ones(m.shape[0])
    dense = m.to_dense(damped=True)
    # condition of the damped matrix times the rounding of its inverse
    assert_close(m @ v, np.linalg.solve(dense, v), 50 * tol.eps * np.linalg.cond(dense))


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


def blended(ema, sizes):
    """Weights of batches of these sizes in the average, by the definition."""
    shares, total = [], 0.0
    for k, size in enumerate(sizes):
        old = min(1.0, ema / (1.0 - ema) / min(k, 1.0 / (1.0 - ema))) * total if k else 0.0
        total = old + size
        shares = [old / total * share for share in shares] + [size / total]
    return shares


def test_the_definition_of_averages():
    """Equal batches as max(1 / k, 1 - ema); unequal ones by cases, then with a decay per call."""
    shares = [1.0]
    for k in range(2, 9):
        new = max(1 / k, 1 - 0.75)
        shares = [(1 - new) * share for share in shares] + [new]
        assert_close(blended(0.75, [17] * k), shares, 1e-15)
    assert_close(blended(0.99, [20, 30, 50]), [0.2, 0.3, 0.5], 1e-15)
    assert_close(blended(0.0, [20, 30, 50]), [0, 0, 1], 0.0)
    # in the long run the past counts as n / (1 - ema) cases, decayed once more by ema
    assert blended(0.9, [100] * 300 + [1])[-1] == pytest.approx(1 / (0.9 * 1000 + 1), rel=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_averages_count_cases(kind, ema, dtype, tol):
    case = Case("4-5-3-kron-counts", (4, 5, 3), SOFTMAX, n=64)
    problem = case.problem(dtype)
    parts = np.split(problem.x, [5, 25, 26])
    batches = [KINDS[kind](problem.net, case.loss, x) for x in parts]
    m = KINDS[kind](problem.net, case.loss, ema=ema)
    for count in range(1, len(parts) + 1):
        m.update(parts[count - 1])
        shares = blended(ema, [len(x) for x in parts[:count]])
        for layer in range(2):
            for name in "AG":
                if kind in ("tkfac", "tekfac"):  # A and G are moments over the root of their trace
                    continue
                mean = sum(
                    share * getattr(batch.factors[layer], name)
                    for share, batch in zip(shares, batches, strict=False)
                )
                assert_close(getattr(m.factors[layer], name), mean, tol.product)
        if kind != "kfac":  # the others keep the trace of the Fisher matrix
            mean = sum(s * b.trace() for s, b in zip(shares, batches, strict=False))
            assert m.trace() == pytest.approx(mean, rel=tol.product)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", FACTORED)
def test_two_batches_are_one_of_their_cases(kind, weighted, dtype, tol, rng):
    """Of 20 and 30 cases, or of weights of another scale."""
    case = Case("4-5-3-kron-halves", (4, 5, 3), SOFTMAX, n=50)
    problem = case.problem(dtype)
    weights = np.ones(50)
    if weighted:
        weights = np.concatenate([7.0 * rng.random(20), 0.2 * rng.random(30)])
    m = KINDS[kind](problem.net, case.loss, problem.x[:20], sample_weight=weights[:20], ema=0.999)
    m.update(problem.x[20:], sample_weight=weights[20:])
    whole = KINDS[kind](problem.net, case.loss, problem.x, sample_weight=weights)
    assert_close(m.to_dense(), whole.to_dense(), tol.product)


@pytest.mark.parametrize("scale", [1e-300, 3e306])
def test_weights_of_any_scale(scale):
    case = Case("4-5-3-kron-scale", (4, 5, 3), SOFTMAX, n=50)
    problem = case.problem("float64")
    m = ng.KFAC(problem.net, case.loss)
    for _ in range(50):
        m.update(problem.x, sample_weight=np.full(50, scale))
    whole = ng.KFAC(problem.net, case.loss, problem.x)
    assert_close(m.to_dense(), whole.to_dense(), 1e-12)  # equal averages, 50 roundings


@pytest.mark.parametrize("kind", ["tkfac", "ekfac", "tekfac"])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_moving_averages_keep_the_trace(kind, period, dtype, tol):
    """Also where the diagonal moves from one eigenbasis to the next."""
    case = Case("4-5-3-kron-trace", (4, 5, 3), SOFTMAX)
    problem = case.problem(dtype)
    options = {} if kind == "tkfac" else {"basis_period": period}
    batches = [problem.x, 0.3 + problem.x, -2 * problem.x]
    m = KINDS[kind](problem.net, case.loss, batches[0], ema=0.6, **options)
    for x in batches[1:]:
        m.update(x)
    traces = [ng.Fisher(problem.net, case.loss, x).trace() for x in batches]
    expected = np.dot([0.3, 0.3, 0.4], traces)  # 1 - 1/2 = 0.5, then 0.6
    assert m.trace() == pytest.approx(expected, rel=tol.product)


def test_diagonal_in_a_new_basis_is_that_of_the_old_approximation():
    case = Case("4-5-3-kron-rotation", (4, 5, 3), SOFTMAX)
    problem = case.problem("float64")
    m = ng.EKFAC(problem.net, case.loss, problem.x)
    for _ in range(2):
        m.update(problem.x)
    old = [m.block(layer) for layer in range(2)]
    m.update(0.1 * problem.x)  # keep = 3/4
    for index, layer in enumerate(oracle_layers(problem._replace(x=0.1 * problem.x), case.loss)):
        basis, _, _, scales = basis_of(m, index)
        inverse = np.argsort(layer.order)
        carried = reference_kronecker.best_diagonal(old[index][np.ix_(inverse, inverse)], basis)
        batch = reference_kronecker.best_diagonal(reference_kronecker.fisher_block(layer), basis)
        assert_close(scales, 0.75 * carried + 0.25 * batch, 1e-10)
