"""The rules of the house: who may include whom, what lives where, stubs and versions up to date."""

import ast
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
PYTHON = sorted(p for d in ("python", "bench", "tools") for p in ROOT.glob(f"{d}/**/*.py"))
TESTS = sorted(ROOT.glob("tests/**/*.py"))

# csrc: a file includes headers of its own folder and of the folders below it. Nets, outputs and
# Krylov solvers never know of one another: solvers see operators through their interface alone.
BELOW = {
    "base": set(),
    "linalg": {"base"},
    "net": {"base", "linalg"},
    "output": {"base", "linalg"},
    "krylov": {"base", "linalg"},
    "curvature": {"base", "linalg", "net", "output"},
    "bindings": {"base", "linalg", "net", "output", "krylov", "curvature"},
}
# python/natgrad_fast: a module imports those of its own layer and of the layers above it in this
# table. Nothing imports studies, plots, sklearn or cli but what stands behind them.
LAYERS = [
    {"_cpu", "_warnings"},
    {"_isa"},
    {"_core"},
    {"_typing"},
    {"config", "_state"},
    {"_arrays"},
    {"losses"},
    {"model"},
    {"operators"},
    {"residuals", "preconditioners"},
    {"linear"},
    {"solvers"},
    {"training"},
    {"io", "laplace", "studies", "sklearn", "plots"},
    {"callbacks"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
ALONE = {"datasets", "quadratics"}  # import nothing else of the package
PACKAGE = ROOT / "python" / "natgrad_fast"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name[:2] != "__")


def folder(path):
    return path.relative_to(ROOT / "csrc").parts[0]


def included(path):
    """The project headers that this file includes, by their place in csrc."""
    names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M)
    assert all((ROOT / "csrc" / name).is_file() for name in names), names
    return names


def include_graph():
    return {str(p.relative_to(ROOT / "csrc")): included(p) for p in CPP if p.suffix == ".hpp"}


def imported(path):
    """Modules of the package that a file imports, as paths from the package; functions count too.

    A name that is imported from a folder counts as that of its __init__.
    """
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(n.name.split(".")[0] == "natgrad_fast" for n in node.names), "relative"
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            assert (node.module or "").split(".")[0] != "natgrad_fast", "imports are relative"
            continue
        base = here[: len(here) - node.level + 1]
        parts = (*base, *(node.module or "").split(".")) if node.module else base
        found |= {(*parts, n.name) for n in node.names} if not node.module else {parts}
    return found


def layer_of(parts):
    return parts[0] if parts else "__init__"


def cycles(graph):
    """Names that can reach themselves."""
    reach = {name: set(targets) for name, targets in graph.items()}
    for middle in graph:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return sorted(name for name, targets in reach.items() if name in targets)


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
    assert folder(path) in BELOW, "a new folder: give it a place in BELOW"
    allowed = BELOW[folder(path)] | {folder(path)}
    assert {name.partition("/")[0] for name in included(path)} <= allowed, included(path)


def test_headers_do_not_include_each_other_in_a_circle():
    assert cycles(include_graph()) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path):
    own = layer_of(path.relative_to(PACKAGE).with_suffix("").parts)
    wanted = {layer_of(parts) for parts in imported(path)} - {own}
    if own in ALONE:
        assert wanted <= {"_arrays"}
        return
    if own == "cli":
        wanted -= {"bench", "__version__"}  # lies in bench/ until it is installed; a string
    assert own in LAYER, "a new module: give it a place in LAYERS"
    assert all(name in LAYER and LAYER[name] < LAYER[own] for name in wanted - ALONE), wanted


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = parts[:-1] if parts[-1] == "__init__" else parts
        graph[name] = imported(path)
    assert cycles(graph) == []


def test_the_check_of_imports_finds_imports_inside_functions(tmp_path):
    text = "def f():\n    from ..linear.auto import solve\n    return solve\n"
    path = PACKAGE / "operators" / "curvature.py"
    assert ("linear", "auto") not in imported(path)
    probe = tmp_path / "probe.py"
    probe.write_text(text)
    nodes = [n for n in ast.walk(ast.parse(probe.read_text())) if isinstance(n, ast.ImportFrom)]
    assert [n.module for n in nodes] == ["linear.auto"]


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_pybind11_only_in_bindings_and_openmp_only_in_parallel(path):
    text = code(path)
    if folder(path) != "bindings":
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


def test_test_files_have_names_of_their_own():
    """pytest imports them by their name alone."""
    names = [path.name for path in ROOT.glob("tests/**/test_*.py")]
    assert sorted(names) == sorted(set(names))
