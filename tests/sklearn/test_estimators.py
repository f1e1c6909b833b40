"""The estimators: scikit-learn's own checks, and what these do not ask."""

import io
import pickle
import warnings

import joblib
import natgrad_fast as ng
import numpy as np
import pytest
from cases import same_bits

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris  # noqa: E402
from sklearn.exceptions import ConvergenceWarning, NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

Classifier, Regressor = ng.sklearn.NaturalGradientClassifier, ng.sklearn.NaturalGradientRegressor
RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 4))
Y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
LABELS = np.where(X[:, 0] * X[:, 1] > 0, "yes", "no")
THREE = np.array(["a", "b", "c"])[np.digitize(X[:, 0], [-0.5, 0.5])]


@parametrize_with_checks(
    [
        Classifier((8,), max_iter=30),
        Regressor((8,), max_iter=30),
        Classifier((), max_iter=30, scale=False, activation="relu"),
        Regressor((4, 4), max_iter=20, loss="student_t"),
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("y", "outputs"), [(LABELS, 1), (THREE, 3), (LABELS == "yes", 1)])
def test_labels_of_any_kind(y, outputs):
    model = Classifier((12,), random_state=0).fit(X, y)
    assert model.n_outputs_ == outputs
    assert model.classes_.tolist() == sorted(set(y.tolist()))
    assert set(model.predict(X).tolist()) <= set(y.tolist())
    assert model.score(X, y) > 0.95
    proba, log_proba = model.predict_proba(X), model.predict_log_proba(X)
    assert proba.shape == (len(X), len(model.classes_))
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-14)  # rounding of three terms
    np.testing.assert_allclose(np.exp(log_proba), proba, rtol=1e-12)
    assert (model.classes_[proba.argmax(axis=1)] == model.predict(X)).all()
    assert np.isfinite(log_proba).all()
    assert len(model.loss_curve_) == model.n_iter_ == len(model.history_.epochs)
    assert model.t_ == model.n_iter_ * len(X)


@pytest.mark.usefixtures("quiet")
def test_log_probabilities_where_probabilities_are_zero():
    x = np.array([[-1.0], [1.0]])
    for y in ([0, 1], [0, 2]):
        model = Classifier((), alpha=0.0, max_iter=50, random_state=0).fit(x, y)
        log_proba = model.predict_log_proba(1e5 * x)
        assert np.isfinite(log_proba).all()
        assert log_proba.min() < -1000


@pytest.mark.usefixtures("quiet")
def test_several_labels_and_several_targets():
    flags = np.column_stack([X[:, 0] > 0, X[:, 1] > 0.5, X[:, 2] < 0]).astype(int)
    model = Classifier((12,), random_state=0).fit(X, flags)
    assert model.predict(X).shape == flags.shape
    assert model.predict_proba(X).shape == flags.shape
    assert (model.predict(X) == flags).mean() > 0.95
    targets = np.column_stack([Y, -1000.0 * Y + 5e4])
    model = Regressor((20,), random_state=0).fit(X, targets)
    assert model.predict(X).shape == targets.shape
    assert model.score(X, targets) > 0.95
    flat = Regressor((5,), random_state=0, max_iter=5).fit(X, Y)
    assert flat.predict(X).shape == Y.shape
    column = Regressor((5,), random_state=0, max_iter=5).fit(X, Y[:, None])
    assert column.predict(X).shape == (len(Y), 1)


@pytest.mark.usefixtures("quiet")
def test_raw_units():
    x = np.column_stack([2.4e6 + 1000 * X[:, 0], 1e-9 * X[:, 1], X[:, 2], np.full(len(X), 7.0)])
    y = 1e5 + 3e4 * Y
    model = Regressor((20,), random_state=0).fit(x, y)
    assert model.score(x, y) > 0.95
    assert Classifier((20,), random_state=0).fit(x, LABELS).score(x, LABELS) > 0.95
    wild = np.array([[1e300, 1.0], [-1e300, 2.0], [0.0, 3.0], [5e299, 4.0]])
    assert np.isfinite(Regressor((3,), max_iter=3).fit(wild, [1, 2, 3, 4]).predict(wild)).all()


@pytest.mark.usefixtures("quiet")
def test_other_losses():
    rates = np.exp(0.5 * X[:, 0] + 0.3 * np.sin(2 * X[:, 1]))
    counts = np.random.default_rng(1).poisson(rates)
    model = Regressor((8,), loss="poisson", random_state=0, alpha=1.0).fit(X, counts)
    assert (model.predict(X) > 0).all()
    assert np.corrcoef(model.predict(X), rates)[0, 1] > 0.7
    assert model.out_activation_ == "exp"
    with pytest.raises(ValueError, match=">= 0"):
        Regressor(loss="poisson").fit(X, counts - 1)
    line = 2 * X[:, 0]
    outliers = line.copy()
    outliers[::10] += 50
    robust = Regressor((), loss="student_t", random_state=0).fit(X, outliers)
    plain = Regressor((), random_state=0).fit(X, outliers)
    distance = [np.abs(one.predict(X) - line).mean() for one in (robust, plain)]
    assert distance[0] < 0.2 * distance[1]


@pytest.mark.usefixtures("quiet")
def test_coefs_are_for_inputs_as_given():
    x = 100.0 + 5.0 * X
    model = Regressor((6, 5), random_state=0, max_iter=10).fit(x, 50 + 20 * Y)
    a = x
    for place, (w, b) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        a = a @ w + b
        a = np.tanh(a) if place < 2 else a
    np.testing.assert_allclose(a[:, 0], model.predict(x), rtol=1e-9)
    assert [w.shape for w in model.coefs_] == [(4, 6), (6, 5), (5, 1)]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_random_state_gives_the_same_bits(dtype):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    models = [
        Classifier((8,), random_state=seed, dtype=dtype, max_iter=9, num_threads=threads)
        for seed, threads in ((3, 1), (3, 2), (4, 1))
    ]
    one, two, other = (model.fit(X, LABELS).net_.params for model in models)
    assert one.dtype == dtype
    assert same_bits(one, two)
    assert not same_bits(one, other)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.usefixtures("quiet")
def test_partial_fit_goes_on_after_pickling():
    one = Classifier((8,), random_state=0)
    one.partial_fit(X[:60], LABELS[:60], classes=["no", "yes"])
    stream = io.BytesIO()
    joblib.dump(one, stream)
    stream.seek(0)
    for two in (pickle.loads(pickle.dumps(one)), joblib.load(stream)):
        three = pickle.loads(pickle.dumps(one))
        for model in (two, three):
            model.partial_fit(X[60:], LABELS[60:])
            model.partial_fit(X[:60], LABELS[:60])
        assert same_bits(two.net_.params, three.net_.params)
        assert two.n_iter_ == 3
    with pytest.raises(ValueError, match="first call to partial_fit"):
        Classifier().partial_fit(X, LABELS)
    with pytest.raises(ValueError, match="not the same"):
        one.partial_fit(X, LABELS, classes=["a", "b"])
    with pytest.raises(ValueError, match="were not there before"):
        one.partial_fit(X, THREE)
    model = Regressor((8,), random_state=0)
    for _ in range(30):
        model.partial_fit(X, Y)
    assert model.score(X, Y) > 0.8


@pytest.mark.usefixtures("quiet")
def test_warm_start():
    model = Regressor((8,), random_state=0, warm_start=True, max_iter=5).fit(X, Y)
    first = model.loss_
    net = model.net_
    model.fit(X, Y)
    assert model.net_ is net
    assert model.loss_ < first
    model = Classifier((8,), warm_start=True, max_iter=3).fit(X, LABELS)
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(X, THREE)


@pytest.mark.usefixtures("quiet")
def test_early_stopping():
    x, y = load_diabetes(return_X_y=True)
    model = Regressor((50,), random_state=0, early_stopping=True, alpha=0.0).fit(x, y)
    assert model.n_iter_ < 100
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert len(model.validation_scores_) == model.n_iter_
    assert model.best_loss_ is None
    with pytest.raises(ValueError, match="validation_fraction"):
        Classifier(early_stopping=True).fit(X[:3], ["a", "b", "a"])


@pytest.mark.usefixtures("quiet")
def test_class_weights_are_weights():
    weight = np.where(LABELS == "yes", 3.0, 1.0)
    options = {"hidden_layer_sizes": (5,), "random_state": 0, "max_iter": 9}
    one = Classifier(class_weight={"yes": 3.0, "no": 1.0}, **options).fit(X, LABELS)
    two = Classifier(**options).fit(X, LABELS, sample_weight=weight)
    assert same_bits(one.net_.params, two.net_.params)
    assert Classifier(class_weight="balanced", **options).fit(X, LABELS).score(X, LABELS) > 0.6


@pytest.mark.usefixtures("quiet")
def test_within_scikit_learn():
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), Classifier((5,), max_iter=10, random_state=0)),
        {"naturalgradientclassifier__alpha": [1e-4, 1e-1]},
        n_jobs=2,
        cv=2,
    )
    assert grid.fit(X, LABELS).best_score_ > 0.6
    assert len(cross_val_score(Regressor((5,), max_iter=10), X, Y, cv=3)) == 3
    model = clone(Regressor((5,), alpha=0.5, solver=ng.solvers.CG(), damping=0.1))
    assert model.get_params()["alpha"] == 0.5
    assert "alpha=0.5" in repr(model)
    model.fit(X, Y)
    assert model._repr_html_()


@pytest.mark.usefixtures("quiet")
def test_as_good_as_the_multi_layer_perceptron():
    """Test scores with both defaults; the tolerance is two cases of the test set."""
    from sklearn.neural_network import MLPClassifier

    for load in (load_iris, load_breast_cancer):
        x, y = load(return_X_y=True)
        parts = train_test_split(StandardScaler().fit_transform(x), y, random_state=0, stratify=y)
        ours = Classifier(random_state=0).fit(parts[0], parts[2]).score(parts[1], parts[3])
        theirs = MLPClassifier(random_state=0).fit(parts[0], parts[2]).score(parts[1], parts[3])
        assert ours >= theirs - 2 / len(parts[3])


@pytest.mark.parametrize(
    "options",
    [
        {"max_iter": 0},
        {"alpha": -1.0},
        {"tol": -1.0},
        {"n_iter_no_change": 0},
        {"hidden_layer_sizes": (0,)},
        {"hidden_layer_sizes": "100"},
        {"activation": "rleu"},
        {"solver": "adam"},
        {"damping": -1.0},
        {"scale": "yes"},
        {"dtype": "float16"},
        {"early_stopping": True, "validation_fraction": 1.0},
        {"batch_size": 0},
        {"class_weight": "even"},
    ],
)
def test_wrong_options(options):
    with pytest.raises((ValueError, TypeError)):
        Classifier(**options).fit(X, LABELS)


def test_before_fit_and_without_targets():
    for model in (Classifier(), Regressor()):
        with pytest.raises(NotFittedError):
            model.predict(X)
        with pytest.raises(ValueError, match="requires y"):
            model.fit(X, None)
    with pytest.raises(ValueError, match="only one class"):
        Classifier().fit(X, ["a"] * len(X))
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        Regressor((5,), max_iter=2).fit(X, Y)
