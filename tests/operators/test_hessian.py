"""The Hessian of the objective: R-operator products, and how it relates to the GGN."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import BERNOULLI, SOFTMAX, SQUARED, STUDENT, Case, assert_close, curvature

KINKS = ["relu", "leaky_relu", "elu"]


def dense(kind, problem, loss, **options):
    return curvature(kind, problem, loss, **options).to_dense().astype(float)


@pytest.mark.parametrize("case", cases.PIECEWISE_LINEAR, ids=cases.ids)
def test_equals_oracle(case, dtype, tol):
    """Other nets: test_operators.py."""
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.2, "damping": 0.05}
    exact = cases.exact_curvature("hessian", problem, case.loss, **options)
    assert_close(dense("hessian", problem, case.loss, **options), exact, tol.product)


@pytest.mark.parametrize(
    "case",
    cases.SMOOTH + [c for c in cases.LAWS if c.activation not in KINKS],
    ids=cases.ids,
)
def test_is_the_derivative_of_the_gradient(case, rng):
    problem = case.problem("float64")
    net, x, y, weight = problem.net, problem.x, problem.y, problem.weight
    operator = ng.Hessian(net, case.loss, x, y, sample_weight=weight, l2=0.1)
    v = rng.standard_normal(net.num_params)
    v /= np.linalg.norm(v)
    product, theta = operator @ v, net.params.copy()

    def gradient(point):
        net.params = point
        return ng.value_and_grad(net, case.loss, x, y, sample_weight=weight, l2=0.1)[1]

    # order 4 at h = 1e-3: truncation h^4 times a fifth derivative of up to 1e3, 1e-9; rounding
    # eps / h = 2e-13
    assert_close(product, reference.difference(gradient, theta, v, 1e-3), 1e-7)


@pytest.mark.parametrize("case", cases.ONE_LAYER + cases.OTHER_LAWS[:1], ids=cases.ids)
def test_is_the_ggn_of_a_linear_net(case, dtype, tol):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.1}
    ggn, hessian = (dense(kind, problem, case.loss, **options) for kind in ("ggn", "hessian"))
    # equal but for the order of sums
    assert_close(hessian, ggn, tol.product)


@pytest.mark.parametrize("case", cases.PIECEWISE_LINEAR, ids=cases.ids)
def test_diagonal_blocks_are_those_of_the_ggn_without_bends(case, dtype, tol):
    """Botev et al. 2017: z is linear in the parameters of one layer, where phi'' = 0."""
    problem = case.problem(dtype)
    ggn = curvature("ggn", problem, case.loss, sample_weight=problem.weight)
    hessian = dense("hessian", problem, case.loss, sample_weight=problem.weight)
    rest = hessian - ggn.to_dense()
    for layer, place in enumerate(reference.layer_slices(problem.oracle)):
        assert_close(hessian[place, place], ggn.block(layer), tol.product)
        rest[place, place] = 0.0
    # between layers they differ
    assert np.linalg.norm(rest) > 0.05 * np.linalg.norm(hessian)


@pytest.mark.parametrize("activation", ["tanh", "logistic", "softplus", "gelu", "silu", "sin"])
def test_differs_from_the_ggn_with_bends(activation, dtype):
    problem = Case("4-6-3-bent", (4, 6, 3), SQUARED, activation=activation).problem(dtype)
    ggn, hessian = (dense(kind, problem, SQUARED) for kind in ("ggn", "hessian"))
    first = reference.layer_slices(problem.oracle)[0]
    difference = np.linalg.norm((hessian - ggn)[first, first])
    assert difference > 0.01 * np.linalg.norm(ggn[first, first])


@pytest.mark.parametrize("case", [c for c in cases.LAWS if c.loss == SQUARED], ids=cases.ids)
def test_is_the_ggn_at_a_perfect_fit(case, dtype, tol):
    """No residual, no curvature of the net: H = G + sum dL/dz_c d2z_c/dtheta2."""
    problem = case.problem(dtype)
    fit = problem._replace(y=problem.net(problem.x))
    ggn, hessian = (dense(kind, fit, SQUARED) for kind in ("ggn", "hessian"))
    assert_close(hessian, ggn, tol.product)


def test_may_be_indefinite(dtype):
    problem = Case("4-6-3-far", (4, 6, 3), SQUARED).problem(dtype)
    far = problem._replace(y=problem.y + 10)
    hessian = curvature("hessian", far, SQUARED)
    lowest = np.linalg.eigvalsh(hessian.to_dense().astype(float))[0]
    assert lowest < 0.0
    g = ng.value_and_grad(far.net, SQUARED, far.x, far.y)[1]
    assert ng.cg(hessian, g).status is ng.Status.NEGATIVE_CURVATURE
    assert ng.cg(hessian, g, damping=-2.0 * lowest, rtol=1e-3).status.success


@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX, BERNOULLI, STUDENT])
def test_damping_and_l2_are_multiples_of_the_identity(loss, dtype, tol):
    problem = Case(f"3-4-3-{loss}", (3, 4, 3), loss).problem(dtype)
    bare = dense("hessian", problem, loss)
    shifted = dense("hessian", problem, loss, damping=0.5, l2=2.0)
    assert_close(shifted, bare + 2.5 * np.eye(len(bare)), tol.product)


# ------------------------------------------------------------------------------------------------
# Second derivatives of activations, one by one


def second_derivative(activation, s, dtype):
    """phi''(s): d2z/dw2 of z = phi(w x) at x = 1, out of the Hessian of (z - y)^2 / 2.

    H = phi'^2 + (z - y) phi'', G = phi'^2; the target is chosen with z - y = 1.
    """
    net = ng.MLP([1, 1], output_activation=activation, bias=False, dtype=dtype)
    net.params[:] = s
    x = np.ones((1, 1), dtype)
    y = net(x) - 1
    hessian = ng.Hessian(net, SQUARED, x, y).trace()
    return (hessian - ng.GGN(net, SQUARED, x).trace()) / float(net(x)[0, 0] - y[0, 0])


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_second_derivatives_of_activations(activation, dtype, tol):
    exact = reference.ACTIVATIONS[activation].d2
    for s in [-30.0, -6.5, -1.5, -0.75, -1e-3, 0.0, 1e-3, 0.5, 1.25, 7.0, 30.0]:
        s = float(np.dtype(dtype).type(s))
        found = second_derivative(activation, s, dtype)
        # the difference of H and G: 1 (phi'^2 up to 1.3) cancels
        assert found == pytest.approx(float(exact(np.array(s))), abs=tol.forward)


@pytest.mark.parametrize("activation", KINKS)
def test_second_derivative_at_a_kink_is_the_one_from_the_left(activation, dtype):
    for zero in [0.0, -0.0]:
        found = second_derivative(activation, zero, dtype)
        # the square of the slope 0.01 is rounded
        assert found == pytest.approx(1.0 if activation == "elu" else 0.0, abs=1e-10)


@pytest.mark.parametrize("activation", [a for a in reference.ACTIVATIONS if a != "identity"])
@pytest.mark.parametrize("exponent", [2, 9, 20])
def test_saturated_units_give_finite_numbers(activation, exponent, dtype, rng):
    """Units far out to the left, where phi'' is 0, 0.01 phi or a sine: no 0 * Inf anywhere."""
    net = ng.MLP([1, 3, 2], activation, dtype=dtype, seed=1)
    net.weights[0][:] = -(10.0**exponent)
    x, y = np.array([[1.0], [1.5]], dtype), np.zeros((2, 2), dtype)
    hessian = ng.Hessian(net, SQUARED, x, y)
    assert np.isfinite(hessian.to_dense()).all()
    assert np.isfinite(hessian.diagonal()).all()
