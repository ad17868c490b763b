"""One table of priors drives these tests: a new prior is one row."""

import copy
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_iris, load_wine

from skvae import VAETransformer
from skvae.priors import PRIORS, Mixture, Prior, StandardNormal, fit_mixture

K = 2
MEANS = np.array([[0.0, 0.0], [3.0, 1.0], [-2.0, 2.0]])
ROOTS = np.array([[[1.0, 0.0], [0.5, 0.8]], [[0.4, 0.0], [0.1, 0.3]], [[0.6, 0.0], [0.0, 1.5]]])
SHARES = np.array([0.5, 0.3, 0.2])


class Case(NamedTuple):
    prior: Prior  # with values of what it learns
    log_density: Any  # of z (N, K), by scipy


def mixture():
    """Three Gaussians, as a prior that has learned them."""
    precisions = np.linalg.inv(ROOTS @ ROOTS.transpose(0, 2, 1))
    values = {"logits": np.log(SHARES), "means": MEANS, "factors": np.linalg.cholesky(precisions)}
    return Mixture(3).with_values({name: torch.from_numpy(v) for name, v in values.items()})


def mixture_density(z):
    parts = [
        share * stats.multivariate_normal(mean, root @ root.T).pdf(z)
        for share, mean, root in zip(SHARES, MEANS, ROOTS, strict=True)
    ]
    return np.log(sum(parts))


CASES = {
    "normal": Case(StandardNormal(), stats.multivariate_normal(np.zeros(K)).logpdf),
    "mixture": Case(mixture(), mixture_density),
}
each_prior = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def somewhere(n=50):
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randn((n, K), generator=generator, dtype=torch.float64)


def test_every_prior_has_a_row_in_the_table():
    assert {type(case.prior) for case in CASES.values()} == set(PRIORS.values())


@each_prior
def test_the_log_density_is_scipys(case):
    z = somewhere()
    np.testing.assert_allclose(case.prior.log_prob(z), case.log_density(z.numpy()), rtol=1e-12)
    stacked = torch.stack([z, z + 1.0])  # samples may stand in front
    torch.testing.assert_close(case.prior.log_prob(stacked)[1], case.prior.log_prob(z + 1.0))


@each_prior
def test_the_density_integrates_to_one(case):
    line = torch.linspace(-12.0, 12.0, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    total = case.prior.log_prob(grid).exp().sum() * float(line[1] - line[0]) ** K
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@each_prior
def test_draws_have_the_density(case):
    draws = case.prior.sample(100_000, K, torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float64 and draws.shape == (100_000, K)
    line = np.linspace(-12.0, 12.0, 601)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    density = np.exp(case.log_density(grid)) * (line[1] - line[0])
    for axis in range(K):
        below = np.interp(draws[:, axis], line, (density.sum(1 - axis) / density.sum()).cumsum())
        assert stats.kstest(below, "uniform").statistic < 0.015


@each_prior
def test_the_precision_is_positive_and_not_below_minus_the_hessian(case):
    z = somewhere(20)
    precision = case.prior.precision(z).expand(20, K, K)
    assert bool((torch.linalg.eigvalsh(precision) > 0.0).all())
    for at, own in zip(z, precision, strict=True):
        hessian = torch.autograd.functional.hessian(lambda v: case.prior.log_prob(v[None])[0], at)
        assert float(torch.linalg.eigvalsh(own + hessian).min()) > -1e-9
    assert float(torch.linalg.eigvalsh(precision[0]).min()) > 0.0


@each_prior
def test_the_gradient_is_that_of_the_density(case):
    z = somewhere(5).requires_grad_()
    assert torch.autograd.gradcheck(case.prior.log_prob, z)


@each_prior
def test_a_prior_survives_pickling_and_copies(case):
    values = vars(case.prior)
    for same in (pickle.loads(pickle.dumps(case.prior)), copy.deepcopy(case.prior)):
        learned = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
        again = same.with_values(learned)
        torch.testing.assert_close(again.log_prob(somewhere()), case.prior.log_prob(somewhere()))
        assert same == case.prior and hash(same) == hash(case.prior)


# -- mixtures -------------------------------------------------------------------------------------


def drawn(n=4000):
    return mixture().sample(n, K, torch.Generator().manual_seed(1))


def test_em_finds_the_mixture_that_codes_come_from():
    z = drawn(20_000)
    fit = fit_mixture(z, torch.ones(20_000, dtype=torch.float64), 3)
    order = np.argsort(fit.mean[:, 0].numpy())[[1, 2, 0]]  # of MEANS
    np.testing.assert_allclose(fit.mean[order], MEANS, atol=0.15)
    np.testing.assert_allclose(fit.log_share.exp()[order], SHARES, atol=0.02)
    # What the covariances are off by, too, is next to nothing in nats: KL(truth || fit).
    new = mixture().sample(50_000, K, torch.Generator().manual_seed(2))
    found, truth = torch.logsumexp(fit.log_joint(new), 1), mixture().log_prob(new)
    assert abs(float((truth - found).mean())) < 0.002


def test_em_counts_codes_by_their_weight():
    codes, weight = drawn(300), torch.arange(300.0, dtype=torch.float64) % 3
    repeated = codes.repeat_interleave(weight.long(), 0)
    one = fit_mixture(codes, weight, 2)
    other = fit_mixture(repeated, torch.ones(len(repeated), dtype=torch.float64), 2)
    value = [torch.logsumexp(fit.log_joint(codes), 1).mean() for fit in (one, other)]
    assert float(value[0]) == pytest.approx(float(value[1]), abs=0.05)


def test_there_is_a_gaussian_for_each_hundred_rows_and_one_for_fewer():
    for n_rows, number in ((150, 1), (700, 7), (9000, 50)):
        values = Mixture().from_codes(drawn(n_rows), torch.ones(n_rows))
        assert int((values["logits"] > -20.0).sum()) == number
    alone = Mixture().from_codes(drawn(150), torch.ones(150))
    torch.testing.assert_close(alone["factors"][0], torch.eye(K, dtype=torch.float64))
    assert bool((alone["means"][0] == 0.0).all())


def test_few_codes_make_a_mixture_that_is_finite():
    for n_rows in (1, 3, 10):
        for n_clusters in ("auto", 5):
            values = Mixture(n_clusters).from_codes(somewhere(n_rows), torch.ones(n_rows))
            assert all(bool(value.isfinite().all()) for value in values.values())


def test_its_number_of_gaussians_is_checked():
    with pytest.raises(ValueError, match="'n_clusters' parameter of Mixture must be"):
        Mixture(0)


# -- in a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_with_a_mixture_the_start_is_the_closed_form(load):
    X = load().data
    normal = VAETransformer(2, max_iter=0).fit(X)
    mixed = VAETransformer(2, max_iter=0, prior="mixture").fit(X)
    np.testing.assert_allclose(mixed.score_samples(X), normal.score_samples(X), atol=1e-6)
    np.testing.assert_allclose(np.abs(mixed.transform(X)), np.abs(normal.transform(X)), atol=1e-6)


def test_a_mixture_raises_the_bound_where_rows_come_in_clusters():
    X = load_digits().data
    bounds = {
        prior: max(
            VAETransformer(10, prior=prior, random_state=0, max_iter=30).fit(X).validation_scores_
        )
        for prior in PRIORS
    }
    assert bounds["mixture"] > bounds["normal"] + 1.0


def test_log_p_under_a_mixture_is_right():
    """Against the integral over z of a model with two components."""
    X = load_iris().data
    vae = VAETransformer(2, prior=Mixture(3), random_state=0, max_iter=20)
    vae.fit(X)
    assert vae.best_iter_ > 0
    module = vae.model_.module()
    line = torch.linspace(-9.0, 9.0, 401, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)[:, None, :]
    x, observed = vae.model_.columns.encode(X[::15])
    rows = torch.from_numpy(x)
    with torch.no_grad():
        parts = [module.log_joint(rows, observed, some) for some in z.split(20_000)]
    log_p = torch.logsumexp(torch.cat(parts), 0) + 2.0 * torch.log(line[1] - line[0])
    expected = log_p.numpy() + vae.model_.columns.log_jacobian.sum()
    np.testing.assert_allclose(vae.score_samples(X[::15]), expected, atol=0.05)


def test_samples_follow_the_mixture():
    rng = np.random.default_rng(0)
    X = np.repeat([[0.0, 0.0, 0.0], [9.0, 0.0, 5.0], [0.0, 9.0, -5.0]], 300, axis=0)
    X += rng.normal(size=X.shape)
    drawn = VAETransformer(2, prior="mixture", random_state=0).fit(X).sample(900, random_state=0)
    nearest = np.linalg.norm(drawn[:, None] - X, axis=2).min(1)
    normal = VAETransformer(2, random_state=0, max_iter=0).fit(X).sample(900, random_state=0)
    others = np.linalg.norm(normal[:, None] - X, axis=2).min(1)
    assert np.median(nearest) < 0.5 * np.median(others)
