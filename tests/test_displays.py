"""What pictures show: the data of their artists equal closed forms, or what the estimator says."""

import datetime
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._inputs import history_of
from skvae.displays import (
    ComponentDisplay,
    LatentDisplay,
    ManifoldDisplay,
    OutlierDisplay,
    ReconstructionDisplay,
    TrainingCurveDisplay,
)
from skvae.displays._axes import shown
from skvae.displays._models import Colouring

matplotlib.use("Agg")

WINE, CULTIVAR = load_wine(return_X_y=True)
IRIS = load_iris(as_frame=True).data
DIGITS = load_digits().data


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def linear():
    return VAETransformer(3, max_iter=0).fit(WINE)


@pytest.fixture(scope="module")
def trained():
    return VAETransformer(2, max_iter=6, random_state=0).fit(DIGITS[:600])


@pytest.fixture(scope="module")
def detector():
    return VAEOutlierDetector(random_state=0).fit(IRIS)


@pytest.fixture(scope="module")
def mixed():
    """Numbers with holes, dates, truth values and two kinds of categories."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=300)
    X = pd.DataFrame(
        {
            "age": 40.0 + 10.0 * t + rng.normal(size=300),
            "job": pd.Categorical(np.where(t + rng.normal(size=300) > 0.0, "boss", "clerk")),
            "member": rng.random(300) < 1.0 / (1.0 + np.exp(-t)),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(100.0 * t, unit="D"),
            "town": rng.choice(["Aix", "Bonn", "Cork", "Dax"], 300, p=[0.4, 0.3, 0.2, 0.1]),
        }
    )
    X.loc[t > 1.0, "age"] = np.nan
    X.loc[::7, "town"] = None
    return VAETransformer(2, max_iter=0).fit(X), X


def _lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


# -- training curves ------------------------------------------------------------------------------


def test_the_curves_are_the_bounds_and_divergences_of_the_epochs(trained):
    display = TrainingCurveDisplay.from_estimator(trained)
    bound, kl = (_lines(ax) for ax in display.axes_)
    epochs = np.arange(trained.n_iter_ + 1)
    assert_array_equal(bound["training rows"].get_xdata(), epochs)
    losses = bound["training rows"].get_ydata()
    assert np.isnan(losses[0])
    assert_allclose(losses[1:], -np.array(trained.loss_curve_), rtol=1e-12)
    assert_allclose(bound["held-out rows"].get_ydata(), trained.validation_scores_)
    assert_allclose(bound["linear start"].get_ydata(), 2 * [trained.validation_scores_[0]])
    best = trained.best_iter_
    kept = bound[f"kept: epoch {best}"]
    assert (kept.get_xdata()[0], kept.get_ydata()[0]) == (best, trained.validation_scores_[best])
    history = history_of(trained)
    assert_allclose(kl["training rows"].get_ydata(), history.kl)
    assert_allclose(kl["held-out rows"].get_ydata(), history.held_out_kl)
    assert display.ax_.get_ylabel() == "evidence lower bound, nats a row"


def test_a_start_that_was_kept_is_marked_as_such():
    display = TrainingCurveDisplay(
        train=[np.nan, 1.0],
        validation=[2.0, 1.0],
        train_kl=[1.0, 1.0],
        validation_kl=[1.0, 1.0],
        best_iter=0,
    ).plot(kl=False)
    kept = _lines(display.ax_)["kept: the start"]
    assert (kept.get_xdata()[0], kept.get_ydata()[0]) == (0, 2.0)
    assert len(display.axes_) == 1


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"objective": "iwae"}, "importance-weighted bound"),
        ({"beta": 2.0}, "training objective"),
        ({"free_bits": 0.1}, "training objective"),
    ],
)
@pytest.mark.filterwarnings("ignore:Training reached max_iter")
def test_the_axis_says_what_was_climbed(changes, label):
    vae = VAETransformer(1, max_iter=1, random_state=0, **changes).fit(IRIS)
    display = TrainingCurveDisplay.from_estimator(vae)
    assert display.ax_.get_ylabel() == f"{label}, nats a row"


def test_without_held_out_rows_there_is_the_training_curve_alone():
    vae = VAETransformer(1, max_iter=2, early_stopping=False, random_state=0).fit(IRIS)
    lines = _lines(TrainingCurveDisplay.from_estimator(vae).ax_)
    assert list(lines) == ["training rows"]
    assert_allclose(lines["training rows"].get_ydata()[1:], -np.array(vae.loss_curve_))
    again = VAETransformer(1, random_state=0).partial_fit(IRIS).partial_fit(IRIS)
    line = _lines(TrainingCurveDisplay.from_estimator(again).ax_)["training rows"]
    assert_allclose(line.get_ydata()[1:], -np.array(again.loss_curve_))


def test_a_model_that_was_not_trained_has_no_curve(linear, detector):
    for model in (linear, detector):
        with pytest.raises(ValueError, match="was not trained: it is its linear start"):
            TrainingCurveDisplay.from_estimator(model)


# -- maps -----------------------------------------------------------------------------------------


def _by_place(codes, values):
    """Values in the order of their codes: points are drawn in random order."""
    order = np.lexsort(np.asarray(codes).T)
    return np.asarray(values)[order]


def test_the_points_are_the_codes_in_the_colours_of_their_labels(linear):
    display = LatentDisplay.from_estimator(linear, WINE, CULTIVAR, components=(0, 2))
    codes = linear.transform(WINE)[:, [0, 2]]
    points = np.asarray(display.scatter_.get_offsets())
    assert_allclose(_by_place(points, points), _by_place(codes, codes))
    palette = np.array([matplotlib.colormaps["tab10"](i)[:3] for i in range(3)])
    colours = display.scatter_.get_facecolors()[:, :3]
    assert_allclose(_by_place(points, colours), _by_place(codes, palette[CULTIVAR]))
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert legend == ["0", "1", "2"]
    nats = linear.kl_per_component_[2]
    assert display.ax_.get_ylabel() == f"component 2 ({nats:.2f} nats)"
    assert display.ax_.get_aspect() == 1.0


@pytest.mark.parametrize("kind", ["column", "score", "values"])
def test_numbers_colour_the_points_through_a_colour_map(linear, kind):
    by = {
        "column": ({"column": 4}, WINE[:, 4]),
        "score": ({"score": "elbo"}, linear.score_samples(WINE, method="elbo")),
        "values": ({"y": WINE[:, 0] * 0.1}, WINE[:, 0] * 0.1),
    }
    how, values = by[kind]
    display = LatentDisplay.from_estimator(linear, WINE, **how)
    points, codes = np.asarray(display.scatter_.get_offsets()), linear.transform(WINE)[:, :2]
    found = _by_place(points, display.scatter_.get_array())
    assert_allclose(found, _by_place(codes, values), rtol=1e-9)
    limits = display.scatter_.get_clim()
    assert_allclose(limits, np.quantile(values, [0.01, 0.99]))  # a wild one takes no colours away


def test_cells_without_a_value_are_grey_and_lie_below(mixed):
    vae, X = mixed
    display = LatentDisplay.from_estimator(vae, X, column="age")
    values = np.ma.filled(display.scatter_.get_array(), np.nan)
    lost = np.isnan(values)
    assert lost.sum() == X["age"].isna().sum() and lost[: lost.sum()].all()
    assert_allclose(display.scatter_.get_cmap()(np.nan)[:3], 0.75)


def test_labels_are_categories_truth_values_and_few_whole_numbers(mixed):
    vae, X = mixed

    def legend(**how):
        drawn = LatentDisplay.from_estimator(vae, X, **how).ax_.get_legend()
        return [text.get_text() for text in drawn.get_texts()], drawn.get_title().get_text()

    assert legend(column="town") == (["Aix", "Bonn", "Cork", "Dax", "missing"], "town")
    assert legend(column="member") == (["False", "True"], "member")
    assert legend(y=np.arange(300) % 3) == (["0", "1", "2"], "")
    assert legend(y=pd.Series(["b", "a"] * 150, name="which")) == (["a", "b"], "which")
    many = [f"level {i // 10}" for i in range(300)]
    found, _ = legend(y=many)
    assert len(found) == 21 and found[-1] == "others"
    for kind in ("points", "density"):
        dated = LatentDisplay.from_estimator(vae, X, column="since", kind=kind)
        dated.figure_.canvas.draw()
        (bar,) = dated.ax_.child_axes
        assert {text.get_text()[:2] for text in bar.get_yticklabels()} == {"20"}  # years


def test_many_rows_are_counted_in_cells():
    vae = VAETransformer(2, max_iter=0).fit(IRIS)
    X = np.random.default_rng(0).normal(size=(40_000, 4)) + IRIS.mean().to_numpy()
    X = pd.DataFrame(X, columns=IRIS.columns)
    display = LatentDisplay.from_estimator(vae, X)
    assert display.scatter_ is None
    picture = np.asarray(display.image_.get_array())
    codes, (left, right, low, high) = vae.transform(X), display.image_.get_extent()
    height, width = picture.shape[:2]
    bins = [np.linspace(low, high, height + 1), np.linspace(left, right, width + 1)]
    count, *_ = np.histogram2d(codes[:, 1], codes[:, 0], bins)
    assert_array_equal(picture[..., 3] > 0.0, count > 0.0)
    fullest, emptiest = count == count.max(), count == count[count > 0.0].min()
    assert picture[fullest][:, :3].sum(1).max() < picture[emptiest][:, :3].sum(1).min()  # darker
    assert LatentDisplay.from_estimator(vae, X, kind="points").scatter_ is not None


def test_a_cell_has_the_mean_colour_of_its_rows():
    codes = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [30, 10, 10], axis=0)
    place = np.array([0] * 15 + [1] * 15 + [0] * 10 + [1] * 10)
    display = LatentDisplay(codes=codes, colouring=Colouring("y", ["a", "b"], place))
    picture = np.asarray(display.plot(kind="density").image_.get_array())
    found = picture[picture[..., 3] > 0.0][:, :3]
    palette = np.array([matplotlib.colormaps["tab10"](i)[:3] for i in range(2)])
    assert_allclose(found, [palette.mean(0), palette[0], palette[1]])
    value = np.where(place == 1, 4.0, 2.0)
    display = LatentDisplay(codes=codes, colouring=Colouring("v", value=value))
    picture = np.asarray(display.plot(kind="density").image_.get_array())
    expected = matplotlib.colormaps["viridis"]([0.5, 0.0, 1.0])[:, :3]
    assert_allclose(picture[picture[..., 3] > 0.0][:, :3], expected)


def test_rows_far_away_lie_outside_and_are_counted():
    codes = np.random.default_rng(0).normal(size=(5000, 2))
    codes[:2] = [[1e3, 0.0], [0.0, -1e5]]
    display = LatentDisplay(codes=codes).plot()
    assert display.ax_.get_title(loc="right") == "2 of 5,000 rows lie outside"
    assert np.abs([*display.ax_.get_xlim(), *display.ax_.get_ylim()]).max() < 10.0
    for few in (codes[2:5], codes[:1], np.zeros((4, 2))):  # nothing to leave out, or to scale by
        assert LatentDisplay(codes=few).plot().ax_.get_title(loc="right") == ""


@pytest.mark.parametrize("whiten", [True, False])
def test_the_ellipses_hold_90_percent_of_the_posteriors_of_the_linear_model(whiten):
    vae = VAETransformer(3, max_iter=0, whiten=whiten).fit(WINE)
    display = LatentDisplay.from_estimator(vae, WINE, components=(1, 0), n_ellipses=5)
    # Of x = W z + s eps with orthogonal columns of W: Var(z_k | x) = s^2 / (s^2 + |w_k|^2).
    w = vae.weights_["decoder.linear.weight"]
    variance = vae.noise_variance_[0] / vae.model_.columns.scale[0] ** 2
    spread = np.sqrt(variance / (variance + (w**2).sum(0)))[[1, 0]]
    spread = spread if whiten else spread * vae.component_scale_[[1, 0]]
    assert_allclose(display.spread, np.tile(spread, (5, 1)), rtol=1e-6)
    centre = np.asarray(display.ellipses_.get_offsets())
    assert_allclose(centre, vae.transform(WINE[[0, 44, 88, 132, 177]])[:, [1, 0]])
    display.figure_.canvas.draw()
    sides = 2.0 * display.ellipses_.get_transforms()[0].diagonal()[:2]  # of a circle of radius 1
    draws = np.random.default_rng(0).normal(size=(100_000, 2)) * spread
    inside = ((2.0 * draws / sides) ** 2).sum(1) < 1.0
    assert inside.mean() == pytest.approx(0.9, abs=0.005)


def test_a_map_refuses_what_it_cannot_show(linear):
    def draw(X=WINE, model=linear, **how):
        LatentDisplay.from_estimator(model, X, **how)

    with pytest.raises(ValueError, match="give y, column or score, not several"):
        draw(y=CULTIVAR, column=0)
    with pytest.raises(ValueError, match="y must have one value for each of the 178 rows"):
        draw(y=[1, 2])
    with pytest.raises(ValueError, match="components must be numbers from 0 to 2"):
        draw(components=(0, 3))
    with pytest.raises(ValueError, match="components must be one or two numbers"):
        draw(components=(0, 1, 2))
    with pytest.raises(
        ValueError, match=r"There is no column 'alcohol' in what the model was fitt"
    ):
        draw(column="alcohol")
    with pytest.raises(ValueError, match="kind must be 'auto', 'points' or 'density'"):
        draw(kind="dots")
    with pytest.raises(ValueError, match="n_ellipses must be an integer >= 0"):
        draw(n_ellipses=-1)
    with pytest.raises(ValueError, match=r"score must be one of 'log_.*'kl'\. Got 'best' instead"):
        draw(score="best")
    with pytest.raises(
        ValueError, match=r"Ellipses need two components, .* Got n_ellipses=3: use 0"
    ):
        draw(components=1, n_ellipses=3)


def test_an_unknown_column_is_answered_by_the_nearest_and_by_those_there_are(mixed, trained):
    for draw in (
        lambda: ManifoldDisplay.from_estimator(mixed[0], columns=["jab"]),  # X is not given
        lambda: ReconstructionDisplay.from_estimator(*mixed, columns=["jab"]),
        lambda: LatentDisplay.from_estimator(*mixed, column="jab"),
    ):
        with pytest.raises(
            ValueError, match=r"Did you mean 'job'\? Its columns are 'age', 'job', "
        ):
            draw()
    with pytest.raises(ValueError, match=r"no column 64 in .* are 0, .*, 9 and 54 more\.$"):
        ManifoldDisplay.from_estimator(trained, columns=[64])


# -- maps by one component ------------------------------------------------------------------------


def test_one_component_is_a_histogram_of_its_codes():
    vae = VAETransformer(1, max_iter=0).fit(WINE)
    display = LatentDisplay.from_estimator(vae, WINE)
    (bars,) = display.bars_
    edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
    count, _ = np.histogram(vae.transform(WINE)[:, 0], edges)
    assert_array_equal([bar.get_height() for bar in bars], count)
    assert count.sum() == len(WINE) and display.scatter_ is None
    assert display.ax_.get_xlabel() == f"component 0 ({vae.kl_per_component_[0]:.2f} nats)"
    assert display.ax_.get_ylabel() == "rows"


def test_the_bars_of_one_component_are_divided_by_labels(linear):
    display = LatentDisplay.from_estimator(linear, WINE, CULTIVAR, components=1)
    heights = [sum(bar.get_height() for bar in bars) for bars in display.bars_]
    assert heights == [*np.bincount(CULTIVAR), 0]
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert legend == ["0", "1", "2"]
    for number, bars in enumerate(display.bars_[:3]):
        colour = matplotlib.colormaps["tab10"](number)
        assert {bar.get_facecolor() for bar in bars} == {colour}


def test_the_bars_of_one_component_have_the_mean_colour_of_numbers(linear):
    display = LatentDisplay.from_estimator(linear, WINE, column=4, components=0)
    (bars,), codes = display.bars_, linear.transform(WINE)[:, 0]
    norm = matplotlib.colors.Normalize(*np.quantile(WINE[:, 4], [0.01, 0.99]))
    for bar in bars:
        own = WINE[(codes >= bar.get_x()) & (codes < bar.get_x() + bar.get_width()), 4]
        expected = matplotlib.colormaps["viridis"](norm(own.mean())) if len(own) else None
        if expected is not None:
            assert_allclose(bar.get_facecolor(), expected, atol=0.01)
    assert len(display.ax_.child_axes) == 1


# -- manifolds ------------------------------------------------------------------------------------


def _pixels(display, row, column):
    """The tile whose centre is at (column, row), as it stands in the picture."""
    picture = np.ma.filled(display.image_.get_array(), np.nan)
    left, right, bottom, top = display.image_.get_extent()
    height, width = picture.shape[:2]
    x = (column - left) / (right - left) * width
    y = (row - top) / (bottom - top) * height
    tile = display.image_shape
    start = round(y - 0.5 * tile[0]), round(x - 0.5 * tile[1])
    return picture[start[0] : start[0] + tile[0], start[1] : start[1] + tile[1]]


def test_a_tile_is_the_decoded_quantile_that_its_ticks_say():
    vae = VAETransformer(2, max_iter=0).fit(DIGITS)
    display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), n_tiles=5)
    shares = np.linspace(0.02, 0.98, 5)
    ticks = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert ticks == [f"{share:.0%}" for share in shares]
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == ticks
    assert_allclose(display.ax_.get_yticks(), [4, 3, 2, 1, 0])  # rising upwards
    w, columns = vae.weights_["decoder.linear.weight"], vae.model_.columns
    bias = vae.weights_["decoder.linear.bias"]
    for row, column in [(0, 0), (4, 0), (2, 3)]:
        z = stats.norm.ppf([shares[column], shares[4 - row]])
        expected = columns.shift + columns.scale * (w @ z + bias)
        assert_allclose(_pixels(display, row, column).ravel(), expected, rtol=1e-9, atol=1e-9)


def test_the_tiles_are_what_inverse_transform_makes_of_their_codes(trained):
    display = ManifoldDisplay.from_estimator(trained, image_shape=(8, 8), n_tiles=4)
    codes = display.codes.reshape(16, 2)
    assert_allclose(display.values.reshape(16, 64), trained.inverse_transform(codes), rtol=1e-9)


def test_gaps_separate_the_tiles():
    vae = VAETransformer(2, max_iter=0).fit(DIGITS)
    display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), n_tiles=3)
    picture = np.ma.filled(display.image_.get_array(), np.nan)
    gaps = np.isnan(picture).all(1).nonzero()[0]
    assert_array_equal(gaps, [0, 9, 18, 27])
    assert display.image_.get_cmap()(np.nan)[3] == 0.0  # the paper shows through


def test_all_other_components_stay_at_the_codes_of_the_rows_that_are_given(linear):
    held = ManifoldDisplay.from_estimator(linear, WINE[:1], components=(2, 0), columns=[0])
    code = linear.transform(WINE[:1])[0]
    assert_allclose(held.codes[..., 1], code[1])
    assert_allclose(held.codes[1, 20, [0, 2]], 0.0, atol=1e-12)  # medians
    free = ManifoldDisplay.from_estimator(linear, components=[1])
    assert_array_equal(free.codes[..., [0, 2]], 0.0)
    assert free.values.shape[:2] == (1, 41)


def test_the_curves_of_a_linear_model_are_straight_in_the_quantiles_of_the_prior(linear):
    display = ManifoldDisplay.from_estimator(linear, columns=[9])
    lines = _lines(display.ax_)
    assert list(lines) == ["10%", "50%", "90%"]
    w = linear.weights_["decoder.linear.weight"][9]
    mean, scale = WINE[:, 9].mean(), linear.model_.columns.scale[9]
    for share in (0.1, 0.5, 0.9):
        line = lines[f"{share:.0%}"]
        z = stats.norm.ppf(line.get_xdata()) * w[0] + stats.norm.ppf(share) * w[1]
        assert_allclose(line.get_ydata(), mean + scale * z, rtol=1e-9)


def test_the_curves_of_levels_are_probabilities(mixed):
    vae, X = mixed
    display = ManifoldDisplay.from_estimator(vae, columns=["job", "since", "town"])
    job = _lines(display.axes_[0])
    assert_allclose(job["boss"].get_ydata() + job["clerk"].get_ydata(), 1.0)
    assert set(_lines(display.axes_[2])) == {"Aix", "Bonn", "Cork", "Dax"}
    days = display.axes_[1].get_lines()[1].get_ydata()[20]
    middle = matplotlib.dates.date2num(X["since"].mean())  # axes of dates count days as we do
    assert abs(days - middle) < 30.0
    assert len(ManifoldDisplay.from_estimator(vae).columns) == 5


def test_quantiles_of_a_mixture_are_those_of_its_draws():
    trained = {"max_iter": 10, "early_stopping": False, "random_state": 0}
    vae = VAETransformer(2, prior="mixture", whiten=True, **trained).fit(WINE)
    display = ManifoldDisplay.from_estimator(vae, columns=[0])
    prior = vae.model_.module().prior.now
    draws = prior.sample(100_000, 2, torch.Generator().manual_seed(5)).numpy()
    assert_allclose(display.codes[0, :, 0], np.quantile(draws[:, 0], display.first), atol=0.1)


def test_images_in_colour_and_with_holes_are_drawn():
    X = np.random.default_rng(0).random((60, 27))
    vae = VAETransformer(2, max_iter=0).fit(X)
    display = ManifoldDisplay.from_estimator(vae, image_shape=(3, 3, 3), n_tiles=2)
    picture = np.asarray(display.image_.get_array())
    assert picture.shape == (9, 9, 3) and picture.min() == 0.0 and picture.max() == 1.0
    holes = X[:10].copy()
    holes[:, 0] = np.nan
    assert ReconstructionDisplay.from_estimator(vae, holes, image_shape=(3, 9)).images is not None


@pytest.mark.parametrize("shape", [(7, 9), 64, (8,), (2, 2, 2, 8), (8.0, 8), (-8, -8)])
def test_an_image_has_as_many_pixels_as_a_row_has_columns(trained, shape):
    with pytest.raises(ValueError, match=r"whose product is the number of columns, 64\. Got"):
        ManifoldDisplay.from_estimator(trained, image_shape=shape)
    with pytest.raises(ValueError, match=r"An image has 3 or 4 colours\. Got image_shape="):
        ManifoldDisplay.from_estimator(trained, image_shape=(2, 2, 16))


def test_a_manifold_refuses_what_it_cannot_show(linear, mixed):
    with pytest.raises(ValueError, match="components must be one or two numbers"):
        ManifoldDisplay.from_estimator(linear, components=(0, 1, 2))
    with pytest.raises(ValueError, match="components must be one or two numbers"):
        ManifoldDisplay.from_estimator(linear, components=(1, 1))
    with pytest.raises(ValueError, match="n_tiles must be an integer >= 2"):
        ManifoldDisplay.from_estimator(linear, n_tiles=1)
    with pytest.raises(ValueError, match="X has columns of categories"):
        ManifoldDisplay.from_estimator(mixed[0], image_shape=(1, 5))


# -- reconstructions ------------------------------------------------------------------------------


def test_images_stand_above_their_reconstructions(trained):
    display = ReconstructionDisplay.from_estimator(trained, DIGITS, image_shape=(8, 8), n_images=4)
    rows = DIGITS[[0, 598, 1197, 1796]]
    assert_array_equal(display.images[0], rows.reshape(4, 8, 8))
    decoded = trained.inverse_transform(trained.transform(rows))
    assert_allclose(display.images[1].reshape(4, 64), decoded, rtol=1e-6)
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == ["rows", "decoded"]


def test_the_share_of_the_variance_is_r2(linear):
    display = ReconstructionDisplay.from_estimator(linear, WINE, columns=[0, 9])
    decoded = linear.inverse_transform(linear.transform(WINE))
    for column, panel, number in zip(display.columns, display.axes_, [0, 9], strict=True):
        expected = r2_score(WINE[:, number], decoded[:, number])
        assert column.score == pytest.approx(expected, rel=1e-9)
        assert panel.get_title() == f"{expected:.0%} of the variance"
        points = np.asarray(panel.collections[0].get_offsets())
        assert_allclose(points, np.stack([WINE[:, number], decoded[:, number]], 1), rtol=1e-9)


def test_levels_are_compared_by_how_many_are_right(mixed):
    vae, X = mixed
    display = ReconstructionDisplay.from_estimator(vae, X, columns=["job", "town"])
    decoded = vae.inverse_transform(vae.transform(X))
    job, town = display.columns
    assert job.score == pytest.approx(accuracy_score(X["job"], decoded["job"]))
    seen = X["town"].notna()
    assert town.score == pytest.approx(accuracy_score(X["town"][seen], decoded["town"][seen]))
    assert_allclose(job.confusion().sum(1), 1.0)
    image = np.asarray(display.axes_[0].get_images()[0].get_array())
    table = pd.crosstab(X["job"], decoded["job"], normalize="index").to_numpy()
    assert_allclose(image[:, : table.shape[1]] if table.shape[1] == 2 else image, table)


def test_without_a_choice_columns_go_from_the_best_reproduced_to_the_worst(linear):
    display = ReconstructionDisplay.from_estimator(linear, WINE)
    scores = [column.score for column in display.columns]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True)
    decoded = linear.inverse_transform(linear.transform(WINE))
    every = r2_score(WINE, decoded, multioutput="raw_values")
    assert (scores[0], scores[-1]) == pytest.approx((every.max(), every.min()))


# -- components -----------------------------------------------------------------------------------


def test_bars_are_effects_in_standard_deviations_with_the_largest_on_top(linear):
    display = ComponentDisplay.from_estimator(linear, WINE, components=[1], n_columns=4)
    effects = linear.component_effects(WINE).to_numpy()[:, 1]
    relative = effects / WINE.std(0)
    order = np.argsort(-np.abs(relative))[:4]
    (bars,) = display.ax_.containers
    assert_allclose([bar.get_width() for bar in bars], relative[order], rtol=1e-9)
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == [str(i) for i in order]
    amounts = [text.get_text() for text in display.ax_.texts]
    expected = [f"{e:+,.0f}" if abs(e) >= 1e3 else f"{e:+.3g}" for e in effects[order]]
    assert amounts == expected
    assert display.ax_.yaxis_inverted()


def test_the_line_on_a_bar_holds_80_percent_of_the_rows(trained):
    X = DIGITS[:100]
    display = ComponentDisplay.from_estimator(trained, X, components=[0])
    half = 0.5 * np.array([trained.component_scale_[0], 0.0])
    Z = trained.transform(X)
    moved = trained.inverse_transform(Z + half) - trained.inverse_transform(Z - half)
    low, high = np.quantile(moved, [0.1, 0.9], axis=0)
    assert_allclose(display.effects[0].mean, moved.mean(0), rtol=1e-9, atol=1e-9)
    assert_allclose(display.effects[0].low, low, rtol=1e-9, atol=1e-9)
    assert_allclose(display.effects[0].high, high, rtol=1e-9, atol=1e-9)


def test_levels_have_bars_of_their_own_and_of_two_only_the_second(mixed):
    vae, X = mixed
    display = ComponentDisplay.from_estimator(vae, X, components=[0], n_columns=20)
    names = {text.get_text() for text in display.ax_.get_yticklabels()}
    towns = {f"town = {town}" for town in ("Aix", "Bonn", "Cork", "Dax")}
    assert names == {"age", "age (missing)", "job = clerk", "member", "since", *towns}
    effect = vae.component_effects(X).loc[("job", "clerk"), "vaetransformer0"]
    share = (X["job"] == "clerk").mean()
    place = [text.get_text() for text in display.ax_.get_yticklabels()].index("job = clerk")
    width = display.ax_.containers[0][place].get_width()
    assert width == pytest.approx(effect / np.sqrt(share * (1.0 - share)), rel=1e-9)
    assert any(text.get_text().endswith(" days") for text in display.ax_.texts)


def test_effects_on_pixels_are_images_around_zero(trained):
    display = ComponentDisplay.from_estimator(trained, DIGITS[:50], image_shape=(8, 8))
    effects = trained.component_effects(DIGITS[:50]).to_numpy()
    reach = np.abs(effects).max()
    for panel, effect in zip(display.axes_, effects.T, strict=True):
        (image,) = panel.get_images()
        picture = np.ma.filled(image.get_array(), np.nan)
        assert_allclose(picture[1:9, 1:9].ravel(), effect, rtol=1e-9, atol=1e-9)
        assert image.get_clim() == pytest.approx((-reach, reach))


def test_components_are_the_first_active_ones_unless_they_are_chosen(linear):
    assert len(ComponentDisplay.from_estimator(linear, WINE).effects) == 3
    display = ComponentDisplay.from_estimator(linear, WINE, components=2)
    assert display.axes_[0].get_title().startswith("component 2 (")
    with pytest.raises(ValueError, match="n_columns must be an integer >= 1"):
        ComponentDisplay.from_estimator(linear, WINE, n_columns=0)
    coloured = VAETransformer(1, max_iter=0).fit(WINE[:, :12])
    with pytest.raises(ValueError, match="Effects have no colours"):
        ComponentDisplay.from_estimator(coloured, WINE[:, :12], image_shape=(2, 2, 3))
    constant = np.c_[IRIS.to_numpy(), np.ones(150)]
    vae = VAETransformer(1, max_iter=0).fit(constant)
    assert ComponentDisplay.from_estimator(vae, constant).relative(np.ones(5))[4] == 0.0


def test_a_single_row_is_shown_in_standard_deviations_of_the_models_draws(mixed):
    vae, X = mixed
    one = X.dropna()[:1]
    display = ComponentDisplay.from_estimator(vae, one, components=0)
    draws = vae.sample(20_000, random_state=1)
    means = [i for i, reading in enumerate(display.readings) if reading.is_mean]
    numbers = {display.readings[i].column: i for i in means}
    assert display.spread[numbers[0]] == pytest.approx(draws["age"].std(), rel=0.1)
    widths = [bar.get_width() for bar in display.ax_.containers[0]]
    assert np.abs(widths).max() > 0.1
    effect = vae.component_effects(one).loc[("since", ""), "vaetransformer0"]
    assert display.effects[0].mean[numbers[3]] == pytest.approx(effect, rel=1e-9)


# -- outliers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd():
    X = IRIS.copy()
    X.loc[3, "petal width (cm)"] += 4.0
    X.loc[9, "sepal length (cm)"] += 6.0
    return X


def test_the_histogram_holds_all_rows_and_the_line_is_the_threshold(detector, odd):
    display = OutlierDisplay.from_estimator(detector, odd)
    heights = [patch.get_height() for patch in display.ax_.patches]
    assert sum(heights) == len(odd)
    (line,) = (line for line in display.ax_.get_lines() if line.get_label() == "offset_")
    assert_allclose(line.get_xdata(), detector.offset_)
    n_odd = int((detector.predict(odd) == -1).sum())
    assert display.ax_.get_title() == f"{n_odd} of 150 rows are outliers"
    below = sum(
        p.get_height()
        for p in display.ax_.patches
        if p.get_x() + p.get_width() / 2 < line.get_xdata()[0]
    )
    assert abs(below - n_odd) <= 3  # to a bin


def test_each_odd_row_has_the_shares_of_its_columns(detector, odd):
    display = OutlierDisplay.from_estimator(detector, odd, n_rows=3, n_columns=2)
    scores = detector.score_samples(odd)
    oddest = np.argsort(scores)[:3]
    shares = -detector.score_features(odd.iloc[oddest])
    assert [row.name for row in display.rows] == [str(i) for i in oddest]
    for panel, own, row in zip(display.axes_[1:], shares, oddest, strict=True):
        (bars,) = panel.containers
        assert_allclose([bar.get_width() for bar in bars], np.sort(own)[::-1][:2], rtol=1e-6)
        first = panel.get_yticklabels()[0].get_text()
        assert first == IRIS.columns[own.argmax()]
        assert panel.get_title() == f"row {row}: score {scores[row]:.1f}"
    texts = {row.name: row.cells[0] for row in display.rows}
    cells = detector.explain(odd.loc[[3]]).loc[(3, "petal width (cm)")]
    expected = f"{cells['value']:.3g} ({cells['lower']:.3g} to {cells['upper']:.3g})"
    assert texts["3"] == expected


def test_one_row_lies_beside_the_threshold(detector, odd):
    display = OutlierDisplay.from_estimator(detector, odd[3:4])
    score = detector.score_samples(odd[3:4])[0]
    (bar,) = (patch for patch in display.ax_.patches if patch.get_height())
    assert (bar.get_x(), bar.get_height()) == (pytest.approx(score), 1.0)
    low, high = display.ax_.get_xlim()
    assert low < score < detector.offset_ < high < low + 2.0 * (detector.offset_ - score)
    assert display.ax_.get_yscale() == "linear"
    assert display.ax_.get_title() == "1 of 1 row is an outlier"
    inlier = OutlierDisplay.from_estimator(detector, IRIS[60:61])
    assert inlier.ax_.get_title() == "0 of 1 row is an outlier"
    fdr = VAEOutlierDetector(fdr=0.1).fit(IRIS)
    alone = OutlierDisplay.from_estimator(fdr, IRIS[60:61])  # there is no threshold
    assert np.ptp(alone.ax_.get_xlim()) == pytest.approx(1.1)


def test_what_was_expected_is_said_as_a_person_would():
    rng = np.random.default_rng(0)
    t = rng.normal(size=300)
    X = pd.DataFrame(
        {
            "number": 3.7 * t + rng.normal(size=300),
            "children": np.rint(4.0 + t + 0.3 * rng.normal(size=300)).astype(int),
            "member": t + 0.1 * rng.normal(size=300) > 0.0,
            "owner": t + 0.8 * rng.normal(size=300) > 0.0,
            "flag": (rng.random(300) < 1.0 / (1.0 + np.exp(-9.0 * t))) * 1.0,
        }
    )
    odd = X.iloc[:1].assign(number=-8.0, children=2, member=True, owner=False, flag=0.0)
    detector = VAEOutlierDetector(random_state=0).fit(X)
    (row,) = OutlierDisplay.from_estimator(detector, odd).rows
    texts = dict(zip(row.columns, row.cells, strict=True))
    cells = detector.explain(odd).loc[0]
    lower, upper = (cells[end].astype(float) for end in ("lower", "upper"))
    assert texts["number"] == f"-8 ({lower['number']:.3g} to {upper['number']:.3g})"
    assert lower["children"] % 1.0 and upper["children"] % 1.0
    assert texts["children"] == f"2 ({lower['children']:.0f} to {upper['children']:.0f})"
    assert texts["member"] == "True (False)"
    assert texts["owner"] == "False (False or True)"
    assert texts["flag"] == "0 (0)"  # two-valued numbers are whole
    plain = OutlierDisplay.from_estimator(
        VAEOutlierDetector(random_state=0).fit(X.to_numpy(object)), odd.to_numpy(object)
    ).rows[0]
    assert dict(zip(plain.columns, plain.cells, strict=True))["1"] == texts["children"]


def test_a_false_discovery_rate_has_its_own_line(odd):
    detector = VAEOutlierDetector(fdr=0.1, random_state=0).fit(IRIS)
    few = odd.iloc[[3, 9, 20, 30]]  # of many rows a p-value of 1 / 151 is no discovery
    display = OutlierDisplay.from_estimator(detector, few, n_rows=0)
    assert_array_equal(display.is_outlier, [True, True, False, False])
    line = _lines(display.ax_)["false discovery rate 10%"]
    assert line.get_xdata()[0] == detector.score_samples(few)[:2].max()
    assert OutlierDisplay.from_estimator(detector, IRIS[50:53], n_rows=1).threshold is None


def test_labels_have_a_histogram_each(detector, odd):
    planted = np.isin(np.arange(150), [3, 9])
    display = OutlierDisplay.from_estimator(detector, odd, planted, n_rows=1)
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert sorted(legend) == ["False", "True", "offset_"]
    heights = [sum(bar.get_height() for bar in bars) for bars in display.ax_.containers]
    assert heights == [148, 2]


def test_an_outlier_display_takes_detectors_of_any_table(mixed, linear):
    X = mixed[1]
    detector = VAEOutlierDetector(random_state=0).fit(X)
    texts = [row.cells for row in OutlierDisplay.from_estimator(detector, X, n_rows=2).rows]
    assert any("boss" in cell or "clerk" in cell for row in texts for cell in row)
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(IRIS.to_numpy(), schema=["a", "b", "c", "d"])
    detector = VAEOutlierDetector(random_state=0).fit(frame)
    assert OutlierDisplay.from_estimator(detector, frame).rows[0].columns[0] in "abcd"
    sparse = csr_array(WINE)
    detector = VAEOutlierDetector(random_state=0).fit(sparse)
    assert len(OutlierDisplay.from_estimator(detector, sparse, n_rows=1).rows) == 1
    with pytest.raises(TypeError, match=r"shows a VAEOutlierDetector\. Got a VAETransformer"):
        OutlierDisplay.from_estimator(linear, WINE)
    with pytest.raises(ValueError, match="n_rows must be an integer >= 0"):
        OutlierDisplay.from_estimator(detector, sparse, n_rows=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (0.012345, "0.0123"),
        (-2e9, "-2e+09"),
        (("a", 1), "a, 1"),
        (pd.NaT, "missing"),
        (None, "missing"),
        (pd.Timestamp("2020-02-01 10:00"), "2020-02-01"),
        (datetime.time(9, 8, 45), "09:08"),
        (pd.Timedelta(hours=36), "1.5 days"),
        ("$x^2$", r"\$x^2\$"),
        (30 * "x", 23 * "x" + "…"),
        (True, "True"),
    ],
)
def test_what_stands_in_a_picture_is_short(value, text):
    assert shown(value) == text


# -- all of them ----------------------------------------------------------------------------------


def _all(trained, detector):
    """Each display, as a function of ``ax``, and the number of its panels."""
    X = DIGITS[:100]
    return {
        "curves": (lambda ax: TrainingCurveDisplay.from_estimator(trained, ax=ax), 2),
        "map": (lambda ax: LatentDisplay.from_estimator(trained, X, n_ellipses=3, ax=ax), 1),
        "map of a score": (
            lambda ax: LatentDisplay.from_estimator(trained, X, score="kl", ax=ax),
            1,
        ),
        "tiles": (lambda ax: ManifoldDisplay.from_estimator(trained, image_shape=(8, 8), ax=ax), 1),
        "curves of columns": (lambda ax: ManifoldDisplay.from_estimator(trained, ax=ax), 6),
        "images": (
            lambda ax: ReconstructionDisplay.from_estimator(trained, X, image_shape=(8, 8), ax=ax),
            1,
        ),
        "columns": (lambda ax: ReconstructionDisplay.from_estimator(trained, X, ax=ax), 6),
        "components": (lambda ax: ComponentDisplay.from_estimator(trained, X, ax=ax), 2),
        "outliers": (lambda ax: OutlierDisplay.from_estimator(detector, IRIS, n_rows=3, ax=ax), 4),
    }


NAMES = list(_all(None, None))


@pytest.mark.filterwarnings("ignore:There is room for")
@pytest.mark.parametrize("name", NAMES)
def test_axes_that_are_given_are_drawn_on_and_nothing_else_is_touched(trained, detector, name):
    draw, n_panels = _all(trained, detector)[name]
    current = pyplot.figure()
    before = dict(matplotlib.rcParams)
    figure = matplotlib.figure.Figure()  # which pyplot does not know
    for ax in (figure.add_subplot(1, 2, 1), figure.add_axes((0.6, 0.1, 0.3, 0.8))):
        display = draw(ax)
        assert display.figure_ is figure and display.ax_ in figure.axes
        assert display.ax_ is ax or n_panels > 1
        place, outer = display.ax_.get_position(), ax.get_position()
        assert outer.x0 - 1e-6 <= place.x0 and place.x1 <= outer.x1 + 1e-6
    figure.canvas.draw()
    assert pyplot.get_fignums() == [current.number] and pyplot.gcf() is current
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_axes_has_one_for_each_panel(trained, detector, name):
    draw, n_panels = _all(trained, detector)[name]
    axes = np.array([matplotlib.figure.Figure().add_subplot() for _ in range(n_panels)])
    display = draw(axes)
    assert display.ax_ is axes[0]
    with pytest.raises(ValueError, match=r"ax must be matplotlib Axes, or an array of"):
        draw(np.append(axes, axes[:1]))
    with pytest.raises(ValueError, match=r"ax must be matplotlib Axes, or an array of"):
        draw("here")


@pytest.mark.parametrize("name", NAMES)
def test_without_axes_there_is_a_new_figure_and_plot_draws_again(trained, detector, name):
    draw, n_panels = _all(trained, detector)[name]
    display = draw(None)
    assert pyplot.get_fignums() == [display.figure_.number]
    first = display.figure_
    assert display.plot() is display and display.figure_ is not first
    assert len(getattr(display, "axes_", [display.ax_])) >= n_panels


@pytest.mark.parametrize("display", [LatentDisplay, ReconstructionDisplay, ComponentDisplay])
def test_the_models_of_detectors_and_imputers_are_shown(display):
    X = IRIS.to_numpy()
    detector = VAEOutlierDetector(random_state=0).fit(X)
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, -1.0, X)
    imputer = VAEImputer(VAETransformer(2, max_iter=0), missing_values=-1.0).fit(holes)
    display.from_estimator(detector, X)
    shown = display.from_estimator(imputer, holes)
    as_nan = np.where(holes == -1.0, np.nan, holes)
    same = display.from_estimator(imputer.vae_, as_nan)
    if display is LatentDisplay:
        assert_array_equal(shown.codes, same.codes)
    elif display is ReconstructionDisplay:
        assert [one.score for one in shown.columns] == [one.score for one in same.columns]
    else:
        assert_array_equal(shown.spread, same.spread)


@pytest.mark.parametrize("display", [LatentDisplay, ManifoldDisplay, TrainingCurveDisplay])
def test_another_estimator_is_refused_and_so_is_one_without_a_fit(display, linear):
    rows = () if display is TrainingCurveDisplay else (WINE,)
    for other in (make_pipeline(StandardScaler()), GridSearchCV(linear, {"beta": [1.0]})):
        with pytest.raises(
            TypeError, match=r"has one as a step\. Got a .* Of a search pass its best"
        ):
            display.from_estimator(other, *rows)
    for unfitted in (VAETransformer(), VAEOutlierDetector(), VAEImputer()):
        with pytest.raises(NotFittedError):
            display.from_estimator(unfitted, *rows)


@pytest.mark.parametrize("where", ["last", "before a classifier", "in a pipeline of its own"])
def test_a_pipeline_stands_for_its_step_and_the_steps_before_it_make_its_rows(where):
    step = VAETransformer(2, max_iter=6, random_state=0)
    pipeline = {
        "last": make_pipeline(StandardScaler(), PCA(5), step),
        "before a classifier": make_pipeline(StandardScaler(), PCA(5), step, GaussianNB()),
        "in a pipeline of its own": make_pipeline(StandardScaler(), make_pipeline(PCA(5), step)),
    }[where]
    pipeline.fit(WINE, CULTIVAR)
    rows = PCA(5).fit_transform(StandardScaler().fit_transform(WINE))
    vae = clone(step).fit(rows)
    assert_allclose(LatentDisplay.from_estimator(pipeline, WINE).codes, vae.transform(rows))
    assert len(TrainingCurveDisplay.from_estimator(pipeline).train) == vae.n_iter_ + 1
    shown, same = (
        ReconstructionDisplay.from_estimator(*pair) for pair in [(pipeline, WINE), (vae, rows)]
    )
    assert [one.name for one in shown.columns] == [one.name for one in same.columns]
    held = ManifoldDisplay.from_estimator(pipeline, WINE[:1], components=0)
    assert_allclose(held.codes[0, 0, 1], vae.transform(rows[:1])[0, 1])
    found = ComponentDisplay.from_estimator(pipeline, WINE).spread
    assert_allclose(found, rows.std(axis=0))


def test_a_pipeline_stands_for_its_detector_or_imputer():
    pipeline = make_pipeline(StandardScaler(), VAEOutlierDetector(random_state=0)).fit(WINE)
    display = OutlierDisplay.from_estimator(pipeline, WINE, n_rows=1)
    assert_allclose(display.scores, pipeline.score_samples(WINE))
    holes = np.where(np.random.default_rng(0).random(WINE.shape) < 0.1, np.nan, WINE)
    model = {"max_iter": 0, "n_components": 2}
    imputer = make_pipeline(StandardScaler(), VAEImputer(model)).fit(holes)
    codes = imputer[-1].vae_.transform(imputer[:-1].transform(holes))
    assert_allclose(LatentDisplay.from_estimator(imputer, holes).codes, codes)
    with pytest.raises(TypeError, match=r"shows a VAEOutlierDetector\. Got a VAEImputer"):
        OutlierDisplay.from_estimator(imputer, holes)


def test_a_pipeline_of_frames_keeps_the_names_of_columns():
    pipeline = make_pipeline(StandardScaler(), VAETransformer(2, max_iter=0))
    pipeline.set_output(transform="pandas").fit(IRIS)
    display = ManifoldDisplay.from_estimator(pipeline, columns=["petal width (cm)"])
    assert display.ax_.get_ylabel() == "petal width (cm)"


@pytest.mark.parametrize(
    "display",
    [LatentDisplay, ManifoldDisplay, ReconstructionDisplay, ComponentDisplay, OutlierDisplay],
)
def test_no_rows_are_refused(display, detector):
    for empty in (IRIS[:0], IRIS[:0].to_numpy()):
        model = detector
        if isinstance(empty, np.ndarray):
            model = VAEOutlierDetector().fit(IRIS.to_numpy())
        with pytest.raises(
            ValueError, match=r"Found array with 0 sample\(s\) .*minimum of 1 is req"
        ):
            display.from_estimator(model, empty)


@pytest.mark.parametrize("form", ["polars", "sparse", "float32"])
def test_any_container_of_rows_is_shown(form):
    polars = pytest.importorskip("polars")
    X: object = {
        "polars": polars.DataFrame(WINE, schema=[f"c{i}" for i in range(13)]),
        "sparse": csr_array(WINE),
        "float32": WINE.astype(np.float32),
    }[form]
    vae = VAETransformer(2, max_iter=0).fit(X)
    plain = VAETransformer(2, max_iter=0).fit(WINE)
    codes = LatentDisplay.from_estimator(vae, X, column=4, n_ellipses=2).codes
    assert_allclose(np.abs(codes), np.abs(plain.transform(WINE)), rtol=1e-3, atol=1e-3)
    assert len(ReconstructionDisplay.from_estimator(vae, X).columns) == 6
    assert ComponentDisplay.from_estimator(vae, X).spread[0] == pytest.approx(
        WINE[:, 0].std(), 1e-5
    )


def test_one_row_and_one_column_are_shown():
    vae = VAETransformer(2, max_iter=0).fit(IRIS)
    one = IRIS[:1]
    assert LatentDisplay.from_estimator(vae, one, n_ellipses=3).codes.shape == (1, 2)
    assert len(ReconstructionDisplay.from_estimator(vae, one).columns) == 4
    ComponentDisplay.from_estimator(vae, one).figure_.canvas.draw()
    single = VAETransformer(1, max_iter=0).fit(IRIS[["petal width (cm)", "petal length (cm)"]])
    assert ManifoldDisplay.from_estimator(single).values.shape == (1, 41, 2)


def test_pictures_are_drawn_without_a_screen_and_without_torch(tmp_path):
    code = (
        "import sys, numpy as np; from skvae.displays import LatentDisplay\n"
        "display = LatentDisplay(codes=np.random.default_rng(0).normal(size=(50, 2))).plot()\n"
        f"display.figure_.savefig({str(tmp_path / 'map.png')!r}); print('torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "MPLBACKEND"}}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"
    assert (tmp_path / "map.png").stat().st_size > 5000
