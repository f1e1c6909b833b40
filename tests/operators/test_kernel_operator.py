"""SampleSpace as an operator like the others."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits
from natgrad_fast.operators import Operator

CASES = [
    Case("4-6-3-kernel", (4, 6, 3), SOFTMAX, weighted=True),
    Case("3-5-4-2-kernel", (3, 5, 4, 2), BERNOULLI, activation="relu"),
    Case("5-7-2-kernel", (5, 7, 2), SQUARED, bias=False),
]


def build(case, dtype, **options):
    problem = case.problem(dtype)
    matrix = ng.Fisher(problem.net, case.loss, problem.x, sample_weight=problem.weight, **options)
    return matrix, ng.SampleSpace(matrix)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_it_has_what_operators_have(case, dtype, tol, rng):
    matrix, space = build(case, dtype, l2=0.5, damping=0.1)  # no part of the kernel
    exact = space.kernel()
    n = len(exact)
    v, w = rng.standard_normal((2, n)).astype(dtype)
    block = rng.standard_normal((n, 3)).astype(dtype)
    assert isinstance(space, Operator)
    assert space.role == "matrix"
    assert space.positive_semidefinite
    assert space.T is space.H is space
    assert space.shape == (n, n)
    assert space.dtype == (space @ v).dtype == space.to_dense().dtype == dtype
    assert exact.dtype == np.float64
    assert_close(space.to_dense(), exact, 1e-6)
    assert_close(space @ v, exact @ v, tol.product)
    assert_close(space @ block, exact @ block, tol.product)
    assert_close(v @ space, v @ exact, tol.product)
    for name in ("matvec", "rmatvec"):
        assert same_bits(getattr(space, name)(v), space @ v)
    for name in ("matmat", "rmatmat"):
        assert same_bits(getattr(space, name)(block), space @ block)
    scale = np.linalg.norm(exact, 2) * np.linalg.norm(v) * np.linalg.norm(w)
    assert space.quadratic_form(v) == pytest.approx(v @ exact @ v, abs=tol.product * scale)
    assert space.quadratic_form(v, w) == pytest.approx(v @ exact @ w, abs=tol.product * scale)
    assert_close(space.diagonal(), np.diag(exact), tol.product)
    assert space.trace() == pytest.approx(np.trace(exact), rel=tol.product)
    # K = U'U and B = U U' have the same trace
    bare = build(case, dtype)[0].trace()
    assert space.trace() == pytest.approx(bare, rel=tol.product)
    assert repr(space) == f"<{n}x{n} SampleSpace of {matrix!r}>"


def test_it_composes_with_others(dtype, tol, rng):
    """The kernel of a squared error with unit weights is J J' over the cases."""
    case = CASES[2]
    problem = case.problem(dtype)
    _, space = build(case, dtype)
    jacobian = ng.Jacobian(problem.net, problem.x)
    difference = space - (jacobian @ jacobian.T) / case.n
    w = rng.standard_normal(space.shape[0]).astype(dtype)
    scale = np.abs(space @ w).max()
    assert np.abs(difference @ w).max() <= tol.product * scale
    b = np.ones(space.shape[0], dtype)
    shifted = ng.cg(space + 0.5 * space, b, damping=0.1)
    assert shifted.status.success
    residual = 1.5 * (space.kernel() @ shifted.x) + 0.1 * shifted.x - b
    assert np.linalg.norm(residual) <= 2e-5 * np.linalg.norm(b)


def test_it_is_usable_by_scipy(dtype, tol):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    _, space = build(CASES[0], dtype)
    start = np.ones(space.shape[0], dtype)
    largest = linalg.eigsh(space, k=2, v0=start, return_eigenvectors=False)
    assert_close(np.sort(largest), np.linalg.eigvalsh(space.kernel())[-2:], 10 * tol.product)
    wrapped = linalg.aslinearoperator(space)
    assert same_bits(wrapped @ start, space @ start)


def test_wrong_vectors():
    _, space = build(CASES[0], "float64")
    n = space.shape[0]
    for wrong, words in [
        (np.ones(n + 1), r"v has shape"),
        (np.ones((n + 1, 2)), r"v has shape"),
        (np.full(n, np.nan), "v has NaN or Inf"),
        (np.ones((n, 0)), "v has no columns"),
    ]:
        with pytest.raises(ValueError, match=words):
            space @ wrong
    with pytest.raises(TypeError, match="preconditioner must approximate the inverse"):
        ng.cg(space, np.ones(n), preconditioner=space)
