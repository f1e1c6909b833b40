"""What callbacks are told, how they end a training, and those that come with the package."""

import io
import json

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SQUARED, same_bits

X = np.random.default_rng(0).standard_normal((30, 2))
Y = np.sin(X[:, :1])
OTHER = X + 0.1, Y


def optimizer(seed=0):
    return ng.NaturalGradient(ng.MLP([2, 5, 1], dtype="float64", seed=seed), SQUARED)


def test_the_context():
    opt, seen = optimizer(), []
    history = opt.fit(X, Y, epochs=3, batch_size=10, validation=OTHER, callbacks=seen.append)
    assert [context.info for context in seen] == history.steps
    assert [context.epoch for context in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [context.is_epoch_end for context in seen] == [False, False, True] * 3
    losses = [context.validation_loss for context in seen]
    assert losses[2::3] == [epoch.validation_loss for epoch in history.epochs]
    assert losses[0] is losses[1] is None
    for context in seen:
        assert context.net is opt.net
        assert context.optimizer is opt
        assert context.history is history
        assert context.loss == context.info.loss
        with pytest.raises(AttributeError):
            _ = context.nothing


@pytest.mark.parametrize("answer", [1, "yes", [0], 12, {"a": 1}, object()])
def test_what_is_returned_by_accident_ends_nothing(answer):
    history = optimizer().fit(X, Y, epochs=3, batch_size=10, callbacks=lambda _: answer)
    assert history.stop_reason == "epochs"
    assert len(history.steps) == 9


@pytest.mark.parametrize("answer", [True, np.bool_(True), np.True_])
def test_true_ends_it(answer):
    history = optimizer().fit(X, Y, epochs=3, batch_size=10, callbacks=lambda _: answer)
    assert history.stop_reason == "callback"
    assert len(history.steps) == 1


def test_stop_training_ends_it_and_all_callbacks_are_called():
    seen = []

    def stop(context):
        if context.step == 3:
            raise ng.callbacks.StopTraining

    history = optimizer().fit(X, Y, epochs=3, batch_size=10, callbacks=[stop, seen.append])
    assert history.stop_reason == "callback"
    assert len(history.steps) == len(seen) == 4
    assert len(history.epochs) == 2


def test_another_exception_comes_out_and_the_step_is_kept():
    opt = optimizer()

    def fail(context):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        opt.fit(X, Y, epochs=3, callbacks=fail)
    assert opt.last_info is not None
    assert opt.state_dict()["step"] == 1


@pytest.mark.parametrize("wrong", [[3], ["log"], [ng.callbacks.Log]])
def test_wrong_callbacks(wrong):
    with pytest.raises(TypeError, match="callbacks must be callable"):
        optimizer().fit(X, Y, callbacks=wrong)


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping(restore):
    opt = optimizer()
    points, losses = [], []

    def watch(context):
        points.append(context.net.params.copy())
        losses.append(context.validation_loss)

    stopping = ng.callbacks.EarlyStopping(patience=4, restore_best=restore)
    held_out = X[:3] + 2.0, Y[:3] - 1.0  # gets worse when the data are learned
    history = opt.fit(X, Y, epochs=300, validation=held_out, callbacks=[watch, stopping])
    assert history.stop_reason == "callback"
    best = int(np.argmin(losses))
    assert stopping.best_epoch == best
    assert stopping.best_loss == min(losses)
    assert len(losses) == best + 1 + 4
    assert same_bits(opt.net.params, points[best if restore else -1])
    # used again it begins anew
    history = opt.fit(X, Y, epochs=2, validation=held_out, callbacks=stopping)
    assert history.stop_reason == "epochs"
    assert stopping.best_epoch in (0, 1)


def test_early_stopping_without_validation():
    stopping = ng.callbacks.EarlyStopping(patience=2, min_delta=1e9)
    history = optimizer().fit(X, Y, epochs=30, callbacks=stopping)
    assert len(history.epochs) == 3
    assert stopping.best_epoch == 0


def test_lines_of_json(tmp_path):
    path = tmp_path / "run.jsonl"
    lines = ng.callbacks.JSONLines(path)
    history = optimizer().fit(X, Y, epochs=2, batch_size=10, validation=OTHER, callbacks=lines)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["loss"] for record in records] == [info.loss for info in history.steps]
    assert [record["epoch"] for record in records] == [0, 0, 0, 1, 1, 1]
    assert records[-1]["validation_loss"] == history.epochs[-1].validation_loss
    assert "validation_loss" not in records[0]
    assert records[0]["solve_status"] == history.steps[0].solve.status.value


def test_log():
    out = io.StringIO()
    log = ng.callbacks.Log(every_steps=2, file=out)
    optimizer().fit(X, Y, epochs=2, batch_size=10, validation=OTHER, callbacks=log)
    lines = out.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["1", "2", "3", "5"]
    assert "validation" in lines[1]


def test_history_as_arrays_frame_and_figure():
    history = optimizer().fit(X, Y, epochs=3, batch_size=10, validation=OTHER)
    arrays = history.to_dict()
    assert {len(values) for values in arrays.values()} == {9}
    assert arrays["loss"].tolist() == [info.loss for info in history.steps]
    assert arrays["solve_iterations"].tolist() == [i.solve.iterations for i in history.steps]
    assert arrays["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (np.diff(arrays["elapsed"]) > 0).all()
    assert ng.History().to_dict() == {}
    pandas = pytest.importorskip("pandas")
    frame = history.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["loss"]) == arrays["loss"].tolist()
    pytest.importorskip("matplotlib")
    for against in ("step", "seconds"):
        figure = history.plot(against)
        assert figure.axes[0].get_ylabel() == "objective"
        drawn = figure.axes[0].lines[0].get_ydata()
        assert drawn.tolist() == arrays["loss"].tolist()
    with pytest.raises(ValueError, match="against"):
        history.plot("epochs")
    with pytest.raises(ValueError, match="no steps"):
        ng.History().plot()
