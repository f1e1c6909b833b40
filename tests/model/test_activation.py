"""Activations and their two derivatives against extended precision, over the whole range."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits
from extended import HAS_EXTENDED, JETS, units, wide

SMOOTH = ["tanh", "logistic", "elu", "softplus", "gelu", "silu", "sin"]
# Units in the last place, of what cancels where something does. Sums of roundings: an exponential
# (1.1), a quotient, a few products; the normal distribution function is a sum of 25 terms.
ULP = 8
CASES = 256  # of one net; a power of two, by which curvature is divided without rounding

needs_extended = pytest.mark.skipif(not HAS_EXTENDED, reason="needs an extended long double")


def arguments(dtype, largest):
    """Tiny to `largest`, both signs, dense where functions bend, multiples of pi / 2."""
    info = np.finfo(dtype)
    size = np.concatenate(
        [
            [info.smallest_subnormal, info.tiny],
            np.geomspace(float(info.tiny), largest, 1500),
            np.geomspace(1e-9, 1e4, 3000),
            np.linspace(0.0, 12.0, 5000),
            np.linspace(12.0, 120.0, 2000),
            np.linspace(700.0, 760.0, 300),
            np.arange(1, 400000, 797) * (np.pi / 2),
        ]
    ).astype(dtype)
    size = size[size <= largest]
    # where gelu', silu', gelu'', silu'' cross zero
    near = np.array([0.751791524693564, 1.278464542761074, 2.0**0.5, 2.399357280520547], dtype)
    size = np.concatenate([size, *(near * factor for factor in 1 + info.eps * np.arange(-9, 9))])
    return np.concatenate([size, -size]).astype(dtype)


def one_unit(name, dtype):
    net = ng.MLP([1, 1], output_activation=name, dtype=dtype)
    net.params[:] = [1.0, 0.0]  # z = phi(x), dz/dbias = phi'(x)
    return net


def assert_units(got, want, size, dtype, s):
    error = units(got, want, size, dtype)
    bad = ~(error <= ULP)
    assert not bad.any(), (s[bad][:5], got[bad][:5], want[bad][:5], error[bad][:5])


@needs_extended
@pytest.mark.parametrize("name", JETS)
def test_values_in_units_of_the_last_place(name, dtype):
    s = arguments(dtype, float(np.finfo(dtype).max) / 2)
    want = JETS[name].value(wide(s))
    assert_units(one_unit(name, dtype)(s[:, None])[:, 0], want, want, dtype, s)


@needs_extended
@pytest.mark.parametrize("name", JETS)
def test_slopes_in_units_of_the_last_place(name, dtype):
    s = arguments(dtype, 1e4)
    slope = one_unit(name, dtype).jvp(s[:, None], np.array([0.0, 1.0]))[:, 0]
    jet, x = JETS[name], wide(s)
    want = jet.slope(x)
    size = np.abs(want) if jet.slope_size is None else jet.slope_size(x)
    assert_units(slope, want, size, dtype, s)


@needs_extended
@pytest.mark.parametrize("name", JETS)
def test_bends_in_units_of_the_last_place(name, dtype):
    """By the Hessian of (z - y)^2 / 2 in s, phi'^2 + (phi - y) phi'' with -y = 2^100 or 2^900."""
    s = arguments(dtype, 1e4)
    s = np.concatenate([s, np.zeros(-len(s) % CASES, dtype)])
    big = 2.0**100 if dtype == "float32" else 2.0**900
    net = ng.MLP([CASES, 1], output_activation=name, bias=False, dtype=dtype)
    x, y, ones = np.eye(CASES), np.full(CASES, -big), np.ones(CASES)
    found = []
    for some in s.reshape(-1, CASES):  # the weights, and what unit vectors make of them
        net.params = some
        found.append(CASES * wide(ng.Hessian(net, "squared_error", x, y) @ ones))
    jet, at = JETS[name], wide(s)
    want, square = jet.bend(at), jet.slope(at) ** 2
    size = np.abs(want) if jet.bend_size is None else jet.bend_size(at)
    bend = (np.concatenate(found) - square) / big
    # square is rounded with the rest: a part of 2^-100 of it
    slack = ULP * wide(np.finfo(dtype).eps) * square / big
    bend = want + np.sign(bend - want) * np.maximum(np.abs(bend - want) - slack, 0)
    assert_units(bend, want, size, dtype, s)


@pytest.mark.parametrize("name", JETS)
def test_bits_do_not_depend_on_the_place(name, dtype, rng):
    net = one_unit(name, dtype)
    s = arguments(dtype, float(np.finfo(dtype).max) / 2)[::7, None]
    order = rng.permutation(len(s))
    ones = np.array([0.0, 1.0])
    assert same_bits(net(s)[order], net(s[order]))
    assert same_bits(net.jvp(s, ones)[order], net.jvp(s[order], ones))
    assert same_bits(net(s)[:37], net(s[:37]))


@pytest.mark.parametrize("name", JETS)
def test_limits_and_nan(name, dtype):
    lowest = {"elu": -1.0, "tanh": -1.0, "sin": np.nan, "identity": -np.inf, "leaky_relu": -np.inf}
    highest = {"tanh": 1.0, "logistic": 1.0, "sin": np.nan}.get(name, np.inf)
    net = ng.MLP([2, 2, 1], "identity", output_activation=name, dtype=dtype)
    net.params[:] = [4.0, 0.0, 0.0, 4.0, 0.0, 0.0, 1.0, 1.0, 0.0]  # 4 x_1 + 4 x_2
    most = np.finfo(dtype).max  # inputs have to be finite: overflow makes Inf, Inf - Inf NaN
    x = np.array([[-most, 0.0], [most, 0.0], [most, -most], [0.25, 0.0]], dtype)
    z = net(x)[:, 0]
    assert z[1] == highest or np.isnan([z[1], highest]).all()
    assert np.isnan(z[2])
    assert np.isfinite(z[3])
    limit = lowest.get(name, 0.0)
    assert (
        z[0] == limit or abs(z[0] - limit) < np.finfo(dtype).tiny or np.isnan([z[0], limit]).all()
    )
    # derivatives have their limits too
    steep = one_unit(name, dtype)
    steep.params[0] = 4.0
    slopes = steep.jvp(np.array([[-most], [most]]), np.array([0.0, 1.0]))[:, 0]
    low, high = {
        "identity": (1.0, 1.0),
        "leaky_relu": (float(np.dtype(dtype).type(0.01)), 1.0),
        "tanh": (0.0, 0.0),
        "logistic": (0.0, 0.0),
        "sin": (np.nan, np.nan),
    }.get(name, (0.0, 1.0))
    assert np.array_equal(slopes, [low, high], equal_nan=True)
