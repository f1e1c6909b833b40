"""CG in steps: backtracking among its iterates, and the factor of the warm start."""

import copy
import itertools
import math

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, SQUARED, Case, assert_close, same_bits
from natgrad_fast.solvers import Direction
from natgrad_fast.training.search import backtrack

PROBLEM = Case("6-9-4-backtracking", (6, 9, 4), SOFTMAX, n=60)
# 15 iterations at a damping at which the last ones go too far, and are no rounding yet
LONG = {"max_iter": 15, "rtol": 0.0, "stopping": "residual", "warm_start": 0.9}
INFO = ng.SolveInfo(ng.Status.CONVERGED, 0, 0.0, 0.0, 0, 0.0, 0.0)


def optimizer(net, backtracking, damping=1e-2, **options):
    solver = ng.solvers.CG(backtracking=backtracking, **LONG)
    return ng.NaturalGradient(net, SOFTMAX, solver=solver, damping=damping, l2=1e-3, **options)


def choice(heights):
    """Which of iterates with these objectives, first to last, is chosen, by the definition."""
    place = len(heights) - 1
    while place > 0 and heights[place - 1] <= heights[place]:
        place -= 1
    return place


@pytest.mark.parametrize("heights", [*itertools.product([1.0, 2.0, math.inf], repeat=4)])
def test_the_walk_ends_at_the_first_rise(heights):
    iterates = [np.array([float(k)]) for k in range(len(heights))]
    asked = []

    def objective(params):
        k = round(5.0 - params[0])
        asked.append(k)
        return heights[k] if math.isfinite(heights[k]) else [math.inf, math.nan][k % 2]

    solution = Direction(iterates[-1], INFO, tuple(iterates[:-1]))
    found = backtrack(solution, np.array([5.0]), objective)
    wanted = choice(heights)
    assert found.x is iterates[wanted]
    assert found.skipped == len(heights) - 1 - wanted
    assert asked == list(range(3, max(wanted - 1, 0) - 1, -1))
    assert found.evaluations == len(asked)


def solved(problem, gradient, damping, start):
    """Iterates of the solve of a step, by the solver that users call."""
    fisher = ng.Fisher(problem.net, SOFTMAX, problem.x, l2=1e-3)
    options = {name: value for name, value in LONG.items() if name != "warm_start"}
    x0 = None if start is None else LONG["warm_start"] * start
    result = ng.cg(fisher, gradient, damping=damping, x0=x0, keep_iterates=True, **options)
    return [iterate.x for iterate in result.iterates]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
def test_the_step_is_by_the_iterate_that_an_independent_objective_chooses(momentum, elsewhere, rng):
    problem = PROBLEM.problem("float64")
    net, oracle, x, y, _ = problem
    opt = optimizer(net, True, momentum=momentum)
    held_out = (rng.standard_normal((30, 6)), rng.integers(0, 4, 30)) if elsewhere else (x, y)
    on = ng.Batch(net, SOFTMAX, *held_out, l2=1e-3) if elsewhere else None
    skipped, start, last = [], None, None
    for _ in range(4):
        theta = net.params.copy()
        g = ng.value_and_grad(net, SOFTMAX, x, y, l2=1e-3)[1]
        iterates = solved(problem, g, opt.damping, start)
        assert len(iterates) == 5  # of 5, 7, 9, 11 and 15 iterations
        heights = [
            reference.value(oracle, SOFTMAX, theta - d, *held_out, l2=1e-3) for d in iterates
        ]
        chosen = choice(heights)
        matrix = reference.fisher(oracle, SOFTMAX, theta, x, l2=1e-3, damping=opt.damping)
        info = opt.step(x, y, backtrack_on=on)
        assert info.backtracked == len(iterates) - 1 - chosen
        assert info.evaluations == info.backtracked + 1 + (chosen > 0) + 1
        skipped.append(info.backtracked)
        # the model's minimum in the span of one or two vectors
        span = [-iterates[chosen]] if last is None or not momentum else [-iterates[chosen], last]
        basis = np.stack(span, axis=1)
        factors = np.linalg.solve(basis.T @ matrix @ basis, -basis.T @ g) if momentum else [1.0]
        if info.accepted:
            assert_close(net.params - theta, basis @ factors, 1e-6)
            start, last = iterates[-1], net.params - theta
            # the next solve starts from the last iterate all the same
            assert same_bits(opt.state_dict()["last_solution"], start)
        else:
            start = None
    assert max(skipped) > 0


def test_an_iterate_that_goes_too_far_is_cut():
    """Without backtracking the step is refused, with it the objective falls."""
    infos = {}
    for backtracking in (False, True):
        problem = PROBLEM.problem("float64")
        opt = optimizer(problem.net, backtracking, momentum=False)
        infos[backtracking] = opt.step(problem.x, problem.y)
    assert not infos[False].accepted
    assert infos[True].accepted
    assert infos[True].backtracked > 0
    assert infos[True].new_loss < infos[True].loss
    assert infos[True].solve.iterations == infos[False].solve.iterations


def test_negative_curvature_with_backtracking():
    """The Hessian far from a minimum is indefinite: what CG had before is what there is."""
    problem = Case("3-6-2-indefinite", (3, 6, 2), SQUARED, n=40).problem("float64")
    solver = ng.solvers.CG(backtracking=True, max_iter=50, stopping="residual", rtol=1e-8)
    opt = ng.NaturalGradient(problem.net, SQUARED, curvature="hessian", solver=solver)
    infos = [opt.step(problem.x, problem.y) for _ in range(15)]
    assert infos[-1].new_loss < infos[0].loss
    losses = [info.new_loss for info in infos if info.accepted]
    assert losses == sorted(losses, reverse=True)


def test_a_solve_of_few_iterations_has_nothing_to_go_back_to():
    problem = PROBLEM.problem("float64")
    solver = ng.solvers.CG(max_iter=4, backtracking=True)
    opt = ng.NaturalGradient(problem.net, SOFTMAX, solver=solver)
    info = opt.step(problem.x, problem.y)
    assert (info.backtracked, info.evaluations) == (0, 1)


def test_without_a_choice_nothing_changes():
    """Where the last iterate is the best, the bits are those without backtracking."""
    params = []
    for backtracking in (False, True):
        problem = PROBLEM.problem("float64")
        # ended before its iterates differ by rounding alone
        solver = ng.solvers.CG(backtracking=backtracking, max_iter=6, rtol=0.0, stopping="residual")
        opt = ng.NaturalGradient(problem.net, SOFTMAX, solver=solver, damping=3.0)
        info = opt.step(problem.x, problem.y)
        assert info.backtracked == 0
        params.append(problem.net.params)
    assert same_bits(*params)


def test_a_resumed_run_with_backtracking_has_the_same_bits():
    problem = PROBLEM.problem("float32")
    opt = optimizer(problem.net, True)
    for _ in range(3):
        opt.step(problem.x, problem.y)
    other = problem.net.copy()
    resumed = optimizer(other, True, num_threads=1)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one in (opt, resumed):
        one.step(problem.x, problem.y)
    assert same_bits(other.params, problem.net.params)


def test_wrong_places_to_backtrack_on():
    problem = PROBLEM.problem("float64")
    net, _, x, y, _ = problem
    batch = ng.Batch(net, SOFTMAX, x, y, l2=1e-3)
    opt = optimizer(net, True)
    before = net.params.copy()
    with pytest.raises(TypeError, match="backtrack_on must be a Batch, got ndarray"):
        opt.step(x, y, backtrack_on=x)
    with pytest.raises(ValueError, match="backtrack_on is of"):
        opt.step(x, y, backtrack_on=ng.Batch(net, SOFTMAX, x, y))
    with pytest.raises(ValueError, match="backtrack_on has no targets"):
        opt.step(x, y, backtrack_on=ng.Batch(net, SOFTMAX, x, l2=1e-3))
    with pytest.raises(ValueError, match="backtrack_on needs a solver that keeps iterates"):
        optimizer(net, False).step(x, y, backtrack_on=batch)
    with pytest.raises(TypeError, match="backtracking must be True or False, got 1"):
        ng.solvers.CG(backtracking=1)
    assert same_bits(net.params, before)
    assert opt.state_dict()["step"] == 0


# ------------------------------------------------------------------------------------------------
# Warm start


def growing(step):
    return min(0.995, 1.0 - 0.5 / (10.0 + step / 5.0))


def scheduled(net, warm_start):
    solver = ng.solvers.CG(max_iter=12, warm_start=warm_start)
    return ng.NaturalGradient(net, SOFTMAX, solver=solver, seed=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_schedule_gives_the_factor_of_every_step(dtype):
    """Step k has the bits of a step with the number that the schedule gives for k."""
    problem = PROBLEM.problem(dtype)
    opt = scheduled(problem.net, growing)
    for step in range(4):
        other = problem.net.copy()
        state = copy.deepcopy(opt.state_dict())
        opt.step(problem.x, problem.y)
        assert state["solver"].pop("num_steps") == step
        single = scheduled(other, growing(step))
        single.load_state_dict(state)
        single.step(problem.x, problem.y)
        assert same_bits(other.params, problem.net.params)


def test_a_resumed_schedule_goes_on():
    problem = PROBLEM.problem("float64")
    opt = scheduled(problem.net, growing)
    for _ in range(3):
        opt.step(problem.x, problem.y)
    other = problem.net.copy()
    resumed = scheduled(other, growing)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one in (opt, resumed):
        one.step(problem.x, problem.y)
    assert same_bits(other.params, problem.net.params)
    with pytest.raises(ValueError, match="'num_steps'"):
        scheduled(other, 0.5).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="'num_steps'"):
        resumed.load_state_dict(scheduled(other, 0.5).state_dict())


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, "0.9", None])
def test_a_factor_of_the_schedule_is_checked_when_it_is_used(wrong):
    problem = PROBLEM.problem("float64")
    opt = scheduled(problem.net, lambda step: 0.9 if step < 1 else wrong)
    opt.step(problem.x, problem.y)
    before, state = problem.net.params.copy(), opt.state_dict()["solver"]
    with pytest.raises((ValueError, TypeError), match="warm_start from the schedule"):
        opt.step(problem.x, problem.y)
    assert same_bits(problem.net.params, before)
    assert opt.state_dict()["solver"] == state


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.inf, "0.9", None, True])
def test_wrong_factors(wrong):
    with pytest.raises((ValueError, TypeError), match="warm_start"):
        ng.solvers.CG(warm_start=wrong)
