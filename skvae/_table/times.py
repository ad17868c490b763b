"""Dates, times and durations as numbers of days, and back. No pandas, no polars.

A date counts in days since 1970, in UTC where it has a zone; a time of day and a duration count in
days.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1)
LAST_MICROSECOND = 86_400 * 10**6 - 1  # of a day
DATES, ZONED, DURATIONS = "dates", "dates with a time zone", "durations"
TIMES = "times of day"
KINDS: tuple[type, ...] = (datetime, date, timedelta, time)  # the first one that fits


class Moment(NamedTuple):
    """What kind of date or time a column holds."""

    what: str  # in words
    kind: type | None = None  # of the cells; None: a dtype says it
    zone: tzinfo | None = None  # of the first cell

    @property
    def object_kind(self) -> type:
        """The Python type that holds one."""
        kinds = {DURATIONS: timedelta, TIMES: time}
        return self.kind or kinds.get(self.what, datetime)


def moment_of(values: Sequence[Any]) -> Moment | None:
    """Return what all values are, if they are dates or times of one kind; else None."""
    kind = next((kind for kind in KINDS if values and isinstance(values[0], kind)), None)
    if kind is None or any(not isinstance(value, kind) for value in values):
        return None
    if kind is date and any(isinstance(value, datetime) for value in values):
        return None
    zone = getattr(values[0], "tzinfo", None)
    aware = [getattr(value, "tzinfo", None) is not None for value in values]
    if len(set(aware)) > 1:
        return None
    what = {timedelta: DURATIONS, time: TIMES}.get(kind, ZONED if aware[0] else DATES)
    return Moment(what, kind, zone)


def as_python(value: Any) -> Any:
    """Return a period, or a date or duration of NumPy, as an object of Python; others as they are.

    A period stands for its beginning.
    """
    if isinstance(value, np.datetime64 | np.timedelta64):
        return value.astype(f"{value.dtype.kind}8[us]").item()
    return value.to_timestamp() if hasattr(value, "to_timestamp") else value


def days_of(value: Any) -> float:
    """Return a date, a time or a duration as a number of days."""
    if isinstance(value, datetime):
        offset = value.utcoffset()
        since = value.replace(tzinfo=None) - EPOCH
        return (since if offset is None else since - offset) / DAY
    if isinstance(value, date):
        return float(value.toordinal() - EPOCH.toordinal())
    if isinstance(value, time):
        of_day = datetime.combine(EPOCH, value.replace(tzinfo=None)) - EPOCH
        return of_day / DAY
    return value / DAY


def from_days(days: float, moment: Moment) -> Any:
    """Return the date, time or duration that so many days are; None for nan."""
    if days != days:
        return None
    kind = moment.object_kind
    if kind is date:
        number = round(days) + EPOCH.toordinal()
        return date.fromordinal(min(max(number, 1), date.max.toordinal()))
    microseconds = round(days * DAY.total_seconds() * 1e6)
    if kind is time:
        of_day = EPOCH + timedelta(microseconds=min(max(microseconds, 0), LAST_MICROSECOND))
        return of_day.time().replace(tzinfo=moment.zone)
    ends = (timedelta.min, timedelta.max)
    if kind is datetime:  # a day inside, so that every zone has a place
        ends = (datetime.min + DAY - EPOCH, datetime.max - DAY - EPOCH)
    low, high = (end // timedelta(microseconds=1) for end in ends)
    passed = timedelta(microseconds=min(max(microseconds, low), high))
    if kind is timedelta:
        return passed
    if moment.what != ZONED:
        return EPOCH + passed
    offset_free = (EPOCH + passed).replace(tzinfo=UTC)
    return offset_free.astimezone(moment.zone or UTC)


def days_of_array(values: NDArray) -> NDArray[np.float64]:
    """Return an array of NumPy's dates or durations in days; nan where it holds none."""
    days = values.view(np.int64) / _per_day(values.dtype)
    return np.where(np.isnat(values), np.nan, days)


def array_of_days(days: NDArray, dtype: np.dtype) -> NDArray:
    """Return days as NumPy's dates or durations, within what these can hold."""
    most = float(2**62)
    ticks = np.clip(np.rint(np.nan_to_num(days) * _per_day(dtype)), -most, most)
    result = ticks.astype(np.int64).view(dtype)
    result[np.isnan(days)] = np.array("NaT", dtype)
    return result


def _per_day(dtype: np.dtype) -> float:
    unit, count = np.datetime_data(dtype)
    return float(np.timedelta64(1, "D") / np.array(1, np.dtype(f"m8[{count}{unit}]")))
