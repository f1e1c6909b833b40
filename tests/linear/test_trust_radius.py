"""Steihaug's stop of CG on a sphere against exact trust-region solutions; the iterates kept."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import assert_close, same_bits, spd_matrix
from conftest import TOLERANCES
from hypothesis import given
from hypothesis import strategies as st

Status = ng.Status


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


def length_eps(dtype):
    """Part of the radius by which |x| may be below: rounding, and the margin against it."""
    return max(4 * eps_of(dtype), 3e-14)


def quadratic(matrix, b, x):
    x = x.astype(float)
    return 0.5 * x @ matrix.astype(float) @ x - b.astype(float) @ x


def exact(matrix, b, radius):
    """Minimiser of the quadratic over |x| <= radius, for a positive definite matrix.

    x(s) = (A + s I)^-1 b, with s >= 0 such that |x(s)| = radius unless |x(0)| is smaller.
    """
    values, vectors = np.linalg.eigh(matrix.astype(float))
    coefficients = vectors.T @ b.astype(float)
    low, high = 0.0, np.linalg.norm(b) / radius
    if np.linalg.norm(coefficients / values) > radius:
        for _ in range(200):
            s = 0.5 * (low + high)
            longer = np.linalg.norm(coefficients / (values + s)) > radius
            low, high = (s, high) if longer else (low, s)
    return vectors @ (coefficients / (values + low))


def cauchy_point(matrix, b, radius):
    curvature, length = b @ matrix @ b, np.linalg.norm(b)
    most = radius / length
    return b * (most if curvature <= 0 else min(most, length**2 / curvature))


@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "diagonal"])
@pytest.mark.parametrize("part", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_boundary(part, preconditioned, dtype, rng):
    matrix, b = spd_matrix(rng, 40, 100.0, dtype), rng.standard_normal(40).astype(dtype)
    radius = part * float(np.linalg.norm(np.linalg.solve(matrix.astype(float), b)))
    m = 1.0 / np.diag(matrix) if preconditioned else None
    result = ng.cg(matrix, b, trust_radius=radius, preconditioner=m)
    assert result.status is Status.TRUST_RADIUS
    assert result.status.success
    length = np.linalg.norm(result.x.astype(float))
    eps = eps_of(dtype)
    assert radius * (1 - length_eps(dtype)) <= length <= radius
    phi, best = quadratic(matrix, b, result.x), quadratic(matrix, b, exact(matrix, b, radius))
    scale = float(np.linalg.norm(b)) * radius
    slack = (20 * eps + length_eps(dtype)) * scale  # rounding of products, and of the length
    assert result.quadratic == pytest.approx(phi, abs=slack)
    residual = np.linalg.norm(b - matrix.astype(float) @ result.x)
    assert result.residual_norm == pytest.approx(residual, abs=20 * eps * float(np.linalg.norm(b)))
    assert best - slack <= phi
    if not preconditioned:
        # no worse than the first step, and at least half of the best decrease (Yuan 2000)
        assert phi <= quadratic(matrix, b, cauchy_point(matrix, b, radius)) + slack
        assert phi <= 0.5 * best


def test_interior_solution_is_that_of_no_radius(dtype, rng):
    matrix, b = spd_matrix(rng, 40, 100.0, dtype), rng.standard_normal(40).astype(dtype)
    plain = ng.cg(matrix, b)
    radius = 1.01 * float(np.linalg.norm(plain.x))
    result = ng.cg(matrix, b, trust_radius=radius)
    assert result.status is Status.CONVERGED
    assert same_bits(result.x, plain.x)
    assert_close(result.x, exact(matrix, b, radius), 2e-3)  # condition 100 times rtol 1e-5, doubled
    huge = ng.cg(matrix, b, trust_radius=1e300)
    assert same_bits(huge.x, plain.x)


@pytest.mark.parametrize("value", [0.5, 3.0])
def test_one_direction_is_exact(value, dtype, rng):
    """For b in one eigenspace the path of CG is that of the exact solutions."""
    b = rng.standard_normal(9).astype(dtype)
    matrix = value * np.eye(9, dtype=dtype)
    for radius in [0.3, 0.999 * np.linalg.norm(b) / value, 2 * np.linalg.norm(b) / value]:
        x = ng.cg(matrix, b, trust_radius=radius).x
        assert_close(x, exact(matrix, b, radius), max(20 * eps_of(dtype), 3e-14))


@pytest.mark.parametrize("radius", [1e-12, 1.0, 1e12])
def test_negative_curvature_goes_to_the_boundary(radius, dtype, rng):
    matrix = np.diag([4.0, 3.0, 2.0, -1.0]).astype(dtype)
    for b in [np.ones(4), np.array([0.0, 0.0, 0.0, 2.0]), rng.standard_normal(4)]:
        b = b.astype(dtype)
        result = ng.cg(matrix, b, trust_radius=radius)
        assert result.status in (Status.NEGATIVE_CURVATURE, Status.TRUST_RADIUS)
        assert np.linalg.norm(result.x.astype(float)) <= radius
        assert np.linalg.norm(result.x) == pytest.approx(radius, rel=length_eps(dtype))
        phi = quadratic(matrix, b, result.x)
        slack = 1e-5 * abs(phi)  # rounding in float32
        assert phi <= quadratic(matrix, b, cauchy_point(matrix, b, radius)) + slack
        assert result.quadratic == pytest.approx(phi, rel=1e-5)


def test_first_direction_of_negative_curvature(dtype):
    b = np.array([3.0, 4.0], dtype)
    result = ng.cg(-np.eye(2, dtype=dtype), b, trust_radius=10.0)
    assert (result.status, result.iterations) == (Status.NEGATIVE_CURVATURE, 1)
    assert_close(result.x, [6.0, 8.0], 1e-6)
    assert not ng.cg(-np.eye(2, dtype=dtype), b).x.any()  # without a radius nothing bounds it


def test_of_both_ends_of_a_negative_direction_the_lower_is_taken():
    """phi(x) = -x^2/2 + 0.1 x from x = 0.9: uphill end -0.4 at 1 ahead, -0.6 at -1 behind."""
    options = {"x0": [0.9], "trust_radius": 1.0}
    result = ng.cg(-np.eye(1), [-0.1], **options)
    assert result.x[0] == pytest.approx(-1.0, rel=1e-13)
    assert result.quadratic == pytest.approx(-0.6, rel=1e-13)
    assert ng.cg(-np.eye(1), [0.1], **options).x[0] == pytest.approx(1.0, rel=1e-13)


def test_start_on_and_near_the_boundary(rng):
    matrix, b = spd_matrix(rng, 30, 50.0), rng.standard_normal(30)
    for part in [1.0, 1 - 1e-12, 0.5]:
        x0 = rng.standard_normal(30)
        x0 *= 0.5 * part / np.linalg.norm(x0)
        result = ng.cg(matrix, b, x0=x0, trust_radius=0.5 * (1 + 1e-15))
        assert np.linalg.norm(result.x) <= 0.5 * (1 + 1e-15)
        assert result.quadratic <= quadratic(matrix, b, x0) + 1e-14


@given(
    eigenvalues=st.lists(st.floats(-1.0, 10.0, width=16), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
    exponents=st.tuples(st.integers(-15, 15), st.integers(-8, 8)),
    dtype=st.sampled_from(["float32", "float64"]),
    diagonal=st.booleans(),
    warm=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_no_iterate_leaves_the_ball(eigenvalues, seed, exponents, dtype, diagonal, warm):
    """Definite or not: |x| <= radius, the record describes x, and x is no worse than the start."""
    rng, size = np.random.default_rng(seed), len(eigenvalues)
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = ((q * np.array(eigenvalues)) @ q.T).astype(dtype)
    b = (rng.standard_normal(size) * 10.0 ** exponents[0]).astype(dtype)
    radius = 10.0 ** sum(exponents)
    start = rng.standard_normal(size)
    start = (warm * radius / np.linalg.norm(start) * start).astype(dtype)
    options = {"preconditioner": 0.1 + rng.random(size)} if diagonal else {}
    result = ng.cg(matrix, b, x0=start, trust_radius=radius, keep_iterates=True, **options)
    matrix = matrix.astype(float)
    for _, x, _ in result.iterates:
        assert np.linalg.norm(x.astype(float)) <= radius
    x, b = result.x.astype(float), b.astype(float)
    length = max(np.linalg.norm(x), np.linalg.norm(start.astype(float)))
    # rounding of one product in this dtype, relative to its largest term
    eps = 100 * TOLERANCES[dtype].eps
    scale = np.abs(matrix).sum(axis=1).max() * length + np.linalg.norm(b)
    assert abs(result.residual_norm - np.linalg.norm(b - matrix @ x)) <= eps * scale
    assert abs(result.quadratic - quadratic(matrix, b, x)) <= eps * scale * length
    assert result.quadratic <= quadratic(matrix, b, start) + eps * scale * length
    if result.status is Status.TRUST_RADIUS:
        assert np.linalg.norm(x) == pytest.approx(radius, rel=length_eps(dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_radius_and_right_hand_side_of_any_size(scale, rng):
    """Their squares leave float32."""
    matrix = spd_matrix(rng, 20, 10.0, "float32")
    unit = rng.standard_normal(20).astype("float32")
    b = (unit.astype(float) * scale).astype("float32")
    result, plain = ng.cg(matrix, b, trust_radius=scale), ng.cg(matrix, unit, trust_radius=1.0)
    assert result.status is plain.status is Status.TRUST_RADIUS
    assert_close(result.x.astype(float) / scale, plain.x, 1e-5)


def test_blocks_take_a_radius_too(rng):
    matrix, block = spd_matrix(rng, 30, 50.0), rng.standard_normal((30, 3))
    block[:, 1] *= 1e-3  # inside
    result = ng.cg(matrix, block, trust_radius=1.0)
    assert result.status == (Status.TRUST_RADIUS, Status.CONVERGED, Status.TRUST_RADIUS)
    assert (np.linalg.norm(result.x, axis=0) <= 1.0).all()
    for k in range(3):
        assert_close(result.x[:, k], ng.cg(matrix, block[:, k], trust_radius=1.0).x, 1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"trust_radius": 0.0}, ValueError, "trust_radius must be > 0, got 0"),
        ({"trust_radius": -1.0}, ValueError, "trust_radius must be > 0, got -1"),
        ({"trust_radius": np.nan}, ValueError, "trust_radius must be finite"),
        ({"trust_radius": "1"}, TypeError, "trust_radius must be a real number"),
        (
            {"trust_radius": 1.0, "x0": [2.0, 0.0, 0.0]},
            ValueError,
            "x0 has length 2, outside trust_radius 1",
        ),
        ({"keep_iterates": 1}, TypeError, "keep_iterates must be True or False, got 1"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        ng.cg(np.eye(3), np.ones(3), **options)


# ------------------------------------------------------------------------------------------------
# Iterates kept for backtracking


def test_iterates_are_those_of_the_reference(rng):
    matrix, b = spd_matrix(rng, 120, 1e3), rng.standard_normal(120)
    result = ng.cg(matrix, b, rtol=1e-14, max_iter=27, keep_iterates=True)
    assert [i for i, _, _ in result.iterates] == [5, 7, 9, 11, 15, 19, 25, 27]  # and the last
    for i, x, phi in result.iterates:
        assert_close(x, reference.pcg(matrix, b, max_iter=i)[0], 1e-7)  # rounding grows with i
        assert phi == pytest.approx(quadratic(matrix, b, x), rel=1e-10)
    assert same_bits(result.iterates[-1].x, result.x)
    assert result.iterates[-1].quadratic == result.quadratic
    assert same_bits(ng.cg(matrix, b, rtol=1e-14, max_iter=27).x, result.x)
    assert ng.cg(matrix, b, max_iter=27).iterates == ()


@pytest.mark.parametrize("max_iter", [0, 3, 5, 80])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_last_iterate_is_the_result(size, max_iter, dtype, rng):
    matrix, b = spd_matrix(rng, 60, 1e3, dtype), (size * rng.standard_normal(60)).astype(dtype)
    x0 = (size * rng.standard_normal(60)).astype(dtype)
    result = ng.cg(matrix, b, x0=x0, max_iter=max_iter, keep_iterates=True)
    last = result.iterates[-1]
    assert (last.iteration, last.quadratic) == (result.iterations, result.quadratic)
    assert same_bits(last.x, result.x)
    numbers = [iterate.iteration for iterate in result.iterates]
    assert numbers == sorted(set(numbers))
    for iterate in result.iterates:
        assert iterate.x.dtype == dtype
        scale = np.linalg.norm(b.astype(float)) * np.linalg.norm(iterate.x.astype(float))
        phi = quadratic(matrix, b, iterate.x)
        # rounding of the residual of the recurrence
        assert abs(iterate.quadratic - phi) <= 100 * eps_of(dtype) * scale


def test_iterates_with_nothing_to_solve(rng):
    zero = ng.cg(np.eye(4), np.zeros(4), keep_iterates=True)
    assert [(i, phi) for i, _, phi in zero.iterates] == [(0, 0.0)]
    with pytest.raises(ValueError, match=r"keep_iterates needs a single b \(P,\), got .*4, 2"):
        ng.cg(np.eye(4), np.ones((4, 2)), keep_iterates=True)


def test_iterate_of_the_boundary(rng):
    matrix, b = spd_matrix(rng, 40, 1e3), rng.standard_normal(40)
    radius = 0.95 * float(np.linalg.norm(np.linalg.solve(matrix, b)))
    result = ng.cg(matrix, b, trust_radius=radius, keep_iterates=True)
    assert result.status is Status.TRUST_RADIUS
    assert result.iterations > 5  # else no other iterate is kept
    assert same_bits(result.iterates[-1].x, result.x)
    lengths = [np.linalg.norm(x) for _, x, _ in result.iterates]
    assert lengths == sorted(lengths)  # they grow from zero (Steihaug 1983)
