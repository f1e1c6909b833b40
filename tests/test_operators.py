"""Jacobian, Fisher and GGN as linear operators."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, SQUARED, Case, assert_close, same_bits

PROBLEM = Case("4-6-3-softmax", (4, 6, 3), SOFTMAX)
OPERATORS = ["fisher", "ggn"]


def build(kind, problem, loss, **options):
    if kind == "fisher":
        return ng.Fisher(problem.net, loss, problem.x, **options)
    return ng.GGN(problem.net, loss, problem.x, problem.y, **options)


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("case", cases.SMALL + cases.ACTIVATIONS, ids=cases.ids)
def test_curvature_equals_oracle(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.2, "damping": 0.05}
    operator = build(kind, problem, case.loss, **options)
    theta, x, y = problem.args
    if kind == "fisher":
        exact = reference.fisher(problem.oracle, case.loss, theta, x, **options)
    else:
        exact = reference.ggn(problem.oracle, case.loss, theta, x, y, **options)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    block = rng.standard_normal((problem.net.num_params, 5)).astype(dtype)
    assert operator.shape == exact.shape
    assert operator.dtype == (operator @ v).dtype == (operator @ block).dtype == dtype
    assert_close(operator.to_dense(), exact, tol.product)
    assert_close(operator @ v, exact @ v.astype(float), tol.product)
    assert_close(operator @ block, exact @ block.astype(float), tol.product)


@pytest.mark.parametrize("case", cases.SMALL, ids=cases.ids)
def test_jacobian_equals_oracle(case, dtype, tol, rng):
    net, oracle, x, _, _ = case.problem(dtype)
    exact = oracle.jacobian(net.params, x).reshape(-1, net.num_params)
    jacobian = ng.Jacobian(net, x)
    v = rng.standard_normal((net.num_params, 4)).astype(dtype)
    u = rng.standard_normal((len(exact), 4)).astype(dtype)
    assert jacobian.shape == exact.shape
    assert jacobian.T.shape == exact.T.shape
    assert jacobian.dtype == dtype
    assert_close(jacobian.to_dense(), exact, tol.product)
    assert_close(jacobian @ v, exact @ v, tol.product)
    assert_close(jacobian.T @ u, exact.T @ u, tol.product)
    for column in range(2):
        assert_close(jacobian @ v[:, column], exact @ v[:, column], tol.product)
        assert_close(jacobian.T @ u[:, column], exact.T @ u[:, column], tol.product)
    assert same_bits(jacobian.matvec(v[:, 0]), jacobian @ v[:, 0])
    assert same_bits(jacobian.rmatvec(u[:, 0]), jacobian.T @ u[:, 0])
    assert same_bits(jacobian.matmat(v), jacobian @ v)
    assert same_bits(jacobian.rmatmat(u), jacobian.T @ u)


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
def test_large_nets_equal_oracle(case, dtype, tol, rng):
    problem = case.problem(dtype)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    theta, x, _ = problem.args
    exact = reference.fisher_product(problem.oracle, case.loss, theta, x, v.astype(float))
    assert_close(ng.Fisher(problem.net, case.loss, x) @ v, exact, tol.product)


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("case", cases.SMALL, ids=cases.ids)
def test_symmetric_and_positive_semidefinite(case, kind, dtype, tol):
    dense = build(kind, case.problem(dtype), case.loss).to_dense().astype(float)
    assert_close(dense, dense.T, tol.product)
    eigenvalues = np.linalg.eigvalsh(0.5 * (dense + dense.T))
    assert eigenvalues[0] >= -tol.product * eigenvalues[-1]


@pytest.mark.parametrize("num_vectors", [1, 2, 3, 16, 37])
@pytest.mark.parametrize("case", [PROBLEM, *cases.LARGE[:2]], ids=cases.ids)
def test_block_equals_its_columns(case, num_vectors, dtype, tol, rng):
    problem = case.problem(dtype)
    operator = ng.Fisher(problem.net, case.loss, problem.x, damping=0.1)
    block = rng.standard_normal((problem.net.num_params, num_vectors)).astype(dtype)
    product = operator @ block
    assert product.shape == block.shape
    for column in {0, num_vectors // 2, num_vectors - 1}:
        # the order of sums may differ between the two routes
        assert_close(product[:, column], operator @ block[:, column], tol.product)


@pytest.mark.parametrize("case", [PROBLEM, cases.LARGE[0]], ids=cases.ids)
def test_repeated_products_have_equal_bits(case, dtype, rng):
    problem = case.problem(dtype)
    operator = ng.Fisher(problem.net, case.loss, problem.x)
    v = rng.standard_normal(problem.net.num_params)
    block = rng.standard_normal((problem.net.num_params, 3))
    first, first_block = operator @ v, operator @ block
    operator @ (1e3 * block)  # leaves other numbers in the scratch
    assert same_bits(operator @ block, first_block)
    assert same_bits(operator @ v, first)
    assert same_bits(ng.Fisher(problem.net, case.loss, problem.x) @ v, first)


def test_all_names_of_the_product_agree(dtype, rng):
    problem = PROBLEM.problem(dtype)
    operator = ng.Fisher(problem.net, SOFTMAX, problem.x, damping=0.1)
    block = rng.standard_normal((problem.net.num_params, 2)).astype(dtype)
    for name in ["matvec", "rmatvec"]:
        assert same_bits(getattr(operator, name)(block[:, 0]), operator @ block[:, 0])
    for name in ["matmat", "rmatmat"]:
        assert same_bits(getattr(operator, name)(block), operator @ block)
    assert operator.T is operator
    assert operator.H is operator


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("case", cases.SMALL, ids=cases.ids)
def test_quadratic_form_equals_product(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    operator = build(kind, problem, case.loss, sample_weight=problem.weight, l2=0.3, damping=0.2)
    v, w = rng.standard_normal((2, problem.net.num_params)).astype(dtype)
    dense = operator.to_dense().astype(float)
    scale = np.linalg.norm(dense, 2) * np.linalg.norm(v) * np.linalg.norm(w)  # v'Fw may cancel
    assert isinstance(operator.quadratic_form(v), float)
    assert operator.quadratic_form(v) == pytest.approx(v @ dense @ v, abs=tol.product * scale)
    assert operator.quadratic_form(v, w) == pytest.approx(v @ dense @ w, abs=tol.product * scale)
    assert operator.quadratic_form(w, v) == pytest.approx(
        operator.quadratic_form(v, w), abs=tol.product * scale
    )


def test_damping_and_l2_are_multiples_of_the_identity(dtype, tol, rng):
    problem = PROBLEM.problem(dtype)
    bare = ng.Fisher(problem.net, SOFTMAX, problem.x)
    operator = ng.Fisher(problem.net, SOFTMAX, problem.x, damping=0.25, l2=0.5)
    assert (operator.damping, operator.l2, bare.damping, bare.l2) == (0.25, 0.5, 0.0, 0.0)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    assert_close(operator @ v, bare @ v + 0.75 * v, tol.product)
    operator.damping = 4.0
    assert operator.damping == 4.0
    assert_close(operator @ v, bare @ v + 4.5 * v, tol.product)
    assert operator.quadratic_form(v) == pytest.approx(
        bare.quadratic_form(v) + 4.5 * float(v @ v), rel=tol.product
    )


@pytest.mark.parametrize("case", cases.SMALL, ids=cases.ids)
def test_fisher_is_the_ggn_for_natural_parameters(case, dtype, tol):
    problem = case.problem(dtype)
    fisher, ggn = (build(kind, problem, case.loss).to_dense() for kind in OPERATORS)
    assert_close(fisher, ggn, tol.product)
    without_targets = ng.GGN(problem.net, case.loss, problem.x).to_dense()
    assert same_bits(without_targets, ggn)


@pytest.mark.parametrize("case", cases.ONE_LAYER, ids=cases.ids)
def test_ggn_of_a_linear_net_is_the_hessian(case, rng):
    problem = case.problem("float64")
    net, x, y, weight = problem.net, problem.x, problem.y, problem.weight
    operator = build("ggn", problem, case.loss, sample_weight=weight, l2=0.1)
    v = rng.standard_normal(net.num_params)
    product, theta = operator @ v, net.params.copy()

    def gradient(point):
        net.params = point
        return ng.value_and_grad(net, case.loss, x, y, sample_weight=weight, l2=0.1)[1]

    # order 4 at h = 1e-3: truncation near 1e-11, rounding eps / h = 2e-13
    assert_close(product, reference.difference(gradient, theta, v, 1e-3), 1e-8)


def test_fisher_is_the_second_order_term_of_the_divergence(rng):
    """KL(theta || theta + t v) = t^2 v'Fv / 2 + O(t^3): another road to F, without a Jacobian."""
    problem = PROBLEM.problem("float64")
    v = rng.standard_normal(problem.net.num_params)
    theta, x, _ = problem.args
    p = reference.softmax(problem.oracle.forward(theta, x))

    def divergence(t):
        q = reference.softmax(problem.oracle.forward(theta + t * v, x))
        return (p * np.log(p / q)).sum(axis=1).mean()

    t = 1e-3  # t + (-t) removes the cubic term; what is left is t^2 relative
    second = (divergence(t) + divergence(-t)) / t**2
    assert ng.Fisher(problem.net, SOFTMAX, x).quadratic_form(v) == pytest.approx(second, rel=1e-3)


def test_zero_weights_drop_cases(dtype, tol):
    problem = PROBLEM.problem(dtype)
    weight = np.arange(17) % 3
    kept = weight > 0
    full = ng.Fisher(problem.net, SOFTMAX, problem.x, sample_weight=weight)
    part = ng.Fisher(problem.net, SOFTMAX, problem.x[kept], sample_weight=weight[kept])
    assert_close(full.to_dense(), part.to_dense(), tol.product)


@pytest.mark.parametrize("kind", [*OPERATORS, "jacobian"])
def test_operator_is_a_snapshot(kind, rng):
    """Neither the net's nor the caller's arrays matter after construction."""
    problem = PROBLEM.problem("float64")
    net, x, weight = problem.net, problem.x, np.arange(1.0, 18.0)
    if kind == "jacobian":
        operator = ng.Jacobian(net, x)
    else:
        operator = build(kind, problem, SOFTMAX, sample_weight=weight)
    v = rng.standard_normal(net.num_params)
    before = operator @ v
    net.params[:] = 7.0
    x[:] = 0.0
    weight[:] = 1.0
    assert same_bits(operator @ v, before)
    assert not same_bits(net.jvp(x, v), before)


def test_usable_by_scipy(dtype, tol):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    problem = Case("3-5-2-scipy", (3, 5, 2), SQUARED).problem(dtype)
    operator = ng.Fisher(problem.net, SQUARED, problem.x, damping=0.1)
    jacobian = ng.Jacobian(problem.net, problem.x)
    dense = operator.to_dense().astype(float)
    size = len(dense)
    start = np.ones(size, dtype)
    largest = linalg.eigsh(operator, k=2, which="LA", v0=start, return_eigenvectors=False)
    assert_close(np.sort(largest), np.linalg.eigvalsh(dense)[-2:], tol.product)
    x, code = linalg.cg(operator, start, rtol=1e-5, maxiter=500)
    assert code == 0
    # relative residual 1e-5 asked of SciPy; twice that for the float32 recurrence
    assert np.linalg.norm(dense @ x - start) <= 2e-5 * np.linalg.norm(start)
    largest = linalg.svds(jacobian, k=2, v0=np.ones(min(jacobian.shape), dtype))[1]
    exact = np.linalg.svd(jacobian.to_dense().astype(float), compute_uv=False)[:2]
    assert_close(np.sort(largest), np.sort(exact), tol.product)
    wrapped = linalg.aslinearoperator(operator)
    assert same_bits(wrapped @ start, operator @ start)
    assert wrapped.dtype == dtype
