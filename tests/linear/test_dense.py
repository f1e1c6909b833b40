"""Matrices that are formed, and exact solves with them, beside dense oracles and numpy."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import scipy.sparse
from cases import BERNOULLI, MEAN_VARIANCE, SOFTMAX, SQUARED, Case, assert_close, same_bits
from natgrad_fast.operators import dense as dense_module

ALL = cases.SMALL + cases.OTHER_LAWS + cases.PIECEWISE_LINEAR
# One sum of products of rows, several columns by rows and by units, signs, weights, many columns.
FORMED = [
    Case("1-20-1-rows", (1, 20, 1), SQUARED, n=777, activation="tanh"),
    Case("2-3-9-columns-by-rows", (2, 3, 9), SQUARED, n=300),
    Case("20-33-10-units", (20, 33, 10), SOFTMAX, n=700, weighted=True),
    Case("5-8-4-signs", (5, 8, 4), MEAN_VARIANCE, n=600),
    Case("110-7-3-long-rows", (110, 7, 3), BERNOULLI, n=260, bias=(False, True)),
]
DAMPINGS = [1e-6, 1e-3, 1.0, 1e2]


def matrix_and_gradient(case, dtype, kind="fisher", **options):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 1e-3} | options
    matrix = cases.curvature(kind, problem, case.loss, **options)
    net, _, x, y, weight = problem
    g = ng.value_and_grad(net, case.loss, x, y, sample_weight=weight)[1]
    return matrix, g


@pytest.mark.parametrize("kind", cases.GAUSS_NEWTON)
@pytest.mark.parametrize("case", [*ALL, *FORMED], ids=cases.ids)
def test_formed_matrix_equals_the_oracle(case, kind, dtype, tol):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.1, "damping": 0.2}
    matrix = cases.curvature(kind, problem, case.loss, **options)
    formed = ng.DenseMatrix(matrix)
    expected = cases.exact_curvature(kind, problem, case.loss, **options)
    assert_close(formed.to_dense(), expected, tol.product)
    assert same_bits(formed.to_dense(), formed.to_dense().T)
    assert same_bits(matrix.to_dense(), formed.to_dense())
    assert formed.positive_semidefinite == matrix.positive_semidefinite


@pytest.mark.parametrize("case", FORMED, ids=cases.ids)
def test_columns_equal_products(case, dtype, tol, rng):
    """The other way to the same numbers: products with the operator, two decays included."""
    matrix, _ = matrix_and_gradient(case, dtype, "ggn", l2=(0.3, 0.01), damping=0.05)
    formed = ng.DenseMatrix(matrix)
    v = rng.standard_normal((matrix.shape[0], 3)).astype(dtype)
    assert_close(formed @ v, matrix @ v, tol.product)
    assert_close(formed.to_dense().astype(float) @ v, matrix @ v, tol.product)
    assert_close(formed.diagonal(), matrix.diagonal(), tol.product)
    assert formed.trace() == pytest.approx(matrix.trace(), rel=tol.product)
    assert formed.T is formed


@pytest.mark.parametrize("kind", cases.GAUSS_NEWTON)
@pytest.mark.parametrize("case", FORMED, ids=cases.ids)
def test_same_bits_for_threads_and_chunks(case, kind, dtype):
    def bits(**options):
        matrix, g = matrix_and_gradient(case, dtype, kind, damping=0.1, **options)
        formed = ng.DenseMatrix(matrix)
        values = [formed.solve(g, method=m).x for m in ("cholesky", "eigh")]
        return formed.to_dense(), *values

    first = bits(num_threads=1)
    for num_threads, chunk_size in [(2, None), (3, 257), (1, 100), (4, 512)]:
        other = bits(num_threads=num_threads, chunk_size=chunk_size)
        assert all(same_bits(a, b) for a, b in zip(first, other, strict=True))


def test_float32_sums_are_float64(rng):
    """20,000 equal cases: sums in float32 would lose three digits and more."""
    net = ng.MLP([3, 5, 1], dtype="float32", seed=1)
    x = rng.standard_normal((3, 3)).astype("float32")
    few = ng.Fisher(net, SQUARED, x).to_dense()
    many = ng.Fisher(net, SQUARED, np.tile(x, (20_000, 1))).to_dense()
    # the weight sqrt(1 / N) of a case is rounded to float32, twice; nothing else differs
    assert_close(many, few, 4e-7)


@pytest.mark.parametrize("method", ["cholesky", "eigh"])
@pytest.mark.parametrize("case", [*cases.ONE_LAYER, *FORMED], ids=cases.ids)
def test_solution_equals_numpy(case, method, dtype):
    matrix, g = matrix_and_gradient(case, dtype)
    formed = ng.DenseMatrix(matrix)
    exact = matrix.to_dense().astype(float)
    for damping in DAMPINGS:
        damped = exact + damping * np.eye(len(exact))
        result = ng.dense_solve(matrix, g, damping=damping, method=method, rtol=1e-3)
        assert result.status is ng.Status.CONVERGED
        assert result.x.dtype == dtype
        assert result.method == f"dense_{method}"
        assert (result.iterations, result.matvecs) == (0, 1)
        assert result.seconds > 0
        assert result.flops > 0
        assert same_bits(result.x, formed.solve(g, damping=damping, method=method).x)
        x = result.x.astype(float)
        residual = np.linalg.norm(g - damped @ x)
        # the rounding of the float32 matrix that is compared with, and of norms
        slack = {"float32": 1e-6, "float64": 1e-14}[dtype]
        slack *= np.linalg.norm(damped, 2) * np.linalg.norm(x)
        assert result.residual_norm == pytest.approx(residual, abs=slack)
        assert result.quadratic == pytest.approx(0.5 * x @ damped @ x - g @ x, rel=1e-3)
        if dtype == "float64":  # condition up to 1e4 / 1e-3 times eps, and sums
            assert_close(x, np.linalg.solve(damped, g), 1e-8)


def test_several_dampings_and_right_hand_sides_share_what_is_formed(dtype, rng):
    matrix, g = matrix_and_gradient(FORMED[2], dtype)
    formed = ng.DenseMatrix(matrix)
    for method in ("auto", "cholesky", "eigh"):
        many = ng.dense_solve(matrix, g, damping=DAMPINGS, method=method)
        assert isinstance(many.dampings, np.ndarray)
        assert many.x.shape == (len(g), len(DAMPINGS))
        for column, damping in zip(many, DAMPINGS, strict=True):
            kind = "cholesky" if method == "auto" else method
            one = formed.solve(g, damping=damping, method=kind)
            assert same_bits(column.x, one.x)
            assert column.method == f"dense_{kind}"
        assert many.flops == pytest.approx(sum(column.flops for column in many))
    few, more = (
        ng.dense_solve(formed, g, damping=np.geomspace(1e-3, 1, m), method="auto") for m in (14, 15)
    )
    assert {c.method for c in few} == {"dense_cholesky"}
    assert {c.method for c in more} == {"dense_eigh"}
    block = rng.standard_normal((len(g), 4)).astype(dtype)
    together = formed.solve(block, damping=0.1)
    assert together.method == "dense_cholesky"
    for k in range(4):
        assert same_bits(together.x[:, k], formed.solve(block[:, k], damping=0.1).x)


def test_factorisations_are_kept(rng):
    """In flops: the first solve pays the factorisation, the second one does not."""
    matrix, g = matrix_and_gradient(FORMED[2], "float64")
    formed, size = ng.DenseMatrix(matrix), float(len(g))
    for method, shared in [("cholesky", size**3 / 3), ("eigh", 14 * size**3 / 3)]:
        first, second = (formed.solve(g, damping=0.1, method=method) for _ in range(2))
        assert first.flops - second.flops == pytest.approx(shared)
        assert same_bits(first.x, second.x)
    assert formed.solve(g, damping=7.0, method="eigh").flops < size**3
    with_forming = ng.dense_solve(matrix, g, damping=0.1)
    assert with_forming.flops > formed.forming_flops


def test_operators_and_arrays(rng):
    """Whatever is symmetric: arrays, sparse ones, sums, SciPy's operators, the Hessian."""
    a = cases.spd_matrix(rng, 30, 1e4)
    b = rng.standard_normal(30)
    expected = np.linalg.solve(a + 0.1 * np.eye(30), b)
    operators = [a, a.tolist(), scipy.sparse.csr_array(a), scipy.sparse.linalg.aslinearoperator(a)]
    for operator in operators:
        result = ng.dense_solve(operator, b, damping=0.1)
        assert_close(result.x, expected, 1e-11)  # condition 10
    case = Case("4-6-3-sums", (4, 6, 3), SOFTMAX)
    problem = case.problem("float64")
    fisher = ng.Fisher(problem.net, case.loss, problem.x)
    hessian = ng.Hessian(problem.net, case.loss, problem.x, problem.y, l2=5.0)
    g = rng.standard_normal(problem.net.num_params)
    for operator in (hessian, fisher + 0.5 * hessian):
        result = ng.dense_solve(operator, g)
        assert_close(result.x, np.linalg.solve(operator.to_dense(), g), 1e-10)
    assert ng.cg(ng.DenseMatrix(a), b, damping=0.1).status.success


def test_eigenvalues(rng):
    matrix, g = matrix_and_gradient(FORMED[4], "float64")
    formed = ng.DenseMatrix(matrix)
    values = np.linalg.eigvalsh(matrix.to_dense())
    assert_close(formed.eigenvalues(), values, 1e-12)
    assert len(g) > 300  # by divide and conquer; below 120 by QR iteration
    small = cases.spd_matrix(rng, 20, 1e3)
    assert_close(ng.DenseMatrix(small).eigenvalues(), np.linalg.eigvalsh(small), 1e-13)


@pytest.mark.parametrize("method", ["auto", "cholesky", "eigh"])
def test_singular_matrix(method, dtype):
    """Rank N < P without damping: the shortest solution, and whether there is one."""
    case = Case("6-9-2-singular", (6, 9, 2), SQUARED, n=5)
    matrix, g = matrix_and_gradient(case, dtype, l2=0.0)
    result = ng.dense_solve(matrix, g, method=method, rtol=1e-3)
    assert result.status is ng.Status.CONVERGED  # a gradient is in the range of the matrix
    assert result.method == "dense_eigh"
    exact = matrix.to_dense().astype(float)
    shortest = np.linalg.pinv(exact, rcond=1e-9 if dtype == "float64" else 1e-6) @ g
    assert_close(result.x, shortest, 1e-6 if dtype == "float64" else 1e-2)
    other = np.linalg.eigh(exact)[1][:, 0].astype(dtype)  # of eigenvalue 0
    result = ng.dense_solve(matrix, other, method=method)
    assert result.status is ng.Status.SINGULAR
    assert "raise damping" in result.status.advice
    assert result.residual_norm == pytest.approx(1.0, abs=1e-3)
    assert ng.dense_solve(matrix, other, damping=1.0, method=method).status.success


@pytest.mark.parametrize("method", ["auto", "cholesky", "eigh"])
def test_indefinite_matrix(method, dtype, rng):
    """A direction of descent, and the status says to raise damping."""
    q = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = np.linspace(-2.0, 5.0, 12)
    a = ((q * values) @ q.T).astype(dtype)
    a = (a + a.T) / 2
    g = rng.standard_normal(12).astype(dtype)
    result = ng.dense_solve(a, g, method=method)
    assert result.status is ng.Status.NEGATIVE_CURVATURE
    assert "raise damping" in result.status.advice
    expected = q @ (np.where(values > 0, 1 / values, 0) * (q.T @ g))
    assert_close(result.x, expected, 1e-4 if dtype == "float32" else 1e-12)
    assert g @ result.x > 0
    assert ng.dense_solve(a, g, damping=2.5, method=method).status.success
    student = Case("4-6-3-student-silu", (4, 6, 3), "student_t", n=40, activation="silu")
    matrix, g = matrix_and_gradient(student, dtype, "ggn", l2=0.0)
    assert ng.dense_solve(matrix, g).status is ng.Status.NEGATIVE_CURVATURE


@pytest.mark.parametrize("method", ["cholesky", "eigh"])
def test_numerical_trouble_is_a_status(method, dtype):
    big = np.finfo(dtype).max
    a = np.eye(3, dtype=dtype)
    g = np.array([1.0, 2.0, -1.0], dtype)
    a[1, 1] = np.nan
    result = ng.dense_solve(a, g, method=method)
    assert result.status is ng.Status.NON_FINITE
    assert not result.x.any()
    assert result.residual_norm == pytest.approx(np.sqrt(6.0))
    result = ng.dense_solve(np.eye(3, dtype=dtype) * dtype_of(dtype, 1e-3), g * (big / 4))
    assert result.status is ng.Status.OUT_OF_RANGE
    assert np.isfinite(result.x).all()
    assert_close(result.x / np.abs(result.x).max(), [0.5, 1.0, -0.5], 1e-6)
    result = ng.dense_solve(np.eye(3, dtype=dtype), 0 * g, method=method)
    assert result.status is ng.Status.CONVERGED
    assert result.residual_norm == 0.0
    for scale in (2.0**-100, 2.0**100):  # squares of these leave the range of float32
        tiny = ng.dense_solve(2 * np.eye(3, dtype=dtype), g * dtype_of(dtype, scale), method=method)
        assert tiny.status is ng.Status.CONVERGED
        assert_close(tiny.x, 0.5 * scale * g, 1e-6)


def dtype_of(dtype, value):
    return np.dtype(dtype).type(value)


def test_stagnated_means_that_x_holds_no_more_digits(rng):
    a = cases.spd_matrix(rng, 20, 1e7).astype("float32")
    result = ng.dense_solve((a + a.T) / 2, rng.standard_normal(20).astype("float32"), rtol=1e-7)
    assert result.status is ng.Status.STAGNATED
    assert "float64" in result.status.advice


def test_arguments(rng):
    matrix, g = matrix_and_gradient(FORMED[1], "float64")
    size = len(g)
    for options, words in [
        ({"method": "lu"}, "unknown method 'lu'"),
        ({"damping": -1.0}, "damping must be >= 0"),
        ({"damping": [0.1, np.nan]}, "damping has NaN"),
        ({"damping": []}, "damping is empty"),
        ({"rtol": -1.0}, "rtol must be >= 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            ng.dense_solve(matrix, g, **options)
    with pytest.raises(ValueError, match="g has length"):
        ng.dense_solve(matrix, g[:-1])
    with pytest.raises(ValueError, match="g has NaN"):
        ng.dense_solve(matrix, np.full(size, np.nan))
    with pytest.raises(ValueError, match="several dampings go with a single g"):
        ng.dense_solve(matrix, np.ones((size, 2)), damping=[0.1, 0.2])
    with pytest.raises(ValueError, match="A must be symmetric, got A - A' of up to"):
        ng.DenseMatrix(np.triu(np.ones((4, 4))))
    with pytest.raises(ValueError, match="A must be square"):
        ng.DenseMatrix(np.ones((4, 3)))
    with pytest.raises(TypeError, match="A must be an operator"):
        ng.dense_solve("fisher", g)
    with pytest.raises(TypeError, match="is the class Fisher"):
        ng.DenseMatrix(ng.Fisher)
    with pytest.raises(TypeError, match="can not be copied or pickled"):
        ng.DenseMatrix(np.eye(3)).__reduce__()


def test_memory_is_asked_for_beforehand(monkeypatch):
    matrix, g = matrix_and_gradient(FORMED[1], "float64")
    needed = 16 * len(g) ** 2
    monkeypatch.setattr(dense_module, "physical_memory", lambda: needed - 1)
    with pytest.raises(MemoryError, match=rf"float64 and its factorisation take {needed:,} bytes"):
        ng.dense_solve(matrix, g)
    monkeypatch.setattr(dense_module, "physical_memory", lambda: needed)
    assert ng.dense_solve(matrix, g, damping=1.0).status.success


def test_dense_is_a_method_of_solve(rng):
    matrix, g = matrix_and_gradient(FORMED[2], "float64")
    found = matrix.solve(g, damping=0.1, method="dense")
    assert found.method == "dense_cholesky"
    assert same_bits(found.x, ng.dense_solve(matrix, g, damping=0.1).x)
    block = rng.standard_normal((len(g), 3))
    together = matrix.solve(block, damping=0.1, method="dense")
    assert together.method == "dense_cholesky"
    assert together.estimates["dense"].iterations == 0
    # one factorisation for all of them, but a solution and a residual for each
    one = matrix.solve(block[:, 0], damping=0.1, method="dense").estimates["dense"]
    assert one.flops < together.estimates["dense"].flops < 1.5 * one.flops
    hessian = ng.Hessian(*(lambda p: (p.net, SOFTMAX, p.x, p.y))(FORMED[2].problem("float64")))
    # by products with the identity; the damping is beyond all negative eigenvalues
    assert hessian.solve(g, damping=1e3, method="dense").status.success
    with pytest.raises(ValueError, match="preconditioner is for method 'cg'"):
        matrix.solve(g, damping=0.1, method="dense", preconditioner=np.ones(len(g)))


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ((1, 20, 1), 200, "dense"),
        ((2, 24, 24, 1), 2000, "dense"),
        ((60, 200, 10), 50, "sample_space"),
    ],
)
def test_auto_takes_it_for_few_parameters(sizes, n, expected):
    """Small dampings, many cases: where CG needs about as many products as there are unknowns."""
    case = Case("auto", sizes, SQUARED, n=n)
    matrix, g = matrix_and_gradient(case, "float64", l2=0.0)
    mu = matrix.quadratic_form(g) / (g @ g)
    damping = mu * (1e-8 if expected == "dense" else 0.1)
    assert matrix.solve(g, damping=damping).method.startswith(expected)
