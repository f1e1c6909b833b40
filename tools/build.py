"""A wheel from this source tree, with a sign of life for the files that are compiled."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from .requirements import ROOT
from .steps import Steps

# Runs in the environment that has the build requirements. The folder of the build is kept, so that
# only what has changed is compiled again.
HOOK = """
import json, sys
from scikit_build_core.build import build_wheel
build_wheel(sys.argv[1], json.loads(sys.argv[2]))
"""
# A line of ninja, or of make; the name of a batch of files stands for them.
COMPILED = re.compile(r"\[ *(\d+)(?:/(\d+)|%)\] Building CXX object \S*?([^/]+)\.dir/(\S+?)\.o\b")
SECONDS_A_FILE = 4.0  # of one idle CPU, the mean over csrc/
MANY = 10  # files; fewer are not worth a forecast
SHOWN = 40  # lines of a failure


class BuildError(Exception):
    """The compiler, CMake or the backend failed; the message has what they said."""


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_wheel(
    python: Path,
    folder: Path,
    steps: Steps,
    environment: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Build a wheel; the whole output goes to ``build.log`` beside it.

    Parameters
    ----------
    python : Path
        Interpreter of an environment with the build requirements.
    folder : Path
        For the wheel; emptied first.
    steps : Steps
        Writer of the progress.
    environment : mapping, optional
        Variables of the build; by default those of this process.
    settings : mapping, optional
        Configuration of the backend, as ``pip install -C`` takes it.

    Raises
    ------
    BuildError
        With the lines of the first failure.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [python, "-c", HOOK, folder.resolve(), json.dumps(dict(settings or {}))]
    seen: list[str] = []
    with subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        with (folder / "build.log").open("w", encoding="utf-8") as log:
            for line in patiently(process.stdout, steps):
                log.write(line)
                seen.append(line)
                show(line, steps)
    steps.close()
    if process.returncode != 0:
        raise BuildError(f"{failure(seen)}\nThe whole output is in {folder / 'build.log'}")
    (made,) = folder.glob("*.whl")
    return made


def patiently(stream: IO[str], steps: Steps) -> Iterator[str]:
    """The lines of a process; while it says nothing, `steps` does."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            steps.wait()
            continue
        if line is None:
            return
        yield line


def show(line: str, steps: Steps) -> None:
    """Say which file was compiled, and at the first how long all of them take."""
    match = COMPILED.match(line)
    if match is None:
        return
    number, total, module, name = int(match[1]), int(match[2] or 100), match[3], match[4]
    if number == 1 and total >= MANY:
        cpus = num_cpus()
        seconds = 10 * -(-SECONDS_A_FILE * total // (10 * cpus))
        steps.say(
            f"compiling {total if match[2] else ''} files of C++: about {seconds:.0f} s "
            f"on {cpus} idle CPU{'s' * (cpus > 1)}"
        )
    level = module.rpartition("_")[2]
    steps.count(number, total, f"{name.removeprefix('csrc/')} ({level})")


def failure(lines: list[str]) -> str:
    """The lines from the first failure on: of ninja, of the compiler or of CMake; or the last."""
    begins = (i for i, line in enumerate(lines) if line.startswith(("FAILED: ", "CMake Error")))
    says = (i for i, line in enumerate(lines) if " error: " in line)
    first = next(begins, next(says, max(0, len(lines) - SHOWN)))
    return "".join(lines[first : first + SHOWN]).rstrip()
