"""The border: what is no NumPy array but can be read as one, and numbers that are none."""

import fractions
import warnings
from types import SimpleNamespace

import natgrad_fast as ng
import numpy as np
import pytest
from cases import SOFTMAX, SQUARED, same_bits
from natgrad_fast._arrays import as_count, as_dampings, as_number, as_real

X = np.array([[1.0, 0.5, 1.0], [2.0, 1.5, 0.0], [3.0, 2.5, 1.0]])
LABELS = np.array([0, 1, 1])


def net():
    return ng.MLP([3, 2], dtype="float64")


# ------------------------------------------------------------------------------------------------
# DLPack


class Exporter:
    """What an array library without NumPy in it offers."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("other", ["float32", "float64", "int32", "bool"])
def test_dlpack_is_read_everywhere(other):
    x, v = X.astype(other), np.arange(8).astype(other)
    matrix = 2.0 * np.eye(8)
    assert same_bits(net()(Exporter(x)), net()(x))
    assert same_bits(net()(Exporter(x[:, ::-1])), net()(x[:, ::-1]))
    assert same_bits(net().jvp(x, Exporter(v)), net().jvp(x, v))
    fisher = ng.Fisher(net(), SQUARED, x)
    assert same_bits(fisher @ Exporter(v), fisher @ v)
    assert same_bits(Exporter(v) @ fisher, v @ fisher)
    found = ng.value(net(), SOFTMAX, Exporter(x), Exporter(LABELS))
    assert found == ng.value(net(), SOFTMAX, x, LABELS)
    half = Exporter(np.full(8, 0.5))
    solved = ng.cg(Exporter(matrix), Exporter(v), preconditioner=half, x0=Exporter(v))
    assert same_bits(solved.x, ng.cg(matrix, v, preconditioner=np.full(8, 0.5), x0=v).x)


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_dlpack_that_fails_names_the_argument(error):
    class Elsewhere(Exporter):
        def __dlpack__(self, **options):
            raise error("it lies on another device")

    with pytest.raises(TypeError, match="X can not be read by its __dlpack__: it lies on another"):
        net()(Elsewhere(X))


# ------------------------------------------------------------------------------------------------
# Data frames: first what the border asks of them, then the real ones


class Column:
    """A column as pandas' extension types have it: plain numbers only where none is missing."""

    def __init__(self, values, kind, name="Int64"):
        self._values = values
        self.dtype = SimpleNamespace(kind=kind) if kind else np.asarray(values).dtype
        self.ndim, self.shape = 1, (len(values),)

    def isna(self):
        return np.array([value is None for value in self._values])

    def to_numpy(self, dtype=None):
        return np.array(self._values, dtype=dtype)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=object)


class Frame:
    def __init__(self, **columns):
        self.columns, self._columns = tuple(columns), tuple(columns.values())
        self.dtypes = [column.dtype for column in self._columns]
        self.ndim, self.shape = 2, (self._columns[0].shape[0], len(columns))
        self.iloc = self

    def __getitem__(self, place):
        return self._columns[place[1]]

    def isna(self):
        raise AssertionError("column by column")

    def to_numpy(self):
        return np.stack([column.to_numpy() for column in self._columns], axis=1)

    def __array__(self, dtype=None, copy=None):
        return np.array([column.__array__() for column in self._columns]).T


def test_columns_of_several_types_are_read():
    frame = Frame(
        a=Column([1, 2, 3], "i"), b=Column([0.5, 1.5, 2.5], "f"), c=Column([True, False, True], "b")
    )
    assert same_bits(net()(frame), net()(X))
    plain = Frame(a=Column(X[:, 0], None), b=Column(X[:, 1], None), c=Column(X[:, 2], None))
    assert same_bits(net()(plain), net()(X))
    labels = Column([0, 1, 1], "u")
    assert ng.value(net(), SOFTMAX, frame, labels) == ng.value(net(), SOFTMAX, X, LABELS)


@pytest.mark.parametrize("kind", ["i", "u", "f", "b"])
def test_missing_values_are_named_by_column_and_row(kind):
    whole = Column([1, 0, 1], "i")
    frame = Frame(a=whole, weight=Column([1, None, 1], kind), c=whole)
    with pytest.raises(ValueError, match="column 'weight' of X has a missing value at row 1"):
        net()(frame)
    with pytest.raises(ValueError, match="y has a missing value at row 2"):
        ng.value(net(), SOFTMAX, X, Column([1, 1, None], kind))


@pytest.mark.parametrize(("kind", "values"), [("O", ["0.3", "1", "2"]), ("M", [0, 1, 2])])
def test_columns_that_are_no_numbers_are_named(kind, values):
    whole = Column([1, 0, 1], "i")
    with pytest.raises(TypeError, match=r"column 'when' of X has dtype .* convert it or leave it"):
        net()(Frame(a=whole, b=whole, when=Column(values, kind)))


def test_objects_are_told_what_to_do():
    with pytest.raises(TypeError, match=r"X has dtype object, wanted real numbers: convert it"):
        net()(X.astype(object))


@pytest.mark.parametrize("types", ["plain", "nullable"])
def test_pandas(types):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True], "y": [0, 1, 1]}
    )
    if types == "nullable":
        frame = frame.convert_dtypes()
    x, y = frame[["a", "b", "c"]], frame["y"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(net()(x), net()(X))
        assert ng.value(net(), SOFTMAX, x, y) == ng.value(net(), SOFTMAX, X, LABELS)
    if types != "plain":
        x = x.copy()
        x.loc[2, "b"] = pandas.NA
        with pytest.raises(ValueError, match="column 'b' of X has a missing value at row 2"):
            net()(x)
    text = frame.assign(c=["0.3", "1", "2"])[["a", "b", "c"]]
    with pytest.raises(TypeError, match="column 'c' of X has dtype"):
        net()(text)


# ------------------------------------------------------------------------------------------------
# Masked arrays


MASKED_AT = {0: "position 4", 1: "row 1, column 2"}


@pytest.mark.parametrize(
    "call",
    [
        lambda a, v: net()(a),
        lambda a, v: ng.Fisher(net(), SQUARED, X) @ v,
        lambda a, v: ng.Fisher(net(), SQUARED, X, sample_weight=v[2:5]),
        lambda a, v: ng.cg(np.eye(8), v),
        lambda a, v: ng.cg(np.eye(8), np.ma.stack([v, v], axis=1)),
        lambda a, v: ng.cg(np.eye(8), np.ones(8), preconditioner=v),
        lambda a, v: ng.cg(np.ma.masked_less(np.eye(8), 0.5), np.ones(8)),
        lambda a, v: ng.multishift_cg(np.eye(8), np.ones(8), v),
        lambda a, v: ng.sample_space_solve(ng.Fisher(net(), SQUARED, X), np.ones(8), damping=v),
        lambda a, v: ng.value(net(), SQUARED, X, a[:, 1:]),
        lambda a, v: ng.value(net(), SOFTMAX, X, v[2:5]),
    ],
)
def test_masked_elements_are_refused(call):
    x, v = np.ma.masked_array(X, X == 0.0), np.ma.masked_equal(np.arange(1.0, 9.0), 5.0)
    with pytest.raises(ValueError, match=r"is masked at (row|position) \d.*wanted a number"):
        call(x, v)


def test_masked_arrays_without_masked_elements_are_read():
    for mask in (False, np.zeros(X.shape, bool), np.ma.nomask):
        assert same_bits(net()(np.ma.masked_array(X, mask)), net()(X))
    with pytest.raises(ValueError, match="X is masked at row 1, column 2"):
        net()(np.ma.masked_array(X, X == 0.0))


# ------------------------------------------------------------------------------------------------
# Numbers: every option of every call goes through these


NO_NUMBERS = [
    True,
    np.True_,
    np.array(True),
    "0.3",
    np.str_("0.3"),
    np.array("0.3"),
    b"1",
    1j,
    np.complex64(1.0 + 2.0j),
    np.array(1.0 + 0.0j),
    [0.3],
    np.array([0.3]),
    np.array([[0.3]]),
    np.timedelta64(5, "s"),
    np.datetime64("2020-01-01"),
    None,
    {},
    object(),
    np.array(None),
]
NOT_FINITE = [
    (np.nan, "got nan"),
    (-np.inf, "got -inf"),
    (np.inf, "got inf"),
    (np.float32(np.nan), "got nan"),
    (np.longdouble("1e4000"), "got inf"),
    (10**400, "got an integer of 1329 bits"),
    (-(10**5000), "got an integer of 16610 bits"),
    (fractions.Fraction(10**400, 3), "got a number beyond the range of floats"),
]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_number(wrong):
    with pytest.raises(TypeError, match="damping must be a real number, got"):
        as_number(wrong, "damping")
    if not isinstance(wrong, list | np.ndarray):
        with pytest.raises(TypeError, match="max_iter must be an integer, got"):
            as_count(wrong, "max_iter", 1)
    with pytest.raises(TypeError, match="damping must be a real number, got"):
        ng.cg(np.eye(2), np.ones(2), damping=wrong)


@pytest.mark.parametrize(("wrong", "words"), NOT_FINITE, ids=[words for _, words in NOT_FINITE])
def test_numbers_that_are_not_finite(wrong, words):
    with pytest.raises(ValueError, match=f"damping must be finite, {words}"):
        as_number(wrong, "damping")
    with pytest.raises(ValueError, match=f"rtol must be finite, {words}"):
        ng.cg(np.eye(2), np.ones(2), rtol=wrong)


@pytest.mark.parametrize("bits", [63, 64, 1000, 20_000])
def test_integers_of_any_size_are_refused_in_words(bits):
    for wrong in (2**bits, -(2**bits)):
        with pytest.raises(ValueError, match=r"max_iter must be (>= 1|< 2\*\*63), got"):
            as_count(wrong, "max_iter", 1)
        with pytest.raises(ValueError, match=r"max_iter must be (>= 0|< 2\*\*63), got"):
            ng.cg(np.eye(2), np.ones(2), max_iter=wrong)


@pytest.mark.parametrize(
    "number",
    [2, 2.0, np.float32(2), np.float16(2), np.int8(2), np.uint64(2), np.longdouble(2), np.array(2)],
    ids=lambda x: type(x).__name__,
)
def test_numbers_of_every_type_are_read(number):
    value = as_number(number, "damping")
    assert type(value) is float
    assert value == 2.0
    assert as_number(fractions.Fraction(1, 4), "damping") == 0.25


def test_dampings_are_no_truths():
    with pytest.raises(TypeError, match="dampings has dtype bool, wanted numbers"):
        ng.multishift_cg(np.eye(2), np.ones(2), [True, False])
    assert as_dampings((1, 0.5), "dampings").tolist() == [1.0, 0.5]
    space = ng.Fisher(net(), SQUARED, X)
    for wrong, error in [
        ([True], TypeError),
        ("0.3", TypeError),
        ([[0.1], [0.1, 0.2]], ValueError),
    ]:
        with pytest.raises(error, match="damping"):
            ng.sample_space_solve(space, np.ones(8), damping=wrong)


def test_plain_arrays_are_passed_on_as_they_are():
    for array in (X, X[::2], X.astype(">f4"), X > 1, np.zeros(0)):
        assert as_real(array, "X") is array


# ------------------------------------------------------------------------------------------------
# A tolerance may be infinite


@pytest.mark.parametrize("b", [np.ones(4), np.ones((4, 3)), np.zeros(4)])
def test_an_infinite_tolerance_is_met_at_once(b, dtype):
    matrix = np.diag(np.arange(1.0, 5.0)).astype(dtype)
    for options in ({}, {"trust_radius": 0.1}, {"x0": 0 * b}, {"preconditioner": np.ones(4)}):
        result = ng.cg(matrix, b, atol=np.inf, **options)
        assert np.all(np.equal(result.status, ng.Status.CONVERGED))
        assert np.all(np.equal(result.iterations, 0))
        assert not result.x.any()
        assert result.x.shape == b.shape
    several = ng.multishift_cg(matrix, np.ones(4), [0.1, 1.0], atol=np.inf)
    assert several.success
    assert not several.x.any()
    for wrong in (-np.inf, np.nan):
        with pytest.raises(ValueError, match="atol must be finite"):
            ng.cg(matrix, b, atol=wrong)
