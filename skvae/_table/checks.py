"""Cells that their column's likelihood gives no density to: named, or made missing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .statistics import row_chunks
from .support import Limits


class Said(NamedTuple):
    """What a message says of the columns."""

    columns: Sequence[str]
    likelihoods: Sequence[str]
    needs: Sequence[str]  # descriptions of what they give a density to


def check_support(table: Any, limits: Limits, lenient: NDArray[np.bool_], said: Said) -> Any:
    """Return the table, or raise a ValueError that names the first cell outside its limits.

    In ``lenient`` columns such cells become missing instead: there the likelihood was our choice.
    """
    if limits.none:
        return table
    cells: list[NDArray[np.intp]] = [np.zeros((0, 2), dtype=np.intp)]
    for rows in row_chunks(*table.shape):
        chunk = table[rows].toarray() if issparse(table) else table[rows]
        wrong = limits.outside(chunk)
        strict = wrong & ~lenient
        if strict.any():
            row, column = map(int, np.argwhere(strict)[0])
            raise _no_density(said, column, rows.start + row, chunk[row, column])
        cells.append(np.argwhere(wrong) + np.array([rows.start, 0]))
    return _without(table, np.concatenate(cells))


def _without(table: Any, cells: NDArray[np.intp]) -> Any:
    """Return a copy of the table in which these cells are missing."""
    if not len(cells):
        return table
    row, column = cells.T
    table = table.astype(np.float64)  # a copy
    if not issparse(table):
        table[row, column] = np.nan
        return table
    table = table.tolil()
    table[row, column] = np.nan
    return table.tocsr()


def _no_density(said: Said, column: int, row: int, value: Any) -> ValueError:
    return ValueError(
        f"Column {said.columns[column]} (likelihood={said.likelihoods[column]!r}) needs "
        f"{said.needs[column]}; row {row} holds {value}. "
        "Use likelihood='gaussian' or clean the column."
    )
