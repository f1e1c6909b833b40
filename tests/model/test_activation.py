"""Activations against extended precision, over the whole range of arguments."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import same_bits

SMOOTH = ["tanh", "logistic", "elu", "softplus", "gelu", "silu", "sin"]
# Units in the last place: double a sum of roundings (division, exponential, product), float Eigen's
# rational approximations, whose maker says "a couple".
ULP = {"float32": 6, "float64": 3}
# Below these values products with a factor below the smallest normal number have lost bits:
# Eigen's float exponential stops at 3e-39, times 104 in silu; 746 is the last s with e^-s > 0.
FLOOR = {"float32": 104 * 3e-39, "float64": 746 * 5e-324}


def normal_distribution(s):
    """Phi in extended precision: a series of positive terms, a continued fraction in the tails."""
    t = np.abs(s)
    density = np.exp(-t * t / 2) / np.sqrt(2 * np.arctan(np.longdouble(1)) * 4)
    near, far = np.minimum(t, 3), np.maximum(t, 3)
    term, total = near.copy(), near.copy()
    for k in range(1, 60):  # sum of t^(2 k + 1) / (1 3 5 .. (2 k + 1))
        term = term * near * near / (2 * k + 1)
        total += term
    fraction = far
    for k in range(300, 0, -1):  # t + 1 / (t + 2 / (t + 3 / ..
        fraction = far + k / fraction
    tail = np.where(t < 3, 0.5 - density * total, density / fraction)
    return np.where(s > 0, 1 - tail, tail)


def exact(name, s):
    e = np.exp(-np.abs(s))
    if name == "tanh":
        return np.tanh(s)
    if name == "elu":
        return np.where(s > 0, s, np.expm1(np.minimum(s, 0)))
    if name == "softplus":
        return np.maximum(s, 0) + np.log1p(e)
    if name == "gelu":
        return s * normal_distribution(s)
    if name == "sin":
        return np.sin(s)
    p = np.where(s > 0, 1, e) / (1 + e)
    return p if name == "logistic" else s * p


def arguments(dtype):
    """Tiny to huge, both signs, dense where functions bend, multiples of pi / 2."""
    info = np.finfo(dtype)
    size = np.concatenate(
        [
            [info.smallest_subnormal, info.tiny],
            np.geomspace(float(info.tiny), float(info.max) / 2, 1500),
            np.geomspace(1e-9, 800.0, 3000),
            np.linspace(0.0, 45.0, 6001),
            np.arange(1, 400000, 797) * (np.pi / 2),
        ]
    ).astype(dtype)
    return np.concatenate([size, -size])


def one_unit(name, dtype):
    net = ng.MLP([1, 1], output_activation=name, dtype=dtype)
    net.params[:] = [1.0, 0.0]  # z = phi(x), dz/dbias = phi'(x)
    return net


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 2e-19, reason="needs an extended long double")
@pytest.mark.parametrize("name", SMOOTH)
def test_values_in_units_of_the_last_place(name, dtype, tol):
    s = arguments(dtype)
    want = exact(name, s.astype(np.longdouble))
    got = one_unit(name, dtype)(s[:, None])[:, 0]
    unit = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
    error = np.abs(got - want)
    # gelu: three more, from the sum of 25 terms in the tail (5.2 is the largest seen)
    allowed = (ULP[dtype] + 3 * (name == "gelu")) * unit + FLOOR[dtype]
    if dtype == "float32" and name in ("logistic", "silu"):
        # Eigen's float logistic is 1/2 + a rational function down to -9: accurate relative to 1
        allowed = allowed + 2 * tol.eps * (np.minimum(np.abs(s), 9) if name == "silu" else 1)
    bad = ~(error <= allowed)
    assert not bad.any(), (s[bad][:5], got[bad][:5], (error / unit)[bad][:5])


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_over_the_whole_range(name, dtype, tol):
    s = arguments(dtype)
    s = s[np.abs(s) < 1e4]  # beyond, the oracle's own exponentials overflow
    slope = one_unit(name, dtype).jvp(s[:, None], np.array([0.0, 1.0]))[:, 0]
    want = reference.ACTIVATIONS[name].d1(s.astype(float))
    # from the value, relative to 1; silu' = p (1 + s (1 - p)) has |s| times the rounding error of p
    # until 1 - p is 0, |s| < 37 in double
    assert (np.abs(slope - want) <= 25 * tol.eps).all()


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_bits_do_not_depend_on_the_place(name, dtype, rng):
    net = one_unit(name, dtype)
    s = arguments(dtype)[::7, None]
    order = rng.permutation(len(s))
    ones = np.array([0.0, 1.0])
    assert same_bits(net(s)[order], net(s[order]))
    assert same_bits(net.jvp(s, ones)[order], net.jvp(s[order], ones))
    assert same_bits(net(s)[:37], net(s[:37]))


@pytest.mark.parametrize("name", SMOOTH)
def test_limits_and_nan(name, dtype):
    lowest = {"elu": -1.0, "tanh": -1.0, "sin": np.nan}.get(name, 0.0)
    highest = {"tanh": 1.0, "logistic": 1.0, "sin": np.nan}.get(name, np.inf)
    net = ng.MLP([2, 2, 1], "identity", output_activation=name, dtype=dtype)
    net.params[:] = [4.0, 0.0, 0.0, 4.0, 0.0, 0.0, 1.0, 1.0, 0.0]  # 4 x_1 + 4 x_2
    most = np.finfo(dtype).max  # inputs have to be finite: overflow makes Inf, Inf - Inf NaN
    x = np.array([[-most, 0.0], [most, 0.0], [most, -most], [0.25, 0.0]], dtype)
    z = net(x)[:, 0]
    assert z[1] == highest or np.isnan([z[1], highest]).all()
    assert np.isnan(z[2])
    assert np.isfinite(z[3])
    assert abs(z[0] - lowest) <= FLOOR[dtype] or np.isnan([z[0], lowest]).all()
