"""LatentDisplay: a map of rows by one or two components."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._table.column import Array
from .._table.frames import take_rows
from ._axes import (
    GREY,
    Display,
    Panel,
    colours_of,
    draw_colour_bar,
    draw_legend,
)
from ._cells import Cells, Limits, by_rank
from ._models import (
    Colouring,
    check_count,
    colouring_of,
    component_label,
    model_and_rows,
    one_or_two_of,
)
from ._room import Room, show_dates

MOST_POINTS = 30_000  # that are drawn one by one; more would hide each other
INK = 30_000.0  # square points of ink, if no point hid another
SIZES = (1.0, 36.0)  # of a point, in square points
COVERED = 0.9  # of a posterior, by its ellipse
LIGHTEST = 0.35  # of a cell with few rows: how much of its colour it has
COLOUR_TAIL = 0.01  # of the values, at either end, that have the last colour


@dataclass(kw_only=True, eq=False, repr=False)
class LatentDisplay(Display):
    """A map of rows by two components, as UMAP's and PCA's are drawn, or by one.

    Use :meth:`from_estimator` to make one. Up to 30,000 rows are points. More are counted in the
    cells of a grid, and a cell has the mean colour of its rows and is the darker the more they are,
    by rank, as datashader does [1]_: a map of millions of rows stays readable. Rows so far away
    that all others would become a dot lie outside, and the map says how many. By one component rows
    are counted in bars: a bar is divided by labels, or has the mean colour of its rows' numbers.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, 2) or (n_samples, 1)
        Where the rows are.
    colouring : Colouring or None, default=None
        What gives them their colour.
    labels : tuple of str, default=("component 0", "component 1")
        Of the axes.
    spread : ndarray of shape (n_ellipses, 2), default=None
        Posterior standard deviations of some rows.
    centre : ndarray of shape (n_ellipses, 2), default=None
        Where these rows are.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that hold the map.
    axes_ : ndarray of matplotlib Axes
        The same, alone.
    figure_ : matplotlib Figure
        The figure that holds them.
    scatter_ : matplotlib PathCollection or None
        The points; None if rows were counted.
    image_ : matplotlib AxesImage or None
        The cells; None if rows are points, or counted in bars.
    bars_ : list of matplotlib BarContainer or None
        The bars, of each label; None if there are two components.
    ellipses_ : matplotlib EllipseCollection or None
        Of the posteriors.

    References
    ----------
    .. [1] https://datashader.org, transfer functions, ``eq_hist``.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from skvae import VAETransformer
    >>> from skvae.displays import LatentDisplay
    >>> X, y = load_wine(return_X_y=True)
    >>> vae = VAETransformer(2, max_iter=0).fit(X)
    >>> display = LatentDisplay.from_estimator(vae, X, y)
    >>> display.codes.shape
    (178, 2)
    """

    codes: Array
    colouring: Colouring | None = None
    labels: tuple[str, ...] = ("component 0", "component 1")
    spread: Array | None = None
    centre: Array | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        components: Any = None,
        column: Any = None,
        score: str | None = None,
        n_ellipses: int = 0,
        kind: str = "auto",
        ax: Any = None,
        **kwargs: Any,
    ) -> "LatentDisplay":
        """Draw a map of rows.

        Parameters
        ----------
        estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
            A fitted estimator; of the second and third it is their ``vae_``, of a pipeline its last
            step that is one of these.
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows; of a pipeline those that it takes.
        y : array-like of shape (n_samples,), default=None
            Labels or numbers that colour the rows: strings, categories, booleans and up to 20
            different whole numbers are labels.
        components : int or pair of int, default=None
            Which components are the axes, as numbers of the columns of ``transform(X)``. None is
            the first two, or the only one.
        column : label or int, default=None
            A column of X that colours the rows, instead of y.
        score : str, default=None
            A method of ``VAETransformer.score_samples`` that colours them: "log_likelihood",
            "elbo", "reconstruction" or "kl".
        n_ellipses : int, default=0
            Of how many rows, evenly, to draw the ellipse that holds 90% of q(z | x).
        kind : {"auto", "points", "density"}, default="auto"
            Draw each row, or how many there are in each cell of a grid. "auto" draws up to 30,000.
            By one component rows are always counted.
        ax : matplotlib Axes, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``scatter``, ``imshow`` or, by one component, ``hist``.

        Returns
        -------
        display : LatentDisplay
            What was drawn.
        """
        vae, X = model_and_rows(estimator, X, cls.__name__)
        asked = one_or_two_of(vae, components)
        check_count("n_ellipses", n_ellipses, 0)
        if n_ellipses and len(asked) == 1:
            raise ValueError(
                "Ellipses need two components, and the map is of one. Got "
                f"n_ellipses={n_ellipses}: use 0."
            )
        colouring = colouring_of(vae, X, y=y, column=column, score=score)
        display = cls(
            codes=vae.transform(X)[:, asked].astype(np.float64),
            colouring=colouring,
            labels=tuple(component_label(vae, component) for component in asked),
        )
        if n_ellipses:
            rows = np.unique(np.linspace(0, X.shape[0] - 1, n_ellipses).astype(int))
            display.spread = _posterior_spread(vae, X, rows)[:, asked]
            display.centre = display.codes[rows]
        return display.plot(kind=kind, ax=ax, **kwargs)

    def plot(self, *, kind: str = "auto", ax: Any = None, **kwargs: Any) -> "LatentDisplay":
        """Draw the map.

        Parameters
        ----------
        kind : {"auto", "points", "density"}, default="auto"
            Draw each row, or how many there are in each cell of a grid. "auto" draws up to 30,000.
            By one component rows are always counted.
        ax : matplotlib Axes, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``scatter``, ``imshow`` or, by one component, ``hist``.

        Returns
        -------
        display : LatentDisplay
            This object.
        """
        if kind not in ("auto", "points", "density"):
            raise ValueError(f"kind must be 'auto', 'points' or 'density'. Got {kind!r}.")
        self.scatter_: Any = None
        self.image_: Any = None
        self.bars_: Any = None
        self.ellipses_: Any = None
        limits = Limits.of(self.codes)
        size, n_components = (6.4, 3.6), self.codes.shape[1]
        if n_components == 2:
            width, height = limits.high - limits.low
            size = (6.4, 0.9 + 4.4 * min(height / width, 1.0))
        panels = self._on(ax, 1, Panel(size, layout="compressed"))
        many = len(self.codes) > MOST_POINTS
        if n_components == 1:
            self._draw_bars(limits, kwargs, panels.room)
        elif kind == "density" or (kind == "auto" and many):
            self._draw_density(limits, kwargs, panels.room)
        else:
            self._draw_points(kwargs, panels.room)
        if self.spread is not None:
            self._draw_ellipses()
        self._label(limits, panels.room)
        panels.settle()
        return self

    def _draw_points(self, kwargs: dict[str, Any], room: Room) -> None:
        order = np.random.default_rng(0).permutation(len(self.codes))  # no label hides another
        colours, mapped = self._colours(kwargs)
        size = float(np.clip(INK / len(self.codes), *SIZES))
        settings: dict[str, Any] = {"s": size, "alpha": 0.8, "linewidths": 0.0} | kwargs
        if mapped is not None:  # rows without a number lie below, in grey
            known = np.isfinite(mapped)
            order = order[np.argsort(known[order], kind="stable")]
            settings |= {"c": mapped[order], "plotnonfinite": True}
        else:
            settings = {"c": colours[order]} | settings
        self.scatter_ = self.ax_.scatter(*self.codes[order].T, **settings)
        if mapped is not None:
            self._colour_bar(self.scatter_, room)

    def _colours(self, kwargs: dict[str, Any]) -> tuple[Array, Array | None]:
        """Return a colour for each row, or numbers that a colour map turns into one."""
        colouring, n_rows = self.colouring, len(self.codes)
        if colouring is None:
            return np.tile(colours_of(1)[0], (n_rows, 1)), None
        if colouring.place is not None:
            palette = np.vstack([colours_of(len(colouring.labels)).reshape(-1, 4), _grey()])
            return palette[colouring.place], None
        assert colouring.value is not None
        kwargs |= {"cmap": _with_grey(kwargs.get("cmap", "viridis"))}
        kwargs.setdefault("norm", _norm(colouring.value))
        return np.zeros((n_rows, 4)), np.where(
            np.isfinite(colouring.value), colouring.value, np.nan
        )

    def _draw_density(self, limits: Limits, kwargs: dict[str, Any], room: Room) -> None:
        cells = Cells.that_show(self.codes, limits)
        count, colouring = cells.total(np.ones(len(self.codes))), self.colouring
        shade = by_rank(count)
        mappable = None
        if colouring is None:
            from matplotlib import colormaps

            cmap = kwargs.pop("cmap", "Blues")
            cmap = colormaps[cmap] if isinstance(cmap, str) else cmap
            picture = cmap(LIGHTEST + (1.0 - LIGHTEST) * shade)
        elif colouring.place is not None:
            palette = np.vstack([colours_of(len(colouring.labels)).reshape(-1, 4), _grey()])
            picture = cells.mean_of(palette[colouring.place], count)
        else:
            picture, mappable = self._mean_colours(cells, kwargs)
        opaque = 1.0 if colouring is None else LIGHTEST + (1.0 - LIGHTEST) * shade
        picture[..., 3] = np.where(count > 0.0, opaque, 0.0)
        extent = (limits.low[0], limits.high[0], limits.low[1], limits.high[1])
        settings = {"origin": "lower", "extent": extent, "interpolation": "nearest"} | kwargs
        self.image_ = self.ax_.imshow(picture, **settings)
        if mappable is not None:
            self._colour_bar(mappable, room)

    def _mean_colours(self, cells: "Cells", kwargs: dict[str, Any]) -> tuple[Array, Any]:
        """Return the colours of the cells' mean numbers, and what they stand for."""
        from matplotlib.cm import ScalarMappable

        assert self.colouring is not None and self.colouring.value is not None
        value = self.colouring.value
        known = np.isfinite(value)
        number = cells.total(known.astype(np.float64))
        total = cells.total(np.where(known, value, 0.0))
        mean = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0.0)
        cmap = _with_grey(kwargs.pop("cmap", "viridis"))
        mappable = ScalarMappable(kwargs.pop("norm", None) or _norm(value), cmap)
        return np.asarray(mappable.to_rgba(np.ma.masked_invalid(mean))), mappable

    def _draw_bars(self, limits: Limits, kwargs: dict[str, Any], room: Room) -> None:
        codes, colouring = self.codes[:, 0], self.colouring
        n_bars = int(np.clip(2.0 * len(codes) ** (1.0 / 3.0), 10, 80))
        bins = np.linspace(limits.low[0], limits.high[0], n_bars + 1)
        groups, colours = [codes], [colours_of(1)[0]]
        if colouring is not None and colouring.place is not None:
            places = [*range(len(colouring.labels)), -1]
            groups = [codes[colouring.place == place] for place in places]
            colours = [*colours_of(len(colouring.labels)), _grey()]
        elif colouring is not None:
            cells = Cells.of(self.codes, limits, n_bars)
            (by_mean,), mappable = self._mean_colours(cells, kwargs)
        settings: dict[str, Any] = {"stacked": True, "color": colours} | kwargs
        bars = self.ax_.hist(groups, bins, **settings)[2]
        self.bars_ = [bars] if len(groups) == 1 else list(bars)
        if colouring is not None and colouring.place is None:
            for bar, colour in zip(self.bars_[0], by_mean, strict=True):
                bar.set_facecolor(colour)
            self._colour_bar(mappable, room)

    def _draw_ellipses(self) -> None:
        from matplotlib.collections import EllipseCollection
        from scipy.special import chdtri

        assert self.spread is not None
        radius = float(np.sqrt(chdtri(2, 1.0 - COVERED)))
        sizes = 2.0 * radius * self.spread
        self.ellipses_ = EllipseCollection(
            sizes[:, 0],
            sizes[:, 1],
            np.zeros(len(sizes)),
            units="xy",
            offsets=self.centre,
            offset_transform=self.ax_.transData,
            facecolors="none",
            edgecolors="black",
            linewidths=0.6,
            alpha=0.7,
            label=f"{COVERED:.0%} of q(z | x)",
        )
        self.ax_.add_collection(self.ellipses_)

    def _label(self, limits: Limits, room: Room) -> None:
        ax = self.ax_
        ax.set_xlim(limits.low[0], limits.high[0])
        ax.set(xlabel=self.labels[0], ylabel=[*self.labels, "rows"][1])
        if self.codes.shape[1] == 2:
            ax.set_ylim(limits.low[1], limits.high[1])
            ax.set_aspect("equal")  # distances are those of rows, in both directions
        if limits.n_outside:
            note = f"{limits.n_outside:,} of {len(self.codes):,} rows lie outside"
            ax.set_title(note, fontsize="small", loc="right", color="0.4")
        self._legend(room)

    def _legend(self, room: Room) -> None:
        from matplotlib.lines import Line2D

        handles: list[Any] = []
        if self.colouring is not None and self.colouring.place is not None:
            labels = list(self.colouring.labels)
            colours = [*colours_of(len(labels)), _grey()]
            names = [*labels, self.colouring.rest] if (self.colouring.place < 0).any() else labels
            handles = [
                Line2D([], [], linestyle="", marker="o", color=tuple(colour), label=name)
                for colour, name in zip(colours, names, strict=False)
            ]
        if self.ellipses_ is not None:
            ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": ""}
            ring["color"] = "black"
            handles.append(Line2D([], [], label=self.ellipses_.get_label(), **ring))
        if not handles:
            return
        if self.colouring is not None and self.colouring.value is not None:  # beside a colour bar
            self.ax_.legend(handles=handles, loc="upper left", fontsize=room.points("small"))
        else:
            draw_legend(self.ax_, room, handles, self.colouring and self.colouring.name)

    def _colour_bar(self, mappable: Any, room: Room) -> None:
        assert self.colouring is not None
        bar = draw_colour_bar(self.ax_, mappable, self.colouring.name)
        if self.colouring.is_date:
            show_dates(bar.ax.yaxis, room)


def _norm(value: Array) -> Any:
    """Return the range of a colour bar: without the wildest values."""
    from matplotlib.colors import Normalize

    known = value[np.isfinite(value)]
    if not len(known):
        return Normalize(0.0, 1.0)
    return Normalize(*np.quantile(known, [COLOUR_TAIL, 1.0 - COLOUR_TAIL]))


def _with_grey(cmap: Any) -> Any:
    from matplotlib import colormaps

    return (colormaps[cmap] if isinstance(cmap, str) else cmap).with_extremes(bad=GREY)


def _grey() -> Array:
    from matplotlib.colors import to_rgba

    return np.array(to_rgba(GREY))


def _posterior_spread(vae: Any, X: Any, rows: Any) -> Array:  # (M, K)
    """Return posterior standard deviations, in the units of ``transform``."""
    from .._inference.scores import posterior_scales

    model = vae.model_
    module, table = model.module(vae.device), model.read(take_rows(X, rows), vae.handle_unknown)
    (scales,) = model.by_chunks(partial(posterior_scales, module), table, module)
    return scales * model.code_scale(vae.whiten)
