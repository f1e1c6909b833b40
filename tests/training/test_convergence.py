"""The end of training: converged, not finite any more, and going on with other data."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, same_bits

CONVERGED = {"objective_tol", "gradient_tol", "step_tol"}


def exact_fit(seed, dtype="float32"):
    """A net of identity units, data that it fits exactly, and other data of the kind."""
    rng = np.random.default_rng(seed)
    net = ng.MLP([2, 8, 1], "identity", dtype=dtype, seed=seed)
    x = rng.standard_normal((50, 2)).astype(dtype)
    return net, x, x @ rng.standard_normal((2, 1)), x @ rng.standard_normal((2, 1)) + 1.0


def regression(seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 3)).astype(dtype)
    y = np.sin(x @ rng.standard_normal((3, 1))) + 0.1 * rng.standard_normal((60, 1))
    return ng.MLP([3, 6, 1], dtype=dtype, seed=seed), x, y


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_learns_again_when_the_data_change(seed, dtype):
    """After a hundred steps at the bottom as well as an optimizer that has just been made."""
    net, x, y, other = exact_fit(seed, dtype)
    opt = ng.NaturalGradient(net, SQUARED)
    for _ in range(100):
        info = opt.step(x, y)
        assert opt.damping <= 1e3, info
    bottom = ng.value(net, SQUARED, x, y)
    fresh_net = net.copy()
    fresh = ng.NaturalGradient(fresh_net, SQUARED)
    for _ in range(15):
        opt.step(x, other)
        fresh.step(x, other)
    found, wanted = (ng.value(n, SQUARED, x, other) for n in (net, fresh_net))
    assert found <= 10.0 * wanted + 100.0 * bottom + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_learns_again_after_saturated_probabilities(seed, dtype):
    rng = np.random.default_rng(seed)
    net = ng.MLP([2, 10, 2], dtype=dtype, seed=seed)
    x = rng.standard_normal((40, 2)).astype(dtype)
    labels = (x[:, 0] > 0).astype(int)
    opt = ng.NaturalGradient(net, SOFTMAX)
    for _ in range(150):
        opt.step(x, labels)
    other = (x[:, 1] > 0).astype(int)
    before = ng.value(net, SOFTMAX, x, other)
    for _ in range(60):
        opt.step(x, other)
    assert ng.value(net, SOFTMAX, x, other) < 0.2 * before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_stops_at_convergence(seed, dtype):
    net, x, y = regression(seed, dtype)
    history = ng.NaturalGradient(net, SQUARED, l2=1e-3).fit(x, y, epochs=5_000)
    assert history.stop_reason in CONVERGED
    assert len(history.steps) < 2_000
    loss = ng.value(net, SQUARED, x, y, l2=1e-3)
    longer = ng.NaturalGradient(net, SQUARED, l2=1e-3)
    longer.fit(x, y, epochs=300, ftol=None, gtol=None, xtol=None)
    # ten accepted steps brought less than 10 eps; three hundred bring a small multiple of that
    eps = float(np.finfo(dtype).eps)
    assert loss - ng.value(net, SQUARED, x, y, l2=1e-3) <= 1e4 * eps * loss


def test_an_exact_fit_stops():
    for seed in range(3):
        net, x, y, _ = exact_fit(seed)
        history = ng.NaturalGradient(net, SQUARED).fit(x, y, epochs=1_000)
        assert history.stop_reason in CONVERGED
        assert len(history.steps) < 300
        assert ng.value(net, SQUARED, x, y) < 1e-10


@pytest.mark.parametrize(
    ("tolerance", "reason"),
    [
        ({"ftol": 1e-3, "gtol": None, "xtol": None}, "objective_tol"),
        ({"ftol": None, "gtol": 1e-2, "xtol": None}, "gradient_tol"),
        ({"ftol": None, "gtol": None, "xtol": 1e-2}, "step_tol"),
    ],
)
def test_each_tolerance(tolerance, reason):
    net, x, y = regression(0)
    history = ng.NaturalGradient(net, SQUARED, l2=1e-3).fit(x, y, epochs=3_000, **tolerance)
    assert history.stop_reason == reason
    last = history.steps[-1]
    if reason == "gradient_tol":
        assert last.gradient_norm <= 1e-2 * max(info.gradient_norm for info in history.steps)
    if reason == "step_tol":
        assert last.step_norm <= 1e-2 * np.linalg.norm(net.params)


def test_without_tolerances_all_epochs_are_done():
    net, x, y, _ = exact_fit(0)
    off = {"ftol": None, "gtol": None, "xtol": None}
    history = ng.NaturalGradient(net, SQUARED).fit(x, y, epochs=200, **off)
    assert history.stop_reason == "epochs"
    assert len(history.steps) == 200


@pytest.mark.parametrize("name", ["ftol", "gtol", "xtol"])
@pytest.mark.parametrize("wrong", [-1.0, np.nan, "tight", 1j])
def test_wrong_tolerances(name, wrong):
    net, x, y = regression(0)
    before = net.params.copy()
    with pytest.raises((ValueError, TypeError), match=name):
        ng.NaturalGradient(net, SQUARED).fit(x, y, **{name: wrong})
    assert same_bits(net.params, before)


@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_parameters_that_are_not_finite_end_fit_at_the_last_good_point(wrong, batch_size):
    net, x, y = regression(0)
    good = []

    def spoil(context):
        good.append(net.params.copy())
        if len(good) == 5:
            net.params[3] = wrong

    opt = ng.NaturalGradient(net, SQUARED)
    history = opt.fit(
        x,
        y,
        epochs=100,
        batch_size=batch_size,
        callbacks=spoil,
    )
    assert history.stop_reason == "non_finite"
    assert len(history.steps) == 5
    assert same_bits(net.params, good[4])
    assert opt.step(x, y).accepted


def test_an_objective_that_is_not_finite_ends_fit():
    net = ng.MLP([1, 1], "identity", bias=False, dtype="float32")
    net.params[:] = 1e30
    x, y = np.full((4, 1), 1e25, "float32"), np.zeros((4, 1))
    history = ng.NaturalGradient(net, SQUARED).fit(x, y, epochs=100)
    assert history.stop_reason == "non_finite"
    assert len(history.steps) == 3
    assert net.params[0] == np.float32(1e30)


def test_nothing_good_to_go_back_to():
    net, x, y = regression(0)
    net.params[:] = np.nan
    history = ng.NaturalGradient(net, SQUARED).fit(x, y, epochs=9)
    assert history.stop_reason == "non_finite"
    assert history.steps == []
    assert np.isnan(net.params).all()
