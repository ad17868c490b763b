"""What a notebook shows of a fitted estimator, with whatever names its columns have."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

WINE = load_wine().data
IRIS = load_iris(as_frame=True).data
IN_THE_DIAGRAM = hasattr(BaseEstimator, "_get_fitted_attr_html")


def _summary(estimator):
    """The rows of the summary as a dict; of several of one name, the texts together."""
    (table,) = re.findall(r"Fitted model</summary>(.*?)</details>", estimator._repr_html_(), re.S)
    cells = [unescape(re.sub("<[^>]*>", "", c)) for c in re.findall(r"<td.*?</td>", table, re.S)]
    found = {}
    for name, text in zip(cells[::2], cells[1::2], strict=True):
        found[name] = f"{found[name]} | {text}" if name in found else text
    return found


@pytest.mark.filterwarnings("ignore:Training reached max_iter")
def test_a_trained_model_says_how_far_above_the_linear_start_it_is():
    vae = VAETransformer(2, random_state=0, max_iter=8).fit(load_digits().data[:600])
    start, best = vae.validation_scores_[0], vae.validation_scores_[vae.best_iter_]
    assert vae.best_iter_ > 0
    shown = _summary(vae)
    nats = vae.kl_per_component_.sum()
    assert shown["model"] == f"2 components, 2 active; they carry {nats:.1f} nats a row"
    assert shown["training"] == (
        f"held-out bound {best:,.2f} nats a row, {best - start:,.2f} above the linear start; "
        f"epoch {vae.best_iter_} of {vae.n_iter_}"
    )
    assert shown["gaussian"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 52 more"


@pytest.mark.filterwarnings("ignore:Training reached max_iter")
def test_it_says_what_kind_of_training_there_was():
    linear = VAETransformer(1, max_iter=0).fit(WINE)
    assert _summary(linear)["training"] == "none: this is the linear model"
    assert _summary(linear)["model"].startswith("1 component, 1 active")
    everything = VAETransformer(1, max_iter=2, early_stopping=False).fit(WINE)
    assert _summary(everything)["training"] == "2 epochs on all rows; none was held out"
    noise = np.random.default_rng(0).normal(size=(100, 3))
    kept = VAETransformer(1, max_iter=2, random_state=0).fit(noise)
    assert kept.best_iter_ == 0
    assert "the linear start was kept, with a held-out bound of" in _summary(kept)["training"]
    start = kept.validation_scores_[0]
    kept._history = replace(kept._history, held_out=[start, start - 1.0, start - 2.0])
    why = "none of 2 epochs was better on rows that were held out"
    assert _summary(kept)["training"].endswith(why)
    kept._history = replace(kept._history, held_out=[start, start + 0.123, np.nan])
    why = "the best of 2 epochs gained 0.12 nats a row on rows that were held out, less than two"
    assert why in _summary(kept)["training"]


def test_columns_stand_by_their_likelihood_and_many_are_counted():
    X = IRIS.assign(kind=["a", "b"] * 75, switch=[0, 1, 1] * 50)
    shown = _summary(VAETransformer(2, max_iter=0).fit(X))
    assert shown["categorical"] == "kind" and shown["bernoulli"] == "switch"
    assert shown["gaussian"] == ", ".join(IRIS.columns)
    wide = np.random.default_rng(0).normal(size=(30, 20))
    assert _summary(VAETransformer(2, max_iter=0).fit(wide))["gaussian"].endswith("11 and 8 more")


def test_holes_that_are_modelled_are_columns_of_their_own():
    X = IRIS.copy()
    X.loc[X.iloc[:, 2] > 4.0, "sepal width (cm)"] = np.nan
    shown = _summary(VAETransformer(2, missing="model", max_iter=0).fit(X))
    assert shown["bernoulli"] == "'sepal width (cm)' (its holes)"


def test_what_the_fit_warned_of_is_still_there():
    X = IRIS.assign(twice=2.0 * IRIS.iloc[:, 0], text=["1.5"] * 149 + ["oops"])
    with pytest.warns(UserWarning) as told:
        vae = VAETransformer(5, max_iter=0).fit(X)
    shown = _summary(vae)["warning"]
    assert len(told) >= 2
    for warning in told:
        assert str(warning.message) in shown


def test_names_are_text_and_never_markup():
    names = ["<script>alert(1)</script>", "a & b", '"quoted"', "<b>"]
    vae = VAETransformer(1, max_iter=0).fit(IRIS.set_axis(names, axis=1))
    html = vae._repr_html_()
    assert "<script>alert" not in html and "<b>bold" not in html
    assert _summary(vae)["gaussian"] == ", ".join(names)
    levels = pd.DataFrame({"x": np.arange(20.0), "y": ["<i>", "</i>"] * 10})
    assert "<i>" not in _summary_html(VAETransformer(1, max_iter=0).fit(levels))


def _summary_html(vae):
    return vae._repr_html_().partition("Fitted model</summary>")[2].partition("</details>")[0]


def test_detectors_and_imputers_show_their_model():
    detector = VAEOutlierDetector(random_state=0).fit(WINE)
    shown = _summary(detector)
    assert shown["outliers"] == f"below {detector.offset_:,.2f} nats of the aggregate score"
    assert shown["model"].startswith(f"{detector.vae_.n_components_} components")
    assert "warning" not in shown  # of a model that the user did not choose
    imputer = VAEImputer(VAETransformer(2, max_iter=0)).fit(WINE)
    assert _summary(imputer)["model"].startswith("2 components")


def test_before_the_fit_there_is_no_summary():
    for estimator in (VAETransformer(2), VAEOutlierDetector(), VAEImputer(VAETransformer(2))):
        assert "Fitted model" not in estimator._repr_html_()


def test_jupyter_gets_the_same():
    vae = VAETransformer(1, max_iter=0).fit(WINE)
    assert "Fitted model" in vae._repr_mimebundle_()["text/html"]
    assert vae._repr_mimebundle_()["text/plain"] == repr(vae)


@pytest.mark.skipif(not IN_THE_DIAGRAM, reason="Diagrams have room for it from 1.9 on.")
def test_a_step_of_a_pipeline_shows_its_summary():
    pipeline = make_pipeline(StandardScaler(), VAETransformer(2, max_iter=0)).fit(WINE)
    assert _summary(pipeline)["model"].startswith("2 components")


@pytest.mark.parametrize("estimator", [VAETransformer, VAEOutlierDetector, VAEImputer])
def test_the_diagram_links_to_the_page_of_the_estimator(estimator):
    link = f"https://skvae.readthedocs.io/en/latest/api/skvae.{estimator.__name__}.html"
    assert f'href="{link}"' in estimator()._repr_html_()
