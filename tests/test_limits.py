"""Integer arguments of any size: a right answer, or an error that names them, and never a crash."""

import natgrad_fast as ng
import numpy as np
import pytest
from cases import run_python

INTEGERS = sorted(
    {2**k + d for k in (0, 1, 5, 31, 32, 33, 40, 52, 53, 61, 62, 63, 64, 70) for d in (-1, 0, 1)}
)

# name of the argument in messages, call
CALLS = """
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    import numpy as np, natgrad_fast as ng
    net = ng.MLP([3, 4, 2], seed=0)
    x, y, loss = np.ones((5, 3)), np.zeros(5, int), "softmax_cross_entropy"
    F, g = ng.Fisher(net, loss, x), np.ones(net.num_params, "f4")
    fit = lambda **o: ng.NaturalGradient(net, loss).fit(x, y, time_limit=0.0, **o)
    calls = {
        "sizes": lambda n: ng.MLP([3, n, 2]),
        "sizes ": lambda n: ng.MLP([n, 2]),
        "seed": lambda n: ng.MLP([3, 2], seed=n),
        "num_cases": lambda n: ng.estimate_memory(net, n),
        "num_vectors": lambda n: ng.estimate_memory(net, 100, num_vectors=n),
        "chunk_size": lambda n: ng.Fisher(net, loss, x, chunk_size=n) @ g,
        "chunk_size ": lambda n: ng.Hessian(net, loss, x, y, chunk_size=n) @ g,
        "chunk_size  ": lambda n: ng.Jacobian(net, x, chunk_size=n) @ g,
        "chunk_size   ": lambda n: ng.KFAC(net, loss, x, chunk_size=n),
        "samples": lambda n: ng.Fisher(net, loss, x, samples=n),
        "samples ": lambda n: ng.KFAC(net, loss, x, samples=n),
        "seed ": lambda n: ng.Fisher(net, loss, x, samples=1, seed=n) @ g,
        "seed  ": lambda n: ng.KFAC(net, loss, x, samples=1, seed=n),
        "seed   ": lambda n: ng.NaturalGradient(net, loss, seed=n),
        "num_threads": lambda n: ng.Fisher(net, loss, x, num_threads=n) @ g,
        "num_threads ": lambda n: net(x, num_threads=n),
        "num_threads  ": lambda n: ng.value_and_grad(net, loss, x, y, num_threads=n),
        "num_threads   ": lambda n: ng.NaturalGradient(net, loss, num_threads=n).step(x, y),
        "rank": lambda n: ng.Nystrom(F, rank=n, damping=0.1),
        "max_iter": lambda n: ng.cg(F, g, damping=0.1, max_iter=n),
        "max_iter ": lambda n: ng.multishift_cg(F, g, [0.1], max_iter=n),
        "max_iter  ": lambda n: ng.solvers.CG(max_iter=n),
        "min_iter": lambda n: ng.cg(F, g, damping=0.1, min_iter=n, max_iter=50),
        "layer": lambda n: F.block(n),
        "period": lambda n: ng.LevenbergMarquardt(1.0, period=n),
        "cg_iterations": lambda n: ng.solvers.Kronecker(cg_iterations=n),
        "epochs": lambda n: fit(epochs=n),
        "batch_size": lambda n: fit(batch_size=n),
        "initial": lambda n: ng.BatchSchedule(n, factor=2.0).size(3),
        "patience": lambda n: ng.callbacks.EarlyStopping(patience=n),
    }
    name, numbers = {name!r}, {numbers!r}
    for n in numbers:
        try:
            calls[name](n)
        except (ValueError, TypeError) as error:
            said = str(error)
            assert name.strip() in said or "overflow" in said, (n, said)
        except MemoryError as error:
            assert str(error), n
    print("done")
"""
NAMES = [line.split('"')[1] for line in CALLS.splitlines() if '": lambda n' in line]


@pytest.mark.parametrize("name", NAMES)
def test_integers_of_any_size(name):
    numbers = [*INTEGERS, -1, -(2**63), -(2**63) - 1, 10**400, -(10**400)]
    script = CALLS.replace("{name!r}", repr(name)).replace("{numbers!r}", repr(numbers))
    assert run_python(script).strip() == "done"


@pytest.mark.parametrize("wrong", [True, np.True_, 2.0, "2", None, [2], np.array([2]), 1j])
def test_what_is_no_integer(wrong):
    net = ng.MLP([3, 4, 2], seed=0)
    x = np.ones((5, 3))
    with pytest.raises(TypeError, match="num_cases"):
        ng.estimate_memory(net, wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="chunk_size"):
            ng.Fisher(net, "squared_error", x, chunk_size=wrong)
    with pytest.raises(TypeError, match="seed"):
        ng.KFAC(net, "squared_error", x, seed=wrong)


@pytest.mark.parametrize("matrix", ["fisher", "ggn", "empirical_fisher", "hessian", "jacobian"])
def test_the_estimate_grows_with_what_it_is_for(matrix):
    net = ng.MLP([20, 64, 10], seed=0)
    for options in ({}, {"chunk_size": 1000}, {"chunk_size": 2**62}):
        for argument in ("num_cases", "num_vectors"):
            numbers = [n for n in INTEGERS if 1 <= n < 2**63]
            found = [
                ng.estimate_memory(net, **{"num_cases": 100, argument: n}, matrix=matrix, **options)
                for n in numbers
            ]
            assert found == sorted(found)
            assert found[0] > 0
            assert isinstance(found[-1], int)
    assert ng.estimate_memory(net, 2**62, matrix=matrix) > 2**62
