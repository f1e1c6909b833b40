"""Solves allocate nothing per iteration: counted by a malloc put before the C library's."""

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

static atomic_long calls;
long num_calls(void) { return calls; }

void *malloc(size_t size) {
  static void *(*next)(size_t);
  if (!next) next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
  ++calls;
  return next(size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  static void *(*next)(size_t, size_t);
  if (!next) next = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "aligned_alloc");
  ++calls;
  return next(alignment, size);
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
solves = {
    "plain": lambda options: ng.cg(fisher, b, damping=1.0, **options),
    "radius": lambda options: ng.cg(fisher, b, damping=1.0, trust_radius=1e3, **options),
    "block": lambda options: ng.cg(fisher, block, damping=1.0, **options),
    "multishift": lambda options: ng.multishift_cg(fisher, b, [1.0, 2.0, 3.0], **options),
    "nystrom": lambda options: ng.cg(fisher, b, preconditioner=nystrom, damping=1.0, **options),
    "kfac": lambda options: ng.cg(fisher, b, preconditioner=kfac, damping=1.0, **options),
    "ekfac": lambda options: ng.cg(fisher, b, preconditioner=ekfac, damping=1.0, **options),
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
    "solve", ["plain", "radius", "block", "multishift", "nystrom", "kfac", "ekfac"]
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
