"""OutlierDisplay: scores, where outliers begin, and what makes the oddest rows odd."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from .._explanation import Explanation, dense
from .._inputs import fitted_now, labels_of, validated
from .._outlier import VAEOutlierDetector
from .._table.column import Array
from .._table.frames import library_of, take_rows
from ._axes import Bars, Display, Panel, draw_bars, draw_legend, number_of_bars, shown
from ._models import Colouring, check_count, step_of
from ._room import Room

N_BINS = 50
FEW_ROWS = 10  # in a bin: up to these the scale is linear
MOST_INSIDE = 4  # labels of a legend within its panel
COUNTS = ("bernoulli", "poisson", "negative_binomial", "multinomial")
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


@dataclass(kw_only=True, eq=False, repr=False)
class OutlierDisplay(Display):
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

    scores: Array
    is_outlier: Array
    threshold: float | None
    threshold_label: str
    rows: Sequence[OddRow]
    colouring: Colouring | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
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
        estimator : VAEOutlierDetector or Pipeline
            A fitted detector; of a pipeline the last step that is of skvae.
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows; of a pipeline those that it takes.
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
        estimator, X = step_of(estimator, X)
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
        n_bars = min(n_columns, len(self.rows[0].columns)) if self.rows else 0
        n_panels = 1 + len(self.rows)
        height = max(3.4 / -(-n_panels // 2), 0.9 + 0.28 * n_bars)
        panel = Panel((5.4, height), least=(2.6, 1.1), n_columns=2)
        panels = self._on(ax, n_panels, panel)
        self._draw_scores(self.ax_, panels.room)
        if panels.grids:
            longest = max(
                (len(text) for row in self.rows for text in row.cells[:n_bars]), default=0
            )
            n_bars = number_of_bars(panels.room, n_bars, longest)
        for one, row in zip(self.axes_[1:], self.rows, strict=False):
            _draw_row(one, panels.room, row, n_bars)
        panels.settle()
        return self

    def _draw_scores(self, ax: Any, room: Room) -> None:
        finite = self.scores[np.isfinite(self.scores)]
        best, low = (finite.max(), finite.min()) if len(finite) else (0.0, -1.0)
        if self.threshold is not None and np.isfinite(self.threshold):
            low = max(low, best - LOWEST * max(best - self.threshold, 1e-9))
            best, low = max(best, self.threshold), min(low, self.threshold)
        if best - low < 1e-6 * max(abs(best), 1.0):  # all of them are the same
            best, low = best + 0.5, low - 0.5
        cut = np.clip(self.scores, low, best)
        bins = np.linspace(low, best, N_BINS + 1)
        groups: list[Any] = [(np.ones(len(cut), dtype=bool), None)]
        if self.colouring is not None and self.colouring.place is not None:
            place = self.colouring.place
            groups = [(place == i, label) for i, label in enumerate(self.colouring.labels)]
        most = 0.0
        for number, (which, label) in enumerate(groups):
            count, *_ = ax.hist(cut[which], bins, alpha=0.6, color=f"C{number}", label=label)
            most = max(most, float(count.max()))
        if self.threshold is not None:
            ax.axvline(self.threshold, color="black", linestyle="--", label=self.threshold_label)
        ax.set(xlabel="score, nats", ylabel="rows")
        ax.yaxis.get_major_locator().set_params(integer=True)
        if most > FEW_ROWS:
            ax.set_yscale("log")
        n_odd = int(self.is_outlier.sum())
        rows = "row" if len(self.scores) == 1 else "rows"
        verb = "is an outlier" if 1 in (n_odd, len(self.scores)) else "are outliers"
        ax.set_title(f"{n_odd:,} of {len(self.scores):,} {rows} {verb}", fontsize="medium")
        handles, _ = ax.get_legend_handles_labels()
        if len(handles) > MOST_INSIDE:
            draw_legend(ax, room, handles)
        elif handles:
            ax.legend(fontsize=room.points("small"), loc="upper left")


def _draw_row(ax: Any, room: Room, row: OddRow, n_bars: int) -> None:
    shares = row.shares[:n_bars]
    colours = np.where(shares >= 0.0, "C3", "0.7")
    draw_bars(ax, room, Bars(shares, row.columns[:n_bars], row.cells[:n_bars], colours))
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
    is_whole = _whole_columns(detector.vae_, X)
    result = []
    for number, row in enumerate(rows):
        order = np.argsort(-found.share[number], kind="stable")
        texts = [_cell_text(found, cells, number, column, is_whole[column]) for column in order]
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


def _cell_text(found: Explanation, cells: Any, row: int, column: int, is_whole: bool) -> str:
    """Say what stands in a cell, and in brackets what was to be expected."""
    value, likely = cells[row, column], found.likely[row, column]
    if isinstance(likely, tuple):
        return f"{shown(value, 14)} ({_levels_text([shown(level, 14) for level in likely])})"
    lower, upper = found.lower[row, column], found.upper[row, column]
    if (is_whole or isinstance(value, Integral)) and np.isfinite([lower, upper]).all():
        lower, upper = int(np.rint(lower)), int(np.rint(upper))
    ends = [shown(lower), shown(upper)]
    return f"{shown(value)} ({ends[0] if ends[0] == ends[1] else ' to '.join(ends)})"


def _levels_text(likely: list[str]) -> str:
    """Say which levels are likely: two if they are short, else the first one."""
    if len(likely) == 2 and len("".join(likely)) <= 14:
        return " or ".join(likely)
    more = f" or {len(likely) - 1} more" if len(likely) > 1 else ""
    return f"{likely[0] if likely else '?'}{more}"


def _whole_columns(vae: Any, X: Any) -> list[bool]:
    """Tell the columns of whole numbers: by their dtype in the fit, else in X, or by likelihood."""
    template = vae.model_.schema.template
    dtypes = [X.dtype] * vae.n_features_in_ if template is None else list(template.dtypes)
    return [
        kind in COUNTS or str(dtype).lower().startswith(("int", "uint"))
        for kind, dtype in zip(vae.likelihood_, dtypes, strict=True)
    ]
