"""Activations and losses in extended precision (numpy's long double), for bounds in last places.

Formulas are chosen so that nothing cancels that need not; where terms of opposite sign do cancel,
`size` is the larger one of them, in whose last places an error may be counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HAS_EXTENDED = np.finfo(np.longdouble).eps < 2e-19


def wide(a):
    return np.asarray(a).astype(np.longdouble)


def units(got, want, size, dtype):
    """Error in units in the last place of `size` >= |want|; 0 below the smallest normal number."""
    info = np.finfo(dtype)
    most = wide(info.max)
    got, want, size = wide(got), wide(want), np.minimum(np.abs(wide(size)), most / 2)
    overflow = np.abs(want) > most
    assert (np.abs(got[overflow]) >= most * (1 - 8 * wide(info.eps))).all()
    assert (np.sign(got[overflow]) == np.sign(want[overflow])).all()
    error = np.where(overflow, 0, np.abs(got - np.where(overflow, 0, want)))
    error = np.where(error < wide(info.tiny), 0, error)
    return error / np.spacing(np.maximum(size, info.tiny).astype(dtype)).astype(np.longdouble)


# ------------------------------------------------------------------------------------------------
# Activations


@dataclass(frozen=True)
class Jet:
    """phi, phi', phi'', and the sizes of what cancels in phi' and phi''."""

    value: Callable
    slope: Callable
    bend: Callable
    slope_size: Callable | None = None
    bend_size: Callable | None = None


def _decay(s):
    return np.exp(-np.abs(s))


def _logistic(s):
    e = _decay(s)
    return np.where(s > 0, 1, e) / (1 + e)


def _q(s):
    """p (1 - p), p = logistic(s)."""
    e = _decay(s)
    return e / (1 + e) ** 2


def _half_tanh(s):
    """tanh(s / 2) = 2 p - 1."""
    return np.sign(s) * -np.expm1(-np.abs(s)) / (1 + _decay(s))


def _tanh_slope(s):
    return 4 * _q(2 * s)


def _root_two_pi():
    return np.sqrt(8 * np.arctan(np.longdouble(1)))


def _density(s):
    return np.exp(-s * s / 2) / _root_two_pi()


def normal_tail(t):
    """Phi(-t), t >= 0: a series of positive terms, a continued fraction in the tail."""
    near, far = np.minimum(t, 3), np.maximum(t, 3)
    term, total = near.copy(), near.copy()
    for k in range(1, 60):  # sum of t^(2 k + 1) / (1 3 5 .. (2 k + 1))
        term = term * near * near / (2 * k + 1)
        total += term
    fraction = far
    for k in range(300, 0, -1):  # t + 1 / (t + 2 / (t + 3 / ..
        fraction = far + k / fraction
    return np.where(t < 3, wide(0.5) - _density(t) * total, _density(t) / fraction)


def _normal(s):
    tail = normal_tail(np.abs(s))
    return np.where(s > 0, 1 - tail, tail)


def _two_minus_square(s):
    """2 - s^2, with sqrt(2) to twice the digits of a double, in two parts."""
    high, low = wide(2.0**0.5), np.longdouble("-9.667293313452913451e-17")
    t = np.abs(s)
    return ((high - t) + low) * (high + t)


def _gelu_slope(s):
    t = np.abs(s)
    left = normal_tail(t) - t * _density(t)
    return np.where(s > 0, 1 - left, left)


JETS = {
    "identity": Jet(lambda s: s, np.ones_like, np.zeros_like),
    "tanh": Jet(np.tanh, _tanh_slope, lambda s: -2 * np.tanh(s) * _tanh_slope(s)),
    "logistic": Jet(_logistic, _q, lambda s: -_q(s) * _half_tanh(s)),
    "relu": Jet(lambda s: np.maximum(s, 0), lambda s: wide(s > 0), np.zeros_like),
    "leaky_relu": Jet(
        lambda s: np.where(s > 0, s, s / 100),
        lambda s: np.where(s > 0, 1, wide(1) / 100),
        np.zeros_like,
    ),
    "elu": Jet(
        lambda s: np.where(s > 0, s, np.expm1(np.minimum(s, 0))),
        lambda s: np.exp(np.minimum(s, 0)),
        lambda s: np.where(s > 0, 0, np.exp(np.minimum(s, 0))),
    ),
    "softplus": Jet(lambda s: np.maximum(s, 0) + np.log1p(_decay(s)), _logistic, _q),
    "gelu": Jet(
        lambda s: s * _normal(s),
        _gelu_slope,
        lambda s: _two_minus_square(s) * _density(s),
        slope_size=lambda s: np.maximum(_normal(s), np.abs(s) * _density(s)),
    ),
    "silu": Jet(
        lambda s: s * _logistic(s),
        lambda s: _logistic(s) * (1 + s * _logistic(-s)),
        lambda s: _q(s) * (2 - s * _half_tanh(s)),
        slope_size=lambda s: np.maximum(_logistic(s), np.abs(s) * _q(s)),
        bend_size=lambda s: _q(s) * np.maximum(2, np.abs(s)),
    ),
    "sin": Jet(np.sin, np.cos, lambda s: -np.sin(s)),
}

# ------------------------------------------------------------------------------------------------
# Losses, of z and y (N, C) or (N, num_targets): elements of their gradients and diagonals


@dataclass(frozen=True)
class Law:
    """Functions of (z, y); each gives the quantity and the size of what cancels in it."""

    value: Callable  # (N,)
    gradient: Callable  # (N, C)
    hessian: Callable  # its diagonal (N, C)
    fisher: Callable  # likewise
    mean: Callable  # (N, num_targets)


def both(a):
    return a, a


def _bernoulli_parts(z, y):
    """How wrong y is about the sign of z, and the smaller one of p and 1 - p."""
    e = _decay(z)
    return np.where(z > 0, 1 - y, y), e / (1 + e)


def _bernoulli_value(z, y):
    wrong, _ = _bernoulli_parts(z, y)
    return both((wrong * np.abs(z) + np.log1p(_decay(z))).sum(axis=1))


def _bernoulli_gradient(z, y):
    wrong, small = _bernoulli_parts(z, y)
    return np.where(z > 0, wrong - small, small - wrong), np.maximum(wrong, small)


def _softmax_parts(z):
    """e^(z - top), whether it is the top (the first of several), sum of the others."""
    place = z.argmax(axis=1)[:, None]
    at_top = np.arange(z.shape[1]) == place
    e = np.exp(z - np.take_along_axis(z, place, axis=1))
    return e, at_top, np.where(at_top, 0, e).sum(axis=1, keepdims=True)


def _softmax_value(z, y):
    _, _, rest = _softmax_parts(z)
    return both((y * (z.max(axis=1, keepdims=True) - z + np.log1p(rest))).sum(axis=1))


def _softmax_gradient(z, y):
    e, at_top, rest = _softmax_parts(z)
    p, others = e / (1 + rest), rest / (1 + rest)
    gradient = np.where(at_top, (1 - y) - others, p - y)
    return gradient, np.where(at_top, np.maximum(1 - y, others), np.maximum(p, y))


def _softmax_variance(z, y):
    e, at_top, rest = _softmax_parts(z)
    p = e / (1 + rest)
    others = np.where(at_top, rest, 1 + rest - e) / (1 + rest)
    return both(p * others)


def _poisson_value(z, y):
    return (np.exp(z) - y * z).sum(axis=1), np.maximum(np.exp(z), np.abs(y * z)).sum(axis=1)


def student_t(df, scale):
    df, scale = wide(df), wide(scale)

    def hessian(z, y):
        square = (y - z) ** 2 / (df * scale**2)
        size = (df + 1) / (df * scale**2) / (1 + square)
        return size * (1 - square) / (1 + square), size

    return Law(
        lambda z, y: both(((df + 1) / 2 * np.log1p((y - z) ** 2 / (df * scale**2))).sum(axis=1)),
        lambda z, y: both((df + 1) * (z - y) / (df * scale**2 + (y - z) ** 2)),
        hessian,
        lambda z, y: both(np.full_like(z, (df + 1) / ((df + 3) * scale**2))),
        lambda z, y: both(z),
    )


def _halves(z, y):
    mean, log_variance = np.split(z, 2, axis=1)
    return y - mean, log_variance


def _mean_variance_value(z, y):
    r, s = _halves(z, y)
    square = r**2 * np.exp(-s)
    return ((square + s) / 2).sum(axis=1), (np.maximum(square, np.abs(s)) / 2).sum(axis=1)


def _mean_variance_gradient(z, y):
    r, s = _halves(z, y)
    square = r**2 * np.exp(-s)
    gradient = np.hstack([-r * np.exp(-s), (1 - square) / 2])
    return gradient, np.hstack([np.abs(r) * np.exp(-s), np.maximum(1, square) / 2])


def _mean_variance_hessian(z, y):
    r, s = _halves(z, y)
    return both(np.hstack([np.exp(-s), r**2 * np.exp(-s) / 2]))


LAWS = {
    "squared_error": Law(
        lambda z, y: both(((z - y) ** 2 / 2).sum(axis=1)),
        lambda z, y: both(z - y),
        lambda z, y: both(np.ones_like(z)),
        lambda z, y: both(np.ones_like(z)),
        lambda z, y: both(z),
    ),
    "softmax_cross_entropy": Law(
        _softmax_value,
        _softmax_gradient,
        _softmax_variance,
        _softmax_variance,
        lambda z, y: both(_softmax_parts(z)[0] / (1 + _softmax_parts(z)[2])),
    ),
    "bernoulli_cross_entropy": Law(
        _bernoulli_value,
        _bernoulli_gradient,
        lambda z, y: both(_q(z)),
        lambda z, y: both(_q(z)),
        lambda z, y: both(_logistic(z)),
    ),
    "poisson": Law(
        _poisson_value,
        lambda z, y: (np.exp(z) - y, np.maximum(np.exp(z), y)),
        lambda z, y: both(np.exp(z)),
        lambda z, y: both(np.exp(z)),
        lambda z, y: both(np.exp(z)),
    ),
    "student_t": student_t(4.0, 1.0),
    "gaussian_mean_variance": Law(
        _mean_variance_value,
        _mean_variance_gradient,
        _mean_variance_hessian,
        lambda z, y: both(np.hstack([np.exp(-_halves(z, y)[1]), np.full_like(y, 0.5)])),
        lambda z, y: both(np.split(z, 2, axis=1)[0]),
    ),
}
