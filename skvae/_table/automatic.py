"""What "auto" sees in the columns of a table, and how they are then scaled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from .column import Array, Column
from .statistics import ColumnMoments, heavy_tailed, measure, share_one_unit, two_valued
from .support import Nature


class Look(NamedTuple):
    """What the columns of a table look like."""

    moments: ColumnMoments
    one_unit: bool  # as pixels or the bands of a spectrum
    natures: list[Nature]


def look_at(X: Any, weight: Array, columns: Sequence[Column]) -> Look:
    """Look at the columns of a table, with how often each row counts."""
    moments = measure(X, weight, [column.name for column in columns])
    binary = two_valued(X)
    numbers = all(column.kind != "category" for column in columns)
    # A pixel that is only ever 0 or 1 among grey pixels is no boolean.
    one_unit = numbers and not issparse(X) and share_one_unit(X)
    if one_unit and not binary.all():
        binary = np.zeros_like(binary)
    heavy = np.zeros(len(columns), dtype=bool)
    if not one_unit and not issparse(X):
        heavy = heavy_tailed(X)
    natures = [_nature(column, bool(binary[n]), bool(heavy[n])) for n, column in enumerate(columns)]
    return Look(moments, one_unit, natures)


def _nature(column: Column, binary: bool, heavy: bool) -> Nature:
    if column.kind == "category":
        return "levels"
    if column.kind == "boolean" or binary:
        return "two_valued"
    return "heavy_tailed" if heavy else "number"
