"""Bayesian regularisation: its formula, what it finds, its state."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, Case


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX])
@pytest.mark.parametrize("solver", [ng.solvers.Dense(), ng.solvers.CG()], ids=["dense", "cg"])
def test_l2_follows_from_the_eigenvalues(loss, solver, share):
    case = Case(f"4-5-3-{loss}-evidence", (4, 5, 3), loss, n=40)
    problem = case.problem("float64")
    net, x, y = problem.net, problem.x, problem.y
    l2 = ng.BayesianRegularization(0.02)
    opt = ng.NaturalGradient(net, loss, solver=solver, l2=l2, curvature_share=share)
    order = np.random.default_rng(0).permutation(40)  # of the cases of the curvature
    for step in range(4):
        l2 = opt.l2
        count = round(40 * share)
        F = ng.Fisher(net, loss, x[order[(step * count + np.arange(count)) % 40]]).to_dense()
        gamma = net.num_params - l2 * np.trace(np.linalg.inv(F + l2 * np.eye(net.num_params)))
        info = opt.step(x, y)
        if not info.accepted:  # the model of half of the cases may promise too much
            assert share < 1.0
            assert opt.l2 == l2
            continue
        square = net.params @ net.params
        wanted = gamma / (40 * square)
        if loss == SQUARED:
            wanted *= 2 * 40 * ng.value(net, loss, x, y) / (40 * 3 - gamma)
        # two ways to the same sums in float64
        assert info.effective_parameters == pytest.approx(gamma, rel=1e-8)
        assert opt.l2 == pytest.approx(np.clip(wanted, l2 / 10, 10 * l2), rel=1e-8)


def test_it_finds_the_noise_and_few_parameters():
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 200)[:, None]
    y = np.sin(3 * x) + 0.3 * rng.standard_normal(x.shape)
    found = []
    for width in (10, 30):
        net = ng.MLP([1, width, 1], dtype="float64", seed=0)
        opt = ng.NaturalGradient(net, SQUARED, l2=ng.BayesianRegularization())
        info = opt.fit(x, y, epochs=150).steps[-1]
        gamma = info.effective_parameters
        noise = np.sqrt(((net(x) - y) ** 2).sum() / (200 - gamma))
        assert noise == pytest.approx(0.3, rel=0.2)  # of 200 draws, 0.05 of it is one deviation
        assert np.sqrt(np.mean((net(x) - np.sin(3 * x)) ** 2)) < 0.1
        found.append(gamma)
    assert max(found) < 12  # of 31 and 91


def test_a_resumed_run_has_the_same_bits():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 2)), rng.standard_normal((50, 1))

    def fresh():
        net = ng.MLP([2, 6, 1], dtype="float64", seed=0)
        return net, ng.NaturalGradient(net, SQUARED, l2=ng.BayesianRegularization())

    net, opt = fresh()
    opt.fit(x, y, epochs=5)
    state, params = opt.state_dict(), net.params.copy()
    opt.fit(x, y, epochs=5)
    other_net, other = fresh()
    other_net.params[...] = params
    other.load_state_dict(state)
    other.fit(x, y, epochs=5)
    assert net.params.tobytes() == other_net.params.tobytes()
    assert opt.l2 == other.l2
    with pytest.raises(ValueError, match="chosen_l2"):
        other.load_state_dict({**state, "chosen_l2": -1.0})
    _, plain = fresh()[0], ng.NaturalGradient(net, SQUARED, l2=1e-3)
    with pytest.raises(ValueError, match="l2"):
        plain.load_state_dict(state)


def test_batches_of_the_users_own_are_taken_with_the_l2_of_the_step():
    x, y = np.eye(4), np.arange(4.0)
    net = ng.MLP([4, 3, 1], dtype="float64", seed=0)
    opt = ng.NaturalGradient(net, SQUARED, l2=ng.BayesianRegularization(0.1))
    batch = ng.Batch(net, SQUARED, x, y)
    first = opt.step(batch)
    assert first.loss == pytest.approx(
        ng.value(ng.MLP([4, 3, 1], dtype="float64", seed=0), SQUARED, x, y, l2=0.1)
    )
    assert opt.step(batch).loss != first.new_loss


@pytest.mark.parametrize(
    "options", [{"initial": 0.0}, {"initial": -1.0}, {"minimum": 1.0}, {"maximum": 1e-9}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="must be"):
        ng.BayesianRegularization(**options)
