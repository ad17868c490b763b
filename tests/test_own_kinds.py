"""A likelihood and a prior of the user's own are one class each, from outside the package."""

import copy
import math
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.integrate import trapezoid
from sklearn.base import clone
from torch import Tensor

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._gaussian import normal_log_prob
from skvae._training.hand_gradient import gradient_of
from skvae.likelihoods import Gaussian, Likelihood, LinearFit, LogNormal, StudentT, Support
from skvae.priors import Prior, StandardNormal

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*inactive, with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:The noise scale of:UserWarning"),
]
N = 520  # above 500 a part is held out: below, five folds take five times as long
rng = np.random.default_rng(0)
Z = rng.normal(size=(N, 1))
WAITING = rng.exponential(np.exp(Z @ [[0.6, -0.4, 0.5]] + [0.0, 2.0, -1.0]))  # times
MIXED = np.hstack([WAITING[:, :1], Z + 0.3 * rng.normal(size=(N, 2))])
CLUSTERS = rng.normal(size=(N, 3)) * 0.3 + np.where(rng.random((N, 1)) < 0.3, 3.0, -1.5)


class Exponential(Likelihood):
    """x_d ~ Exponential with mean e^raw_d: no parameters, and every default."""

    support = Support(1e-30, math.inf, "positive numbers", "scale")

    def log_prob(self, x, raw):
        return -raw - x * torch.exp(-raw)

    def mean(self, raw):
        return torch.exp(raw)

    def sample(self, raw, generator):
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        return -torch.exp(raw) * torch.log1p(-uniform)

    def information(self, raw):
        return torch.ones_like(raw)


@dataclass(frozen=True)
class Laplace(Likelihood):
    """x_d ~ Laplace(raw_d, scale_d): a setting of its own, and scales that it learns."""

    smallest: float = 0.01

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")
    log_scale: ClassVar[Tensor] = torch.zeros(1)

    def parameters(self, n_columns):
        return {"log_scale": torch.zeros(n_columns)}

    @property
    def limits(self):
        return {"log_scale": (math.log(self.smallest), math.inf)}

    def log_prob(self, x, raw):
        return -(x - raw).abs() * torch.exp(-self.log_scale) - self.log_scale - math.log(2.0)

    def mean(self, raw):
        return raw

    def sample(self, raw, generator):
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        centred = uniform - 0.5
        return raw - torch.exp(self.log_scale) * centred.sign() * torch.log1p(-2 * centred.abs())

    def information(self, raw):
        return torch.exp(-2.0 * self.log_scale).expand_as(raw)


@dataclass(frozen=True)
class TwoGaussians(Prior):
    """p(z) is a mixture of two Gaussians, whose parameters are learned."""

    component_axis: ClassVar = {"means": 1, "log_scales": 1}
    means: ClassVar[Tensor] = torch.zeros(2, 1)
    log_scales: ClassVar[Tensor] = torch.zeros(2, 1)
    logits: ClassVar[Tensor] = torch.zeros(2)

    def parameters(self, n_components):
        means = torch.stack([-torch.ones(n_components), torch.ones(n_components)])
        return {"means": means, "log_scales": torch.zeros_like(means), "logits": torch.zeros(2)}

    def from_codes(self, codes, weight):
        weight = weight.to(codes)[:, None]
        above = codes[:, :1] > (weight * codes).sum(0)[:1] / weight.sum()
        share = weight * torch.cat([~above, above], 1)  # (N, 2)
        means = share.T @ codes / share.sum(0)[:, None]
        squares = share.T @ codes.square() / share.sum(0)[:, None] - means.square()
        return {
            "means": means,
            "log_scales": 0.5 * torch.log(squares.clamp(min=0.01)),
            "logits": torch.log(share.sum(0)),
        }

    def _log_parts(self, z):  # (..., K) -> (..., 2)
        log_p = normal_log_prob(z[..., None, :], self.means, self.log_scales).sum(-1)
        return log_p + torch.log_softmax(self.logits, 0)

    def log_prob(self, z):
        return torch.logsumexp(self._log_parts(z), -1)

    def sample(self, n_samples, n_components, generator):
        share = torch.softmax(self.logits.double(), 0).expand(n_samples, -1)
        part = torch.multinomial(share, 1, generator=generator)[:, 0]
        size, like = (n_samples, n_components), {"dtype": torch.float64, "device": part.device}
        eps = torch.randn(size, generator=generator, **like)
        return (self.means[part] + torch.exp(self.log_scales[part]) * eps).double()

    def precision(self, z):
        share = torch.softmax(self._log_parts(z), -1)
        return torch.diag_embed(share @ torch.exp(-2.0 * self.log_scales))


def _vae(likelihood="auto", **parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_iter": 15, "random_state": 0}
    return VAETransformer(1, likelihood=likelihood, **defaults | parameters)


@pytest.fixture(scope="module", params=["all columns", "one of several", "with a scale"])
def own(request):
    """A model with a likelihood of one's own, and its rows."""
    if request.param == "all columns":
        return _vae(Exponential()).fit(WAITING), WAITING
    likelihood = {0: Exponential()} if request.param == "one of several" else {1: Laplace(0.02)}
    return _vae(likelihood).fit(MIXED), MIXED


@pytest.fixture(scope="module")
def two_gaussians():
    return _vae(prior=TwoGaussians(), noise="per_column").fit(CLUSTERS)


def _integrated(vae, X, n=4001, width=12.0):
    """log p(x) by numerical integration over the one component."""
    model = vae.model_
    module, (x, _) = model.module(), model.columns.encode(X)
    z = torch.linspace(-width, width, n, dtype=torch.float64)
    points = z[:, None, None].expand(-1, len(x), -1)
    log_joint = module.log_joint(torch.from_numpy(x), None, points).numpy()
    top = log_joint.max(0)
    log_p = top + np.log(trapezoid(np.exp(log_joint - top), z.numpy(), axis=0))
    return log_p + model.columns.log_jacobian.sum()


# -- a likelihood ---------------------------------------------------------------------------------


def test_an_own_likelihood_is_scored_right(own):
    vae, X = own
    assert_allclose(vae.score_samples(X[:50]), _integrated(vae, X[:50]), atol=0.02)


def test_training_an_own_likelihood_gains_on_its_start(own):
    vae, X = own
    start = clone(vae).set_params(max_iter=0).fit(X)
    assert vae.score(X) > start.score(X) - 1e-9


def test_an_own_likelihood_is_named_and_decoded(own):
    vae, X = own
    assert {"exponential", "laplace"} & set(vae.likelihood_)
    assert vae.inverse_transform(vae.transform(X)).shape == X.shape
    assert np.isfinite(vae.score_features(X)).all()


def test_an_own_likelihood_draws_rows_like_those_of_the_fit(own):
    vae, X = own
    drawn = vae.sample(4000, random_state=0)
    for column in np.flatnonzero(np.isin(vae.likelihood_, ["exponential", "laplace"])):
        assert stats.ks_2samp(drawn[:, column], X[:, column]).statistic < 0.1


def test_an_own_likelihood_fills_what_is_missing(own):
    vae, X = own
    holed = X.copy()
    holed[::3, 0] = np.nan
    filled = VAEImputer(clone(vae)).fit_transform(holed)
    assert np.isfinite(filled).all()
    error = np.abs(filled[::3, 0] - X[::3, 0]).mean()
    assert error < np.abs(np.nanmean(holed[:, 0]) - X[::3, 0]).mean()


def test_an_own_likelihood_ranks_outliers(own):
    vae, X = own
    detector = VAEOutlierDetector(clone(vae), random_state=0).fit(X)
    wild = X[:5].copy()
    wild[:, -1] += 50.0 * X[:, -1].std()
    assert detector.score_samples(wild).max() < np.quantile(detector.score_samples(X), 0.05)


def test_an_own_likelihood_is_pickled_and_cloned(own):
    vae, X = own
    other = pickle.loads(pickle.dumps(vae))
    assert_array_equal(other.score_samples(X[:9]), vae.score_samples(X[:9]))
    assert_array_equal(other.transform(X), vae.transform(X))
    assert_array_equal(clone(vae).fit(X).transform(X), vae.transform(X))


def test_own_parameters_are_learned_within_their_limits():
    vae = _vae({1: Laplace(0.9)}, max_iter=30).fit(MIXED)
    (log_scale,) = (v for k, v in vae.weights_.items() if k == "likelihood.parts.1.log_scale")
    assert log_scale[0] >= math.log(0.9) - 1e-6


def test_the_default_start_is_the_maximum_likelihood_of_the_marginal():
    x = torch.from_numpy(WAITING)
    fit = LinearFit(x.mean(0), x.std(0), 0.9 * x.std(0))
    start = Exponential().from_linear_fit(x, torch.ones(len(x)), fit)
    assert_allclose(start.bias, np.log(WAITING.mean(0)), rtol=1e-6)
    # One step of Fisher scoring: score x / mean - 1, information 1, so the slope is 1 / mean.
    assert_allclose(start.weight_per_loading, 1.0 / WAITING.mean(0), rtol=1e-6)


class _Counts(Likelihood):
    support = Support(0.0, math.inf, "counts")

    def mean(self, raw):
        return torch.exp(raw)

    def sample(self, raw, generator):
        return torch.poisson(self.mean(raw), generator=generator)

    def information(self, raw):
        return torch.exp(raw)


@dataclass(frozen=True)
class ZeroInflated(_Counts):
    """Poisson counts, or 0 with a probability that is learned."""

    share: ClassVar[Tensor] = torch.full((1,), 0.5)

    def parameters(self, n_columns):
        return {"share": torch.full((n_columns,), 0.5)}

    @property
    def limits(self):
        return {"share": (1e-6, 1.0 - 1e-6)}

    def log_prob(self, x, raw):
        counted = x * raw - torch.exp(raw) - torch.lgamma(x + 1.0) + torch.log1p(-self.share)
        nothing = torch.logaddexp(torch.log(self.share), torch.log1p(-self.share) - torch.exp(raw))
        return torch.where(x == 0.0, nothing, counted)


@dataclass(frozen=True)
class ShiftedTwice(_Counts):
    """Poisson counts whose log rate has two shifts, of which only the difference counts."""

    shift: ClassVar[Tensor] = torch.zeros(1, 2)

    def parameters(self, n_columns):
        return {"shift": torch.zeros(n_columns, 2)}

    def log_prob(self, x, raw):
        log_rate = raw + self.shift[:, 0] - self.shift[:, 1]
        return x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1.0)


@pytest.mark.parametrize(("kind", "share"), [(ZeroInflated, 0.3), (ShiftedTwice, 1.0)])
def test_what_a_likelihood_learns_of_a_column_is_fitted_with_its_decoder(kind, share):
    generator = np.random.default_rng(1)
    z, weights = generator.normal(size=(800, 2)), generator.normal(size=(2, 4))
    X = generator.poisson(5.0 * np.exp(0.4 * z @ weights)) * (generator.random((800, 4)) < share)
    vae, poisson = (VAETransformer(2, likelihood=k, max_iter=0) for k in (kind(), "poisson"))
    own, other = (v.fit(X).score_samples(X).mean() for v in (vae, poisson))
    if kind is ShiftedTwice:
        assert own >= other - 0.05
        return
    (found,) = (v for name, v in vae.weights_.items() if name.endswith(".share"))
    assert_allclose(found, (X == 0).mean(0), atol=0.08)
    assert own > other + 2.0


def test_who_inherits_a_likelihood_does_not_inherit_its_gradient_by_hand():
    class Twice(Gaussian):
        def log_prob(self, x, raw):
            return 2.0 * super().log_prob(x, raw)

    vae = _vae(Twice("shared"), max_iter=0).fit(CLUSTERS)
    module = vae.model_.fresh_module(torch.device("cpu")).requires_grad_(True)
    x, _ = vae.model_.columns.encode(CLUSTERS[:20])
    x, eps, weight = torch.from_numpy(x), torch.ones(1, 20, 1).double(), torch.ones(20).double()
    gradient_of(module, "elbo", 0.0)(x, None, weight, eps, 1.0)
    by_hand = module.decoder.linear.weight.grad.clone()
    module.zero_grad()
    terms = module(x, None, eps)
    (-(terms.log_px_z.mean(0) - terms.kl.sum(-1)).mean()).backward()
    torch.testing.assert_close(by_hand, module.decoder.linear.weight.grad)


# -- what the user said is kept -------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Gaussian(floor=0.5), Gaussian("shared", floor=0.5)])
def test_a_floor_of_the_users_is_the_floor(likelihood):
    X = np.repeat(rng.normal(size=(N, 1)), 3, axis=1)  # one component reproduces it exactly
    vae = _vae(likelihood).fit(X)
    assert (vae.noise_variance_ >= 0.999 * 0.25 * X.var(0)).all()
    assert (_vae().fit(X).noise_variance_ < 0.01 * X.var(0)).all()


def test_a_floor_of_the_users_is_in_units_of_the_scaled_columns():
    X = np.repeat(rng.normal(size=(N, 1)), 3, axis=1) * [1.0, 1e3, 1e-3]
    vae = _vae(Gaussian(floor=0.5)).fit(X)
    assert_allclose(np.sqrt(vae.noise_variance_), 0.5 * X.std(0), rtol=1e-3)


def test_degrees_of_freedom_of_the_users_are_kept():
    X = rng.standard_t(2.0, size=(N, 3))
    vae = _vae(StudentT(df=30.0), max_iter=0, hidden_layer_sizes=()).fit(X)
    assert not [name for name in vae.weights_ if name.endswith("log_excess")]
    block = vae.model_.module().likelihood.parts[0]
    x = torch.linspace(-9.0, 9.0, 7, dtype=torch.float64)[:, None].expand(-1, 3)
    scale = block.log_scale.exp().numpy()
    expected = stats.t(30.0, 0.0, scale).logpdf(x)
    assert_allclose(block.now.log_prob(x, torch.zeros_like(x)), expected, rtol=1e-10)


def test_noise_shared_reaches_log_normal_columns():
    X = np.exp(rng.normal(size=(N, 4)) * [0.1, 0.5, 1.0, 2.0])
    shared, own, instance = (
        _vae(likelihood, noise=noise, max_iter=0).fit(X).score_samples(X)
        for likelihood, noise in [
            ("log_normal", "shared"),
            ("log_normal", "per_column"),
            (LogNormal("shared"), "auto"),
        ]
    )
    assert_allclose(shared, instance, rtol=1e-10)
    assert np.abs(shared - own).max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian("common"), "'noise' parameter of Gaussian must be one of"),
        (lambda: Gaussian(floor=0.0), "'floor' parameter of Gaussian must be None or a number > 0"),
        (lambda: LogNormal(floor=-1), "'floor' parameter of LogNormal must be None"),
        (lambda: StudentT(df=1.0), "'df' parameter of StudentT must be None or a number > 1"),
    ],
)
def test_a_likelihood_refuses_what_it_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_likelihoods_are_plain_frozen_values():
    one = Gaussian(floor=0.1)
    assert one == Gaussian(floor=0.1) != Gaussian(floor=0.2)
    assert hash(one) == hash(Gaussian(floor=0.1))
    assert b"torch" not in pickle.dumps(one)
    with pytest.raises(AttributeError):
        one.floor = 0.2


# -- a prior --------------------------------------------------------------------------------------


def test_an_own_prior_is_trained_and_has_its_own_parameters(two_gaussians):
    weights = two_gaussians.weights_
    assert weights["prior.means"].shape == (2, 1)
    share = np.exp(weights["prior.logits"]) / np.exp(weights["prior.logits"]).sum()
    assert_allclose(np.sort(share), [0.3, 0.7], atol=0.1)  # as many rows as in each cluster
    plain = _vae(noise="per_column").fit(CLUSTERS)
    assert two_gaussians.score(CLUSTERS) > plain.score(CLUSTERS) - 0.02


def test_scores_under_an_own_prior_are_those_of_numerical_integration(two_gaussians):
    X = np.vstack([CLUSTERS[:40], CLUSTERS[:5] + np.array([4.0, -4.0, 0.0])])
    scores = two_gaussians.score_samples(X)
    assert_allclose(scores, _integrated(two_gaussians, X), atol=0.05)


def test_the_bound_under_an_own_prior_is_below_the_likelihood(two_gaussians):
    elbo = two_gaussians.score_samples(CLUSTERS, method="elbo")
    assert (elbo <= _integrated(two_gaussians, CLUSTERS) + 0.02).all()
    kl = two_gaussians.score_samples(CLUSTERS, method="kl")
    reconstruction = two_gaussians.score_samples(CLUSTERS, method="reconstruction")
    assert_allclose(reconstruction + kl, elbo, atol=1e-9)


def test_draws_come_from_an_own_prior(two_gaussians):
    drawn = two_gaussians.sample(3000, random_state=0)
    assert stats.ks_2samp(drawn[:, 0], CLUSTERS[:, 0]).statistic < 0.08


def test_renumbering_the_components_moves_the_parameters_of_an_own_prior():
    vae = _vae(prior=TwoGaussians(), max_iter=2).set_params(n_components=3).fit(MIXED)
    module, generator = vae.model_.fresh_module(torch.device("cpu")), torch.Generator()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.4, generator=generator.manual_seed(parameter.numel()))
    x = torch.from_numpy(vae.model_.columns.encode(MIXED[:20])[0])
    eps = torch.randn((4, 20, 3), generator=generator, dtype=torch.float64)
    before, other = module(x, None, eps), copy.deepcopy(module)
    order = torch.tensor([2, 0, 1])
    other.load_state_dict(module.reordered(module.state_dict(), order))
    after = other(x, None, eps[..., order])
    torch.testing.assert_close(other.prior.means, module.prior.means[:, order])
    for name in ("log_px_z", "log_pz", "log_qz_x", "kl"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


def test_components_under_an_own_prior_are_ordered_and_idle_ones_are_zero():
    vae = _vae(prior=TwoGaussians(), noise="per_column").set_params(n_components=3)
    vae.fit(np.hstack([CLUSTERS[:, :1], CLUSTERS[:, :1] + 0.1, rng.normal(size=(N, 1))]))
    assert (np.diff(vae.kl_per_component_) <= 0).all()
    idle = vae.kl_per_component_ < 0.01
    assert (vae.transform(CLUSTERS)[:, idle] == 0.0).all()


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_an_own_prior_is_trained_further(objective):
    vae = _vae(prior=TwoGaussians(), objective=objective, n_train_samples=2, warm_start=True)
    vae.fit(CLUSTERS)
    before = vae.score(CLUSTERS)
    assert vae.partial_fit(CLUSTERS).score(CLUSTERS) > before - 0.5
    assert vae.fit(CLUSTERS).score(CLUSTERS) > before - 0.5
    assert_array_equal(pickle.loads(pickle.dumps(vae)).transform(CLUSTERS), vae.transform(CLUSTERS))


def test_free_bits_need_a_divergence_of_each_component():
    with pytest.raises(
        ValueError, match=r"free_bits is an allowance .*Use free_bits=0 \(now 0.1\)"
    ):
        _vae(prior=TwoGaussians(), free_bits=0.1).fit(CLUSTERS)


# -- what own kinds may be, and what they may not -------------------------------------------------


class Beta(Likelihood):
    """x_d ~ Beta with mean sigmoid(raw_d), of concentration 10: no density at 0 and 1."""

    support = Support(1e-6, 1.0 - 1e-6, "numbers between 0 and 1")

    def _of(self, raw):
        mean = torch.sigmoid(raw).clamp(1e-4, 1.0 - 1e-4)
        return torch.distributions.Beta(10.0 * mean, 10.0 * (1.0 - mean), validate_args=False)

    def log_prob(self, x, raw):
        return self._of(raw).log_prob(x)

    def mean(self, raw):
        return torch.sigmoid(raw)

    def sample(self, raw, generator):
        mean = 10.0 * torch.sigmoid(raw)
        one, other = (torch._standard_gamma(a, generator=generator) for a in (mean, 10.0 - mean))
        return one / (one + other)

    def information(self, raw):
        p = torch.sigmoid(raw)
        return 10.0 * p * (1.0 - p) + 0.1


class SoftplusPoisson(Likelihood):
    """x_d ~ Poisson(log(1 + e^raw_d)): a link that is far from 0 for large counts."""

    support = Support(0.0, math.inf, "non-negative integers", whole=True)

    def mean(self, raw):
        return torch.nn.functional.softplus(raw) + 1e-6

    def log_prob(self, x, raw):
        rate = self.mean(raw)
        return x * torch.log(rate) - rate - torch.lgamma(x + 1.0)

    def sample(self, raw, generator):
        return torch.poisson(self.mean(raw), generator=generator)

    def information(self, raw):
        return torch.sigmoid(raw).square() / self.mean(raw)


class MyCategory(Likelihood):
    """Levels with equal chances but for the last: one raw parameter a column."""

    support = Support(0.0, math.inf, "the number of a level", whole=True)
    takes_levels = True

    def log_prob(self, x, raw):
        return torch.where(x > 1.5, torch.nn.functional.logsigmoid(raw), -raw.exp().log1p()) - (
            x < 1.5
        ) * math.log(2.0)

    def mean(self, raw):
        return torch.where(raw > 0.0, 2.0, 0.0).to(raw)

    def sample(self, raw, generator):
        last = torch.bernoulli(torch.sigmoid(raw), generator=generator)
        return torch.where(last > 0, 2.0, torch.bernoulli(0.5 * torch.ones_like(raw))).to(raw)

    def information(self, raw):
        return torch.sigmoid(raw) * torch.sigmoid(-raw)


def _shares(n=N, seed=1):
    shape = np.random.default_rng(seed)
    mean = 1.0 / (1.0 + np.exp(-(shape.normal(size=(n, 1)) @ [[1.0, -1.0, 0.7]])))
    return shape.beta(10.0 * mean, 10.0 * (1.0 - mean)).clip(1e-5, 1 - 1e-5)


def test_what_is_missing_is_filled_with_what_the_support_admits():
    X = _shares()
    holed = np.where(np.random.default_rng(2).random(X.shape) < 0.15, np.nan, X)
    vae = _vae(Beta()).fit(holed)
    assert np.isfinite(vae.score_samples(holed)).all()
    assert_allclose(vae.score_samples(X[:20]), _integrated(vae, X[:20]), atol=0.02)
    filled = VAEImputer(_vae(Beta())).fit_transform(holed)
    assert (filled > 0.0).all() and (filled < 1.0).all()


def test_an_empty_column_of_an_own_likelihood_is_no_nan():
    X = _shares()
    X[:, 1] = np.nan
    vae = _vae(Beta(), max_iter=0).fit(X)
    assert all(np.isfinite(weight).all() for weight in vae.weights_.values())


@pytest.mark.parametrize("mean", [3.0, 30.0, 300.0])
def test_the_default_start_finds_its_way_to_large_values(mean):
    counts = np.random.default_rng(3)
    X = counts.poisson(mean * np.exp(0.1 * counts.normal(size=(N, 1)) @ [[1.0, -1.0, 0.5]]))
    own, ours = (_vae(kind, max_iter=0).fit(X).score(X) for kind in (SoftplusPoisson(), "poisson"))
    assert own > ours - 1.0


@pytest.mark.parametrize("scaling", ["columns", None])
def test_the_default_start_finds_the_scale_of_its_own_parameters(scaling):
    X = 1e4 * np.random.default_rng(4).laplace(size=(N, 3)) + 1e5
    vae = _vae(Laplace(), scaling=scaling, max_iter=0, hidden_layer_sizes=()).fit(X)
    expected = stats.laplace(np.median(X, 0), np.abs(X - np.median(X, 0)).mean(0)).logpdf(X).sum(1)
    assert vae.score(X) > expected.mean() - 0.5


def test_an_own_likelihood_of_levels_is_one_of_categories():
    letters = np.random.default_rng(5).choice(list("abc"), size=(200, 2), p=[0.25, 0.25, 0.5])
    vae = _vae(MyCategory()).fit(letters)
    assert set(vae.sample(20, random_state=0).ravel()) <= set("abc")
    scores = VAEOutlierDetector(clone(vae), random_state=0).fit(letters).score_samples(letters)
    assert np.isfinite(scores).all()


class NoSupport(Exponential):
    support = None


@dataclass(frozen=True)
class WithList(Exponential):
    powers: list = ()


class TakenName(Exponential):
    def parameters(self, n_columns):
        return {"columns": torch.zeros(n_columns)}


class NoSuchUnits(Exponential):
    support = Support(0.0, math.inf, "positive numbers", "scaled")


class Summed(Exponential):
    def log_prob(self, x, raw):
        return super().log_prob(x, raw).sum(-1)


class Negative(Exponential):
    def information(self, raw):
        return -torch.ones_like(raw)


class Failing(Exponential):
    def mean(self, raw):
        return raw * (1 // 0)


class NoSuchParameter(Exponential):
    limits: ClassVar = {"rate": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (NoSupport(), "NoSupport needs an attribute 'support'"),
        (WithList([1]), "WithList must be hashable"),
        (TakenName(), "TakenName needs another name for its parameter 'columns'"),
        (NoSuchParameter(), "NoSuchParameter has limits of 'rate', but no such parameter"),
        (NoSuchUnits(), "NoSuchUnits has units 'scaled'; they must be one of 'location_scale'"),
        (Summed(), r"Summed.log_prob\(x, raw\) must return a value for each cell.* shape \(2,\)"),
        (Negative(), r"Negative.information\(raw\) must not be negative"),
        (Failing(), r"Failing fails in mean\(raw\): ZeroDivisionError"),
    ],
)
def test_a_likelihood_that_cannot_work_is_refused_with_what_it_lacks(likelihood, message):
    with pytest.raises(TypeError, match=message):
        _vae({0: likelihood}).fit(WAITING)


def test_whole_numbers_are_asked_for_on_a_line_without_ends():
    class Integers(Gaussian):
        support = Support(-math.inf, math.inf, "integers", whole=True)

    with pytest.raises(ValueError, match=r"needs integers; row 0 holds"):
        _vae(Integers()).fit(CLUSTERS)


def test_equal_likelihoods_are_one_and_others_are_not():
    one = {0: Gaussian("shared"), 1: "gaussian", 2: Gaussian("shared", floor=0.01)}
    vae = _vae(one, noise="shared", max_iter=0).fit(CLUSTERS)
    assert [part.columns for part in vae.model_.module().likelihood.parts] == [[0, 1], [2]]


def test_the_floor_of_log_normal_columns_has_no_unit():
    X = np.hstack([1e3 * Z, np.exp(0.05 * rng.normal(size=(N, 3)) + Z)])
    vae = _vae(dict.fromkeys((1, 2, 3), "log_normal"), scaling=None, max_iter=40).fit(X)
    (floor,) = (
        part.specification.floor
        for part in vae.model_.module().likelihood.parts
        if isinstance(part.specification, LogNormal)
    )
    assert floor == pytest.approx(1e-3)


class Wider(StandardNormal):
    """Another density; the formula of the divergence is not its own."""

    def log_prob(self, z):
        return super().log_prob(0.5 * z) - z.shape[-1] * math.log(2.0)

    def sample(self, n_samples, n_components, generator):
        return 2.0 * super().sample(n_samples, n_components, generator).float()

    def precision(self, z):
        return 0.25 * super().precision(z)


def test_a_prior_with_another_density_does_not_inherit_the_divergence():
    vae = _vae(prior=Wider(), noise="per_column").fit(CLUSTERS)
    parts = [vae.score_samples(CLUSTERS, method=m) for m in ("reconstruction", "kl", "elbo")]
    assert_allclose(parts[0] + parts[1], parts[2], atol=1e-9)
    assert_allclose(vae.score_samples(CLUSTERS[:20]), _integrated(vae, CLUSTERS[:20]), atol=0.02)
    assert vae.sample(3, random_state=0).shape == (3, 3)


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_a_prior_that_finds_too_few_codes_says_so(n_rows):
    vae = _vae(prior=TwoGaussians(), max_iter=0)
    if n_rows == 1:
        with pytest.warns(UserWarning, match="could not be fitted to the codes of 1 rows"):
            vae.fit(CLUSTERS[:1])
    else:
        vae.fit(CLUSTERS[:n_rows])
    assert all(np.isfinite(weight).all() for weight in vae.weights_.values())


class Undeclared(TwoGaussians):
    component_axis: ClassVar = {"means": 1}


class OneNumber(StandardNormal):
    def log_prob(self, z):
        return super().log_prob(z).sum()


class Diagonal(TwoGaussians):
    def precision(self, z):
        return torch.ones_like(z)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            Undeclared(),
            r"'log_scales' of the prior Undeclared .* component_axis = {'log_scales': 1}",
        ),
        (OneNumber(), r"OneNumber.log_prob\(z\) must return the shape \(2,\)"),
        (Diagonal(), r"Diagonal.precision\(z\) must return the shape \(2, 3, 3\) or \(3, 3\)"),
    ],
)
def test_a_prior_that_cannot_work_is_refused_with_what_it_lacks(prior, message):
    with pytest.raises(TypeError, match=message):
        _vae(prior=prior).fit(CLUSTERS)
