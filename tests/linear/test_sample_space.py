"""Kernels U'U and solves in the space of samples, beside dense parameter-space matrices."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, same_bits

MATRICES = ["fisher", "sampled", "empirical", "ggn"]
SPACES = [
    Case("4-6-3-softmax-space", (4, 6, 3), SOFTMAX, weighted=True),
    Case("3-5-4-2-bernoulli-space", (3, 5, 4, 2), BERNOULLI, activation="relu", bias=False),
    Case("5-7-3-squared-space", (5, 7, 3), SQUARED, activation="silu"),
    Case("4-5-2-poisson-space", (4, 5, 2), "poisson", bias=(True, False)),
]
DAMPINGS = [1e-6, 1e-3, 1.0, 1e2]


def build(kind, problem, loss, **options):
    net, x, y = problem.net, problem.x, problem.y
    options = {"sample_weight": problem.weight} | options
    if kind == "fisher":
        return ng.Fisher(net, loss, x, **options)
    if kind == "sampled":
        return ng.Fisher(net, loss, x, samples=2, seed=3, **options)
    if kind == "ggn":
        return ng.GGN(net, loss, x, y, **options)
    return ng.EmpiricalFisher(net, loss, x, y, **options)


def gradient(problem, loss, l2=0.0):
    net, _, x, y, weight = problem
    return ng.value_and_grad(net, loss, x, y, sample_weight=weight, l2=l2)[1]


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("case", SPACES, ids=cases.ids)
def test_kernel_and_factor(case, kind, dtype, tol, rng):
    """B = U U' and K = U'U for the same U, n as documented, K w with and without forming K."""
    problem = case.problem(dtype)
    matrix = build(kind, problem, case.loss, l2=0.5)  # l2 and damping are not part of U U'
    space = ng.SampleSpace(matrix)
    n = space.shape[0]
    outputs = case.sizes[-1] - (case.loss == SOFTMAX)
    columns = {"sampled": 2, "empirical": 1}.get(kind, outputs)
    assert space.shape == (len(cases.counted(problem).x) * columns,) * 2
    factor = np.stack([space.multiply_factor(e) for e in np.eye(n, dtype=dtype)], axis=1)
    factor = factor.astype(float)
    assert_close(factor @ factor.T, build(kind, problem, case.loss).to_dense(), tol.product)
    assert_close(space.kernel(), factor.T @ factor, tol.product)
    w = rng.standard_normal(n).astype(dtype)
    v = rng.standard_normal(problem.net.num_params).astype(dtype)
    assert_close(space @ w, factor.T @ factor @ w.astype(float), tol.product)
    assert_close(space.multiply_factor_transposed(v), factor.T @ v.astype(float), tol.product)


@pytest.mark.parametrize("targets", [False, True], ids=["any-g", "gradient"])
@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("case", SPACES, ids=cases.ids)
def test_solution_equals_dense(case, kind, method, targets, dtype):
    problem = case.problem(dtype)
    matrix = build(kind, problem, case.loss, l2=0.01, damping=0.002)
    dense = matrix.to_dense().astype(float)
    g = gradient(problem, case.loss, 0.01)
    for damping in DAMPINGS:
        exact_matrix = dense + damping * np.eye(len(dense))
        options = {"damping": damping, "method": method, "y": problem.y if targets else None}
        result = ng.sample_space_solve(matrix, g, **options)
        assert result.status is ng.Status.CONVERGED
        assert result.x.dtype == dtype
        assert result.method == f"sample_space_{method}"
        residual = g - exact_matrix @ result.x.astype(float)
        # rtol is 1e-5; the dense matrix was itself computed in dtype, which adds eps |B| |x|
        noise = 1e-6 if dtype == "float32" else 1e-14
        slack = noise * np.linalg.norm(exact_matrix, 2) * np.linalg.norm(result.x)
        assert np.linalg.norm(residual) <= 1e-5 * np.linalg.norm(g) + slack
        assert result.residual_norm == pytest.approx(np.linalg.norm(residual), abs=slack)
        if method != "cg" and dtype == "float64":
            # exact: condition at most |B| / 0.012, about 1e4, times eps, times the size of sums
            assert_close(result.x, np.linalg.solve(exact_matrix, g), 1e-9)


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX, BERNOULLI])
def test_small_dampings_agree_with_parameter_space(loss, damping, method, dtype):
    """No l2: the push-through form alone, down to damping 1e-6."""
    problem = Case(f"6-9-3-{loss}-small", (6, 9, 3), loss, n=9).problem(dtype)
    fisher = ng.Fisher(problem.net, loss, problem.x)
    g = gradient(problem, loss)
    rtol = {"float32": 1e-4, "float64": 1e-10}[dtype]
    result = ng.sample_space_solve(
        fisher, g, y=problem.y, damping=damping, method=method, rtol=rtol
    )
    reference = ng.cg(fisher, g, damping=damping, rtol=rtol, max_iter=5000)
    assert result.residual_norm <= rtol * np.linalg.norm(g)
    assert result.status.success
    assert reference.status.success
    # In the norm of the matrix both are minimisers: the value of the quadratic is second order.
    assert result.quadratic == pytest.approx(reference.quadratic, rel=10 * rtol)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_right_hand_side_of_targets(dtype):
    """Without g the right-hand side is the objective's gradient; with a wrong y it is still g."""
    case = SPACES[0]
    problem = case.problem(dtype)
    matrix = build("fisher", problem, case.loss, l2=0.1)
    g = gradient(problem, case.loss, 0.1)
    exact = ng.sample_space_solve(matrix, g, damping=0.2).x
    assert_close(ng.sample_space_solve(matrix, y=problem.y, damping=0.2).x, exact, 1e-10)
    wrong = (problem.y + 1) % 3
    result = ng.sample_space_solve(matrix, g, y=wrong, damping=0.2)
    assert result.status.success
    assert result.residual_norm <= 1e-5 * np.linalg.norm(g)
    empirical = build("empirical", problem, case.loss)
    same = ng.sample_space_solve(empirical, damping=0.2).x
    exact = ng.sample_space_solve(empirical, gradient(problem, case.loss), damping=0.2).x
    assert_close(same, exact, 1e-10)


@pytest.mark.parametrize("loss", [SOFTMAX, BERNOULLI])
@pytest.mark.parametrize("method", ["cholesky", "cg"])
def test_saturated_probabilities(loss, method, dtype):
    """Logits of +-1e4, some of them confidently wrong: Q^+ dL/dz would be infinite there."""
    net = ng.MLP([4, 3], dtype=dtype, seed=0)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((12, 4))
    net.params *= 1e4
    y = rng.integers(0, 3, 12) if loss == SOFTMAX else rng.integers(0, 2, (12, 3))
    fisher = ng.Fisher(net, loss, x)
    g = ng.value_and_grad(net, loss, x, y)[1]
    result = ng.sample_space_solve(fisher, g, y=y, damping=0.01, method=method)
    assert result.status is ng.Status.CONVERGED
    dense = fisher.to_dense().astype(float) + 0.01 * np.eye(net.num_params)
    assert np.linalg.norm(dense @ result.x - g) <= 2e-5 * np.linalg.norm(g)


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
def test_several_dampings(method, dtype):
    case = SPACES[2]
    problem = case.problem(dtype)
    matrix = build("fisher", problem, case.loss)
    g = gradient(problem, case.loss)
    dampings = [1.0, 0.01, 0.1, 0.01]
    result = ng.sample_space_solve(matrix, g, y=problem.y, damping=dampings, method=method)
    assert result.x.shape == (problem.net.num_params, 4)
    assert result.success
    assert list(result.dampings) == dampings
    for k, damping in enumerate(dampings):
        one = ng.sample_space_solve(matrix, g, y=problem.y, damping=damping, method=method)
        assert same_bits(result[k].x, one.x)
        assert same_bits(result.x[:, k], one.x)
        assert result[k].residual_norm == one.residual_norm


def test_automatic_method():
    problem = SPACES[2].problem("float64")
    space = ng.SampleSpace(build("fisher", problem, SQUARED))
    g = gradient(problem, SQUARED)
    assert space.solve(g, damping=0.1).method == "sample_space_cholesky"
    many = space.solve(g, damping=np.logspace(-3, 1, 100))
    assert {column.method for column in many} == {"sample_space_eigh"}
    assert many.success
    net = ng.MLP([3, 4, 2], seed=0)
    big = ng.SampleSpace(ng.Fisher(net, SQUARED, np.ones((2100, 3))))
    assert big.solve(np.ones(net.num_params), damping=1.0).method == "sample_space_cg"


def quantities(problem, loss, num_threads, chunk_size=None):
    options = {"num_threads": num_threads, "chunk_size": chunk_size, "l2": 0.01}
    g = gradient(problem, loss, 0.01)
    for kind in ("fisher", "sampled", "empirical"):
        matrix = build(kind, problem, loss, **options)
        space = ng.SampleSpace(matrix)
        w = np.random.default_rng(0).standard_normal(space.shape[0])
        yield f"{kind} kernel product", space @ w
        yield f"{kind} kernel", space.kernel()
        yield f"{kind} factor", space.multiply_factor(w)
        yield f"{kind} transposed factor", space.multiply_factor_transposed(g)
        for method in ("cholesky", "eigh", "cg"):
            for y in (None, problem.y):
                result = space.solve(g, y=y, damping=0.1, method=method)
                name = f"{kind} {method} {'any g' if y is None else 'gradient'}"
                yield name, result.x
                yield f"{name} record", [result.residual_norm, result.quadratic]


@pytest.mark.parametrize(
    "case",
    [
        Case("20-30-40-3-space-threads", (20, 30, 40, 3), SOFTMAX, n=301, weighted=True),
        Case("40-50-2-space-threads", (40, 50, 2), SQUARED, n=150),
    ],
    ids=cases.ids,
)
def test_bits_do_not_depend_on_threads_or_chunks(case, dtype):
    expected = dict(quantities(case.problem(dtype), case.loss, 1))
    for num_threads, chunk_size in [(2, None), (3, None), (1, 1), (2, 64), (4, 130)]:
        for name, value in quantities(case.problem(dtype), case.loss, num_threads, chunk_size):
            assert same_bits(value, expected[name]), (name, num_threads, chunk_size)


def test_kernel_serves_other_solvers(dtype, tol):
    """The kernel is an operator: cg, multishift_cg and Nystrom take it."""
    problem = SPACES[2].problem(dtype)
    space = ng.SampleSpace(build("fisher", problem, SQUARED))
    b = np.ones(space.shape[0], dtype)
    ng.cg(space, b, damping=1.0)  # the first product makes the layer Grams
    dense = space.kernel()
    x = ng.cg(space, b, damping=0.1, rtol=1e-5, preconditioner=ng.Nystrom(space, rank=5)).x
    # cg stops at 1e-5; twice that for the rounding of the kernel itself
    assert np.linalg.norm(dense @ x + 0.1 * x - b) <= 2e-5 * np.linalg.norm(b)
    result = ng.multishift_cg(space, b, [0.1, 1.0])
    assert result.success


def test_callback_stops_and_record():
    problem = SPACES[2].problem("float64")
    space = ng.SampleSpace(build("fisher", problem, SQUARED))
    g = gradient(problem, SQUARED)
    stopped = space.solve(g, damping=1e-3, method="cg", callback=lambda i, norm, phi: i == 2)
    assert stopped.status is ng.Status.STOPPED
    assert np.isfinite(stopped.x).all()
    short = space.solve(g, damping=1e-3, method="cg", max_iter=2, rtol=1e-12)
    assert short.status is ng.Status.MAX_ITERATIONS
    assert short.iterations == 2
    assert 0.0 < short.residual_norm <= np.linalg.norm(g)
    full = space.solve(g, damping=1e-3)
    assert full.flops > 0
    assert full.seconds > 0
    assert full.matvecs >= 1
    x, dense = full.x, build("fisher", problem, SQUARED, damping=1e-3).to_dense()
    assert full.quadratic == pytest.approx(0.5 * x @ dense @ x - g @ x, rel=1e-9)
    zero = space.solve(np.zeros_like(g), damping=1e-3)
    assert zero.status is ng.Status.CONVERGED
    assert not zero.x.any()

    def interrupt(i, norm, phi):
        raise KeyboardInterrupt

    assert space.solve(g, damping=1e-3, method="cg", callback=interrupt).status == "interrupted"


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
def test_non_finite_products_are_reported(method):
    problem = SPACES[2].problem("float64")
    problem.net.params[3] = np.nan
    matrix = build("fisher", problem, SQUARED)
    g = np.ones(problem.net.num_params)
    result = ng.sample_space_solve(matrix, g, damping=0.1, method=method)
    assert result.status is ng.Status.NON_FINITE
    assert not result.x.any()


def test_bad_arguments():
    problem = SPACES[0].problem("float64")
    net, x, g = problem.net, problem.x, gradient(problem, SOFTMAX)
    fisher = ng.Fisher(net, SOFTMAX, x)
    student = ng.GGN(net, "student_t", x, np.zeros((17, 3)))
    for call, error, words in [
        (lambda: ng.sample_space_solve(fisher, g), ValueError, r"damping \+ l2 must be > 0"),
        (lambda: ng.sample_space_solve(fisher, damping=1.0), ValueError, "g and y are missing"),
        (lambda: ng.sample_space_solve(fisher, g[:-1], damping=1.0), ValueError, "g has length"),
        (lambda: ng.sample_space_solve(fisher, g, damping=-1.0), ValueError, "damping.*-1"),
        (lambda: ng.sample_space_solve(fisher, g, damping=[]), ValueError, "damping is empty"),
        (lambda: ng.sample_space_solve(fisher, g, damping=[1, -2]), ValueError, "damping.*-2"),
        (lambda: ng.sample_space_solve(fisher, g, damping=[1, np.nan]), ValueError, "NaN"),
        (lambda: ng.sample_space_solve(fisher, g, damping=1, rtol=-1), ValueError, "rtol"),
        (lambda: ng.sample_space_solve(fisher, g, damping=1, method="lu"), ValueError, "method"),
        (lambda: ng.sample_space_solve(fisher, g, y=[9] * 17, damping=1), ValueError, "labels"),
        (lambda: ng.sample_space_solve(student, g, damping=1.0), ValueError, "indefinite"),
        (lambda: ng.SampleSpace(ng.Hessian(net, SOFTMAX, x, problem.y)), TypeError, "Hessian"),
        (lambda: ng.SampleSpace(np.eye(3)), TypeError, "must be a Fisher"),
        (lambda: ng.SampleSpace(fisher) @ np.ones(3), ValueError, "v has shape"),
        (lambda: ng.SampleSpace(fisher).multiply_factor([1.0]), ValueError, "w has length 1"),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
@pytest.mark.parametrize("targets", [False, True], ids=["any-g", "gradient"])
@pytest.mark.parametrize("l2", [(0.02, 0.0), (0.001, 0.3), (0.0, 0.1)])
def test_l2_of_weights_and_of_biases(l2, targets, method):
    """(alpha, 0) is scikit-learn's objective: two shifts, solved by a kernel with scaled biases."""
    problem = SPACES[1].problem("float64") if not targets else SPACES[0].problem("float64")
    loss = SOFTMAX if targets else BERNOULLI
    matrix = build("fisher", problem, loss, l2=l2, damping=0.003)
    weights = {"sample_weight": problem.weight}
    g = ng.value_and_grad(problem.net, loss, problem.x, problem.y, l2=l2, **weights)[1]
    dense = matrix.to_dense()
    options = {"method": method, "rtol": 1e-9, "max_iter": 2000}
    for damping in ([0.0, 0.05], 1.0):
        result = ng.sample_space_solve(
            matrix, g, damping=damping, y=problem.y if targets else None, **options
        )
        columns = result if np.ndim(damping) else [result]
        for value, column in zip(np.atleast_1d(damping), columns, strict=True):
            shifted = dense + value * np.eye(len(g))
            assert column.status is ng.Status.CONVERGED
            residual = np.linalg.norm(g - shifted @ column.x)
            assert residual <= 1.1e-9 * np.linalg.norm(g)
    if targets:
        alone = ng.sample_space_solve(matrix, y=problem.y, damping=0.1, **options)
        shifted = dense + 0.1 * np.eye(len(g))
        assert np.linalg.norm(g - shifted @ alone.x) <= 1.1e-9 * np.linalg.norm(g)
    assert matrix.solve(g, method="auto", rtol=1e-8, max_iter=2000).status.success
