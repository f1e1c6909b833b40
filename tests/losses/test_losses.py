"""Value and gradient of the objective: weighted mean over cases, plus l2."""

import pickle

import cases
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

LOSSES = [SQUARED, SOFTMAX, BERNOULLI, POISSON, STUDENT, MEAN_VARIANCE]


def small_case(loss, **options):
    return Case(f"3-5-2-{loss}", (3, 5, 2), loss, **options)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("case", cases.SMALL + cases.OTHER_LAWS + cases.ACTIVATIONS, ids=cases.ids)
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


@pytest.mark.parametrize("case", cases.OTHER_LAWS, ids=cases.ids)
def test_fisher_of_other_laws_equals_oracle(case, dtype, tol, rng):
    net, oracle, x, _, weight = problem = case.problem(dtype)
    exact = reference.fisher(oracle, case.loss, *problem.args[:2], weight)
    fisher = ng.Fisher(net, case.loss, x, sample_weight=weight)
    assert_close(fisher.to_dense(), exact, tol.product)
    v, w = rng.standard_normal((2, net.num_params)).astype(dtype)
    scale = np.linalg.norm(exact, 2) * np.linalg.norm(v) * np.linalg.norm(w)
    assert fisher.quadratic_form(v, w) == pytest.approx(v @ exact @ w, abs=tol.product * scale)


def test_parameters_of_student_t_reach_the_core(dtype, tol):
    net, oracle, x, y, _ = problem = small_case(STUDENT).problem(dtype)
    for df, scale in [(1.0, 1.0), (4.0, 0.3), (30.0, 2.0)]:
        loss, exact = ng.losses.StudentT(df, scale), reference.student_t(df, scale)
        h, g = ng.value_and_grad(net, loss, x, y)
        assert h == pytest.approx(reference.value(oracle, exact, *problem.args), rel=tol.forward)
        assert_close(g, reference.gradient(oracle, exact, *problem.args), tol.gradient)
        fisher = ng.Fisher(net, loss, x).to_dense()
        assert_close(fisher, reference.fisher(oracle, exact, *problem.args[:2]), tol.product)


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


def constant_net(outputs, dtype):
    """One layer without bias: for x = 1 the outputs are the parameters, as the gradients are."""
    net = ng.MLP([1, len(outputs)], bias=False, dtype=dtype)
    net.params = np.array(outputs, dtype)
    return net, np.ones((1, 1), dtype)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (POISSON, [-1e4, -1e4, 80.0], [0.0, 3.0, 1e4]),
        (STUDENT, [1e4, -1e4, 0.0], [-1e4, 0.0, 0.0]),
        (MEAN_VARIANCE, [1e4, 1e4, 3.0, 1e4, -20.0, -1e4], [-1e4, 1e4, 3.0]),
    ],
)
def test_extreme_outputs_of_other_laws(loss, outputs, y, dtype, tol):
    net, x = constant_net(outputs, dtype)
    y = np.array([y], dtype)
    h, g = ng.value_and_grad(net, loss, x, y)
    z = net.params.astype(float)[None]
    if loss == MEAN_VARIANCE:  # a residual of 0 at variance 0: the definition says 0 / 0
        assert h == pytest.approx(0.5 * ((2e4) ** 2 * np.exp(-1e4) + 1e4 - 20.0 - 1e4))
        # the means have met their targets, or their variance is infinite
        assert np.abs(g - [0, 0, 0, 0.5, 0.5, 0.5]).max() <= tol.eps
        return
    exact = reference.LOSSES[loss]
    assert h == pytest.approx(exact.value(z, y.astype(float))[0], rel=tol.forward)
    assert_close(g, exact.gradient(z, y.astype(float))[0], tol.forward)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"), [(POISSON, [1e4], [2.0]), (MEAN_VARIANCE, [0.0, -1e4], [1.0])]
)
def test_overflow_is_infinite(loss, outputs, y, dtype):
    net, x = constant_net(outputs, dtype)
    h, g = ng.value_and_grad(net, loss, x, np.array([y], dtype))
    assert h == np.inf
    assert np.isinf(g).all()
    # a case of no weight stays out
    x, y = np.vstack([x, 0 * x]), np.array([y, y], dtype)
    h, g = ng.value_and_grad(net, loss, x, y, sample_weight=[0.0, 1.0])
    assert np.isfinite(h)
    assert not g.any()


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


@pytest.mark.parametrize("loss", [SQUARED, BERNOULLI, POISSON, STUDENT, MEAN_VARIANCE])
def test_flat_targets_for_one_output(loss, dtype):
    num_outputs = 2 if loss == MEAN_VARIANCE else 1
    net, _, x, y, _ = Case("3-4-1", (3, 4, num_outputs), loss).problem(dtype)
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
        (POISSON, ng.losses.Poisson()),
        (STUDENT, ng.losses.StudentT(df=4.0, scale=1.0)),
        (MEAN_VARIANCE, ng.losses.GaussianMeanVariance()),
    ],
)
def test_name_and_instance_are_the_same_loss(loss, instance):
    net, _, x, y, _ = small_case(loss).problem("float64")
    assert ng.value(net, loss, x, y) == ng.value(net, instance, x, y)
    assert ng.losses.as_loss(loss) == instance
    assert hash(ng.losses.as_loss(loss)) == hash(instance)
    assert eval(repr(instance), vars(ng.losses)) == instance
    assert pickle.loads(pickle.dumps(instance)) == instance


def test_losses_compare_by_parameters():
    student = ng.losses.StudentT
    assert student(3, 2) == student(df=3.0, scale=2.0)
    assert student(3, 2) != student(3, 1)
    assert student(3, 2) != student(4, 2)
    assert ng.losses.Poisson() != ng.losses.SquaredError()
    assert repr(student(3, 2)) == "StudentT(df=3.0, scale=2.0)"
    assert len({student(), student(4.0), student(5.0), ng.losses.Poisson()}) == 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ng.losses.StudentT(0.0), ValueError, "df must be > 0, got 0"),
        (lambda: ng.losses.StudentT(scale=-1), ValueError, "scale must be > 0, got -1"),
        (lambda: ng.losses.StudentT(df="4"), TypeError, "df must be a real number, got '4'"),
        (lambda: ng.losses.StudentT(df=np.inf), ValueError, "df must be finite, got inf"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "num_outputs", "y", "message"),
    [
        (POISSON, 2, [[1, 0], [2, -1]], r"y must be >= 0, got -1.0 at row 1, column 1"),
        (POISSON, 2, [[1, 0], [2, np.nan]], r"y has NaN or Inf .* at row 1, column 1"),
        (STUDENT, 2, [1, 2], r"y has shape \(2,\), wanted \(2, 2\)"),
        (SOFTMAX, 3, [[1], [2]], r"y has shape \(2, 1\), wanted labels \(2,\) or probabilities"),
        (MEAN_VARIANCE, 3, [[1], [2]], r"outputs must be even .*, got 3"),
        (MEAN_VARIANCE, 4, np.zeros((2, 4)), r"y has shape \(2, 4\), wanted \(2, 2\)"),
        (MEAN_VARIANCE, 2, np.zeros(3), r"y has shape \(3, 1\), wanted \(2, 1\)"),
    ],
)
def test_bad_targets(loss, num_outputs, y, message):
    net = ng.MLP([3, num_outputs])
    with pytest.raises(ValueError, match=message):
        ng.value(net, loss, np.zeros((2, 3)), y)


# ------------------------------------------------------------------------------------------------
# The oracle itself


@pytest.mark.parametrize("loss", LOSSES)
def test_oracle_derivatives_are_differences(loss, rng):
    exact, z = reference.LOSSES[loss], rng.standard_normal((17, 4))
    y = exact.targets(Case("4-4", (4, 4), loss).targets(rng), 4)
    gradient, hessian = exact.gradient(z, y), exact.hessian(z, y)
    for c in range(4):
        unit = np.eye(4)[c]
        # order 4 at h = 1e-3: truncation near 1e-11, rounding eps / 1e-3 = 1e-12
        slope = reference.difference(lambda point: exact.value(point, y), z, unit, 1e-3)
        assert_close(gradient[:, c], slope, 1e-9)
        slope = reference.difference(lambda point: exact.gradient(point, y), z, unit, 1e-3)
        assert_close(hessian[:, :, c], slope, 1e-9)


def law_of(loss, z):
    """Targets and their probabilities under the model at outputs z (C,), C small."""
    if loss == SOFTMAX:
        return np.eye(len(z)), reference.softmax(z[None])[0]
    if loss == BERNOULLI:
        return np.array([[0.0], [1.0]]), np.exp(z[0] * np.arange(2)) / (1 + np.exp(z[0]))
    if loss == POISSON:
        counts = np.arange(60.0)
        log_factorial = np.cumsum(np.log(np.maximum(counts, 1.0)))
        return counts[:, None], np.exp(counts * z[0] - np.exp(z[0]) - log_factorial)
    if loss == STUDENT:  # t = sqrt(df) tan(a) turns the density into cos(a)^(df - 1)
        nodes, weights = np.polynomial.legendre.leggauss(80)
        angle = 0.5 * np.pi * nodes
        density = weights * np.cos(angle) ** 3
        return z[0] + 2.0 * np.tan(angle)[:, None], density / density.sum()
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    deviation = np.exp(0.5 * z[1]) if loss == MEAN_VARIANCE else 1.0
    return z[0] + deviation * nodes[:, None], weights / weights.sum()


@pytest.mark.parametrize("loss", LOSSES)
def test_oracle_fisher_is_the_expected_square_of_the_score(loss, rng):
    num_outputs = {SOFTMAX: 3, MEAN_VARIANCE: 2}.get(loss, 1)
    exact, z = reference.LOSSES[loss], 0.7 * rng.standard_normal(num_outputs)
    y, probability = law_of(loss, z)
    score = exact.gradient(np.tile(z, (len(y), 1)), y)
    assert probability.sum() == pytest.approx(1.0)
    # sums over all labels and quadratures that are exact up to rounding
    assert np.abs(probability @ score).max() < 1e-12
    fisher = np.einsum("n,nc,nd->cd", probability, score, score)
    assert_close(fisher, exact.fisher(z[None])[0], 1e-10)
    # so is the expected Hessian
    hessian = np.einsum("n,ncd->cd", probability, exact.hessian(np.tile(z, (len(y), 1)), y))
    assert_close(hessian, fisher, 1e-10)


def test_sums_are_accumulated_in_double():
    """A float32 running sum over 300,000 cases would be off by about 1e-4."""
    net = ng.MLP([1, 10], init="zeros", dtype="float32")
    x, y = np.ones((300_000, 1), np.float32), np.zeros(300_000, int)
    # what is left is the rounding of one case's log(10) to float32, 6e-8
    assert ng.value(net, SOFTMAX, x, y) == pytest.approx(np.log(10.0), rel=2e-7)


@pytest.mark.parametrize("loss", [SOFTMAX, BERNOULLI])
def test_nothing_cancels_where_all_cases_are_saturated(loss, dtype, tol):
    """Probabilities within eps of 1 and right: gradient and Fisher are small, not zero."""
    margin = {"float32": 17.0, "float64": 40.0}[dtype]
    num_outputs = 3 if loss == SOFTMAX else 1
    net = ng.MLP([1, num_outputs], dtype=dtype, init="zeros")
    net.biases[0][...] = [0.0, margin, -1.0] if loss == SOFTMAX else [margin]
    x, y = np.ones((1, 1)), np.array([1]) if loss == SOFTMAX else np.ones((1, 1))
    z = net.biases[0].astype(float)
    p = np.exp(z - margin) / np.exp(z - margin).sum() if loss == SOFTMAX else 1 / (1 + np.exp(-z))
    slope = np.where(np.arange(3) == 1, -(p[0] + p[2]), p) if loss == SOFTMAX else -np.exp(-z)
    g = ng.value_and_grad(net, loss, x, y)[1]
    assert_close(g[num_outputs:], slope, tol.product)
    fisher = ng.Fisher(net, loss, x)
    variances = np.where(np.arange(3) == 1, p[0] + p[2], p * (1 - p)) if loss == SOFTMAX else -slope
    assert_close(np.diag(fisher.to_dense())[num_outputs:], variances, tol.product)
    assert_close(fisher.diagonal()[num_outputs:], variances, tol.product)
