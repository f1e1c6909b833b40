"""Exact steps by the formed matrix of the batch."""

import copy
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, STUDENT, Case, assert_close, same_bits
from natgrad_fast.linear import dense as linear_dense

PROBLEM = Case("6-9-4-steps", (6, 9, 4), SOFTMAX, n=60)


def optimizer(net, solver, loss=SOFTMAX, **options):
    options = {"damping": ng.LevenbergMarquardt(0.3), "l2": 1e-3, "seed": 3} | options
    return ng.NaturalGradient(net, loss, solver=solver, **options)


@pytest.mark.parametrize("curvature", ["fisher", "ggn", "empirical_fisher"])
@pytest.mark.parametrize("method", ["auto", "cholesky", "eigh"])
def test_step_is_that_of_cg_to_the_end(method, curvature):
    steps = []
    exact = {"max_iter": 400, "rtol": 1e-11, "stopping": "residual", "warm_start": 0.0}
    for solver in (ng.solvers.CG(**exact), ng.solvers.Dense(method)):
        problem = PROBLEM.problem("float64")
        before = problem.net.params.copy()
        opt = optimizer(problem.net, solver, curvature=curvature)
        info = opt.step(problem.x, problem.y)
        assert info.solve.status is ng.Status.CONVERGED
        assert info.accepted
        steps.append(problem.net.params - before)
    assert info.solver == "Dense"
    assert info.solve.iterations == 0
    assert_close(steps[1], steps[0], 1e-9)  # condition at most 1e2 times rtol


@pytest.mark.parametrize("num_threads", [2, 3])
def test_training_has_the_same_bits_for_any_threads(num_threads, dtype):
    params = []
    for threads in (1, num_threads):
        problem = Case("6-30-4-bits", (6, 30, 4), SOFTMAX, n=700).problem(dtype)
        opt = optimizer(problem.net, ng.solvers.Dense(), num_threads=threads)
        for _ in range(3):
            opt.step(problem.x, problem.y)
        params.append(problem.net.params.copy())
    assert same_bits(*params)


def test_levenberg_marquardt_fits_the_sinc():
    """61 parameters, 1-20-1 in float64: a mean square below 1e-4 within 150 steps; here 3e-6."""
    x = np.linspace(-10, 10, 200)[:, None]
    net = ng.MLP([1, 20, 1], dtype="float64", seed=0)
    opt = optimizer(net, ng.solvers.Dense(), SQUARED, damping=ng.LevenbergMarquardt(1e-2), l2=0.0)
    for _ in range(150):
        info = opt.step(x, np.sinc(x / np.pi))
        assert info.solve.status in (ng.Status.CONVERGED, ng.Status.STAGNATED)
    assert 2 * info.loss < 1e-4


def test_dampings_of_one_search_share_one_matrix(monkeypatch):
    """One matrix; a Cholesky factorisation, then one eigendecomposition for all that follow."""
    problem = PROBLEM.problem("float64")
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x, l2=1e-3)
    other = ng.Fisher(problem.net, SOFTMAX, problem.x[:30], l2=1e-3)
    g = ng.value_and_grad(problem.net, SOFTMAX, problem.x, problem.y)[1]
    formed = []
    from natgrad_fast.solvers import dense as module

    class Counted(ng.DenseMatrix):
        def __init__(self, matrix):
            formed.append(matrix)
            super().__init__(matrix)

    monkeypatch.setattr(module, "DenseMatrix", Counted)
    solver = ng.solvers.Dense()
    solver.init(problem.net, ng.losses.SoftmaxCrossEntropy())
    size = len(g)
    flops = []
    for damping in (0.1, 0.3, 1.0, 3.0, 0.1):
        x, info, _ = solver.direction(fisher, g, damping, None)
        exact = np.linalg.solve(fisher.to_dense() + damping * np.eye(size), g)
        assert_close(x, exact, 1e-9)
        flops.append(info.flops)
    assert formed == [fisher]
    assert flops[0] > size**3 / 3
    assert size**3 / 3 < flops[1] < size**3  # three are factorised by themselves
    assert flops[3] > 4 * size**3
    assert flops[4] <= 6 * size**2
    solver.direction(other, g, 0.1, None)
    assert formed == [fisher, other]
    other.damping = 2.0  # counts, as in every solver
    x, *_ = solver.direction(other, g, 0.1, None)
    assert_close(x, np.linalg.solve(other.to_dense() + 0.1 * np.eye(size), g), 1e-9)
    solver.accepted(True)
    solver.direction(other, g, 0.1, None)
    assert len(formed) == 4


def test_indefinite_matrices_raise_the_damping():
    problem = Case("4-6-3-student-silu", (4, 6, 3), STUDENT, n=40, activation="silu").problem(
        "float64"
    )
    policy = ng.LevenbergMarquardt(1e-6)
    opt = optimizer(
        problem.net, ng.solvers.Dense(), STUDENT, curvature="ggn", damping=policy, l2=0.0
    )
    first = opt.step(problem.x, problem.y)
    assert first.solve.status is ng.Status.NEGATIVE_CURVATURE
    for _ in range(60):
        info = opt.step(problem.x, problem.y)
    assert info.new_loss < first.loss


def test_state_copies_and_pickles(dtype):
    """An optimizer resumes bit for bit, and what was formed is no part of a copy."""
    problem = PROBLEM.problem(dtype)
    opt = optimizer(problem.net, ng.solvers.Dense("eigh"))
    opt.step(problem.x, problem.y)
    state, params = opt.state_dict(), problem.net.params.copy()
    assert state["solver"] == {}
    opt.step(problem.x, problem.y)
    again = PROBLEM.problem(dtype)
    again.net.params[...] = params
    resumed = optimizer(again.net, ng.solvers.Dense("eigh"))
    resumed.load_state_dict(state)
    resumed.step(again.x, again.y)
    assert same_bits(again.net.params, problem.net.params)
    solver = ng.solvers.Dense("cholesky")
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x)
    solver.direction(fisher, np.ones(problem.net.num_params, dtype), 0.1, None)
    for other in (copy.copy(solver), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert other == solver
        assert other._formed is None
    with pytest.raises(ValueError, match="state"):
        solver.load_state_dict({"formed": 1})


def test_options_are_checked_where_they_are_given():
    with pytest.raises(ValueError, match="unknown method 'chol'"):
        ng.solvers.Dense("chol")
    with pytest.raises(TypeError, match="method must be a name"):
        ng.solvers.Dense(3)
    assert ng.solvers.Dense() == ng.solvers.Dense("auto")
    assert linear_dense.METHODS == ("auto", "cholesky", "eigh")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_damping_multiplies_the_diagonal(dtype):
    """(B + damping diag B) d = -g, and the model that predicts the decrease has the same term."""
    problem = PROBLEM.problem(dtype)
    net, x, y = problem.net, problem.x, problem.y
    policy = ng.LevenbergMarquardt(0.3, denominator="damped")
    opt = ng.NaturalGradient(
        net,
        SOFTMAX,
        solver=ng.solvers.Dense(scaling="diagonal"),
        damping=policy,
        momentum=False,
        l2=1e-3,
    )
    theta = net.params.copy()
    B = ng.Fisher(net, SOFTMAX, x, l2=1e-3).to_dense().astype(float)
    loss, g = ng.value_and_grad(net, SOFTMAX, x, y, l2=1e-3)
    info = opt.step(x, y)
    assert info.accepted
    d = (net.params - theta).astype(float)
    A = B + 0.3 * np.diag(B.diagonal())
    eps = np.finfo(dtype).eps
    wanted = -np.linalg.solve(A, g.astype(float))
    # differences of parameters of size 1 in the float type
    assert np.abs(d - wanted).max() <= 50 * eps * max(1.0, np.abs(theta).max())
    predicted = g @ wanted + 0.5 * wanted @ A @ wanted
    change = info.new_loss - loss
    # the change of the loss is a difference of numbers of size 1
    assert info.reduction_ratio == pytest.approx(
        change / predicted, rel=float(100 * eps / abs(change))
    )


def test_steps_do_not_depend_on_the_scale_of_inputs():
    """With the diagonal; not with I. Dead inputs do no harm."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    x[:, 2] = 0.0  # whose weights have no curvature
    y = np.tanh(x[:, :1] - x[:, 1:2])
    scales = np.array([1.0, 128.0, 1.0])
    outputs = {}
    for scaling in ("diagonal", "identity"):
        for factor in (np.ones(3), scales):
            net = ng.MLP([3, 4, 1], dtype="float64", seed=0)
            net.weights[0][...] /= factor
            opt = ng.NaturalGradient(
                net, "squared_error", solver=ng.solvers.Dense(scaling=scaling), momentum=False
            )
            for _ in range(3):
                assert opt.step(x * factor, y).accepted
            outputs[scaling, factor[1]] = net(x * factor)
    same = outputs["diagonal", 1.0] - outputs["diagonal", 128.0]
    assert np.abs(same).max() < 1e-10  # rounding of three solves in float64
    assert np.abs(outputs["identity", 1.0] - outputs["identity", 128.0]).max() > 1e-3


def test_scaled_matrices():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((70, 70))
    A = A @ A.T
    dense = ng.DenseMatrix(A)
    scales = rng.uniform(0.1, 10.0, 70)
    other = dense.scaled(scales)
    assert np.allclose(other.to_dense(), scales[:, None] * A * scales, rtol=1e-14)
    assert np.array_equal(dense.to_dense(), A)
    for wrong in (np.ones(69), np.full(70, np.nan)):
        with pytest.raises(ValueError, match="scales must be"):
            dense.scaled(wrong)


class Overflowing(ng.solvers.Dense):
    """Directions beyond the range of the dtype, until the damping is large."""

    def direction(self, matrix, g, damping, start):
        found = super().direction(matrix, g, damping, start)
        if damping > 1e-3:
            return found
        x = found.x.copy()
        x[3] = np.inf
        return found._replace(x=x)


def test_a_direction_that_is_not_finite_is_a_rejected_step(dtype):
    net = ng.MLP([1, 8, 1], dtype=dtype, seed=0)
    before = net.params.copy()
    damping = ng.LevenbergMarquardt(1e-4)
    opt = ng.NaturalGradient(net, "squared_error", solver=Overflowing(), damping=damping)
    x = np.linspace(-1, 1, 30)[:, None]
    info = opt.step(x, np.sin(3 * x))
    assert not info.accepted
    assert same_bits(net.params, before)
    assert opt.damping > 1e-4
    history = opt.fit(x, np.sin(3 * x), epochs=30)
    assert history.steps[-1].accepted
    assert history.steps[-1].new_loss < info.loss
