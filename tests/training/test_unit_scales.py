"""Warnings of data far from unit scale: who is warned, who is not, how often, at what cost."""

import importlib.util
import warnings
from pathlib import Path

import natgrad_fast as ng
import numpy as np
import pytest
from cases import BERNOULLI, SOFTMAX, SQUARED
from natgrad_fast.training import scales

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 4))
Y = np.sin(X[:, :1])
ONES = np.ones(4)
FAR = "is far from unit scale"


def fit(x, y, loss=SQUARED, outputs=1, **options):
    net = ng.MLP([np.shape(x)[1], 3, outputs], seed=0)
    return ng.NaturalGradient(net, loss).fit(x, y, **options)


def rare(n=5000, columns=50):
    """One-hot columns, of which most hold a handful of ones."""
    places = np.minimum((columns * RNG.random(n) ** 4).astype(int), columns - 1)
    return np.eye(columns)[places]


LARGE = {
    "one column": (X * np.r_[1, 1, 100, 1], "column 2 of X"),
    "all columns": (X * 50.0, "the furthest of 4"),
    "offset": (X + np.r_[0, 12, 0, 0], r"column 1 of X .*\(mean 1[12]"),
    "years": (np.c_[X, RNG.integers(1990, 2020, 200)], "column 4 of X"),
    "tiny": (X / 1000.0, "no element is larger than 0.00"),
    "bytes": (RNG.integers(0, 256, (200, 4)), "the furthest of 4"),
}


@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("name", LARGE)
def test_inputs_that_are_far(name, batch_size):
    x, message = LARGE[name]
    with pytest.warns(UserWarning, match=message) as caught:
        fit(x, Y, epochs=3, batch_size=batch_size)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert FAR in text
    assert "X = (X - X.mean(0)) / X.std(0)" in text
    # what it says helps
    fit((x - x.mean(0)) / x.std(0), Y, batch_size=batch_size)


@pytest.mark.parametrize(
    "x",
    [
        X,
        X + 5.0 * ONES,
        X * 10.0,
        X / 20.0,
        np.c_[X, np.full(200, 1e6)],
        np.c_[X, X[:, 0] * 1e-6],  # one column without weight does no harm
        np.zeros((200, 4)),
        RNG.random((200, 4)) > 0.99,
        RNG.random((200, 4)),
        RNG.integers(0, 17, (200, 4)),
    ],
)
def test_inputs_that_are_near(x):
    fit(x, Y)


def test_rare_ones():
    x = rare()
    assert (x.mean(axis=0) < 1e-2).any()
    fit(x, x[:, :1], batch_size=1000)


@pytest.mark.parametrize("loss", [SQUARED, "student_t", "gaussian_mean_variance"])
def test_targets(loss):
    outputs = 2 if loss == "gaussian_mean_variance" else 1
    for y in (150.0 + 77.0 * Y, 1e-4 * Y):
        with pytest.warns(UserWarning, match=r"y is far.*y = \(y - y.mean\(0\)\)"):
            fit(X, y, loss, outputs)
    fit(X, 20.0 * Y, loss, outputs)
    fit(X, np.full(200, 1e3) if loss == "student_t" else np.zeros(200), loss, outputs)


def test_targets_of_other_losses():
    fit(X, RNG.integers(0, 2, 200), BERNOULLI)
    fit(X, RNG.integers(0, 150, 200), SOFTMAX, 150)
    fit(X, RNG.poisson(500.0, 200), "poisson")


def test_once_for_inputs_and_targets_and_never_for_step():
    with pytest.warns(UserWarning, match="X is far") as caught:
        fit(100.0 * X, 1000.0 * Y, epochs=4, batch_size=20)
    assert len(caught) == 1
    ng.NaturalGradient(ng.MLP([4, 3, 1]), SQUARED).step(100.0 * X, 1000.0 * Y)


def test_the_first_batch_of_an_iterable():
    batches = [(100.0 * X[:50], Y[:50]), (100.0 * X[50:], Y[50:])]
    net = ng.MLP([4, 3, 1], seed=0)
    with pytest.warns(UserWarning, match="the furthest of 4") as caught:
        ng.NaturalGradient(net, SQUARED).fit(batches, epochs=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_warning_as_an_error_comes_before_anything_changes():
    opt = ng.NaturalGradient(ng.MLP([4, 3, 1], seed=0), SQUARED)
    before = opt.net.params.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=FAR):
            opt.fit(100.0 * X, Y)
    assert (opt.net.params == before).all()
    assert opt.last_info is None


def test_cases_of_weight_0_are_not_looked_at():
    weight = np.r_[np.ones(100), np.zeros(100)]
    x = np.where(weight[:, None] > 0, X, 1e6)
    for batch_size in (None, 20):
        fit(x, Y, sample_weight=weight, batch_size=batch_size)


def test_numbers_beyond_the_range_of_squares():
    x = np.where(np.arange(200)[:, None] == 3, 1e300, X)
    net = ng.MLP([4, 3, 1], dtype="float64", seed=0)
    with pytest.warns(UserWarning, match=FAR):
        ng.NaturalGradient(net, SQUARED).fit(x, Y)


def data_of_sklearn(name, **options):
    """A file of scikit-learn, whose import takes seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        pytest.skip("scikit-learn is not installed")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    return np.loadtxt(folder / name, **options)


def test_digits():
    table = data_of_sklearn("digits.csv.gz", delimiter=",")
    for x in (table[:, :-1], table[:, :-1] / 16.0):
        fit(x, table[:, -1], SOFTMAX, 10)


def test_breast_cancer():
    table = data_of_sklearn("breast_cancer.csv", delimiter=",", skiprows=1)
    x, y = table[:, :-1], table[:, -1]
    with pytest.warns(UserWarning, match="column 23 of X"):
        fit(x, y, BERNOULLI)
    fit((x - x.mean(0)) / x.std(0), y, BERNOULLI)


def test_diabetes():
    y = data_of_sklearn("diabetes_target.csv.gz")
    x = RNG.standard_normal((len(y), 4))
    with pytest.warns(UserWarning, match="column 0 of y"):
        fit(x, y)
    fit(x, (y - y.mean()) / y.std())


@pytest.mark.parametrize(("n", "d"), [(1, 1), (50, 3), (10**9, 10), (10**9, 10**6), (10**5, 784)])
def test_few_cases_are_looked_at(n, d):
    places = scales.sampled_cases(n, d)
    assert len(places) == n or 100 <= len(places) <= 10_000
    assert len(places) <= 100 or len(places) * d <= 2**16
    assert places[0] == 0
    gaps = np.diff(np.r_[places, n])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("dtype", "tail"), [("float32", 1e-40), ("float64", 1e-310)])
def test_subnormal_inputs(dtype, tail):
    x = np.random.default_rng(0).standard_normal((200, 10)).astype(dtype)
    y = x[:, :1]
    x[::3, 4] = tail
    opt = ng.NaturalGradient(ng.MLP([10, 3, 1], dtype=dtype, seed=0), "squared_error")
    with pytest.warns(UserWarning, match=r"3\.35% of the elements of X are below the smallest"):
        opt.fit(x, y, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x[np.abs(x) < np.finfo(dtype).tiny] = 0.0
        opt.fit(x, y, epochs=1)
