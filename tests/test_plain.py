"""Values, dtypes and labels as JSON can hold them come back equal, and of the same type."""

import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest

from skvae._table import of_pandas
from skvae._table.plain import NotPlainError, from_plain, plain_of
from skvae._table.stored import template_of, template_parts

pa = pytest.importorskip("pyarrow")
BERLIN = ZoneInfo("Europe/Berlin")
THERE = dt.timezone(dt.timedelta(hours=2, minutes=30), "there")

VALUES = [
    *(None, True, 0, -3, 2**63 - 1, 2**63, -(2**70), 1.5, -0.0, 1e-320, np.inf, -np.inf),
    *("", "a", "ü", "\x00", "a\udc80b", b"", b"\x00\xff", 1j, complex(np.inf, 0.0)),
    *((), ("a", (1, None)), frozenset(), frozenset({1, "x", (2,)})),
    *(Decimal("0.10"), Decimal("-Infinity"), Decimal("1E+999"), Fraction(1, 3)),
    uuid.UUID(int=7),
    *(dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.timedelta(-1, 3, 4), dt.timedelta.max),
    *(dt.datetime(2020, 1, 2, 3, 4, 5, 6), dt.datetime.max, dt.datetime(2020, 1, 2, tzinfo=dt.UTC)),
    *(dt.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)),
    *(dt.time(1, 2, 3, 4), dt.time(1, tzinfo=THERE), dt.time(1, tzinfo=BERLIN)),
    *(dt.UTC, THERE, dt.timezone(-dt.timedelta(seconds=1)), BERLIN, ZoneInfo("UTC")),
    *(dt.datetime, dt.date, dt.time, dt.timedelta),
    *(np.float64(0.1), np.float32(0.1), np.float16(0.1), np.int8(-3), np.uint64(2**64 - 1)),
    *(np.bool_(True), np.str_("ü"), np.bytes_(b"a"), np.complex64(1j)),
    *(np.datetime64("2020-01-01"), np.datetime64("NaT", "ns"), np.timedelta64(3, "ms")),
    *(pd.Timestamp("2020-01-01 01:02:03.123456789"), pd.Timestamp("2020-01-01").as_unit("s")),
    *(pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert("Europe/Berlin"),),
    *(pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020", tz=THERE), pd.Timedelta("3D")),
    *(pd.Period("2020-03", "M"), pd.Period("2020", "Y"), pd.Interval(0, 1.5, closed="left")),
    pd.Interval(pd.Timestamp("2020"), pd.Timestamp("2021"), closed="both"),
]


def _again(value):
    return from_plain(json.loads(json.dumps(plain_of(value), allow_nan=False)))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    again = _again(value)
    assert type(again) is type(value)
    assert again == value or value != value
    assert isinstance(value, frozenset) or repr(again) == repr(value)  # a set has no order
    if isinstance(value, dt.datetime):
        assert again.utcoffset() == value.utcoffset()


@pytest.mark.parametrize(
    "value",
    [np.nan, np.float32("nan"), Decimal("NaN"), complex(np.nan, 0), pd.NA, pd.NaT],
    ids=lambda value: type(value).__name__,
)
def test_what_equals_nothing_comes_back_of_the_same_type(value):
    assert type(_again(value)) is type(value) and repr(_again(value)) == repr(value)


class Colour(enum.Enum):
    RED = 1


class Text(str):
    """A text of the user's own."""


OTHERS = [Colour.RED, Text("a"), object(), len, int, {1: 2}, {1}, slice(2), np.longdouble(1)]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_a_value_of_another_class_is_refused(value):
    with pytest.raises(NotPlainError):
        plain_of(value)
    with pytest.raises(NotPlainError):
        plain_of(("within", value))


# -- pandas ---------------------------------------------------------------------------------------

LABELS = [
    *([], ["a", "b"], [1, 2], range(2), range(10, 0, -3), [1.5, "a"], [None, "a"], [np.nan, 1.0]),
    *([("a", 1), ("b", 2)], [True, False], pd.Index(["a", "b"], name="n")),
    pd.MultiIndex.from_tuples([("a", 1), ("b", dt.date(2020, 1, 1))], names=["u", None]),
    *(pd.Index(["a", "b"], dtype=object), pd.Index(["x", "y"], dtype="string"), pd.Index([2, 1])),
    *(pd.date_range("2020", periods=2, name="d"), pd.date_range("2020", periods=2, tz=BERLIN)),
    *(pd.period_range("2020", periods=2, freq="Q"), pd.to_timedelta([1, 2], unit="s")),
    *(pd.cut([1, 2, 3], 2).categories, pd.CategoricalIndex(["a", "b"])),
]


def _holds_none(labels):
    """Whether they cannot be categories."""
    return isinstance(labels, pd.MultiIndex) or any(pd.isna(v) is True for v in labels)


DTYPES = [
    *("bool", "int8", "uint64", "float32", ">f8", "complex64", "object", "datetime64[ns]"),
    *("datetime64[s]", "timedelta64[ms]", "Int64", "UInt8", "Float32", "boolean"),
    *(pd.StringDtype("python"), pd.StringDtype("pyarrow"), pd.StringDtype(na_value=np.nan)),
    *(pd.DatetimeTZDtype("us", BERLIN), pd.DatetimeTZDtype("ns", "UTC")),
    *(pd.DatetimeTZDtype("s", THERE), pd.PeriodDtype("Q-DEC"), pd.PeriodDtype("h")),
    *(pd.IntervalDtype("int64", "left"), pd.IntervalDtype("datetime64[ns]", "both")),
    *(pd.SparseDtype(float, 0.0), pd.SparseDtype(float), pd.SparseDtype(bool, False)),
    pd.CategoricalDtype(["lo", "hi"], ordered=True),
    *(pd.CategoricalDtype(labels) for labels in LABELS if not _holds_none(labels)),
    *(
        pd.ArrowDtype(kind)
        for kind in (
            *(pa.int64(), pa.float16(), pa.bool_(), pa.string(), pa.large_string(), pa.binary()),
            *(
                pa.date32(),
                pa.timestamp("us"),
                pa.timestamp("us", "Europe/Berlin"),
                pa.time64("us"),
            ),
            *(pa.duration("s"), pa.decimal128(10, 2), pa.dictionary(pa.int32(), pa.string())),
        )
    ),
]


def _frame_again(frame, library="pandas"):
    return template_of(json.loads(json.dumps(template_parts(frame, library))), library)


def _assert_same_index(one, other):
    assert type(one) is type(other) and one.dtype == other.dtype
    assert one.equals(other) and one.names == other.names


@pytest.mark.parametrize(
    "labels", [one for one in LABELS if len(one)], ids=lambda value: type(value).__name__
)
def test_names_of_columns_come_back(labels):
    frame = pd.DataFrame(np.zeros((0, len(labels))))
    frame.columns = labels
    _assert_same_index(_frame_again(frame).columns, frame.columns)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda value: type(value).__name__)
def test_a_dtype_of_pandas_comes_back(dtype):
    frame = pd.DataFrame({"x": pd.Series([], dtype=dtype)})
    found, expected = _frame_again(frame).dtypes.iloc[0], frame.dtypes.iloc[0]
    assert found == expected and repr(found) == repr(expected)
    if isinstance(expected, pd.CategoricalDtype):
        _assert_same_index(found.categories, expected.categories)


def test_texts_are_what_this_pandas_has_in_their_place(monkeypatch):
    def older(storage, *na_value):
        if na_value:
            raise TypeError("__init__() takes from 1 to 2 positional arguments but 3 were given")
        raise ImportError("pyarrow>=10.0.1 is required") if storage == "pyarrow" else made(storage)

    made = pd.StringDtype
    monkeypatch.setattr(pd, "StringDtype", older)
    assert of_pandas._text_dtype("pyarrow", np.nan) == np.dtype(object)

    def without_arrow(storage, *na_value):
        if storage == "pyarrow":
            raise ImportError("pyarrow>=10.0.1 is required")
        return made(storage, *na_value)

    monkeypatch.setattr(pd, "StringDtype", without_arrow)
    assert of_pandas._text_dtype("pyarrow", pd.NA) == made("python")


# -- polars ---------------------------------------------------------------------------------------

POLARS = [
    *(
        pl.Int8,
        pl.UInt64,
        pl.Int128,
        pl.Float32,
        pl.Boolean,
        pl.String,
        pl.Binary,
        pl.Date,
        pl.Time,
    ),
    *(pl.Null, pl.Categorical, pl.Enum(["b", "a"]), pl.Datetime("us", "Europe/Berlin")),
    *(pl.Datetime("ns"), pl.Duration("ms"), pl.Decimal(10, 2)),
]
if hasattr(pl, "Categories"):
    POLARS.append(pl.Categorical(pl.Categories("name", "space", pl.UInt8)))


@pytest.mark.parametrize("dtype", POLARS, ids=lambda value: type(value).__name__)
def test_a_dtype_of_polars_comes_back(dtype):
    frame = pl.DataFrame(schema={"x": dtype})
    assert _frame_again(frame, "polars").schema == frame.schema


@pytest.mark.parametrize(
    "dtype",
    [pl.Object, pl.List(pl.Int8), pl.Struct({"a": pl.Int8})],
    ids=lambda value: type(value).__name__,
)
def test_a_dtype_that_no_column_can_have_is_refused(dtype):
    with pytest.raises(NotPlainError, match="a dtype that is not stored"):
        template_parts(pl.DataFrame(schema={"x": dtype}), "polars")
