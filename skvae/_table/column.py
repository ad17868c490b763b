"""One column: what it held when it was fitted, and its cells as numbers. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .times import KINDS, Moment, days_of, from_days, moment_of

Array = NDArray[np.floating]


Unknown = Literal["ignore", "error"]


class Raw(NamedTuple):
    """A column as it was found: numbers (nan: missing), or places (-1: missing) among levels."""

    kind: Literal["number", "boolean", "category"]
    numbers: Array | None = None
    places: NDArray[np.intp] | None = None
    levels: Sequence[Any] = ()
    ordered: bool = False
    guessed: bool = False  # from the cells, as no dtype says it
    moment: Moment | None = None  # what dates or times the numbers are days of


@dataclass(frozen=True)
class Column:
    """What one column held when it was fitted.

    Attributes
    ----------
    name : str
        For messages.
    kind : {"number", "boolean", "category"}
    levels : tuple
        Levels of a category; the table holds the place of each. Of numbers that came as a category,
        its levels; else empty.
    rare : tuple
        Further levels, the most frequent first, that share the last place.
    shares : tuple of float
        How often each rare level came, among them.
    ordered : bool
        Whether the levels have an order of their own.
    strays : tuple
        Levels among numbers that are taken as missing.
    written : bool
        Whether numbers were written as text.
    remark : str
        What was decided about the column that its user should know, for a warning.
    moment : Moment or None
        What dates or times the numbers are days of.
    """

    name: str
    kind: Literal["number", "boolean", "category"]
    levels: tuple[Any, ...] = ()
    rare: tuple[Any, ...] = ()
    shares: tuple[float, ...] = ()
    ordered: bool = False
    strays: tuple[Any, ...] = ()
    written: bool = False
    remark: str = ""
    moment: Moment | None = None

    @property
    def n_levels(self) -> int:
        """Number of places; 0 for numbers. An empty category has one, which stands for nothing."""
        return max(len(self.levels) + bool(self.rare), 1) if self.kind == "category" else 0

    def encode(self, raw: Raw) -> tuple[Array, NDArray[np.intp], list[Any]]:
        """Return cells as numbers, and rows and levels of those that are not there; these miss."""
        self._check_moment(raw)
        if self.kind != "category":
            numbers = raw.numbers
            if numbers is None:
                numbers = as_numbers(raw, self.name, self.strays, self.written)
            return numbers, np.zeros(0, dtype=np.intp), []
        raw = as_levels(raw)
        assert raw.places is not None
        place_of = {level: place for place, level in enumerate(self.levels)}
        place_of |= dict.fromkeys(self.rare, len(self.levels))
        places = [place_of.get(level, np.nan) for level in raw.levels]
        cells = np.array([*places, np.nan])[raw.places]
        new = np.flatnonzero(np.isnan(cells) & (raw.places >= 0))
        return cells, new, [raw.levels[place] for place in raw.places[new]]

    def _check_moment(self, raw: Raw) -> None:
        """Raise a ValueError if only one of fit and these rows has dates."""
        holds = len(raw.levels) > 0 or (raw.numbers is not None and not np.isnan(raw.numbers).all())
        here, there = (
            "other values" if moment is None else moment.what
            for moment in (raw.moment, self.moment)
        )
        if holds and here != there:
            raise ValueError(
                f"Column {self.name} holds {here}, where fit had {there}. Convert it to what fit "
                "had."
            )

    def rare_cells(self, raw: Raw) -> tuple[NDArray[np.intp], Array]:
        """Return the rows that hold a rare level, and its log-share of the place they share."""
        raw = as_levels(raw)
        assert raw.places is not None
        share = dict(zip(self.rare, np.log(self.shares).tolist(), strict=True))
        cells = np.array([*(share.get(level, np.nan) for level in raw.levels), np.nan])[raw.places]
        rows = np.flatnonzero(~np.isnan(cells))
        return rows, cells[rows]

    def decode(self, cells: Array, generator: np.random.Generator | None) -> list[Any]:
        """Return the levels of the places, None where missing. Rare ones are drawn if need be."""
        values = [*self.levels, self.rare[0] if self.rare else None, None]
        missing = np.isnan(cells)
        places = np.where(missing, len(values) - 1, np.rint(cells)).astype(int)
        result = [values[place] for place in places]
        if self.rare and generator is not None:
            for row in np.flatnonzero(places == len(self.levels)):
                result[row] = self.rare[generator.choice(len(self.rare), p=self.shares)]
        return result

    def as_objects(self, values: Any) -> list[Any]:
        """Return days (nan or None: missing) as the dates or times that they are."""
        assert self.moment is not None
        return [from_days(np.nan if v is None else float(v), self.moment) for v in values]


def or_empty_category(raw: Raw) -> Raw:
    """Make a column for text in which nothing stands a category without levels."""
    if raw.numbers is None or not np.isnan(raw.numbers).all():
        return raw
    return Raw("category", None, np.full(len(raw.numbers), -1, dtype=np.intp))


def no_dates(name: str, kinds: set[str]) -> ValueError:
    return ValueError(
        f"Column {name} holds dates or times beside other values: {', '.join(sorted(kinds))}. Make "
        "all of them one kind of date, with a time zone or without, or all of them numbers."
    )


def raw_objects(values: list[Any], name: str) -> Raw:
    """Read Python objects: numbers if all are, else levels. None, nan and pd.NA are missing."""
    if set(map(type, values)) in ({str}, {str, type(None)}):
        return _raw_texts(values)
    missing = [is_missing(value) for value in values]
    present = [value for value, gone in zip(values, missing, strict=True) if not gone]
    if any(isinstance(value, KINDS) for value in present):
        return _raw_dates(values, missing, name)
    booleans = all(isinstance(value, bool | np.bool_) for value in present)
    if all(isinstance(value, Real | Decimal) for value in present) or booleans:
        kind: Any = "boolean" if present and booleans else "number"
        return Raw(kind, _object_numbers(values, missing, name))
    place_of: dict[Any, int] = {}
    places = np.empty(len(values), dtype=np.intp)
    for row, (value, gone) in enumerate(zip(values, missing, strict=True)):
        try:
            places[row] = -1 if gone else place_of.setdefault(value, len(place_of))
        except TypeError:
            raise TypeError(
                f"Column {name}: argument must be a string or a real number, not a "
                f"{type(value).__name__}; row {row} holds {value!r}."
            ) from None
    return Raw("category", None, places, list(place_of), guessed=True)


def _raw_texts(values: list[str | None]) -> Raw:
    """Read texts and None, of which no cell needs a look: in a sixth of the time."""
    levels = [text for text in dict.fromkeys(values) if text is not None]
    place_of: dict[str | None, int] = {text: place for place, text in enumerate(levels)}
    places = map({**place_of, None: -1}.__getitem__, values)
    return Raw("category", None, np.fromiter(places, np.intp, len(values)), levels, guessed=True)


def _raw_dates(values: list[Any], missing: list[bool], name: str) -> Raw:
    present = [value for value, gone in zip(values, missing, strict=True) if not gone]
    moment = moment_of(present)
    if moment is None:
        zones = {getattr(value, "tzinfo", None) is not None for value in present}
        kinds = {type(value).__name__ for value in present}
        raise no_dates(name, kinds if len(zones) == 1 else {*kinds, "some with a time zone"})
    days = [np.nan if gone else days_of(v) for v, gone in zip(values, missing, strict=True)]
    return Raw("number", np.array(days, dtype=np.float64), moment=moment)


def _object_numbers(values: list[Any], missing: list[bool], name: str) -> Array:
    numbers = np.full(len(values), np.nan)
    for row, (value, gone) in enumerate(zip(values, missing, strict=True)):
        try:
            numbers[row] = np.nan if gone else float(value)
        except OverflowError:
            raise ValueError(
                f"Column {name} needs numbers below 1.8e308; row {row} holds an integer of "
                f"{len(str(abs(int(value))))} digits. Use another unit, or make it missing."
            ) from None
    return numbers


def is_missing(value: Any) -> bool:
    """Whether a cell is None, nan, NA or NaT."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return bool(value != value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NAType", "NaTType")


def as_levels(raw: Raw) -> Raw:
    """Take numbers as the levels of a category."""
    if raw.kind == "category":
        return raw
    assert raw.numbers is not None
    seen = ~np.isnan(raw.numbers)
    levels, found = np.unique(raw.numbers[seen], return_inverse=True)
    places = np.full(len(raw.numbers), -1, dtype=np.intp)
    places[seen] = found
    as_bool = raw.kind == "boolean"
    named = [bool(v) if as_bool else v for v in levels.tolist()]
    return Raw("category", None, places, named, True, moment=raw.moment)


def as_numbers(raw: Raw, name: str, strays: tuple[Any, ...] = (), written: bool = False) -> Array:
    """Take levels as numbers, where that is what they are; ``strays`` are missing.

    A text that reads as a number is one where numbers may be ``written`` as text, or where all
    cells are texts: among numbers, it is an error.
    """
    assert raw.places is not None
    written |= not strays and all(isinstance(level, str | bytes) for level in raw.levels)
    values = np.full(len(raw.levels) + 1, np.nan)
    for place, level in enumerate(raw.levels):
        if level in strays:
            continue
        try:
            values[place] = _as_number(level, written)
        except (TypeError, ValueError):
            if (row := np.flatnonzero(raw.places == place)).size:
                raise ValueError(
                    f"Column {name} needs numbers; row {int(row[0])} holds {level!r}. Correct it, "
                    "or name the column in categorical_features when fitting."
                ) from None
    return values[raw.places]


def _as_number(level: Any, written: bool) -> float:
    if isinstance(level, str | bytes) and (not written or "_" in str(level)):
        raise ValueError  # internal: as_numbers says where it stands
    return float(level)


def check_finite(cells: Array, name: str) -> None:
    infinite = np.isinf(cells)
    if infinite.any():
        row = int(infinite.argmax())
        raise ValueError(
            f"Column {name} needs finite numbers; row {row} holds {cells[row]}: Input X contains "
            "infinity or a value too large. Correct it, or make it missing."
        )


def shown(level: Any) -> str:
    """Return how a message shows a level: whole numbers without the point of a float."""
    whole_float = isinstance(level, float) and abs(level) < 1e15 and level.is_integer()
    return repr(int(level) if whole_float else level)


def some_of(levels: Sequence[Any], most: int = 5) -> str:
    shown_levels = ", ".join(map(shown, levels[:most]))
    return shown_levels + (f" and {len(levels) - most} more" if len(levels) > most else "")


def whole(values: Array, lower: int, upper: int) -> Array:
    """Turn values into whole numbers that integers between these bounds can hold.

    The largest 64-bit integers are no floats: rounding them up would make a cast wrap around.
    """
    top = float(upper)
    top = top if int(top) <= upper else float(np.nextafter(top, 0.0))
    return np.clip(np.rint(np.asarray(values, dtype=np.float64)), float(lower), top)


def within(values: Array, dtype: Any) -> Array:
    """Keep numbers within what a shorter float dtype can hold: a cast would make them infinite."""
    limits = np.finfo(dtype)
    return values if limits.bits >= 64 else np.clip(values, limits.min, limits.max)


def largest_decimal(digits: int, scale: int) -> float:
    """Return the largest float that a decimal of so many digits can hold."""
    most = float(10**digits - 1) / 10.0**scale
    return most if digits <= 15 else most * (1.0 - 1e-15)  # floats have 15 to 16 digits


def nearest(values: Array, levels: Any) -> NDArray[np.intp]:
    """Place of the level that, as a number, is the nearest to each value."""
    distance = np.abs(values[:, None] - np.array([float(level) for level in levels]))
    return np.nan_to_num(distance, nan=np.inf).argmin(axis=1)
