"""Tables whose columns share their row's total: what is fitted, scored, drawn and imputed."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import csr_array

import skvae._start.linear_start
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._start import linear_start
from skvae.likelihoods import Multinomial

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|importance weight):UserWarning"),
]

N, D = 160, 12


def _vae(**params):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 0, "random_state": 0}
    return VAETransformer(**small | {"likelihood": "multinomial"} | params)


def _choices(n_rows=N, seed=0):
    """Choices of users with two tastes among 12 items, and how they share them out."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(n_rows, 2)) @ np.random.default_rng(1).normal(size=(2, D))
    p = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    n = rng.integers(5, 60, n_rows)
    return np.array([rng.multinomial(*each) for each in zip(n, p, strict=True)], float), p


X, SHARES = _choices()
NEW, NEW_SHARES = _choices(seed=2)


def _shares(X):
    return X / X.sum(1, keepdims=True)


# -- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"max_iter": 3}], ids=["start", "trained"])
def test_sparse_rows_are_those_of_the_dense_table(params):
    dense, rare = _vae(**params).fit(X), _vae(**params).fit(csr_array(X))
    assert_allclose(rare.transform(csr_array(NEW)), dense.transform(NEW), rtol=1e-5, atol=1e-6)
    scores = rare.score_samples(csr_array(NEW), method="elbo")
    assert_allclose(scores, dense.score_samples(NEW, method="elbo"), rtol=1e-5)


def test_weights_are_copies():
    weight = np.arange(N) % 3
    weighted = _vae().fit(X, sample_weight=weight)
    repeated = _vae().fit(np.repeat(X, weight, axis=0))
    assert_allclose(weighted.transform(NEW), repeated.transform(NEW), rtol=1e-5, atol=1e-6)


def test_the_start_finds_the_shares():
    vae = _vae().fit(X)
    found = _shares(vae.inverse_transform(vae.transform(NEW)))
    error, of_all = (np.abs(one - NEW_SHARES).mean() for one in (found, SHARES.mean(0)))
    assert error < 0.5 * of_all


def test_the_encoder_of_the_start_is_fitted_to_its_decoder(monkeypatch):
    def gap():
        vae = _vae().fit(X)
        return (vae.score_samples(NEW) - vae.score_samples(NEW, method="elbo")).mean()

    with_it = gap()
    monkeypatch.setattr(skvae._start.linear_start, "fit_encoder", lambda *_: None)
    assert 0.0 < with_it < 0.6 * gap()


def test_training_is_never_below_its_start():
    rows, _ = _choices(700)
    vae = _vae(max_iter=20, tol=0.0).fit(rows)
    assert max(vae.validation_scores_) >= vae.validation_scores_[0]
    trained = vae.score_samples(NEW, method="elbo").mean()
    assert trained >= _vae().fit(rows).score_samples(NEW, method="elbo").mean() - 1e-9


def test_a_fit_by_hand_is_a_fit_by_autograd(monkeypatch):
    class Same(Multinomial):
        pass

    def fits(max_iter):
        return [_vae(likelihood=k, max_iter=max_iter).fit(X) for k in (Multinomial(), Same())]

    # The decoders that they begin with are as good, but found by other steps: so none is sought.
    one, other = (vae.score_samples(NEW, method="elbo").mean() for vae in fits(0))
    assert_allclose(one, other, rtol=1e-5)
    monkeypatch.setattr(linear_start, "fit_decoder", lambda *args: None)
    one, other = fits(3)
    assert_allclose(one.transform(NEW), other.transform(NEW), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", [{"objective": "iwae"}, {"prior": "mixture"}, {"beta": 0.2}])
def test_other_objectives_and_priors_have_finite_scores(how):
    vae = _vae(max_iter=3, **how).fit(X)
    assert np.isfinite(vae.score_samples(NEW, method="elbo")).all()


def test_float32_is_as_good():
    vae, of_float32 = _vae().fit(X), _vae().fit(X.astype(np.float32))
    codes = of_float32.transform(NEW.astype(np.float32))
    assert codes.dtype == np.float32
    assert_allclose(codes, vae.transform(NEW), rtol=1e-3, atol=1e-4)


def test_a_pickle_says_the_same():
    vae = _vae(max_iter=2).fit(X)
    again = pickle.loads(pickle.dumps(vae))
    assert_array_equal(again.transform(NEW), vae.transform(NEW))
    assert_array_equal(again.sample(5, random_state=0), vae.sample(5, random_state=0))


# -- scores ---------------------------------------------------------------------------------------


def test_the_log_likelihood_is_the_integral_over_one_component():
    vae = _vae(n_components=1).fit(X)
    node, weight = np.polynomial.hermite_e.hermegauss(200)
    means = vae.set_params(whiten=True).inverse_transform(node[:, None])
    p = _shares(means)
    for row, score in zip(NEW[:20], vae.score_samples(NEW[:20]), strict=True):
        given_z = stats.multinomial(row.sum(), p).pmf(row)
        assert score == pytest.approx(np.log(weight @ given_z / weight.sum()), abs=0.02)


def test_a_row_of_zeros_is_certain():
    vae = _vae().fit(X)
    zeros = np.zeros((1, D))
    assert vae.score_samples(zeros)[0] == pytest.approx(0.0, abs=1e-6)
    assert_allclose(vae.score_features(zeros), 0.0)


def test_shares_of_cells_add_up_to_the_reconstruction():
    vae = _vae().fit(X)
    total = vae.score_samples(NEW, method="reconstruction")
    assert_allclose(vae.score_features(NEW).sum(1), total, rtol=1e-6)


def test_rows_with_other_shares_are_outliers():
    detector = VAEOutlierDetector(_vae(), random_state=0).fit(X)
    odd = NEW[:, np.random.default_rng(3).permutation(D)]
    assert detector.score_samples(odd).mean() < detector.score_samples(NEW).mean()
    assert len(detector.explain(odd[:2]))


# -- draws and missing cells ----------------------------------------------------------------------


def test_a_count_comes_back_from_its_feature_beside_the_others_of_its_row():
    x = torch.tensor([[2.0, 0.0, 6.0, 1.0], [4.0, 4.0, 0.0, 0.0], [0.0, 3.0, 1.0, 0.0]]).double()
    seen = torch.tensor([[True] * 4, [True] * 4, [False, True, True, True]])
    multinomial = Multinomial()
    features = multinomial.features(x)
    assert_allclose(multinomial.given(x, seen).from_features(features), x, atol=1e-9)
    assert multinomial.from_features(features).isnan().all()  # of no row


def test_an_explanation_says_what_counts_were_expected():
    cells = VAEOutlierDetector(_vae()).fit(X).explain(NEW)
    expected, lower, upper = (cells[name].to_numpy() for name in ("expected", "lower", "upper"))
    assert ((lower <= expected) & (expected <= upper)).all()
    by_shares = (NEW_SHARES * NEW.sum(1, keepdims=True)).ravel()
    means = (X.mean(0) / X.sum(1).mean() * NEW.sum(1, keepdims=True)).ravel()
    assert np.abs(expected - by_shares).mean() < 0.75 * np.abs(means - by_shares).mean()


def test_draws_have_the_totals_and_shares_of_the_rows():
    vae = _vae().fit(X)
    drawn = vae.sample(4000, random_state=0)
    assert_array_equal(drawn, np.rint(drawn))
    assert drawn.sum(1).mean() == pytest.approx(X.sum(1).mean(), rel=0.05)
    assert drawn.sum(1).std() == pytest.approx(X.sum(1).std(), rel=0.15)
    assert np.abs(_shares(drawn.sum(0)[None]) - _shares(X.sum(0)[None])).max() < 0.05


def test_what_is_reconstructed_has_the_mean_total():
    vae = _vae().fit(X)
    back = vae.inverse_transform(vae.transform(NEW))
    assert_allclose(back.sum(1), X.sum(1).mean())


def test_a_missing_cell_does_not_count():
    # A cell of its own: the others are the multinomial of their own total.
    rows = NEW[:10].copy()
    rows[:, 3] = np.nan
    vae = _vae(n_components=1).fit(X)
    node, weight = np.polynomial.hermite_e.hermegauss(200)
    p = _shares(np.delete(vae.set_params(whiten=True).inverse_transform(node[:, None]), 3, 1))
    for row, score in zip(np.delete(rows, 3, 1), vae.score_samples(rows), strict=True):
        given_z = stats.multinomial(row.sum(), p).pmf(row)
        assert score == pytest.approx(np.log(weight @ given_z / weight.sum()), abs=0.02)


def test_missing_cells_are_imputed_by_their_share_of_the_total():
    hidden = np.random.default_rng(0).uniform(size=X.shape) < 0.15
    imputer = VAEImputer(_vae(), random_state=0).fit(np.where(hidden, np.nan, X))
    found = imputer.transform(np.where(hidden, np.nan, X))
    truth = SHARES * X.sum(1, keepdims=True)
    mean = np.nanmean(np.where(hidden, np.nan, X), axis=0)
    error, of_mean = (np.abs(one - truth)[hidden].mean() for one in (found, mean))
    assert error < 0.6 * of_mean
    draws = imputer.sample_imputations(np.where(hidden, np.nan, X), 2)
    assert all((one[hidden] == np.rint(one[hidden])).all() for one in draws)


def test_what_is_missing_is_left_of_the_usual_total():
    rng = np.random.default_rng(0)
    odds = np.exp(rng.normal(size=(150, 2)) @ rng.normal(size=(2, 8)))
    counts = np.stack([rng.multinomial(30, row / row.sum()) for row in odds]).astype(float)
    imputer = VAEImputer(_vae(), random_state=0).fit(counts)  # all totals are 30
    row = np.full((1, 8), np.nan)
    row[0, int(counts.sum(0).argmin())] = 10.0
    assert_allclose(imputer.transform(row).sum(), 30.0, rtol=1e-6)
    assert_allclose(imputer.vae_.sample(given=np.tile(row, (50, 1))).sum(1).mean(), 30.0, atol=1.5)


# -- beside other columns, and errors -------------------------------------------------------------


def test_columns_beside_others_are_one_multinomial():
    spent = np.log(X[:, :1] + 1.0) + np.random.default_rng(0).normal(size=(N, 1))
    both = np.concatenate([spent, X], axis=1)
    kinds = dict.fromkeys(range(1, D + 1), "multinomial")
    vae = _vae(likelihood=kinds).fit(both)
    assert vae.likelihood_.tolist() == ["gaussian", *["multinomial"] * D]
    back = vae.inverse_transform(vae.transform(both))
    assert_allclose(back[:, 1:].sum(1), X.sum(1).mean())
    assert np.isfinite(vae.score_samples(both)).all()


@pytest.mark.parametrize("kind", ["multinomial", Multinomial()])
def test_a_column_cannot_share_a_total_with_none(kind):
    message = "says how columns share their row's total, but column 1 alone has it"
    with pytest.raises(ValueError, match=message):
        _vae(likelihood={1: kind}).fit(X)


def test_counts_must_be_whole_and_not_negative():
    for wrong in (-1.0, 0.5):
        bad = X.copy()
        bad[7, 2] = wrong
        with pytest.raises(ValueError, match=f"non-negative integers; row 7 holds {wrong}"):
            _vae().fit(bad)


def test_cells_alone_have_no_distribution():
    imputer = VAEImputer(_vae(), random_state=0).fit(X)
    with pytest.raises(ValueError, match="so a cell alone has no distribution"):
        imputer.predict_cells(NEW[:3])
