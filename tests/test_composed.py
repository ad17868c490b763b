"""The model inside a detector or an imputer: given whole, by some parameters, or not at all."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

ESTIMATORS = [VAEOutlierDetector(random_state=0), VAEImputer(random_state=0)]
each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=["detector", "imputer"])

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(60, 6))
HOLES = np.where(rng.random(X.shape) < 0.1, np.nan, X)


def _distance(estimator, X, y=None):
    """Less is better: how far the model is from two components."""
    return -abs(estimator.vae_.n_components_ - 2)


@each
def test_the_default_model_is_searched_by_its_parameters(estimator):
    grid = {"vae__n_components": [1, 2], "vae__max_iter": [1]}
    search = GridSearchCV(estimator, grid, scoring=_distance, cv=2, error_score="raise").fit(HOLES)
    assert search.best_params_ == {"vae__max_iter": 1, "vae__n_components": 2}
    assert search.best_estimator_.vae_.n_components_ == 2
    assert estimator.vae is None


@each
def test_without_scoring_a_search_takes_the_model_that_describes_unseen_rows_best(estimator):
    grid = {"vae__n_components": [1, 2, 4], "vae__max_iter": [0]}
    search = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(HOLES)
    assert search.best_params_["vae__n_components"] == 2  # as many as X was made of
    assert search.score(HOLES) == search.best_estimator_.vae_.score(HOLES)


@each
def test_the_score_is_the_mean_log_likelihood_of_the_observed_cells(estimator):
    fitted = clone(estimator).set_params(vae__max_iter=0).fit(HOLES)
    assert fitted.score(HOLES[:20]) == fitted.vae_.score_samples(HOLES[:20]).mean()
    assert fitted.score(HOLES[:20].tolist()) == fitted.score(HOLES[:20])
    with pytest.raises(NotFittedError):
        clone(estimator).score(HOLES)


def test_an_imputer_scores_what_is_not_missing_to_it():
    marked = np.where(np.isnan(HOLES), -99.0, HOLES)
    fitted = VAEImputer({"max_iter": 0}).fit(HOLES)
    own = VAEImputer({"max_iter": 0}, missing_values=-99.0).fit(marked)
    assert own.score(marked) == fitted.score(HOLES)
    with pytest.raises(TypeError, match="Sparse input is not supported by VAEImputer"):
        fitted.score(csr_array(X))


def test_labels_say_how_well_detectors_tell_outliers():
    labels = np.where(np.arange(60) % 6, 1, -1)
    away = np.where(labels[:, None] == 1, X, X + 3.0 * rng.normal(size=X.shape))
    grid = {"vae__n_components": [1, 2]}
    search = GridSearchCV(
        VAEOutlierDetector(random_state=0), grid, scoring="roc_auc", cv=2, error_score="raise"
    ).fit(away, labels)
    expected = roc_auc_score(labels == 1, search.best_estimator_.score_samples(away))
    assert search.score(away, labels) == expected > 0.9


@each
def test_a_model_in_a_pipeline_is_searched_by_its_parameters(estimator):
    pipeline = make_pipeline(StandardScaler(), estimator)
    step = pipeline.steps[-1][0]
    clone(pipeline).set_params(**{f"{step}__vae__n_components": 1}).fit(HOLES)
    assert estimator.vae is None


@each
def test_what_is_not_named_is_as_in_the_default_model(estimator):
    default = clone(estimator).fit(X).vae_.get_params()
    own = clone(estimator).set_params(vae__activation="tanh").fit(X).vae_.get_params()
    assert own.pop("activation") == "tanh"
    del default["activation"]
    assert own == default


@each
def test_parameters_are_added_to_those_that_were_set(estimator):
    first = clone(estimator).set_params(vae__beta=0.5)
    second = clone(first).set_params(vae__alpha=0.1, vae__beta=0.7)
    assert (first.vae, second.vae) == ({"beta": 0.5}, {"beta": 0.7, "alpha": 0.1})
    assert clone(second).set_params(vae=None, vae__tol=0.1).vae == {"tol": 0.1}


@each
def test_parameters_of_a_model_that_was_given_are_its_own(estimator):
    model = VAETransformer(3)
    own = clone(estimator).set_params(vae=model, vae__n_components=2)
    assert own.vae is model
    assert model.n_components == 2


@each
def test_an_unknown_parameter_of_the_default_model_is_refused_and_nothing_is_set(estimator):
    own = clone(estimator)
    with pytest.raises(ValueError, match="Invalid parameter 'n_component' for estimator VAETr"):
        own.set_params(random_state=3, vae__n_component=2)
    assert (own.random_state, own.vae) == (0, None)
    with pytest.raises(ValueError, match=r"'vae' parameter of .* names \['n_component'\]"):
        own.set_params(vae={"n_component": 2}).fit(X)
    with pytest.raises(ValueError, match="a VAETransformer, a dict of its parameters or None"):
        own.set_params(vae="big").fit(X)


@each
def test_a_wrong_value_in_a_dict_is_refused_by_name(estimator):
    own = clone(estimator).set_params(vae__n_components=0)
    with pytest.raises(ValueError, match="The 'n_components' parameter of VAETransformer"):
        own.fit(X)


@each
def test_a_dict_with_the_defaults_gives_the_default_model(estimator):
    one, other = clone(estimator).fit(X), clone(estimator).set_params(vae={}).fit(X)
    for name, weight in one.vae_.weights_.items():
        assert_array_equal(weight, other.vae_.weights_[name])
