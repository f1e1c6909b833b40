"""Jacobian and curvature matrices as linear operators, whatever they are the matrices of."""

import copy
import pickle

import cases
import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, assert_close, curvature, exact_curvature, same_bits

PROBLEM = Case("4-6-3-softmax", (4, 6, 3), SOFTMAX)


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize(
    "case", cases.SMALL + cases.OTHER_LAWS + cases.ACTIVATIONS + cases.LAWS, ids=cases.ids
)
def test_curvature_equals_oracle(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.2, "damping": 0.05}
    operator = curvature(kind, problem, case.loss, **options)
    exact = exact_curvature(kind, problem, case.loss, **options)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    block = rng.standard_normal((problem.net.num_params, 5)).astype(dtype)
    assert operator.shape == exact.shape
    assert operator.dtype == (operator @ v).dtype == (operator @ block).dtype == dtype
    assert_close(operator.to_dense(), exact, tol.product)
    assert_close(operator @ v, exact @ v.astype(float), tol.product)
    assert_close(operator @ block, exact @ block.astype(float), tol.product)
    diagonal = np.diag(exact)
    assert operator.diagonal().dtype == dtype
    assert_close(operator.diagonal(), diagonal, tol.product)
    # entries of both signs cancel, where the matrix is indefinite
    scale = np.abs(diagonal).sum()
    assert isinstance(operator.trace(), float)
    assert operator.trace() == pytest.approx(diagonal.sum(), abs=tol.product * scale)


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


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", cases.SMALL + cases.OTHER_LAWS, ids=cases.ids)
def test_symmetric(case, kind, dtype, tol):
    dense = curvature(kind, case.problem(dtype), case.loss).to_dense()
    assert_close(dense, dense.T, tol.product)


@pytest.mark.parametrize("num_vectors", [1, 2, 3, 16, 37])
@pytest.mark.parametrize("kind", ["fisher", "sampled", "hessian"])
@pytest.mark.parametrize("case", [PROBLEM, *cases.LARGE[:2]], ids=cases.ids)
def test_block_equals_its_columns(case, kind, num_vectors, dtype, tol, rng):
    problem = case.problem(dtype)
    operator = curvature(kind, problem, case.loss, damping=0.1)
    block = rng.standard_normal((problem.net.num_params, num_vectors)).astype(dtype)
    product = operator @ block
    assert product.shape == block.shape
    for column in {0, num_vectors // 2, num_vectors - 1}:
        # the order of sums may differ between the two routes
        assert_close(product[:, column], operator @ block[:, column], tol.product)


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", [PROBLEM, cases.LARGE[0]], ids=cases.ids)
def test_repeated_products_have_equal_bits(case, kind, dtype, rng):
    problem = case.problem(dtype)
    operator = curvature(kind, problem, case.loss)
    v = rng.standard_normal(problem.net.num_params)
    block = rng.standard_normal((problem.net.num_params, 3))
    first, first_block = operator @ v, operator @ block
    operator @ (1e3 * block)  # leaves other numbers in the scratch
    assert same_bits(operator @ block, first_block)
    assert same_bits(operator @ v, first)
    assert same_bits(curvature(kind, problem, case.loss) @ v, first)


@pytest.mark.parametrize("kind", cases.CURVATURES)
def test_all_names_of_the_product_agree(kind, dtype, rng):
    problem = PROBLEM.problem(dtype)
    operator = curvature(kind, problem, SOFTMAX, damping=0.1)
    block = rng.standard_normal((problem.net.num_params, 2)).astype(dtype)
    for name in ["matvec", "rmatvec"]:
        assert same_bits(getattr(operator, name)(block[:, 0]), operator @ block[:, 0])
    for name in ["matmat", "rmatmat"]:
        assert same_bits(getattr(operator, name)(block), operator @ block)
    assert operator.T is operator
    assert operator.H is operator


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", cases.SMALL + cases.OTHER_LAWS, ids=cases.ids)
def test_quadratic_form_equals_product(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.3, "damping": 0.2}
    operator = curvature(kind, problem, case.loss, **options)
    v, w = rng.standard_normal((2, problem.net.num_params)).astype(dtype)
    dense = operator.to_dense().astype(float)
    scale = np.linalg.norm(dense, 2) * np.linalg.norm(v) * np.linalg.norm(w)  # v'Bw may cancel
    assert isinstance(operator.quadratic_form(v), float)
    assert operator.quadratic_form(v) == pytest.approx(v @ dense @ v, abs=tol.product * scale)
    assert operator.quadratic_form(v, w) == pytest.approx(v @ dense @ w, abs=tol.product * scale)
    assert operator.quadratic_form(w, v) == pytest.approx(
        operator.quadratic_form(v, w), abs=tol.product * scale
    )


@pytest.mark.parametrize("kind", cases.CURVATURES)
def test_damping_and_l2_are_multiples_of_the_identity(kind, dtype, tol, rng):
    problem = PROBLEM.problem(dtype)
    bare = curvature(kind, problem, SOFTMAX)
    operator = curvature(kind, problem, SOFTMAX, damping=0.25, l2=0.5)
    assert (operator.damping, operator.l2, bare.damping, bare.l2) == (0.25, 0.5, 0.0, 0.0)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    assert_close(operator @ v, bare @ v + 0.75 * v, tol.product)
    operator.damping = 4.0
    assert operator.damping == 4.0
    assert_close(operator @ v, bare @ v + 4.5 * v, tol.product)
    assert_close(operator.diagonal(), bare.diagonal() + 4.5, tol.product)
    assert operator.trace() == pytest.approx(bare.trace() + 4.5 * v.size, rel=tol.product)
    assert operator.quadratic_form(v) == pytest.approx(
        bare.quadratic_form(v) + 4.5 * float(v @ v), rel=tol.product
    )


@pytest.mark.parametrize("kind", cases.CURVATURES)
def test_zero_weights_drop_cases(kind, dtype, tol):
    """Draws belong to places in the batch, so the cases that stay have to keep theirs."""
    problem = PROBLEM.problem(dtype)
    weight = np.repeat([0.5, 2.0, 0.0], [4, 6, 7])
    part = problem._replace(x=problem.x[:10], y=problem.y[:10])
    full = curvature(kind, problem, SOFTMAX, sample_weight=weight)
    part = curvature(kind, part, SOFTMAX, sample_weight=weight[:10])
    assert_close(full.to_dense(), part.to_dense(), tol.product)
    assert_close(full.diagonal(), part.diagonal(), tol.product)
    assert full.trace() == pytest.approx(part.trace(), rel=tol.product)


@pytest.mark.parametrize("kind", [*cases.CURVATURES, "jacobian"])
def test_operator_is_a_snapshot(kind, rng):
    """Neither the net's nor the caller's arrays matter after construction."""
    problem = PROBLEM.problem("float64")
    net, x, weight = problem.net, problem.x, np.arange(1.0, 18.0)
    if kind == "jacobian":
        operator = ng.Jacobian(net, x)
    else:
        operator = curvature(kind, problem, SOFTMAX, sample_weight=weight)
    v = rng.standard_normal(net.num_params)
    before = operator @ v
    net.params[:] = 7.0
    x[:] = 0.0
    problem.y[:] = 0
    weight[:] = 1.0
    assert same_bits(operator @ v, before)
    assert not same_bits(net.jvp(x, v), before)


@pytest.mark.parametrize("kind", cases.CURVATURES)
def test_usable_by_scipy(kind, dtype, tol):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    problem = Case("3-5-2-scipy", (3, 5, 2), SQUARED).problem(dtype)
    operator = curvature(kind, problem, SQUARED)
    size = problem.net.num_params
    eigenvalues = np.linalg.eigvalsh(operator.to_dense().astype(float))
    start = np.ones(size, dtype)
    largest = linalg.eigsh(operator, k=2, which="LA", v0=start, return_eigenvectors=False)
    assert_close(np.sort(largest), eigenvalues[-2:], tol.product)
    # damping makes also the Hessian positive definite, with a condition of at most 20
    radius = np.abs(eigenvalues).max()
    operator.damping = 1.1 * radius
    dense = operator.to_dense().astype(float)
    x, code = linalg.cg(operator, start, rtol=1e-5, maxiter=500)
    assert code == 0
    # relative residual 1e-5 asked of SciPy; twice that for the float32 recurrence
    assert np.linalg.norm(dense @ x - start) <= 2e-5 * np.linalg.norm(start)
    singular = linalg.svds(operator, k=2, v0=start)[1]
    assert_close(np.sort(singular), eigenvalues[-2:] + 1.1 * radius, tol.product)
    wrapped = linalg.aslinearoperator(operator)
    assert same_bits(wrapped @ start, operator @ start)
    assert same_bits(wrapped.H @ start, operator @ start)
    assert wrapped.dtype == dtype


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_jacobian_is_usable_by_scipy(chunk_size, dtype, tol):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    problem = Case("3-5-2-scipy", (3, 5, 2), SQUARED, n=300).problem(dtype)
    jacobian = ng.Jacobian(problem.net, problem.x, chunk_size=chunk_size)
    largest = linalg.svds(jacobian, k=2, v0=np.ones(min(jacobian.shape), dtype))[1]
    exact = np.linalg.svd(jacobian.to_dense().astype(float), compute_uv=False)[:2]
    assert_close(np.sort(largest), np.sort(exact), tol.product)


def test_copies_and_pickles_are_refused(dtype):
    problem = PROBLEM.problem(dtype)
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    for function in (copy.copy, copy.deepcopy, pickle.dumps):
        for operator in (fisher, ng.SampleSpace(fisher), ng.Jacobian(problem.net, problem.x)):
            with pytest.raises(TypeError, match="can not be copied or pickled"):
                function(operator)
