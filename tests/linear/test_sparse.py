"""Sparse matrices as A: those of SciPy, and whatever looks like one."""

import warnings

import natgrad_fast as ng
import numpy as np
import pytest
import scipy.sparse as sparse
from cases import assert_close, same_bits

FORMATS = ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"]


def poisson(n, dtype="float64"):
    """The matrix of -u'' on n points, and a multiple of the identity: condition below 50."""
    return (2.1 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)).astype(dtype)


class Coordinates:
    """A sparse matrix that is not SciPy's: no matvec, no matmat, products by @."""

    def __init__(self, dense):
        self._rows, self._columns = np.nonzero(dense)
        self._values = dense[self._rows, self._columns]
        self.shape, self.dtype, self.nnz = dense.shape, dense.dtype, self._values.size

    def toarray(self):
        raise AssertionError("formed")

    def __matmul__(self, x):
        y = np.zeros((self.shape[0], *x.shape[1:]), np.result_type(self.dtype, x.dtype))
        np.add.at(y, self._rows, (self._values * x[self._columns].T).T)
        return y


def matrices(dense):
    yield Coordinates(dense)
    for name in FORMATS:
        yield getattr(sparse, f"{name}_array")(dense)
        yield getattr(sparse, f"{name}_matrix")(dense)


def test_solvers_take_sparse_matrices(dtype, rng):
    dense = poisson(40, dtype)
    b = rng.standard_normal((40, 3)).astype(dtype)
    dampings = [0.1, 1.0]
    for matrix in matrices(dense):
        single, block = ng.cg(matrix, b[:, 0], damping=0.1), ng.cg(matrix, b, damping=0.1)
        assert single.x.dtype == block.x.dtype == dtype
        assert single.status.success
        assert block.success
        exact = np.linalg.solve(dense.astype(float) + 0.1 * np.eye(40), b)
        # rtol 1e-5 on a condition below 50
        assert_close(single.x, exact[:, 0], 5e-4)
        assert_close(block.x, exact, 5e-4)
        nonzeros = np.count_nonzero(dense)
        assert single.flops == single.matvecs * 2 * nonzeros + 400 * single.iterations
        several = ng.multishift_cg(matrix, b[:, 0], dampings)
        assert several.success
        assert_close(several[0].x, exact[:, 0], 5e-4)
        nystrom = ng.Nystrom(matrix, rank=30, damping=0.1)
        assert_close(nystrom.to_dense(), ng.Nystrom(dense, rank=30, damping=0.1).to_dense(), 1e-2)
        preconditioned = ng.cg(matrix, b[:, 0], damping=0.1, preconditioner=nystrom)
        assert preconditioned.status.success


def test_sparse_inverses_are_preconditioners(dtype):
    dense = np.diag(np.logspace(0, 3, 30)).astype(dtype)
    b = np.ones((30, 2), dtype)
    for inverse in matrices(np.linalg.inv(dense)):
        result = ng.cg(dense, b, preconditioner=inverse)
        assert result.success
        assert (result.iterations <= 2).all()
        # exact but for rounding of the inverse
        assert_close(result.x, np.linalg.solve(dense, b), 1e-5)


def test_integers_and_truths_are_read_as_float64(rng):
    dense = (4 * np.eye(10) - np.eye(10, k=1) - np.eye(10, k=-1)).astype(int)
    b = rng.standard_normal(10)
    expected = ng.cg(dense.astype(float), b)
    for other in (dense, dense.astype(np.int8)):
        for matrix in matrices(other):
            assert_close(ng.cg(matrix, b).x, expected.x, 1e-12)
    for matrix in matrices(np.eye(10, dtype=bool)):
        assert_close(ng.cg(matrix, b).x, b, 1e-14)


def test_what_is_wrong_with_a_sparse_matrix():
    for matrix in matrices(np.ones((3, 4))):
        with pytest.raises(ValueError, match=r"A must be square, got shape \(3, 4\)"):
            ng.cg(matrix, np.ones(3))
    for matrix in matrices(np.eye(3) * 1j):
        with pytest.raises(TypeError, match="A has dtype complex128, wanted real numbers"):
            ng.cg(matrix, np.ones(3))
    for matrix in matrices(np.eye(4)):
        with pytest.raises(ValueError, match=r"b has shape \(3,\)"):
            ng.cg(matrix, np.ones(3))
        with pytest.raises(ValueError, match=r"preconditioner has shape \(4, 4\), wanted \(3, 3\)"):
            ng.cg(np.eye(3), np.ones(3), preconditioner=matrix)
        with pytest.raises(TypeError, match="b is sparse, wanted a dense array"):
            ng.cg(np.eye(4), matrix)
    for matrix in matrices(np.diag([1.0, np.nan, 1.0])):
        assert ng.cg(matrix, np.ones(3)).status is ng.Status.NON_FINITE


def test_other_matrices_are_taken_as_A(dtype):
    dense = poisson(6, dtype)
    b = np.arange(6.0)
    expected = ng.cg(dense, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(dense)
    assert same_bits(ng.cg(matrix, b).x, expected.x)
    assert same_bits(ng.cg(np.asfortranarray(dense), b).iterations, expected.iterations)
    assert_close(ng.cg(dense.tolist(), b).x, expected.x, 1e-4)
    for wrong in ("A", 3.0, None, b, [b]):
        with pytest.raises((TypeError, ValueError), match=r"A (must be|has)"):
            ng.cg(wrong, b)
    for wrong in (ng.Fisher, np.ndarray, ng.MLP):
        with pytest.raises(TypeError, match=f"A is the class {wrong.__name__}, wanted an instance"):
            ng.cg(wrong, b)
