"""What pip cannot install, asked for before anything is downloaded: a compiler, headers, venv."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

INSTALL_COMPILER = """\
install g++:    apt install g++           (Debian, Ubuntu)
                dnf install gcc-c++       (Fedora, RHEL)
                xcode-select --install    (macOS)
or name one:    CXX=/path/to/clang++ make ..."""
INSTALL_HEADERS = """\
install them:   apt install python3-dev   (Debian, Ubuntu)
                dnf install python3-devel (Fedora, RHEL)"""
INSTALL_VENV = "install it:     apt install python3-venv  (Debian, Ubuntu)"
PROGRAM = "#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n"


def compiler() -> list[str]:
    """The command of the C++ compiler that CMake will take: CXX, or the first that is there."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return next(([path] for path in found if path), [])


def missing(include: Path | None = None) -> list[str]:
    """A message for each thing that is absent or does not work; empty if a build can begin.

    Parameters
    ----------
    include : Path, optional
        Folder of Python.h; by default that of the running Python.
    """
    messages = []
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        messages.append(f"Python's module venv is missing.\n{INSTALL_VENV}")
    folder = include or Path(sysconfig.get_path("include"))
    header = folder / "Python.h"
    has_headers = header.is_file()
    if not has_headers:
        messages.append(f"Python's headers are missing: no {header}.\n{INSTALL_HEADERS}")
    command = compiler()
    if not command:
        messages.append(f"There is no C++ compiler on this machine.\n{INSTALL_COMPILER}")
    elif shutil.which(command[0]) is None:
        messages.append(f"CXX={shlex.join(command)}: there is no such program.\n{INSTALL_COMPILER}")
    elif has_headers:
        problem = complaint(command, folder)
        if problem:
            messages.append(f"{shlex.join(command)} cannot compile:\n{problem}\n{INSTALL_COMPILER}")
    return messages


def complaint(command: list[str], include: Path) -> str:
    """What the compiler says of a C++17 program that includes Python.h; empty if it is right."""
    options = ["-std=c++17", "-fsyntax-only", f"-I{include}", "-x", "c++", "-"]
    done = subprocess.run([*command, *options], input=PROGRAM, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return (done.stderr or done.stdout).strip() or f"no message, exit code {done.returncode}"


def main() -> int:
    """Print what is missing; 1 if there is something."""
    found = missing()
    for message in found:
        print(f"{message}\n", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
