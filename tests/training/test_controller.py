"""The controller of stochastic steps: its signals on problems where they are known, its rules, and
training that falls without bouncing."""

import math
from dataclasses import replace

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, same_bits
from natgrad_fast.training.controller import Controller, Guard


def blobs(seed, n=600, classes=3, spread=1.3):
    """Overlapping clouds: what can be learned is less than the noise of small batches."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = 2.0 * rng.standard_normal((classes, 5))
    return (centres[labels] + spread * rng.standard_normal((n, 5))).astype("float32"), labels


def train(seed, batch_size, epochs, **options):
    x, y = blobs(seed)
    net = ng.MLP([5, 16, 3], dtype="float32", seed=seed)
    opt = ng.NaturalGradient(net, SOFTMAX, l2=1e-3, seed=seed)
    losses = []
    history = opt.fit(
        x,
        y,
        epochs=epochs,
        batch_size=batch_size,
        callbacks=lambda c: (
            losses.append(ng.value(net, SOFTMAX, x, y, l2=1e-3)) if c.is_epoch_end else None
        ),
        **options,
    )
    return net, opt, history, np.array(losses)


# ------------------------------------------------------------------------------------------------
# The rules


def after(losses, guard=None):
    guard = Guard() if guard is None else guard
    for loss in losses:
        guard = guard.look(float(loss))
    return guard


def test_the_guard_knows_noise_from_a_rise():
    rng = np.random.default_rng(0)
    guard = after(1.0 + 0.1 * rng.standard_normal(30))
    assert guard.is_best
    guard = guard.kept()
    assert guard.best == pytest.approx(1.0, abs=0.15)
    assert guard.best_deviation == pytest.approx(0.1, abs=0.06)
    for loss in 1.0 + 0.1 * rng.standard_normal(200):
        guard = guard.look(loss)
        assert not guard.is_bad(loss)
    assert guard.look(100.0).is_bad(100.0)  # at once
    assert guard.look(math.nan).is_bad(math.nan)
    assert after([2.2] * 12, guard).is_bad(2.2)  # within a few steps


def test_a_blow_up_before_anything_is_known():
    for losses, rise, bad in (
        ([2.5], 2.5 * 12.0, True),
        ([2.5, 2.0, 4.0], 2.5 * 10.0, False),
        ([-1.0, -2.0], 8.0, False),
        ([-1.0, -2.0], 10.0, True),
        ([], 1e30, False),  # the first loss is what it is
        ([0.0], 1e-9, True),
    ):
        guard = after(losses)
        assert guard.look(rise).is_bad(rise) == bad, (losses, rise)


def test_a_net_that_blows_up_in_the_first_steps_comes_back():
    """With units that do not saturate a step that is too long can cost any factor."""
    rng = np.random.default_rng(0)
    x = 25.0 * rng.standard_normal((400, 5)).astype("float32")
    y = (np.abs(x[:, 0]) > 20.0).astype(int)
    for seed in range(3):
        net = ng.MLP([5, 32, 2], "relu", seed=seed)
        first = ng.value(net, SOFTMAX, x, y)
        history = ng.NaturalGradient(net, SOFTMAX, seed=seed).fit(x, y, epochs=10, batch_size=40)
        assert history.stop_reason == "epochs"
        assert ng.value(net, SOFTMAX, x, y) < 0.3 * first
        assert max(info.loss for info in history.steps[20:]) < 2.0 * first


def test_outputs_beyond_the_range_of_squares():
    """Moments of the outputs that are not finite are a retreat, no error of `fit`."""
    x = 1e5 * np.random.default_rng(0).standard_normal((200, 5)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    for scale in (1.0, 1e20, 1e32):
        net = ng.MLP([5, 32, 2], "relu", seed=0)
        first = ng.value(net, SOFTMAX, np.float32(scale) * x, y)
        with pytest.warns(UserWarning, match="far from unit scale"):
            ng.NaturalGradient(net, SOFTMAX).fit(np.float32(scale) * x, y, batch_size=20)
        assert not ng.value(net, SOFTMAX, np.float32(scale) * x, y) > first
        assert np.isfinite(net.params).all()


def test_a_single_case_has_no_share_of_signal():
    _, opt, history, _ = train(0, 1, 1, time_limit=0.5)
    assert all(np.isfinite(info.loss) for info in history.steps)
    shares = [info.controller.r for info in history.steps]
    assert shares[0] == pytest.approx(1.0 / 600.0, rel=1e-12)
    assert np.isfinite(opt.net.params).all()


def test_a_trend_is_no_noise():
    """Ten times less in every step, then steady: no deviation of the early size."""
    guard = after([*np.logspace(3, -2, 6), *([0.01] * 20)])
    assert guard.deviation < 0.01
    assert after([0.01] * 50, guard).deviation == 0.0
    assert after(np.linspace(1.0, 0.9, 30)).deviation < 0.01


def test_after_a_retreat_more_is_borne():
    guard = after(1.0 + 0.1 * np.random.default_rng(0).standard_normal(30)).kept()
    again = guard.restored()
    assert again.best_deviation == 2.0 * guard.best_deviation
    assert again.mean == guard.best
    assert not again.is_bad(guard.best + 9.0 * again.best_deviation)


def test_modes():
    early = Controller(step=5, u=0.5, u_seen=5, r=0.1)
    assert early.with_mode().is_exact
    noisy = replace(early, step=20, r=0.5).with_mode()
    assert not noisy.is_exact
    assert (noisy.c, noisy.n) == (2.0, 0)
    assert replace(early, step=20, r=0.9).with_mode().is_exact  # noise does not prevail
    assert not replace(early, step=20, r=0.5, u=-0.2).with_mode().is_exact
    back = replace(noisy, n=30, r=0.95).with_mode()
    assert back.is_exact
    assert back.c == 1.0


def test_exact_steps_take_the_share_of_signal():
    control = Controller(r=0.4)
    assert control.exact_factor == 0.4
    assert replace(control, c=0.5).exact_factor == 0.2
    assert replace(control, r=math.nan).exact_factor == 1.0
    assert replace(control, r=-3.0).exact_factor == replace(control, r=0.0).exact_factor == 0.05
    assert replace(control, r=1.5, c=3.0).exact_factor == 1.0


def test_momentum_grows_and_the_rate_is_bounded():
    control = Controller(is_exact=False, c=1e6, log_rate=math.log(0.3))
    momenta = []
    for _ in range(500):
        control, rates = control.rates()
        momenta.append(rates.momentum)
        assert rates.rate <= 0.3 * (1.0 - 0.65 * rates.momentum) * (1 + 1e-12)
    assert momenta == sorted(momenta)
    assert momenta[0] < 0.55
    assert momenta[-1] == 0.95


def test_the_rate_follows_the_overshoot():
    def settled(u):
        control = Controller(is_exact=False, c=1.0, u=u, u_seen=9)
        for _ in range(10):
            control = control.stepped()
        return control.c

    assert settled(0.05) == pytest.approx(1.0)
    assert settled(0.5) < 0.7
    assert settled(-0.5) > 1.2
    control = Controller(is_exact=False, u=1.0, u_seen=9)
    for _ in range(2_000):
        control = control.stepped()
    assert control.c == Controller.LEAST_C  # noise alone does not anneal it to nothing


def test_states():
    control = Controller(step=7, u=0.25, r=0.5, guard=after([1.0, 2.0]))
    for wanted in (Controller(), control):
        again = Controller.of_state(wanted.state_dict(), "state")
        assert again.state_dict() == wanted.state_dict()
        assert str(again) == str(wanted)
    for name in control.state_dict():
        for wrong in ("x", 1j, ["a"], [0.0] * 99, 10**400):
            with pytest.raises(ValueError, match=name):
                Controller.of_state({**control.state_dict(), name: wrong}, "state")


# ------------------------------------------------------------------------------------------------
# The signals


def test_the_share_of_signal():
    """About 1 where a batch says what all data say, about m / N where it is noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4)).astype("float32")
    start = ng.MLP([4, 1], "identity", dtype="float32", seed=0)
    shares = {}
    for name, y in (
        ("signal", 10.0 * x @ np.ones((4, 1)) + 30.0),
        ("noise", start(x).astype(float) + rng.standard_normal((400, 1))),
    ):
        found = []
        for seed in range(8):
            opt = ng.NaturalGradient(start.copy(), SQUARED, seed=seed)
            history = opt.fit(x, y, batch_size=40)
            found.append(history.steps[0].controller.r)
        shares[name] = np.mean(found)
    assert shares["signal"] > 0.8
    assert abs(shares["noise"] - 0.1) < 0.3


def test_records():
    _, _, history, _ = train(0, 32, 12)
    for info in history.steps:
        assert info.batch_size in (32, 600 % 32)
        assert info.controller.mode in ("exact", "stochastic")
        assert info.controller.c > 0
        assert math.isnan(info.new_loss)
        assert math.isnan(info.reduction_ratio)
    assert history.steps[0].controller.mode == "exact"
    assert {info.controller.mode for info in history.steps} == {"exact", "stochastic"}
    arrays = history.to_dict()
    assert arrays["controller_restores"][-1] == history.steps[-1].controller.restores


# ------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_size", [16, 32, 128])
def test_small_batches_fall_without_bouncing(batch_size, seed):
    _, _, _, losses = train(seed, batch_size, 12)
    best = np.minimum.accumulate(losses)
    assert (losses[3:] <= 1.5 * best[3:]).all()
    full = ng.MLP([5, 16, 3], dtype="float32", seed=seed)
    x, y = blobs(seed)
    ng.NaturalGradient(full, SOFTMAX, l2=1e-3).fit(x, y, epochs=300, batch_size=None)
    bottom = ng.value(full, SOFTMAX, x, y, l2=1e-3)
    assert losses[-1] < 1.5 * bottom + 0.05


def test_a_blow_up_is_taken_back():
    """Parameters that somebody spoils: the loss of the next batches says so, and it retreats."""
    x, y = blobs(0)
    net = ng.MLP([5, 16, 3], dtype="float32", seed=0)
    opt = ng.NaturalGradient(net, SOFTMAX, l2=1e-3)

    def spoil(context):
        if context.step == 60:
            net.params[...] *= 30.0

    history = opt.fit(x, y, epochs=12, batch_size=32, callbacks=spoil)
    restored = [info.step for info in history.steps if info.controller.restored]
    assert restored
    assert restored[0] <= 63
    assert ng.value(net, SOFTMAX, x, y, l2=1e-3) < 2.0 * np.median(
        [info.loss for info in history.steps[30:60]]
    )


def test_same_seed_same_bits_for_any_number_of_threads():
    nets = []
    for threads in (1, 2, 3):
        x, y = blobs(1)
        net = ng.MLP([5, 16, 3], dtype="float32", seed=1)
        ng.NaturalGradient(net, SOFTMAX, seed=4, num_threads=threads).fit(
            x, y, epochs=3, batch_size=32
        )
        nets.append(net.params)
    assert same_bits(nets[0], nets[1])
    assert same_bits(nets[0], nets[2])


def test_a_resumed_run_has_the_bits_of_one_that_was_not():
    x, y = blobs(2)

    def start():
        net = ng.MLP([5, 16, 3], dtype="float32", seed=2)
        return net, ng.NaturalGradient(net, SOFTMAX, l2=1e-3, seed=3)

    net, opt = start()
    opt.fit(x, y, epochs=4, batch_size=32)
    state, params = opt.state_dict(), net.params.copy()
    opt.fit(x, y, epochs=3, batch_size=32)
    other, resumed = start()
    other.params[...] = params
    resumed.load_state_dict(state)
    resumed.fit(x, y, epochs=3, batch_size=32)
    assert same_bits(other.params, net.params)
    with pytest.raises(ValueError, match=r"controller.*c"):
        resumed.load_state_dict({**state, "controller": {**state["controller"], "c": "fast"}})


def test_a_step_that_fails_leaves_everything_as_it_was(monkeypatch):
    x, y = blobs(0)
    net = ng.MLP([5, 16, 3], dtype="float32", seed=0)
    opt = ng.NaturalGradient(net, SOFTMAX)
    last = {}

    def remember(_):
        last.update(state=opt.state_dict(), params=net.params.copy())

    def fail(*_):
        raise LookupError("mine")

    for name in ("_share", "_move", "_measure"):
        opt.fit(x, y, epochs=1, batch_size=50, callbacks=remember)
        with monkeypatch.context() as patch:
            patch.setattr("natgrad_fast.training.stochastic.StochasticSteps." + name, fail)
            with pytest.raises(LookupError, match="mine"):
                opt.fit(x, y, epochs=1, batch_size=50, callbacks=remember)
        assert same_bits(net.params, last["params"])
        state, now = last["state"], opt.state_dict()
        assert now["controller"] == state["controller"]
        for key in state["statistics"]:
            a, b = state["statistics"][key], now["statistics"][key]
            assert same_bits(a, b) if isinstance(a, np.ndarray) else a == b


def test_schedules_and_sizes():
    schedule = ng.BatchSchedule(20, factor=2.0, every=5, maximum=100)
    _, _, history, _ = train(0, schedule, 2)
    sizes = [info.batch_size for info in history.steps]
    # of 600 cases 60 are left for the last batch of the first epoch
    assert sizes == [*[20] * 5, *[40] * 5, *[80] * 3, 60, 80, *[100] * 5, 20]
    _, _, history, _ = train(0, "auto", 2)
    assert {info.batch_size for info in history.steps} == {600}  # cheap: all at once
    assert history.steps[0].controller is None
    for wrong in (0, -1, 2.5, "large", np.nan):
        with pytest.raises((ValueError, TypeError), match="batch_size"):
            train(0, wrong, 1)
    for wrong in ({"initial": 0}, {"initial": 5, "factor": 0.5}, {"initial": 5, "maximum": 4}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            ng.BatchSchedule(**wrong)


def test_batches_grow_where_there_is_little_signal():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6_000, 60)).astype("float32")
    y = x[:, :1] + 2.0 * rng.standard_normal((6_000, 1)).astype("float32")
    net = ng.MLP([60, 300, 300, 1], dtype="float32", seed=0)
    history = ng.NaturalGradient(net, SQUARED, l2=1e-4).fit(x, y, epochs=17)
    sizes = [info.batch_size for info in history.steps]
    assert sizes[0] == 500
    assert np.median(sizes[len(sizes) // 2 :]) >= 700  # by about the root of 2, not the last alone
