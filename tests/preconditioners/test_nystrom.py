"""The randomised preconditioner against dense algebra, and what it does for CG."""

from concurrent.futures import ThreadPoolExecutor

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, assert_close, same_bits, spd_matrix


def with_spectrum(rng, values, dtype="float64"):
    q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    matrix = (q * values) @ q.T
    return (0.5 * (matrix + matrix.T)).astype(dtype)


def approximation(matrix, rank, seed=0):
    """A_hat = Y (Omega' Y)^+ Y' for Omega the orthonormalised Gaussian matrix of the seed."""
    matrix = matrix.astype(float)
    rng = np.random.default_rng(seed)
    omega = np.linalg.qr(np.array([rng.standard_normal(len(matrix)) for _ in range(rank)]).T)[0]
    y = matrix @ omega
    return y @ np.linalg.pinv(omega.T @ y, rcond=1e-11, hermitian=True) @ y.T


def inverse(nystrom, size):
    """The matrix that M multiplies with, column by column."""
    return (nystrom @ np.eye(size)).astype(float)


@pytest.mark.parametrize("rank", [1, 3, 10, 40])
def test_approximation_is_that_of_the_paper(rank, dtype, rng):
    values = np.logspace(0, -2, 40)
    matrix = with_spectrum(rng, values, dtype)
    nystrom = ng.Nystrom(matrix, rank=rank, seed=3)
    assert nystrom.shape == (40, 40)
    assert nystrom.dtype == dtype
    assert nystrom.rank == rank == len(nystrom.eigenvalues)
    # the shift that keeps the core definite, 2 eps |Y|, is amplified by condition 100
    tol = {"float32": 1e-3, "float64": 1e-11}[dtype]
    dense = nystrom.to_dense()
    assert dense.dtype == dtype
    assert_close(dense, approximation(matrix, rank, 3), tol)
    assert_close(nystrom.eigenvalues, np.linalg.eigvalsh(dense.astype(float))[::-1][:rank], tol)
    assert (np.diff(nystrom.eigenvalues) <= 0).all()
    # A_hat <= A, and equal to it at full rank
    assert np.linalg.eigvalsh(matrix.astype(float) - dense).min() >= -tol
    if rank == 40:
        assert_close(dense, matrix, tol)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_inverse_formula(rank, damping, dtype, rng):
    matrix = with_spectrum(rng, np.logspace(0, -2, 30), dtype)
    nystrom = ng.Nystrom(matrix, rank=rank, damping=damping)
    vectors = np.linalg.eigh(nystrom.to_dense().astype(float))[1]
    u, kept = vectors[:, ::-1][:, :rank], nystrom.eigenvalues
    outside = (np.eye(30) - u @ u.T) / (kept[-1] + damping)
    expected = (u / (kept + damping)) @ u.T + outside
    # float32: U is orthonormal to a few eps, which the ratio of eigenvalues amplifies by 100
    tol = {"float32": 5e-4, "float64": 1e-10}[dtype]
    assert_close(inverse(nystrom, 30), expected, tol)
    if rank == 30:
        exact = np.linalg.inv(matrix.astype(float) + damping * np.eye(30))
        assert_close(inverse(nystrom, 30), exact, {"float32": 2e-2, "float64": 1e-9}[dtype])


def test_refresh_changes_the_damping_only(dtype, rng):
    matrix = with_spectrum(rng, np.logspace(0, -3, 25), dtype)
    nystrom = ng.Nystrom(matrix, rank=10, damping=1.0)
    dense = nystrom.to_dense()
    nystrom.refresh(0.01)
    assert nystrom.damping == 0.01
    fresh = ng.Nystrom(matrix, rank=10, damping=0.01)
    v = rng.standard_normal(25)
    assert same_bits(nystrom @ v, fresh @ v)
    assert same_bits(nystrom.to_dense(), dense)


def test_update_takes_another_matrix(dtype, rng):
    first, second = (with_spectrum(rng, np.logspace(0, -3, 25), dtype) for _ in range(2))
    nystrom = ng.Nystrom(first, rank=10, damping=0.1, seed=5)
    nystrom.update(second)
    fresh = ng.Nystrom(second, rank=10, damping=0.1, seed=5)
    v = rng.standard_normal(25)
    assert same_bits(nystrom @ v, fresh @ v)
    assert not same_bits(fresh @ v, ng.Nystrom(second, rank=10, damping=0.1, seed=6) @ v)


def test_protocol_of_operators(rng):
    nystrom = ng.Nystrom(spd_matrix(rng, 12, 10.0), rank=4, damping=0.1)
    v, block = rng.standard_normal(12), rng.standard_normal((12, 3))
    product = nystrom @ v
    assert same_bits(nystrom.matvec(v), product)
    assert same_bits(nystrom.rmatvec(v), product)
    assert same_bits(nystrom.T @ v, product)
    assert same_bits(nystrom.matmat(block), nystrom @ block)
    for k in range(3):
        assert same_bits((nystrom @ block)[:, k], nystrom @ block[:, k])
    assert "12x12 Nystrom" in repr(nystrom)


SPECTRA = {
    "zero": np.zeros(20),
    "rank-1": np.r_[1.0, np.zeros(19)],
    "rank-5": np.r_[np.ones(5), np.zeros(15)],
    "identity": np.ones(20),
    "wide": np.logspace(6, -6, 20),
    "huge": np.logspace(20, 10, 20),
    "tiny": np.logspace(-20, -30, 20),
}


@pytest.mark.parametrize("damping", [0.0, 1e-8, 1.0])
@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_positive_definite_for_every_matrix(spectrum, rank, damping, dtype, rng):
    matrix = with_spectrum(rng, SPECTRA[spectrum], dtype)
    nystrom = ng.Nystrom(matrix, rank=rank, damping=damping)
    assert (nystrom.eigenvalues >= 0.0).all()
    assert np.isfinite(nystrom.eigenvalues).all()
    dense = inverse(nystrom, 20)
    top = np.abs(dense).max()
    assert 0.0 < top < np.inf
    dense = dense / top
    assert_close(dense, dense.T, 10 * np.finfo(dtype).eps)
    assert np.linalg.eigvalsh(0.5 * (dense + dense.T)).min() > 0.0


@pytest.mark.parametrize("rank", [5, 12, 20])
def test_low_rank_is_found_exactly(rank, dtype, rng):
    matrix = with_spectrum(rng, np.r_[5.0, 4.0, 3.0, 2.0, 1.0, np.zeros(15)], dtype)
    nystrom = ng.Nystrom(matrix, rank=rank, damping=0.01)
    # of the core Omega'A Omega the smallest eigenvalue is about 1/100 of the largest
    tol = {"float32": 2e-3, "float64": 1e-12}[dtype]
    assert_close(nystrom.to_dense(), matrix, tol)
    assert_close(nystrom.eigenvalues[:5], [5.0, 4.0, 3.0, 2.0, 1.0], tol)
    assert_close(nystrom.eigenvalues[5:] + 1.0, np.ones(rank - 5), tol)


def test_cg_needs_few_iterations(dtype, rng):
    """Condition (A + damping I) is 1e4; without the 20 largest eigenvalues it is about 2."""
    values = np.r_[np.logspace(0, -3, 20), np.full(180, 1e-4)]
    matrix = with_spectrum(rng, values, dtype)
    b = rng.standard_normal(200).astype(dtype)
    nystrom = ng.Nystrom(matrix, rank=30, damping=1e-4)
    # float32: |x| is up to 5e3 |b|, so a residual of 1e-4 |b| would be the rounding of A x
    options = {"damping": 1e-4, "rtol": {"float32": 1e-3, "float64": 1e-4}[dtype]}
    plain = ng.cg(matrix, b, **options)
    result = ng.cg(matrix, b, preconditioner=nystrom, **options)
    assert result.status is plain.status is ng.Status.CONVERGED
    assert result.iterations <= 12 < plain.iterations / 2
    exact = np.linalg.solve(matrix.astype(float) + 1e-4 * np.eye(200), b.astype(float))
    # residual rtol on a condition of 5e3, in practice less
    assert_close(result.x, exact, 100 * options["rtol"])
    block = np.stack([b, b[::-1]], axis=1)
    assert ng.cg(matrix, block, preconditioner=nystrom, **options).success


def test_cg_applies_it_in_the_core(rng):
    """No Python per iteration: a method that would be called raises."""
    matrix, b = spd_matrix(rng, 20, 1e3), rng.standard_normal(20)
    nystrom = ng.Nystrom(matrix, rank=5, damping=0.1)

    class Silent:
        shape, dtype, core = nystrom.shape, nystrom.dtype, nystrom.core

        def matvec(self, v):
            raise AssertionError

    result = ng.cg(matrix, b, preconditioner=Silent(), damping=0.1)
    assert same_bits(result.x, ng.cg(matrix, b, preconditioner=nystrom, damping=0.1).x)
    assert result.status.success
    # an operator as well: M x = b, with M^-1 known
    assert_close(ng.cg(Silent(), b, rtol=1e-12).x, np.linalg.solve(inverse(nystrom, 20), b), 1e-8)


def test_fisher(dtype, rng):
    problem = Case("nystrom-6-8-3", (6, 8, 3), SOFTMAX, n=40).problem(dtype)
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    nystrom = ng.Nystrom(fisher, rank=30, damping=1e-3)
    assert_close(
        nystrom.to_dense(),
        approximation(fisher.to_dense(), 30),
        {"float32": 5e-2, "float64": 1e-5}[dtype],  # eigenvalues down to 1e-6 of the largest
    )
    b = rng.standard_normal(problem.net.num_params).astype(dtype)
    plain = ng.cg(fisher, b, damping=1e-3)
    assert ng.cg(fisher, b, damping=1e-3, preconditioner=nystrom).iterations < plain.iterations


def test_products_of_an_update_are_one_block(rng):
    matrix, widths = spd_matrix(rng, 30, 10.0), []

    class Operator:
        shape, dtype = matrix.shape, matrix.dtype

        def matvec(self, v):
            raise AssertionError

        def matmat(self, v):
            widths.append(v.shape[1])
            return matrix @ v

    ng.Nystrom(Operator(), rank=7)
    assert widths == [7]
    widths.clear()
    # every doubling multiplies the new columns only
    adaptive = ng.Nystrom(Operator(), rank=4, adaptive=True, damping=1e-9, max_rank=20)
    assert adaptive.rank == 20
    assert widths == [4, 4, 8, 4]


def test_adaptive_rank(dtype, rng):
    matrix = with_spectrum(rng, 2.0 ** -np.arange(60), dtype)
    for damping in [1e-1, 1e-2, 1e-3]:
        nystrom = ng.Nystrom(matrix, rank=2, adaptive=True, damping=damping)
        assert nystrom.eigenvalues[-1] <= 10 * damping
        assert nystrom.rank in (2, 4, 8, 16)
        before = ng.Nystrom(matrix, rank=max(nystrom.rank // 2, 1))
        assert nystrom.rank == 2 or before.eigenvalues[-1] > 10 * damping
        same = ng.Nystrom(matrix, rank=nystrom.rank)  # the test matrix is only extended
        assert_close(nystrom.eigenvalues, same.eigenvalues, 1e-3 if dtype == "float32" else 1e-9)
    assert ng.Nystrom(matrix, rank=3, adaptive=True, damping=0.0, max_rank=13).rank == 13
    assert ng.Nystrom(np.eye(5), rank=3, adaptive=True, damping=1e-3).rank == 5


def test_bits_do_not_depend_on_threads(dtype, num_threads):
    rng = np.random.default_rng(0)
    diagonal = rng.random((30_000, 1)).astype(dtype)

    class Diagonal:
        shape, dtype = (diagonal.size, diagonal.size), diagonal.dtype

        def matvec(self, v):
            return diagonal[:, 0] * v

        def matmat(self, v):
            return diagonal * v

    v = rng.standard_normal((diagonal.size, 2)).astype(dtype)
    found = ng.Nystrom(Diagonal(), rank=9, damping=0.1, num_threads=num_threads)
    expected = ng.Nystrom(Diagonal(), rank=9, damping=0.1, num_threads=1)
    assert same_bits(found.eigenvalues, expected.eigenvalues)
    assert same_bits(found @ v, expected @ v)
    assert same_bits(found @ v, found @ v)


def test_use_from_several_python_threads_at_once(rng):
    vectors = rng.standard_normal((8, 5000))
    diagonal = np.linspace(0.0, 1.0, 5000)

    class Diagonal:
        shape, dtype = (5000, 5000), diagonal.dtype

        def matvec(self, v):
            return diagonal * v

    nystrom = ng.Nystrom(Diagonal(), rank=6, damping=0.1)
    expected = [nystrom @ v for v in vectors]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for found, product in zip(pool.map(nystrom.matvec, vectors), expected, strict=True):
                assert same_bits(found, product)


def test_random_state_of_numpy_is_left_alone(rng):
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ng.Nystrom(spd_matrix(rng, 9, 10.0), rank=3)
    assert same_bits(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, "rank must be >= 1, got 0"),
        ({"rank": 6}, ValueError, "rank must be <= P = 5, got 6"),
        ({"rank": 2.0}, TypeError, "rank must be an integer, got 2.0"),
        ({"max_rank": 1}, ValueError, "max_rank must be >= rank = 2, got 1"),
        ({"max_rank": 6}, ValueError, "max_rank must be <= P = 5, got 6"),
        ({"damping": -1.0}, ValueError, "damping must be >= 0, got -1"),
        ({"damping": np.nan}, ValueError, "damping must be finite"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"adaptive": 1}, TypeError, "adaptive must be True or False, got 1"),
        ({"num_threads": 0}, ValueError, "num_threads must be >= 1, got 0"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        ng.Nystrom(np.eye(5), **{"rank": 2} | options)


def test_bad_matrices(dtype):
    nystrom = ng.Nystrom(np.eye(5, dtype=dtype), rank=2)
    other = "float64" if dtype == "float32" else "float32"
    for call, error, words in [
        (lambda: ng.Nystrom(np.ones((3, 4)), rank=2), ValueError, "A must be square"),
        (lambda: ng.Nystrom("A", rank=2), TypeError, "A must be an operator"),
        (lambda: ng.Nystrom(np.diag([1.0, np.nan]), rank=1), ValueError, "A has products with NaN"),
        (lambda: nystrom.update(np.eye(4, dtype=dtype)), ValueError, r"A has shape \(4, 4\)"),
        (lambda: nystrom.update(np.eye(5, dtype=other)), ValueError, f"A has dtype {other}"),
        (lambda: nystrom.refresh(-1.0), ValueError, "damping must be >= 0, got -1"),
        (lambda: nystrom @ np.ones(4), ValueError, r"v has shape \(4,\)"),
    ]:
        with pytest.raises(error, match=words):
            call()


def test_preconditioners_of_the_core_must_fit(dtype):
    other = "float64" if dtype == "float32" else "float32"
    nystrom = ng.Nystrom(np.eye(5, dtype=other), rank=2)
    wanted = f"preconditioner is of {other}, A of {dtype}: build it in {dtype}"
    with pytest.raises(ValueError, match=wanted):
        ng.cg(np.eye(5, dtype=dtype), np.ones(5), preconditioner=nystrom)
    nystrom = ng.Nystrom(np.eye(4, dtype=dtype), rank=2)
    with pytest.raises(ValueError, match=r"preconditioner has shape \(4, 4\), wanted \(5, 5\)"):
        ng.cg(np.eye(5, dtype=dtype), np.ones(5), preconditioner=nystrom)

    class Plain:
        """Of the other float type, and with products alone: converted."""

        shape = (5, 5)

        def matvec(self, v):
            return 0.5 * v.astype(other)

    result = ng.cg(2 * np.eye(5, dtype=dtype), np.ones(5), preconditioner=Plain())
    assert result.x.dtype == dtype
    assert_close(result.x, np.full(5, 0.5), 1e-6)


def test_net_stands_for_its_fisher_matrix(dtype, rng):
    net = ng.MLP([5, 8, 3], dtype=dtype, seed=0)
    x, more = rng.standard_normal((2, 30, 5))
    v = rng.standard_normal(net.num_params)
    nystrom = ng.Nystrom(net, "softmax_cross_entropy", x, rank=10, damping=0.1)
    fisher = ng.Fisher(net, "softmax_cross_entropy", x)
    assert same_bits(nystrom @ v, ng.Nystrom(fisher, rank=10, damping=0.1) @ v)
    net.params *= 2.0
    nystrom.update(more)
    nystrom.refresh(0.3)
    fisher = ng.Fisher(net, "softmax_cross_entropy", more)
    assert same_bits(nystrom @ v, ng.Nystrom(fisher, rank=10, damping=0.3) @ v)
    for arguments in [(net,), (fisher, "softmax_cross_entropy", x)]:
        with pytest.raises((ValueError, TypeError), match="loss and X"):
            ng.Nystrom(*arguments, rank=2)
