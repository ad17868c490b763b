"""What makes rows odd: each cell's share, and what the others of its row lead one to expect."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._table.column import Array
from ._table.frames import library_of
from ._table.holes import folded
from ._table.unseen import Unseen, with_cost
from ._transformer import VAETransformer

if TYPE_CHECKING:
    import torch


class Explanation(NamedTuple):
    """What makes rows odd, a cell at a time.

    Attributes
    ----------
    share : ndarray of shape (n_samples, n_features)
        What each cell makes its row odder, in nats. A row's shares add up to how far its score is
        below that of a typical row.
    expected : ndarray of shape (n_samples, n_features)
        What the other cells of the row lead one to expect, in original units and categories.
    lower, upper : ndarray of shape (n_samples, n_features)
        Between what 90% of ordinary rows with these other cells would lie; nan for categories and
        truth values.
    likely : ndarray of object of shape (n_samples, n_features)
        The same for these: a tuple of levels, the most likely first; None for numbers.
    """

    share: Array
    expected: NDArray[Any]
    lower: Array
    upper: Array
    likely: NDArray[Any]


class Cells(NamedTuple):
    """What a model says of the cells of a table."""

    surprise: Array  # (N, D)  nats
    expected: Array  # (N, D)  as a table
    lower: Array  # (N, D)
    upper: Array  # (N, D)
    levels: dict[int, Array]  # of each nominal category, the likely ones (N, L), then -1


def usual_deviations(vae: VAETransformer, table: Any) -> Array:  # (N, D)
    """Return how far cells are from what the others of the row let expect.

    In original units, of counts and the like in those of their logarithms; nan where missing.
    """
    from ._inference.explained import by_column_of_numbers, conditional

    model, module = vae.model_, vae.model_.module(vae.device)

    def function(x: "torch.Tensor", observed: "torch.Tensor | None") -> tuple["torch.Tensor"]:
        return (by_column_of_numbers(module, conditional(module, x, observed).deviation),)

    return model.by_chunks(function, table, module, module.n_features)[0] * model.columns.scale


def usual_ends(deviations: Array) -> tuple[Array, Array]:  # (D,), (D,)
    """Return between what 90% of these deviations lie."""
    import torch

    from ._inference.explained import Usual

    lower, upper = Usual.of(torch.from_numpy(deviations))
    return lower.numpy(), upper.numpy()


def explained(vae: VAETransformer, table: Any, ends: tuple[Array, Array]) -> Cells:
    """Say of each cell how surprising it is, and what was to be expected."""
    import torch

    from ._inference.explained import (
        Usual,
        conditional,
        interval,
        likely_levels,
        surprise,
    )
    from .likelihoods._mixed import Given

    model, module = vae.model_, vae.model_.module(vae.device)
    units = (end / model.columns.scale for end in ends)
    usual = Usual(*(torch.from_numpy(end).to(module.device) for end in units))
    n_features = module.encoder.column.bincount()
    categories = [c for c, n in enumerate(n_features.tolist()) if n > 1]

    def function(x: "torch.Tensor", observed: "torch.Tensor | None") -> tuple["torch.Tensor", ...]:
        found = conditional(module, x, observed)
        likely = [likely_levels(module, found, c) for c in categories]
        ends = interval(module, found, usual, Given(x, observed))
        return (surprise(module, x, found), *ends, *likely)

    cells = model.by_chunks(function, table, module, module.n_features)
    n_columns = len(model.schema.columns)
    parts = (model.columns.decode(part)[:, :n_columns] for part in cells[1:4])
    expected, lower, upper = parts
    levels = dict(zip(categories, cells[4:], strict=True))
    return Cells(folded(cells[0], model.schema.holes), expected, lower, upper, levels)


def explanation(
    vae: VAETransformer, cells: Cells, unseen: Unseen, excess: Array
) -> Explanation:  # excess (N,)
    """Return how far scores are below that of a typical row, by the cells of their rows."""
    model = vae.model_
    columns = model.schema.columns
    surprise = -with_cost(-cells.surprise, unseen, model.columns.log_unseen)
    expected = np.empty(surprise.shape, dtype=np.float64 if model.schema.numeric else object)
    dated = any(column.moment is not None for column in columns)
    lower, upper = (end.astype(object if dated else None) for end in (cells.lower, cells.upper))
    likely = np.full(surprise.shape, None, dtype=object)
    for number, column in enumerate(columns):
        own = cells.expected[:, number]
        if column.moment is not None and column.kind != "category":
            for part, days in ((expected, own), (lower, cells.lower), (upper, cells.upper)):
                part[:, number] = column.as_objects(days[:, number] if days.ndim == 2 else days)
            continue
        if column.kind == "number":
            expected[:, number] = own
            continue
        if column.kind == "boolean":
            found = _likely_truths(own, cells.lower[:, number], cells.upper[:, number])
            expected[:, number] = [levels[0] for levels in found]
        else:
            places = _places(cells, number, column.n_levels)
            found = [tuple(column.decode(row, None)) for row in places]
            expected[:, number] = column.decode(own, None)
        likely[:, number] = np.fromiter(found, dtype=object, count=len(found))
        lower[:, number] = upper[:, number] = np.nan
    return Explanation(shares_of(surprise, excess), expected, lower, upper, likely)


def _likely_truths(mean: Array, lower: Array, upper: Array) -> list[tuple[bool, ...]]:
    """Return the likely truth values of each row: those of the interval, the nearer one first."""
    ends = np.clip(np.rint(np.stack([lower, upper])), 0.0, 1.0) > 0.5
    both = [(one, not one) for one in (mean >= 0.5).tolist()]
    held = [set(pair) for pair in ends.T.tolist()]
    return [tuple(v for v in pair if v in own) for pair, own in zip(both, held, strict=True)]


def _places(cells: Cells, column: int, n_levels: int) -> list[Array]:
    """Return the likely levels of each row: of an order, those of the interval."""
    if column in cells.levels:
        return [row[row >= 0.0] for row in cells.levels[column]]
    ends = np.rint(np.stack([cells.lower[:, column], cells.upper[:, column]]))
    first, last = np.clip(ends, 0, n_levels - 1)
    return [np.arange(a, b + 1.0) for a, b in zip(first, last, strict=True)]


def shares_of(surprise: Array, excess: Array) -> Array:  # (N, D), (N,) -> (N, D)
    """Return each row's excess as its cells' surprise, and what is left among all columns alike.

    A row may be odd as a whole, far from all others with no cell that does not go with the rest.
    """
    left = excess - surprise.sum(axis=1)
    return surprise + left[:, None] / surprise.shape[1]


def as_frame(found: Explanation, X: Any, names: Any) -> Any:
    """Return an explanation as a pandas DataFrame with a row for each cell, in X's order."""
    from ._table.of_pandas import frame_of_cells

    index = X.index if library_of(X) == "pandas" else range(len(found.share))
    parts = {name: getattr(found, name) for name in Explanation.__annotations__}
    return frame_of_cells({"value": dense(X), **parts}, index, names)


def dense(X: Any) -> NDArray[Any]:
    if hasattr(X, "toarray"):
        return np.asarray(X.toarray())
    if library_of(X) == "pandas":
        return np.asarray(X.to_numpy(dtype=object))
    if library_of(X) == "polars" and any(dtype.is_temporal() for dtype in X.dtypes):
        cells = np.empty(X.shape, dtype=object)
        for number, series in enumerate(X.get_columns()):
            cells[:, number] = series.to_list()
        return cells
    return np.asarray(X.to_numpy() if hasattr(X, "to_numpy") else X)
