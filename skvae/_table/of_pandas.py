"""What is pandas' own: series to raw columns, columns to frames, cells in place, dtypes as data."""

from collections.abc import Callable, Sequence
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

MOST_LABELS = 10**7  # of a range, which says how many there are instead of listing them
# Dtypes that their names say all of. They are a closed set: no other library's dtype is asked for.
NULLABLE = ["boolean", "Float32", "Float64"]
NULLABLE += [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
Plain = Callable[[Any], Any]


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


def frame_of_effects(
    effect: NDArray, labels: Any, column: NDArray[np.intp], level: NDArray, names: Sequence[Any]
) -> Any:
    """Make a frame with a row for each effect, by column, and by level where there are any."""
    import pandas as pd

    labels = labels if isinstance(labels, pd.Index) else pd.Index(labels)
    index = labels.rename(_level_names(labels, "column")).take(column)
    if any(not isinstance(one, str) or one for one in level):
        own = [index.get_level_values(i) for i in range(index.nlevels)]
        index = pd.MultiIndex.from_arrays([*own, pd.Index(level, dtype=object, name="level")])
    return pd.DataFrame(effect, index=index, columns=pd.Index(names, dtype=object))


def _level_names(index: Any, default: str) -> Any:
    names = [default if name is None else name for name in index.names]
    return names if index.nlevels > 1 else names[0]


def raw_pandas(series: Any, name: str) -> Raw:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        places = series.cat.codes.to_numpy().astype(np.intp)
        return Raw("category", None, places, series.cat.categories.tolist(), bool(dtype.ordered))
    if isinstance(dtype, np.dtype) and dtype.kind in "iuf":  # na_value would take a look at each
        return Raw("number", series.to_numpy(dtype=np.float64))
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


def joined_pandas(parts: Sequence[Any]) -> Any:
    """Put frames one below the other."""
    import pandas as pd

    levels = common_pandas([part.head(0) for part in parts]).select_dtypes("category").dtypes
    return pd.concat([part.astype(levels.to_dict()) for part in parts], ignore_index=True)


def common_pandas(heads: Sequence[Any]) -> Any:
    """Return a frame without rows, whose dtypes hold what those of all parts do."""
    import pandas as pd
    from pandas.api.types import union_categoricals

    whole = pd.concat(heads).head(0)
    for number, dtype in enumerate(heads[0].dtypes):
        own = [head.iloc[:, number].astype(head.dtypes.iloc[number]) for head in heads]
        if whole.dtypes.iloc[number] != dtype and all(one.dtype.name == "category" for one in own):
            whole.isetitem(number, union_categoricals(own))
    return whole


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


# -- as data --------------------------------------------------------------------------------------


def scalar_parts(value: Any, plain: Plain) -> Any:
    """Take a cell that only pandas has apart; None: it is of no known kind."""
    kind = type(value).__name__
    if kind in ("NAType", "NaTType"):
        return []
    if kind in ("Timestamp", "Timedelta"):
        zone = _zone_parts(getattr(value, "tzinfo", None), plain)
        return [int(value.asm8.view(np.int64)), value.unit, zone]
    if kind == "Period":
        return [value.ordinal, value.freqstr]
    if kind == "Interval":
        return [plain(value.left), plain(value.right), value.closed]
    return None


def _zone_parts(zone: Any, plain: Plain) -> Any:
    """Take a time zone apart; older versions of pandas make those of pytz from their names."""
    return str(zone) if type(zone).__module__.startswith("pytz") else plain(zone)


def scalar_of_parts(kind: str, parts: Any, whole: Plain) -> Any:
    """Build a cell again that ``scalar_parts`` took apart."""
    import pandas as pd

    if kind in ("NAType", "NaTType"):
        return pd.NA if kind == "NAType" else pd.NaT
    if kind == "Timestamp":
        made, zone = pd.Timestamp(np.datetime64(parts[0], parts[1])), whole(parts[2])
        return made if zone is None else made.tz_localize("UTC").tz_convert(zone)
    if kind == "Timedelta":
        return pd.Timedelta(np.timedelta64(parts[0], parts[1]))
    if kind == "Period":
        return pd.Period(ordinal=parts[0], freq=parts[1])
    if kind == "Interval":
        return pd.Interval(whole(parts[0]), whole(parts[1]), closed=parts[2])
    raise ValueError(f"cells of the kind {kind!r} are not known")  # internal: a FileError quotes it


def frame_parts(frame: Any, plain: Plain) -> Any:
    """Take apart what a frame without rows is: names and dtypes of its columns."""
    return {
        "columns": _index_parts(frame.columns, plain),
        "dtypes": [_dtype_parts(dtype, plain) for dtype in frame.dtypes],
    }


def frame_of_parts(parts: Any, whole: Plain) -> Any:
    """Build a frame without rows again."""
    import pandas as pd

    dtypes = [_dtype_of(dtype, whole) for dtype in parts["dtypes"]]
    frame = pd.DataFrame({number: _nothing_of(dtype) for number, dtype in enumerate(dtypes)})
    frame.columns = _index_of(parts["columns"], whole)
    return frame


def _nothing_of(dtype: Any) -> Any:
    import pandas as pd

    return np.empty(0, dtype) if isinstance(dtype, np.dtype) else pd.array([], dtype=dtype)


def are_parts_of(parts: Any, frame: Any, whole: Plain) -> bool:
    """Whether a frame that is built of the parts has the same columns of the same dtypes."""
    names = _index_of(parts["columns"], whole)
    alike = names.equals(frame.columns) and names.names == frame.columns.names
    dtypes = [_dtype_of(dtype, whole) for dtype in parts["dtypes"]]
    return bool(alike and dtypes == list(frame.dtypes))


def _index_parts(index: Any, plain: Plain) -> Any:
    import pandas as pd

    names = [plain(name) for name in index.names]
    if isinstance(index, pd.MultiIndex):
        levels = [_index_parts(level, plain) for level in index.levels]
        codes = [list(map(int, one)) for one in index.codes]
        return {"levels": levels, "codes": codes, "names": names}
    if isinstance(index, pd.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "names": names}
    values = [plain(value) for value in index.tolist()]
    return {"values": values, "dtype": _dtype_parts(index.dtype, plain), "names": names}


def _index_of(parts: Any, whole: Plain) -> Any:
    import pandas as pd

    names = [whole(name) for name in parts["names"]]
    if "levels" in parts:
        levels = [_index_of(level, whole) for level in parts["levels"]]
        return pd.MultiIndex(levels=levels, codes=parts["codes"], names=names)
    if "range" in parts:
        found = pd.RangeIndex(*parts["range"], name=names[0])
        if len(found) > MOST_LABELS:
            raise ValueError(f"{len(found)} labels are more than a frame has")  # internal: as below
        return found
    values = [whole(value) for value in parts["values"]]
    dtype = _dtype_of(parts["dtype"], whole)
    return pd.Index(values, dtype=dtype, name=names[0], tupleize_cols=False)


def _dtype_parts(dtype: Any, plain: Plain) -> Any:
    """Take a dtype apart; of one of another library nothing is known but its name."""
    import pandas as pd

    if isinstance(dtype, np.dtype):
        return ["numpy", dtype.str]
    if isinstance(dtype, pd.CategoricalDtype):
        return ["category", _index_parts(dtype.categories, plain), bool(dtype.ordered)]
    if isinstance(dtype, pd.StringDtype):
        return ["string", dtype.storage, plain(dtype.na_value)]
    if isinstance(dtype, pd.DatetimeTZDtype):
        return ["zoned", dtype.unit, _zone_parts(dtype.tz, plain)]
    if isinstance(dtype, pd.PeriodDtype):
        return ["period", dtype.name]
    if isinstance(dtype, pd.IntervalDtype):
        return ["interval", _dtype_parts(dtype.subtype, plain), dtype.closed]
    if isinstance(dtype, pd.SparseDtype):
        return ["sparse", dtype.subtype.str, plain(dtype.fill_value)]
    if isinstance(dtype, pd.ArrowDtype):
        return ["arrow", *_arrow_parts(dtype.pyarrow_dtype)]
    return ["named", str(dtype)]


def _dtype_of(parts: Any, whole: Plain) -> Any:
    import pandas as pd

    kind, *rest = parts
    if kind == "numpy" and np.dtype(rest[0]).kind in "biufcmMO":
        return np.dtype(rest[0])
    if kind == "category":
        return pd.CategoricalDtype(_index_of(rest[0], whole), ordered=rest[1])
    if kind == "string":
        return _text_dtype(rest[0], whole(rest[1]))
    if kind == "zoned":
        return pd.DatetimeTZDtype(rest[0], whole(rest[1]))
    if kind == "period":
        return pd.PeriodDtype.construct_from_string(rest[0])
    if kind == "interval":
        return pd.IntervalDtype(_dtype_of(rest[0], whole), rest[1])
    if kind == "sparse":
        return pd.SparseDtype(np.dtype(rest[0]), whole(rest[1]))
    if kind == "arrow":
        return pd.ArrowDtype(_arrow_type(*rest))
    if kind == "named" and rest[0] in NULLABLE:
        return pd.api.types.pandas_dtype(rest[0])
    raise ValueError(f"columns of the dtype {parts!r} are not known")  # internal: as above


def _text_dtype(storage: str, missing: Any) -> Any:
    """Return a dtype of texts, or what this pandas has in its place.

    Without pyarrow that is texts in Python's memory; before pandas 2.3 objects, unless pd.NA is
    what is missing.
    """
    import pandas as pd

    how = () if missing is pd.NA else (missing,)
    try:
        return pd.StringDtype(storage, *how)
    except ImportError:
        return pd.StringDtype("python", *how)
    except TypeError:
        return np.dtype(object)


def _arrow_parts(kind: Any) -> list[Any]:
    """Take an Arrow type apart. Arrow's own bytes of one are not read: they may hold pickles."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        inner = [_arrow_parts(kind.index_type), _arrow_parts(kind.value_type)]
        return ["dictionary", *inner, kind.ordered]
    if pa.types.is_decimal(kind):
        return [f"decimal{kind.bit_width}", kind.precision, kind.scale]
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return ["timestamp", kind.unit, kind.tz]
    return [str(kind)]


def _arrow_type(name: str, *rest: Any) -> Any:
    import pyarrow as pa

    if name == "dictionary":
        index, value, ordered = rest
        return pa.dictionary(_arrow_type(*index), _arrow_type(*value), ordered)
    if name in ("decimal128", "decimal256", "timestamp"):
        return getattr(pa, name)(*rest)
    return pa.type_for_alias(name)
