"""Whoever asks a solver to stop is obeyed at once: callbacks, Ctrl-C, exceptions, from anywhere."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, spd_matrix
from natgrad_fast.operators.base import Operator

Status = ng.Status


class Mine(Exception):
    pass


class Refusing:
    """An answer without a truth value."""

    def __init__(self, error):
        self.error = error

    def __bool__(self):
        raise self.error


def raising(error):
    def answer():
        raise error

    return answer


# What a callback does at its n-th call, and what comes of it.
ANSWERS = {
    "stop": (lambda: True, Status.STOPPED),
    "number": (lambda: np.float32(0.5), Status.STOPPED),
    "interrupt": (raising(KeyboardInterrupt), Status.INTERRUPTED),
    "refusing to interrupt": (lambda: Refusing(KeyboardInterrupt), Status.INTERRUPTED),
    "exception": (raising(Mine), Mine),
    "refusing": (lambda: Refusing(Mine), Mine),
}


def entry_points():
    """Every solver with a callback, on a system for which each takes more than 8 iterations."""
    rng = np.random.default_rng(0)
    net = ng.MLP([6, 10, 3], dtype="float64", seed=0)
    x, y = rng.standard_normal((40, 6)), rng.integers(0, 3, 40)
    fisher = ng.Fisher(net, SOFTMAX, x)
    g = ng.value_and_grad(net, SOFTMAX, x, y)[1]
    block = np.stack([g, g[::-1]], axis=1)
    dense = fisher.to_dense()
    nystrom = ng.Nystrom(dense, rank=3, damping=1e-5)
    tight = {"damping": 1e-5, "rtol": 1e-12, "max_iter": 200}
    several = tight | {"damping": [1e-5, 1e-3]}

    def solver(function, *args, **options):
        return lambda callback: function(*args, callback=callback, **options)

    space = {"method": "cg"} | tight
    return {
        "cg": solver(ng.cg, fisher, g, **tight),
        "array": solver(ng.cg, dense, g, **tight),
        "preconditioned": solver(ng.cg, dense, g, preconditioner=nystrom, **tight),
        "progress": solver(ng.cg, fisher, g, stopping="relative_progress", **tight),
        "radius": solver(ng.cg, fisher, g, trust_radius=1e9, **tight),
        "kept": solver(ng.cg, fisher, g, keep_iterates=True, **tight),
        "block": solver(ng.cg, fisher, block, **tight),
        "multishift": solver(ng.multishift_cg, fisher, g, several["damping"], rtol=1e-12),
        "verified": solver(ng.multishift_cg, fisher, g, [1e-5], rtol=1e-12, verify=True),
        "space": solver(ng.sample_space_solve, fisher, g, **space),
        "space, targets": solver(ng.sample_space_solve, fisher, g, y=y, **space),
        "space, dampings": solver(ng.sample_space_solve, fisher, g, method="cg", **several),
        "space, block": solver(ng.sample_space_solve, fisher, block, **space),
        "space kept": solver(ng.SampleSpace(fisher).solve, g, **space),
        "solve": solver(fisher.solve, g, **(tight | {"method": "cg"})),
        "solve, K-FAC": solver(fisher.solve, g, **(tight | {"method": "kfac_cg"})),
        "solve, space": solver(fisher.solve, g, **(tight | {"method": "sample_space_cg"})),
        "solve, block": solver(fisher.solve, block, **(tight | {"method": "sample_space_cg"})),
    }


def columns_of(result):
    return list(result) if isinstance(result, ng.BlockCGResult) else [result]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", entry_points())
def test_a_callback_is_obeyed_at_its_nth_call(name, answer):
    solve = entry_points()[name]
    act, wanted = ANSWERS[answer]
    for n in range(1, 9):
        calls = []

        def callback(*numbers, n=n, calls=calls):
            calls.append(numbers)
            return act() if len(calls) == n else None

        if wanted is Mine:
            with pytest.raises(Mine):
                solve(callback)
        else:
            columns = columns_of(solve(callback))
            # a column may have ended before
            assert wanted in {column.status for column in columns}
            assert {column.status for column in columns} <= {wanted, Status.CONVERGED}
            assert all(np.isfinite(column.x).all() for column in columns)
        assert len(calls) == n


@pytest.mark.parametrize("n", [25, 60])
def test_a_stop_in_the_second_correction_of_the_sample_space(n):
    """The residual of the first is solved for as well; its stop is not the last word, this is."""
    solve = entry_points()["space"]
    calls = []

    def callback(*numbers):
        calls.append(numbers)
        return len(calls) == n

    assert solve(callback).status is Status.STOPPED
    assert len(calls) == n


# ------------------------------------------------------------------------------------------------
# Ctrl-C while a Python operator multiplies


class Interrupting:
    """Raises at the n-th product."""

    def __init__(self, matrix, n, error=KeyboardInterrupt):
        self.matrix, self.n, self.error, self.calls = matrix, n, error, 0
        self.shape, self.dtype = matrix.shape, matrix.dtype

    def matvec(self, v):
        self.calls += 1
        if self.calls == self.n:
            raise self.error
        return self.matrix @ v

    matmat = matvec


def system(dtype="float64", columns=None):
    rng = np.random.default_rng(0)
    shape = 50 if columns is None else (50, columns)
    return spd_matrix(rng, 50, 1e3, dtype), rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 30])
def test_iterates_are_kept(n, dtype):
    """The n-th product makes the n-th iterate: n - 1 of them are there."""
    matrix, b = system(dtype)
    result = ng.cg(Interrupting(matrix, n), b, rtol=1e-10, keep_iterates=True)
    assert (result.status, result.iterations) == (Status.INTERRUPTED, n - 1)
    expected = ng.cg(matrix, b, rtol=1e-10, max_iter=n - 1)
    assert np.allclose(result.x, expected.x, rtol=1e-4)
    assert result.residual_norm == pytest.approx(expected.residual_norm, rel=1e-4)
    assert result.iterates[-1].iteration == n - 1


@pytest.mark.parametrize("n", [1, 2, 7])
def test_in_the_preconditioner(n):
    matrix, b = system()
    result = ng.cg(matrix, b, rtol=1e-12, preconditioner=Interrupting(np.eye(50), n))
    assert (result.status, result.iterations) == (Status.INTERRUPTED, n - 1)
    assert result.residual_norm == pytest.approx(np.linalg.norm(b - matrix @ result.x), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_in_a_block(n):
    matrix, b = system(columns=3)
    result = ng.cg(Interrupting(matrix, n), b, rtol=1e-12)
    assert result.status == (Status.INTERRUPTED,) * 3
    for column, rhs in zip(result, b.T, strict=True):
        assert column.iterations == n - 1
        assert column.residual_norm == pytest.approx(
            np.linalg.norm(rhs - matrix @ column.x), rel=1e-9
        )


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("verify", [False, True])
def test_in_multishift(verify, n):
    matrix, b = system()
    result = ng.multishift_cg(Interrupting(matrix, n), b, [0.0, 0.1], rtol=1e-12, verify=verify)
    assert result.status == (Status.INTERRUPTED,) * 2
    assert result.iterations.tolist() == [n - 1] * 2
    for column, damping in zip(result, [0.0, 0.1], strict=True):
        residual = np.linalg.norm(b - matrix @ column.x - damping * column.x)
        assert column.residual_norm == pytest.approx(residual, rel=1e-9)


def test_wherever_it_comes(dtype):
    """From the first product to that of the last check, with and without a start."""
    matrix, b = system(dtype)
    for options in ({}, {"x0": b}, {"trust_radius": 1e9}, {"rtol": 0.0}, {"max_iter": 4}):
        whole = Interrupting(matrix, 0)
        ng.cg(whole, b, **options)
        for n in range(1, whole.calls + 1):
            result = ng.cg(Interrupting(matrix, n), b, **options)
            assert result.status in (Status.INTERRUPTED, Status.CONVERGED, Status.STAGNATED)
            assert np.isfinite(result.x).all()
            if n < whole.calls - 1:
                assert result.status is Status.INTERRUPTED


def test_twice():
    """The check of the residual is interrupted as well: the recurrence tells of it."""
    matrix, b = system()

    class Twice(Interrupting):
        def matvec(self, v):
            self.calls += 1
            if self.calls >= self.n:
                raise KeyboardInterrupt
            return self.matrix @ v

    result = ng.cg(Twice(matrix, 7), b, rtol=1e-12)
    assert (result.status, result.iterations) == (Status.INTERRUPTED, 6)
    assert result.residual_norm == pytest.approx(np.linalg.norm(b - matrix @ result.x), rel=1e-9)
    start = ng.cg(Twice(matrix, 1), b, x0=b)
    assert start.status is Status.INTERRUPTED
    assert np.isnan(start.residual_norm)
    assert (start.x == b).all()


def test_other_exceptions_come_through():
    matrix, b = system()
    for solve in (ng.cg, lambda A, b: ng.multishift_cg(A, b, [0.1])):
        for n in (1, 4):
            with pytest.raises(Mine):
                solve(Interrupting(matrix, n, Mine), b)


def test_outside_of_solvers_it_is_the_exception():
    """Sums of operators multiply in the core."""
    net = ng.MLP([3, 4, 2], dtype="float64", seed=0)
    fisher = ng.Fisher(net, "squared_error", np.ones((5, 3)))

    class Mean(Operator):
        shape, dtype, num_threads, flops_per_product = fisher.shape, fisher.dtype, 1, 0.0

        def _apply(self, rows):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        (fisher + Mean()) @ np.ones(len(net.params))
    result = ng.cg(fisher + Mean(), np.ones(len(net.params)))
    assert (result.status, result.iterations) == (Status.INTERRUPTED, 0)
