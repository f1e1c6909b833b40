"""Docstrings of what is public: an example that runs for all that a user makes or calls."""

import doctest
import importlib
import inspect
import pkgutil
import types

import natgrad_fast as ng
import numpy as np
import pytest

# Made by the package, and read; or bases that others subclass.
RESULTS = {"Direction", "Loss", "StepSolver", "TrainingContext", "Dataset", "Callback"}
RESULTS |= {"BlockCGResult", "BlockSolveResult", "CGIterate", "CGResult", "ControllerInfo"}
RESULTS |= {"EpochInfo", "Estimate", "KernelSpectrum", "MultishiftResult", "RowsSolveResult"}
RESULTS |= {"SolveInfo", "SolveResult", "Status", "StepInfo", "Trial", "Trials"}
# Need packages or data that the tests may lack.
APART = {"mnist5k", "load"}


def public():
    for module in (ng, ng.losses, ng.solvers, ng.callbacks, ng.datasets):
        for name in getattr(module, "__all__", dir(module)):
            found = getattr(module, name)
            own = getattr(found, "__module__", "").startswith("natgrad_fast")
            if name[0] != "_" and own and (inspect.isclass(found) or inspect.isfunction(found)):
                yield name, found


@pytest.mark.parametrize("name", sorted({name for name, _ in public()}))
def test_what_is_public_has_an_example(name):
    found = dict(public())[name]
    text = inspect.getdoc(found)
    assert text
    if name in RESULTS | APART or name.startswith("as_"):
        return
    assert "Examples\n--------\n" in text, name
    assert ">>>" in text, name


def modules():
    for info in pkgutil.walk_packages(ng.__path__, "natgrad_fast."):
        parts = set(info.name.split("."))
        if not parts & {"_core", "_cpu", "cli", "bench", "__main__", "_core_v2", "_core_v3"}:
            yield info.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    assert isinstance(module, types.ModuleType)
    with np.printoptions(legacy=False):
        results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_pages_hold_code_that_runs(tmp_path, monkeypatch):
    """The code of the README is run by .ci/run; that of the pages here, one after the other."""
    import re
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    pages = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))
    assert pages
    for page in pages:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
        exec(compile("\n".join(blocks), page.name, "exec"), {})


def test_objects_say_what_they_are(tmp_path):
    net = ng.MLP([2, 3, 1], dtype="float64", seed=0)
    x, y = np.eye(2), np.ones((2, 1))
    F = ng.Fisher(net, "squared_error", x)
    opt = ng.NaturalGradient(net, "squared_error")
    every = [net, F, opt, opt.step(x, y), opt.fit(x, y), ng.GGN(net, "squared_error", x)]
    every += [ng.Hessian(net, "squared_error", x, y), ng.Jacobian(net, x), ng.DenseMatrix(F)]
    every += [ng.EmpiricalFisher(net, "squared_error", x, y), ng.SampleSpace(F)]
    every += [kind(net, "squared_error", x) for kind in (ng.KFAC, ng.EKFAC, ng.TKFAC, ng.KLFAC)]
    every += [ng.DiagonalPreconditioner(net, "squared_error", x, y), ng.Nystrom(F, rank=2)]
    every += [getattr(ng.solvers, name)() for name in ("CG", "Dense", "Kronecker")]
    every += [ng.LevenbergMarquardt(), ng.Tikhonov(0.1), ng.TrustRegion(), ng.RadiusSearch()]
    every += [ng.BatchSchedule(5), ng.BayesianRegularization(), ng.Batch(net, "squared_error", x)]
    every += [ng.callbacks.EarlyStopping(), ng.callbacks.Log(), ng.callbacks.JSONLines("a")]
    every += [ng.callbacks.Checkpoint(tmp_path / "a"), ng.Laplace(net, "squared_error", x, y)]
    every += [F.solve(np.ones(13), damping=0.1), ng.cg(F, np.ones(13), damping=0.1)]
    every += [ng.losses.StudentT(), ng.Status.CONVERGED]
    for found in every:
        text = repr(found)
        assert type(found).__name__ in text, text
        assert " object at 0x" not in text, text
