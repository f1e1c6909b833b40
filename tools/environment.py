"""Sets up .venv: an interpreter, what a target of the Makefile needs, and the package, built here.

`python -m tools.environment test` does what is not done yet, and says what it does. What was done
is kept in .venv/.state.json, with a digest of all that it depends on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import levels, prerequisites, requirements
from .build import BuildError, build_wheel
from .requirements import ROOT
from .steps import Steps

WITH_PACKAGE = ("demo", "test", "bench")  # extras of the package
GROUPS = ("lint", "release", "dev")  # tools, for which nothing is compiled
SOURCES = ("csrc", "python", "bench", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE",
           "THIRD_PARTY.md")  # fmt: skip
NOT_SOURCES = ("__pycache__", "results")
# Variables that change what is built; NATGRAD_FAST_* are read at run time.
BUILD_VARIABLES = ("NATGRAD_", "SKBUILD_", "CMAKE_", "CXX", "LDFLAGS")
# Modules become bytecode when they are first imported: those that are not need no time.
PIP = ("-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check")
LEVELS = "NATGRAD_ISA_LEVELS"
REPORT = """
import natgrad_fast as ng
config = ng.show_config()
threads = config["default_num_threads"]
print(f"natgrad_fast {config['version']}, {config['isa']}, {threads} thread{'s' * (threads > 1)}",
      "" if config["openmp"] else "(built without OpenMP)")
"""

BACKEND_REQUIREMENTS = """
from scikit_build_core.build import get_requires_for_build_wheel
print(*get_requires_for_build_wheel({}), sep="\\n")
"""


class SetupError(Exception):
    """Something that the user can do something about; the message says what."""


class Environment:
    """A virtual environment and the record of what was done in it."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.python = folder / "bin" / "python"
        self.record = folder / ".state.json"
        self.state: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self.state = json.loads(self.record.read_text(encoding="utf-8"))

    def remember(self, name: str, value: Any) -> None:
        """Write down what is done."""
        self.state[name] = value
        self.record.write_text(json.dumps(self.state, indent=1), encoding="utf-8")

    @property
    def is_whole(self) -> bool:
        """Whether it was made to its end."""
        return "created" in self.state and self.python.exists()

    def create(self) -> None:
        """Make it, unless it is there and whole."""
        if self.is_whole:
            return
        if self.run("-m", "pip", "--version", check=False) != 0:
            self.steps.say(f"creating {self.folder.name} with Python {sys.version.split()[0]}")
            self.state = {}
            base = getattr(sys, "_base_executable", None) or sys.executable
            command = [base, "-m", "venv", "--clear", str(self.folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SetupError(f"{done.stdout}{done.stderr}\n{prerequisites.INSTALL_VENV}")
        self.remember("created", sys.version)

    def run(self, *arguments: str, check: bool = True) -> int:
        """Run its Python, silently; what it says is shown if it fails."""
        if not self.python.exists():
            return 127
        command = [str(self.python), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode != 0:
            raise SetupError(f"{' '.join(command)}\n{done.stdout}")
        return done.returncode

    def install(self, name: str, wanted: Sequence[str]) -> None:
        """Install requirements, unless these were installed under this name."""
        if wanted and self.state.get(name) != list(wanted):
            self.steps.say(f"installing {requirements.names(wanted)}")
            self.run(*PIP, *wanted)
            self.remember(name, list(wanted))

    @contextlib.contextmanager
    def installing(self, name: str, wanted: Sequence[str]) -> Iterator[None]:
        """`install` while the block runs."""
        if self.state.get(name) == list(wanted):
            yield
            return
        self.steps.say(f"installing {requirements.names(wanted)}")
        command = [str(self.python), *PIP, *wanted]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield
            except BaseException:
                process.terminate()
                raise
            output, _ = process.communicate()
        if process.returncode != 0:
            raise SetupError(f"{' '.join(command)}\n{output}")
        self.remember(name, list(wanted))

    def installed_package(self) -> str | None:
        """A mark of the installation of the package that is there now."""
        found = self.folder.glob("lib/python*/site-packages/natgrad_fast-*.dist-info/RECORD")
        return next((f"{path.name} {path.stat().st_mtime_ns}" for path in found), None)

    def has_package(self, key: str) -> bool:
        """Whether the package of this key is what is installed."""
        return self.is_whole and self.state.get("package") == [key, self.installed_package()]

    def install_package(
        self, wheel: Path, key: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Put a wheel in the place of the one that is there, and import it under `variables`."""
        self.run(*PIP, "--no-deps", "--force-reinstall", str(wheel))
        report = subprocess.run(
            [self.python, "-I", "-c", REPORT], env=variables, capture_output=True, text=True
        )
        if report.returncode != 0:
            raise SetupError(f"{wheel.name} was installed and cannot be imported:\n{report.stderr}")
        self.remember("package", [key, self.installed_package()])
        self.steps.say(f"installed {report.stdout.strip()}")


def variables() -> dict[str, str]:
    """The environment of a build: as it is, with the level of this machine if none is named."""
    found = dict(os.environ)
    if not found.get(LEVELS):
        found[LEVELS] = levels.of_this_machine(prerequisites.compiler())
    return found


def digest_of_sources(environment: dict[str, str]) -> str:
    """A digest of every file and variable that a build depends on."""
    digest = hashlib.sha256()
    paths = [path for name in SOURCES for path in (ROOT / name, *sorted((ROOT / name).rglob("*")))]
    for path in paths:
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(p in NOT_SOURCES or p.startswith(".") for p in parts):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    for name in sorted(environment):
        if name.startswith(BUILD_VARIABLES) and not name.startswith("NATGRAD_FAST_"):
            digest.update(f"{name}={environment[name]}\0".encode())
    return digest.hexdigest()


def set_up(purpose: str, folder: Path, wheel: Path | None, steps: Steps) -> None:
    """Bring an environment to where a target needs it."""
    environment = Environment(folder, steps)
    if purpose in GROUPS:
        environment.create()
        environment.install(purpose, requirements.for_group(purpose))
        return
    build_variables = variables()
    if wheel is None:
        key = digest_of_sources(build_variables)
    else:
        key = hashlib.sha256(wheel.read_bytes()).hexdigest()
    is_current = environment.has_package(key)
    if wheel is None and not is_current:
        problems = prerequisites.missing()
        if problems:
            raise SetupError("\n\n".join(problems))
    environment.create()
    if wheel is None and not is_current:
        install_build_requirements(environment)
    with environment.installing(purpose, requirements.for_extra(purpose)):
        if wheel is None and not is_current:
            steps.say(f"building natgrad_fast for {build_variables[LEVELS] or 'all levels'}")
            wheel = build_wheel(
                environment.python, ROOT / "build" / "wheel", steps, build_variables
            )
    if not is_current:
        assert wheel is not None
        environment.install_package(wheel, key)


def install_build_requirements(environment: Environment) -> None:
    """Those of pyproject.toml, and what the backend asks for: cmake and ninja where absent."""
    wanted = requirements.for_build()
    if environment.state.get("build") == wanted:
        return
    environment.install("build requirements", wanted)
    done = subprocess.run(
        [environment.python, "-c", BACKEND_REQUIREMENTS], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SetupError(done.stderr)
    environment.install("backend requirements", [r for r in done.stdout.splitlines() if r])
    environment.remember("build", wanted)


def main(argv: Sequence[str] | None = None) -> int:
    """Set up; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.environment", description=__doc__)
    parser.add_argument("purpose", choices=[*WITH_PACKAGE, *GROUPS])
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="default: %(default)s")
    parser.add_argument("--wheel", type=Path, help="install this one and build nothing")
    args = parser.parse_args(argv)
    if args.wheel is not None and not args.wheel.is_file():
        parser.error(f"--wheel: no such file: {args.wheel}")
    steps = Steps()
    try:
        set_up(args.purpose, args.venv.absolute(), args.wheel, steps)
    except (SetupError, BuildError) as error:
        steps.close()
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        steps.close()
        print("interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
