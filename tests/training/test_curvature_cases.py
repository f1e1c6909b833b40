"""Steps whose curvature is of other cases, or of a share of them, than objective and gradient."""

import copy

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import MEAN_VARIANCE, SOFTMAX, Case, assert_close, same_bits
from natgrad_fast.training.step_cases import share_of

PROBLEM = Case("5-7-3-curvature-cases", (5, 7, 3), SOFTMAX, n=60)
TIGHT = {"max_iter": 400, "rtol": 1e-12, "stopping": "residual"}
SOLVERS = {
    "cg": lambda: ng.solvers.CG(max_iter=20),
    "cg kfac": lambda: ng.solvers.CG(max_iter=20, preconditioner="kfac", backtracking=True),
    "dense": ng.solvers.Dense,
    "kronecker": ng.solvers.Kronecker,
}


def optimizer(net, solver="cg", **options):
    options = {"l2": (1e-3, 0.0), "seed": 4, "damping": ng.LevenbergMarquardt(0.3)} | options
    return ng.NaturalGradient(net, SOFTMAX, solver=SOLVERS[solver](), **options)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("curvature", ["fisher", "ggn", "empirical_fisher", "hessian"])
def test_the_same_cases_again_give_the_same_bits(curvature, solver, dtype):
    params = []
    for again in (False, True):
        problem = PROBLEM.problem(dtype)
        x, y = problem.x, problem.y
        opt = optimizer(problem.net, solver, curvature=curvature)
        for _ in range(3):
            more = {"X_curvature": x.copy(), "y_curvature": y.copy()} if again else {}
            info = opt.step(x, y, **more)
            assert info.curvature_size == info.batch_size == 60
        params.append(problem.net.params)
    assert same_bits(*params)


def test_other_cases_change_the_matrix_and_nothing_else():
    """The step against the oracle: g and objective of all cases, F of ten of them."""
    net, oracle, x, y, _ = PROBLEM.problem("float64")
    solver = ng.solvers.CG(**TIGHT)
    opt = ng.NaturalGradient(net, SOFTMAX, solver=solver, damping=0.5, momentum=False, l2=0.1)
    theta = net.params.copy()
    info = opt.step(x, y, X_curvature=x[:10])
    g = reference.gradient(oracle, SOFTMAX, theta, x, y, l2=0.1)
    exact = np.linalg.solve(
        reference.fisher(oracle, SOFTMAX, theta, x[:10], l2=0.1, damping=0.5), g
    )
    d = net.params - theta
    # residual 1e-12 over the least eigenvalue .6 of the damped matrix; alpha = 1 at its minimum
    assert_close(d, -exact, 1e-9)
    assert info.loss == pytest.approx(reference.value(oracle, SOFTMAX, theta, x, y, l2=0.1))
    assert info.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)
    assert info.new_loss == pytest.approx(reference.value(oracle, SOFTMAX, theta + d, x, y, l2=0.1))
    assert (info.batch_size, info.curvature_size) == (60, 10)
    matrix = reference.fisher(oracle, SOFTMAX, theta, x[:10], l2=0.1)
    predicted = g @ d + 0.5 * d @ matrix @ d
    ratio = (info.new_loss - info.loss) / predicted
    assert info.reduction_ratio == pytest.approx(ratio, rel=1e-9)


def test_weights_are_of_the_batch_and_a_batch_brings_its_own():
    net, oracle, x, y, _ = PROBLEM.problem("float64")
    w = np.random.default_rng(0).random(60)
    start = net.params.copy()
    for weighted in (False, True):
        net.params[:] = start
        other = ng.Batch(net, SOFTMAX, x[:20], sample_weight=w[:20] if weighted else None)
        opt = ng.NaturalGradient(
            net, SOFTMAX, solver=ng.solvers.CG(**TIGHT), damping=0.5, momentum=False
        )
        opt.step(x, y, w, X_curvature=other if weighted else x[:20])
        g = reference.gradient(oracle, SOFTMAX, start, x, y, sample_weight=w)
        matrix = reference.fisher(
            oracle, SOFTMAX, start, x[:20], sample_weight=w[:20] if weighted else None, damping=0.5
        )
        assert_close(net.params - start, np.linalg.solve(matrix, -g), 1e-9)


@pytest.mark.parametrize("given", ["cases", "share"])
def test_statistics_are_of_the_curvature_cases(given):
    """Of K-FAC as a preconditioner, and of the Kronecker solver."""
    for solver, name in (("cg kfac", "current_preconditioner"), ("kronecker", "approximation")):
        problem = PROBLEM.problem("float64")
        net, x, y = problem.net, problem.x, problem.y
        opt = optimizer(net, solver, curvature_share=0.2 if given == "share" else 1.0)
        batch = ng.Batch(net, SOFTMAX, x, y)
        cases = share_of(batch, 0.2, 4, 0).x
        wanted = ng.KFAC(net, SOFTMAX, cases, samples=1, seed=4)
        opt.step(x, y, **({"X_curvature": cases} if given == "cases" else {}))
        found = getattr(opt.solver, name)
        for factor, exact in zip(found.factors, wanted.factors, strict=True):
            assert same_bits(factor.A, exact.A)
            assert same_bits(factor.G, exact.G)


# ------------------------------------------------------------------------------------------------
# A share of every batch


@pytest.mark.parametrize(("share", "count"), [(1 / 6, 10), (0.25, 15), (0.4, 24), (1e-9, 1)])
def test_every_case_has_its_turn_equally_often(share, count):
    net = ng.MLP([1, 2], dtype="float64")
    x = np.arange(60.0)[:, None]
    batch = ng.Batch(net, SOFTMAX, x, np.arange(60) % 2)
    turns = np.zeros(60, int)
    for step in range(60):
        part = share_of(batch, share, 7, step)
        numbers = part.x[:, 0].astype(int)
        assert len(set(numbers)) == part.num_cases == count
        assert same_bits(part.targets, batch.targets[numbers])
        turns[numbers] += 1
    assert (turns == count).all()
    assert share_of(batch, 1.0, 7, 3) is batch
    first, other = share_of(batch, 0.4, 7, 3).x, share_of(batch, 0.4, 8, 3).x
    assert not same_bits(first, other)


def test_a_share_takes_weights_along_and_the_scale_of_a_part():
    net = ng.MLP([1, 2], dtype="float64")
    x, w = np.arange(10.0)[:, None], np.arange(10.0)
    batch = ng.Batch(net, SOFTMAX, x, np.arange(10) % 2, sample_weight=w, l2=0.3, total_weight=90.0)
    part = share_of(batch, 0.5, 0, 1)
    assert same_bits(part.weights, part.x[:, 0])  # the case of weight 0 is none
    assert part.weight / part.total_weight == pytest.approx(0.5)
    assert part.decay == pytest.approx(batch.decay)
    opt = ng.NaturalGradient(net, SOFTMAX, l2=0.3, curvature_share=0.5)
    assert opt.step(batch).curvature_size == 4  # half of nine, rounded to even
    with pytest.raises(ValueError, match=r"X_curvature has weight / total_weight = 1, .* 0.5"):
        opt.step(batch, X_curvature=x)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_share_is_a_step_with_those_cases(solver):
    nets = []
    for shared in (False, True):
        problem = PROBLEM.problem("float64")
        net, x, y = problem.net, problem.x, problem.y
        opt = optimizer(net, solver, curvature_share=0.3 if shared else 1.0)
        for step in range(4):
            part = share_of(ng.Batch(net, SOFTMAX, x, y, l2=(1e-3, 0.0)), 0.3, 4, step)
            info = opt.step(x, y, **({} if shared else {"X_curvature": part}))
            assert info.curvature_size == 18
        nets.append(net)
    assert same_bits(nets[0].params, nets[1].params)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("how", ["steps", "fit"])
def test_a_resumed_run_takes_the_cases_whose_turn_it_is(how, solver, dtype):
    def train(net, opt):
        if how == "fit":
            opt.fit(problem.x, problem.y, epochs=1, batch_size=25)
        else:
            for _ in range(3):
                opt.step(problem.x, problem.y)

    problem = PROBLEM.problem(dtype)
    options = {"curvature_share": 0.35, "line_search": True}
    opt = optimizer(problem.net, solver, **options)
    train(problem.net, opt)
    other, state = problem.net.copy(), copy.deepcopy(opt.state_dict())
    train(problem.net, opt)
    resumed = optimizer(other, solver, num_threads=1, **options)
    resumed.load_state_dict(state)
    train(other, resumed)
    assert same_bits(other.params, problem.net.params)
    for leaf, changed in (("curvature_share", {"curvature_share": 0.3}), ("seed", {"seed": 5})):
        foreign = optimizer(other, solver, **options | changed)
        with pytest.raises(ValueError, match=leaf):
            foreign.load_state_dict(state)


def test_mini_batches_with_a_share_are_judged_on_themselves():
    """The defaults take others on mini-batches; with these options steps are judged everywhere."""
    problem = PROBLEM.problem("float64")
    for options, judged in (
        ({}, False),
        ({"curvature_share": 0.5}, True),
        ({"line_search": True}, True),
    ):
        net = problem.net.copy()
        opt = ng.NaturalGradient(net, SOFTMAX, **options)
        history = opt.fit(problem.x, problem.y, epochs=2, batch_size=20)
        assert all((info.controller is None) == judged for info in history.steps)
        sizes = {info.curvature_size for info in history.steps}
        assert sizes == ({10} if "curvature_share" in options else {20})


def test_training_with_a_sixth_of_the_curvature(dtype):
    problem = PROBLEM.problem(dtype)
    opt = optimizer(problem.net, "cg kfac", curvature_share=1 / 6)
    history = opt.fit(problem.x, problem.y, epochs=60)
    assert history.steps[-1].new_loss < 0.3 * history.steps[0].loss


# ------------------------------------------------------------------------------------------------
# What raises, and leaves everything as it was


class Failing(Exception):
    pass


@pytest.mark.parametrize("where", ["update", "refresh", "direction", "accepted"])
def test_a_step_that_raises_does_not_take_its_turn(where):
    class Solver(ng.solvers.CG):
        fails = False

        def __getattribute__(self, name):
            if name == where and Solver.fails:
                raise Failing
            return super().__getattribute__(name)

    problems, opts = [PROBLEM.problem("float64") for _ in range(2)], []
    for problem in problems:
        solver = Solver(max_iter=20, preconditioner="kfac", backtracking=True)
        opts.append(
            ng.NaturalGradient(
                problem.net, SOFTMAX, solver=solver, curvature_share=0.3, line_search=True
            )
        )
        opts[-1].step(problem.x, problem.y)
    before = problems[0].net.params.copy()
    Solver.fails = True
    with pytest.raises(Failing):
        opts[0].step(problems[0].x, problems[0].y)
    Solver.fails = False
    assert same_bits(problems[0].net.params, before)
    for problem, opt in zip(problems, opts, strict=True):
        for _ in range(2):
            opt.step(problem.x, problem.y)
    assert same_bits(problems[0].net.params, problems[1].net.params)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (0.0, ValueError, "curvature_share must be > 0"),
        (-0.5, ValueError, "curvature_share must be > 0"),
        (1.5, ValueError, "curvature_share must be <= 1"),
        (np.nan, ValueError, "curvature_share must be finite"),
        ("half", TypeError, "curvature_share must be a real number"),
        (None, TypeError, "curvature_share must be a real number"),
    ],
)
def test_wrong_shares(wrong, error, words):
    with pytest.raises(error, match=words):
        optimizer(PROBLEM.problem("float64").net, curvature_share=wrong)


def test_wrong_curvature_cases():
    net, _, x, y, _ = PROBLEM.problem("float64")
    opt = optimizer(net)
    opt.step(x, y)
    before, damping = net.params.copy(), opt.damping
    bad = x.copy()
    bad[2, 1] = np.nan
    own = ng.Batch(net, SOFTMAX, x, y, l2=(1e-3, 0.0))
    for more, error, words in (
        ({"X_curvature": bad}, ValueError, "X_curvature.* row 2, column 1"),
        ({"X_curvature": x[:, :3]}, ValueError, "X_curvature.*3 columns"),
        ({"X_curvature": x, "y_curvature": y[:5]}, ValueError, "y_curvature"),
        ({"X_curvature": "x"}, TypeError, "X_curvature"),
        ({"y_curvature": y}, ValueError, "X_curvature is missing"),
        ({"X_curvature": ng.Batch(net, SOFTMAX, x)}, ValueError, "X_curvature is of"),
        ({"X_curvature": own, "y_curvature": y}, TypeError, "leave y_curvature out"),
    ):
        with pytest.raises(error, match=words):
            opt.step(x, y, **more)
    assert same_bits(net.params, before)
    assert (opt.damping, opt.state_dict()["step"]) == (damping, 1)


@pytest.mark.parametrize("curvature", ["fisher", "ggn", "empirical_fisher", "hessian"])
@pytest.mark.parametrize("loss", [SOFTMAX, MEAN_VARIANCE])
def test_targets_of_curvature_cases_where_the_matrix_needs_them(loss, curvature):
    net, _, x, y, _ = Case("5-6-4-needs-y", (5, 6, 4), loss, n=30).problem("float64")
    opt = ng.NaturalGradient(net, loss, curvature=curvature)
    needed = curvature in ("empirical_fisher", "hessian") or (
        curvature == "ggn" and loss == MEAN_VARIANCE
    )
    if needed:
        with pytest.raises(ValueError, match="y_curvature is missing"):
            opt.step(x, y, X_curvature=x[:9])
        assert opt.last_info is None
    more = {"y_curvature": y[:9]} if needed else {}
    assert opt.step(x, y, X_curvature=x[:9], **more).curvature_size == 9
