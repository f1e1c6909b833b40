"""Solves for rows of the user's own, beside numpy's lstsq and dense normal equations."""

import doctest
import importlib
import itertools
import os

import natgrad_fast as ng
import numpy as np
import pytest
from cases import assert_close, run_python, same_bits
from natgrad_fast.operators import rows as rows_module
from natgrad_fast.operators.rows import Rows

Status = ng.Status
SHAPES = [(1, 1), (1, 9), (7, 50), (50, 7), (130, 700)]
METHODS = ["cholesky", "eigh"]
DTYPES = ["float32", "float64", "complex64", "complex128"]
# Solutions are rounded to the type of the rows; in float64 the kernel's condition, up to 1e4 here,
# times eps and the length of sums counts as well.
TOLERANCE = {"float32": 2e-7, "complex64": 2e-7, "float64": 1e-10, "complex128": 1e-10}


def problem(n, size, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    rows, rhs = rng.standard_normal((n, size)), rng.standard_normal(n)
    if np.dtype(dtype).kind == "c":
        rows = rows + 1j * rng.standard_normal((n, size))
        rhs = rhs + 1j * rng.standard_normal(n)
    return rows.astype(dtype), rhs, rng.uniform(0.5, 2.0, n)


def factor(rows, rhs, weights=None, center=False):
    """U (P, n) and r (n,) in double precision, written down as documented."""
    rows, rhs = (np.asarray(a, np.result_type(a, np.float64)) for a in (rows, rhs))
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, float)
    weights = weights / weights.sum()
    if center:
        rows, rhs = rows - weights @ rows, rhs - weights @ rhs
    return (np.sqrt(weights)[:, None] * rows).conj().T, np.sqrt(weights) * rhs


def dense_solution(u, r, damping):
    """In the space of parameters; by the singular values where there is no damping."""
    if damping == 0.0:
        return np.linalg.lstsq(u.conj().T, r, rcond=1e-7)[0]
    return np.linalg.solve(u @ u.conj().T + damping * np.eye(len(u)), u @ r)


def assert_near(actual, expected, tolerance):
    """Complex numbers too: real and imaginary parts side by side."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert_close(
        np.stack([actual.real, actual.imag]), np.stack([expected.real, expected.imag]), tolerance
    )


def solve(rows, rhs, **options):
    return ng.sample_space_solve(rows=rows, rhs=rhs, **options)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_solution_equals_numpy(dtype, n, size, method, center):
    rows, rhs, weights = problem(n, size, dtype)
    for damping in (0.0, 1e-3, 10.0):
        result = solve(rows, rhs, damping=damping, method=method, center=center, weights=weights)
        u, r = factor(rows, rhs, weights, center)
        assert isinstance(result, ng.RowsSolveResult)
        assert result.status is Status.CONVERGED
        assert result.x.dtype == dtype
        assert result.method in (f"sample_space_{method}", "sample_space_eigh")
        x = dense_solution(u, r, damping)
        if n > 1 or not center:
            assert_near(result.x, x, TOLERANCE[dtype])
        else:
            assert not result.x.any()
        # what is told is that of the x that is returned
        x = result.x.astype(np.result_type(x, np.float64))
        gradient = u @ (r - u.conj().T @ x) - damping * x
        slack = 1e-14 * (np.linalg.norm(u, 2) * np.linalg.norm(r) + damping * np.linalg.norm(x))
        assert result.residual_norm == pytest.approx(np.linalg.norm(gradient), abs=slack)
        assert result.right_hand_side_norm == pytest.approx(np.linalg.norm(u @ r), abs=slack)
        matrix = u @ u.conj().T + damping * np.eye(size)
        quadratic = (0.5 * x.conj() @ matrix @ x - (u @ r).conj() @ x).real
        assert result.quadratic == pytest.approx(quadratic, rel=1e-6, abs=1e-14)
        assert result.seconds > 0
        assert result.flops > 0
        assert result.iterations == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "size"), SHAPES)
def test_spectrum(n, size, dtype):
    rows, rhs, weights = problem(n, size, dtype)
    u, _ = factor(rows, rhs, weights)
    values = np.linalg.svd(u, compute_uv=False) ** 2
    smallest = values[-1] if n <= size else 0.0
    exact = solve(rows, rhs, damping=0.5, method="eigh", weights=weights).spectrum
    assert exact.is_exact
    assert exact.rank == min(n, size)
    assert exact.largest == pytest.approx(values[0], rel=1e-12)
    assert exact.smallest == pytest.approx(smallest, abs=1e-13 * values[0])
    assert exact.condition == pytest.approx((values[0] + 0.5) / (smallest + 0.5), rel=1e-12)
    estimate = solve(rows, rhs, damping=0.5, method="cholesky", weights=weights).spectrum
    assert (estimate.is_exact, estimate.rank) == (False, None)
    # twenty power iterations, from inside
    assert 0.8 * values[0] <= estimate.largest <= (1 + 1e-12) * values[0]
    assert smallest + 0.5 <= (1 + 1e-12) * (estimate.smallest + 0.5) <= 1.3 * (smallest + 0.5)
    assert 0.7 * exact.condition <= estimate.condition <= (1 + 1e-12) * exact.condition


def test_methods_by_size():
    """The eigenvectors where they are cheap, or pay for many dampings."""
    for n, dtype, method in ((1000, float, "eigh"), (1001, float, "cholesky")):
        rows = np.zeros((n, 1), dtype)
        rows[:, 0] = 1.0
        assert solve(rows, np.ones(n), damping=1.0).method == f"sample_space_{method}"
    rows, rhs, _ = problem(501, 2, "complex64")
    assert solve(rows, rhs, damping=1.0).method == "sample_space_cholesky"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_blocks_and_dampings(dtype, method):
    rows, rhs, weights = problem(12, 30, dtype)
    options = {"method": method, "weights": weights, "center": True}
    block = np.stack([rhs, np.zeros(12), 1e6 * rhs[::-1]], axis=1)
    found = solve(rows, block, damping=0.1, **options)
    assert isinstance(found, ng.BlockSolveResult)
    assert found.success
    assert found.x.shape == (30, 3)
    assert not found.x[:, 1].any()
    for k in (0, 2):
        alone = solve(rows, block[:, k], damping=0.1, **options)
        assert_near(found[k].x, alone.x, 1e-13)
        assert isinstance(found[k], ng.RowsSolveResult)
        assert found[k].residual_norm <= 1e-5 * found[k].right_hand_side_norm
    dampings = [1e-3, 0.0, 5.0]
    several = solve(rows, rhs, damping=dampings, **options)
    assert isinstance(several, ng.MultishiftResult)
    assert several.x.shape == (30, 3)
    assert several.dampings.tolist() == dampings
    for damping, column in zip(dampings, several, strict=True):
        u, r = factor(rows, rhs, weights, center=True)
        assert column.status is Status.CONVERGED
        assert_near(column.x, dense_solution(u, r, damping), 1e-10)


def test_spring_stays_near_the_last_step():
    """Its argmin: |O d - e|^2 / n + damping |d - mu d_last|^2."""
    rows, rhs, _ = problem(9, 25)
    last, mu, damping = np.random.default_rng(1).standard_normal(25), 0.9, 1e-2
    step = mu * last + solve(rows, rhs - mu * (rows @ last), damping=damping).x
    stacked = np.vstack([rows / 3.0, np.sqrt(damping) * np.eye(25)])
    wanted = np.concatenate([rhs / 3.0, np.sqrt(damping) * mu * last])
    assert_close(step, np.linalg.lstsq(stacked, wanted, rcond=None)[0], 1e-10)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_centering_is_that_by_hand(dtype):
    rows, rhs, weights = problem(8, 20, dtype)
    w = weights / weights.sum()
    by_hand = solve(rows - w @ rows, rhs - w @ rhs, damping=1e-2, weights=weights)
    centred = solve(rows + 5.0, rhs - 3.0, damping=1e-2, weights=weights, center=True)
    assert_near(centred.x, by_hand.x, 1e-12)
    assert centred.spectrum.rank == 7  # sqrt(w) is a null vector


@pytest.mark.parametrize("center", [False, True])
def test_weights_are_repetitions(center):
    rows, rhs, _ = problem(6, 15)
    times = np.array([1, 3, 2, 1, 5, 2])
    repeated = solve(np.repeat(rows, times, 0), np.repeat(rhs, times), damping=0.1, center=center)
    assert_close(solve(rows, rhs, damping=0.1, center=center, weights=times).x, repeated.x, 1e-12)
    plain = solve(rows, rhs, damping=0.1, center=center)
    assert_close(solve(rows, rhs, damping=0.1, center=center, weights=[7.0] * 6).x, plain.x, 1e-13)


def test_rows_of_weight_zero_are_left_out():
    rows, rhs, weights = problem(6, 15)
    weights[[1, 4]] = 0.0
    left = [0, 2, 3, 5]
    expected = solve(rows[left], rhs[left], damping=0.1, weights=weights[left], center=True)
    rows[1], rows[4], rhs[1] = np.nan, 1e300, np.inf
    found = solve(rows, rhs, damping=0.1, weights=weights, center=True)
    assert same_bits(found.x, expected.x)
    assert found.spectrum == expected.spectrum


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_real_solutions_of_complex_rows(method, center):
    rows, rhs, weights = problem(7, 20, "complex128")
    u, r = factor(rows, rhs, weights, center)
    matrix = (u @ u.conj().T).real
    found = solve(
        rows, rhs, damping=0.1, weights=weights, center=center, method=method, real_solution=True
    )
    assert found.x.dtype == np.float64
    exact = np.linalg.solve(matrix + 0.1 * np.eye(20), (u @ r).real)
    assert_close(found.x, exact, 1e-12)
    if center or method == "cholesky":
        return
    stacked = solve(
        np.vstack([rows.real, rows.imag]),
        np.concatenate([rhs.real, rhs.imag]),
        damping=0.05,
        weights=np.tile(weights, 2),
    )
    assert_close(stacked.x, exact, 1e-12)
    assert found.spectrum.rank == 14
    assert found.spectrum.largest == pytest.approx(2.0 * stacked.spectrum.largest)
    real = solve(rows.real, rhs.real, damping=0.1, real_solution=True)
    assert same_bits(real.x, solve(rows.real, rhs.real, damping=0.1).x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_singular_rows_without_damping(dtype, method):
    """Duplicates and zeros: the solution of least squares that is shortest."""
    rows, rhs, _ = problem(8, 30, dtype)
    rows[1], rows[5] = rows[0], 0.0
    found = solve(rows, rhs, method=method)
    assert found.status is Status.CONVERGED
    assert found.method == "sample_space_eigh"
    assert found.spectrum.rank == 6
    assert_near(found.x, dense_solution(*factor(rows, rhs), 0.0), 1e-10)
    for nothing, right in ((0.0 * rows, rhs), (rows, 0.0 * rhs)):
        empty = solve(nothing, right, method=method)
        assert empty.status is Status.CONVERGED
        assert not empty.x.any()
        assert (empty.residual_norm, empty.right_hand_side_norm) == (0.0, 0.0)
    assert empty.spectrum.rank == 6
    zero = solve(0.0 * rows, rhs, method=method).spectrum
    assert zero.largest == zero.smallest == zero.rank == 0
    assert zero.condition == np.inf
    # a right-hand side that the rows do not see, up to rounding
    across = np.zeros(8, dtype)
    across[:2] = 1.0, -1.0
    assert solve(rows, across, damping=1e-3, method=method).status is Status.CONVERGED


@pytest.mark.parametrize("phase", [1.0, np.exp(0.7j)])
def test_corrections_gain_digits(phase):
    """Singular values over six decades: the kernel alone leaves four digits."""
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.standard_normal((400, 20)))[0]
    left = np.linalg.qr(rng.standard_normal((20, 20)))[0] * phase
    rows = (left * np.logspace(-6, 0, 20)) @ q.T
    exact = q @ rng.standard_normal(20)
    rhs = rows @ exact
    rough, fine = (solve(rows, rhs, rtol=rtol) for rtol in (1.0, 1e-15))
    assert fine.matvecs > rough.matvecs == 1
    assert fine.residual_norm <= rough.residual_norm
    # the condition of U is 1e6: some hundred eps of it, where that of K would leave 1e-4
    assert np.linalg.norm(fine.x - exact) <= 1e-8 * np.linalg.norm(exact)
    damped = solve(rows, rhs, damping=1e-13, rtol=1e-12)
    assert damped.residual_norm <= 1e-12 * damped.right_hand_side_norm


def times_power(a, exponent):
    """2^exponent a for real and complex numbers, whatever the exponent."""
    a = np.asarray(a)
    parts = a.view(a.real.dtype)
    with np.errstate(under="ignore", over="ignore"):
        return np.ldexp(parts, exponent).view(a.dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales(dtype, method):
    """Powers of two change no digit where x can be held; a status tells where it can not."""
    rows, rhs, weights = problem(6, 20, dtype)
    limits = np.finfo(dtype)
    ends = (-100, -60, 0, 60, 120) if limits.bits == 32 else (-1000, -500, 0, 500, 1000)
    for p, q, damping in itertools.product(ends, (-1000, -500, 0, 500, 1000), (0.0, 0.25, 2.0**70)):
        options = {"method": method, "weights": weights, "center": True}
        if damping > 0.0 and abs(np.log2(damping) + 2 * p) > 1000:
            continue  # no such damping
        shift = float(np.ldexp(damping, 2 * p))
        one = solve(rows, rhs, damping=damping, **options)
        found = solve(times_power(rows, p), times_power(rhs, q), damping=shift, **options)
        assert np.isfinite(found.x).all()
        exact = times_power(one.x.astype(np.result_type(one.x, float)), q - p)
        largest = np.frexp(np.abs(one.x).max())[1] + q - p
        if limits.minexp + limits.nmant < largest < limits.maxexp:
            assert found.status is Status.CONVERGED, (p, q, found)
            assert_near(times_power(found.x.astype(exact.dtype), p - q), one.x, 1e-6)
        elif largest > limits.maxexp + 1 or largest < limits.minexp - limits.nmant:
            assert found.status is Status.OUT_OF_RANGE, (p, q, found)
        if abs(p + q) < 900:
            assert np.ldexp(found.right_hand_side_norm, -p - q) == one.right_hand_side_norm
        if abs(p) < 500:
            assert np.ldexp(found.spectrum.largest, -2 * p) == one.spectrum.largest
        assert found.spectrum.condition == one.spectrum.condition


@pytest.mark.parametrize("method", METHODS)
def test_dampings_far_from_the_kernel(method):
    """Far above it, x = U r / damping to all digits; far below it there is none."""
    rows, rhs, _ = problem(5, 12)
    u, r = factor(rows, rhs)
    for damping in (1e40, 1e150, 1e300):
        found = solve(rows, rhs, damping=damping, method=method)
        assert found.status is Status.CONVERGED
        assert_close(found.x * damping, u @ r, 1e-14)
        assert found.spectrum.condition == pytest.approx(1.0)
    tiny = solve(1e-160 * rows, rhs, damping=1.0, method=method)
    assert tiny.status is Status.CONVERGED
    assert_close(tiny.x * 1e160, u @ r, 1e-14)
    for damping in (1e-40, 1e-300, 5e-324):
        found = solve(rows, rhs, damping=damping, method=method)
        assert found.status is Status.CONVERGED
        assert_close(found.x, dense_solution(u, r, 0.0), 1e-12)
    huge = solve(1e160 * rows, rhs, damping=1.0, method=method)
    assert_close(huge.x * 1e160, dense_solution(u, r, 0.0), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_types(dtype, tmp_path):
    """Same bits for every order of memory; read-only arrays and maps of files stay as they are."""
    rows, rhs, weights = problem(40, 90, dtype)
    options = {"damping": 0.1, "weights": weights, "center": True}
    found = solve(rows, rhs, **options)
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    frozen = rows.copy()
    frozen.flags.writeable = False
    wide = np.zeros((80, 180), dtype)
    wide[::2, ::2] = rows
    others = [np.asfortranarray(rows), frozen, np.load(path, mmap_mode="r"), wide[::2, ::2]]
    others += [rows.astype(rows.dtype.newbyteorder()), rows[::-1][::-1], rows.tolist()]
    for other in others:
        again = solve(other, rhs, **options)
        if isinstance(other, list):  # double precision
            assert again.x.dtype == np.result_type(dtype, float)
            assert_near(again.x, found.x, 2e-7)
        else:
            assert same_bits(again.x, found.x)
    assert same_bits(rows, problem(40, 90, dtype)[0])
    signs = np.sign(rows.real)
    for kind in (np.int8, np.float16, np.longdouble):
        other = solve(signs.astype(kind), rhs.real, damping=0.1, center=True)
        assert same_bits(other.x, solve(signs.astype(float), rhs.real, damping=0.1, center=True).x)
    positive = signs > 0.0
    other = solve(positive, rhs.real, damping=0.1)
    assert same_bits(other.x, solve(positive.astype(float), rhs.real, damping=0.1).x)


def test_float32_rows_have_a_float64_kernel():
    """A condition number of 1e6, at which a kernel in float32 would keep no digit."""
    rows, rhs, _ = problem(30, 200, "float32")
    rows[1:] = rows[0] + np.float32(1e-2) * rows[1:]
    found = solve(rows, rhs)
    assert found.spectrum.condition > 1e5
    assert_close(found.x, dense_solution(*factor(rows, rhs), 0.0), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_columns(dtype, monkeypatch):
    """Many blocks, and one: the same but for rounding; threads change no bit."""
    rows, rhs, weights = problem(150, 1000, dtype)
    options = {"damping": 1e-2, "weights": weights, "center": True}
    whole = solve(rows, rhs, **options)
    monkeypatch.setattr(rows_module, "_BLOCK", 150 * 200)
    assert len(list(Rows(rows).blocks())) > 5
    for method in METHODS:
        first = solve(rows, rhs, num_threads=1, method=method, **options)
        assert_near(first.x, whole.x, TOLERANCE[dtype])
        for num_threads in (2, 3, 4):
            other = solve(rows, rhs, num_threads=num_threads, method=method, **options)
            assert same_bits(other.x, first.x)
            assert other.spectrum == first.spectrum
            assert (other.residual_norm, other.quadratic) == (first.residual_norm, first.quadratic)


def test_blas_threads_change_no_bit():
    script = """
        import hashlib, os, sys
        import natgrad_fast as ng, numpy as np
        rng = np.random.default_rng(0)
        digest = hashlib.sha256()
        for n, size in ((150, 9000), (200, 300)):
            rows = rng.standard_normal((n, size)) + 1j * rng.standard_normal((n, size))
            for rows in (rows, rows.real):
                x = ng.sample_space_solve(
                    rows=rows, rhs=rows[:, 0], damping=1e-3, center=True, method="cholesky"
                ).x
                digest.update(x.tobytes())
        print(digest.hexdigest())
    """
    digests = {
        run_python(script, env=os.environ | {"OPENBLAS_NUM_THREADS": blas, "OMP_NUM_THREADS": own})
        for blas, own in (("1", "1"), ("2", "1"), ("1", "2"))
    }
    assert len(digests) == 1


WRONG = [
    (ValueError, "rows", {"rows": np.ones(3)}),
    (ValueError, "rows", {"rows": np.ones((0, 3))}),
    (ValueError, "rows", {"rows": np.ones((3, 0))}),
    (ValueError, "rows", {"rows": [[1.0, np.nan]] * 3}),
    (ValueError, "row 1, column 2", {"rows": [[1.0] * 3, [1.0, 0.0, np.inf], [1.0] * 3]}),
    (TypeError, "rows", {"rows": np.array([["a"] * 2] * 3)}),
    (TypeError, "rows", {"rows": ng.Jacobian(ng.MLP([1, 1]), np.ones((3, 1)))}),
    (ValueError, "rhs", {"rhs": np.ones(4)}),
    (ValueError, "rhs", {"rhs": np.ones((3, 0))}),
    (ValueError, "rhs", {"rhs": np.ones((3, 1, 1))}),
    (ValueError, "rhs", {"rhs": [1.0, np.inf, 0.0]}),
    (TypeError, "rhs", {"rhs": 1j * np.ones(3)}),
    (TypeError, "rhs", {"rhs": None}),
    (ValueError, "dampings", {"rhs": np.ones((3, 2)), "damping": [1.0, 2.0]}),
    (ValueError, "damping", {"damping": -1.0}),
    (ValueError, "damping", {"damping": [1.0, np.nan]}),
    (ValueError, "method", {"method": "cg"}),
    (ValueError, "rtol", {"rtol": -1.0}),
    (ValueError, "weights", {"weights": np.ones(4)}),
    (ValueError, "weights", {"weights": [1.0, -1.0, 1.0]}),
    (ValueError, "weights", {"weights": np.zeros(3)}),
    (TypeError, "center", {"center": 1}),
    (TypeError, "real_solution", {"real_solution": "yes"}),
    (ValueError, "num_threads", {"num_threads": 0}),
    (TypeError, "matrix and rows", {"rows": None}),
    (TypeError, "g goes with a matrix", {"g": np.ones(3)}),
    (TypeError, "y goes with a matrix", {"y": np.ones(3)}),
    (TypeError, "max_iter goes with a matrix", {"max_iter": 3}),
    (TypeError, "callback goes with a matrix", {"callback": print}),
]


@pytest.mark.parametrize(("error", "words", "options"), WRONG)
def test_wrong_arguments_are_named(error, words, options):
    with pytest.raises(error, match=words):
        ng.sample_space_solve(**{"rows": np.eye(3), "rhs": np.ones(3), **options})


def test_options_of_rows_do_not_go_with_a_matrix():
    net = ng.MLP([2, 3], dtype="float64")
    fisher = ng.Fisher(net, "squared_error", np.eye(2))
    options = {"rhs": np.ones(3), "center": True, "weights": np.ones(2), "num_threads": 1}
    for name, value in (options | {"real_solution": True}).items():
        with pytest.raises(TypeError, match=f"{name} goes with rows"):
            ng.sample_space_solve(fisher, np.ones(9), damping=1.0, **{name: value})
    with pytest.raises(TypeError, match="matrix and rows"):
        ng.sample_space_solve(fisher, rows=np.eye(3), rhs=np.ones(3))


def test_kernels_that_no_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr("natgrad_fast.linear.rows.physical_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match="kernel of rows"):
        solve(np.ones((40, 2)), np.ones(40), damping=1.0)


def test_rows_of_a_jacobian_are_a_net_s_gauss_newton_matrix():
    """The two forms of the call meet: squared error, gradients of the mean."""
    rng = np.random.default_rng(0)
    net = ng.MLP([3, 6, 1], dtype="float64", seed=1)
    x, y = rng.standard_normal((15, 3)), rng.standard_normal((15, 1))
    by_matrix = ng.sample_space_solve(ng.GGN(net, "squared_error", x, y), y=y, damping=1e-2)
    rows = ng.Jacobian(net, x).to_dense()
    by_rows = solve(rows, (net(x) - y)[:, 0], damping=1e-2)
    assert_close(by_rows.x, by_matrix.x, 1e-10)


def test_examples():
    results = doctest.testmod(importlib.import_module("natgrad_fast.linear.samples"))
    assert results.failed == 0
    assert results.attempted > 10
