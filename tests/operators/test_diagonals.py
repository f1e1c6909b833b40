"""Diagonals and traces by either way: by columns of output matrices, or unit by unit."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, Case, assert_close, curvature, exact_curvature, same_bits

# Few units below many outputs: a pass for every unit is cheaper than a sweep for every column.
NARROW = [
    Case(
        f"3-2-3-24-{loss}-{output}",
        (3, 2, 3, 24),
        loss,
        n=70,
        activation=("tanh", "relu"),
        output_activation=output,
        bias=(True, False, True),
        weighted=True,
    )
    for loss in reference.LOSSES
    for output in ("identity", "tanh")
]
WIDE = [
    Case(f"3-9-7-2-{name}", (3, 9, 7, 2), SOFTMAX, n=70, activation=name)
    for name in ("relu", "silu")
]


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", NARROW + WIDE, ids=cases.ids)
def test_diagonal_and_trace_equal_oracle(case, kind, dtype, tol):
    problem = case.problem(dtype)
    options = {"sample_weight": problem.weight, "l2": 0.2, "damping": 0.05}
    diagonal = np.diag(exact_curvature(kind, problem, case.loss, **options))
    for chunk_size in (None, 16):
        operator = curvature(kind, problem, case.loss, chunk_size=chunk_size, **options)
        assert_close(operator.diagonal(), diagonal, tol.product)
        # entries of both signs cancel, where the matrix is indefinite
        scale = np.abs(diagonal).sum()
        assert operator.trace() == pytest.approx(diagonal.sum(), abs=tol.product * scale)


def test_saturated_probabilities_keep_their_digits():
    """p (1 - p) with 1 - p far below eps p, of which 1 - p itself would leave nothing."""
    net = ng.MLP([1, 1, 9], "identity", seed=0)
    for part in (*net.weights, *net.biases):
        part[...] = 0.0
    net.weights[0][...] = 1.0
    net.biases[1][0] = 40.0
    x = np.ones((1, 1))
    found = ng.Fisher(net, SOFTMAX, x).diagonal()
    # the first bias of the last layer, behind 2 + 9 parameters
    assert found[11] == pytest.approx(8 * np.exp(-40.0), rel=1e-12)


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("loss", [SOFTMAX, "gaussian_mean_variance"])
@pytest.mark.parametrize("sizes", [(40, 16, 16, 90), (40, 90, 60, 4)], ids=str)
def test_bits_do_not_depend_on_threads_or_chunks(sizes, loss, kind, dtype):
    problem = Case(f"bits-{sizes}-{loss}", sizes, loss, n=300, activation="softplus").problem(dtype)
    expected = None
    for threads, chunk_size in ((1, None), (2, None), (3, 40), (4, 300)):
        operator = curvature(
            kind, problem, loss, num_threads=threads, chunk_size=chunk_size, damping=0.1
        )
        found = [operator.diagonal(), np.array(operator.trace())]
        # neither leaves anything behind for a product
        v = np.ones(operator.shape[0], dtype)
        found += [operator @ v, operator.diagonal()]
        expected = found if expected is None else expected
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", [NARROW[2], WIDE[1]], ids=cases.ids)
def test_callbacks_see_progress_and_are_obeyed(case, kind):
    problem = case.problem("float64")
    operator = curvature(kind, problem, case.loss, chunk_size=16)
    for compute in (operator.diagonal, operator.trace):
        expected, seen = compute(), []
        result = compute(callback=lambda done, total, seen=seen: seen.append((done, total)))
        assert same_bits(np.asarray(result), np.asarray(expected))
        assert len(seen) >= 2
        done, totals = zip(*seen, strict=True)
        assert list(done) == sorted(done)
        assert set(totals) == {operator.diagonal_flops}
        assert done[-1] == operator.diagonal_flops

        calls = []

        def stop(done, total, calls=calls):
            calls.append(done)
            return True

        assert np.isnan(compute(callback=stop)).all()
        assert len(calls) == 1

        def fail(done, total):
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            compute(callback=fail)
        assert same_bits(np.asarray(compute()), np.asarray(expected))
        with pytest.raises(TypeError, match="callback must be callable"):
            compute(callback=3)


def test_a_hessian_of_a_piecewise_linear_net_costs_what_the_ggn_costs():
    """No product per parameter, and without bends no pass per unit either."""
    problem = Case("64-128-64-10-relu", (64, 128, 64, 10), SOFTMAX, activation="relu").problem(
        "float32"
    )
    hessian, ggn = (curvature(kind, problem, SOFTMAX) for kind in ("hessian", "ggn"))
    assert hessian.diagonal_flops == ggn.diagonal_flops
    assert_close(hessian.diagonal(), ggn.diagonal(), 1e-6)


def test_the_estimate_tells_which_way_is_cheaper():
    """The cost of very many classes is bounded by that of the units below them."""
    x = np.zeros((10, 30))
    few, many = (
        ng.Fisher(ng.MLP([30, 20, c], "relu", seed=0), SOFTMAX, x).diagonal_flops
        for c in (1_000, 8_000)
    )
    assert many < 10 * few
