"""Encoders of scikit-learn's that were fitted to holes, as tables of what they make of each level.

The converters of skl2onnx write a missing level as the text "None" or "nan", and as an integer
where the encoder makes nan of it.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from .._files.composites import is_ours, parts_within
from .._table.column import Array, is_missing
from .functions import look_up
from .inputs import Fed

ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)
NOWHERE = 2**31  # a place that no table has: there a graph ends with an error


class Levels(NamedTuple):
    """One column of an encoder, and what this makes of its cells."""

    name: str
    levels: list[Any]
    rows: Array  # (R, W)
    places: list[int]  # among the rows: of each level, of what fit has not seen, of a hole


class LevelTable(OneHotEncoder):
    """What an encoder makes of each level. skl2onnx gives only encoders their columns apart."""

    def __init__(self, columns: Sequence[Levels] = ()) -> None:
        self.columns = columns

    @property
    def width(self) -> int:
        """Number of columns that the encoder makes."""
        return sum(column.rows.shape[1] for column in self.columns)

    def encoded(self, fed: Fed) -> Any:  # (N, W)
        """Write the graph of the encoder's ``transform``."""
        parts = []
        for number, column in enumerate(self.columns):
            place = look_up(torch.tensor(column.places), fed.code(number, column.levels)[:, 0])
            parts.append(look_up(torch.from_numpy(column.rows), place))
        return torch.cat(parts, 1)


def with_tables(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that has tables in place of the encoders that were fitted to holes."""
    parts = list(parts_within(pipeline, lambda p: is_ours(p) or type(p) in ENCODERS, set()))
    tables = {id(part): _table_of(part) for part in parts if _knows_holes(part)}
    if not tables:
        return pipeline
    return copy.deepcopy(pipeline, {id(part): part for part in parts} | tables)


def _knows_holes(part: Any) -> bool:
    found = [] if is_ours(part) else getattr(part, "categories_", [])
    return any(is_missing(level) for levels in found for level in levels[-1:])


def _table_of(encoder: Any) -> LevelTable:
    plain = _without_warnings(encoder)
    n_columns = len(encoder.categories_)
    names = getattr(encoder, "feature_names_in_", range(n_columns))
    columns: list[Levels] = []
    for number in range(n_columns):
        name = repr(names[number])
        cells, places = _cells_of(encoder, number, name)
        rows = np.empty((len(cells), n_columns), dtype=object)
        rows[:] = [levels[0] for levels in encoder.categories_]
        rows[:, number] = cells
        start = sum(column.rows.shape[1] for column in columns)
        made = np.asarray(plain.transform(rows), dtype=np.float64)
        own = made[:, start : start + _width_of(encoder, number, made.shape[1])]
        levels = cells[: len(places) - 2]
        columns.append(Levels(name, levels, np.ascontiguousarray(own), places))
    return LevelTable(columns)


def _without_warnings(encoder: Any) -> Any:
    """Return an encoder that takes arrays and levels that fit has not seen without a word."""
    plain = copy.copy(encoder)
    state = vars(plain)
    state.pop("feature_names_in_", None)
    state.update(drop=None, sparse_output=False)  # what is dropped was decided by fit
    if state.get("handle_unknown") == "warn":
        plain.handle_unknown = "infrequent_if_exist"
    return plain


def _cells_of(encoder: Any, number: int, name: str) -> tuple[list[Any], list[int]]:
    """Return a cell of each kind that a column may hold, and the places of ``Levels``."""
    found = encoder.categories_[number].tolist()
    levels = [level for level in found if not is_missing(level)]
    holes = found[len(levels) :]
    if len(holes) > 1:
        raise ValueError(
            f"Column {name} of {type(encoder).__name__} had both None and nan in fit, and takes "
            "them for two levels. An ONNX model has one kind of hole. Make them one before fit."
        )
    cells, new = [*levels, *holes], NOWHERE
    if getattr(encoder, "handle_unknown", "ignore") != "error":
        new = len(cells)
        cells.append(_unlike(levels))
    hole = len(levels) if holes else new
    return cells, [*range(len(levels)), new, hole]


def _unlike(levels: Sequence[Any]) -> Any:
    """Return what is none of the levels."""
    if levels and not isinstance(levels[0], str):
        return float(max(levels)) + 1.0
    return "".join(levels) + "?"


def _width_of(encoder: Any, number: int, n_made: int) -> int:
    """Return how many columns the encoder makes of one."""
    if not isinstance(encoder, OneHotEncoder):
        return n_made // len(encoder.categories_)
    width = len(encoder.categories_[number])
    rare = getattr(encoder, "infrequent_categories_", None)
    if rare is not None and rare[number] is not None:
        width -= len(rare[number]) - 1
    dropped = encoder.drop_idx_
    return width - (dropped is not None and dropped[number] is not None)
