"""What a person sees of the benchmark: progress, commit, cards, words in the place of numbers."""

import io
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import natgrad_fast as ng
import pytest
from natgrad_fast.bench import machine, tables
from natgrad_fast.bench.progress import EVERY, Progress
from natgrad_fast.bench.results import Run
from natgrad_fast.bench.suites import Row


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_off_a_terminal_a_line_tells_now_and_then_what_is_measured():
    out, clock = io.StringIO(), Clock()
    begins = Progress(out, clock).of(100)
    for number in range(1, 101):
        clock.seconds = 1.0 * number
        begins(f"row {number}")
    lines = out.getvalue().splitlines()
    assert "1/100 row 1" in lines[0]
    assert "100/100 row 100" in lines[-1]
    assert len(lines) == pytest.approx(100 / EVERY, abs=2)
    assert "\r" not in out.getvalue()


def test_on_a_terminal_one_line_is_written_over():
    out = Terminal()
    progress = Progress(out, Clock())
    begins = progress.of(3, "peak memory of ")
    for _ in range(3):
        begins("a row " + 200 * "x")
    progress.end()
    assert "\n" not in out.getvalue()
    pieces = out.getvalue().split("\r\033[K")
    assert pieces[1].startswith("1/3 peak memory of a row")
    assert max(map(len, pieces)) <= 100
    assert pieces[-1] == ""


# ------------------------------------------------------------------------------------------------
# The commit


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *names, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit, and a package installed somewhere below it."""
    try:
        git(tmp_path, "init")
    except OSError:
        pytest.skip("git is not installed")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cpp").write_text("int a;\n")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    package = tmp_path / ".venv" / "lib" / "natgrad_fast"
    package.mkdir(parents=True)
    return tmp_path, package / "__init__.py"


def test_the_commit_is_that_of_the_checkout_and_changes_are_told(checkout):
    folder, package = checkout
    head = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert machine.commit(package) == head[: machine.COMMIT_DIGITS]
    (folder / "csrc" / "a.cpp").write_text("int b;\n")
    assert machine.commit(package) == head[: machine.COMMIT_DIGITS] + "-dirty"


def test_a_package_that_lies_in_no_checkout_has_no_commit(tmp_path):
    assert machine.commit(tmp_path / "natgrad_fast" / "__init__.py") is None


def test_a_commit_that_pip_wrote_down_counts(monkeypatch, tmp_path):
    class Distribution:
        def read_text(self, name):
            return '{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}'

    monkeypatch.setattr(machine.importlib.metadata, "distribution", lambda name: Distribution())
    assert machine.commit(tmp_path) == "0123456789ab"


def test_facts_name_the_commit():
    assert machine.facts()["natgrad_fast"]["commit"] == machine.commit(Path(ng.__file__))


# ------------------------------------------------------------------------------------------------
# The report


def record(case, quantity, seconds, notes=None, errors=None):
    """A row in which every contestant took the seconds that are given, or has a note."""
    names = [*seconds, *(notes or {}), *(errors or {})]
    return {
        **Row("products", case, quantity, threads=2).record(),
        "net": {"sizes": [2, 3], "batch": 4, "num_params": 9},
        "flops": 1e6,
        "bytes": 1e5,
        "errors": {**dict.fromkeys(names, 1e-7), **(errors or {})},
        "allowed": 1e-5,
        "iterations": {},
        "notes": notes or {},
        "first_seconds": {"natgrad_fast": 0.1},
        "seconds": {name: 5 * [value] for name, value in seconds.items()},
        "peak_gflops": 5 * [100.0],
    }


def run_of(*records, commit="0123456789ab"):
    build = {"version": "0", "compiler": "c", "isa": "i", "commit": commit}
    facts = {"packages": {}, "natgrad_fast": build, "cpu": "x", "cpus": 2, "platform": "y",
             "time": "z", "processes": {"2 threads, float32": {"bandwidth": 1e10}}}  # fmt: skip
    return Run(facts, records)


TWO_NETS = (
    record(
        "tiny", "ggn", {"natgrad_fast": 1e-3, "numpy": 2e-3}, {"jax": "too slow: 25.1 s a call"}
    ),
    record("wide", "ggn", {"natgrad_fast": 1e-3, "numpy": 8e-3}, {"jax": "ValueError: no"}),
    record("wide", "jvp", {"natgrad_fast": 1e-3}, errors={"torch.func": 1.0}),
)


def test_words_in_the_place_of_numbers_are_explained():
    table = tables.suite_table(run_of(*TWO_NETS), "products")
    cells = {cell for row in table.rows for cell in row}
    assert {"slow: 25.1 s", "failed", "wrong", "-"} <= cells
    text = table.markdown()
    for word in ("-:", "slow:", "failed:", "wrong:"):
        assert f"\n\n{word} " in text
    assert "WRONG" not in text
    plain = tables.suite_table(run_of(record("tiny", "jvp", {"natgrad_fast": 1.0})), "products")
    assert all(note.startswith("-:") for note in plain.notes)


def test_the_head_names_the_commit_or_says_that_it_is_not_known():
    assert any("commit 0123456789ab" in line for line in tables.title_lines(run_of(*TWO_NETS)))
    old = run_of(*TWO_NETS, commit=None)
    assert any("commit not known" in line for line in tables.title_lines(old))


class Text(HTMLParser):
    """The words of each element with one of some classes."""

    def __init__(self, text, *classes):
        super().__init__()
        self.classes, self.depth, self.found = classes, 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if dict(attributes).get("class") in self.classes:
            self.found.append("")
            self.depth = 1
        elif self.depth:
            self.depth += 1

    def handle_endtag(self, tag):
        self.depth = max(0, self.depth - 1)

    def handle_data(self, data):
        if self.depth:
            self.found[-1] += f" {data}"


def test_cards_say_of_what_they_are():
    pytest.importorskip("matplotlib")
    from natgrad_fast.bench.page import page

    text = page(run_of(*TWO_NETS))
    (subject,) = Text(text, "subject").found
    for word in ("GGN", "product", "times as long as natgrad_fast", "float32", "2 threads"):
        assert word in subject
    (card,) = Text(text, "card").found  # jax and torch.func were not timed
    assert "4.00 x" in card  # sqrt(2 * 8)
    assert "numpy" in card
    assert "2 nets" in card
    notes = " ".join(Text(text, "note").found)
    for word in ("slow: right", "failed: the peer", "wrong: the peer"):
        assert word in notes


def test_panels_keep_their_size_and_name_what_they_show():
    pytest.importorskip("matplotlib")
    from natgrad_fast.bench.figures import drawings
    from natgrad_fast.bench.page import page

    run = run_of(*TWO_NETS)
    beside = next(d for d in drawings(run) if d.title == "Beside the peers")
    assert [entry.name for entry in beside.legend] == ["numpy"]
    (picture,) = beside.svgs()
    assert "min-width" in picture
    assert ">GGN product<" in picture
    assert page(run).count("<svg") >= 3  # panels and keys of legends
