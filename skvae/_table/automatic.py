"""What "auto" sees in the columns of a table, and how they are then scaled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from .column import Array, Column
from .statistics import (
    ColumnMoments,
    heavy_tailed,
    measure,
    share_one_unit,
    two_valued,
)
from .support import Nature
from .unseen import counts_of_values, log_mass_of_unseen


class Look(NamedTuple):
    """What the columns of a table look like."""

    moments: ColumnMoments
    one_unit: bool  # as pixels or the bands of a spectrum
    natures: list[Nature]
    log_unseen: Array | None = None  # (D,)  log-probability of a value that no row holds


def look_at(X: Any, weight: Array, columns: Sequence[Column], copies: Array) -> Look:
    """Look at the columns of a table, with weights, and how many rows each row stands for."""
    n_columns = len(columns)  # what follows says which of them are missing
    names = [column.name for column in columns]
    moments = measure(X, weight, names + (X.shape[1] - n_columns) * ["of holes"])
    binary = two_valued(X, moments.from_zero_to_one)
    numbers = all(column.kind != "category" for column in columns)
    # A pixel that is only ever 0 or 1 among grey pixels is no boolean.
    one_unit = numbers and not issparse(X) and share_one_unit(X[:, :n_columns])
    if one_unit and not binary[:n_columns].all():
        binary = np.zeros_like(binary)
    heavy = np.zeros(X.shape[1], dtype=bool)
    if not one_unit and not issparse(X):
        heavy = heavy_tailed(X)
    natures: list[Nature]
    natures = [_nature(column, bool(binary[n]), bool(heavy[n])) for n, column in enumerate(columns)]
    natures += ["two_valued"] * (X.shape[1] - n_columns)
    return Look(moments, one_unit, natures, _log_unseen(X, copies, columns, natures))


def _log_unseen(
    X: Any, copies: Array, columns: Sequence[Column], natures: Sequence[Nature]
) -> Array:
    """Return it for columns of levels, or of 0 and 1; numbers have a density everywhere."""
    result = np.zeros(X.shape[1])
    for number, nature in enumerate(natures[: len(columns)]):
        if nature not in ("levels", "two_valued"):
            continue
        cells = X[:, [number]].toarray()[:, 0] if issparse(X) else X[:, number]
        counts = counts_of_values(cells.astype(np.float64, copy=False), copies)
        if shares := columns[number].shares:  # of the last place, which rare levels have in common
            counts = np.append(counts[:-1], counts[-1] * np.array(shares))
        result[number] = log_mass_of_unseen(counts)
    return result


def _nature(column: Column, binary: bool, heavy: bool) -> Nature:
    if column.kind == "category":
        return "levels"
    if column.kind == "boolean" or binary:
        return "two_valued"
    return "heavy_tailed" if heavy else "number"
