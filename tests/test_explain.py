"""Explanations of outlier scores: shares that add up, and that name the cell that is off."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from skvae import VAEOutlierDetector, VAETransformer

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

pytestmark = pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor):UserWarning")

LOADINGS = np.random.default_rng(0).normal(size=(2, 6))
COVARIANCE = LOADINGS.T @ LOADINGS + 0.25 * np.eye(6)


def _rows(n_rows=300, seed=0):
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(np.full(6, 3.0), COVARIANCE, n_rows)


X = _rows()
NEW = _rows(60, seed=5)


@pytest.fixture(scope="module")
def fitted():
    return VAEOutlierDetector(random_state=0).fit(X)


def _customers(n_rows=600, seed=0):
    """Numbers, counts and levels of two factors, with holes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, 2))
    frame = pandas.DataFrame(
        {
            "income": np.exp(3.0 + 0.5 * z[:, 0]),
            "rent": 100.0 + 20.0 * z[:, 0] + 4.0 * rng.normal(size=n_rows),
            "size": np.where(z[:, 0] > 0.5, "large", np.where(z[:, 0] < -0.5, "small", "medium")),
            "calls": rng.poisson(np.exp(1.0 + z[:, 1])),
            "region": rng.choice(["north", "south"], n_rows),
        }
    )
    frame.loc[rng.random(n_rows) < 0.1, "rent"] = np.nan
    return frame


TABLES = {
    "numbers": lambda: X,
    "pandas": _customers,
    "polars": lambda: polars.from_pandas(_customers()),
    "objects": lambda: _customers().astype(object).to_numpy(),
    "sparse": lambda: csr_array(np.where(X > 3.0, np.round(X), 0.0)),
    "few rows": lambda: X[:40],
}


@pytest.mark.parametrize("score_method", ["aggregate", "elbo"])
@pytest.mark.parametrize("kind", TABLES)
def test_shares_add_up_to_how_far_a_score_is_below_that_of_a_typical_row(kind, score_method):
    rows = TABLES[kind]()
    detector = VAEOutlierDetector(
        VAETransformer(2, max_iter=0), score_method=score_method, random_state=0
    ).fit(rows)
    few = rows[:30]
    explanation = detector.explain(few)
    share = explanation["share"].to_numpy().reshape(30, -1)
    below = np.median(detector.calibration_scores_) - detector.score_samples(few)
    assert_allclose(share.sum(1), below, rtol=1e-9, atol=1e-9)
    assert_allclose(detector.score_features(few), -share, rtol=1e-12, atol=1e-12)
    assert np.isfinite(share).all()


def test_an_explanation_is_a_frame_of_cells_in_the_order_and_units_of_the_table():
    frame = _customers()
    detector = VAEOutlierDetector(random_state=0).fit(frame)
    some = frame.iloc[10:13]
    found = detector.explain(some)
    assert found.index.names == ["row", "column"]
    assert found.index.tolist() == [(r, c) for r in some.index for c in frame.columns]
    assert found.columns.tolist() == ["value", "share", "expected", "lower", "upper", "likely"]
    for (row, column), cell in found.iterrows():
        assert cell["value"] == frame.loc[row, column] or pandas.isna(frame.loc[row, column])
        if column in ("size", "region"):
            assert cell["expected"] == cell["likely"][0]
            assert set(cell["likely"]) <= set(frame[column])
            assert np.isnan(cell["lower"]) and np.isnan(cell["upper"])
        else:
            assert cell["likely"] is None
            assert cell["lower"] < cell["expected"] < cell["upper"]


@pytest.mark.parametrize("form", ["pandas", "polars", "objects", "booleans"])
def test_truth_values_are_explained_by_those_that_are_likely(form):
    truths = _rows(200)[:, :4] > 3.0
    truths[:, 1] = truths[:, 0] ^ (np.arange(200) == 7)  # one row does not go together
    frame = pandas.DataFrame(truths, columns=list("abcd"))
    table = {
        "pandas": frame,
        "polars": polars.from_pandas(frame),
        "objects": frame.astype(object).to_numpy(),
        "booleans": truths,
    }[form]
    found = VAEOutlierDetector(random_state=0).fit(table).explain(table[:10])
    for _, cell in found.iterrows():
        assert cell["expected"] == cell["likely"][0]
        assert set(map(type, cell["likely"])) == {bool} and len(set(cell["likely"])) <= 2
        assert np.isnan(cell["lower"]) and np.isnan(cell["upper"])
    (odd,) = found.loc[7].iloc[1:2]["likely"]
    assert odd[0] == truths[7, 0] != truths[7, 1]


def test_what_is_expected_of_a_cell_is_its_conditional_mean(fitted):
    # By the model's own mean and covariance, and nothing clever.
    weights, columns = fitted.vae_.model_.weights, fitted.vae_.model_.columns
    W, psi = weights["encoder.loadings"], weights["encoder.variance"]
    precision = np.linalg.inv(W @ W.T + np.diag(psi))
    away = (NEW - columns.shift) / columns.scale - weights["encoder.mean"]
    given_others = away - away @ precision / np.diag(precision)
    expected = (given_others + weights["encoder.mean"]) * columns.scale + columns.shift
    found = fitted.explain(NEW)["expected"].to_numpy().reshape(NEW.shape)
    assert_allclose(found, expected, rtol=1e-9)


def test_what_is_expected_of_the_cells_of_a_row_with_holes_is_by_those_that_are_there():
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.2, np.nan, X)
    detector = VAEOutlierDetector(random_state=0).fit(holes)
    weights, columns = detector.vae_.model_.weights, detector.vae_.model_.columns
    W, psi = weights["encoder.loadings"], weights["encoder.variance"]
    covariance = W @ W.T + np.diag(psi)
    found = detector.explain(holes[:20])["expected"].to_numpy().reshape(20, 6)
    away = (holes[:20] - columns.shift) / columns.scale - weights["encoder.mean"]
    for row, column in np.ndindex(20, 6):
        others = ~np.isnan(away[row]) & (np.arange(6) != column)
        slope = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, column])
        expected = away[row, others] @ slope + weights["encoder.mean"][column]
        expected = expected * columns.scale[column] + columns.shift[column]
        assert found[row, column] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n_rows", [60, 2000])  # by models of others, and by one model
def test_intervals_hold_nine_cells_of_ten_of_new_rows(n_rows):
    detector = VAEOutlierDetector(random_state=0).fit(_rows(n_rows))
    new = _rows(2000, seed=9)
    found = detector.explain(new)
    inside = (found["lower"] <= found["value"]) & (found["value"] <= found["upper"])
    assert inside.groupby("column").mean().between(0.8, 0.97).all()
    assert 0.87 < inside.mean() < 0.93


def _planted(rows, size, seed=0):
    """Put one cell of each row ``size`` standard deviations off its conditional mean."""
    rng = np.random.default_rng(seed)
    precision = np.linalg.inv(COVARIANCE)
    spoilt, column = rows.copy(), rng.integers(0, 6, len(rows))
    for row, d in enumerate(column):
        away = spoilt[row] - 3.0
        mean = spoilt[row, d] - precision[d] @ away / precision[d, d]
        spoilt[row, d] = mean + size * rng.choice([-1.0, 1.0]) / np.sqrt(precision[d, d])
    return spoilt, column


def _named(detector, rows):
    return detector.explain(rows)["share"].to_numpy().reshape(rows.shape).argmax(1)


def test_a_cell_that_is_off_is_named_as_often_as_by_the_truth():
    # At 3 conditional standard deviations chance in the other cells names some of them: not even
    # who knows the distribution is always right. At 5 it hardly does.
    detector = VAEOutlierDetector(random_state=0).fit(_rows(1000))
    precision = np.linalg.inv(COVARIANCE)
    for size, least in ((3.0, 0.8), (5.0, 0.95)):
        spoilt, column = _planted(_rows(1000, seed=7), size)
        z = (spoilt - 3.0) @ precision / np.sqrt(np.diag(precision))
        by_truth = (np.abs(z).argmax(1) == column).mean()
        found = (_named(detector, spoilt) == column).mean()
        assert found > by_truth - 0.02 and found > least


def test_explanations_are_at_least_as_right_as_leaving_each_cell_out_and_scoring_again():
    detector = VAEOutlierDetector(random_state=0).fit(_rows(1000))
    spoilt, column = _planted(_rows(300, seed=7), 4.0)
    score, gains = detector.score_samples(spoilt), []
    for d in range(6):
        without = spoilt.copy()
        without[:, d] = np.nan
        gains.append(detector.score_samples(without) - score)
    left_out = (np.argmax(gains, axis=0) == column).mean()
    assert (_named(detector, spoilt) == column).mean() >= left_out


@pytest.mark.parametrize("wild", [1e3, 1e9, 1e150])
def test_a_wild_cell_is_named_and_shares_stay_finite(wild, fitted):
    for d in range(6):
        spoilt = NEW.copy()
        spoilt[:, d] *= wild
        assert (_named(fitted, spoilt) == d).all()
        assert np.isfinite(fitted.explain(spoilt)["share"]).all()


def test_a_level_that_does_not_go_with_the_others_is_named():
    # Every column says which of four groups the row is in, mostly.
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 600)
    agrees = rng.uniform(size=(600, 6)) < 0.9
    levels = np.where(agrees, group[:, None], rng.integers(0, 4, (600, 6)))
    names = np.array(["north", "east", "south", "west"])
    training = pandas.DataFrame(names[levels], columns=list("abcdef")).astype("category")
    detector = VAEOutlierDetector(random_state=0).fit(training)
    right = np.repeat(np.arange(4), 6)
    usual = names[right[:, None] * np.ones(6, dtype=int)]
    spoilt, planted = usual.copy(), np.tile(np.arange(6), 4)
    spoilt[np.arange(24), planted] = names[(right + 2) % 4]
    usual, spoilt = (pandas.DataFrame(t, columns=list("abcdef")) for t in (usual, spoilt))
    assert (detector.score_samples(spoilt) < detector.score_samples(usual)).all()
    assert_array_equal(_named(detector, spoilt), planted)
    cells = detector.explain(spoilt)["expected"].to_numpy().reshape(24, 6)
    assert_array_equal(cells[np.arange(24), planted], names[right])


def test_a_level_that_was_never_seen_is_named():
    detector = VAEOutlierDetector(random_state=0).fit(_customers())
    new = _customers(30, seed=3)
    new["region"] = "west"
    with pytest.warns(UserWarning, match="No cell of column 'region'"):
        found = detector.explain(new)["share"].to_numpy().reshape(30, 5)
    assert (found.argmax(1) == 4).mean() > 0.9


def test_labels_of_several_levels_stay_such_in_an_explanation():
    index = pandas.MultiIndex.from_product([["a", "b"], range(20)], names=["site", None])
    columns = pandas.MultiIndex.from_product([["x", "y"], ["p", "q", "r"]])
    frame = pandas.DataFrame(X[:40], index=index, columns=columns)
    found = VAEOutlierDetector(random_state=0).fit(frame).explain(frame.iloc[:3])
    assert found.index.nlevels == 4 and found.index.names[0] == "site"
    assert found.loc[("a", 2, "y", "q"), "value"] == frame.loc[("a", 2), ("y", "q")]


def test_a_wild_cell_in_training_spoils_no_interval():
    rows = X[:40, :3].copy()
    rows[0, 0] = 1e6
    found = VAEOutlierDetector(random_state=0).fit(rows).explain(NEW[:1, :3])
    assert (found["upper"] - found["lower"]).max() < 20.0


def test_the_users_rows_are_not_changed(fitted):
    for make in (_customers, lambda: polars.from_pandas(_customers())):
        rows, before = make(), make()
        VAEOutlierDetector(random_state=0).fit(rows).explain(rows)
        assert rows.equals(before)
