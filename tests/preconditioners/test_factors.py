"""Factors, eigenvalues, log-determinants and roots of preconditioners, beside dense algebra."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference_kronecker
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits

KINDS = {"kfac": ng.KFAC, "tkfac": ng.TKFAC, "ekfac": ng.EKFAC, "tekfac": ng.TEKFAC}
FACTORED = ["kfac", "tkfac"]
NETS = [
    Case("4-3-factors", (4, 3), SOFTMAX),
    Case("5-6-4-factors-no-bias", (5, 6, 4), BERNOULLI, activation="silu", bias=False),
    Case("4-6-5-1-factors", (4, 6, 5, 1), SQUARED, bias=(True, False, True), weighted=True),
    # more inputs than cases, and a whole number of panels behind them
    Case("31-16-3-factors", (31, 16, 3), SOFTMAX, n=20),
]
nets = pytest.mark.parametrize("case", NETS, ids=cases.ids)
VARIANTS = [(kind, pi) for kind in FACTORED for pi in ("trace", "frobenius", "unit", "exact")]
VARIANTS += [("ekfac", None), ("tekfac", None), ("empirical", None), ("fisher", None)]
variants = pytest.mark.parametrize(("kind", "pi"), VARIANTS)


def build(kind, pi, problem, loss, **options):
    options.setdefault("sample_weight", problem.weight)
    if kind in KINDS:
        options |= {} if pi is None else {"pi": pi}
        return KINDS[kind](problem.net, loss, problem.x, **options)
    y = problem.y if kind == "empirical" else None
    return ng.DiagonalPreconditioner(
        problem.net, loss, problem.x, y, kind=kind, l2=(0.02, 0.0), **options
    )


@nets
@pytest.mark.parametrize("kind", KINDS)
def test_factors(case, kind, dtype, tol):
    problem = case.problem(dtype)
    m = build(kind, None, problem, case.loss)
    theta, x, _ = problem.args
    oracle = reference_kronecker.layers(problem.oracle, case.loss, theta, x, problem.weight)
    plain = "tkfac" if kind in ("tkfac", "tekfac") else "kfac"
    for layer, (found, exact) in enumerate(zip(m.factors, oracle, strict=True)):
        g, a = reference_kronecker.factors(plain, exact)
        assert_close(found.G, g, tol.product)
        assert_close(found.A, a, tol.product)
        order = np.ix_(exact.order, exact.order)
        if kind in FACTORED:
            assert found[2:] == (None, None, None)
            block = np.kron(found.G, found.A)
        else:
            assert found.S.shape == (len(g), len(a))
            basis = np.kron(found.basis_G, found.basis_A)
            block = (basis * found.S.ravel()) @ basis.T
            for factor, vectors in ((found.G, found.basis_G), (found.A, found.basis_A)):
                rotated = vectors.T @ factor @ vectors
                off_diagonal = rotated - np.diag(np.diag(rotated))
                assert np.abs(off_diagonal).max() <= tol.product * np.abs(rotated).max()
        assert_close(block[order], m.block(layer), 1e-12)  # the same numbers, in float64


def test_factors_are_copies():
    case = NETS[0]
    m = build("ekfac", None, case.problem("float64"), case.loss)
    before = m.to_dense()
    for layer in m.factors:
        for array in layer:
            array[...] = 7.0
    assert same_bits(m.to_dense(), before)


@nets
@variants
def test_eigenvalues(case, kind, pi, dtype):
    m = build(kind, pi, case.problem(dtype), case.loss)
    found, dense = m.eigenvalues(), m.to_dense()
    assert found.shape == (m.shape[0],)
    assert found.dtype == np.float64
    # of the same matrix, whose bases are orthonormal, and whose factors semi-definite, up to the
    # rounding of their dtype
    assert (found >= 0.0).all()
    assert_close(np.sort(found), np.linalg.eigvalsh(dense), 100 * np.finfo(dtype).eps + 1e-12)


@nets
@pytest.mark.parametrize("kind", FACTORED)
def test_eigenvalues_stand_in_the_order_of_layers(case, kind):
    problem = case.problem("float64")
    m = build(kind, None, problem, case.loss)
    at = 0
    for layer in m.factors:
        g, a = np.linalg.eigvalsh(layer.G), np.linalg.eigvalsh(layer.A)
        assert_close(m.eigenvalues()[at : at + g.size * a.size], np.kron(g, a), 1e-12)
        at += g.size * a.size
    assert at == m.shape[0]


@nets
@variants
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-9])
def test_logdet(case, kind, pi, damping, dtype):
    """Also where small shifts are clipped, and whatever the damping of the inverse."""
    m = build(kind, pi, case.problem(dtype), case.loss)
    found = m.logdet(damping)
    m.refresh(3.0)
    assert m.logdet(damping) == found
    m.refresh(damping)
    dense = m.to_dense(damped=True)
    sign, expected = np.linalg.slogdet(dense)
    assert sign == 1.0
    # Each of P logarithms is as exact as a small eigenvalue of the dense matrix is.
    eps = 1e-15 * np.linalg.cond(dense) + 1e-13
    if kind in ("ekfac", "tekfac") or pi == "exact":
        eps += np.finfo(dtype).eps * 10  # the basis, orthonormal up to the rounding of its dtype
    assert abs(found - expected) <= eps * m.shape[0]


@nets
@variants
@pytest.mark.parametrize("damping", [1.0, 1e-2])
def test_root_of_the_inverse(case, kind, pi, damping, dtype, tol, rng):
    m = build(kind, pi, case.problem(dtype), case.loss, damping=damping)
    root = m.sqrt_solve(np.eye(m.shape[0]))
    assert root.dtype == dtype
    dense = m.to_dense(damped=True)
    root = np.asarray(root, float)
    bound = max(tol.product, 10 * tol.eps * np.linalg.cond(dense))
    assert_close(root @ root.T, np.linalg.inv(dense), bound)
    v, block = rng.standard_normal(m.shape[0]), rng.standard_normal((m.shape[0], 3))
    assert_close(m.sqrt_solve(v), root @ v, tol.product)
    assert_close(m.sqrt_solve(block), root @ block, tol.product)


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
@pytest.mark.parametrize(("kind", "pi"), [("kfac", "trace"), ("kfac", "exact"), ("ekfac", None)])
def test_roots_on_several_tiles(case, kind, pi, dtype, tol, rng):
    """Too large for dense matrices: S S'x = M x, with S' from <S u, x> = <u, S'x>."""
    problem = case.problem(dtype)
    options = {"samples": 1, "damping": 0.1, "num_threads": 2}
    m = build(kind, pi, problem, case.loss, **options)
    draws = rng.standard_normal((m.shape[0], 2))
    images = np.asarray(m.sqrt_solve(draws), float)
    one = build(kind, pi, problem, case.loss, **(options | {"num_threads": 1}))
    assert same_bits(m.sqrt_solve(draws), one.sqrt_solve(draws))
    # u'S'M^-1 S u = u'u for every u
    at = 0
    for index, (w, b) in enumerate(zip(problem.net.weights, problem.net.biases, strict=True)):
        left, right, scales = m.core.block(index, damped=True)
        for k in range(2):
            v = images[at : at + w.size, k].reshape(w.shape)
            if b.size:
                v = np.hstack([v, images[at + w.size : at + w.size + b.size, k][:, None]])
            if scales is None:
                form = (v * (left @ v @ right)).sum()
            else:
                form = (scales * (left @ v @ right.T) ** 2).sum()
            u = draws[at : at + w.size + b.size, k]
            assert form == pytest.approx(u @ u, rel=100 * tol.eps * len(left) ** 0.5)
        at += w.size + b.size


@variants
def test_roots_belong_to_the_inverse_in_use(kind, pi, dtype, tol):
    """After an update that no refresh has followed, too."""
    case = NETS[1]
    problem = case.problem(dtype)
    m = build(kind, pi, problem, case.loss, damping=0.1)
    root, inverse = m.sqrt_solve(np.eye(m.shape[0])), m @ np.eye(m.shape[0])
    if kind == "empirical":
        m.update(3 * problem.x, problem.y)
    else:
        m.update(3 * problem.x)
    assert same_bits(m.sqrt_solve(np.eye(m.shape[0])), root)
    root = np.asarray(root, float)
    assert_close(root @ root.T, inverse, tol.product)
    m.refresh(0.1)
    assert not np.allclose(m.sqrt_solve(np.eye(m.shape[0])), root)


@variants
def test_calls_before_their_time(kind, pi):
    case = NETS[0]
    problem = case.problem("float32")
    if kind in KINDS:
        m = KINDS[kind](problem.net, case.loss)
    else:
        m = ng.DiagonalPreconditioner(problem.net, case.loss, kind=kind)
    for call in (m.eigenvalues, lambda: m.logdet(0.1), m.diagonal, m.trace, m.to_dense):
        with pytest.raises(ValueError, match="update"):
            call()
    if kind in KINDS:
        with pytest.raises(ValueError, match="update"):
            _ = m.factors
    with pytest.raises(RuntimeError, match="refresh"):
        m.sqrt_solve(np.ones(m.shape[0]))
    m = build(kind, pi, problem, case.loss, damping=0.1)
    for damping in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="damping must be"):
            m.logdet(damping)
    for damping, word in ((1e-44, "small"), (1e44, "large")):
        if kind not in KINDS and word == "small":
            continue  # it is added to a diagonal that is larger
        with pytest.raises(ValueError, match=f"damping is too {word}"):
            m.refresh(damping)
    with pytest.raises(ValueError, match="v has shape"):
        m.sqrt_solve(np.ones(3))
    with pytest.raises(ValueError, match="v has NaN"):
        m.sqrt_solve(np.full(m.shape[0], np.nan))


@pytest.mark.parametrize("matrix", ["fisher", "ggn", "empirical"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_on_a_matrix(kind, matrix, chunk_size, dtype, rng):
    case = Case("4-6-5-2-on", (4, 6, 5, 2), SOFTMAX, n=30, weighted=True)
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "chunk_size": chunk_size, "num_threads": 2}
    operator = cases.curvature(matrix, problem, case.loss, **options)
    expected = KINDS[kind](
        problem.net, case.loss, problem.x, samples=2, seed=5, damping=0.1, **options
    )
    params = problem.net.params.copy()
    problem.net.params = 2 * params  # the matrix is a snapshot
    m = KINDS[kind].on(operator, damping=0.1, samples=2, seed=5)
    assert type(m) is KINDS[kind]
    assert m.net is problem.net
    v = rng.standard_normal(m.shape[0])
    assert same_bits(m @ v, expected @ v)
    problem.net.params = params
    for each in (m, expected):  # goes on as any other
        each.update(2 * problem.x)
    assert same_bits(m.to_dense(), expected.to_dense())
    assert KINDS[kind].on(operator).damping is None
    with pytest.raises(TypeError, match="matrix must be a Fisher, GGN or EmpiricalFisher"):
        KINDS[kind].on(ng.Hessian(problem.net, case.loss, problem.x, problem.y))


def test_the_diagonal_takes_weight_decay_of_two_kinds(dtype, tol):
    case = Case("4-6-5-2-decay", (4, 6, 5, 2), SOFTMAX, bias=(True, False, True))
    problem = case.problem(dtype)
    m = ng.DiagonalPreconditioner(
        problem.net, SOFTMAX, problem.x, problem.y, l2=(0.5, 0.25), damping=0.1, exponent=1.0
    )
    parts = zip(problem.net.weights, problem.net.biases, strict=True)
    decay = np.concatenate([[0.5] * w.size + [0.25] * b.size for w, b in parts])
    ones = np.ones(m.shape[0])
    assert_close(m @ ones, 1 / (m.diagonal() + decay + 0.1), tol.product)
