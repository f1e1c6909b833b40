"""What a user's type checker sees: misspelt names are refused, results are arrays."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import natgrad_fast as ng
import pytest
from natgrad_fast import _core, _typing
from natgrad_fast.losses import LossName

MYPY = shutil.which("mypy", path=Path(sys.executable).parent)
needs_mypy = pytest.mark.skipif(MYPY is None, reason="mypy is not installed")

HEAD = """
import natgrad_fast as ng
import numpy as np

x = np.ones((4, 2), np.float32)
y = np.zeros(4, int)
net = ng.MLP([2, 3], "tanh")
F = ng.Fisher(net, "softmax_cross_entropy", x)
"""


def check(tmp_path, script):
    """Messages of mypy --strict for a script of a user's."""
    path = tmp_path / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    command = [MYPY, "--strict", "--no-error-summary", "--cache-dir", tmp_path / "cache", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    return done.stdout


@needs_mypy
@pytest.mark.slow
def test_misspelt_names_are_refused(tmp_path):
    wrong = """
        ng.MLP([2, 3], "tahn")
        ng.MLP([2, 3], output_activation="sigmoid")
        ng.MLP([2, 3], init="glorott")
        ng.value(net, "softmax", x, y)
        ng.Fisher(net, "mse", x)
        ng.KFAC(net, "poison", x)
        ng.KFAC(net, "poisson", x, pi="trase")
        ng.cg(F, x, stopping="residuals")
        F.solve(x, methd="cg")
        ng.NaturalGradient(net, "poisson", curvature="fischer")
        ng.NaturalGradient(net, "poisson", solver="cgg")
        ng.solvers.CG(stopping="progress")
        ng.LevenbergMarquardt(denominator="damp")
        ng.Fisher(net, "poisson", x, sampel_weight=None)
        ng.estimate_memory(net, 10, matrix="fischer")
        ng.sample_space_solve(F, rows=x, rhs=y)
        ng.sample_space_solve(rows=x, rhs=y, method="cg")
        ng.sample_space_solve(rows=x)
    """
    found = {int(n) for n in re.findall(r"script\.py:(\d+): error", check(tmp_path, wrong))}
    first = HEAD.count("\n") + 2
    lines = textwrap.dedent(wrong).strip().splitlines()
    missed = [line for n, line in enumerate(lines) if n + first not in found]
    assert missed in ([], ['F.solve(x, methd="cg")'])  # bound by a layer above, options unchecked


@needs_mypy
@pytest.mark.slow
def test_results_are_arrays(tmp_path):
    values = {
        "net(x)": "ndarray",
        "net.params": "ndarray",
        "net.weights": "list[numpy.ndarray",
        "net.jvp(x, net.params)": "ndarray",
        "F @ net.params": "ndarray",
        "F.diagonal()": "ndarray",
        "F.matvec(net.params)": "ndarray",
        "F.to_dense()": "ndarray",
        "F.trace()": "float",
        "ng.sample_space_solve(F, net.params, damping=0.1)": "SolveResult",
        "ng.sample_space_solve(rows=x * 1j, rhs=y, weights=[1.0] * 4)": "RowsSolveResult",
        "ng.Jacobian(net, x).T @ x": "ndarray",
        "ng.value(net, 'poisson', x, y)": "float",
        "ng.value_and_grad(net, 'poisson', x, y)": "numpy.ndarray",
        "ng.cg(F, net.params)": "CGResult",
        "ng.cg(F, net.params).x": "ndarray",
        "ng.multishift_cg(F, net.params, [1.0]).x": "ndarray",
        "ng.KFAC(net, 'poisson', x, damping=0.1) @ net.params": "ndarray",
        "ng.NaturalGradient(net, 'poisson').step(x, y).loss": "float",
    }
    shown = check(tmp_path, "".join(f"reveal_type({value})\n" for value in values))
    assert "error" not in shown
    types = re.findall(r'Revealed type is "(.*)"', shown)
    assert len(types) == len(values), shown
    for (value, wanted), found in zip(values.items(), types, strict=True):
        assert wanted in found, (value, found)


def test_names_of_types_are_those_of_the_core():
    assert set(get_args(_typing.ActivationName)) == set(_core.activation_names)
    assert set(get_args(LossName)) == set(_core.loss_names)


def test_any_is_rare():
    """At most 15 for 1,000 lines: what a user's type checker does not see."""
    files = sorted(Path(ng.__file__).parent.rglob("*.py"))
    text = "".join(path.read_text() for path in files if "bench" not in path.parts)
    count = len(re.findall(r"\bAny\b", text))
    assert 1000 * count <= 15 * text.count("\n")
