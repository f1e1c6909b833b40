"""Per-case matrices in the space of outputs: products, factors Q S Q', draws from the model."""

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
    assert_close,
    same_bits,
)
from natgrad_fast import _core
from natgrad_fast._arrays import core_for

N = 77  # a last panel that is not full, for either float type
LOSSES = [SQUARED, SOFTMAX, BERNOULLI, POISSON, "student_t(3, 0.7)", MEAN_VARIANCE]
KINDS = ["fisher", "sampled_fisher", "hessian", "empirical_fisher"]
SAMPLES = 3


def loss_pair(name):
    """A loss of the library, and the same one of the oracle."""
    if name == "student_t(3, 0.7)":
        return ng.losses.StudentT(3.0, 0.7), reference.student_t(3.0, 0.7)
    return ng.losses.as_loss(name), reference.LOSSES[name]


def batch(loss, rng, num_outputs=4, n=N, spread=1.5, dtype="float64"):
    """Outputs z (n, C) and targets y, rounded to dtype."""
    z = spread * rng.standard_normal((n, num_outputs))
    num_targets = loss.num_targets(num_outputs)
    y = {
        SOFTMAX: lambda: np.eye(num_outputs)[rng.integers(0, num_outputs, n)],
        BERNOULLI: lambda: rng.random((n, num_outputs)),
        POISSON: lambda: 1.0 * rng.poisson(1.5, (n, num_outputs)),
    }.get(loss.name, lambda: 2.0 * rng.standard_normal((n, num_targets)))()
    return z.astype(dtype), y.astype(dtype)


def matrices(loss, kind, z, y, **options):
    options.setdefault("samples", SAMPLES)
    return core_for(z.dtype).OutputMatrices(loss.core, kind, z, y, **options)


def dense(m):
    """Q S Q', in float64."""
    q = m.factor().astype(float)
    return (q * m.signs()[:, None, :]) @ q.transpose(0, 2, 1)


@pytest.mark.parametrize("num_outputs", [2, 4, 40])
@pytest.mark.parametrize("kind", ["fisher", "hessian", "empirical_fisher"])
@pytest.mark.parametrize("name", LOSSES)
def test_matrices_equal_oracle(name, kind, num_outputs, dtype, tol, rng):
    loss, oracle = loss_pair(name)
    z, y = batch(loss, rng, num_outputs, dtype=dtype)
    exact_z, exact_y = z.astype(float), y.astype(float)
    if kind == "fisher":
        exact = oracle.fisher(exact_z)
    elif kind == "hessian":
        exact = oracle.hessian(exact_z, exact_y)
    else:
        g = oracle.gradient(exact_z, exact_y)
        exact = g[:, :, None] * g[:, None, :]
    m = matrices(loss, kind, z, y)
    # elementary functions and a few products each: forward is far above, per case as errors scale
    for found, expected in zip(dense(m), exact, strict=True):
        assert_close(found, expected, tol.forward)
    for c in range(num_outputs):
        unit = np.zeros((N, num_outputs), dtype)
        unit[:, c] = 1
        assert_close(m.multiply(unit), exact[:, :, c], tol.forward)


@pytest.mark.parametrize("num_outputs", [2, 4, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_products_equal_factors(name, kind, num_outputs, dtype, tol, rng):
    loss, _ = loss_pair(name)
    z, y = batch(loss, rng, num_outputs, dtype=dtype)
    m = matrices(loss, kind, z, y)
    q, exact = m.factor().astype(float), dense(m)
    assert q.shape == (N, num_outputs, m.num_columns)
    r, s = rng.standard_normal((2, N, num_outputs)).astype(dtype)
    w = rng.standard_normal((N, m.num_columns)).astype(dtype)
    assert_close(m.multiply(r), np.einsum("ncd,nd->nc", exact, r), tol.forward)
    assert_close(m.inner(r, s), np.einsum("nc,ncd,nd->n", r, exact, s), tol.forward)
    assert_close(m.multiply_factor(w), np.einsum("nck,nk->nc", q, w), tol.forward)
    assert_close(m.multiply_factor_transposed(r), np.einsum("nck,nc->nk", q, r), tol.forward)
    assert np.isin(m.signs(), [-1.0, 1.0]).all()
    if m.positive_semidefinite:
        assert (m.signs() == 1).all()
        assert min(m.inner(r, r)) >= 0.0


def test_counts_and_claims():
    def facts(name, kind, num_outputs=4):
        loss, _ = loss_pair(name)
        z, y = batch(loss, np.random.default_rng(0), num_outputs)
        m = matrices(loss, kind, z, y, samples=7)
        return m.num_columns, m.needs_targets, m.positive_semidefinite

    for name in LOSSES:
        columns = 3 if name == SOFTMAX else 4
        natural = name in (SQUARED, SOFTMAX, BERNOULLI, POISSON)
        assert facts(name, "fisher") == (columns, False, True)
        assert facts(name, "sampled_fisher") == (7, False, True)
        assert facts(name, "hessian") == (columns, not natural, natural)
        assert facts(name, "empirical_fisher") == (1, True, True)
        core = loss_pair(name)[0].core
        assert core.fisher_is_hessian == loss_pair(name)[0].fisher_is_ggn == natural
        assert core.hessian_needs_targets == loss_pair(name)[0].ggn_needs_targets
        assert core.num_targets(4) == loss_pair(name)[0].num_targets(4)
    assert facts(SOFTMAX, "fisher", 1)[0] == 1


@pytest.mark.parametrize("name", ["student_t(3, 0.7)", MEAN_VARIANCE])
def test_signs_are_the_inertia_of_the_hessian(name, rng):
    loss, oracle = loss_pair(name)
    z, y = batch(loss, rng)
    negative = (matrices(loss, "hessian", z, y).signs() < 0).sum(axis=1)
    eigenvalues = np.linalg.eigvalsh(oracle.hessian(z, y))
    assert (negative == (eigenvalues < 0).sum(axis=1)).all()
    assert negative.any()


def test_softmax_of_one_output_has_a_zero_column(dtype, rng):
    z, y = rng.standard_normal((N, 1)).astype(dtype), np.ones((N, 1), dtype)
    m = matrices(loss_pair(SOFTMAX)[0], "fisher", z, y)
    assert not m.factor().any()
    assert not m.multiply(z).any()
    assert not m.multiply_factor(z).any()
    assert not m.multiply_factor_transposed(z).any()
    r, rest = m.divide_factor(np.zeros((N, 1), dtype))
    assert not r.any()
    assert not rest.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_and_threads_leave_the_bits_alone(name, kind, dtype, rng):
    loss, _ = loss_pair(name)
    z, y = batch(loss, rng, dtype=dtype)
    r = rng.standard_normal(z.shape).astype(dtype)
    whole = matrices(loss, kind, z, y, seed=5)
    for options in [{"chunk": 1}, {"chunk": 2, "num_threads": 3}, {"num_threads": 2}]:
        part = matrices(loss, kind, z, y, seed=5, **options)
        assert same_bits(part.multiply(r), whole.multiply(r))
        assert same_bits(part.factor(), whole.factor())
        assert same_bits(part.signs(), whole.signs())
        assert part.inner(r, r) == whole.inner(r, r)
        for found, expected in zip(part.divide_factor(r), whole.divide_factor(r), strict=True):
            assert same_bits(found, expected)


# ------------------------------------------------------------------------------------------------
# Division by the factor


@pytest.mark.parametrize("spread", [0.5, 20.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_division_splits_the_gradient(name, kind, spread, dtype, tol, rng):
    """e = Q r + rest, with r = 0 or rest = 0 in each case; of mild cases nothing is left over."""
    loss, oracle = loss_pair(name)
    if name == MEAN_VARIANCE:
        spread = min(spread, 4.0)  # variances of e^20 leave no finite float32 gradient
    z, y = batch(loss, rng, spread=spread, dtype=dtype)
    m = matrices(loss, kind, z, y)
    e = oracle.gradient(z.astype(float), y.astype(float)).astype(dtype)
    if kind == "empirical_fisher":
        e = m.factor()[:, :, 0]
    r, rest = m.divide_factor(e)
    back = m.multiply_factor(r) + rest
    # a division and a product, and a sum over C entries of size <= |e|
    assert_close(back, e, 10 * tol.forward)
    divided = ~rest.any(axis=1)
    assert not r[~divided].any()
    assert same_bits(rest[~divided], e[~divided])
    # the limit holds for each of the C = 4 entries of e / q, the reflector keeps their norm
    assert np.abs(r).max() <= (2e2 if dtype == "float32" else 2e4)
    if kind == "sampled_fisher":
        assert not divided.any()
    elif kind == "empirical_fisher":
        assert (r == 1).all()
    elif spread < 1 and (name != MEAN_VARIANCE or kind == "fisher"):
        assert divided.mean() > 0.9


def test_division_refuses_what_is_out_of_reach(dtype):
    softmax, empirical = loss_pair(SOFTMAX)[0], loss_pair(SQUARED)[0]
    z = np.array([[0, 0], [60, -60], [60, -60], [0, 0]], dtype)
    e = np.array([[-0.5, 0.5], [1, -1], [0, 0], [1, 1]], dtype)
    m = matrices(softmax, "fisher", z, None)
    r, rest = m.divide_factor(e)
    assert abs(r[0, 0]) == pytest.approx(1.0)  # |Q^+ e|^2 = sum e^2 / p = 1
    assert not r[1:].any()  # sure and wrong; sure and right; not orthogonal to the null space
    assert rest.tolist() == [[0, 0], [1, -1], [0, 0], [1, 1]]
    m = matrices(empirical, "empirical_fisher", z, e)
    _, rest = m.divide_factor(e)  # not the gradient z - y
    assert rest.tolist() == e.tolist()


@pytest.mark.parametrize("kind", ["fisher", "sampled_fisher"])
@pytest.mark.parametrize("name", [SOFTMAX, BERNOULLI])
def test_extreme_logits(name, kind, dtype, rng):
    loss, oracle = loss_pair(name)
    z = 1e4 * np.array([[1, -1, 0], [-1, 1, -1], [1, 1, 1], [0, -1, 0]], dtype)
    m = matrices(loss, kind, z, None)
    r = rng.standard_normal(z.shape).astype(dtype)
    for product in [m.factor(), m.multiply(r), m.multiply_factor_transposed(r), m.inner(r, r)]:
        assert np.isfinite(product).all()
    for part in m.divide_factor(oracle.gradient(z.astype(float), 0 * z).astype(dtype)):
        assert np.isfinite(part).all()
    if kind == "fisher":  # absolute: entries are probabilities
        assert np.abs(dense(m) - oracle.fisher(z.astype(float))).max() <= 1e-6


# ------------------------------------------------------------------------------------------------
# Draws


@pytest.mark.parametrize("key", [(0, 0), (20141193, 2**64 - 1)])
@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (1, 2, 3, 4), (2**40, 2**63, 5, 2**64 - 1)])
def test_philox_equals_numpy(key, counter):
    words = {"key": np.array(key, np.uint64), "counter": np.array(counter, np.uint64)}
    exact = np.random.Philox(**words).random_raw(23)
    assert _core.philox(key, counter, 23) == exact.tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_draws_depend_on_seed_case_and_sample_alone(name, dtype, rng):
    loss, _ = loss_pair(name)
    z = np.repeat(batch(loss, rng, n=1, spread=0.3, dtype=dtype)[0], N, axis=0)
    q = matrices(loss, "sampled_fisher", z, None, samples=4, seed=1).factor()
    again = matrices(loss, "sampled_fisher", z[:30], None, samples=4, seed=1).factor()
    assert same_bits(again, q[:30])
    # more samples: the first ones stay, up to the factor 1/sqrt(S)
    more = matrices(loss, "sampled_fisher", z, None, samples=16, seed=1).factor()
    assert_close(2 * more[:, :, :4], q, 1e-6)
    other = matrices(loss, "sampled_fisher", z, None, samples=4, seed=2).factor()
    assert not np.array_equal(other, q)
    assert np.unique(q[:, :, 0], axis=0).shape[0] > 2  # cases of equal z draw apart
    assert np.unique(q.reshape(-1, 4).T, axis=0).shape[0] == 4


@pytest.mark.parametrize("name", [*LOSSES, "poisson of 1e11"])
def test_draws_have_the_moments_of_the_law(name, dtype):
    """E g = 0 and E gg' = F_R, each within 5 standard errors of 60,000 draws, seed fixed."""
    count = 60_000
    loss, oracle = loss_pair(name.split(" of")[0])
    z = np.array([[0.3, -1.1, 0.9, 0.2]], dtype)
    if name == "poisson of 1e11":
        z += 25
    g = matrices(loss, "sampled_fisher", z, None, samples=count, seed=3).factor()[0].T
    g = g.astype(float) * np.sqrt(count)
    squares = g[:, :, None] * g[:, None, :]
    for values, exact in [(g, np.zeros(4)), (squares, oracle.fisher(z.astype(float))[0])]:
        error = np.abs(values.mean(axis=0) - exact)
        # rounding: entries that are the same in every draw have no standard error
        assert (error <= 5 * values.std(axis=0) / np.sqrt(count) + 1e-6 * np.abs(exact)).all()


def test_draws_are_labels_of_the_law(dtype):
    """Gradients p - onehot(k), p - b and m - k give back whole labels, in their frequencies."""
    count, z = 60_000, np.array([[0.3, -1.1, 0.9]], dtype)

    def draws(name):
        m = matrices(loss_pair(name)[0], "sampled_fisher", z, None, samples=count, seed=9)
        mean = {SOFTMAX: reference.softmax, BERNOULLI: reference.logistic, POISSON: np.exp}[name](
            z.astype(float)
        )
        labels = mean - m.factor()[0].T.astype(float) * np.sqrt(count)
        assert np.abs(labels - np.round(labels)).max() < 2e-5  # float32 at counts up to 20
        return np.round(labels), mean[0]

    labels, p = draws(SOFTMAX)
    assert (labels.sum(axis=1) == 1).all()
    # 5 standard errors of a frequency
    assert (np.abs(labels.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()
    labels, p = draws(BERNOULLI)
    assert np.isin(labels, [0, 1]).all()
    assert (np.abs(labels.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()
    labels, rate = draws(POISSON)
    none = np.exp(-rate)
    frequency = (labels == 0).mean(axis=0)
    assert (np.abs(frequency - none) <= 5 * np.sqrt(none * (1 - none) / count)).all()


def test_draws_of_rates_that_overflow_stay_defined(dtype):
    z = np.array([[-1e4, 30.0, 1e4]], dtype)
    g = matrices(loss_pair(POISSON)[0], "sampled_fisher", z, None, samples=5).factor()
    assert (g[0, 0] == 0).all()
    assert np.isfinite(g[0, 1]).all()
    assert not np.isnan(g[0, 2]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fishy", None, 1), "unknown output matrix 'fishy'"),
        (("sampled_fisher", None, 0), "samples must be >= 1, got 0"),
        (("empirical_fisher", None, 1), "y is None, wanted targets"),
        (("hessian", np.ones((2, 3)), 1), "y has length 2 in dimension 0, wanted 5"),
    ],
)
def test_bad_arguments(arguments, message):
    kind, y, samples = arguments
    with pytest.raises(ValueError, match=message):
        matrices(loss_pair(STUDENT)[0], kind, np.zeros((5, 3)), y, samples=samples)
