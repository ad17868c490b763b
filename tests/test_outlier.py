"""The outlier detector: scikit-learn's contract, the aggregate density, p-values that hold."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import threadpoolctl
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.special import gammaln, logsumexp
from scipy.stats import false_discovery_control, spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from skvae import VAEOutlierDetector, VAETransformer
from skvae._calibration import Calibration
from skvae._detection import RowScore, expected_of_missing
from skvae._inference.aggregate import NU, Aggregate, C
from skvae._inference.residuals import Residuals
from skvae._table.duplicates import kinds_of_rows

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
]
no_numerical_warning = pytest.mark.filterwarnings("error::RuntimeWarning")

SCORES = ["aggregate", "log_likelihood", "elbo", "reconstruction", "kl"]
every_score = pytest.mark.parametrize("score_method", SCORES)


def _vae(**params):
    small = {"hidden_layer_sizes": (8,), "max_iter": 0, "noise": "per_column"}
    return VAETransformer(**small | params)


def _detector(vae=None, **params):
    return VAEOutlierDetector(_vae() if vae is None else vae, **{"random_state": 0} | params)


LOADINGS = np.random.default_rng(0).normal(size=(2, 6))


def _rows(n_rows=200, seed=0, n_columns=6):
    """Inliers: two factors in up to six columns."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, 2)) @ LOADINGS[:, :n_columns]
    return X + 0.5 * rng.normal(size=X.shape) + 3.0


def _far(n_rows=20, seed=1, n_columns=6):
    """Outliers: a cluster far away from the inliers, in a direction of its own."""
    away = 12.0 * np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])[:n_columns]
    return _rows(n_rows, seed, n_columns) + away


def _holes(shape, share=0.2, seed=1):
    return np.random.default_rng(seed).uniform(size=shape) < share


def _with_holes(*args, **kwargs):
    X = _rows(*args, **kwargs)
    return np.where(_holes(X.shape), np.nan, X)


X = _rows()
X.setflags(write=False)
NEW = _rows(60, seed=5)
NEW.setflags(write=False)


@pytest.fixture(scope="module")
def fitted():
    """The linear model of X; not to be changed."""
    return _detector().fit(X)


# -- scikit-learn's own checks --------------------------------------------------------------------


def test_no_check_of_scikit_learn_fails_or_is_skipped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = estimator_checks.check_estimator(VAEOutlierDetector(), on_skip=None, on_fail=None)
    others = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert others == {}
    names = {r["check_name"] for r in results}
    assert {"check_outliers_train", "check_outliers_fit_predict"} <= names


def test_the_check_of_column_names_passes():
    name = "check_dataframe_column_names_consistency"  # not among those of check_estimator
    getattr(estimator_checks, name)("VAEOutlierDetector", VAEOutlierDetector())


# -- scikit-learn's contract of outlier detectors -------------------------------------------------


@every_score
@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_decisions_are_scores_less_the_offset_and_predictions_their_sign(
    score_method, contamination
):
    vae = _vae(n_importance_samples=8)
    detector = _detector(vae, score_method=score_method, contamination=contamination).fit(X)
    rows = np.concatenate([NEW, _far()])
    decision = detector.decision_function(rows)
    assert_array_equal(decision, detector.score_samples(rows) - detector.offset_)
    assert_array_equal(detector.predict(rows), np.where(decision < 0.0, -1, 1))
    assert isinstance(detector.offset_, float)
    assert_array_equal(
        clone(detector).fit_predict(X), detector.predict(X)
    )  # of the rows of fit, by OutlierMixin


@every_score
@pytest.mark.parametrize("contamination", [0.005, 0.1, 0.33, 0.5])
def test_contamination_is_the_fraction_of_the_training_rows_that_is_flagged(
    contamination, score_method
):
    vae = _vae(n_importance_samples=8)
    detector = _detector(vae, score_method=score_method, contamination=contamination)
    assert (detector.fit_predict(X) == -1).sum() == round(contamination * len(X))


@pytest.mark.parametrize("n_rows", [100, 300])  # by models of others, and by the others alone
def test_without_a_contamination_the_threshold_is_tukeys_fence(n_rows):
    detector = _detector().fit(_rows(n_rows))
    scores = detector.calibration_scores_
    lower, upper = np.percentile(scores, [25, 75])
    assert len(scores) == n_rows
    assert detector.offset_ == pytest.approx(lower - 1.5 * (upper - lower), rel=1e-12)


@pytest.mark.parametrize("score_method", ["auto", "aggregate", "log_likelihood", "elbo"])
def test_rows_far_away_are_outliers_and_inliers_are_not(score_method):
    detector = _detector(score_method=score_method).fit(X)
    assert (detector.predict(_far()) == -1).all()
    assert (detector.predict(NEW) == 1).mean() > 0.85


def test_a_row_between_two_clusters_is_odd():
    # In the middle of the prior, where no code is. The ELBO of the linear model cannot tell.
    rng = np.random.default_rng(0)
    line = np.array([1.0, 1.0, -1.0, 1.0])
    side = rng.choice([-5.0, 5.0], size=(200, 1))
    rows = side * line + rng.normal(size=(200, 4))
    between = np.zeros((1, 4))
    assert _detector().fit(rows).predict(between) == -1
    assert _detector(score_method="elbo").fit(rows).predict(between) == 1


def test_it_finds_what_lies_off_a_curve():
    rng = np.random.default_rng(0)

    def curve(n_rows):
        t = rng.uniform(-2, 2, (n_rows, 1))
        return np.hstack([t, t**2, np.sin(2 * t)]) + 0.1 * rng.normal(size=(n_rows, 3))

    detector = VAEOutlierDetector(random_state=0).fit(curve(600))
    assert detector.vae_.noise == "per_column"
    new = curve(200)
    off = new + np.array([0.0, 2.5, 0.0])
    is_off = np.repeat([False, True], 200)
    assert roc_auc_score(is_off, -detector.score_samples(np.concatenate([new, off]))) > 0.95


def test_a_pipeline_ends_in_a_detector():
    pipeline = make_pipeline(StandardScaler(), _detector()).fit(X)
    assert_array_equal(pipeline.predict(_far()), np.full(20, -1))
    decision = pipeline.decision_function(NEW)
    assert_array_equal(decision, pipeline.score_samples(NEW) - pipeline[-1].offset_)


# -- what is refused ------------------------------------------------------------------------------

BAD_PARAMETERS = [
    *[("contamination", value) for value in (0, 0.0, 0.6, -1, "foo", np.nan, np.inf, True, None)],
    *[("support_fraction", value) for value in (0.4, 1.1, "all", True, np.nan)],
    *[("fdr", value) for value in (0.0, -0.1, 1.1, "auto", True, np.nan)],
    *[("score_method", value) for value in ("density", None, 1)],
    *[("vae", value) for value in ("a model", VAETransformer)],
]
EXPECTED = {
    "contamination": "'auto' or a number > 0 and <= 0.5",
    "support_fraction": "'auto' or a number >= 0.5 and <= 1",
    "fdr": "None or a number > 0 and <= 1",
    "score_method": "one of 'auto', 'aggregate', 'log_likelihood', 'elbo', 'reconstruction', 'kl'",
    "vae": "a VAETransformer, a dict of its parameters or None",
}


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_named_with_what_is_expected_and_what_was_given(name, value):
    detector = _detector().set_params(**{name: value})
    before = dict(vars(detector))
    with pytest.raises(ValueError) as caught:
        detector.fit(X)
    message = str(caught.value)
    assert f"The {name!r} parameter of VAEOutlierDetector must be {EXPECTED[name]}." in message
    assert f"Got {value!r} instead." in message
    assert vars(detector) == before


def test_a_bad_parameter_of_the_model_and_a_bad_seed_are_named():
    with pytest.raises(ValueError, match="The 'n_components' parameter of VAETransformer"):
        _detector(_vae(n_components=0)).fit(X)
    with pytest.raises(ValueError, match="random_state must be a seed"):
        _detector(random_state="x").fit(X)


METHODS = ["score_samples", "decision_function", "predict", "p_values", "score_features"]
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_an_unfitted_detector_says_so(method):
    with pytest.raises(NotFittedError):
        getattr(_detector(), method)(X)


@every_method
def test_wrong_columns_are_refused(method, fitted):
    with pytest.raises(ValueError, match="X has 5 features, but VAEOutlierDetector is expecting 6"):
        getattr(fitted, method)(X[:, :5])
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    named = _detector().fit(frame)
    for wrong in (frame[list("bacdef")], frame.rename(columns={"a": "z"})):
        with pytest.raises(ValueError, match="feature names should match"):
            getattr(named, method)(wrong)
    with pytest.raises(ValueError, match="infinity"):
        getattr(fitted, method)(np.full((1, 6), np.inf))


def test_two_rules_for_labels_are_refused():
    message = "Got contamination=0.1 and fdr=0.2: leave one of them at its default"
    with pytest.raises(ValueError, match=message):
        _detector(contamination=0.1, fdr=0.2).fit(X)


FAILURES = {
    "a parameter": ({"contamination": 0.6}, X),
    "the model's parameter": ({"vae": _vae(n_components=0)}, X),
    "a column": ({"vae": _vae(likelihood="poisson")}, X),
    "infinity": ({}, np.where(np.arange(6) == 2, np.inf, X)),
    "no rows": ({}, X[:0]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_fit_leaves_a_fitted_detector_as_it_was(failure):
    params, rows = FAILURES[failure]
    detector = _detector().fit(pandas.DataFrame(X, columns=list("abcdef")))
    frame = pandas.DataFrame(NEW, columns=list("abcdef"))
    expected, p = detector.score_samples(frame), detector.p_values(frame)
    detector.set_params(**params)
    before = dict(vars(detector))
    with pytest.raises(ValueError):
        detector.fit(rows)
    assert vars(detector).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(detector).items())
    assert_array_equal(detector.score_samples(frame), expected)
    assert_array_equal(detector.p_values(frame), p)


@pytest.mark.parametrize("step", ["_check_rule", "_method", "_calibrated"])
def test_an_interrupted_fit_leaves_the_detector_as_it_was(step, monkeypatch):
    detector = _detector().fit(X)
    before, expected = dict(vars(detector)), detector.score_samples(NEW)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(VAEOutlierDetector, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(2.0 * X[:50, :4])
    assert all(value is before[name] for name, value in vars(detector).items())
    monkeypatch.undo()
    assert_array_equal(detector.score_samples(NEW), expected)


# -- odd tables -----------------------------------------------------------------------------------


def _constant_columns():
    rows = _rows()
    rows[:, 1], rows[:, 4] = 0.1, 1e6
    return rows


TABLES = {
    "1 row": X[:1],
    "2 rows": X[:2],
    "3 rows": X[:3],
    "15 rows": X[:15],
    "1 row, 1 column": X[:1, :1],
    "1 column": X[:, :1],
    "constant columns": _constant_columns(),
    "all rows equal": np.tile([1.0, 0.1, -1e6], (40, 1)),
    "duplicated rows": np.repeat(X[:10], 12, axis=0),
    "more columns than rows": np.random.default_rng(0).normal(size=(12, 40)),
    "scales of 1e-8 and 1e8": X * 10.0 ** np.array([-8, 8, 0, -8, 8, 0]),
    "huge offset": X + 1e8,
    "heavy tails": np.random.default_rng(0).standard_cauchy((120, 5)),
    "booleans": X > 3.0,
    "integers": np.random.default_rng(0).poisson(3.0, (80, 5)),
    "an empty column": np.where(np.arange(6) == 2, np.nan, X),
}


@no_numerical_warning
@pytest.mark.parametrize("score_method", ["aggregate", "elbo"])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_finite_scores(name, score_method):
    rows = TABLES[name]
    contamination = 0.5 if score_method == "aggregate" else "auto"
    vae = _vae(n_importance_samples=8)
    detector = _detector(vae, contamination=contamination, score_method=score_method).fit(rows)
    scores = detector.score_samples(rows)
    assert scores.shape == detector.support_.shape == (len(rows),)
    assert np.isfinite(scores).all() and np.isfinite(detector.offset_)
    assert (detector.predict(rows) == -1).mean() <= 0.5
    assert detector.score_features(rows).shape == rows.shape


@pytest.mark.parametrize("n_rows", [1, 2, 15, 200])
def test_the_defaults_take_few_rows(n_rows):
    detector = VAEOutlierDetector(random_state=0).fit(X[:n_rows])
    assert np.isfinite(detector.score_samples(NEW)).all()
    assert detector.score_samples(_far()).max() < detector.score_samples(X[:n_rows]).min()


@pytest.mark.parametrize("score_method", ["aggregate", "log_likelihood", "elbo", "reconstruction"])
def test_a_column_that_is_constant_in_training_makes_a_row_odder_where_it_differs(score_method):
    rows = _constant_columns()
    detector = _detector(score_method=score_method).fit(rows)
    for column in (1, 4):
        differs = rows[:10].copy()
        differs[:, column] += 3.0
        change = detector.score_samples(differs) - detector.score_samples(rows[:10])
        assert (change < -1.0).all()


@pytest.mark.parametrize("support_fraction", ["auto", 0.9, 1.0])
@pytest.mark.parametrize("kind", ["category", "0 and 1"])
def test_a_level_that_one_row_alone_has_does_not_make_it_more_normal(kind, support_fraction):
    # The robust fit leaves the row out, so that its level is unknown to the model.
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(200, 2)), columns=["x", "y"])
    levels = rng.integers(0, 2, 200)
    if kind == "category":
        frame["level"] = pandas.Series(np.where(levels, "a", "b"), dtype=object)
    else:
        frame["level"] = levels.astype(float)
    usual = frame.loc[[7]]
    frame.loc[7, "level"] = "c" if kind == "category" else 1e6
    detector = _detector(support_fraction=support_fraction).fit(frame)
    assert detector.score_samples(frame.loc[[7]]) < detector.score_samples(usual)


def _calls(n_rows=2000):
    """Two tied numbers, a switch that is 1 in a tenth of the rows, and two levels."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n_rows, 2))
    return pandas.DataFrame(
        {
            "a": z[:, 0],
            "b": z[:, 0] + 0.3 * z[:, 1],
            "failed": (rng.random(n_rows) < 0.1).astype(int),
            "proto": rng.choice(["tcp", "udp"], n_rows),
        }
    )


def test_rows_of_a_rare_level_are_not_all_left_out_of_the_fit():
    # Trimming a tenth of the rows left out each one that failed.
    calls = _calls()
    detector = VAEOutlierDetector(support_fraction=0.9, random_state=0).fit(calls)
    assert detector.support_[calls["failed"] == 1].mean() > 0.6
    assert detector.support_[calls["failed"] == 0].mean() > 0.6


def test_what_was_never_seen_is_among_the_oddest():
    calls = _calls()
    new = pandas.concat([calls.iloc[[5]]] * 2)
    new["proto"], new["failed"] = ["icmp", "tcp"], [0, 500]
    assert VAEOutlierDetector(random_state=0).fit(calls).p_values(new).max() < 0.05


def test_levels_of_rows_of_fit_are_no_error_where_unknown_levels_are():
    frame = pandas.DataFrame({"x": X[:, 0], "y": X[:, 1], "level": ["a", "b"] * 100})
    frame.loc[7, "level"] = "only here"
    for seed in range(4):
        _detector(_vae(handle_unknown="error"), random_state=seed).fit(frame)


@pytest.mark.parametrize("wild", [1e3, 1e6, 1e9, 1e12, 1e30])
def test_a_wild_cell_in_training_spoils_no_other_row(wild):
    rows = X.copy()
    rows[7, 2] = wild
    params = {}
    detector = _detector(**params).fit(rows)
    assert not detector.support_[7] and detector.predict(rows[[7]]) == -1
    together = detector.score_samples(NEW)
    alone = np.concatenate([detector.score_samples(NEW[[row]]) for row in range(len(NEW))])
    assert_allclose(alone, together, rtol=1e-9)
    # One kernel of 200 is elsewhere, and another typical row takes the place of this one.
    assert_allclose(together, _detector(**params).fit(X).score_samples(NEW), atol=1.5)


# -- the aggregate density ------------------------------------------------------------------------


def _linear_model(detector):
    """Mean, loadings and variance of the features that the encoder begins at, in their units."""
    weights = detector.vae_.model_.weights
    unit = weights["feature_scale"]
    loadings = weights["encoder.loadings"] / unit[:, None]
    return weights["encoder.mean"] / unit, loadings, weights["encoder.variance"] / unit**2


def _metric(loadings, variance):
    """I + C^2 R' Psi^-1 R, where R x are the residuals of x (O, O)."""
    precision = np.eye(loadings.shape[1]) + (loadings.T / variance) @ loadings
    encoder = np.linalg.solve(precision, loadings.T / variance)
    R = np.eye(len(variance)) - loadings @ encoder
    return np.eye(len(variance)) + C**2 * R.T @ (R / variance[:, None])


def _log_t(detector, x, seen):
    """Log t density of each row x (N, P) at each kernel (N, M), and nothing clever."""
    mean, loadings, variance = _linear_model(detector)
    kernels = Aggregate(*detector._score.kernels)
    found = []
    for row, own in zip(x - mean, seen, strict=True):
        A = _metric(loadings[own], variance[own])
        away = row[own] - kernels.center[:, own]
        squared = np.einsum("mp,pq,mq->m", away, A, away) / kernels.width**2
        d = own.sum()
        log_t = gammaln((NU + d) / 2) - gammaln(NU / 2) - 0.5 * d * np.log(NU * np.pi)
        log_t = log_t + 0.5 * np.linalg.slogdet(A)[1] - d * np.log(kernels.width)
        found.append(log_t - 0.5 * (NU + d) * np.log1p(squared / NU))
    return np.array(found) + kernels.log_weight


def _by_hand(detector, rows):
    """The scores of new rows of numbers, nan where missing, from the kernels of the detector."""
    columns, seen = detector.vae_.model_.columns, ~np.isnan(rows)
    unit = detector.vae_.model_.weights["feature_scale"]
    x = (rows - columns.shift) / columns.scale / unit
    log_jacobian = np.where(seen, np.log(columns.scale * unit), 0.0).sum(1)
    of_missing = ~seen @ detector._score.expected
    return logsumexp(_log_t(detector, x, seen), axis=1) - log_jacobian + of_missing


def test_residuals_of_rows_with_holes_have_their_digits_where_some_noise_is_tiny():
    # ||r||^2 = ||y||^2 - ||B^T y||^2 for the residuals r of ridge regression on what is observed.
    rng = np.random.default_rng(0)
    noise = np.where(np.arange(30) < 6, 1e-3, 0.5)
    V = rng.normal(size=(30, 12)) / noise[:, None]
    model = Residuals(*map(torch.from_numpy, (0 * noise, 0 * noise + 1, noise, V, np.arange(30))))
    seen = (rng.random((20, 30)) < 0.8).astype(float)
    y = seen * rng.normal(size=(20, 30)) / noise
    explained = np.einsum("np,npk->nk", y, model.directions(torch.from_numpy(seen)))
    augmented = np.concatenate([seen[:, :, None] * V, np.tile(np.eye(12), (20, 1, 1))], 1)
    for row, design, got in zip(y, augmented, explained, strict=True):
        z = np.linalg.lstsq(design, np.append(row, np.zeros(12)), rcond=None)[0]
        assert_allclose(row @ row - got @ got, ((row - design[:30] @ z) ** 2).sum(), rtol=1e-8)


def test_kernels_are_t_densities_at_the_rows_as_wide_and_heavy_as_the_docstring_says():
    # By public means alone, but for the metric.
    detector = _detector(_vae(n_components=2)).fit(X)
    mean, loadings, variance = _linear_model(detector)
    x = (X - X.mean(0)) / X.std(0)
    root = np.linalg.cholesky(_metric(loadings, variance))
    distance = np.linalg.norm((x[:, None] - x) @ root, axis=-1) / np.sqrt(6.0)
    np.fill_diagonal(distance, np.inf)
    distance.sort(axis=1)
    near = np.sqrt(distance[:, :5].mean(1) ** 2 + 1e-3)
    quarter = (distance[:, :49].sum(1) + 0.75 * distance[:, 49]) / 49.75  # of the 199 others
    far = np.sqrt(quarter**2 + 1e-3)
    kernels = Aggregate(*detector._score.kernels)
    middle, order = np.sort(near)[99], kinds_of_rows(X)[0]  # their order is random
    assert_allclose(kernels.width, 0.5 * np.sqrt(near * middle)[order], rtol=1e-9)
    log_weight = 6.0 * (0.25 * np.log(near) - 0.5 * np.log(far))
    expected = (log_weight - logsumexp(log_weight))[order]
    assert_allclose(kernels.log_weight, expected, rtol=1e-7, atol=1e-9)
    assert_allclose(kernels.center, (x - mean)[order], atol=1e-9)


@pytest.mark.parametrize("scaling", ["columns", "common", None])
@pytest.mark.parametrize("max_iter", [0, 3])
def test_the_score_is_the_density_of_the_detectors_kernels_in_original_units(max_iter, scaling):
    vae = _vae(max_iter=max_iter, early_stopping=False, scaling=scaling)
    detector = _detector(vae).fit(X * [1.0, 2.0, 3.0, 0.1, 1.0, 50.0])
    rows = np.concatenate([NEW, _far()]) * [1.0, 2.0, 3.0, 0.1, 1.0, 50.0]
    assert_allclose(detector.score_samples(rows), _by_hand(detector, rows), rtol=1e-8)


def test_a_row_with_missing_cells_gets_the_density_of_the_others():
    detector = _detector().fit(_with_holes())
    rows = _with_holes(seed=5)
    assert_allclose(detector.score_samples(rows), _by_hand(detector, rows), rtol=1e-8)


@pytest.mark.parametrize("seen", [(0,), (1,), (0, 2)])
def test_the_density_of_what_is_observed_of_a_row_integrates_to_one(seen):
    detector = _detector().fit(_rows(80, n_columns=3))
    grid = np.linspace(-60.0, 66.0, 64**2 if len(seen) == 1 else 500)
    cells = np.stack(np.meshgrid(*[grid] * len(seen)), axis=-1).reshape(-1, len(seen))
    rows = np.full((len(cells), 3), np.nan)
    rows[:, seen] = cells
    of_missing = np.delete(detector._score.expected, seen).sum()
    density = np.exp(detector.score_samples(rows) - of_missing)
    total = density.sum() * (grid[1] - grid[0]) ** len(seen)
    assert_allclose(total, 1.0, atol=2e-3)


@pytest.mark.parametrize("score_method", ["aggregate", "log_likelihood", "elbo"])
def test_a_row_of_which_nothing_is_observed_is_neither_odd_nor_typical(score_method):
    detector = _detector(score_method=score_method).fit(_with_holes(1000))
    p = detector.p_values(np.full((2, 6), np.nan))
    assert (p > 0.1).all()


@pytest.mark.parametrize("score_method", ["aggregate", "log_likelihood", "elbo", "reconstruction"])
def test_another_unit_of_a_column_with_holes_changes_no_label(score_method):
    rows = _rows(400)
    rows[np.random.default_rng(0).random(400) < 0.2, 3] = np.nan
    flags = []
    for unit in (2.0**-20, 2.0**20):  # exact in floating point
        in_unit = rows * np.array([1.0, 1.0, 1.0, unit, 1.0, 1.0])
        detector = _detector(score_method=score_method, contamination=0.1).fit(in_unit)
        flags.append(detector.predict(in_unit) == -1)
    assert_array_equal(*flags)
    has_hole = np.isnan(rows[:, 3])
    assert 0.0 < flags[0][has_hole].mean() < 0.25 and 0.0 < flags[0][~has_hole].mean() < 0.2


@pytest.mark.parametrize(("n_rows", "n_columns"), [(60, 3), (200, 5), (600, 6)])
def test_contamination_is_the_fraction_of_new_rows_that_is_flagged(n_rows, n_columns):
    # Rows of fit had a kernel of their own, and 24% of new rows of the same kind were flagged.
    shares = []
    for seed in range(5):
        detector = VAEOutlierDetector(contamination=0.05, random_state=0)
        detector.fit(_rows(n_rows, seed, n_columns))
        shares.append((detector.predict(_rows(2000, 100 + seed, n_columns)) == -1).mean())
    assert 0.03 < np.mean(shares) < 0.07 and max(shares) < 0.13


def test_what_is_expected_of_a_missing_cell_is_what_others_say_of_it_in_the_mean():
    # The row's own kernel counts in neither of the two densities.
    holes = _with_holes(150, seed=3)
    detector = _detector().fit(holes)
    columns, kernels = detector.vae_.model_.columns, Aggregate(*detector._score.kernels)
    unit = detector.vae_.model_.weights["feature_scale"]
    x, seen = (holes - columns.shift) / columns.scale / unit, ~np.isnan(holes)
    place = np.argsort(kinds_of_rows(holes)[0])
    for column in range(6):
        rows = np.flatnonzero(seen[:, column])
        without = seen & (np.arange(6) != column)
        both = [_log_t(detector, x[rows], s[rows]) for s in (seen, without)]
        for log_t in both:
            log_t[np.arange(len(rows)), place[rows]] = -np.inf
        lost = np.subtract(*(logsumexp(log_t, axis=1) for log_t in both))
        expected = lost.mean() - np.log(columns.scale[column] * unit[column])
        assert detector._score.expected[column] == pytest.approx(expected, rel=1e-7)
    assert kernels.center.shape == (150, 6)


@pytest.mark.parametrize("score_method", ["aggregate", "elbo"])
def test_rows_with_holes_are_flagged_about_as_often_as_complete_ones(score_method):
    detector = _detector(score_method=score_method, contamination=0.1).fit(_with_holes(1000))
    new, flags = _rows(4000, seed=7), []
    for rows in (new, np.where(_holes(new.shape), np.nan, new)):
        flags.append((detector.predict(rows) == -1).mean())
    assert all(0.05 < flag < 0.16 for flag in flags)


def test_a_row_that_has_a_kernel_is_scored_by_the_others():
    repeated = np.concatenate([X, X[:3]])  # copies of a row are that row
    detector = _detector().fit(repeated)
    assert detector._score.known is None  # there are enough rows for one model
    nearly = X[:9] * (1.0 + 1e-12)  # what is read from a file is about what was written
    scores, also = (detector.score_samples(rows) for rows in (X[:9], nearly))
    columns, kernels = detector.vae_.model_.columns, Aggregate(*detector._score.kernels)
    x = (X[:9] - columns.shift) / columns.scale
    log_t = _log_t(detector, x, np.ones(x.shape, dtype=bool))
    place = np.argsort(kinds_of_rows(repeated)[0])[:9]
    log_t[np.arange(9), place] = -np.inf
    left = np.log1p(-np.exp(kernels.log_weight[place]))
    expected = logsumexp(log_t, axis=1) - left - np.log(columns.scale).sum()
    assert_allclose(scores, expected, rtol=1e-8)
    assert_allclose(also, scores, rtol=1e-8)


@pytest.mark.parametrize("n_rows", [60, 300])
def test_scores_of_rows_of_fit_are_those_that_labels_and_p_values_refer_to(n_rows):
    rows = _rows(n_rows)
    detector = _detector().fit(rows)
    assert (detector._score.known is not None) == (n_rows < 20 * 6)
    assert_allclose(np.sort(detector.score_samples(rows)), detector.calibration_scores_, rtol=1e-9)


def test_a_row_of_few_is_scored_by_a_model_that_was_fitted_without_it():
    rows = _rows(60)
    detector = _detector().fit(rows)
    order = kinds_of_rows(rows)[0]
    own = order[1::5]
    others = np.setdiff1d(np.arange(60), own)
    vae = _vae(random_state=detector.vae_.random_state).fit(rows[others])
    score = RowScore("aggregate").with_kernels(vae, rows[order], np.ones(60))
    assert_allclose(detector.score_samples(rows[own]), score.of(vae, rows[own]), rtol=1e-7)


DISCRETE = {
    "integers": lambda rng, n: rng.integers(0, 8, (n, 3)).astype(float),
    "booleans": lambda rng, n: rng.random((n, 9)) < 0.4,
    "levels": lambda rng, n: pandas.DataFrame(rng.integers(0, 5, (n, 4))).astype("category"),
    "answers": lambda rng, n: np.clip(
        np.round(rng.normal(size=(n, 1)) + rng.normal(size=(n, 4))), -2, 2
    ),
}


@pytest.mark.parametrize("kind", DISCRETE)
def test_p_values_hold_where_new_rows_equal_rows_of_fit_by_chance(kind):
    # A new row that equals rows of fit was scored as if it were one of them: 26% were p <= 0.1.
    rng, shares = np.random.default_rng(0), []
    for _ in range(4):
        detector = VAEOutlierDetector(random_state=0).fit(DISCRETE[kind](rng, 500))
        p = detector.p_values(DISCRETE[kind](rng, 1500))
        shares.append([(p <= alpha).mean() for alpha in (0.05, 0.1, 0.2)])
    assert (np.mean(shares, axis=0) < np.array([0.05, 0.1, 0.2]) * 1.3).all()


def test_of_values_that_came_more_or_less_often_the_rarer_is_odder_and_others_are_the_oddest():
    rows = np.array([[0.0]] * 15 + [[1.0]] * 6)
    scores = VAEOutlierDetector(random_state=0).fit(rows).score_samples([[0.0], [1.0], [9.0]])
    assert (np.diff(scores) < 0.0).all()


@pytest.mark.parametrize("copies", [1, 2, 6])
def test_a_row_that_was_entered_several_times_does_not_hide_itself(copies):
    odd = np.full((1, 6), 15.0)
    detector = VAEOutlierDetector(random_state=0).fit(
        np.concatenate([X, np.repeat(odd, copies, 0)])
    )
    assert detector.predict(odd) == -1 and detector.p_values(odd) < 0.05


@pytest.mark.parametrize("weight", [1.0 / 200, 0.01, 1.0, 1.5, 2.0, 5.0])
def test_a_common_factor_of_the_weights_changes_neither_labels_nor_p_values(weight):
    plain = _detector(contamination=0.1).fit(X)
    weighted = _detector(contamination=0.1).fit(X, sample_weight=np.full(200, weight))
    assert_array_equal(weighted.predict(NEW), plain.predict(NEW))
    assert_allclose(weighted.p_values(NEW), plain.p_values(NEW), rtol=0.02)


@pytest.mark.parametrize(("n_rows", "digits"), [(15, 9), (150, 0)])  # few rows; integers
def test_every_row_twice_changes_no_p_value(n_rows, digits):
    rows, new = (np.round(t, digits) for t in (_rows(n_rows, n_columns=4), _rows(300, 5, 4)))
    plain = _detector().fit(rows).p_values(new)
    for twice in (
        _detector().fit(rows, sample_weight=np.full(n_rows, 2.0)),
        _detector().fit(np.repeat(rows, 2, axis=0)),
    ):
        assert_allclose(twice.p_values(new), plain, atol=1e-9)


def test_p_values_of_trained_scores_hold_though_trained_models_differ_in_level():
    # By chance, models of folds differ from that of all rows by nats: 75% were p <= 0.2, or 2%.
    rng, shares = np.random.default_rng(0), []
    loadings = rng.normal(size=(5, 20))
    for _ in range(3):
        rows, new = (
            rng.normal(size=(n, 5)) @ loadings + 0.5 * rng.normal(size=(n, 20)) for n in (640, 500)
        )  # 512 of 640 are enough to hold out a part, and not to train in folds again
        detector = VAEOutlierDetector(score_method="reconstruction", random_state=0).fit(rows)
        shares.append((detector.p_values(new) <= 0.2).mean())
    assert min(shares) > 0.1 and max(shares) < 0.3


@pytest.mark.parametrize("n_rows", [60, 300])
@pytest.mark.parametrize("holes", [False, True])
def test_neither_the_order_of_the_rows_of_fit_nor_units_change_a_score(n_rows, holes):
    rows = _with_holes(n_rows) if holes else _rows(n_rows)
    unit = 2.0 ** np.array([3, -5, 0, 9, 1, 2])  # exact in floating point
    first = _detector().fit(rows)
    again = _detector().fit(rows[::-1] * unit)
    assert_allclose(again.p_values(NEW * unit), first.p_values(NEW), atol=1e-9)
    expected = first.score_samples(NEW) - np.log(unit).sum()
    assert_allclose(again.score_samples(NEW * unit), expected, rtol=1e-6)


@pytest.mark.parametrize("support_fraction", ["auto", 0.7])
@pytest.mark.parametrize("holes", [False, True])
def test_weights_are_copies_with_holes_and_with_a_part_of_the_rows(holes, support_fraction):
    rows = _with_holes(300) if holes else _rows(300)
    weight = np.random.default_rng(0).integers(1, 4, 300)
    params = {"support_fraction": support_fraction}
    weighted = _detector(**params).fit(rows, sample_weight=weight)
    repeated = _detector(**params).fit(np.repeat(rows, weight, axis=0))
    assert_allclose(weighted.score_samples(NEW), repeated.score_samples(NEW), rtol=1e-6)
    assert_allclose(weighted.p_values(NEW), repeated.p_values(NEW), atol=1e-9)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"fdr": "a"}, "The 'fdr' parameter"),
        ({"fdr": 5}, "The 'fdr' parameter"),
        ({"contamination": -1}, "The 'contamination' parameter"),
        ({"fdr": 0.1, "contamination": 0.3}, "leave one of them at its default"),
    ],
)
def test_parameters_that_are_set_after_the_fit_are_checked_when_they_are_used(later, message):
    detector = _detector().fit(X)
    detector.set_params(**later)
    for method in ("predict", "update_calibration"):
        with pytest.raises(ValueError, match=message):
            getattr(detector, method)(NEW)


def test_sparse_rows_with_holes_have_scores_of_dense_ones():
    rows = np.where(_holes((200, 6), 0.3, seed=2), 0.0, _with_holes())
    detector = _detector().fit(csr_array(rows))
    assert_allclose(detector.score_samples(csr_array(NEW)), detector.score_samples(NEW))
    assert_allclose(detector.score_samples(csr_array(rows)), detector.score_samples(rows))


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_the_density_of_one_column_integrates_to_one(likelihood):
    rows = np.exp(0.5 * _rows(n_columns=1))
    detector = _detector(_vae(likelihood=likelihood), score_method="aggregate").fit(rows)
    grid = np.linspace(-400.0, 600.0, 50_001)
    density = np.exp(detector.score_samples(grid[:, None]))
    assert_allclose(np.trapezoid(density, grid), 1.0, atol=1e-3)


@pytest.mark.parametrize("max_iter", [0, 3])
def test_the_density_of_two_columns_integrates_to_one(max_iter):
    vae = _vae(max_iter=max_iter, early_stopping=False)
    detector = _detector(vae).fit(_rows(80, n_columns=2))
    grid = 3.0 + 63.0 * np.sinh(np.linspace(-4.0, 4.0, 501)) / np.sinh(4.0)  # finest in the middle
    cells = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    density = np.exp(detector.score_samples(cells)).reshape(len(grid), len(grid))
    assert_allclose(np.trapezoid(np.trapezoid(density, grid), grid), 1.0, atol=2e-3)


@every_score
def test_another_unit_changes_scores_by_its_jacobian_alone(score_method, fitted):
    unit = np.array([1e-8, 1.0, 1e3, 1e8, 0.3, 1.0])
    detector = _detector(score_method=score_method)
    before = detector.fit(X).score_samples(NEW)
    after = detector.fit(X * unit + 5.0 * unit).score_samples(NEW * unit + 5.0 * unit)
    jacobian = 0.0 if score_method == "kl" else np.log(unit).sum()
    assert_allclose(after, before - jacobian, rtol=1e-7, atol=1e-7)


def test_many_rows_share_a_bounded_number_of_kernels():
    from skvae._inference.aggregate import MAX_KERNELS, MAX_NUMBERS, n_kernels

    assert n_kernels(100, 10) == 100
    assert n_kernels(10**6, 10) == MAX_KERNELS
    assert n_kernels(10**6, 10**5) * 10**5 <= MAX_NUMBERS
    assert n_kernels(10, 10**9) == 1
    detector = _detector().fit(_rows(MAX_KERNELS + 100))
    assert len(detector._score.kernels[0]) == MAX_KERNELS


def test_the_wildest_rows_are_left_out_and_others_weigh_less_the_further_they_are():
    rows = np.concatenate([_rows(200), 1e4 * _rows(3, seed=3), _rows(10, seed=4) + 12.0])
    detector = _detector().fit(rows)
    assert not detector.support_[200:203].any()
    assert detector.support_[203:].all() and detector.support_[:200].all()
    weight = np.exp(Aggregate(*detector._score.kernels).log_weight)
    of_far = [row >= 203 for row in kinds_of_rows(rows)[0] if not 200 <= row < 203]
    assert weight.sum() == pytest.approx(1.0)
    assert weight[of_far].mean() < 0.2 * weight[np.logical_not(of_far)].mean()
    everyone = _detector(support_fraction=1.0).fit(rows)
    assert everyone.support_.all()


def test_a_chunk_is_as_large_as_the_distances_to_the_kernels_allow(monkeypatch):
    # The largest array is rows by kernels, however many columns there are: with 784 and 2000
    # kernels, row by row, half a thousand rows took 17 seconds.
    def tell(vae, x, observed, **others):
        sizes.append(len(x))
        return density(vae, x, observed, **others)

    from skvae._inference import aggregate

    sizes, density = [], aggregate.aggregate_log_density
    rows = np.random.default_rng(0).normal(size=(300, 200))
    detector = _detector(_vae(noise="shared")).fit(rows)
    monkeypatch.setattr(aggregate, "aggregate_log_density", tell)
    detector.score_samples(rows)
    assert sizes == [300]


# -- what comes in --------------------------------------------------------------------------------


def _mixed():
    """Numbers, booleans and categories of two factors; a tenth of the cells is missing."""
    rows = _rows(80)
    frame = pandas.DataFrame(rows[:, :3], columns=["x", "y", "z"])
    frame["switch"] = pandas.Series(rows[:, 3] > 3.0, dtype="boolean")
    frame["level"] = pandas.cut(rows[:, 4], 3, labels=["low", "middling", "high"], ordered=False)
    frame["text"] = pandas.Series(np.where(rows[:, 5] > 3.0, "a", "b"), dtype=object)
    return frame.mask(_holes(frame.shape, 0.1))


def _counts():
    rate = np.exp(np.random.default_rng(0).normal(-1.0, 1.0, (80, 1)))
    return np.random.default_rng(1).poisson(rate * np.ones(8)).astype(float)


CONTAINERS = {
    "pandas, mixed": _mixed,
    "polars, mixed": lambda: polars.from_pandas(_mixed()),
    "objects": lambda: _mixed().astype(object).to_numpy(),
    "sparse": lambda: csr_array(_counts()),
    "float32": lambda: _with_holes(80).astype(np.float32),
    "list": lambda: X[:80].tolist(),
}


@every_score
@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_score_takes_every_table_and_is_the_models_where_it_has_it(kind, score_method):
    rows = CONTAINERS[kind]()
    detector = _detector(_vae(n_importance_samples=8), score_method=score_method).fit(rows)
    scores = detector.score_samples(rows)
    assert scores.shape == (80,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    assert detector.score_method_ == score_method
    if score_method != "aggregate":
        own = detector.vae_.score_samples(rows, method=score_method)
        if score_method != "kl" and hasattr(rows, "shape"):  # lists have no holes here
            table = detector.vae_.model_.read(rows)
            own = own + expected_of_missing(table, detector._score.expected)
        if detector._score.known is None:
            assert_allclose(scores, own, rtol=1e-12)
        else:  # of rows of fit by models that were fitted without them
            assert spearmanr(scores, own).statistic > 0.5
    assert set(detector.predict(rows)) <= {-1, 1}
    assert detector.p_values(rows).shape == (80,)


@pytest.fixture(scope="module", params=CONTAINERS)
def taken(request):
    """Kind of a table, a copy of it, the table itself, and a detector that was fitted to it."""
    rows = CONTAINERS[request.param]()
    return request.param, copy.deepcopy(rows), rows, _detector().fit(rows)


def test_every_table_is_scored_by_its_density_among_the_rows_of_fit(taken):
    assert taken[-1].score_method_ == "aggregate"


def test_the_container_makes_no_difference():
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    expected = _detector().fit(X).score_samples(NEW)
    new = pandas.DataFrame(NEW, columns=list("abcdef"))
    for make in (pandas.DataFrame, polars.from_pandas):
        found = _detector().fit(make(frame)).score_samples(make(new))
        assert_allclose(found, expected, rtol=1e-9)
    assert_array_equal(_detector().fit(X.tolist()).score_samples(NEW.tolist()), expected)
    single = X.astype(np.float32)
    assert_allclose(
        _detector().fit(single).score_samples(single),
        _detector().fit(single.astype(float)).score_samples(single.astype(float)),
        rtol=1e-9,
    )


def test_the_users_table_is_not_changed(taken):
    kind, before, rows, detector = taken
    for method in METHODS:
        getattr(detector, method)(rows)
    assert type(rows) is type(before)
    if kind == "sparse":  # SciPy notes what it was asked, such as whether rows are sorted
        rows, before = (
            [p.tobytes() for p in (m.data, m.indices, m.indptr)] for m in (rows, before)
        )
    if hasattr(rows, "attrs"):  # pandas notes what it was asked, too
        pandas.testing.assert_frame_equal(rows, before)
    else:
        assert pickle.dumps(rows) == pickle.dumps(before)


def test_the_given_model_stays_as_it_was_and_gets_the_seed_unless_it_has_its_own():
    vae = _vae()
    before = dict(vars(vae))
    detector = _detector(vae).fit(X)
    assert vars(vae) == before and detector.vae is vae and detector.vae_ is not vae
    assert detector.vae_.random_state is not None
    assert _detector(_vae(random_state=5)).fit(X).vae_.random_state == 5


# -- outliers among the rows of fit ---------------------------------------------------------------


@pytest.mark.parametrize("support_fraction", ["auto", 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_outliers_does_not_hide_them(seed, support_fraction):
    clean, planted = _rows(360, seed=10 + seed), _far(40, seed=20 + seed)
    contaminated = np.concatenate([clean, planted])
    is_planted = np.arange(400) >= 360
    params = {"support_fraction": support_fraction, "random_state": seed}
    detector = VAEOutlierDetector(**params).fit(contaminated)
    reference = VAEOutlierDetector(support_fraction=1.0, random_state=seed).fit(clean)
    assert roc_auc_score(is_planted, -detector.score_samples(contaminated)) > 0.95
    new = _rows(300, seed=30 + seed)
    found, expected = detector.score_samples(new), reference.score_samples(new)
    assert spearmanr(found, expected).statistic > 0.85
    assert (detector.predict(new) == 1).mean() > 0.9
    if support_fraction == 0.9:
        assert detector.support_[is_planted].mean() < 0.1
        assert (detector.predict(planted) == -1).mean() > 0.95


@pytest.mark.parametrize("support_fraction", [0.5, 0.75, 0.9, 1.0])
def test_the_support_is_that_fraction_of_the_rows(support_fraction):
    detector = _detector(support_fraction=support_fraction).fit(X)
    assert detector.support_.dtype == bool and len(detector.support_) == len(X)
    assert detector.support_.sum() == np.ceil(support_fraction * len(X))
    assert len(detector.calibration_scores_) == len(X)
    assert len(detector._score.kernels[0]) == detector.support_.sum()


# -- weights, and what comes later ----------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [60, 200])
def test_a_whole_weight_is_a_repeated_row_and_one_of_zero_is_not_there(n_rows):
    rows = _rows(n_rows)
    weight = np.random.default_rng(0).integers(0, 4, n_rows)
    weighted = _detector(contamination=0.1).fit(rows, sample_weight=weight)
    repeated = _detector(contamination=0.1).fit(np.repeat(rows, weight, axis=0))
    assert_allclose(weighted.score_samples(NEW), repeated.score_samples(NEW), rtol=1e-6)
    assert weighted.offset_ == pytest.approx(repeated.offset_, rel=1e-6)
    assert_allclose(weighted.p_values(NEW), repeated.p_values(NEW), rtol=1e-6)
    assert_array_equal(weighted.support_, weight > 0)


def test_a_row_of_next_to_no_weight_is_not_there():
    weight = np.ones(200)
    weight[[3, 5]] = 0.0, 1e-40
    detector = _detector().fit(X, sample_weight=weight)
    assert_array_equal(np.flatnonzero(~detector.support_), [3, 5])


def test_new_rows_can_say_what_is_usual():
    detector = _detector(contamination=0.1).fit(X)
    drifted = _rows(400, seed=8) + 1.0
    before = (detector.predict(_rows(400, seed=9) + 1.0) == -1).mean()
    scores = detector.score_samples(NEW)
    assert detector.update_calibration(drifted) is detector
    after = (detector.predict(_rows(400, seed=9) + 1.0) == -1).mean()
    assert before > 0.2 and 0.05 < after < 0.15
    assert_array_equal(detector.score_samples(NEW), scores)
    assert_array_equal(detector.calibration_scores_, np.sort(detector.score_samples(drifted)))
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        detector.update_calibration(X[:0])


# -- p-values -------------------------------------------------------------------------------------


def test_p_values_are_the_share_of_rows_of_fit_that_score_no_higher(fitted):
    rows = np.concatenate([NEW, _far()])
    usual, scores = fitted.calibration_scores_, fitted.score_samples(rows)
    assert_array_equal(usual, np.sort(usual))
    no_higher = (usual[None, :] <= scores[:, None]).sum(1)
    assert_array_equal(fitted.p_values(rows), (1 + no_higher) / (1 + len(usual)))
    assert_array_equal(fitted.p_values(_far()), np.full(20, 1 / 201))


def test_the_smallest_p_value_of_few_rows_is_told():
    message = "The smallest possible p-value is 0.071, because fit had only 13 rows"
    with pytest.warns(UserWarning, match=message):
        p = _detector().fit(X[:13]).p_values(_far())
    assert_allclose(p, 1.0 / 14.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The smallest possible p-value")
        _detector().fit(X[:20]).p_values(_far())


@pytest.mark.parametrize(("n_rows", "n_columns", "n_fits"), [(60, 6, 40), (150, 4, 40)])
def test_p_values_of_new_rows_are_uniform_over_many_fits(n_rows, n_columns, n_fits):
    p = []
    for seed in range(n_fits):
        rows = _rows(n_rows + 200, seed=1000 + seed, n_columns=n_columns)
        p.append(_detector().fit(rows[:n_rows]).p_values(rows[n_rows:]))
    share = [(np.array(p) <= alpha).mean(1) for alpha in (0.05, 0.1, 0.2, 0.5)]
    for alpha, own in zip((0.05, 0.1, 0.2, 0.5), share, strict=True):
        # Rows of fit differ by fit, new rows within it; 4 standard errors.
        variance = alpha * (1 - alpha) * (1 / n_rows + 1 / 200) / n_fits
        assert own.mean() - alpha < 4.0 * np.sqrt(variance), alpha
        assert own.mean() > 0.5 * alpha  # and they are not merely timid


def test_spectra_of_few_rows_have_labels_that_hold():
    # 60 rows of 120 columns, where any model knows its own rows from others.
    rng = np.random.default_rng(0)
    peaks = np.exp(-0.5 * ((np.linspace(0, 1, 120) - rng.uniform(size=(5, 1))) / 0.05) ** 2)

    def spectra(n_rows):
        return rng.gamma(4.0, 0.25, (n_rows, 5)) @ peaks + 0.02 * rng.normal(size=(n_rows, 120))

    detector = VAEOutlierDetector(contamination=0.05, random_state=0)
    shares = [(detector.fit(spectra(60)).predict(spectra(300)) == -1).mean() for _ in range(3)]
    assert 0.02 < np.mean(shares) < 0.09 and max(shares) < 0.14


TIES = {
    "duplicated rows": lambda rng: rng.permutation(np.repeat(rng.normal(size=(5, 4)), 60, axis=0)),
    "three values": lambda rng: rng.integers(0, 3, (300, 3)).astype(float),
    "0 and 1": lambda rng: rng.integers(0, 2, (300, 3)).astype(float),
}


@every_score
@pytest.mark.parametrize("kind", TIES)
def test_rows_that_tie_with_rows_of_fit_have_the_same_p_value_alone_and_together(
    kind, score_method
):
    # Rounding must not decide whether a row scores lower than its equal among the rows of fit.
    rows = TIES[kind](np.random.default_rng(0))
    vae = _vae(n_importance_samples=8)
    detector = _detector(vae, score_method=score_method).fit(rows)
    distinct = np.unique(rows, axis=0)
    alone = np.concatenate([detector.p_values(row[None]) for row in distinct])
    together = detector.p_values(np.repeat(distinct, 40, axis=0))[::40]
    assert_array_equal(alone, together)


def test_rows_that_all_are_the_same_have_p_value_one():
    detector = _detector().fit(np.tile(X[:1], (100, 1)))
    for n_new in (1, 3, 500):
        assert_array_equal(detector.p_values(np.tile(X[:1], (n_new, 1))), np.ones(n_new))


def test_the_false_discovery_rate_is_kept_on_average():
    level, proportions, power = 0.2, [], []
    for seed in range(30):
        rows = _rows(200 + 80, seed=seed, n_columns=4)
        outliers = _rows(20, seed=500 + seed, n_columns=4)
        outliers += 4.0 * np.random.default_rng(seed).choice([-1.0, 1.0], outliers.shape)
        detector = _detector(fdr=level).fit(rows[:200])
        given = np.concatenate([rows[200:], outliers])
        found = detector.predict(given) == -1
        assert_array_equal(found, false_discovery_control(detector.p_values(given)) <= level)
        proportions.append(found[:80].sum() / max(found.sum(), 1))
        power.append(found[80:].mean())
    error = np.std(proportions) / np.sqrt(len(proportions))
    assert np.mean(proportions) < level + 2.0 * error
    assert np.mean(proportions) > 0.5 * level  # and it is not merely timid
    assert np.mean(power) > 0.5


# -- what does not matter -------------------------------------------------------------------------

TRAINED = {"max_iter": 2, "early_stopping": False}


@every_score
@pytest.mark.parametrize("max_iter", [0, 2])
def test_scores_do_not_depend_on_the_call_the_neighbours_the_order_or_the_chunks(
    max_iter, score_method, monkeypatch
):
    vae = _vae(max_iter=max_iter, early_stopping=False, n_importance_samples=8)
    detector = _detector(vae, score_method=score_method).fit(_with_holes())
    rows = np.concatenate([_with_holes(15, seed=5), _far(5)])
    together = detector.score_samples(rows)
    assert_array_equal(detector.score_samples(rows), together)
    order = np.random.default_rng(0).permutation(len(rows))
    assert_allclose(detector.score_samples(rows[order]), together[order], rtol=1e-9)
    alone = np.concatenate([detector.score_samples(rows[[row]]) for row in range(len(rows))])
    assert_allclose(alone, together, rtol=1e-9)
    monkeypatch.setattr("skvae._inference.scores.CHUNK_NUMBERS", 1)
    assert_allclose(detector.score_samples(rows), together, rtol=1e-9)


@every_score
def test_scores_do_not_depend_on_the_number_of_threads(score_method):
    detector = _detector(_vae(**TRAINED, n_importance_samples=8), score_method=score_method).fit(X)
    before, scores = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            scores.append(detector.score_samples(NEW))
    finally:
        torch.set_num_threads(before)
    assert_allclose(scores[1], scores[0], rtol=1e-9)


@pytest.mark.parametrize("max_iter", [0, 2])
def test_two_fits_with_one_random_state_are_the_same(max_iter):
    vae = _vae(max_iter=max_iter, early_stopping=False)
    params = {"score_method": "elbo", "support_fraction": 0.8}  # draws rows for its steps
    vae = vae.set_params(early_stopping=True) if max_iter else vae
    one, same, other = (_detector(vae, random_state=s, **params).fit(X) for s in (3, 3, 4))
    assert_array_equal(one.score_samples(NEW), same.score_samples(NEW))
    assert_array_equal(one.support_, same.support_)
    assert_array_equal(one.calibration_scores_, same.calibration_scores_)
    assert one.offset_ == same.offset_
    if max_iter:  # the linear model has no random part
        assert (one.score_samples(NEW) != other.score_samples(NEW)).any()
    again = one.fit(X)
    assert_array_equal(again.score_samples(NEW), same.score_samples(NEW))


def test_a_random_state_instance_is_a_seed_and_none_is_fresh():
    trained = {"vae": _vae(**TRAINED), "score_method": "elbo"}
    one, same = (_detector(**trained, random_state=np.random.RandomState(3)).fit(X) for _ in "ab")
    assert_array_equal(one.score_samples(NEW), same.score_samples(NEW))
    one, other = (_detector(**trained, random_state=None).fit(X) for _ in "ab")
    assert (one.score_samples(NEW) != other.score_samples(NEW)).any()


@every_score
def test_a_pickled_detector_and_a_copy_score_the_same_and_a_clone_is_not_fitted(score_method):
    vae = _vae(**TRAINED, n_importance_samples=8)
    detector = _detector(vae, score_method=score_method, contamination=0.2).fit(X)
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        for method in METHODS:
            assert_array_equal(getattr(again, method)(NEW), getattr(detector, method)(NEW))
    cloned = clone(detector)
    assert cloned.get_params(deep=False).keys() == detector.get_params(deep=False).keys()
    assert cloned.contamination == 0.2 and not hasattr(cloned, "offset_")
    assert_array_equal(cloned.fit(X).score_samples(NEW), detector.score_samples(NEW))


def test_parameters_of_the_model_can_be_set_through_the_detector():
    detector = _detector().set_params(vae__n_components=3, contamination=0.2)
    assert detector.get_params()["vae__n_components"] == 3
    assert detector.fit(X).vae_.n_components_ == 3


def test_a_parameter_set_after_the_fit_changes_no_score(fitted):
    changed = copy.deepcopy(fitted).set_params(score_method="elbo", contamination=0.5)
    assert_array_equal(changed.predict(NEW), fitted.predict(NEW))
    assert_array_equal(changed.score_samples(NEW), fitted.score_samples(NEW))


def _global_state():
    return {
        "NumPy's generator": pickle.dumps(np.random.get_state()),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch's threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "NumPy's error handling": np.geterr(),
        "warnings": list(warnings.filters),
    }


@every_score
def test_nothing_global_is_used_or_moved(score_method):
    scores = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        vae = _vae(**TRAINED, n_importance_samples=8)
        # Three threads are nobody's default, so a limit that is not taken back shows.
        with threadpoolctl.threadpool_limits(3):
            before = _global_state()
            detector = _detector(vae, score_method=score_method).fit(X)
            scores.append([getattr(detector, method)(NEW) for method in METHODS])
            _detector(random_state=None).fit(X)
            assert _global_state() == before
    for one, other in zip(*scores, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_gradient_mode_makes_no_difference(mode):
    vae = _vae(**TRAINED)
    expected = _detector(vae).fit(X).score_samples(NEW)
    with mode():
        assert_array_equal(_detector(vae).fit(X).score_samples(NEW), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU.")
def test_on_a_gpu_scores_are_those_of_the_processor():
    expected = _detector(_vae(device="cpu")).fit(X).score_samples(NEW)
    found = _detector(_vae(device="cuda")).fit(X).score_samples(NEW)
    assert_allclose(found, expected, rtol=1e-6)


# -- attributes -----------------------------------------------------------------------------------


def test_the_fitted_attributes_are_what_the_docstring_says():
    detector = _detector().fit(pandas.DataFrame(X, columns=list("abcdef")))
    own = {name for name in vars(detector) if name.endswith("_")}
    assert own == {
        *("vae_", "score_method_", "offset_", "calibration_scores_", "support_"),
        *("n_features_in_", "feature_names_in_"),
    }
    assert isinstance(detector.vae_, VAETransformer)
    assert detector.score_method_ == "aggregate"
    assert detector.n_features_in_ == 6
    assert detector.feature_names_in_.tolist() == list("abcdef")
    assert not hasattr(_detector().fit(X), "feature_names_in_")


@pytest.mark.parametrize("first", SCORES)
def test_a_second_fit_leaves_nothing_of_the_first(first):
    detector = _detector(_vae(n_importance_samples=8), score_method=first)
    detector.fit(_rows(50, n_columns=4)).set_params(score_method="elbo")
    expected = clone(detector).fit(X)
    assert vars(detector.fit(X)).keys() == vars(expected).keys()
    assert_array_equal(detector.score_samples(NEW), expected.score_samples(NEW))


@pytest.mark.parametrize("random_state", range(3))
def test_an_error_in_a_row_of_fit_names_the_row_as_it_was_given(random_state):
    frame = pandas.DataFrame({"n": np.arange(200) % 7, "x": np.linspace(0, 1, 200)})
    frame.loc[100, "n"] = -3
    detector = VAEOutlierDetector(
        VAETransformer(1, likelihood={"n": "poisson"}), random_state=random_state
    )
    with pytest.raises(ValueError, match=r"Column 'n' .*; row 100 holds -3"):
        detector.fit(frame)


def test_names_of_columns_are_no_matter_of_warnings():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=list("abc"))
    detector = VAEOutlierDetector(random_state=0).fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("predict", "p_values", "score_features"):
            getattr(detector, method)(frame)
        detector.vae_.transform(frame)


def test_rows_without_a_density_leave_no_threshold_that_is_not_a_number():
    scores = np.array([-np.inf, -np.inf, -3.0, -2.0, -1.0])
    calibration = Calibration.of(scores, np.ones(5))
    assert calibration.quantile(0.3) == -3.0
    assert calibration.quantile(1.0) == -1.0
    assert calibration.fence() == -3.0 - 1.5 * (-2.0 + 3.0)
    np.testing.assert_allclose(calibration.p_values(np.array([-np.inf, -2.5])), [3 / 6, 4 / 6])
