"""ManifoldDisplay: what the decoder makes of the whole prior, as images or as curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._effects import Decoded, Reading
from .._inputs import labels_of
from .._table.column import Array
from ._axes import GREY, Display, Panel, colours_of, shown
from ._images import check_image_shape, draw_tiles
from ._models import (
    check_count,
    column_number,
    component_label,
    drawn_rows,
    has_dates,
    model_and_rows,
    one_or_two_of,
    spread_of,
)
from ._room import Room, cut, show_dates

ENDS = (0.02, 0.98)  # quantiles of the prior
N_POINTS = 41  # of a curve
LINES = (0.1, 0.5, 0.9)  # quantiles of the second component
MOST_PANELS = 6
MOST_NAMED = 6  # levels of a category


@dataclass(kw_only=True, eq=False, repr=False)
class ManifoldDisplay(Display):
    """What the decoder makes of an even grid of quantiles of the prior: the learned manifold.

    Use :meth:`from_estimator` to make one. Images are tiles, as in the two pictures of [1]_.
    Columns of other tables are curves: of numbers the decoder's mean along the first component, at
    three quantiles of the second; of categories the probability of each level along the first.

    Parameters
    ----------
    values : ndarray of shape (n_second, n_first, n_readings)
        What is decoded: means of numbers, in original units, and probabilities of levels.
    first : ndarray of shape (n_first,)
        Quantiles of the prior of the first component, between 0 and 1.
    second : ndarray of shape (n_second,)
        Quantiles of the second, rising; one number if there is but one component.
    codes : ndarray of shape (n_second, n_first, n_components)
        The codes that were decoded, in the units of ``transform``.
    readings : sequence of Reading
        Which column, and which level, each value is of.
    names : sequence of str
        Of all columns.
    image_shape : tuple of int, default=None
        Height and width of an image, and colours if it has them; None draws curves.
    columns : sequence of int, default=()
        Numbers of the columns that are drawn as curves.
    dated : sequence of bool, default=()
        Whether each of these holds dates.
    labels : sequence of str, default=("component 0", "component 1")
        Of the components.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that hold the tiles; of curves the first panel.
    axes_ : ndarray of matplotlib Axes
        All panels.
    figure_ : matplotlib Figure
        The figure that holds them.
    image_ : matplotlib AxesImage or None
        The tiles.

    References
    ----------
    .. [1] Kingma & Welling (2014), Auto-Encoding Variational Bayes, figure 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ManifoldDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAETransformer(2, max_iter=0).fit(X)
    >>> display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8))
    >>> display.values.shape
    (11, 11, 64)
    """

    values: Array
    first: Array
    second: Array
    codes: Array
    readings: Sequence[Reading]
    names: Sequence[str]
    image_shape: tuple[int, ...] | None = None
    columns: Sequence[int] = ()
    dated: Sequence[bool] = ()
    labels: Sequence[str] = ("component 0", "component 1")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        components: Any = None,
        image_shape: tuple[int, ...] | None = None,
        columns: Any = None,
        n_tiles: int = 11,
        ax: Any = None,
        **kwargs: Any,
    ) -> "ManifoldDisplay":
        """Decode a grid over one or two components, and draw it.

        Parameters
        ----------
        estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
            A fitted estimator; of the second and third it is their ``vae_``, of a pipeline its last
            step that is one of these.
        X : array-like of shape (n_samples, n_features), default=None
            Rows at whose mean code all other components stay: a single row shows what it would
            become. None is the centre of the prior.
        components : int or pair of int, default=None
            Which components are the axes, as numbers of the columns of ``transform(X)``. None is
            the first two, or the only one.
        image_shape : tuple of int, default=None
            Height and width of the image that a row is, and 3 or 4 if it has colours.
        columns : list of labels or int, default=None
            Which columns to draw as curves. None is up to six that move most.
        n_tiles : int, default=11
            Number of quantiles along each component, evenly from 2% to 98%.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``imshow`` or ``plot``.

        Returns
        -------
        display : ManifoldDisplay
            What was drawn.
        """
        vae, X = model_and_rows(estimator, X, cls.__name__)
        asked = one_or_two_of(vae, components)
        check_count("n_tiles", n_tiles, 2)
        decoded = Decoded(vae.model_, vae.device)
        if image_shape is not None:
            check_image_shape(image_shape, vae)
        first = np.linspace(*ENDS, N_POINTS if image_shape is None else n_tiles)
        second = np.array(LINES) if image_shape is None else first
        if len(asked) == 1:
            second = np.array([0.5])
        base = decoded.prior_centre()
        if X is not None:
            base = decoded.codes(vae.model_.read(X)).mean(axis=0)
        z = _grid(decoded, base, asked, first, second)
        values = decoded.at(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:2], -1)
        names = [shown(label) for label in labels_of(vae)]
        drawn = [] if image_shape else _columns(vae, columns, values, decoded)
        display = cls(
            values=values,
            first=first,
            second=second,
            codes=z * vae.model_.code_scale(vae.whiten),
            readings=decoded.readings,
            names=names,
            image_shape=image_shape,
            columns=drawn,
            dated=[has_dates(vae, column) for column in drawn],
            labels=[component_label(vae, component) for component in asked],
        )
        return display.plot(ax=ax, **kwargs)

    def plot(self, *, ax: Any = None, **kwargs: Any) -> "ManifoldDisplay":
        """Draw the tiles or the curves.

        Parameters
        ----------
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``imshow`` or ``plot``.

        Returns
        -------
        display : ManifoldDisplay
            This object.
        """
        self.image_ = None
        if self.image_shape is None:
            return self._plot_curves(ax, kwargs)
        n_second, n_first = self.values.shape[:2]
        height, width, *_ = self.image_shape
        tile = 0.55 * np.array([width, height]) / max(width, height)  # inches
        size = (0.9 + n_first * float(tile[0]), 0.9 + n_second * float(tile[1]))
        panels = self._on(ax, 1, Panel(size, layout="compressed"))
        means = [reading.is_mean for reading in self.readings]
        tiles = self.values[..., means].reshape(n_second, n_first, *self.image_shape)
        self.image_ = draw_tiles(self.ax_, tiles[::-1], kwargs)
        n_lines = panels.room.lines(0.6)
        n_letters = min(panels.room.letters(0.75), int(2.5 * n_lines))  # as high as wide
        self.ax_.set_xticks(*_ticks(self.first, n_letters // 5))
        self.ax_.set_xlabel(_quantile_label(self.labels[0]))
        if n_second > 1:
            place, text = _ticks(self.second, n_lines)
            self.ax_.set_yticks(n_second - 1 - np.array(place), text)
            self.ax_.set_ylabel(_quantile_label(self.labels[1]))
        else:
            self.ax_.set_yticks([])
        panels.settle()
        return self

    def _plot_curves(self, ax: Any, kwargs: dict[str, Any]) -> "ManifoldDisplay":
        panel = Panel((3.6, 2.8), n_columns=3)
        panels = self._on(ax, len(self.columns), panel)
        for one, column, dated in zip(self.axes_, self.columns, self.dated, strict=False):
            self._draw_column(one, panels.room, column, kwargs)
            if dated:
                show_dates(one.yaxis, panels.room)
        panels.settle()
        return self

    def _draw_column(self, ax: Any, room: Room, column: int, kwargs: dict[str, Any]) -> None:
        from matplotlib.ticker import PercentFormatter

        own = [i for i, reading in enumerate(self.readings) if reading.column == column]
        means = [i for i in own if self.readings[i].is_mean]
        if means:
            self._draw_number(ax, room, means[0], kwargs)
            ax.set(ylabel=self.names[column])
        else:
            self._draw_levels(ax, room, own, kwargs)
            ax.set(ylabel=f"{self.names[column]}: probability", ylim=(0.0, 1.0))
        ax.set(xlabel=_quantile_label(self.labels[0]), xlim=(self.first[0], self.first[-1]))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))

    def _draw_levels(self, ax: Any, room: Room, own: list[int], kwargs: dict[str, Any]) -> None:
        """Draw the most probable levels in colour, the others in grey."""
        middle = self.values[len(self.second) // 2]
        highest = middle[:, own].max(axis=0)
        n_named = min(MOST_NAMED, room.lines(0.4, "x-small"))
        named = sorted(np.argsort(-highest, kind="stable")[:n_named].tolist())
        colours = dict(zip(named, colours_of(len(named)), strict=True))
        for number, place in enumerate(own):
            settings: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "zorder": 1.0}
            if number in colours:
                label = cut(shown(self.readings[place].level), room.letters(0.35, "x-small"))
                settings = {"color": colours[number], "label": label}
            ax.plot(self.first, middle[:, place], **(settings | kwargs))
        if named:  # a category without any level has none
            ax.legend(fontsize=room.points("x-small")).set_in_layout(False)

    def _draw_number(self, ax: Any, room: Room, place: int, kwargs: dict[str, Any]) -> None:
        from matplotlib import colormaps

        colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(self.second)))
        for line, share, colour in zip(self.values[..., place], self.second, colours, strict=True):
            settings = {"color": colour, "label": f"{share:.0%}"} | kwargs
            ax.plot(self.first, line, **settings)
        if len(self.second) > 1:
            title = self.labels[1].partition(" (")[0]
            size = room.points("x-small")
            ax.legend(title=title, fontsize=size, title_fontsize=size).set_in_layout(False)


def _grid(
    decoded: Decoded, base: Array, components: list[int], first: Array, second: Array
) -> Array:
    """Return codes (n_second, n_first, K) over quantiles of one or two components."""
    z = np.tile(base, (len(second), len(first), 1))
    z[..., components[0]] = decoded.prior_quantiles(first)[:, components[0]]
    if len(components) == 2:
        z[..., components[1]] = decoded.prior_quantiles(second)[:, [components[1]]]
    return z


def _columns(vae: Any, asked: Any, values: Array, decoded: Decoded) -> list[int]:
    """Return the columns to draw: those asked for, or those that move most for their spread."""
    if asked is not None:
        keys = asked if isinstance(asked, list | tuple) else [asked]
        return [column_number(vae, key) for key in keys]
    draws = drawn_rows(vae)
    movement = np.zeros(vae.n_features_in_)
    for place, reading in enumerate(decoded.readings):
        share = float(values[..., place].std()) / max(spread_of(reading, draws), 1e-12)
        movement[reading.column] = max(movement[reading.column], share)
    most = np.argsort(-movement, kind="stable")[:MOST_PANELS]
    return sorted(most[movement[most] > 0.0].tolist()) or most[:1].tolist()


def _ticks(shares: Array, most: int) -> tuple[list[int], list[str]]:
    """Return the places of a few quantiles, evenly, and their names: so many if there are two."""
    last = len(shares) - 1
    n_parts = next(n for n in (5, 4, 3, 2, 1) if n == 1 or (last % n == 0 and n < most))
    places = list(range(0, last + 1, last // n_parts))
    return places, [f"{shares[place]:.0%}" for place in places]


def _quantile_label(label: str) -> str:
    return f"{label.partition(' (')[0]}, quantile of the prior"
