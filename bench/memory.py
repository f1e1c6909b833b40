"""`python -m natgrad_fast.bench.memory ROW.json`: peak memory of this library in a fresh process.

What the process has resident at its peak, above what it had when data and net were there: the
operator, its scratch and the result.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .cases import find
from .own import Own
from .suites import Row
from .tasks import Task

CALLS = 2


def main(argv: list[str]) -> int:
    row = Row(**json.loads(argv[0]))
    case = find(row.case)
    data = case.data(row.dtype)
    own = Own(case, data, row.threads)
    v = data.vectors(case.num_params, row.num_vectors)
    u = data.vectors(case.batch * case.sizes[-1], row.num_vectors)
    task = Task(case, data, row.quantity, row.num_vectors, v, u, None, row.rtol)
    forget_peak()
    before = status("VmRSS")
    entry = getattr(own, row.quantity)(task)
    result: Any = None
    for _ in range(CALLS):
        result = entry.run()
    np.asarray(result)
    after = status("VmHWM")
    peak = None if before is None or after is None else max(0, after - before)
    print(json.dumps({"peak_bytes": peak}))
    return 0


def forget_peak() -> None:
    """VmHWM starts anew, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status(key: str) -> int | None:
    """Bytes of an entry of /proc/self/status.

    Not ru_maxrss: a child process inherits that of its parent.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
