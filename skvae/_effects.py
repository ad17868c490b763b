"""What components mean: how the columns move when one component does. No torch."""

from __future__ import annotations  # help() shows ArrayLike by its name

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._inputs import fitted_now, labels_of, validated
from ._resources import own_gradients
from ._table.column import Array
from ._table.frames import has_pandas
from ._table.of_pandas import frame_of_effects

if TYPE_CHECKING:
    from ._fitted import Fitted
    from ._table.schema import Schema

MOST_ROWS = 10_000  # whose effects are averaged
MOST_NUMBERS = 2**24  # of rows times readings: 128 MB
RARE, MISSING = "(rare)", "(missing)"  # places that are no level of their own


class Effects(NamedTuple):
    """How M readings of the columns change as each component rises by a standard deviation.

    Attributes
    ----------
    column : ndarray of int of shape (n_effects,)
        The number of the column that each effect is on.
    level : ndarray of object of shape (n_effects,)
        The level whose probability changes; "" for numbers, whose mean does; "(rare)" for levels
        that share a place; "(missing)" for whether the cell is missing, where that is modelled.
    effect : ndarray of shape (n_effects, n_components)
        The change.
    """

    column: NDArray[np.intp]
    level: NDArray[Any]
    effect: Array


class Reading(NamedTuple):
    """One number that the decoder says of a column: its mean, or the probability of a level."""

    column: int
    level: Any  # "" for a mean
    place: int  # among all that the decoder says
    number: float = -1.0  # of the level in a table

    @property
    def is_level(self) -> bool:
        """Whether it is the probability of a level."""
        return self.number >= 0.0

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean; else, and if no level, it is of whether a cell is missing."""
        return not self.is_level and self.level == ""

    def of_cells(self, table: Any) -> Array:  # (N, D) -> (N,)
        """Return the same number of the cells of a table: nan where a cell is missing."""
        cells = table[:, [self.column]]
        cells = (cells.toarray() if hasattr(cells, "toarray") else cells)[:, 0].astype(np.float64)
        lost = np.isnan(cells)
        if self.is_mean:
            return cells
        return np.where(lost, np.nan, cells == self.number) if self.is_level else lost * 1.0


def readings_of(schema: Schema) -> list[Reading]:
    """Return what a decoder says of the columns of a table, by columns."""
    found: list[Reading] = []
    place = 0
    for column, own in enumerate(schema.columns):
        if not own.n_levels:
            found.append(Reading(column, "", place))
        levels = [*own.levels, *([RARE] if own.rare else [])] if own.n_levels else []
        found += [Reading(column, level, place + i, float(i)) for i, level in enumerate(levels)]
        place += max(own.n_levels, 1)
    for group in schema.holes:
        found += [Reading(column, MISSING, place) for column in group]
        place += 1
    return sorted(found, key=lambda reading: reading.column)  # stable: holes after the values


class Decoded:
    """What the decoder of a fitted model says of the columns, at any codes.

    Codes here are of unit prior variance, whatever the estimator returns.
    """

    def __init__(self, model: Fitted, device: str) -> None:
        self.model = model
        self.device = device
        self.readings = readings_of(model.schema)
        self._places = [reading.place for reading in self.readings]

    def at(self, z: Array) -> Array:  # (N, K) -> (N, M)
        """Return means of numbers, in original units, and probabilities of levels."""
        vae, readout = self._parts()
        with own_gradients():
            return readout.at(vae, z)[:, self._places]

    def moved(self, z: Array, component: int) -> Array:  # (N, K) -> (N, M)
        """Return how they change as a component rises by a standard deviation around z.

        An inactive component moves nothing: ``inverse_transform`` does not look at it.
        """
        if not self.active[component]:
            return np.zeros((len(z), len(self._places)))
        vae, readout = self._parts()
        step = float(self.prior_codes()[:, component].std())
        with own_gradients():
            return readout.moved(vae, z, component, step)[:, self._places]

    @property
    def active(self) -> NDArray[np.bool_]:  # (K,)
        return self.model.code_scale(whiten=True) > 0.0

    def codes(self, table: Any) -> Array:  # (N, K)
        """Return the codes of a table's rows: of many, of some, evenly."""
        some = some_rows(table, len(self._places))
        return self.model.encode(some, whiten=True, device=self.device)

    def prior_codes(self) -> Array:  # (S, K)
        """Return points that stand for the prior."""
        from ._inference.effects import prior_codes

        with own_gradients():
            return prior_codes(self.model.module(self.device)).numpy(force=True)

    def prior_quantiles(self, shares: Array) -> Array:  # (Q,) -> (Q, K)
        """Return quantiles of the prior of each component; 0 for inactive ones."""
        from ._inference.effects import prior_quantiles

        with own_gradients():
            return prior_quantiles(self.model.module(self.device), shares) * self.active

    def prior_centre(self) -> Array:  # (K,)
        """Return a point of high density of the prior."""
        with own_gradients():
            prior = self.model.module(self.device).prior.now
            return prior.centre(self.model.n_components).numpy(force=True) * self.active

    def _parts(self) -> Any:
        from ._inference.effects import Readout

        readout = Readout(self.model.columns, self.model.schema.n_levels)
        return self.model.module(self.device), readout


def some_rows(table: Any, width: int) -> Any:
    """Return some rows of many, evenly: of each there will be ``width`` numbers."""
    most = min(MOST_ROWS, max(MOST_NUMBERS // max(width, 1), 1))
    return table[:: -(-table.shape[0] // most)]


def effects_of(model: Fitted, table: Any, device: str) -> Effects:
    """Return the mean effect of each component on each column, at codes of rows or of the prior."""
    decoded = Decoded(model, device)
    z = decoded.prior_codes() if table is None else decoded.codes(table)
    effect = [decoded.moved(z, component).mean(axis=0) for component in range(model.n_components)]
    column = np.array([reading.column for reading in decoded.readings], dtype=np.intp)
    level = np.empty(len(column), dtype=object)
    level[:] = [reading.level for reading in decoded.readings]
    return Effects(column, level, np.stack(effect, axis=1))


class WithEffects:
    """An estimator with a fitted model, whose components can be explained."""

    def component_effects(self, X: ArrayLike | None = None) -> Any:
        """Say what each component means: how columns move when it does.

        It is to a VAE what ``components_`` times the standard deviation of a component is to PCA,
        the loadings: how the decoder's mean changes as a component rises by one standard deviation
        of its prior, from half of one below a code to half of one above, while the others stay. A
        decoder that is not linear moves otherwise at each code, so it is the mean over codes; for
        the linear model all are equal. The component that ``transform`` returns rises by
        ``component_scale_`` then, or by 1 with ``whiten=True``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), default=None
            Rows at whose codes the effects are looked at: of a single row, what it would become.
            Of more than 10,000 rows, so many are taken, evenly. None looks at codes of the prior.

        Returns
        -------
        effects : pandas.DataFrame or Effects
            A row for each column of numbers, in original units (days, of dates), and for each level
            of a category, whose probability changes; a column for each component, named as by
            ``get_feature_names_out``. Where there are levels the index has them, too: "" for
            numbers, "(rare)" for rare levels together, "(missing)" for whether a cell is missing
            where that is modelled. Inactive components have no effect. Without pandas, the same as
            arrays.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X, _ = load_iris(return_X_y=True, as_frame=True)
        >>> effects = VAETransformer(2, max_iter=0).fit(X).component_effects()
        >>> effects["vaetransformer0"].abs().idxmax()  # what the first one is about
        'petal length (cm)'
        """
        now: Any = fitted_now(self)
        table = None
        if X is not None:
            table = now.model_.read(validated(now, X, reset=False), now.handle_unknown)
        found = effects_of(now.model_, table, now.device)
        if not has_pandas():
            return found
        names = now.get_feature_names_out()
        return frame_of_effects(found.effect, labels_of(now), found.column, found.level, names)
