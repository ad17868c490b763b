"""Warnings that say what is wrong with a fit or a score, and what to do. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from ._advice import warn
from ._parameters import INACTIVE_KL, NOISE_FLOOR

if TYPE_CHECKING:
    from ._fitted import Fitted
    from ._history import History
    from ._table.column import Array, Column
    from ._table.schema import Schema

Advice = tuple[str, type[Warning]]
MANY = 0.1  # share of the rows
MOST_TOLD = 3  # columns of which the same is said, before their number is
LARGEST_GAP = 0.1  # nats that the last search for modes may have added
LARGEST_ERROR = 0.06  # nats: standard error


def warn_about_fit(
    parameters: Mapping[str, Any], fitted: "Fitted", history: "History", names: Sequence[str]
) -> None:
    """Warn of training cut short or diverging, inactive components, and noise at its floor."""
    for text, category in advice_on_fit(parameters, fitted, history, names):
        warn(text, category)


def advice_on_fit(
    parameters: Mapping[str, Any], fitted: "Fitted", history: "History", names: Sequence[str]
) -> list[Advice]:
    """Say what is wrong with a fit, and what to do: "n_components" and "beta" are as asked for."""
    n_components_asked, beta = parameters["n_components"], parameters["beta"]
    advice: list[Advice] = []
    if history.undone:
        advice.append((history.undone, ConvergenceWarning))
    n_epochs = "1 epoch" if history.n_epochs == 1 else f"{history.n_epochs} epochs"
    kept = f"epoch {history.best_epoch}" if history.best_epoch else "the linear start"
    if history.interrupted:
        text = (
            f"Training was interrupted after {n_epochs}. The model is that of {kept}. Fit again, "
            "or with warm_start=True to go on."
        )
        advice.append((text, ConvergenceWarning))
    elif history.cut_short:
        is_last = history.best_epoch == history.n_epochs
        why = "" if is_last else ": none after it is clearly better"
        text = (
            f"Training reached max_iter after {n_epochs}, while the held-out bound was still "
            f"rising. The model is that of {kept}{why}. Increase max_iter."
        )
        advice.append((text, ConvergenceWarning))
    advice += [(text, UserWarning) for text in _on_components(n_components_asked, beta, fitted)]
    advice += [(text, UserWarning) for text in _on_noise(n_components_asked, fitted, names)]
    return advice


def _on_components(asked: Any, beta: float, fitted: "Fitted") -> Iterator[str]:
    n_active, n_components = fitted.n_active_components, fitted.n_components
    is_number = not isinstance(asked, str)
    if is_number and n_components < asked:
        yield (
            f"n_components={asked} is more than the number of columns (each level of "
            f"a category counts as one): the model has {n_components} components."
        )
    columns = fitted.columns
    judged = bool(columns.kinds.with_units("none").any() or columns.may_miss.any())
    if n_active < n_components if is_number else judged and n_active == 0:
        use = (
            f"Use n_components={n_active}."
            if n_active
            else "The columns share no structure that new rows show."
        )
        if beta > 1.0:
            enough = f" For this one n_components={n_active} is enough." if n_active else ""
            use = f"A smaller beta than {beta:g} keeps more of them.{enough}"
        n_inactive = n_components - n_active
        are, them = ("is", "it") if n_inactive == 1 else ("are", "them")
        yield (
            f"{n_inactive} of {n_components} components {are} inactive, with less than "
            f"{INACTIVE_KL} nats: transform returns 0 for {them}. {use}"
        )


def _on_noise(n_components_asked: Any, fitted: "Fitted", names: Sequence[str]) -> Iterator[str]:
    columns = fitted.columns
    floor = 1.001 * (NOISE_FLOOR * columns.rms * columns.scale) ** 2
    at_floor = np.flatnonzero((fitted.noise_variance <= floor) & columns.varies)
    if len(at_floor):
        named = ", ".join(names[column] for column in at_floor[:5])
        more = " and others" if len(at_floor) > 5 else ""
        fix = "Drop columns that say the same as others."
        if len(columns) == 1:
            fix = "A column alone has no structure that a model could find."
        elif not isinstance(n_components_asked, str) and fitted.n_components > 1:
            fix = "Use fewer n_components, or drop columns that say the same as others."
        one = len(at_floor) == 1
        of = f"column {named}" if one else f"each of the columns {named}{more}"
        it, its = ("it", "its") if one else ("them", "their")
        yield (
            f"The noise scale of {of} fell to its floor, {NOISE_FLOOR} of the column's standard "
            f"deviation: the components reproduce {it} exactly, so {its} density has no natural "
            f"limit. {fix}"
        )


def warn_about_divergence(history: "History") -> None:
    """Say which epochs were taken again."""
    if history.undone:
        warn(history.undone, ConvergenceWarning)


def warn_about_columns(schema: "Schema") -> None:
    """Say what was decided about columns whose dtype does not tell what they hold."""
    alike: dict[str, list[Column]] = {}
    for column in schema.columns:
        if column.remark:
            alike.setdefault(column.remark, []).append(column)
    for columns in alike.values():
        for column in columns[:MOST_TOLD]:
            warn(f"Column {column.name} {column.remark}")
        if others := columns[MOST_TOLD:]:
            named = ", ".join(column.name for column in others[:5])
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            warn(f"What was said of column {columns[0].name} is true of column {named}{more}, too.")


def warn_of_empty(names: Sequence[str], empty: NDArray[np.intp]) -> None:
    """Say which columns a filled table does not have."""
    if len(empty):
        left_out = [names[column] for column in empty]
        others = " and others" if len(left_out) > 5 else ""
        warn(
            f"Column {', '.join(left_out[:5])}{others} holds no value, so transform returns no "
            "such column. keep_empty_features=True keeps it: numbers become 0, and levels stay "
            "missing."
        )


def unreliable(diagnostics: dict[str, "Array"]) -> NDArray[np.bool_]:
    """Tell the rows whose estimate may be wrong: a tail of weights too heavy, or modes to be found.

    A mean of S weights needs k < min(1 - 1 / log10(S), 0.7) (Vehtari et al. 2024, section 3.2.4).
    A k from few samples is noisy, so a row passes if a tenth of the samples or more count: then
    no few of them decide. In fewer than 21 there is no k (nan), and nothing is said. Nor can
    weights tell of a mode that was never sampled: there the search's own gap does.
    """
    n_samples = np.maximum(diagnostics["n_samples"], 2)
    heavy = diagnostics["pareto_k"] > np.minimum(1.0 - 1.0 / np.log10(n_samples), 0.7)
    few = diagnostics["effective_sample_size"] < 0.1 * n_samples
    return (heavy & few) | (diagnostics["mode_gap"] > LARGEST_GAP)


def uncertain(diagnostics: dict[str, "Array"]) -> NDArray[np.bool_]:
    """Tell those, and the rows whose estimate is known to be a little off."""
    return unreliable(diagnostics) | (diagnostics["standard_error"] > LARGEST_ERROR)


def warn_about_estimates(diagnostics: dict[str, "Array"], refine: bool) -> None:
    """Warn if the estimates of many rows are unreliable; without diagnostics there are none."""
    if not diagnostics:
        return
    flagged = unreliable(diagnostics)
    if flagged.mean() > MANY:
        size = np.median(diagnostics["effective_sample_size"][flagged])
        n_samples = np.median(diagnostics["n_samples"][flagged])
        fix = "Increase n_importance_samples." if refine else "Use refine=True."
        warn(
            f"For {flagged.mean():.0%} of the rows the tail of the importance weights is too heavy "
            f"(Pareto k above {min(1.0 - 1.0 / np.log10(n_samples), 0.7):.2f}; {n_samples:.0f} "
            f"samples are worth {size:.1f}): their log p(x) is unreliable, and mostly too low. "
            f"{fix}"
        )
