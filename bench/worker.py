"""`python -m natgrad_fast.bench.worker JOB.json`: rows of one float type and number of threads.

Threads and jax's float64 mode belong to a process, hence one process for each pair. The parent has
bound it to its CPUs. Each result goes to standard output as one line of JSON, as soon as it is
there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .machine import stream_bandwidth, thread_pools
from .rounds import Rounds
from .suites import Row
from .timing import Plan


def main(argv: list[str]) -> int:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    rows = [Row(**row) for row in job["rows"]]
    try:
        say(bandwidth=stream_bandwidth(rows[0].threads))
        rounds = Rounds(Plan(**job["plan"]), job["peers"])
        for row in rows:
            say(begins=str(row))
            start = time.perf_counter()
            say(result={**rounds.run(row), "row_seconds": time.perf_counter() - start})
        say(thread_pools=thread_pools())
    except KeyboardInterrupt:
        return 130
    return 0


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
