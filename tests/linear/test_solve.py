"""solve(): the right answer by every method, and a documented choice among them."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED, Case

METHODS = ["cg", "kfac_cg", "sample_space", "sample_space_cg", "dense"]


def set_up(case, dtype="float64", **options):
    problem = case.problem(dtype)
    matrix = ng.Fisher(problem.net, case.loss, problem.x, **options)
    g = ng.value_and_grad(problem.net, case.loss, problem.x, problem.y)[1]
    return matrix, g, problem


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("case", cases.SMALL, ids=cases.ids)
def test_every_method_solves(case, method, dtype):
    matrix, g, _ = set_up(case, dtype, l2=0.01)
    result = matrix.solve(g, damping=0.1, method=method, max_iter=1000)
    assert result.status.success
    assert result.method.startswith({"auto": ""}.get(method, method))
    dense = matrix.to_dense().astype(float) + 0.1 * np.eye(len(g))
    # rtol 1e-5, twice for the rounding of the float32 dense matrix
    assert np.linalg.norm(dense @ result.x - g) <= 2e-5 * np.linalg.norm(g)
    assert result.estimates.keys() == set(METHODS)
    for estimate in result.estimates.values():
        assert estimate.cost >= estimate.flops > 0
        assert estimate.bytes > 0


def test_cheapest_is_taken():
    few = Case("50-80-80-3-few", (50, 80, 80, 3), SOFTMAX, n=5)
    many = Case("4-6-3-many", (4, 6, 3), SOFTMAX, n=2000)
    large = Case("40-60-3-large", (40, 60, 3), SOFTMAX, n=500)
    for case, expected in [(few, "sample_space"), (many, "dense"), (large, "cg")]:
        matrix, g, _ = set_up(case)
        result = ng.solve(matrix, g, damping=1e-2)
        costs = {name: estimate.cost for name, estimate in result.estimates.items()}
        assert min(costs, key=costs.get) == expected
        assert result.method.startswith(expected)
        assert result.status.success


def test_kfac_is_that_of_the_batch(rng):
    """The same bits as with a preconditioner that linearises the net by itself."""
    case = Case("6-9-7-4-kfac", (6, 9, 7, 4), SOFTMAX, n=70)
    weight = rng.random(70)
    matrix, g, problem = set_up(case, sample_weight=weight, l2=0.02, damping=0.01)
    result = ng.solve(matrix, g, damping=0.03, method="kfac_cg")
    kfac = ng.KFAC(problem.net, case.loss, problem.x, samples=1, damping=0.06, sample_weight=weight)
    other = ng.cg(matrix, g, damping=0.03, preconditioner=kfac)
    assert result.method == "kfac_cg"
    assert cases.same_bits(result.x, other.x)
    assert result.iterations == other.iterations
    with pytest.raises(ValueError, match="needs damping"):
        ng.solve(set_up(case)[0], g, method="kfac_cg")


def test_kfac_is_taken_where_cg_is_long():
    """A tenth of the largest eigenvalue as damping needs few iterations, 1e-8 of it many."""
    case = Case("30-40-8-40-30-long", (30, 40, 8, 40, 30), BERNOULLI, n=400)
    matrix, g, _ = set_up(case)
    mu = matrix.quadratic_form(g) / (g @ g)
    for relative, expected in [(0.1, "cg"), (1e-8, "kfac_cg")]:
        estimates = ng.estimate_solve(matrix, g, damping=relative * mu, rtol=1e-2)
        assert min(estimates, key=lambda name: estimates[name].cost) == expected


def test_memory_bounds_the_choice():
    matrix, g, _ = set_up(Case("50-80-80-3-few", (50, 80, 80, 3), SOFTMAX, n=5))
    estimates = ng.estimate_solve(matrix, g, damping=1e-2)
    least = min(estimates.values(), key=lambda e: e.bytes).bytes
    for bound in (least, 1.0):  # the least where nothing fits
        small = ng.solve(matrix, g, damping=1e-2, max_bytes=bound)
        assert estimates[small.method.replace("_cholesky", "")].bytes == least


def test_cg_where_nothing_else_can_be_used(rng):
    matrix, g, problem = set_up(Case("5-6-2-others", (5, 6, 2), SQUARED))
    hessian = ng.Hessian(problem.net, SQUARED, problem.x, problem.y, l2=10.0)
    student = ng.GGN(problem.net, "student_t", problem.x, problem.y, l2=10.0)
    for indefinite in (hessian, student):
        result = indefinite.solve(g)
        assert result.method == "cg"
        assert list(result.estimates) == ["cg"]
        assert result.status.success
    assert ng.solve(matrix, g).method == "cg"  # no damping: B alone is singular
    preconditioner = np.full(len(g), 2.0)
    assert ng.solve(matrix, g, damping=0.1, preconditioner=preconditioner).method == "cg"
    with pytest.raises(ValueError, match="needs a matrix with a factor"):
        hessian.solve(g, method="sample_space")
    with pytest.raises(ValueError, match="preconditioner is for method 'cg'"):
        ng.solve(matrix, g, damping=0.1, method="sample_space", preconditioner=preconditioner)


def test_iterations_are_bounded_by_the_rank():
    """CG on a matrix of rank n ends after n + 1 iterations, whatever the condition."""
    matrix, g, _ = set_up(Case("8-20-1-rank", (8, 20, 1), SQUARED, n=3))
    assert ng.estimate_solve(matrix, g, damping=1e-9)["cg"].iterations == 3
    assert ng.estimate_solve(matrix, g, damping=1e9)["cg"].iterations < 10
    assert ng.estimate_solve(matrix, np.zeros_like(g), damping=1.0)["cg"].iterations == 1


def test_bad_arguments():
    matrix, g, _ = set_up(Case("5-6-2-bad", (5, 6, 2), SQUARED))
    for options, words in [
        ({"method": "lu"}, "unknown method 'lu'"),
        ({"damping": -1.0}, "damping must be >= 0"),
        ({"damping": float("nan")}, "damping must be finite"),
        ({"rtol": -1.0}, "rtol must be >= 0"),
        ({"max_iter": 0}, "max_iter must be >= 1"),
        ({"max_bytes": 0.0}, "max_bytes must be > 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            ng.solve(matrix, g, **{"damping": 0.1, **options})
    with pytest.raises(ValueError, match="g has length"):
        ng.solve(matrix, g[:-1], damping=0.1)
    with pytest.raises(TypeError, match="matrix must be a Fisher"):
        ng.solve(np.eye(len(g)), g, damping=0.1)
    with pytest.raises(ValueError, match="y has shape"):
        ng.solve(matrix, g, damping=0.1, method="cg", y=np.zeros((3, 2)))
