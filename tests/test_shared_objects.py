"""Public objects used by two threads at once: every result has the bits of a call alone."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, same_bits

SIZES, CASES = (20, 33, 10), 700


def problem(sizes=SIZES):
    rng = np.random.default_rng(0)
    net = ng.MLP(sizes, dtype="float32", seed=0)
    x = rng.standard_normal((CASES, sizes[0])).astype(np.float32)
    return net, x, rng.integers(0, sizes[-1], CASES)


def arrays(result):
    """What a call returns, as arrays."""
    if isinstance(result, np.ndarray):
        return [result]
    if isinstance(result, float | int):
        return [np.asarray(result)]
    if isinstance(result, list | tuple):
        return [a for part in result for a in arrays(part)]
    return [result.x]


def methods(name):
    """An object and the calls that two threads may make of it."""
    net, x, y = problem()
    rng = np.random.default_rng(1)
    v = rng.standard_normal(net.num_params).astype(np.float32)
    block = rng.standard_normal((net.num_params, 3)).astype(np.float32)
    options = {"damping": 0.1, "num_threads": 2}
    if name.endswith("chunks"):
        options["chunk_size"] = 128
    if name.startswith("fisher"):
        A = ng.Fisher(net, SOFTMAX, x, **options)
        return {
            "product": lambda: A @ v,
            "block": lambda: A @ block,
            "form": lambda: A.quadratic_form(v),
            "forms": lambda: A.quadratic_forms(v, block[:, 0]),
            "diagonal": A.diagonal,
            "trace": A.trace,
            "layer": lambda: A.block(1),
            "kfac_cg": lambda: A.solve(v, method="kfac_cg", max_iter=3),
            "sample_space_cg": lambda: A.solve(v, method="sample_space_cg", max_iter=3),
            "cg": lambda: A.solve(v, method="cg", max_iter=3),
        }
    if name.startswith("hessian"):
        H = ng.Hessian(net, SOFTMAX, x, y, **options)
        return {
            "product": lambda: H @ v,
            "block": lambda: H @ block,
            "form": lambda: H.quadratic_form(v),
        }
    if name.startswith("jacobian"):
        del options["damping"]
        J = ng.Jacobian(net, x, **options)
        u = rng.standard_normal(J.shape[0]).astype(np.float32)
        return {"product": lambda: J @ v, "transposed": lambda: J.T @ u, "both": lambda: J @ block}
    if name.startswith("sample space"):
        matrix = ng.EmpiricalFisher(net, SOFTMAX, x[:300], y[:300], **options)
        K = ng.SampleSpace(matrix)
        w = rng.standard_normal(K.shape[0]).astype(np.float32)
        return {
            "product": lambda: K @ w,
            "factor": lambda: K.multiply_factor(w),
            "transposed": lambda: K.multiply_factor_transposed(v),
            "kernel": K.kernel,
            "solve": lambda: K.solve(v, damping=1e-2, method="cholesky"),
            "other solve": lambda: K.solve(v, damping=1.0, method="cholesky"),
            "eigh": lambda: K.solve(v, damping=0.3, method="eigh"),
            "of the matrix": lambda: matrix @ v,
        }
    if name == "nystrom":
        A = ng.Fisher(net, SOFTMAX, x[:100], num_threads=2)
        M = ng.Nystrom(A, rank=8, damping=0.1, num_threads=2)
        return {
            "apply": lambda: M @ v,
            "block": lambda: M @ block,
            "root": lambda: M.sqrt_solve(v),
            "eigenvalues": lambda: M.eigenvalues,
            "diagonal": M.diagonal,
            "logdet": lambda: M.logdet(0.1),
            "update": lambda: [M.update(A), M.eigenvalues][1:],
            "refresh": lambda: [M.refresh(0.1), M.rank][1:],
        }
    kinds = {"kfac": ng.KFAC, "ekfac": ng.EKFAC}
    M = kinds[name](net, SOFTMAX, x, samples=1, damping=0.1)
    return {
        "apply": lambda: M @ v,
        "block": lambda: M @ block,
        "diagonal": M.diagonal,
        "dense": lambda: M.block(1),
    }


NAMES = [
    "fisher",
    "fisher in chunks",
    "hessian",
    "hessian in chunks",
    "jacobian in chunks",
    "sample space",
    "sample space in chunks",
    "kfac",
    "ekfac",
    "nystrom",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_two_methods_at_once(name):
    calls = methods(name)
    alone = {key: arrays(call()) for key, call in methods(name).items()}
    wrong = []

    def run(key):
        for _ in range(4):
            found = arrays(calls[key]())
            if not all(same_bits(a, b) for a, b in zip(found, alone[key], strict=True)):
                wrong.append(key)

    for pair in itertools.combinations_with_replacement(calls, 2):
        threads = [threading.Thread(target=run, args=(key,)) for key in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, (pair, wrong)


def in_threads(work, arguments):
    """What work(a) returns for every argument, all begun at once."""
    begin = threading.Barrier(len(arguments))

    def run(a):
        begin.wait()
        return work(a)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(run, arguments))


@pytest.mark.parametrize("method", ["cholesky", "eigh", "cg"])
def test_first_solves_of_a_sample_space_at_once(method):
    """Each of them forms what it needs, or waits for another that does, and keeps its own shift."""
    net, x, y = problem()
    gradient = ng.value_and_grad(net, SOFTMAX, x, y)[1]
    matrix = ng.EmpiricalFisher(net, SOFTMAX, x[:200], y[:200], num_threads=1)

    def solve(space, damping):
        result = space.solve(gradient, damping=damping, method=method)
        return result.x, result.status

    dampings = [1e-3, 1.0, 10.0, 1e-2]
    alone = [solve(ng.SampleSpace(matrix), damping) for damping in dampings]
    for _ in range(5):
        space = ng.SampleSpace(matrix)
        for _ in range(3):
            found = in_threads(lambda damping, space=space: solve(space, damping), dampings)
            for (a, status), (b, expected) in zip(found, alone, strict=True):
                assert same_bits(a, b)
                assert status == expected


@pytest.mark.parametrize("method", ["cholesky", "eigh"])
def test_first_solves_of_a_dense_matrix_at_once(method):
    net, x, y = problem(sizes=(8, 12, 4))
    gradient = ng.value_and_grad(net, SOFTMAX, x, y)[1]
    matrix = ng.Fisher(net, SOFTMAX, x, num_threads=1)

    def solve(dense, damping):
        result = dense.solve(gradient, damping=damping, method=method)
        return result.x, result.status

    dampings = [1e-3, 1.0, 10.0, 1e-2]
    alone = [solve(ng.DenseMatrix(matrix), damping) for damping in dampings]
    for _ in range(5):
        dense = ng.DenseMatrix(matrix)
        for _ in range(3):
            found = in_threads(lambda damping, dense=dense: solve(dense, damping), dampings)
            for (a, status), (b, expected) in zip(found, alone, strict=True):
                assert same_bits(a, b)
                assert status == expected


@pytest.mark.parametrize("kind", ["fisher", "hessian"])
def test_a_product_has_one_damping_while_others_set_it(kind):
    net, x, y = problem()
    A = ng.Fisher(net, SOFTMAX, x) if kind == "fisher" else ng.Hessian(net, SOFTMAX, x, y)
    v = np.random.default_rng(1).standard_normal(net.num_params).astype(np.float32)
    block = np.stack([v] * 12, axis=1)
    wanted = {}
    for damping in (0.0, 1.0):
        A.damping = damping
        wanted[damping] = A @ v
    done = threading.Event()

    def change():
        while not done.is_set():
            for damping in wanted:
                A.damping = damping

    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(20):
            product = (A @ block).T
            assert any(
                all(same_bits(column, exact) for column in product) for exact in wanted.values()
            )
    finally:
        done.set()
        other.join()
