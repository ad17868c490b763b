"""What a notebook shows of a fitted estimator, beside its parameters. No torch, and no rows."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator

from ._health import advice_on_fit
from ._inputs import history_of, labels_of, snapshot

if TYPE_CHECKING:
    from ._fitted import Fitted
    from ._history import History

DOCS = "https://skvae.readthedocs.io/en/latest"  # where the pages of the public names are
MOST_NAMES = 12  # of columns
IN_THE_DIAGRAM = hasattr(BaseEstimator, "_get_fitted_attr_html")  # from scikit-learn 1.9 on
STYLE = "text-align: left; vertical-align: top; padding: 0.2em 0.6em; white-space: normal"


class Shown:
    """An estimator whose HTML says what was fitted, and where its documentation is."""

    _doc_link_module = "skvae"
    _doc_link_template = DOCS + "/api/{estimator_module}.{estimator_name}.html"

    def _repr_html_inner(self) -> str:
        """Return what is shown; below scikit-learn 1.9 the summary follows the diagram."""
        diagram: str = super()._repr_html_inner()  # type: ignore[misc]
        return diagram if IN_THE_DIAGRAM else diagram + self._summary_html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """Return the same for Jupyter."""
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        if "text/html" in bundle and not IN_THE_DIAGRAM:
            bundle["text/html"] += self._summary_html()
        return bundle

    def _get_fitted_attr_html(self, doc_link: str = "") -> Any:
        """Return scikit-learn's table of fitted attributes, after the summary."""
        attributes = super()._get_fitted_attr_html(doc_link)  # type: ignore[misc]
        return Summarised(self._summary_html(), attributes)

    def _summary_html(self) -> str:
        """Return the summary; nothing before the first fit."""
        now: Any = snapshot(self)
        vae = vars(now).get("vae_", now)
        if "model_" not in vars(vae):
            return ""
        model, history = vae.model_, history_of(vae)
        lines = [("model", _model_line(model)), ("training", _training_line(history))]
        lines += [(name, _columns_line(names)) for name, names in _by_likelihood(vae)]
        if "offset_" in vars(now):
            score = now.score_method_.replace("_", " ")
            lines.append(("outliers", f"below {now.offset_:,.2f} nats of the {score} score"))
        # Of a model whose parameters the user did not choose, there is nothing to advise.
        chosen = "offset_" not in vars(now) or now.vae is not None
        lines += [("warning", text) for text in _warnings(vae, history, chosen)]
        rows = "".join(
            f'<tr class="default"><td style="{STYLE}"><b>{escape(name)}</b></td>'
            f'<td style="{STYLE}">{escape(text)}</td></tr>'
            for name, text in lines
        )
        return (
            '<div class="estimator-table"><details open><summary>Fitted model</summary>'
            f'<table class="parameters-table"><tbody>{rows}</tbody></table></details></div>'
        )


class Summarised:
    """A summary, and scikit-learn's table of fitted attributes."""

    def __init__(self, summary: str, attributes: Any) -> None:
        self.summary = summary
        self.attributes = attributes

    def __len__(self) -> int:
        return len(self.attributes) + bool(self.summary)

    def _repr_html_inner(self) -> str:
        has_table = len(self.attributes) > 0
        return self.summary + (self.attributes._repr_html_inner() if has_table else "")


def _model_line(model: "Fitted") -> str:
    n_components, n_active = model.n_components, model.n_active_components
    information = float(model.kl_per_component.sum())
    noun = "component" if n_components == 1 else "components"
    return f"{n_components} {noun}, {n_active} active; they carry {information:.1f} nats a row"


def _training_line(history: "History | None") -> str:
    """Say how much better than the linear start the model is, on rows that were held out."""
    if history is None or (history.n_epochs == 0 and not history.why_the_start):
        return "none: this is the linear model"
    if not history.held_out:
        return f"{history.n_epochs} epochs on all rows; none was held out"
    start, best = history.held_out[0], history.held_out[history.best_epoch]
    if history.best_epoch == 0:
        return (
            f"the linear start was kept, with a held-out bound of {start:,.2f} nats a row: "
            f"{history.why_the_start}"
        )
    return (
        f"held-out bound {best:,.2f} nats a row, {best - start:,.2f} above the linear start; epoch "
        f"{history.best_epoch} of {history.n_epochs}"
    )


def _by_likelihood(vae: Any) -> list[tuple[str, list[str]]]:
    """Return the names of the columns of each likelihood."""
    model = vae.model_
    holes = model.schema.names[len(model.schema.columns) :]
    names = [*map(str, labels_of(vae)), *holes]
    found: dict[str, list[str]] = {}
    for name, likelihood in zip(names, model.columns.kinds.names, strict=True):
        found.setdefault(likelihood, []).append(name)
    return list(found.items())


def _columns_line(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return ", ".join(names[:MOST_NAMES]) + f" and {len(names) - MOST_NAMES} more"


def _warnings(vae: Any, history: "History | None", chosen: bool) -> list[str]:
    """Return what the fit warned of."""
    model = vae.model_
    remarks = [f"Column {one.name} {one.remark}" for one in model.schema.columns if one.remark]
    if history is None or not chosen:
        return remarks
    asked = {"n_components": model.architecture["n_components"], "beta": vae.beta}
    advice = advice_on_fit(asked, model, history, model.schema.names)
    return [text for text, _ in advice] + remarks
