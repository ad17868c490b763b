"""What is polars' own: series to raw columns, columns to frames, cells in place."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
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
)
from .of_pandas import indicator_of
from .times import DATES, DURATIONS, TIMES, ZONED, Moment

SHORT_FLOATS: dict[str, Any] = {"Float16": np.float16, "Float32": np.float32}


def raw_polars(series: Any, name: str) -> Raw:
    import polars as pl

    dtype = series.dtype
    if dtype == pl.Boolean or dtype.is_numeric():
        numbers = series.cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
        return Raw("boolean" if dtype == pl.Boolean else "number", numbers)
    if dtype.is_temporal():
        ticks = series.to_physical().cast(pl.Float64).fill_null(np.nan).to_numpy()
        zoned = getattr(dtype, "time_zone", None) is not None
        what = {pl.Duration: DURATIONS, pl.Time: TIMES}.get(
            dtype.base_type(), ZONED if zoned else DATES
        )
        return Raw("number", ticks / _per_day(dtype), moment=Moment(what))
    if dtype == pl.Object:
        raise ValueError(
            f"Column {name} is a polars Object, which polars cannot write back. Cast it to "
            "numbers, String, Categorical or Enum."
        )
    if dtype == pl.Enum:
        raw = raw_objects(series.to_list(), name)
        return _relevelled(raw, dtype.categories.to_list())
    return or_empty_category(raw_objects(series.to_list(), name))


def _relevelled(raw: Raw, levels: list[Any]) -> Raw:
    if raw.places is None:  # nothing but missing values
        assert raw.numbers is not None
        return Raw("category", None, np.full(len(raw.numbers), -1), levels, True)
    place = {level: number for number, level in enumerate(levels)}
    mapping = np.array([*(place[level] for level in raw.levels), -1])
    return Raw("category", None, mapping[raw.places], levels, True)


def to_polars(columns: list[Any], kinds: Sequence[Column], template: Any) -> Any:
    import polars as pl

    series = []
    for values, column, (name, dtype) in zip(columns, kinds, template.schema.items(), strict=True):
        if column.moment is not None:
            series.append(_dates(name, values, dtype))
            continue
        if column.kind == "category":
            as_text = dtype == pl.Categorical or dtype == pl.Enum
            made = pl.Series(name, values, dtype=pl.String if as_text else None, strict=False)
            if dtype == pl.Enum:  # of another table than that of fit, it may lack levels
                dtype = pl.Enum(list(dict.fromkeys([*dtype.categories, *made.drop_nulls()])))
            series.append(made.cast(dtype))
            continue
        if column.levels:  # numbers that came as a category
            near = [column.levels[place] for place in nearest(values, column.levels)]
            series.append(pl.Series(name, near, dtype=pl.String).cast(dtype))
            continue
        series.append(_polars_numbers(name, values, column.kind == "boolean", dtype))
    return pl.DataFrame(series)


def _dates(name: str, values: Any, dtype: Any) -> Any:
    """Turn days into the dates, times or durations of a dtype."""
    import polars as pl

    days = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    low, high = -(2.0**62), 2.0**62
    if dtype == pl.Time:
        low, high = 0.0, 86_400e9 - 1.0
    elif dtype == pl.Date:
        low, high = -719_162.0, 2_932_896.0  # the years 1 and 9999
    ticks = np.clip(np.rint(days * _per_day(dtype)), low, high)
    made = pl.Series(name, ticks).fill_nan(None).cast(pl.Int64)
    return (made.cast(pl.Int32) if dtype == pl.Date else made).cast(dtype)


def _per_day(dtype: Any) -> float:
    """Return how many units of a temporal dtype are a day."""
    import polars as pl

    if dtype == pl.Date:
        return 1.0
    return 86_400.0 * {"ms": 1e3, "us": 1e6, "ns": 1e9}[getattr(dtype, "time_unit", None) or "ns"]


def _polars_numbers(name: str, values: Any, boolean: bool, dtype: Any) -> Any:
    import polars as pl

    if dtype.is_integer():
        lower, upper = pl.select(dtype.min()).item(), pl.select(dtype.max()).item()
        rounded = whole(values, lower, upper)
        cells: list[Any] = [None if value != value else int(value) for value in rounded]
        return pl.Series(name, cells, dtype=dtype)
    if dtype == pl.Null:  # which holds nothing else
        return pl.Series(name, [None] * len(values), dtype)
    made = pl.Series(name, [None if value != value else value for value in values], pl.Float64)
    return as_polars(made > 0.5 if boolean else made, dtype)


def as_polars(numbers: Any, dtype: Any) -> Any:
    """Turn numbers into a dtype, within what it can hold; a probability becomes true or false."""
    import polars as pl

    if not numbers.dtype.is_float():
        return numbers.cast(dtype)
    if dtype == pl.Boolean:
        return numbers > 0.5
    if dtype.is_integer():
        return numbers.round().cast(dtype)
    if dtype.is_decimal():
        most = largest_decimal(dtype.precision or 38, dtype.scale)
        return numbers.clip(-most, most).cast(dtype)
    if str(dtype) in SHORT_FLOATS:
        limits = np.finfo(SHORT_FLOATS[str(dtype)])
        numbers = numbers.clip(float(limits.min), float(limits.max))
    return numbers.cast(dtype)


def polars_missing(series: Any, marker: Any) -> NDArray[np.bool_]:
    gone = series.is_null()
    if series.dtype.is_float():
        gone = gone | series.is_nan().fill_null(False)
    is_text = str(series.dtype).startswith(("String", "Categorical", "Enum"))
    if isinstance(marker, str) and is_text:
        gone = gone | (series.cast(str) == marker).fill_null(False)
    elif marker is not None and not isinstance(marker, str) and series.dtype.is_numeric():
        with suppress(OverflowError):  # no cell of this dtype can be the marker
            gone = gone | (series == marker).fill_null(False)
    return np.asarray(gone.to_numpy())


def emptied_polars(X: Any, missing: NDArray[np.bool_]) -> Any:
    """Return X without these cells."""
    import polars as pl

    columns = [
        series.zip_with(~pl.Series(gone), pl.Series([None] * len(series), dtype=series.dtype))
        for series, gone in zip(X, missing.T, strict=True)
    ]
    return pl.DataFrame(columns)


def filled_polars(X: Any, missing: NDArray[np.bool_], place: Any, values: Any) -> list[Any]:
    """Return the columns of X with its missing cells from the rows ``place`` of ``values``."""
    import polars as pl

    columns = X.get_columns()
    for column in np.flatnonzero(missing.any(axis=0)):
        series = columns[column]
        other = values.to_series(int(column))[place]
        if series.dtype == pl.Enum and other.dtype == pl.Enum:  # maybe of fewer levels than in fit
            both = dict.fromkeys([*series.dtype.categories, *other.dtype.categories])
            series = series.cast(pl.Enum(list(both)))
        columns[column] = series.zip_with(
            ~pl.Series(missing[:, column]), as_polars(other, series.dtype)
        )
    return columns


def indicated_polars(
    columns: list[Any], X: Any, missing: NDArray[np.bool_], indicated: NDArray[np.intp]
) -> Any:
    """Make a frame of columns, and one for each ``indicated`` one: where it was missing."""
    import polars as pl

    indicators = [
        pl.Series(indicator_of(X.columns[column]), missing[:, column]) for column in indicated
    ]
    # Without any column polars would forget how many rows there are.
    return pl.DataFrame([*columns, *indicators]) if columns or indicators else X.drop(X.columns)


# -- as data --------------------------------------------------------------------------------------

# Dtypes that their names say all of.
NAMED = ["Boolean", "String", "Binary", "Date", "Time", "Null", "Float16", "Float32", "Float64"]
NAMED += [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64, 128)]


def frame_parts(frame: Any, plain: Any) -> Any:
    """Take apart what a frame without rows is: names and dtypes of its columns."""
    return [[name, _dtype_parts(dtype)] for name, dtype in frame.schema.items()]


def frame_of_parts(parts: Any, whole: Any) -> Any:
    """Build a frame without rows again."""
    import polars as pl

    return pl.DataFrame(schema={name: _dtype_of(*dtype) for name, dtype in parts})


def are_parts_of(parts: Any, frame: Any, whole: Any) -> bool:
    """Whether a frame that is built of the parts has the same columns of the same dtypes."""
    return bool(frame_of_parts(parts, whole).schema == frame.schema)


def _dtype_parts(dtype: Any) -> list[Any]:
    kind = str(dtype.base_type())
    if kind == "Enum":
        return [kind, dtype.categories.to_list()]
    if kind == "Categorical":
        own = getattr(dtype, "categories", None)
        if own is None or own.is_global():
            return [kind]
        return [kind, own.name(), own.namespace(), str(own.physical())]
    of_kind = {
        "Datetime": ("time_unit", "time_zone"),
        "Duration": ("time_unit",),
        "Decimal": ("precision", "scale"),
    }
    return [kind, *(getattr(dtype, name) for name in of_kind.get(kind, ()))]


def _dtype_of(kind: str, *parts: Any) -> Any:
    import polars as pl

    if kind == "Categorical" and parts:
        name, namespace, physical = parts
        return pl.Categorical(pl.Categories(name, namespace, _dtype_of(physical)))
    if kind in ("Enum", "Categorical", "Datetime", "Duration", "Decimal") or kind in NAMED:
        return getattr(pl, kind)(*parts)
    raise ValueError(f"columns of the dtype {kind!r} are not known")  # internal: for FileError


def lazy_parts(frame: Any, n_rows: int) -> Iterator[Any]:
    """Yield frames of about so many rows of a lazy one, in its order."""
    for part in frame.collect_batches(chunk_size=n_rows, maintain_order=True):
        if part.height:
            yield part


def lazy_rows(frame: Any) -> int:
    """Count the rows of a lazy frame."""
    import polars as pl

    return int(frame.select(pl.len()).collect().item())


def polars_of_arrow(table: Any) -> Any:
    """Make a frame of a table of Arrow's."""
    import polars as pl

    return pl.from_arrow(table)


def common_polars(heads: Sequence[Any]) -> Any:
    """Return a frame without rows, whose dtypes hold what those of all parts do."""
    return joined_polars(heads).head(0)


def joined_polars(parts: Sequence[Any]) -> Any:
    """Put frames one below the other."""
    import polars as pl

    return pl.concat(parts, how="vertical_relaxed")
