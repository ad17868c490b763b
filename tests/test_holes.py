"""Holes that say something: columns of where cells miss, in the joint density."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._table.holes import evidence_of_holes, holes_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]


def _loans(n_rows=600, seed=0):
    """Rows of loans, in which only those that defaulted have a date of that, and who did."""
    rng = np.random.default_rng(seed)
    income = rng.normal(size=n_rows)
    defaulted = rng.uniform(size=n_rows) < 1.0 / (1.0 + np.exp(1.0 + income))
    debt, age = rng.normal(size=(2, n_rows))
    job = np.array(["clerk", "cook", "none"])[rng.integers(3, size=n_rows)]
    days = np.where(defaulted, rng.normal(500.0, 80.0, n_rows), np.nan)
    X = pd.DataFrame(
        {
            "income": income,
            "debt": debt + 0.5 * income,
            "age": age,
            "job": job,
            "date": pd.Timestamp("2020-01-01") + pd.to_timedelta(np.round(days), unit="D"),
        }
    )
    return X, defaulted


def _small(**params):
    """One that trains for a moment."""
    small = {"hidden_layer_sizes": (16,), "max_iter": 10, "random_state": 0}
    return VAETransformer(**{"n_components": 4} | small | params)


def _start(**params):
    return _small(**{"max_iter": 0, "n_components": 2} | params)


def _without(X, share, columns, seed=1):
    """Cells of some columns gone at random."""
    X = X.copy()
    for column in columns:
        X[np.random.default_rng(seed + column).uniform(size=len(X)) < share, column] = np.nan
    return X


def _factors(n_rows=500, n_columns=6, seed=0):
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(2, n_columns))
    return rng.normal(size=(n_rows, 2)) @ loadings + 0.5 * rng.normal(size=(n_rows, n_columns))


def _evidence(X, groups):
    return evidence_of_holes(X, groups, [0] * X.shape[1], np.ones(len(X)))


# -- codes ----------------------------------------------------------------------------------------


def test_codes_know_a_date_that_only_exists_for_those_who_defaulted():
    X, defaulted = _loans()

    def probe(**params):
        Z = VAETransformer(4, max_iter=60, random_state=0, **params).fit_transform(X)
        return LogisticRegression().fit(Z, defaulted).score(Z, defaulted)

    assert probe() > 0.97
    assert probe(missing="ignore") < 0.85


# -- which holes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_holes_at_random_are_left_out(seed):
    X = _without(_factors(seed=seed), 0.2, range(6), seed=10 * seed)
    vae = _start().fit(X)
    assert vae.model_.schema.holes == ()
    assert_array_equal(vae.transform(X), _start(missing="ignore").fit(X).transform(X))


def test_few_of_very_many_holes_at_random_pass_for_informative_ones():
    X = _without(np.random.default_rng(0).normal(size=(400, 40)), 0.2, range(40))
    assert (_evidence(X, tuple((c,) for c in range(40))).gain > 0.0).sum() <= 1


def test_holes_where_the_values_are_high_are_in():
    X = _factors()
    X[X[:, 1] > 0.5, 1] = np.nan
    assert _start().fit(X).model_.schema.holes == ((1,),)


def test_columns_that_always_miss_together_share_one():
    X = _factors()
    X[np.random.default_rng(0).uniform(size=len(X)) < 0.3, :2] = np.nan
    assert _start().fit(X).model_.schema.holes == ((0, 1),)


def test_holes_that_a_columns_values_tell_alone_are_left_out():
    X = _factors()
    X[:, 0] = np.random.default_rng(0).integers(3, size=len(X))  # how many fireplaces
    X[X[:, 0] == 0.0, 1] = np.nan  # and their quality
    groups = ((1,),)
    assert _evidence(X, groups).gain[0] > 100.0
    assert_allclose(_evidence(X, groups).told, 1.0)
    assert holes_of(X, [0] * 6, np.ones(len(X)), "auto") == ()
    assert holes_of(X, [0] * 6, np.ones(len(X)), "model") == groups


def test_the_evidence_is_the_likelihood_ratio_less_schwarzs_penalty():
    X = np.full((200, 2), 1.0)
    X[:100, 0] = 0.0
    X[:80, 1] = np.nan
    found = _evidence(X, ((1,),))
    apart = 80 * np.log(0.8) + 20 * np.log(0.2)  # column 0 is 0; no hole where it is 1
    together = 80 * np.log(0.4) + 120 * np.log(0.6)
    assert_allclose(found.gain, apart - together - 0.5 * np.log(200))
    assert_allclose(found.told, (apart - together) / -together)


def test_weights_are_repetitions():
    X = _factors(60)
    X[X[:, 1] > 0.5, 1] = np.nan
    weight = np.random.default_rng(0).integers(1, 4, size=len(X))
    a = _start().fit(X, sample_weight=weight)
    b = _start().fit(np.repeat(X, weight, axis=0))
    assert a.model_.schema.holes == b.model_.schema.holes == ((1,),)
    assert_allclose(a.transform(X), b.transform(X))


@pytest.mark.parametrize("missing", ["auto", "model"])
def test_complete_tables_are_as_if_nothing_was_asked(missing):
    X = _factors(200)
    a, b = _small(missing=missing).fit(X), _small(missing="ignore").fit(X)
    for name, weight in a.weights_.items():
        assert_array_equal(weight, b.weights_[name])
    assert_array_equal(a.score_samples(X), b.score_samples(X))
    assert_array_equal(a.sample(5, random_state=0, holes=True), b.sample(5, random_state=0))


# -- densities ------------------------------------------------------------------------------------


def _independent(vae):
    """The model with columns of holes that z says nothing of, at their rates."""
    fitted = vae.model_
    module = fitted.fresh_module(torch.device("cpu"))
    n_columns = len(fitted.schema.columns)
    is_hole = module.likelihood.column.numpy() >= n_columns
    weights = {name: value.copy() for name, value in fitted.weights.items()}
    weights["decoder.linear.weight"][is_hole] = 0.0
    weights["encoder.linear.weight"][:, is_hole] = 0.0
    weights["encoder.loadings"][is_hole] = 0.0
    return weights, is_hole


def test_with_independent_holes_the_joint_is_a_product():
    X = _without(_factors(300), 0.3, [1, 4])
    vae = _start(missing="model", noise="per_column", hidden_layer_sizes=()).fit(X)
    assert vae.model_.schema.holes == ((1,), (4,))
    weights, is_hole = _independent(vae)
    joint = replace(vae.model_, weights=weights)
    table = joint.read(X)
    logit = weights["decoder.linear.bias"][is_hole]
    rate = 1.0 / (1.0 + np.exp(-logit))
    lost = np.isnan(X[:, [1, 4]])
    assert_allclose(rate, lost.mean(axis=0), atol=0.1)
    of_holes = np.where(lost, np.log(rate), np.log1p(-rate)).sum(axis=1)
    blank = table.copy()
    blank[:, 6:] = np.nan  # it is not known which are missing: that is what "ignore" scores
    assert_allclose(joint.score(table)[0], joint.score(blank)[0] + of_holes, atol=1e-8)


def test_densities_sum_over_holes_to_that_of_the_values():
    X = _factors(400)
    X[X[:, 1] > 0.5, 1] = np.nan
    vae = _small(missing="model", n_components=1, n_importance_samples=4000).fit(X)
    table = vae.model_.read(X[:20])
    parts = []
    for hole in (0.0, 1.0, np.nan):
        table[:, 6] = hole
        parts.append(vae.model_.score(table)[0])
    assert_allclose(np.logaddexp(*parts[:2]), parts[2], atol=0.02)


def test_shares_of_columns_hold_those_of_their_holes():
    X, _ = _loans()
    vae = _small(missing="model").fit(X)
    shares = vae.score_features(X[:30])
    assert shares.shape == (30, 5)
    total = vae.score_samples(X[:30], method="reconstruction")
    assert_allclose(shares.sum(axis=1), total, rtol=1e-6)


# -- what users see -------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars", "numpy"])
def test_users_see_their_own_columns(library):
    X, _ = _loans()
    X = X.drop(columns="date").assign(left=X["date"].isna().map({True: np.nan, False: 1.5}))
    X.loc[X.index[:40], "left"] += np.linspace(0.0, 1.0, 40)
    if library == "polars":
        X = pl.from_pandas(X, nan_to_null=True)
    if library == "numpy":
        X = X.drop(columns="job").to_numpy()
    vae = _small(missing="model").fit(X)
    assert len(vae.model_.schema.holes) == 1
    n_columns = X.shape[1]
    assert vae.likelihood_.shape == vae.noise_variance_.shape == (n_columns,)
    for table in (
        vae.inverse_transform(vae.transform(X)),
        vae.sample(len(X), random_state=0),
        vae.sample(random_state=0, given=X),
    ):
        assert type(table) is type(X)
        assert table.shape == X.shape
        assert not pd.DataFrame(np.asarray(table)).isna().any().any()
    assert np.isfinite(vae.score_samples(X)).all()


def test_samples_have_holes_at_their_rate_if_asked():
    X, _ = _loans()
    vae = _small().fit(X)
    drawn = vae.sample(4000, random_state=0, holes=True)
    assert_allclose(drawn["date"].isna().mean(), X["date"].isna().mean(), atol=0.05)
    assert not drawn.drop(columns="date").isna().any().any()
    low, high = drawn[drawn["income"] < 0.0], drawn[drawn["income"] > 0.0]
    assert high["date"].isna().mean() > low["date"].isna().mean() + 0.1


def test_a_value_that_is_given_is_no_hole_and_others_may_be():
    X, _ = _loans()
    drawn = _small().fit(X).sample(500, random_state=0, given={"date": X["date"].dropna().iloc[0]})
    assert drawn["date"].nunique() == 1
    assert drawn["income"].mean() < X["income"].mean()  # who has a date has defaulted


def test_a_level_that_fit_has_not_seen_is_no_hole():
    X, defaulted = _loans()
    X["date"] = np.where(defaulted, np.where(X["age"] > 0, "late", "early"), None)
    vae = _small().fit(X)
    assert vae.model_.schema.holes == ((4,),)
    later = X[:6].assign(date=["soon", "early", "soon", "soon", None, "late"])
    assert_array_equal(vae.model_.read(later)[:, 5], [0, 0, 0, 0, 1, 0])


def test_new_holes_in_other_columns_are_missing_and_no_more():
    X, _ = _loans()
    vae = _small().fit(X)
    later = X[:20].assign(age=np.nan)
    assert np.isfinite(vae.score_samples(later)).all()
    assert vae.model_.read(later).shape == (20, 6)


def test_it_pickles_and_trains_further():
    X, _ = _loans()
    vae = _small(warm_start=True).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    assert_array_equal(again.transform(X), vae.transform(X))
    vae.partial_fit(X)
    vae.fit(X)
    with pytest.raises(ValueError, match="'missing' parameter was 'auto'"):
        copy.deepcopy(vae).set_params(missing="model").fit(X)


def test_one_that_was_stored_without_holes_has_none():
    vae = _small(missing="ignore").fit(_factors(100))
    del vae.model_.schema.__dict__["holes"]
    assert vae.transform(_factors(100)).shape == (100, 4)


# -- imputation and outliers ----------------------------------------------------------------------


def test_an_imputer_and_a_detector_ignore_holes_unless_told():
    X, _ = _loans(300)
    own = VAETransformer(2, max_iter=2, random_state=0)
    assert VAEImputer(own).fit(X).vae_.model_.schema.holes == ()
    assert VAEOutlierDetector(own).fit(X).vae_.model_.schema.holes == ()


def test_an_imputer_with_holes_completes_and_predicts_the_users_columns():
    X, _ = _loans(300)
    imputer = VAEImputer(_small(missing="model")).fit(X)
    assert not imputer.transform(X).isna().any().any()
    assert list(imputer.predict_cells(X[:5])) == list(X)
    assert [len(t.columns) for t in imputer.sample_imputations(X, 2, random_state=0)] == [5, 5]


def test_a_detector_with_holes_explains_the_users_columns():
    X, _ = _loans(300)
    detector = VAEOutlierDetector(_small(missing="model")).fit(X)
    found = detector.explain(X[:7])
    assert len(found) == 35
    assert np.isfinite(detector.score_samples(X)).all()


def test_holes_are_not_drawn_where_that_has_no_meaning():
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[::4, 0] = np.nan
    vae = VAETransformer(1, missing="ignore", max_iter=0).fit(X)
    with pytest.raises(ValueError, match="Fit with missing='model'"):
        vae.sample(3, holes=True)
    vae.set_params(missing="model").fit(X)
    assert np.isnan(vae.sample(100, random_state=0, holes=True)[:, 0]).any()
    with pytest.raises(ValueError, match="holes=True cannot be combined with given"):
        vae.sample(given={0: 1.0}, holes=True)


def test_holes_of_sparse_rows_are_not_modelled():
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[::4, 0] = np.nan
    with pytest.raises(ValueError, match="needs dense rows, but X is sparse"):
        VAETransformer(1, missing="model", max_iter=0).fit(csr_array(X))


def test_whether_a_cell_is_missing_has_no_part_in_its_own_prediction():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 1)) + 0.3 * rng.normal(size=(150, 4))
    X[X[:, 0] > 0.5, 0] = np.nan
    imputer = VAEImputer(VAETransformer(1, missing="model", max_iter=0), random_state=0).fit(X)
    rows = X[~np.isnan(X[:, 0])][:5]
    hidden = rows.copy()
    hidden[:, 0] = np.nan
    seen, unseen = (imputer.predict_cells(one)[0] for one in (rows, hidden))
    assert_allclose(seen, unseen, atol=1e-8)


def test_an_empty_column_has_no_holes_to_draw():
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[:, 2] = np.nan
    vae = VAETransformer(1, missing="model", max_iter=0).fit(X)
    assert not np.isnan(vae.sample(5, random_state=0, holes=True)[:, :2]).any()
