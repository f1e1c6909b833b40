"""Trust regions, the search over radii, calibration, presets and geodesic acceleration."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, SQUARED, Case
from natgrad_fast.training.rescale import Update

PROBLEM = Case("4-6-3-radius", (4, 6, 3), SOFTMAX, n=60)
SOLVERS = {
    "dense": ng.solvers.Dense(),
    "sample_space": ng.solvers.SampleSpace(),
    "ekfac": ng.solvers.Kronecker("ekfac", samples=None),
    "cg": ng.solvers.CG(max_iter=300, rtol=1e-10, stopping="residual"),
}


def test_a_step_of_a_trust_region_minimises_the_model_in_the_ball():
    """(B + lambda I) d = -g with lambda >= 0, and |d| = radius unless lambda = 0."""
    problem = PROBLEM.problem("float64")
    net, oracle, x, y, _ = problem
    for radius in (1e-3, 0.3, 1e4):
        opt = ng.NaturalGradient(
            net, SOFTMAX, solver=SOLVERS["dense"], damping=ng.TrustRegion(radius), l2=1e-3
        )
        theta = net.params.copy()
        g = reference.gradient(oracle, SOFTMAX, theta, x, y, l2=1e-3)
        B = reference.fisher(oracle, SOFTMAX, theta, x, l2=1e-3, damping=0.0)
        info = opt.step(x, y)
        d = net.params - theta if info.accepted else None
        net.params[...] = theta
        if d is None:  # 1e4 is farther than the model holds
            assert radius == 1e4
            continue
        assert np.linalg.norm((B + info.damping * np.eye(len(g))) @ d + g) < 1e-9 * np.linalg.norm(
            g
        )
        interior = np.linalg.norm(np.linalg.solve(B, g))
        wanted = min(radius, interior)
        # the search ends within a tenth of the radius
        assert 0.89 * wanted <= np.linalg.norm(d) <= 1.11 * wanted


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [ng.TrustRegion, ng.RadiusSearch])
def test_bounded_steps_train_with_every_solver(solver, dtype, make):
    problem = PROBLEM.problem(dtype)
    opt = ng.NaturalGradient(
        problem.net, SOFTMAX, solver=SOLVERS[solver], damping=make(), l2=1e-3, seed=1
    )
    infos = [opt.step(problem.x, problem.y) for _ in range(25)]
    assert infos[-1].loss < 0.9 * infos[0].loss
    for info in infos:
        assert info.accepted == (info.new_loss <= info.loss)
        assert info.momentum == 0.0
        assert info.learning_rate == 1.0
    radius = opt.damping_policy.radius
    assert radius is not None
    assert radius > 0.0


def test_the_radius_follows_the_ratio():
    problem = PROBLEM.problem("float64")
    policy = ng.TrustRegion(0.05, grow=3.0, low=0.3, high=0.6)
    opt = ng.NaturalGradient(problem.net, SOFTMAX, solver=SOLVERS["dense"], damping=policy)
    seen = set()
    for _ in range(30):
        before = policy.radius
        info = opt.step(problem.x, problem.y)
        if info.accepted and info.reduction_ratio > 0.6 and info.step_norm >= 0.8 * before:
            seen.add("grew")
            assert policy.radius == pytest.approx(3.0 * before)
        elif not info.accepted or info.reduction_ratio < 0.3:
            seen.add("shrank")
            assert policy.radius <= 0.26 * before
        else:
            assert policy.radius == before
    assert "grew" in seen


class Steps:
    """Trials whose lengths are 1 / damping, and whose ratios are a function of them."""

    loss = 1.0

    def __init__(self, ratio):
        self.ratio_at, self.lengths = ratio, []
        self.solver = self

    def expect(self, num_dampings):
        pass

    def within(self, radius, guess):
        return self.at(1.0 / radius)

    def at(self, damping, *, fixed=True):
        length = 1.0 / damping
        self.lengths.append(length)
        return ng.Trial(
            x=None,
            update=Update(None, 1.0, 0.0, -0.1, length**2),
            damping=damping,
            params=None,
            new_loss=1.0 - 0.1 * self.ratio_at(length),
            change=-0.1,
            solve=None,
            skipped=0,
            at_rounding=False,
        )


@pytest.mark.parametrize("bound", [100.0, 7.0, 3.3, 1.7, 1.2])
def test_the_largest_radius_that_keeps_its_promise_is_taken(bound):
    """Of 24 between 9 and 1 about 3; those beyond the bound have a ratio below the threshold."""
    policy = ng.RadiusSearch(3.0, threshold=0.3)
    steps = Steps(lambda length: 0.29 if length > bound else 0.31)
    trial = policy.search(steps)
    grid = np.geomspace(9.0, 1.0, 24)
    assert trial.length == pytest.approx(grid[grid <= bound].max())
    assert len(steps.lengths) <= 24
    policy.update(trial.ratio(1.0), True)
    assert policy.radius == pytest.approx(trial.length)


def test_where_no_radius_keeps_its_promise_the_next_are_smaller():
    policy = ng.RadiusSearch(3.0)
    trial = policy.search(Steps(lambda length: -1.0))
    assert trial.length == pytest.approx(1.0)
    policy.update(trial.ratio(1.0), trial.is_descent(1.0))
    assert policy.radius == pytest.approx(3.0 / 9.0)


def test_a_calibrated_damping_shows_a_good_ratio_at_once():
    problem = PROBLEM.problem("float64")
    policy = ng.LevenbergMarquardt("calibrated")
    opt = ng.NaturalGradient(problem.net, SOFTMAX, solver=SOLVERS["dense"], damping=policy)
    assert np.isnan(opt.damping)
    state = opt.state_dict()
    info = opt.step(problem.x, problem.y)
    assert info.accepted
    assert info.reduction_ratio >= 0.75
    assert 1 < info.evaluations <= 12
    assert policy.state_dict()["first"] == info.damping
    second = opt.step(problem.x, problem.y)
    assert second.evaluations == 1
    opt.load_state_dict(state)
    assert np.isnan(opt.damping)


def test_presets_have_the_published_constants():
    hf, kfac, matlab = (ng.LevenbergMarquardt(preset=name) for name in ("hf", "kfac", "trainlm"))
    assert (hf.value, hf.factor, hf.denominator, hf.period) == (45.0, 2 / 3, "undamped", 1)
    assert (kfac.value, kfac.factor, kfac.denominator, kfac.period) == (150.0, 0.95, "damped", 5)
    assert (matlab.value, matlab.factor, matlab.increase, matlab.maximum) == (1e-3, 0.1, 10.0, 1e10)
    assert ng.LevenbergMarquardt(7.0, preset="hf", factor=0.5).factor == 0.5
    # trainlm lowers after every step that is kept, whatever its ratio, and raises after others
    for ratio in (0.01, 0.5, 1.0):
        policy = ng.LevenbergMarquardt(preset="trainlm")
        policy.update(ratio, True)
        assert policy.value == pytest.approx(1e-4)
    policy.update(-3.0, False)
    assert policy.value == pytest.approx(1e-3)


@pytest.mark.parametrize("solver", ["dense", "sample_space"])
def test_geodesic_acceleration_is_the_second_order_term(solver):
    """a from second differences of the outputs in float64, with a much smaller step."""
    case = Case("3-5-2-geodesic", (3, 5, 2), SQUARED, n=30)
    problem = case.problem("float64")
    net, x, y = problem.net, problem.x, problem.y
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(x))
    theta, damping = net.params.copy(), 20.0  # short, so that the acceleration is believed
    policy = ng.LevenbergMarquardt(damping, geodesic=True)
    opt = ng.NaturalGradient(net, SQUARED, solver=SOLVERS[solver], damping=policy, momentum=False)
    info = opt.step(x, y, sample_weight=weights)
    assert info.accepted
    bent = net.params - theta
    net.params[...] = theta
    J = ng.Jacobian(net, x).to_dense()
    w = np.repeat(weights / weights.sum(), 2)
    A = J.T @ (w[:, None] * J) + damping * np.eye(len(theta))
    g = J.T @ (w * (net(x) - y).ravel())
    d = -np.linalg.solve(A, g)
    h = 1e-4

    def outputs(t):
        net.params[...] = theta + t * d
        return net(x).ravel()

    second = (outputs(h) - 2.0 * outputs(0.0) + outputs(-h)) / h**2
    net.params[...] = theta
    a = -np.linalg.solve(A, J.T @ (w * second))
    # the one-sided difference of length h = 0.1 leaves h |z'''| / 3 of the second derivative
    assert np.linalg.norm(bent - d - 0.5 * a) < 0.1 * np.linalg.norm(0.5 * a)
    assert np.linalg.norm(a) > 1e-6 * np.linalg.norm(d)


def test_geodesic_acceleration_that_is_too_long_is_left_out():
    net = ng.MLP([1, 4, 1], dtype="float64", seed=0)
    x = np.linspace(-1, 1, 20)[:, None]
    y = 30.0 * np.sin(9 * x)
    options = {"solver": ng.solvers.Dense(), "momentum": False}
    steps = []
    for geodesic in (False, True):
        own = ng.MLP([1, 4, 1], dtype="float64", seed=0)
        policy = ng.LevenbergMarquardt(1e-6, geodesic=geodesic)
        ng.NaturalGradient(own, SQUARED, damping=policy, **options).step(x, y)
        steps.append(own.params - net.params)
    assert np.array_equal(*steps)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ng.TrustRegion(0.0), "radius must be > 0"),
        (lambda: ng.TrustRegion(shrink=1.0), "shrink must be < 1"),
        (lambda: ng.TrustRegion(grow=1.0), "grow must be > 1"),
        (lambda: ng.TrustRegion(low=0.8), "low must be < high"),
        (lambda: ng.TrustRegion(5.0, max_radius=1.0), "radius must be <= max_radius"),
        (lambda: ng.RadiusSearch(span=1.0), "span must be > 1"),
        (lambda: ng.RadiusSearch(num_radii=1), "num_radii must be >= 2"),
        (lambda: ng.RadiusSearch(threshold=1.0), "threshold must be < 1"),
        (lambda: ng.LevenbergMarquardt(preset="matlab"), "unknown preset"),
        (lambda: ng.LevenbergMarquardt(increase=1.0), "increase must be > 1"),
        (lambda: ng.LevenbergMarquardt(geodesic=1), "geodesic must be True or False"),
        (lambda: ng.LevenbergMarquardt("guess"), "initial must be a"),
    ],
)
def test_options_are_checked_where_they_are_given(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_what_does_not_go_together_is_refused():
    net = ng.MLP([2, 3, 2], seed=0)
    with pytest.raises(ValueError, match="geodesic acceleration is for squared_error"):
        ng.NaturalGradient(net, SOFTMAX, damping=ng.LevenbergMarquardt(geodesic=True))
    opt = ng.NaturalGradient(net, SOFTMAX)
    with pytest.raises(ValueError, match="geodesic acceleration is for squared_error"):
        opt.damping_policy = ng.LevenbergMarquardt(geodesic=True)
    with pytest.raises(ValueError, match="momentum must be"):
        ng.NaturalGradient(net, SOFTMAX, damping=ng.TrustRegion(), momentum=True)


@pytest.mark.parametrize("make", [ng.TrustRegion, ng.RadiusSearch])
@pytest.mark.parametrize("solver", ["dense", "sample_space", "ekfac"])
def test_a_resumed_run_has_the_bits_of_one_that_went_on(make, solver):
    def fresh():
        problem = PROBLEM.problem("float64")
        return problem, ng.NaturalGradient(
            problem.net, SOFTMAX, solver=SOLVERS[solver], damping=make(), l2=1e-3
        )

    problem, opt = fresh()
    for _ in range(4):
        opt.step(problem.x, problem.y)
    state, params = opt.state_dict(), problem.net.params.copy()
    ahead = [opt.step(problem.x, problem.y).new_loss for _ in range(4)]
    other_problem, other = fresh()
    other_problem.net.params[...] = params
    other.load_state_dict(state)
    again = [other.step(problem.x, problem.y).new_loss for _ in range(4)]
    assert ahead == again
    assert np.array_equal(problem.net.params, other_problem.net.params)


@pytest.mark.parametrize("make", [ng.TrustRegion, ng.RadiusSearch])
@pytest.mark.parametrize(
    ("leaf", "value"), [("radius", -1.0), ("radius", np.inf), ("damping", "x"), ("max_radius", 3.0)]
)
def test_a_state_is_checked_before_anything_changes(make, leaf, value):
    policy = make(0.7)
    before = policy.state_dict()
    with pytest.raises(ValueError, match=leaf):
        policy.load_state_dict({**before, leaf: value})
    assert policy.state_dict() == before


def test_one_batch_gives_the_same_bits_for_any_threads():
    runs = []
    for threads in (1, 2, 3):
        net = ng.MLP([20, 30, 5], seed=0)
        x, y = _data()
        opt = ng.NaturalGradient(net, SOFTMAX, damping=ng.TrustRegion(), num_threads=threads)
        for _ in range(3):
            opt.step(x, y)
        runs.append(net.params.tobytes())
    assert len(set(runs)) == 1


def _data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 20)), rng.integers(0, 5, 300)
