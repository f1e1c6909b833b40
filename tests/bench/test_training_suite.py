"""The suite `training`: every contestant trains, and the report quotes what it says."""

import json
import math
import os

import numpy as np
import pytest

training = pytest.importorskip("natgrad_fast.bench.training.app")
from natgrad_fast.bench.training import contestants, problems, report  # noqa: E402


def run(name, problem, setting, seconds=0.05):
    job = {
        "problem": problem,
        "contestant": name,
        "setting": setting,
        "seed": 0,
        "seconds": seconds,
        "threads": 1,
    }
    return training.one_run(job)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("natgrad_fast", "sinc"),
        ("natgrad_fast", "diabetes"),
        ("Adam, our gradients", "diabetes"),
        ("Nesterov, our gradients", "cancer-32"),
        ("scipy L-BFGS-B", "diabetes"),
        ("scipy lm", "sinc"),
    ],
)
def test_contestants_train(name, problem):
    contestant = contestants.BY_NAME[name]
    if not contestant.is_there:
        pytest.skip(f"{contestant.needs} is missing")
    found = run(name, problem, contestant.settings[-1])
    assert "failure" not in found, found
    seconds, errors = zip(*found["points"], strict=True)
    assert seconds[0] == 0.0
    assert list(seconds) == sorted(seconds)
    # what is measured at the start is the error of the same weights for all
    p = problems.BY_NAME[problem]
    assert errors[0] == p.error(p.net(0), p.load())
    assert min(errors) < errors[0]


class Steps:
    """In the place of the clock: ends the run after some steps."""

    def __init__(self, count):
        self.left = count

    def __call__(self, sync=None):
        self.left -= 1
        if self.left == 0:
            if sync is not None:
                sync()
            raise contestants.OutOfTime


@pytest.mark.parametrize("problem", ["digits-32", "cancer-32", "diabetes"])
def test_adam_of_torch_takes_the_steps_of_ours(problem):
    pytest.importorskip("torch")
    p = problems.BY_NAME[problem]
    data, found = p.load(), []
    for name in ("Adam, our gradients", "torch Adam"):
        net = p.net(0)
        with pytest.raises(contestants.OutOfTime):
            contestants.BY_NAME[name].run(p, data, net, Steps(20), 1e-3, 0, 1)
        found.append(net.params - p.net(0).params)
    # 20 steps of 1e-3 in float32, where the sign of a small gradient may fall either way
    assert np.abs(found[0] - found[1]).mean() < 1e-2 * np.abs(found[0]).mean()


def test_ours_is_the_worst_seed_and_others_the_best_setting(tmp_path):
    def curve(name, setting, seed, last):
        points = [[0.0, 1.0], [0.5, 2 * last], [1.0, last]]
        return {"problem": "p", "contestant": name, "setting": setting, "seed": seed,
                "points": points}  # fmt: skip

    result = {
        "facts": {"cpu": "a processor"},
        "threads": 2,
        "missing": ["torch Adam"],
        "problems": [{"name": "p", "what": "1-2-1", "goal": 0.3, "seconds": 1.0}],
        "runs": [
            curve("natgrad_fast", None, 0, 0.01),
            curve("natgrad_fast", None, 1, 0.02),
            curve("Adam", 1e-3, 0, 0.5),
            curve("Adam", 1e-2, 0, 0.2),
            curve("Adam", 1e-1, 0, math.nan),
        ],
    }
    rows = {row["contestant"]: row for row in report.rows(result, "p")}
    assert rows["natgrad_fast"]["seed"] == 1
    assert rows["Adam"]["setting"] == 1e-2
    text = report.markdown(json.loads(json.dumps(result)))
    assert "| natgrad_fast (defaults, worst of 2 seeds) | 1 | 1 | 0.04 | 0.02 | 0.50 |" in text
    assert "| Adam (best of 3: 0.01) | 1 | 1 | 0.4 | 0.2 | 1.00 |" in text
    assert "torch Adam" in text
    pytest.importorskip("matplotlib")
    report.figure(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_command_writes_its_report(tmp_path, capsys):
    output = tmp_path / "out"
    environment = dict(os.environ)
    words = ["--problems", "sinc", "--contestants", "natgrad_fast", "--seeds", "1"]
    assert (
        training.main([*words, "--seconds", "0.05", "--threads", "1", "--output", str(output)]) == 0
    )
    assert dict(os.environ) == environment
    result = json.loads(output.with_suffix(".json").read_text())
    assert result["runs"][0]["points"][-1][1] < 1e-3
    assert np.isfinite(result["runs"][0]["points"][-1][0])
    assert "sinc" in capsys.readouterr().out
    again = tmp_path / "again"
    source = str(output.with_suffix(".json"))
    assert training.main(["--from", source, "--output", str(again)]) == 0
    assert again.with_suffix(".md").read_text() == output.with_suffix(".md").read_text()
