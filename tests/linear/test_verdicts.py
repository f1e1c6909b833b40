"""Verdicts of Krylov solvers: of what is returned, and never on the matrix for rounding."""

import natgrad_fast as ng
import numpy as np
import pytest

Status = ng.Status
RADII = {"no radius": {}, "radius": {"trust_radius": 1e4}}
RULES = {
    "rtol 0": {"rtol": 0.0},
    "min_iter": {"min_iter": 40},
    "both": {"rtol": 0.0, "min_iter": 60},
}


def positive_definite(rng, size, dtype):
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (q * rng.uniform(0.1, 1.1, size)) @ q.T
    return (0.5 * (matrix + matrix.T)).astype(dtype)


def residual_norm(matrix, x, b):
    """In long double: no product of these scales leaves its range."""
    wide = np.longdouble
    return float(np.sqrt(((b.astype(wide) - matrix.astype(wide) @ x.astype(wide)) ** 2).sum()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "diagonal"])
def test_past_convergence_the_matrix_is_not_blamed(preconditioned, radius, rule, dtype, rng):
    """Condition at most 11: there is no negative curvature, and x is as without a radius."""
    tol = {"float32": 1e-4, "float64": 1e-12}[dtype]  # condition times eps, with room
    for _ in range(60):
        size = int(rng.integers(1, 9))
        matrix, b = positive_definite(rng, size, dtype), rng.standard_normal(size).astype(dtype)
        options = RULES[rule] | RADII[radius]
        if preconditioned:
            options |= {"preconditioner": rng.uniform(0.5, 2.0, size)}
        result = ng.cg(matrix, b, **options)
        exact = np.linalg.solve(matrix.astype(float), b.astype(float))
        assert result.status in (Status.CONVERGED, Status.STAGNATED)
        if rule == "min_iter":
            assert result.status is Status.CONVERGED
        assert np.linalg.norm(result.x - exact) <= tol * np.linalg.norm(exact)
        block = ng.cg(matrix, np.stack([b, 2 * b], axis=1), **options)
        assert set(block.status) <= {Status.CONVERGED, Status.STAGNATED}
        shifts = ng.multishift_cg(matrix, b, [0.0, 0.5], rtol=0.0)
        assert set(shifts.status) <= {Status.CONVERGED, Status.STAGNATED}


def test_min_iter_beyond_an_exact_solution():
    assert ng.cg(np.eye(5), np.ones(5), min_iter=3).status is Status.CONVERGED


def scales(dtype):
    if dtype == "float32":
        return [-30, -15, 0, 15, 30], [-44, -30, -15, 0, 15, 30]
    return [-300, -200, -100, 0, 100, 200, 300], [-310, -200, -100, 0, 100, 200, 300]


def test_scales_of_matrix_and_right_hand_side(dtype):
    """Whatever the scales: x is finite, and "converged" is said exactly of what has converged."""
    of_matrix, of_b = scales(dtype)
    for p in of_matrix:
        for q in of_b:
            matrix = np.diag(np.array([1.0, 2.0, 3.0]) * 10.0**p).astype(dtype)
            b = np.full(3, 10.0**q).astype(dtype)
            length = residual_norm(matrix, np.zeros(3), b)
            for result in (ng.cg(matrix, b), ng.multishift_cg(matrix, b, [0.0])[0]):
                assert np.isfinite(result.x).all(), (p, q)
                true = residual_norm(matrix, result.x, b)
                # multishift_cg allows twice the tolerance, for rounding
                assert result.status.success == (true <= 2.01e-5 * length), (p, q, result)
                assert result.status in (Status.CONVERGED, Status.OUT_OF_RANGE), (p, q)
            single = ng.cg(matrix, b)
            assert single.residual_norm == pytest.approx(
                residual_norm(matrix, single.x, b), abs=1e-4 * length + 1e-320
            )


@pytest.mark.parametrize("size", [3, 30])
@pytest.mark.parametrize("in_range", [True, False], ids=["in range", "not in range"])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "diagonal"])
def test_singular_systems(preconditioned, in_range, size, dtype, rng):
    values = np.r_[np.linspace(1.0, 2.0, size - 1), 0.0]
    for dense in (False, True):
        q = np.linalg.qr(rng.standard_normal((size, size)))[0] if dense else np.eye(size)
        matrix = ((q * values) @ q.T).astype(dtype)
        matrix = (0.5 * (matrix + matrix.T)).astype(dtype)
        b = (q @ np.r_[np.ones(size - 1), 0.0 if in_range else 1.0]).astype(dtype)
        options = {"rtol": 1e-4}
        if preconditioned:
            options["preconditioner"] = rng.uniform(0.5, 2.0, size)
        result = ng.cg(matrix, b, **options)
        assert np.isfinite(result.x).all()
        true = residual_norm(matrix, result.x, b)
        scale = float(np.linalg.norm(b) + np.linalg.norm(result.x))
        eps = float(np.finfo(dtype).eps)
        assert result.residual_norm == pytest.approx(true, abs=20 * eps * scale * size)
        if in_range:
            assert result.status is Status.CONVERGED
        else:
            said = (Status.SINGULAR, Status.STAGNATED, Status.OUT_OF_RANGE, Status.MAX_ITERATIONS)
            assert result.status in said
            assert "raise damping" in result.status.advice or result.status not in said[:2]
        shifts = ng.multishift_cg(matrix, b, [0.0, 1.0], rtol=1e-4)
        assert np.isfinite(shifts.x).all()
        assert shifts.status[1] is Status.CONVERGED
        assert (shifts.status[0] is Status.CONVERGED) == in_range


def test_the_nullspace_and_the_radius(dtype):
    """Along a direction of no curvature the model falls to the boundary."""
    result = ng.cg(np.diag(np.array([1, 2, 0], dtype)), np.ones(3, dtype), trust_radius=10.0)
    assert result.status is Status.TRUST_RADIUS
    assert np.linalg.norm(result.x) == pytest.approx(10.0, rel=1e-5)


def test_truly_negative_curvature_is_said(dtype, rng):
    q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    matrix = ((q * np.r_[np.linspace(0.5, 1.0, 19), -1e-3]) @ q.T).astype(dtype)
    result = ng.cg(0.5 * (matrix + matrix.T), rng.standard_normal(20).astype(dtype), rtol=0.0)
    assert result.status is Status.NEGATIVE_CURVATURE


# ------------------------------------------------------------------------------------------------
# Whoever calls back is obeyed


class Mine(Exception):
    pass


def entry_points():
    rng = np.random.default_rng(0)
    net = ng.MLP([6, 10, 3], dtype="float64", seed=0)
    x, y = rng.standard_normal((40, 6)), rng.integers(0, 3, 40)
    fisher = ng.Fisher(net, "softmax_cross_entropy", x)
    g = ng.value_and_grad(net, "softmax_cross_entropy", x, y)[1]
    tight = {"damping": 1e-5, "rtol": 1e-12, "max_iter": 200}
    return {
        "cg": lambda call: ng.cg(fisher, g, callback=call, **tight),
        "block": lambda call: ng.cg(fisher, np.stack([g, -g], axis=1), callback=call, **tight),
        "multishift": lambda call: ng.multishift_cg(
            fisher, g, [1e-5, 1e-2], rtol=1e-12, callback=call
        ),
        "sample space": lambda call: ng.sample_space_solve(
            fisher, g, method="cg", callback=call, **tight
        ),
        "sample space, dampings": lambda call: ng.sample_space_solve(
            fisher, g, method="cg", callback=call, **(tight | {"damping": [1e-5, 1e-3]})
        ),
        "solve": lambda call: fisher.solve(g, method="cg", callback=call, **tight),
        "solve kfac": lambda call: fisher.solve(g, method="kfac_cg", callback=call, **tight),
        "solve sample space": lambda call: fisher.solve(
            g, method="sample_space_cg", callback=call, **tight
        ),
    }


def statuses(result):
    return result.status if isinstance(result.status, tuple) else (result.status,)


@pytest.mark.parametrize("name", entry_points())
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_callback_is_obeyed_at_once(name, n):
    solve = entry_points()[name]
    calls = []

    def stop(*_):
        calls.append(None)
        return len(calls) == n

    assert Status.STOPPED in statuses(solve(stop))
    assert len(calls) == n

    calls.clear()

    def interrupt(*_):
        calls.append(None)
        if len(calls) == n:
            raise KeyboardInterrupt

    assert Status.INTERRUPTED in statuses(solve(interrupt))
    assert len(calls) == n

    class Answer:
        def __bool__(self):
            raise Mine

    for wrong in (lambda: (_ for _ in ()).throw(Mine), Answer):
        calls.clear()

        def fail(*_, wrong=wrong):
            calls.append(None)
            return wrong() if len(calls) == n else None

        if wrong is not Answer:

            def fail(*_):
                calls.append(None)
                if len(calls) == n:
                    raise Mine

        with pytest.raises(Mine):
            solve(fail)
        assert len(calls) == n
