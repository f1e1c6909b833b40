"""Per-case matrices in the space of outputs: products, factors Q S Q', draws from the model.

They are looked at through a net without hidden layers, whose inputs are unit vectors: its outputs
are its weights, and its curvature matrices consist of the matrices of the cases, divided by N.
"""

import math

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
    assert_close,
    same_bits,
)
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


class Matrices:
    """The matrices M_i = Q_i S_i Q_i' of cases with outputs z (n, C) and targets y.

    Vectors of the net are (C, n), one column a case; vectors of the sample space (n, columns).
    """

    def __init__(self, loss, kind, z, y=None, samples=SAMPLES, seed=0, **options):
        self.n, self.num_outputs = z.shape
        net = ng.MLP([self.n, self.num_outputs], bias=False, dtype=z.dtype, init="zeros")
        net.weights[0][:] = z.T
        x = np.eye(self.n, dtype=z.dtype)
        assert same_bits(net(x), z)
        self.operator = {
            "fisher": lambda: ng.Fisher(net, loss, x, **options),
            "sampled_fisher": lambda: ng.Fisher(
                net, loss, x, samples=samples, seed=seed, **options
            ),
            "hessian": lambda: ng.GGN(net, loss, x, y, **options),
            "empirical_fisher": lambda: ng.EmpiricalFisher(net, loss, x, y, **options),
        }[kind]()
        self.num_columns = self.operator.core.num_columns
        self.positive_semidefinite = self.operator.positive_semidefinite
        self._space = None

    @property
    def space(self):
        """Vectors w times U = [Q_i / sqrt(n)], which the core multiplies with case by case."""
        if self._space is None:
            core = core_for(self.operator.dtype)
            self._space = core.SampleSpace(self.operator.core)
        return self._space

    def multiply(self, r):
        product = self.operator @ np.ascontiguousarray(r.T).ravel()
        return self.n * product.reshape(self.num_outputs, self.n).T

    def inner(self, r, s):
        """r_i' M_i s_i of every case."""
        values = np.empty(self.n)
        for i in range(self.n):
            at_i = np.zeros((2, self.num_outputs, self.n), r.dtype)
            at_i[0, :, i], at_i[1, :, i] = r[i], s[i]
            values[i] = self.n * self.operator.quadratic_form(at_i[0].ravel(), at_i[1].ravel())
        return values

    def multiply_factor(self, w):
        size = self.operator.shape[0]
        product = self.space.multiply_factor(np.ascontiguousarray(w).ravel(), num_params=size)
        return math.sqrt(self.n) * product.reshape(self.num_outputs, self.n).T

    def multiply_factor_transposed(self, r):
        product = self.space.multiply_factor_transposed(np.ascontiguousarray(r.T).ravel())
        return math.sqrt(self.n) * product.reshape(self.n, self.num_columns)

    def factor(self):
        """Q (n, C, columns)."""
        unit = np.eye(self.num_columns, dtype=self.operator.dtype)
        columns = [self.multiply_factor(np.tile(row, (self.n, 1))) for row in unit]
        return np.stack(columns, axis=2)

    def dense(self):
        """M (n, C, C), which the core sums up from the columns of the factors."""
        block = self.operator.block(0).astype(float)
        cases = block.reshape(self.num_outputs, self.n, self.num_outputs, self.n)
        i = np.arange(self.n)
        diagonal = cases[:, i, :, i]
        cases[:, i, :, i] = 0
        assert not cases.any()  # cases do not mix
        return self.n * diagonal

    def divide_factor(self, y):
        """r (n, columns) and rest (n, C) with dL/dz = Q r + rest at the targets y."""
        r, rest, _ = self.space.split_gradient(y, num_outputs=self.num_outputs)
        return math.sqrt(self.n) * r.reshape(self.n, -1), self.n * rest


@pytest.mark.parametrize("num_outputs", [2, 4, 40])
@pytest.mark.parametrize("kind", ["fisher", "hessian", "empirical_fisher"])
@pytest.mark.parametrize("name", LOSSES)
def test_matrices_equal_oracle(name, kind, num_outputs, dtype, tol, rng):
    loss, oracle = loss_pair(name)
    n = 19 if num_outputs == 40 else N  # a block has (n C)^2 elements
    z, y = batch(loss, rng, num_outputs, n, dtype=dtype)
    exact_z, exact_y = z.astype(float), y.astype(float)
    if kind == "fisher":
        exact = oracle.fisher(exact_z)
    elif kind == "hessian":
        exact = oracle.hessian(exact_z, exact_y)
    else:
        g = oracle.gradient(exact_z, exact_y)
        exact = g[:, :, None] * g[:, None, :]
    m = Matrices(loss, kind, z, y)
    # elementary functions and a few products each: forward is far above, per case as errors scale
    for found, expected in zip(m.dense(), exact, strict=True):
        assert_close(found, expected, tol.forward)
    for c in range(num_outputs):
        unit = np.zeros((n, num_outputs), dtype)
        unit[:, c] = 1
        assert_close(m.multiply(unit), exact[:, :, c], tol.forward)
    diagonal = m.n * m.operator.diagonal().reshape(num_outputs, n).T
    assert_close(diagonal, np.diagonal(exact, axis1=1, axis2=2), tol.forward)


@pytest.mark.parametrize("num_outputs", [2, 4, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_products_equal_factors(name, kind, num_outputs, dtype, tol, rng):
    loss, _ = loss_pair(name)
    n = 19 if num_outputs == 40 else N
    z, y = batch(loss, rng, num_outputs, n, dtype=dtype)
    m = Matrices(loss, kind, z, y)
    exact = m.dense()
    r, s = rng.standard_normal((2, n, num_outputs)).astype(dtype)
    assert_close(m.multiply(r), np.einsum("ncd,nd->nc", exact, r), tol.forward)
    assert_close(m.inner(r, s), np.einsum("nc,ncd,nd->n", r, exact, s), tol.forward)
    if not m.positive_semidefinite:
        return
    assert m.inner(r, r).min() >= 0.0
    q = m.factor().astype(float)
    assert q.shape == (n, num_outputs, m.num_columns)
    assert_close(q @ q.transpose(0, 2, 1), exact, tol.forward)
    w = rng.standard_normal((n, m.num_columns)).astype(dtype)
    assert_close(m.multiply_factor(w), np.einsum("nck,nk->nc", q, w), tol.forward)
    assert_close(m.multiply_factor_transposed(r), np.einsum("nck,nc->nk", q, r), tol.forward)


@pytest.mark.parametrize("name", LOSSES)
def test_counts_and_claims(name):
    def facts(kind, num_outputs=4):
        z, y = batch(loss, np.random.default_rng(0), num_outputs, n=3)
        m = Matrices(loss, kind, z, y, samples=7)
        return m.num_columns, m.positive_semidefinite

    loss, _ = loss_pair(name)
    columns = 3 if name == SOFTMAX else 4
    natural = name in (SQUARED, SOFTMAX, BERNOULLI, POISSON)
    assert facts("fisher") == (columns, True)
    assert facts("sampled_fisher") == (7, True)
    assert facts("hessian") == (columns, natural)
    assert facts("empirical_fisher") == (1, True)
    assert loss.fisher_is_ggn == natural
    assert loss.ggn_needs_targets == (not natural)
    assert loss.num_targets(4) == (2 if name == MEAN_VARIANCE else 4)
    z, _ = batch(loss, np.random.default_rng(0), n=3)
    if natural:
        assert same_bits(Matrices(loss, "hessian", z).dense(), Matrices(loss, "fisher", z).dense())
    else:
        with pytest.raises(ValueError, match="y is missing"):
            Matrices(loss, "hessian", z)


@pytest.mark.parametrize("name", ["student_t(3, 0.7)", MEAN_VARIANCE])
def test_signs_are_the_inertia_of_the_hessian(name, dtype, rng):
    loss, oracle = loss_pair(name)
    z, y = batch(loss, rng, dtype=dtype)
    found = np.linalg.eigvalsh(Matrices(loss, "hessian", z, y).dense())
    exact = np.linalg.eigvalsh(oracle.hessian(z.astype(float), y.astype(float)))
    assert ((found < 0).sum(axis=1) == (exact < 0).sum(axis=1)).all()
    assert (exact < 0).any()


def test_softmax_of_one_output_has_a_zero_column(dtype, rng):
    z, y = rng.standard_normal((N, 1)).astype(dtype), np.ones((N, 1), dtype)
    m = Matrices(loss_pair(SOFTMAX)[0], "fisher", z, y)
    assert m.num_columns == 1
    assert not m.factor().any()
    assert not m.multiply(z).any()
    assert not m.multiply_factor(z).any()
    assert not m.multiply_factor_transposed(z).any()
    r, rest = m.divide_factor(y)
    assert not r.any()
    assert not rest.any()


@pytest.mark.parametrize("top", range(4))
def test_factor_of_softmax_keeps_its_digits_wherever_the_largest_probability_is(top, dtype, tol):
    """Saturated cases: what is left of M is of the size of the small probabilities, in Q Q' too."""
    margin = {"float32": 17.0, "float64": 40.0}[dtype]
    z = np.array([[0.5, -1.0, 0.25, 0.0]], dtype)
    z[0, top] += margin
    e = np.exp(z[0].astype(np.longdouble) - np.longdouble(z[0, top]))
    p = e / e.sum()
    exact = -np.outer(p, p)
    for c in range(4):  # p_c (1 - p_c), 1 - p_c the sum of the others
        exact[c, c] = p[c] * np.delete(p, c).sum()
    m = Matrices(loss_pair(SOFTMAX)[0], "fisher", z)
    small = np.sqrt(np.diagonal(exact))  # entries are relative to these
    for found in (m.dense()[0], (m.factor() @ m.factor().transpose(0, 2, 1))[0]):
        assert (np.abs(found - exact) <= 20 * tol.eps * np.outer(small, small)).all()
    diagonal = m.operator.diagonal()
    assert (np.abs(diagonal - np.diagonal(exact)) <= 20 * tol.eps * np.diagonal(exact)).all()
    assert m.operator.trace() == pytest.approx(float(np.trace(exact)), rel=20 * tol.eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_and_threads_leave_the_bits_alone(name, kind, dtype, rng):
    loss, _ = loss_pair(name)
    n = 500  # tiles of several chunks
    z, y = batch(loss, rng, n=n, dtype=dtype)
    r = rng.standard_normal(z.shape).astype(dtype)
    whole = Matrices(loss, kind, z, y, seed=5)
    for options in [{"chunk_size": 1}, {"chunk_size": 300, "num_threads": 3}, {"num_threads": 2}]:
        part = Matrices(loss, kind, z, y, seed=5, **options)
        assert same_bits(part.multiply(r), whole.multiply(r))
        assert same_bits(part.operator.diagonal(), whole.operator.diagonal())
        if not whole.positive_semidefinite:
            continue
        assert same_bits(part.factor(), whole.factor())
        transposed = whole.multiply_factor_transposed(r)
        assert same_bits(part.multiply_factor_transposed(r), transposed)
        for found, expected in zip(part.divide_factor(y), whole.divide_factor(y), strict=True):
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
    m = Matrices(loss, kind, z, y)
    if not m.positive_semidefinite:
        with pytest.raises(ValueError, match="indefinite"):
            m.divide_factor(y)
        return
    e = oracle.gradient(z.astype(float), y.astype(float))
    r, rest = m.divide_factor(y)
    back = m.multiply_factor(r) + rest
    # a division and a product, and a sum over C entries of size <= |e|
    assert_close(back, e, 10 * tol.forward)
    divided = ~rest.any(axis=1)
    assert not r[~divided].any()
    assert_close(rest[~divided], e[~divided], tol.forward)
    # the limit holds for each of the C = 4 entries of e / q, the reflector keeps their norm
    assert np.abs(r).max() <= (2e2 if dtype == "float32" else 2e4)
    if kind == "sampled_fisher":
        assert not divided.any()
    elif kind == "empirical_fisher":
        assert np.allclose(r, 1, rtol=4 * tol.eps, atol=0)  # sqrt(n) of the weights
    elif spread < 1 and (name != MEAN_VARIANCE or kind == "fisher"):
        assert divided.mean() > 0.9


def test_division_refuses_what_is_out_of_reach(dtype, tol):
    softmax, squared = loss_pair(SOFTMAX)[0], loss_pair(SQUARED)[0]
    z = np.array([[0, 0], [60, -60], [60, -60], [0, 0]], dtype)
    y = np.array([[1, 0], [0, 1], [1, 0], [-0.5, -0.5]], dtype)  # the last not of a distribution
    r, rest = Matrices(softmax, "fisher", z).divide_factor(y)
    assert abs(r[0, 0]) == pytest.approx(1.0)  # |Q^+ e|^2 = sum e^2 / p = 1
    # sure and wrong; sure and right, up to its probability; not orthogonal to the null space
    assert np.abs(r[1:]).max() <= tol.eps
    assert_close(rest, [[0, 0], [1, -1], [0, 0], [1, 1]], tol.eps)
    m = Matrices(squared, "empirical_fisher", z, y)
    _, rest = m.divide_factor(2 * y)  # the gradient at other targets
    assert_close(rest, z - 2 * y, tol.eps)


@pytest.mark.parametrize("kind", ["fisher", "sampled_fisher"])
@pytest.mark.parametrize("name", [SOFTMAX, BERNOULLI])
def test_extreme_logits(name, kind, dtype, rng):
    loss, oracle = loss_pair(name)
    z = 1e4 * np.array([[1, -1, 0], [-1, 1, -1], [1, 1, 1], [0, -1, 0]], dtype)
    m = Matrices(loss, kind, z)
    r = rng.standard_normal(z.shape).astype(dtype)
    for product in [m.factor(), m.multiply(r), m.multiply_factor_transposed(r), m.inner(r, r)]:
        assert np.isfinite(product).all()
    for part in m.divide_factor(np.eye(3, dtype=dtype)[[0, 0, 1, 2]]):
        assert np.isfinite(part).all()
    if kind == "fisher":  # absolute: entries are probabilities
        assert np.abs(m.dense() - oracle.fisher(z.astype(float))).max() <= 1e-6


# ------------------------------------------------------------------------------------------------
# Draws


@pytest.mark.parametrize("seed", [0, 20141193, 2**63 - 1])
def test_uniform_numbers_are_those_of_numpy(seed):
    """A Bernoulli draw is 1 where the number is below p: thousands of them tell which numbers."""
    n, samples, num_outputs = 60, 3, 23  # words of several blocks
    p = 0.5 + 0.1 * np.arange(n) / n
    z = np.tile(np.log(p / (1 - p))[:, None], (1, num_outputs))
    g = ng.losses.BernoulliCrossEntropy().draw_gradients(z, samples=samples, seed=seed)
    for i in range(n):
        for s in range(samples):
            words = {"key": np.array([seed, 0], np.uint64), "counter": [0, i, s, 0]}
            uniform = np.random.Generator(np.random.Philox(**words)).random(num_outputs)
            assert ((g[i, s] < 0) == (uniform < p[i])).all()


@pytest.mark.parametrize("name", LOSSES)
def test_sampled_fisher_is_made_of_the_draws(name, dtype, tol, rng):
    loss, _ = loss_pair(name)
    z, _ = batch(loss, rng, dtype=dtype)
    g = loss.draw_gradients(z, samples=SAMPLES, seed=7)
    assert g.shape == (N, SAMPLES, 4)
    assert g.dtype == dtype
    q = Matrices(loss, "sampled_fisher", z, seed=7).factor()
    assert_close(q, g.transpose(0, 2, 1) / np.sqrt(SAMPLES), 10 * tol.eps)
    for threads in (2, 3):
        again = loss.draw_gradients(z, samples=SAMPLES, seed=7, num_threads=threads)
        assert same_bits(again, g)


@pytest.mark.parametrize("name", LOSSES)
def test_draws_depend_on_seed_case_and_sample_alone(name, dtype, rng):
    loss, _ = loss_pair(name)
    z = np.repeat(batch(loss, rng, n=1, spread=0.3, dtype=dtype)[0], N, axis=0)
    g = loss.draw_gradients(z, samples=4, seed=1)
    assert same_bits(loss.draw_gradients(z[:30], samples=4, seed=1), g[:30])
    # more samples: the first ones stay
    assert same_bits(loss.draw_gradients(z, samples=16, seed=1)[:, :4], g)
    other = loss.draw_gradients(z, samples=4, seed=2)
    assert not np.array_equal(other, g)
    assert np.unique(g[:, 0], axis=0).shape[0] > 2  # cases of equal z draw apart
    assert np.unique(g.transpose(1, 0, 2).reshape(4, -1), axis=0).shape[0] == 4


@pytest.mark.parametrize("name", [*LOSSES, "poisson of 1e11"])
def test_draws_have_the_moments_of_the_law(name, dtype):
    """E g = 0 and E gg' = F_R, each within 5 standard errors of 60,000 draws, seed fixed."""
    count = 60_000
    loss, oracle = loss_pair(name.split(" of")[0])
    z = np.array([[0.3, -1.1, 0.9, 0.2]], dtype)
    if name == "poisson of 1e11":
        z += 25
    g = loss.draw_gradients(z, samples=count, seed=3)[0].astype(float)
    squares = g[:, :, None] * g[:, None, :]
    for values, exact in [(g, np.zeros(4)), (squares, oracle.fisher(z.astype(float))[0])]:
        error = np.abs(values.mean(axis=0) - exact)
        # rounding: entries that are the same in every draw have no standard error
        assert (error <= 5 * values.std(axis=0) / np.sqrt(count) + 1e-6 * np.abs(exact)).all()


def test_draws_are_labels_of_the_law(dtype):
    """Gradients p - onehot(k), p - b and m - k give back whole labels, in their frequencies."""
    count, z = 60_000, np.array([[0.3, -1.1, 0.9]], dtype)

    def draws(name):
        loss = loss_pair(name)[0]
        g = loss.draw_gradients(z, samples=count, seed=9)[0].astype(float)
        mean = {SOFTMAX: reference.softmax, BERNOULLI: reference.logistic, POISSON: np.exp}[name](
            z.astype(float)
        )
        labels = mean - g
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
    g = loss_pair(POISSON)[0].draw_gradients(z, samples=5)
    assert (g[0, :, 0] == 0).all()
    assert np.isfinite(g[0, :, 1]).all()
    assert not np.isnan(g[0, :, 2]).any()


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda loss: loss.draw_gradients(np.zeros(3)), ValueError, "z has 1 dimensions"),
        (lambda loss: loss.draw_gradients(np.zeros((3, 0))), ValueError, "z has no columns"),
        (lambda loss: loss.draw_gradients(np.zeros((3, 3))), ValueError, "must be even .*, got 3"),
        (lambda loss: loss.draw_gradients([[1, 2]], samples=0), ValueError, "samples must be >= 1"),
        (
            lambda loss: loss.draw_gradients([[1, 2]], seed=1.5),
            TypeError,
            "seed must be an integer",
        ),
        (lambda loss: loss.draw_gradients([["a", "b"]]), TypeError, "z has dtype"),
        (lambda loss: loss.draw_gradients([[np.nan, 0]]), ValueError, "z has NaN or Inf"),
    ],
)
def test_bad_arguments(draw, error, message):
    with pytest.raises(error, match=message):
        draw(loss_pair(MEAN_VARIANCE)[0])
