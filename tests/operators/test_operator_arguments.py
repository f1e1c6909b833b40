"""The arguments of operators that are no arrays: targets or not, samples, seeds, chunks, layers."""

import cases
import natgrad_fast as ng
import numpy as np
import pytest
from cases import (
    BERNOULLI,
    CURVATURES,
    MEAN_VARIANCE,
    POISSON,
    SOFTMAX,
    SQUARED,
    STUDENT,
    Case,
    curvature,
    same_bits,
)

LAWS = {
    loss: Case(f"4-5-2-{loss}", (4, 5, 2), loss)
    for loss in (SQUARED, SOFTMAX, BERNOULLI, POISSON, STUDENT, MEAN_VARIANCE)
}
PROBLEM = LAWS[SOFTMAX]
NET = ng.MLP([4, 5, 2])


def build(kind, **options):
    """An operator of every kind; "jacobian" knows fewer arguments."""
    problem = PROBLEM.problem("float32")
    if kind == "jacobian":
        return ng.Jacobian(problem.net, problem.x, **options)
    return curvature(kind, problem, SOFTMAX, **options)


# ------------------------------------------------------------------------------------------------
# Targets


@pytest.mark.parametrize("loss", LAWS)
@pytest.mark.parametrize("kind", ["ggn", "empirical", "hessian"])
def test_missing_targets(kind, loss, dtype):
    problem = LAWS[loss].problem(dtype)._replace(y=None)
    if kind == "ggn" and loss not in (STUDENT, MEAN_VARIANCE):
        assert curvature(kind, problem, loss).positive_semidefinite
        return
    with pytest.raises(ValueError, match="y is missing"):
        curvature(kind, problem, loss)
    if kind != "ggn":
        with pytest.raises(TypeError, match="'y'"):
            {"empirical": ng.EmpiricalFisher, "hessian": ng.Hessian}[kind](
                problem.net, loss, problem.x
            )


@pytest.mark.parametrize("loss", [SQUARED, SOFTMAX, BERNOULLI, POISSON])
def test_targets_that_are_not_used_are_accepted_and_checked(loss, dtype):
    problem = LAWS[loss].problem(dtype)
    with_targets = curvature("ggn", problem, loss)
    assert same_bits(with_targets.to_dense(), ng.GGN(problem.net, loss, problem.x).to_dense())
    with pytest.raises(ValueError, match=r"y has (\d+ labels|shape)"):
        ng.GGN(problem.net, loss, problem.x, problem.y[:-1])
    with pytest.raises(ValueError, match="y "):
        ng.GGN(problem.net, loss, problem.x, np.full(problem.y.shape, np.nan))


@pytest.mark.parametrize("kind", CURVATURES)
def test_loss_that_does_not_fit_the_net(kind):
    problem = Case("4-3-odd", (4, 3), SQUARED).problem("float32")
    with pytest.raises(ValueError, match="even for gaussian_mean_variance"):
        curvature(kind, problem, MEAN_VARIANCE)
    with pytest.raises(ValueError, match="unknown loss 'softmaxx'"):
        curvature(kind, problem, "softmaxx")
    with pytest.raises(TypeError, match="loss must be a name"):
        curvature(kind, problem, None)
    with pytest.raises(TypeError, match="net must be an MLP"):
        curvature(kind, problem._replace(net=problem.net.params), SQUARED)


# ------------------------------------------------------------------------------------------------
# Numbers

NOT_COUNTS = [
    (0, ValueError, "must be >= 1, got 0"),
    (-1, ValueError, "must be >= 1, got -1"),
    (1.5, TypeError, "must be an integer, got 1.5"),
    (2.0, TypeError, "must be an integer, got 2.0"),
    (np.nan, TypeError, "must be an integer, got nan"),
    ("3", TypeError, "must be an integer, got '3'"),
    (True, TypeError, "must be an integer, got True"),
]
WRONG = pytest.mark.parametrize(
    ("wrong", "error", "words"), NOT_COUNTS, ids=[repr(wrong) for wrong, _, _ in NOT_COUNTS]
)


@WRONG
def test_samples(wrong, error, words):
    with pytest.raises(error, match=f"samples {words}"):
        ng.Fisher(NET, SOFTMAX, np.ones((3, 4)), samples=wrong)


@WRONG
@pytest.mark.parametrize("kind", [*CURVATURES, "jacobian"])
def test_chunk_size(kind, wrong, error, words):
    with pytest.raises(error, match=f"chunk_size {words}"):
        build(kind, chunk_size=wrong)


@pytest.mark.parametrize("kind", [*CURVATURES, "jacobian"])
def test_chunk_size_may_be_any_integer(kind, rng):
    v = rng.standard_normal(build(kind).shape[1])
    for size in [1, np.int8(3), 17, 18, 2**62]:
        assert same_bits(build(kind, chunk_size=size) @ v, build(kind) @ v)


@WRONG
@pytest.mark.parametrize("kind", [*CURVATURES, "jacobian"])
def test_num_threads(kind, wrong, error, words):
    with pytest.raises(error, match=f"num_threads {words}"):
        build(kind, num_threads=wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (-1, ValueError, "seed must be >= 0, got -1"),
        (2**64, ValueError, r"seed must be < 2\*\*63, got 18446744073709551616"),
        (0.5, TypeError, "seed must be an integer, got 0.5"),
        (None, TypeError, "seed must be an integer, got None"),
        (True, TypeError, "seed must be an integer, got True"),
    ],
    ids=repr,
)
def test_seed(wrong, error, words):
    with pytest.raises(error, match=words):
        ng.Fisher(NET, SOFTMAX, np.ones((3, 4)), samples=1, seed=wrong)


@pytest.mark.parametrize("name", ["damping", "l2"])
@pytest.mark.parametrize("kind", CURVATURES)
def test_damping_and_l2(kind, name):
    for wrong, error in [(-0.5, ValueError), (np.nan, ValueError), ("1", TypeError)]:
        with pytest.raises(error, match=f"{name} must be .* got '?{wrong}"):
            build(kind, **{name: wrong})
    operator = build(kind, damping=0.5)
    for wrong, error in [(-0.5, ValueError), (np.inf, ValueError), (None, TypeError)]:
        with pytest.raises(error, match="damping must be"):
            operator.damping = wrong
    assert operator.damping == 0.5


@pytest.mark.parametrize("kind", cases.GAUSS_NEWTON)
def test_layer_of_a_block(kind):
    operator = build(kind)
    for wrong, error, words in [
        (-1, ValueError, "must be >= 0, got -1"),
        (2, ValueError, "must be < 2, got 2"),
        (0.0, TypeError, "must be an integer, got 0.0"),
        (None, TypeError, "must be an integer, got None"),
    ]:
        with pytest.raises(error, match=f"layer {words}"):
            operator.block(wrong)


@pytest.mark.parametrize("kind", CURVATURES)
def test_operators_describe_themselves(kind):
    operator = build(kind, l2=0.5)
    name = type(operator).__name__
    assert repr(operator) == f"<37x37 {name}, float32>"
    assert (operator.l2, operator.damping) == (0.5, 0.0)
    assert operator.num_threads == ng.show_config()["default_num_threads"]
    assert operator.loss == ng.losses.SoftmaxCrossEntropy()
    with pytest.raises(AttributeError):
        operator.l2 = 1.0  # part of the matrix; only damping may change


# ------------------------------------------------------------------------------------------------
# Estimates


BAD_ESTIMATES = [
    ({"net": "net"}, TypeError, "net must be an MLP"),
    ({"matrix": "fischer"}, ValueError, "unknown matrix 'fischer'; .*did you mean 'fisher'"),
    ({"matrix": None}, TypeError, "matrix must be a name"),
    ({"loss": "squared"}, ValueError, "unknown loss 'squared'"),
    ({"loss": 3}, TypeError, "loss must be a name"),
    ({"loss": MEAN_VARIANCE, "matrix": "ggn", "net": ng.MLP([4, 3])}, ValueError, "even"),
    ({"num_threads": 10**9}, ValueError, "num_threads must be <= "),
    ({"samples": 0, "matrix": "jacobian"}, ValueError, "samples must be >= 1, got 0"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), BAD_ESTIMATES)
def test_bad_estimate(wrong, error, words):
    arguments = {"net": NET, "num_cases": 10} | wrong
    with pytest.raises(error, match=words):
        ng.estimate_memory(**arguments)


@WRONG
@pytest.mark.parametrize(
    "name", ["num_cases", "samples", "num_vectors", "chunk_size", "num_threads"]
)
def test_counts_of_an_estimate(name, wrong, error, words):
    arguments = {"net": NET, "num_cases": 10} | {name: wrong}
    with pytest.raises(error, match=f"{name} {words}"):
        ng.estimate_memory(**arguments)


def test_estimate_of_the_impossible_allocates_nothing():
    net = ng.MLP([1000, 1000])
    assert ng.estimate_memory(net, 10**12, matrix="hessian") > 10**16
