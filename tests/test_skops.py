"""Through skops: our estimators within scikit-learn's, and alone."""

import copy
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from zoo import MAKE, assert_same, expected, fitted, numbers, results_of, rows_of, small

import skvae
from skvae import FileError, VAEImputer, VAEOutlierDetector, VAETransformer

io = pytest.importorskip("skops.io")


def _again(estimator, folder):
    skvae.save(estimator, folder / "model")
    return skvae.load(folder / "model")


def double(X):
    """A function of the user's own."""
    return 2.0 * X


# -- skops alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_skops_gives_the_same_bits_and_trusts_nothing_but_ours(name):
    data = io.dumps(fitted(name))
    assert set(io.get_untrusted_types(data=data)) <= set(skvae.SKOPS_TRUSTED_TYPES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = io.loads(data, trusted=skvae.SKOPS_TRUSTED_TYPES)
    assert vars(again).keys() == vars(fitted(name)).keys()
    found = results_of(again, rows_of(name))
    for method, result in expected(name).items():
        assert_same(found[method], result)


def test_the_trusted_types_are_those_that_skops_finds_and_no_more():
    found = [set(io.get_untrusted_types(data=io.dumps(fitted(name)))) for name in MAKE]
    assert set(skvae.SKOPS_TRUSTED_TYPES) == set.union(*found)
    assert len(set(skvae.SKOPS_TRUSTED_TYPES)) == len(skvae.SKOPS_TRUSTED_TYPES)
    assert all(name.startswith("skvae.") for name in skvae.SKOPS_TRUSTED_TYPES)


def test_partial_fit_goes_on_after_skops():
    one = copy.deepcopy(fitted("pandas")).partial_fit(rows_of("pandas"))
    two = io.loads(io.dumps(one), trusted=skvae.SKOPS_TRUSTED_TYPES)
    for vae in (one, two):
        vae.partial_fit(rows_of("pandas"))
    assert one.loss_curve_ == two.loss_curve_


@pytest.mark.parametrize(
    "estimator",
    [
        small(),
        VAEOutlierDetector(small(), random_state=0),
        VAEOutlierDetector(small(), score_method="elbo", random_state=0),
        VAEImputer(small()),
        make_pipeline(StandardScaler(), small()),
    ],
    ids=str,
)
def test_a_fit_leaves_no_context_of_callbacks_behind(estimator):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring=lambda estimator, X, y: {"none": 0.0})
    for callbacks in ([], [monitor]):
        watched = getattr(estimator, "vae", estimator)
        watched.set_callbacks(*callbacks)
        estimator.fit(numbers(), np.zeros(len(numbers())))
        models = [estimator, getattr(estimator, "vae_", estimator)]
        models += [step for _, step in getattr(estimator, "steps", [])]
        left = {name for model in models for name in vars(model) if "callback" in name}
        assert left <= {"_skl_callbacks"}


def test_mlflow_stores_pipelines_and_all_three_by_default(tmp_path):
    sklearn_flavour = pytest.importorskip("mlflow.sklearn")
    pipeline = make_pipeline(StandardScaler(), small()).fit(numbers())
    models = {"pipeline": (pipeline, numbers())}
    for name in ("pandas", "detector of pandas", "imputer of pandas"):
        models[name] = (fitted(name), rows_of(name))
    for name, (model, X) in models.items():
        trusted = [*skvae.SKOPS_TRUSTED_TYPES]
        options = {"skops_trusted_types": trusted, "pip_requirements": ["skvae"]}
        sklearn_flavour.save_model(model, str(tmp_path / name), **options)
        again = sklearn_flavour.load_model(str(tmp_path / name))
        method = "score_samples" if "detector" in name else "transform"
        assert_same(getattr(again, method)(X), getattr(model, method)(X))


# -- scikit-learn's estimators around ours --------------------------------------------------------


def _frames():
    columns = [("model", small(), ["number", "text"]), ("levels", OneHotEncoder(), ["category"])]
    return Pipeline([("both", ColumnTransformer(columns)), ("clf", LogisticRegression())])


AROUND = {
    "Pipeline": lambda: make_pipeline(StandardScaler(), small(), LogisticRegression()),
    "FeatureUnion": lambda: make_pipeline(
        FeatureUnion([("one", small()), ("two", small(n_components=1))]), LogisticRegression()
    ),
    "search": lambda: GridSearchCV(
        make_pipeline(small(), LogisticRegression()),
        {"vaetransformer__whiten": [True, False]},
        cv=2,
    ),
    "imputer": lambda: make_pipeline(
        VAEImputer(small()), SimpleImputer(), KNeighborsClassifier(3, algorithm="brute")
    ),
}


@pytest.mark.parametrize("kind", AROUND)
def test_an_estimator_around_ours_computes_the_same_bits(kind, tmp_path):
    X, y = numbers(), np.arange(60) % 2
    one = AROUND[kind]().fit(X, y)
    two = _again(one, tmp_path)
    assert_array_equal(two.predict_proba(X), one.predict_proba(X))
    assert repr(two) == repr(one)
    assert vars(two).keys() == vars(one).keys()


def test_a_column_transformer_within_a_pipeline_computes_the_same_bits(tmp_path):
    X, y = rows_of("pandas"), np.arange(60) % 2
    one = _frames().fit(X, y)
    two = _again(one, tmp_path)
    assert_array_equal(two.predict_proba(X), one.predict_proba(X))
    first, other = (e["both"].named_transformers_["model"] for e in (one, two))
    assert type(other) is VAETransformer
    assert_same(other.sample(3, random_state=0), first.sample(3, random_state=0))


def test_a_detector_behind_a_column_transformer_computes_the_same_bits(tmp_path):
    X = rows_of("pandas")
    columns = [("scale", StandardScaler(), ["number", "short"])]
    one = make_pipeline(ColumnTransformer(columns), VAEOutlierDetector(random_state=0)).fit(X)
    assert_array_equal(_again(one, tmp_path).score_samples(X), one.score_samples(X))


def test_sparse_arrays_of_other_steps_come_back(tmp_path):
    X = csr_matrix(np.where(numbers() > 0.5, numbers(), 0.0))
    union = FeatureUnion([("keep", FunctionTransformer(accept_sparse=True)), ("vae", small())])
    one = make_pipeline(union, KNeighborsClassifier(3, algorithm="brute")).fit(X, np.arange(60) % 2)
    assert_array_equal(_again(one, tmp_path).predict_proba(X), one.predict_proba(X))


def test_types_that_skops_does_not_know_have_to_be_trusted(tmp_path):
    one = make_pipeline(FunctionTransformer(double), small()).fit(numbers())
    trusted = [f"{double.__module__}.double"]
    with pytest.raises(TypeError, match=rf"Pipeline holds {trusted[0]}, .*trusted=\['{trusted[0]}"):
        skvae.save(one, tmp_path / "model")
    skvae.save(one, tmp_path / "model", trusted=trusted)
    with pytest.raises(FileError, match=rf"holds {trusted[0]}\. If you trust"):
        skvae.load(tmp_path / "model")
    two = skvae.load(tmp_path / "model", trusted=trusted)
    assert_array_equal(two.transform(numbers()), one.transform(numbers()))


def _nested():
    def inner(X):
        return X

    return inner


class Holder:
    """A function that is found by no name of its module."""

    @staticmethod
    def held(X):
        return X


@pytest.mark.parametrize(
    "function", [lambda X: X, _nested(), Holder.held], ids=["lambda", "nested", "static"]
)
@pytest.mark.parametrize("trusts", [False, True])
def test_a_function_that_load_could_not_find_is_refused_before_anything_is_written(
    function, trusts, tmp_path
):
    one = make_pipeline(FunctionTransformer(function), small()).fit(numbers())
    name = f"{function.__module__}.{function.__name__}"
    said = f"holds {name}, which skvae.load could not find by that name. Define it by def or class"
    with pytest.raises(TypeError, match=said):
        skvae.save(one, tmp_path / "model", trusted=[name] if trusts else [])
    assert list(tmp_path.iterdir()) == []


class Closed:
    """What can be written, and is not to be made again."""

    def __init__(self):
        self.value = 1

    def __deepcopy__(self, known):
        return self

    def __setstate__(self, state):
        raise RuntimeError("it is closed")


def test_what_cannot_be_read_back_is_refused_before_anything_is_written(tmp_path):
    one = make_pipeline(FunctionTransformer(double, kw_args={}), small()).fit(numbers())
    one[0].note = Closed()
    names = [f"{double.__module__}.{name}" for name in ("double", "Closed")]
    with pytest.raises(TypeError, match=r"This Pipeline could not be read back .*it is closed"):
        skvae.save(one, tmp_path / "model", trusted=names)
    assert list(tmp_path.iterdir()) == []


def test_one_of_ours_in_several_places_stays_one(tmp_path):
    vae = copy.deepcopy(fitted("default"))
    one = FeatureUnion([("one", vae), ("two", vae)])
    two = _again(one, tmp_path)
    assert two.transformer_list[0][1] is two.transformer_list[1][1]


def test_callbacks_of_a_pipeline_are_left_out_with_a_warning(tmp_path):
    callback = pytest.importorskip("sklearn.callback")
    one = AROUND["Pipeline"]().fit(numbers(), np.arange(60) % 2)
    one.set_callbacks(callback.ScoringMonitor(scoring="accuracy"))
    with pytest.warns(UserWarning, match="does not store the callbacks of Pipeline"):
        two = _again(one, tmp_path)
    assert_array_equal(two.predict_proba(numbers()), one.predict_proba(numbers()))
