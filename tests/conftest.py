"""Fixtures, the tolerance table and the header with the build under test."""

import os
import signal
from types import SimpleNamespace

# Threads that wait by spinning make a suite of tiny calls several times slower on a busy machine:
# NumPy gets one, those under test sleep. Read when the libraries are loaded, hence before imports.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import natgrad_fast as ng
import numpy as np
import pytest

# What a script starts in its background ignores Ctrl-C, and so do its children. Some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, since tests never time anything; derandomised, so that a failure can be repeated.
hypothesis.settings.register_profile(
    "natgrad", deadline=None, derandomize=True, max_examples=60, database=None
)
hypothesis.settings.load_profile("natgrad")

# Normwise relative tolerances against the float64 oracle. A float32 net is compared with the oracle
# at the same float32 parameters, so only the rounding of the computation counts.
TOLERANCES = {
    "float64": SimpleNamespace(
        eps=2.2e-16,
        # forward: up to 6 layers of sums of up to 400 terms, about 1e3 eps; ten times that
        forward=2e-12,
        # gradient: as forward, twice (backward sweep), and the mean cancels against the scale
        gradient=1e-11,
        # product: the bound the library promises
        product=1e-10,
    ),
    "float32": SimpleNamespace(eps=1.2e-7, forward=1e-5, gradient=5e-5, product=1e-4),
}


# Folders whose tests stand on rounding: they run under other BLAS kernels and instruction sets too
# (tools/numerics.py).
NUMERICS = {"linear", "preconditioners", "solvers"}
# Runs in the core alone, whatever BLAS there is.
NOT_NUMERICS = {"test_rows.py"}


def pytest_addoption(parser):
    parser.addoption("--campaign", type=int, metavar="N", help="rounds of random calls")
    parser.addoption("--campaign-seed", type=int, metavar="S", help="of the first round")


# Nets of several tiles, whose oracles take seconds: in float64, where tiles are others and nothing
# else, they are among the slow tests.
OF_TILES = ("20-33-10-units", "20-33-17-10-tiles", "20-33-17-10-kron", "70-129-19-70")


def pytest_collection_modifyitems(items):
    for item in items:
        if "float64" in item.name and any(net in item.name for net in OF_TILES):
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name in NUMERICS and item.path.name not in NOT_NUMERICS:
            item.add_marker(pytest.mark.numerics)


def pytest_report_header(config):
    facts = ng.show_config()
    return ["natgrad_fast: " + ", ".join(f"{key}={value}" for key, value in facts.items())]


@pytest.fixture
def rng():
    return np.random.default_rng(20141193)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def tol(dtype):
    return TOLERANCES[dtype]


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda n: f"{n}-threads")
def num_threads(request):
    return request.param
