"""Threads never change a bit, and never get in each other's way."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import cases
import natgrad_fast as ng
import pytest
import quantities
from cases import SOFTMAX, Case, run_python, same_bits

# Batches around the sizes at which tiles and chunks begin, and nets above the threading threshold.
BATCHES = [
    Case(f"64-96-10-batch-{n}", (64, 96, 10), SOFTMAX, n=n, weighted=True)
    for n in (1, 31, 129, 1000)
]


@functools.cache
def on_one_thread(case, dtype):
    return dict(quantities.of_problem(case.problem(dtype), case.loss, 1))


@pytest.mark.parametrize(
    "case", [*cases.SMALL[-3:], *cases.OTHER_LAWS, *BATCHES, *cases.LARGE], ids=cases.ids
)
def test_bits_do_not_depend_on_threads(case, dtype, num_threads):
    for name, value in quantities.of_problem(case.problem(dtype), case.loss, num_threads):
        assert same_bits(value, on_one_thread(case, dtype)[name]), name


def test_training_does_not_depend_on_threads(dtype, num_threads):
    def train(threads):
        problem = cases.LARGE[0].problem(dtype)
        opt = ng.NaturalGradient(problem.net, SOFTMAX, num_threads=threads, l2=1e-4)
        history = opt.fit(problem.x, problem.y, epochs=2, batch_size=333)
        return problem.net.params, [info.loss for info in history.steps]

    for found, expected in zip(train(num_threads), train(1), strict=True):
        assert same_bits(found, expected)


@pytest.mark.parametrize("chunk_size", [None, 200])
@pytest.mark.parametrize("kind", ["fisher", "sampled", "hessian"])
@pytest.mark.parametrize("shared", ["net", "operator"])
def test_use_from_several_python_threads_at_once(shared, kind, chunk_size, rng):
    problem = cases.LARGE[0].problem("float32")
    vectors = rng.standard_normal((8, problem.net.num_params)).astype("float32")

    def build():
        return cases.curvature(kind, problem, SOFTMAX, damping=0.1, chunk_size=chunk_size)

    operator = build()
    expected = [operator @ v for v in vectors]
    forward = problem.net(problem.x)

    def work(v):
        mine = operator if shared == "operator" else build()
        products = [mine @ v for _ in range(5)]
        same = all(same_bits(product, products[0]) for product in products)
        return products[0], same and same_bits(problem.net(problem.x), forward)

    with ThreadPoolExecutor(4) as pool:
        for (product, same), exact in zip(pool.map(work, vectors), expected, strict=True):
            assert same
            assert same_bits(product, exact)


FORK = """
    import os, sys, time
    import numpy as np, natgrad_fast as ng
    rng = np.random.default_rng(0)
    net = ng.MLP([64, 128, 64, 10], seed=0)
    x, v = rng.standard_normal((700, 64)), rng.standard_normal(net.num_params)
    F = ng.Fisher(net, "softmax_cross_entropy", x, num_threads=2)
    before = F @ v  # starts the threads, which the child does not inherit
    child = os.fork()
    if child == 0:
        new = ng.Fisher(net, "softmax_cross_entropy", x, num_threads=1)
        same = (new @ v).tobytes() == before.tobytes()
        if {shared}:
            same = same and (F @ v).tobytes() == before.tobytes()
        os._exit(0 if same else 3)
    for _ in range(100):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            sys.exit(os.waitstatus_to_exitcode(status))
        time.sleep(0.1)
    os.kill(child, 9)
    sys.exit("the child hangs")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("inherited", [False, True], ids=["one-thread", "inherited-operator"])
def test_child_of_fork_works(inherited):
    """In a process of its own, since Python 3.12 warns of forks beside threads."""
    run_python(FORK.format(shared=inherited), "-W", "ignore::DeprecationWarning")


def test_thread_settings_of_others_are_left_alone():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = threadpoolctl.threadpool_info()
    problem = cases.LARGE[0].problem("float32")
    ng.Fisher(problem.net, SOFTMAX, problem.x, num_threads=3) @ problem.net.params
    assert threadpoolctl.threadpool_info() == before


def test_default_number_of_threads():
    script = "import natgrad_fast as ng; print(ng.show_config()['default_num_threads'])"
    if not ng.show_config()["openmp"]:
        pytest.skip("built without OpenMP: always 1")
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    assert int(run_python(script, env=env)) == len(os.sched_getaffinity(0))
    assert int(run_python(script, env=env | {"OMP_NUM_THREADS": "1"})) == 1


FORK_UNDER_LOAD = """
    import os, sys, threading, time
    import numpy as np, natgrad_fast as ng
    rng = np.random.default_rng(0)
    net = ng.MLP([30, 64, 64, 10], dtype="float32", seed=0)
    x = rng.standard_normal((1500, 30)).astype("float32")
    y = rng.integers(0, 10, len(x))
    v = rng.standard_normal(net.num_params).astype("float32")
    loss = "softmax_cross_entropy"
    F = ng.Fisher(net, loss, x, num_threads=2)
    chunks = ng.Fisher(net, loss, x, chunk_size=300, num_threads=2)
    H = ng.Hessian(net, loss, x, y, chunk_size=300, num_threads=2)
    K = ng.SampleSpace(ng.EmpiricalFisher(net, loss, x[:300], y[:300], num_threads=2))
    M = ng.KFAC(net, loss, x, damping=0.1, samples=1, num_threads=2)
    N = ng.Nystrom(ng.Fisher(net, loss, x[:100]), rank=8, damping=0.1, num_threads=2)
    D = ng.DiagonalPreconditioner(net, loss, x, y, damping=0.1)
    w = rng.standard_normal(K.shape[0]).astype("float32")

    def refreshed(M):
        M.refresh(0.1)
        return M @ v

    calls = {{
        "product": lambda: F @ v,
        "product in chunks": lambda: chunks @ v,
        "diagonal": chunks.diagonal,
        "hessian": lambda: H @ v,
        "kernel": lambda: K @ w,
        "solve": lambda: K.solve(v, damping=0.1, method="cholesky").x,
        "kfac": lambda: refreshed(M),
        "nystrom": lambda: refreshed(N),
        "of the diagonal": lambda: refreshed(D),
    }}
    expected = {{name: call().tobytes() for name, call in calls.items()}}
    done = threading.Event()

    def work(call):
        while not done.is_set():
            call()

    threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in calls.values()]
    for thread in threads:
        thread.start()
    for _ in range({forks}):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            wrong = [name for name, call in calls.items() if call().tobytes() != expected[name]]
            for name in wrong:
                os.write(2, name.encode())
            os._exit(3 if wrong else 0)
        for _ in range(300):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.1)
        else:
            os.kill(child, 9)
            os._exit(os.write(2, b"the child hangs") and 4)
        if status:
            os._exit(5)
    done.set()
    for thread in threads:
        thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_forked_beside_products_uses_the_same_objects():
    run_python(FORK_UNDER_LOAD.format(forks=20), "-W", "ignore::DeprecationWarning")


SMALL_STACKS = """
    import warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import natgrad_fast as ng
    import numpy as np
    assert len(caught) == {warnings}, caught
    assert all("32 KiB" in str(w.message) for w in caught)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 30))
    for dtype in ("float32", "float64"):
        net = ng.MLP([30, 128, 150, 10], dtype=dtype, seed=0)
        loss, v = "softmax_cross_entropy", np.ones(net.num_params)
        F = ng.Fisher(net, loss, x, num_threads=3)
        F @ v, F.diagonal(), F.block(2)
        ng.Hessian(net, loss, x, np.zeros(300, int), num_threads=3) @ v
        for kind, options in ((ng.KFAC, {{}}), (ng.KFAC, {{"pi": "exact"}}), (ng.EKFAC, {{}})):
            kind(net, loss, x, samples=1, damping=0.1, num_threads=3, **options) @ v
        ng.Nystrom(F, rank=9, damping=0.1, num_threads=3) @ v
        ng.SampleSpace(ng.Fisher(net, loss, x[:50], num_threads=3)).solve(v, damping=0.1)
"""


@pytest.mark.parametrize(
    ("size", "warnings"), [("16k", 1), ("16384B", 1), ("16", 1), ("32k", 0), ("1M", 0), ("x", 0)]
)
def test_small_stacks_of_worker_threads(size, warnings):
    env = {**os.environ, "OMP_STACKSIZE": size}
    run_python(SMALL_STACKS.format(warnings=warnings), env=env)
