"""A signal is answered inside every call that takes long, and an interrupt leaves all as it was.

Alarms ring every 25 ms while a call runs. Python's handlers run where the call asks for signals, so
one that rings several times in a call shows that it asks all along: without that the handler would
run once, after the call. No test looks at a clock.
"""

import contextlib
import itertools
import signal
import threading

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, run_python, same_bits

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer") or not ng.show_config()["openmp"], reason="needs alarms"
)
WIDE, DEEP = (64, 512, 512, 10), (20, 128, 128, 128, 128, 10)


class Alarms:
    """Handlers of the alarms of one call; the last of them raises KeyboardInterrupt."""

    def __init__(self, last):
        self.last, self.count = last, 0

    def ring(self, *_):
        self.count += 1
        if self.count == self.last:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise KeyboardInterrupt


@contextlib.contextmanager
def alarms(last):
    before = signal.getsignal(signal.SIGALRM)
    bell = Alarms(last)
    signal.signal(signal.SIGALRM, bell.ring)
    signal.setitimer(signal.ITIMER_REAL, 0.025, 0.025)
    try:
        yield bell
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def batch(sizes, n, dtype="float32"):
    rng = np.random.default_rng(0)
    net = ng.MLP(list(sizes), dtype=dtype, seed=0)
    x = rng.standard_normal((n, sizes[0])).astype(dtype)
    return net, x, rng.integers(0, sizes[-1], n)


def vectors(size, count, dtype="float32"):
    return np.random.default_rng(1).standard_normal((size, count)).astype(dtype)


def forward(threads):
    net, x, _ = batch(WIDE, 60_000)
    return lambda: net(x, num_threads=threads), None


def value_and_grad(threads):
    net, x, y = batch(WIDE, 20_000)
    return lambda: ng.value_and_grad(net, SOFTMAX, x, y, num_threads=threads)[1], None


def of_jacobian(pick):
    def build(threads):
        net, x, _ = batch(WIDE, 20_000)
        J = ng.Jacobian(net, x, num_threads=threads, chunk_size=2_000)
        return pick(J, vectors(net.num_params, 1)[:, 0], vectors(J.shape[0], 1)[:, 0]), None

    return build


def of_matrix(kind, sizes, cases, pick, chunk_size=None, **options):
    def build(threads):
        net, x, y = batch(sizes, cases)
        targets = (y,) if kind in (ng.Hessian, ng.EmpiricalFisher) else ()
        A = kind(net, SOFTMAX, x, *targets, num_threads=threads, chunk_size=chunk_size, **options)
        return pick(A, vectors(net.num_params, 16)), None

    return build


def built(threads):
    net, x, _ = batch(WIDE, 50_000)
    return lambda: ng.Fisher(net, SOFTMAX, x, num_threads=threads).shape, None


def updated(kind, cases):
    def build(threads):
        net, x, _ = batch(WIDE, cases)
        M = kind(net, SOFTMAX, x[:100], num_threads=threads, samples=2, seed=0)
        M.refresh(0.1)
        v = vectors(net.num_params, 1)[:, 0]
        return lambda: M.update(x), lambda: [M.num_updates, M @ v, M.factors[1].A]

    return build


def refreshed(threads):
    net, x, _ = batch((20, 2000, 1500, 10), 100)
    M = ng.KFAC(net, SOFTMAX, x, num_threads=threads, samples=1, seed=0)
    M.refresh(0.1)
    v = vectors(net.num_params, 1)[:, 0]
    dampings = itertools.count(1)
    return lambda: M.refresh(float(next(dampings))), lambda: [M.damping, M @ v]


def sample_space(pick, cases):
    def build(threads):
        net, x, y = batch((64, 256, 256, 10), cases)
        matrix = ng.EmpiricalFisher(net, SOFTMAX, x, y, num_threads=threads)
        space = ng.SampleSpace(matrix)
        return pick(space, vectors(net.num_params, 1)[:, 0], vectors(cases, 1)[:, 0]), None

    return build


def nystrom(threads):
    net, x, _ = batch(WIDE, 2_000)
    F = ng.Fisher(net, SOFTMAX, x, num_threads=threads)
    M = ng.Nystrom(ng.Fisher(net, SOFTMAX, x[:50]), rank=10, damping=0.1, num_threads=threads)
    v = vectors(net.num_params, 1)[:, 0]
    return lambda: M.update(F), lambda: [M.num_updates, M.eigenvalues, M @ v]


# What takes a time that is long beside the alarms, and what an interrupt must not change.
CALLS = {
    "forward": forward,
    "value_and_grad": value_and_grad,
    "jvp": of_jacobian(lambda J, v, u: lambda: J @ v),
    "vjp": of_jacobian(lambda J, v, u: lambda: J.T @ u),
    "fisher": of_matrix(ng.Fisher, WIDE, 20_000, lambda A, v: lambda: A @ v[:, 0]),
    "fisher in chunks": of_matrix(
        ng.Fisher, WIDE, 20_000, lambda A, v: lambda: A @ v[:, 0], chunk_size=1_000
    ),
    "fisher block": of_matrix(ng.Fisher, WIDE, 2_000, lambda A, v: lambda: A @ v),
    "fisher form": of_matrix(
        ng.Fisher, WIDE, 30_000, lambda A, v: lambda: A.quadratic_form(v[:, 0], v[:, 1])
    ),
    "fisher diagonal": of_matrix(ng.Fisher, WIDE, 7_000, lambda A, v: A.diagonal),
    "fisher trace": of_matrix(ng.Fisher, WIDE, 7_000, lambda A, v: A.trace),
    "layer": of_matrix(ng.Fisher, (20, 200, 10), 8_000, lambda A, v: lambda: A.block(1)),
    "formed by units": of_matrix(ng.Fisher, (20, 40, 10), 10_000, lambda A, v: A.to_dense),
    "formed by rows": of_matrix(ng.EmpiricalFisher, (20, 40, 10), 10_000, lambda A, v: A.to_dense),
    "hessian": of_matrix(ng.Hessian, WIDE, 10_000, lambda A, v: lambda: A @ v[:, 0]),
    "hessian in chunks": of_matrix(
        ng.Hessian, WIDE, 10_000, lambda A, v: lambda: A @ v[:, 0], chunk_size=1_000
    ),
    "built": built,
    "kfac update": updated(ng.KFAC, 12_000),
    "ekfac update": updated(ng.EKFAC, 6_000),
    "kfac refresh": refreshed,
    "kernel": sample_space(lambda space, v, w: space.kernel, 5_000),
    "kernel product": sample_space(
        lambda space, v, w: lambda: [space @ w for _ in range(4)], 3_000
    ),
    "nystrom update": nystrom,
}


def arrays(value):
    return [np.asarray(part) for part in (value if isinstance(value, list | tuple) else [value])]


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", CALLS)
def test_calls_answer_signals_and_leave_all_as_it_was(name, threads):
    call, look = CALLS[name](threads)
    before = None if look is None else arrays(look())
    for last in (2, 4):
        with alarms(last) as bell, pytest.raises(KeyboardInterrupt):
            call()
        assert bell.count == last
        if look is not None:
            found = arrays(look())
            assert all(same_bits(a, b) for a, b in zip(found, before, strict=True))
    result = call()
    fresh_call, fresh_look = CALLS[name](threads)
    expected = fresh_call()
    if look is None:
        pairs = zip(arrays(result), arrays(expected), strict=True)
    elif name == "kfac refresh":
        return
    else:
        pairs = zip(arrays(look()), arrays(fresh_look()), strict=True)
    assert all(same_bits(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["cg", "multishift"])
def test_a_solver_returns_what_it_has(method):
    """An interrupt inside a product: the status says so, and x is the last iterate."""
    net, x, y = batch(WIDE, 20_000)
    F = ng.Fisher(net, SOFTMAX, x, num_threads=2)
    g = ng.value_and_grad(net, SOFTMAX, x, y)[1]
    for last in (3, 12):
        with alarms(last):
            if method == "cg":
                result = ng.cg(F, g, damping=1e-3, rtol=0.0, max_iter=1000)
                assert result.status is ng.Status.INTERRUPTED
                exact = ng.cg(F, g, damping=1e-3, rtol=0.0, max_iter=max(result.iterations, 1))
                assert result.iterations == 0 or same_bits(result.x, exact.x)
            else:
                result = ng.multishift_cg(F, g, dampings=[1e-3, 1e-1], rtol=0.0, max_iter=1000)
                assert all(column.status is ng.Status.INTERRUPTED for column in result.columns)


def test_an_exception_of_a_handler_comes_out_as_it_is():
    net, x, _ = batch(WIDE, 20_000)
    F = ng.Fisher(net, SOFTMAX, x, num_threads=2)
    v = vectors(net.num_params, 1)[:, 0]
    expected = F @ v

    def handler(*_):
        raise TimeoutError("enough")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.025)
        with pytest.raises(TimeoutError, match="enough"):
            F @ v
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert same_bits(F @ v, expected)


def test_handlers_run_in_the_main_thread_while_others_compute():
    """Products of other threads neither run the handlers nor keep the main thread from it."""
    net, x, _ = batch(WIDE, 5_000)
    F = ng.Fisher(net, SOFTMAX, x, num_threads=2)
    v = vectors(net.num_params, 1)[:, 0]
    expected = F @ v
    results, seen = [], []
    done = threading.Event()

    def work():
        while not done.is_set():
            results.append(F @ v)

    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(threading.current_thread()))
    threads = [threading.Thread(target=work) for _ in range(2)]
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.025, 0.025)
        for thread in threads:
            thread.start()
        while len(seen) < 10:
            results.append(F @ v)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        done.set()
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGALRM, before)
    assert set(seen) == {threading.main_thread()}
    assert all(same_bits(result, expected) for result in results)


SIGINT = """
    import os, signal, subprocess, sys, threading
    import numpy as np, natgrad_fast as ng
    net = ng.MLP([64, 512, 512, 10], dtype="float32", seed=0)
    x = np.random.default_rng(0).standard_normal((20_000, 64)).astype("float32")
    F = ng.Fisher(net, "softmax_cross_entropy", x, num_threads=2)
    v = net.params.copy()
    expected = (F @ v).tobytes()
    for delay in (0.03, 0.05, 0.09):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            for _ in range(1000):
                F @ v
        except KeyboardInterrupt as error:
            assert type(error) is KeyboardInterrupt
        else:
            sys.exit("no interrupt")
        timer.join()
        assert (F @ v).tobytes() == expected
"""


def test_ctrl_c():
    run_python(SIGINT)


def _factor(step):
    return 1.0 - 0.1 / (1.0 + step)


@pytest.mark.parametrize("solver", ["cg", "backtracking", "dense", "kronecker"])
@pytest.mark.parametrize("delay", [0.01, 0.06])
def test_a_step_and_its_record_are_both_there_or_both_not(solver, delay):
    """An alarm somewhere in steps that take tens of milliseconds each."""
    sizes, cases = ((10, 30, 5), 20_000) if solver == "dense" else (WIDE, 4_000)
    net, x, y = batch(sizes, cases)
    solvers = {
        "cg": ng.solvers.CG(max_iter=5, preconditioner="kfac"),
        "backtracking": ng.solvers.CG(max_iter=12, backtracking=True, warm_start=_factor),
        "dense": ng.solvers.Dense(),
        "kronecker": ng.solvers.Kronecker(),
    }
    options = {"solver": solvers[solver]}
    if solver == "backtracking":
        options |= {"curvature_share": 0.25, "line_search": True}
    opt = ng.NaturalGradient(net, SOFTMAX, num_threads=2, **options)
    points = [(opt.state_dict()["step"], net.params.copy())]
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    def train():
        signal.setitimer(signal.ITIMER_REAL, delay)
        for _ in range(200):
            opt.step(x, y)
            points.append((opt.state_dict()["step"], net.params.copy()))

    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    step, params = opt.state_dict()["step"], net.params.copy()
    if step == points[-1][0]:  # nothing of the last step is there
        assert same_bits(params, points[-1][1])
    else:
        assert step == points[-1][0] + 1
        assert opt.last_info.step == points[-1][0]
        assert opt.last_info.accepted != same_bits(params, points[-1][1])
    other = net.copy()
    resumed = ng.NaturalGradient(other, SOFTMAX, num_threads=1, **options)
    resumed.load_state_dict(opt.state_dict())
    opt.step(x, y)
    resumed.step(x, y)
    assert same_bits(other.params, net.params)


@pytest.mark.parametrize("delay", [0.05, 0.2])
def test_a_fit_that_is_interrupted_has_the_records_of_what_was_done(delay):
    net, x, y = batch(WIDE, 3_000)
    opt = ng.NaturalGradient(net, SOFTMAX, num_threads=2)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        history = opt.fit(x, y, epochs=1_000, batch_size=500)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert history.stop_reason == "interrupted"
    assert [info.step for info in history.steps] == list(range(opt.state_dict()["step"]))
    other = net.copy()
    resumed = ng.NaturalGradient(other, SOFTMAX, num_threads=1)
    resumed.load_state_dict(opt.state_dict())
    for one in (opt, resumed):
        one.fit(x, y, epochs=1, batch_size=500)
    assert same_bits(other.params, net.params)
