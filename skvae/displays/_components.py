"""ComponentDisplay: what moves when one component does."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from .._effects import Decoded, Reading
from .._inputs import labels_of
from .._table.column import Array
from ._axes import grid_shape, hide_rest, number_text, panels_for, shown
from ._images import check_image_shape, draw_tiles
from ._models import check_count, component_label, components_of, model_of, rows_of

MOST_COMPONENTS = 4
TAILS = (0.1, 0.9)  # of the rows: how much their own effects differ


class ComponentEffect(NamedTuple):
    """What one component does to each reading of the columns.

    Attributes
    ----------
    mean : ndarray of shape (n_readings,)
        Its mean effect, as in ``component_effects``: in original units, of levels in probability.
    low, high : ndarray of shape (n_readings,)
        The effects of which a tenth of the rows have lower and higher ones.
    """

    mean: Array
    low: Array
    high: Array


class ComponentDisplay:
    """What moves when one component does: the loadings, of a model that need not be linear.

    Use :meth:`from_estimator` to make one. Each panel is a component. Bars say how far columns move
    as it rises by one standard deviation of its prior, in standard deviations of each column, so
    that columns compare; beside them the same stands in original units. The line on a bar holds
    what it is for 80% of the rows. The columns that move most are on top.

    Parameters
    ----------
    effects : sequence of ComponentEffect
        Of each component that is drawn.
    spread : ndarray of shape (n_readings,)
        Standard deviation of each reading in the rows: of numbers, or of 0 and 1 for a level.
    readings : sequence of Reading
        Which column, and which level, each reading is of.
    names : sequence of str
        Of the readings.
    is_date : sequence of bool
        Whether each reading counts in days.
    labels : sequence of str
        Of the components.
    image_shape : tuple of int, default=None
        Height and width of an image: effects are drawn as images then, in original units.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The first panel.
    axes_ : ndarray of matplotlib Axes
        All panels.
    figure_ : matplotlib Figure
        The figure that holds them.

    See Also
    --------
    skvae.VAETransformer.component_effects : The same as a table.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ComponentDisplay
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(2, max_iter=0).fit(X)
    >>> display = ComponentDisplay.from_estimator(vae, X)
    >>> [tick.get_text() for tick in display.ax_.get_yticklabels()][:1]
    ['petal length (cm)']
    """

    def __init__(
        self,
        *,
        effects: Sequence[ComponentEffect],
        spread: Array,
        readings: Sequence[Reading],
        names: Sequence[str],
        is_date: Sequence[bool],
        labels: Sequence[str],
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.effects = effects
        self.spread = spread
        self.readings = readings
        self.names = names
        self.is_date = is_date
        self.labels = labels
        self.image_shape = image_shape

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        components: Any = None,
        n_columns: int = 10,
        image_shape: tuple[int, ...] | None = None,
        ax: Any = None,
    ) -> "ComponentDisplay":
        """Draw what components do to the columns.

        Parameters
        ----------
        estimator : VAETransformer, VAEOutlierDetector or VAEImputer
            A fitted estimator; of the last two it is their ``vae_``.
        X : array-like of shape (n_samples, n_features)
            Rows at whose codes the effects are looked at; of more than 10,000 so many, evenly.
        components : int or list of int, default=None
            Which components, as numbers of the columns of ``transform(X)``. None is the first four
            active ones.
        n_columns : int, default=10
            How many bars a panel has at most.
        image_shape : tuple of int, default=None
            Height and width of the image that a row is: draw the effects as images.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : ComponentDisplay
            What was drawn.
        """
        vae: Any = model_of(estimator, cls.__name__)
        active = max(min(vae.n_active_components_, MOST_COMPONENTS), 1)
        asked = components_of(vae, list(range(active)) if components is None else components)
        if image_shape is not None:
            check_image_shape(image_shape, vae)
            if len(image_shape) == 3:
                raise ValueError("Effects have no colours: image_shape must be height and width.")
        table = vae.model_.read(rows_of(estimator, vae, X), vae.handle_unknown)
        decoded = Decoded(vae.model_, vae.device)
        z, by_columns = decoded.codes(table), table.tocsc() if issparse(table) else table
        display = cls(
            effects=[_effect(decoded.moved(z, component)) for component in asked],
            spread=np.array([_spread(reading, by_columns) for reading in decoded.readings]),
            readings=decoded.readings,
            names=[_name(reading, labels_of(vae)) for reading in decoded.readings],
            is_date=[_in_days(reading, vae) for reading in decoded.readings],
            labels=[component_label(vae, component) for component in asked],
            image_shape=image_shape,
        )
        return display.plot(n_columns=n_columns, ax=ax)

    def plot(self, *, n_columns: int = 10, ax: Any = None) -> "ComponentDisplay":
        """Draw the effects.

        Parameters
        ----------
        n_columns : int, default=10
            How many bars a panel has at most.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : ComponentDisplay
            This object.
        """
        check_count("n_columns", n_columns, 1)
        n_bars, n_panels = min(n_columns, len(self.names)), len(self.effects)
        shape = grid_shape(n_panels, 4 if self.image_shape else 2)
        height = 2.8 if self.image_shape else 0.8 + 0.3 * n_bars
        size = ((2.8 if self.image_shape else 5.2) * shape[1], height * shape[0])
        self.figure_, axes = panels_for(type(self).__name__, ax, shape, size)
        self.axes_ = axes.ravel()
        self.ax_ = self.axes_[0]
        if self.image_shape:
            self._draw_images()
        else:
            for panel, effect in zip(self.axes_, self.effects, strict=False):
                self._draw_bars(panel, effect, n_bars)
        for panel, label in zip(self.axes_, self.labels, strict=False):
            panel.set_title(label, fontsize="medium")
        hide_rest(axes, n_panels)
        return self

    def relative(self, effect: Array) -> Array:
        """Return effects in standard deviations of the columns; 0 for a column without any.

        Parameters
        ----------
        effect : ndarray of shape (n_readings,)
            In original units.

        Returns
        -------
        relative : ndarray of shape (n_readings,)
            In standard deviations.
        """
        return np.divide(effect, self.spread, out=np.zeros_like(effect), where=self.spread > 0.0)

    def _draw_bars(self, ax: Any, effect: ComponentEffect, n_bars: int) -> None:
        mean, low, high = (self.relative(part) for part in effect)
        chosen = self._chosen(mean)[:n_bars]
        place = np.arange(len(chosen))
        colours = np.where(mean[chosen] >= 0.0, "C0", "C3")
        ax.barh(place, mean[chosen], color=colours, height=0.7)
        ax.hlines(place, low[chosen], high[chosen], color="black", linewidth=1.0)
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set_yticks(place, [self.names[i] for i in chosen])
        ax.invert_yaxis()
        ax.set_xlabel("change in standard deviations")
        ends = np.concatenate([low[chosen], high[chosen], mean[chosen], [0.0]])
        reach = max(float(np.abs(ends).max()), 1e-9)
        ax.set_xlim(-1.45 * reach, 1.45 * reach)
        for row, i in enumerate(chosen):
            right = mean[i] >= 0.0
            edge = max(mean[i], high[i], 0.0) if right else min(mean[i], low[i], 0.0)
            ax.annotate(
                self._amount(i, effect.mean[i]),
                (edge, row),
                xytext=(3 if right else -3, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
                fontsize="x-small",
            )

    def _chosen(self, mean: Array) -> list[int]:
        """Return the readings by their size; of two levels the second one alone."""
        order = np.argsort(-np.abs(mean), kind="stable").tolist()
        n_levels = np.bincount(
            [r.column for r in self.readings if r.is_level], minlength=1 + self._last_column
        )
        first_of_two = {
            i for i, r in enumerate(self.readings) if r.number == 0.0 and n_levels[r.column] == 2
        }
        return [i for i in order if i not in first_of_two]

    @property
    def _last_column(self) -> int:
        return max(reading.column for reading in self.readings)

    def _amount(self, place: int, effect: float) -> str:
        reading = self.readings[place]
        if not reading.is_mean:
            return f"{effect:+.2f}"  # a probability
        return number_text(effect, "+") + (" days" if self.is_date[place] else "")

    def _draw_images(self) -> None:
        assert self.image_shape is not None
        means = [reading.is_mean for reading in self.readings]
        reach = max(float(np.abs(effect.mean[means]).max()) for effect in self.effects) or 1.0
        settings: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
        for panel, effect in zip(self.axes_, self.effects, strict=False):
            image = effect.mean[means].reshape(1, 1, *self.image_shape)
            drawn = draw_tiles(panel, image, dict(settings))
            panel.set(xticks=[], yticks=[])
        used = self.axes_[: len(self.effects)].tolist()
        label = "change per standard deviation, original units"
        self.figure_.colorbar(drawn, ax=used, label=label, shrink=0.8)


def _effect(moved: Array) -> ComponentEffect:
    return ComponentEffect(moved.mean(axis=0), *np.quantile(moved, TAILS, axis=0))


def _spread(reading: Reading, table: Any) -> float:
    cells = reading.of_cells(table)
    known = cells[~np.isnan(cells)]
    return float(known.std()) if len(known) else 0.0


def _name(reading: Reading, labels: Any) -> str:
    name = shown(labels[reading.column])
    if reading.is_level:
        return f"{name} = {shown(reading.level)}"
    return name if reading.is_mean else f"{name} {reading.level}"


def _in_days(reading: Reading, vae: Any) -> bool:
    return vae.model_.schema.columns[reading.column].moment is not None and reading.is_mean
