"""MLP: parameter layout, forward pass, Jacobian products, initialisation."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import assert_close, same_bits

POINTS = np.array([-1e4, -80.0, -20.0, -3.0, -1.0, -1e-3, 1e-3, 0.7, 2.0, 15.0, 80.0, 1e4])


@pytest.mark.parametrize("case", cases.SMALL + cases.ACTIVATIONS + cases.LARGE, ids=cases.ids)
def test_forward_equals_oracle(case, dtype, tol):
    net, oracle, x, _, _ = case.problem(dtype)
    z = net(x)
    assert z.dtype == dtype
    assert_close(z, oracle.forward(net.params, x), tol.forward)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activation_and_slope_at_extreme_arguments(name, dtype, tol):
    net = ng.MLP([1, 1], output_activation=name, dtype=dtype)
    net.params[:] = [1.0, 0.0]  # z = phi(x), dz/dbias = phi'(x)
    x = POINTS.astype(dtype)[:, None]
    phi = reference.ACTIVATIONS[name]
    slope = net.jvp(x, np.array([0.0, 1.0]))
    for actual, exact in [(net(x), phi.value(x.astype(float))), (slope, phi.d1(x.astype(float)))]:
        # a few eps of the value; slopes come from the activation value, hence relative to 1
        assert (np.abs(actual - exact) <= 50 * tol.eps * (1.0 + np.abs(exact))).all()


def test_relu_has_slope_zero_at_zero(dtype):
    net = ng.MLP([1, 1], output_activation="relu", dtype=dtype, init="zeros")
    assert net.jvp([[0.0]], [1.0, 1.0]) == 0.0


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_oracle_derivatives_agree_with_differences(name):
    """Guards the oracle itself: its slopes are used everywhere else."""
    phi = reference.ACTIVATIONS[name]
    s = np.array([-4.0, -1.3, -0.2, 0.3, 1.1, 3.7])
    for function, derivative in [(phi.value, phi.d1), (phi.d1, phi.d2)]:
        # truncation h^4 times a 5th derivative below 30, rounding eps / h: both below 1e-10
        assert_close(reference.difference(function, s, 1.0, 1e-3) + 1.0, derivative(s) + 1.0, 1e-10)


@pytest.mark.parametrize("case", cases.SMALL + cases.ACTIVATIONS, ids=cases.ids)
def test_jacobian_products_equal_dense_jacobian(case, dtype, tol, rng):
    net, oracle, x, _, _ = case.problem(dtype)
    jacobian = oracle.jacobian(net.params, x)
    v = rng.standard_normal(net.num_params).astype(dtype)
    block = rng.standard_normal((net.num_params, 3)).astype(dtype)
    u = rng.standard_normal((case.n, case.sizes[-1])).astype(dtype)
    assert_close(net.jvp(x, v), jacobian @ v, tol.product)
    assert_close(net.jvp(x, block), jacobian @ block, tol.product)
    assert_close(net.vjp(x, u), np.einsum("ncp,nc->p", jacobian, u), tol.product)
    assert net.jvp(x, v).dtype == net.vjp(x, u).dtype == dtype


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
def test_adjoint_identity(case, dtype, tol, rng):
    net, _, x, _, _ = case.problem(dtype)
    v = rng.standard_normal(net.num_params).astype(dtype)
    u = rng.standard_normal((case.n, case.sizes[-1])).astype(dtype)
    jv, ju = net.jvp(x, v).astype(float), net.vjp(x, u).astype(float)
    # rounding is relative to |u| |Jv|, not to the product, which may cancel
    assert abs(np.vdot(u, jv) - v @ ju) <= tol.product * np.linalg.norm(u) * np.linalg.norm(jv)


@pytest.mark.parametrize("case", cases.SMOOTH, ids=cases.ids)
def test_jvp_is_the_derivative_of_the_output(case, rng):
    """Independent of the oracle's Jacobian."""
    net, _, x, _, _ = case.problem("float64")
    v = rng.standard_normal(net.num_params)

    def output(theta):
        other = net.copy()
        other.params = theta
        return other(x)

    # order 4 at h = 1e-3: truncation 1e-12 times a 5th derivative, rounding 1e-13
    assert_close(net.jvp(x, v), reference.difference(output, net.params.copy(), v, 1e-3), 1e-7)


def test_parameter_layout_and_views(dtype):
    net = ng.MLP([3, 2, 4], bias=(True, False), dtype=dtype, init="zeros")
    assert (net.num_params, net.num_layers, net.sizes) == (3 * 2 + 2 + 2 * 4, 2, (3, 2, 4))
    assert net.params.shape == (16,)
    assert net.params.dtype == net.dtype == dtype
    assert net.activations == ("tanh", "identity")
    net.params[:] = np.arange(16)
    assert net.weights[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert net.biases[0].tolist() == [6, 7]
    assert net.weights[1].tolist() == [[8, 9], [10, 11], [12, 13], [14, 15]]
    assert net.biases[1].shape == (0,)
    net.weights[1][0, 1] = -5
    assert net.params[9] == -5
    assert all(np.shares_memory(view, net.params) for view in net.weights)


def test_setting_params_copies_in_place():
    net = ng.MLP([2, 2], dtype="float64")
    before, values = net.params, np.arange(6.0)
    net.params = values
    values[:] = 0
    assert net.params.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.shares_memory(before, net.params)
    assert net(np.ones((1, 2))).tolist() == [[0 + 1 + 4, 2 + 3 + 5]]


def test_activation_names_per_layer():
    hidden = ng.MLP([2, 3, 3, 1], ["relu", "sin"], output_activation="softplus")
    full = ng.MLP([2, 3, 3, 1], ["relu", "sin", "softplus"])
    assert hidden.activations == full.activations == ("relu", "sin", "softplus")


def test_copy_is_independent(dtype):
    net = ng.MLP([4, 3, 2], "relu", dtype=dtype, seed=3)
    other = net.copy()
    assert same_bits(net.params, other.params)
    assert (other.sizes, other.activations, other.dtype) == (net.sizes, net.activations, net.dtype)
    other.params[:] = 0
    assert (net.params[: 4 * 3] != 0).all()


@pytest.mark.parametrize("init", ["glorot", "he", "lecun", "sparse"])
def test_same_seed_same_bits(init, dtype):
    def draw(seed):
        return ng.MLP([20, 30, 2], dtype=dtype, seed=seed, init=init).params

    assert same_bits(draw(7), draw(7))
    assert same_bits(draw(np.random.default_rng(7)), draw(np.random.default_rng(7)))
    assert not same_bits(draw(7), draw(8))
    assert not same_bits(draw(None), draw(None))


def test_dense_initialisations_have_their_variance():
    for init, variance in [("glorot", 2 / (200 + 300)), ("he", 2 / 200), ("lecun", 1 / 200)]:
        net = ng.MLP([200, 300, 4], "relu", init=init, dtype="float64")
        w = net.weights[0]
        # 60,000 draws: the variance is within 4 standard errors, 4 sqrt(2 / 6e4) = 2.3 %
        assert abs(w.var() / variance - 1) < 0.025
        assert abs(w.mean()) < 4 * np.sqrt(variance / w.size)
        assert (np.abs(w).max() <= np.sqrt(3 * variance)) == (init == "glorot")  # uniform, normal
        assert not any(bias.any() for bias in net.biases)


@pytest.mark.parametrize(
    ("activation", "scale", "bias"),
    [("logistic", (1.0, 1.0), 0.0), ("tanh", (0.5, 0.5), 0.5), ("softplus", (0.1, 1.0), 0.0)],
)
def test_sparse_init_has_fifteen_inputs_a_unit(activation, scale, bias):
    net = ng.MLP([400, 600, 300], activation, init="sparse", dtype="float64")
    for weight, std in zip(net.weights, scale, strict=True):
        counts = (weight != 0).sum(axis=1)
        assert counts.max() <= 15
        assert counts.mean() > 14  # 15 draws with replacement out of 400: 0.26 expected repeats
        # more than 4,000 draws: 5 standard errors of a standard deviation are 5.6 %
        assert abs(weight[weight != 0].std() / std - 1) < 0.06
    assert (net.biases[0] == bias).all()
    assert not net.biases[1].any()


def test_zeros_init_is_zero():
    assert not ng.MLP([3, 4, 2], init="zeros").params.any()
