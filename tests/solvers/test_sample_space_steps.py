"""The step solver in sample space, and SPRING."""

import natgrad_fast as ng
import numpy as np
import pytest
import reference
from cases import SOFTMAX, SQUARED, Case

CASES = [
    Case("4-6-3-space", (4, 6, 3), SOFTMAX, n=12),
    Case("4-6-2-space", (4, 6, 2), SQUARED, n=12),
]


def take(problem, loss, solver, damping=0.3, l2=0.0, **options):
    return ng.NaturalGradient(
        problem.net, loss, solver=solver, damping=damping, l2=l2, momentum=False, **options
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("method", ["auto", "cholesky", "eigh"])
def test_a_step_solves_the_damped_system(case, l2, method):
    problem = case.problem("float64")
    net, oracle, x, y, _ = problem
    opt = take(problem, case.loss, ng.solvers.SampleSpace(method=method), l2=l2)
    theta = net.params.copy()
    info = opt.step(x, y)
    assert info.accepted
    assert info.solver == "SampleSpace"
    g = reference.gradient(oracle, case.loss, theta, x, y, l2=l2)
    B = reference.fisher(oracle, case.loss, theta, x, l2=l2, damping=0.3)
    # as the residual that "converged" allows
    assert np.linalg.norm(B @ (net.params - theta) + g) <= 2e-5 * np.linalg.norm(g)


def test_momentum_is_that_of_spring():
    """d = argmin g'd + d'Bd / 2 + damping |d - mu d_prev|^2 / 2, from the second step on."""
    case = CASES[1]
    problem = case.problem("float64")
    net, oracle, x, y, _ = problem
    mu, damping = 0.8, 0.3
    opt = take(problem, SQUARED, ng.solvers.SampleSpace(momentum=mu), damping=damping)
    last = np.zeros(net.num_params)
    for _ in range(4):
        theta = net.params.copy()
        info = opt.step(x, y)
        assert info.accepted
        d = net.params - theta
        g = reference.gradient(oracle, SQUARED, theta, x, y)
        B = reference.fisher(oracle, SQUARED, theta, x, damping=damping)
        wanted = np.linalg.solve(B, damping * mu * last - g)
        assert np.linalg.norm(d - wanted) <= 1e-4 * np.linalg.norm(wanted)
        last = d


@pytest.mark.parametrize("kernel", ["sampled", "empirical"])
def test_other_kernels_give_the_direction_alone(kernel):
    case = CASES[0]
    problem = case.problem("float64")
    net, x, y = problem.net, problem.x, problem.y
    opt = take(problem, SOFTMAX, ng.solvers.SampleSpace(kernel=kernel), seed=3)
    theta = net.params.copy()
    g = ng.value_and_grad(net, SOFTMAX, x, y)[1]
    opt.step(x, y)
    d = net.params - theta
    net.params[...] = theta
    if kernel == "empirical":
        B = ng.EmpiricalFisher(net, SOFTMAX, x, y).to_dense()
        wanted = -np.linalg.solve(B + 0.3 * np.eye(len(g)), g)
        assert np.linalg.norm(d - wanted) <= 1e-4 * np.linalg.norm(wanted)
    else:  # d + g / damping lies in the range of N rows of scores
        assert g @ d < 0.0
        J = ng.Jacobian(net, x).to_dense()
        rest = d + g / 0.3
        inside = J.T @ np.linalg.lstsq(J.T, rest, rcond=None)[0]
        assert np.linalg.norm(rest - inside) <= 1e-8 * np.linalg.norm(rest)


@pytest.mark.parametrize("kernel", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_resumes_bit_for_bit(kernel, momentum):
    def fresh():
        problem = CASES[0].problem("float32")
        solver = ng.solvers.SampleSpace(kernel=kernel, momentum=momentum)
        return problem, ng.NaturalGradient(problem.net, SOFTMAX, solver=solver, seed=5)

    problem, opt = fresh()
    for _ in range(3):
        opt.step(problem.x, problem.y)
    state, params = opt.state_dict(), problem.net.params.copy()
    for _ in range(3):
        opt.step(problem.x, problem.y)
    other_problem, other = fresh()
    other_problem.net.params[...] = params
    other.load_state_dict(state)
    for _ in range(3):
        other.step(problem.x, problem.y)
    assert problem.net.params.tobytes() == other_problem.net.params.tobytes()
    with pytest.raises(ValueError, match="num_steps"):
        other.load_state_dict({**state, "solver": {"num_steps": -1}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "fisher"}, "unknown kernel"),
        ({"momentum": 1.0}, "momentum must be < 1"),
        ({"momentum": -0.1}, "momentum must be >= 0"),
        ({"method": "lu"}, "unknown method"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        ng.solvers.SampleSpace(**options)


def test_a_hessian_has_no_sample_space():
    net = ng.MLP([2, 3, 1], seed=0)
    with pytest.raises(ValueError, match="a Hessian has no sample space"):
        ng.NaturalGradient(
            net, "squared_error", curvature="hessian", solver=ng.solvers.SampleSpace()
        )
