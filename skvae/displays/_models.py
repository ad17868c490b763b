"""What a picture is of: the fitted model of an estimator, its rows, and what colours them."""

from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .._effects import Reading
from .._imputer import VAEImputer
from .._inputs import fitted_now, labels_of, validated
from .._outlier import VAEOutlierDetector
from .._parameters import METHODS, Rule
from .._table.column import Array, some_of
from .._table.frames import columns_of, raw_column, where_missing, with_missing
from .._table.times import DATES, ZONED
from .._transformer import VAETransformer
from ._axes import shown

SHOWN = (VAETransformer, VAEOutlierDetector, VAEImputer)
FEW = 20  # different whole numbers that are labels
DRAWS = 500  # of the model, that say how far columns vary
MOST_NAMES = 10  # of columns, in a message


def step_of(estimator: Any, X: Any = None) -> tuple[Any, Any]:
    """Return the last step of a pipeline that is of skvae, and X by the steps before it.

    What is no pipeline is returned as it is, and so is a pipeline without such a step.
    """
    if not isinstance(estimator, Pipeline):
        return estimator, X
    for number in range(len(estimator) - 1, -1, -1):
        step, rows = estimator[number], X
        if isinstance(step, (*SHOWN, Pipeline)):
            if X is not None and number:
                rows = estimator[:number].transform(X)
            step, rows = step_of(step, rows)
            if isinstance(step, SHOWN):
                return step, rows
    return estimator, X


def model_and_rows(estimator: Any, X: Any, name: str) -> tuple[Any, Any]:
    """Return the fitted VAETransformer of an estimator, as it is now, and rows for it, validated.

    Without X there are no rows.
    """
    estimator, X = step_of(estimator, X)
    if not isinstance(estimator, SHOWN):
        raise TypeError(
            f"{name} shows a VAETransformer, VAEOutlierDetector or VAEImputer, or a Pipeline that "
            f"has one as a step. Got a {type(estimator).__name__}. Of a search pass its "
            "best_estimator_."
        )
    now: Any = fitted_now(estimator)
    vae = now if isinstance(now, VAETransformer) else fitted_now(now.vae_)
    return vae, None if X is None else _rows_of(estimator, vae, X)


def _rows_of(estimator: Any, vae: Any, X: Any) -> Any:
    """Return validated rows, in which what an imputer takes for missing is missing."""
    X = validated(vae, X, reset=False)
    if isinstance(estimator, VAEImputer):
        hidden = where_missing(X, estimator.missing_values) & ~where_missing(X)
        X = with_missing(X, hidden) if hidden.any() else X
    return X


def check_count(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless a parameter is a whole number that is large enough."""
    rule = Rule((), Integral, least)
    if not rule.admits(value):
        raise ValueError(f"{name} must be {rule}. Got {value!r}.")


def components_of(vae: Any, components: Any) -> list[int]:
    """Return numbers of components that there are."""
    asked = np.atleast_1d(np.asarray(components))
    n_components = vae.n_components_
    whole = asked.ndim == 1 and asked.dtype.kind in "iu" and len(asked) > 0
    if not whole or asked.min() < 0 or asked.max() >= n_components:
        raise ValueError(
            f"components must be numbers from 0 to {n_components - 1}: the model has "
            f"{n_components} components. Got {components!r}."
        )
    return [int(one) for one in asked]


def one_or_two_of(vae: Any, components: Any) -> list[int]:
    """Return the components that are axes: the first two, or the only one, if None is given."""
    first = list(range(min(2, vae.n_components_)))
    asked = components_of(vae, first if components is None else components)
    if len(asked) > 2 or len(set(asked)) < len(asked):
        raise ValueError(f"components must be one or two numbers. Got {components!r}.")
    return asked


def component_label(vae: Any, component: int) -> str:
    """Return what an axis calls a component: its number, and what it tells."""
    return f"component {component} ({vae.kl_per_component_[component]:.2f} nats)"


def column_number(vae: Any, key: Any) -> int:
    """Return the number of the column that a name or a number stands for."""
    labels = list(labels_of(vae))
    if key in labels:
        return labels.index(key)
    is_number = isinstance(key, int | np.integer) and not isinstance(key, bool)
    if is_number and all(isinstance(one, str) for one in labels) and 0 <= key < len(labels):
        return int(key)
    near = get_close_matches(str(key), [str(one) for one in labels], 1)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"There is no column {key!r} in what the model was fitted to.{nearest} Its columns are "
        f"{some_of(labels, MOST_NAMES)}."
    )


def spread_of(reading: Reading, table: Any) -> float:
    """Return the standard deviation of a reading of the cells of a table; 0 if there is none."""
    cells = reading.of_cells(table)
    known = cells[~np.isnan(cells)]
    return float(known.std()) if len(known) else 0.0


def drawn_rows(vae: Any) -> Any:
    """Draw rows of the model, which say how far columns vary."""
    return vae.model_.sample(DRAWS, 0)


def has_dates(vae: Any, column: int) -> bool:
    """Whether a column holds dates: days since 1970, as matplotlib counts them."""
    return is_dated(vae.model_.schema.columns[column].moment)


def is_dated(moment: Any) -> bool:
    """Whether these are dates, and not durations or times of day."""
    return moment is not None and moment.what in (DATES, ZONED)


class Colouring(NamedTuple):
    """What colours the rows of a map: labels, or numbers.

    Attributes
    ----------
    name : str
        What a legend calls it.
    labels : list of str
        The labels in order; empty for numbers.
    place : ndarray of int of shape (n_samples,) or None
        Which label each row has, -1 for none; None for numbers.
    value : ndarray of shape (n_samples,) or None
        The number of each row, nan for none; None for labels.
    is_date : bool
        Whether the numbers are days since 1970.
    rest : str
        What rows without one of the labels are: "missing", or "others".
    """

    name: str
    labels: Sequence[str] = ()
    place: NDArray[np.intp] | None = None
    value: Array | None = None
    is_date: bool = False
    rest: str = "missing"

    @classmethod
    def by(cls, values: Any, name: str, n_rows: int) -> "Colouring":
        """Take strings, categories, booleans and few whole numbers for labels."""
        values = values if hasattr(values, "dtype") else np.asarray(values)
        if np.shape(values) != (n_rows,):
            raise ValueError(
                f"{name} must have one value for each of the {n_rows} rows of X. Got the shape "
                f"{np.shape(values)}."
            )
        raw = raw_column(values, repr(name))
        if raw.places is not None:
            levels = [str(level) for level in raw.levels]
            order = np.argsort(levels, kind="stable") if raw.guessed else np.arange(len(levels))
            place = np.append(np.argsort(order), -1)[raw.places]  # the last one stands for -1
            return cls.of_places(name, place, [raw.levels[old] for old in order])
        numbers = np.asarray(raw.numbers)
        seen = np.unique(numbers[~np.isnan(numbers)])
        whole = raw.kind == "boolean" or bool((seen == np.rint(seen)).all())
        if whole and 0 < len(seen) <= FEW and raw.moment is None:
            place = np.where(np.isnan(numbers), -1, np.searchsorted(seen, numbers))
            whole_levels = seen.astype(bool if raw.kind == "boolean" else int).tolist()
            return cls(name, list(map(str, whole_levels)), place.astype(np.intp))
        return cls(name, value=numbers, is_date=is_dated(raw.moment))

    @classmethod
    def of_places(cls, name: str, place: NDArray[np.intp], levels: Sequence[Any]) -> "Colouring":
        """Keep the most frequent labels, and those alone that some row has."""
        count = np.bincount(place[place >= 0], minlength=len(levels))
        kept = np.sort(np.argsort(-count, kind="stable")[:FEW])
        kept = kept[count[kept] > 0]
        new = np.full(len(levels) + 1, -1)  # the last one stands for -1
        new[kept] = np.arange(len(kept))
        found = new[place].astype(np.intp)
        rest = "others" if ((found < 0) & (place >= 0)).any() else "missing"
        return cls(name, [shown(levels[old]) for old in kept], found, rest=rest)


def colouring_of(vae: Any, X: Any, *, y: Any, column: Any, score: str | None) -> Colouring | None:
    """Return what is to colour the rows: one of labels, a column, and a score."""
    if sum(one is not None for one in (y, column, score)) > 1:
        raise ValueError("A map has one colour: give y, column or score, not several of them.")
    if y is not None:
        found = Colouring.by(y, "y", X.shape[0])
        return found._replace(name=str(getattr(y, "name", None) or ""))
    if score is not None:
        if score not in METHODS:
            raise ValueError(f"score must be one of {some_of(METHODS)}. Got {score!r} instead.")
        scores = vae.score_samples(X, method=score)
        name = score.replace("_", " ").replace("elbo", "ELBO").replace("kl", "minus the KL")
        return Colouring(f"{name}, nats", value=scores)
    if column is None:
        return None
    number = column_number(vae, column)
    cells = X[:, [number]].toarray()[:, 0] if hasattr(X, "toarray") else None
    if cells is None:
        cells = list(columns_of(X))[number]
    return Colouring.by(cells, shown(labels_of(vae)[number]), X.shape[0])
