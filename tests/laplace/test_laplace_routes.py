"""All routes to one posterior agree, and with matrices that are written out."""

import natgrad_fast as ng
import numpy as np
import pytest

LOSSES = [
    ("squared_error", 2),
    ("softmax_cross_entropy", 3),
    ("bernoulli_cross_entropy", 2),
    ("poisson", 2),
    ("student_t", 2),
    ("gaussian_mean_variance", 2),
]


def problem(width, dtype="float64"):
    net = ng.MLP([3, 5, 4, width], bias=[True, False, True], dtype=dtype, seed=1)
    x = np.random.default_rng(0).standard_normal((11, 3))
    return net, x, np.arange(11.0) % 4  # weights, some of them 0


def covariance(post, net, x):
    return post.predict(x, covariance=True)[1]


def explicit(net, x, precision):
    jacobian = ng.Jacobian(net, x).to_dense().reshape(len(x), net.sizes[-1], -1)
    return jacobian @ np.linalg.inv(precision) @ jacobian.transpose(0, 2, 1)


@pytest.mark.parametrize("prior", ["scalar", "layers", "parameters"])
@pytest.mark.parametrize(("loss", "width"), LOSSES)
def test_samples_and_dense_are_the_inverse_of_the_matrix(loss, width, prior):
    net, x, weights = problem(width)
    layers = np.array([0.5, 2.0, 3.0])
    sizes = [w.size + b.size for w, b in zip(net.weights, net.biases, strict=True)]
    each = np.random.default_rng(3).uniform(0.5, 2.0, net.num_params)
    given = {"scalar": 0.7, "layers": layers, "parameters": each}[prior]
    diagonal = {"scalar": 0.7, "layers": np.repeat(layers, sizes), "parameters": each}[prior]
    fisher = ng.Fisher(net, loss, x, sample_weight=weights).to_dense() * weights.sum()
    precision = fisher + diagonal * np.eye(net.num_params)
    new = np.random.default_rng(5).standard_normal((4, 3))
    wanted = explicit(net, new, precision)
    for route in ("samples", "dense"):
        post = ng.Laplace(net, loss, x, prior_precision=given, sample_weight=weights, route=route)
        assert post.route == route
        np.testing.assert_allclose(covariance(post, net, new), wanted, rtol=1e-8, atol=1e-10)
        var = post.predict(new)[1]
        np.testing.assert_allclose(var, np.einsum("icc->ic", wanted), rtol=1e-8)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize("prior", [0.7, (0.5, 2.0, 3.0)])
def test_kronecker_is_the_inverse_of_its_matrix(kind, prior):
    net, x, _ = problem(3)
    preconditioner = {"kfac": ng.KFAC, "ekfac": ng.EKFAC}[kind](net, "softmax_cross_entropy", x)
    sizes = [w.size + b.size for w, b in zip(net.weights, net.biases, strict=True)]
    diagonal = np.repeat(np.broadcast_to(prior, 3), sizes)
    precision = 11 * preconditioner.to_dense() + np.diag(diagonal)
    y = np.arange(11) % 3
    post = ng.Laplace(net, "softmax_cross_entropy", x, y, curvature=kind, prior_precision=prior)
    np.testing.assert_allclose(
        covariance(post, net, x), explicit(net, x, precision), rtol=1e-8, atol=1e-10
    )
    likelihood = -11 * ng.value(net, "softmax_cross_entropy", x, y)
    ratio = np.linalg.slogdet(precision)[1] - np.log(diagonal).sum()
    wanted = likelihood - 0.5 * np.sum(diagonal * net.params**2) - 0.5 * ratio
    assert post.log_evidence() == pytest.approx(wanted, rel=1e-10)


def test_last_layer_is_the_block_of_the_matrix():
    net, x, _ = problem(3)
    post = ng.Laplace(net, "softmax_cross_entropy", x, curvature="last_layer")
    size = post.num_params
    fisher = 11 * ng.Fisher(net, "softmax_cross_entropy", x).block(2) + np.eye(size)
    jacobian = ng.Jacobian(net, x).to_dense().reshape(11, 3, -1)[:, :, -size:]
    wanted = jacobian @ np.linalg.inv(fisher) @ jacobian.transpose(0, 2, 1)
    np.testing.assert_allclose(covariance(post, net, x), wanted, rtol=1e-8, atol=1e-10)
    draws = post.sample(3)
    assert (draws[:, :-size] == net.params[:-size]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"route": "samples"},
        {"route": "dense"},
        {"curvature": "kfac"},
        {"curvature": "last_layer"},
    ],
)
def test_moments_of_draws(options):
    net, x, _ = problem(2)
    post = ng.Laplace(net, "squared_error", x, prior_precision=0.5, sigma=0.5, **options)
    steps = post.sample(20_000, seed=0) - post.params
    rows = ng.Jacobian(net, x).to_dense()
    drawn = np.cov((steps @ rows.T).T)
    # Blocks of each case; a covariance of 20,000 draws is off by sqrt(2 / 20,000), here 5 of them.
    blocks = np.stack([drawn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(len(x))])
    wanted = covariance(post, net, x)
    scale = np.einsum("icc->ic", wanted).max(axis=1)[:, None, None]
    np.testing.assert_allclose(blocks / scale, wanted / scale, atol=0.05)
    np.testing.assert_array_equal(post.sample(2, seed=7), post.sample(2, seed=7))


def test_routes_agree_on_evidence_and_float32_nets():
    net, x, weights = problem(2, "float32")
    y = np.random.default_rng(2).standard_normal((11, 2))
    posts = [
        ng.Laplace(net, "squared_error", x, y, sample_weight=weights, sigma=0.3, route=route)
        for route in ("samples", "dense")
    ]
    first, second = (post.optimize_prior(optimize_sigma=True) for post in posts)
    assert first.log_evidence == pytest.approx(second.log_evidence, rel=1e-10)
    assert first.prior_precision == pytest.approx(second.prior_precision, rel=1e-6)
    np.testing.assert_allclose(posts[0].predict(x)[1], posts[1].predict(x)[1], rtol=1e-6)
    assert posts[0].params.dtype == np.float64


def test_repeated_cases_are_weights():
    net, x, _ = problem(2)
    once = ng.Laplace(net, "poisson", x, np.ones((11, 2)), sample_weight=np.full(11, 2.0))
    twice = ng.Laplace(net, "poisson", np.vstack([x, x]), np.ones((22, 2)))
    np.testing.assert_allclose(once.predict(x)[1], twice.predict(x)[1], rtol=1e-8)
    assert once.log_evidence() == pytest.approx(twice.log_evidence(), rel=1e-10)


@pytest.mark.parametrize("options", [{}, {"curvature": "kfac"}])
def test_chunks_of_new_cases_do_not_matter(options, monkeypatch):
    from natgrad_fast.laplace import predictive

    net, x, _ = problem(2)
    post = ng.Laplace(net, "squared_error", x, **options)
    whole = post.predict(x)[1]
    monkeypatch.setattr(predictive, "_CHUNK", 1)
    np.testing.assert_allclose(post.predict(x)[1], whole, rtol=1e-12)


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_weights_count_cases_of_kronecker_factors(kind):
    net, x, weights = problem(3)
    repeated = np.repeat(x, weights.astype(int), axis=0)
    once = ng.Laplace(net, "poisson", x, curvature=kind, sample_weight=weights)
    twice = ng.Laplace(net, "poisson", repeated, curvature=kind)
    np.testing.assert_allclose(once.predict(x)[1], twice.predict(x)[1], rtol=1e-8)
