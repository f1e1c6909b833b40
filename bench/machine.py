"""Where the numbers come from: facts about the machine, its threads and its roofs."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

PEAK_SECONDS = 0.004
PEAK_TRIES = 3  # the best counts: a thread that is put off for a moment halves it
STREAM_BYTES = 2**27  # per array, well above any cache
COMMIT_DIGITS = 12
PACKAGES = ("numpy", "scipy", "jax", "jaxlib", "torch", "curvlinops-for-pytorch")


# OpenBLAS' threads spin for 2^26 clock ticks after a product, on the cores of the next contestant;
# 2^20 (about 0.3 ms) span the pauses within a call.
OPENBLAS_SPIN = {"OPENBLAS_THREAD_TIMEOUT": "20"}


def available_cpus() -> list[int] | None:
    """CPUs that this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def num_cpus() -> int:
    return len(available_cpus() or range(os.cpu_count() or 1))


def thread_environment(num_threads: int) -> dict[str, str]:
    """Environment of a process in which every contestant has this number of threads."""
    names = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(num_threads) for name in names},
        **OPENBLAS_SPIN,
        "JAX_PLATFORMS": "cpu",
    }


@contextlib.contextmanager
def bound_to(num_threads: int) -> Iterator[None]:
    """Within it, processes are started on that many CPUs: jax has a thread for each CPU."""
    cpus = available_cpus()
    if cpus is None:
        yield
        return
    os.sched_setaffinity(0, cpus[:num_threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def peak_meter(num_threads: int, dtype: str) -> Callable[[], float]:
    """The multiply-add peak of now, in GF/s: a loop on registers; float64 has half the lanes."""
    from natgrad_fast.config import fma_peak

    factor = {"float32": 1.0, "float64": 0.5}[dtype]
    tries = range(PEAK_TRIES)
    return lambda: factor * max(fma_peak(num_threads, PEAK_SECONDS) for _ in tries)


def stream_bandwidth(num_threads: int) -> float:
    """Bytes per second of a copy between arrays beyond the caches, read and written, best of 5."""
    source = np.ones(STREAM_BYTES // 8)
    target = np.empty_like(source)
    parts = list(
        zip(np.array_split(source, num_threads), np.array_split(target, num_threads), strict=True)
    )
    times = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(6):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))
            times.append(time.perf_counter() - start)
    return 2 * STREAM_BYTES / min(times[1:])  # the first touches the pages


def facts() -> dict[str, Any]:
    """What a reader of the numbers needs to know about the machine."""
    import natgrad_fast as ng

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "affinity": available_cpus(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "natgrad_fast": {**ng.show_config(), "commit": commit(Path(ng.__file__))},
    }


def commit(package: Path) -> str | None:
    """The commit of an installation: of pip's record, or of the checkout that it lies in.

    "-dirty" behind it says that the checkout has changes that are in no commit.
    """
    with contextlib.suppress(ValueError, OSError, importlib.metadata.PackageNotFoundError):
        record = importlib.metadata.distribution("natgrad_fast").read_text("direct_url.json")
        found = json.loads(record or "{}").get("vcs_info", {}).get("commit_id")
        if found:
            return str(found)[:COMMIT_DIGITS]
    for folder in package.resolve().parents:
        if (folder / ".git").exists() and (folder / "csrc").is_dir():
            return described(folder)
    return None


def described(checkout: Path) -> str | None:
    """A commit as `git describe` has it; None where there is no git, or it refuses."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            [*command, f"--abbrev={COMMIT_DIGITS}"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def thread_pools() -> list[dict[str, Any]] | None:
    """The thread pools of the loaded libraries, if threadpoolctl is installed."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    keys = ("internal_api", "version", "num_threads")
    return [{key: pool.get(key) for key in keys} for pool in threadpool_info()]


def cpu_model() -> str:
    for line in (read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
