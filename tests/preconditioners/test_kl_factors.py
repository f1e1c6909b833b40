"""Two-sided maximum-likelihood factors, and statistics of the first cases of a linearisation."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference_kronecker
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits
from natgrad_fast.model.batch import Batch

NETS = [
    Case("3-4-2-kl", (3, 4, 2), SQUARED),
    Case("5-6-4-kl-no-bias", (5, 6, 4), BERNOULLI, activation="silu", bias=False, weighted=True),
    Case("4-6-5-2-kl", (4, 6, 5, 2), SOFTMAX, activation="softplus", bias=(True, False, True)),
    Case("20-33-17-10-kl", (20, 33, 17, 10), SOFTMAX, n=300, weighted=True),
]
nets = pytest.mark.parametrize("case", NETS, ids=cases.ids)


def oracle(problem, case):
    theta, x, _ = problem.args
    return reference_kronecker.layers(problem.oracle, case.loss, theta, x, problem.weight)


def pair_of(m, layer):
    """Damped G and A of a layer, whose product is that of ``@``."""
    left, right, _ = m.core.block(layer, damped=True)
    return left, right


@nets
@pytest.mark.parametrize("pi", ["trace", "frobenius", "unit"])
def test_an_update_weighs_by_the_inverses_of_the_last_refresh(case, pi, dtype, tol):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight}
    m = ng.KLFAC(problem.net, case.loss, problem.x, damping=0.02, pi=pi, ema=0.0, **options)
    before = [pair_of(m, layer) for layer in range(problem.net.num_layers)]
    m.update(problem.x, **options)
    for index, layer in enumerate(oracle(problem, case)):
        left, right = (np.linalg.inv(factor) for factor in before[index])
        g, a = reference_kronecker.kl_factors(layer, left, right)
        order = np.ix_(layer.order, layer.order)
        # a quadratic form in an inverse has the rounding of its condition, which damping bounds
        condition = max(np.linalg.cond(factor) for factor in before[index])
        bound = max(tol.product, 10 * tol.eps * condition)
        assert_close(m.block(index), np.kron(g, a)[order], bound)
        found = m.factors[index]
        assert np.trace(found.A) == pytest.approx(np.trace(found.G), rel=1e-5)


def test_the_first_update_is_that_of_tkfac(dtype):
    problem = NETS[2].problem(dtype)
    kl, tkfac = (make(problem.net, SOFTMAX, problem.x) for make in (ng.KLFAC, ng.TKFAC))
    assert same_bits(kl.to_dense(), tkfac.to_dense())


def test_independent_inputs_and_deltas_give_the_block_itself(rng):
    # one layer and squared error: M_i = I, so F = I (x) E[a a'], which is a Kronecker product
    net = ng.MLP([4, 3], dtype="float64", seed=1)
    x = rng.standard_normal((30, 4))
    m = ng.KLFAC(net, SQUARED, x, damping=1e-6)
    for _ in range(3):
        m.update(x)
        m.refresh(1e-6)
    assert_close(m.to_dense(), ng.Fisher(net, SQUARED, x).to_dense(), 1e-9)


def divergence(block, approximation):
    """2 KL(N(0, F) | N(0, B)) without the constant part."""
    return np.trace(np.linalg.solve(approximation, block)) + np.linalg.slogdet(approximation)[1]


@nets
def test_the_fixed_point_is_near_in_divergence(case):
    problem = case.problem("float64")
    weights, damping = problem.weight, 1e-4
    total = {}
    for kind in (ng.KFAC, ng.TKFAC, ng.KLFAC):
        m = kind(
            problem.net,
            case.loss,
            problem.x,
            sample_weight=weights,
            damping=damping,
            ema=0.0,
            pi="trace",
        )
        for _ in range(30 if kind is ng.KLFAC else 0):
            m.update(problem.x, sample_weight=weights)
            m.refresh(damping)
        total[kind] = 0.0
        for index, layer in enumerate(oracle(problem, case)):
            order = np.ix_(layer.order, layer.order)
            block = reference_kronecker.fisher_block(layer)[order]
            block[np.diag_indices(len(block))] += damping
            total[kind] += divergence(block, m.block(index, damped=True))
    assert total[ng.KLFAC] < total[ng.KFAC]
    # TKFAC is one step of the iteration away; damping of the factors is not that of the block
    assert total[ng.KLFAC] < total[ng.TKFAC] + 1e-3 * abs(total[ng.TKFAC])


def test_exact_damping_is_refused():
    with pytest.raises(ValueError, match="pi"):
        ng.KLFAC(ng.MLP([2, 1]), SQUARED, pi="exact")


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_size_of_inputs_does_not_matter(scale, dtype):
    problem = NETS[2].problem(dtype)
    m = ng.KLFAC(problem.net, SOFTMAX, scale * problem.x, damping=1e-3)
    m.update(scale * problem.x)
    m.refresh(1e-3)
    assert np.isfinite(m @ np.ones(m.shape[0])).all()
    assert np.isfinite(m.to_dense()).all()


@nets
def test_same_bits_for_any_threads_and_chunks(case, dtype, num_threads):
    problem = case.problem(dtype)
    results = []
    for options in ({"num_threads": 1}, {"num_threads": num_threads}, {"chunk_size": 100}):
        m = ng.KLFAC(problem.net, case.loss, problem.x, damping=0.1, samples=2, **options)
        m.update(problem.x)
        results.append(m.to_dense())
    assert all(same_bits(results[0], other) for other in results[1:])


@nets
@pytest.mark.parametrize("kind", [ng.KFAC, ng.TKFAC, ng.EKFAC, ng.KLFAC])
@pytest.mark.parametrize("samples", [None, 2])
def test_the_first_cases_of_a_linearisation_are_a_batch(case, kind, samples, dtype):
    problem = case.problem(dtype)
    batch = Batch(problem.net, case.loss, problem.x, problem.y, sample_weight=problem.weight)
    linearization = batch.linearize()
    for count in {1, 3, batch.num_cases // 2, batch.num_cases}:
        part, whole = (kind(problem.net, case.loss, samples=samples) for _ in range(2))
        for _ in range(2):
            part.update_on(batch, linearization, num_cases=count)
            first = batch.take(np.arange(count), batch.targets[:count])
            whole.update_on(first)
            part.refresh(0.1)
            whole.refresh(0.1)
        assert same_bits(part.to_dense(), whole.to_dense())
    # and the linearisation is whole again
    assert same_bits(batch.value_and_grad(linearization)[1], batch.value_and_grad()[1])


@nets
@pytest.mark.parametrize("chunk_size", [None, 64])
def test_gradients_of_a_part_and_of_all(case, chunk_size, dtype, tol):
    problem = case.problem(dtype)
    batch = Batch(
        problem.net,
        case.loss,
        problem.x,
        problem.y,
        sample_weight=problem.weight,
        l2=0.01,
        chunk_size=chunk_size,
    )
    loss, gradient = batch.value_and_grad()
    for wanted in (batch.num_cases // 2, 64, 1):
        parts = batch.value_and_grad_of_parts(batch.linearize(), wanted)
        if parts is None:
            assert wanted < 32 or wanted >= batch.num_cases
            continue
        assert parts.value == loss
        assert_close(parts.gradient, gradient, tol.gradient)
        count = parts.num_cases
        assert 0 < count <= wanted
        first = batch.take(np.arange(count), batch.targets[:count])
        rest = np.arange(count, batch.num_cases)
        second = batch.take(rest, batch.targets[rest])
        assert_close(parts.first, first.value_and_grad()[1], tol.gradient)
        # what is left over has the rounding of the whole
        scale = np.linalg.norm(gradient) / np.linalg.norm(second.value_and_grad()[1])
        assert_close(parts.second, second.value_and_grad()[1], tol.gradient * max(1.0, scale))
