"""ReconstructionDisplay: rows beside what their codes decode to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .._effects import some_rows
from .._inputs import labels_of
from .._table.column import Array
from ._axes import Display, Panel, shown
from ._images import check_image_shape, draw_tiles
from ._models import check_count, column_number, has_dates, model_and_rows
from ._room import Room, cut, show_dates

MOST_PANELS = 6
MOST_POINTS = 2000  # of a panel, evenly taken
MOST_LEVELS = 12  # whose names are written


class Reconstructed(NamedTuple):
    """One column: its cells, and what the codes of their rows decode to.

    Attributes
    ----------
    name : str
        Of the column.
    cells, decoded : ndarray of shape (n_observed,)
        Numbers, or places of levels, of the cells that are not missing.
    levels : list of str
        Names of the levels; empty for numbers.
    is_date : bool
        Whether the numbers are days since 1970.
    """

    name: str
    cells: Array
    decoded: Array
    levels: Sequence[str] = ()
    is_date: bool = False

    @property
    def score(self) -> float:
        """Share of the variance that is explained; of levels, that of cells which are right."""
        if not len(self.cells):
            return float("nan")
        if self.levels:
            return float((self.cells == self.decoded).mean())
        total = float(np.var(self.cells))
        left = float(np.mean((self.cells - self.decoded) ** 2))
        return 1.0 - left / total if total > 0.0 else float(left == 0.0)

    @property
    def most_frequent(self) -> float:
        """Share of the most frequent level: what is right without a model."""
        count = np.bincount(self.cells.astype(int), minlength=1)
        return float(count.max() / max(count.sum(), 1))

    @property
    def gain(self) -> float:
        """Share of what there is to explain, that is explained: to order columns by."""
        if not self.levels or not len(self.cells):
            return self.score
        base = self.most_frequent
        return (self.score - base) / (1.0 - base) if base < 1.0 else 1.0

    def confusion(self) -> Array:  # (L, L)
        """Return the share of each decoded level, by the level that was there."""
        size = len(self.levels)
        place = self.cells.astype(int) * size + self.decoded.astype(int)
        count = np.bincount(place, minlength=size * size).reshape(size, size).astype(np.float64)
        return count / np.maximum(count.sum(axis=1, keepdims=True), 1.0)


@dataclass(kw_only=True, eq=False, repr=False)
class ReconstructionDisplay(Display):
    """Rows beside what their codes decode to: what the model keeps, and what it loses.

    Use :meth:`from_estimator` to make one. Images stand above their reconstructions. Of columns of
    numbers the reconstruction is drawn against the cell, with the share of the variance that is
    explained; of categories the share of each decoded level, by the level that was there.

    Parameters
    ----------
    images : ndarray of shape (2, n_rows, height, width), default=None
        Some rows, and their reconstructions.
    columns : sequence of Reconstructed, default=()
        Columns of other tables.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The first panel.
    axes_ : ndarray of matplotlib Axes
        All panels.
    figure_ : matplotlib Figure
        The figure that holds them.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ReconstructionDisplay
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(1, max_iter=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X)
    >>> display.columns[0].name, round(display.columns[0].score, 2)  # the best one
    ('petal length (cm)', 0.97)
    """

    images: Array | None = None
    columns: Sequence[Reconstructed] = ()

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        image_shape: tuple[int, ...] | None = None,
        n_images: int = 10,
        columns: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "ReconstructionDisplay":
        """Draw rows beside their reconstructions.

        Parameters
        ----------
        estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
            A fitted estimator; of the second and third it is their ``vae_``, of a pipeline its last
            step that is one of these.
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows; best such that were not in ``fit``. Of more
            than 10,000 so many are taken, evenly.
        image_shape : tuple of int, default=None
            Height and width of the image that a row is, and 3 or 4 if it has colours.
        n_images : int, default=10
            How many images, taken evenly from the rows.
        columns : list of labels or int, default=None
            Which columns to draw. None is up to six, from the best reproduced to the worst.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``imshow`` or ``scatter``.

        Returns
        -------
        display : ReconstructionDisplay
            What was drawn.
        """
        vae, X = model_and_rows(estimator, X, cls.__name__)
        if image_shape is not None:
            check_image_shape(image_shape, vae)
        check_count("n_images", n_images, 1)
        table = vae.model_.read(X, vae.handle_unknown)
        if image_shape is not None:
            rows = np.unique(np.linspace(0, table.shape[0] - 1, n_images).astype(int))
            table = table[rows]
        table = some_rows(table, table.shape[1])
        codes = vae.model_.encode(table, whiten=True, device=vae.device)
        decoded = vae.model_.decode(codes, whiten=True, device=vae.device)
        cells = table.toarray() if hasattr(table, "toarray") else np.asarray(table, np.float64)
        if image_shape is not None:
            both = np.stack([cells, decoded])[..., : vae.n_features_in_]
            display = cls(images=both.reshape(2, len(cells), *image_shape))
        else:
            display = cls(columns=_columns(vae, columns, cells, decoded))
        return display.plot(ax=ax, **kwargs)

    def plot(self, *, ax: Any = None, **kwargs: Any) -> "ReconstructionDisplay":
        """Draw the images or the columns.

        Parameters
        ----------
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``imshow`` or ``scatter``.

        Returns
        -------
        display : ReconstructionDisplay
            This object.
        """
        n_panels, panel = len(self.columns), Panel((3.4, 3.2), n_columns=3)
        if self.images is not None:
            _, n_images, height, width, *_ = self.images.shape
            size = (1.2 + 0.9 * n_images * width / height, 2.2)
            n_panels, panel = 1, Panel(size, layout="compressed")
        panels = self._on(ax, n_panels, panel)
        if self.images is not None:
            draw_tiles(self.ax_, self.images, kwargs)
            self.ax_.set(xticks=[], yticks=[0, 1], yticklabels=["rows", "decoded"])
        for one, column in zip(self.axes_, self.columns, strict=False):
            (_draw_levels if column.levels else _draw_numbers)(one, panels.room, column, kwargs)
        panels.settle()
        return self


def _columns(vae: Any, asked: Any, cells: Array, decoded: Array) -> list[Reconstructed]:
    """Return the columns that were asked for, or some from the best reproduced to the worst."""
    if asked is not None:
        keys = asked if isinstance(asked, list | tuple) else [asked]
        return [_column(vae, column_number(vae, key), cells, decoded) for key in keys]
    every = [_column(vae, number, cells, decoded) for number in range(vae.n_features_in_)]
    every = [column for column in every if len(column.cells)] or every
    gains = np.nan_to_num([column.gain for column in every], nan=-np.inf)
    order = np.argsort(-gains, kind="stable")
    some = np.unique(np.linspace(0, len(order) - 1, MOST_PANELS).round().astype(int))
    return [every[number] for number in order[some]]


def _column(vae: Any, number: int, cells: Array, decoded: Array) -> Reconstructed:
    column, seen = vae.model_.schema.columns[number], ~np.isnan(cells[:, number])
    levels = [shown(level) for level in column.levels] if column.n_levels else []
    if column.kind == "boolean":
        levels, decoded = ["False", "True"], np.rint(decoded)
    if column.n_levels and column.rare:
        levels.append("(rare)")
    return Reconstructed(
        shown(labels_of(vae)[number]),
        cells[seen, number],
        decoded[seen, number],
        levels,
        has_dates(vae, number),
    )


def _draw_numbers(ax: Any, room: Room, column: Reconstructed, kwargs: dict[str, Any]) -> None:
    step = max(-(-len(column.cells) // MOST_POINTS), 1)
    x, y = column.cells[::step], column.decoded[::step]
    settings: dict[str, Any] = {"s": 9, "alpha": 0.5, "linewidths": 0.0} | kwargs
    ax.scatter(x, y, **settings)
    if len(x):
        ends = [float(x.min()), float(x.max())]
        ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.set(xlabel=column.name, ylabel="decoded")
    title = f"{column.score:.0%} of the variance" if len(x) else "no cell holds anything"
    ax.set_title(title, fontsize="medium")
    if column.is_date:
        show_dates(ax.xaxis, room)
        show_dates(ax.yaxis, room)


def _draw_levels(ax: Any, room: Room, column: Reconstructed, kwargs: dict[str, Any]) -> None:
    share = column.confusion()
    image = {k: v for k, v in kwargs.items() if k == "cmap"}
    ax.imshow(share, **({"cmap": "Blues", "vmin": 0.0, "vmax": 1.0, "aspect": "auto"} | image))
    size, points = len(column.levels), room.points("small")
    if size <= min(MOST_LEVELS, room.lines(0.6, "small")):
        names = [cut(level, room.letters(0.25, "small")) for level in column.levels]
        ax.set_xticks(range(size), names, rotation=90, fontsize=points)
        ax.set_yticks(range(size), names, fontsize=points)
    if size <= min(MOST_LEVELS, room.letters(0.15, "x-small")):
        _write_shares(ax, share, room.points("x-small"))
    ax.set(xlabel="decoded", ylabel=column.name)
    base = f"most frequent {column.most_frequent:.0%}"
    ax.set_title(f"{column.score:.0%} right ({base})", fontsize="medium")


def _write_shares(ax: Any, shares: Array, points: float) -> None:
    """Write how many percent of a level become which one."""
    for row, line in enumerate(shares):
        for place, value in enumerate(line):
            if value >= 0.005:
                colour = "white" if value > 0.5 else "black"
                text = {"ha": "center", "va": "center", "fontsize": points}
                ax.text(place, row, f"{100 * value:.0f}", color=colour, **text)
