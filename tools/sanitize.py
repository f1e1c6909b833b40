"""The tests under the sanitizers of the compiler, in an environment and build folders of their own.

`python -m tools.sanitize [address] [thread] [--pytest ...]`; a finding ends a run with its report.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import environment, prerequisites, requirements
from .build import BuildError, build_wheel
from .requirements import ROOT
from .steps import Steps

VENV = ROOT / ".venv-sanitize"


@dataclass(frozen=True)
class Sanitizer:
    """What is compiled in, preloaded, told to the run-time library and run."""

    argument: str  # of -fsanitize
    libraries: tuple[str, ...]  # loaded before Python, which knows nothing of them
    options: dict[str, str]
    tests: tuple[str, ...]
    canary: str  # a program that has to be found out
    openmp: bool = True


SANITIZERS = {
    # What goes through every kernel and every conversion; ten to twenty times slower than without.
    "address": Sanitizer(
        "address,undefined",
        ("libasan.so", "libstdc++.so"),
        {
            # Python keeps memory to its end; tests ask for more memory than there is.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
        (
            "-m",
            "not slow",
            "tests/model",
            "tests/losses/test_losses.py",
            "tests/operators/test_blocks.py",
            "tests/operators/test_chunks.py",
            "tests/operators/test_composition.py",
            "tests/operators/test_diagonals.py",
            "tests/linear/test_cg.py",
            "tests/linear/test_multishift.py",
            "tests/linear/test_sample_space.py",
            "tests/linear/test_stops.py",
            "tests/preconditioners/test_eigensystems.py",
            "tests/preconditioners/test_factors.py",
            "tests/preconditioners/test_nystrom.py",
            "tests/solvers",
            "tests/training",
            "tests/test_arrays.py",
            "tests/test_shared_objects.py",
            # at this speed Ctrl-C comes before what it is to interrupt
            "-k",
            "not ctrl_c",
        ),
        canary="""
            int main(int count, char**) {
              int* block = new int[4];
              block[count + 3] = 0;
              return block[0];
            }
        """,
    ),
    # libgomp synchronises its threads in ways that the sanitizer does not see, so that every
    # parallel loop would be a finding: this build has none, and the threads are those of Python.
    "thread": Sanitizer(
        "thread",
        ("libtsan.so",),
        {
            "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:die_after_fork=0"
            f":suppressions={ROOT / 'tools' / 'thread_sanitizer.supp'}"
        },
        ("tests/test_shared_objects.py", "tests/test_threads.py"),
        openmp=False,
        canary="""
            #include <thread>
            int shared = 0;
            int main() {
              std::thread other([] { for (int i = 0; i < 1000; ++i) ++shared; });
              for (int i = 0; i < 1000; ++i) ++shared;
              other.join();
              return 0;
            }
        """,
    ),
}


def settings(name: str) -> dict[str, str]:
    """Of the build: optimised a little, with the assertions of Eigen and pybind11, with symbols."""
    sanitizer = SANITIZERS[name]
    return {
        "build-dir": f"build/sanitize-{name}/{{wheel_tag}}",
        "install.strip": "false",
        "cmake.define.NATGRAD_SANITIZE": sanitizer.argument,
        "cmake.define.NATGRAD_OPENMP": "ON" if sanitizer.openmp else "OFF",
        "cmake.define.CMAKE_CXX_FLAGS_RELEASE": "-O1 -gline-tables-only"
        if "clang" in prerequisites.compiler()[0]
        else "-O1 -g1",
    }


def install(name: str, steps: Steps) -> None:
    """Bring the environment to the build for one sanitizer."""
    variables = environment.variables()
    digest = hashlib.sha256(environment.digest_of_sources(variables).encode())
    digest.update(repr(settings(name)).encode())
    key = digest.hexdigest()
    there = environment.Environment(VENV, steps)
    if there.has_package(key):
        return
    there.create()
    environment.install_build_requirements(there)
    there.install("test", requirements.for_extra("test"))
    steps.say(f"building natgrad_fast with -fsanitize={SANITIZERS[name].argument}")
    folder = ROOT / "build" / f"wheel-{name}"
    wheel = build_wheel(there.python, folder, steps, variables, settings(name))
    there.install_package(wheel, key, run_variables(name))


def run_variables(name: str) -> dict[str, str]:
    """The environment of a process that loads a module with a sanitizer in it."""
    sanitizer = SANITIZERS[name]
    compiler = prerequisites.compiler()
    paths = []
    for library in sanitizer.libraries:
        command = [*compiler, f"-print-file-name={library}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    preload = " ".join(path.strip() for path in paths)
    return {**os.environ, **sanitizer.options, "LD_PRELOAD": preload}


def finds_canary(name: str) -> bool:
    """Whether a program with a fault is reported, with the options of the tests."""
    sanitizer = SANITIZERS[name]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "canary"
        flags = [f"-fsanitize={sanitizer.argument}", "-O0", "-g1", "-pthread", "-x", "c++", "-"]
        command = [*prerequisites.compiler(), *flags, "-o", str(program)]
        subprocess.run(command, input=sanitizer.canary, text=True, check=True)
        variables = {k: v for k, v in run_variables(name).items() if k != "LD_PRELOAD"}
        done = subprocess.run(
            without_randomisation(name, [str(program)]),
            env=variables,
            capture_output=True,
            text=True,
        )
    return done.returncode != 0 and "Sanitizer: " in done.stderr


def without_randomisation(name: str, command: list[str]) -> list[str]:
    """A command for the thread sanitizer, whose memory map has no room for much randomisation."""
    setarch = shutil.which("setarch")
    if name == "thread" and setarch:
        return [setarch, "--addr-no-randomize", *command]
    return command


def run(name: str, arguments: Sequence[str]) -> int:
    """The tests; the exit code of pytest."""
    command = [str(VENV / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += arguments or SANITIZERS[name].tests
    command = without_randomisation(name, command)
    return subprocess.run(command, cwd=ROOT, env=run_variables(name)).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sanitizers that are named, or all; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.sanitize", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SANITIZERS)}")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[],
                        help="arguments in the place of the usual ones")  # fmt: skip
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(SANITIZERS)
    if unknown:
        parser.error(f"unknown sanitizer {', '.join(sorted(unknown))}")
    steps = Steps()
    failed = []
    for name in args.names or SANITIZERS:
        try:
            install(name, steps)
        except (environment.SetupError, BuildError) as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        if not finds_canary(name):
            print(f"\nthe {name} sanitizer does not find a fault that is there", file=sys.stderr)
            return 1
        steps.say(f"{name}: finds the fault of a small program; tests")
        if run(name, args.pytest) != 0:
            failed.append(name)
        steps.say(f"{name}: {'FAILED' if name in failed else 'nothing found'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
