"""NaturalGradient: steps against the oracle, training, acceptance, records, ways to stop."""

import dataclasses
import math
import sys

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, run_python, same_bits

EXACT = ng.solvers.CG(max_iter=500, rtol=1e-12, stopping="residual")
PROBLEM = Case("4-6-3-optimizer", (4, 6, 3), SOFTMAX, n=50)


def optimizer(net, loss=SOFTMAX, **options):
    options.setdefault("damping", ng.LevenbergMarquardt(0.1))
    return ng.NaturalGradient(net, loss, **options)


def spirals(rng, n=150):
    """Two interleaved spirals: (2n, 2) points and their labels."""
    angle = np.sqrt(rng.random(n)) * 3.0 * np.pi
    arm = np.c_[np.cos(angle), np.sin(angle)] * (angle / 8.0)[:, None]
    return np.r_[arm, -arm], np.repeat([0, 1], n)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("curvature", ["fisher", "ggn"])
def test_one_step_solves_a_least_squares_problem(curvature, l2, weighted, rng):
    """Linear net, squared error, no damping: the objective is the quadratic model."""
    net = ng.MLP([5, 2], dtype="float64")
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((40, 2))
    w = rng.random(40) if weighted else np.ones(40)
    opt = optimizer(
        net, SQUARED, curvature=curvature, l2=l2, damping=ng.Tikhonov(0.0), solver=EXACT
    )
    info = opt.step(x, y, sample_weight=w if weighted else None)
    design, share = np.c_[x, np.ones(40)], w / w.sum()
    normal = design.T @ (design * share[:, None]) + l2 * np.eye(6)
    exact = np.linalg.solve(normal, design.T @ (y * share[:, None])).T
    found = np.c_[net.weights[0], net.biases[0]]
    assert_close(found, exact, 1e-9)  # CG residual 1e-12 times the condition number, about 10
    assert info.accepted
    assert info.reduction_ratio == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("momentum", [False, True])
def test_step_record_is_true(momentum, dtype, tol):
    problem = PROBLEM.problem(dtype)
    net, oracle, x, y, _ = problem
    opt = optimizer(net, momentum=momentum, l2=0.1)
    for number in range(3):
        theta = net.params.copy()
        info = opt.step(x, y)
        d = net.params.astype(float) - theta
        gradient = reference.gradient(oracle, SOFTMAX, theta, x, y, l2=0.1)
        assert info.accepted
        assert info.loss == pytest.approx(
            reference.value(oracle, SOFTMAX, theta, x, y, l2=0.1), rel=tol.forward
        )
        assert info.new_loss == pytest.approx(ng.value(net, SOFTMAX, x, y, l2=0.1), rel=tol.forward)
        assert info.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=tol.gradient)
        assert info.step_norm == pytest.approx(np.linalg.norm(d), rel=1e-4)
        assert info.solve.iterations <= info.solve.matvecs
        assert isinstance(info.solve.status, ng.Status)
        assert info.seconds >= info.solve.seconds >= 0
        if number == 0 or not momentum:
            assert info.momentum == 0.0  # there is no last step to add
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.loss = 0.0


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_momentum_minimises_the_quadratic_model(l2):
    """At the minimiser over (step, last step): M(d) - M(0) = g'd / 2, and slope 0 along both."""
    net, oracle, x, y, _ = PROBLEM.problem("float64")
    rough = ng.solvers.CG(max_iter=4, stopping="relative_progress")  # a solve far from exact
    opt = optimizer(net, momentum=True, l2=l2, solver=rough)
    last = None
    for _ in range(4):
        theta = net.params.copy()
        info = opt.step(x, y)
        assert info.accepted
        d = net.params - theta
        g = reference.gradient(oracle, SOFTMAX, theta, x, y, l2=l2)
        matrix = reference.fisher(oracle, SOFTMAX, theta, x, l2=l2, damping=info.damping)
        model = g @ d + 0.5 * d @ matrix @ d
        assert model == pytest.approx(0.5 * g @ d, rel=1e-8)
        if last is not None:
            slope = (g + matrix @ d) @ last
            assert abs(slope) <= 1e-8 * np.linalg.norm(g) * np.linalg.norm(last)
            assert info.momentum != 0.0
        last = d


def test_without_momentum_the_step_is_rescaled_or_whole():
    """d = alpha Delta with Delta from the solver: parallel to the damped natural gradient."""
    net, oracle, x, y, _ = PROBLEM.problem("float64")
    opt = optimizer(net, momentum=False, damping=ng.Tikhonov(0.3), solver=EXACT)
    theta = net.params.copy()
    info = opt.step(x, y)
    g = reference.gradient(oracle, SOFTMAX, theta, x, y)
    exact = np.linalg.solve(reference.fisher(oracle, SOFTMAX, theta, x, damping=0.3), -g)
    assert_close(net.params - theta, info.learning_rate * exact, 1e-8)
    # at the exact minimiser of the damped model the best factor is 1
    assert info.learning_rate == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("loss", [SQUARED, BERNOULLI, SOFTMAX])
def test_xor(loss, dtype):
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([0, 1, 1, 0])
    net = ng.MLP([2, 8, 2 if loss == SOFTMAX else 1], dtype=dtype, seed=1)
    opt = optimizer(net, loss)
    opt.fit(x, y, epochs=60)
    assert ng.value(net, loss, x, y) < 1e-3
    z = net(x)
    predicted = z.argmax(axis=1) if loss == SOFTMAX else z[:, 0] > (loss == SQUARED) * 0.5
    assert (predicted == y).all()


def test_trains_spirals_in_mini_batches(rng):
    x, y = spirals(rng)
    net = ng.MLP([2, 20, 20, 2], seed=0)
    history = optimizer(net, l2=1e-5).fit(x, y, epochs=40, batch_size=100)
    assert (net(x).argmax(axis=1) == y).mean() > 0.98
    assert history.epochs[-1].loss < 0.2 * history.epochs[0].loss


def test_trains_an_autoencoder(rng):
    code = rng.standard_normal((200, 2))
    x = 1.0 / (1.0 + np.exp(-2.0 * code @ rng.standard_normal((2, 12))))
    net = ng.MLP([12, 16, 2, 16, 12], ["tanh", "identity", "tanh"], seed=0)
    opt = optimizer(net, BERNOULLI)
    before = ng.value(net, BERNOULLI, x, x)
    opt.fit(x, x, epochs=40)
    entropy = -(x * np.log(x) + (1 - x) * np.log(1 - x)).sum(axis=1).mean()  # the least possible
    assert ng.value(net, BERNOULLI, x, x) - entropy < 0.05 * (before - entropy)


# ------------------------------------------------------------------------------------------------
# Acceptance


def overshooting(loss_kind):
    """A net, its data and a damping at which the full step must fail."""
    if loss_kind == "larger":
        # z = sin(w) near its maximum: slope 0.05, so the Gauss-Newton step overshoots by periods
        net = ng.MLP([1, 1], output_activation="sin", bias=False, dtype="float64")
        net.params[:] = math.pi / 2 - 0.05
        return net, np.array([[0.5]]), 1e-9
    # z = w1 w2 w3: slope 1e-14, step 3e13, and the product of three such weights overflows float32
    net = ng.MLP([1, 1, 1, 1], "identity", bias=False, dtype="float32")
    net.params[:] = 1e-7
    return net, np.array([[1.0]]), 1e-35


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("kind", ["larger", "non-finite"])
def test_bad_step_is_rejected(kind, momentum):
    net, y, damping = overshooting(kind)
    policy = ng.LevenbergMarquardt(damping, factor=0.5, minimum=1e-37)
    opt = optimizer(net, SQUARED, damping=policy, momentum=momentum)
    before = net.params.copy()
    info = opt.step([[1.0]], y)
    assert not info.accepted
    assert same_bits(net.params, before)
    assert info.damping == damping
    assert opt.damping >= 2.0 * damping * (1 - 1e-12)
    assert (kind == "larger") == math.isfinite(info.new_loss)
    assert np.isfinite(info.loss)


def test_recovers_after_rejected_steps():
    net, y, damping = overshooting("larger")
    opt = optimizer(net, SQUARED, damping=ng.LevenbergMarquardt(damping, factor=0.1, minimum=1e-12))
    infos = [opt.step([[1.0]], y) for _ in range(40)]
    losses = [info.new_loss for info in infos if info.accepted]
    assert not infos[0].accepted
    assert infos[-1].new_loss < 1e-6
    assert losses == sorted(losses, reverse=True)


def test_damping_limit_ends_fit():
    """Every step overshoots, and the damping may not grow far enough to stop that."""
    net, y, damping = overshooting("larger")
    policy = ng.LevenbergMarquardt(damping, factor=0.5, minimum=1e-12, maximum=2e-9)
    before = net.params.copy()
    history = optimizer(net, SQUARED, damping=policy).fit([[1.0]], y, epochs=50)
    assert history.stop_reason == "damping_limit"
    assert len(history.steps) < 50
    assert not any(info.accepted for info in history.steps)
    assert same_bits(net.params, before)


def test_bad_data_leave_everything_as_it_was():
    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net)
    opt.step(problem.x, problem.y)
    before, damping = problem.net.params.copy(), opt.damping
    x = problem.x.copy()
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"X has NaN or Inf.* at row 3, column 1"):
        opt.step(x, problem.y)
    assert same_bits(problem.net.params, before)
    assert opt.damping == damping
    assert opt.step(problem.x, problem.y).accepted


# ------------------------------------------------------------------------------------------------
# fit


def test_history_of_mini_batches():
    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net)
    held_out = (problem.x[:10] * 1.1, problem.y[:10])
    history = opt.fit(problem.x, problem.y, epochs=3, batch_size=20, validation=held_out)
    assert history.stop_reason == "epochs"
    assert len(history.steps) == 3 * 3  # 50 cases: 20 + 20 + 10
    numbers = [info.step for info in history.steps]
    assert numbers == list(range(numbers[0], numbers[0] + 9))
    for number, epoch in enumerate(history.epochs):
        steps = history.steps[3 * number : 3 * number + 3]
        assert epoch.loss == pytest.approx(np.mean([info.loss for info in steps]))
        assert epoch.seconds >= 0
    epochs = [epoch.epoch for epoch in history.epochs]
    assert epochs == list(range(epochs[0], epochs[0] + 3))
    final = ng.value(problem.net, SOFTMAX, *held_out)
    assert history.epochs[-1].validation_loss == pytest.approx(final, rel=1e-12)
    assert history.seconds > 0


def test_full_batch_fit_is_repeated_steps():
    problem, other = PROBLEM.problem("float64"), PROBLEM.problem("float64")
    history = optimizer(problem.net).fit(problem.x, problem.y, epochs=4)
    opt = optimizer(other.net)
    infos = [opt.step(problem.x, problem.y) for _ in range(4)]
    losses = [info.loss for info in history.steps]
    assert losses == pytest.approx([info.loss for info in infos], rel=1e-9)
    assert history.epochs[0].validation_loss is None
    assert_close(problem.net.params, other.net.params, 1e-7)


def test_every_case_is_used_once_an_epoch():
    """Weights mark the cases: mini-batches of an epoch partition the data."""
    x = np.arange(10.0)[:, None]
    net = ng.MLP([1, 1], init="zeros", dtype="float64")
    # squared error of a zero net is y^2 / 2 as long as damping freezes it
    opt = optimizer(net, SQUARED, damping=ng.Tikhonov(1e12), momentum=False)
    history = opt.fit(x, 2.0 ** np.arange(-3.0, 7.0), epochs=2, batch_size=3)
    total = 0.5 * (4.0 ** np.arange(-3.0, 7.0)).sum()
    sizes = [3, 3, 3, 1]
    for epoch in range(2):
        losses = [info.loss for info in history.steps[4 * epoch : 4 * epoch + 4]]
        assert np.dot(losses, sizes) == pytest.approx(total, rel=1e-5)
    assert history.steps[0].loss != history.steps[4].loss  # drawn anew


def test_sample_weight_follows_its_cases():
    """Cases of weight 0 have wild targets; no mini-batch may see them."""
    problem = Case("3-4-1-weights", (3, 4, 1), SQUARED, n=40).problem("float64")
    weight = np.where(np.arange(40) % 2, 1.0, 0.0)
    y = np.where(weight[:, None] > 0, problem.y, 1e6)
    history = optimizer(problem.net, SQUARED).fit(
        problem.x, y, epochs=2, batch_size=10, sample_weight=weight
    )
    assert max(info.loss for info in history.steps) < 100.0


def test_same_seed_same_bits():
    def train(seed):
        problem = PROBLEM.problem("float32")
        optimizer(problem.net, seed=seed).fit(problem.x, problem.y, epochs=2, batch_size=16)
        return problem.net.params

    assert same_bits(train(5), train(5))
    assert not same_bits(train(5), train(6))


def test_callbacks_stop():
    problem = PROBLEM.problem("float64")
    seen = []
    history = optimizer(problem.net).fit(
        problem.x,
        problem.y,
        epochs=50,
        batch_size=25,
        callbacks=[seen.append, lambda info: np.bool_(len(seen) == 5)],
    )
    assert history.stop_reason == "callback"
    assert [context.info for context in seen] == history.steps
    assert len(seen) == 5


def test_time_limit_stops():
    problem = PROBLEM.problem("float64")
    history = optimizer(problem.net).fit(problem.x, problem.y, epochs=10**6, time_limit=0.2)
    assert history.stop_reason == "time_limit"
    assert 1 <= len(history.steps) < 10**6


def test_progress_without_tqdm(monkeypatch):
    problem = PROBLEM.problem("float64")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    before = problem.net.params.copy()
    with pytest.raises(ImportError, match=r"tqdm.*natgrad.fast\[progress\]"):
        optimizer(problem.net).fit(problem.x, problem.y, progress=True)
    assert same_bits(problem.net.params, before)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")
    problem = PROBLEM.problem("float64")
    history = optimizer(problem.net).fit(problem.x, problem.y, epochs=2, progress=True)
    assert len(history.epochs) == 2
    assert "2/2" in capsys.readouterr().err


INTERRUPT = """
    import os, signal, threading
    import numpy as np, natgrad_fast as ng
    rng = np.random.default_rng(0)
    net = ng.MLP([100, 300, 300, 10], seed=0)
    x, y = rng.standard_normal((2000, 100)), rng.integers(0, 10, 2000)
    opt = ng.NaturalGradient(net, "softmax_cross_entropy", damping=ng.Tikhonov(1.0))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    history = opt.fit(x, y, epochs=10_000, batch_size=500)
    assert history.stop_reason == "interrupted", history.stop_reason
    assert np.isfinite(net.params).all()
    assert np.isfinite(ng.value(net, "softmax_cross_entropy", x, y))
"""


def test_ctrl_c_ends_fit():
    run_python(INTERRUPT)
