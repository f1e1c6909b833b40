"""Multi-shift CG: every damping against dense solves and against solves of its own."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, assert_close, run_python, same_bits, spd_matrix
from conftest import TOLERANCES
from hypothesis import given
from hypothesis import strategies as st

Status = ng.Status
DAMPINGS = [1.0, 0.01, 0.1, 0.01, 100.0]  # in no order, one twice


class Operator:
    """The least that solvers accept; counts its products."""

    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def matvec(self, v):
        self.calls += 1
        return self.matrix @ v


def shifted(matrix, damping):
    return matrix.astype(float) + damping * np.eye(len(matrix))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("size", [1, 8, 60])
def test_solutions_and_records(size, verify, dtype, rng):
    matrix, b = spd_matrix(rng, size, 100.0, dtype), rng.standard_normal(size).astype(dtype)
    operator = Operator(matrix)
    result = ng.multishift_cg(operator, b, DAMPINGS, verify=verify)
    assert result.success
    assert result.x.shape == (size, 5)
    assert result.x.dtype == dtype
    assert result.dampings.tolist() == DAMPINGS
    assert result.matvecs == operator.calls
    assert len(result) == 5
    # float32: recursions of residuals drift from the true ones by rounding
    drift = 1e-5 if dtype == "float32" else 1e-13
    length = np.linalg.norm(b.astype(float))
    for k, damping in enumerate(DAMPINGS):
        matrix_k, column = shifted(matrix, damping), result[k]
        x = column.x.astype(float)
        residual = np.linalg.norm(b - matrix_k @ x)
        assert column.residual_norm <= 2e-5 * length  # "converged" leaves rounding that much
        assert column.residual_norm == pytest.approx(residual, abs=float(drift * length))
        assert_close(x, np.linalg.solve(matrix_k, b.astype(float)), 100 * (1e-5 + drift))
        phi = 0.5 * x @ matrix_k @ x - b @ x
        assert column.quadratic == pytest.approx(phi, rel=1e-4 if dtype == "float32" else 1e-12)
        assert same_bits(result.x[:, k], column.x)
        assert column.matvecs == result.matvecs
    assert same_bits(result.x[:, 1], result.x[:, 3])
    assert result.iterations[4] <= result.iterations[0] <= result.iterations[1]
    assert result.seconds >= 0
    assert np.isnan(result.flops)  # the operator does not tell those of its products
    flops = 2 * size**2 * result.matvecs + 6 * size * max(result.iterations)
    flops += 4 * size * sum(result.iterations)
    assert ng.multishift_cg(matrix, b, DAMPINGS, verify=verify).flops == pytest.approx(flops)


def iterate_within(matrix, b, damping, rtol):
    """The first CG iterate with a small residual; `cg` may stop before, at a mean of iterates."""
    tolerance = rtol * np.linalg.norm(b)
    return ng.cg(
        matrix, b, damping=damping, rtol=0.0, callback=lambda _, norm, phi: norm <= tolerance
    )


def test_one_run_has_the_products_of_one_solve(dtype, rng):
    matrix, b = spd_matrix(rng, 80, 1e4, dtype), rng.standard_normal(80).astype(dtype)
    hardest = iterate_within(matrix, b, min(DAMPINGS), 1e-3)
    result = ng.multishift_cg(matrix, b, DAMPINGS, rtol=1e-3)
    assert result.success
    # one more product checks the true residual of the smallest damping, as in cg
    assert max(result.iterations) == hardest.iterations
    assert result.matvecs == hardest.matvecs == hardest.iterations + 1
    verified = ng.multishift_cg(matrix, b, DAMPINGS, rtol=1e-3, verify=True)
    assert verified.matvecs == hardest.iterations + len(DAMPINGS)
    for k, damping in enumerate(DAMPINGS):
        alone = iterate_within(matrix, b, damping, 1e-3)
        assert abs(result.iterations[k] - alone.iterations) <= 1
        # the same Krylov iterates but for rounding, which the iterations amplify
        assert_close(result.x[:, k], alone.x, 2e-3)


def test_iterates_are_those_of_separate_solves(rng):
    matrix, b = spd_matrix(rng, 60, 1e3), rng.standard_normal(60)
    for max_iter in [0, 1, 2, 3, 8]:
        result = ng.multishift_cg(matrix, b, [0.0, 0.3, 5.0], rtol=0.0, max_iter=max_iter)
        assert result.status == (Status.MAX_ITERATIONS,) * 3
        assert result.iterations.tolist() == [max_iter] * 3
        for column, damping in zip(result, result.dampings, strict=True):
            alone = ng.cg(matrix, b, damping=damping, rtol=0.0, max_iter=max_iter)
            assert_close(column.x, alone.x, 1e-11)
            assert column.residual_norm == pytest.approx(alone.residual_norm, rel=1e-9)
            assert column.quadratic == pytest.approx(alone.quadratic, rel=1e-11)


def test_converged_shifts_are_left_alone(rng):
    matrix, b = spd_matrix(rng, 80, 1e6), rng.standard_normal(80)
    seen = []

    def callback(iteration, residual_norms, quadratics):
        seen.append((residual_norms, quadratics))

    result = ng.multishift_cg(matrix, b, [1e-5, 1e12], callback=callback, max_iter=1000)
    assert result.success
    assert result.iterations[1] == 1
    assert result.iterations[0] > 50
    assert len(seen) == result.iterations[0] - 1  # asked between iterations
    assert all(norms[1] == result.residual_norm[1] for norms, _ in seen)
    assert all(phi[1] == result.quadratic[1] for _, phi in seen)
    assert (np.diff([phi[0] for _, phi in seen]) <= 0).all()
    assert_close(result.x[:, 1], b / 1e12, 1e-10)


@pytest.mark.parametrize("scale", [1e-13, 1e13])
def test_tiny_and_huge_right_hand_sides_in_float32(scale, rng):
    matrix = spd_matrix(rng, 50, 20.0, "float32")
    unit = rng.standard_normal(50).astype("float32")
    b = (unit.astype(float) * scale).astype("float32")
    result = ng.multishift_cg(matrix, b, [0.0, 1.0, 1e6])
    assert result.success
    plain = ng.multishift_cg(matrix, unit, [0.0, 1.0, 1e6])
    for k in range(3):
        assert_close(result.x[:, k].astype(float) / scale, plain.x[:, k], 2e-4)


def test_zero_right_hand_side(dtype, rng):
    result = ng.multishift_cg(spd_matrix(rng, 5, 10.0, dtype), np.zeros(5), [0.0, 1.0])
    assert result.status == (Status.CONVERGED,) * 2
    assert not result.x.any()
    assert (result.matvecs, result.iterations.tolist()) == (0, [0, 0])


def test_dampings_that_are_large_enough_survive_negative_curvature(dtype, rng):
    q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    matrix = ((q * np.linspace(-1.0, 5.0, 20)) @ q.T).astype(dtype)
    b = rng.standard_normal(20).astype(dtype)
    result = ng.multishift_cg(matrix, b, [5.0, 0.0, 0.5, 2.0])
    bad, good = Status.NEGATIVE_CURVATURE, Status.CONVERGED
    assert result.status == (good, bad, bad, good)
    assert not result.success
    assert np.isfinite(result.x).all()
    for k in [0, 3]:
        exact = np.linalg.solve(shifted(matrix, result.dampings[k]), b.astype(float))
        assert_close(result[k].x, exact, 2e-4)  # condition 7 times rtol 1e-5, with room
    for k in [1, 2]:  # the last iterate, truly described
        x, matrix_k = result[k].x.astype(float), shifted(matrix, result.dampings[k])
        phi = 0.5 * x @ matrix_k @ x - b @ x
        assert result[k].quadratic == pytest.approx(phi, rel=1e-4)
        assert phi <= 0.0
        residual = np.linalg.norm(b - matrix_k @ x)
        assert result[k].residual_norm == pytest.approx(residual, rel=1e-3)


def test_zero_matrix(dtype):
    result = ng.multishift_cg(np.zeros((3, 3), dtype), np.ones(3), [0.0, 2.0, 0.5])
    names = (Status.SINGULAR, Status.CONVERGED, Status.CONVERGED)
    assert result.status == names
    assert_close(result.x, [[0.0, 0.5, 2.0]] * 3, 1e-6)


@given(
    eigenvalues=st.lists(st.floats(-1.0, 10.0, width=16), min_size=1, max_size=12),
    dampings=st.lists(st.floats(0.0, 5.0, width=16), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-15, 15),
    dtype=st.sampled_from(["float32", "float64"]),
    max_iter=st.integers(0, 30),
)
def test_records_are_true(eigenvalues, dampings, seed, exponent, dtype, max_iter):
    """Definite or not, singular or not; a system that is definite by far is solved."""
    rng, size = np.random.default_rng(seed), len(eigenvalues)
    q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = ((q * np.array(eigenvalues)) @ q.T).astype(dtype)
    b = (rng.standard_normal(size) * 10.0**exponent).astype(dtype)
    result = ng.multishift_cg(matrix, b, dampings, max_iter=max_iter, verify=True)
    assert np.isfinite(result.x).all()
    b = b.astype(float)
    for column, damping in zip(result, dampings, strict=True):
        x, matrix_k = column.x.astype(float), shifted(matrix, damping)
        # rounding of one product in this dtype, relative to its largest term
        eps = 100 * TOLERANCES[dtype].eps
        scale = np.abs(matrix_k).sum(axis=1).max() * np.linalg.norm(x) + np.linalg.norm(b)
        assert abs(column.residual_norm - np.linalg.norm(b - matrix_k @ x)) <= eps * scale
        phi = 0.5 * x @ matrix_k @ x - b @ x
        assert abs(column.quadratic - phi) <= eps * scale * np.linalg.norm(x)
        assert column.quadratic <= eps * scale * np.linalg.norm(x)  # x = 0 has 0
        if column.status is Status.CONVERGED:
            assert column.residual_norm <= 2e-5 * np.linalg.norm(b) * (1 + eps)
        if min(eigenvalues) + min(dampings) >= 0.1 and max_iter == 30:
            assert column.status is Status.CONVERGED


@pytest.mark.parametrize("after", [0, 3])
def test_non_finite_product(after, rng):
    matrix, b = spd_matrix(rng, 20, 1e3), rng.standard_normal(20)

    class Failing(Operator):
        def matvec(self, v):
            product = super().matvec(v)
            return product if self.calls <= after else product * np.nan

    result = ng.multishift_cg(Failing(matrix), b, [0.0, 0.1], rtol=1e-12)
    assert result.status == (Status.NON_FINITE,) * 2
    assert result.iterations.tolist() == [after, after]
    good = ng.multishift_cg(matrix, b, [0.0, 0.1], rtol=0.0, max_iter=after)
    assert same_bits(result.x, good.x)
    assert_close(result.quadratic, good.quadratic, 1e-10)


def test_verify_finds_out_what_float32_can_not_do(rng):
    matrix, b = spd_matrix(rng, 80, 1e4, "float32"), rng.standard_normal(80).astype("float32")
    options = {"rtol": 1e-10, "max_iter": 5000}
    result = ng.multishift_cg(matrix, b, [0.0], verify=True, **options)
    assert result.status == (Status.STAGNATED,)
    true = np.linalg.norm(b - matrix.astype(float) @ result.x[:, 0].astype(float))
    # its rounding is that of A x, with |x| up to condition |b|
    assert result.residual_norm[0] == pytest.approx(true, abs=1e-7 * 1e4 * float(np.linalg.norm(b)))
    assert result.residual_norm[0] > 2e-10 * np.linalg.norm(b)


def test_rounding_of_the_smallest_damping_is_told_of_all(rng):
    """One product checks the smallest damping; its rounding tells of the others by |x|."""
    matrix, b = spd_matrix(rng, 80, 1e6, "float32"), rng.standard_normal(80).astype("float32")
    dampings = [1e-5, 1e-4, 1e-3, 10.0]  # |x| < |b| / 10 at the last: far above its rounding
    result = ng.multishift_cg(matrix, b, dampings, rtol=1e-6, max_iter=5000)
    exact = matrix.astype(float)
    for damping, column in zip(dampings, result, strict=True):
        x = column.x.astype(float)
        true = np.linalg.norm(b - exact @ x - damping * x)
        # an estimate: right in size; beside it the float64 residual of a float32 solution
        assert true <= 10 * column.residual_norm
        if column.status is Status.CONVERGED:
            assert true <= 1e-5 * np.linalg.norm(b)
    assert result[0].status is Status.STAGNATED
    assert result[-1].status is Status.CONVERGED


def test_callback_stops(rng):
    matrix, b = spd_matrix(rng, 60, 1e4), rng.standard_normal(60)
    result = ng.multishift_cg(
        matrix, b, [0.0, 1e-3], rtol=1e-10, callback=lambda iteration, *_: iteration == 5
    )
    assert result.status == (Status.STOPPED,) * 2
    assert result.iterations.tolist() == [5, 5]


def test_exceptions_of_the_caller_come_through():
    def fail(*_):
        raise ZeroDivisionError("mine")

    operator = Operator(np.diag([1.0, 2.0]))
    with pytest.raises(ZeroDivisionError, match="mine"):
        ng.multishift_cg(operator, [1.0, 1.0], [0.0], callback=fail)
    operator.matvec = fail
    with pytest.raises(ZeroDivisionError, match="mine"):
        ng.multishift_cg(operator, [1.0, 1.0], [0.0])


def test_fisher(tol, dtype, rng):
    problem = Case("multishift-6-8-3", (6, 8, 3), SOFTMAX, n=40).problem(dtype)
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x, damping=0.01)
    b = rng.standard_normal(problem.net.num_params).astype(dtype)
    result = ng.multishift_cg(fisher, b, [0.1, 1.0], verify=True)
    assert result.success
    dense = fisher.to_dense().astype(float)
    for column, damping in zip(result, [0.1, 1.0], strict=True):
        residual = np.linalg.norm((dense + damping * np.eye(len(b))) @ column.x - b)
        assert residual <= (2e-5 + tol.product) * np.linalg.norm(b)


def test_bits_do_not_depend_on_threads(dtype, num_threads):
    rng = np.random.default_rng(0)
    diagonal = (1e-3 + rng.random(70_000)).astype(dtype)  # above the threading threshold

    class Diagonal:
        shape, dtype = (diagonal.size, diagonal.size), diagonal.dtype

        def matvec(self, v):
            return diagonal * v

    b = rng.standard_normal(diagonal.size).astype(dtype)
    arguments = (Diagonal(), b, DAMPINGS)
    found = ng.multishift_cg(*arguments, num_threads=num_threads, verify=True)
    expected = ng.multishift_cg(*arguments, num_threads=1, verify=True)
    for name in ["x", "iterations", "residual_norm", "quadratic"]:
        assert same_bits(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("dampings", "options", "error", "words"),
    [
        ([], {}, ValueError, "dampings is empty, wanted at least one number"),
        ([1.0, -0.5], {}, ValueError, "dampings must be >= 0, got -0.5 at position 1"),
        ([1.0, np.nan], {}, ValueError, "dampings has NaN or Inf.* at position 1"),
        ([np.inf], {}, ValueError, "dampings has NaN or Inf"),
        (1.0, {}, ValueError, "dampings has 0 dimensions"),
        ([[1.0]], {}, ValueError, "dampings has 2 dimensions"),
        (["1"], {}, TypeError, "dampings has dtype"),
        (None, {}, TypeError, "dampings"),
        ([1.0], {"rtol": -1.0}, ValueError, "rtol must be >= 0, got -1"),
        ([1.0], {"atol": np.nan}, ValueError, "atol must be finite"),
        ([1.0], {"max_iter": -1}, ValueError, "max_iter must be >= 0, got -1"),
        ([1.0], {"verify": 1}, TypeError, "verify must be True or False, got 1"),
        ([1.0], {"callback": 3}, TypeError, "callback must be callable, got 3"),
        ([1.0], {"num_threads": 0}, ValueError, "num_threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments(dampings, options, error, words):
    with pytest.raises(error, match=words):
        ng.multishift_cg(np.eye(3), np.ones(3), dampings, **options)


@pytest.mark.parametrize("b", [np.ones(4), np.ones((3, 1)), [1.0, np.nan, 1.0]])
def test_bad_right_hand_side(b):
    with pytest.raises(ValueError, match=r"b has (length|2 dim|NaN)"):
        ng.multishift_cg(np.eye(3), b, [1.0])


INTERRUPT = """
    import os, signal, threading
    import numpy as np, natgrad_fast as ng
    rng = np.random.default_rng(0)
    net = ng.MLP([200, 400, 400, 10], seed=0)
    F = ng.Fisher(net, "softmax_cross_entropy", rng.standard_normal((2000, 200)))
    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    r = ng.multishift_cg(F, rng.standard_normal(net.num_params), [1e-7, 1e-6], rtol=1e-14,
                         max_iter=100_000)
    assert r.status == (ng.Status.INTERRUPTED,) * 2, r.status
    assert np.isfinite(r.x).all() and r.x.any() and (r.iterations >= 1).all()
"""


def test_ctrl_c_returns_what_there_is():
    run_python(INTERRUPT)
