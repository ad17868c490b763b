"""scikit-learn's conventions: its own checks, and what they leave out."""

import inspect
import warnings
from unittest import SkipTest

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, estimator_html_repr

from skvae import VAETransformer

# On twenty rows in five columns the noise floor is where it should be.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The noise scale of:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

# Shipped by scikit-learn, but not yielded by check_estimator.
UNYIELDED_CHECKS = [
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_set_output_transform_polars",
    "check_dataframe_column_names_consistency",
    "check_inplace_ensure_writeable",
]


@estimator_checks.parametrize_with_checks([VAETransformer()])
def test_every_check_of_scikit_learn_passes(estimator, check):
    # As check_estimator runs them; but for a warning or a skip, too, it fails.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check(estimator)
        except SkipTest as skipped:
            pytest.fail(f"It is skipped: {skipped}")


def test_no_check_of_scikit_learn_is_expected_to_fail_or_left_out():
    checks = [*estimator_checks.estimator_checks_generator(VAETransformer())]
    names = {check.func.__name__ for _, check in checks}
    assert {"check_estimator_sparse_array", "check_estimator_sparse_matrix"} <= names
    if "only_numpy" in inspect.signature(estimator_checks._yield_array_api_checks).parameters:
        assert "check_array_api_input" in names  # of all estimators, since 1.8


@pytest.mark.parametrize("name", UNYIELDED_CHECKS)
def test_checks_that_scikit_learn_ships_but_does_not_yield_pass(name):
    # They are about names and containers: two epochs show as much as a whole training.
    getattr(estimator_checks, name)("VAETransformer", VAETransformer(max_iter=2))


def test_partial_fit_checks_column_names():
    # scikit-learn's check leaves partial_fit out where early_stopping is on.
    estimator = VAETransformer(early_stopping=False, max_iter=1)
    estimator_checks.check_dataframe_column_names_consistency("VAETransformer", estimator)


# -- frames -------------------------------------------------------------------------------------


def _wine():
    return load_wine(as_frame=True, return_X_y=True)


def _pipeline(**params):
    vae = VAETransformer(n_components=3, max_iter=2, random_state=0, **params)
    return Pipeline([("scale", StandardScaler()), ("vae", vae)])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_pipeline_returns_frames_with_the_names_of_the_components(library):
    frames = pytest.importorskip(library)
    X, _ = _wine()
    if library == "polars":
        X = frames.from_pandas(X)
    codes = _pipeline().set_output(transform=library).fit_transform(X)
    assert isinstance(codes, frames.DataFrame)
    assert list(codes.columns) == ["vaetransformer0", "vaetransformer1", "vaetransformer2"]
    # Not to the last bit: frames keep their columns one after the other in memory.
    assert_allclose(codes.to_numpy(), _pipeline().fit_transform(X), rtol=1e-9)
    if library == "pandas":
        assert codes.index.equals(X.index)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_gives_the_same_codes_as_its_array(library):
    frames = pytest.importorskip(library)
    X, _ = _wine()
    array = X.to_numpy()
    frame = frames.from_pandas(X) if library == "polars" else X
    vae = VAETransformer(n_components=3, max_iter=2, random_state=0)
    # Not to the last bit: polars keeps its columns one after the other in memory.
    assert_allclose(vae.fit_transform(frame), vae.fit_transform(array), rtol=1e-9)


def test_the_codes_keep_the_index_of_a_pandas_frame():
    X, _ = _wine()
    X = X.iloc[::-3]
    vae = VAETransformer(n_components=2, max_iter=0).set_output(transform="pandas")
    assert vae.fit_transform(X).index.equals(X.index)


# -- metadata routing -----------------------------------------------------------------------------


def test_a_pipeline_routes_sample_weight_to_fit():
    X, y = load_wine(return_X_y=True)
    weight = np.random.default_rng(0).integers(0, 3, len(X)).astype(float)
    vae = VAETransformer(n_components=3, max_iter=2, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = Pipeline(
            [
                ("vae", sklearn.clone(vae).set_fit_request(sample_weight=True)),
                ("classify", LogisticRegression().set_fit_request(sample_weight=False)),
            ]
        ).fit(X, y, sample_weight=weight)
    expected = vae.fit(X, sample_weight=weight).transform(X)
    assert_array_equal(pipeline["vae"].transform(X), expected)
    assert not np.allclose(expected, vae.fit(X).transform(X))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_sample_weight_can_be_requested(method):
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = VAETransformer()
        getattr(estimator, f"set_{method}_request")(sample_weight=True)
        routing = estimator.get_metadata_routing()
    assert getattr(routing, method).requests == {"sample_weight": True}


# -- model selection ------------------------------------------------------------------------------


def test_a_grid_search_over_n_components_scores_as_one_over_pca_does():
    # Unscaled and at its linear start the model is PCA's, so every fold's score is known.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 2)) @ rng.normal(size=(2, 7)) + 0.3 * rng.normal(size=(120, 7))
    grid = {"n_components": [1, 2, 4]}
    linear = VAETransformer(scaling=None, max_iter=0)
    search = GridSearchCV(linear, grid, cv=3).fit(X)
    expected = GridSearchCV(PCA(), grid, cv=3).fit(X)
    assert search.best_params_ == expected.best_params_ == {"n_components": 2}
    for fold in range(3):
        name = f"split{fold}_test_score"
        assert_allclose(search.cv_results_[name], expected.cv_results_[name], rtol=1e-6)


def test_a_classifier_behind_the_codes_can_be_tuned():
    X, y = load_wine(return_X_y=True)
    pipeline = Pipeline([*_pipeline().steps, ("classify", LogisticRegression())])
    search = GridSearchCV(pipeline, {"vae__n_components": [1, 5]}, cv=3).fit(X, y)
    assert search.best_params_ == {"vae__n_components": 5}
    assert search.best_score_ > 0.9


# -- callbacks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def callback():
    """The module of scikit-learn's callbacks."""
    return pytest.importorskip(
        "sklearn.callback", reason="This scikit-learn has no callbacks: they came with 1.9."
    )


@pytest.fixture(scope="module")
def progress_bar(callback):
    """The class ProgressBar, which needs rich."""
    pytest.importorskip("rich", reason="ProgressBar needs rich.")
    return callback.ProgressBar


class Witness:
    """Sees a fitted estimator after each epoch, and asks to stop after ``stop_after`` of them."""

    def __init__(self, X, stop_after=np.inf):
        self.X = X
        self.stop_after = stop_after
        self.scores = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.parent is None:
            return False
        self.scores.append(fitted_estimator.score(self.X))
        assert fitted_estimator.transform(self.X).shape == (len(self.X), 2)
        return len(self.scores) >= self.stop_after


# How the epoch to keep is chosen: by folds, by held-out rows, or not at all.
SELECTIONS = {
    "folds": (60, {}),
    "held-out rows": (520, {}),
    "the last epoch": (60, {"early_stopping": False}),
}


def _surface(n_rows):
    """Rows near a curved surface, where a few steps already beat the linear start."""
    rng = np.random.default_rng(1)
    t, s = rng.uniform(-2, 2, (n_rows, 1)), rng.normal(size=(n_rows, 1))
    X = np.hstack([t, s, t**2, np.cos(2 * t), t * s, s**2])
    return X + 0.1 * rng.normal(size=X.shape)


def _observed(selection, learning_rate_init=0.01, **params):
    n_rows, selection_params = SELECTIONS[selection]
    vae = VAETransformer(
        n_components=2,
        hidden_layer_sizes=(16,),
        learning_rate_init=learning_rate_init,
        random_state=0,
        **selection_params,
        **params,
    )
    return vae, _surface(n_rows)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_callback_sees_a_usable_estimator_after_each_epoch(callback, selection):
    vae, X = _observed(selection, max_iter=4)
    witness = Witness(X)
    vae.set_callbacks(witness).fit(X)
    assert len(witness.scores) == vae.n_iter_ == 4
    assert np.isfinite(witness.scores).all()
    assert len(set(witness.scores)) == 4


class Names(Witness):
    """Collects what the estimators that it sees say of their columns."""

    def on_fit_task_begin(self, estimator, context):
        self._note(estimator)

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self._note(estimator)
        if context.parent is not None:
            self._note(fitted_estimator)
            fitted_estimator.transform(self.X)

    def _note(self, estimator):
        names = getattr(estimator, "feature_names_in_", None)
        self.scores.append((estimator.n_features_in_, None if names is None else list(names)))


@pytest.mark.filterwarnings("error:X .* have valid feature names")
@pytest.mark.parametrize("times", [1, 2])
def test_callbacks_see_the_columns_of_the_fit_that_they_watch(callback, times):
    pandas = pytest.importorskip("pandas")
    rows = _surface(60)
    frame = pandas.DataFrame(rows[:, :5], columns=list("abcde"))
    vae, _ = _observed("the last epoch", max_iter=2)
    tables = [(frame, list("abcde")), (rows[:, :3], None)]
    for X, names in tables[-times:]:
        witness = Names(X)
        vae.set_callbacks(witness).fit(X)
        assert {repr(seen) for seen in witness.scores} == {repr((X.shape[1], names))}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_callback_can_stop_the_fit(callback, selection):
    vae, X = _observed(selection, max_iter=20)
    witness = Witness(X, stop_after=3)
    vae.set_callbacks(witness).fit(X)
    assert len(witness.scores) == vae.n_iter_ == 3
    assert vae.transform(X).shape == (len(X), 2)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_callback_that_looks_on_changes_nothing(callback, selection):
    # Enough rows and epochs for a gain that is beyond doubt.
    vae, X = _observed(selection, max_iter=25, learning_rate_init=0.03, n_importance_samples=4)
    X = _surface(1000 if selection == "held-out rows" else 400)
    expected = sklearn.clone(vae).fit(X)
    vae.set_callbacks(Witness(X[:3])).fit(X)
    assert vae.best_iter_ == expected.best_iter_ > 0
    assert_array_equal(vae.transform(X), expected.transform(X))


@pytest.mark.parametrize("selection", ["folds", "held-out rows"])
def test_a_callback_that_looks_on_does_not_move_the_start(callback, selection):
    # One epoch of far too big steps: the start stays the best candidate.
    vae, X = _observed(selection, max_iter=1, learning_rate_init=1.0)
    expected = sklearn.clone(vae).fit(X)
    vae.set_callbacks(Witness(X)).fit(X)
    assert vae.best_iter_ == expected.best_iter_ == 0
    assert_array_equal(vae.transform(X), expected.transform(X))


def _log_likelihood(estimator, X, y):
    return {"log p(x)": estimator.score(X)}


def test_a_scoring_monitor_logs_the_score_of_each_epoch(callback):
    # scikit-learn's monitor scores only where the epoch's task is told both X and y.
    vae, X = _observed("the last epoch", max_iter=4)
    monitor = callback.ScoringMonitor(scoring=_log_likelihood)
    vae.set_callbacks(monitor).fit(X, np.zeros(len(X)))
    log = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(log) == 4
    assert_allclose(log[-1]["log p(x)"], vae.score(X))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_progress_bar_advances_with_every_epoch(progress_bar, selection, monkeypatch):
    from rich.progress import Progress

    advances = []
    monkeypatch.setattr(Progress, "update", lambda self, task, **to: advances.append(to))
    vae, X = _observed(selection, max_iter=4)
    vae.set_callbacks(progress_bar()).fit(X)
    assert [to["completed"] for to in advances[:4]] == [1, 2, 3, 4]


def test_a_progress_bar_shows_the_fit_alone_and_in_a_pipeline(progress_bar, capsys):
    vae, X = _observed("folds", max_iter=2)
    vae.set_callbacks(progress_bar()).fit(X)
    assert "VAETransformer - fit" in capsys.readouterr().out
    Pipeline([("vae", sklearn.clone(vae).set_callbacks())]).set_callbacks(progress_bar()).fit(X)
    output = capsys.readouterr().out
    assert "VAETransformer - fit" in output
    assert "100%" in output


def test_a_progress_bar_shows_the_fits_of_a_parallel_grid_search(progress_bar, capsys):
    vae, X = _observed("folds", max_iter=2)
    search = GridSearchCV(Pipeline([("vae", vae)]), {"vae__beta": [0.5, 1.0]}, cv=2, n_jobs=2)
    search.set_callbacks(progress_bar(max_propagation_depth=2)).fit(X)
    output = capsys.readouterr().out
    # A bar for each of two candidates on two folds, and one for the refit.
    assert output.count("VAETransformer - fit") >= 5
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# -- display --------------------------------------------------------------------------------------


def test_the_html_repr_works_unfitted_and_fitted():
    vae, X = _observed("folds", max_iter=0)
    assert "Not fitted" in estimator_html_repr(vae)
    html = estimator_html_repr(vae.fit(X))
    assert "Not fitted" not in html
    assert "VAETransformer" in html


def test_the_repr_shows_only_what_was_set():
    assert repr(VAETransformer()) == "VAETransformer()"
    assert repr(VAETransformer(3, noise="shared")) == (
        "VAETransformer(n_components=3, noise='shared')"
    )
