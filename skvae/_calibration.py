"""What scores of ordinary rows say of a new one: its p-value, and where outliers begin."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from ._table.column import Array

ROUNDING = 1e-9  # of a score, relative
WHISKER = 1.5  # interquartile ranges (Tukey 1977)


class Calibration(NamedTuple):
    """Scores of rows that had no part in what scores them."""

    scores: Array  # (N,)  rising
    total: Array  # (N,)   how often rows up to each count, all together

    @classmethod
    def of(cls, scores: Array, weight: Array) -> "Calibration":
        order = np.argsort(scores, kind="stable")
        return cls(scores[order], weight[order].cumsum())

    def quantile(self, q: float) -> float:
        """Return a quantile as of rows that stand there as often as they count, interpolated."""
        place = max(self.total[-1] - 1.0, 0.0) * q
        below = np.floor(place + ROUNDING)
        ends = np.searchsorted(self.total, [below, below + 1.0], side="right")
        lower, upper = self.scores[np.minimum(ends, len(self.scores) - 1)]
        share = max(place - below, 0.0)
        if not np.isfinite(lower):  # rows without any density are below all others
            finite = self.scores[np.isfinite(self.scores)]
            return float(finite[0]) if len(finite) else float(lower)
        return float(lower + share * (upper - lower))

    def fence(self, whisker: float = WHISKER) -> float:
        """Return Tukey's lower fence: the first quartile less some interquartile ranges."""
        lower, upper = self.quantile(0.25), self.quantile(0.75)
        return lower - whisker * (upper - lower) if np.isfinite(upper) else lower

    def p_values(self, scores: Array) -> Array:
        """Return (1 + number of rows that score no higher) / (1 + number of rows)."""
        # Rounding depends on the rows beside a row: scores this close to each other are ties.
        size = np.where(np.isfinite(scores), np.abs(scores), 0.0)
        ties = scores + ROUNDING * (1.0 + size)
        place = np.searchsorted(self.scores, ties, side="right")
        no_higher = np.append(0.0, self.total)[place]
        return (1.0 + no_higher) / (1.0 + self.total[-1])


def discoveries(p_values: Array, fdr: float) -> NDArray[np.bool_]:
    """Return which rows are outliers at a false discovery rate (Benjamini & Hochberg 1995)."""
    return np.asarray(false_discovery_control(p_values) <= fdr)
