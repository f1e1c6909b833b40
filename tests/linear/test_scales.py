"""Sizes of A, b, dampings, starts and preconditioners up to the ends of the float type.

All sizes are powers of two, which change no digit: 2^p A x = 2^q b has the solution 2^(q - p) y
with A y = b, and whatever is said of x is checked on y.
"""

from itertools import product

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, same_bits, spd_matrix

Status = ng.Status
RTOL = 1e-5  # the default
OF_MATRIX = {"float32": (-110, -60, -25, 0, 60, 110), "float64": (-1000, -700, -200, 0, 700, 1000)}
OF_B = {
    "float32": (-140, -110, -60, 0, 60, 110),
    "float64": (-1065, -1000, -700, 0, 700, 1000),
}  # denormal ones first


def problem(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return spd_matrix(rng, size, 10.0, dtype), rng.standard_normal(size).astype(dtype)


def powers(dtype):
    return product(OF_MATRIX[dtype], OF_B[dtype])


def check(column, matrix, b, p, q, damping=0.0, factor=1.0):
    """x is finite, its record is true, and it is the solution wherever the float type can hold it.

    `matrix`, `b` and `damping` are those of exponent 0; `factor` times the tolerance is allowed.
    """
    limits = np.finfo(column.x.dtype)
    shifted = matrix.astype(float) + damping * np.eye(len(b))
    b = np.ldexp(np.ldexp(b, q), -q).astype(float)  # what denormal numbers leave of it
    exact = np.linalg.solve(shifted, b)
    assert np.isfinite(column.x).all()
    y = np.ldexp(column.x.astype(float), p - q)
    residual, length = np.linalg.norm(b - shifted @ y), np.linalg.norm(b)
    # rounding of a product, and of the number that is told where it is denormal
    slack = 100 * float(limits.eps) * (10.0 * (1.0 + damping) * np.linalg.norm(y) + length)
    told = np.ldexp(column.residual_norm, -q)
    assert abs(told - residual) <= slack + np.ldexp(1.0, -1070 - q), (p, q, column)
    top = int(np.frexp(np.abs(exact).max())[1]) + q - p
    if limits.minexp + 2 * limits.nmant < top < limits.maxexp:
        assert column.status is Status.CONVERGED, (p, q, column)
        assert residual <= factor * RTOL * length + slack
        assert np.linalg.norm(y - exact) <= 20 * factor * RTOL * np.linalg.norm(exact)
    elif top > limits.maxexp + 1 or top < limits.minexp - limits.nmant:
        assert column.status is Status.OUT_OF_RANGE, (p, q, column)
        assert not column.status.success
        assert "scale A or b" in column.status.advice
    else:  # some digits are left: enough or not
        assert column.status in (Status.CONVERGED, Status.OUT_OF_RANGE), (p, q, column)
        if column.status is Status.CONVERGED:
            assert residual <= factor * RTOL * length + slack
        else:
            assert residual >= RTOL * length - slack


@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.parametrize("inverse", [None, "diagonal", "ones"])
def test_matrix_and_right_hand_side(inverse, size, dtype):
    matrix, b = problem(size, dtype)
    for p, q in powers(dtype):
        scaled, rhs = np.ldexp(matrix, p), np.ldexp(b, q)
        preconditioner = {
            None: None,
            "ones": np.ones(size, dtype),
            "diagonal": np.ldexp(1.0 / np.diag(matrix).astype(float), -p),
        }[inverse]
        check(ng.cg(scaled, rhs, preconditioner=preconditioner), matrix, b, p, q)
        block = ng.cg(scaled, np.stack([rhs, rhs[::-1]], axis=1), preconditioner=preconditioner)
        check(block[0], matrix, b, p, q)
        check(block[1], matrix, b[::-1], p, q)


def test_columns_of_different_sizes_in_one_block(dtype):
    matrix, b = problem(12, dtype)
    exponents = OF_B[dtype]
    block = np.stack([np.ldexp(b, q) for q in exponents], axis=1)
    for p in OF_MATRIX[dtype]:
        for q, column in zip(exponents, ng.cg(np.ldexp(matrix, p), block), strict=True):
            check(column, matrix, b, p, q)


@pytest.mark.parametrize("verify", [False, True])
def test_multishift(verify, dtype):
    matrix, b = problem(12, dtype)
    dampings = [0.5, 0.0, 3.0]
    for p, q in powers(dtype):
        scaled = [np.ldexp(damping, p) for damping in dampings]
        result = ng.multishift_cg(np.ldexp(matrix, p), np.ldexp(b, q), scaled, verify=verify)
        for damping, column in zip(dampings, result, strict=True):
            check(column, matrix, b, p, q, damping, factor=2.0)  # twice the tolerance: rounding


def test_dampings_far_above_the_matrix(dtype):
    """A + 2^d I is 2^d (I + 2^-d A), to all digits."""
    matrix, b = problem(8, dtype)
    most = {"float32": 100, "float64": 900}[dtype]
    for d, q in product((60, most), (-most, 0, most)):
        identity = np.eye(8, dtype=dtype)
        options = {"damping": float(np.ldexp(1.0, d))}
        check(ng.cg(matrix, np.ldexp(b, q), **options), identity, b, d, q)
        shifts = ng.multishift_cg(matrix, np.ldexp(b, q), [0.0, options["damping"]])
        check(shifts[0], matrix, b, 0, q, factor=2.0)
        check(shifts[1], identity, b, d, q, factor=2.0)


@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_preconditioner_of_any_size(exponent, dtype):
    """It counts up to a factor."""
    matrix, b = problem(12, dtype)
    inverse = np.linspace(1.0, 2.0, 12)
    plain = ng.cg(matrix, b, preconditioner=inverse)
    for k in (exponent, 9 * exponent if dtype == "float64" else exponent):
        result = ng.cg(matrix, b, preconditioner=np.ldexp(inverse, k))
        assert result.status is Status.CONVERGED
        assert result.iterations == plain.iterations
        assert same_bits(result.x, plain.x)


@pytest.mark.parametrize("away", [-30, 0, 10, 40])
def test_start(away, dtype):
    """A start that is 2^away times as far from the solution as that is long."""
    matrix, b = problem(12, dtype)
    exact = np.linalg.solve(matrix.astype(float), b.astype(float))
    direction = np.random.default_rng(1).standard_normal(12)
    x0 = exact + np.ldexp(direction, away)
    limits = np.finfo(dtype)
    for p, q in powers(dtype):
        if not limits.minexp + limits.nmant < q - p < limits.maxexp - max(0, away) - 8:
            continue  # no start of that size
        start = np.ldexp(x0, q - p).astype(dtype)
        scaled, rhs = np.ldexp(matrix, p), np.ldexp(b, q)
        result = ng.cg(scaled, rhs, x0=start, keep_iterates=True)
        check(result, matrix, b, p, q)
        assert all(np.isfinite(iterate.x).all() for iterate in result.iterates)
        assert same_bits(ng.cg(scaled, rhs, x0=start, max_iter=0).x, start)


def test_radius(dtype):
    """On the sphere wherever the solution is longer, at the solution else."""
    matrix, b = problem(12, dtype)
    exact = np.linalg.solve(matrix.astype(float), b.astype(float))
    limits = np.finfo(dtype)
    for p, q in powers(dtype):
        scaled, rhs = np.ldexp(matrix, p), np.ldexp(b, q)
        largest = ng.cg(scaled, rhs, trust_radius=float(limits.max) / 4)
        if np.frexp(np.linalg.norm(exact))[1] + q - p < limits.maxexp - 2:
            check(largest, matrix, b, p, q)
        for r in (-100, -10, 0, 50):
            if not limits.minexp + 2 * limits.nmant < q - p + r < limits.maxexp - 1:
                continue  # no x of that size
            radius = float(np.ldexp(np.linalg.norm(exact), q - p + r))
            result = ng.cg(scaled, rhs, trust_radius=radius / 2)
            inside = r > 1
            assert result.status is (Status.CONVERGED if inside else Status.TRUST_RADIUS)
            y = np.ldexp(result.x.astype(float), p - q - r)
            if not inside:
                assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(exact) / 2, rel=1e-5)


def test_quadratic_and_callback_are_in_units_of_the_caller(dtype):
    matrix, b = problem(12, dtype)
    plain = []
    ng.cg(matrix, b, callback=lambda *numbers: plain.append(numbers))
    half = {"float32": 50, "float64": 300}[dtype]
    for p, q in ((half, half), (half, -half), (-half, half)):
        seen = []
        ng.cg(np.ldexp(matrix, p), np.ldexp(b, q), callback=lambda *n, seen=seen: seen.append(n))
        assert [n for n, _, _ in seen] == [n for n, _, _ in plain]
        assert [np.ldexp(norm, -q) for _, norm, _ in seen] == [norm for _, norm, _ in plain]
        assert [np.ldexp(phi, p - 2 * q) for _, _, phi in seen] == [phi for _, _, phi in plain]


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
def test_sample_space(method, dtype):
    case = Case("4-6-3-scales", (4, 6, 3), SOFTMAX, n=15).problem(dtype)
    fisher = ng.Fisher(case.net, SOFTMAX, case.x)
    dense = fisher.to_dense()
    b = np.random.default_rng(0).standard_normal(len(dense)).astype(dtype)
    for q in OF_B[dtype]:
        rhs = np.ldexp(b, q)
        options = {"damping": 0.5, "method": method, "max_iter": 1000}
        seen = []
        result = ng.sample_space_solve(
            fisher,
            rhs,
            callback=lambda _, norm, phi, seen=seen: seen.append((norm, phi)),
            **options,
        )
        check(result, dense, b, 0, q, 0.5)
        assert all(np.isfinite(norm) and norm >= 0.0 for norm, _ in seen)
        block = ng.sample_space_solve(fisher, np.stack([rhs, 0 * rhs], axis=1), **options)
        check(block[0], dense, b, 0, q, 0.5)
        several = ng.sample_space_solve(fisher, rhs, **(options | {"damping": [1.0, 0.5]}))
        check(several[1], dense, b, 0, q, 0.5)
    tiny = {"float32": -110, "float64": -900}[dtype]
    with_shift = ng.sample_space_solve(
        fisher, np.ldexp(b, -tiny), damping=float(np.ldexp(1.0, tiny)), method=method
    )
    assert not with_shift.status.success  # beyond the range, or more digits than there are
    assert np.isfinite(with_shift.x).all()


def test_products_out_of_range_are_no_warnings():
    """NumPy's warnings are errors here."""

    class Wide:
        """Products in float64, of an operator in float32."""

        shape, dtype = (3, 3), np.dtype(np.float32)

        def matvec(self, v):
            return 1e300 * v.astype(float)

    result = ng.cg(Wide(), np.ones(3, np.float32))
    assert result.status is Status.NON_FINITE
    assert not result.x.any()
    infinite = ng.cg(np.diag([1.0, np.inf, 1.0]), np.ones(3))
    assert infinite.status is Status.NON_FINITE
    assert np.isfinite(infinite.x).all()
