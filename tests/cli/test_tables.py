"""Tables of the command line: what is read, and what is said of what can not be."""

import io

import natgrad_fast as ng
import numpy as np
import pytest
from natgrad_fast.cli.data import Scale, choose, inputs, targets
from natgrad_fast.cli.mistake import Mistake
from natgrad_fast.cli.table import BLOCK, read_table


@pytest.fixture
def write(tmp_path):
    """Write a file; its path."""

    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_plain_table(write):
    table = read_table(write("a,b,kind\n1,2.5,red\n-3e2, 4 ,blue\n"))
    assert table.names == ["a", "b", "kind"]
    np.testing.assert_array_equal(table["a"], [1, -300])
    np.testing.assert_array_equal(table["b"], [2.5, 4])
    assert table["kind"].tolist() == ["red", "blue"]
    assert table.rows.tolist() == [2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4\r\n",
        "a;b\n1;2\n3;4",
        "a\tb\n1\t2\n3\t4\n",
        "a|b\n1|2\n3|4\n",
        '"a","b"\n"1","2"\n"3",4\n',
        "a,b\n\n1,2\n\n3,4\n\n",
        " a , b \n 1, 2\n3 ,4\n   \n",
    ],
    ids=["bom", "crlf", "semicolon", "tab", "bar", "quoted", "empty-lines", "spaces"],
)
def test_spellings_of_one_table(write, text):
    table = read_table(write(text))
    assert table.names == ["a", "b"]
    np.testing.assert_array_equal(np.stack(table.columns, 1), [[1, 2], [3, 4]])


def test_quoted_fields_may_hold_delimiters_and_lines(write):
    table = read_table(write('"a,1","b\n2",c\n1,2,"x, ""y""\nz"\n3,4,w\n'))
    assert table.names == ["a,1", "b\n2", "c"]
    assert table["c"].tolist() == ['x, "y"\nz', "w"]
    assert table.rows.tolist() == [4, 5]  # where the records end


def test_lines_are_counted_from_the_top_of_the_file(write):
    table = read_table(write("\n\na,b\n1,2\n\n3,4\n"))
    assert table.rows.tolist() == [4, 6]


@pytest.mark.parametrize("missing", ["", "NA", "nan", "NaN", "null", "None", "n/a", " "])
def test_missing_values_are_known_in_numbers_and_words(write, missing):
    table = read_table(write(f"a,b\n1,red\n{missing},{missing}\n"))
    assert np.isnan(table["a"][1])
    assert table["b"].tolist() == ["red", ""]
    with pytest.raises(Mistake, match=r"(?s)'a': 1 \(line 3\).*'b': 1 \(line 3\)"):
        table.refuse_missing(["a", "b"])


def test_words_that_come_after_a_block_of_numbers_make_a_column_of_words(write):
    cells = [str(k) for k in range(BLOCK + 5)]
    cells[3], cells[-1] = "", "red"
    table = read_table(write("a,b\n" + "".join(f"{cell},1\n" for cell in cells)))
    assert table["a"].tolist() == cells
    assert table["b"].dtype == np.float64


def test_numbers_of_pythons_own_notation_are_words(write):
    assert read_table(write("a\n1_000\n2\n"))["a"].dtype == object


def test_a_huge_integer_is_a_number(write):
    assert read_table(write(f"a\n{10**300}\n1\n"))["a"][0] == 1e300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("a,b\n", "no row"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields, the line of column names has 2"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4: 3 fields"),
        ("a,b,a\n1,2,3\n", "twice: 'a'"),
        ("1.5,2\n3,4\n", "all numbers"),
        ("1,1\n3,4\n", "all numbers"),
        ('a,b\n1,"2\n3,4\n', "unexpected end"),
        (b"a,b\n1,\xff\n", "not UTF-8: byte 0xff"),
    ],
)
def test_bad_text_is_refused_with_its_place(write, text, words):
    path = write(text)
    with pytest.raises(Mistake) as caught:
        read_table(path)
    assert words in str(caught.value)
    assert path in str(caught.value)


def test_columns_that_are_numbered_are_names(write):
    assert read_table(write("0,1\n5,6\n")).names == ["0", "1"]


def test_a_delimiter_that_is_given(write):
    assert read_table(write("a:b\n1:2\n"), ":").names == ["a", "b"]
    with pytest.raises(Mistake, match="one character"):
        read_table(write("a:b\n1:2\n"), "::")


@pytest.mark.parametrize("name", ["nowhere.csv", "digit", "data.xlsx", "."])
def test_what_is_no_table(write, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("x", "data.xlsx")
    with pytest.raises(Mistake, match=name.replace(".", r"\.")):
        read_table(name)


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa,b\n1,2\n")))
    table = read_table("-")
    assert (table.names, table["b"].tolist()) == (["a", "b"], [2.0])


def test_arrays(tmp_path):
    rng = np.random.default_rng(0)
    path = str(tmp_path / "data.npz")
    X, y = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 2, 7)
    np.savez(path, X=X, y=y)
    table = read_table(path)
    assert table.names == ["x0", "x1", "x2", "y"]
    np.testing.assert_array_equal(np.stack(table.columns[:3], 1), X)
    np.testing.assert_array_equal(table["y"], y)
    assert table.targets == ("y",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"Z": np.ones((2, 2))}, "wanted arrays X and y, got Z"),
        ({"X": np.ones(3)}, "X must be"),
        ({"X": np.ones((0, 3))}, "X must be"),
        ({"X": np.array([["a"]])}, "X must be"),
        ({"X": np.ones((3, 2)), "y": np.ones(2)}, "y must be"),
        ({"X": np.array([[None]], object)}, "allow_pickle"),
    ],
)
def test_bad_arrays(tmp_path, arrays, words):
    path = str(tmp_path / "data.npz")
    np.savez(path, **arrays)
    with pytest.raises(Mistake, match=words):
        read_table(path)


def test_a_file_that_is_no_archive(write):
    with pytest.raises(Mistake, match=r"data\.npz"):
        read_table(write("nothing", "data.npz"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "data.parquet")
    columns = {
        "i": pyarrow.array([1, None, 2**60]),
        "b": pyarrow.array([True, False, None]),
        "s": pyarrow.array(["x", None, "y"]),
        "d": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    np.testing.assert_array_equal(table["i"], [1, np.nan, 2.0**60])
    np.testing.assert_array_equal(table["b"], [1, 0, np.nan])
    assert table["s"].tolist() == ["x", "", "y"]
    assert table["d"].tolist() == ["x", "y", "x"]
    parquet.write_table(pyarrow.table({"t": pyarrow.array([[1], [2]])}), path)
    with pytest.raises(Mistake, match="column 't' is of type list"):
        read_table(path)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(Mistake, match=r"data\.parquet"):
        read_table(path)


def test_data_sets_that_are_known_by_name():
    table = read_table("sinc")
    assert (table.names, table.targets) == (["x0", "y"], ("y",))
    np.testing.assert_array_equal(table["y"], ng.datasets.sinc().y[:, 0])


@pytest.mark.parametrize(
    ("cells", "loss", "classes"),
    [
        ("red blue red blue", "softmax_cross_entropy", ["blue", "red"]),
        ("2 1 2 1", "softmax_cross_entropy", [1, 2]),
        ("-1 1 1.0 -1", "softmax_cross_entropy", [-1, 1]),
        ("1 2 3 4", "squared_error", None),  # each of them once
        ("1.5 1.5 2 2", "squared_error", None),
        ("3 3 3 3", "squared_error", None),
    ],
)
def test_the_loss_is_picked_from_the_target(write, cells, loss, classes):
    rows = "".join(f"{k},{cell}\n" for k, cell in enumerate(cells.split()))
    columns = choose(read_table(write("a,kind\n" + rows)), [], [], None)
    assert (columns.loss, columns.classes) == (loss, classes)
    assert (columns.features, columns.targets) == (["a"], ["kind"])


def test_labels_are_places_of_classes(write):
    table = read_table(write("a,y\n1,9\n2,7\n3,9\n4,7\n"))
    columns = choose(table, [], [], None)
    assert targets(table, columns).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("a,y\n1,2\n", {"targets": ["z"]}, "no column 'z'; it has a, y"),
        ("a,y\n1,2\n", {"drop": ["z"]}, "no column 'z'"),
        ("y\n1\n", {}, "no column is left"),
        ("a,b,y\nred,1,2\nblue,2,3\n", {}, "'a': 'red' (line 2)"),
        ('a,y\n"1,5",2\n', {}, "decimal comma"),
        ("a,y\n1,2\n,3\nNA,\n", {}, "'a': 2 (line 3, 4)"),
        (",a,y\n0,1,2\n1,2,3\n", {}, "column 1 has no name"),
        ("a,y\n1,2\n", {"loss": "softmax_cross_entropy"}, "has 1 class"),
        ("a,y\n1,2.5\n2,1\n", {"loss": "softmax_cross_entropy"}, "is 2.5 in line 2"),
        ("a,y\n1,red\n2,blue\n", {"loss": "squared_error"}, "'y' has words"),
        ("a,y,z\n1,2,3\n", {"targets": ["y", "z"], "loss": "softmax_cross_entropy"}, "one target"),
    ],
)
def test_columns_that_do_not_fit(write, text, given, words):
    options = {"targets": [], "drop": [], "loss": None} | given
    table = read_table(write(text))
    with pytest.raises(Mistake) as caught:
        choose(table, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "loss", "words"),
    [
        ("1e400", "squared_error", "'y' is inf in line 3"),
        ("-1", "poisson", "'y' is -1 in line 3"),
        ("1.5", "bernoulli_cross_entropy", "'y' is 1.5 in line 3"),
    ],
)
def test_targets_out_of_range(write, value, loss, words):
    table = read_table(write(f"a,y\n1,0.5\n2,{value}\n"))
    with pytest.raises(Mistake, match=words):
        targets(table, choose(table, [], [], loss))


def test_inputs_are_found_by_name(write):
    table = read_table(write("y,b,more,a\n0,1,red,2\n"))
    np.testing.assert_array_equal(inputs(table, ["a", "b"], True), [[2, 1]])
    with pytest.raises(Mistake, match="no column 'c'"):
        inputs(table, ["a", "c"], True)


def test_infinite_inputs_are_refused(write):
    table = read_table(write("a,y\n1,1\n-inf,2\n"))
    with pytest.raises(Mistake, match="'a' is -inf in line 3"):
        inputs(table, ["a"], True)


@pytest.mark.parametrize("factor", [1.0, 1e300, 1e-300])
def test_scales_are_mean_and_standard_deviation(factor):
    x = factor * np.random.default_rng(0).normal(3.0, 2.0, (50, 3))
    x[:, 1] = factor * 0.1  # constant, and no number of the binary system
    scale = Scale.of(x)
    z = scale.apply(x)
    np.testing.assert_allclose(z.mean(axis=0), [0, 0, 0], atol=1e-14)  # of 50 terms about 1
    np.testing.assert_allclose(z.std(axis=0)[[0, 2]], 1.0, rtol=1e-14)
    assert np.abs(z[:, 1]).max() <= 1e-15 * max(factor, 1.0)
    np.testing.assert_allclose(scale.undo(z), x, rtol=1e-14)
