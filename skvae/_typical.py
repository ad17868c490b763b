"""The rows that are typical of a table, where others are outliers: by concentration steps.

As in the minimum covariance determinant (Rousseeuw & Van Driessen 1999); of likelihoods: trimmed
likelihood estimators (Neykov & Mueller 2003).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ._detection import expected_of_missing, least_expected
from ._fitted import Fitted
from ._table.column import Array
from ._table.columns import Columns
from ._table.frames import take_rows
from ._table.schema import LabelledRows
from ._transformer import VAETransformer

STEPS = 3
STEP_ROWS = 1000  # that a linear model is fitted to in each of them
WILD = 100.0  # times as far out as most cells
INNER = 0.99  # of them
FEWEST_ROWS = 20  # of which a wild one can be told
WITH_LEVELS = ("categorical", "ordinal", "bernoulli")


def typical_rows(
    model: VAETransformer, rows: LabelledRows, support_fraction: float
) -> NDArray[np.intp]:
    """Return the most typical rows under the linear model, which is fitted to such rows alone.

    Each concentration step raises the likelihood of the rows that it keeps. Where they end depends
    on where they begin: from all rows, a cluster of outliers can hold a component. So they begin at
    the half that is nearest the medians (as in DetMCD: Hubert et al. 2012). That a level is rare
    makes its rows no less typical: else none of them would be learnt. Rows are in a random order.
    """
    from ._fitting import fit

    if support_fraction == 1.0:
        return np.arange(len(rows.weight))
    linear = {**model.get_params(deep=False), "max_iter": 0, "hidden_layer_sizes": ()}

    def fitted_to(typical: NDArray[np.intp], noise: str = model.noise) -> tuple[Fitted, Any]:
        few = rows_at(rows, typical[:STEP_ROWS])
        fitted, _ = fit({**linear, "noise": noise}, few, seed=0)
        return fitted, fitted.read(rows.X)

    # For its units alone: the fastest.
    fitted, table = fitted_to(np.arange(len(rows.weight)), "shared")
    typical = _highest(fitted.centrality(table, model.device), rows.weight, 0.5)
    for _ in range(STEPS):
        fitted, table = fitted_to(typical)
        scores, _ = fitted.score(table, n_samples=2, refine=False, device=model.device)
        scores = scores + expected_of_missing(table, least_expected(fitted.columns))
        scores = scores - log_share_of_levels(table, fitted.columns, rows.weight)
        typical = _highest(scores, rows.weight, support_fraction)
    return typical


def log_share_of_levels(table: Any, columns: Columns, weight: Array) -> Array:  # (N,)
    """Add up the log-shares of each row's levels, and of its zeros and ones, in their columns."""
    total = np.zeros(table.shape[0])
    for column in np.flatnonzero([name in WITH_LEVELS for name in columns.kinds.names]):
        own = table[:, [column]]
        cells = (own.toarray() if issparse(own) else own)[:, 0].astype(np.float64)
        seen = ~np.isnan(cells)
        _, place = np.unique(cells[seen], return_inverse=True)
        count = np.bincount(place, weight[seen])
        total[seen] += np.log(count / count.sum())[place]
    return total


def tame_rows(table: Any, weight: Array, is_number: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return all rows but those with a wild cell, which would be the unit of its column.

    Such a cell is 100 times as far from the median as 99% of the column's cells are.
    """
    tame = np.ones(table.shape[0], dtype=bool)
    if len(tame) < FEWEST_ROWS:
        return np.arange(len(tame))
    table = table.tocsc() if issparse(table) else table
    for column in np.flatnonzero(is_number):
        own = table[:, [column]]
        own = own.toarray() if issparse(own) else own
        cells = own[:, 0].astype(np.float64)
        seen = np.flatnonzero(np.isfinite(cells) & (weight > 0.0))
        if len(seen) < FEWEST_ROWS:
            continue
        away = np.abs(cells[seen] / 2.0 - np.median(cells[seen]) / 2.0)  # no overflow
        place = int(INNER * (len(away) - 1))
        unit = np.partition(away, place)[place]
        if unit > 0.0:
            tame[seen[away / WILD > unit]] = False
    return np.flatnonzero(tame)


def rows_at(rows: LabelledRows, index: NDArray[np.intp]) -> LabelledRows:
    return rows._replace(X=take_rows(rows.X, index), weight=rows.weight[index])


def _highest(scores: Array, weight: Array, fraction: float) -> NDArray[np.intp]:
    """Return the highest rows, in order, that together weigh a fraction of all."""
    order = np.argsort(-scores, kind="stable")
    before = weight[order].cumsum() - weight[order]
    return np.sort(order[before < fraction * weight.sum() * (1.0 - 1e-12)])
