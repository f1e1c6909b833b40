"""Estimators for scikit-learn (``pip install 'natgrad_fast[sklearn]'``)."""

try:
    import sklearn as _  # noqa: F401
except ImportError:
    raise ImportError(
        "natgrad_fast.sklearn needs scikit-learn: pip install 'natgrad_fast[sklearn]'"
    ) from None

from .classifier import NaturalGradientClassifier
from .regressor import NaturalGradientRegressor

__all__ = ["NaturalGradientClassifier", "NaturalGradientRegressor"]
