"""OutlierDisplay: scores, where outliers begin, and what makes the oddest rows odd."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._explanation import Explanation, dense
from .._inputs import fitted_now, labels_of, validated
from .._outlier import VAEOutlierDetector
from .._table.column import Array
from .._table.frames import library_of, take_rows
from ._axes import panels_for, shown
from ._models import Colouring, check_count

N_BINS = 50
LOWEST = 4.0  # times as far from the best score as the threshold: all that is below shares a bin


class OddRow(NamedTuple):
    """A row, and its columns by how odd they make it.

    Attributes
    ----------
    name : str
        Its label in a frame, or its number.
    score : float
        In nats.
    columns : list of str
        Names of the columns, the oddest first.
    shares : ndarray of shape (n_columns,)
        What each makes the row odder, in nats.
    cells : list of str
        What stands in them, and in brackets what was to be expected.
    """

    name: str
    score: float
    columns: Sequence[str]
    shares: Array
    cells: Sequence[str]


class OutlierDisplay:
    """Scores of rows, where outliers begin, and what makes the oddest rows odd.

    Use :meth:`from_estimator` to make one. The first panel counts the scores, on a logarithmic
    scale. Beside it each of the oddest rows has a panel: its columns with the largest shares of
    what it is odder than a typical row, what stands there, and in brackets between what 90% of
    ordinary rows would lie, or which levels are likely.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        Scores of the rows, in nats.
    is_outlier : ndarray of bool of shape (n_samples,)
        What ``predict`` says of them.
    threshold : float or None
        Score below which rows are outliers; None if none of them is.
    threshold_label : str
        What it is called.
    rows : sequence of OddRow
        The oddest rows.
    colouring : Colouring or None, default=None
        Labels of the rows, with a histogram each.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The panel of the scores.
    axes_ : ndarray of matplotlib Axes
        All panels.
    figure_ : matplotlib Figure
        The figure that holds them.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from skvae import VAEOutlierDetector
    >>> from skvae.displays import OutlierDisplay
    >>> X, _ = load_wine(return_X_y=True, as_frame=True)
    >>> detector = VAEOutlierDetector(random_state=0).fit(X)
    >>> odd = X.copy()
    >>> odd.loc[7, "magnesium"] += 90
    >>> display = OutlierDisplay.from_estimator(detector, odd)
    >>> display.rows[0].name, display.rows[0].columns[0]
    ('7', 'magnesium')
    """

    def __init__(
        self,
        *,
        scores: Array,
        is_outlier: Array,
        threshold: float | None,
        threshold_label: str,
        rows: Sequence[OddRow],
        colouring: Colouring | None = None,
    ) -> None:
        self.scores = scores
        self.is_outlier = is_outlier
        self.threshold = threshold
        self.threshold_label = threshold_label
        self.rows = rows
        self.colouring = colouring

    @classmethod
    def from_estimator(
        cls,
        estimator: VAEOutlierDetector,
        X: Any,
        y: Any = None,
        *,
        n_rows: int = 5,
        n_columns: int = 4,
        ax: Any = None,
    ) -> "OutlierDisplay":
        """Draw how odd rows are, and why.

        Parameters
        ----------
        estimator : VAEOutlierDetector
            A fitted detector.
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        y : array-like of shape (n_samples,), default=None
            Labels of the rows, where they are known: a histogram of each.
        n_rows : int, default=5
            How many of the oddest rows to explain.
        n_columns : int, default=4
            How many columns of each.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : OutlierDisplay
            What was drawn.
        """
        if not isinstance(estimator, VAEOutlierDetector):
            raise TypeError(
                f"{cls.__name__} shows a VAEOutlierDetector. Got a {type(estimator).__name__}."
            )
        check_count("n_rows", n_rows, 0)
        check_count("n_columns", n_columns, 0)
        now: Any = fitted_now(estimator)
        X = validated(now, X, reset=False)
        scores, is_outlier = now.score_samples(X), now.predict(X) == -1
        threshold, label = now.offset_, "offset_"
        if now.fdr is not None:
            label = f"false discovery rate {now.fdr:.0%}"
            threshold = float(scores[is_outlier].max()) if is_outlier.any() else None
        oddest = np.argsort(scores, kind="stable")[: min(n_rows, len(scores))]
        display = cls(
            scores=scores,
            is_outlier=is_outlier,
            threshold=threshold,
            threshold_label=label,
            rows=_odd_rows(now, X, scores, oddest) if n_rows and n_columns else [],
            colouring=None if y is None else Colouring.by(y, "y", len(scores)),
        )
        return display.plot(n_columns=n_columns, ax=ax)

    def plot(self, *, n_columns: int = 4, ax: Any = None) -> "OutlierDisplay":
        """Draw the scores and the oddest rows.

        Parameters
        ----------
        n_columns : int, default=4
            How many columns of each row.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : OutlierDisplay
            This object.
        """
        n_panels = 1 + len(self.rows)
        n_bars = min(n_columns, len(self.rows[0].columns)) if self.rows else 0
        shape = (-(-n_panels // 2), 2) if n_panels > 1 else (1, 1)
        size = (5.4 * shape[1], max(3.4, (0.9 + 0.28 * n_bars) * shape[0]))
        self.figure_, axes = panels_for(type(self).__name__, ax, shape, size)
        self.axes_ = axes.ravel()
        self.ax_ = self.axes_[0]
        self._draw_scores(self.ax_)
        for panel, row in zip(self.axes_[1:], self.rows, strict=False):
            _draw_row(panel, row, n_bars)
        for panel in self.axes_[n_panels:]:
            panel.set_axis_off()
        return self

    def _draw_scores(self, ax: Any) -> None:
        finite = self.scores[np.isfinite(self.scores)]
        best, low = (finite.max(), finite.min()) if len(finite) else (0.0, -1.0)
        if self.threshold is not None and np.isfinite(self.threshold):
            low = max(low, best - LOWEST * max(best - self.threshold, 1e-9))
        cut = np.clip(self.scores, low, best)
        bins = np.linspace(low, max(best, low + 1e-9), N_BINS + 1)
        groups: list[Any] = [(np.ones(len(cut), dtype=bool), None)]
        if self.colouring is not None and self.colouring.place is not None:
            place = self.colouring.place
            groups = [(place == i, label) for i, label in enumerate(self.colouring.labels)]
        for number, (which, label) in enumerate(groups):
            ax.hist(cut[which], bins, alpha=0.6, color=f"C{number}", label=label)
        if self.threshold is not None:
            ax.axvline(self.threshold, color="black", linestyle="--", label=self.threshold_label)
        ax.set(xlabel="score, nats", ylabel="rows", yscale="log")
        n_odd = int(self.is_outlier.sum())
        ax.set_title(f"{n_odd:,} of {len(self.scores):,} rows are outliers", fontsize="medium")
        if self.threshold is not None or self.colouring is not None:
            ax.legend(fontsize="small", loc="upper left")


def _draw_row(ax: Any, row: OddRow, n_bars: int) -> None:
    shares = row.shares[:n_bars]
    place = np.arange(len(shares))
    ax.barh(place, shares, color=np.where(shares >= 0.0, "C3", "0.7"), height=0.7)
    ax.set_yticks(place, row.columns[:n_bars])
    ax.invert_yaxis()
    ax.axvline(0.0, color="black", linewidth=0.8)
    reach = max(float(np.abs(shares).max(initial=0.0)), 1e-9)
    ax.set_xlim(min(0.0, 1.1 * float(shares.min(initial=0.0))), 2.6 * reach)
    for number, (share, text) in enumerate(zip(shares, row.cells, strict=False)):
        at = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(text, (max(share, 0.0), number), fontsize="x-small", **at)
    ax.set_xlabel("share, nats")
    ax.set_title(f"row {row.name}: score {row.score:.1f}", fontsize="medium")


def _odd_rows(detector: Any, X: Any, scores: Array, rows: Any) -> list[OddRow]:
    """Say what makes some rows of X odd."""
    some = take_rows(X, rows)
    found, cells = detector.explain(some), dense(some)
    if not isinstance(found, Explanation):
        parts = {name: found[name].to_numpy() for name in Explanation.__annotations__}
        found = Explanation(**{name: part.reshape(cells.shape) for name, part in parts.items()})
    names = X.index[rows] if library_of(X) == "pandas" else rows
    labels = [shown(label) for label in labels_of(detector.vae_)]
    result = []
    for number, row in enumerate(rows):
        order = np.argsort(-found.share[number], kind="stable")
        texts = [_cell_text(found, cells, number, column) for column in order]
        result.append(
            OddRow(
                shown(names[number]),
                float(scores[row]),
                [labels[column] for column in order],
                found.share[number][order],
                texts,
            )
        )
    return result


def _cell_text(found: Explanation, cells: Any, row: int, column: int) -> str:
    value, likely = cells[row, column], found.likely[row, column]
    if isinstance(likely, tuple):
        more = f" or {len(likely) - 1} more" if len(likely) > 1 else ""
        return f"{shown(value, 14)} ({shown(likely[0], 14) if likely else '?'}{more})"
    lower, upper = (shown(end[row, column]) for end in (found.lower, found.upper))
    return f"{shown(value)} ({lower} to {upper})"
