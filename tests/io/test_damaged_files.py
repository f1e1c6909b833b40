"""Damaged, foreign and hostile files: a ValueError says what is wrong, nothing is allocated."""

import json
import os
import struct
import threading

import hypothesis
import natgrad_fast as ng
import numpy as np
import pytest
from cases import SQUARED, run_python
from hypothesis import strategies

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes of a small file with every kind of content."""
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2))
    solver = ng.solvers.Kronecker("kfac")
    opt = ng.NaturalGradient(ng.MLP([2, 2, 1], seed=0), SQUARED, solver=solver)
    opt.fit(x, x[:, :1], epochs=3, batch_size=20, callbacks=lambda context: context.step == 3)
    ng.save(path, opt.net, opt)
    return path.read_bytes()


def load(tmp_path, data):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    return ng.load(path)


def refused(tmp_path, data, match="damaged|can not be used"):
    with pytest.raises(ValueError, match=match) as caught:
        load(tmp_path, data)
    assert "damaged" in str(caught.value)  # the name of the file
    return str(caught.value)


def parts(data):
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, rest):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def with_document(data, change):
    """A file whose document was changed by somebody who can make digests."""
    from natgrad_fast.io.tensors import read, write

    def make(path):
        document, arrays = read(path)
        state = json.loads(document)
        change(state)
        write(path, json.dumps(state), arrays)

    return make


def test_good(good, tmp_path):
    net, opt = load(tmp_path, good)
    assert net.num_params == 9
    assert opt.state_dict()["fit"]["num_steps"] == 4


def test_truncated_anywhere(good, tmp_path):
    for length in range(0, len(good), max(1, len(good) // 300)):
        refused(tmp_path, good[:length])
    refused(tmp_path, good + b"\0")


def test_every_byte_that_is_flipped_is_found(good, tmp_path, request):
    """Or is a space between tokens of the header, where it changes nothing."""
    step = 1 if request.config.getoption("--campaign") else 11
    for place in range(0, len(good), step):
        for bit in (0x01, 0x80, 0x20):
            data = bytearray(good)
            data[place] ^= bit
            refused(tmp_path, bytes(data))


FOREIGN = {
    "empty": b"",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95" + bytes(100),
    "npy": b"\x93NUMPY\x01\x00" + bytes(100),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "json": b'{"sizes": [2, 1]}',
    "text": b"weights of a net\n" * 20,
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(name, tmp_path):
    message = refused(tmp_path, FOREIGN[name], match="not a file of natgrad_fast.save")
    assert {"zip": "ZIP", "pickle": "pickle", "npy": ".npy", "hdf5": "HDF5"}.get(
        name, ""
    ) in message


def test_files_of_others_in_the_same_format(tmp_path):
    from safetensors.numpy import save

    refused(tmp_path, save({"w": np.ones((3, 4))}), match="metadata")
    refused(tmp_path, save({"w": np.ones((3, 4))}, {"format": "pt"}), match="metadata")


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


META = {"natgrad_fast": "{}", "digest": ""}
HEADERS = {
    "overlap": {"a": entry(), "b": entry()},
    "gap": {"a": entry(), "b": entry(offsets=(8, 12))},
    "beyond": {"a": entry(shape=(2**40,), offsets=(0, 2**42))},
    "huge": {"a": entry(shape=(2**62, 2**62), offsets=(0, 4))},
    "negative": {"a": entry(shape=(-1,), offsets=(4, 0))},
    "backwards": {"a": entry(offsets=(4, 0))},
    "bytes": {"a": entry(shape=(2,))},
    "dtype": {"a": entry(dtype="F8")},
    "dtype number": {"a": entry(dtype=3)},
    "shape": {"a": entry() | {"shape": "1"}},
    "float": {"a": entry(shape=(1.0,))},
    "flag": {"a": entry(shape=(True,))},
    "three": {"a": entry(offsets=(0, 2, 4))},
    "dimensions": {"a": entry(shape=(1,) * 100)},
    "unknown": {"a": entry() | {"more": 1}},
    "missing": {"a": {"dtype": "F32"}},
    "list": {"a": [1]},
    "digest": {"a": entry()},
}


@pytest.mark.parametrize("name", HEADERS)
def test_lying_headers(name, tmp_path):
    refused(tmp_path, joined({"__metadata__": META, **HEADERS[name]}, bytes(8)[:4]))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"null",
        b"{",
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"natgrad_fast": 3, "digest": ""}}',
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\xff\xfe"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"\0" * 50,
    ],
)
def test_headers_that_are_no_headers(header, tmp_path):
    refused(tmp_path, joined(header, b""))


def test_no_memory_on_the_word_of_a_header(tmp_path):
    """1 GiB of address space beyond what is used: a header of 2^60 bytes, arrays of 2^50."""
    pytest.importorskip("resource")
    lengths = [2**60, 2**63, 2**64 - 1, 2**32, 2**26]
    shapes = {"__metadata__": META, "a": entry(shape=(2**48,), offsets=(0, 2**50))}
    for number, length in enumerate(lengths):
        (tmp_path / str(number)).write_bytes(struct.pack("<Q", length) + b"{}" + bytes(200))
    (tmp_path / "shapes").write_bytes(joined(shapes, bytes(64)))
    run_python(
        f"""
        import os, resource, natgrad_fast as ng, safetensors.numpy
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        for name in sorted(os.listdir({str(tmp_path)!r})):
            try:
                ng.load(os.path.join({str(tmp_path)!r}, name))
            except ValueError as error:
                continue
            raise SystemExit(name)
        """
    )


CHANGES = {
    "newer": lambda s: s.update(format=2, extra=1),
    "format": lambda s: s.update(format="1"),
    "extra": lambda s: s.update(extra=1),
    "sizes": lambda s: s["net"].update(sizes=[2, 2**40, 1]),
    "many sizes": lambda s: s["net"].update(sizes=[2, 2**30, 2**30, 1]),
    "no sizes": lambda s: s["net"].update(sizes=[]),
    "activation": lambda s: s["net"].update(activations=["tahn", "identity"]),
    "activations": lambda s: s["net"].update(activations=[["tanh"], "identity"]),
    "dtype": lambda s: s["net"].update(dtype="float64"),
    "bias": lambda s: s["net"].update(bias=[1, 1]),
    "params": lambda s: s["net"].update(params=[1.0] * 9),
    "array twice": lambda s: s["optimizer"]["state"].update(velocity=s["net"]["params"]),
    "no array": lambda s: s["net"].update(params={"$array": "/none"}),
    "float": lambda s: s["optimizer"]["state"].update(slope={"$float": "1.0"}),
    "nan": lambda s: s["optimizer"]["state"].update(slope={"$float": "nan"}),
    "loss": lambda s: s["optimizer"]["parts"]["loss"].update(name="Loss"),
    "loss code": lambda s: s["optimizer"]["parts"]["loss"].update(name="__import__"),
    "loss options": lambda s: s["optimizer"]["parts"]["loss"].update(options={"df": 3}),
    "solver": lambda s: s["optimizer"]["parts"]["solver"].update(name="Adam"),
    "solver options": lambda s: s["optimizer"]["parts"]["solver"].update(options={"kind": "x"}),
    "solver kind": lambda s: s["optimizer"]["parts"]["solver"]["options"].update(kind="ekfac"),
    "policy": lambda s: s["optimizer"]["parts"]["damping"]["options"].update(factor=-1.0),
    "l2": lambda s: s["optimizer"]["parts"].update(l2=[-1.0, 0.0]),
    "one l2": lambda s: s["optimizer"]["parts"].update(l2=[0.0]),
    "seed": lambda s: s["optimizer"]["parts"].update(seed=-1),
    "evidence": lambda s: s["optimizer"]["parts"].update(evidence={"initial": 1.0, "x": 2}),
    "curvature": lambda s: s["optimizer"]["parts"].update(curvature="adam"),
    "share": lambda s: s["optimizer"]["parts"].update(curvature_share=2.0),
    "step": lambda s: s["optimizer"]["state"].update(step=-1),
    "rng": lambda s: s["optimizer"]["state"]["rng"].update(bit_generator="MT19937"),
    "rng state": lambda s: s["optimizer"]["state"]["rng"]["state"].update(state=2**200),
    "no state": lambda s: s["optimizer"].update(state=None),
    "no parts": lambda s: s["optimizer"].update(parts=[]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_documents_that_do_not_fit(name, good, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(good)
    with_document(good, CHANGES[name])(path)
    with pytest.raises(ValueError, match=r"damaged' can not be used") as caught:
        ng.load(path)
    if name == "newer":
        assert "format 2" in str(caught.value)


LEAVES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**70), 2**70)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(max_size=5),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """Every place in a document."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    if isinstance(value, list):
        for key, item in enumerate(value):
            found += places(item, (*path, key))
    return found


@hypothesis.given(strategies.data())
@hypothesis.settings(
    max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_leaf_of_any_kind(good, tmp_path, data):
    """It is loaded, with the net as it was but for its leaf, or refused: nothing else is raised."""
    path = tmp_path / "damaged"
    path.write_bytes(good)

    def change(state):
        place = data.draw(strategies.sampled_from(places(state)[1:]))
        inner = state
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = data.draw(LEAVES)

    with_document(good, change)(path)
    try:
        ng.load(path)
    except ValueError as error:
        assert "can not be used" in str(error)  # noqa: PT017


def test_what_is_no_file(tmp_path):
    for make, match in ((os.mkdir, None), (getattr(os, "mkfifo", None), "is not a file")):
        if make is None:
            continue
        path = tmp_path / f"x{match is None}"
        make(path)
        found = []

        def read(path=path, found=found):
            try:
                ng.load(path)
            except (ValueError, OSError) as error:
                found.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "it waits"
        assert isinstance(found[0], ValueError)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ValueError, match="link"):
        ng.load(loop)
    with pytest.raises(ValueError, match="link"):
        ng.save(loop, ng.MLP([2, 1]))
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="is not a file"):
            ng.load("/dev/zero")
