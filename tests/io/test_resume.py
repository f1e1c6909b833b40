"""A `fit` that is left at any step and resumed has the bits of one that was not."""

import json

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SQUARED, same_bits

pytest.importorskip("safetensors")

RNG = np.random.default_rng(1)
X = RNG.standard_normal((90, 3))
Y = np.sin(X[:, :1]) + 0.1 * RNG.standard_normal((90, 1))
BATCHES = [(X[i : i + 18], Y[i : i + 18]) for i in range(0, 90, 18)]
RUNS = {
    "batches": {"batch_size": 20},
    "all": {"batch_size": None},
    "schedule": {"batch_size": ng.BatchSchedule(10, factor=1.5, every=3)},
    "weights": {"batch_size": 25, "sample_weight": np.arange(90) % 3},
    "polyak": {"batch_size": 30, "averaging": "polyak"},
    "exponential": {"batch_size": 30, "averaging": 0.8},
    "stream": {},
}
OPTIONS = {
    "auto": {},
    "cg": {"solver": ng.solvers.CG(preconditioner="kfac"), "damping": 0.1},
    "spring": {"solver": ng.solvers.SampleSpace(momentum=0.5)},
    "trust": {"solver": ng.solvers.Dense(), "damping": ng.TrustRegion},
    "ekfac": {"solver": ng.solvers.Kronecker("ekfac")},
}


def optimizer(dtype="float64", **options):
    if callable(options.get("damping")):
        options["damping"] = options["damping"]()  # policies change while they are used
    return ng.NaturalGradient(ng.MLP([3, 6, 1], dtype=dtype, seed=0), SQUARED, **options)


def fit(opt, run, **options):
    if run == "stream":
        return opt.fit(BATCHES, **(RUNS[run] | options))
    return opt.fit(X, Y, **(RUNS[run] | options))


def whole(opt):
    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tobytes().hex()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)

    return json.dumps(plain({"params": opt.net.params, **opt.state_dict()}))


class Leave:
    """End the training after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, context):
        self.steps -= 1
        return self.steps == 0


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", OPTIONS)
def test_left_after_any_step(run, name, tmp_path):
    other = optimizer(**OPTIONS[name])
    wanted = fit(other, run, epochs=3)
    for steps in range(1, len(wanted.steps)):
        opt = optimizer(**OPTIONS[name])
        history = fit(opt, run, epochs=3, callbacks=Leave(steps))
        assert history.stop_reason == "callback"
        ng.save(tmp_path / "a", opt.net, opt)
        _, opt = ng.load(tmp_path / "a")
        again = fit(opt, run, epochs=3, resume=True)
        assert whole(opt) == whole(other)
        assert len(again.steps) == len(wanted.steps) - steps
        assert again.stop_reason == wanted.stop_reason
        assert again.epochs[-1].epoch == 2
        assert again.epochs[-1].loss == wanted.epochs[-1].loss
        if wanted.averaged_params is not None:
            assert same_bits(again.averaged_params, wanted.averaged_params)


@pytest.mark.slow
def test_growing_batches():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6_000, 60)).astype("float32")
    y = x[:, :1] + 2.0 * rng.standard_normal((6_000, 1)).astype("float32")

    def make():
        net = ng.MLP([60, 300, 300, 1], dtype="float32", seed=0)
        return ng.NaturalGradient(net, SQUARED, l2=1e-4)

    other = make()
    wanted = other.fit(x, y, epochs=6)
    sizes = [info.batch_size for info in wanted.steps]
    grown = next(k for k, size in enumerate(sizes) if size == 705)
    for steps in (grown,):
        opt, state = make(), None
        opt.fit(x, y, epochs=6, callbacks=Leave(steps))
        params, state = opt.net.params.copy(), opt.state_dict()
        opt = make()
        opt.net.params = params
        opt.load_state_dict(state)
        again = opt.fit(x, y, epochs=6, resume=True)
        assert [info.batch_size for info in again.steps] == sizes[steps:]
        assert same_bits(opt.net.params, other.net.params)


def test_early_stopping_goes_on():
    validation = (X[::4], Y[::4] + 0.3)

    def stopping():
        return ng.callbacks.EarlyStopping(patience=3)

    options = {"epochs": 60, "validation": validation}
    other, own = optimizer(), stopping()
    wanted = fit(other, "batches", callbacks=own, **options)
    assert wanted.stop_reason == "callback"
    for steps in (3, 7, 12, len(wanted.steps) - 1):
        opt, seen = optimizer(), stopping()
        fit(opt, "batches", callbacks=[seen, Leave(steps)], **options)
        opt.net.params = opt._progress.params  # what `restore_best` put back is not where it was
        again = stopping()
        fit(opt, "batches", callbacks=[again, lambda context: None], resume=True, **options)
        assert (again.best_loss, again.best_epoch) == (own.best_loss, own.best_epoch)
        assert same_bits(opt.net.params, other.net.params)


def test_a_fit_that_ended_begins_anew():
    opt = optimizer()
    fit(opt, "batches", epochs=2)
    assert opt.state_dict()["fit"] is None
    assert len(fit(opt, "batches", epochs=2, resume=True).steps) == 10
    fit(opt, "batches", epochs=2, callbacks=Leave(3))
    assert opt.state_dict()["fit"]["position"] == 60
    assert len(fit(opt, "batches", epochs=2).steps) == 10  # without `resume`


def test_what_ends_a_fit_and_what_does_not():
    def interrupt(context):
        raise KeyboardInterrupt

    def fail(context):
        raise RuntimeError("mine")

    for options in ({"callbacks": interrupt}, {"time_limit": 0.0}, {"callbacks": fail}):
        opt = optimizer()
        fit(opt, "batches", epochs=1, callbacks=Leave(2))
        try:
            fit(opt, "batches", epochs=2, resume=True, **options)
        except RuntimeError:
            pass
        assert opt.state_dict()["fit"] is not None
        fit(opt, "batches", epochs=2, resume=True)
        assert opt.state_dict()["fit"] is None
        other = optimizer()
        fit(other, "batches", epochs=2)
        assert whole(opt) == whole(other)


def test_other_data_are_refused():
    opt = optimizer()
    fit(opt, "batches", epochs=2, callbacks=Leave(3))
    before = whole(opt)
    with pytest.raises(ValueError, match="X has 80 cases, the training that is resumed 90"):
        opt.fit(X[:80], Y[:80], batch_size=20, epochs=2, resume=True)
    with pytest.raises(ValueError, match="averaging"):
        fit(opt, "batches", epochs=2, resume=True, averaging="polyak")
    with pytest.raises(TypeError, match="resume"):
        fit(opt, "batches", epochs=2, resume="yes")
    assert whole(opt) == before


WRONG = {
    "epoch": -1,
    "position": 1.5,
    "num_steps": None,
    "size": "20",
    "is_sized": 1,
    "order": {"bit_generator": "MT19937"},
    "losses": np.array([np.nan]),
    "convergence": {"losses": [1.0] * 99, "longest": 0.0, "at_rounding": 0},
    "average": {"decay": None, "steps": 1, "params": np.zeros(3)},
    "callbacks": [{"name": 3, "state": {}}],
    "num_cases": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_states_that_do_not_fit(name):
    opt = optimizer()
    fit(opt, "batches", epochs=2, callbacks=Leave(3))
    state, before = opt.state_dict(), whole(opt)
    state["fit"] = {**state["fit"], name: WRONG[name]}
    with pytest.raises(ValueError, match=rf"\['fit'\].*{name}"):
        opt.load_state_dict(state)
    assert whole(opt) == before


class Interrupting(ng.solvers.Dense):
    """Ctrl-C inside of the n-th step."""

    calls = 0
    at = -1

    def direction(self, matrix, g, damping, start):
        Interrupting.calls += 1
        if Interrupting.calls == Interrupting.at:
            raise KeyboardInterrupt
        return super().direction(matrix, g, damping, start)


@pytest.mark.parametrize("run", ["batches", "all", "schedule", "stream"])
def test_ctrl_c_inside_any_step(run, monkeypatch):
    monkeypatch.setattr(Interrupting, "at", -1)
    monkeypatch.setattr(Interrupting, "calls", 0)
    options = {"solver": Interrupting(), "damping": 0.1}
    other = optimizer(**options)
    wanted = fit(other, run, epochs=3)
    assert Interrupting.calls == len(wanted.steps)
    for at in range(1, len(wanted.steps) + 1):
        monkeypatch.setattr(Interrupting, "calls", 0)
        monkeypatch.setattr(Interrupting, "at", at)
        opt = optimizer(**options)
        history = fit(opt, run, epochs=3)
        assert history.stop_reason == "interrupted"
        assert len(history.steps) == at - 1
        again = fit(opt, run, epochs=3, resume=True)
        assert len(again.steps) == len(wanted.steps) - at + 1
        assert whole(opt) == whole(other)


@pytest.mark.parametrize("run", ["batches", "all"])
def test_left_between_the_last_batch_and_the_next_epoch(run, monkeypatch):
    """As an interrupt before the loop has asked for another batch."""
    other = optimizer()
    fit(other, run, epochs=3)
    opt = optimizer()

    def leave(context):
        if context.is_epoch_end and context.epoch == 0:
            loop = context.optimizer._unfinished.__self__
            loop.is_exhausted = False
            raise RuntimeError("left")

    with pytest.raises(RuntimeError, match="left"):
        fit(opt, run, epochs=3, callbacks=leave)
    fit(opt, run, epochs=3, resume=True)
    assert whole(opt) == whole(other)
