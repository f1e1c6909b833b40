"""Kronecker-factored inverses as steps."""

import copy
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, assert_close, same_bits

PROBLEM = Case("6-9-4-kronecker", (6, 9, 4), SOFTMAX, n=60)
CLASSES = {
    "kfac": ng.KFAC,
    "ekfac": ng.EKFAC,
    "tkfac": ng.TKFAC,
    "tekfac": ng.TEKFAC,
    "kl": ng.KLFAC,
}
KINDS = list(CLASSES)


def optimizer(net, solver, **options):
    options.setdefault("damping", ng.LevenbergMarquardt(0.3))
    return ng.NaturalGradient(net, SOFTMAX, solver=solver, l2=1e-3, seed=3, **options)


@pytest.mark.parametrize("factor_damping", [None, 0.07])
@pytest.mark.parametrize("kind", KINDS)
def test_the_direction_is_that_of_the_approximation(kind, factor_damping, dtype, tol):
    """Without rescaling the step is -(B_kronecker + damping)^-1 g, an oracle of dense algebra."""
    problem = PROBLEM.problem(dtype)
    net, x, y = problem.net, problem.x, problem.y
    solver = ng.solvers.Kronecker(kind, samples=None, factor_damping=factor_damping)
    before = net.params.copy()
    other = CLASSES[kind](net, SOFTMAX, x, damping=factor_damping or 0.3 + 1e-3)
    g = ng.value_and_grad(net, SOFTMAX, x, y, l2=1e-3)[1]
    exact = np.linalg.solve(other.to_dense(damped=True).astype(float), g.astype(float))
    info = optimizer(net, solver, momentum=False, damping=ng.Tikhonov(0.3)).step(x, y)
    assert info.accepted
    assert info.solve.status is ng.Status.APPROXIMATE
    assert not info.solve.status.success
    assert info.solver == "Kronecker"
    assert_close(net.params.astype(float) - before, -info.learning_rate * exact, 30 * tol.product)


def test_iterations_of_cg_refine_it():
    errors = []
    for iterations in (0, 2, 60):
        problem = PROBLEM.problem("float64")
        net, x, y = problem.net, problem.x, problem.y
        solver = ng.solvers.Kronecker(cg_iterations=iterations)
        g = ng.value_and_grad(net, SOFTMAX, x, y, l2=1e-3)[1]
        matrix = ng.Fisher(net, SOFTMAX, x, l2=1e-3, damping=0.3)
        exact = np.linalg.solve(matrix.to_dense(), -g)
        before = net.params.copy()
        info = optimizer(net, solver, momentum=False).step(x, y)
        assert min(iterations, 20) <= info.solve.iterations <= iterations
        d = net.params - before
        # rescaled in any case: the angle is what is left
        errors.append(1.0 - d @ exact / np.linalg.norm(d) / np.linalg.norm(exact))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10


def test_periods():
    problem = PROBLEM.problem("float64")
    solver = ng.solvers.Kronecker(update_period=4, refresh_period=6)
    opt = optimizer(problem.net, solver)
    assert solver.approximation is None  # the optimizer works with a copy
    updates, dampings = [], []
    for _ in range(12):
        opt.step(problem.x, problem.y)
        updates.append(opt.solver.approximation.num_updates)
        dampings.append(opt.solver.approximation.damping)
    assert updates == [1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6]
    assert len(set(dampings[2:5])) == 1
    assert dampings[4] != dampings[5]
    assert len(set(dampings[5:11])) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["state", "pickle", "deepcopy"])
def test_goes_on_bit_for_bit(kind, how):
    problem, other = PROBLEM.problem("float32"), PROBLEM.problem("float32")
    make = lambda net: optimizer(net, ng.solvers.Kronecker(kind, update_period=2))  # noqa: E731
    opt = make(problem.net)
    for _ in range(4):
        opt.step(problem.x, problem.y)
    if how == "state":
        resumed = make(other.net)
        other.net.params[...] = problem.net.params
        resumed.load_state_dict(opt.state_dict())
    else:
        resumed = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
    for _ in range(4):
        opt.step(problem.x, problem.y)
        resumed.step(problem.x, problem.y)
    assert same_bits(resumed.net.params, problem.net.params)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "kfca"}, "kind.*did you mean 'kfac'"),
        ({"cg_iterations": -1}, "cg_iterations"),
        ({"samples": 0}, "samples"),
        ({"ema": 1.0}, "ema"),
        ({"factor_damping": 0.0}, "factor_damping"),
        ({"update_period": 0}, "update_period"),
        ({"refresh_period": 0}, "refresh_period"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        ng.solvers.Kronecker(**options)


def test_without_any_damping_it_is_still_an_inverse():
    problem = PROBLEM.problem("float32")
    opt = ng.NaturalGradient(
        problem.net, SOFTMAX, solver=ng.solvers.Kronecker(), damping=ng.Tikhonov(0.0)
    )
    for _ in range(5):
        info = opt.step(problem.x, problem.y)
        assert np.isfinite(info.step_norm)
    assert np.isfinite(problem.net.params).all()


@pytest.mark.parametrize("seed", range(3))
def test_auto_chooses_by_size(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 5))
    y = np.sin(x[:, :1])
    for sizes, curvature, name in (
        ([5, 8, 1], "fisher", "Dense"),
        ([5, 150, 1], "fisher", "Kronecker"),
        ([5, 150, 1], "ggn", "Kronecker"),
        ([5, 150, 1], "hessian", "CG"),
    ):
        net = ng.MLP(sizes, dtype="float64", seed=seed)
        opt = ng.NaturalGradient(net, SQUARED, curvature=curvature)
        assert opt.step(x, y).solver == name
