"""Refined importance sampling: exact where it can be, and it says how good it is elsewhere."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import genpareto
from sklearn.datasets import load_wine

from skvae import VAETransformer
from skvae._health import unreliable
from skvae._inference.diagnostics import (
    effective_sample_size,
    generalised_pareto_k,
    pareto_k,
    standard_error,
)
from skvae._inference.importance import ACCURACY

pytestmark = pytest.mark.filterwarnings(
    "ignore:(.|\n)*(inactive|its floor|importance weight|still rising)"
)
NAMES = {"effective_sample_size", "pareto_k", "n_samples", "standard_error", "mode_gap"}
WINE = load_wine().data


def _log_weights(*size, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(size, generator=generator, dtype=torch.float64)


# -- closed forms ---------------------------------------------------------------------------------


def test_equal_weights_are_all_effective_and_have_no_tail():
    log_w = torch.full((64, 3), -7.0, dtype=torch.float64)
    assert effective_sample_size(log_w).tolist() == pytest.approx(3 * [64.0])
    assert pareto_k(log_w).tolist() == 3 * [-np.inf]


def test_weights_that_are_a_multiple_of_the_control_are_all_effective_and_have_no_tail():
    log_w = _log_weights(64, 5)
    assert effective_sample_size(log_w, log_w - 3.0).tolist() == pytest.approx(5 * [64.0])
    assert pareto_k(log_w, log_w - 3.0).tolist() == 5 * [-np.inf]
    assert float(standard_error(log_w, log_w - 3.0).max()) < 1e-12


def test_one_weight_that_holds_everything_is_one_sample_with_the_heaviest_tail():
    log_w = torch.full((64, 1), -500.0, dtype=torch.float64)
    log_w[17] = 0.0
    assert float(effective_sample_size(log_w)) == pytest.approx(1.0)
    assert float(pareto_k(log_w)) > 1.0


def test_without_a_control_the_effective_sample_size_is_kishs():
    log_w = _log_weights(50, 4, scale=2.0)
    w = torch.exp(log_w)
    torch.testing.assert_close(effective_sample_size(log_w), w.sum(0) ** 2 / (w**2).sum(0))


def test_half_the_samples_of_no_weight_are_half_the_effective_samples():
    log_w = torch.zeros((64, 1), dtype=torch.float64)
    log_w[::2] = -1e3
    assert float(effective_sample_size(log_w)) == pytest.approx(32.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_neither_diagnostic_depends_on_the_scale_of_the_weights(scale):
    log_w = _log_weights(200, 5)
    moved = log_w + np.log(scale)
    torch.testing.assert_close(pareto_k(moved), pareto_k(log_w))
    torch.testing.assert_close(effective_sample_size(moved), effective_sample_size(log_w))


# -- the generalised Pareto fit -------------------------------------------------------------------


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.7, 1.0, 1.5])
def test_k_is_recovered_from_samples_of_a_generalised_pareto_distribution(k):
    x = np.sort(genpareto(k, scale=3.0).rvs((2000, 30), random_state=0), axis=0)
    found = generalised_pareto_k(torch.from_numpy(x)).numpy()
    n = len(x)
    expected = (n * k + 5.0) / (n + 10.0)  # the prior of k = 0.5, worth ten observations
    spread = (1.0 + max(k, 0.0)) / np.sqrt(n)  # asymptotic standard error of one fit
    assert abs(found.mean() - expected) < 4.0 * spread / np.sqrt(30)
    assert found.std() < 1.5 * spread


def test_the_fit_is_that_of_maximum_likelihood_but_for_the_prior():
    x = np.sort(genpareto(0.6).rvs(5000, random_state=1))
    (found,) = generalised_pareto_k(torch.from_numpy(x)[:, None]).tolist()
    assert found == pytest.approx(genpareto.fit(x, floc=0.0)[0], abs=0.01)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_k_of_pareto_weights_is_the_reciprocal_of_their_exponent(k):
    # P(w > t) = t^(-1 / k); the exceedances of any threshold have shape k.
    uniform = np.random.default_rng(0).uniform(size=(20_000, 20))
    found = pareto_k(torch.from_numpy(-k * np.log(uniform)))
    assert float(found.mean()) == pytest.approx(k, abs=0.05)


def test_bounded_weights_have_a_negative_k_and_log_normal_ones_a_heavier_tail_with_more_spread():
    uniform = np.random.default_rng(0).uniform(size=(4000, 10))
    assert float(pareto_k(torch.from_numpy(np.log(uniform))).max()) < 0.0
    ks = [float(pareto_k(_log_weights(2000, 10, scale=s)).mean()) for s in (0.3, 1.0, 3.0)]
    assert ks == sorted(ks)
    assert ks[0] < 0.3 and ks[2] > 0.7


@pytest.mark.parametrize(("n_samples", "known"), [(20, False), (21, True), (64, True)])
def test_a_tail_of_fewer_than_five_weights_says_nothing(n_samples, known):
    assert bool(torch.isfinite(pareto_k(_log_weights(n_samples, 1)))) == known


# -- the estimator --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curved():
    """A model far from linear, 20 of its rows, and these with one cell 8 sd off."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=(900, 2))
    X = np.c_[t, np.sin(2 * t[:, :1]), t[:, 1:] ** 2, t[:, :1] * t[:, 1:], np.tanh(t)]
    X = X + 0.2 * rng.normal(size=X.shape)
    vae = VAETransformer(2, hidden_layer_sizes=(32, 32), max_iter=60, random_state=0).fit(X[100:])
    assert vae.best_iter_ > 5
    wild = X[:20].copy()
    cell = np.arange(20), np.arange(20) % X.shape[1]
    wild[cell] += 8.0 * X.std(axis=0)[cell[1]]
    return vae, X[:100], wild


def _scored(vae, X, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vae.score_samples(X, return_diagnostics=True, **params)


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("n_importance_samples", [1, 7, 64])
@pytest.mark.parametrize("noise", ["shared", "per_column"])
def test_a_linear_model_needs_no_more_samples_and_knows_that_it_is_exact(
    noise, n_importance_samples, refine
):
    vae = VAETransformer(
        3, max_iter=0, noise=noise, n_importance_samples=n_importance_samples, random_state=0
    ).fit(WINE)
    _, diagnostics = _scored(vae, np.r_[WINE, 20.0 * WINE[:5]], refine=refine)
    assert (diagnostics["n_samples"] == n_importance_samples).all()
    np.testing.assert_allclose(diagnostics["effective_sample_size"], n_importance_samples)
    if n_importance_samples > 1 or refine:
        assert (diagnostics["pareto_k"] == -np.inf).all()


@pytest.mark.parametrize("refine", [True, False])
def test_diagnostics_are_one_number_a_row_and_leave_the_scores_as_they_are(curved, refine):
    vae, X, wild = curved
    scores, diagnostics = _scored(vae, np.r_[X, wild], refine=refine)
    np.testing.assert_array_equal(scores, vae.score_samples(np.r_[X, wild], refine=refine))
    assert set(diagnostics) == NAMES
    assert all(values.shape == (120,) for values in diagnostics.values())
    n_samples, size = diagnostics["n_samples"], diagnostics["effective_sample_size"]
    assert n_samples.dtype.kind == "i"
    assert (size > 0.99).all() and (size <= n_samples * (1 + 1e-12)).all()
    assert not np.isnan(diagnostics["pareto_k"]).any()


def test_only_rows_that_need_them_get_more_samples(curved):
    vae, X, wild = curved
    _, diagnostics = _scored(vae, np.r_[X, wild])
    assert set(diagnostics["n_samples"]) <= {64 * 2**stage for stage in range(6)}
    assert (diagnostics["n_samples"] == 64).mean() > 0.2
    assert (diagnostics["n_samples"] == 32 * 64).mean() < 0.5
    _, not_refined = _scored(vae, X, refine=False)
    assert (not_refined["n_samples"] == 64).all()


def test_a_score_is_as_close_to_that_of_many_samples_as_its_accuracy_says(curved):
    vae, X, _ = curved
    many = pickle.loads(pickle.dumps(vae)).set_params(n_importance_samples=2048)
    scores, diagnostics = _scored(vae, X)
    error = np.abs(scores - _scored(many, X)[0])
    settled = ~unreliable(diagnostics)
    assert settled.mean() > 0.95
    assert np.sqrt((error[settled] ** 2).mean()) < ACCURACY
    assert error[settled].max() < 3.0 * ACCURACY


@pytest.mark.parametrize("refine", [True, False])
def test_scores_and_diagnostics_of_a_row_do_not_depend_on_the_others(curved, refine, monkeypatch):
    vae, X, wild = curved
    rows = np.r_[wild, X[:40]]
    scores, diagnostics = _scored(vae, rows, refine=refine)
    parts = [_scored(vae, rows[i : i + 5], refine=refine) for i in range(0, 60, 5)]
    in_parts = {name: np.concatenate([of_part[name] for _, of_part in parts]) for name in NAMES}
    monkeypatch.setattr("skvae._inference.scores.CHUNK_NUMBERS", 1)  # chunks of one row
    one_by_one, of_one_by_one = _scored(vae, rows, refine=refine)
    np.testing.assert_allclose(np.concatenate([part for part, _ in parts]), scores, rtol=1e-9)
    np.testing.assert_allclose(one_by_one, scores, rtol=1e-9)
    for name in NAMES:
        np.testing.assert_allclose(in_parts[name], diagnostics[name], rtol=1e-6)
        np.testing.assert_allclose(of_one_by_one[name], diagnostics[name], rtol=1e-6)


def test_rows_that_the_encoder_has_never_seen_are_flagged_and_refining_cures_them(curved):
    vae, _, wild = curved
    _, by_encoder = _scored(vae, wild, refine=False)
    _, refined = _scored(vae, wild)
    assert unreliable(by_encoder).mean() > 0.7
    assert unreliable(refined).mean() < 0.1
    assert np.median(by_encoder["effective_sample_size"]) < 4.0


def test_the_flagged_rows_are_those_with_the_large_errors(curved):
    vae, X, wild = curved
    rows = np.r_[X, wild]
    coarse, diagnostics = _scored(vae, rows, refine=False)
    error = np.abs(coarse - _scored(vae, rows)[0])
    flagged = unreliable(diagnostics)
    assert np.median(error[flagged]) > 10.0 * np.median(error[~flagged])


@pytest.mark.parametrize("refine", [True, False])
def test_missing_cells_and_mixed_columns_have_diagnostics_too(refine):
    rng = np.random.default_rng(0)
    t = rng.normal(size=(300, 2))
    counts = rng.poisson(np.exp(0.5 * t[:, :1]))
    X = np.c_[t + 0.3 * rng.normal(size=(300, 2)), counts, t[:, :1] > 0.0]
    X[rng.uniform(size=X.shape) < 0.2] = np.nan
    likelihood = {2: "poisson", 3: "bernoulli"}
    vae = VAETransformer(2, likelihood=likelihood, max_iter=20, random_state=0).fit(X)
    scores, diagnostics = _scored(vae, X[:50], refine=refine)
    assert np.isfinite(scores).all()
    known = {name for name, values in diagnostics.items() if not np.isnan(values).any()}
    assert known == (NAMES if refine else NAMES - {"mode_gap"})  # only a search knows its gap
    if refine:
        assert not unreliable(diagnostics).any()


@pytest.mark.parametrize("method", ["elbo", "reconstruction", "kl"])
def test_a_score_without_importance_weights_has_no_diagnostics(curved, method):
    vae, X, _ = curved
    with pytest.raises(ValueError, match=f"needs method='log_likelihood'. Got method='{method}'"):
        vae.score_samples(X, method=method, return_diagnostics=True)
