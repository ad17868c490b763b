"""Cells that their column's likelihood gives no density to: named, or made missing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .statistics import row_chunks
from .support import Limits

MOST_SHOWN = 5  # cells of a column, and columns, in a message


class Said(NamedTuple):
    """What a message says of the columns."""

    columns: Sequence[str]
    likelihoods: Sequence[str]
    needs: Sequence[str]  # descriptions of what they give a density to


def check_support(
    table: Any, limits: Limits, lenient: NDArray[np.bool_], said: Said
) -> tuple[Any, NDArray[np.intp]]:
    """Return the table, or raise a ValueError that names the cells outside its limits.

    In ``lenient`` columns such cells become missing instead: there the likelihood was our choice.
    Their rows and columns (M, 2) are returned, too.
    """
    wrong = np.zeros((0, 2), dtype=np.intp)
    if limits.none:
        return table, wrong
    for rows in row_chunks(*table.shape):
        chunk = table[rows].toarray() if issparse(table) else table[rows]
        found = np.argwhere(limits.outside(chunk))
        wrong = np.concatenate([wrong, found + np.array([rows.start, 0])])
    strict = wrong[~lenient[wrong[:, 1]]]
    if len(strict):
        raise ValueError(
            f"{_no_density(table, strict, said)} Use likelihood='gaussian' or clean the column."
        )
    return _without(table, wrong), wrong


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


def _no_density(table: Any, cells: NDArray[np.intp], said: Said) -> str:
    """Say of each column what it needs, and which rows hold something else."""
    sentences = []
    for column in np.unique(cells[:, 1]).tolist():
        rows = cells[cells[:, 1] == column, 0].tolist()
        held = ", ".join(f"row {row} holds {table[row, column]}" for row in rows[:MOST_SHOWN])
        more = f" and {len(rows) - MOST_SHOWN} more" if len(rows) > MOST_SHOWN else ""
        sentences.append(
            f"Column {said.columns[column]} (likelihood={said.likelihoods[column]!r}) needs "
            f"{said.needs[column]}; {held}{more}."
        )
    more = f" And {len(sentences) - MOST_SHOWN} more." if len(sentences) > MOST_SHOWN else ""
    return " ".join(sentences[:MOST_SHOWN]) + more
