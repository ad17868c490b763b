"""What is pandas' own: series to raw columns, columns to frames, cells in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .column import (
    Column,
    Raw,
    largest_decimal,
    nearest,
    or_empty_category,
    raw_objects,
    whole,
    within,
)
from .times import DATES, DURATIONS, ZONED, Moment, array_of_days, days_of_array


def frame_of_cells(parts: dict[str, NDArray[Any]], index: Any, names: Any) -> Any:
    """Make a frame with a row for each cell of tables (N, D), and a column for each table."""
    import pandas as pd

    index, names = (one if isinstance(one, pd.Index) else pd.Index(one) for one in (index, names))
    row, column = (
        one.rename(_level_names(one, w)) for one, w in ((index, "row"), (names, "column"))
    )
    row, column = row.repeat(len(names)), column[np.tile(np.arange(len(names)), len(index))]
    levels = [one.get_level_values(i) for one in (row, column) for i in range(one.nlevels)]
    cells = pd.MultiIndex.from_arrays(levels)
    frame = pd.DataFrame({name: part.reshape(-1) for name, part in parts.items()}, index=cells)
    return frame.infer_objects()


def frame_of(cells: NDArray, index: Any, names: Sequence[Any]) -> Any:
    """Make a frame of a matrix."""
    import pandas as pd

    return pd.DataFrame(cells, index=index, columns=pd.Index(names, dtype=object))


def _level_names(index: Any, default: str) -> Any:
    names = [default if name is None else name for name in index.names]
    return names if index.nlevels > 1 else names[0]


def raw_pandas(series: Any, name: str) -> Raw:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        places = series.cat.codes.to_numpy().astype(np.intp)
        return Raw("category", None, places, series.cat.categories.tolist(), bool(dtype.ordered))
    if pd.api.types.is_bool_dtype(dtype):
        return Raw("boolean", series.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError(f"Complex data not supported: column {name} has the dtype {dtype}.")
    if pd.api.types.is_numeric_dtype(dtype):
        return Raw("number", series.to_numpy(dtype=np.float64, na_value=np.nan))
    if isinstance(dtype, pd.PeriodDtype):
        series = series.dt.to_timestamp()
    if series.dtype.kind in "mM" and not isinstance(dtype, pd.ArrowDtype):
        zoned = isinstance(dtype, pd.DatetimeTZDtype)
        plain = series.dt.tz_convert(None) if zoned else series
        what = DURATIONS if series.dtype.kind == "m" else ZONED if zoned else DATES
        return Raw("number", days_of_array(plain.to_numpy()), moment=Moment(what))
    values = series.astype(object).where(series.notna(), None)
    return or_empty_category(raw_objects(values.tolist(), name))


def to_pandas(columns: list[Any], kinds: Sequence[Column], template: Any) -> Any:
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

    if column.moment is not None:
        return _dates(values, column, dtype)
    if column.kind == "category":
        if isinstance(dtype, pd.CategoricalDtype):
            return pd.Series(pd.Categorical(values, dtype=dtype))
        series = pd.Series(values, dtype=object)
        return series.astype(dtype)
    missing = np.isnan(values)
    series = pd.Series(values)
    if isinstance(dtype, pd.CategoricalDtype):
        places = np.where(missing, -1, nearest(values, dtype.categories))
        return pd.Series(pd.Categorical.from_codes(places, dtype=dtype))
    if column.kind == "boolean" or pd.api.types.is_bool_dtype(dtype):
        series = pd.Series(values > 0.5, dtype=object).where(~missing, None)
        return series.astype(dtype)
    if pd.api.types.is_integer_dtype(dtype):
        return _integers(values, missing, dtype)
    return pd.Series(_held_by(dtype, values)).astype(dtype)


def _dates(values: Any, column: Column, dtype: Any) -> Any:
    """Turn days into the dates, times or durations of a dtype."""
    import pandas as pd

    if column.moment is not None and column.moment.kind is not None:
        return pd.Series(column.as_objects(values), dtype=dtype)
    days = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if isinstance(dtype, pd.PeriodDtype):
        made = pd.Series(array_of_days(days, np.dtype("M8[ns]")))
        return made.dt.to_period(dtype.freq)
    if isinstance(dtype, pd.DatetimeTZDtype):
        made = pd.Series(array_of_days(days, np.dtype(f"M8[{dtype.unit}]")))
        return made.dt.tz_localize("UTC").dt.tz_convert(dtype.tz)
    return pd.Series(array_of_days(days, dtype))


def _held_by(dtype: Any, values: NDArray) -> NDArray:
    """Keep numbers within what floats or decimals of a dtype can hold."""
    import pandas as pd

    if pd.api.types.is_float_dtype(dtype):
        return within(values, _plain(dtype))
    arrow = getattr(dtype, "pyarrow_dtype", None)
    if arrow is not None and str(arrow).startswith("decimal"):
        most = largest_decimal(arrow.precision, arrow.scale)
        return np.clip(values, -most, most)
    return values


def _plain(dtype: Any) -> np.dtype:
    """Return NumPy's dtype behind a nullable, Arrow-backed or sparse one."""
    inner = getattr(dtype, "subtype", dtype)
    return np.dtype(getattr(inner, "numpy_dtype", inner))


def _integers(values: Any, missing: NDArray[np.bool_], dtype: Any) -> Any:
    import pandas as pd

    plain = _plain(dtype)
    bounds = np.iinfo(plain)
    rounded = whole(values, int(bounds.min), int(bounds.max))
    if not missing.any():
        return pd.Series(rounded.astype(plain)).astype(dtype)
    if not pd.api.types.is_extension_array_dtype(dtype) or isinstance(dtype, pd.SparseDtype):
        return pd.Series(rounded)  # these have no missing integers
    series = pd.Series(np.where(missing, 0.0, rounded).astype(plain)).astype(dtype)
    series[missing] = pd.NA
    return series


def filled_pandas(X: Any, missing: NDArray[np.bool_], place: Any, values: Any) -> Any:
    """Return X with its missing cells from the rows ``place`` of ``values``."""
    result = X.copy()
    for column in np.flatnonzero(missing.any(axis=0)):
        row = np.flatnonzero(missing[:, column])
        cells = values.iloc[place[row], column]
        if not cells.isna().any():  # an empty column of categories has nothing to fill it with
            result.isetitem(column, _filled_series(X.iloc[:, column].copy(), row, cells))
    return result


def _filled_series(series: Any, row: NDArray[np.intp], cells: Any) -> Any:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):  # its cells cannot be set
        series = series.sparse.to_dense()
        series.iloc[row] = cells.astype(series.dtype).array
        return series.astype(dtype)
    is_bool = pd.api.types.is_bool_dtype(dtype)
    if is_bool:
        cells = cells.astype(float) > 0.5
    if dtype.kind in "iu":
        bounds = np.iinfo(_plain(dtype))
        cells = pd.Series(whole(cells.to_numpy(dtype=float), int(bounds.min), int(bounds.max)))
    elif dtype.kind != "b" and pd.api.types.is_numeric_dtype(dtype):
        cells = pd.Series(_held_by(dtype, cells.to_numpy(dtype=float)))
    if isinstance(dtype, pd.CategoricalDtype):
        known = set(dtype.categories)
        series = series.cat.add_categories([v for v in cells.unique() if v not in known])
    series.iloc[row] = cells.astype(series.dtype).array
    return series


def indicator_of(name: Any) -> Any:
    """Return the name of the column that says where another one was missing."""
    if isinstance(name, tuple):
        return (f"missingindicator_{name[0]}", *name[1:])
    return f"missingindicator_{name}"


def indicated_pandas(result: Any, X: Any, missing: NDArray[np.bool_], indicated: Any) -> Any:
    """Append a column for each ``indicated`` one of X that says where it was missing."""
    import pandas as pd

    if not len(indicated):
        return result
    names = [indicator_of(name) for name in X.columns[indicated]]
    where = pd.DataFrame(missing[:, indicated], index=result.index)
    columns = result.columns
    where.columns = (
        pd.MultiIndex.from_tuples(names, names=columns.names)
        if isinstance(columns, pd.MultiIndex)
        else pd.Index(names, dtype=object if columns.dtype == object else None)
    )
    return pd.concat([result, where], axis=1)
