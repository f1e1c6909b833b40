"""Flush-to-zero and rounding of the calling thread hold in every thread that works for it."""

import ctypes
import platform
import sys

import pytest
from cases import run_python

# fenv_t of glibc on x86-64 is 32 bytes, the last four of which are MXCSR.
LIBM = """
    import ctypes, ctypes.util, itertools
    import numpy as np, natgrad_fast as ng
    libm = ctypes.CDLL(ctypes.util.find_library("m"))

    def mxcsr():
        environment = (ctypes.c_uint32 * 8)()
        assert libm.fegetenv(environment) == 0
        return environment[7]

    def set_mxcsr(bits):
        environment = (ctypes.c_uint32 * 8)()
        assert libm.fegetenv(environment) == 0
        environment[7] = bits
        assert libm.fesetenv(environment) == 0

    CONTROL = 0xFFC0
    PLAIN = mxcsr() & CONTROL
    FLUSH, UPWARD, DOWNWARD = PLAIN | 0x8040, PLAIN | 0x4000, PLAIN | 0x2000
    rng = np.random.default_rng(0)
    net = ng.MLP([20, 64, 64, 5], activation="logistic", dtype="float32", seed=0)
    net.params[:] *= 30  # saturated: phi' and what it multiplies underflow
    x = (3 * rng.standard_normal((900, 20))).astype("float32")
    y = rng.integers(0, 5, 900)
    v = rng.standard_normal(net.num_params).astype("float32")
    loss = "softmax_cross_entropy"

    def results(threads):
        options = {"num_threads": threads}
        h, g = ng.value_and_grad(net, loss, x, y, **options)
        F = ng.Fisher(net, loss, x, damping=1e-3, **options)
        H = ng.Hessian(net, loss, x, y, **options)
        M = ng.KFAC(net, loss, x, damping=1e-2, samples=1, seed=0, **options)
        K = ng.SampleSpace(ng.EmpiricalFisher(net, loss, x[:300], y[:300], **options))
        found = [net(x, **options), h, g, F @ v, F.diagonal(), H @ v, M @ v, K.kernel()]
        found.append(ng.cg(F, g, max_iter=5, **options).x)
        return b"".join(np.asarray(a).tobytes() for a in found)

    def in_mode(bits, threads):
        set_mxcsr(bits)
        try:
            found = results(threads)
            assert mxcsr() & CONTROL == bits, "the environment of the caller"
            return found
        finally:
            set_mxcsr(PLAIN)

    modes = [PLAIN, FLUSH, UPWARD, DOWNWARD, UPWARD | FLUSH]
    alone = {bits: in_mode(bits, 1) for bits in modes}
    assert len(set(alone.values())) == len(modes), "each of them changes bits"
    for bits, threads in itertools.product(modes * 2, (2, 3, 4)):
        assert in_mode(bits, threads) == alone[bits], (hex(bits), threads)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not sys.platform.startswith("linux"),
    reason="sets MXCSR by glibc's fenv_t of x86-64",
)
@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="a 64-bit fenv_t")
def test_bits_do_not_depend_on_threads_in_any_mode():
    run_python(LIBM)
