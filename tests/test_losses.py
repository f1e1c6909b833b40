"""Value and gradient of the objective: weighted mean over cases, plus l2."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits

LOSSES = [SQUARED, SOFTMAX, BERNOULLI]


def small_case(loss, **options):
    return Case(f"3-5-2-{loss}", (3, 5, 2), loss, **options)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("case", cases.SMALL + cases.ACTIVATIONS, ids=cases.ids)
def test_value_and_gradient_equal_oracle(case, l2, dtype, tol):
    net, oracle, x, y, weight = problem = case.problem(dtype)
    h, g = ng.value_and_grad(net, case.loss, x, y, sample_weight=weight, l2=l2)
    assert isinstance(h, float)
    assert g.dtype == dtype
    expected = reference.value(oracle, case.loss, *problem.args, weight, l2)
    assert h == pytest.approx(expected, rel=tol.forward)
    exact = reference.gradient(oracle, case.loss, *problem.args, weight, l2)
    assert_close(g, exact, tol.gradient)
    # the value alone and the one beside the gradient are one quantity, up to a last bit
    alone = ng.value(net, case.loss, x, y, sample_weight=weight, l2=l2)
    assert alone == pytest.approx(h, rel=1e-15)


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
def test_value_of_large_nets_equals_oracle(case, dtype, tol):
    net, oracle, x, y, _ = problem = case.problem(dtype)
    expected = reference.value(oracle, case.loss, *problem.args)
    assert ng.value(net, case.loss, x, y) == pytest.approx(expected, rel=tol.forward)


@pytest.mark.parametrize("case", cases.SMOOTH + cases.LARGE, ids=cases.ids)
def test_gradient_is_the_derivative_of_the_value(case, rng):
    net, _, x, y, weight = case.problem("float64")
    _, g = ng.value_and_grad(net, case.loss, x, y, sample_weight=weight, l2=0.1)
    theta, v = net.params.copy(), rng.standard_normal(net.num_params)
    v /= np.linalg.norm(v)

    def value_at(point):
        net.params = point
        return ng.value(net, case.loss, x, y, sample_weight=weight, l2=0.1)

    # order 4 at h = 1e-3: truncation near 1e-11, rounding eps |h| / 1e-3 = 1e-12
    assert v @ g == pytest.approx(
        reference.difference(value_at, theta, v, 1e-3), rel=1e-7, abs=1e-9
    )


@pytest.mark.parametrize("target", ["right", "wrong"])
@pytest.mark.parametrize("loss", [SOFTMAX, BERNOULLI])
def test_extreme_logits(loss, target, dtype, tol):
    net = ng.MLP([3, 3], dtype=dtype, init="zeros")
    net.weights[0][:] = 1e4 * np.eye(3)
    x = np.array([[1, -1, 0], [-1, 1, -1]], dtype=dtype)
    if loss == SOFTMAX:
        y = x.argmax(axis=1) if target == "right" else x.argmin(axis=1)
    else:
        y = (x > 0) if target == "right" else (x <= 0)
    oracle = reference.Net((3, 3), ("identity",), (True,))
    args = (oracle, loss, net.params.astype(float), x, np.asarray(y, int))
    h, g = ng.value_and_grad(net, loss, x, np.asarray(y, int))
    assert h == pytest.approx(reference.value(*args), rel=tol.forward, abs=1e-300)
    # absolute: probabilities are between 0 and 1, and most entries are 0 or as good as 0
    assert np.abs(g - reference.gradient(*args)).max() <= tol.gradient
    fisher = ng.Fisher(net, loss, x).to_dense()
    assert np.abs(fisher - reference.fisher(*args[:4])).max() <= tol.product


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_weights_drop_cases(loss, dtype, tol):
    net, _, x, y, _ = small_case(loss, n=40).problem(dtype)
    weight = np.random.default_rng(1).integers(0, 3, 40)
    kept = weight > 0
    h, g = ng.value_and_grad(net, loss, x, y, sample_weight=weight)
    h_kept, g_kept = ng.value_and_grad(net, loss, x[kept], y[kept], sample_weight=weight[kept])
    assert h == pytest.approx(h_kept, rel=tol.forward)
    assert_close(g, g_kept, tol.gradient)
    repeated = np.repeat(np.arange(40), weight)  # weight 2 is the same as the case twice
    h_twice, g_twice = ng.value_and_grad(net, loss, x[repeated], y[repeated])
    assert h == pytest.approx(h_twice, rel=tol.forward)
    assert_close(g, g_twice, tol.gradient)


@pytest.mark.parametrize("factor", [1e-6, 7.3, 1e8])
def test_scale_of_weights_cancels(factor, dtype, tol):
    net, _, x, y, weight = small_case(SOFTMAX, weighted=True).problem(dtype)
    h, g = ng.value_and_grad(net, SOFTMAX, x, y, sample_weight=weight)
    scaled = weight.astype(float) * factor
    h_scaled, g_scaled = ng.value_and_grad(net, SOFTMAX, x, y, sample_weight=scaled)
    assert h == pytest.approx(h_scaled, rel=10 * tol.eps)
    assert_close(g_scaled, g, 100 * tol.eps)


def test_constant_weights_change_nothing(dtype, tol):
    net, _, x, y, _ = small_case(SQUARED).problem(dtype)
    h, g = ng.value_and_grad(net, SQUARED, x, y)
    h_ones, g_ones = ng.value_and_grad(net, SQUARED, x, y, sample_weight=np.ones(17))
    assert h == pytest.approx(h_ones, rel=10 * tol.eps)
    assert_close(g_ones, g, 100 * tol.eps)


def test_ways_to_give_softmax_targets(dtype):
    net, _, x, y, _ = small_case(SOFTMAX).problem(dtype)
    h, g = ng.value_and_grad(net, SOFTMAX, x, y)
    for same in [y.astype(np.uint8), y.astype(float), y.tolist(), y.astype(">i4")]:
        h_same, g_same = ng.value_and_grad(net, SOFTMAX, x, same)
        assert h_same == h
        assert same_bits(g_same, g)
    h_rows, g_rows = ng.value_and_grad(net, SOFTMAX, x, np.eye(2)[y])
    assert h_rows == pytest.approx(h, rel=1e-6)
    assert_close(g_rows, g, 1e-5)


@pytest.mark.parametrize("loss", [SQUARED, BERNOULLI])
def test_flat_targets_for_one_output(loss, dtype):
    net, _, x, y, _ = Case("3-4-1", (3, 4, 1), loss).problem(dtype)
    h, g = ng.value_and_grad(net, loss, x, y)
    h_flat, g_flat = ng.value_and_grad(net, loss, x, y[:, 0])
    assert h == h_flat
    assert same_bits(g, g_flat)


@pytest.mark.parametrize(
    ("loss", "instance"),
    [
        (SQUARED, ng.losses.SquaredError()),
        (SOFTMAX, ng.losses.SoftmaxCrossEntropy()),
        (BERNOULLI, ng.losses.BernoulliCrossEntropy()),
    ],
)
def test_name_and_instance_are_the_same_loss(loss, instance):
    net, _, x, y, _ = small_case(loss).problem("float64")
    assert ng.value(net, loss, x, y) == ng.value(net, instance, x, y)


def test_sums_are_accumulated_in_double():
    """A float32 running sum over 300,000 cases would be off by about 1e-4."""
    net = ng.MLP([1, 10], init="zeros", dtype="float32")
    x, y = np.ones((300_000, 1), np.float32), np.zeros(300_000, int)
    # what is left is the rounding of one case's log(10) to float32, 6e-8
    assert ng.value(net, SOFTMAX, x, y) == pytest.approx(np.log(10.0), rel=2e-7)
