"""Methods that take rows part by part, where these are not in memory or not in one piece."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ._advice import warn
from ._table.frames import joined
from ._table.sources import located, source_of
from ._table.spool import most_rows

# What each row gets depends on the row alone.
METHODS = ("transform", "score_samples", "score_features", "decision_function", "p_values")


class ByParts:
    """An estimator whose methods for rows take files, data sets and iterables of frames, too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in METHODS:
            if name in vars(cls):
                setattr(cls, name, _by_parts(vars(cls)[name]))


def _by_parts(method: Any) -> Any:
    @wraps(method)
    def of_any(self: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
        return by_parts(lambda part: method(self, part, *args, **kwargs), X)

    return of_any


def by_parts(function: Callable[[Any], Any], X: Any) -> Any:
    """Return what a function finds of rows, or, joined, of the parts of a source of rows."""
    source = source_of(X)
    if source is None:
        return function(X)
    found = []
    for first, part in source.numbered():
        with located(source.what, first):
            found.append(function(part))
    return joined(found)


def at_hand(estimator: Any, X: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Return rows in memory, and their weights: every so many of a source that is too large."""
    source = source_of(X)
    if source is None:
        return X, sample_weight
    head = next(source.parts())
    n_rows, most = source.n_rows(), max(most_rows(head.shape[1]), 1)
    step = step_of(type(estimator).__name__, (n_rows, head.shape[1]), source.what)
    if step > 1:
        sample_weight = None if sample_weight is None else np.asarray(sample_weight)[::step]
    return joined(source.some(most)), sample_weight


def step_of(owner: str, shape: tuple[int, int], what: str) -> int:
    """Return one in how many rows an estimator is fitted to, if not all fit in memory."""
    n_rows, n_columns = shape
    most = max(most_rows(n_columns), 1)
    step = max(-(-n_rows // most), 1)
    if step > 1:
        warn(
            f"{owner} is fitted to one in {step} of the {n_rows} rows of {what}: it keeps rows in "
            f"memory, at most {most} of {n_columns} columns. All methods for rows take all of them."
        )
    return step
