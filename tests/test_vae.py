"""The joint density, the networks, and the two ways to estimate log p(x)."""

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from skvae import VAETransformer
from skvae._inference.climbing import climb
from skvae._inference.scores import noise_bank
from skvae._model.bounds import elbo, importance_weighted_bound, log_weights
from skvae._model.networks import ACTIVATIONS, tame
from skvae._model.vae import VAE
from skvae._specification import copied
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.likelihoods._mixed import ColumnLikelihoods
from skvae.priors import StandardNormal

LIKELIHOODS = {"gaussian": Gaussian, "bernoulli": Bernoulli}
each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def random_vae(name="gaussian", n_components=3, hidden=(16, 8), activation="gelu", size=0.4):
    """A VAE of 5 columns in which every weight is random, in float64."""
    likelihood, prior = ColumnLikelihoods(5 * [LIKELIHOODS[name]()]), StandardNormal()
    vae = VAE(
        likelihood,
        prior,
        n_components=n_components,
        hidden_layer_sizes=hidden,
        activation=activation,
    ).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(0.0, size, generator=g)
    return vae


def rows(n=7):
    return torch.rand((n, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (6,), (6, 4)])
def test_the_jacobian_is_autograds(activation, hidden):
    decoder = random_vae(hidden=hidden, activation=activation).decoder
    z = torch.randn((4, 3), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack([torch.autograd.functional.jacobian(decoder, row) for row in z]).mT
    torch.testing.assert_close(decoder.jacobian(z), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_slope_is_the_derivative_of_its_activation(activation):
    x = torch.linspace(-4.0, 4.0, 30, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(ACTIVATIONS[activation].value(x).sum(), x)
    torch.testing.assert_close(ACTIVATIONS[activation].slope(x), expected)


@each_likelihood
def test_a_copy_is_the_same_module_with_tensors_of_its_own(name):
    vae = random_vae(name)
    vae.encoder.linear.requires_grad_(False)
    other, x = copied(vae), rows().round()
    eps = torch.zeros((1, 7, 3), dtype=torch.float64)
    assert repr(other) == repr(vae) and elbo(other(x, None, eps)).equal(elbo(vae(x, None, eps)))
    pairs = zip(
        [*vae.named_parameters(), *vae.named_buffers()],
        [*other.named_parameters(), *other.named_buffers()],
        strict=True,
    )
    for (here, one), (there, two) in pairs:
        assert here == there and one.equal(two) and type(one) is type(two)
        assert one.requires_grad == two.requires_grad and one.data_ptr() != two.data_ptr()
    assert all(one is not two for one, two in zip(vae.modules(), other.modules(), strict=True))
    assert all(
        vars(one).keys() == vars(two).keys()
        for one, two in zip(vae.modules(), other.modules(), strict=True)
    )


def test_initialised_networks_are_still_linear():
    likelihood = ColumnLikelihoods(5 * [Gaussian()])
    vae = VAE(likelihood, StandardNormal(), n_components=2, hidden_layer_sizes=(8, 8))
    vae.initialise(torch.Generator().manual_seed(0))
    assert float(vae.decoder.mlp.first.weight.detach().abs().max()) > 0.0
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.decoder(z), vae.decoder.linear(z))


def test_a_wild_value_moves_an_mlp_no_further_than_a_large_one():
    x = torch.tensor([1e12, -1e12, 0.3, 1.0], dtype=torch.float64)
    assert tame(x, 3.0).tolist() == pytest.approx([3.0, -3.0, 0.3, 1.0], rel=0.06)


@each_likelihood
def test_the_terms_are_those_of_the_formula(name):
    vae, x = random_vae(name), rows()
    eps = torch.randn((4, 7, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    terms = vae(x, None, eps)
    loc, log_scale = vae.encode(x, None)
    q = torch.distributions.Normal(loc, torch.exp(log_scale))
    prior = torch.distributions.Normal(0.0, 1.0)
    z = loc + torch.exp(log_scale) * eps
    torch.testing.assert_close(terms.log_qz_x, q.log_prob(z).sum(-1))
    torch.testing.assert_close(terms.log_pz, prior.log_prob(z).sum(-1))
    torch.testing.assert_close(
        terms.kl, torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0 * loc, 1.0))
    )
    expected = vae.likelihood.log_prob(x, vae.decoder(z)).sum(-1)
    torch.testing.assert_close(terms.log_px_z, expected)


@each_likelihood
def test_more_importance_samples_tighten_the_bound(name):
    vae, x = random_vae(name), rows(200)
    g = torch.Generator().manual_seed(4)
    eps = torch.randn((2000, 200, 3), generator=g, dtype=torch.float64)
    with torch.no_grad():
        terms = vae(x, None, eps)
        groups = [
            importance_weighted_bound(type(terms)(*(t[:size] for t in terms[:3]), terms.kl)).mean()
            for size in (5, 50, 2000)
        ]
        bounds = [elbo(terms).mean(), *groups]
    assert bounds == sorted(bounds)


@each_likelihood
def test_the_closed_form_elbo_is_the_mean_log_weight(name):
    vae, x = random_vae(name), rows(2)
    eps = noise_bank(512, 3).expand(-1, 2, -1)
    with torch.no_grad():
        terms = vae(x, None, eps)
    # Exactly, because the bank's first two moments are those of N(0, 1).
    torch.testing.assert_close(elbo(terms), log_weights(terms).mean(0))


@each_likelihood
def test_no_direction_climbs_from_the_posterior_mode(name):
    vae, x = random_vae(name), rows()
    mode, *_ = climb(vae, x, None, torch.zeros((7, 3), dtype=torch.float64))
    z = mode.clone().requires_grad_()
    value = vae.log_joint(x, None, z).sum()
    (gradient,) = torch.autograd.grad(value, z)
    assert float(gradient.abs().max()) < 1e-2  # a rise of 1e-4 nats at most


def integrated_log_likelihood(vae, x, points=201):
    """log p(x) of a model with two components: a grid, then a finer one where the mass is."""

    def grid(row, low, high):
        axes = [
            torch.linspace(*ends, points, dtype=torch.float64)
            for ends in zip(low, high, strict=True)
        ]
        z = torch.cartesian_prod(*axes)
        with torch.no_grad():
            return axes, z, vae.log_joint(row.expand(len(z), -1), None, z)

    log_p = []
    for row in x:
        _, z, log_joint = grid(row, [-10.0, -10.0], [10.0, 10.0])
        near = z[log_joint > log_joint.max() - 25.0]
        margin = 3 * 20.0 / points
        axes, _, log_joint = grid(row, near.amin(0) - margin, near.amax(0) + margin)
        density = torch.exp(log_joint - log_joint.max()).reshape(points, points).numpy()
        mass = trapezoid(trapezoid(density, axes[1], axis=1), axes[0])
        log_p.append(float(log_joint.max()) + np.log(mass))
    return np.array(log_p)


@pytest.fixture(scope="module")
def trained():
    """A small non-linear VAE with two components, its rows, and rows with one cell 8 sd off."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=(1500, 2))
    curved = np.c_[t, np.sin(2 * t[:, :1]), t[:, 1:] ** 2, t[:, :1] * t[:, 1:], np.tanh(t)]
    X = curved + 0.2 * rng.normal(size=curved.shape)
    vae = VAETransformer(2, hidden_layer_sizes=(32, 32), random_state=0).fit(X[:1000])
    ordinary = X[1000:1020]
    wild = ordinary.copy()
    wild[np.arange(20), np.arange(20) % X.shape[1]] += 8.0 * X.std(0)[np.arange(20) % X.shape[1]]
    return vae, ordinary, wild


def exact(model, X):
    vae = model.model_.module()
    x, _ = model.model_.columns.encode(X)
    return (
        integrated_log_likelihood(vae, torch.from_numpy(x))
        + model.model_.columns.log_jacobian.sum()
    )


def test_log_likelihood_is_the_integral_on_ordinary_rows_and_on_outliers(trained, record_property):
    model, ordinary, wild = trained
    assert model.best_iter_ > 5  # trained: far from the linear start, where all is exact
    errors = {}
    for name, X in {"ordinary": ordinary, "8 sd off": wild}.items():
        truth = exact(model, X)
        errors[name] = np.abs(model.score_samples(X) - truth)
        with pytest.warns(UserWarning) if name == "8 sd off" else _no_context():
            encoder_only = np.abs(model.score_samples(X, refine=False) - truth)
        print(
            f"{name}: refined off by {errors[name].mean():.4f} nats (largest "
            f"{errors[name].max():.4f}), encoder only by {encoder_only.mean():.2f} "
            f"(largest {encoder_only.max():.2f})"
        )
        assert errors[name].mean() < encoder_only.mean()
    assert errors["ordinary"].max() < 0.02
    assert errors["8 sd off"].max() < 0.05


class _no_context:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


def test_the_noise_bank_has_the_moments_of_a_standard_normal():
    for n_samples in (2, 64, 10):
        bank = noise_bank(n_samples, 6)[:, 0]
        assert bank.shape == (n_samples, 6)
        np.testing.assert_allclose(bank.mean(0), 0.0, atol=1e-12)
        np.testing.assert_allclose((bank**2).mean(0), 1.0, rtol=1e-12)
    assert torch.equal(noise_bank(64, 6), noise_bank(64, 6))


def test_reordered_components_describe_the_same_model():
    vae, x = random_vae(), rows()
    eps = torch.randn((3, 7, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    before = vae(x, None, eps)
    order = torch.tensor([2, 0, 1])
    vae.load_state_dict(vae.reordered(vae.state_dict(), order))
    after = vae(x, None, eps[..., order])
    torch.testing.assert_close(after.log_px_z, before.log_px_z)
    torch.testing.assert_close(after.kl, before.kl[:, order])
