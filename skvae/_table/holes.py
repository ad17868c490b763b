"""Holes that say something: which columns' missing cells the model has to expect. No torch.

A table is *widened* by a column for each set of columns that always miss together: 1 where they
miss, else 0. It is always observed, so a model of the wider table is one of the values and of which
of them are missing (not-MIWAE, Ipsen et al. 2021).
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, issparse
from scipy.special import xlogy

from .column import Array
from .spool import is_on_disk, spooled
from .statistics import CACHE_CELLS, row_chunks
from .unseen import Unseen

Holes = tuple[tuple[int, ...], ...]  # sets of columns that always miss together

FEWEST = 10  # rows of a level: fewer are no evidence
LEAST_SHARE = 0.1  # of rows with a hole, and of those without: codes have no room for rarer ones
TOLD = 0.65  # share of what holes say that may be known already
ROWS_FOR_EVIDENCE = 5_000
MOST_PAIRS = 250_000  # of a column with holes and another one


def holes_of(X: Any, n_levels: Sequence[int], count: Array, missing: str) -> Holes:
    """Return the holes of a table that are to be modelled; ``count`` (N,) weighs its rows.

    By evidence, where ``missing`` is "auto": those that some other column lets expect, in order of
    how much they say, but for what a column's values or other holes tell almost alone.
    """
    if missing == "model" and issparse(X) and np.isnan(X.data).any():
        raise ValueError(
            "missing='model' needs dense rows, but X is sparse. Use X.toarray(), or "
            "missing='ignore'."
        )
    if missing == "ignore" or X.dtype.kind != "f" or issparse(X):
        return ()
    groups = _together(X)
    if missing == "model" or not groups or len(groups) * X.shape[1] > MOST_PAIRS:
        return groups if missing == "model" else ()
    step = -(-len(X) // ROWS_FOR_EVIDENCE)
    count = count[::step] * (count.sum() / count[::step].sum())
    return _chosen(X[::step], groups, evidence_of_holes(X[::step], groups, n_levels, count), count)


def _together(X: Array) -> Holes:
    """Return the sets of columns that always miss together, but not in all rows."""
    n_lost, key = np.zeros(X.shape[1]), [blake2b(digest_size=16) for _ in range(X.shape[1])]
    if not any(np.isnan(X[rows]).any() for rows in row_chunks(len(X), X.shape[1], CACHE_CELLS)):
        return ()
    for rows in row_chunks(*X.shape):
        lost = np.isnan(X[rows])
        n_lost += lost.sum(axis=0)
        for own, cells in zip(key, np.packbits(lost, axis=0).T, strict=True):
            own.update(cells.tobytes())
    together: dict[bytes, list[int]] = {}
    for column in np.flatnonzero((n_lost > 0) & (n_lost < X.shape[0])).tolist():
        together.setdefault(key[column].digest(), []).append(column)
    return tuple(map(tuple, together.values()))


class Evidence(NamedTuple):
    """What a table's other columns say of sets of holes, in nats."""

    gain: Array  # (M,)  of the best column, by Schwarz's criterion: above 0 they are no accident
    told: Array  # (M,)  share of the holes' entropy that the values of one column tell at most


def evidence_of_holes(X: Array, groups: Holes, n_levels: Sequence[int], count: Array) -> Evidence:
    """Return what the columns of a table say of the holes of others.

    The gain is the most that any column has over independence by Schwarz's (1978) criterion, less
    the logarithm of their number: a column of numbers is cut at its quartiles, and a hole is a
    level of its own. Columns that always miss together have that as evidence.
    """
    lost = np.isnan(X)
    holes = lost[:, [group[0] for group in groups]]
    gain, told = np.full(len(groups), -np.inf), np.zeros(len(groups))
    entropy = -_log_likelihood(holes.T @ count, count.sum())
    for number in range(X.shape[1]):
        level = _levels(X[:, number], lost[:, number], n_levels[number] > 0, count)
        each = (level[:, None] == np.arange(level.max() + 1)) * count[:, None]
        own = np.array([number in group for group in groups])
        found = _gain(each, holes) - 0.5 * level.max() * np.log(count.sum())
        gain = np.where(own, gain, np.maximum(gain, found))
        seen = np.where(lost[:, [number]], 0.0, each)
        told = np.where(own, told, np.maximum(told, _gain(seen, holes) / np.maximum(entropy, 1e-9)))
    gain = gain - np.log(max(X.shape[1] - 1, 1))
    return Evidence(np.where([len(group) > 1 for group in groups], np.inf, gain), told)


def _chosen(X: Array, groups: Holes, evidence: Evidence, count: Array) -> Holes:
    """Choose holes for which there is evidence, and which nothing tells that codes know already."""
    holes = np.isnan(X[:, [group[0] for group in groups]])
    share = holes.T @ count / count.sum()
    share = np.minimum(share, 1.0 - share)
    possible = (evidence.gain > 0.0) & (evidence.told < TOLD) & (share >= LEAST_SHARE)
    chosen: list[int] = []
    for number in np.argsort(-share, kind="stable"):
        if not possible[number]:
            continue
        own, entropy = holes[:, [number]], -_log_likelihood(holes[:, number] @ count, count.sum())
        told = [
            float(_gain(np.stack([h, ~h], 1) * count[:, None], own)[0] / entropy)
            for h in holes[:, chosen].T
        ]
        if max(told, default=0.0) < TOLD:
            chosen.append(int(number))
    return tuple(groups[number] for number in sorted(chosen))


def _levels(
    cells: Array, lost: NDArray[np.bool_], is_category: bool, count: Array
) -> NDArray[np.intp]:
    """Return cells as levels 0, 1, ...: holes, a category's own, or quarters of the numbers."""
    if lost.all():
        return np.zeros(len(cells), dtype=np.intp)
    if not is_category:
        quartiles = np.nanquantile(cells, [0.25, 0.5, 0.75])
        cells = np.where(lost, np.nan, np.searchsorted(quartiles, cells))
    level = np.where(lost, 0.0, cells + 1.0).astype(np.intp)
    rare = np.bincount(level, count) < FEWEST  # these share one
    return np.unique(np.where(rare[level], len(rare), level), return_inverse=True)[1]


def _gain(each: Array, holes: NDArray[np.bool_]) -> Array:  # (N, L), (N, M) -> (M,)
    """Return how much likelier holes are if each level has a rate of its own, in nats.

    ``each`` is how often each row counts at its level.
    """
    size, with_hole = each.sum(axis=0), holes.T @ each
    apart = _log_likelihood(with_hole, size).sum(axis=1)
    return apart - _log_likelihood(with_hole.sum(axis=1), size.sum())


def _log_likelihood(holes: Any, rows: Any) -> Any:
    """Return that of holes in so many of the rows, at their own rate, in nats."""
    others = np.maximum(rows - holes, 0.0)  # sums round
    return xlogy(holes, holes) + xlogy(others, others) - xlogy(rows, rows)


def widened(X: Any, holes: Holes, unseen: Unseen | None = None) -> Any:
    """Append the columns that say where values are missing.

    Cells that hold what fit has not seen are no holes, although they say nothing either.
    """
    if not holes:
        return X
    if is_on_disk(X):
        wide = spooled((len(X), X.shape[1] + len(holes)), X.dtype)
        for rows in row_chunks(*wide.shape):
            wide[rows] = widened(np.array(X[rows]), holes)
        return wide
    first = [group[0] for group in holes]
    cells = X[:, first].toarray() if issparse(X) else X[:, first]
    lost = cells != cells
    unseen = unseen or Unseen.nothing()
    for place, column in enumerate(first):
        new = np.isnan(unseen.log_share) & (unseen.column == column)
        lost[unseen.row[new], place] = False
    own = lost.astype(X.dtype)
    return hstack([X, csr_array(own)], format="csr") if issparse(X) else np.hstack([X, own])


def given_alone(row: Array, holes: Holes) -> Array:
    """Append them to rows of which some cells are given: others are not known to be missing."""
    own = row[:, [group[0] for group in holes]]
    return np.hstack([row, np.where(np.isnan(own), np.nan, 0.0)])


def with_holes(table: Array, holes: Holes) -> Array:
    """Return a wide table whose values are missing where its last columns say so."""
    table = table.copy()
    for place, group in enumerate(holes, start=table.shape[1] - len(holes)):
        table[np.ix_(np.flatnonzero(table[:, place] > 0.5), np.array(group))] = np.nan
    return table


def folded(cells: Array, holes: Holes) -> Array:  # (N, D + M) -> (N, D)
    """Add what there is of holes to what there is of their columns, in equal parts."""
    n_columns = cells.shape[1] - len(holes)
    result = cells[:, :n_columns].copy() if holes else cells
    for place, group in enumerate(holes, start=n_columns):
        result[:, list(group)] += cells[:, [place]] / len(group)
    return result
