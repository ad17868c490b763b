"""LatentDisplay: a map of rows by two components."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._table.column import Array
from .._table.frames import take_rows
from ._axes import GREY, axes_for, colours_of
from ._models import (
    Colouring,
    check_count,
    colouring_of,
    component_label,
    components_of,
    model_of,
    rows_of,
)

MOST_POINTS = 30_000  # that are drawn one by one; more would hide each other
N_BINS = (240, 160, 110)  # along the longer side of a map of more rows: the first that shows
ROWS_A_CELL = 4.0  # so many rows in the mean of the cells that hold any
INK = 30_000.0  # square points of ink, if no point hid another
SIZES = (1.0, 36.0)  # of a point, in square points
TAIL = 0.0005  # of the rows, at either end, that may be left out if they are far away
FAR = 0.25  # of the width without them: how far out they may lie
FLATTEST = 0.6  # height of a map, by its width, or the other way round
COVERED = 0.9  # of a posterior, by its ellipse
LIGHTEST = 0.35  # of a cell with few rows: how much of its colour it has
COLOUR_TAIL = 0.01  # of the values, at either end, that have the last colour


class Limits(NamedTuple):
    """The part of a plane that a map shows, and how many rows lie outside."""

    low: Array  # (2,)
    high: Array  # (2,)
    n_outside: int

    @classmethod
    def of(cls, codes: Array) -> "Limits":
        """Choose the part without rows so far away that all others would be a dot."""
        tails = np.quantile(codes, [TAIL, 1.0 - TAIL], axis=0)
        reach = np.maximum(FAR * np.ptp(tails, axis=0), 1e-9)
        low = np.maximum(codes.min(axis=0), tails[0] - reach)
        high = np.minimum(codes.max(axis=0), tails[1] + reach)
        outside = ((codes < low) | (codes > high)).any(axis=1)
        width = high - low
        widest = max(float(width.max()), 1e-9)
        margin = 0.5 * (np.maximum(width, FLATTEST * widest) - width) + 0.04 * widest
        return cls(low - margin, high + margin, int(outside.sum()))


class LatentDisplay:
    """A map of rows by two components, as UMAP's and PCA's are drawn.

    Use :meth:`from_estimator` to make one. Up to 30,000 rows are points. More are counted in the
    cells of a grid, and a cell has the mean colour of its rows and is the darker the more they are,
    by rank, as datashader does [1]_: a map of millions of rows stays readable. Rows so far away
    that all others would become a dot lie outside, and the map says how many.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, 2)
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
    figure_ : matplotlib Figure
        The figure that holds them.
    scatter_ : matplotlib PathCollection or None
        The points; None if rows were counted in cells.
    image_ : matplotlib AxesImage or None
        The cells; None if rows are points.
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

    def __init__(
        self,
        *,
        codes: Array,
        colouring: Colouring | None = None,
        labels: tuple[str, str] = ("component 0", "component 1"),
        spread: Array | None = None,
        centre: Array | None = None,
    ) -> None:
        self.codes = codes
        self.colouring = colouring
        self.labels = labels
        self.spread = spread
        self.centre = centre

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        components: Any = (0, 1),
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
        estimator : VAETransformer, VAEOutlierDetector or VAEImputer
            A fitted estimator; of the last two it is their ``vae_``.
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        y : array-like of shape (n_samples,), default=None
            Labels or numbers that colour the rows: strings, categories, booleans and up to 20
            different whole numbers are labels.
        components : pair of int, default=(0, 1)
            Which components are the axes, as numbers of the columns of ``transform(X)``.
        column : label or int, default=None
            A column of X that colours the rows, instead of y.
        score : str, default=None
            A method of ``VAETransformer.score_samples`` that colours them: "log_likelihood",
            "elbo", "reconstruction" or "kl".
        n_ellipses : int, default=0
            Of how many rows, evenly, to draw the ellipse that holds 90% of q(z | x).
        kind : {"auto", "points", "density"}, default="auto"
            Draw each row, or how many there are in each cell of a grid. "auto" draws up to 30,000.
        ax : matplotlib Axes, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``scatter`` or ``imshow``.

        Returns
        -------
        display : LatentDisplay
            What was drawn.
        """
        vae: Any = model_of(estimator, cls.__name__)
        if vae.n_components_ < 2:
            raise ValueError(
                "A map needs two components, but the model has 1. Fit with n_components=2."
            )
        two = components_of(vae, components, 2)
        check_count("n_ellipses", n_ellipses, 0)
        X = rows_of(estimator, vae, X)
        colouring = colouring_of(vae, X, y=y, column=column, score=score)
        display = cls(
            codes=vae.transform(X)[:, two].astype(np.float64),
            colouring=colouring,
            labels=(component_label(vae, two[0]), component_label(vae, two[1])),
        )
        if n_ellipses:
            rows = np.unique(np.linspace(0, X.shape[0] - 1, n_ellipses).astype(int))
            display.spread = _posterior_spread(vae, X, rows)[:, two]
            display.centre = display.codes[rows]
        return display.plot(kind=kind, ax=ax, **kwargs)

    def plot(self, *, kind: str = "auto", ax: Any = None, **kwargs: Any) -> "LatentDisplay":
        """Draw the map.

        Parameters
        ----------
        kind : {"auto", "points", "density"}, default="auto"
            Draw each row, or how many there are in each cell of a grid. "auto" draws up to 30,000.
        ax : matplotlib Axes, default=None
            Where to draw. None makes a figure.
        **kwargs : dict
            For matplotlib's ``scatter`` or ``imshow``.

        Returns
        -------
        display : LatentDisplay
            This object.
        """
        if kind not in ("auto", "points", "density"):
            raise ValueError(f"kind must be 'auto', 'points' or 'density'. Got {kind!r}.")
        self.scatter_: Any = None
        self.image_: Any = None
        self.ellipses_: Any = None
        limits = Limits.of(self.codes)
        width, height = limits.high - limits.low
        size = (6.4, 0.9 + 4.4 * min(height / width, 1.0))
        self.figure_, self.ax_ = axes_for(type(self).__name__, ax, size)
        many = len(self.codes) > MOST_POINTS
        if kind == "density" or (kind == "auto" and many):
            self._draw_density(limits, kwargs)
        else:
            self._draw_points(kwargs)
        if self.spread is not None:
            self._draw_ellipses()
        self._label(limits)
        return self

    def _draw_points(self, kwargs: dict[str, Any]) -> None:
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
            self._colour_bar(self.scatter_)

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

    def _draw_density(self, limits: Limits, kwargs: dict[str, Any]) -> None:
        cells = Cells.that_show(self.codes, limits)
        count, colouring = cells.total(np.ones(len(self.codes))), self.colouring
        shade = _by_rank(count)
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
            self._colour_bar(mappable)

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

    def _label(self, limits: Limits) -> None:
        ax = self.ax_
        ax.set(xlabel=self.labels[0], ylabel=self.labels[1])
        ax.set_xlim(limits.low[0], limits.high[0])
        ax.set_ylim(limits.low[1], limits.high[1])
        ax.set_aspect("equal")  # distances are those of rows, in both directions
        if limits.n_outside:
            note = f"{limits.n_outside:,} of {len(self.codes):,} rows lie outside"
            ax.set_title(note, fontsize="small", loc="right", color="0.4")
        self._legend()

    def _legend(self) -> None:
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
            self.ax_.legend(handles=handles, loc="upper left", fontsize="small")
        else:
            self.ax_.legend(
                handles=handles,
                title=None if self.colouring is None else self.colouring.name,
                ncols=1 + (len(handles) - 1) // 20,
                frameon=False,
                loc="upper left",
                bbox_to_anchor=(1.0, 1.0),
            )

    def _colour_bar(self, mappable: Any) -> None:
        assert self.colouring is not None
        bar = self.figure_.colorbar(mappable, ax=self.ax_, label=self.colouring.name)
        if self.colouring.is_date:
            from matplotlib.dates import AutoDateFormatter, AutoDateLocator

            locator = AutoDateLocator()
            bar.set_ticks(locator)
            bar.formatter = AutoDateFormatter(locator)
            bar.update_ticks()


class Cells(NamedTuple):
    """The cells of a grid that rows fall into; -1 for outside."""

    index: Any  # (N,)
    shape: tuple[int, int]  # rows from below, columns

    @classmethod
    def that_show(cls, codes: Array, limits: Limits) -> "Cells":
        """Make cells small enough for detail, and large enough to hold some rows each."""
        for n_bins in N_BINS:
            cells = cls.of(codes, limits, n_bins)
            inside = cells.index[cells.index >= 0]
            if len(inside) >= ROWS_A_CELL * len(np.unique(inside)):
                break
        return cells

    @classmethod
    def of(cls, codes: Array, limits: Limits, n_bins: int) -> "Cells":
        """Make square cells, so many along the longer side."""
        width = limits.high - limits.low
        number = np.maximum(np.rint(n_bins * width / width.max()), 1.0).astype(int)
        place = np.floor((codes - limits.low) / width * number)
        inside = ((place >= 0) & (place < number)).all(axis=1)
        x, y = np.where(inside[:, None], place, 0.0).astype(int).T
        return cls(np.where(inside, y * number[0] + x, -1), (int(number[1]), int(number[0])))

    def total(self, weight: Array) -> Array:
        """Sum over the rows of each cell."""
        inside = self.index >= 0
        size = self.shape[0] * self.shape[1]
        total: Any = np.bincount(self.index[inside], weight[inside], size)
        return total.reshape(self.shape)

    def mean_of(self, colours: Array, count: Array) -> Array:  # (N, 4) -> (H, W, 4)
        """Return the mean colour of each cell's rows."""
        mixed = np.stack([self.total(part) for part in colours.T], axis=-1)
        return mixed / np.maximum(count, 1.0)[..., None]


def _by_rank(count: Array) -> Array:
    """Return 0 to 1 by the rank of a count among those of the cells that hold rows."""
    values, index = np.unique(count[count > 0.0], return_inverse=True)
    shade = np.zeros_like(count)
    if len(values):
        cumulated = np.cumsum(np.bincount(index))
        shade[count > 0.0] = (cumulated / cumulated[-1])[index]
    return shade


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
