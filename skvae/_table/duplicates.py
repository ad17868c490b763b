"""Equal rows as one row that counts more often, in an order of their values alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .column import Array
from .spool import is_on_disk
from .statistics import CACHE_CELLS, CHUNK_ROWS, row_chunks

MANY_ROWS = 100_000  # of which a sample tells whether rows repeat
SOME_ROWS = 20_000  # in it: if every row comes twice, hundreds of pairs are among a million's
MOST_COPIES = 2**24  # of all rows: more are no counts


def merge_duplicates(X: Any, weight: Array) -> tuple[NDArray[np.intp], Array, Array]:
    """Merge equal rows, in an order that depends on their values alone.

    Returns the index of one row of each kind, the kinds' summed weights, and how many rows are of
    each; rows of weight zero are dropped. So repeating rows, weighting them and shuffling them are
    the same thing.
    """
    kept = np.flatnonzero(weight > 0.0)
    key = row_keys(X)[kept]
    order = np.argsort(key)
    kept, key = kept[order], key[order]
    new = np.ones(len(kept), dtype=bool)
    for start in range(1, len(kept), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        candidates = start + np.flatnonzero(key[chunk] == key[start - 1 : -1][: len(key[chunk])])
        equal = _equal_rows(X[kept[candidates]], X[kept[candidates - 1]])
        new[candidates[equal]] = False
    first = np.flatnonzero(new)
    n_rows = np.diff(first, append=len(kept)).astype(np.float64)
    return kept[first], np.add.reduceat(weight[kept], first), n_rows


def row_keys(X: Any) -> NDArray[np.uint64]:  # (N,)
    """Return 64 bits for each row that equal rows have in common, and hardly any others."""
    return _sparse_row_hash(X) if issparse(X) else _row_hash(X)


def kinds_of_rows(X: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return one row of each kind, and the kind of each row (N,).

    Their order depends on the ranks of the values in their columns alone: not on the order of rows,
    on units, or on how often rows come.
    """
    keys = row_keys(X) if issparse(X) else _rank_hash(X)
    _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
    return first, kind


def _rank_hash(X: NDArray) -> NDArray[np.uint64]:
    key = np.zeros(len(X), dtype=np.uint64)
    for column in range(X.shape[1]):
        _, rank = np.unique(X[:, column], return_inverse=True)  # nan is one value
        key += _cell_hash(rank + 1.0, np.uint64(column))
    return key


def _equal_rows(A: Any, B: Any) -> NDArray[np.bool_]:
    if issparse(A):
        A, B = A.toarray(), B.toarray()
    both_missing = np.isnan(A) & np.isnan(B) if A.dtype.kind == "f" else False
    return ((A == B) | both_missing).all(axis=1)


def _row_hash(X: NDArray) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits for each row: equal for equal rows, whatever their dtype."""
    key = np.zeros(len(X), dtype=np.uint64)
    column = np.arange(X.shape[1], dtype=np.uint64)
    for rows in row_chunks(len(X), X.shape[1], CACHE_CELLS):
        key[rows] = _cell_hash(X[rows], column).sum(1, dtype=np.uint64)
    return key


def _sparse_row_hash(X: Any) -> NDArray[np.uint64]:
    """Return the same bits as for the dense rows."""
    key = np.zeros(X.shape[0], dtype=np.uint64)
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    np.add.at(key, row, _cell_hash(X.data, X.indices.astype(np.uint64)))
    return key


def _cell_hash(values: NDArray, column: Any) -> NDArray[np.uint64]:
    """Mix a value's bits and its column by SplitMix64 (Steele et al. 2014); 0 for the value 0."""
    values = values.astype(np.float64)
    values += 0.0  # -0.0 becomes 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        may_miss = np.isnan(values @ values if values.ndim == 1 else values.sum())
    if may_miss:
        values[np.isnan(values)] = np.nan  # one of the many bit patterns of nan
    is_zero = values == 0.0
    bits = values.view(np.uint64)  # mixed in place: what passes over memory takes all the time
    with np.errstate(over="ignore"):
        bits += (column + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits ^= bits >> np.uint64(shift)
            bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    bits[is_zero] = 0
    return bits


def _seem_distinct(X: Any) -> bool:
    """Tell whether there are no equal rows among some: those drawn, and neighbours."""
    drawn = np.random.default_rng(0).choice(X.shape[0], SOME_ROWS, replace=False)
    keys = row_keys(X[np.union1d(drawn, np.arange(CHUNK_ROWS))])
    return len(np.unique(keys)) == len(keys)


def _shuffled(weight: Array) -> tuple[NDArray[np.intp], Array, Array]:
    """Return what merging would of distinct rows, in an order that depends on their number."""
    kept = np.random.default_rng(0).permutation(np.flatnonzero(weight > 0.0))
    return kept, weight[kept], np.broadcast_to(1.0, kept.shape)


def merged(X: Any, weight: Array) -> tuple[Any, Array, NDArray[np.int64] | None]:
    """Take one row of each kind, in a copy, how often it counts, and how many rows it stands for.

    That number is the weight in units of the lightest row's, where these are whole numbers: else
    weights are no counts, and rows are. None: each row stands for itself. A large table in a file
    stays as it is: it is read in its order, and no copy of it fits. Of very many rows none is
    merged if a sample has no equal ones: a few that are would say next to nothing.
    """
    if is_on_disk(X):
        return X, weight, None
    distinct = X.shape[0] >= MANY_ROWS and _seem_distinct(X)
    index, total, n_rows = _shuffled(weight) if distinct else merge_duplicates(X, weight)
    X = X[index] if issparse(X) else X.take(index, axis=0)
    del index  # of many rows, such arrays take as much memory as some columns
    unit = weight[weight > 0.0].min()
    if (total == unit).all():
        return X, total, None
    copies = np.rint(total / unit)
    if np.abs(total / unit - copies).max() >= 1e-6 or copies.sum() > MOST_COPIES:
        copies = n_rows
    return X, total, copies.astype(np.int64) if copies.max() > 1.0 else None
