"""States of an optimizer: resuming bit for bit, refusing whatever does not fit, copies."""

import copy
import io
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, Case, same_bits

PROBLEM = Case("5-7-3-state", (5, 7, 3), SOFTMAX, n=40)
POLICIES = {
    "lm": lambda: ng.LevenbergMarquardt(0.3, period=2),
    "tikhonov": lambda: ng.Tikhonov(0.2),
    "schedule": lambda: ng.Tikhonov(schedule),
}
SOLVERS = [None, "kfac", "ekfac", "tkfac", "tekfac", "kl", "diagonal", "nystrom"]


def schedule(step):
    return 1.0 / (1.0 + step)


def build(dtype="float64", policy="lm", preconditioner=None, **options):
    problem = PROBLEM.problem(dtype)
    options = {"l2": (1e-3, 0.0), "seed": 4} | options
    solver = ng.solvers.CG(max_iter=15, preconditioner=preconditioner)
    return problem, ng.NaturalGradient(
        problem.net, SOFTMAX, damping=POLICIES[policy](), solver=solver, **options
    )


def train(problem, opt, epochs=2):
    opt.fit(problem.x, problem.y, epochs=epochs, batch_size=16)


def same_state(found, expected):
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same_state(found[name], value) for name, value in expected.items()
        )
    if isinstance(expected, np.ndarray):
        return same_bits(found, expected)
    return found == expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("preconditioner", SOLVERS)
def test_a_resumed_run_has_the_bits_of_one_that_was_not(policy, preconditioner, dtype):
    problem, opt = build(dtype, policy, preconditioner)
    train(problem, opt)
    params, state = problem.net.params.copy(), copy.deepcopy(opt.state_dict())
    train(problem, opt)
    other, resumed = build(dtype, policy, preconditioner)
    other.net.params = params
    resumed.load_state_dict(state)
    assert same_state(resumed.state_dict(), state)
    train(other, resumed)
    assert same_bits(other.net.params, problem.net.params)
    assert same_state(resumed.state_dict(), opt.state_dict())


@pytest.mark.parametrize("preconditioner", SOLVERS)
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "joblib"])
def test_copies_train_on_bit_for_bit(how, preconditioner, tmp_path):
    problem, opt = build(preconditioner=preconditioner)
    train(problem, opt)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    elif how == "deepcopy":
        other = copy.deepcopy(opt)
    else:  # arrays come back as read-only maps of the file
        joblib = pytest.importorskip("joblib")
        joblib.dump(opt, tmp_path / "opt")
        other = joblib.load(tmp_path / "opt", mmap_mode="r")
    assert other.net is not opt.net
    train(problem, opt)
    train(problem._replace(net=other.net), other)
    assert same_bits(other.net.params, opt.net.params)
    assert not np.shares_memory(other.net.params, opt.net.params)


def test_a_net_from_a_read_only_map_can_be_trained(tmp_path):
    joblib = pytest.importorskip("joblib")
    net = ng.MLP([30, 40, 2], seed=0)
    joblib.dump(net, tmp_path / "net")
    loaded = joblib.load(tmp_path / "net", mmap_mode="r")
    assert same_bits(loaded.params, net.params)
    x, y = np.eye(30), np.arange(30) % 2
    assert ng.NaturalGradient(loaded, SOFTMAX).step(x, y).accepted
    loaded.params[0] = 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: ng.solvers.CG(7, preconditioner="kfac"),
        lambda: ng.Tikhonov(0.5),
        lambda: ng.Tikhonov(schedule),
        lambda: ng.LevenbergMarquardt(0.5, period=3),
        lambda: ng.losses.StudentT(3.0, 2.0),
        lambda: ng.MLP([3, 4, 2], seed=1),
    ],
)
def test_parts_can_be_copied(make):
    original = make()
    for other in (
        copy.deepcopy(original),
        pickle.loads(pickle.dumps(original)),
        copy.copy(original),
    ):
        assert repr(other) == repr(original)
        if isinstance(original, ng.DampingPolicy):
            assert other.value == original.value


# ------------------------------------------------------------------------------------------------
# What is refused

VALUES = [
    None,
    float("nan"),
    float("inf"),
    -1,
    -1.5,
    2**70,
    10**400,
    "text",
    b"bytes",
    True,
    1j,
    [],
    {},
    (1, 2),
    np.zeros(3),
    np.full((7, 2), np.nan),
    np.array("x"),
    np.array([object()]),
    np.ma.masked_array([1.0], mask=[True]),
    io.StringIO(),
    lambda: 0,
]


def leaves(state, path=()):
    for name, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        yield (*path, name)


def with_leaf(state, path, change):
    state = copy.deepcopy(state)
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    return state


def refuses_or_keeps_bits(problem, opt, state, path):
    """ValueError that names the leaf and a state as before, or the same bits afterwards."""
    before = copy.deepcopy(opt.state_dict())
    refusal = None
    try:
        opt.load_state_dict(state)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert repr(path[-1]) in refusal, path
        assert same_state(opt.state_dict(), before), path
        return
    params = problem.net.params.copy()
    train(problem, opt, epochs=1)
    assert np.isfinite(problem.net.params).all(), path
    problem.net.params = params
    opt.load_state_dict(before)


@pytest.mark.parametrize(
    ("policy", "preconditioner"),
    [("lm", None), ("tikhonov", "kfac"), ("schedule", "diagonal"), ("lm", "ekfac")],
)
def test_every_leaf_is_checked(policy, preconditioner):
    problem, opt = build(policy=policy, preconditioner=preconditioner)
    train(problem, opt, epochs=1)
    good = copy.deepcopy(opt.state_dict())
    for path in leaves(good):

        def delete(inner, name):
            del inner[name]

        def add(inner, name):
            inner["foreign"] = 1

        missing = with_leaf(good, path, delete)
        with pytest.raises(ValueError, match=f"'{path[-1]}'"):
            opt.load_state_dict(missing)
        with pytest.raises(ValueError, match="foreign"):
            opt.load_state_dict(with_leaf(good, path, add))
        assert same_state(opt.state_dict(), good)
        for value in VALUES:
            changed = with_leaf(good, path, lambda inner, name, v=value: inner.__setitem__(name, v))
            refuses_or_keeps_bits(problem, opt, changed, path)
    for nonsense in VALUES:
        with pytest.raises(ValueError, match="state"):
            opt.load_state_dict(nonsense)
    assert same_state(opt.state_dict(), good)


@pytest.mark.parametrize(
    ("leaf", "other"),
    [
        ("sizes", lambda: ng.NaturalGradient(ng.MLP([5, 8, 3], dtype="float64"), SOFTMAX)),
        (
            "activations",
            lambda: ng.NaturalGradient(ng.MLP([5, 7, 3], "relu", dtype="float64"), SOFTMAX),
        ),
        (
            "bias",
            lambda: ng.NaturalGradient(ng.MLP([5, 7, 3], bias=False, dtype="float64"), SOFTMAX),
        ),
        ("dtype", lambda: build("float32")[1]),
        (
            "loss",
            lambda: ng.NaturalGradient(ng.MLP([5, 7, 3], dtype="float64"), "squared_error"),
        ),
        ("curvature", lambda: build(curvature="ggn")[1]),
        ("momentum", lambda: build(momentum=False)[1]),
        ("l2", lambda: build(l2=0.5)[1]),
        ("damping_name", lambda: build(policy="tikhonov")[1]),
        ("solver", lambda: build(preconditioner="kfac")[1]),
    ],
)
def test_a_state_of_something_else_is_refused(leaf, other):
    problem, opt = build()
    train(problem, opt)
    foreign = other().state_dict()
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=f"'{leaf}'"):
        opt.load_state_dict(foreign)
    assert same_state(opt.state_dict(), before)


def test_other_options_of_a_policy_are_refused():
    _, opt = build()
    state = opt.state_dict()
    for name in ("factor", "low", "high", "minimum", "maximum", "period"):
        changed = copy.deepcopy(state)
        changed["damping"][name] = state["damping"][name] * 2 + 0.5
        with pytest.raises(ValueError, match=f"'{name}'"):
            opt.load_state_dict(changed)


def test_damping_can_be_replaced():
    _, opt = build()
    opt.damping = 0.25
    assert opt.damping == 0.25
    assert isinstance(opt.damping_policy, ng.Tikhonov)
    opt.damping_policy = ng.LevenbergMarquardt(2.0)
    assert opt.damping == 2.0
    for wrong, error in [("1", TypeError), (-1.0, ValueError), (np.nan, ValueError)]:
        with pytest.raises(error, match="damping"):
            opt.damping = wrong
        with pytest.raises(error, match="damping"):
            opt.damping_policy = wrong
    with pytest.raises(TypeError, match=r"Tikhonov\(schedule\)"):
        opt.damping = schedule
    with pytest.raises(TypeError, match="a class: call it"):
        ng.NaturalGradient(opt.net, SOFTMAX, damping=ng.Tikhonov)
    assert opt.damping == 2.0


def test_repr_says_what_it_is():
    _, opt = build(preconditioner="kfac")
    for text in ("MLP(5-7-3", "SoftmaxCrossEntropy()", "CG(", "kfac", "LevenbergMarquardt, 0.3"):
        assert text in repr(opt)
    assert "Tikhonov, 0.2" in repr(ng.Tikhonov(0.2))
