"""Frames and arrays alike: which library they are of, their columns, rows and cells."""

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .column import Array, Raw, is_missing, raw_objects, within
from .of_pandas import filled_pandas, indicated_pandas, indicator_of, joined_pandas, raw_pandas
from .of_polars import (
    emptied_polars,
    filled_polars,
    indicated_polars,
    joined_polars,
    polars_missing,
    raw_polars,
)

Library = Literal["pandas", "polars"]


def library_of(X: Any) -> Library | None:
    """Tell which library's frame X is: one that is not imported cannot have made it."""
    for name in ("pandas", "polars"):
        module: ModuleType | None = sys.modules.get(name)
        if module is not None and isinstance(X, module.DataFrame):
            return name
    return None


def float_dtype(X: Any) -> type[np.floating]:
    """Return the precision of what is made of X: float32 where all of it is that."""
    library = library_of(X)
    if library == "pandas":
        single = all(dtype == np.float32 for dtype in X.dtypes)
    elif library == "polars":
        single = all(str(dtype) == "Float32" for dtype in X.dtypes)
    else:
        single = X.dtype == np.float32
    return np.float32 if single else np.float64


def same_dtypes(X: Any, other: Any) -> bool:
    """Whether the columns of two frames or arrays of the same columns have the same dtypes."""
    if library_of(X) != library_of(other):
        return False
    if library_of(X) is None:
        return bool(X.dtype == other.dtype)
    return list(X.dtypes) == list(other.dtypes)


def is_numbers(X: Any) -> bool:
    """Whether X is an array, dense or sparse, of a numeric dtype."""
    return library_of(X) is None and X.dtype.kind in "buif"


def has_levels(X: Any, names: Iterable[str]) -> bool:
    """Whether some columns of X hold anything but numbers, dates and truth values."""
    if is_numbers(X):
        return False
    columns = zip(columns_of(X), names, strict=True)
    return any(raw_column(column, name).kind == "category" for column, name in columns)


def columns_of(X: Any) -> Iterable[Any]:
    if library_of(X) == "pandas":
        return (series for _, series in X.items())
    if library_of(X) == "polars":
        return X.get_columns()
    return X.T


def plain_cells(X: Any) -> Array | None:
    """Return the cells of a pandas frame at once, if all its dtypes are NumPy's of numbers."""
    if library_of(X) != "pandas":
        return None
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "buif" for dtype in X.dtypes):
        return None
    return np.array(X.to_numpy(dtype=np.float64), order="C")


def raw_column(values: Any, name: str) -> Raw:
    """Find out what a column holds."""
    module = type(values).__module__.partition(".")[0]
    if module == "pandas":
        return raw_pandas(values, name)
    if module == "polars":
        return raw_polars(values, name)
    if values.dtype.kind in "buif":
        return Raw("boolean" if values.dtype.kind == "b" else "number", values.astype(np.float64))
    return raw_objects(values.tolist(), name)


def check_indicators(X: Any, indicated: NDArray[np.intp]) -> None:
    """Raise a ValueError if a frame has a column of the name that an indicator would get."""
    if library_of(X) is None:
        return
    wanted = {indicator_of(X.columns[column]) for column in indicated}
    if taken := sorted(map(str, wanted & set(X.columns))):
        raise ValueError(
            f"add_indicator=True would make a column {taken[0]!r}, but X has one of that name. "
            "Rename it."
        )


def where_missing(X: Any, marker: Any = np.nan) -> NDArray[np.bool_]:
    """Tell which cells are missing: nan, None, NA and null, and the ``marker``."""
    library = library_of(X)
    marked = not is_missing(marker)
    truth = isinstance(marker, bool | np.bool_)  # which no number is, and no number is one
    if library == "pandas":
        gone = X.isna().to_numpy(dtype=bool)
        if not marked:
            return gone
        found = (marker == X).fillna(False).to_numpy(dtype=bool)
        booleans = np.array([str(dtype).startswith("bool") for dtype in X.dtypes], dtype=bool)
        return gone | (found & (truth | ~booleans))
    if library == "polars":
        columns = [polars_missing(series, marker if marked else None) for series in X]
        return np.stack(columns, axis=1)
    if X.dtype.kind == "O":
        return np.array([[is_missing(v) or (marked and v == marker) for v in row] for row in X])
    gone = np.isnan(X) if X.dtype.kind == "f" else np.zeros(X.shape, dtype=bool)
    marked &= truth or X.dtype.kind != "b"
    return gone | (marker == X) if marked else gone


def with_missing(X: Any, missing: NDArray[np.bool_]) -> Any:
    """Return X without these cells."""
    library = library_of(X)
    if library == "pandas":
        return X.mask(missing)
    if library == "polars":
        return emptied_polars(X, missing)
    X = X.astype(np.float64) if X.dtype.kind in "bui" else X.copy()
    X[missing] = None if X.dtype.kind == "O" else np.nan
    return X


def has_pandas() -> bool:
    return find_spec("pandas") is not None


def take_rows(X: Any, rows: NDArray[np.intp]) -> Any:
    return X.iloc[rows] if library_of(X) == "pandas" else X[rows]


def joined(parts: Sequence[Any]) -> Any:
    """Put what was found of parts one below the other: arrays, frames, or several of them each."""
    first = parts[0]
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*parts, strict=True))
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts]) for name in first}
    if library_of(first) == "pandas":
        return joined_pandas(parts)
    return joined_polars(parts) if library_of(first) == "polars" else np.concatenate(parts)


class Filling(NamedTuple):
    """Rows that miss something, and the same rows with values in all cells."""

    rows: NDArray[np.intp]  # (M,)  their numbers
    values: Any  # M rows of the same kind of frame or array

    def place(self, n_rows: int) -> NDArray[np.intp]:
        """Return where each of all rows stands among the values."""
        place = np.zeros(n_rows, dtype=np.intp)
        place[self.rows] = np.arange(len(self.rows))
        return place


def completed(
    X: Any,
    missing: NDArray[np.bool_],
    filling: Filling,
    kept: NDArray[np.intp],
    indicated: NDArray[np.intp],
) -> Any:
    """Return the ``kept`` columns of X with the missing cells filled.

    All other cells are as they were, bit by bit. A column of 0 and 1 that says where values were
    missing follows for each ``indicated`` one.
    """
    library, place = library_of(X), filling.place(X.shape[0])
    if library == "pandas":
        result = filled_pandas(X, missing, place, filling.values).iloc[:, kept]
        return indicated_pandas(result, X, missing, indicated)
    if library == "polars":
        columns = filled_polars(X, missing, place, filling.values)
        return indicated_polars([columns[column] for column in kept], X, missing, indicated)
    result = X.copy() if X.dtype.kind in "fO" else X.astype(np.float64)
    if filling.values is not None and filling.values.dtype.kind == "O":
        result = result.astype(object)  # levels, though X holds nothing but holes
    row, column = np.nonzero(missing)
    if len(row):
        values = filling.values[place[row], column]
        is_float = result.dtype.kind == "f" and values.dtype.kind == "f"
        result[row, column] = within(values, result.dtype) if is_float else values
    return np.hstack([result[:, kept], missing[:, indicated].astype(result.dtype)])
