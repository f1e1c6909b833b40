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
preconditioner = None
if sys.argv[4]:  # with a damping far off, so that no solve ends early
    preconditioner = getattr(ng, sys.argv[4])(*problem, damping=100.0, num_threads=2)
b = rng.standard_normal(net.num_params).astype(net.dtype)

def calls(max_iter):
    before = counter.num_calls()
    result = ng.cg(
        fisher, b, damping=1.0, rtol=0.0, max_iter=max_iter, preconditioner=preconditioner
    )
    assert result.iterations == max_iter, result.status
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
@pytest.mark.parametrize("preconditioner", ["", "KFAC", "EKFAC"])
def test_iterations_of_a_solve_allocate_nothing(sizes, dtype, preconditioner, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, str(sizes), dtype, preconditioner],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"
