"""Every module computes the same, the right one is loaded, none needs more than it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import natgrad_fast as ng
import pytest
from cases import run_python
from natgrad_fast import _cpu, _isa

CONFIG = ng.show_config()
FILES = {isa: Path(path) for isa, path in _isa.built().items()}
RUNNABLE = [isa for isa in FILES if _isa.runs(isa)]
PACKAGE = Path(ng.__file__).parent
LEVELS = [isa for isa in FILES if isa.startswith("x86-64-")]
on_x86_64_linux = pytest.mark.skipif(
    not (sys.platform == "linux" and os.uname().machine == "x86_64"), reason="x86-64 Linux only"
)
# The registers that a level may not name, by their names in a disassembly.
FORBIDDEN = {"x86-64-v2": "%[yz]mm", "x86-64-v3": "%zmm"}


def environment(isa=None, **variables):
    env = {key: value for key, value in os.environ.items() if key != _isa.VARIABLE}
    return env | variables | ({} if isa is None else {_isa.VARIABLE: isa})


def import_in(folder=None, isa=None, flags=("-W", "error")):
    """Import in a new process, from the package in `folder`; the process may fail."""
    variables = {} if folder is None else {"PYTHONPATH": str(folder)}
    script = "import natgrad_fast as ng; print(ng.__file__, ng.show_config()['isa'])"
    return subprocess.run(
        [sys.executable, *flags, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(isa, **variables),
    )


def tool(name, *arguments):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.mark.parametrize("isa", RUNNABLE)
def test_numerics(isa):
    tests = str(Path(__file__).parent)
    script = f"import check_isa; check_isa.run({isa!r})"
    assert isa in run_python(script, env=environment(isa, PYTHONPATH=tests))


def test_the_best_is_loaded_and_both_spellings_are_known():
    assert RUNNABLE
    assert import_in().stdout.split()[-1] == RUNNABLE[0]
    for isa in RUNNABLE:
        for name in (isa, isa.removeprefix("x86-64-")):
            assert import_in(isa=name).stdout.split()[-1] == isa


def test_a_process_holds_one_module_under_public_names():
    script = """
        import sys
        import natgrad_fast as ng
        from natgrad_fast import _core
        from natgrad_fast._core import f32
        assert _core is sys.modules["natgrad_fast._core"] is ng._core
        assert _core.__name__ == _core.__spec__.name == "natgrad_fast._core"
        assert f32 is _core.f32 is sys.modules["natgrad_fast._core.f32"]
        assert _core.Loss.__module__ == "natgrad_fast._core"
        assert f32.Curvature.__module__ == "natgrad_fast._core.f32"
        if sys.platform == "linux":
            lines = open("/proc/self/maps").read().splitlines()
            print(*sorted({line.split()[-1] for line in lines if "/_core_" in line}))
    """
    for isa in RUNNABLE:
        loaded = run_python(script, env=environment(isa)).split()
        assert loaded in ([], [str(FILES[isa])])


@pytest.mark.parametrize("isa", FILES)
def test_modules_cannot_be_imported_past_the_loader(isa):
    name = f"natgrad_fast._core_{isa.removeprefix('x86-64-')}"
    with pytest.raises(ImportError, match="PyInit"):
        __import__(name)


def test_a_wrong_wish_is_refused(monkeypatch):
    for name in ("v5", "avx2", "x86-64-", " "):
        done = import_in(isa=name)
        assert done.returncode == 1
        assert f"ImportError: {_isa.VARIABLE}: got {name!r}, wanted one of native" in done.stderr
    with pytest.raises(ImportError, match="got 'v3', this build has x86-64-v2"):
        _isa.requested("v3", {"x86-64-v2": "file"})
    monkeypatch.setattr(_isa, "supported", lambda: ("x86-64-v2",))
    with pytest.raises(ImportError, match="got 'x86-64-v4', this processor has x86-64-v2"):
        _isa.requested("x86-64-v4", {"x86-64-v4": "file"})


def test_what_a_processor_cannot_run_is_not_tried(monkeypatch):
    levels = {f"x86-64-{level}": "file" for level in ("v4", "v3", "v2")}
    monkeypatch.setattr(_isa, "supported", lambda: ("x86-64-v3", "x86-64-v2"))
    assert _isa.usable(levels) == ["x86-64-v3", "x86-64-v2"]
    assert _isa.usable({"native": "file"}) == ["native"]
    monkeypatch.setattr(_isa, "supported", lambda: ())
    with pytest.raises(ImportError, match=r"built for x86-64-v4, .* has none: .*=baseline"):
        _isa.usable(levels)
    with pytest.raises(ImportError, match="no compiled core"):
        _isa.usable({})


def test_a_broken_module_is_replaced_with_a_warning(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "natgrad_fast")
    best, *others = RUNNABLE
    (copy / FILES[best].name).write_bytes(b"\x7fELF and nothing more")
    refused = import_in(tmp_path, isa=best)
    assert refused.returncode == 1
    assert f"could not be loaded: {best}: " in refused.stderr
    if others:
        done = import_in(tmp_path, flags=())
        assert done.stdout.split() == [str(copy / "__init__.py"), others[0]], done.stderr
        assert f"RuntimeWarning: natgrad_fast runs with {others[0]}, since" in done.stderr
        assert FILES[best].name in done.stderr
    for isa in others:
        (copy / FILES[isa].name).write_bytes(b"")
    refused = import_in(tmp_path)
    assert refused.returncode == 1
    assert all(f"{isa}: " in refused.stderr.splitlines()[-1] for isa in RUNNABLE)


@on_x86_64_linux
def test_supported_levels_are_those_of_the_kernel():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    wanted = {
        "x86-64-v2": "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2",
        "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
        "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
    }
    expected = []
    for level, names in wanted.items():
        if not flags >= set(names.split()):
            break
        expected.append(level)
    assert _cpu.levels() == tuple(expected) == CONFIG["isa_supported"][::-1]


@on_x86_64_linux
@pytest.mark.parametrize("isa", ["_cpu", *LEVELS])
def test_no_register_above_the_level(isa):
    """Of code that runs when a file is loaded, too: it is part of the disassembly."""
    path = Path(_cpu.__file__) if isa == "_cpu" else FILES[isa]
    text = tool("objdump", "-d", "--no-show-raw-insn", path)
    assert text.count("%xmm") > 10
    forbidden = FORBIDDEN["x86-64-v2"] if isa == "_cpu" else FORBIDDEN.get(isa)
    if forbidden is None:
        assert "%zmm" in text
    else:
        assert not re.search(forbidden, text)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
@pytest.mark.parametrize("path", [Path(_cpu.__file__), *FILES.values()], ids=lambda p: p.name)
def test_nothing_is_exported_but_the_entry_of_python(path):
    """A weak symbol of one instruction set could serve a library that is loaded later."""
    name = "PyInit__cpu" if path.name.startswith("_cpu") else "PyInit__core"
    symbols = [line.split() for line in tool("nm", "-D", "--defined-only", path).splitlines()]
    assert [symbol[-2:] for symbol in symbols] == [["T", name]]


@on_x86_64_linux
@pytest.mark.skipif("x86-64-v2" not in FILES, reason="x86-64-v2 is not built")
def test_processor_without_avx():
    """Nehalem (2008), imitated; one thread more than needed, so that OpenMP runs as well."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 (Debian's qemu-user) is not installed")
    script = """
        import numpy as np, natgrad_fast as ng
        net = ng.MLP([5, 40, 3], seed=0)
        x, v = np.linspace(-1, 1, 500).reshape(100, 5), np.linspace(0, 1, net.num_params)
        product = ng.Fisher(net, "softmax_cross_entropy", x, num_threads=2) @ v
        print(ng.show_config()["isa"], product.astype(np.float32).tobytes().hex())
    """
    script = "\n".join(line.strip() for line in script.splitlines())
    command = [emulator, "-cpu", "Nehalem", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr
    isa, product = done.stdout.split()
    assert isa == "x86-64-v2"
    # the same module, the same bits, whatever executes it
    assert run_python(script, env=environment("v2")).split() == [isa, product]
