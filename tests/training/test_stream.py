"""fit on an iterable of batches: what is read when, damaged batches, failures, resumed runs."""

import itertools
import math
import pickle

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, same_bits

RNG = np.random.default_rng(0)
X = RNG.standard_normal((240, 3))
Y = np.sin(X[:, :1]) + 0.1 * RNG.standard_normal((240, 1))
BATCHES = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 240, 20)]
NAN = np.where(np.arange(20)[:, None] == 7, np.nan, X[:20])
DAMAGED = {
    "NaN": (NAN, Y[:20]),
    "width": (X[:20, :2], Y[:20]),
    "cases": (X[:20], Y[:19]),
    "weights": (X[:20], Y[:20], -np.ones(20)),
    "empty": (X[:0], Y[:0]),
    "no targets": (X[:20], None),
    "one array": (X[:20],),
    "an array": X[:20],
    "text": "batch",
    "complex": (1j * X[:20], Y[:20]),
}


def optimizer(seed=0, **options):
    net = ng.MLP([3, 6, 1], dtype="float64", seed=seed)
    return ng.NaturalGradient(net, SQUARED, seed=seed, **options)


def whole_state(opt):
    """Apart from where a `fit` was left."""
    return pickle.dumps((opt.net.params, opt.state_dict() | {"fit": None}))


class Fails:
    """Batches, and then something else; one pass counts what was asked for."""

    def __init__(self, batches, error):
        self.batches, self.error = batches, error

    def __iter__(self):
        yield from self.batches
        raise self.error


@pytest.mark.parametrize(
    "make",
    [list, tuple, lambda b: [list(pair) for pair in b], lambda b: [(x, y, None) for x, y in b]],
    ids=["list", "tuple", "lists", "None for weights"],
)
def test_epochs_of_an_iterable(make):
    opt, other = optimizer(), optimizer()
    history = opt.fit(make(BATCHES), epochs=3, validation=(X, Y))
    assert history.stop_reason == "epochs"
    assert len(history.steps) == 36
    assert [info.batch_size for info in history.steps] == [20] * 36
    assert history.epoch_of_step == [0] * 12 + [1] * 12 + [2] * 12
    assert history.epochs[-1].loss < 0.2 * history.epochs[0].loss
    assert history.epochs[-1].validation_loss == ng.value(opt.net, SQUARED, X, Y)
    assert history.skipped == 0
    # one after the other is the same
    for batch in BATCHES * 3:
        other.fit([batch])
    assert same_bits(opt.net.params, other.net.params)


def test_steps_are_those_of_a_stream_without_end():
    """The share of signal in a batch is not corrected for batches drawn without replacement."""
    opt = optimizer()
    history = opt.fit(BATCHES, epochs=4)
    assert {info.solver for info in history.steps} == {"Kronecker"}
    assert all(info.controller is not None for info in history.steps)
    fixed = optimizer(solver=ng.solvers.CG())
    assert {info.solver for info in fixed.fit(BATCHES).steps} == {"CG"}


def test_share_of_signal_without_a_number_of_cases():
    control = ng.training.controller.Controller()
    assert control.with_share(0.25, 20, math.inf).r == 0.25
    assert control.with_share(0.25, 20, 40).r == 0.25 + 0.75 / 2


def test_weights_and_batches_of_the_optimizer():
    weight = np.r_[np.ones(10), np.zeros(10)]
    wild = np.where(weight[:, None] > 0, X[:20], np.nan)
    opt = optimizer(l2=0.01)
    batch = ng.Batch(opt.net, SQUARED, X[:10], Y[:10], l2=0.01)
    for other in (batch, (wild, Y[:20], weight)):
        opt = optimizer(l2=0.01)
        if isinstance(other, ng.Batch):
            other = ng.Batch(opt.net, SQUARED, X[:10], Y[:10], l2=0.01)
        history = opt.fit([other])
        assert history.steps[0].batch_size == 10
        assert history.steps[0].loss == pytest.approx(
            ng.value(optimizer().net, SQUARED, X[:10], Y[:10], l2=0.01), rel=1e-12
        )
    stranger = ng.Batch(ng.MLP([3, 6, 1]), SQUARED, X[:10], Y[:10])
    for wrong in (stranger, ng.Batch(opt.net, SQUARED, X[:10], l2=0.01)):
        with pytest.raises(ValueError, match=r"batch 0 of X: (batch is of|y is missing)"):
            opt.fit([wrong])


def test_sizes_may_vary():
    sizes = np.r_[1, 30, 2, 2, 100, 1, 1, 40, 63]
    ends = np.cumsum(sizes)
    batches = [(X[e - s : e], Y[e - s : e]) for s, e in zip(sizes, ends, strict=True)]
    opt = optimizer()
    history = opt.fit(batches, epochs=20)
    assert [info.batch_size for info in history.steps[:9]] == sizes.tolist()
    assert ng.value(opt.net, SQUARED, X, Y) < 0.5 * ng.value(optimizer().net, SQUARED, X, Y)


@pytest.mark.parametrize("labels", [True, False])
def test_what_comes_is_checked_by_the_loss(labels):
    net = ng.MLP([3, 5, 2], seed=0)
    y = (X[:, 0] > 0).astype(int) if labels else np.full((240, 2), 0.5)
    history = ng.NaturalGradient(net, SOFTMAX).fit([(X[:99], y[:99]), (X[99:], y[99:])])
    assert len(history.steps) == 2


def test_an_iterator_serves_one_epoch():
    opt, other = optimizer(), optimizer()
    history = opt.fit((batch for batch in BATCHES), epochs=5)
    assert history.stop_reason == "exhausted"
    assert len(history.epochs) == 1
    assert other.fit(BATCHES).stop_reason == "epochs"
    assert same_bits(opt.net.params, other.net.params)
    assert optimizer().fit(iter(BATCHES), epochs=1).stop_reason == "epochs"
    unread = iter(BATCHES)
    assert optimizer().fit(unread, epochs=0).steps == []
    assert len(list(unread)) == 12


def test_an_object_that_begins_anew_serves_all_epochs():
    class Loader:
        """Its own iterator, as loaders often are."""

        def __iter__(self):
            self.left = iter(BATCHES)
            return self

        def __next__(self):
            return next(self.left)

    history = optimizer().fit(Loader(), epochs=3)
    assert history.stop_reason == "epochs"
    assert len(history.steps) == 36


def test_no_batches():
    opt = optimizer()
    before = whole_state(opt)
    for empty in ([], (), iter([])):
        with pytest.raises(ValueError, match="X has no batch that can be used"):
            opt.fit(empty)
    assert whole_state(opt) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"X": X}, ValueError, "y is missing"),
        ({"X": X[:, 0]}, ValueError, "y is missing"),
        (
            {"X": (X, Y)},
            ValueError,
            r"batch 0 of X: got a ndarray of 240 elements, wanted \(X, y\)",
        ),
        ({"X": X.tolist()}, ValueError, "batch 0 of X: got|batch 0 of X: X has"),
        ({"X": 3}, TypeError, "iterable of batches, got 3"),
        ({"X": BATCHES, "batch_size": 20}, ValueError, "batch_size is that of the batches"),
        ({"X": BATCHES, "batch_size": None}, ValueError, "batch_size is that of the batches"),
        ({"X": BATCHES, "sample_weight": np.ones(20)}, TypeError, "comes with each batch"),
        ({"X": BATCHES, "on_bad_batch": "drop"}, ValueError, "unknown on_bad_batch"),
        ({"X": BATCHES, "on_bad_batch": True}, TypeError, "on_bad_batch"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    opt = optimizer()
    before = whole_state(opt)
    with pytest.raises(error, match=message):
        opt.fit(**arguments)
    assert whole_state(opt) == before


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_batch_raises(name):
    """All steps before it were taken, and no more; callbacks have seen them."""
    opt, other, seen = optimizer(), optimizer(), []
    other.fit(BATCHES[:5])
    batches = [*BATCHES[:5], DAMAGED[name], *BATCHES[5:]]
    with pytest.raises(ValueError, match="batch 5 of X: "):
        opt.fit(batches, epochs=2, callbacks=seen.append)
    assert [context.step for context in seen] == [0, 1, 2, 3, 4]
    assert not seen[-1].is_epoch_end
    assert seen[-1].history.steps[-1] is opt.last_info
    assert whole_state(opt) == whole_state(other)
    with pytest.raises(ValueError, match="batch 0 of X: "):
        opt.fit(batches[5:])
    assert whole_state(opt) == whole_state(other)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_batch_is_skipped(name):
    opt, other = optimizer(), optimizer()
    other.fit(BATCHES, epochs=2)
    batches = [*BATCHES[:5], DAMAGED[name], *BATCHES[5:], DAMAGED[name]]
    with pytest.warns(UserWarning, match="batch 5 of X: .* It is skipped") as caught:
        history = opt.fit(batches, epochs=2, on_bad_batch="skip")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert history.skipped == 4
    assert len(history.steps) == 24
    skipped = history.to_dict()["skipped"]
    assert skipped.tolist() == [0] * 5 + [1] * 7 + [2] * 5 + [3] * 7
    assert whole_state(opt) == whole_state(other)


def test_all_batches_damaged():
    opt = optimizer()
    before = whole_state(opt)
    with (
        pytest.warns(UserWarning, match="batch 0 of X"),
        pytest.raises(ValueError, match="all 4 of them were skipped"),
    ):
        opt.fit([DAMAGED["NaN"]] * 4, on_bad_batch="skip")
    assert whole_state(opt) == before


def test_damaged_batches_without_end_and_a_time_limit():
    bad = itertools.chain(BATCHES[:3], itertools.repeat(DAMAGED["width"]))
    with pytest.warns(UserWarning, match="batch 3 of X"):
        history = optimizer().fit(bad, on_bad_batch="skip", time_limit=0.3)
    assert history.stop_reason == "time_limit"
    assert len(history.steps) == len(history.epoch_of_step) <= 3
    assert history.skipped >= 1


@pytest.mark.parametrize("error", [LookupError("disk"), MemoryError("disk"), StopAsyncIteration])
def test_an_iterable_that_fails(error):
    opt, other, seen = optimizer(), optimizer(), []
    with pytest.raises(type(error) if isinstance(error, Exception) else error) as caught:
        opt.fit(Fails(BATCHES[:7], error), epochs=3, validation=(X, Y), callbacks=seen.append)
    if isinstance(error, Exception):
        assert caught.value is error
    history = seen[-1].history
    assert [context.info for context in seen] == history.steps
    assert len(history.steps) == len(history.epoch_of_step) == 7
    assert history.steps[-1] is opt.last_info
    assert [epoch.validation_loss for epoch in history.epochs] == [None]
    assert history.to_dict()["epoch"].tolist() == [0] * 7
    other.fit(BATCHES[:7])
    assert whole_state(opt) == whole_state(other)
    opt.fit(BATCHES[7:])
    other.fit(BATCHES[7:])
    assert whole_state(opt) == whole_state(other)


def test_an_iterable_that_fails_at_once():
    opt = optimizer()
    before = whole_state(opt)
    with pytest.raises(LookupError, match="disk"):
        opt.fit(Fails([], LookupError("disk")))
    assert whole_state(opt) == before
    assert opt.last_info is None


def test_a_callback_that_fails_after_the_iterable():
    """Both errors are shown."""

    def callback(context):
        if context.step == 2:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        optimizer().fit(Fails(BATCHES[:3], LookupError("disk")), callbacks=callback)
    assert isinstance(caught.value.__context__, LookupError)


def test_ctrl_c_in_the_iterable():
    opt, seen = optimizer(), []
    history = opt.fit(Fails(BATCHES[:4], KeyboardInterrupt()), callbacks=seen.append)
    assert history.stop_reason == "interrupted"
    assert [context.info for context in seen] == history.steps
    assert len(history.steps) == 4
    assert len(history.epochs) == 1
    history = optimizer().fit(Fails([], KeyboardInterrupt()))
    assert history.stop_reason == "interrupted"
    assert history.steps == history.epochs == []


def test_limits_and_callbacks():
    opt = optimizer()
    endless = itertools.cycle(BATCHES)
    history = opt.fit(endless, callbacks=lambda context: context.step == 30)
    assert history.stop_reason == "callback"
    assert len(history.steps) == 31
    assert len(history.epochs) == 1
    assert optimizer().fit(endless, time_limit=0.05).stop_reason == "time_limit"
    stopping = ng.callbacks.EarlyStopping(patience=2, min_delta=1e9)
    assert len(optimizer().fit(BATCHES, epochs=30, callbacks=stopping).epochs) == 3


def test_one_batch_is_read_ahead():
    """A batch is asked for when the step before it is done: it may depend on the parameters."""
    opt, log = optimizer(), []

    def batches():
        for number, batch in enumerate(BATCHES):
            log.append((number, -1 if opt.last_info is None else opt.last_info.step))
            yield batch

    source = batches()
    opt.fit(source, callbacks=lambda context: context.step == 3)
    assert log == [(0, -1), (1, 0), (2, 1), (3, 2), (4, 3)]
    opt.fit(source)  # the iterator is the caller's: it goes on behind what was read
    assert log[5] == (5, 3)
    assert opt.last_info.step == 10


def test_resumed_between_batches(tmp_path):
    opt, other = optimizer(), optimizer()
    opt.fit(BATCHES, epochs=2)
    other.fit(iter(BATCHES[:5]))
    path = tmp_path / "state"
    path.write_bytes(pickle.dumps((other.net.params, other.state_dict())))
    resumed = optimizer()
    params, state = pickle.loads(path.read_bytes())
    resumed.net.params = params
    resumed.load_state_dict(state)
    resumed.fit(batch for batch in [*BATCHES[5:], *BATCHES])
    assert whole_state(resumed) == whole_state(opt)


def test_same_bits_for_any_number_of_threads():
    nets = []
    for threads in (1, 2, 3):
        opt = optimizer(num_threads=threads)
        opt.fit(BATCHES, epochs=2)
        nets.append(opt.net.params)
    assert same_bits(nets[0], nets[1])
    assert same_bits(nets[0], nets[2])


def test_progress_bar_without_a_length(capsys):
    pytest.importorskip("tqdm")
    optimizer().fit((batch for batch in BATCHES), progress=True)
    assert "12step" in capsys.readouterr().err
    optimizer().fit(BATCHES, progress=True)
    assert "12/12" in capsys.readouterr().err

    class Loader(list):
        """As a loader of an iterable, whose length is an error."""

        def __len__(self):
            raise TypeError("no length")

    optimizer().fit(Loader(BATCHES), progress=True)
    assert "12step" in capsys.readouterr().err
