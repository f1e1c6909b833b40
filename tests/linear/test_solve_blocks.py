"""Several right-hand sides at once, in solve() and in the space of samples."""

from concurrent.futures import ThreadPoolExecutor

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case, same_bits

CASE = Case("5-7-3-blocks", (5, 7, 3), SOFTMAX, n=12, weighted=True)
METHODS = ["auto", "cg", "kfac_cg", "sample_space", "sample_space_cg", "dense"]


def set_up(dtype, case=CASE, columns=4, **options):
    problem = case.problem(dtype)
    fisher = ng.Fisher(
        problem.net, case.loss, problem.x, sample_weight=problem.weight, l2=0.01, **options
    )
    g = case.rng().standard_normal((problem.net.num_params, columns)).astype(dtype)
    return fisher, g


def residuals(fisher, damping, x, g):
    dense = fisher.to_dense().astype(float) + damping * np.eye(len(g))
    return np.linalg.norm(dense @ x.astype(float) - g, axis=0) / np.linalg.norm(g, axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_are_solved(method, dtype):
    fisher, g = set_up(dtype)
    result = fisher.solve(g, damping=0.05, method=method, max_iter=1000)
    assert isinstance(result, ng.BlockSolveResult)
    assert result.x.shape == g.shape
    assert result.x.dtype == dtype
    assert result.success
    # rtol 1e-5, twice for the rounding of the float32 dense matrix
    assert (residuals(fisher, 0.05, result.x, g) <= 2e-5).all()
    assert result.method.startswith({"auto": ""}.get(method, method))
    assert set(result.estimates) == set(METHODS[1:])
    assert len(result) == 4
    assert result.matvecs == sum(column.matvecs for column in result)
    for k, column in enumerate(result):
        assert isinstance(column, ng.SolveResult)
        assert same_bits(column.x, result.x[:, k])
        assert np.shares_memory(column.x, result.x)
        assert column.method.startswith(result.method)
        assert column.estimates is result.estimates
        assert column.seconds == result.seconds > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_columns_are_those_of_single_solves(method, damping, dtype):
    fisher, g = set_up(dtype)
    g[:, 1] = 0.0
    g[:, 2] = 1e-3 * g[:, 0]
    block = fisher.solve(g, damping=damping, method=method, max_iter=1000)
    for k, column in enumerate(block):
        single = fisher.solve(g[:, k], damping=damping, method=block.method.partition("_chol")[0])
        assert column.status is single.status
        assert column.method == single.method
        if block.method.startswith("sample_space"):
            assert same_bits(column.x, single.x)
            assert column.iterations == single.iterations
            assert column.residual_norm == single.residual_norm
        else:  # products of blocks add in another order
            assert abs(column.iterations - single.iterations) <= 2
            scale = np.abs(single.x).max(initial=0.0)
            # both have residual 1e-5, on a condition of at most |B| / 0.01, about 1e3
            assert np.abs(column.x - single.x).max(initial=0.0) <= 1e-2 * scale


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda a: a[:, ::-1][:, ::-1], np.ndarray.tolist]
)
def test_layouts_of_a_block(layout, dtype):
    fisher, g = set_up(dtype)
    for method in ("cg", "sample_space"):
        expected = fisher.solve(g, damping=0.1, method=method)
        assert same_bits(fisher.solve(layout(g), damping=0.1, method=method).x, expected.x)
    one = fisher.solve(g[:, :1], damping=0.1)
    assert one.x.shape == (len(g), 1)
    assert isinstance(one, ng.BlockSolveResult)


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
def test_sample_space_takes_blocks(method, dtype):
    fisher, g = set_up(dtype)
    space = ng.SampleSpace(fisher)
    result = space.solve(g, damping=0.02, method=method)
    assert result.success
    assert result.method == f"sample_space_{method}"
    assert (residuals(fisher, 0.02, result.x, g) <= 2e-5).all()
    other = ng.sample_space_solve(fisher, g, damping=0.02, method=method)
    assert same_bits(other.x, result.x)


@pytest.mark.parametrize("method", ["cholesky", "eigh"])
def test_one_factorisation_for_all_columns(method):
    """What is shared is counted once: K columns cost one factorisation and K times the rest."""
    fisher, g = set_up("float64", columns=5)
    n = ng.SampleSpace(fisher).shape[0]
    factorisation = {"cholesky": n**3 / 3, "eigh": 9 * n**3}[method]
    block = ng.SampleSpace(fisher).solve(g, damping=0.1, method=method)
    space = ng.SampleSpace(fisher)
    first = space.solve(g[:, 0], damping=0.1, method=method)
    again = space.solve(g[:, 0], damping=0.1, method=method)
    assert first.flops - again.flops >= factorisation
    assert block[0].flops == first.flops
    assert all(column.flops < again.flops + 1.0 for column in block[1:])
    other = space.solve(g[:, 0], damping=0.2, method=method)  # another shift, the same kernel
    anew = factorisation if method == "cholesky" else 0
    assert other.flops == pytest.approx(again.flops + anew)
    assert same_bits(space.solve(g[:, 0], damping=0.1, method=method).x, first.x)


def test_blocks_change_the_choice():
    """A factorisation is dear for one right-hand side and cheap for a hundred."""
    case = Case("30-40-10-choice", (30, 40, 10), SQUARED, n=40)
    fisher, g = set_up("float64", case, columns=100)
    one, many = (ng.estimate_solve(fisher, v, damping=1e-2) for v in (g[:, 0], g))
    for method in one:
        # with the iterations of the slowest column
        most = 100 * max(1.0, many[method].iterations / max(1, one[method].iterations))
        assert one[method].flops < many[method].flops <= most * one[method].flops
        assert one[method].cost <= many[method].cost
        assert many[method].iterations >= one[method].iterations
    assert many["cg"].flops >= 50 * one["cg"].flops
    assert many["sample_space"].cost < 30 * one["sample_space"].cost
    costs = {name: estimate.cost for name, estimate in many.items()}
    assert fisher.solve(g, damping=1e-2).method.startswith(min(costs, key=costs.get))


@pytest.mark.parametrize("method", ["cg", "sample_space_cg"])
def test_callback_of_a_block(method):
    fisher, g = set_up("float64", columns=3)
    seen = []

    def callback(iteration, norms, quadratics):
        seen.append((iteration, norms.copy(), quadratics.copy()))

    result = fisher.solve(g, damping=1e-3, method=method, callback=callback, max_iter=1000)
    assert result.success
    assert [iteration for iteration, *_ in seen] == list(range(1, len(seen) + 1))
    assert all(norms.shape == phis.shape == (3,) for _, norms, phis in seen)
    for after in (1, 3, len(seen) - 1):
        calls = []

        def stop(iteration, norms, quadratics, calls=calls, after=after):
            calls.append(iteration)
            return len(calls) == after

        stopped = fisher.solve(g, damping=1e-3, method=method, callback=stop, max_iter=1000)
        assert len(calls) == after
        assert stopped.x.shape == g.shape
        assert np.isfinite(stopped.x).all()
        assert set(stopped.status) <= {ng.Status.STOPPED, ng.Status.CONVERGED}
        if after <= 3:  # before any column has converged
            assert set(stopped.status) == {ng.Status.STOPPED}
        for k, column in enumerate(stopped):
            # the true residual, also of what was not begun
            dense = fisher.to_dense() + 1e-3 * np.eye(len(g))
            norm = np.linalg.norm(g[:, k] - dense @ column.x)
            assert column.residual_norm == pytest.approx(norm, rel=1e-9)


def test_several_dampings_end_where_the_callback_says_so():
    fisher, g = set_up("float64")
    for after in (1, 5, 30):
        calls = []

        def stop(iteration, norm, quadratic, calls=calls, after=after):
            calls.append(iteration)
            return len(calls) == after

        result = ng.sample_space_solve(
            fisher, g[:, 0], damping=[1e-3, 1e-2, 1e-1], method="cg", callback=stop
        )
        assert len(calls) == after
        assert len(result) <= 3
        assert all(status == "converged" for status in result.status[:-1])


def test_interrupted_blocks_keep_what_was_solved():
    fisher, g = set_up("float64", columns=3)
    counts = []

    def interrupt(iteration, norms, quadratics):
        counts.append(iteration)
        if len(counts) == first.iterations + 1:
            raise KeyboardInterrupt

    first = fisher.solve(g[:, 0], damping=1e-2, method="sample_space_cg")
    result = fisher.solve(g, damping=1e-2, method="sample_space_cg", callback=interrupt)
    assert result.status == ("converged", "interrupted", "interrupted")
    assert same_bits(result[0].x, first.x)
    assert not result[2].x.any()
    assert result[2].iterations == 0


def test_one_space_in_several_threads():
    """Factorisations for several dampings at once: the bits of one after the other."""
    fisher, g = set_up("float64")
    dampings = [1e-3, 1.0, 10.0, 1e-2]
    for method in ("cholesky", "eigh"):
        expected = [ng.SampleSpace(fisher).solve(g, damping=d, method=method) for d in dampings]
        space = ng.SampleSpace(fisher)  # first used by all of them
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                found = pool.map(
                    lambda d, s=space, m=method: s.solve(g, damping=d, method=m), dampings
                )
                for one, other in zip(found, expected, strict=True):
                    assert one.success
                    assert same_bits(one.x, other.x)
                    assert same_bits(one.residual_norm, other.residual_norm)


def test_bad_blocks():
    fisher, g = set_up("float64")
    y = CASE.problem("float64").y
    space = ng.SampleSpace(fisher)
    bad = g.copy()
    bad[3, 1] = np.nan
    for call in (
        lambda g, **o: fisher.solve(g, **{"damping": 0.1, **o}),
        lambda g, **o: space.solve(g, **{"damping": 0.1, **o}),
        lambda g, **o: ng.sample_space_solve(fisher, g, **{"damping": 0.1, **o}),
    ):
        for wrong, options, words in [
            (g[:-1], {}, r"g has shape \(65, 4\), wanted \(66,\) or \(66, K\)"),
            (g[:-1, 0], {}, "g has length 65, wanted 66"),
            (g.T, {}, r"g has shape \(4, 66\)"),
            (g[None], {}, "g has 3 dimensions"),
            (g[:, :0], {}, "g has no columns"),
            (bad, {}, "g has NaN or Inf .* at row 3, column 1"),
            (g, {"y": y}, r"y is the origin of a single g \(P,\), got K = 4 columns"),
        ]:
            with pytest.raises(ValueError, match=words):
                call(wrong, **options)
    with pytest.raises(ValueError, match=r"several dampings go with a single g .* K = 4 columns"):
        space.solve(g, damping=[0.1, 1.0])
    with pytest.raises(TypeError, match="damping must be a real number"):
        fisher.solve(g, damping=[0.1, 1.0])
