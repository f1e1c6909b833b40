"""A net and its optimizer in a file that carries no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import _core
from .._state import StateReader
from ..losses import Loss
from ..model.mlp import MLP
from ..solvers import StepSolver
from ..training import DampingPolicy, NaturalGradient
from .document import join, split
from .parts import describe, describe_net, make_net, make_optimizer
from .tensors import read, write

__all__ = ["load", "save"]

# Raised when files change so that older versions can not read them.
FORMAT = 1


def save(path: str | os.PathLike[str], net: MLP, optimizer: NaturalGradient | None = None) -> None:
    """Write a net, and all that its training needs to go on, to a file.

    Parameters
    ----------
    path : path
        Usually ``.safetensors``, which the file is: arrays, and a JSON document in its metadata. An
        existing file is replaced when the new one is whole and on the disk.
    net : MLP
    optimizer : NaturalGradient, optional
        Of this net. May be saved in the middle of a `fit`, by a callback: see
        `callbacks.Checkpoint`.

    Raises
    ------
    ImportError
        Without safetensors (``pip install 'natgrad_fast[files]'``).
    OSError
        If it can not be written, as where the disk is full; an old file is as it was.
    ValueError, TypeError
        For an optimizer of another net, or a path that is no file.

    Notes
    -----
    The file has no code and no pickle. Loss, solver and damping are stored by name and options; of
    the user's own classes, schedules and preconditioner objects the name alone, and `load` asks for
    them.

    Examples
    --------
    >>> import os, tempfile, numpy as np, natgrad_fast as ng
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> net = ng.MLP([1, 8, 1], dtype="float64", seed=0)
    >>> opt = ng.NaturalGradient(net, "squared_error")
    >>> history = opt.fit(X, np.sin(3 * X), epochs=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.safetensors")
    ...     ng.save(path, net, opt)
    ...     again, other = ng.load(path)
    >>> bool(np.array_equal(again(X), net(X)))
    True
    >>> other.step(X, np.sin(3 * X)).new_loss == opt.step(X, np.sin(3 * X)).new_loss
    True
    """
    if not isinstance(net, MLP):
        raise TypeError(f"net must be an MLP, got {net!r}")
    if optimizer is not None and not isinstance(optimizer, NaturalGradient):
        raise TypeError(f"optimizer must be a NaturalGradient, got {optimizer!r}")
    if optimizer is not None and optimizer.net is not net:
        raise ValueError("optimizer is of another net")
    state: dict[str, Any] = {
        "format": FORMAT,
        "version": _core.__version__,
        "net": describe_net(net),
        "optimizer": None,
    }
    if optimizer is not None:
        state["optimizer"] = {"parts": describe(optimizer), "state": optimizer.state_dict()}
    document, arrays = split(state)
    write(path, document, arrays)


def load(
    path: str | os.PathLike[str],
    *,
    loss: Loss | None = None,
    solver: StepSolver | None = None,
    damping: DampingPolicy | None = None,
    num_threads: int | None = None,
) -> tuple[MLP, NaturalGradient | None]:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path
    loss, solver, damping : optional
        In the place of what the file names; needed where that is of the user's own making.
    num_threads : int, optional
        Of the optimizer.

    Returns
    -------
    net : MLP
    optimizer : NaturalGradient or None
        Goes on bit for bit, in a build for the same instruction set; an unfinished `fit` by
        ``optimizer.fit(..., resume=True)``. None if the file holds a net alone.

    Raises
    ------
    ValueError
        For a file that is damaged, foreign, or of a newer version, and says which. Nothing is
        allocated on the word of its header.
    OSError
        If it can not be read.
    ImportError
        Without safetensors.

    Examples
    --------
    See `save`.
    """
    document, arrays = read(path)
    name = os.fspath(path)
    given: Mapping[str, object] = {"loss": loss, "solver": solver, "damping": damping}
    try:
        state = join(document, arrays)
        if type(state.get("format")) is int and state["format"] > FORMAT:
            raise ValueError(
                f"it was written by natgrad_fast {state.get('version')} in format "
                f"{state['format']}, and {_core.__version__} reads up to {FORMAT}"
            )
        reader = StateReader(state, "file", ("format", "version", "net", "optimizer"))
        reader.integer("format", 1, FORMAT)
        net = make_net(reader["net"])
        if reader["optimizer"] is None:
            return net, None
        inner = StateReader(reader["optimizer"], reader.path("optimizer"), ("parts", "state"))
        optimizer = make_optimizer(net, inner["parts"], given, num_threads)
        optimizer.load_state_dict(inner["state"])
    except ValueError as error:
        raise ValueError(f"{name!r} can not be used: {error}") from error
    return net, optimizer
