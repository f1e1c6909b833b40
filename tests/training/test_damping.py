"""Damping policies, seen from outside: what each step reports and what the next one uses."""

from itertools import pairwise

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, SQUARED, Case

PROBLEM = Case("4-6-3-damping", (4, 6, 3), SOFTMAX, n=60)
EXACT = {"solver": ng.solvers.CG(max_iter=300, rtol=1e-10, stopping="residual")}


def optimizer(net, damping, loss=SOFTMAX, **options):
    return ng.NaturalGradient(net, loss, damping=damping, **EXACT, **options)


def test_tikhonov_is_constant():
    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net, ng.Tikhonov(0.3))
    infos = [opt.step(problem.x, problem.y) for _ in range(4)]
    assert all(info.accepted for info in infos)
    assert [info.damping for info in infos] == [0.3] * 4


def test_tikhonov_schedule():
    problem = PROBLEM.problem("float64")
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 / (1.0 + step)

    opt = optimizer(problem.net, ng.Tikhonov(schedule))
    infos = [opt.step(problem.x, problem.y) for _ in range(3)]
    first = infos[0].step
    assert [info.damping for info in infos] == [1 / (1 + first + k) for k in range(3)]
    assert set(range(first, first + 3)) <= set(asked)


@pytest.mark.parametrize("denominator", ["undamped", "damped"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_reduction_ratio_is_actual_over_predicted(denominator, momentum, l2):
    """rho = (h(theta + d) - h(theta)) / (M(d) - M(0)), M with l2 always and damping on request."""
    problem = PROBLEM.problem("float64")
    net, oracle, x, y, _ = problem
    policy = ng.LevenbergMarquardt(0.5, denominator=denominator)
    opt = optimizer(net, policy, momentum=momentum, l2=l2)
    for _ in range(3):
        theta = net.params.copy()
        info = opt.step(x, y)
        assert info.accepted
        d = net.params - theta
        g = reference.gradient(oracle, SOFTMAX, theta, x, y, l2=l2)
        shift = info.damping if denominator == "damped" else 0.0
        curvature = reference.fisher(oracle, SOFTMAX, theta, x, l2=l2, damping=shift)
        predicted = g @ d + 0.5 * d @ curvature @ d
        # differences of h cost about eps h / |dh| = 1e-14; the rest is for the solve
        assert info.reduction_ratio == pytest.approx(
            (info.new_loss - info.loss) / predicted, rel=1e-7
        )


def test_levenberg_marquardt_rule():
    """Each step's damping follows from the ratio of the one before."""
    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net, ng.LevenbergMarquardt(1.0, factor=0.5, low=0.9, high=0.97))
    infos = [opt.step(problem.x, problem.y) for _ in range(20)]
    seen = set()
    for info, following in pairwise(infos):
        change = following.damping / info.damping
        if not info.accepted or info.reduction_ratio < 0.9:
            seen.add("raised")
            assert change == pytest.approx(2.0)
        elif info.reduction_ratio > 0.97:
            seen.add("lowered")
            assert change == pytest.approx(0.5)
        else:
            assert change == 1.0
    assert "lowered" in seen
    assert "raised" in seen


def test_levenberg_marquardt_stays_between_its_bounds():
    problem = PROBLEM.problem("float64")
    policy = ng.LevenbergMarquardt(1.0, factor=0.1, minimum=0.05, maximum=5.0)
    opt = optimizer(problem.net, policy)
    dampings = [opt.step(problem.x, problem.y).damping for _ in range(4)]
    assert dampings[0] == 1.0
    assert min(dampings) == 0.05
    always = ng.LevenbergMarquardt(1.0, factor=0.1, low=1e6, high=1e7, maximum=5.0)
    opt = optimizer(PROBLEM.problem("float64").net, always)
    assert [opt.step(problem.x, problem.y).damping for _ in range(3)] == [1.0, 5.0, 5.0]


def test_levenberg_marquardt_period():
    """With period 3 the damping moves after the steps 3 and 6 only, by factor ** 3."""
    problem = PROBLEM.problem("float64")
    policy = ng.LevenbergMarquardt(1.0, factor=0.5, low=-1e6, high=-1e5, period=3)
    opt = optimizer(problem.net, policy)
    infos = [opt.step(problem.x, problem.y) for _ in range(7)]
    assert all(info.accepted for info in infos)
    assert [info.damping for info in infos] == [1.0] * 3 + [0.125] * 3 + [0.015625]


def test_initial_damping_is_what_the_optimizer_shows():
    net = ng.MLP([2, 2])
    policy = ng.LevenbergMarquardt(0.125)
    opt = ng.NaturalGradient(net, SQUARED, damping=policy)
    assert opt.damping == 0.125
    assert opt.damping_policy is policy or opt.damping_policy == policy


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ng.Tikhonov(-1.0), "-1"),
        (lambda: ng.Tikhonov(np.nan), "nan"),
        (lambda: ng.LevenbergMarquardt(-2.0), "initial"),
        (lambda: ng.LevenbergMarquardt(0.0), "initial"),
        (lambda: ng.LevenbergMarquardt(1.0, factor=1.5), "factor"),
        (lambda: ng.LevenbergMarquardt(1.0, factor=0.0), "factor"),
        (lambda: ng.LevenbergMarquardt(1.0, low=0.8, high=0.2), "low"),
        (lambda: ng.LevenbergMarquardt(1.0, minimum=2.0, maximum=1.0), "maximum"),
        (lambda: ng.LevenbergMarquardt(1.0, denominator="dampd"), "denominator.*damped"),
        (lambda: ng.LevenbergMarquardt(1.0, period=0), "period"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("bad_from", [0, 1])
def test_bad_value_of_a_schedule_is_named(bad_from):
    """Whenever it is asked for: the step that raises changes nothing."""
    problem = PROBLEM.problem("float64")
    net, before = problem.net, problem.net.params.copy()
    with pytest.raises(ValueError, match=r"damping.*-1"):  # noqa: PT012
        opt = optimizer(net, ng.Tikhonov(lambda step: -1.0 if step >= bad_from else 1.0))
        for _ in range(bad_from + 1):
            before = net.params.copy()
            opt.step(problem.x, problem.y)
    assert cases.same_bits(net.params, before)
