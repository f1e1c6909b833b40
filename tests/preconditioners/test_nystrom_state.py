"""Nystrom as a preconditioner like the others: what it describes, its state, all or nothing."""

import copy
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, assert_close, same_bits, spd_matrix
from natgrad_fast.preconditioners import Preconditioner

SIZE = 30


def build(dtype="float64", rank=8, damping=0.1, seed=0, **options):
    matrix = spd_matrix(np.random.default_rng(seed), SIZE, 1e3, dtype)
    return ng.Nystrom(matrix, rank=rank, damping=damping, **options), matrix


def image(nystrom):
    """Everything that can be seen of it, as bytes."""
    v = np.linspace(-1.0, 1.0, nystrom.shape[0])
    arrays = [nystrom.eigenvalues, nystrom.to_dense()]
    if nystrom.num_updates > 0:
        arrays.append(nystrom @ v)
    numbers = (nystrom.rank, nystrom.damping, nystrom.num_updates, nystrom.flops_per_product)
    return [array.tobytes() for array in arrays], numbers


# ------------------------------------------------------------------------------------------------
# What it describes


@pytest.mark.parametrize("rank", [1, 8, SIZE])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_the_damped_matrix_is_what_it_inverts(damping, rank, dtype, rng):
    nystrom, _ = build(dtype, rank, damping)
    bare, damped = nystrom.to_dense().astype(float), nystrom.to_dense(damped=True).astype(float)
    inverse = (nystrom @ np.eye(SIZE, dtype=dtype)).astype(float)
    # float32: U is orthonormal to a few eps, times the condition of up to 1e3
    tol = {"float32": 2e-3, "float64": 1e-11}[dtype]
    assert_close(damped @ inverse, np.eye(SIZE), tol)
    # outside of the eigenvectors: the smallest eigenvalue, and the damping
    values, vectors = np.linalg.eigh(bare)
    u, kept = vectors[:, -rank:], values[-rank:]
    expected = (u * kept) @ u.T + nystrom.eigenvalues[-1] * (np.eye(SIZE) - u @ u.T)
    assert_close(damped, expected + damping * np.eye(SIZE), tol)
    assert nystrom.role == "inverse"
    assert nystrom.positive_semidefinite
    assert isinstance(nystrom, Preconditioner)
    assert nystrom.T is nystrom


def test_diagonal_and_trace_are_those_of_the_approximation(dtype):
    nystrom, _ = build(dtype)
    dense = nystrom.to_dense().astype(float)
    tol = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert nystrom.diagonal().dtype == np.float64
    assert_close(nystrom.diagonal(), np.diag(dense), tol)
    assert isinstance(nystrom.trace(), float)
    assert nystrom.trace() == pytest.approx(np.trace(dense), rel=tol)


@pytest.mark.parametrize("spectrum", ["spd", "low-rank", "zero", "identity"])
@pytest.mark.parametrize("damping", [1e-6, 0.3, 50.0])
def test_log_determinant(damping, spectrum, dtype):
    matrices = {
        "spd": spd_matrix(np.random.default_rng(1), SIZE, 1e3, dtype),
        "low-rank": np.diag(np.r_[3.0, 2.0, np.zeros(SIZE - 2)]).astype(dtype),
        "zero": np.zeros((SIZE, SIZE), dtype),
        "identity": np.eye(SIZE, dtype=dtype),
    }
    nystrom = ng.Nystrom(matrices[spectrum], rank=6, damping=1.0)
    before = image(nystrom)
    found = nystrom.logdet(damping)
    assert image(nystrom) == before  # the damping of the inverse is another matter
    nystrom.refresh(damping)
    damped = nystrom.to_dense(damped=True).astype(float)
    sign, expected = np.linalg.slogdet(damped)
    assert sign == 1.0
    # float32: the dense matrix is rounded, which counts by the condition
    noise = SIZE * np.finfo(dtype).eps * np.linalg.cond(damped)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, abs=noise + 1e-9)


def test_square_root(dtype, rng):
    nystrom, _ = build(dtype)
    eye = np.eye(SIZE, dtype=dtype)
    root = nystrom.sqrt_solve(eye).astype(float)
    tol = {"float32": 1e-4, "float64": 1e-12}[dtype]
    assert_close(root @ root, nystrom @ eye, tol)
    assert_close(root, root.T, tol)
    v = rng.standard_normal((SIZE, 3)).astype(dtype)
    assert nystrom.sqrt_solve(v).dtype == dtype
    assert_close(nystrom.sqrt_solve(v), root @ v, tol)
    for k in range(3):
        assert same_bits(nystrom.sqrt_solve(v[:, k]), nystrom.sqrt_solve(v)[:, k])
    with pytest.raises(ValueError, match=r"v has shape \(4,\)"):
        nystrom.sqrt_solve(np.ones(4))


def test_samples_have_the_covariance_of_the_inverse():
    nystrom, _ = build(rank=12)
    draws = nystrom.sqrt_solve(np.random.default_rng(3).standard_normal((SIZE, 40_000)))
    covariance = draws @ draws.T / 40_000
    exact = nystrom @ np.eye(SIZE)
    # the standard error of an entry is at most its scale times sqrt(2 / draws): five of them
    assert np.abs(covariance - exact).max() <= 5 * np.sqrt(2 / 40_000) * exact.max()


# ------------------------------------------------------------------------------------------------
# Nets, batches, and nothing measured yet


def test_nothing_measured_yet():
    net = ng.MLP([5, 8, 3], dtype="float64")
    nystrom = ng.Nystrom(net, SOFTMAX, rank=10, damping=0.1)
    assert nystrom.damping is None
    assert nystrom.num_updates == nystrom.rank == 0
    v = np.ones(net.num_params)
    for call in (
        lambda: nystrom @ v,
        lambda: nystrom.refresh(1.0),
        lambda: nystrom.to_dense(),
        lambda: nystrom.diagonal(),
        lambda: nystrom.logdet(1.0),
        lambda: nystrom.sqrt_solve(v),
    ):
        with pytest.raises(ValueError, match="there is nothing to invert yet: call update"):
            call()
    x = np.random.default_rng(0).standard_normal((20, 5))
    fisher = ng.Fisher(net, SOFTMAX, x)
    words = r"preconditioner has no inverse yet: call its update\(X\) and refresh\(damping\) first"
    with pytest.raises(ValueError, match=words):
        ng.cg(fisher, v, preconditioner=nystrom)
    nystrom.update(x)
    assert nystrom.damping == 0.1
    assert same_bits(nystrom @ v, ng.Nystrom(fisher, rank=10, damping=0.1) @ v)
    with pytest.raises(ValueError, match="sample_weight needs X"):
        ng.Nystrom(net, SOFTMAX, rank=10, sample_weight=np.ones(20))
    with pytest.raises(ValueError, match="loss and X are missing"):
        ng.Nystrom(net, rank=10)


def test_weights_and_batches(rng):
    case = Case("5-8-3-nystrom-batch", (5, 8, 3), SOFTMAX, n=40, weighted=True)
    problem = case.problem("float64")
    net, x, weight = problem.net, problem.x, problem.weight
    v = rng.standard_normal(net.num_params)
    weighted = ng.Nystrom(net, SOFTMAX, x, rank=10, damping=0.1, sample_weight=weight)
    fisher = ng.Fisher(net, SOFTMAX, x, sample_weight=weight)
    expected = ng.Nystrom(fisher, rank=10, damping=0.1) @ v
    assert same_bits(weighted @ v, expected)
    batch = ng.Batch(net, SOFTMAX, x, problem.y, sample_weight=weight, l2=0.5)
    for linearization in (None, batch.linearize()):
        other = ng.Nystrom(net, SOFTMAX, rank=10, damping=0.1)
        other.update_on(batch, linearization)
        assert same_bits(other @ v, expected)  # l2 is the damping's business
    assert weighted.follows_batches
    bare = ng.Nystrom(fisher, rank=10)
    assert not bare.follows_batches
    with pytest.raises(ValueError, match="was built with an operator"):
        bare.update_on(batch)
    with pytest.raises(TypeError, match="sample_weight goes with cases X"):
        bare.update(fisher, sample_weight=weight)
    with pytest.raises(ValueError, match="of another net or loss"):
        ng.Nystrom(net.copy(), SOFTMAX, rank=10).update_on(batch)


def test_step_solvers_take_it(rng):
    """By name it follows the batches; one that was built with an operator stays as it is."""
    case = Case("5-8-3-nystrom-steps", (5, 8, 3), SOFTMAX, n=60)
    problem = case.problem("float64")
    for named in (True, False):
        net = problem.net.copy()
        fixed = ng.Nystrom(ng.Fisher(net, SOFTMAX, problem.x), rank=10, damping=1.0)
        before = image(fixed)
        solver = ng.solvers.CG(preconditioner="nystrom" if named else fixed)
        optimizer = ng.NaturalGradient(net, SOFTMAX, solver=solver)
        losses = [optimizer.step(problem.x, problem.y).new_loss for _ in range(4)]
        assert losses[-1] < losses[0]
        assert image(fixed) == before


# ------------------------------------------------------------------------------------------------
# All or nothing


class Failing:
    """Raises, or returns something that is no product, in the n-th product."""

    def __init__(self, matrix, at, what):
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self._matrix, self._at, self._what, self.calls = matrix, at, what, 0

    def matvec(self, v):
        self.calls += 1
        if self.calls < self._at:
            return self._matrix @ v
        if self._what == "nan":
            return np.full_like(v, np.nan)
        if self._what == "shape":
            return v[:-1]
        raise self._what("in the operator")


@pytest.mark.parametrize("what", ["nan", "shape", RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 9, 16])
def test_an_update_that_fails_changes_nothing(at, what):
    """adaptive: blocks of 4, 4, 8 .. products."""
    nystrom, matrix = build(rank=4, damping=1e-3, adaptive=True)
    assert nystrom.rank > 8
    other = spd_matrix(np.random.default_rng(7), SIZE, 1e4)
    before, state = image(nystrom), pickle.dumps(nystrom.state_dict())
    operator = Failing(other, at, what)
    error = ValueError if isinstance(what, str) else what
    with pytest.raises(error):
        nystrom.update(operator)
    assert operator.calls >= at  # whether a block is finite is asked when it is whole
    assert image(nystrom) == before
    assert pickle.dumps(nystrom.state_dict()) == state
    nystrom.update(matrix)
    assert image(nystrom)[0] == before[0]


def test_wrong_calls_change_nothing():
    nystrom, _ = build()
    before = image(nystrom)
    for call in (
        lambda: nystrom.refresh(-1.0),
        lambda: nystrom.refresh(np.nan),
        lambda: nystrom.refresh("0.1"),
        lambda: nystrom.update(np.eye(SIZE + 1)),
        lambda: nystrom.update(np.eye(SIZE, dtype="float32")),
        lambda: nystrom.update("matrix"),
        lambda: nystrom.logdet(-1.0),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
        assert image(nystrom) == before


# ------------------------------------------------------------------------------------------------
# State


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_equal_and_independent(duplicate, dtype):
    nystrom, matrix = build(dtype, adaptive=True, rank=3)
    other = duplicate(nystrom)
    assert image(other) == image(nystrom)
    before = image(nystrom)
    other.refresh(5.0)
    other.update(np.eye(SIZE, dtype=dtype))
    assert image(nystrom) == before
    other.update(matrix)  # the options went along
    other.refresh(0.1)
    assert image(other)[0] == before[0]


def test_state_goes_from_one_to_another(dtype):
    nystrom, _ = build(dtype, rank=8)
    for rank in (1, 8, 20):
        other, _ = build(dtype, rank=rank, damping=7.0, seed=5)
        other.load_state_dict(nystrom.state_dict())
        assert image(other) == image(nystrom)
    state = nystrom.state_dict()
    for name in ("eigenvalues", "vectors"):
        state[name] *= 2  # a copy
    assert image(other) == image(nystrom)
    empty = ng.Nystrom(ng.MLP([5, 4], dtype=dtype), SQUARED, rank=2)
    empty.load_state_dict(empty.state_dict())
    assert empty.num_updates == 0


REPLACEMENTS = [
    *(None, True, -1, 2**70, np.nan, np.inf, "x", b"x", [], {}, 1.5, object(), 1j),
    *(np.ones(3), np.ones((2, 2), "float32"), np.array(["a"])),
]


@pytest.mark.parametrize("name", [*build()[0].state_dict()])
def test_every_leaf_of_a_state_is_checked(name):
    nystrom, _ = build()
    before = image(nystrom)
    state = build(seed=3)[0].state_dict()
    lacking = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ValueError, match=name):
        nystrom.load_state_dict(lacking)
    for wrong in REPLACEMENTS:
        if name == "damping" and (wrong is REPLACEMENTS[3] or wrong is REPLACEMENTS[10]):
            continue  # numbers that a damping may be
        with pytest.raises(ValueError, match=name):
            nystrom.load_state_dict({**state, name: wrong})
        assert image(nystrom) == before


def test_states_that_do_not_fit():
    nystrom, _ = build()
    before, state = image(nystrom), build(seed=3)[0].state_dict()
    values, vectors = state["eigenvalues"], state["vectors"]
    net = ng.MLP([4, 3], dtype="float64")
    kfac = ng.KFAC(net, SQUARED, np.ones((3, 4)), damping=0.1)
    for wrong, words in [
        ({**state, "unknown": 1}, "unknown"),
        ({**state, "eigenvalues": values[::-1].copy()}, "eigenvalues.*do not increase"),
        ({**state, "eigenvalues": values - 1.0}, "eigenvalues"),
        ({**state, "vectors": vectors[:, :-1].copy()}, "vectors"),
        ({**state, "vectors": vectors.astype("float32")}, "vectors"),
        ({**state, "rank": 7}, "eigenvalues|rank"),
        ({**state, "num_updates": 0}, "rank"),
        (build("float32")[0].state_dict(), "dtype"),
        (kfac.state_dict(), "state"),
        (None, "mapping"),
    ]:
        with pytest.raises(ValueError, match=words):
            nystrom.load_state_dict(wrong)
        assert image(nystrom) == before
