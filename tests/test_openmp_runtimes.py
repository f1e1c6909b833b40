"""Beside libraries that bring an OpenMP runtime: same bits, same threads, nothing loaded twice."""

import importlib.util
import json
import os
import sys
import textwrap

import natgrad_fast as ng
import pytest
from cases import run_python

pytestmark = pytest.mark.skipif(not ng.show_config()["openmp"], reason="built without OpenMP")

# Each imports its library and makes its threads work.
USE = {
    "sklearn": """
        from sklearn.cluster import KMeans
        KMeans(4, n_init=1, random_state=0).fit(np.random.default_rng(0).random((3000, 8)))
    """,
    "torch": """
        import torch
        torch.set_num_threads(2)
        assert torch.isfinite(torch.ones(600, 600) @ torch.ones(600, 600)).all()
        torch.ones(10**6).exp().sum()
    """,
    "natgrad_fast": """
        import natgrad_fast as ng
        net = ng.MLP([64, 128, 64, 10], seed=0)
        x, v = np.linspace(-1, 1, 700 * 64).reshape(700, 64), np.linspace(-1, 1, net.num_params)
        F = ng.Fisher(net, "softmax_cross_entropy", x, num_threads=2)
        products = [(F @ v).tobytes().hex() for _ in range(3)]
    """,
}
REPORT = """
    names = {line.split()[-1] for line in open("/proc/self/maps") if "/lib" in line}
    runtimes = sorted(n for n in names if any(s in n for s in ("libgomp", "libomp", "libiomp")))
    print(json.dumps({"products": products, "threads": ng.default_num_threads(),
                      "runtimes": [os.path.realpath(name) for name in runtimes]}))
"""


def report(*libraries):
    """What natgrad_fast computes in a new process that uses these libraries in this order."""
    parts = ["import json, os\nimport numpy as np", *(USE[name] for name in libraries), REPORT]
    script = "\n".join(map(textwrap.dedent, parts))
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return json.loads(run_python(script, env=env))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("others", [["sklearn"], ["torch"], ["torch", "sklearn"]], ids="-".join)
def test_order_of_imports_does_not_matter(others):
    for name in others:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    alone = report("natgrad_fast")
    assert len(alone["runtimes"]) == 1
    assert len(set(alone["products"])) == 1
    for order in (["natgrad_fast", *others], [*others, "natgrad_fast"]):
        beside = report(*order)
        assert beside["products"] == alone["products"], order
        assert beside["threads"] == alone["threads"], order
        # scikit-learn's copy has a name of its own; every other libgomp.so.1 is one and the same
        shared = [name for name in beside["runtimes"] if "libgomp-" not in name]
        assert len(shared) == 1, beside["runtimes"]
