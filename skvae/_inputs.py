"""What comes into an estimator: validated by scikit-learn, then read as a table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import _check_sample_weight, check_array, validate_data

from ._columns import Array, Limits, outside, row_chunks
from ._frames import Schema, fit_schema, library_of, take_rows

PLAIN = (np.dtype(np.float64), np.dtype(np.float32))


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """A fit that fails leaves its estimator as it was."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise


def validated(estimator: Any, X: Any, reset: bool) -> Any:
    """A frame as it is, CSR rows, or an array; names and number of columns are checked."""
    if type(X).__name__ == "LazyFrame":
        raise TypeError("X is a polars LazyFrame, which holds no rows yet. Use X.collect().")
    if library_of(X) is not None:
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        for what, size in zip(["sample", "feature"], X.shape, strict=True):
            if size == 0:
                raise ValueError(
                    f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is "
                    f"required by {type(estimator).__name__}."
                )
        return X
    if not reset and _is_plain(estimator, X):
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


def _is_plain(estimator: Any, X: Any) -> bool:
    """Whether ``validate_data`` would find nothing to do or to say: it takes half of a row's time.

    So for finite floats in an array of the right shape, where no names are to be compared.
    """
    if type(X) is not np.ndarray or X.dtype not in PLAIN or X.ndim != 2 or not len(X):
        return False
    if X.shape[1] != estimator.n_features_in_ or hasattr(estimator, "feature_names_in_"):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum()))


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


def counted(X: Any, weight: Array) -> tuple[Any, Array]:
    """The rows that count: a row of weight 0 is as if it were not there."""
    rows = np.flatnonzero(weight > 0.0)
    return (X, weight) if len(rows) == len(weight) else (take_rows(X, rows), weight[rows])


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
    one_alone = isinstance(value, str) or not isinstance(value, Iterable)
    chosen = [value] if one_alone else list(value)
    if len(chosen) == n_columns and all(isinstance(one, bool | np.bool_) for one in chosen):
        return [bool(one) for one in chosen]
    if chosen and all(isinstance(one, bool | np.bool_) for one in chosen):
        raise ValueError(
            f"The 'categorical_features' parameter is a mask of {len(chosen)} columns, but X has "
            f"{n_columns}."
        )
    for key in chosen:
        result[_place(key, names, n_columns, "categorical_features")] = True
    return result


def _place(key: Any, names: Sequence[Any] | None, n_columns: int, parameter: str) -> int:
    """Number of the column that a name or a number stands for."""
    if names is not None and key in list(names):
        return list(names).index(key)
    is_number = isinstance(key, Integral) and not isinstance(key, bool)
    has_labels = names is not None and any(isinstance(name, Integral) for name in names)
    if is_number and not has_labels and -n_columns <= int(key) < n_columns:
        return int(key) % n_columns
    known = "numbers below " + str(n_columns) if names is None else ", ".join(map(repr, names))
    raise ValueError(
        f"The {parameter!r} parameter names the column {key!r}, which X does not have. "
        f"Its columns are {known}."
    )


def column_name(estimator: Any, number: int) -> str:
    """For messages: the name in quotes, or the number."""
    names = getattr(estimator, "feature_names_in_", None)
    return repr(str(names[number])) if names is not None else str(number)


def _labels(estimator: Any, X: Any) -> Sequence[Any] | None:
    """Names of the columns; of a pandas frame also those that are no strings."""
    names: Sequence[Any] | None = getattr(estimator, "feature_names_in_", None)
    return list(X.columns) if names is None and library_of(X) == "pandas" else names


def fit_table(estimator: Any, X: Any, weight: Array) -> tuple[Schema, list[Any], Any]:
    """Learn the columns of X; the likelihood asked for of each, and X as a table."""
    from ._fitting import limits_of, takes_levels

    names, n_columns = _labels(estimator, X), estimator.n_features_in_
    categories = categories_asked(estimator.categorical_features, names, n_columns)
    asked = per_column(estimator.likelihood, names, n_columns)

    def is_category(number: int) -> bool | None:
        named = asked[number]
        is_open = isinstance(named, str) and named == "auto"
        return categories[number] if is_open else takes_levels(named)

    name = partial(column_name, estimator)
    schema = fit_schema(X, weight, is_category, estimator.max_categories, name)
    strict = np.zeros(n_columns, dtype=bool)
    table = schema.read(X, "ignore")
    return schema, asked, check_support(table, asked, limits_of(asked), name, strict)


def read_table(estimator: Any, X: Any) -> Any:
    """Rows that came after ``fit`` as a table.

    Where "auto" took a column of 0 and 1 for a switch, another number is like an unknown level.
    """
    names = _labels(estimator, estimator._schema.template)
    if library_of(X) == "pandas" and names is not None and list(X.columns) != list(names):
        raise ValueError(f"The columns of X are {list(X.columns)}; fit had {list(names)}.")
    table = estimator._schema.read(X, estimator.handle_unknown)
    columns = estimator._columns
    if columns.limits.none:
        return table
    asked = estimator._fitted_architecture["likelihood"]
    was_open = [one == "auto" for one in per_column(asked, names, estimator.n_features_in_)]
    lenient = np.array(was_open) & (estimator.handle_unknown == "ignore")
    name = partial(column_name, estimator)
    return check_support(table, columns.likelihoods, columns.limits, name, lenient)


def check_support(
    table: Any,
    likelihoods: Sequence[Any],
    limits: Limits,
    name_of_column: Callable[[int], str],
    lenient: NDArray[np.bool_],
) -> Any:
    """Name the first cell that its likelihood gives no density to.

    In ``lenient`` columns such cells become missing instead: there the likelihood was our choice.
    """
    if limits.none:
        return table
    cells: list[NDArray[np.intp]] = [np.zeros((0, 2), dtype=np.intp)]
    for rows in row_chunks(*table.shape):
        chunk = table[rows].toarray() if issparse(table) else table[rows]
        wrong = outside(chunk, limits)
        strict = wrong & ~lenient
        if strict.any():
            row, column = map(int, np.argwhere(strict)[0])
            raise _no_density(
                name_of_column(column), likelihoods[column], rows.start + row, chunk[row, column]
            )
        cells.append(np.argwhere(wrong) + np.array([rows.start, 0]))
    row, column = np.concatenate(cells).T
    if not len(row):
        return table
    table = table.astype(np.float64)  # a copy
    if not issparse(table):
        table[row, column] = np.nan
        return table
    table = table.tolil()
    table[row, column] = np.nan
    return table.tocsr()


def _no_density(column: str, likelihood: Any, row: int, value: Any) -> ValueError:
    from ._fitting import name_of, support_of

    return ValueError(
        f"Column {column} (likelihood={name_of(likelihood)!r}) needs "
        f"{support_of(likelihood).description}; row {row} holds {value}. "
        "Use likelihood='gaussian' or clean the column."
    )
