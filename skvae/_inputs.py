"""What comes into an estimator: validated by scikit-learn, then read as a table."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import _check_sample_weight, check_array, validate_data

from ._columns import Array, outside, row_chunks
from ._frames import library_of


class Limits(NamedTuple):
    """What a column's likelihood gives a density to."""

    name: str  # of the likelihood
    lower: float
    upper: float
    whole: bool
    description: str


def validated(estimator: Any, X: Any, reset: bool) -> Any:
    """A frame as it is, CSR rows, or an array; names and number of columns are checked."""
    if library_of(X) is not None:
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        for what, size in zip(["sample", "feature"], X.shape, strict=True):
            if size == 0:
                raise ValueError(
                    f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is "
                    f"required by {type(estimator).__name__}."
                )
        return X
    found = validate_data(
        estimator, X, dtype=None, accept_sparse="csr", ensure_all_finite=False, reset=reset
    )
    if issparse(found):
        return _checked_sparse(found)
    if found.dtype.kind in "US" and not isinstance(X, np.ndarray):
        found = check_array(X, dtype=object, ensure_all_finite=False)  # numbers stay numbers
    if found.dtype.kind in "OUS":
        return found.astype(object)
    if found.dtype.kind not in "buif":
        raise ValueError(
            f"X must hold numbers or levels of categories; its dtype is {found.dtype}. Turn such "
            "columns into numbers first, for example dates into days since the first."
        )
    return check_array(found, dtype=None, ensure_all_finite="allow-nan", input_name="X")


def _checked_sparse(X: Any) -> Any:
    check_array(X, accept_sparse="csr", dtype=None, ensure_all_finite="allow-nan", input_name="X")
    if X.dtype.kind not in "buif":
        raise ValueError(f"X must hold numbers; its dtype is {X.dtype}.")
    if not X.has_canonical_format or (X.data == 0).any():
        X = X.copy()
        X.sum_duplicates()
        X.eliminate_zeros()
    return X


def training_weight(sample_weight: Any, X: Any) -> Array:
    """How often each row counts: at least one does."""
    if sample_weight is None:
        return np.ones(X.shape[0])
    sized = np.empty((X.shape[0], 0))  # all that is needed of X is its number of rows
    weight = _check_sample_weight(sample_weight, sized, dtype=np.float64, ensure_non_negative=True)
    if not (weight > 0.0).any():
        raise ValueError(
            "Sample weights must contain at least one non-zero number: all of "
            f"{len(weight)} are zero, which leaves no row to fit."
        )
    return weight


def per_column(value: Any, names: Sequence[Any] | None, n_columns: int) -> list[Any]:
    """A likelihood for each column from one for all, or from {column: likelihood}."""
    if not isinstance(value, Mapping):
        return [value] * n_columns
    result = ["auto"] * n_columns
    for key, one in value.items():
        result[_place(key, names, n_columns, "likelihood")] = one
    return result


def categories_asked(value: Any, names: Sequence[Any] | None, n_columns: int) -> list[bool | None]:
    """Of each column whether it is a category; None: its dtype says."""
    if isinstance(value, str) and value == "from_dtype":
        return [None] * n_columns
    result: list[bool | None] = [False] * n_columns
    if value is None:
        return result
    chosen = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    if len(chosen) == n_columns and all(isinstance(one, bool | np.bool_) for one in chosen):
        return [bool(one) for one in chosen]
    for key in chosen:
        result[_place(key, names, n_columns, "categorical_features")] = True
    return result


def _place(key: Any, names: Sequence[Any] | None, n_columns: int, parameter: str) -> int:
    """Number of the column that a name or a number stands for."""
    if isinstance(key, Integral) and not isinstance(key, bool) and -n_columns <= key < n_columns:
        return int(key) % n_columns
    if names is not None and key in list(names):
        return list(names).index(key)
    known = "numbers below " + str(n_columns) if names is None else ", ".join(map(repr, names))
    raise ValueError(
        f"The {parameter!r} parameter names the column {key!r}, which X does not have. "
        f"Its columns are {known}."
    )


def check_support(
    table: Any,
    limits: Sequence[Limits],
    column_name: Callable[[int], str],
    lenient: NDArray[np.bool_],
) -> Any:
    """Name the first cell that its likelihood gives no density to.

    In ``lenient`` columns such cells become missing instead: there the likelihood was our choice.
    """
    lower = np.array([limit.lower for limit in limits])
    upper = np.array([limit.upper for limit in limits])
    whole = np.array([limit.whole for limit in limits])
    if np.isinf(lower).all() and np.isinf(upper).all():
        return table
    for rows in row_chunks(*table.shape):
        chunk = table[rows].toarray() if issparse(table) else table[rows]
        wrong = outside(chunk, lower, upper, whole)
        if not wrong.any():
            continue
        strict = wrong & ~lenient
        if strict.any():
            row, column = map(int, np.argwhere(strict)[0])
            limit = limits[column]
            raise ValueError(
                f"Column {column_name(column)} (likelihood={limit.name!r}) needs "
                f"{limit.description}; row {rows.start + row} holds {chunk[row, column]}. "
                "Use likelihood='gaussian' or clean the column."
            )
        table = table.astype(np.float64)  # a copy: the caller's rows stay as they are
        if issparse(table):
            table = table.tolil()
            table[rows.start + np.flatnonzero(wrong.any(axis=1))] = np.nan
            return check_support(table.tocsr(), limits, column_name, lenient)
        table[rows][wrong] = np.nan
    return table
