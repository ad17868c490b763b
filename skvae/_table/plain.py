"""Values as JSON can hold them, and back: levels, names of columns, dates. No torch.

A *plain* value is None, a bool, an int of 64 bits, a finite float or a text as it is, and anything
else as ``{kind: parts}``. What is built from it is equal to the value and of the same type. The
kinds are a closed set, so that reading a plain value runs nothing that the value brings along.
"""

import base64
import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from .of_pandas import scalar_of_parts, scalar_parts
from .times import KINDS

LARGEST = 2**63 - 1  # of an integer as it is
NUMPY_KINDS = "biufcSUMm"  # of scalars
LONGEST = {"f": 8, "c": 16}  # bytes of those that Python's numbers hold without loss


class NotPlainError(TypeError):
    """A value is of a kind that is not stored."""


class Kind(NamedTuple):
    """How values of one type are taken apart, and built again."""

    type: type
    parts: Callable[[Any], Any]
    build: Callable[[Any], Any]


def plain_of(value: Any) -> Any:
    """Return a value as JSON can hold it, or raise a NotPlainError."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int and abs(value) <= LARGEST:
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind in NAMES:
        name = NAMES[kind]
        return {name: CODECS[name].parts(value)}
    if isinstance(value, np.generic):
        return {"numpy": _numpy_parts(value)}
    if kind.__module__.startswith("pytz") and getattr(value, "zone", None):
        return {"zone": value.zone}  # the same zone by today's standard library
    if kind.__module__.startswith("pandas"):
        found = _pandas_parts(value)
        if found is not None:
            return {f"pandas.{kind.__name__}": found}
    raise NotPlainError(f"{value!r} is a {kind.__module__}.{kind.__qualname__}")


def from_plain(plain: Any) -> Any:
    """Return the value that a plain one stands for; whatever is wrong with it is raised."""
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    ((name, parts),) = plain.items()
    if name in CODECS:
        return CODECS[name].build(parts)
    if name == "numpy":
        return _numpy_of_parts(*parts)
    if name.startswith("pandas."):
        return scalar_of_parts(name.removeprefix("pandas."), parts, from_plain)
    raise ValueError(f"values of the kind {name!r} are not known")


def _listed(values: Any) -> list[Any]:
    return [plain_of(value) for value in values]


def _each(parts: Any) -> list[Any]:
    return [from_plain(part) for part in parts]


def _date_parts(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None).isoformat(), value.fold, plain_of(value.tzinfo)]


def _date_of(kind: Any) -> Callable[[Any], Any]:
    def build(parts: Any) -> Any:
        text, fold, zone = parts
        return kind.fromisoformat(text).replace(tzinfo=from_plain(zone), fold=fold)

    return build


def _zone_parts(zone: dt.timezone) -> list[Any]:
    offset, name = zone.utcoffset(None), zone.tzname(None)
    plain = dt.timezone(offset)
    return [plain_of(offset), None if name == plain.tzname(None) else name]


def _zone_of(parts: Any) -> dt.timezone:
    offset, name = from_plain(parts[0]), parts[1]
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


def _key(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise NotPlainError(f"{zone!r} was made from a file and has no name")
    return zone.key


def _pandas_parts(value: Any) -> Any:
    """Take apart what pandas alone has; None where it would not come back equal."""
    parts = scalar_parts(value, plain_of)
    if parts:
        try:
            again = scalar_of_parts(type(value).__name__, parts, from_plain)
        except (TypeError, ValueError, KeyError):
            return None
        parts = parts if type(again) is type(value) and again == value else None
    return parts


def _type_name(value: type) -> str:
    if value not in KINDS:
        raise NotPlainError(f"{value!r} is a class")
    return value.__name__


def _type_of(name: str) -> type:
    return {kind.__name__: kind for kind in KINDS}[name]


CODECS = {
    "int": Kind(int, hex, lambda text: int(text, 16)),
    "float": Kind(float, repr, float),
    "complex": Kind(complex, lambda v: _listed([v.real, v.imag]), lambda p: complex(*_each(p))),
    "bytes": Kind(
        bytes,
        lambda value: base64.b64encode(value).decode(),
        lambda text: base64.b64decode(text, validate=True),
    ),
    "tuple": Kind(tuple, _listed, lambda parts: tuple(_each(parts))),
    "list": Kind(list, _listed, _each),
    "frozenset": Kind(
        frozenset,
        lambda value: sorted(_listed(value), key=repr),
        lambda parts: frozenset(_each(parts)),
    ),
    "decimal": Kind(Decimal, str, Decimal),
    "fraction": Kind(
        Fraction,
        lambda value: _listed([value.numerator, value.denominator]),
        lambda parts: Fraction(*_each(parts)),
    ),
    "uuid": Kind(UUID, str, UUID),
    "date": Kind(dt.date, dt.date.isoformat, dt.date.fromisoformat),
    "datetime": Kind(dt.datetime, _date_parts, _date_of(dt.datetime)),
    "time": Kind(dt.time, _date_parts, _date_of(dt.time)),
    "timedelta": Kind(
        dt.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: dt.timedelta(*parts),
    ),
    "timezone": Kind(dt.timezone, _zone_parts, _zone_of),
    "zone": Kind(ZoneInfo, _key, ZoneInfo),
    "type": Kind(type, _type_name, _type_of),
}
NAMES = {kind.type: name for name, kind in CODECS.items()}


def _numpy_parts(value: np.generic) -> list[Any]:
    dtype = value.dtype
    if dtype.kind not in NUMPY_KINDS or dtype.itemsize > LONGEST.get(dtype.kind, math.inf):
        raise NotPlainError(f"{value!r} is a numpy.{type(value).__name__}")
    if dtype.kind in "Mm":
        return [dtype.str, int(value.view(np.int64))]
    return [dtype.str, plain_of(value.item())]


def _numpy_of_parts(code: str, part: Any) -> np.generic:
    dtype = np.dtype(code)
    if dtype.kind not in NUMPY_KINDS or dtype.names is not None or dtype.subdtype is not None:
        raise ValueError(f"NumPy scalars of the dtype {code!r} are not stored")
    if dtype.kind in "Mm":
        return np.int64(part).view(dtype)
    return dtype.type(from_plain(part))
