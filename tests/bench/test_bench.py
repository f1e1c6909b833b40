"""The benchmark harness: what it counts, refuses, concludes and writes. Nothing here is timed."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from natgrad_fast.bench import app, cases, checks, comparison, counts, intervals, processes, rounds
from natgrad_fast.bench import suites as suites_module
from natgrad_fast.bench.numpy_peer import Numpy
from natgrad_fast.bench.own import Own
from natgrad_fast.bench.results import Result, Run, read_run
from natgrad_fast.bench.suites import Row
from natgrad_fast.bench.tasks import Entry, Task
from natgrad_fast.bench.timing import Plan

ONE_ROUND = Plan(min_rounds=1, max_rounds=1, sample_seconds=0.0, settle_seconds=0.0)

# ------------------------------------------------------------------------------------------------
# Statistics and verdicts, on samples that are made up


def samples(median, spread=0.02, seed=0, number=25):
    return (median * np.exp(spread * np.random.default_rng(seed).standard_normal(number))).tolist()


def test_median_interval_holds_the_median_and_shrinks():
    few, many = (intervals.median_interval(samples(3.0, 0.1, 1, n)) for n in (15, 400))
    for interval in (few, many):
        assert interval.low <= interval.median <= interval.high
        assert interval.low < 3.0 < interval.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_interval_covers_the_true_median_about_as_often_as_it_says():
    def covers(seed):
        interval = intervals.median_interval(samples(1.0, 0.2, seed))
        return interval.low <= 1.0 <= interval.high

    # 100 trials of 0.95 have a standard deviation of 0.022; the bootstrap of a median is not exact
    assert np.mean([covers(seed) for seed in range(100)]) > 0.85


def test_ratio_is_paired():
    clock = np.random.default_rng(0).uniform(1, 3, 20)  # a machine that changes its speed
    ratio = intervals.ratio(1.5 * clock, clock)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_slope_and_geometric_mean():
    assert intervals.slope([1e3, 1e4, 1e5], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert intervals.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def made_up_run(ours=1e-3, numpy=2e-3, clock=1.0, seed=0, version="2.0", spread=0.02):
    """A run of one row on a machine whose every time is multiplied by `clock`."""
    record = {
        **Row("products", "tiny", "ggn", threads=2).record(),
        "net": cases.find("tiny").record(),
        "flops": 1e6,
        "bytes": 1e5,
        "errors": {"natgrad_fast": 1e-7, "numpy": 1e-7},
        "allowed": 1e-5,
        "iterations": {},
        "notes": {},
        "first_seconds": {"natgrad_fast": 0.1},
        "seconds": {
            "natgrad_fast": samples(clock * ours, spread, 3 * seed),
            "numpy": samples(clock * numpy, spread, 3 * seed + 1),
        },
        "peak_gflops": samples(100 / clock, spread, 3 * seed + 2),
    }
    return Run({"packages": {"numpy": version}}, [record])


def verdict(old, new):
    (change,) = comparison.compare(old, new)
    return change.verdict


def test_known_regression_and_improvement_are_found():
    old = made_up_run(seed=1)
    assert verdict(old, made_up_run(ours=1.2e-3, seed=2)) == "regression"
    assert verdict(old, made_up_run(ours=0.8e-3, seed=2)) == "improvement"


@pytest.mark.parametrize("clock", [1.0, 1.4, 0.7])
def test_noise_and_other_clocks_are_no_regression(clock):
    verdicts = [
        verdict(made_up_run(seed=2 * s), made_up_run(clock=clock, seed=2 * s + 1, spread=0.06))
        for s in range(20)
    ]
    assert set(verdicts) == {"noise"}


def test_regression_of_a_slow_clock_is_found():
    assert verdict(made_up_run(), made_up_run(ours=1.25e-3, clock=0.7, seed=1)) == "regression"


def test_rounds_of_a_busy_machine_say_nothing():
    old, new = made_up_run(), made_up_run(seed=1)
    record = new.results[0].record
    for index in range(20):  # of 25 rounds; another process had one of the two cores
        record["peak_gflops"][index] /= 2
        record["seconds"]["natgrad_fast"][index] *= 10
    (change,) = comparison.compare(old, new)
    assert change.verdict == "noise"
    assert change.quotient.median == pytest.approx(1.0, abs=0.05)  # by the five rounds left
    record["peak_gflops"][20] /= 2
    (change,) = comparison.compare(old, new)
    assert (change.verdict, change.yardstick) == ("noise", comparison.BUSY)


def test_small_change_is_noise_however_sharp():
    old, new = made_up_run(spread=1e-4), made_up_run(ours=1.02e-3, seed=1, spread=1e-4)
    assert verdict(old, new) == "noise"


def test_peer_of_another_version_is_no_yardstick():
    old, new = made_up_run(), made_up_run(numpy=1e-3, seed=1, version="3.0")
    (change,) = comparison.compare(old, new)
    assert (change.verdict, change.yardstick) == ("noise", comparison.PEAK)
    for run in (old, new):
        run.results[0].record["peak_gflops"] = []
    assert comparison.compare(old, new) == []


def test_rows_of_one_run_only_are_not_compared():
    other = made_up_run()
    other.results[0] = Result({**other.results[0].record, "num_vectors": 4})
    assert comparison.compare(made_up_run(), other) == []


# ------------------------------------------------------------------------------------------------
# Flops and bytes, against the matrix products that numpy carries out


class Counting(np.ndarray):
    """An array whose matrix products are counted."""

    flops = numbers = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(x) for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * plain[0].shape[-1]
            Counting.numbers += plain[0].size + plain[1].size + result.size
        return result.view(Counting)


def counted(quantity, num_vectors):
    case = cases.Case("counted", (5, 7, 4, 3), 11)
    data = case.data("float64")
    data = cases.Data(*(a.view(Counting) for a in (data.x, data.y, data.params)), data.rng)
    draws = data.rng.standard_normal((11, 3)).view(Counting)
    v, u = data.vectors(case.num_params, num_vectors), data.vectors(33, num_vectors)
    task = Task(case, data, quantity, num_vectors, v.view(Counting), u.view(Counting), draws)
    entry = getattr(Numpy(case, data), quantity)(task)
    Counting.flops = Counting.numbers = 0
    entry.run()
    want = (case.sizes, case.batch, quantity, num_vectors)
    return counts.flops(*want), counts.bytes_moved(*want, itemsize=8)


# A gradient has no vectors.
@pytest.mark.parametrize(
    ("quantity", "num_vectors"),
    [(q, k) for q in counts.PRODUCTS for k in (1, 3) if (q, k) != ("gradient", 3)],
)
def test_products_have_the_flops_and_bytes_of_the_formulas(quantity, num_vectors):
    flops, moved = counted(quantity, num_vectors)
    assert flops == Counting.flops
    assert moved == 8 * Counting.numbers


def test_kfac_has_the_flops_of_the_formulas():
    flops, moved = counted("kfac_update", 1)
    layers = [(5, 7), (7, 4), (4, 3)]
    # numpy fills both triangles of delta delta'; np.hstack makes the inputs of a a' plain arrays,
    # which are not counted
    missing = 11 * sum((i + 1) ** 2 - o**2 for i, o in layers)
    assert flops == Counting.flops + missing
    assert counted("kfac_apply", 1)[0] == Counting.flops
    assert counted("kfac_apply", 3)[0] == Counting.flops
    assert counts.flops((5, 7), 11, "kfac_refresh") == 6**3 + 7**3
    assert counts.flops((5, 7), 11, "solve") is None
    assert moved > 0


# ------------------------------------------------------------------------------------------------
# Checks: wrong answers are refused


class Liar(Numpy):
    """Right but for the scale."""

    name = "liar"
    calls = 0

    def ggn(self, task):
        entry = super().ggn(task)

        def run():
            Liar.calls += 1
            return 1.001 * entry.run()

        return Entry(run)


class Failing(Numpy):
    def ggn(self, task):
        def run():
            raise RuntimeError("no such kernel")

        return Entry(run)


def test_wrong_contestants_are_refused_and_never_timed(monkeypatch):
    def contestants(case, data, names, num_threads):
        everyone = {"natgrad_fast": Own(case, data, num_threads), "numpy": Numpy(case, data)}
        return everyone | {"liar": Liar(case, data), "failing": Failing(case, data)}, {}

    monkeypatch.setattr(rounds, "contestants", contestants)
    record = rounds.Rounds(ONE_ROUND, []).run(Row("products", "tiny", "ggn", num_vectors=3))
    assert set(record["seconds"]) == {"natgrad_fast", "numpy"}
    assert record["errors"]["liar"] == pytest.approx(1e-3, rel=0.01)
    assert record["errors"]["failing"] == np.inf
    assert "no such kernel" in record["notes"]["failing"]
    assert Liar.calls == 2  # first call and check
    assert Result(record).is_right
    assert not Result({**record, "errors": {"natgrad_fast": float("nan")}}).is_right
    assert not Result({**record, "errors": {}}).is_right


def test_slow_contestants_are_checked_and_not_timed():
    row = Row("products", "tiny", "ggn")
    hasty = Plan(1, 1, sample_seconds=0.0, settle_seconds=0.0, longest_seconds=-1.0)
    record = rounds.Rounds(hasty, ["numpy"]).run(row)
    assert record["seconds"] == {}
    assert Result(record).is_right
    assert record["notes"]["numpy"].startswith("too slow")


@pytest.mark.parametrize("quantity", [*suites_module.PRODUCTS, *suites_module.KFAC, "step"])
def test_own_results_pass_and_wrong_ones_do_not(quantity, dtype):
    row = Row("products", "tiny", quantity, dtype=dtype)
    one = rounds.Rounds(ONE_ROUND, ["numpy"])
    record = one.run(row)
    assert Result(record).is_right, record["errors"]
    assert set(record["seconds"]) == set(record["errors"])
    task = one.task(cases.find("tiny"), row)
    check = checks.Check(task, dtype)
    if quantity == "step":
        wrong = SimpleNamespace(new_loss=1.0), one.data.params
        assert check.error(wrong) == np.inf  # nothing fell
    else:
        assert not check.passes(check.error(np.zeros(4)))
        reference = getattr(check.reference, quantity)(task.as_float64()).answer()
        assert check.passes(check.error(reference))
        assert not check.passes(check.error(1.01 * reference))


def test_solves_are_checked_by_their_residual():
    row = Row("solvers", "cases-40", "solve", rtol=1e-2)
    one = rounds.Rounds(ONE_ROUND, ["numpy"])
    record = one.run(row)
    assert Result(record).is_right, record["errors"]
    assert {"natgrad_fast", "natgrad_fast, sample space", "numpy"} <= set(record["seconds"])
    assert record["iterations"]["numpy"] > 0
    task = one.task(cases.find("cases-40"), row)
    check = checks.Check(task, "float32")
    solution = one.everyone["numpy"].solve(task).answer()[0]
    assert check.passes(check.error(solution))
    assert not check.passes(check.error(0.9 * solution))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "bernoulli_cross_entropy"])
def test_reference_of_other_losses(loss, monkeypatch):
    case = cases.Case("other", (6, 5, 6), 9, "relu", loss, inputs="uniform")
    monkeypatch.setitem(cases.NAMED, "other", case)
    one = rounds.Rounds(ONE_ROUND, ["numpy"])
    for quantity in suites_module.PRODUCTS:
        assert Result(one.run(Row("products", "other", quantity, dtype="float64"))).is_right


# ------------------------------------------------------------------------------------------------
# Rows and processes


def test_rows_and_jobs():
    options = {"quick": False, "threads": [1, 2], "dtypes": ["float32", "float64"]}
    rows = suites_module.rows(list(suites_module.SUITES), **options)
    assert len(set(rows)) == len(rows)
    names = {row.case for row in rows}
    assert {case.name for case in cases.SUITE} <= names
    assert {"width-16", "width-4096", "batch-8192", "cases-1000000"} <= names
    assert {row.num_vectors for row in rows if row.suite == "products"} == {1, 4, 16, 64}
    groups = processes.jobs(rows)
    assert len(groups) == 3  # one thread is measured in float32 only
    assert sum(map(len, groups)) == len(rows)
    assert all(len({(row.threads, row.dtype) for row in group}) == 1 for group in groups)
    quick = suites_module.rows(list(suites_module.SUITES), **{**options, "quick": True})
    assert len(quick) < len(rows) / 4


def test_large_numbers_of_cases_go_in_chunks():
    assert cases.find("cases-1000000").chunk_size is not None
    assert cases.find("cases-1000").chunk_size is None
    with pytest.raises(ValueError, match="unknown case 'depth-3'"):
        cases.find("depth-3")


def test_relu_cases_are_clear_of_their_kinks():
    case = cases.Case("relu", (20, 200, 200, 3), 100, "relu")
    data = case.data("float32")
    assert data.x.shape == (100, 20)
    assert len(data.y) == 100
    # pre-activations are sums of up to 200 terms of about 0.1 in float32: rounding of 1e-6 at most
    assert cases.margins(case.sizes, data.x, data.params).min() > 1e-5


def test_interrupt_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    record = made_up_run().results[0].record

    def messages(rows, plan, peers):
        yield {"begins": "a row"}
        yield {"result": record}
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "messages", messages)
    output = tmp_path / "run"
    code = app.main(["--suite", "products", "--cases", "tiny", "--peers", "--output", str(output)])
    assert code == 130
    run = read_run(output.with_suffix(".json"))
    assert run.interrupted
    assert [result.record for result in run.results] == [record]
    assert "INTERRUPTED" in output.with_suffix(".md").read_text()
    assert "interrupted" in capsys.readouterr().err


def test_a_worker_is_stopped_when_its_reader_leaves(monkeypatch):
    started = []
    start = processes.start
    monkeypatch.setattr(processes, "start", lambda *a: started.append(start(*a)) or started[-1])
    endless = Plan(min_rounds=10**9, max_rounds=10**9)
    reader = processes.messages([Row("products", "tiny", "ggn")], endless, [])
    assert next(reader)["bandwidth"] > 0
    assert "begins" in next(reader)
    reader.close()
    assert started[0].poll() is not None


def test_a_failed_worker_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(processes.WorkerError, match="exit code 1"):
        list(processes.messages([Row("products", "tiny", "ggn")], ONE_ROUND, []))


# ------------------------------------------------------------------------------------------------
# The whole program


class Checker(HTMLParser):
    """Whether every element is closed; what the page asks of others."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.outside = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        links = [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]
        self.outside += [link for link in links if not link.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def bench(*arguments):
    command = [sys.executable, "-m", "natgrad_fast", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_smoke(tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "results" / "tiny"
    done = bench("--quick", "--suite", "products", "kfac", "--cases", "tiny", "--peers", "numpy",
                 "--rounds", 5, "--threads", 1, "--output", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads(output.with_suffix(".json").read_text())
    assert run["machine"]["natgrad_fast"]["isa"]
    assert run["machine"]["processes"]["1 threads, float32"]["bandwidth"] > 0
    assert {r["quantity"] for r in run["results"]} == {"gradient", "ggn"}
    assert {r["dtype"] for r in run["results"]} == {"float32", "float64"}
    for result in run["results"]:
        assert {len(s) for s in result["seconds"].values()} == {5}
        assert set(result["seconds"]) == {"natgrad_fast", "numpy"}
        assert len(result["peak_gflops"]) == 5

    text = output.with_suffix(".md").read_text()
    assert text in done.stdout
    table = [line for line in text.splitlines() if re.match(r"\| tiny +\| ggn, float32, 1T ", line)]
    assert len(table) == 1
    header = next(line for line in text.splitlines() if line.startswith("| case"))
    assert table[0].count("|") == header.count("|")

    page = Checker()
    page.feed(output.with_suffix(".html").read_text())
    assert page.open == []
    assert page.outside == []
    assert {"svg", "table", "style"} <= set(page.seen)
    assert "script" not in page.seen

    again = bench("--from", output.with_suffix(".json"), "--compare", output.with_suffix(".json"),
                  "--output", tmp_path / "again")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("| noise ") == len(run["results"])


def test_regression_has_exit_code_1(tmp_path):
    for name, run in {"old": made_up_run(), "new": made_up_run(ours=1.3e-3, seed=1)}.items():
        run.machine |= {"natgrad_fast": {"version": "0", "compiler": "c", "isa": "i"}}
        run.machine |= dict.fromkeys(("cpu", "cpus", "platform", "time"), "x")
        run.machine["processes"] = {"2 threads, float32": {"bandwidth": 1e10}}
        run.write(tmp_path / f"{name}.json")
    both = ["--from", str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")]
    assert app.main([*both, "--output", str(tmp_path / "report")]) == 1
    assert "| regression " in (tmp_path / "report.md").read_text()
    back = ["--from", str(tmp_path / "old.json"), "--compare", str(tmp_path / "new.json")]
    assert app.main([*back, "--output", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "nothing"], "unknown case 'nothing'"),
        (["--threads", "0"], "wanted an integer >= 1"),
        (["--threads", "100000"], "this process has"),
        (["--compare", "missing.json"], "no such file"),
        (["--suite", "everything"], "invalid choice"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_other_json_is_refused(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert app.main(["--from", str(path)]) == 2
    assert "no result of this harness" in capsys.readouterr().err
