"""Dask collections: their partitions, and what is made of them without being computed yet."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._table.of_pandas import frame_of


def is_array(X: Any) -> bool:
    """Whether a collection is an Array; else it is a DataFrame or a Series."""
    return hasattr(X, "map_blocks")


def is_collection(X: Any) -> bool:
    """Whether rows are partitions of Dask."""
    kinds = {(one.__module__.partition(".")[0], one.__name__) for one in type(X).__mro__}
    names = ("Array", "DataFrame", "Series")
    return any((module, name) in kinds for module in ("dask", "dask_expr") for name in names)


def check_collection(X: Any, owner: str) -> Any:
    """Return a DataFrame, or an Array in blocks of whole rows; raise for anything else."""
    if not is_collection(X) or X.ndim != 2:
        kind = type(X)
        what = f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"
        what += f" of {X.ndim} dimensions" if is_collection(X) else ""
        raise TypeError(
            f"X must be a Dask DataFrame, or a Dask Array of two dimensions, for {owner}. Got "
            f"{what} instead. To fit rows in memory, take the estimator without Dask."
        )
    return X.rechunk({1: -1}) if is_array(X) and X.numblocks[1] > 1 else X


def parts_of(X: Any) -> list[Any]:
    """Return the partitions, not computed yet: as many as the user sees.

    Dask may read several files of few columns together. Then weights would not match their rows,
    and the shards would not be those of the persisted collection.
    """
    if is_array(X):
        return list(np.ravel(X.to_delayed()))
    found = list(X.to_delayed())
    return found if len(found) == X.npartitions else list(X.to_delayed(optimize_graph=False))


def weights_of(sample_weight: Any, n_parts: int) -> list[Any]:
    """Return the weights of each partition, not computed yet; None for each if there are none."""
    if sample_weight is None:
        return [None] * n_parts
    if not is_collection(sample_weight) or sample_weight.ndim != 1:
        raise TypeError(
            "sample_weight must be a Dask Array or Series that has the partitions of X. Got a "
            f"{type(sample_weight).__name__} instead: dask.array.from_array makes one."
        )
    found = parts_of(sample_weight)
    if len(found) != n_parts:
        raise ValueError(
            f"sample_weight must have as many partitions as X. Got {len(found)} for {n_parts}."
        )
    return found


def head_of(X: Any) -> Any:
    """Return two rows as those of a collection are: of the same names and dtypes."""
    if is_array(X):
        return np.zeros((2, X.shape[1]), dtype=X.dtype)
    from dask.dataframe.dispatch import make_meta, meta_nonempty

    return meta_nonempty(make_meta(X))


def constant(value: Any) -> Any:
    """Return a value that many tasks share."""
    from dask.delayed import delayed

    return delayed(value, pure=False, traverse=False)


def per_row(function: Callable[..., Any], X: Any, estimator: Any, dtype: Any = np.float64) -> Any:
    """Return the number that a function of an estimator and rows finds for each row, lazily.

    It is a Series of the rows' index, or an Array.
    """
    local = constant(estimator)
    if is_array(X):
        return X.map_blocks(
            _numbers, local, function, dtype, drop_axis=1, dtype=dtype, meta=np.empty(0, dtype)
        )
    return X.map_partitions(_series, local, function, dtype, meta=(None, dtype))


def per_cell(
    function: Callable[..., Any], X: Any, estimator: Any, names: list[Any], dtype: Any = np.float64
) -> Any:
    """Return the numbers of these names that a function finds for each row, lazily.

    They are a DataFrame of the rows' index, or an Array.
    """
    local = constant(estimator)
    if is_array(X):
        size = {"chunks": (X.chunks[0], (len(names),)), "meta": np.empty((0, 0), dtype)}
        return X.map_blocks(_numbers, local, function, dtype, len(names), dtype=dtype, **size)
    head = frame_of(np.empty((0, len(names)), dtype), _no_index(X), names)
    return X.map_partitions(_frame, local, function, names, dtype, meta=head)


def frames(function: Callable[..., Any], X: Any, estimator: Any, head: Any) -> Any:
    """Return what a function makes of rows, lazily: frames or arrays as ``head`` is."""
    local = constant(estimator)
    if not isinstance(head, np.ndarray):
        from dask import dataframe
        from dask.delayed import delayed

        if not is_array(X):
            head = head.set_axis(_no_index(X))
            return X.map_partitions(_made, local, function, head, meta=head)
        parts = [delayed(_made)(part, local, function, head) for part in parts_of(X)]
        return dataframe.from_delayed(parts, meta=head)
    X = X if is_array(X) else X.to_dask_array()
    size = {"chunks": (X.chunks[0], (head.shape[1],)), "meta": np.empty((0, 0), head.dtype)}
    return X.map_blocks(_made, local, function, head, dtype=head.dtype, **size)


def _no_index(X: Any) -> Any:
    """Return the index of a DataFrame's partitions, without its rows."""
    from dask.dataframe.dispatch import make_meta

    return make_meta(X).index[:0]


# -- what happens to a part -----------------------------------------------------------------------


def _numbers(part: Any, estimator: Any, function: Any, dtype: Any, width: int | None = None) -> Any:
    if len(part):
        return np.asarray(function(estimator, part), dtype)
    return np.empty(0 if width is None else (0, width), dtype)


def _series(part: Any, estimator: Any, function: Any, dtype: Any) -> Any:
    numbers = _numbers(part, estimator, function, dtype)
    return frame_of(numbers[:, None], part.index, [0])[0].rename(None)


def _frame(part: Any, estimator: Any, function: Any, names: list[Any], dtype: Any) -> Any:
    return frame_of(_numbers(part, estimator, function, dtype, len(names)), part.index, names)


def _made(part: Any, estimator: Any, function: Any, head: Any) -> Any:
    if not len(part):
        return head
    if isinstance(head, np.ndarray):
        return function(estimator, np.asarray(part))
    found = function(estimator, part)
    return found.set_axis(part.index) if hasattr(part, "index") else found
