"""The average of the iterates of a fit, against the definition in float64."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SQUARED, assert_close, same_bits
from natgrad_fast.training.averaging import ParameterAverage

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 3))
Y = np.sin(X[:, :1]) + 0.1 * RNG.standard_normal((120, 1))
OTHER = X + 0.05, Y


def optimizer(dtype="float64", **options):
    return ng.NaturalGradient(ng.MLP([3, 6, 1], dtype=dtype, seed=0), SQUARED, **options)


def weights(decay, count):
    """Of the points after each step: equal, or falling by `decay`; their sum is 1."""
    w = np.ones(count) if decay is None else decay ** np.arange(count - 1.0, -1.0, -1.0)
    return w / w.sum()


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize(
    ("averaging", "decay"), [("polyak", None), ("exponential", 0.99), (0.6, 0.6)]
)
def test_the_average(averaging, decay, arrays, dtype):
    opt, plain, points = optimizer(dtype), optimizer(dtype), []
    batches = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 120, 20)]
    data = (X, Y) if arrays else (batches,)
    size = {"batch_size": 20} if arrays else {}
    history = opt.fit(
        *data,
        epochs=4,
        validation=OTHER,
        averaging=averaging,
        callbacks=lambda context: points.append(context.net.params.astype(np.float64)),
        **size,
    )
    for epoch, info in enumerate(history.epochs):
        count = 6 * (epoch + 1)
        average = weights(decay, count) @ np.array(points[:count])
        net = ng.MLP([3, 6, 1], dtype="float64")
        net.params = average
        # one rounding of the average to the net's dtype, and the objective's own
        assert info.averaged_validation_loss == pytest.approx(
            ng.value(net, SQUARED, *OTHER), rel=1e-12 if dtype == "float64" else 1e-5
        )
    assert history.averaged_params.dtype == opt.net.params.dtype
    # accumulated in float64: a rounding to float32 at the end is all
    assert_close(history.averaged_params, average, 1e-13 if dtype == "float64" else 1e-7)
    losses = history.to_dict()["averaged_validation_loss"]
    assert losses[5::6].tolist() == [e.averaged_validation_loss for e in history.epochs]
    assert np.isnan(losses).sum() == 20
    # the training itself does not know of it
    other = plain.fit(*data, epochs=4, **size)
    assert same_bits(plain.net.params, opt.net.params)
    assert other.averaged_params is None
    opt.net.params = history.averaged_params
    assert ng.value(opt.net, SQUARED, *OTHER) == history.epochs[-1].averaged_validation_loss


def test_exponential_weights_forget_nothing_of_their_sum():
    """A constant sequence has itself as average, from the first point on."""
    average = ParameterAverage(0.999)
    point = RNG.standard_normal(5)
    for count in range(1, 2000):
        average.include(point, count)
    assert_close(average.params(point), point, 1e-13)
    average.include(point + 1e9, 7)  # a step that is there already
    assert_close(average.params(point), point, 1e-13)


def test_small_changes_are_not_lost_in_float32():
    """10^5 points whose last places differ: a float32 sum would be off in the third digit."""
    point = np.float32([1.0, 1000.0])
    average, count = ParameterAverage(None), 20_000
    for k in range(1, count + 1):
        average.include(point + np.float32([0.0, k % 2]), k)
    assert_close(average.params(point), [1.0, 1000.5], 1e-7)


@pytest.mark.parametrize("full", [True, False])
def test_begins_anew_in_every_fit(full):
    opt = optimizer()
    opt.fit(X, Y, epochs=2, batch_size=None if full else 30, averaging="polyak")
    start = opt.net.params.copy()
    history = opt.fit(X, Y, epochs=1, batch_size=120, averaging="polyak")
    assert same_bits(history.averaged_params, opt.net.params)
    assert not same_bits(start, opt.net.params)
    assert "average" not in str(opt.state_dict().keys())


def test_rejected_steps_count_with_the_point_they_leave():
    opt, points = optimizer(damping=ng.Tikhonov(1e-9), momentum=False), []
    history = opt.fit(
        X, Y, epochs=12, averaging="polyak", callbacks=lambda c: points.append(c.net.params.copy())
    )
    assert_close(history.averaged_params, np.mean(points, axis=0), 1e-13)
    assert len(points) == len(history.steps)


def test_without_steps_or_validation():
    history = optimizer().fit(X, Y, epochs=0, averaging="polyak")
    assert history.averaged_params is None
    history = optimizer().fit(X, Y, epochs=2, averaging="polyak")
    assert history.averaged_params is not None
    assert history.epochs[-1].averaged_validation_loss is None
    assert "averaged_validation_loss" not in history.to_dict()


def test_an_interrupted_run_has_its_average():
    def batches():
        yield from [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 80, 20)]
        raise KeyboardInterrupt

    points = []
    history = optimizer().fit(
        batches(), averaging="polyak", callbacks=lambda c: points.append(c.net.params.copy())
    )
    assert history.stop_reason == "interrupted"
    assert_close(history.averaged_params, np.mean(points, axis=0), 1e-13)


@pytest.mark.parametrize("wrong", ["mean", 0.0, 1.0, -0.5, 2, float("nan")])
def test_wrong_values(wrong):
    opt = optimizer()
    with pytest.raises(ValueError, match="averaging"):
        opt.fit(X, Y, averaging=wrong)
    assert opt.last_info is None


@pytest.mark.parametrize("wrong", [True, [0.9], 1j])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match="averaging"):
        optimizer().fit(X, Y, averaging=wrong)
