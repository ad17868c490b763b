"""Tables as users have them to one matrix of numbers, and back. No torch.

A *table* here is a matrix with one number for each cell: the value itself, the number of a
category's level, or nan where the value is missing. pandas and polars are recognised, not needed.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Real
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

Array = NDArray[np.floating]
Library = Literal["pandas", "polars"]
Unknown = Literal["ignore", "error"]


class Raw(NamedTuple):
    """A column as it was found: numbers (nan: missing), or codes (-1: missing) into levels."""

    kind: Literal["number", "boolean", "category"]
    numbers: Array | None = None
    codes: NDArray[np.intp] | None = None
    levels: Sequence[Any] = ()
    ordered: bool = False


@dataclass(frozen=True)
class Column:
    """What one column held when it was fitted.

    Attributes
    ----------
    name : str
        For messages.
    kind : {"number", "boolean", "category"}
    levels : tuple
        Levels of a category; the code of each is its place. Of numbers that came as a category,
        its levels; else empty.
    rare : tuple
        Further levels, the most frequent first, that share the last code.
    shares : tuple of float
        How often each rare level came, among them.
    ordered : bool
        Whether the levels have an order of their own.
    """

    name: str
    kind: Literal["number", "boolean", "category"]
    levels: tuple[Any, ...] = ()
    rare: tuple[Any, ...] = ()
    shares: tuple[float, ...] = ()
    ordered: bool = False

    @property
    def n_levels(self) -> int:
        """Number of codes; 0 for numbers. An empty category has one, which stands for nothing."""
        return max(len(self.levels) + bool(self.rare), 1) if self.kind == "category" else 0

    def encode(self, raw: Raw, unknown: Unknown) -> Array:
        if self.kind != "category":
            return raw.numbers if raw.numbers is not None else _as_numbers(raw, self.name)
        raw = _as_levels(raw)
        assert raw.codes is not None
        code_of = {level: code for code, level in enumerate(self.levels)}
        code_of |= dict.fromkeys(self.rare, len(self.levels))
        codes = [code_of.get(level, np.nan) for level in raw.levels]
        cells = np.array([*codes, np.nan])[raw.codes]
        new = np.isnan(cells) & (raw.codes >= 0)
        if unknown == "error" and new.any():
            row = int(new.argmax())
            raise ValueError(
                f"Column {self.name} holds the level {raw.levels[raw.codes[row]]!r} in row {row}, "
                f"which was not there in fit; its levels were {_some(self.levels)}. Correct it, or "
                "use handle_unknown='ignore', which treats it as missing."
            )
        return cells

    def decode(self, cells: Array, generator: np.random.Generator | None) -> list[Any]:
        """Levels of the codes; None where missing. Rare ones are drawn, or the most frequent."""
        values = [*self.levels, self.rare[0] if self.rare else None, None]
        missing = np.isnan(cells)
        codes = np.where(missing, len(values) - 1, np.rint(cells)).astype(int)
        result = [values[code] for code in codes]
        if self.rare and generator is not None:
            for row in np.flatnonzero(codes == len(self.levels)):
                result[row] = self.rare[generator.choice(len(self.rare), p=self.shares)]
        return result


@dataclass(frozen=True)
class Schema:
    """The columns of a table, and what it came as.

    Attributes
    ----------
    columns : tuple of Column
    library : {"pandas", "polars"} or None
        What kind of frame was fitted; None for arrays.
    template : frame or None
        The fitted frame without its rows: names and dtypes.
    """

    columns: tuple[Column, ...]
    library: Library | None = None
    template: Any = None

    @property
    def n_levels(self) -> list[int]:
        return [column.n_levels for column in self.columns]

    @property
    def numeric(self) -> bool:
        """Whether an array of numbers holds all."""
        return self.library is None and all(column.kind != "category" for column in self.columns)

    def read(self, X: Any, unknown: Unknown) -> Any:
        """The table of X: float64, or X itself where that already is one of numbers."""
        if self.numeric and is_numbers(X):
            return X
        if issparse(X):
            raise ValueError(
                "X is sparse, but the table that was fitted was not one of numbers alone. "
                "Give it as it was in fit: a frame, or dense rows."
            )
        cells = np.empty(X.shape, dtype=np.float64)
        for number, (column, values) in enumerate(zip(self.columns, columns_of(X), strict=True)):
            cells[:, number] = column.encode(_raw(values, column.name), unknown)
            check_finite(cells[:, number], column.name)
        return cells

    def write(self, table: Array, generator: np.random.Generator | None = None) -> Any:
        """Numbers to what was fitted: the same kind of frame, names, order and dtypes."""
        if self.numeric:
            return table
        columns = [
            column.decode(cells, generator) if column.kind == "category" else cells
            for column, cells in zip(self.columns, table.T, strict=True)
        ]
        if self.library == "pandas":
            return _to_pandas(columns, self.columns, self.template)
        if self.library == "polars":
            return _to_polars(columns, self.columns, self.template)
        result = np.empty(table.shape, dtype=object)
        for number, values in enumerate(columns):
            result[:, number] = values
        return result


def library_of(X: Any) -> Library | None:
    """Which library's frame X is: one that is not imported cannot have made it."""
    for name in ("pandas", "polars"):
        module: ModuleType | None = sys.modules.get(name)
        if module is not None and isinstance(X, module.DataFrame):
            return name
    return None


def float_dtype(X: Any) -> type[np.floating]:
    """Precision of what is made of X: float32 where all of it is that."""
    library = library_of(X)
    if library == "pandas":
        single = all(dtype == np.float32 for dtype in X.dtypes)
    elif library == "polars":
        single = all(str(dtype) == "Float32" for dtype in X.dtypes)
    else:
        single = X.dtype == np.float32
    return np.float32 if single else np.float64


def is_numbers(X: Any) -> bool:
    """Whether X is an array, dense or sparse, of a numeric dtype."""
    return library_of(X) is None and X.dtype.kind in "buif"


def columns_of(X: Any) -> Iterable[Any]:
    if library_of(X) == "pandas":
        return (X.iloc[:, number] for number in range(X.shape[1]))
    if library_of(X) == "polars":
        return X.get_columns()
    return X.T


def fit_schema(
    X: Any,
    weight: Array,
    is_category: Callable[[int], bool | None],
    max_categories: int | None,
    column_name: Callable[[int], str],
) -> Schema:
    """Learn the columns of X. ``is_category`` of a column's number: None lets its dtype say."""
    library = library_of(X)
    if issparse(X) and (chosen := [n for n in range(X.shape[1]) if is_category(n)]):
        raise ValueError(
            f"Column {column_name(chosen[0])} is to be a category, but X is sparse: categories "
            "need dense rows. Use X.toarray(), or a likelihood of numbers."
        )
    if is_numbers(X) and not any(is_category(number) for number in range(X.shape[1])):
        kind: Any = "boolean" if X.dtype.kind == "b" else "number"
        return Schema(tuple(Column(column_name(n), kind) for n in range(X.shape[1])))
    columns = []
    for number, values in enumerate(columns_of(X)):
        name = column_name(number)
        raw = _raw(values, name)
        asked = is_category(number)
        if asked is False and raw.kind == "category":
            raw = raw._replace(kind="number", numbers=_as_numbers(raw, name))
        if asked is True:
            raw = _as_levels(raw)
        columns.append(_fit_column(name, raw, weight, max_categories))
    template = None if library is None else X.head(0)
    return Schema(tuple(columns), library, template)


def _fit_column(name: str, raw: Raw, weight: Array, max_categories: int | None) -> Column:
    if raw.kind != "category":
        return Column(name, raw.kind, tuple(raw.levels))
    assert raw.codes is not None
    seen = raw.codes >= 0
    counts = np.bincount(raw.codes[seen], weight[seen], minlength=len(raw.levels))
    places = [place for place in _in_order(raw) if counts[place] > 0.0]
    rare: list[int] = []
    if max_categories is not None and len(places) > max_categories:
        by_count = sorted(places, key=lambda place: -counts[place])  # stable: ties in order
        rare = by_count[max_categories - 1 :]
        places = [place for place in places if place not in set(rare)]
    shares = counts[rare] / counts[rare].sum() if rare else np.zeros(0)
    return Column(
        name,
        "category",
        tuple(raw.levels[place] for place in places),
        tuple(raw.levels[place] for place in rare),
        tuple(shares.tolist()),
        raw.ordered,
    )


def _in_order(raw: Raw) -> list[int]:
    """Places of the levels in an order that does not depend on the rows."""
    places = list(range(len(raw.levels)))
    if raw.ordered:
        return places
    try:
        return sorted(places, key=lambda place: raw.levels[place])
    except TypeError:  # of different types
        return sorted(places, key=lambda p: (type(raw.levels[p]).__name__, str(raw.levels[p])))


# -- one column -----------------------------------------------------------------------------------


def _raw(values: Any, name: str) -> Raw:
    """Find out what a column holds."""
    module = type(values).__module__.partition(".")[0]
    if module == "pandas":
        return _raw_pandas(values, name)
    if module == "polars":
        return _raw_polars(values, name)
    if values.dtype.kind in "buif":
        return Raw("boolean" if values.dtype.kind == "b" else "number", values.astype(np.float64))
    return _raw_objects(values.tolist(), name)


def _raw_pandas(series: Any, name: str) -> Raw:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes = series.cat.codes.to_numpy().astype(np.intp)
        return Raw("category", None, codes, series.cat.categories.tolist(), bool(dtype.ordered))
    if pd.api.types.is_bool_dtype(dtype):
        return Raw("boolean", series.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError(f"Complex data not supported: column {name} has the dtype {dtype}.")
    if pd.api.types.is_numeric_dtype(dtype):
        return Raw("number", series.to_numpy(dtype=np.float64, na_value=np.nan))
    if isinstance(dtype, pd.PeriodDtype) or dtype.kind in "mM":
        raise _no_dates(name, dtype)
    values = series.astype(object).where(series.notna(), None)
    return _or_empty_category(_raw_objects(values.tolist(), name))


def _raw_polars(series: Any, name: str) -> Raw:
    import polars as pl

    dtype = series.dtype
    if dtype == pl.Boolean or dtype.is_numeric():
        numbers = series.cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
        return Raw("boolean" if dtype == pl.Boolean else "number", numbers)
    if dtype.is_temporal():
        raise _no_dates(name, dtype)
    if dtype == pl.Enum:
        raw = _raw_objects(series.to_list(), name)
        return _relevelled(raw, dtype.categories.to_list())
    return _or_empty_category(_raw_objects(series.to_list(), name))


def _or_empty_category(raw: Raw) -> Raw:
    """A column for text in which nothing stands is a category without levels."""
    if raw.numbers is None or not np.isnan(raw.numbers).all():
        return raw
    return Raw("category", None, np.full(len(raw.numbers), -1, dtype=np.intp))


def _relevelled(raw: Raw, levels: list[Any]) -> Raw:
    if raw.codes is None:  # nothing but missing values
        assert raw.numbers is not None
        return Raw("category", None, np.full(len(raw.numbers), -1), levels, True)
    place = {level: number for number, level in enumerate(levels)}
    mapping = np.array([*(place[level] for level in raw.levels), -1])
    return Raw("category", None, mapping[raw.codes], levels, True)


def _no_dates(name: str, dtype: Any) -> ValueError:
    return ValueError(
        f"Column {name} holds dates or times ({dtype}), which have no likelihood. Turn them into "
        "numbers first, for example days since the first and the hour of the day."
    )


def _raw_objects(values: list[Any], name: str) -> Raw:
    """Python objects: numbers if all are, else levels. None, nan and pd.NA are missing."""
    missing = [_is_missing(value) for value in values]
    for value in values:
        if isinstance(value, date | time | timedelta):
            raise _no_dates(name, type(value).__name__)
    present = [value for value, gone in zip(values, missing, strict=True) if not gone]
    booleans = all(isinstance(value, bool | np.bool_) for value in present)
    if all(isinstance(value, Real | Decimal) for value in present) or booleans:
        numbers = [np.nan if gone else float(v) for v, gone in zip(values, missing, strict=True)]
        kind: Any = "boolean" if present and booleans else "number"
        return Raw(kind, np.array(numbers, dtype=np.float64))
    code_of: dict[Any, int] = {}
    codes = np.empty(len(values), dtype=np.intp)
    for row, (value, gone) in enumerate(zip(values, missing, strict=True)):
        try:
            codes[row] = -1 if gone else code_of.setdefault(value, len(code_of))
        except TypeError:
            raise TypeError(
                f"Column {name}: argument must be a string or a real number, not a "
                f"{type(value).__name__}; row {row} holds {value!r}."
            ) from None
    return Raw("category", None, codes, list(code_of))


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType")


def _as_levels(raw: Raw) -> Raw:
    """Numbers as the levels of a category."""
    if raw.kind == "category":
        return raw
    assert raw.numbers is not None
    seen = ~np.isnan(raw.numbers)
    levels, places = np.unique(raw.numbers[seen], return_inverse=True)
    codes = np.full(len(raw.numbers), -1, dtype=np.intp)
    codes[seen] = places
    as_bool = raw.kind == "boolean"
    return Raw("category", None, codes, [bool(v) if as_bool else v for v in levels.tolist()], True)


def _as_numbers(raw: Raw, name: str) -> Array:
    """Levels as numbers, where that is what they are."""
    assert raw.codes is not None
    values = np.full(len(raw.levels) + 1, np.nan)
    for place, level in enumerate(raw.levels):
        try:
            values[place] = float(level)
        except (TypeError, ValueError):
            if (row := np.flatnonzero(raw.codes == place)).size:
                raise ValueError(
                    f"Column {name} needs numbers; row {int(row[0])} holds {level!r}. Correct it, "
                    "or name the column in categorical_features when fitting."
                ) from None
    return values[raw.codes]


def check_finite(cells: Array, name: str) -> None:
    infinite = np.isinf(cells)
    if infinite.any():
        row = int(infinite.argmax())
        raise ValueError(
            f"Column {name} needs finite numbers; row {row} holds {cells[row]}: Input X contains "
            "infinity or a value too large. Correct it, or make it missing."
        )


def _some(levels: Sequence[Any], most: int = 5) -> str:
    shown = ", ".join(map(repr, levels[:most]))
    return shown + (f" and {len(levels) - most} more" if len(levels) > most else "")


# -- frames back ----------------------------------------------------------------------------------


def _whole(values: Array, lower: float, upper: float) -> Array:
    return np.clip(np.rint(values), lower, upper)


def _nearest(values: Array, levels: Any) -> NDArray[np.intp]:
    """Place of the level that, as a number, is the nearest to each value."""
    distance = np.abs(values[:, None] - np.array([float(level) for level in levels]))
    return np.nan_to_num(distance, nan=np.inf).argmin(axis=1)


def _to_pandas(columns: list[Any], kinds: Sequence[Column], template: Any) -> Any:
    import pandas as pd

    series = {}
    for number, (values, column) in enumerate(zip(columns, kinds, strict=True)):
        dtype = template.dtypes.iloc[number]
        series[number] = _pandas_series(values, column, dtype)
    frame = pd.DataFrame(series, index=pd.RangeIndex(len(columns[0]) if columns else 0))
    frame.columns = template.columns
    return frame


def _pandas_series(values: Any, column: Column, dtype: Any) -> Any:
    import pandas as pd

    if column.kind == "category":
        if isinstance(dtype, pd.CategoricalDtype):
            return pd.Series(pd.Categorical(values, dtype=dtype))
        series = pd.Series(values, dtype=object)
        return series.astype(dtype)
    missing = np.isnan(values)
    series = pd.Series(values)
    if isinstance(dtype, pd.CategoricalDtype):
        codes = np.where(missing, -1, _nearest(values, dtype.categories))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    if column.kind == "boolean":
        series = pd.Series(values > 0.5, dtype=object).where(~missing, None)
        return series.astype(dtype)
    if pd.api.types.is_integer_dtype(dtype):
        plain = dtype.subtype if isinstance(dtype, pd.SparseDtype) else dtype
        bounds = np.iinfo(np.dtype(getattr(plain, "numpy_dtype", plain)))
        series = pd.Series(_whole(values, float(bounds.min), float(bounds.max)))
        if not missing.any():
            return series.astype(dtype)
        return series.astype(dtype if pd.api.types.is_extension_array_dtype(dtype) else float)
    return series.astype(dtype)


def _to_polars(columns: list[Any], kinds: Sequence[Column], template: Any) -> Any:
    import polars as pl

    series = []
    for values, column, (name, dtype) in zip(columns, kinds, template.schema.items(), strict=True):
        if column.kind == "category":
            as_text = dtype == pl.Categorical or dtype == pl.Enum
            made = pl.Series(name, values, dtype=pl.String if as_text else None, strict=False)
            series.append(made.cast(dtype))
            continue
        if column.levels:  # numbers that came as a category
            near = [column.levels[place] for place in _nearest(values, column.levels)]
            series.append(pl.Series(name, near, dtype=pl.String).cast(dtype))
            continue
        cells: list[float | None] = [None if value != value else value for value in values]
        made = pl.Series(name, cells, dtype=pl.Float64)
        if column.kind == "boolean":
            made = made > 0.5
        elif dtype.is_integer():
            lower, upper = dtype.min(), dtype.max()
            made = made.round()
            made = made.clip(pl.select(lower).item(), pl.select(upper).item())
        series.append(made.cast(dtype))
    return pl.DataFrame(series)


# -- cells in place -------------------------------------------------------------------------------


def where_missing(X: Any, marker: Any = np.nan) -> NDArray[np.bool_]:
    """Which cells of a frame or array are missing: nan, None, NA and null, and the ``marker``."""
    library = library_of(X)
    marked = not _is_missing(marker)
    if library == "pandas":
        gone = X.isna().to_numpy(dtype=bool)
        return gone | (marker == X).fillna(False).to_numpy(dtype=bool) if marked else gone
    if library == "polars":
        columns = [_polars_missing(series, marker if marked else None) for series in X]
        return np.stack(columns, axis=1)
    if X.dtype.kind == "O":
        return np.array([[_is_missing(v) or (marked and v == marker) for v in row] for row in X])
    gone = np.isnan(X) if X.dtype.kind == "f" else np.zeros(X.shape, dtype=bool)
    return gone | (marker == X) if marked else gone


def _polars_missing(series: Any, marker: Any) -> NDArray[np.bool_]:
    gone = series.is_null()
    if series.dtype.is_float():
        gone = gone | series.is_nan().fill_null(False)
    is_text = str(series.dtype).startswith(("String", "Categorical", "Enum"))
    if isinstance(marker, str) and is_text:
        gone = gone | (series.cast(str) == marker).fill_null(False)
    elif marker is not None and not isinstance(marker, str) and series.dtype.is_numeric():
        gone = gone | (series == marker).fill_null(False)
    return np.asarray(gone.to_numpy())


def with_missing(X: Any, missing: NDArray[np.bool_]) -> Any:
    """X without these cells."""
    library = library_of(X)
    if library == "pandas":
        return X.mask(missing)
    if library == "polars":
        import polars as pl

        columns = [
            series.zip_with(~pl.Series(gone), pl.Series([None] * len(series), dtype=series.dtype))
            for series, gone in zip(X, missing.T, strict=True)
        ]
        return pl.DataFrame(columns)
    X = X.astype(np.float64) if X.dtype.kind in "bui" else X.copy()
    X[missing] = None if X.dtype.kind == "O" else np.nan
    return X


def take_rows(X: Any, rows: NDArray[np.intp]) -> Any:
    return X.iloc[rows] if library_of(X) == "pandas" else X[rows]


def completed(
    X: Any,
    missing: NDArray[np.bool_],
    rows: NDArray[np.intp],
    filled: Any,
    kept: NDArray[np.intp],
    indicated: NDArray[np.intp],
) -> Any:
    """The ``kept`` columns of X with the missing cells of ``rows`` from ``filled``.

    All other cells are as they were, bit by bit. A column of 0 and 1 that says where values were
    missing follows for each ``indicated`` one.
    """
    library = library_of(X)
    place = np.zeros(X.shape[0], dtype=np.intp)
    place[rows] = np.arange(len(rows))
    if library == "pandas":
        return _completed_pandas(X, missing, place, filled, kept, indicated)
    if library == "polars":
        return _completed_polars(X, missing, place, filled, kept, indicated)
    result = X.copy() if X.dtype.kind in "fO" else X.astype(np.float64)
    row, column = np.nonzero(missing)
    if len(row):
        result[row, column] = filled[place[row], column]
    return np.hstack([result[:, kept], missing[:, indicated].astype(result.dtype)])


def _completed_pandas(
    X: Any, missing: NDArray[np.bool_], place: Any, filled: Any, kept: Any, indicated: Any
) -> Any:
    import pandas as pd

    result = X.copy()
    for column in np.flatnonzero(missing.any(axis=0)):
        row = np.flatnonzero(missing[:, column])
        values = filled.iloc[place[row], column]
        dtype = X.dtypes.iloc[column]
        if values.isna().any():  # an empty column of categories has nothing to fill it with
            continue
        if dtype.kind in "iu":
            values = values.round()
        series = X.iloc[:, column].copy()
        if isinstance(dtype, pd.CategoricalDtype):
            known = set(dtype.categories)
            series = series.cat.add_categories([v for v in values.unique() if v not in known])
        series.iloc[row] = values.astype(series.dtype).array
        result.isetitem(column, series)
    names = [f"missingindicator_{X.columns[column]}" for column in indicated]
    result = result.iloc[:, kept]
    for name, column in zip(names, indicated, strict=True):
        result[name] = missing[:, column]
    return result


def _completed_polars(
    X: Any, missing: NDArray[np.bool_], place: Any, filled: Any, kept: Any, indicated: Any
) -> Any:
    import polars as pl

    columns = X.get_columns()
    for column in np.flatnonzero(missing.any(axis=0)):
        series = columns[column]
        other = filled.to_series(int(column))[place]
        other = other.round() if series.dtype.is_integer() and other.dtype.is_float() else other
        if series.dtype == pl.Enum and other.dtype == pl.Enum:  # maybe of fewer levels than in fit
            both = dict.fromkeys([*series.dtype.categories, *other.dtype.categories])
            series = series.cast(pl.Enum(list(both)))
        columns[column] = series.zip_with(~pl.Series(missing[:, column]), other.cast(series.dtype))
    indicators = [
        pl.Series(f"missingindicator_{X.columns[column]}", missing[:, column])
        for column in indicated
    ]
    return pl.DataFrame([*(columns[column] for column in kept), *indicators])
