"""Losses, gradients, output matrices and means against extended precision, for outputs of +-1e4.

The net has no hidden layer and unit vectors as inputs: its outputs are its weights, and gradients
and curvature are those of the cases, divided by their number, a power of two.
"""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, MEAN_VARIANCE, POISSON, SOFTMAX, SQUARED, STUDENT
from extended import HAS_EXTENDED, LAWS, student_t, units, wide

pytestmark = pytest.mark.skipif(not HAS_EXTENDED, reason="needs an extended long double")

# Units in the last place of the float type, where something cancels of the larger term. Sums of
# roundings: exponentials (1.1), logarithms (1.9), quotients, squares of roots in diagonals.
ULP = 8
# Of diagonals of softmax: p_c p_k, each to 2.2 ulp, from squares of products of their roots.
ULP_OF_SQUARES = 12
CASES = 64
LOSSES = {
    **{name: (ng.losses.as_loss(name), law) for name, law in LAWS.items()},
    "student_t(1, 1e-3)": (ng.losses.StudentT(1.0, 1e-3), student_t(1.0, 1e-3)),
    "student_t(30, 1e3)": (ng.losses.StudentT(30.0, 1e3), student_t(30.0, 1e3)),
    "student_t(0.5, 1e-12)": (ng.losses.StudentT(0.5, 1e-12), student_t(0.5, 1e-12)),
}


def grid(dtype):
    """Numbers of either sign from tiny to 1e4, dense where exponentials matter."""
    size = np.concatenate(
        [[0.0], np.geomspace(1e-12, 1e4, 300), np.linspace(0, 45, 300), np.linspace(60, 760, 150)]
    )
    return np.concatenate([size, -size]).astype(dtype)


def softmax_batch(dtype, rng):
    """Logits of 3 classes with gaps of every size between them, at every place; also ties."""
    gap = np.abs(grid(dtype))
    other = rng.permutation(gap)
    z = (
        np.stack([0 * gap, -gap, -other], axis=1)
        + rng.choice([0, 0.3, -3.7, 9e3], gap.size)[:, None]
    )
    z = rng.permuted(z, axis=1).astype(dtype)
    z[::37] = z[::37, :1]
    y = np.eye(3)[rng.integers(0, 3, len(z))]
    soft = rng.random(len(z)) < 0.4
    y[soft] = rng.dirichlet(np.ones(3), soft.sum())
    return z, y.astype(dtype)


def batch(name, dtype, rng):
    """Outputs z (N, C) and targets y, N a multiple of CASES."""
    z = grid(dtype)
    if name == SOFTMAX:
        z, y = softmax_batch(dtype, rng)
    elif name == BERNOULLI:
        y = rng.choice([0, 1, 0.5, 0.25, 1e-3, 1 - 2**-12, 2.0**-20], z.shape)
    elif name == POISSON:
        y = rng.choice([0, 1, 2, 30, 1e4], z.shape)
    elif name == MEAN_VARIANCE:
        y = rng.choice([0, 1.5, -1e4, 1e-3], z.shape)
        z = np.stack([rng.permutation(z), z], axis=1)
        z[::11, 0] = y[::11]  # residuals of 0
    else:
        y = rng.permutation(z)
    z, y = z.reshape(len(z), -1), y.reshape(len(y), -1)
    fill = -len(z) % CASES
    return np.vstack([z, z[:fill]]).astype(dtype), np.vstack([y, y[:fill]]).astype(dtype)


def without_overflow(exact, z, y):
    """Rows whose results are numbers of the type: Inf times the zeros of other inputs is NaN."""
    keep = (np.abs(wide(exact[1])) < np.finfo(z.dtype).max).all(axis=1)
    at = np.flatnonzero(keep)
    at = np.concatenate([at, at[: -len(at) % CASES]])
    return (exact[0][at], exact[1][at]), z[at], y[at]


def by_net(f, z, y):
    """f(net, X, y) for CASES rows at once, whose outputs are z: elements (C, CASES) times CASES."""
    x = np.eye(CASES, dtype=z.dtype)
    net = ng.MLP([CASES, z.shape[1]], bias=False, dtype=z.dtype)
    found = []
    for i in range(0, len(z), CASES):
        net.weights[0][:] = z[i : i + CASES].T
        values = f(net, x, y[i : i + CASES]).reshape(-1, CASES)
        found.append(CASES * wide(values).T)
    return np.concatenate(found)


def assert_units(found, exact, z, y, allowed=ULP):
    want, size = exact
    error = units(found, want, np.maximum(np.abs(size), np.abs(want)), z.dtype)
    bad = ~(error <= allowed)
    i = np.argwhere(bad)[:3, 0]
    assert not bad.any(), (z[i], y[i], found[i], want[i], error[i], bad.sum())


@pytest.fixture(params=LOSSES)
def problem(request, dtype, rng):
    loss, law = LOSSES[request.param]
    z, y = batch(loss.name, dtype, rng)
    return loss, law, z, y


def test_gradients(problem):
    loss, law, z, y = problem
    exact, z, y = without_overflow(law.gradient(wide(z), wide(y)), z, y)
    found = by_net(lambda net, x, t: ng.value_and_grad(net, loss, x, t)[1], z, y)
    assert_units(found, exact, z, y)


def test_values(problem):
    loss, law, z, y = problem
    z, y = z[::3], y[::3]
    net, x = ng.MLP([1, z.shape[1]], bias=False, dtype=z.dtype), np.ones((1, 1))

    def value(zi, yi):
        net.params = zi
        return ng.value(net, loss, x, yi[None])

    found = np.array([value(zi, yi) for zi, yi in zip(z, y, strict=True)])
    want, size = law.value(wide(z), wide(y))
    # values are double, also of float32 outputs: Inf only where a double overflows
    most = np.finfo(float).max
    assert np.array_equal(np.isinf(found), want > most)
    finite = np.isfinite(found) & (np.abs(want) < np.finfo(z.dtype).max)
    error = units(found[finite], want[finite], size[finite], z.dtype)
    assert (error <= ULP).all(), (z[finite][error > ULP][:3], error.max())
    beyond = np.isfinite(found) & ~finite
    assert np.allclose(found[beyond], want[beyond].astype(float), rtol=ULP * 1.2e-7)


@pytest.mark.parametrize("kind", ["fisher", "hessian"])
def test_diagonals_of_output_matrices(kind, problem):
    loss, law, z, y = problem
    if loss.name == SQUARED:
        return  # the identity

    def diagonal(net, x, t):
        operator = ng.Fisher(net, loss, x) if kind == "fisher" else ng.GGN(net, loss, x, t)
        return operator.diagonal()

    exact = (law.fisher if kind == "fisher" else law.hessian)(wide(z), wide(y))
    exact, z, y = without_overflow(exact, z, y)
    allowed = ULP_OF_SQUARES if loss.name == SOFTMAX else ULP
    assert_units(by_net(diagonal, z, y), exact, z, y, allowed)


def test_products_with_output_matrices(problem):
    """Rows of diagonal matrices; of softmax the differences of two classes, p_c p_k times that."""
    loss, law, z, y = problem
    if loss.name in (SQUARED, MEAN_VARIANCE):
        return

    def product(net, x, t):
        v = np.zeros((z.shape[1], CASES), z.dtype)
        v[0] = 1
        return ng.Fisher(net, loss, x) @ v.ravel()

    exact, z, y = without_overflow(law.fisher(wide(z), wide(y)), z, y)
    found = by_net(product, z, y)
    if loss.name == SOFTMAX:
        p = law.mean(wide(z), wide(y))[0]
        row = -p * p[:, :1]
        row[:, 0] = exact[0][:, 0]
        exact = row, row
    assert_units(found, exact, z, y)


def test_means(problem):
    loss, law, z, y = problem
    found = loss.mean(z).reshape(len(z), -1)
    assert_units(found, law.mean(wide(z), wide(y)), z, y)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 300])
def test_softmax_of_many_classes(num_classes, dtype, rng):
    """Probabilities and gradients; sums over C classes are in double, with C / 2 ulp of that."""
    z = (
        rng.standard_normal((CASES, num_classes)) * rng.choice([1e-3, 1, 30, 3e3], (CASES, 1))
    ).astype(dtype)
    y = np.eye(num_classes, dtype=dtype)[rng.integers(0, num_classes, CASES)]
    law, loss = LAWS[SOFTMAX], ng.losses.SoftmaxCrossEntropy()
    allowed = ULP + (num_classes / 2 if dtype == "float64" else 0)
    for found, (want, size) in [
        (loss.mean(z), law.mean(wide(z), wide(y))),
        (
            by_net(lambda net, x, t: ng.value_and_grad(net, loss, x, t)[1], z, y),
            law.gradient(wide(z), wide(y)),
        ),
    ]:
        assert (units(found, want, np.maximum(np.abs(want), size), dtype) <= allowed).all()


def test_a_loss_of_e_to_the_minus_forty_is_not_zero(dtype):
    net = ng.MLP([1, 2], bias=False, dtype=dtype)
    net.params = [40.0, 0.0]
    h = ng.value(net, SOFTMAX, [[1.0]], [0])
    assert h == pytest.approx(np.exp(-40.0), rel=1e-6 if dtype == "float32" else 1e-14)


def test_residuals_of_student_t_may_be_huge(dtype):
    """log(1 + u^2) where u^2 is no double, and where the residual is a float32 at its end."""
    big = {"float32": 3e38, "float64": 1e300}[dtype]
    net = ng.MLP([1, 1], bias=False, dtype=dtype)
    net.params = [big]
    for scale in (1.0, 1e-5):
        loss = ng.losses.StudentT(4.0, scale)
        h = ng.value(net, loss, [[1.0]], [[0.0]])
        assert h == pytest.approx(5 * np.log(float(net.params[0]) / (2 * scale)), rel=1e-6)
        g = ng.value_and_grad(net, loss, [[1.0]], [[0.0]])[1]
        assert g[0] == pytest.approx(5 / big, rel=1e-5, abs=1e-38)


@pytest.mark.parametrize("loss", [STUDENT, POISSON])
def test_float32_uses_the_range_of_double_inside(loss):
    """A scale or a rate that is no float32 is no reason for NaN."""
    net = ng.MLP([1, 1], bias=False, dtype="float32")
    net.params = [100.0 if loss == POISSON else 1.0]  # e^100 is no float32
    law = ng.losses.Poisson() if loss == POISSON else ng.losses.StudentT(4.0, 1e-60)
    h, g = ng.value_and_grad(net, law, [[1.0]], [[0.0]])
    assert np.isfinite(h)
    assert g[0] == (np.inf if loss == POISSON else pytest.approx(5.0))
