"""Files of named arrays and a document: safetensors, read with suspicion, written at once or not.

A file is what the safetensors library writes: the length of a header in 8 bytes, the header as
JSON, the arrays. Its metadata hold the document under "natgrad_fast" and under "digest" what finds
damage: BLAKE2b of the document and of every array.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Array

__all__ = ["read", "write"]

# Longest header in bytes that is looked at.
MOST_HEADER = 64 << 20
ITEM_BYTES = {"F32": 4, "F64": 8}
# What other files begin with.
KINDS = {
    b"PK\x03\x04": "a ZIP archive, such as those of torch.save and numpy.savez",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "an .npy file",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a parquet file",
    b"{": "JSON",
}


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("files need safetensors: pip install 'natgrad_fast[files]'") from None
    return safetensors.numpy


def write(path: str | os.PathLike[str], document: str, arrays: Mapping[str, Array]) -> None:
    """Write a file, all of it or nothing.

    The bytes go to a temporary file in the same folder, which takes the place of the old one when
    they are on the disk. A symbolic link stays one, and what it leads to is replaced.

    Raises
    ------
    OSError
        If the system can not, such as where the disk is full; the old file is as it was.
    """
    metadata = {"natgrad_fast": document, "digest": _digest(document, arrays)}
    library = _library()
    data: bytes = library.save({name: _little(a) for name, a in arrays.items()}, metadata)
    target = os.path.realpath(os.fspath(path))
    if os.path.islink(target):
        raise ValueError(f"path {os.fspath(path)!r} is a link that leads to itself")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(f"path {os.fspath(path)!r} is not a file")
    folder = os.path.dirname(target)
    handle, temporary = tempfile.mkstemp(prefix=f".{Path(target).name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), _mode(target))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def _mode(target: str) -> int:
    """Permissions of the old file, or those that the system gives to a new one."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(os.stat(target).st_mode)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def _little(a: Array) -> Array:
    return np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<"))


def _digest(document: str, arrays: Mapping[str, Array]) -> str:
    found = hashlib.blake2b(document.encode(), digest_size=16)
    for name in sorted(arrays):
        a = _little(arrays[name])
        found.update(f"\n{name} {a.dtype.str} {a.shape}\n".encode())
        found.update(a.tobytes())
    return found.hexdigest()


def read(path: str | os.PathLike[str]) -> tuple[str, dict[str, Array]]:
    """The document and the arrays of a file.

    Nothing is allocated on the word of its header: that is looked at first, and is held against the
    size of the file.

    Raises
    ------
    ValueError
        If it is no such file, or damaged.
    OSError
        If the system can not read it.
    """
    name = os.fspath(path)
    # Without O_NONBLOCK a pipe would be waited for.
    try:
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{name!r} is a link that leads to itself") from None
        raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise ValueError(f"{name!r} is not a file")
    with os.fdopen(handle, "rb") as file:
        size = facts.st_size
        start = file.read(8)
        for magic, kind in KINDS.items():
            if start.startswith(magic) and not _is_plausible(start, size):
                raise ValueError(f"{name!r} is {kind}, not a file of natgrad_fast.save")
        if not _is_plausible(start, size):
            raise ValueError(f"{name!r} is damaged, or not a file of natgrad_fast.save")
        length = int.from_bytes(start, "little")
        header = file.read(length)
        try:
            _check_header(_parse(header), size - 8 - length)
            data = start + header + file.read(size - 8 - length)
            if len(data) != size:
                raise ValueError("it ends before its header says")
            metadata = _parse(header)["__metadata__"]
            arrays = {key: np.array(a) for key, a in _library().load(data).items()}
            if metadata["digest"] != _digest(metadata["natgrad_fast"], arrays):
                raise ValueError("its content is not what was written")
        except ImportError:
            raise
        except MemoryError:
            raise MemoryError(f"{name!r} needs {size:,} bytes of memory") from None
        except Exception as error:
            raise ValueError(
                f"{name!r} is damaged, or not a file of natgrad_fast.save: {error}"
            ) from error
    return metadata["natgrad_fast"], arrays


def _is_plausible(start: bytes, size: int) -> bool:
    """Whether the first eight bytes can be the length of a header."""
    length = int.from_bytes(start, "little")
    return len(start) == 8 and 2 <= length <= min(size - 8, MOST_HEADER)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _parse(text: bytes | str) -> Any:
    """JSON without duplicate names, NaN and Infinity; a ValueError otherwise."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_header(header: Any, num_bytes: int) -> None:
    """Whether the extents of the arrays are, one after the other, the bytes that there are."""
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or set(metadata) != {"natgrad_fast", "digest"}:
        raise ValueError("its header has no metadata of natgrad_fast")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    extents = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"its array {name!r} has no dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in ITEM_BYTES:
            raise ValueError(f"its array {name!r} is of an unknown dtype")
        shape, offsets = entry["shape"], entry["data_offsets"]
        for numbers in (shape, offsets):
            if not isinstance(numbers, list) or not all(map(_is_size, numbers)):
                raise ValueError(f"its array {name!r} has a shape or place that is none")
        if len(shape) > 32 or len(offsets) != 2:
            raise ValueError(f"its array {name!r} has a shape or place that is none")
        wanted = ITEM_BYTES[entry["dtype"]]
        for n in shape:
            wanted *= n
        if offsets[1] - offsets[0] != wanted:
            raise ValueError(f"its array {name!r} has another shape than place")
        extents.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(extents):
        if first != end:
            raise ValueError("its arrays overlap, or leave gaps")
        end = last
    if end != num_bytes:
        raise ValueError(f"its arrays take {end} bytes, and there are {num_bytes}")


def _is_size(n: object) -> bool:
    return type(n) is int and 0 <= n < 2**62
