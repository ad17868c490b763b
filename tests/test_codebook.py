"""Where a search for a row's modes begins, and whether it finds them."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import gammaln, logsumexp
from scipy.stats import poisson
from test_vae import each_likelihood, random_vae, rows

from skvae import VAETransformer
from skvae._health import unreliable
from skvae._inference import modes
from skvae._inference.codebook import CODES, LEAVES, codebook_of, spread_codes, starts_of

pytestmark = pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|still rising)")


def _points(vae, n_points=50):
    return vae.points(torch.randn(n_points, 3, generator=torch.Generator().manual_seed(1)).double())


def _model_and_rows(name, missing):
    x = rows()
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    return random_vae(name), x, seen if missing else None


def _elementwise(vae, x, observed, z):
    with torch.no_grad():
        return torch.stack([vae.log_joint(x, observed, each.expand(len(x), -1)) for each in z], 1)


@pytest.mark.parametrize("missing", [False, True])
@each_likelihood
def test_log_joint_at_points_is_that_of_each_point_up_to_a_constant_of_the_row(name, missing):
    vae, x, observed = _model_and_rows(name, missing)
    points = _points(vae)
    found = vae.log_joint_at(x, observed, points)
    expected = _elementwise(vae, x, observed, points.z)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1])


@pytest.mark.parametrize("missing", [False, True])
@each_likelihood
def test_value_gradient_and_curvature_at_points_are_those_of_the_decoder(name, missing):
    vae, x, observed = _model_and_rows(name, missing)
    points = _points(vae, len(x))
    value, gradient, curvature = vae.log_joint_and_slope(x, observed, points)
    expected, slope = vae.log_joint_and_gradient(x, observed, points.z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(curvature, vae.curvature(points.z, x, observed))


@each_likelihood
def test_the_starts_of_a_row_begin_with_its_best_point_and_are_apart(name):
    vae, x = random_vae(name), rows()
    codebook = codebook_of(vae, torch.randn(700, 3, dtype=torch.float64))
    assert len(codebook.points.z) % LEAVES == 0
    starts = torch.stack(starts_of(codebook, vae, x, None, 8))
    log_joint = _elementwise(vae, x, None, codebook.points.z)
    best = log_joint.gather(1, starts[:1].T)[:, 0]
    torch.testing.assert_close(best, log_joint.amax(1))
    for of_row in codebook.points.z[starts].transpose(0, 1):
        assert float(torch.pdist(of_row).min()) > 0.3 * np.sqrt(3)


def test_spread_codes_keep_the_extreme_ones():
    codes = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    codes[1234] = 30.0
    kept = spread_codes(codes)
    assert len(kept) == CODES
    assert bool((kept == 30.0).all(1).any())
    few = codes[:100]
    assert torch.equal(spread_codes(few), few)


def _sheet_of_counts(n_rows, seed):
    """Counts along a bent sheet."""
    rng = np.random.RandomState(seed)
    z = rng.randn(n_rows, 2)
    draws = ((100, 2), (101, 2), (102, 1), (103, 1))
    a, b, c, d = (np.random.RandomState(key).randn(n, 8) for key, n in draws)
    f = z @ a + 1.5 * np.sin(1.7 * z @ b + c) + 0.5 * (z[:, :1] ** 2 - 1) * d
    return rng.poisson(np.exp(np.clip(1 + 0.6 * f, -3, 6))).astype(float)


@pytest.fixture(scope="module")
def counts():
    X, far, i = _sheet_of_counts(1500, 0), _sheet_of_counts(24, 7), np.arange(24)
    far[i, i % 8] = far[i, i % 8] * 20 + 200
    vae = VAETransformer(
        2, whiten=True, likelihood="poisson", noise="per_column", hidden_layer_sizes=(64, 64)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vae.set_params(max_iter=60, random_state=0).fit(X), far


def test_the_log_likelihood_of_far_rows_of_counts_is_the_integral(counts):
    vae, far = counts
    side = np.linspace(-8, 8, 641)
    z = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    rate = vae.inverse_transform(z)
    log_weight = -0.5 * (z**2).sum(1) - np.log(2 * np.pi) + 2 * np.log(side[1] - side[0])
    log_p = far @ np.log(rate).T - rate.sum(1) - gammaln(far + 1.0).sum(1, keepdims=True)
    np.testing.assert_allclose(log_p[:, 7], poisson.logpmf(far, rate[7]).sum(1), rtol=1e-12)
    truth = logsumexp(log_weight + log_p, axis=1)
    # What lies beyond the grid can only add to the truth, so too low is what would be wrong.
    assert (vae.score_samples(far) - truth).min() > -0.1


def test_the_gap_tells_of_a_search_that_was_still_finding_modes(counts, monkeypatch):
    vae, far = counts[0], counts[1].copy()
    far[np.arange(24), np.arange(24) % 8] *= 2.0  # further out, two starts miss modes of more rows
    complete, diagnostics = vae.score_samples(far, return_diagnostics=True)
    assert (diagnostics["mode_gap"] >= 0.0).all()
    assert not unreliable(diagnostics).any()
    monkeypatch.setattr(modes, "N_STARTS", 2)  # too few to find all
    monkeypatch.setattr(modes, "MORE_SEARCHES", 1)
    score, diagnostics = vae.score_samples(far, return_diagnostics=True)
    found = diagnostics["mode_gap"] > 0.1
    assert found.any()
    assert unreliable(diagnostics)[found].all()
    assert (np.abs(score - complete) > 0.1)[~unreliable(diagnostics)].sum() <= 1


def test_more_of_the_same_samples_and_of_others_weigh_as_one_mixture(counts):
    # Whatever proposals a row went through, its estimate is that of very many samples.
    vae, far = counts
    score, diagnostics = vae.score_samples(far, return_diagnostics=True)
    many = VAETransformer(**{**vae.get_params(), "n_importance_samples": 4096})
    many.__dict__.update({k: v for k, v in vae.__dict__.items() if k != "n_importance_samples"})
    assert (diagnostics["n_samples"] > 64).any()
    np.testing.assert_allclose(score, many.score_samples(far), atol=0.06)


@pytest.mark.parametrize("value", [1e20, 1e50, -1e76, 1e100, 1e153, 1e155, 1e200, 1.7e308])
def test_a_wild_row_is_scored_as_such_and_keeps_no_other_from_being_scored(value):
    rng = np.random.RandomState(0)
    X = rng.randn(200, 2) @ rng.randn(2, 5) + 0.3 * rng.randn(200, 5)
    vae = VAETransformer(2, hidden_layer_sizes=(16,), max_iter=3, random_state=0).fit(X)
    rows = X[:3].copy()
    rows[1] = value
    with np.errstate(over="ignore"):
        scores, alone = vae.score_samples(rows), vae.score_samples(rows[1:2])
    assert scores[1] < -1e30  # -inf from where the square is beyond all floats
    assert alone[0] == pytest.approx(scores[1], rel=1e-9)
    np.testing.assert_allclose(scores[[0, 2]], vae.score_samples(X[[0, 2]]), rtol=1e-7)
