"""The instruction set that a build for this machine alone needs; wheels for others hold all."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What the kernel calls the features of each x86-64 level beyond the one before. v4 is not built:
# CMakeLists.txt has the reason.
FEATURES = {
    "v2": "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2",
    "v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
}


def highest(cpuinfo: str) -> str:
    """The best level of FEATURES that a processor has by its /proc/cpuinfo; else "baseline"."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = next((set(text.split()) for name, _, text in lines if name.strip() == "flags"), set())
    found = "baseline"
    for level, features in FEATURES.items():
        if not flags >= set(features.split()):
            break
        found = level
    return found


def is_known(compiler: Sequence[str], level: str) -> bool:
    """Whether the compiler can build a level: g++ 11 and clang++ 12 were the first."""
    command = [*compiler, f"-march=x86-64-{level}", "-fsyntax-only", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input="", capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0


def of_this_machine(compiler: Sequence[str]) -> str:
    """A value of NATGRAD_ISA_LEVELS; empty, the choice of CMakeLists.txt, where it is not known."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        level = highest(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return level if level == "baseline" or is_known(compiler, level) else ""
