"""Rows that a graph makes: in the user's units, and as the kind of table that was fitted."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto, ValueInfoProto, helper

from .._fitted import Fitted
from .._table.column import Column
from .._table.columns import Columns
from .functions import look_up
from .inputs import in_order, is_text
from .loops import described
from .shapes import Shapes

INTEGER = re.compile(r"\b(u?int(?:8|16|32|64))\b")
LARGEST = float(np.nextafter(2.0**63, 0.0))  # the last float below the end of int64


class Output(NamedTuple):
    """A value that the graph gives back."""

    value: str
    info: ValueInfoProto


def numbers(name: str, value: Any, dtype: torch.dtype) -> Output:
    """Return numbers as an output, within what a dtype can hold."""
    limits = torch.finfo(dtype)
    value = value.clamp(limits.min, limits.max).to(dtype)
    return Output(value.name, described(value, name))


def decoded(columns: Columns, x: Any) -> Any:  # (N, D)
    """Turn x into the user's units, as ``Columns.decode``."""
    varying = torch.where(torch.tensor(columns.constant), 0.0, x)
    cells = varying * torch.tensor(columns.scale) + torch.tensor(columns.shift)
    if not columns.shapes:
        return cells
    shaped = list(columns.shapes)
    others = [n for n in range(len(columns)) if n not in shaped]
    values = Shapes([*columns.shapes.values()]).values(x[:, shaped])
    return in_order([cells[:, others], values], [*others, *shaped])


def table_of(
    fitted: Fitted, labels: Sequence[str], cells: Any, dtype: torch.dtype
) -> list[Output]:  # of (N, D)
    """Return a table as ``Schema.write`` does: a matrix, or a value for each column of a frame."""
    schema = fitted.schema
    own = [cells[:, number : number + 1] for number in range(len(schema.columns))]
    if schema.library is None and (schema.numeric or schema.plain):
        pairs = zip(schema.columns, own, strict=True)
        parts = [_levels_at(column, part) if column.levels else part for column, part in pairs]
        return [numbers("X", torch.cat(parts, 1), dtype)]
    dtypes = ["object"] * len(labels) if schema.template is None else schema.template.dtypes
    dtypes = [f"{schema.library} {kind}".lower() for kind in dtypes]
    return [
        _column(label, part, column, (kind, dtype))
        for label, part, column, kind in zip(labels, own, schema.columns, dtypes, strict=True)
    ]


def _column(label: str, cells: Any, column: Column, how: tuple[str, torch.dtype]) -> Output:
    """Return one column (N, 1) as what it was in the frame."""
    kind, dtype = how
    if column.kind == "category":
        found = _texts(label, cells, column) if is_text(column) else None
        return found or numbers(label, _levels_at(column, cells), dtype)
    if column.moment is not None:
        return numbers(label, cells, torch.float64)
    if column.levels and (kind.startswith("polars") or kind == "pandas category"):
        return numbers(label, _nearest(column, cells), dtype)
    if column.kind == "boolean" and not kind.startswith("none"):
        truth = cells > 0.5
        return Output(truth.name, described(truth, label))
    if integer := INTEGER.search(kind):
        bounds = np.iinfo(integer[1])
        whole = cells.round().clamp(float(bounds.min), min(float(bounds.max), LARGEST)).long()
        return Output(whole.name, described(whole, label))
    return numbers(label, cells, dtype)


def _texts(label: str, cells: Any, column: Column) -> Output:
    levels = [*column.levels, *column.rare[:1]] or [""]
    table = cells.graph.constant(np.array(levels, dtype=object))
    (found,) = cells.graph.node("Gather", [table, cells.round().long().name], axis=0)
    return Output(found, helper.make_tensor_value_info(label, TensorProto.STRING, [None, 1]))


def _levels_at(column: Column, cells: Any) -> Any:
    levels = [float(level) for level in [*column.levels, *column.rare[:1]]] or [math.nan]
    return look_up(torch.tensor(levels, dtype=torch.float64), cells.round().long())


def _nearest(column: Column, cells: Any) -> Any:  # (N, 1)
    levels = torch.tensor([float(level) for level in column.levels], dtype=torch.float64)
    return look_up(levels, (cells - levels).abs().argmin(1)[:, None])
