"""Batch: cases checked once, weights of 0 left out, parts that add up, l2 of weights and biases."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import BERNOULLI, SOFTMAX, SQUARED, Case, assert_close, curvature, same_bits

LAWS = [
    Case("4-6-3-batch-softmax", (4, 6, 3), SOFTMAX, n=21),
    Case("4-6-3-batch-bernoulli", (4, 6, 3), BERNOULLI, n=21, bias=(True, False)),
    Case("4-6-2-batch-squared", (4, 6, 2), SQUARED, n=21, activation="softplus"),
    Case("4-6-2-batch-student", (4, 6, 2), "student_t", n=21),
    Case("4-6-4-batch-mean-variance", (4, 6, 4), "gaussian_mean_variance", n=21),
]
INVALID = {
    SOFTMAX: 99,
    BERNOULLI: 7.0,
    SQUARED: np.nan,
    "student_t": np.inf,
    "gaussian_mean_variance": np.nan,
}


def everything(problem, loss, y, **options):
    """Name and value of all that is made from cases with weights."""
    net, x = problem.net, problem.x
    yield "value", ng.value(net, loss, x, y, **options)
    value, gradient = ng.value_and_grad(net, loss, x, y, **options)
    yield "value of value_and_grad", value
    yield "gradient", gradient
    v, w = np.random.default_rng(5).standard_normal((2, net.num_params))
    for kind in cases.CURVATURES:
        matrix = curvature(kind, problem._replace(y=y), loss, **options)
        yield f"{kind} product", matrix @ v
        yield f"{kind} form", matrix.quadratic_form(v)
        yield f"{kind} forms", matrix.quadratic_forms(v, w)
        yield f"{kind} diagonal", matrix.diagonal()
        yield f"{kind} trace", matrix.trace()


@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_a_case_of_weight_0_is_left_out_whatever_it_holds(case, dtype):
    problem = case.problem(dtype)
    weight = np.random.default_rng(0).random(case.n)
    weight[[0, 3, 4, 20]] = 0.0
    counts = weight > 0
    x, y = problem.x.copy(), problem.y.copy()
    x[0], x[3], x[4, 1], x[20] = np.nan, np.inf, -np.inf, np.nan
    y[[0, 3, 4, 20]] = INVALID[case.loss]
    left_out = problem._replace(x=problem.x[counts], y=problem.y[counts])
    wild = problem._replace(x=x, y=y)
    expected = everything(left_out, case.loss, left_out.y, sample_weight=weight[counts], l2=0.1)
    found = everything(wild, case.loss, y, sample_weight=weight, l2=0.1)
    for (name, a), (_, b) in zip(found, expected, strict=True):
        assert same_bits(a, b), name


def test_cases_of_weight_0_in_preconditioners_and_training(dtype):
    case = LAWS[0]
    problem = case.problem(dtype)
    weight = np.where(np.arange(case.n) % 3 == 0, 0.0, 1.0)
    x, y = problem.x.copy(), problem.y.copy()
    x[::3], y[::3] = np.nan, -5
    g = np.random.default_rng(0).standard_normal(problem.net.num_params)

    def preconditioned(kind, x, y, weight):
        options = {"sample_weight": weight, "damping": 0.1}
        if kind is not ng.DiagonalPreconditioner:
            options["samples"] = 1
        return kind(problem.net, case.loss, x, y, **options) @ g

    counts = weight > 0
    for kind in (ng.KFAC, ng.EKFAC, ng.TKFAC, ng.TEKFAC, ng.DiagonalPreconditioner):
        full = preconditioned(kind, x, y, weight)
        assert same_bits(full, preconditioned(kind, x[counts], y[counts], weight[counts]))

    def trained(x, y, weight):
        net = problem.net.copy()
        opt = ng.NaturalGradient(net, case.loss)
        opt.fit(x, y, sample_weight=weight, epochs=2, batch_size=5)
        return net.params

    assert same_bits(trained(x, y, weight), trained(x[counts], y[counts], weight[counts]))


def test_positions_in_messages_are_those_of_the_caller():
    net = ng.MLP([2, 3])
    x, y, weight = np.ones((6, 2)), np.zeros(6, int), np.array([0, 0, 1, 1, 0, 1.0])
    bad = x.copy()
    bad[[0, 5], 1] = np.nan
    with pytest.raises(ValueError, match=r"X has NaN or Inf .* at row 5, column 1"):
        ng.Batch(net, SOFTMAX, bad, y, sample_weight=weight)
    wrong = y.copy()
    wrong[[1, 3]] = 9
    with pytest.raises(ValueError, match=r"labels in \[0, 3\), got 9 at position 3"):
        ng.Batch(net, SOFTMAX, x, wrong, sample_weight=weight)
    for short in (y[:-1], np.zeros(3, int)):
        with pytest.raises(ValueError, match="y has"):
            ng.Batch(net, SOFTMAX, x, short, sample_weight=weight)
    matrix = ng.Fisher(net, SOFTMAX, x, sample_weight=weight, l2=0.1)
    assert matrix.num_cases == 3
    full = ng.sample_space_solve(matrix, y=y)
    g = ng.value_and_grad(net, SOFTMAX, x, y, sample_weight=weight, l2=0.1)[1]
    assert_close(full.x, ng.sample_space_solve(matrix, g, y=y).x, 1e-5)  # rtol of the solve
    with pytest.raises(ValueError, match="y has 3 labels, X has 6 cases"):
        ng.sample_space_solve(matrix, y=y[:3])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_parts_add_up_to_the_whole(case, weighted, dtype, tol):
    problem = case.problem(dtype)
    weight = np.random.default_rng(1).random(case.n) if weighted else None
    total = case.n if weight is None else weight.sum()

    def parts():
        for rows in (slice(0, 5), slice(5, 6), slice(6, None)):
            yield (
                problem._replace(x=problem.x[rows], y=problem.y[rows]),
                None if weight is None else weight[rows],
            )

    whole = [
        (name, np.asarray(value, float))
        for name, value in everything(
            problem, case.loss, problem.y, sample_weight=weight, l2=(0.3, 0.1)
        )
        if "sampled" not in name  # draws belong to a case's place in its batch
    ]
    sums = [np.zeros_like(value) for _, value in whole]
    for part, part_weight in parts():
        options = {"sample_weight": part_weight, "total_weight": total, "l2": (0.3, 0.1)}
        found = [
            value
            for name, value in everything(part, case.loss, part.y, **options)
            if "sampled" not in name
        ]
        for place, value in zip(sums, found, strict=True):
            place += np.asarray(value, float)
    for (name, expected), found in zip(whole, sums, strict=True):
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 4 * tol.product * scale, name  # sums of 3 parts


def test_total_weight_is_checked():
    net = ng.MLP([2, 3])
    x, y = np.ones((4, 2)), np.zeros(4, int)
    for wrong, error in [
        (0.0, ValueError),
        (-1, ValueError),
        (np.nan, ValueError),
        ("4", TypeError),
    ]:
        with pytest.raises(error, match="total_weight must be"):
            ng.Batch(net, SOFTMAX, x, y, total_weight=wrong)
    with pytest.raises(ValueError, match="total_weight must be >= the sum of the weights 4, got 3"):
        ng.Batch(net, SOFTMAX, x, y, total_weight=3)
    batch = ng.Batch(net, SOFTMAX, x, y, total_weight=8, l2=0.5)
    assert (batch.weight, batch.total_weight, batch.decay) == (4.0, 8.0, (0.25, 0.25))
    assert batch.l2 == 0.5


@pytest.mark.parametrize("kind", cases.CURVATURES)
@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_l2_of_weights_and_of_biases(case, kind, dtype, tol, rng):
    problem = case.problem(dtype)
    l2 = (0.3, 0.05)
    exact = cases.exact_curvature(kind, problem, case.loss)
    decay = np.full(problem.net.num_params, l2[0])
    mask = problem.net.copy()
    mask.params[...] = 0.0
    for bias in mask.biases:
        bias[...] = 1.0
    decay[mask.params == 1.0] = l2[1]
    exact = exact + np.diag(decay + 0.01)
    matrix = curvature(kind, problem, case.loss, l2=l2, damping=0.01)
    assert matrix.l2 == matrix.decay == l2
    v, w = rng.standard_normal((2, problem.net.num_params)).astype(dtype)
    assert_close(matrix.to_dense(), exact, tol.product)
    assert_close(matrix.diagonal(), np.diag(exact), tol.product)
    assert matrix.trace() == pytest.approx(
        np.trace(exact), abs=tol.product * np.abs(exact).max() * 50
    )
    forms = np.array([v @ exact @ v, v @ exact @ w, w @ exact @ w])
    assert_close(matrix.quadratic_forms(v, w), forms, 10 * tol.product)
    if kind != "hessian":
        blocks = [exact[place, place] for place in reference.layer_slices(problem.oracle)]
        for block, expected in zip(matrix.block_diagonal(), blocks, strict=True):
            assert_close(block, expected, tol.product)


@pytest.mark.parametrize("case", LAWS, ids=cases.ids)
def test_objective_with_two_decays(case, tol):
    problem = case.problem("float64")
    net, oracle, x, y, _ = problem
    h, g = ng.value_and_grad(net, case.loss, x, y, l2=(0.3, 0.05))
    theta = net.params.astype(float)
    plain = reference.value(oracle, case.loss, theta, x, y)
    squares = [sum((part**2).sum() for part in parts) for parts in (net.weights, net.biases)]
    assert h == pytest.approx(plain + 0.15 * squares[0] + 0.025 * squares[1], rel=1e-12)
    assert ng.value(net, case.loss, x, y, l2=(0.3, 0.05)) == pytest.approx(h, rel=1e-14)
    expected = net.copy()
    expected.params[...] = reference.gradient(oracle, case.loss, theta, x, y)
    for w, own in zip(expected.weights, net.weights, strict=True):
        w += 0.3 * own
    for b, own in zip(expected.biases, net.biases, strict=True):
        b += 0.05 * own
    assert_close(g, expected.params, 1e-11)  # the gradient's bound


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, 2.0, 3.0), (), (-1.0, 0.0), (0.0, np.nan)])
def test_l2_is_checked(wrong):
    with pytest.raises(ValueError, match="l2"):
        ng.value(ng.MLP([2, 3]), SOFTMAX, np.ones((4, 2)), np.zeros(4, int), l2=wrong)
    with pytest.raises(TypeError, match="l2 of biases must be a real number, got '1'"):
        ng.value(ng.MLP([2, 3]), SOFTMAX, np.ones((4, 2)), np.zeros(4, int), l2=(0.0, "1"))


@pytest.mark.parametrize("kind", [ng.Fisher, ng.GGN, ng.EmpiricalFisher, ng.Hessian])
def test_operators_on_a_batch(kind, dtype, rng):
    problem = LAWS[0].problem(dtype)
    batch = ng.Batch(problem.net, SOFTMAX, problem.x, problem.y, l2=0.1)
    v = rng.standard_normal(problem.net.num_params)
    targets = () if kind is ng.Fisher else (problem.y,)
    same = kind(problem.net, SOFTMAX, problem.x, *targets, l2=0.1, damping=0.2)
    linearization = batch.linearize()
    for matrix in (kind.on(batch, damping=0.2), kind.on(batch, linearization, damping=0.2)):
        assert same_bits(matrix @ v, same @ v)
    h, g = batch.value_and_grad(linearization)
    expected = ng.value_and_grad(problem.net, SOFTMAX, problem.x, problem.y, l2=0.1)
    assert h == expected[0] == batch.value()
    assert same_bits(g, expected[1])


def test_a_batch_without_targets():
    problem = LAWS[0].problem("float32")
    batch = ng.Batch(problem.net, SOFTMAX, problem.x)
    assert ng.Fisher.on(batch).shape == (problem.net.num_params,) * 2
    for needy in (ng.EmpiricalFisher.on, ng.Hessian.on, ng.Batch.value, ng.Batch.value_and_grad):
        with pytest.raises(ValueError, match="y is missing"):
            needy(batch)
    assert "21 cases" in repr(batch)


def test_x_is_read_once_for_nan(monkeypatch):
    """Every construction scans the inputs once, whatever it makes of them."""
    from natgrad_fast import _arrays

    problem = LAWS[0].problem("float32")
    scanned = []
    original = _arrays.all_finite

    def counting(a, num_threads=1):
        scanned.append(a.shape)
        return original(a, num_threads)

    monkeypatch.setattr(_arrays, "all_finite", counting)
    net, x, y = problem.net, problem.x, problem.y
    makers = {
        "fisher": lambda: ng.Fisher(net, SOFTMAX, x),
        "hessian": lambda: ng.Hessian(net, SOFTMAX, x, y),
        "value_and_grad": lambda: ng.value_and_grad(net, SOFTMAX, x, y),
        "kfac": lambda: ng.KFAC(net, SOFTMAX, x, damping=0.1),
        "ekfac": lambda: ng.EKFAC(net, SOFTMAX, x, damping=0.1),
        "diagonal": lambda: ng.DiagonalPreconditioner(net, SOFTMAX, x, y),
        "jacobian": lambda: ng.Jacobian(net, x),
        "step": lambda: ng.NaturalGradient(net, SOFTMAX).step(x, y),
        "fit": lambda: ng.NaturalGradient(net, SOFTMAX).fit(x, y, epochs=3, batch_size=10),
    }
    for name, make in makers.items():
        scanned.clear()
        make()
        assert scanned.count(x.shape) == 1, name


def test_num_threads_is_honoured_at_the_border(monkeypatch):
    from natgrad_fast import _arrays

    used = []
    original = _arrays.all_finite
    monkeypatch.setattr(
        _arrays, "all_finite", lambda a, n=1: used.append((a.shape, n)) or original(a, n)
    )
    x = np.zeros((2**19, 3), np.float32)  # above the size from which threads read
    net = ng.MLP([3, 1])
    for threads in (1, 2):
        used.clear()
        ng.Batch(net, SQUARED, x, num_threads=threads)
        ng.Fisher(net, SQUARED, x, num_threads=threads)
        assert {n for shape, n in used if shape == x.shape} == {threads}
    wide = ng.MLP([2**10, 2**11], dtype="float32", init="zeros")  # 2 ** 21 parameters
    matrix = ng.Fisher(wide, SQUARED, np.zeros((1, 2**10)), num_threads=2)
    used.clear()
    matrix @ np.zeros(wide.num_params, np.float32)
    assert {n for _, n in used} == {2}
