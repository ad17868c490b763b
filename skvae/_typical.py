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
    model: VAETransformer,
    rows: LabelledRows,
    support_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.intp]:
    """Return the most typical rows under the linear model, which is fitted to such rows alone.

    Each concentration step raises the likelihood of the rows that it keeps. Where they end depends
    on where they begin: from all rows, a cluster of outliers can hold a component. So they begin at
    the half that is nearest the medians (as in DetMCD: Hubert et al. 2012). That a level is rare
    makes its rows no less typical: else none of them would be learnt.
    """
    from ._fitting import fit

    n_rows = len(rows.weight)
    n_typical = int(np.ceil(support_fraction * n_rows))
    if n_typical == n_rows:
        return np.arange(n_rows)
    linear = {**model.get_params(deep=False), "max_iter": 0, "hidden_layer_sizes": ()}

    def fitted_to(typical: NDArray[np.intp], noise: str = model.noise) -> tuple[Fitted, Any]:
        few = np.sort(generator.permutation(typical)[:STEP_ROWS])
        fitted, _ = fit({**linear, "noise": noise}, rows_at(rows, few), seed=0)
        return fitted, fitted.read(rows.X)

    fitted, table = fitted_to(np.arange(n_rows), "shared")  # for its units alone: the fastest
    typical = _highest(fitted.centrality(table, model.device), -(-n_rows // 2))
    for _ in range(STEPS):
        fitted, table = fitted_to(typical)
        scores, _ = fitted.score(table, n_samples=2, refine=False, device=model.device)
        scores = scores + expected_of_missing(table, least_expected(fitted.columns))
        scores = scores - log_share_of_levels(table, fitted.columns)
        typical = _highest(scores, n_typical)
    return typical


def log_share_of_levels(table: Any, columns: Columns) -> Array:  # (N,)
    """Add up the log-shares of each row's levels, and of its zeros and ones, in their columns."""
    total = np.zeros(table.shape[0])
    for column in np.flatnonzero([name in WITH_LEVELS for name in columns.kinds.names]):
        own = table[:, [column]]
        cells = (own.toarray() if issparse(own) else own)[:, 0].astype(np.float64)
        seen = ~np.isnan(cells)
        _, place, count = np.unique(cells[seen], return_inverse=True, return_counts=True)
        total[seen] += np.log(count / count.sum())[place]
    return total


def tame_rows(table: Any, weight: Array, is_number: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return all rows but those with a wild cell, which would be the unit of its column.

    Such a cell is 100 times as far from the median as 99% of the column's cells are. Of sparse
    rows all are kept: most of their cells are 0.
    """
    tame = np.ones(table.shape[0], dtype=bool)
    if issparse(table) or len(tame) < FEWEST_ROWS:
        return np.arange(len(tame))
    for column in np.flatnonzero(is_number):
        cells = np.asarray(table[:, column], dtype=np.float64)
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


def _highest(scores: Array, number: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - number :])
