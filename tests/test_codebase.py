"""The rules of the house: who may include whom, what lives where, stubs and versions up to date."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import natgrad_fast as ng
import pytest
from cases import run_python

ROOT = Path(__file__).resolve().parent.parent
CPP = sorted([*ROOT.glob("csrc/**/*.hpp"), *ROOT.glob("csrc/**/*.cpp")])
PYTHON = sorted([*ROOT.glob("python/**/*.py"), *ROOT.glob("bench/*.py")])
TESTS = sorted(ROOT.glob("tests/*.py"))

# Includes go strictly down these floors; a header of the same floor is a neighbour, not a base.
FLOORS = [
    {"types"},
    {"check", "parallel", "large_blocks"},
    {"panels", "random"},
    {"dense", "vectors", "panel_arrays", "elementary"},
    {"activation", "loss", "output_kernels", "recurrence", "nystrom", "factorization"},
    {"mlp", "sampling", "krylov", "multishift"},
    {"linearization", "output_matrix"},
    {"objective", "curvature", "hessian", "layer_moments"},
    {"sample_space", "kronecker"},
    {"bindings"},
]
FLOOR = {noun: number for number, nouns in enumerate(FLOORS) for noun in nouns}
# Solvers know operators only through their interface: nothing of nets or losses.
SOLVERS = {"krylov", "multishift", "nystrom", "recurrence"}
SOLVER_BASE = {"types", "check", "parallel", "panels", "dense", "vectors", "recurrence"}


def noun(path):
    return "bindings" if path.parent.name == "bindings" else path.stem


def included(path):
    """Nouns of the project headers that this file includes, its own apart."""
    names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M)
    paths = [(path.parent / name).resolve() for name in names]
    paths = [
        p if p.exists() else ROOT / "csrc" / name for p, name in zip(paths, names, strict=True)
    ]
    assert all(p.is_file() for p in paths), names
    return {noun(p) for p in paths} - {noun(path)}


def code(path):
    """Text without comments and string literals."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    return re.sub(r'//[^\n]*|"(\\.|[^"\\\n])*"', "", text)


def relative(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert len(CPP) > 10
    assert len(PYTHON) > 5


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_includes_go_one_way(path):
    assert noun(path) in FLOOR, "a new noun: give it a floor in FLOORS"
    assert all(FLOOR[name] < FLOOR[noun(path)] for name in included(path)), included(path)
    if noun(path) in SOLVERS:
        assert included(path) <= SOLVER_BASE


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_pybind11_only_in_bindings_and_openmp_only_in_parallel(path):
    text = code(path)
    if noun(path) != "bindings":
        assert not re.search(r"\bpy::|pybind11|Python\.h", text)
    if path.name != "parallel.hpp":
        assert not re.search(r"_OPENMP|#\s*pragma\s+omp|\bomp_|<omp\.h>", text)


@pytest.mark.parametrize("path", CPP + PYTHON + TESTS, ids=relative)
def test_files_are_short_and_finished(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"])
    assert not re.search(rf"\b({words})\b", text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("reference", {"math", "collections.abc", "dataclasses", "numpy"}),
        ("reference_kronecker", {"dataclasses", "numpy", "reference"}),
    ],
)
def test_oracle_shares_nothing_with_the_library(name, wanted):
    text = (ROOT / "tests" / f"{name}.py").read_text()
    imports = set(re.findall(r"^(?:import|from)\s+([\w.]+)", text, re.M))
    assert imports == wanted


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ng.__version__ == project["version"] == ng.show_config()["version"]


def test_import_needs_numpy_only():
    allowed = {"numpy", "natgrad_fast"}
    script = """
        import sys
        before = set(sys.modules)
        import natgrad_fast
        known = sys.stdlib_module_names
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(*sorted(name for name in new if name not in known and not name.startswith("_")))
    """
    assert set(run_python(script).split()) <= allowed


def test_public_names_are_complete():
    names = """MLP Jacobian Fisher GGN NaturalGradient Tikhonov LevenbergMarquardt Status CGResult
        StepInfo SolveInfo BlockCGResult MultishiftResult CGIterate Nystrom History EpochInfo
        value value_and_grad cg multishift_cg show_config losses solvers
        __version__""".split()
    assert set(names) <= set(ng.__all__)
    for name in ng.__all__:
        assert getattr(ng, name) is not None
    for name in names:
        if not name.startswith("_"):
            assert getattr(ng, name).__doc__


def test_config_tells_the_build():
    config = ng.show_config()
    assert config.keys() >= set(
        "version numpy python compiler cxx_flags isa isa_built isa_supported eigen_version openmp "
        "default_num_threads build_type".split()
    )
    assert config["openmp"] in (True, False)
    assert config["default_num_threads"] >= 1
    assert re.match(r"\d+\.\d+\.\d+", config["eigen_version"])


def test_stub_is_up_to_date(tmp_path):
    if shutil.which("pybind11-stubgen", path=Path(sys.executable).parent) is None:
        pytest.skip("pybind11-stubgen is not installed")
    if ng.show_config()["pybind11_version"] != "3.1":  # signatures are spelt by pybind11
        pytest.skip("the committed stub is that of pybind11 3.1")
    tool = Path(sys.executable).parent / "pybind11-stubgen"
    for module in ("natgrad_fast._core", "natgrad_fast._cpu"):
        command = [tool, module, "--output-dir", tmp_path, "--exit-code"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    made = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*.pyi")}
    base = ROOT / "python"
    committed = {p.relative_to(base): p.read_text() for p in base.rglob("_core*/**/*.pyi")}
    committed |= {p.relative_to(base): p.read_text() for p in base.rglob("_cpu.pyi")}
    assert made == committed, "run `make stubs`"
    assert (ROOT / "python" / "natgrad_fast" / "py.typed").is_file()
