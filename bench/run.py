"""Gradient and GGN products of this library beside its peers; `python bench/run.py --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

BLOCK = 16
QUICK_BLOCK_FLOPS = 1e9  # --quick leaves out blocks of nets with more flops than that per vector
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # relative, in the norm
PEAK_SECONDS = 0.01


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 rounds, no blocks of large nets")
    parser.add_argument("--threads", type=int, help="for every contestant (default: all CPUs)")
    parser.add_argument("--dtype", nargs="+", choices=list(TOLERANCE), default=["float32"])
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: the six of the suite")
    parser.add_argument("--json", type=Path, metavar="OUT", help="raw samples and machine facts")
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads must be >= 1, got {args.threads}")
    return args


def limit_threads(num_threads: int | None) -> int:
    """Give every contestant the same CPUs. To be called before numpy and jax are imported."""
    if hasattr(os, "sched_setaffinity"):  # jax has as many threads as the process has CPUs
        cpus = sorted(os.sched_getaffinity(0))
        num_threads = min(num_threads or len(cpus), len(cpus))
        os.sched_setaffinity(0, cpus[:num_threads])
    num_threads = num_threads or os.cpu_count() or 1
    for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return num_threads


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    num_threads = limit_threads(args.threads)
    from cases import CASES, SUITE
    from harness import QUICK, Plan, machine_facts

    unknown = [name for name in args.cases or () if name not in CASES]
    if unknown:
        print(f"unknown cases {', '.join(unknown)}; known: {', '.join(CASES)}", file=sys.stderr)
        return 2
    cases = [CASES[name] for name in args.cases] if args.cases else SUITE
    plan = QUICK if args.quick else Plan()
    facts = machine_facts(num_threads)
    results = []
    for dtype in args.dtype:
        for case in cases:
            for quantity, num_vectors in (("gradient", 1), ("ggn", 1), ("ggn", BLOCK)):
                if args.quick and num_vectors > 1 and case.flops(quantity) > QUICK_BLOCK_FLOPS:
                    continue
                progress(f"{case.name}, {quantity} K={num_vectors}, {dtype}")
                results.append(run(case, dtype, quantity, num_vectors, num_threads, plan))
    progress("")
    print(report(results, facts))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": facts, "results": results}, indent=1))
        print(f"\nwritten: {args.json.resolve()}")
    return int(any(wrong(result) for result in results))


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run(
    case: Any, dtype: str, quantity: str, num_vectors: int, num_threads: int, plan: Any
) -> dict[str, Any]:
    """Check and time one quantity; the record that goes into the JSON file."""
    from harness import measure

    runs, errors = contestants(case, dtype, quantity, num_vectors, num_threads)
    right = {name: f for name, f in runs.items() if errors[name] <= TOLERANCE[dtype]}
    samples, peaks = measure(right, plan, fma_peak(num_threads, dtype))
    return {
        "case": asdict(case),
        "num_params": case.num_params,
        "dtype": dtype,
        "quantity": quantity,
        "num_vectors": num_vectors,
        "flops": case.flops(quantity, num_vectors),
        "errors": errors,
        "seconds": samples,
        "peak_gflops": peaks,
    }


def contestants(
    case: Any, dtype: str, quantity: str, num_vectors: int, num_threads: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """What to time, and the error of each against numpy in float64."""
    import numpy as np
    from harness import relative_error, version
    from peers import Jax, Numpy, Ours

    data = case.data(dtype)
    everyone = {"natgrad_fast": Ours(case, data, num_threads), "numpy": Numpy(case, data)}
    if version("jax"):
        everyone["jax"] = Jax(case, data)
    reference = Numpy(case, data.as_float64())
    if quantity == "gradient":
        want = reference.gradient()()
        runs = {name: one.gradient() for name, one in everyone.items()}
        return runs, {name: relative_error(f(), want) for name, f in runs.items()}
    v = data.vectors(num_vectors)
    # A block is checked through a random combination of its columns: (G V) c = G (V c).
    c = np.float64(1) if v.ndim == 1 else data.rng.standard_normal(num_vectors)
    want = reference.ggn(np.dot(v.astype(np.float64), c))()
    runs = {name: one.ggn(v) for name, one in everyone.items()}
    return runs, {
        name: relative_error(np.dot(np.asarray(f(), np.float64), c), want)
        for name, f in runs.items()
    }


def fma_peak(num_threads: int, dtype: str) -> Callable[[], float] | None:
    """The machine's multiply-add peak of now, in GF/s; None if the build cannot measure it."""
    from natgrad_fast import _core

    if not hasattr(_core, "fma_peak"):
        return None
    factor = {"float32": 1.0, "float64": 0.5}[dtype]
    return lambda: factor * _core.fma_peak(num_threads, PEAK_SECONDS)


def wrong(result: dict[str, Any]) -> bool:
    return not result["errors"]["natgrad_fast"] <= TOLERANCE[result["dtype"]]


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    from harness import markdown

    peers = sorted({name for r in results for name in r["errors"]} - {"natgrad_fast"})
    config = facts["natgrad_fast"]
    lines = [
        f"{facts['cpu']}, {facts['num_threads']} threads; natgrad_fast {config['version']} "
        f"({config['compiler']}, {config['isa']}), "
        + ", ".join(f"{name} {facts['packages'][name]}" for name in peers),
        "",
    ]
    header = ["case", "quantity", "GFLOP", "ms", "GF/s", "of peak", "error"]
    header += [f"{name}: times slower" for name in peers]
    rows = [row(result, peers) for result in results]
    lines += [markdown(header, rows), "", *summary(results, peers)]
    return "\n".join(lines)


def row(result: dict[str, Any], peers: list[str]) -> list[str]:
    """Medians over rounds; ms per call, so for all vectors of a block."""
    import numpy as np
    from harness import median_interval, ratio

    quantity = result["quantity"]
    if result["num_vectors"] > 1:
        quantity += f" K={result['num_vectors']}"
    if result["dtype"] != "float32":
        quantity += f" {result['dtype']}"
    cells = [result["case"]["name"], quantity, f"{result['flops'] / 1e9:.4g}"]
    error = f"{result['errors']['natgrad_fast']:.0e}"
    if wrong(result):
        return [*cells, "WRONG", "-", "-", error, *["-"] * len(peers)]
    ours = result["seconds"]["natgrad_fast"]
    rates = result["flops"] / 1e9 / np.array(ours)
    share = "-"
    if result["peak_gflops"]:
        share = f"{100 * median_interval(rates / result['peak_gflops']).median:.0f} %"
    cells += [f"{1e3 * np.median(ours):.4g}", f"{np.median(rates):.0f}", share, error]
    for name in peers:
        if name not in result["seconds"]:
            cells.append("wrong" if name in result["errors"] else "-")
            continue
        r = ratio(result["seconds"][name], ours)
        cells.append(f"{r.median:.2f} [{r.low:.2f}, {r.high:.2f}]")
    return cells


def summary(results: list[dict[str, Any]], peers: list[str]) -> list[str]:
    """Geometric means over the cases of the median ratios."""
    import numpy as np
    from harness import ratio

    lines = []
    keys = dict.fromkeys((r["quantity"], r["num_vectors"], r["dtype"]) for r in results)
    for key in keys:
        group = [r for r in results if (r["quantity"], r["num_vectors"], r["dtype"]) == key]
        for name in peers:
            both = [r["seconds"] for r in group if {name, "natgrad_fast"} <= r["seconds"].keys()]
            ratios = [ratio(s[name], s["natgrad_fast"]).median for s in both]
            if ratios:
                mean = np.exp(np.mean(np.log(ratios)))
                lines.append(
                    f"{key[0]} K={key[1]} {key[2]}: {name} takes {mean:.2f} times as long "
                    f"(geometric mean of {len(ratios)} cases)"
                )
    return lines


if __name__ == "__main__":
    sys.exit(main())
