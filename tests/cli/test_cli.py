"""The command line, called as users call it."""

import re
import subprocess
import sys
from pathlib import Path

import natgrad_fast as ng
import pytest

SCRIPT = Path(sys.executable).parent / "natgrad-fast"
MODULE = [sys.executable, "-m", "natgrad_fast"]


def run(*arguments, command=MODULE, cwd=None):
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=100, cwd=cwd
    )


@pytest.mark.parametrize("command", [[str(SCRIPT)], MODULE], ids=["script", "module"])
def test_version(command):
    if command != MODULE and not SCRIPT.exists():
        pytest.skip("the package is not installed beside this interpreter")
    done = run("--version", command=command)
    assert done.returncode == 0, done.stderr
    assert ng.__version__ in done.stdout


def test_info_shows_the_configuration():
    done = run("info")
    assert done.returncode == 0, done.stderr
    for key, value in ng.show_config().items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        assert re.search(rf"^{key} .*{re.escape(text)}$", done.stdout, re.M), key


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "many"],
        ["demo", "--seed", "-1"],
        ["demo", "--unknown"],
        ["info", "extra"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(arguments, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_demo_trains_compares_and_draws(tmp_path):
    """One thread, since two of them on a busy machine mostly wait for each other."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.png"
    done = run("demo", "--epochs", 16, "--threads", 1, "--output", picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(picture) in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [picture.name]
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [word for word in first_words if word.isdigit()][:4] == ["0", "1", "10", "1"]
    assert "seconds to 0.0001" in done.stdout  # of the function, which comes first
    lines = [line for line in done.stdout.splitlines() if "natgrad" in line.lower() and "%" in line]
    assert float(re.findall(r"([\d.]+) ?%", lines[-1])[0]) >= 97.0, done.stdout


def test_demo_refuses_a_folder_that_is_not_there(tmp_path):
    pytest.importorskip("sklearn")
    done = run("demo", "--epochs", 1, "--output", tmp_path / "missing" / "curves.png")
    assert done.returncode != 0
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr
