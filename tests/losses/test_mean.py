"""Means of the predictive laws: what a model expects targets to be."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import (
    BERNOULLI,
    MEAN_VARIANCE,
    POISSON,
    SOFTMAX,
    SQUARED,
    STUDENT,
    Case,
    assert_close,
    same_bits,
)

LINKS = {
    SQUARED: lambda z: z,
    SOFTMAX: reference.softmax,
    BERNOULLI: reference.logistic,
    POISSON: np.exp,
    STUDENT: lambda z: z,
    MEAN_VARIANCE: lambda z: z[:, : z.shape[1] // 2],
}
# Where the expected gradient at the mean vanishes, the mean is that of the law: p - y, e^z - y, ..
NATURAL = [SQUARED, SOFTMAX, BERNOULLI, POISSON]


@pytest.mark.parametrize("num_outputs", [2, 4, 40])
@pytest.mark.parametrize("loss", LINKS)
def test_mean_is_the_link_of_the_outputs(loss, num_outputs, dtype, tol):
    case = Case(f"5-7-{num_outputs}-mean-{loss}", (5, 7, num_outputs), loss, n=131)
    net, oracle, x, _, _ = problem = case.problem(dtype)
    exact = LINKS[loss](oracle.forward(*problem.args[:2]))
    mean = net.predict_mean(x, loss)
    assert mean.dtype == dtype
    assert mean.flags.c_contiguous or mean.ndim == 1
    assert_close(mean, exact[:, 0] if exact.shape[1] == 1 else exact, tol.forward)
    assert same_bits(ng.losses.as_loss(loss).mean(net(x)), mean)
    for threads in (1, 2, 3):
        assert same_bits(net.predict_mean(x, loss, num_threads=threads), mean)
    assert same_bits(net.predict_mean(x[:29], loss), mean[:29])


@pytest.mark.parametrize("loss", NATURAL)
def test_gradient_of_the_loss_is_mean_minus_target(loss, dtype, tol, rng):
    """Of exponential families in natural parameters; the net is nothing but its outputs."""
    z = rng.standard_normal((1, 4)).astype(dtype)
    net = ng.MLP([1, 4], bias=False, dtype=dtype)
    net.params = z[0]
    y = rng.dirichlet(np.ones(4), 1).astype(dtype)  # in the range of every one of them
    gradient = ng.value_and_grad(net, loss, np.ones((1, 1)), y)[1]
    mean = ng.losses.as_loss(loss).mean(z)[0]
    assert np.abs(mean - y[0] - gradient).max() <= 8 * tol.eps * max(1.0, float(mean.max()))


@pytest.mark.parametrize("loss", LINKS)
def test_one_target_has_the_shape_of_flat_targets(loss, dtype):
    """(N,), the shape of y that `value` takes; ((mean - y) ** 2) is not (N, N)."""
    num_outputs = 2 if loss in (MEAN_VARIANCE, SOFTMAX) else 1
    net, _, x, y, _ = Case(f"3-4-one-{loss}", (3, 4, num_outputs), loss).problem(dtype)
    flat = np.ravel(y)
    ng.value(net, loss, x, flat)
    mean = net.predict_mean(x, loss)
    if loss == SOFTMAX:  # labels are no means: probabilities, of one class as well
        assert mean.shape == (17, 2)
        assert ng.MLP([3, 1], dtype=dtype).predict_mean(x, loss).tolist() == [[1.0]] * 17
        return
    assert mean.shape == flat.shape == (17,)
    assert net(x).shape == (17, num_outputs)


def test_means_of_student_t_do_not_depend_on_its_parameters():
    z = [[1.0, -2.0]]
    assert ng.losses.StudentT(0.5, 3.0).mean(z).tolist() == z


def test_mean_of_plain_numbers_is_float64():
    mean = ng.losses.Poisson().mean([[0], [1]])
    assert mean.dtype == np.float64
    assert mean.tolist() == [1.0, pytest.approx(np.exp(1.0), rel=1e-15)]
    assert ng.losses.Poisson().mean(np.zeros((2, 1), np.float32)).dtype == np.float32
    assert ng.losses.SoftmaxCrossEntropy().mean(np.zeros((0, 3))).shape == (0, 3)


def test_overflowing_outputs_give_limits(dtype):
    net = ng.MLP([1, 1], "identity", bias=False, dtype=dtype)
    net.params = [np.finfo(dtype).max]
    x = [[10.0], [-10.0]]  # outputs Inf and -Inf
    assert net.predict_mean(x, BERNOULLI).tolist() == [1.0, 0.0]
    assert net.predict_mean(x, POISSON).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: net.predict_mean(x, MEAN_VARIANCE), ValueError, r"must be even .*, got 3"),
        (lambda net, x: net.predict_mean(x, "mse"), ValueError, "did you mean 'squared_error'"),
        (lambda net, x: net.predict_mean(x, None), TypeError, "loss must be a name, got None"),
        (lambda net, x: net.predict_mean(x[:, :2], SQUARED), ValueError, "X has 2 columns"),
        (lambda net, x: net.predict_mean(x, SQUARED, num_threads=0), ValueError, "num_threads"),
        (lambda net, x: ng.losses.Poisson().mean(x[0]), ValueError, "z has 1 dimensions"),
        (lambda net, x: ng.losses.Poisson().mean(x * np.nan), ValueError, "z has NaN or Inf"),
        (lambda net, x: ng.losses.Poisson().mean(x[:, :0]), ValueError, "z has no columns"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(ng.MLP([3, 3]), np.ones((5, 3)))
