"""Fisher, Monte-Carlo Fisher, GGN and empirical Fisher: what they are, and how they differ."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import (
    BERNOULLI,
    GAUSS_NEWTON,
    MEAN_VARIANCE,
    POISSON,
    SOFTMAX,
    SQUARED,
    STUDENT,
    Case,
    assert_close,
    curvature,
    exact_curvature,
    same_bits,
)

PROBLEM = Case("4-6-3-softmax", (4, 6, 3), SOFTMAX)
NATURAL = [SQUARED, SOFTMAX, BERNOULLI, POISSON]
LAWS = [Case(f"3-4-2-{loss}", (3, 4, 2), loss) for loss in reference.LOSSES]


@pytest.mark.parametrize("kind", GAUSS_NEWTON)
@pytest.mark.parametrize("case", cases.SMALL + cases.OTHER_LAWS, ids=cases.ids)
def test_positive_semidefinite_where_promised(case, kind, dtype, tol):
    operator = curvature(kind, case.problem(dtype), case.loss)
    indefinite = kind == "ggn" and case.loss in (STUDENT, MEAN_VARIANCE)
    assert operator.positive_semidefinite is not indefinite
    if indefinite:
        return
    dense = operator.to_dense().astype(float)
    eigenvalues = np.linalg.eigvalsh(0.5 * (dense + dense.T))
    assert eigenvalues[0] >= -tol.product * eigenvalues[-1]


@pytest.mark.parametrize("case", cases.LARGE, ids=cases.ids)
def test_large_nets_equal_oracle(case, dtype, tol, rng):
    problem = case.problem(dtype)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    theta, x, _ = problem.args
    exact = reference.fisher_product(problem.oracle, case.loss, theta, x, v.astype(float))
    assert_close(ng.Fisher(problem.net, case.loss, x) @ v, exact, tol.product)


@pytest.mark.parametrize("kind", GAUSS_NEWTON)
@pytest.mark.parametrize("case", cases.SMALL + cases.OTHER_LAWS, ids=cases.ids)
def test_blocks_of_layers(case, kind, dtype, tol):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.02, "damping": 0.01}
    operator = curvature(kind, problem, case.loss, **options)
    exact = exact_curvature(kind, problem, case.loss, **options)
    blocks = operator.block_diagonal()
    places = reference.layer_slices(problem.oracle)
    assert len(blocks) == len(places)
    for layer, (block, place) in enumerate(zip(blocks, places, strict=True)):
        assert block.dtype == dtype
        assert_close(block, exact[place, place], tol.product)
        assert same_bits(block, block.T)
        assert same_bits(block, operator.block(layer))
    assert same_bits(operator.block(np.int64(0)), blocks[0])


# ------------------------------------------------------------------------------------------------
# Fisher and GGN


@pytest.mark.parametrize(
    "case", [c for c in cases.SMALL + cases.LAWS if c.loss in NATURAL], ids=cases.ids
)
def test_fisher_is_the_ggn_for_natural_parameters(case, dtype):
    problem = case.problem(dtype)
    fisher, ggn = (curvature(kind, problem, case.loss).to_dense() for kind in ("fisher", "ggn"))
    assert same_bits(fisher, ggn)
    assert same_bits(ng.GGN(problem.net, case.loss, problem.x).to_dense(), ggn)


@pytest.mark.parametrize(
    "case", cases.OTHER_LAWS + [c for c in cases.LAWS if c.loss not in NATURAL], ids=cases.ids
)
def test_fisher_is_not_the_ggn_for_other_laws(case, dtype):
    problem = case.problem(dtype)
    fisher, ggn = (curvature(kind, problem, case.loss).to_dense() for kind in ("fisher", "ggn"))
    # they agree in the mean over labels of the model only, and these labels are not its own
    assert np.linalg.norm(fisher - ggn) > 0.05 * np.linalg.norm(fisher)


@pytest.mark.parametrize("loss", [STUDENT, MEAN_VARIANCE])
def test_large_residuals_make_the_ggn_indefinite(loss, dtype):
    """Martens: G is semidefinite only where the loss is convex in z, while F always is."""
    problem = Case(f"4-6-4-{loss}-far", (4, 6, 4), loss).problem(dtype)
    far = problem._replace(y=problem.y + 30)  # no longer within sqrt(df) scales of any output
    ggn, fisher = (curvature(kind, far, loss) for kind in ("ggn", "fisher"))
    assert not ggn.positive_semidefinite
    assert fisher.positive_semidefinite
    lowest = np.linalg.eigvalsh(ggn.to_dense().astype(float))[0]
    assert lowest < 0.0
    g = ng.value_and_grad(far.net, loss, far.x, far.y)[1]
    stopped = ng.cg(ggn, g, damping=-0.1 * lowest)
    assert stopped.status is ng.Status.NEGATIVE_CURVATURE
    assert ng.cg(ggn, g, damping=-2.0 * lowest, rtol=1e-3).status.success
    assert ng.cg(fisher, g, damping=-0.1 * lowest, rtol=1e-3).status.success


@pytest.mark.parametrize("loss", [SOFTMAX, STUDENT])
def test_labels_of_the_model_turn_the_ggn_into_the_fisher(loss, rng):
    """F = E[G] over labels drawn at the outputs: -E[d2 log r] = E[d log r (d log r)']."""
    case = Case(f"2-3-3-{loss}-own-labels", (2, 3, 3), loss, n=4)
    problem = case.problem("float64")
    copies = 20_000
    x = np.repeat(problem.x, copies, axis=0)
    z = problem.net(x)
    if loss == STUDENT:
        y = z + rng.standard_t(4.0, z.shape)
    else:
        y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    own = problem._replace(x=x, y=y)
    ggn = curvature("ggn", own, loss, num_threads=2).to_dense()
    # 80,000 labels of a bounded d2L: standard error 1 / sqrt(80,000) = 0.35 % of its spread, which
    # is of the size of F; five of them. Softmax has no spread at all.
    assert_close(ggn, exact_curvature("fisher", problem, loss), 0.02 if loss == STUDENT else 1e-10)


def test_fisher_is_the_second_order_term_of_the_divergence(rng):
    """KL(theta || theta + t v) = t^2 v'Fv / 2 + O(t^3): another road to F, without a Jacobian."""
    problem = PROBLEM.problem("float64")
    v = rng.standard_normal(problem.net.num_params)
    theta, x, _ = problem.args
    p = reference.softmax(problem.oracle.forward(theta, x))

    def divergence(t):
        q = reference.softmax(problem.oracle.forward(theta + t * v, x))
        return (p * np.log(p / q)).sum(axis=1).mean()

    t = 1e-3  # t + (-t) removes the cubic term; what is left is t^2 relative
    second = (divergence(t) + divergence(-t)) / t**2
    assert ng.Fisher(problem.net, SOFTMAX, x).quadratic_form(v) == pytest.approx(second, rel=1e-3)


# ------------------------------------------------------------------------------------------------
# Empirical Fisher


def test_empirical_fisher_is_neither(dtype):
    problem = PROBLEM.problem(dtype)
    empirical, fisher = (
        curvature(kind, problem, SOFTMAX).to_dense() for kind in ("empirical", "fisher")
    )
    assert np.linalg.norm(empirical - fisher) > 0.1 * np.linalg.norm(fisher)


def test_empirical_fisher_has_the_rank_of_the_batch():
    problem = Case("4-6-3-few-cases", (4, 6, 3), SQUARED, n=5).problem("float64")
    assert np.linalg.matrix_rank(curvature("empirical", problem, SQUARED).to_dense()) == 5
    assert np.linalg.matrix_rank(curvature("fisher", problem, SQUARED).to_dense()) == 15


def test_empirical_fisher_vanishes_at_a_perfect_fit(dtype):
    """Martens on the empirical Fisher: with no residual left it is 0, the Fisher is not."""
    problem = Case("4-6-3-fit", (4, 6, 3), SQUARED).problem(dtype)
    fit = problem._replace(y=problem.net(problem.x))
    assert curvature("empirical", fit, SQUARED).trace() == 0.0
    assert curvature("fisher", fit, SQUARED).trace() > 1.0


def test_empirical_fisher_of_one_case_is_its_gradient_squared(dtype, tol):
    problem = Case("4-6-3-one", (4, 6, 3), BERNOULLI, n=1).problem(dtype)
    g = ng.value_and_grad(problem.net, BERNOULLI, problem.x, problem.y)[1].astype(float)
    assert_close(curvature("empirical", problem, BERNOULLI).to_dense(), np.outer(g, g), tol.product)


# ------------------------------------------------------------------------------------------------
# Monte-Carlo Fisher


def sampled(problem, loss, samples, seed, **options):
    return ng.Fisher(problem.net, loss, problem.x, samples=samples, seed=seed, **options)


@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_sampled_fisher_is_unbiased(case, dtype):
    """The mean over seeds is within its own standard error of the exact matrix."""
    problem, seeds = case.problem(dtype), 100
    exact = exact_curvature("fisher", problem, case.loss)
    found = np.stack(
        [sampled(problem, case.loss, 400, seed).to_dense().astype(float) for seed in range(seeds)]
    )
    error = found.mean(axis=0) - exact
    deviation = found.std(axis=0, ddof=1) / np.sqrt(seeds)
    # Each entry is a mean of 100 * 400 * 17 draws. About 350 different ones: the largest of as many
    # normal errors is near 3 deviations, beyond 5 with probability 2e-4. Floor: rounding.
    floor = 1e-6 if dtype == "float32" else 1e-14
    assert (np.abs(error) <= 5.0 * deviation + floor * np.abs(exact).max()).all()
    # and the test has power: a factor 1.05 would be 5 deviations of the matrix or more
    assert np.linalg.norm(deviation) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_sampled_fisher_converges(case):
    """The mean squared error is V / S: a bias would stay, a repeated draw would not fall."""
    problem = case.problem("float64")
    exact = exact_curvature("fisher", problem, case.loss)

    def mean_squared_error(samples, seeds):
        matrices = (sampled(problem, case.loss, samples, s).to_dense() for s in range(seeds))
        return np.mean([np.linalg.norm(matrix - exact) ** 2 for matrix in matrices])

    one, many = mean_squared_error(1, 200), 64 * mean_squared_error(64, 200)
    # Of 200 squared errors with a relative spread of about 1 to 3: each mean within 7 to 20 %.
    assert 0.6 * one < many < 1.6 * one


def test_draws_are_fixed_by_the_seed(dtype, rng):
    problem = PROBLEM.problem(dtype)
    v = rng.standard_normal(problem.net.num_params)
    operator = sampled(problem, SOFTMAX, 2, 5)
    product = operator @ v
    assert same_bits(operator @ v, product)  # the same draws in every product
    assert same_bits(sampled(problem, SOFTMAX, 2, 5) @ v, product)
    block = operator.to_dense()
    seen = {product.tobytes()}
    for seed in [0, 6, 2**32 + 5, 2**62, 2**63 - 1]:
        other = sampled(problem, SOFTMAX, 2, seed)
        assert np.linalg.norm(other.to_dense() - block) > 0.05 * np.linalg.norm(block)
        seen.add((other @ v).tobytes())
    assert len(seen) == 6
    assert same_bits(
        ng.Fisher(problem.net, SOFTMAX, problem.x, samples=2).to_dense(),
        sampled(problem, SOFTMAX, 2, 0).to_dense(),
    )


def test_all_samples_of_a_case_are_different():
    """S equal draws would leave the rank of one draw."""
    problem = Case("4-6-3-one-case", (4, 6, 3), SQUARED, n=1).problem("float64")
    for samples in [1, 2, 3]:
        dense = sampled(problem, SQUARED, samples, 0).to_dense()
        assert np.linalg.matrix_rank(dense) == samples
    assert np.linalg.matrix_rank(sampled(problem, SQUARED, 9, 0).to_dense()) == 3


def test_draws_of_a_case_do_not_depend_on_the_others(dtype, tol):
    problem = PROBLEM.problem(dtype)
    first = problem._replace(x=problem.x[:6])
    only_first = (np.arange(17) < 6).astype(float)
    assert_close(
        sampled(problem, SOFTMAX, 2, 1, sample_weight=only_first).to_dense(),
        sampled(first, SOFTMAX, 2, 1).to_dense(),
        tol.product,
    )


def test_labels_are_drawn_not_averaged(tol, dtype):
    """One Bernoulli output: (p - b)^2 with b in {0, 1} for any seed, never p (1 - p)."""
    net = ng.MLP([1, 1], bias=False, dtype=dtype)
    net.params[:] = 0.4
    p = 1.0 / (1.0 + np.exp(-0.4))
    found = [
        float(ng.Fisher(net, BERNOULLI, [[1.0]], samples=1, seed=seed).trace())
        for seed in range(200)
    ]
    ones = np.isclose(found, (1 - p) ** 2, rtol=tol.product)
    zeros = np.isclose(found, p**2, rtol=tol.product)
    assert (ones ^ zeros).all()
    # 200 draws of b, standard deviation 0.035; four of them
    assert abs(ones.mean() - p) < 0.14
