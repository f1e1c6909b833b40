"""The border of the estimators: arrays and data frames, checked as scikit-learn does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

from .._typing import Array

__all__ = ["checked_inputs", "with_targets"]

SHOWN = 5  # names and rows in a message


def checked_inputs(estimator: Any, X: Any, *, reset: bool) -> Array:
    """Inputs (n, n_features), finite, float32 or float64, of the features that are known.

    Parameters
    ----------
    estimator : estimator
    X : array_like or data frame
        Of pandas, polars and others, by narwhals: numbers and flags in any of their types.
    reset : bool
        Whether to remember names and number of features, or to compare.

    Raises
    ------
    ValueError, TypeError
        As scikit-learn; columns that are no numbers, and rows with missing values, are named.
    """
    frame = _as_frame(X)
    if frame is None:
        plain: Array = _validated(estimator, X, reset=reset)
        return plain
    array = _numbers(frame)
    _check_names(estimator, X, reset)
    checked: Array = check_array(array, dtype=[np.float64, np.float32], estimator=estimator)
    _check_number(estimator, checked, reset)
    return checked


def with_targets(estimator: Any, X: Any, y: Any, *, reset: bool = True, **how: Any) -> Any:
    """Inputs as `checked_inputs`, and targets of as many cases."""
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y "
            "is None"
        )
    if _as_frame(X) is not None:
        x = checked_inputs(estimator, X, reset=reset)
        from sklearn.utils import check_consistent_length, check_X_y

        check_consistent_length(x, y)
        return check_X_y(x, y, dtype=[np.float64, np.float32], estimator=estimator, **how)
    return _validated(estimator, X, y, reset=reset, **how)


def _validated(estimator: Any, X: Any, *y: Any, reset: bool, **how: Any) -> Any:
    how = {"dtype": [np.float64, np.float32], "reset": reset, **how}
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # before 1.6
        return estimator._validate_data(X, *y, **how)
    return validate_data(estimator, X, *y, **how)


def _check_names(estimator: Any, X: Any, reset: bool) -> None:
    try:
        from sklearn.utils.validation import _check_feature_names
    except ImportError:
        estimator._check_feature_names(X, reset=reset)
    else:
        _check_feature_names(estimator, X, reset=reset)


def _check_number(estimator: Any, X: Array, reset: bool) -> None:
    try:
        from sklearn.utils.validation import _check_n_features
    except ImportError:
        estimator._check_n_features(X, reset=reset)
    else:
        _check_n_features(estimator, X, reset=reset)


def _as_frame(X: Any) -> Any:
    if isinstance(X, np.ndarray | list | tuple):
        return None
    try:
        import narwhals as nw
    except ImportError:
        return None
    if not nw.dependencies.is_into_dataframe(X):
        return None
    return nw.from_native(X, eager_only=True)


def _numbers(frame: Any) -> NDArray[np.float64]:
    """Columns side by side in float64."""
    import narwhals as nw

    names = [str(name) for name in frame.columns]
    columns = [frame[:, place] for place in range(len(names))]
    others = [
        name
        for name, column in zip(names, columns, strict=True)
        if not (column.dtype.is_numeric() or column.dtype == nw.Boolean)
        and not _holds_numbers(column)
    ]
    if others:
        raise ValueError(
            f"X has columns that are no numbers: {_shown(others)}. Encode or drop them, such as by "
            "sklearn.preprocessing.OneHotEncoder or OrdinalEncoder in a pipeline"
        )
    result = np.empty((len(frame), len(columns)))
    for place, column in enumerate(columns):
        missing = column.is_null().to_numpy().astype(bool)
        values = column if not missing.any() else column.drop_nulls()
        result[:, place] = np.nan
        result[~missing, place] = np.asarray(values.to_numpy(), dtype=np.float64)
    gaps = np.isnan(result)
    if gaps.any():
        bad = [names[place] for place in np.flatnonzero(gaps.any(axis=0))]
        rows = np.flatnonzero(gaps.any(axis=1))
        raise ValueError(
            f"Input X contains NaN: missing values in {_shown(bad)}, at row"
            f"{'s' * (len(rows) > 1)} {_shown(list(map(str, rows)), quote='')}. Impute or drop "
            "them, such as by sklearn.impute.SimpleImputer in a pipeline"
        )
    return result


def _holds_numbers(column: Any) -> bool:
    """Whether a column of objects is one of numbers."""
    values = column.to_numpy()
    return values.dtype == object and all(
        item is None or isinstance(item, int | float | np.number | np.bool_) for item in values
    )


def _shown(items: list[str], quote: str = "'") -> str:
    text = ", ".join(f"{quote}{item}{quote}" for item in items[:SHOWN])
    more = len(items) - SHOWN
    return f"{text} and {more} more" if more > 0 else text
