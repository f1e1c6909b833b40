"""Sums, multiples and products of operators beside the same expressions of dense matrices."""

from concurrent.futures import ThreadPoolExecutor

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, assert_close, same_bits
from natgrad_fast.operators import Product, WeightedSum
from natgrad_fast.operators.curvature import CurvatureMatrix

CASE = Case("4-6-3-composition", (4, 6, 3), SOFTMAX, n=15)


def build(dtype, num_threads=None):
    """F with a damping of its own, the Hessian H, and the Jacobian J, of one net and batch."""
    problem = CASE.problem(dtype)
    net, x, y = problem.net, problem.x, problem.y
    fisher = ng.Fisher(net, SOFTMAX, x, damping=0.3, num_threads=num_threads)
    hessian = ng.Hessian(net, SOFTMAX, x, y, l2=0.05, num_threads=num_threads)
    return fisher, hessian, ng.Jacobian(net, x, num_threads=num_threads)


# Functions of F, H and J that hold for operators and for arrays.
EXPRESSIONS = {
    "sum": lambda f, h, j: f + h,
    "difference": lambda f, h, j: f - h,
    "multiple": lambda f, h, j: 2.0 * f,
    "multiple-right": lambda f, h, j: h * 2.0,
    "numpy-scalar": lambda f, h, j: np.float32(2) * f + np.int64(3) * h,
    "zero-dimensional": lambda f, h, j: np.array(0.5) * f,
    "quotient": lambda f, h, j: f / 4,
    "negative": lambda f, h, j: -h,
    "nothing": lambda f, h, j: 0.0 * f,
    "long": lambda f, h, j: (f + 2.0 * (h - f / 3)) * 1.5 - h,
    "python-sum": lambda f, h, j: sum([f, h, f]),
    "of-jacobians": lambda f, h, j: 2.0 * j - j / 3,
    "gram": lambda f, h, j: j.T @ j,
    "other-gram": lambda f, h, j: j @ j.T,
    "square": lambda f, h, j: f @ h,
    "three": lambda f, h, j: f @ h @ f,
    "four": lambda f, h, j: (f @ h) @ (h @ f),
    "gram-in-a-sum": lambda f, h, j: f + 0.1 * (j.T @ j),
    "sum-in-a-product": lambda f, h, j: (f - h) @ f,
    "rectangular-product": lambda f, h, j: j @ (f + h) @ j.T,
    "product-with-transpose": lambda f, h, j: (j @ f).T,
    "sum-of-transposes": lambda f, h, j: (j.T + 0.5 * j.T).T,
    "transposed-square": lambda f, h, j: (f @ h + 2.0 * h @ f).T,
}
every_expression = pytest.mark.parametrize("expression", EXPRESSIONS)


def both(expression, dtype):
    """An expression as an operator and as a float64 array."""
    parts = build(dtype)
    function = EXPRESSIONS[expression]
    return function(*parts), function(*(part.to_dense().astype(float) for part in parts))


@every_expression
def test_products_equal_dense(expression, dtype, tol, rng):
    operator, exact = both(expression, dtype)
    m, n = exact.shape
    v, w = rng.standard_normal((n, 3)).astype(dtype), rng.standard_normal((m, 3)).astype(dtype)
    # rounding of up to four products in a row, of norms whose product the result may cancel
    tolerance = 3 * tol.product
    assert operator.shape == exact.shape
    assert operator.dtype == dtype == (operator @ v).dtype == (w.T @ operator).dtype
    assert_close(operator.to_dense(), exact, tolerance)
    assert_close(operator @ v, exact @ v, tolerance)
    assert_close(operator @ v[:, 0], exact @ v[:, 0], tolerance)
    assert_close(w[:, 0] @ operator, w[:, 0] @ exact, tolerance)
    assert_close(w.T @ operator, w.T @ exact, tolerance)
    assert_close(operator.T @ w, exact.T @ w, tolerance)
    assert_close(operator.T.to_dense(), exact.T, tolerance)
    for name, argument in [("matvec", v[:, 0]), ("matmat", v)]:
        assert same_bits(getattr(operator, name)(argument), operator @ argument)
    assert_close(operator.rmatvec(w[:, 0]), exact.T @ w[:, 0], tolerance)
    assert_close(operator.rmatmat(w), exact.T @ w, tolerance)
    assert operator.H.shape == (n, m)


@every_expression
def test_numbers_of_a_square_matrix_equal_dense(expression, dtype, tol, rng):
    operator, exact = both(expression, dtype)
    m, n = exact.shape
    v, w = rng.standard_normal(m).astype(dtype), rng.standard_normal(n).astype(dtype)
    scale = np.linalg.norm(exact) * np.linalg.norm(v) * np.linalg.norm(w)
    tolerance = 3 * tol.product
    assert operator.quadratic_form(v, w) == pytest.approx(v @ exact @ w, abs=tolerance * scale)
    if m != n:
        for call in (operator.diagonal, operator.trace, lambda: operator.quadratic_form(v)):
            with pytest.raises(ValueError, match="needs a square operator"):
                call()
        return
    assert isinstance(operator.trace(), float)
    assert operator.diagonal().dtype == dtype
    assert_close(operator.diagonal(), np.diag(exact), tolerance)
    assert operator.trace() == pytest.approx(
        np.trace(exact), abs=tolerance * np.abs(np.diag(exact)).sum()
    )
    assert operator.quadratic_form(v) == pytest.approx(
        v @ exact @ v, abs=tolerance * np.linalg.norm(exact) * (v @ v)
    )


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_times_an_operator(rows, dtype, tol, rng):
    fisher, _, jacobian = build(dtype)
    for operator in (fisher, jacobian, jacobian.T):
        exact = operator.to_dense().astype(float)
        u = rng.standard_normal((rows, operator.shape[0])).astype(dtype)
        for layout in (u, np.asfortranarray(u), u[::-1][::-1], u.tolist()):
            assert_close(layout @ operator, u @ exact, tol.product)
        assert (u[0] @ operator).shape == (operator.shape[1],)
        for wrong in (u[:, :-1], u[0, :-1], u[None], u[:0]):
            with pytest.raises(ValueError, match=r"u has (shape|no rows)"):
                wrong @ operator
        bad = u.copy()
        bad[-1, 2] = np.nan
        with pytest.raises(ValueError, match=f"u has NaN or Inf .* row {rows - 1}, column 2"):
            bad @ operator


def test_damping_of_a_part_counts_at_once(dtype, tol):
    fisher, hessian, _ = build(dtype)
    operator = fisher + 2.0 * hessian
    assert operator.damping == pytest.approx(0.3)
    before = operator.to_dense().astype(float)
    fisher.damping, hessian.damping = 1.3, 0.5
    assert operator.damping == pytest.approx(2.3)
    assert_close(operator.to_dense(), before + 2.0 * np.eye(len(before)), tol.product)
    with pytest.raises(AttributeError):
        operator.damping = 1.0


def test_sums_are_flat_and_share_their_parts():
    fisher, hessian, jacobian = build("float64")
    operator = 2.0 * (fisher - hessian) + fisher
    assert operator.terms == ((2.0, fisher), (-2.0, hessian), (1.0, fisher))
    assert operator.flops_per_product == pytest.approx(
        2 * fisher.flops_per_product + hessian.flops_per_product
    )
    assert repr(operator) == "<51x51 2 * Fisher - 2 * Hessian + Fisher, float64>"
    assert repr(-fisher) == "<51x51 -Fisher, float64>"
    gram = jacobian.T @ jacobian
    assert gram.flops_per_product == 2 * jacobian.flops_per_product > 0
    assert repr(gram) == "<51x51 Jacobian.T @ Jacobian, float64>"
    assert repr((fisher + hessian) @ fisher) == "<51x51 (Fisher + Hessian) @ Fisher, float64>"
    assert len((gram @ fisher @ gram).parts) == 5
    assert isinstance(operator, WeightedSum)
    assert isinstance(gram, Product)


def test_what_is_known_of_symmetry_and_sign():
    fisher, hessian, jacobian = build("float64")
    ggn = ng.GGN(CASE.net("float64"), SOFTMAX, CASE.problem("float64").x)
    for operator, definite in [
        (fisher, True),
        (hessian, False),
        (jacobian, False),
        (fisher + ggn, True),
        (0.0 * fisher + 2 * ggn, True),
        (fisher - ggn, False),
        (fisher + hessian, False),
        (jacobian.T @ jacobian, True),
        (jacobian @ jacobian.T, True),
        (fisher + jacobian.T @ jacobian, True),
        (fisher @ ggn @ fisher, True),
        (hessian @ fisher @ hessian, True),
        (fisher @ hessian @ fisher, False),
        (fisher @ ggn, False),
        (jacobian.T @ (jacobian @ fisher), False),
        (hessian @ hessian, True),
        (-fisher, False),
    ]:
        assert operator.positive_semidefinite is definite, operator
        if definite:
            eigenvalues = np.linalg.eigvalsh(operator.to_dense())
            # zero up to the rounding of the products
            assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
            assert operator.T is operator
    assert (fisher @ ggn).T is not fisher @ ggn
    assert (fisher + hessian).T.T.shape == (51, 51)


# ------------------------------------------------------------------------------------------------
# In solvers


def solvable(dtype):
    fisher, hessian, jacobian = build(dtype)
    return {
        "sum": fisher + 0.01 * hessian,
        "multiple": 2.0 * fisher,
        "gram": jacobian.T @ jacobian,
        "gram-in-a-sum": fisher + jacobian.T @ jacobian,
        "product": fisher @ fisher,
    }


@pytest.mark.parametrize("kind", ["sum", "multiple", "gram", "gram-in-a-sum", "product"])
def test_solvers_take_compositions(kind, dtype, rng):
    operator = solvable(dtype)[kind]
    dense = operator.to_dense().astype(float)
    size, damping = len(dense), 0.1 * np.linalg.norm(dense, 2)
    exact = dense + damping * np.eye(size)
    b = rng.standard_normal((size, 3)).astype(dtype)
    scale = np.linalg.norm(b, axis=0)
    whole = ng.Nystrom(operator, rank=size)
    # float32: its core is inverted with the shift 2 eps |Y|
    assert_close(whole.to_dense(), dense, {"float32": 1e-2, "float64": 1e-9}[dtype])
    nystrom = ng.Nystrom(operator, rank=20, damping=damping)
    for preconditioner in (None, nystrom):
        options = {"damping": damping, "preconditioner": preconditioner}
        block = ng.cg(operator, b, **options)
        single = ng.cg(operator, b[:, 0], **options)
        assert block.success
        assert single.status.success
        # rtol 1e-5 asked; twice that for the float32 dense matrix
        assert (np.linalg.norm(exact @ block.x - b, axis=0) <= 2e-5 * scale).all()
        assert np.linalg.norm(exact @ single.x - b[:, 0]) <= 2e-5 * scale[0]
    several = ng.multishift_cg(operator, b[:, 0], [damping, 3 * damping])
    assert several.success
    assert np.linalg.norm(exact @ several.x[:, 0] - b[:, 0]) <= 2e-5 * scale[0]


def test_scipy_takes_compositions(dtype, tol):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    for operator in solvable(dtype).values():
        exact = operator.to_dense().astype(float)
        wrapped = linalg.aslinearoperator(operator)
        start = np.ones(len(exact), dtype)
        assert same_bits(wrapped @ start, operator @ start)
        largest = linalg.eigsh(operator, k=1, v0=start, return_eigenvectors=False)
        assert_close(largest, [np.linalg.eigvalsh(exact)[-1]], 10 * tol.product)


def test_solvers_multiply_in_the_core(monkeypatch, rng):
    """No Python per iteration where all parts are operators of the core."""
    fisher, hessian, _ = build("float64")
    kfac = ng.KFAC(CASE.net("float64"), SOFTMAX, CASE.problem("float64").x, damping=0.4)
    b = rng.standard_normal(51)
    expected = ng.cg(fisher + 0.1 * hessian, b, preconditioner=0.5 * kfac, damping=0.1)

    def refuse(*args):
        raise AssertionError

    for kind in (CurvatureMatrix, WeightedSum, Product, ng.KFAC):
        monkeypatch.setattr(kind, "_apply", refuse)
    found = ng.cg(fisher + 0.1 * hessian, b, preconditioner=0.5 * kfac, damping=0.1)
    assert found.status.success
    assert same_bits(found.x, expected.x)
    assert ng.cg(fisher @ fisher, b, damping=0.1).status.success


def test_the_sum_of_one_has_the_bits_of_the_part(dtype, rng):
    fisher, _, _ = build(dtype)
    v = rng.standard_normal(51).astype(dtype)
    assert same_bits((1.0 * fisher) @ v, fisher @ v)
    assert same_bits((2.0 * fisher) @ v, 2 * (fisher @ v))  # exact: a power of two
    one, other = (ng.cg(matrix, v, damping=0.1) for matrix in (1.0 * fisher, fisher))
    assert same_bits(one.x, other.x)
    assert one.flops == other.flops


def test_bits_do_not_depend_on_threads(dtype, num_threads):
    case = Case("20-60-40-5-sums", (20, 60, 40, 5), SQUARED, n=300)
    problem = case.problem(dtype)
    v = np.random.default_rng(0).standard_normal((problem.net.num_params, 3)).astype(dtype)

    def products(threads):
        fisher = ng.Fisher(problem.net, SQUARED, problem.x, num_threads=threads)
        hessian = ng.Hessian(problem.net, SQUARED, problem.x, problem.y, num_threads=threads)
        operator = fisher - 0.25 * hessian
        assert operator.num_threads == threads
        yield operator @ v
        yield operator @ (operator @ v[:, 0])
        yield (fisher @ hessian) @ v
        yield ng.cg(fisher + hessian, v[:, 0], damping=1.0, max_iter=5).x

    for found, expected in zip(products(num_threads), products(1), strict=True):
        assert same_bits(found, expected)


def test_products_from_several_python_threads_at_once(rng):
    fisher, hessian, _ = build("float64")
    vectors = rng.standard_normal((40, 51))
    for core in ((fisher - 0.5 * hessian).core, (fisher @ hessian).core):
        expected = [core.apply(v[None]) for v in vectors]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                found = pool.map(lambda v, core=core: core.apply(v[None]), vectors)
                assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------------------------------------
# Inverses


def preconditioners(dtype):
    problem = CASE.problem(dtype)
    net, x, y = problem.net, problem.x, problem.y
    fisher = ng.Fisher(net, SOFTMAX, x)
    return {
        "kfac": ng.KFAC(net, SOFTMAX, x, damping=0.1),
        "ekfac": ng.EKFAC(net, SOFTMAX, x, damping=0.1),
        "diagonal": ng.DiagonalPreconditioner(net, SOFTMAX, x, y, damping=0.1),
        "nystrom": ng.Nystrom(fisher, rank=10, damping=0.1),
    }


@pytest.mark.parametrize("second", ["ekfac", "diagonal", "nystrom"])
def test_sums_of_inverses(second, dtype, tol, rng):
    parts = preconditioners(dtype)
    kfac, other = parts["kfac"], parts[second]
    inverse = 0.5 * kfac + 0.25 * other
    eye = np.eye(51, dtype=dtype)
    exact = 0.5 * (kfac @ eye).astype(float) + 0.25 * (other @ eye)
    assert inverse.role == "inverse"
    assert inverse.positive_semidefinite
    assert inverse.T is inverse
    assert_close(inverse @ eye, exact, tol.product)
    assert_close(inverse.to_dense(), exact, tol.product)  # unlike kfac.to_dense()
    assert_close(inverse.diagonal(), np.diag(exact), tol.product)
    assert inverse.trace() == pytest.approx(np.trace(exact), rel=tol.product)
    v = rng.standard_normal(51).astype(dtype)
    assert inverse.quadratic_form(v) == pytest.approx(v @ exact @ v, rel=10 * tol.product)
    with pytest.raises(AttributeError, match="has no one damping"):
        _ = inverse.damping
    fisher, _, _ = build(dtype)
    found = ng.cg(fisher, v, preconditioner=inverse, damping=0.1)
    dense = ng.cg(fisher, v, preconditioner=exact.astype(dtype), damping=0.1)
    assert found.status.success
    assert abs(found.iterations - dense.iterations) <= 2  # the same up to rounding
    other.refresh(10.0)  # parts are shared: what follows is the new inverse
    assert_close(inverse @ eye, 0.5 * (kfac @ eye) + 0.25 * (other @ eye), tol.product)


def test_roles_of_products():
    fisher, _, jacobian = build("float64")
    kfac = preconditioners("float64")["kfac"]
    assert (kfac @ fisher).role == "matrix"
    assert (kfac @ fisher @ kfac).role == "inverse"
    assert (jacobian.T @ jacobian).role == "matrix"
    polynomial = 2.0 * kfac - kfac @ fisher @ kfac  # a step of Newton and Schulz
    assert polynomial.role == "inverse"
    eye = np.eye(51)
    m, f = kfac @ eye, fisher.to_dense()
    assert_close(polynomial.to_dense(), 2 * m - m @ f @ m, 1e-10)
    shifted = ng.cg(fisher, np.ones(51), preconditioner=kfac @ fisher @ kfac + kfac)
    assert shifted.status.success


# ------------------------------------------------------------------------------------------------
# Refused


def test_no_operator_becomes_an_array_by_accident():
    fisher, hessian, jacobian = build("float64")
    everything = [fisher, jacobian, jacobian.T, fisher + hessian, fisher @ hessian]
    everything += [*preconditioners("float64").values(), ng.SampleSpace(fisher)]
    v = np.ones(51)
    for operator in everything:
        for call in (
            np.asarray,
            np.array,
            lambda a: np.array(a, dtype=float, copy=True),
            lambda a: np.dot(a, v),
            lambda a: np.dot(v, a),
            lambda a: np.linalg.norm(a),
            lambda a: np.array([a, a]),
            lambda a: np.stack([a]),
        ):
            with pytest.raises(TypeError, match=r"is no array: multiply with @.*to_dense\(\)"):
                call(operator)
        with pytest.raises(TypeError, match=r"v can not be read as an array.*to_dense\(\)"):
            fisher.matvec(operator)


def refusals():
    fisher, hessian, jacobian = build("float64")
    single, other = ng.Fisher(CASE.net("float32"), SOFTMAX, np.ones((2, 4))), ng.MLP([4, 3])
    reshaped = ng.MLP([2, 17], bias=True, dtype="float64")  # as many parameters
    foreign = ng.Fisher(reshaped, SQUARED, np.ones((2, 2)))
    kfac = preconditioners("float64")["kfac"]
    small = ng.Fisher(other, SQUARED, np.ones((2, 4)))
    one_matrix = "one stands for a matrix, the other for the inverse"
    return {
        "float32": (lambda: fisher + single, ValueError, "float64> .* float32>: dtypes differ"),
        "product-float32": (lambda: fisher @ single, ValueError, "dtypes differ"),
        "shape": (lambda: fisher + jacobian, ValueError, "<51x51 .* <45x51 .*shapes differ"),
        "size": (lambda: single + small, ValueError, "<51x51 .* <15x15 .*: shapes differ"),
        "inner": (lambda: fisher @ jacobian, ValueError, "inner dimensions differ"),
        "net": (lambda: fisher + foreign, ValueError, r"of nets \(4, 6, 3\) and \(2, 17\)"),
        "inverse": (lambda: fisher + kfac, TypeError, one_matrix),
        "inverse-first": (lambda: kfac - hessian, TypeError, one_matrix),
        "inverse-late": (lambda: fisher + hessian + kfac, TypeError, one_matrix),
        "number": (lambda: fisher + 0.1, TypeError, "only operators are added.*0.1: .*damping"),
        "number-first": (lambda: 1 - fisher, TypeError, "only operators are added.*1: .*damping"),
        "array": (lambda: fisher + np.eye(51), TypeError, r"only operators.*to_dense\(\)"),
        "array-first": (lambda: np.eye(51) - fisher, TypeError, r"only operators.*to_dense\(\)"),
        "list": (lambda: [[1.0], [1, 2]] - fisher, TypeError, "only operators are added"),
        "none": (lambda: fisher + None, TypeError, "only operators are added"),
        "vector": (lambda: fisher * np.ones(51), TypeError, "real number.*written with @"),
        "vector-first": (lambda: np.ones(51) * fisher, TypeError, "real number.*written with @"),
        "one-element": (lambda: fisher * np.ones(1), TypeError, "real number.*written with @"),
        "operator": (lambda: fisher * hessian, TypeError, "real number.*written with @"),
        "true": (lambda: True * fisher, TypeError, "factor of an operator must be a real number"),
        "complex": (lambda: 1j * fisher, TypeError, "must be a real number, got 1j"),
        "complex64": (lambda: np.complex64(2) * fisher, TypeError, "must be a real number"),
        "string": (lambda: "2" * fisher, TypeError, "must be a real number, got '2'"),
        "nan": (lambda: np.nan * fisher, ValueError, "must be finite, got nan"),
        "inf": (lambda: fisher * np.inf, ValueError, "must be finite, got inf"),
        "huge": (lambda: 10**400 * fisher, ValueError, "must be finite, got an integer of 1329"),
        "by-zero": (lambda: fisher / 0, ZeroDivisionError, "is divided by 0"),
        "by-nan": (lambda: fisher / np.nan, ValueError, "must be finite, got nan"),
        "by-operator": (lambda: fisher / hessian, TypeError, "real number"),
    }


@pytest.mark.parametrize("kind", refusals())
def test_refusals(kind):
    call, error, words = refusals()[kind]
    with pytest.raises(error, match=f"(?s){words}"):
        call()
