"""The posterior against closed forms: Bayesian linear regression and generalised linear models."""

import math

import natgrad_fast as ng
import numpy as np
import pytest


def linear_problem(seed=0, n=40, d=3):
    """A linear net at the mode of its posterior, in closed form."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = x @ rng.standard_normal(d) + 0.7 + 0.3 * rng.standard_normal(n)
    design = np.hstack([x, np.ones((n, 1))])
    alpha, sigma = 0.4, 0.35
    precision = design.T @ design / sigma**2 + alpha * np.eye(d + 1)
    net = ng.MLP([d, 1], dtype="float64")
    net.params = np.linalg.solve(precision, design.T @ y / sigma**2)
    return net, x, y, design, alpha, sigma


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "last_layer", "kfac", "ekfac"])
def test_linear_regression_in_closed_form(curvature, n):
    net, x, y, design, alpha, sigma = linear_problem(n=n)
    post = ng.Laplace(
        net, "squared_error", x, y, curvature=curvature, prior_precision=alpha, sigma=sigma
    )
    precision = design.T @ design / sigma**2 + alpha * np.eye(4)
    new = np.random.default_rng(1).standard_normal((7, 3))
    rows = np.hstack([new, np.ones((7, 1))])
    mean, var = post.predict(new)
    expected = np.einsum("ij,ij->i", rows, np.linalg.solve(precision, rows.T).T)
    np.testing.assert_allclose(mean[:, 0], rows @ net.params, rtol=1e-12)
    np.testing.assert_allclose(var[:, 0], expected, rtol=1e-10)
    noisy = post.predict(new, covariance=True, noise=True)[1]
    np.testing.assert_allclose(noisy[:, 0, 0], expected + sigma**2, rtol=1e-10)
    # At the mode the evidence of a linear model is exact: y ~ N(0, sigma^2 I + X X' / alpha).
    law = sigma**2 * np.eye(n) + design @ design.T / alpha
    exact = -0.5 * (
        y @ np.linalg.solve(law, y) + np.linalg.slogdet(law)[1] + n * math.log(2 * math.pi)
    )
    assert post.log_evidence() == pytest.approx(exact, rel=1e-10)
    gamma = np.trace(np.linalg.solve(precision, design.T @ design)) / sigma**2
    assert post.effective_parameters == pytest.approx(gamma, rel=1e-10)


def test_optimum_of_the_evidence():
    net, x, y, _, alpha, sigma = linear_problem()
    post = ng.Laplace(net, "squared_error", x, y, prior_precision=alpha, sigma=sigma)
    found = post.optimize_prior(optimize_sigma=True)
    assert found.converged
    assert found.log_evidence == post.log_evidence()
    assert all(b >= a - 1e-9 for a, b in zip(found.history[:-1], found.history[1:], strict=True))
    for a, s in [(1.01, 1.0), (0.99, 1.0), (1.0, 1.01), (1.0, 0.99)]:  # neighbours are worse
        other = ng.Laplace(
            net,
            "squared_error",
            x,
            y,
            prior_precision=found.prior_precision * a,
            sigma=found.sigma * s,
        )
        assert other.log_evidence() < found.log_evidence


@pytest.mark.parametrize("loss", ["bernoulli_cross_entropy", "poisson"])
def test_standard_errors_of_generalised_linear_models(loss):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((50, 2))
    net = ng.MLP([2, 1], dtype="float64", seed=3)
    z = net(x)[:, 0]
    rate = 1 / (1 + np.exp(-z)) if loss.startswith("b") else np.exp(z)
    w = rate * (1 - rate) if loss.startswith("b") else rate
    design = np.hstack([x, np.ones((50, 1))])
    count = rng.integers(0, 4, 50).astype(float)
    information = design.T @ ((w * count)[:, None] * design) + 1e-3 * np.eye(3)
    post = ng.Laplace(net, loss, x, prior_precision=1e-3, sample_weight=count)
    covariances = post.predict(np.vstack([np.eye(2), np.zeros(2)]))[1][:, 0]
    inverse = np.linalg.inv(information)
    rows = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    np.testing.assert_allclose(covariances, np.diag(rows @ inverse @ rows.T), rtol=1e-10)


def test_evidence_counts_the_constants_of_poisson():
    net = ng.MLP([1, 1], dtype="float64", init="zeros")
    x, y = np.ones((4, 1)), np.array([0.0, 1.0, 2.0, 5.0])
    post = ng.Laplace(net, "poisson", x, y, prior_precision=2.0)
    likelihood = sum(-1.0 - math.lgamma(k + 1) for k in y)  # rate 1
    ratio = np.linalg.slogdet(np.eye(2) + 4 * np.ones((2, 2)) / 2.0)[1]
    assert post.log_evidence() == pytest.approx(likelihood - 0.5 * ratio, rel=1e-12)


def test_probabilities():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((20, 2))
    net = ng.MLP([2, 4, 3], dtype="float64", seed=1)
    post = ng.Laplace(net, "softmax_cross_entropy", x, prior_precision=5.0)
    new = rng.standard_normal((6, 2))
    mean, var = post.predict(new)
    z = mean / np.sqrt(1 + math.pi * var / 8)
    wanted = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(post.predict_proba(new), wanted, rtol=1e-12)
    z = mean - np.log(np.exp(mean).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(post.predict_proba(new, method="mean"), np.exp(z), rtol=1e-12)
    drawn = post.predict_proba(new, method="monte_carlo", samples=4000, seed=1)
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0, rtol=1e-12)
    # Draws of the parameters of the linearised net are another way to the same integral.
    steps = post.sample(4000, seed=2) - post.params
    logits = mean + (ng.Jacobian(net, new) @ steps.T).T.reshape(4000, 6, 3)
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    # Two means of 4000 numbers in [0, 1]: 5 sqrt(2 / 4000) / 2 at most.
    np.testing.assert_allclose(drawn, p.mean(axis=0), atol=0.056)


def test_the_posterior_keeps_its_parameters():
    net, x, y, *_ = linear_problem()
    post = ng.Laplace(net, "squared_error", x, y)
    before = post.predict(x)
    net.params = net.params + 1.0
    for a, b in zip(before, post.predict(x), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "exact"}, "curvature"),
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"prior_precision": np.nan}, "prior_precision"),
        ({"prior_precision": [1.0, -1.0]}, "prior_precision"),
        ({"prior_precision": np.ones(5)}, "prior_precision"),
        ({"sigma": -1.0}, "sigma"),
        ({"curvature": "kfac", "prior_precision": np.ones(21)}, "prior_precision"),
        ({"curvature": "kfac", "route": "dense"}, "route"),
        ({"route": "samples"}, "samples"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    net = ng.MLP([3, 4, 1], dtype="float64")
    x = np.random.default_rng(0).standard_normal((30, 3))
    with pytest.raises(ValueError, match=message):
        ng.Laplace(net, "squared_error", x, **options)


def test_what_is_missing_is_said():
    net = ng.MLP([3, 4, 1])
    with pytest.raises(ValueError, match="y is missing"):
        ng.Laplace(net, "squared_error", np.eye(3)).log_evidence()
    with pytest.raises(ValueError, match="y is missing"):
        ng.Laplace(net, "student_t", np.eye(3), curvature="ggn")
    with pytest.raises(ValueError, match="not positive definite"):
        ng.Laplace(
            net, "student_t", np.eye(3), np.full(3, 9.0), curvature="ggn", prior_precision=1e-3
        )
    with pytest.raises(ValueError, match="predict_proba"):
        ng.Laplace(net, "squared_error", np.eye(3)).predict_proba(np.eye(3))
    with pytest.raises(ValueError, match="sigma"):
        ng.Laplace(net, "poisson", np.eye(3), sigma=2.0)


def test_optimum_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    y = x @ [1.0, 2.0, -1.0] + 0.3 * rng.standard_normal(40)
    none = dict.fromkeys(["alpha_1", "alpha_2", "lambda_1", "lambda_2"], 0.0)
    model = linear_model.BayesianRidge(
        fit_intercept=False, compute_score=True, tol=1e-14, max_iter=5000, **none
    ).fit(x, y)
    net = ng.MLP([3, 1], bias=False, dtype="float64")
    net.params = model.coef_
    post = ng.Laplace(net, "squared_error", x, y)
    found = post.optimize_prior(optimize_sigma=True)
    assert found.prior_precision == pytest.approx(model.lambda_, rel=1e-10)
    assert found.sigma**-2 == pytest.approx(model.alpha_, rel=1e-10)
    assert found.log_evidence == pytest.approx(model.scores_[-1], rel=1e-10)
    deviation = np.sqrt(post.predict(x, noise=True)[1][:, 0])
    np.testing.assert_allclose(deviation, model.predict(x, return_std=True)[1], rtol=1e-10)
