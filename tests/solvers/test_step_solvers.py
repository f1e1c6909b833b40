"""The protocol of step solvers: names and objects as preconditioners, own solvers, what is told."""

import copy

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, assert_close, same_bits

PROBLEM = Case("6-9-4-steps", (6, 9, 4), SOFTMAX, n=60)
NAMES = ["kfac", "ekfac", "tkfac", "tekfac", "kl", "diagonal", "nystrom"]


def optimizer(net, solver, **options):
    options.setdefault("damping", ng.LevenbergMarquardt(0.3))
    return ng.NaturalGradient(net, SOFTMAX, solver=solver, l2=1e-3, seed=3, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_preconditioner_changes_the_way_and_not_the_answer(name, dtype):
    """Solved to the end, the step is that without a preconditioner."""
    exact = {"max_iter": 400, "rtol": 1e-5, "stopping": "residual", "warm_start": 0.0}
    steps = []
    for preconditioner in (None, name):
        problem = PROBLEM.problem(dtype)
        before = problem.net.params.copy()
        opt = optimizer(problem.net, ng.solvers.CG(preconditioner=preconditioner, **exact))
        info = opt.step(problem.x, problem.y)
        assert info.solve.status is ng.Status.CONVERGED
        steps.append(problem.net.params - before)
    # residual 1e-5 |g| over the least eigenvalue 0.301, of steps about |g| / 2 long
    assert_close(steps[1], steps[0], 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_preconditioner_follows_the_steps(name):
    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net, ng.solvers.CG(preconditioner=name))
    used = opt.solver.current_preconditioner
    for number in range(3):
        damping = opt.damping
        opt.step(problem.x, problem.y)
        assert used.num_updates == number + 1
        assert used.damping == pytest.approx(damping + 1e-3)


def test_kfac_needs_fewer_iterations():
    """On an ill-conditioned net: what a preconditioner is for."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 20)) * np.logspace(0, 1, 20)
    y = rng.integers(0, 4, 300)
    counts = {}
    for name in (None, "kfac"):
        net = ng.MLP([20, 30, 4], dtype="float64", seed=0)
        solver = ng.solvers.CG(400, rtol=1e-2, stopping="residual", preconditioner=name)
        opt = ng.NaturalGradient(net, SOFTMAX, solver=solver, damping=1e-3)
        counts[name] = opt.step(x, y).solve.iterations
    assert counts["kfac"] < 0.75 * counts[None]  # 27 against 48


def test_an_object_is_updated_and_an_array_is_not():
    problem = PROBLEM.problem("float64")
    kfac = ng.KFAC(problem.net, SOFTMAX, samples=2, ema=0.5)
    opt = optimizer(problem.net, ng.solvers.CG(preconditioner=kfac))
    opt.step(problem.x, problem.y)
    assert kfac.num_updates == 1
    fixed = np.full(problem.net.num_params, 2.0)
    opt = optimizer(problem.net, ng.solvers.CG(preconditioner=fixed))
    opt.step(problem.x, problem.y)
    assert (fixed == 2.0).all()


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("kfacc", ValueError, "unknown preconditioner 'kfacc'.*did you mean 'kfac'"),
        (np.ones(3), ValueError, "preconditioner has length 3"),
        (ng.KFAC, TypeError, "preconditioner"),
        (7, TypeError, "preconditioner"),
    ],
    ids=["name", "length", "class", "number"],
)
def test_wrong_preconditioners_are_refused_before_anything_happens(wrong, error, words):
    with pytest.raises(error, match=words):
        optimizer(PROBLEM.problem("float64").net, ng.solvers.CG(preconditioner=wrong))


def test_a_preconditioner_of_another_net_is_refused():
    problem, other = PROBLEM.problem("float64"), ng.MLP([6, 8, 4], dtype="float64")
    kfac = ng.KFAC(other, SOFTMAX)
    with pytest.raises(ValueError, match="preconditioner"):
        optimizer(problem.net, ng.solvers.CG(preconditioner=kfac))


@pytest.mark.parametrize("wrong", ["cg", 3, None, ng.solvers.CG])
def test_wrong_solvers(wrong):
    with pytest.raises(TypeError, match='solver must be "auto" or one of'):
        optimizer(PROBLEM.problem("float64").net, wrong)


def test_one_set_of_options_serves_several_optimizers():
    solver = ng.solvers.CG(preconditioner="kfac")
    opts = [optimizer(PROBLEM.problem("float64").net, solver) for _ in range(2)]
    first, second = (opt.solver.current_preconditioner for opt in opts)
    assert first is not second
    assert solver == opts[0].solver == opts[1].solver
    assert solver.current_preconditioner is None


class Exact(ng.solvers.StepSolver):
    """A solver of a user's own: dense, and it notes what it is told."""

    def init(self, net, loss, *, seed=0, num_threads=None):
        self.calls = ["init"]

    def update(self, batch, linearization):
        assert isinstance(batch, ng.Batch)
        self.calls.append("update")

    def refresh(self, damping):
        self.calls.append("refresh")
        self.damping = damping

    def direction(self, matrix, g, damping, start):
        assert damping == self.damping
        self.calls.append("direction")
        x = np.linalg.solve(matrix.to_dense() + damping * np.eye(len(g)), g)
        residual = matrix @ x + damping * x - g
        norm, quadratic = float(np.linalg.norm(residual)), float(-0.5 * g @ x)
        info = ng.SolveInfo(ng.Status.CONVERGED, 0, norm, quadratic, 0, 0.0, 0.0)
        return ng.solvers.Direction(x, info)

    def accepted(self, accepted):
        self.calls.append(f"accepted {accepted}")


def test_a_solver_of_ones_own():
    exact = {"max_iter": 500, "rtol": 1e-12, "stopping": "residual"}
    nets = []
    for solver in (Exact(), ng.solvers.CG(**exact)):
        problem = PROBLEM.problem("float64")
        opt = optimizer(problem.net, solver)
        for _ in range(3):
            opt.step(problem.x, problem.y)
        nets.append(problem.net.params)
        if isinstance(solver, Exact):
            assert opt.solver.calls == ["init"] + 3 * [
                "update",
                "refresh",
                "direction",
                "accepted True",
            ]
    assert_close(nets[0], nets[1], 1e-8)  # CG to 1e-12 and a condition number of about 1e2


@pytest.mark.parametrize("curvature", ["fisher", "ggn", "empirical_fisher", "hessian"])
def test_every_curvature_takes_steps(curvature):
    """The optimizer knows operators by what they do: the Hessian too, and negative curvature."""
    problem = PROBLEM.problem("float64")
    solver = "auto" if curvature == "hessian" else Exact()
    opt = optimizer(problem.net, solver, curvature=curvature)
    losses = [opt.step(problem.x, problem.y) for _ in range(12)]
    assert losses[-1].new_loss < losses[0].loss


def test_a_batch_is_as_good_as_its_arrays():
    problems = [PROBLEM.problem("float32") for _ in range(2)]
    opts = [optimizer(problem.net, "auto") for problem in problems]
    x, y = problems[0].x, problems[0].y
    opts[0].step(x, y)
    batch = ng.Batch(problems[1].net, SOFTMAX, x, y, l2=1e-3)
    opts[1].step(batch)
    assert same_bits(problems[0].net.params, problems[1].net.params)
    with pytest.raises(TypeError, match="a Batch comes with its targets"):
        opts[1].step(batch, y)
    with pytest.raises(ValueError, match="l2"):
        opts[1].step(ng.Batch(problems[1].net, SOFTMAX, x, y))
    with pytest.raises(ValueError, match="batch is of"):
        opts[0].step(batch)


class Failing(Exception):
    pass


@pytest.mark.parametrize("name", [None, "kfac", "ekfac", "diagonal", "nystrom"])
@pytest.mark.parametrize("where", ["update", "refresh", "direction", "accepted", "policy", "value"])
def test_a_step_that_raises_leaves_everything_as_it_was(where, name):
    class Solver(ng.solvers.CG):
        fails = False

        def _do(self, what, *args):
            result = getattr(super(), what)(*args)
            if where == what and Solver.fails:
                raise Failing
            return result

        def update(self, *args):
            return self._do("update", *args)

        def refresh(self, *args):
            return self._do("refresh", *args)

        def direction(self, *args):
            return self._do("direction", *args)

        def accepted(self, *args):
            return self._do("accepted", *args)

    class Policy(ng.LevenbergMarquardt):
        @property
        def value(self):
            if where == "value" and Solver.fails:
                raise Failing
            return super().value

        def update(self, ratio, accepted):
            super().update(ratio, accepted)
            if where == "policy" and Solver.fails:
                raise Failing

    problem = PROBLEM.problem("float64")
    opt = optimizer(problem.net, Solver(preconditioner=name), damping=Policy(0.3))
    opt.step(problem.x, problem.y)
    before, state = problem.net.params.copy(), copy.deepcopy(opt.state_dict())
    Solver.fails = True
    with pytest.raises(Failing):
        opt.step(problem.x[::-1], problem.y[::-1])
    Solver.fails = False
    assert same_bits(problem.net.params, before)
    assert_same_state(opt.state_dict(), state)


def assert_same_state(found, expected, path="state"):
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name, value in expected.items():
            assert_same_state(found[name], value, f"{path}.{name}")
    elif isinstance(expected, np.ndarray):
        assert same_bits(found, expected), path
    else:
        assert found == expected, path
