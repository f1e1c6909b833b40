"""Checks a wheel for others: what is in it, and that it works where nothing else is.

`python -m tools.wheel dist/*.whl`
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .requirements import ROOT

CORE = "natgrad_fast/_core_"
NOT_SHIPPED = (".cpp", ".hpp", ".a", ".pyc", "/README.md")


def complaints(wheel: str, names: Sequence[str]) -> list[str]:
    """What is not as it must be, from the file's name and those of its members."""

    def count(text: str, end: str = "") -> int:
        return sum(text in name and name.endswith(end) for name in names)

    built = {name.removeprefix(CORE).split(".")[0] for name in names if name.startswith(CORE)}
    every_level = built >= {"v2", "v3"} if "linux_x86_64" in wheel else len(built) == 1
    wanted = {
        "the module that knows the processor": count("natgrad_fast/_cpu.", ".so") == 1,
        "the modules of this platform": every_level,
        "py.typed": count("natgrad_fast/py.typed") == 1,
        "the stubs": count("natgrad_fast/_core", ".pyi") >= 1
        and count("natgrad_fast/_cpu.pyi") == 1,
        "LICENSE": count(".dist-info/licenses/LICENSE") == 1,
        "THIRD_PARTY.md": count(".dist-info/licenses/THIRD_PARTY.md") == 1,
        "the benchmarks": count("natgrad_fast/bench/app.py") == 1,
        "nothing but the package and its metadata": all(
            name.startswith("natgrad_fast/") or ".dist-info/" in name for name in names
        ),
        "neither sources of the modules nor tests nor notes": not any(
            name.endswith(NOT_SHIPPED) or "tests/" in name for name in names
        ),
    }
    return [what for what, is_true in wanted.items() if not is_true]


def try_out(wheel: Path, folder: Path) -> None:
    """Install it into an environment of its own and use it with each instruction set."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    scripts = folder.resolve() / "bin"
    pip = ["-m", "pip", "-qq", "--disable-pip-version-check", "install", str(wheel.resolve())]
    smoke = Path(__file__).with_name("smoke.py").resolve()
    for script, *arguments in (
        ("python", *pip),
        ("python", "-I", str(smoke)),
        ("natgrad-fast", "--version"),
        ("natgrad-fast", "info"),
    ):
        subprocess.run([str(scripts / script), *arguments], cwd=folder, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the wheels that are named; the exit code."""
    wheels = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    if not wheels:
        print("no wheel is named", file=sys.stderr)
        return 2
    for wheel in wheels:
        names = zipfile.ZipFile(wheel).namelist()
        print(*names, sep="\n")
        found = complaints(wheel.name, names)
        for what in found:
            print(f"{wheel.name}: not true: {what}", file=sys.stderr)
        if found:
            return 1
        try_out(wheel, ROOT / "build" / "check")
    return 0


if __name__ == "__main__":
    sys.exit(main())
