"""Rows drawn given some of their values: p(rest | given)."""

import numpy as np
import pandas
import polars
import pytest
from scipy import stats

from skvae import VAEImputer, VAETransformer


def people(n_rows=800):
    rng = np.random.default_rng(0)
    z = rng.normal(size=n_rows)
    return pandas.DataFrame(
        {
            "age": np.rint(40 + 10 * z).astype(int),
            "job": np.where(z + 0.5 * rng.normal(size=n_rows) > 0, "boss", "clerk"),
            "pay": np.exp(1 + 0.5 * z + 0.2 * rng.normal(size=n_rows)),
            "since": pandas.Timestamp("2020-01-01")
            + pandas.to_timedelta(rng.integers(0, 900, n_rows), unit="D"),
            "town": rng.choice(["a", "b", "c", "d"], n_rows, p=[0.7, 0.2, 0.06, 0.04]),
        }
    )


@pytest.fixture(scope="module")
def fitted():
    vae = VAETransformer(2, likelihood="normal_scores", max_categories=3, random_state=0)
    return vae.fit(people())


def linear(X):
    return VAETransformer(1, noise="per_column", max_iter=0).fit(X)


def test_draws_given_a_value_are_those_of_the_closed_form():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 1)) * [1.0, 2.0, -1.0] + rng.normal(size=(500, 3)) + [5.0, 0.0, 1.0]
    vae = linear(X)
    loadings = vae.weights_["decoder.linear.weight"] * X.std(0)[:, None]
    covariance = loadings @ loadings.T + np.diag(vae.noise_variance_)
    slope = covariance[1:, 0] / covariance[0, 0]
    mean = X.mean(0)[1:] + slope * (7.0 - X.mean(0)[0])
    left = covariance[1:, 1:] - np.outer(slope, covariance[0, 1:])
    drawn = vae.sample(8_000, random_state=0, given={0: 7.0})
    assert (drawn[:, 0] == 7.0).all()
    np.testing.assert_allclose(drawn[:, 1:].mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(drawn[:, 1:].T), left, atol=0.1)
    for column in (1, 2):
        normal = stats.norm(mean[column - 1], np.sqrt(left[column - 1, column - 1]))
        assert stats.kstest(drawn[:, column], normal.cdf).statistic < 0.02


def test_what_is_given_comes_back_and_the_rest_is_as_the_column_has_it(fitted):
    X = people()
    for given in ({"job": "boss", "age": 52}, {"town": "d"}, {"since": X["since"][3]}, {}):
        drawn = fitted.sample(50, random_state=0, given=given)
        assert len(drawn) == 50 and drawn.dtypes.equals(X.dtypes)
        for name, value in given.items():
            assert (drawn[name] == value).all()
        assert drawn["pay"].min() > 0.0
        assert set(drawn["town"]) <= set("abcd")


def test_the_rest_follows_what_is_given(fitted):
    young = fitted.sample(400, random_state=0, given={"age": 25})
    old = fitted.sample(400, random_state=0, given={"age": 55})
    assert (young["job"] == "boss").mean() < 0.2 < 0.8 < (old["job"] == "boss").mean()
    X = people(5000)
    near = X[X["age"].between(54, 56)]["pay"]
    assert old["pay"].median() == pytest.approx(near.median(), rel=0.15)


def test_rows_with_holes_are_filled_by_a_draw_each(fitted):
    X = people().head(30)
    holes = X.copy()
    holes.loc[::2, "pay"] = np.nan
    holes.loc[1, "job"] = None
    drawn = fitted.sample(given=holes, random_state=0)
    seen = holes.notna()
    assert drawn.where(seen).equals(holes.where(seen)) and drawn.notna().all(axis=None)
    other = fitted.sample(given=holes, random_state=1)
    assert (drawn["pay"][::2] != other["pay"][::2]).all()
    np.testing.assert_array_equal(fitted.sample(given=X, random_state=0), X)


def test_arrays_and_polars_frames_have_conditions_too():
    frame = polars.from_pandas(people()[["age", "pay"]])
    drawn = linear(frame).sample(7, random_state=0, given={"age": 30})
    assert drawn.schema == frame.schema and set(drawn["age"]) == {30}
    X = frame.to_numpy()
    assert set(linear(X).sample(7, random_state=0, given={0: 30})[:, 0]) == {30.0}


def test_a_date_may_be_given_in_every_form():
    since = pandas.Timestamp("2020-02-03")
    X = people().assign(month=lambda frame: frame["since"].dt.to_period("M"))
    vae = VAETransformer(1, max_iter=0, random_state=0).fit(X)
    month = pandas.Period("2020-02", freq="M")
    for value in (since, since.to_pydatetime(), since.to_datetime64()):
        drawn = vae.sample(3, random_state=0, given={"since": value, "month": month})
        assert (drawn["since"] == since).all() and (drawn["month"] == month).all()


def test_draws_are_repeatable_and_leave_the_model_as_it_was(fitted):
    before = fitted.score_samples(people().head(5))
    one, other = (fitted.sample(5, random_state=3, given={"age": 30}) for _ in range(2))
    assert one.equals(other)
    np.testing.assert_array_equal(fitted.score_samples(people().head(5)), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wage": 3}, "given names the columns .'wage'., which fit has not seen"),
        ({"job": "chef"}, "'job' holds the level 'chef'"),
        ({"pay": -1.0}, "'pay' .* needs numbers as fit has seen them; row 0 holds -1.0"),
        ({"age": "x"}, "'age' needs numbers"),
        ({"since": 3}, "'since' holds other values, where fit had dates"),
        ({"since": pandas.Timestamp("2020-01-01", tz="UTC")}, "'since' holds dates with a time"),
        ({"pay": np.inf}, "'pay' needs finite numbers; row 0 holds inf"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        fitted.sample(3, given=given)


def test_n_samples_and_mode_have_no_meaning_with_rows(fitted):
    with pytest.raises(ValueError, match="n_samples must be 1"):
        fitted.sample(3, given=people().head(4))
    with pytest.raises(ValueError, match="mode=True cannot be combined with given"):
        fitted.sample(3, given={"age": 30}, mode=True)


def test_drawn_rows_are_distributed_as_what_the_imputer_draws():
    X = people()[["age", "pay"]].astype(float)
    holes = pandas.concat([X.head(1)] * 2000, ignore_index=True)
    holes["pay"] = np.nan
    imputer = VAEImputer(VAETransformer(1, noise="per_column", max_iter=0)).fit(X)
    drawn = imputer.vae_.sample(given=holes, random_state=5)["pay"]
    tables = imputer.sample_imputations(holes, 20, random_state=5)  # of 20 parameters
    expected = np.concatenate([table["pay"] for table in tables])
    assert abs(drawn.mean() - expected.mean()) < 0.1 * drawn.std()
    assert drawn.std() == pytest.approx(expected.std(), rel=0.05)
