"""Columns, and frames without their rows, as JSON can hold them, and back. No torch."""

from collections.abc import Mapping
from typing import Any

from . import of_pandas, of_polars
from .column import Column
from .plain import NotPlainError, from_plain, plain_of
from .times import Moment

LISTS = ("levels", "rare", "shares", "strays")  # fields of a column that are tuples of cells
KINDS = ("number", "boolean", "category")


def column_parts(column: Column) -> dict[str, Any]:
    """Take a column apart, or raise a NotPlainError that names it."""
    try:
        lists = {name: [plain_of(value) for value in getattr(column, name)] for name in LISTS}
        moment = None if column.moment is None else [plain_of(part) for part in column.moment]
    except NotPlainError as error:
        raise NotPlainError(
            f"column {column.name} has a level that is not stored: {error}"
        ) from None
    others = {"ordered": column.ordered, "written": column.written, "remark": column.remark}
    said = {name: value for name, value in (lists | others | {"moment": moment}).items() if value}
    return {"name": column.name, "kind": column.kind, **said}


def column_of(parts: Mapping[str, Any]) -> Column:
    """Build a column again; whatever is wrong with its parts is raised."""
    found = dict(parts)
    for name in set(LISTS) & set(found):
        found[name] = tuple(from_plain(value) for value in found[name])
    if "moment" in found:
        found["moment"] = Moment(*(from_plain(part) for part in found["moment"]))
    column = Column(**found)
    if column.kind not in KINDS or len(column.rare) != len(column.shares):
        raise ValueError(f"column {column.name} has parts that do not go together")
    hash(column.levels + column.rare)  # a TypeError where one is no level
    return column


def template_parts(template: Any, library: Any) -> Any:
    """Take a frame without rows apart, or raise a NotPlainError; None for arrays."""
    if library is None:
        return None
    module = _module_of(library)
    parts = module.frame_parts(template, plain_of)
    try:
        alike = module.are_parts_of(parts, template, from_plain)
    except (TypeError, ValueError, KeyError, AttributeError):
        alike = False
    if not alike:
        dtypes = ", ".join(dict.fromkeys(map(str, template.dtypes)))
        raise NotPlainError(f"the frame of fit has a dtype that is not stored, among {dtypes}")
    return parts


def template_of(parts: Any, library: Any) -> Any:
    """Build a frame without rows again; None for arrays."""
    return None if library is None else _module_of(library).frame_of_parts(parts, from_plain)


def _module_of(library: Any) -> Any:
    return {"pandas": of_pandas, "polars": of_polars}[library]
