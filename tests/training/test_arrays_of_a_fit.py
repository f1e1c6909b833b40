"""Data of `fit` in maps of files, data frames and other arrays: not copied, and the same bits."""

import tracemalloc

import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED, same_bits
from natgrad_fast import _arrays

N, D = 600, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D))
Y = np.sin(X[:, :1])


def trained(x, y, loss=SQUARED, dtype="float32", **options):
    outputs = 3 if loss == SOFTMAX else np.shape(y)[1] if np.ndim(y) == 2 else 1
    net = ng.MLP([np.shape(x)[1], 4, outputs], dtype=dtype, seed=0)
    options.setdefault("batch_size", 64)
    ng.NaturalGradient(net, loss, seed=0).fit(x, y, epochs=2, **options)
    return net.params


@pytest.fixture
def mapped(tmp_path):
    def write(array, name="x.npy"):
        np.save(tmp_path / name, array)
        return np.load(tmp_path / name, mmap_mode="r")

    return write


FORMS = {
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x,
    "big-endian": lambda x: x.astype(">f4"),
    "column order": np.asfortranarray,
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "some columns": lambda x: np.c_[x, x][:, :D],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_whatever_the_array(form, in_file, weighted, mapped):
    weight = np.where(np.arange(N) % 5, RNG.random(N) + 0.1, 0.0) if weighted else None
    wanted = trained(X.astype(np.float32).astype(float), Y, sample_weight=weight)
    x = FORMS[form](X.astype(np.float32).astype(float))
    x = mapped(x) if in_file else x
    y = mapped(Y, "y.npy") if in_file else Y
    assert same_bits(trained(x, y, sample_weight=weight), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_and_labels(dtype, mapped):
    x, y = (RNG.random((N, D)) < 0.3).astype(np.uint8), RNG.integers(0, 3, N)
    wanted = trained(x.astype(float), y, SOFTMAX, dtype)
    assert same_bits(trained(mapped(x), mapped(y, "y.npy"), SOFTMAX, dtype), wanted)


def peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("loss", [BERNOULLI, SOFTMAX])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_maps_are_not_copied(kind, loss, mapped):
    """120,000 cases of 100 inputs, as float32 48 MB; and as many targets, or labels of 3."""
    x = (RNG.random((120_000, 100), dtype=np.float32) < 0.1).astype(kind)
    x = mapped(x)
    y = x if loss == BERNOULLI else RNG.integers(0, 3, len(x))
    net = ng.MLP([100, 2, 100 if loss == BERNOULLI else 3], seed=0)
    opt = ng.NaturalGradient(net, loss, seed=0)
    used = peak(lambda: opt.fit(x, y, batch_size=500, callbacks=lambda context: True))
    # a piece of 4 million elements (float32), which Bernoulli's check looks at with two masks
    assert used < 16.8e6 + 2 * 4.2e6 + 4e6


def test_what_is_a_map(mapped):
    x = mapped(X)
    for a in (x, np.asarray(x), x[::2], np.asarray(x)[3:].T, np.asarray(x).view(np.uint8)):
        assert _arrays._is_mapped(a)
    for a in (X, X[1:], np.array(x), np.arange(3)):
        assert not _arrays._is_mapped(a)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_data_frames(batch_size):
    pandas = pytest.importorskip("pandas")
    wanted = trained(X, Y, batch_size=batch_size)
    frame = pandas.DataFrame(X, columns=list("abcde"), index=np.arange(N)[::-1])
    target = pandas.Series(Y[:, 0], index=np.arange(N))
    assert same_bits(trained(frame, target.to_frame(), batch_size=batch_size), wanted)
    assert same_bits(trained(frame, target, batch_size=batch_size), wanted)
    mixed = frame.assign(c=frame["c"].astype("Float64"), d=frame["d"].astype(object))
    with pytest.raises(TypeError, match="column 'd' of X has dtype object"):
        trained(mixed, target, batch_size=batch_size)
    mixed["d"] = frame["d"]
    weight = pandas.Series(np.ones(N))
    assert same_bits(
        trained(mixed, target, batch_size=batch_size, sample_weight=weight),
        trained(X, Y, batch_size=batch_size, sample_weight=np.ones(N)),
    )
    mixed.loc[7, "c"] = pandas.NA
    with pytest.raises(ValueError, match=f"column 'c' of X has a missing value at row {N - 8}"):
        trained(mixed, target, batch_size=batch_size)


def test_frames_in_an_iterable():
    pandas = pytest.importorskip("pandas")
    frame, target = pandas.DataFrame(X), pandas.Series(Y[:, 0])
    nets = []
    for x, y in ((X, Y), (frame, target)):
        net = ng.MLP([D, 4, 1], seed=0)
        batches = ((x[i : i + 50], y[i : i + 50]) for i in range(0, N, 50))
        ng.NaturalGradient(net, SQUARED).fit(batches)
        nets.append(net.params)
    assert same_bits(*nets)


@pytest.mark.parametrize("weighted", [False, True])
def test_places_in_messages_are_those_of_the_caller(weighted, monkeypatch):
    """Read in pieces of ten rows, of which with weights every third is left out."""
    monkeypatch.setattr(_arrays, "_LARGE", 4)
    weight = np.where(np.arange(N) % 3 == 2, 0.0, 1.0) if weighted else None
    place = 502 if weighted else 503
    place += place % 3 == 2
    x, y, labels = X.copy(), Y.copy(), RNG.integers(0, 3, N)
    trained(x, y, sample_weight=weight)
    x[place, 3] = np.nan
    with pytest.raises(ValueError, match=rf"X has NaN .*at row {place}, column 3"):
        trained(x, y, sample_weight=weight)
    y[place] = np.inf
    with pytest.raises(ValueError, match=rf"y has NaN .*at row {place}, column 0"):
        trained(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match=rf"y must be in .*2.0 at row {place}, column 0"):
        trained(X, np.where(np.isinf(y), 2.0, 0.5), BERNOULLI, sample_weight=weight)
    labels[place] = 3
    with pytest.raises(ValueError, match=rf"got 3 at position {place}"):
        trained(X, labels, SOFTMAX, sample_weight=weight)
    p = np.full((N, 3), 1.0 / 3.0)
    p[place] = 0.5
    with pytest.raises(ValueError, match=rf"sum to 1, got 1.5 in row {place}"):
        trained(X, p, SOFTMAX, sample_weight=weight)
    with pytest.raises(ValueError, match=rf"y has shape \({N}, 2\), wanted"):
        trained(X, np.full((N, 2), 0.5), SOFTMAX, sample_weight=weight)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_shapes(batch_size):
    for x, y, message in (
        (X[:, 0], Y, "X has 1 dimensions"),
        (X[:0], Y[:0], "X has no rows"),
        (X, Y[:-1], "y has shape"),
        (X, 3.0, "y has shape"),
    ):
        net = ng.MLP([D, 4, 1], seed=0)
        with pytest.raises(ValueError, match=message):
            ng.NaturalGradient(net, SQUARED).fit(x, y, batch_size=batch_size)
    with pytest.raises(ValueError, match=f"X has {D} columns, the net expects 4"):
        ng.NaturalGradient(ng.MLP([4, 1]), SQUARED).fit(X, Y, batch_size=batch_size)


def test_growth_to_all_cases(mapped):
    sizes = ng.BatchSchedule(100, factor=10.0, every=2)
    assert same_bits(trained(mapped(X), Y, batch_size=sizes), trained(X, Y, batch_size=sizes))
