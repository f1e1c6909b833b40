"""Run the numerically sensitive tests as other processors would: other kernels, instruction sets.

OpenBLAS chooses its kernels, and so the rounding of NumPy's products, by the processor, as this
package chooses its instruction set. `python tools/numerics.py [--only KERNELS] [PYTEST ARGUMENTS]`
runs the tests marked `numerics` under each combination below that can be had here, or under one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import natgrad_fast as ng

# OPENBLAS_CORETYPE, NATGRAD_FAST_ISA, OMP_NUM_THREADS: SSE2, AVX and AVX2 kernels.
COMBINATIONS = (
    ("Prescott", "v2", "1"),
    ("Sandybridge", "v2", "2"),
    ("Haswell", "v3", "1"),
)


def main(arguments: list[str]) -> int:
    """Run pytest once for each combination, or for ``--only KERNELS``; the first failure's code."""
    config = ng.show_config()
    here = {isa.removeprefix("x86-64-") for isa in config["isa_built"]}
    here &= {isa.removeprefix("x86-64-") for isa in config["isa_supported"]}
    parser = argparse.ArgumentParser(prog="tools/numerics.py", allow_abbrev=False)
    parser.add_argument("--only", choices=[kernels for kernels, _, _ in COMBINATIONS])
    args, arguments = parser.parse_known_args(arguments)
    for kernels, isa, threads in COMBINATIONS:
        if args.only not in (None, kernels):
            continue
        changed = {"OPENBLAS_CORETYPE": kernels, "OMP_NUM_THREADS": threads}
        if isa in here:
            changed["NATGRAD_FAST_ISA"] = isa
        shown = " ".join(f"{name}={value}" for name, value in changed.items())
        print(f"\n--- {shown}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numerics and not slow", *arguments]
        code = subprocess.run(command, env=os.environ | changed).returncode
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
