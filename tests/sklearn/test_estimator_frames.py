"""Data frames of pandas and polars as inputs of the estimators."""

import warnings

import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits

pytest.importorskip("sklearn")
pytest.importorskip("narwhals")
pd = pytest.importorskip("pandas")
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

Classifier, Regressor = ng.sklearn.NaturalGradientClassifier, ng.sklearn.NaturalGradientRegressor
RNG = np.random.default_rng(0)
NUMBERS = {
    "a": RNG.standard_normal(40),
    "b": RNG.integers(0, 9, 40),
    "flag": RNG.integers(0, 2, 40).astype(bool),
}
PLAIN = np.column_stack([column.astype(float) for column in NUMBERS.values()])
Y = PLAIN[:, 0] + PLAIN[:, 2]


def pandas():
    return pd.DataFrame(NUMBERS)


def nullable():
    return pandas().astype({"a": "Float64", "b": "Int64", "flag": "boolean"})


def arrow():
    pytest.importorskip("pyarrow")
    return pandas().convert_dtypes(dtype_backend="pyarrow")


def objects():
    return pandas().astype(object)


def polars():
    return pytest.importorskip("polars").DataFrame(NUMBERS)


FRAMES = [pandas, nullable, arrow, objects, polars]
frames = pytest.mark.parametrize("make", FRAMES, ids=lambda make: make.__name__)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@frames
def test_frames_are_their_numbers(make):
    options = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 10}
    plain, framed = Regressor(**options).fit(PLAIN, Y), Regressor(**options).fit(make(), Y)
    assert same_bits(plain.net_.params, framed.net_.params)
    assert same_bits(plain.predict(PLAIN), framed.predict(make()))
    assert framed.feature_names_in_.tolist() == ["a", "b", "flag"]
    assert framed.n_features_in_ == 3
    labels = pd.Series(np.where(Y > 0, "yes", "no"))
    model = Classifier(**options).fit(make(), labels)
    assert set(model.predict(make())) <= {"yes", "no"}


@frames
def test_names_have_to_fit(make):
    model = Regressor((3,), max_iter=3).fit(make(), Y)
    frame = make()
    other = frame[["b", "a", "flag"]]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(other)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["a", "b"]])
    with pytest.warns(UserWarning, match="valid feature names"):
        model.predict(PLAIN)


@frames
@pytest.mark.parametrize("estimator", [Classifier, Regressor])
def test_missing_values_are_named(make, estimator):
    frame = make()
    if make is polars:
        import polars as pl

        frame = frame.with_columns(
            pl.when(pl.arange(0, 40).is_in([3, 7])).then(None).otherwise(pl.col("a")).alias("a")
        )
    else:
        frame.loc[[3, 7], "a"] = None
    y = np.where(Y > 0, 1, 0)
    with pytest.raises(ValueError, match=r"missing values in 'a', at rows 3, 7"):
        estimator().fit(frame, y)
    model = estimator((3,), max_iter=3).fit(make(), y)
    with pytest.raises(ValueError, match=r"missing values in 'a', at rows 3, 7"):
        model.predict(frame)


@pytest.mark.parametrize("make", [pandas, polars], ids=["pandas", "polars"])
def test_columns_of_text_are_named(make):
    frame = make()
    if make is polars:
        import polars as pl

        frame = frame.with_columns(pl.lit("red").alias("colour"))
    else:
        frame["colour"] = "red"
        frame["day"] = pd.Timestamp("2020-01-01")
    with pytest.raises(ValueError, match=r"no numbers: 'colour'.* Encode"):
        Regressor().fit(frame, Y)
    if make is pandas:
        with pytest.raises(ValueError, match=r"'colour', 'day'"):
            Regressor().fit(frame, Y)
        category = pandas().assign(b=pd.Categorical(["x", "y"] * 20))
        with pytest.raises(ValueError, match=r"no numbers: 'b'"):
            Regressor().fit(category, Y)


def test_infinite_values_and_empty_frames():
    frame = pandas()
    frame.loc[5, "a"] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        Regressor().fit(frame, Y)
    with pytest.raises(ValueError, match="0 sample"):
        Regressor().fit(pandas()[:0], Y[:0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Regressor().fit(pandas(), Y[:5])
