"""What an optimizer is made of, as names and options, and back."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from .. import losses, solvers
from .._state import StateReader, inside
from .._typing import State
from ..losses import Loss
from ..model.mlp import MLP
from ..solvers import StepSolver
from ..training import (
    BayesianRegularization,
    DampingPolicy,
    LevenbergMarquardt,
    NaturalGradient,
    RadiusSearch,
    Tikhonov,
    TrustRegion,
)

__all__ = ["describe", "describe_net", "make_net", "make_optimizer"]

POLICIES = {one.__name__: one for one in (LevenbergMarquardt, RadiusSearch, Tikhonov, TrustRegion)}
SOLVERS = {name: getattr(solvers, name) for name in solvers.__all__ if name != "StepSolver"}
LOSSES = {
    name: one
    for name, one in vars(losses).items()
    if isinstance(one, type) and issubclass(one, Loss) and one is not Loss
}
NAMES = {
    "is_automatic",
    "loss",
    "curvature",
    "solver",
    "damping",
    "momentum",
    "l2",
    "evidence",
    "curvature_share",
    "line_search",
    "seed",
}
# Where an option is kept by another name than that of its argument.
KEPT_AS = {"value_or_schedule": "_constant", "radius": "initial"}
PLAIN = (bool, int, float, str, type(None))


def describe_net(net: MLP) -> State:
    """Architecture and parameters."""
    return {
        "sizes": net.sizes,
        "activations": net.activations,
        "bias": net.layout[1],
        "dtype": str(net.dtype),
        "params": net.params,
    }


def make_net(state: object) -> MLP:
    """The net of `describe_net`; a ValueError names what does not fit."""
    reader = StateReader(state, "net", ("sizes", "activations", "bias", "dtype", "params"))
    sizes, bias = reader["sizes"], reader["bias"]
    if not isinstance(sizes, list) or len(sizes) < 2:
        raise reader.refuse("sizes", "a list of widths")
    if not all(type(n) is int and 1 <= n < 2**31 for n in sizes):
        raise reader.refuse("sizes", "a list of widths")
    num_layers = len(sizes) - 1
    if not isinstance(bias, list) or len(bias) != num_layers:
        raise reader.refuse("bias", f"{num_layers} flags")
    if not all(isinstance(flag, bool) for flag in bias):
        raise reader.refuse("bias", f"{num_layers} flags")
    names = reader["activations"]
    if not isinstance(names, list) or len(names) != num_layers:
        raise reader.refuse("activations", f"{num_layers} names")
    if reader["dtype"] not in ("float32", "float64"):
        raise reader.refuse("dtype", "'float32' or 'float64'")
    # Before a net of these sizes takes memory.
    num_params = sum(
        d * (n + int(flag)) for n, d, flag in zip(sizes[:-1], sizes[1:], bias, strict=True)
    )
    params = reader["params"]
    if getattr(params, "shape", None) != (num_params,):
        raise reader.refuse("params", f"an array ({num_params},)")
    with inside("net"):
        net = MLP(
            sizes,
            names[:-1],
            output_activation=names[-1],
            bias=bias,
            dtype=reader["dtype"],
            init="zeros",
        )
    net.params = reader.array("params", (num_params,), net.dtype)
    return net


def describe(optimizer: NaturalGradient) -> State:
    """Names and options of an optimizer's parts; what is the user's own has its name alone."""
    automatic = optimizer._is_automatic
    evidence = optimizer._evidence
    return {
        "is_automatic": automatic,
        "loss": _loss(optimizer.loss),
        "curvature": optimizer.curvature,
        "solver": None if automatic else _solver(optimizer.solver),
        "damping": _policy(optimizer.damping_policy),
        "momentum": optimizer.momentum,
        "l2": list(optimizer._given_l2),
        "evidence": None if evidence is None else dataclasses.asdict(evidence),
        "curvature_share": optimizer.curvature_share,
        "line_search": optimizer._exact.line_search,
        "seed": optimizer._seed,
    }


def _named(part: object, options: Mapping[str, Any] | None) -> State:
    """Options of None, or any that is not plain: only the user can make it again."""
    if options is None or not all(isinstance(value, PLAIN) for value in options.values()):
        return {"name": type(part).__name__, "options": None}
    return {"name": type(part).__name__, "options": dict(options)}


def _loss(loss: Loss) -> State:
    return _named(
        loss, loss._parameters() if LOSSES.get(type(loss).__name__) is type(loss) else None
    )


def _solver(solver: StepSolver) -> State:
    if SOLVERS.get(type(solver).__name__) is not type(solver):
        return _named(solver, None)
    names = inspect.signature(type(solver)).parameters
    return _named(solver, {name: getattr(solver, name) for name in names})


def _policy(policy: DampingPolicy) -> State:
    if POLICIES.get(type(policy).__name__) is not type(policy):
        return _named(policy, None)
    names = inspect.signature(type(policy)).parameters
    options = {name: getattr(policy, KEPT_AS.get(name, name)) for name in names}
    if isinstance(policy, Tikhonov) and options["value_or_schedule"] is None:
        return _named(policy, None)  # a schedule
    if isinstance(policy, LevenbergMarquardt) and options["initial"] is None:
        options["initial"] = "calibrated"
    return _named(policy, options)


def make_optimizer(
    net: MLP,
    state: object,
    given: Mapping[str, object],
    num_threads: int | None,
) -> NaturalGradient:
    """The optimizer of `describe`, with the user's own parts from `given`."""
    reader = StateReader(state, "optimizer", NAMES)
    l2: object = tuple(reader.numbers("l2", 2))
    if reader["evidence"] is not None:
        with inside(reader.path("evidence")):
            l2 = BayesianRegularization(**reader["evidence"])
    loss = _make(reader, "loss", LOSSES, given)
    damping = _make(reader, "damping", POLICIES, given)
    is_automatic = reader.flag("is_automatic")
    solver: Any = "auto" if is_automatic else _make(reader, "solver", SOLVERS, given)
    with inside("optimizer"):
        optimizer = NaturalGradient(
            net,
            loss,
            curvature=reader["curvature"],
            solver=solver,
            damping="auto" if is_automatic else damping,
            momentum="auto" if reader.flag("momentum") else False,
            l2=l2,  # type: ignore[arg-type]
            curvature_share=reader.number("curvature_share"),
            line_search=reader.flag("line_search"),
            seed=reader.integer("seed", maximum=2**128),
            num_threads=num_threads,
        )
        if is_automatic:
            optimizer.damping_policy = damping
    return optimizer


def _make(
    reader: StateReader, key: str, known: Mapping[str, Any], given: Mapping[str, object]
) -> Any:
    """A part by its name and options; the user's own is asked for."""
    inner = StateReader(reader[key], reader.path(key), ("name", "options"))
    if given.get(key) is not None:
        return given[key]
    if inner["options"] is None:
        raise ValueError(
            f"the {key} {inner['name']!r} is no plain part of natgrad_fast: give it, load(path, "
            f"{key}=...)"
        )
    if not isinstance(inner["name"], str) or inner["name"] not in known:
        raise inner.refuse("name", f"one of {', '.join(known)}")
    with inside(reader.path(key)):
        return known[inner["name"]](**inner["options"])
