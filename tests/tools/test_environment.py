"""Set-up of environments: what is asked for before anything is made, what is done only once."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from natgrad_fast import _cpu

from tools import environment, levels, prerequisites, requirements
from tools.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name(requirement):
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]


# ------------------------------------------------------------------------------------------------
# Instruction sets


def cpuinfo(*names):
    flags = " ".join(["fpu", *(levels.FEATURES[name] for name in names)])
    return f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\nbugs\t\t: none\n"


def test_the_highest_level_has_all_features_of_those_below():
    assert levels.highest(cpuinfo("v2", "v3")) == "v3"
    assert levels.highest(cpuinfo("v2")) == "v2"
    assert levels.highest(cpuinfo("v3")) == levels.highest(cpuinfo()) == "baseline"
    assert levels.highest("") == levels.highest("Features : fp asimd\n") == "baseline"


@pytest.mark.parametrize("level", levels.FEATURES)
def test_a_level_without_one_of_its_features_is_not_built(level):
    below = {"v2": "baseline", "v3": "v2"}[level]
    for feature in levels.FEATURES[level].split():
        text = re.sub(rf" {feature}\b", "", cpuinfo("v2", "v3"))
        assert levels.highest(text) == below, feature


@pytest.mark.skipif(
    not (sys.platform == "linux" and os.uname().machine == "x86_64"), reason="x86-64 Linux only"
)
def test_the_level_of_this_machine_is_the_one_that_would_be_loaded():
    built = [f"x86-64-{level}" for level in levels.FEATURES]
    best = [level for level in _cpu.levels() if level in built][-1:]
    found = levels.highest(Path("/proc/cpuinfo").read_text())
    assert [f"x86-64-{found}"] == best or (found == "baseline" and not best)


def test_a_compiler_that_does_not_know_a_level_leaves_the_choice_to_cmake(tmp_path, monkeypatch):
    old = tmp_path / "old-compiler"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for command in ([str(old)], [str(tmp_path / "absent")], []):
        assert not levels.is_known(command, "v3")
    monkeypatch.setattr(levels, "highest", lambda text: "v3")
    assert levels.of_this_machine([str(old)]) == ""


# ------------------------------------------------------------------------------------------------
# What pip cannot install


def test_this_machine_has_what_it_needs():
    if not prerequisites.compiler():
        pytest.skip("no C++ compiler")
    assert prerequisites.missing() == []


def test_each_missing_thing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(prerequisites.importlib.util, "find_spec", lambda module: None)
    venv, headers, compiler = prerequisites.missing(tmp_path)
    assert "apt install python3-venv" in venv
    assert str(tmp_path / "Python.h") in headers
    assert "apt install python3-dev" in headers
    for remedy in ("apt install g++", "dnf install gcc-c++", "xcode-select --install"):
        assert remedy in compiler


def test_a_compiler_that_is_named_must_be_there_and_work(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler -m64")
    (message,) = prerequisites.missing()
    assert "/no/such/compiler -m64: there is no such program" in message
    monkeypatch.setenv("CXX", shutil.which("false"))
    (message,) = prerequisites.missing()
    assert "cannot compile:\nno message, exit code 1" in message


def test_without_a_compiler_nothing_is_made_or_downloaded(tmp_path):
    venv = tmp_path / "venv"
    variables = {key: value for key, value in os.environ.items() if key != "CXX"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.environment", "demo", "--venv", str(venv)],
        cwd=ROOT,
        env={**variables, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "apt install g++" in done.stderr
    assert "Traceback" not in done.stderr
    assert not venv.exists()


def test_a_wheel_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        environment.main(["test", "--venv", str(tmp_path / "v"), "--wheel", "dist/*.whl"])
    assert stop.value.code == 2
    assert "no such file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# Requirements


def test_extras_within_extras_are_resolved():
    extras = PROJECT["project"]["optional-dependencies"]
    found = requirements.for_extra("test")
    assert not any(name(requirement) == "natgrad_fast" for requirement in found)
    inner = re.search(r"natgrad_fast\[(.*)\]", extras["test"][0])[1].split(",")
    wanted = set(PROJECT["project"]["dependencies"]).union(*(extras[one] for one in inner))
    wanted |= {r for r in extras["test"] if not r.startswith("natgrad_fast")}
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_groups_within_groups_are_resolved():
    groups = PROJECT["dependency-groups"]
    assert set(groups["lint"]) | set(groups["release"]) < set(requirements.for_group("dev"))
    assert requirements.names(["numpy>=1.26", "a[b]==1; x", "numpy<3"]) == "numpy, a"


# ------------------------------------------------------------------------------------------------
# What is done only once


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small source tree in the place of this one."""
    for path in ("csrc/a.cpp", "python/natgrad_fast/__init__.py", "bench/app.py", "README.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    return tmp_path


def test_sources_and_variables_of_the_build_make_a_new_one_necessary(tree):
    plain = environment.digest_of_sources({"PATH": "/bin"})
    seen = {plain}
    for variable in ("NATGRAD_ISA_LEVELS", "SKBUILD_CMAKE_DEFINE", "CXXFLAGS", "CMAKE_GENERATOR"):
        seen.add(environment.digest_of_sources({variable: "x"}))
    (tree / "csrc/a.cpp").write_text("other")
    seen.add(environment.digest_of_sources({}))
    (tree / "csrc/b.cpp").write_text("new")
    seen.add(environment.digest_of_sources({}))
    assert len(seen) == 7


def test_what_does_not_change_the_build_makes_none_necessary(tree):
    plain = environment.digest_of_sources({})
    (tree / "python/natgrad_fast/__pycache__").mkdir()
    (tree / "python/natgrad_fast/__pycache__/a.pyc").write_text("x")
    (tree / "tests").mkdir()
    (tree / "tests/test_a.py").write_text("x")
    os.utime(tree / "csrc/a.cpp", (1, 1))
    assert environment.digest_of_sources({"NATGRAD_FAST_ISA": "v2", "HOME": "/"}) == plain


def test_a_record_counts_only_for_what_is_still_there(tmp_path):
    def at_hand():
        return environment.Environment(tmp_path, Steps())

    package = tmp_path / "lib/python3.11/site-packages/natgrad_fast-0.1.0.dist-info/RECORD"
    package.parent.mkdir(parents=True)
    package.write_text("files")
    assert not at_hand().has_package("key")
    at_hand().remember("created", "3.11")
    assert not at_hand().is_whole  # its Python is missing
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text("")
    assert at_hand().is_whole
    there = at_hand()
    there.remember("package", ["key", there.installed_package()])
    assert at_hand().has_package("key")
    assert not at_hand().has_package("other")
    os.utime(package, ns=(1, 1))  # somebody installed another one
    assert not at_hand().has_package("key")
    there.record.write_text("{ no JSON")
    assert not at_hand().is_whole


def test_the_makefile_holds_no_programs():
    text = (ROOT / "Makefile").read_text()
    assert not re.search(r"^define\b", text, re.M)
    programs = re.findall(r"-c '([^']*)'", text)
    assert all(program.startswith("import sys; sys.exit(sys.version_info") for program in programs)
