"""`natgrad-fast train` and `natgrad-fast predict`."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import natgrad_fast as ng
import numpy as np
import pytest
from natgrad_fast.cli.live import EVERY, Live, Records
from natgrad_fast.cli.main import main
from natgrad_fast.cli.run import Run
from natgrad_fast.training.callbacks import TrainingContext
from natgrad_fast.training.history import StepInfo

pytest.importorskip("safetensors")
SMALL = ["--net", "6", "--threads", "1"]
FILES = {"model.safetensors", "best.safetensors", "run.json", "log.jsonl", "curves.png",
         "report.md"}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_figure(request, monkeypatch):
    """Draw, which takes a second, in tests marked so alone."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr(Run, "draw", lambda self: None)


@pytest.fixture
def draws():
    """The test wants the figure."""


@pytest.fixture
def run(capsys):
    """Run a command; exit code, standard output and standard error."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of argparse
            code = end.code
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return code, done.out, done.err

    return run


def write_table(path, kind="words", n=60, seed=0):
    """Two inputs of raw units and a target that follows from them."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(1000, 3000, n), rng.normal(size=n)
    score = (a - 2000) / 500 + b
    target = {
        "words": np.where(score > 0, "high", "low"),
        "numbers": 1e5 + 3e3 * score,
        "counts": rng.poisson(np.exp(score + 2)),
        "shares": 1 / (1 + np.exp(-score)),
    }[kind]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "answer"])
        writer.writerows(zip(a.tolist(), b.tolist(), target.tolist(), strict=True))
    return target


def predictions(text):
    """Columns of CSV by name."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: [row[name] for row in rows] for name in rows[0]}


def records(folder):
    with open(os.path.join(folder, "log.jsonl")) as file:
        return [json.loads(line) for line in file]


def test_words_are_classified_and_predicted(run, folder, draws):
    answer = write_table("t.csv")
    code, out, err = run("train", "t.csv", *SMALL, "--epochs", 15, "--out", "r")
    assert code == 0, err
    assert {path.name for path in (folder / "r").iterdir()} == FILES
    assert (folder / "r/curves.png").read_bytes()[:4] == b"\x89PNG"
    assert out == (folder / "r/report.md").read_text()
    assert "48 rows to train on, 12 to validate" in out
    assert "2 classes (high, low)" in out
    assert "softmax_cross_entropy: 'answer' has words" in err
    code, out, err = run("predict", "r", "t.csv")
    assert (code, err) == (0, "")
    guess = np.array(predictions(out)["answer"])
    assert np.mean(guess == answer) > 0.9
    code, out, _ = run("predict", "r", "t.csv", "--proba", "--output", "-")
    shares = {name: np.array(cells, float) for name, cells in predictions(out).items()}
    assert list(shares) == ["p_high", "p_low"]
    np.testing.assert_allclose(shares["p_high"] + shares["p_low"], 1.0, rtol=1e-6)  # float32
    np.testing.assert_array_equal(shares["p_high"] > shares["p_low"], guess == "high")


def test_numbers_come_back_in_their_own_units(run):
    answer = write_table("t.csv", "numbers")
    code, out, err = run("train", "t.csv", *SMALL, "--epochs", 60, "--out", "r")
    assert code == 0, err
    assert "squared_error" in err
    assert "inputs and targets" in out
    code, out, _ = run("predict", "r", "t.csv", "--output", "p.csv")
    assert (code, out) == (0, "")
    with open("p.csv") as file:
        guess = np.array(predictions(file.read())["answer"], float)
    assert 1 - np.mean((guess - answer) ** 2) / np.var(answer) > 0.99


def test_the_predictions_are_those_of_the_library(run):
    """Scaling, net and units by hand from what the folder holds."""
    write_table("t.csv", "numbers")
    run("train", "t.csv", *SMALL, "--epochs", 3, "--out", "r", "--dtype", "float64")
    with open("r/run.json") as file:
        kept = json.load(file)
    net, opt = ng.load("r/best.safetensors")
    assert opt is None
    table = np.genfromtxt("t.csv", delimiter=",", skip_header=1)
    x = (table[:, :2] - kept["inputs"]["center"]) / kept["inputs"]["width"]
    wanted = net(x)[:, 0] * kept["targets"]["width"][0] + kept["targets"]["center"][0]
    _, out, _ = run("predict", "r", "t.csv")
    np.testing.assert_array_equal(np.array(predictions(out)["answer"], float), wanted)
    # The scale is that of the cases to train on alone.
    assert kept["inputs"]["center"][0] != table[:, 0].mean()


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("words", "bernoulli_cross_entropy"),
        ("shares", "bernoulli_cross_entropy"),
        ("counts", "poisson"),
        ("numbers", "student_t"),
        ("numbers", "gaussian_mean_variance"),
    ],
)
def test_every_loss(run, kind, loss):
    answer = write_table("t.csv", kind)
    code, out, err = run("train", "t.csv", *SMALL, "--epochs", 30, "--loss", loss, "--out", "r")
    assert code == 0, err
    assert f"loss: {loss}" in out
    code, out, _ = run("predict", "r", "t.csv")
    guess = predictions(out)["answer"]
    if kind == "words":
        assert np.mean(np.array(guess) == answer) > 0.9
    else:
        correlation = np.corrcoef(np.array(guess, float), answer)[0, 1]
        assert correlation > 0.9  # of the rates themselves 0.99


@pytest.mark.parametrize("solver", ["cg", "dense", "kfac", "ekfac", "sample-space"])
def test_every_solver(run, solver):
    write_table("t.csv")
    options = ["--solver", solver, "--damping", "0.1", "--batch-size", "16"]
    code, _, err = run("train", "t.csv", *SMALL, *options, "--epochs", 3, "--out", "r")
    assert code == 0, err
    assert {record["batch_size"] for record in records("r")} == {16}
    assert {record["damping"] for record in records("r")[:1]} == {0.1}


@pytest.mark.parametrize("batch_size", ["all", "16"])
@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_a_run_that_is_interrupted_and_resumed_has_the_same_bits(
    run, monkeypatch, batch_size, stop_at
):
    write_table("t.csv")
    options = [*SMALL, "--batch-size", batch_size, "--epochs", 12]
    assert run("train", "t.csv", *options, "--out", "whole")[0] == 0
    keep = Records.__call__

    def interrupt(self, context):
        keep(self, context)
        if context.info.step == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Records, "__call__", interrupt)
        code, out, _ = run("train", "t.csv", *options, "--out", "part")
    assert code == 130
    assert "Ctrl-C" in out
    assert "train --resume part" in out
    assert len(records("part")) == stop_at + 1
    code, _, err = run("train", "--resume", "part", "--threads", 2)
    assert code == 0, err
    for name in ("model.safetensors", "best.safetensors"):
        np.testing.assert_array_equal(
            ng.load(f"part/{name}")[0].params, ng.load(f"whole/{name}")[0].params
        )
    times = ("seconds", "solve_seconds")
    for part, whole in zip(records("part"), records("whole"), strict=True):
        assert {k: v for k, v in part.items() if k not in times} == {
            k: v for k, v in whole.items() if k not in times
        }


def test_records_behind_the_checkpoint_are_taken_once(run, monkeypatch):
    """As after a kill: there are records that the checkpoint knows nothing of."""
    write_table("t.csv")
    options = ["--batch-size", 16, "--epochs", 4, "--out", "r"]
    assert run("train", "t.csv", *SMALL, *options)[0] == 0
    steps = len(records("r"))
    with open("r/log.jsonl", "a") as file:
        file.write(json.dumps({**records("r")[-1], "step": steps}) + '\n{"step": 9')
    assert run("train", "--resume", "r", "--epochs", 6)[0] == 0
    assert [record["step"] for record in records("r")] == list(range(steps * 6 // 4))
    assert sorted({record["epoch"] for record in records("r")}) == list(range(6))


def test_a_run_that_has_ended_says_so_or_goes_further(run):
    write_table("t.csv")
    assert run("train", "t.csv", *SMALL, "--epochs", 3, "--out", "r")[0] == 0
    code, out, err = run("train", "--resume", "r")
    assert (code, out) == (0, "")
    assert "has ended (epochs); --epochs N goes further" in err
    code, _, err = run("train", "--resume", "r", "--epochs", 3)
    assert code == 2
    assert "3 epochs are done" in err
    assert run("train", "--resume", "r", "--epochs", 5)[0] == 0
    assert [record["epoch"] for record in records("r")] == [0, 1, 2, 3, 4]


def test_the_best_net_is_that_of_the_lowest_validation_loss(run):
    """Few cases of noise and a large net: it overfits."""
    rng = np.random.default_rng(0)
    np.savez("t.npz", X=rng.normal(size=(30, 4)), y=rng.normal(size=30))
    code, out, _ = run("train", "t.npz", "--net", "20", "--epochs", 30, "--out", "r", "--l2", 0)
    assert code == 0
    losses = [record["validation_loss"] for record in records("r")]
    assert np.argmin(losses) < len(losses) - 1
    with open("r/run.json") as file:
        assert json.load(file)["best"]["loss"] == min(losses)
    best, last = ng.load("r/best.safetensors")[0], ng.load("r/model.safetensors")[0]
    assert not np.array_equal(best.params, last.params)
    assert "figures are those of `best.safetensors`" in out


def test_patience_ends_the_training(run):
    rng = np.random.default_rng(0)
    np.savez("t.npz", X=rng.normal(size=(30, 4)), y=rng.normal(size=30))
    code, out, _ = run("train", "t.npz", *SMALL, "--patience", 2, "--out", "r")
    assert code == 0
    assert "no better validation loss" in out
    losses = [record["validation_loss"] for record in records("r")]
    assert np.argmin(losses) == len(losses) - 3


def test_a_time_limit(run):
    write_table("t.csv")
    options = ["--batch-size", 8, "--time-limit", 0.2, "--validation", 0]
    code, out, err = run("train", "t.csv", *SMALL, *options)
    assert code == 0, err
    assert "stopped by: the time limit" in out
    assert "0 to validate" in out
    assert os.path.isdir("t-run")
    assert run("train", "t.csv", *SMALL, "--epochs", 1)[0] == 0
    assert os.path.isdir("t-run-2")


def test_the_columns_of_a_prediction_are_found_by_name(run):
    write_table("t.csv")
    run("train", "t.csv", *SMALL, "--epochs", 2, "--out", "r")
    _, wanted, _ = run("predict", "r", "t.csv")
    with open("t.csv") as file:
        rows = list(csv.DictReader(file))
    with open("other.csv", "w") as file:
        writer = csv.DictWriter(file, ["note", "b", "a"], delimiter=";")
        writer.writeheader()
        writer.writerows({"note": "x", "b": row["b"], "a": row["a"]} for row in rows)
    assert run("predict", "r", "other.csv")[:2] == (0, wanted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train", "DATA is missing"),
        ("train nowhere.csv", "nowhere.csv"),
        ("train t.csv --target nothing", "no column 'nothing'"),
        ("train t.csv --net 4,0", "wanted an integer >= 1"),
        ("train t.csv --net a", "wanted an integer >= 1"),
        ("train t.csv --loss mse", "squared_error"),
        ("train t.csv --activation tanhh", "tanh"),
        ("train t.csv --damping much", "wanted a number >= 0"),
        ("train t.csv --damping -1", "wanted a number >= 0"),
        ("train t.csv --l2 nan", "wanted a number >= 0"),
        ("train t.csv --validation 1", "wanted a share"),
        ("train t.csv --time-limit 0", "wanted a number > 0"),
        ("train t.csv --epochs 0", "wanted an integer >= 1"),
        ("train t.csv --batch-size none", "wanted an integer >= 1"),
        ("train t.csv --out t.csv", "is no folder"),
        ("train --resume nowhere", "no folder of a run"),
        ("train t.csv --drop a --drop b", "no column is left"),
        ("predict nowhere t.csv", "no folder of a run"),
        ("predict . t.csv", "no folder of a run"),
        ("predict", "usage"),
    ],
)
def test_wrong_arguments_exit_with_2_and_write_nothing(run, folder, arguments, words):
    write_table("t.csv")
    code, out, err = run(*arguments.split())
    assert code == 2
    assert words in err
    assert out == ""
    assert [path.name for path in folder.iterdir()] == ["t.csv"]


def test_what_a_run_can_not_do(run, folder):
    write_table("t.csv", "numbers")
    assert run("train", "t.csv", *SMALL, "--epochs", 1, "--out", "r")[0] == 0
    (folder / "b.csv").write_text("a,answer\n1,2\n")
    (folder / "m.csv").write_text("a,b\n1,2\n,2\n")
    (folder / "w.csv").write_text("a,b\n1,red\n")
    for arguments, words in (
        ("train t.csv --out r", "--resume r"),
        ("train --resume r --seed 1 --no-scale", "--seed, --scale: fixed by the run"),
        ("train b.csv --resume r --epochs 2", "b.csv"),
        ("predict r b.csv", "no column 'b', on which the net was trained"),
        ("predict r m.csv", "'a': 1 (line 3)"),
        ("predict r w.csv", "'b': 'red' (line 2)"),
        ("predict r t.csv --proba", "numbers, not classes"),
        ("predict r t.csv --output no/where.csv", "--output no/where.csv"),
        ("predict r sinc", "1 columns, the net takes 2 inputs"),
    ):
        code, out, err = run(*arguments.split())
        assert (code, out) == (2, ""), arguments
        assert words in err, arguments
    write_table("t.csv", "numbers", seed=1)
    code, _, err = run("train", "--resume", "r", "--epochs", 2)
    assert code == 2
    assert "not the data" in err


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_folder_is_refused(run, folder, content):
    write_table("t.csv")
    run("train", "t.csv", *SMALL, "--epochs", 1, "--out", "r")
    (folder / "r/run.json").write_text(content)
    code, _, err = run("predict", "r", "t.csv")
    assert code == 2
    assert "run.json" in err


def test_a_damaged_model_is_refused(run, folder):
    write_table("t.csv")
    run("train", "t.csv", *SMALL, "--epochs", 1, "--out", "r")
    for name in ("best.safetensors", "model.safetensors"):
        (folder / "r" / name).write_bytes(b"nothing")
    assert run("predict", "r", "t.csv")[0] == 2
    assert run("train", "--resume", "r", "--epochs", 2)[0] == 2


def info(step, **more):
    return StepInfo(step=step, loss=0.5, damping=0.1, gradient_norm=1.0, seconds=0.1,
                    batch_size=1, solver="x", **more)  # fmt: skip


def context(epoch, step, is_end=True, validation=None):
    nothing = None
    return TrainingContext(info(step), epoch, is_end, validation, nothing, nothing, nothing)


class Terminal(io.StringIO):
    """A text file that is a terminal."""

    def isatty(self):
        return True


def test_lines_off_a_terminal_come_every_few_seconds():
    now = [0.0]
    out = io.StringIO()
    live = Live(out, epochs=10, clock=lambda: now[0])
    for epoch in range(10):
        now[0] += EVERY / 2
        live(context(epoch, epoch, validation=0.25))
    live.end(context(9, 9))
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[1].startswith("epoch 3/10  step 3  loss 0.5  validation 0.25  damping 0.1")
    # 3 of 10 epochs took 3 EVERY / 2
    assert lines[1].endswith(f"about {7 * EVERY / 2:.0f} s left")
    assert "\r" not in out.getvalue()


def test_a_terminal_has_one_line():
    out = Terminal()
    live = Live(out, epochs=3, time_limit=2.0, clock=lambda: 1.0)
    live(context(0, 0))
    live.end(context(0, 0))
    assert out.getvalue().count("\r\033[K") == 2
    assert out.getvalue().count("\n") == 1
    assert "about 0 s left" in out.getvalue()  # one of three epochs took no time


def command(*arguments, **options):
    words = [sys.executable, "-m", "natgrad_fast", *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(Path(ng.__file__).parents[1])}
    return subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, **options
    )


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(run):
    write_table("t.csv")
    words = [*SMALL, "--batch-size", 16, "--patience", 10**6]
    process = command("train", "t.csv", *words, "--epochs", 10**7, "--out", "r")
    deadline = time.monotonic() + 60
    while not (os.path.exists("r/log.jsonl") and os.path.getsize("r/log.jsonl") > 5000):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped by: Ctrl-C" in out
    steps = len(records("r"))
    assert ng.load("r/model.safetensors")[1].state_dict()["step"] == steps
    epochs = records("r")[-1]["epoch"] + 2
    assert run("train", "--resume", "r", "--epochs", epochs)[0] == 0
    assert [record["step"] for record in records("r")] == list(range(len(records("r"))))
    assert len(records("r")) == 3 * epochs
    assert run("train", "t.csv", *words, "--epochs", epochs, "--out", "whole")[0] == 0
    np.testing.assert_array_equal(
        ng.load("r/model.safetensors")[0].params, ng.load("whole/model.safetensors")[0].params
    )


def test_a_pipe_from_training_to_predictions(folder, run):
    """Data from standard input; predictions alone on standard output."""
    write_table("t.csv")
    text = (folder / "t.csv").read_text()
    process = command("train", "-", *SMALL, "--epochs", 2, "--out", "r")
    out, err = process.communicate(text, timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("# Training on -")
    process = command("predict", "r", "-")
    out, err = process.communicate(text, timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == run("predict", "r", "t.csv")[1]
    code, _, err = run("train", "--resume", "r", "--epochs", 3)
    assert code == 2
    assert "give DATA again" in err


def test_a_reader_that_goes_away(folder, run):
    write_table("t.csv", n=40)
    assert run("train", "t.csv", *SMALL, "--epochs", 1, "--out", "r")[0] == 0
    write_table("t.csv", n=20_000)  # more than a pipe holds
    process = command("predict", "r", "t.csv", "--proba")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
    process.stdin.close()
