"""Eigendecompositions of factors, for matrices of every kind, given to K-FAC by its state."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits

EPS = np.finfo(np.float64).eps


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def with_values(rng, values):
    q = orthogonal(rng, len(values))
    return (q * values) @ q.T


def tridiagonal(diagonal, beside):
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def wilkinson(rng, n):
    """Pairs of eigenvalues that agree in nearly all digits; shifted to be positive."""
    return tridiagonal(np.abs(np.arange(n) - (n - 1) / 2) + 2.0, np.ones(n - 1))


def glued(rng, n):
    """Copies of one matrix, hardly coupled: clusters, and halves that deflate."""
    beside = np.ones(n - 1)
    beside[9::10] = 1e-9
    return tridiagonal(np.abs(np.arange(n) % 10 - 4.5) + 2.0, beside)


def moments(rng, n, cases):
    x = rng.standard_normal((cases, n)) * np.logspace(0, -3, n)
    return x.T @ x / cases


FAMILIES = {
    "zero": lambda rng, n: np.zeros((n, n)),
    "identity": lambda rng, n: np.eye(n),
    "ones": lambda rng, n: np.ones((n, n)),
    "diagonal": lambda rng, n: np.diag(rng.random(n)),
    "graded": lambda rng, n: np.diag(np.logspace(0, -40, n)),
    "graded-mixed": lambda rng, n: with_values(rng, np.logspace(0, -18, n)),
    "clusters": lambda rng, n: with_values(
        rng, np.repeat([1.0, 0.5, 1e-3], [n // 3, n // 3, n])[:n]
    ),
    "near-clusters": lambda rng, n: with_values(rng, 1.0 + 1e-14 * rng.standard_normal(n)),
    "second-difference": lambda rng, n: tridiagonal(np.full(n, 2.0), np.full(n - 1, -1.0)),
    "wilkinson": wilkinson,
    "glued": glued,
    "blocks": lambda rng, n: np.kron(np.eye(-(-n // 7)), np.ones((7, 7)))[:n, :n],
    "moments": lambda rng, n: moments(rng, n, 2 * n),
    "deficient": lambda rng, n: moments(rng, n, max(1, n // 3)),
    "relu": lambda rng, n: (lambda x: x.T @ x / 50)(np.maximum(rng.standard_normal((50, n)), 0)),
    "constant": lambda rng, n: 1.0 + 1e-3 * moments(rng, n, 3 * n),
    "tiny": lambda rng, n: 1e-290 * moments(rng, n, 2 * n),
    "huge": lambda rng, n: 1e290 * moments(rng, n, 2 * n),
    "below the normal numbers": lambda rng, n: 1e-320 * np.ones((n, n)),
}


def factored(a, num_threads=1):
    """K-FAC of a layer whose factor A is given."""
    net = ng.MLP([len(a), 1], bias=False, dtype=a.dtype)
    m = ng.KFAC(net, "squared_error", np.ones((2, len(a))), pi="exact", num_threads=num_threads)
    m.load_state_dict({**m.state_dict(), "A_0": a})
    return m


def decomposed(a, num_threads=1):
    """U' and eigenvalues of A, as "exact" damping takes them."""
    m = factored(a, num_threads)
    m.refresh(1.0)
    _, vectors, scales = m.core.block(0, damped=True)
    return vectors, scales[0] - 1.0


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 64, 65, 97, 129, 200, 333])
@pytest.mark.parametrize("family", FAMILIES)
def test_eigensystem(family, n, rng):
    a = FAMILIES[family](rng, n)
    a = 0.5 * (a + a.T)
    scale = np.abs(a).max() or 1.0
    exact = np.linalg.eigvalsh(a / scale)
    if exact[0] < 0:  # rounding of an example that should not have such ones
        a, exact = a - 2 * exact[0] * scale * np.eye(n), exact - 2 * exact[0]
    a, m = a / scale, factored(a)
    m.refresh(1.0)
    vectors = m.core.block(0, damped=True)[1]
    # Backward stable: rounding of n^2 operations on numbers up to |A|, which adds up as in a walk;
    # LAPACK promises as much.
    bound = 20 * EPS * max(n, 10)
    norm = max(np.linalg.norm(a, 2), 1e-300)
    assert np.abs(vectors @ vectors.T - np.eye(n)).max() <= bound
    values = np.einsum("ij,jk,ik->i", vectors, a, vectors)
    assert np.abs(a @ vectors.T - vectors.T * values).max() <= bound * norm
    assert np.abs(values - exact).max() <= bound * norm
    assert (np.diff(values) >= -bound * norm).all()
    assert np.abs(m.eigenvalues() / scale - np.maximum(exact, 0.0)).max() <= bound * norm


@pytest.mark.parametrize("family", ["moments", "deficient", "clusters", "wilkinson", "glued"])
@pytest.mark.parametrize("n", [33, 300, 700])
def test_bits_do_not_depend_on_threads(family, n, dtype, rng):
    a = FAMILIES[family](rng, n)
    a = (0.5 * (a + a.T) + 1e-6 * np.eye(n)).astype(dtype)
    vectors, values = decomposed(a)
    spectrum = factored(a).eigenvalues()
    for num_threads in (2, 3, 8):
        again = decomposed(a, num_threads)
        assert same_bits(again[0], vectors)
        assert same_bits(again[1], values)
        assert same_bits(factored(a, num_threads).eigenvalues(), spectrum)


def test_small_factors_beside_large_ones(rng, dtype):
    """All factors of a net at once, some by all threads and some by one each."""
    net = ng.MLP([300, 40, 7, 129, 3], dtype=dtype)
    x = rng.standard_normal((500, 300))
    one, many = (
        ng.EKFAC(net, "softmax_cross_entropy", x, samples=1, damping=0.1, num_threads=k)
        for k in (1, 4)
    )
    for found, wanted in zip(many.factors, one.factors, strict=True):
        for a, b in zip(found, wanted, strict=True):
            assert same_bits(a, b)
    for layer in one.factors:
        for factor, basis in ((layer.A, layer.basis_A), (layer.G, layer.basis_G)):
            rotated = basis.T @ factor @ basis
            off_diagonal = rotated - np.diag(np.diag(rotated))
            bound = 100 * np.finfo(dtype).eps * np.linalg.norm(factor, 2)
            assert np.abs(off_diagonal).max() <= bound
