"""ComponentDisplay: what moves when one component does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from .._effects import Decoded, Reading
from .._inputs import labels_of
from .._table.column import Array
from ._axes import (
    Bars,
    Display,
    Panel,
    draw_bars,
    draw_colour_bar,
    number_of_bars,
    number_text,
    shown,
)
from ._images import check_image_shape, draw_tiles
from ._models import (
    check_count,
    component_label,
    components_of,
    drawn_rows,
    model_and_rows,
    spread_of,
)

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


@dataclass(kw_only=True, eq=False, repr=False)
class ComponentDisplay(Display):
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

    effects: Sequence[ComponentEffect]
    spread: Array
    readings: Sequence[Reading]
    names: Sequence[str]
    is_date: Sequence[bool]
    labels: Sequence[str]
    image_shape: tuple[int, ...] | None = None

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
        estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
            A fitted estimator; of the second and third it is their ``vae_``, of a pipeline its last
            step that is one of these.
        X : array-like of shape (n_samples, n_features)
            Rows at whose codes the effects are looked at; of more than 10,000 so many, evenly. A
            single row has no standard deviations: those of draws of the model are taken.
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
        vae, X = model_and_rows(estimator, X, cls.__name__)
        active = max(min(vae.n_active_components_, MOST_COMPONENTS), 1)
        asked = components_of(vae, list(range(active)) if components is None else components)
        if image_shape is not None:
            check_image_shape(image_shape, vae)
            if len(image_shape) == 3:
                raise ValueError("Effects have no colours: image_shape must be height and width.")
        table = vae.model_.read(X, vae.handle_unknown)
        decoded = Decoded(vae.model_, vae.device)
        z, by_columns = decoded.codes(table), table.tocsc() if issparse(table) else table
        spread = [spread_of(reading, by_columns) for reading in decoded.readings]
        if not any(spread):  # of one row, or of rows that are all the same
            drawn = drawn_rows(vae)
            spread = [spread_of(reading, drawn) for reading in decoded.readings]
        display = cls(
            effects=[_effect(decoded.moved(z, component)) for component in asked],
            spread=np.array(spread),
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
        if self.image_shape:
            panel = Panel((2.8, 2.8), least=(1.9, 1.9), n_columns=4)
        else:
            height = 0.8 + 0.3 * min(n_columns, len(self.names))
            panel = Panel((5.2, height), least=(2.6, 1.1), n_columns=2)
        panels = self._on(ax, len(self.effects), panel)
        if self.image_shape:
            self._draw_images()
        else:
            n_bars = number_of_bars(panels.room, n_columns) if panels.grids else n_columns
            for one, effect in zip(self.axes_, self.effects, strict=False):
                self._draw_bars(one, panels.room, effect, n_bars)
        for one, label in zip(self.axes_, self.labels, strict=False):
            one.set_title(label, fontsize="medium")
        panels.settle()
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

    def _draw_bars(self, ax: Any, room: Any, effect: ComponentEffect, n_bars: int) -> None:
        mean, low, high = (self.relative(part) for part in effect)
        chosen = self._chosen(mean)[:n_bars]
        names = [self.names[i] for i in chosen]
        amounts = [self._amount(i, effect.mean[i]) for i in chosen]
        colours = np.where(mean[chosen] >= 0.0, "C0", "C3")
        draw_bars(ax, room, Bars(mean[chosen], names, amounts, colours))
        ax.hlines(np.arange(len(chosen)), low[chosen], high[chosen], color="black", linewidth=1.0)
        ax.set_xlabel("change in standard deviations")
        ends = np.concatenate([low[chosen], high[chosen], mean[chosen]])
        reach = 1.05 * max(float(np.abs(ends).max(initial=0.0)), 1e-9)
        ax.set_xlim(-reach, reach)

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
        label = "change per standard deviation,\noriginal units"
        draw_colour_bar(self.axes_[-1], drawn, label)


def _effect(moved: Array) -> ComponentEffect:
    return ComponentEffect(moved.mean(axis=0), *np.quantile(moved, TAILS, axis=0))


def _name(reading: Reading, labels: Any) -> str:
    name = shown(labels[reading.column])
    if reading.is_level:
        return f"{name} = {shown(reading.level)}"
    return name if reading.is_mean else f"{name} {reading.level}"


def _in_days(reading: Reading, vae: Any) -> bool:
    return vae.model_.schema.columns[reading.column].moment is not None and reading.is_mean
