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
LARGEST_SHARE = 0.25  # of a column's variance that one row may have
MOST_SPOILING = 0.05  # of the rows
FEWEST_ROWS = 20  # of which one can be told from the others by its share
ROUNDS = 3
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
    """Return all rows but those that have a quarter of a column's variance each: they are its unit.

    All rows, where these are more than one in twenty: then that is how the table is.
    """
    tame = np.arange(table.shape[0])
    if issparse(table) or len(tame) < FEWEST_ROWS:
        return tame
    for _ in range(ROUNDS):  # one may hide behind another
        spoiling = _spoiling(table[tame], weight[tame], is_number)
        tame = tame[~spoiling]
    return tame if len(tame) >= (1.0 - MOST_SPOILING) * len(weight) else np.arange(len(weight))


def _spoiling(table: Any, weight: Array, is_number: NDArray[np.bool_]) -> NDArray[np.bool_]:
    spoiling = np.zeros(table.shape[0], dtype=bool)
    for column in np.flatnonzero(is_number):
        cells = np.asarray(table[:, column], dtype=np.float64)
        seen = np.isfinite(cells)
        largest = np.abs(cells[seen]).max(initial=0.0)
        cells = np.where(seen, cells / largest, 0.0) if largest > 0.0 else np.zeros(len(cells))
        counts = weight * seen
        mean = counts @ cells / max(counts.sum(), 1e-300)
        squared = seen * (cells - mean) ** 2
        spoiling |= squared > LARGEST_SHARE * (counts @ squared)
    return spoiling


def rows_at(rows: LabelledRows, index: NDArray[np.intp]) -> LabelledRows:
    return rows._replace(X=take_rows(rows.X, index), weight=rows.weight[index])


def _highest(scores: Array, number: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - number :])
