"""The build of a wheel: its progress, its failures, and what must be in it."""

import io
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from natgrad_fast import _cpu, _isa

from tools import build, links, wheel
from tools.requirements import ROOT
from tools.steps import LINES, Steps

NINJA = "[3/26] Building CXX object CMakeFiles/natgrad_core_v3.dir/csrc/net/mlp.cpp.o\n"
MAKE = "[ 11%] Building CXX object CMakeFiles/natgrad_core_v3.dir/csrc/net/mlp.cpp.o\n"
SCRATCH = "    [1/2] Building CXX object CMakeFiles/cmTC_1.dir/testCXXCompiler.cxx.o\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ------------------------------------------------------------------------------------------------
# Progress


@pytest.mark.parametrize("line", [NINJA, MAKE], ids=["ninja", "make"])
def test_each_file_is_shown_by_its_name_and_level(line):
    out = Terminal()
    build.show(line, Steps(out))
    assert "net/mlp.cpp (v3)" in out.getvalue()


def test_files_that_cmake_tries_are_not_shown():
    out = Terminal()
    build.show(SCRATCH, Steps(out))
    assert out.getvalue() == ""


@pytest.mark.parametrize("total", [1, 5, 26, 300])
def test_off_a_terminal_there_are_some_lines_and_the_last(total):
    out = io.StringIO()
    steps = Steps(out)
    for number in range(1, total + 1):
        build.show(NINJA.replace("3/26", f"{number}/{total}"), steps)
    lines = out.getvalue().splitlines()
    counts = [line for line in lines if " of " in line and "idle" not in line]
    assert min(total, LINES // 2) <= len(counts) <= LINES + 1
    assert f"{total} of {total}:" in counts[-1]
    assert ("idle CPU" in lines[0]) == (total >= build.MANY)


def test_a_build_that_says_nothing_is_waited_for_aloud(monkeypatch):
    monkeypatch.setattr("tools.steps.PATIENCE", -1.0)
    out = io.StringIO()
    steps = Steps(out)
    steps.wait()
    assert out.getvalue() == ""  # nothing is being compiled
    steps.count(1, 100, "a file")
    steps.wait()
    assert "1 of 100, still at it" in out.getvalue()


# ------------------------------------------------------------------------------------------------
# Ends of a build; a program takes the place of the Python with the backend


def program(tmp_path, text):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_wheel_is_found_and_old_ones_are_gone(tmp_path):
    folder = tmp_path / "wheel"
    folder.mkdir()
    (folder / "natgrad_fast-0.0.9.whl").write_text("old")
    fake = program(tmp_path, 'test "$4" = \'{"a": "b"}\' && echo made > "$3/natgrad_fast-1.whl"')
    made = build.build_wheel(fake, folder, Steps(io.StringIO()), settings={"a": "b"})
    assert made == folder / "natgrad_fast-1.whl"
    assert [path.name for path in folder.glob("*.whl")] == [made.name]


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (["-- ok", "FAILED: a.o", "a.cpp:1: error: no", "ninja: stopped"], "FAILED: a.o"),
        (["-- ok", "CMake Error at CMakeLists.txt:2", "Eigen not found"], "CMake Error"),
        (["a.cpp:1:2: error: no", "make: *** [all] Error 2"], "a.cpp:1:2: error: no"),
        (["something", "else"], "something"),
    ],
)
def test_a_failure_is_shown_from_its_first_line_on(said, first, tmp_path):
    fake = program(tmp_path, "\n".join(f"echo '{line}'" for line in said) + "\nexit 3")
    folder = tmp_path / "wheel"
    with pytest.raises(build.BuildError) as caught:
        build.build_wheel(fake, folder, Steps(io.StringIO()))
    assert str(caught.value).startswith(first)
    assert str(folder / "build.log") in str(caught.value)
    assert (folder / "build.log").read_text().splitlines() == said


# ------------------------------------------------------------------------------------------------
# What a wheel holds

NAME = "natgrad_fast-0.1.0-cp311-cp311-linux_x86_64.whl"
MEMBERS = [
    "natgrad_fast/__init__.py",
    "natgrad_fast/_cpu.cpython-311-x86_64-linux-gnu.so",
    "natgrad_fast/_core_v2.cpython-311-x86_64-linux-gnu.so",
    "natgrad_fast/_core_v3.cpython-311-x86_64-linux-gnu.so",
    "natgrad_fast/py.typed",
    "natgrad_fast/_core/__init__.pyi",
    "natgrad_fast/_cpu.pyi",
    "natgrad_fast/bench/app.py",
    "natgrad_fast-0.1.0.dist-info/licenses/LICENSE",
    "natgrad_fast-0.1.0.dist-info/licenses/THIRD_PARTY.md",
]


def test_a_whole_wheel_is_accepted():
    assert wheel.complaints(NAME, MEMBERS) == []


@pytest.mark.parametrize("left_out", MEMBERS[1:])
def test_whatever_is_missing_is_missed(left_out):
    assert wheel.complaints(NAME, [name for name in MEMBERS if name != left_out]) != []


@pytest.mark.parametrize(
    "put_in",
    ["natgrad_fast/bench/README.md", "csrc/base/types.hpp", "natgrad_fast/a.cpp",
     "natgrad_fast/tests/test_a.py", "tests/test_a.py", "natgrad_fast/a.pyc"],
)  # fmt: skip
def test_what_does_not_belong_there_is_noticed(put_in):
    assert wheel.complaints(NAME, [*MEMBERS, put_in]) != []


def test_other_platforms_have_one_module():
    arm = NAME.replace("x86_64", "aarch64")
    one = [name for name in MEMBERS if "_core_v2" not in name]
    assert wheel.complaints(arm, one) == []
    assert wheel.complaints(arm, MEMBERS) != []


# ------------------------------------------------------------------------------------------------
# The modules that are installed


def readelf(option, path):
    tool = shutil.which("readelf")
    if tool is None or not Path(path).read_bytes().startswith(b"\x7fELF"):
        pytest.skip("no readelf, or no ELF files")
    done = subprocess.run([tool, option, path], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "path", [_cpu.__file__, *_isa.built().values()], ids=lambda p: Path(p).name
)
def test_modules_are_hardened(path):
    assert "BIND_NOW" in readelf("-dW", path)
    headers = readelf("-lW", path)
    assert "GNU_RELRO" in headers
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
    assert "__stack_chk_fail" in readelf("-sW", path)


# ------------------------------------------------------------------------------------------------
# Releases

ADDRESS = "https://example.org/owner/name"


def test_links_of_the_readme_hold_on_other_pages():
    text = (ROOT / "README.md").read_text()
    relative = links.RELATIVE.findall(text)
    assert relative
    assert all((ROOT / path).exists() for path in relative)
    made = links.absolute(text, ADDRESS, "abc")
    assert not links.RELATIVE.search(made)
    assert all(f"]({ADDRESS}/blob/abc/{path})" in made for path in relative)
    untouched = "[a](https://b.org/c) [d](#e) ![f](mailto:g) [h](/i)"
    assert links.absolute(untouched, ADDRESS, "abc") == untouched


def test_a_release_knows_the_addresses_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    urls = tomllib.loads(links.with_urls(text, ADDRESS, "abc"))["project"]["urls"]
    assert urls["Source"] == ADDRESS
    assert set(urls) == {"Paper", "Source", "Issues", "Changelog"}
    with pytest.raises(ValueError, match="no line"):
        links.with_urls("[project]\n", ADDRESS, "abc")


def test_actions_are_pinned_by_commit_and_jobs_may_do_little():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    if not workflows:
        pytest.skip("a source distribution has none")
    for path in workflows:
        text = path.read_text()
        assert re.search(r"^permissions:( \{\}|\n  contents: read)$", text, re.M), path
        used = re.findall(r"uses: (.*)", text)
        assert used
        for action in used:
            assert re.match(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action
        checkouts = text.count("uses: actions/checkout@")
        assert text.count("persist-credentials: false") == checkouts


def test_settings_of_a_build_are_given_as_json(tmp_path):
    """As the program in `HOOK` reads them."""
    fake = program(tmp_path, 'printf "%s" "$4" > "$3/natgrad_fast-1.whl"')
    settings = {"cmake.define.X": "a \"quoted\" 'word'"}
    made = build.build_wheel(fake, tmp_path / "w", Steps(io.StringIO()), settings=settings)
    assert json.loads(made.read_text()) == settings
