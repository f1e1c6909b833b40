"""Verdicts of Krylov solvers: of what is returned, and never on the matrix for rounding."""

from itertools import product

import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits, spd_matrix

Status = ng.Status
# What no positive definite system of moderate condition is, however long one iterates.
FALSE = {
    Status.NEGATIVE_CURVATURE,
    Status.INDEFINITE_PRECONDITIONER,
    Status.SINGULAR,
    Status.NON_FINITE,
    Status.OUT_OF_RANGE,
    Status.TRUST_RADIUS,
    Status.MAX_ITERATIONS,
}
# Past convergence, by different roads, and the status that is wanted.
RULES = {
    "rtol 0": ({"rtol": 0.0, "max_iter": 2000}, {Status.CONVERGED, Status.STAGNATED}),
    "min_iter": ({"min_iter": 60}, {Status.CONVERGED}),
    "loose": ({"min_iter": 200, "rtol": 1e-2}, {Status.CONVERGED}),
    "both": ({"rtol": 0.0, "min_iter": 120}, {Status.CONVERGED, Status.STAGNATED}),
    "progress": (
        {"stopping": "relative_progress", "min_iter": 60},
        {Status.CONVERGED, Status.RELATIVE_PROGRESS},
    ),
}


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


def true_residual(matrix, x, b, damping=0.0):
    x = x.astype(float)
    return float(np.linalg.norm(b.astype(float) - matrix.astype(float) @ x - damping * x))


def rounding(matrix, x, b):
    """Of the residual: sums of tens of terms, with room."""
    size = np.linalg.norm(matrix.astype(float)) * np.linalg.norm(x.astype(float))
    return 100 * eps_of(matrix.dtype) * float(size + np.linalg.norm(b.astype(float)))


def preconditioners(matrix, rng):
    inverse = np.linalg.inv(matrix.astype(float))
    return {
        "plain": None,
        "diagonal": rng.uniform(0.5, 2.0, len(matrix)),
        "inverse": (0.5 * (inverse + inverse.T)).astype(matrix.dtype),
        "other": spd_matrix(rng, len(matrix), 100.0, matrix.dtype),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["plain", "diagonal", "inverse", "other"])
def test_past_convergence(kind, rule, dtype, rng):
    """The matrix is not blamed, x is the solution, and it is so with a radius too."""
    options, wanted = RULES[rule]
    for seed in range(25):
        rng = np.random.default_rng(seed)
        size, condition = int(rng.integers(1, 30)), 10.0 ** rng.uniform(0.0, 3.0)
        matrix = spd_matrix(rng, size, condition, dtype)
        b = rng.standard_normal(size).astype(dtype)
        inverse = preconditioners(matrix, rng)[kind]
        exact = np.linalg.solve(matrix.astype(float), b.astype(float))
        length = float(np.linalg.norm(exact))
        plain = ng.cg(matrix, b, preconditioner=inverse, **options)
        assert plain.status in wanted, (seed, plain)
        # a residual of rounding, or of the tolerance where it can stop there, times the condition
        tolerance = 50 * eps_of(dtype) + options.get("rtol", 1e-5)
        if rule != "progress":
            assert np.linalg.norm(plain.x - exact) <= 2 * condition * tolerance * length
        told = plain.residual_norm
        assert abs(told - true_residual(matrix, plain.x, b)) <= rounding(matrix, plain.x, b)
        for radius in (1e4 * length, 1e300):
            bounded = ng.cg(matrix, b, preconditioner=inverse, trust_radius=radius, **options)
            assert bounded.status is plain.status
            assert same_bits(bounded.x, plain.x)
        block = ng.cg(matrix, np.stack([b, 2 * b], axis=1), preconditioner=inverse, **options)
        assert set(block.status) <= wanted, (seed, block.status)


def test_many_small_systems_iterated_until_nothing_is_left():
    """Condition at most 11, residual tolerance 0."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
        matrix = (q * rng.uniform(0.1, 1.1, 5)) @ q.T
        b = rng.standard_normal(5)
        for options in ({}, {"trust_radius": 1e4}, {"preconditioner": rng.uniform(0.1, 1.0, 5)}):
            result = ng.cg(matrix, b, rtol=0.0, **options)
            assert result.status in (Status.CONVERGED, Status.STAGNATED)
            assert np.linalg.norm(matrix @ result.x - b) <= 1e-14 * np.linalg.norm(b)
            assert result.iterations < 30


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("dampings", [[0.0], [0.0, 0.1, 10.0], [0.5, 1e3]])
def test_past_convergence_with_several_dampings(dampings, verify, dtype):
    for seed, rtol in product(range(25), (0.0, 1e-5)):
        rng = np.random.default_rng(seed)
        size, condition = int(rng.integers(1, 30)), 10.0 ** rng.uniform(0.0, 3.0)
        matrix = spd_matrix(rng, size, condition, dtype)
        b = rng.standard_normal(size).astype(dtype)
        result = ng.multishift_cg(matrix, b, dampings, rtol=rtol, max_iter=2000, verify=verify)
        assert not FALSE & set(result.status), (seed, result.status)
        for damping, x in zip(dampings, result.x.T, strict=True):
            exact = np.linalg.solve(matrix.astype(float) + damping * np.eye(size), b.astype(float))
            error = np.linalg.norm(x - exact) / np.linalg.norm(exact)
            assert error <= 2 * condition * (100 * eps_of(dtype) + rtol)


def test_min_iter_beyond_an_exact_solution(dtype):
    for size in (1, 5, 40):
        result = ng.cg(np.eye(size, dtype=dtype), np.ones(size), min_iter=3)
        assert (result.status, result.residual_norm) == (Status.CONVERGED, 0.0)
        assert (result.x == 1.0).all()


def test_a_start_next_to_the_solution_is_improved(rng):
    """Their quadratics differ by less than rounding: the residual decides."""
    matrix, b = spd_matrix(rng, 30, 10.0), rng.standard_normal(30)
    exact = np.linalg.solve(matrix, b)
    start = exact + 1e-9 * rng.standard_normal(30)
    for options in ({"rtol": 0.0}, {"rtol": 1e-12}, {"rtol": 0.0, "max_iter": 8}):
        result = ng.cg(matrix, b, x0=start, **options)
        assert result.residual_norm < 0.2 * true_residual(matrix, start, b)
        assert result.residual_norm == pytest.approx(
            true_residual(matrix, result.x, b), abs=rounding(matrix, result.x, b)
        )


# ------------------------------------------------------------------------------------------------
# Positive semi-definite and singular, without damping


def singular_system(seed, where, dtype):
    """A of a rank below its size, b in its range, outside of it, or in its nullspace."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 40))
    rank = size - 1 if seed % 3 == 0 else int(rng.integers(1, size))
    if seed % 4 == 0:
        values = np.r_[rng.uniform(0.5, 2.0, rank), np.zeros(size - rank)]
        matrix, null = np.diag(values).astype(dtype), np.eye(size)[:, rank:]
    else:
        q = np.linalg.qr(rng.standard_normal((size, size)))[0]
        factor = q[:, :rank] * np.exp(rng.uniform(-1.5, 1.0, rank))
        matrix, null = (factor @ factor.T).astype(dtype), q[:, rank:]
        matrix = (0.5 * (matrix + matrix.T)).astype(dtype)
    inside = matrix.astype(float) @ rng.standard_normal(size)
    outside = null @ rng.standard_normal(size - rank)
    b = {"range": inside, "outside": inside + outside, "nullspace": outside}[where]
    return matrix, b.astype(dtype)


SINGULAR_OPTIONS = {
    "plain": {},
    "long": {"max_iter": 2000},
    "rtol 0": {"rtol": 0.0},
    "diagonal": {"preconditioner": True},
    "radius": {"trust_radius": 1e3},
    "progress": {"stopping": "relative_progress"},
}


@pytest.mark.parametrize("where", ["range", "outside", "nullspace"])
@pytest.mark.parametrize("name", SINGULAR_OPTIONS)
def test_singular_systems(name, where, dtype):
    for seed in range(40):
        matrix, b = singular_system(seed, where, dtype)
        options = dict(SINGULAR_OPTIONS[name])
        if "preconditioner" in options:
            options["preconditioner"] = np.random.default_rng(seed).uniform(1.0, 2.0, len(b))
        block = ng.cg(matrix, np.stack([b, b], axis=1), **options)
        for result in (ng.cg(matrix, b, **options), *block):
            status = result.status
            assert np.isfinite(result.x).all()
            assert np.isfinite(result.quadratic)
            residual, length = true_residual(matrix, result.x, b), float(np.linalg.norm(b))
            slack = rounding(matrix, result.x, b)
            assert abs(result.residual_norm - residual) <= slack
            assert status not in FALSE - {
                Status.SINGULAR,
                Status.TRUST_RADIUS,
                Status.MAX_ITERATIONS,
            }, (seed, result)
            assert (status is Status.CONVERGED) <= (residual <= 1e-5 * length + slack)
            if where == "range" and name not in ("rtol 0", "progress"):
                assert status is Status.CONVERGED, (seed, result)
            if where != "range":
                assert status is not Status.CONVERGED
                if name == "radius":  # along a direction of no curvature there is no minimum
                    assert np.linalg.norm(result.x.astype(float)) <= 1e3
                elif name != "progress":
                    assert "damping" in status.advice
                    assert status is Status.MAX_ITERATIONS or residual <= 1.01 * length + slack


@pytest.mark.parametrize("where", ["range", "outside", "nullspace"])
@pytest.mark.parametrize("verify", [False, True])
def test_singular_systems_with_several_dampings(verify, where, dtype):
    """That without damping ends for itself."""
    dampings = [0.1, 0.0, 1.0]
    for seed in range(40):
        matrix, b = singular_system(seed, where, dtype)
        result = ng.multishift_cg(matrix, b, dampings, verify=verify)
        assert np.isfinite(result.x).all()
        status = result.status[1]
        assert result.status[0] is result.status[2] is Status.CONVERGED, (seed, result.status)
        if where == "range":
            assert status is Status.CONVERGED, seed
        else:
            assert status in (Status.SINGULAR, Status.STAGNATED, Status.MAX_ITERATIONS), seed
        for damping, column in zip(dampings, result, strict=True):
            residual = true_residual(matrix, column.x, b, damping)
            # told of the residual of the recurrence and its rounding, where it is not computed
            slack = rounding(matrix, column.x, b) + 1e-5 * float(np.linalg.norm(b))
            assert abs(column.residual_norm - residual) <= slack


def test_least_squares_where_there_is_no_solution(dtype):
    """x is that of the least residual, which is the part of b outside of the range.

    Or the start, in the few cases in which an iterate along the nullspace has grown until its
    product is nothing but rounding.
    """
    at_start = 0
    for seed in range(40):
        matrix, b = singular_system(seed, "outside", dtype)
        result = ng.cg(matrix, b, max_iter=2000)
        least = np.linalg.lstsq(matrix.astype(float), b.astype(float), rcond=1e-5)[0]
        best = true_residual(matrix, least, b)
        if result.status is Status.SINGULAR and result.x.any():
            assert best * (1 - 1e-5) <= true_residual(matrix, result.x, b) <= 1.5 * best
        at_start += not result.x.any()
    assert at_start <= 4


def test_no_matrix_at_all(dtype):
    zero = np.zeros((3, 3), dtype)
    single = ng.cg(zero, np.ones(3))
    assert (single.status, single.iterations) == (Status.SINGULAR, 0)
    assert not single.x.any()
    shifts = ng.multishift_cg(zero, np.ones(3), [0.0, 2.0])
    assert shifts.status == (Status.SINGULAR, Status.CONVERGED)
    assert shifts.x[:, 1] == pytest.approx(0.5)
    on_sphere = ng.cg(zero, np.ones(3), trust_radius=2.0)  # of a linear function the minimum
    assert on_sphere.status is Status.TRUST_RADIUS
    assert np.linalg.norm(on_sphere.x) == pytest.approx(2.0, rel=1e-6)


def test_the_nullspace_and_the_radius(dtype):
    """Along a direction of no curvature the model falls to the boundary."""
    result = ng.cg(np.diag(np.array([1, 2, 0], dtype)), np.ones(3, dtype), trust_radius=10.0)
    assert result.status is Status.TRUST_RADIUS
    assert np.linalg.norm(result.x) == pytest.approx(10.0, rel=1e-5)


# ------------------------------------------------------------------------------------------------
# What is true is said


@pytest.mark.parametrize("least", [-1.0, -1e-3])
def test_negative_curvature(least, dtype):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
        matrix = (q * np.r_[np.linspace(0.5, 1.0, 19), least]) @ q.T
        matrix = (0.5 * (matrix + matrix.T)).astype(dtype)
        b = rng.standard_normal(20).astype(dtype)
        result = ng.cg(matrix, b, rtol=0.0)
        assert result.status is Status.NEGATIVE_CURVATURE
        assert "raise damping" in result.status.advice
        assert result.quadratic < 0.0
        bounded = ng.cg(matrix, b, rtol=0.0, trust_radius=1e3)
        # the way there may lead over the boundary
        assert bounded.status in (Status.NEGATIVE_CURVATURE, Status.TRUST_RADIUS)
        assert np.linalg.norm(bounded.x) == pytest.approx(1e3, rel=1e-5)
        shifts = ng.multishift_cg(matrix, b, [0.0, 2.0], rtol=1e-4)
        assert shifts.status == (Status.NEGATIVE_CURVATURE, Status.CONVERGED)


@pytest.mark.parametrize("least", [-1.0, -1e-2, 0.0])
def test_indefinite_preconditioner(least, dtype):
    """Singular ones, that map the residual to zero, are not positive definite either."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
        inverse = ((q * np.r_[least, np.ones(19)]) @ q.T).astype(dtype)
        matrix = spd_matrix(rng, 20, 10.0, dtype)
        result = ng.cg(matrix, q[:, 0].astype(dtype), preconditioner=inverse)
        wanted = {Status.INDEFINITE_PRECONDITIONER}
        # to rounding a singular one is neither, and may do
        also = {Status.STAGNATED, Status.CONVERGED} if least == 0.0 else set()
        assert result.status in wanted | also
        assert np.isfinite(result.x).all()
    zero = ng.cg(matrix, np.ones(20, dtype), preconditioner=np.zeros(20))
    assert zero.status is Status.INDEFINITE_PRECONDITIONER
