"""Trains a net with the installed package, once for each instruction set that runs here."""

from __future__ import annotations

import os
import subprocess
import sys

ONE = "--one"


def train() -> None:
    """A few steps on a small problem, whose loss must fall."""
    import natgrad_fast as ng
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    y = np.sin(x.sum(axis=1, keepdims=True))
    net = ng.MLP([3, 16, 1], seed=0)
    history = ng.NaturalGradient(net, "squared_error").fit(x, y, epochs=5)
    first, last = history.epochs[0].loss, history.epochs[-1].loss
    if not last < first:
        sys.exit(f"the loss went from {first} to {last}")
    print(f"{ng.__file__}, {ng.show_config()['isa']}: loss {first:.4f} -> {last:.4f}")


def runnable() -> list[str]:
    """The instruction sets that are installed and run on this processor."""
    import natgrad_fast as ng

    config = ng.show_config()
    known = (*config["isa_supported"], "native", "baseline")
    return [isa for isa in config["isa_built"] if isa in known]


if __name__ == "__main__":
    if sys.argv[1:] == [ONE]:
        train()
    else:
        for name in runnable():
            command = [sys.executable, "-I", __file__, ONE]
            subprocess.run(command, env={**os.environ, "NATGRAD_FAST_ISA": name}, check=True)
