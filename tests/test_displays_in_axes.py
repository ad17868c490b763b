"""Displays in axes that are given: all texts can be read, and none leaves its place."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.text import Text
from sklearn.datasets import load_digits

from skvae import VAEOutlierDetector, VAETransformer
from skvae.displays import (
    ComponentDisplay,
    LatentDisplay,
    ManifoldDisplay,
    OutlierDisplay,
    ReconstructionDisplay,
    TrainingCurveDisplay,
)

matplotlib.use("Agg")

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is room for"),
    pytest.mark.filterwarnings("ignore:Training reached max_iter"),
]

DIGITS, DIGIT = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
t = rng.normal(size=300)
TABLE = pd.DataFrame(
    {
        "age": np.round(40.0 + 10.0 * t + rng.normal(size=300)).astype(int),
        "annual household income": np.exp(10.0 + 0.5 * t + 0.2 * rng.normal(size=300)),
        "job": pd.Categorical(np.where(t + rng.normal(size=300) > 0.0, "boss", "clerk of a court")),
        "member": rng.random(300) < 1.0 / (1.0 + np.exp(-3.0 * t)),
        "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(100.0 * t, unit="D"),
        "town": rng.choice(["Aix", "Bonn", "Cork", "Dax"], 300, p=[0.4, 0.3, 0.2, 0.1]),
    }
)


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def models():
    """A model of a table, one of images, and a detector."""
    table = VAETransformer(2, max_iter=3, random_state=0).fit(TABLE)
    images = VAETransformer(3, max_iter=0).fit(DIGITS)
    return table, images, VAEOutlierDetector(random_state=0).fit(TABLE)


IMAGES = {"image_shape": (8, 8)}
# {name: (display, model, rows, what else)}
DRAWN = {
    "curves": (TrainingCurveDisplay, 0, None, {}),
    "map of labels": (LatentDisplay, 1, DIGITS, {"y": DIGIT, "n_ellipses": 3}),
    "map of many labels": (LatentDisplay, 0, TABLE, {"y": [f"label {i % 19}" for i in range(300)]}),
    "map of dates": (LatentDisplay, 0, TABLE, {"column": "since"}),
    "line of labels": (LatentDisplay, 0, TABLE, {"column": "town", "components": 0}),
    "line of numbers": (LatentDisplay, 0, TABLE, {"score": "elbo", "components": 1}),
    "tiles": (ManifoldDisplay, 1, None, IMAGES),
    "curves of columns": (ManifoldDisplay, 0, None, {}),
    "curves of levels": (ManifoldDisplay, 0, None, {"columns": ["town"]}),
    "images": (ReconstructionDisplay, 1, DIGITS, IMAGES),
    "columns": (ReconstructionDisplay, 0, TABLE, {}),
    "dates": (ReconstructionDisplay, 0, TABLE, {"columns": ["since"]}),
    "levels": (ReconstructionDisplay, 0, TABLE, {"columns": ["job"]}),
    "components": (ComponentDisplay, 0, TABLE, {}),
    "components of images": (ComponentDisplay, 1, DIGITS, IMAGES),
    "outliers": (OutlierDisplay, 2, TABLE, {}),
    "outliers of labels": (OutlierDisplay, 2, TABLE, {"y": np.arange(300) % 7}),
}
each = pytest.mark.parametrize("name", DRAWN)


def _draw(models, name, ax=None):
    display, number, rows, more = DRAWN[name]
    given = () if rows is None else (rows,)
    return display.from_estimator(models[number], *given, ax=ax, **more)


def _axes_of(figure):
    every = [ax for ax in figure.axes if ax.get_visible()]
    return every + [child for ax in every for child in ax.child_axes]


def _tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    margin = 1e-6 * (high - low)
    labels = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    return [text for place, text in labels if low - margin <= place <= high + margin]


def _texts(figure):
    """All texts that are drawn, and their window extents."""
    figure.draw_without_rendering()
    found = []
    for ax in _axes_of(figure):
        found += [child for child in ax.get_children() if isinstance(child, Text)]
        if ax.get_legend() is not None:
            found += [*ax.get_legend().get_texts(), ax.get_legend().get_title()]
        if ax.axison:
            found += [ax.xaxis.label, ax.yaxis.label]
            found += [*_tick_labels(ax.xaxis), *_tick_labels(ax.yaxis)]
    return {text: text.get_window_extent() for text in found if text.get_text().strip()}


def _crossing(one, other):
    """How many pixels two boxes share, in the direction in which they share fewer."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return min(wide, high)


def _outside(box, figure):
    return max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1)


def _check_readable(figure):
    texts = _texts(figure)
    pairs = [
        (one.get_text(), other.get_text())
        for one, other in combinations(texts, 2)
        if _crossing(texts[one], texts[other]) > 1.0
    ]
    assert pairs == []
    assert [text.get_text() for text, box in texts.items() if _outside(box, figure) > 1.0] == []
    legends = [ax.get_legend() for ax in _axes_of(figure) if ax.get_legend() is not None]
    assert all(_outside(legend.get_window_extent(), figure) <= 1.0 for legend in legends)
    assert all(text.get_fontsize() >= 6.0 for text in texts)
    return texts


def _check_large(display, least):
    """What is drawn on is not squeezed to nothing, in pixels."""
    for ax in display.axes_:
        assert ax.get_window_extent().width > least and ax.get_window_extent().height > least / 2


@each
def test_all_texts_can_be_read_in_axes_of_a_figure_of_the_usual_size(models, name):
    figure, ax = pyplot.subplots()
    assert tuple(figure.get_size_inches()) == (6.4, 4.8) and figure.dpi == 100
    display = _draw(models, name, ax)
    assert _check_readable(figure)
    _check_large(display, 60)


@each
def test_all_texts_can_be_read_in_a_quarter_of_a_figure_and_none_reaches_its_neighbours(
    models, name
):
    figure, axes = pyplot.subplots(2, 2)
    display = _draw(models, name, axes[0, 0])
    for ax in axes.ravel()[1:]:
        display.plot(ax=ax)
        _check_large(display, 60)
    _check_readable(figure)


@each
def test_all_texts_can_be_read_in_a_figure_of_its_own(models, name):
    _check_readable(_draw(models, name).figure_)


@pytest.mark.parametrize("name", ["curves", "map of labels", "columns", "components", "outliers"])
def test_a_layout_engine_of_the_figure_places_the_axes(models, name):
    figure, axes = pyplot.subplots(1, 2, layout="constrained", figsize=(9.0, 4.8))
    display = _draw(models, name, axes[0])
    display.plot(ax=axes[1])
    _check_readable(figure)


def test_several_displays_share_a_figure(models):
    figure, axes = pyplot.subplots(2, 2)
    for name, ax in zip(
        ["curves", "map of labels", "components", "outliers"], axes.flat, strict=True
    ):
        _draw(models, name, ax)
    _check_readable(figure)


def test_axes_of_a_subfigure_are_drawn_on(models):
    figure = pyplot.figure(figsize=(9.0, 4.8))
    left, right = figure.subfigures(1, 2)
    for part, name in ((left, "columns"), (right, "map of labels")):
        display = _draw(models, name, part.subplots())
        assert display.figure_ is part
        texts = _texts(figure) if not figure.axes else {}
        assert all(_outside(box, part) <= 1.0 for box in texts.values())
    _check_readable(figure)


def test_panels_without_room_are_told(models):
    _, axes = pyplot.subplots(2, 2)
    with pytest.warns(
        UserWarning, match=r"There is room for 1 of the 6 panels of Reconstr"
    ) as told:
        display = _draw(models, "columns", axes[0, 0])
    assert told[0].filename == __file__
    assert len(display.axes_) == 1
    assert "an array of axes, or ax=None for a figure of its own" in str(told[0].message)
