"""The line search of last resort, against its definition."""

import math

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, same_bits
from natgrad_fast.training.search import line_search

PROBLEM = Case("4-6-3-line-search", (4, 6, 3), SOFTMAX, n=50)


def first_rate(values, slope):
    """The definition: h(rate) <= h(0) + 1e-2 rate g'd at the first of 60 rates."""
    for k in range(60):
        rate = 0.8**k
        if values(rate) <= values(0.0) + 1e-2 * rate * slope:
            return rate
    return 0.0


@pytest.mark.parametrize("curvature", [0.5, 1.9, 2.1, 10.0, 1e4, 1e9])
def test_the_first_rate_of_enough_decrease(curvature):
    """h(t) = -t + c t^2 / 2 along the step: enough as long as t <= 1.98 / c."""
    asked = []

    def values(t):
        return -t + 0.5 * curvature * t * t

    def objective(params):
        asked.append(params[0] - 3.0)
        return values(params[0] - 3.0)

    found = line_search(np.ones(1), np.full(1, 3.0), objective, 0.0, values(1.0), -1.0)
    # 1e9: 0.8**59 is 2e-6, still too long
    assert found.rate == pytest.approx(first_rate(values, -1.0), rel=1e-12)
    assert (found.rate == 0.0) == (curvature == 1e9)
    assert found.evaluations == len(asked)
    if found.rate > 0.0:
        assert found.rate <= 1.98 / curvature * (1 + 1e-12) or found.rate == 1.0
        assert found.rate == 1.0 or found.rate / 0.8 > 1.98 / curvature
        assert found.evaluations == round(math.log(found.rate) / math.log(0.8))
        assert found.value == pytest.approx(values(found.rate), rel=1e-9)
    else:
        assert found.evaluations == 59
        assert found.value == values(1.0)


def test_what_is_not_finite_is_no_decrease():
    def objective(params):
        return math.nan if params[0] > 0.5 else -params[0]

    found = line_search(np.ones(1), np.zeros(1), objective, 0.0, -math.inf, -1.0)
    assert found.rate == pytest.approx(0.8**4)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_uphill_only_the_whole_step_is_looked_at(slope):
    found = line_search(np.ones(1), np.zeros(1), lambda params: 1 / 0, 1.0, 2.0, slope)
    assert (found.rate, found.evaluations) == (0.0, 0)
    found = line_search(np.ones(1), np.zeros(1), lambda params: 1 / 0, 1.0, 1.0, slope)
    assert (found.rate, found.evaluations) == (1.0, 0)


def overshooting():
    """z = sin(w) near its maximum: slope 0.05, so the Gauss-Newton step overshoots by periods."""
    net = ng.MLP([1, 1], output_activation="sin", bias=False, dtype="float64")
    net.params[:] = math.pi / 2 - 0.05
    return net, np.array([[0.5]])


@pytest.mark.parametrize("momentum", [False, True])
def test_a_step_that_would_be_rejected_is_shortened(momentum):
    infos = {}
    for search in (False, True):
        net, y = overshooting()
        opt = ng.NaturalGradient(
            net,
            SQUARED,
            damping=ng.LevenbergMarquardt(1e-9, minimum=1e-12),
            momentum=momentum,
            line_search=search,
        )
        theta = net.params.copy()
        g = ng.value_and_grad(net, SQUARED, [[1.0]], y)[1]
        info = infos[search] = opt.step([[1.0]], y)
        # either way damping learns that the whole step was bad
        assert opt.damping > 1e-9
    assert not infos[False].accepted
    assert info.accepted
    d = net.params - theta
    assert info.new_loss == ng.value(net, SQUARED, [[1.0]], y)
    assert info.new_loss <= info.loss + 1e-2 * float(g @ d)
    whole = infos[False].learning_rate
    count = info.evaluations - infos[False].evaluations
    assert count > 0
    assert info.learning_rate == pytest.approx(whole * 0.8**count, rel=1e-12)
    assert info.step_norm == pytest.approx(np.linalg.norm(d), rel=1e-12)
    # one rate more would have been too long
    longer = 0.5 * (np.sin(theta + d / 0.8) - 0.5).item() ** 2
    assert longer > info.loss + 1e-2 * float(g @ d) / 0.8
    assert info.reduction_ratio == infos[False].reduction_ratio
    assert same_bits(opt.state_dict()["last_update"], d) or np.allclose(
        opt.state_dict()["last_update"], d, rtol=1e-12
    )


def test_steps_that_are_good_enough_keep_their_bits():
    params = []
    for search in (False, True):
        problem = PROBLEM.problem("float32")
        opt = ng.NaturalGradient(problem.net, SOFTMAX, damping=1.0, line_search=search)
        infos = [opt.step(problem.x, problem.y) for _ in range(5)]
        assert all(info.evaluations == 1 for info in infos)
        params.append(problem.net.params)
    assert same_bits(*params)


def test_no_search_among_rounding():
    """At convergence nothing is lower: one evaluation a step, not sixty."""
    problem = PROBLEM.problem("float64")
    opt = ng.NaturalGradient(problem.net, SOFTMAX, l2=0.1, line_search=True)
    history = opt.fit(problem.x, problem.y, epochs=300, ftol=None, gtol=None, xtol=None)
    assert history.steps[-1].at_rounding
    assert history.steps[-1].evaluations == 1


def test_a_rejected_search_says_so():
    """All 60 lengths fail: learning rate 0, and everything stays."""

    class Uphill(ng.solvers.StepSolver):
        def direction(self, matrix, g, damping, start):
            info = ng.SolveInfo(ng.Status.CONVERGED, 0, 0.0, 0.0, 0, 0.0, 0.0)
            return ng.solvers.Direction(1e12 * g, info)

    problem = PROBLEM.problem("float64")
    opt = ng.NaturalGradient(
        problem.net, SOFTMAX, solver=Uphill(), momentum=False, l2=1.0, line_search=True
    )
    before = problem.net.params.copy()
    info = opt.step(problem.x, problem.y)
    assert not info.accepted
    assert (info.learning_rate, info.step_norm) == (0.0, 0.0)
    assert info.evaluations == 60
    assert same_bits(problem.net.params, before)


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_wrong_options(wrong):
    with pytest.raises(TypeError, match="line_search must be True or False"):
        ng.NaturalGradient(PROBLEM.problem("float64").net, SOFTMAX, line_search=wrong)
