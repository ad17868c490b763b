"""Rows as a graph is fed them, as the table and the encoded rows of a fitted model."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .._fitted import Fitted
from .._table.column import Array, Column, shown
from .._table.columns import FARTHEST
from .._table.schema import Schema
from .functions import look_up
from .graph import Graph
from .shapes import Shapes
from .traced import Traced, given

HOLES = ("", "nan", "None", "<NA>", "NaN", "NaT")  # texts that stand for a missing one
TEXT = "text"


class Feed(NamedTuple):
    """One input of a graph, of some columns."""

    name: str
    element: torch.dtype | str  # TEXT, or the dtype of numbers
    n_columns: int


class Cells(NamedTuple):
    """Rows as a table: a number for each cell, nan where it is missing."""

    table: Any  # (N, D)
    unseen: Any  # (N, D)   what fit has not seen is missing, too
    cost: Any  # (N,)       nats of what the model does not tell from other values
    wrong: Any  # (N,)      rows for which the estimator has an error instead of a result
    scores: Any  # (N, S)   normal scores of the columns that have a shape; None: none has


class Encoded(NamedTuple):
    """Rows as the model sees them."""

    x: Any  # (N, D)
    observed: Any  # (N, D)
    cells: Cells


def labels_of(schema: Schema) -> list[str]:
    """Return what the columns are called, as texts: in arrays, x0, x1 and so on."""
    columns = range(len(schema.columns)) if schema.template is None else schema.template.columns
    return [f"x{name}" if schema.template is None else str(name) for name in columns]


def feeds_of(fitted: Fitted, dtype: torch.dtype) -> list[Feed]:
    """Return the inputs of a graph: one matrix of an array of numbers, else one of each column."""
    schema, labels = fitted.schema, labels_of(fitted.schema)
    if schema.library is None and (schema.numeric or schema.plain):
        return [Feed("X", dtype, len(schema.columns))]
    if "" in labels:
        raise ValueError("A column of the fitted table has no name. ONNX inputs need one each.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ValueError(
            f"Two columns of the fitted table would both be the input {twice!r}. Give them names "
            "that differ as text."
        )
    return [
        Feed(label, _element_of(column, dtype), 1)
        for label, column in zip(labels, schema.columns, strict=True)
    ]


def _element_of(column: Column, dtype: torch.dtype) -> torch.dtype | str:
    if is_text(column):
        return TEXT
    return torch.float64 if column.moment is not None else dtype  # float32 would lose hours


def is_text(column: Column) -> bool:
    """Whether a column is fed as texts; raise a ValueError if it is neither text nor numbers."""
    levels = [*column.levels, *column.rare]
    if column.kind != "category":
        return False
    if all(isinstance(level, str) for level in levels):
        return True
    if column.moment is None and all(isinstance(level, bool | int | float) for level in levels):
        return False
    raise ValueError(
        f"Column {column.name} has levels that are neither all texts nor all numbers, such as "
        f"{shown(levels[0])}, and ONNX has no such tensor. Turn them into texts before fit."
    )


def read(graph: Graph, feeds: Sequence[Feed], fitted: Fitted, unknown: str) -> Encoded:
    """Read what the graph is fed, as ``Fitted.read_all`` and ``Columns.encode`` read rows."""
    table = _table(Fed(graph, feeds, fitted.schema.columns), fitted, unknown)
    return _encoded(fitted, _supported(fitted, _widened(fitted, table), unknown))


class Fed:
    """The inputs of a graph, by column; these have names, for messages."""

    def __init__(self, graph: Graph, feeds: Sequence[Feed], columns: Sequence[Any]) -> None:
        n_fed = sum(feed.n_columns for feed in feeds)
        if n_fed != len(columns):
            raise ValueError(
                f"The graph is fed {n_fed} columns, but the model was fitted to {len(columns)}."
            )
        self.graph, self.columns = graph, columns
        graph.give(feeds[0].name)
        self.n_rows = graph.new_size(feeds[0].name, 0)
        self._feeds = feeds
        self._places = [(feed, place) for feed in feeds for place in range(feed.n_columns)]

    def number(self, column: int) -> Any:  # (N, 1)
        feed, place = self._places[column]
        matrix = self._numbers(feed, column)
        return matrix if feed.n_columns == 1 else matrix[:, place : place + 1]

    def all_numbers(self) -> Any:  # (N, D)
        parts, column = [], 0
        for feed in self._feeds:
            parts.append(self._numbers(feed, column))
            column += feed.n_columns
        return torch.cat(parts, 1)

    def _numbers(self, feed: Feed, column: int) -> Any:
        if isinstance(feed.element, str):
            raise ValueError(
                f"Column {self.columns[column].name} is one of numbers, but the graph is fed texts."
            )
        shape = (self.n_rows, feed.n_columns)
        return given(self.graph, feed.name, feed.element, shape).double()

    def code(self, column: int, levels: Sequence[Any]) -> Any:  # (N, 1)
        """Return the place of each cell among levels; after them comes unseen, then missing."""
        feed, place = self._places[column]
        if feed.element != TEXT:
            return self._code_of_numbers(column, levels, feed.element)
        if any(not isinstance(level, str) for level in levels):
            raise ValueError(
                f"Column {self.columns[column].name} has levels that are numbers, such as "
                f"{shown(levels[0])}, but the graph is fed texts."
            )
        name = self.graph.give(feed.name)
        if feed.n_columns > 1:
            index = self.graph.constant(np.array([place]))
            (name,) = self.graph.node("Gather", [name, index], axis=1)
        return self._code_of_texts(name, levels)

    def _code_of_texts(self, name: str, levels: Sequence[str]) -> Any:
        holes = [word for word in HOLES if word not in levels]
        (code,) = self.graph.node(
            "LabelEncoder",
            [name],
            domain="ai.onnx.ml",
            keys_strings=[*levels, *holes],
            values_int64s=[*range(len(levels)), *[len(levels) + 1] * len(holes)],
            default_int64=len(levels),
        )
        meta = torch.empty((self.n_rows, 1), dtype=torch.int64, device="meta")
        return Traced(self.graph, code, meta)

    def _code_of_numbers(self, column: int, levels: Sequence[Any], element: Any) -> Any:
        if any(isinstance(level, str) for level in levels):
            raise ValueError(
                f"Column {self.columns[column].name} has levels that are texts, such as "
                f"{shown(levels[0])}, but the graph is fed numbers."
            )
        cells = self.number(column)
        held = torch.tensor([float(level) for level in levels], dtype=torch.float64)
        near = held.to(element).double() if element == torch.float32 else held
        if len(near.unique()) < len(near):
            raise ValueError(
                f"Column {self.columns[column].name} has levels that are equal in float32. Use "
                "dtype='float64'."
            )
        same = cells == near
        missing = torch.where(cells.isnan(), len(levels) + 1, len(levels))
        if not levels:
            return missing
        code = same.long().argmax(1)[:, None]
        return torch.where(same.any(1, True), code, missing)


class _Table(NamedTuple):
    """Rows as they are fed, before anything is asked of their numbers."""

    cells: Any  # (N, D)
    unseen: Any  # (N, D)
    cost: Any  # (N,)
    wrong: Any  # (N,)


def _table(fed: Fed, fitted: Fitted, unknown: str) -> _Table:
    columns = fed.columns
    levels = [n for n, column in enumerate(columns) if column.kind == "category"]
    others = [n for n in range(len(columns)) if n not in levels]
    numbers = [fed.number(n) for n in others] if levels else [fed.all_numbers()]
    if not levels:
        infinite, none = numbers[0].isinf(), numbers[0].new_zeros(numbers[0].shape[:1])
        return _Table(numbers[0], infinite & ~infinite, none, infinite.any(1))
    known = _Levels([columns[n] for n in levels], fitted.columns.log_unseen, levels)
    codes = [fed.code(n, [*columns[n].levels, *columns[n].rare]) for n in levels]
    code = torch.cat(codes, 1) + known.offset
    new = look_up(known.unseen, code)
    cells = in_order([*numbers, look_up(known.place, code)], [*others, *levels])
    unseen = _spread(new, levels, len(columns))
    wrong = cells.isinf().any(1)
    wrong = wrong | new.any(1) if unknown == "error" else wrong
    return _Table(cells, unseen, look_up(known.cost, code).sum(1), wrong)


class _Levels:
    """What stands for each code of some categories, one after the other."""

    def __init__(
        self, columns: Sequence[Column], log_unseen: Array | None, numbers: Sequence[int]
    ) -> None:
        mass = np.zeros(max(numbers) + 1) if log_unseen is None else log_unseen
        places, costs, unseen = [], [], []
        for column, number in zip(columns, numbers, strict=True):
            n, n_rare = len(column.levels), len(column.rare)
            places.append([*range(n), *[n] * n_rare, math.nan, math.nan])
            costs.append([*[0.0] * n, *np.log(column.shares), mass[number], 0.0])
            unseen.append([*[False] * (n + n_rare), True, False])
        sizes = np.array([len(one) for one in places])
        self.offset = torch.tensor(np.cumsum(sizes) - sizes)
        self.place = torch.tensor(np.concatenate(places), dtype=torch.float64)
        self.cost = torch.tensor(np.concatenate(costs), dtype=torch.float64)
        self.unseen = torch.tensor(np.concatenate(unseen), dtype=torch.bool)


def _widened(fitted: Fitted, table: _Table) -> _Table:
    """Append the columns that say where values are missing."""
    first = [group[0] for group in fitted.schema.holes]
    if not first:
        return table
    lost = table.cells[:, first].isnan() & ~table.unseen[:, first]
    n_columns = len(fitted.columns)
    unseen = _spread(table.unseen, range(n_columns - len(first)), n_columns)
    return table._replace(cells=torch.cat([table.cells, lost.double()], 1), unseen=unseen)


def _supported(fitted: Fitted, table: _Table, unknown: str) -> Cells:
    """Make cells missing that have no density."""
    columns, (cells, unseen, cost, wrong) = fitted.columns, table
    shaped = list(columns.shapes)
    scores = Shapes([*columns.shapes.values()]).scores(cells[:, shaped]) if shaped else None
    if columns.limits.none:
        return Cells(cells, unseen, cost, wrong, scores)
    outside = _outside(columns.limits, cells)
    if scores is not None:
        homeless = scores.isnan() & ~cells[:, shaped].isnan()
        outside = outside | _spread(homeless, shaped, len(columns))
    lenient = torch.tensor(columns.kinds.automatic & (unknown == "ignore"))
    wrong = wrong | (outside & ~lenient).any(1)
    outside = outside & lenient
    if columns.log_unseen is not None:
        cost = cost + (outside * torch.tensor(columns.log_unseen)).sum(1)
    return Cells(torch.where(outside, math.nan, cells), unseen | outside, cost, wrong, scores)


def _outside(limits: Any, table: Any) -> Any:  # (N, D)
    lower, upper, whole = map(torch.tensor, (limits.lower, limits.upper, limits.whole))
    outside = (table < lower) | (table > upper)
    if bool(whole.any()):
        outside = outside | (whole & ~table.isnan() & (table.round() != table))
    return outside


def in_order(parts: Sequence[Any], columns: Sequence[int]) -> Any:  # (N, D)
    """Put columns together that are of these numbers."""
    return torch.cat(list(parts), 1)[:, torch.tensor(columns).argsort()]


def _spread(values: Any, places: Sequence[int], n_columns: int) -> Any:  # (N, S) -> (N, D)
    """Put columns in their places among others of 0, or of false."""
    source = torch.full((n_columns,), len(places))
    source[list(places)] = torch.arange(len(places))
    return torch.cat([values, torch.zeros_like(values[:, :1])], 1)[:, source]


def _encoded(fitted: Fitted, cells: Cells) -> Encoded:
    columns = fitted.columns
    x = (cells.table - torch.tensor(columns.shift)) / torch.tensor(columns.scale)
    if cells.scores is not None:
        shaped = list(columns.shapes)
        others = [n for n in range(len(columns)) if n not in shaped]
        x = in_order([x[:, others], cells.scores], [*others, *shaped])
    missing = cells.table.isnan()
    if columns.empty is not None:
        missing = missing | torch.tensor(columns.empty)
    x = torch.where(missing, torch.tensor(columns.fill), x)
    return Encoded(x.clamp(-FARTHEST, FARTHEST), ~missing, cells)
