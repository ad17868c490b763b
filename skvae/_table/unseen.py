"""Cells that hold what the rows of fit did not, or a level that has a place with others. No torch.

A level is such, another value than 0 and 1, or one that a column's shape has no place for.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .._advice import NewLevelsWarning, warn
from .column import Array, shown, some_of


class Unseen(NamedTuple):
    """Cells whose values the model does not tell from others: row and column of each.

    ``log_share`` is that of a rare level among those that have one place together; nan: fit has
    not seen the value at all.
    """

    row: NDArray[np.intp]
    column: NDArray[np.intp]
    log_share: Array

    @classmethod
    def nothing(cls) -> "Unseen":
        return cls(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp), np.zeros(0))

    def with_more(
        self, row: NDArray[np.intp], column: Any, log_share: Array | float = np.nan
    ) -> "Unseen":
        """Add further cells, each of a column and with a share of its own, or all of one."""
        more = np.broadcast_to(column, row.shape), np.broadcast_to(log_share, row.shape)
        news = (row, *more)
        return Unseen(*(np.append(old, new) for old, new in zip(self, news, strict=True)))


def counts_of_values(cells: Array, copies: Array) -> Array:
    """Return how many rows hold each value of a column; each cell stands for so many of them."""
    seen = ~np.isnan(cells)
    _, value = np.unique(cells[seen], return_inverse=True)
    return np.bincount(value, copies[seen], 1).astype(np.float64)


def log_mass_of_unseen(counts: Array) -> float:
    """Return the log-probability, in nats, that a cell holds a value that no row holds.

    It is about the share of the values that one row alone holds (Good 1953, who gives the idea to
    Turing): (n_1 + 1) / (N + 1) for N cells, of which n_1 have a value of their own. The added ones
    keep it above 0 where every value came twice. ``counts`` are how many rows hold each value.
    """
    return float(np.log((np.count_nonzero(np.rint(counts) == 1.0) + 1.0) / (counts.sum() + 1.0)))


def with_cost(scores: Array, unseen: Unseen, log_mass: Array | None) -> Array:
    """Add what levels cost that the model does not tell apart, to scores of rows or of cells."""
    if not len(unseen.row):
        return scores
    mass = np.zeros(len(unseen.row)) if log_mass is None else log_mass[unseen.column]
    cost = np.where(np.isnan(unseen.log_share), mass, unseen.log_share)
    scores = scores.copy()
    np.add.at(scores, (unseen.row, unseen.column)[: scores.ndim], cost)
    return scores


def refused(name: str, levels: tuple[Any, ...], rows: NDArray[np.intp], held: list[Any]) -> str:
    """Say which rows of a column hold levels that were not there in fit."""
    return (
        f"Column {name} holds {_where(rows, held)}, which was not there in fit; its levels were "
        f"{some_of(levels)}."
    )


def warn_if_all(name: str, levels: tuple[Any, ...], n_present: int, held: list[Any]) -> None:
    """Warn of a column in which no cell holds a level that was there in fit."""
    if len(held) == n_present:
        examples = list(dict.fromkeys(held))
        warn(
            f"No cell of column {name} holds a level that was there in fit: it holds "
            f"{some_of(examples, 3)}, where fit had {some_of(levels, 3)}. All of them are treated "
            "as missing. Look for blanks, other spellings and other types.",
            NewLevelsWarning,
        )


def warn_of_numbers(
    names: list[str], table: Any, cells: NDArray[np.intp], held: Mapping[int, tuple[float, ...]]
) -> None:
    """Warn of columns in which no cell is a number that the model has a place for.

    ``cells`` (M, 2) are those that are not, and ``held`` is what fit had, 0 and 1 where it is not
    said.
    """
    for column in np.unique(cells[:, 1]).tolist():
        rows = cells[cells[:, 1] == column, 0]
        own = table[:, [column]]
        values = own.toarray()[:, 0] if issparse(own) else own[:, 0]
        n_present = int((values == values).sum())
        levels = held.get(column, (0, 1))
        warn_if_all(names[column], levels, n_present, values[rows].tolist())


def _where(rows: NDArray[np.intp], held: list[Any]) -> str:
    by_level: dict[Any, list[int]] = {}
    for row, level in zip(rows.tolist(), held, strict=True):
        by_level.setdefault(level, []).append(row)
    said = [f"the level {shown(level)} in row {some_of(rows)}" for level, rows in by_level.items()]
    return ", ".join(said[:5]) + (f" and {len(said) - 5} more" if len(said) > 5 else "")
