"""What cannot work is refused with a message that says what to do, and nothing else happens."""

import copy
from functools import partial

import joblib
import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from skvae import VAETransformer
from skvae.likelihoods import Gaussian
from skvae.priors import StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(size=(60, 4))
BITS = (X > 0.0).astype(float)
ONES = np.ones(len(X))


def _with(array, row, column, value):
    array = np.array(array)
    array[row, column] = value
    return array


def _vae(**params):
    return VAETransformer(
        **{"n_components": 2, "hidden_layer_sizes": (4,), "max_iter": 1, "random_state": 0} | params
    )


@pytest.fixture(scope="module")
def fitted():
    """Not to be changed: every test takes a copy."""
    return _vae().fit(X)


def _assert_refused(vae, call, error, message):
    before = joblib.hash(vars(vae))
    with pytest.raises(error, match=message):
        call(vae)
    assert joblib.hash(vars(vae)) == before


def _call(vae, method, **params):
    return getattr(vae, method)(X, **params)


# -- parameters -----------------------------------------------------------------------------------

INTEGER = "an integer >= "
BAD_PARAMETERS = [
    ("n_components", 0, "'auto', 'evidence' or an integer >= 1"),
    ("n_components", -1, INTEGER),
    ("n_components", 2.0, INTEGER),
    ("n_components", True, INTEGER),
    ("n_components", "2", INTEGER),
    ("n_components", "mle", "'auto', 'evidence' or "),
    ("n_components", None, INTEGER),
    ("hidden_layer_sizes", (8, 0), "integers >= 1"),
    ("hidden_layer_sizes", (8, 8.5), "integers >= 1"),
    ("hidden_layer_sizes", -8, "integers >= 1"),
    ("hidden_layer_sizes", "8", "integers >= 1"),
    ("hidden_layer_sizes", None, "integers >= 1"),
    ("activation", "swish", "'gelu', 'relu', 'silu'"),
    ("activation", None, "'gelu', 'relu', 'silu'"),
    ("likelihood", "laplace", "'auto', 'gaussian', 'bernoulli', .*or an instance of Likelihood"),
    ("likelihood", {0: "laplace"}, "'auto', 'gaussian', 'bernoulli', .*an instance of Likelihood"),
    ("likelihood", {0: None}, "an instance of Likelihood"),
    ("likelihood", 4 * ["gaussian"], "an instance of Likelihood"),
    ("likelihood", Gaussian, "an instance of Likelihood"),
    ("likelihood", None, "an instance of Likelihood"),
    ("max_categories", 1, "None or an integer >= 2"),
    ("max_categories", 2.5, "None or an integer >= 2"),
    ("max_categories", "all", "None or an integer >= 2"),
    ("handle_unknown", "drop", "'ignore', 'error'"),
    ("handle_unknown", None, "'ignore', 'error'"),
    ("missing", "drop", "'auto', 'ignore', 'model'"),
    ("missing", None, "'auto', 'ignore', 'model'"),
    ("noise", "both", "'auto', 'shared', 'per_column'"),
    ("scaling", "minmax", "'auto', 'columns', 'common'"),
    ("scaling", True, "'auto', 'columns', 'common'"),
    ("prior", "laplace", "'normal', 'mixture', or an instance of Prior"),
    ("prior", StandardNormal, "an instance of Prior"),
    ("whiten", "yes", "True.*False"),
    ("objective", "vae", "'elbo'.*'iwae'"),
    ("n_train_samples", 0, INTEGER + "1"),
    ("beta", -0.1, "a number >= 0"),
    ("beta", np.nan, "a number >= 0"),
    ("beta", np.inf, "a number >= 0"),
    ("beta", "1", "a number >= 0"),
    ("kl_warmup", 1.5, ">= 0 and <= 1"),
    ("free_bits", -1.0, "a number >= 0"),
    ("alpha", -1.0, "a number >= 0"),
    ("batch_size", 0, "'auto' or an integer >= 1"),
    ("batch_size", "small", "'auto' or an integer >= 1"),
    ("learning_rate_init", 0.0, "'auto' or a number > 0"),
    ("max_iter", -1, "'auto' or an integer >= 0"),
    ("max_iter", 1.5, "'auto' or an integer >= 0"),
    ("max_iter", "long", "'auto' or an integer >= 0"),
    ("early_stopping", "yes", "True.*False"),
    ("early_stopping", None, "True.*False"),
    ("validation_fraction", 0.0, "a number > 0"),
    ("validation_fraction", 1.0, "a number > 0 and <= "),
    ("n_iter_no_change", 0, INTEGER + "1"),
    ("tol", -1.0, "a number >= 0"),
    ("n_importance_samples", 0, "'auto' or an integer >= 1"),
    ("warm_start", 1.5, "True.*False"),
    ("precision", "half", "'auto', 'float32', 'float64'"),
    ("device", "gpu", "'auto' or a torch device that is available here"),
    ("device", "cuda:99", "'auto' or a torch device that is available here"),
    ("device", "meta", "'auto' or a torch device that is available here"),
    ("device", None, "'auto' or a torch device that is available here"),
    ("verbose", -1, "an integer >= 0"),
]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("name", "value", "rule"), BAD_PARAMETERS)
def test_a_bad_parameter_is_named_with_its_rule_and_its_value(fitted, name, value, rule, method):
    message = rf"The '{name}' parameter (of VAETransformer )?must be .*{rule}(.|\n)*[Gg]ot "
    for vae in (_vae(), copy.deepcopy(fitted)):
        vae.set_params(**{name: value})
        _assert_refused(vae, lambda vae: getattr(vae, method)(X), ValueError, message)


# (parameter, value, the column that it names)
BAD_COLUMNS = [
    ("likelihood", {"visits": "gaussian"}, "'visits'"),
    ("likelihood", {4: "gaussian"}, "4"),
    ("likelihood", {-5: "gaussian"}, "-5"),
    ("likelihood", {0.0: "gaussian"}, "0.0"),
    ("likelihood", {0: "gaussian", "visits": "gaussian"}, "'visits'"),
    ("categorical_features", ["visits"], "'visits'"),
    ("categorical_features", "visits", "'visits'"),
    ("categorical_features", [0, 4], "4"),
    ("categorical_features", [-5], "-5"),
    ("categorical_features", 1.5, "1.5"),
]


def test_a_mask_of_another_length_is_refused():
    message = "mask of 3 columns, but X has 4"
    with pytest.raises(ValueError, match=message):
        VAETransformer(categorical_features=[True, False, True]).fit(X)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("in_a_frame", [False, True])
@pytest.mark.parametrize(("name", "value", "column"), BAD_COLUMNS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    name, value, column, in_a_frame, method
):
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame(X, columns=list("abcd")) if in_a_frame else X
    known = "'a', 'b', 'c', 'd'" if in_a_frame else "numbers below 4"
    message = (
        rf"The '{name}' parameter names the column {column}, which X does not have\. "
        rf"Its columns are {known}\."
    )
    vae = _vae(**{name: value})
    _assert_refused(vae, lambda vae: getattr(vae, method)(rows), ValueError, message)


def test_every_parameter_stands_in_a_table():
    named = {name for name, _, _ in [*BAD_PARAMETERS, *BAD_COLUMNS]}
    # The seed is checked below.
    assert set(VAETransformer().get_params()) - named == {"random_state"}


@pytest.mark.parametrize("seed", ["zero", -1, 0.5])
def test_a_bad_random_state_is_refused(fitted, seed):
    vae = copy.deepcopy(fitted)
    with pytest.raises((ValueError, TypeError), match=r"[Ss]eed"):
        vae.sample(random_state=seed)
    vae.set_params(random_state=seed)
    _assert_refused(vae, lambda vae: vae.fit(X), (ValueError, TypeError), "[Ss]eed")


def test_an_unknown_parameter_is_refused(fitted):
    vae = copy.deepcopy(fitted)
    message = r"Invalid parameter 'n_component' (.|\n)*'n_components'"
    _assert_refused(vae, lambda vae: vae.set_params(n_component=2), ValueError, message)
    with pytest.raises(TypeError, match="n_component"):
        VAETransformer(n_component=2)


def test_numpy_scalars_are_as_good_as_python_numbers():
    # A grid of parameters is often an array.
    vae = _vae(
        n_components=np.int64(2),
        max_iter=np.int32(1),
        beta=np.float32(1.0),
        batch_size=np.int64(16),
        early_stopping=np.True_,
        whiten=np.False_,
    )
    expected = _vae(batch_size=16).fit(X).transform(X)
    np.testing.assert_array_equal(vae.fit(X).transform(X), expected)


# -- rows -----------------------------------------------------------------------------------------

BAD_ROWS = {
    "one dimension": (X[0], ValueError, "Expected 2D array, got 1D array.*(.|\n)*reshape"),
    "three dimensions": (X[None], ValueError, "Found array with dim 3"),
    "a number": (3.0, ValueError, "Expected 2D array, got scalar"),
    "nothing": (None, ValueError, "Expected 2D array, got scalar array instead:\narray=None"),
    "no rows": (X[:0], ValueError, r"Found array with 0 sample\(s\)"),
    "no columns": (X[:, :0], ValueError, r"0 feature\(s\)"),
    "dictionaries": (
        _with(X.astype(object), 3, 2, {}),
        TypeError,
        "Column 2: argument must be a string or a real number, not a dict; row 3 holds {}",
    ),
    "lists in cells": (
        _with(X.astype(object), 3, 2, [1.0]),
        TypeError,
        r"Column 2: argument must be a string or a real number, not a list; row 3 holds \[1.0\]",
    ),
    "complex numbers": (X * 1j, ValueError, "Complex data not supported"),
    "infinity": (_with(X, 3, 2, np.inf), ValueError, "Input X contains infinity"),
    "minus infinity": (_with(X, 3, 2, -np.inf), ValueError, "Input X contains infinity"),
    "an infinite object": (
        _with(X.astype(object), 3, 2, np.inf),
        ValueError,
        "Column 2 needs finite numbers; row 3 holds inf: Input X contains infinity",
    ),
    "sparse, infinity": (
        scipy.sparse.csr_array(_with(X, 3, 2, np.inf)),
        ValueError,
        "Input X contains infinity",
    ),
    "sparse, complex": (scipy.sparse.csr_array(X * 1j), ValueError, "Complex data not supported"),
    "dates": (X.astype("M8[s]"), ValueError, "its dtype is datetime64.* into numbers first"),
    "spans of time": (X.astype("m8[s]"), ValueError, "its dtype is timedelta64.*numbers first"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score_samples"])
@pytest.mark.parametrize("rows", BAD_ROWS)
def test_bad_rows_are_refused(fitted, rows, method):
    bad, error, message = BAD_ROWS[rows]
    for vae in (_vae(), fitted) if "fit" in method else (fitted,):
        _assert_refused(copy.deepcopy(vae), lambda vae: getattr(vae, method)(bad), error, message)


ACCEPTED_ROWS = {
    "NaN": _with(X, 3, 2, np.nan),
    "None": _with(X.astype(object), 3, 2, None),
    "strings that are numbers": X.astype(str),
    "a sparse array": scipy.sparse.csr_array(X),
    "a sparse matrix": scipy.sparse.coo_matrix(X),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score_samples"])
@pytest.mark.parametrize("rows", ACCEPTED_ROWS)
def test_missing_values_sparse_rows_and_strings_are_accepted(fitted, rows, method):
    for vae in (_vae(), fitted) if "fit" in method else (fitted,):
        vae = copy.deepcopy(vae)
        getattr(vae, method)(ACCEPTED_ROWS[rows])
        assert np.isfinite(vae.transform(ACCEPTED_ROWS[rows])).all()


@pytest.mark.parametrize("method", ["transform", "score_samples", "partial_fit"])
def test_a_level_in_a_column_of_numbers_is_named(fitted, method):
    bad = _with(X.astype(object), 3, 2, "red")
    message = "Column 2 needs numbers; row 3 holds 'red'. Correct it, or name the column in cat"
    vae = copy.deepcopy(fitted)
    _assert_refused(vae, lambda vae: getattr(vae, method)(bad), ValueError, message)


def test_a_level_in_a_column_that_is_asked_to_hold_numbers_is_named():
    bad = _with(X.astype(object), 3, 2, "red")
    message = "Column 2 needs numbers; row 3 holds 'red'"
    for params in ({"likelihood": {2: "gaussian"}}, {"categorical_features": None}):
        _assert_refused(_vae(**params), lambda vae: vae.fit(bad), ValueError, message)


# (row, column, value, how the message writes it)
OUTSIDE_BITS = [
    (7, 2, 1.5, "1.5"),
    (0, 0, -1e-3, "-0.001"),
    (59, 3, 255.0, "255.0"),
]


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score_samples"])
@pytest.mark.parametrize(("row", "column", "value", "written"), OUTSIDE_BITS)
def test_a_cell_that_is_no_probability_is_named(row, column, value, written, method):
    vae = _vae(likelihood="bernoulli")
    if "fit" not in method:
        vae.fit(BITS)
    bad = _with(BITS, row, column, value)
    message = (
        rf"Column {column} \(likelihood='bernoulli'\) needs 0 and 1, or probabilities between "
        rf"them; row {row} holds {written}\. Use likelihood='gaussian' or clean the column"
    )
    _assert_refused(vae, lambda vae: getattr(vae, method)(bad), ValueError, message)


@pytest.mark.parametrize("method", ["partial_fit", "transform", "score_samples"])
@pytest.mark.parametrize(("row", "column", "value", "written"), OUTSIDE_BITS)
def test_where_bernoulli_was_our_choice_another_number_is_an_unknown_level(
    row, column, value, written, method
):
    strict, lenient = _vae(handle_unknown="error").fit(BITS), _vae().fit(BITS)
    assert (lenient.likelihood_ == "bernoulli").all()
    bad = _with(BITS, row, column, value)
    message = rf"Column {column} \(likelihood='bernoulli'\) .* row {row} holds {written}\."
    _assert_refused(strict, lambda vae: getattr(vae, method)(bad), ValueError, message)
    missing = _with(BITS, row, column, np.nan)
    one, other = (getattr(copy.deepcopy(lenient), method)(rows) for rows in (bad, missing))
    if method == "partial_fit":
        one, other = one.transform(BITS), other.transform(BITS)
    if method == "score_samples":  # what no row of fit holds has the share of what one row holds
        other[row] -= np.log(len(BITS) + 1.0)
    np.testing.assert_array_equal(one, other)


def test_a_bad_column_of_a_frame_is_called_by_its_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(_with(BITS, 7, 2, 2.0), columns=["a", "b", "visits", "d"])
    message = r"Column 'visits' \(likelihood='bernoulli'\) needs .* row 7 holds 2\.0\."
    _assert_refused(_vae(likelihood="bernoulli"), lambda vae: vae.fit(frame), ValueError, message)


def test_the_number_of_a_bad_row_counts_from_the_first_row_of_all():
    bits = np.zeros((10_000, 2))
    bits[9_000, 1] = -1.0
    message = r"Column 1 .* row 9000 holds -1\.0\."
    _assert_refused(_vae(likelihood="bernoulli"), lambda vae: vae.fit(bits), ValueError, message)


BAD_WEIGHTS = {
    "negative": (_with(ONES[:, None], 5, 0, -1.0)[:, 0], "[Nn]egative values .*sample_weight"),
    "all zero": (0.0 * ONES, "at least one non-zero"),
    "too few": (ONES[1:], r"sample_weight\.shape == \(59,\), expected \(60,\)"),
    "two dimensions": (ONES[:, None], "Sample weights must be 1D"),
    "NaN": (np.nan * ONES, "sample_weight contains NaN"),
    "infinite": (np.inf * ONES, "sample_weight contains infinity"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("weights", BAD_WEIGHTS)
def test_bad_sample_weights_are_refused(fitted, weights, method):
    weight, message = BAD_WEIGHTS[weights]
    for vae in (_vae(), copy.deepcopy(fitted)):
        call = partial(_call, method=method, sample_weight=weight)
        _assert_refused(vae, call, ValueError, message)


# -- the use of a fitted estimator ----------------------------------------------------------------

OTHER_COLUMNS = "X has 3 features, but VAETransformer is expecting 4 features"
OTHER_CODES = "X has 3 columns, .*one for each of the 2 components"
WHOLE_NUMBER = "n_samples must be an integer >= 1. Got "
KNOWN_METHODS = "method must be one of 'log_likelihood', 'elbo', 'reconstruction', 'kl'. Got "
BAD_USES = {
    "transform, other columns": (lambda vae: vae.transform(X[:, :3]), OTHER_COLUMNS),
    "score_samples, other columns": (lambda vae: vae.score_samples(X[:, :3]), OTHER_COLUMNS),
    "score_features, other columns": (lambda vae: vae.score_features(X[:, :3]), OTHER_COLUMNS),
    "score, other columns": (lambda vae: vae.score(X[:, :3]), OTHER_COLUMNS),
    "partial_fit, other columns": (lambda vae: vae.partial_fit(X[:, :3]), OTHER_COLUMNS),
    "transform, one row": (lambda vae: vae.transform(X[0]), "reshape"),
    "inverse_transform, too many": (lambda vae: vae.inverse_transform(X[:, :3]), OTHER_CODES),
    "inverse_transform, one row": (lambda vae: vae.inverse_transform(X[0, :2]), "reshape"),
    "inverse_transform, NaN": (lambda vae: vae.inverse_transform([[np.nan, 0]]), "contains NaN"),
    "inverse_transform, strings": (lambda vae: vae.inverse_transform([["a", "b"]]), "convert"),
    "sample, none": (lambda vae: vae.sample(0), WHOLE_NUMBER + "0"),
    "sample, fewer than none": (lambda vae: vae.sample(-3), WHOLE_NUMBER + "-3"),
    "sample, a fraction": (lambda vae: vae.sample(2.5), WHOLE_NUMBER + "2.5"),
    "sample, a string": (lambda vae: vae.sample("3"), WHOLE_NUMBER + "'3'"),
    "an unknown score": (lambda vae: vae.score_samples(X, method="ELBO"), KNOWN_METHODS + "'ELBO'"),
    "no score": (lambda vae: vae.score_samples(X, method=None), KNOWN_METHODS + "None"),
    "names, too few": (lambda vae: vae.get_feature_names_out(["a"]), "length equal to number"),
    "partial_fit, another network": (
        lambda vae: vae.set_params(hidden_layer_sizes=(5,)).partial_fit(X),
        r"The 'hidden_layer_sizes' parameter was \(4,\) when .* is \(5,\) now.*Set it back, or fit",
    ),
    "warm start, another network": (
        lambda vae: vae.set_params(n_components=3, warm_start=True).fit(X),
        "The 'n_components' parameter was 2 when .* is 3 now.*Set it back, or fit",
    ),
}


@pytest.mark.parametrize("use", BAD_USES)
def test_a_bad_use_is_refused(fitted, use):
    call, message = BAD_USES[use]
    vae = copy.deepcopy(fitted)
    with pytest.raises(ValueError, match=message):
        call(vae)
    vae.set_params(**fitted.get_params())
    assert joblib.hash(vars(vae)) == joblib.hash(vars(fitted))


@pytest.mark.parametrize("method", ["transform", "score_samples", "score_features", "score"])
@pytest.mark.parametrize(("columns", "message"), [("bacd", "same order"), ("abce", "unseen")])
def test_columns_of_other_names_or_another_order_are_refused(columns, message, method):
    pandas = pytest.importorskip("pandas")
    vae = _vae(max_iter=0).fit(pandas.DataFrame(X, columns=list("abcd")))
    other = pandas.DataFrame(X, columns=list(columns))
    _assert_refused(vae, lambda vae: getattr(vae, method)(other), ValueError, message)


UNFITTED_USES = {
    "transform": lambda vae: vae.transform(X),
    "inverse_transform": lambda vae: vae.inverse_transform(X[:, :2]),
    "score_samples": lambda vae: vae.score_samples(X),
    "score_samples, elbo": lambda vae: vae.score_samples(X, method="elbo"),
    "score_features": lambda vae: vae.score_features(X),
    "score": lambda vae: vae.score(X),
    "sample": lambda vae: vae.sample(),
    "get_feature_names_out": lambda vae: vae.get_feature_names_out(),
}


@pytest.mark.parametrize("use", UNFITTED_USES)
def test_an_unfitted_estimator_says_that_it_is_not_fitted(use):
    message = r"This VAETransformer instance is not fitted yet\. Call 'fit'"
    _assert_refused(_vae(), UNFITTED_USES[use], NotFittedError, message)


# -- divergence -----------------------------------------------------------------------------------

DIVERGENCES = {
    "held-out rows": (np.random.default_rng(1).normal(size=(520, 4)), {}),
    "the last epoch": (X, {"early_stopping": False}),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_divergence_names_its_epoch_and_the_wildest_column(divergence):
    pandas = pytest.importorskip("pandas")
    rows, params = DIVERGENCES[divergence]
    frame = pandas.DataFrame(
        _with(rows, slice(0, None, 20), 2, 1e3), columns=["a", "b", "wild", "d"]
    )
    vae = _vae(learning_rate_init=1e30, max_iter=5, **params)
    message = (
        r"The bound became infinite or nan in epoch \d.* column 'wild'\. "
        r"Use a smaller learning_rate_init \(now 1e\+30\)"
    )
    _assert_refused(vae, lambda vae: vae.fit(frame), ValueError, message)
    with pytest.raises(NotFittedError):
        vae.transform(frame)


@pytest.mark.parametrize(("n_rows", "method"), [(100, "fit"), (600, "fit"), (600, "partial_fit")])
def test_an_epoch_that_diverges_is_taken_again_more_slowly_and_that_is_said(n_rows, method):
    rows = np.random.default_rng(0).normal(size=(n_rows, 4))
    rows[::20, 2] = 1e3
    vae = _vae(learning_rate_init=1e3, max_iter=5)
    message = r"in epoch \d.* taken again at a smaller learning rate.* in column 2"
    with pytest.warns(ConvergenceWarning, match=message):
        getattr(vae, method)(rows)
    assert np.isfinite(vae.score_samples(rows, method="elbo")).all()
    assert np.isfinite(vae.loss_curve_).all()


def test_a_divergence_of_partial_fit_names_its_epoch_and_the_wildest_column(fitted):
    vae = copy.deepcopy(fitted).set_params(learning_rate_init=1e30)
    before = joblib.hash(vars(vae))
    with pytest.raises(ValueError, match=r"in epoch [2-4]; .* column 2\. .*\(now 1e\+30\)"):
        for _ in range(3):
            before = joblib.hash(vars(vae))
            vae.partial_fit(_with(X, 0, 2, 1e3))
    assert joblib.hash(vars(vae)) == before


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_values_whose_squares_are_no_floats_are_refused_by_the_name_of_their_column():
    wild = np.random.default_rng(0).normal(size=(200, 4)) * 1.7e307
    _assert_refused(_vae(), lambda vae: vae.fit(wild), ValueError, "values of column 0 are too")


def test_nothing_but_other_numbers_than_0_and_1_is_told():
    bits = (np.random.default_rng(0).random((60, 3)) < 0.5).astype(float)
    vae = _vae().fit(bits)
    with pytest.warns(UserWarning, match="No cell of column 1 holds a level .* it holds 7,"):
        vae.score_samples(np.column_stack([bits[:, 0], np.full(60, 7.0), bits[:, 2]]))
