"""Ways to solve (F + damping I) x = g of this library beside each other; all set-up counted.

python bench/solvers.py [--threads T] [--rounds R] [--problems wide mnist-ae curves-ae]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from run import limit_threads

DAMPING = 1e-2
MULTISHIFT = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="default: all CPUs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    args = parser.parse_args(argv)
    threads = limit_threads(args.threads)
    from harness import Plan, markdown, measure, ratio

    rows, failed = [], False
    for name in args.problems:
        runs, residuals = PROBLEMS[name](threads)
        worst = {run: residual() for run, residual in residuals.items()}
        failed |= any(value > 1.0 for value in worst.values())
        samples, _ = measure(runs, Plan(args.rounds, args.rounds, 0.0))
        reference, *others = runs
        for run in others:
            r = ratio(samples[reference], samples[run])
            times = [1e3 * sorted(samples[key])[len(samples[key]) // 2] for key in (reference, run)]
            rows.append(
                [
                    name,
                    reference,
                    f"{times[0]:.1f}",
                    run,
                    f"{times[1]:.1f}",
                    f"{r.median:.2f} [{r.low:.2f}, {r.high:.2f}]",
                ]
            )
    print(markdown(["problem", "reference", "ms", "method", "ms", "times faster"], rows))
    print("residuals above the tolerance" if failed else "all residuals are within the tolerance")
    return int(failed)


Runs = dict[str, Callable[[], Any]]
Residuals = dict[str, Callable[[], float]]


def problem(
    sizes: tuple[int, ...], num_cases: int, loss: str, threads: int, biases: float = 0.0
) -> tuple[Any, Any, Any, Any, Any]:
    """Net, Fisher matrix, gradient, inputs and targets; a random tanh net in float32.

    Inputs are standard normal for labels, and uniform in [0, 1] for autoencoders.
    """
    import natgrad_fast as ng
    import numpy as np

    rng = np.random.default_rng(0)
    net = ng.MLP(sizes, activation="tanh", dtype="float32", seed=0)
    for bias in net.biases:
        bias[...] = biases * rng.standard_normal(bias.shape)
    if loss == "softmax_cross_entropy":
        x = rng.standard_normal((num_cases, sizes[0]), np.float32)
        y = rng.integers(sizes[-1], size=num_cases)
    else:
        x = y = rng.random((num_cases, sizes[0]), np.float32)
    _, g = ng.value_and_grad(net, loss, x, y, num_threads=threads)
    return net, ng.Fisher(net, loss, x, num_threads=threads), g, x, y


def relative(fisher: Any, g: Any, rtol: float, solve: Callable[[], Any]) -> Callable[[], float]:
    """Residual of a solution, by a product in float32, in units of the tolerance."""
    import numpy as np

    def residual() -> float:
        x = solve().x
        r = g - (fisher @ x + np.float32(DAMPING) * x)
        return float(np.linalg.norm(r) / np.linalg.norm(g) / rtol)

    return residual


def wide(threads: int) -> tuple[Runs, Residuals]:
    """784-2048-2048-10, softmax, N = 128, to residual 1e-6."""
    import natgrad_fast as ng

    _, fisher, g, _, y = problem((784, 2048, 2048, 10), 128, "softmax_cross_entropy", threads)
    exact = {"damping": DAMPING, "rtol": 1e-6}
    runs: Runs = {
        "cg": lambda: ng.cg(fisher, g, max_iter=500, **exact),
        "sample space, g of targets": lambda: ng.sample_space_solve(fisher, g, y=y, **exact),
        "sample space, any g": lambda: ng.sample_space_solve(fisher, g, **exact),
    }
    # twice the tolerance: rounding of the product that checks
    return runs, {name: relative(fisher, g, 2e-6, run) for name, run in runs.items()}


def mnist_ae(threads: int) -> tuple[Runs, Residuals]:
    """784-1000-500-250-30 and back, squared error, N = 512: ten iterations each."""
    import natgrad_fast as ng
    import numpy as np

    sizes = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    _, fisher, g, _, _ = problem(sizes, 512, "squared_error", threads)
    space = ng.SampleSpace(fisher)
    space.prepare()
    w = np.random.default_rng(1).standard_normal(space.shape[0]).astype(np.float32)
    ten = {"damping": 1e-3, "rtol": 0.0, "max_iter": 10}
    return {
        "10 iterations of cg": lambda: ng.cg(fisher, g, **ten),
        "10 of sample-space cg": lambda: ng.cg(space, w, **ten),
    }, {}


def curves_ae(threads: int) -> tuple[Runs, Residuals]:
    """784-400-200-100-50-25-6 and back, Bernoulli, N = 1000, to residual 1e-2; K-FAC made anew."""
    import natgrad_fast as ng

    sizes = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)
    loss = "bernoulli_cross_entropy"
    net, fisher, g, x, _ = problem(sizes, 1000, loss, threads, biases=0.1)
    options = {"damping": DAMPING, "rtol": 1e-2, "max_iter": 500}

    def with_kfac() -> Any:
        kfac = ng.KFAC(net, loss, x, samples=1, damping=DAMPING, num_threads=threads)
        return ng.cg(fisher, g, preconditioner=kfac, **options)

    runs: Runs = {
        "cg": lambda: ng.cg(fisher, g, **options),
        "cg with K-FAC": with_kfac,
    }
    residuals = {name: relative(fisher, g, 1.01e-2, run) for name, run in runs.items()}
    runs["cg, 5 dampings at once"] = lambda: ng.multishift_cg(
        fisher, g, MULTISHIFT, rtol=1e-2, max_iter=500
    )
    return runs, residuals


PROBLEMS = {"wide": wide, "mnist-ae": mnist_ae, "curves-ae": curves_ae}


if __name__ == "__main__":
    sys.exit(main())
