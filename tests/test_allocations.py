"""Solves allocate nothing per iteration, and an allocation that fails changes nothing.

Counted, and made to fail, by a malloc put before the C library's.
"""

import os
import shutil
import subprocess
import sys

import pytest

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_long calls, left = -1, failures;
static atomic_size_t smallest;
long num_calls(void) { return calls; }
long num_failures(void) { return failures; }
// The n-th allocation from now on (from 0) of at least `size` bytes fails; -1: none does.
void fail_at(long n, size_t size) {
  smallest = size;
  left = n;
}

static int fails(size_t size) {
  ++calls;
  if (left < 0 || size < smallest || left-- > 0) return 0;
  ++failures;
  return 1;
}
void *malloc(size_t size) {
  static void *(*next)(size_t);
  if (!next) next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
  return fails(size) ? NULL : next(size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  static void *(*next)(size_t, size_t);
  if (!next) next = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "aligned_alloc");
  return fails(size) ? NULL : next(alignment, size);
}
"""

PROGRAM = """
import ctypes, sys
import numpy as np
import natgrad_fast as ng

counter = ctypes.CDLL(sys.argv[1])
rng = np.random.default_rng(0)
net = ng.MLP(eval(sys.argv[2]), dtype=sys.argv[3])
problem = net, "softmax_cross_entropy", rng.standard_normal((300, 20))
fisher = ng.Fisher(*problem, num_threads=2)
b = rng.standard_normal(net.num_params).astype(net.dtype)

block = rng.standard_normal((net.num_params, 3)).astype(net.dtype)
nystrom = ng.Nystrom(fisher, rank=4, damping=1.0)
# a damping far off, so that no solve ends early
kfac, ekfac = (kind(*problem, damping=100.0, num_threads=2) for kind in (ng.KFAC, ng.EKFAC))
sum_of_all = 0.5 * fisher + 0.1 * (fisher @ kfac @ fisher) + ng.GGN(*problem, num_threads=2)
solves = {
    "plain": lambda options: ng.cg(fisher, b, damping=1e-6, **options),
    "radius": lambda options: ng.cg(fisher, b, damping=1e-6, trust_radius=1e9, **options),
    "block": lambda options: ng.cg(fisher, block, damping=1e-6, **options),
    "multishift": lambda options: ng.multishift_cg(fisher, b, [1e-6, 2e-6, 3e-6], **options),
    "nystrom": lambda options: ng.cg(fisher, b, preconditioner=nystrom, damping=1e-6, **options),
    "kfac": lambda options: ng.cg(fisher, b, preconditioner=kfac, damping=1e-6, **options),
    "ekfac": lambda options: ng.cg(fisher, b, preconditioner=ekfac, damping=1e-6, **options),
    "sum": lambda options: ng.cg(sum_of_all, b, preconditioner=0.5 * kfac, damping=1e-6, **options),
}
solve = solves[sys.argv[4]]

def calls(max_iter):
    before = counter.num_calls()
    result = solve({"rtol": 0.0, "max_iter": max_iter})
    assert np.all(result.iterations == max_iter), result.status
    return counter.num_calls() - before

calls(5)
few, many = min(calls(5) for _ in range(3)), min(calls(25) for _ in range(3))
assert few > 0  # the counter counts: a solve makes its vectors
print(many - few)
"""


# 8,000 parameters: threads share the cases; 165: one thread.
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
@pytest.mark.parametrize("sizes", [[20, 60, 100, 5], [20, 5, 10]], ids=["threads", "serial"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "solve", ["plain", "radius", "block", "multishift", "nystrom", "kfac", "ekfac", "sum"]
)
def test_iterations_of_a_solve_allocate_nothing(solve, sizes, dtype, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, str(sizes), dtype, solve],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"


PRODUCTS = """
import ctypes, sys
import numpy as np
import natgrad_fast as ng

counter = ctypes.CDLL(sys.argv[1])
sizes, dtype = eval(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(0)
x = rng.standard_normal((300, 20)).astype(dtype)
labels, y = np.arange(300) % 5, rng.standard_normal((300, 5))
softmax = "softmax_cross_entropy"
net = ng.MLP(sizes, dtype=dtype)
b = rng.standard_normal(net.num_params).astype(dtype)

def operators(**options):
    yield ng.Fisher(net, softmax, x, **options)
    yield ng.Fisher(net, "poisson", x, samples=3, **options)
    yield ng.GGN(net, "student_t", x, y, **options)
    yield ng.EmpiricalFisher(net, softmax, x, labels, **options)
    yield ng.Hessian(net, softmax, x, labels, **options)

def calls(operator, max_iter):
    before = counter.num_calls()
    result = ng.cg(operator, b, rtol=0.0, max_iter=max_iter)
    assert result.iterations == max_iter, (operator, result.status)
    return counter.num_calls() - before

def calls_of_one_product(operator, rows):
    before = counter.num_calls()
    operator.core.apply(rows)
    return counter.num_calls() - before

for chunk_size in (None, 1):
    for operator in operators(num_threads=2, chunk_size=chunk_size):
        v = b
        for _ in range(20):
            v = operator @ (v / np.linalg.norm(v))
        # eigenvalues within (0.5, 2.5) |v|, up to the error of |v|: no breakdown, no new start
        operator.damping = 1.5 * float(np.linalg.norm(v))
        calls(operator, 5)
        few, many = (min(calls(operator, n) for _ in range(3)) for n in (3, 6))
        assert few > 0  # the counter counts: a solve makes its vectors
        # A block costs as many allocations as a vector: those of the result.
        rows = np.stack([b, 2 * b, 3 * b, 4 * b])
        operator.core.apply(rows)
        one, four = (
            min(calls_of_one_product(operator, part) for _ in range(3)) for part in (rows[:1], rows)
        )
        print(type(operator).__name__, chunk_size, many - few, four - one)
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """The library that counts, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("counter")
    (folder / "counter.c").write_text(COUNTER)
    library = folder / "counter.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, folder / "counter.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


# 8,000 parameters: threads share the cases; 317: one thread, and a vector is no small block, of
# which NumPy keeps some.
@pytest.mark.parametrize("sizes", [[20, 60, 100, 5], [20, 12, 5]], ids=["threads", "serial"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_all_operators_allocate_nothing(sizes, dtype, counter):
    result = subprocess.run(
        [sys.executable, "-c", PRODUCTS, counter, str(sizes), dtype],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 10
    for line in lines:
        assert line.split()[2:] == ["0", "0"], lines


FAILURES = """
import copy, ctypes, sys
import numpy as np
import natgrad_fast as ng

library = ctypes.CDLL(sys.argv[1])
library.fail_at.argtypes = [ctypes.c_long, ctypes.c_size_t]
make, options = getattr(ng, sys.argv[2]), eval(sys.argv[3])
rng = np.random.default_rng(0)
net = ng.MLP([20, 33, 5], dtype=sys.argv[4])
x, y = rng.standard_normal((300, 20)), np.arange(300) % 5
v = rng.standard_normal(net.num_params)
first = make(net, "softmax_cross_entropy", x, y, damping=0.1, samples=2, **options)

def update(m):
    m.update_on(ng.Batch(m.net, m.loss, twice, targets))

# as the core takes them: NumPy does not survive everything when it converts
twice, targets = (2 * x).astype(net.dtype), np.eye(5, dtype=net.dtype)[y]
later = copy.deepcopy(first)
update(later)

state_of_later = later.state_dict()
if make is not ng.DiagonalPreconditioner:
    names = ("layers", "num_updates", "refreshed_at", "weight", "damping")
    state_of_core = dict(zip(names, later.core.state()))

def load(m):
    if make is ng.DiagonalPreconditioner:
        m.load_state_dict(state_of_later)
    else:  # without the checks before: NumPy crashes in comparisons that find no memory
        m.core.set_state(**state_of_core)

def same(a, b):
    return a.keys() == b.keys() and all(
        value.tobytes() == b[name].tobytes() if hasattr(value, "tobytes") else value == b[name]
        for name, value in a.items()
    )

def unchanged(m, state, product):
    return same(m.state_dict(), state) and (m @ v).tobytes() == product.tobytes()

calls = {
    "update": update,
    "refresh": lambda m: m.refresh(0.3),
    "load": load,
    "root": lambda m: m.sqrt_solve(v),
    "eigenvalues": lambda m: m.eigenvalues(),
    "logdet": lambda m: m.logdet(0.2),
}
for name, call in calls.items():
    wanted = copy.deepcopy(first)
    call(wanted)
    for n in range(10_000):
        m = copy.deepcopy(first)
        state, product = m.state_dict(), m @ v
        before, message = library.num_failures(), None
        # smaller ones are those of the interpreter and of the bindings
        library.fail_at(n, 1024)
        try:
            call(m)
        except (MemoryError, SystemError) as error:  # NumPy's ufuncs raise the second
            message = str(error)
        finally:
            library.fail_at(-1, 0)
        if library.num_failures() == before:
            break
        if message is None:  # somebody did without
            assert same(m.state_dict(), wanted.state_dict()), (name, n)
            continue
        assert unchanged(m, state, product), (name, n)
        call(m)
        assert unchanged(m, wanted.state_dict(), wanted @ v), (name, n)
    print(name, n)
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("KFAC", {}),
        ("KFAC", {"pi": "exact"}),
        ("TKFAC", {}),
        ("EKFAC", {}),
        ("TEKFAC", {"basis_period": 2}),
        ("DiagonalPreconditioner", {}),
        ("DiagonalPreconditioner", {"kind": "fisher"}),
    ],
)
def test_preconditioners_stay_as_they_are_if_an_allocation_fails(kind, options, dtype, counter):
    result = subprocess.run(
        [sys.executable, "-c", FAILURES, counter, kind, str(options), dtype],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = dict(line.split() for line in result.stdout.splitlines())
    assert len(counts) == 6
    assert all(int(counts[name]) > 0 for name in ("update", "refresh", "load"))


STEPS = """
import copy, ctypes, sys
import numpy as np
import natgrad_fast as ng

library = ctypes.CDLL(sys.argv[1])
library.fail_at.argtypes = [ctypes.c_long, ctypes.c_size_t]
rng = np.random.default_rng(0)
x, y = rng.standard_normal((300, 20)), np.arange(300) % 5
net = ng.MLP([20, 9, 5], dtype=sys.argv[3], seed=0)
options = {} if sys.argv[2] == "None" else {"solver": eval("ng.solvers." + sys.argv[2])}
opt = ng.NaturalGradient(net, "softmax_cross_entropy", l2=1e-3, num_threads=2, **options)
# half of the cases out of all of them, where the defaults are meant
parts = [ng.Batch(net, opt.loss, x[k::2], y[k::2], l2=1e-3, num_threads=2) for k in (0, 1)]
num_cases = 300 if not options else None

def step(k):
    return opt._step_of(parts[k % 2], num_cases)

def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b

for k in range(3):
    step(k)
start, params = opt.state_dict(), net.params.copy()
step(3)
wanted, wanted_params = opt.state_dict(), net.params.copy()
failed = 0
for n in range(10_000):
    opt.load_state_dict(start)
    net.params[...] = params
    info = opt.last_info
    before, message = library.num_failures(), None
    library.fail_at(n, 1024)
    try:
        step(3)
    except (MemoryError, SystemError) as error:  # NumPy's ufuncs raise the second
        message = str(error)
    finally:
        library.fail_at(-1, 0)
    if library.num_failures() == before:
        break
    if message is not None:
        failed += 1
        assert same(opt.state_dict(), start), n
        assert net.params.tobytes() == params.tobytes(), n
        assert opt.last_info is info, n
        step(3)
    assert same(opt.state_dict(), wanted), n  # also where somebody did without
    assert net.params.tobytes() == wanted_params.tobytes(), n
print(failed)
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "solver",
    [
        "CG(max_iter=5)",
        "CG(max_iter=5, preconditioner='kfac')",
        "CG(max_iter=5, preconditioner='nystrom')",
        "Dense()",
        "Dense('eigh')",
        "Kronecker('ekfac')",
        "SampleSpace(kernel='sampled', momentum=0.9)",
        "None",
    ],
)
def test_a_step_and_its_record_are_there_or_not_if_an_allocation_fails(solver, dtype, counter):
    result = subprocess.run(
        [sys.executable, "-c", STEPS, counter, solver, dtype],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0
