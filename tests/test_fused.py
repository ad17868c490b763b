"""The gradient by hand against autograd's of the one definition of the bound."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from skvae import _training
from skvae._batches import Batch
from skvae._bounds import elbo
from skvae._column_likelihoods import ColumnLikelihoods
from skvae._fused import _PULLS, fused_gradient
from skvae._networks import ACTIVATIONS
from skvae._training import Plan, Run, objective
from skvae._vae import VAE
from skvae.likelihoods import Bernoulli, Gaussian, StudentT
from skvae.priors import StandardNormal

D, K, N = 7, 3, 11

# Of seven columns; in some the parts stand in another order than the columns.
LIKELIHOODS = {
    "one noise": lambda: Gaussian("shared", D),
    "noise per column": lambda: Gaussian("per_column", D),
    "columns of one noise": lambda: _columns((Gaussian("shared", D), range(D))),
    "columns with own noise": lambda: _columns((Gaussian("per_column", D), range(D))),
    "switches": lambda: Bernoulli(),
    "columns of switches": lambda: _columns((Bernoulli(), range(D))),
    "numbers and switches": lambda: _columns(
        (Gaussian("per_column", 4), [6, 0, 2, 3]), (Bernoulli(), [1, 4, 5])
    ),
    "switches, then two kinds of numbers": lambda: _columns(
        (Bernoulli(), [2, 5]),
        (Gaussian("shared", 3), [0, 1, 3]),
        (Gaussian("per_column", 2), [4, 6]),
    ),
}


def _columns(*parts):
    return ColumnLikelihoods([(part, list(columns)) for part, columns in parts])


def _vae(likelihood="columns of one noise", hidden=(8, 5), activation="gelu", may_miss=None):
    """A module whose parameters and buffers are all away from their start."""
    may_miss = may_miss or [False] * D
    likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
    vae = VAE(may_miss, K, hidden, activation, likelihood, StandardNormal()).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
        vae.encoder.center.normal_(generator=generator)
        for scale in (vae.encoder.spread, vae.encoder.unit, vae.decoder.unit):
            scale.uniform_(0.5, 2.0, generator=generator)
    return vae


def _batch(n_samples=1, weighted=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((N, D), generator=generator, dtype=dtype)
    weight = (
        torch.rand(N, generator=generator, dtype=dtype) if weighted else torch.ones_like(x[:, 0])
    )
    return x, weight, torch.randn((n_samples, N, K), generator=generator, dtype=dtype)


def _assert_same(vae, n_samples=1, weighted=True, beta=1.0):
    x, weight, eps = _batch(n_samples, weighted)
    bound = fused_gradient(vae, "elbo", 0.0)(x, weight, eps, beta)
    by_hand = {name: p.grad.clone() for name, p in vae.named_parameters()}
    vae.zero_grad()
    plan = Plan(max_epochs=1, batch_size=N, learning_rate=1.0, beta=beta, n_samples=n_samples)
    expected = (objective(vae(x, None, eps), plan, 1.0) * weight).mean()
    (-expected).backward()
    assert_close(bound, expected.detach(), rtol=1e-10, atol=1e-10)
    for name, parameter in vae.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert_close(by_hand[name], parameter.grad, rtol=1e-6, atol=1e-12 * scale, msg=name)


@pytest.mark.parametrize("hidden", [(), (32,), (8, 5), (6, 7, 4)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_gradient_is_autograds_for_each_network_and_likelihood(likelihood, hidden):
    _assert_same(_vae(likelihood, hidden))


@pytest.mark.parametrize(
    ("n_samples", "weighted", "beta"),
    list(itertools.product([1, 4], [True, False], [1.0, 0.3, 0.0])),
)
@pytest.mark.parametrize("likelihood", ["columns of one noise", "numbers and switches"])
def test_the_gradient_is_autograds_for_each_bound(likelihood, n_samples, weighted, beta):
    _assert_same(_vae(likelihood), n_samples, weighted, beta)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_autograds_for_each_activation(activation):
    _assert_same(_vae(activation=activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pulls_are_slopes(activation):
    x = torch.linspace(-4.0, 4.0, 80, dtype=torch.float64)
    value, slope = ACTIVATIONS[activation]
    assert_close(_PULLS[activation](torch.full_like(x, 2.0), x, value(x)), 2.0 * slope(x))


def test_a_second_gradient_replaces_the_first():
    vae = _vae("numbers and switches")
    gradient, batch = fused_gradient(vae, "elbo", 0.0), _batch()
    once = gradient(*batch, 1.0), [p.grad.clone() for p in vae.parameters()]
    assert_close((gradient(*batch, 1.0), [p.grad for p in vae.parameters()]), once, rtol=0, atol=0)


class Steeper(StandardNormal):
    """Another prior."""


OTHERS = {
    "another bound": (_vae, "iwae", 0.0),
    "free bits": (_vae, "elbo", 0.1),
    "columns that miss": (lambda: _vae(may_miss=[True] + [False] * (D - 1)), "elbo", 0.0),
    "another likelihood": (lambda: _vae(StudentT(D)), "elbo", 0.0),
    "another likelihood among others": (
        lambda: _vae(_columns((Gaussian("shared", 4), range(4)), (StudentT(3), range(4, D)))),
        "elbo",
        0.0,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_left_to_autograd(name):
    vae, bound, free_bits = OTHERS[name]
    assert fused_gradient(vae(), bound, free_bits) is None


def test_another_prior_is_left_to_autograd():
    vae = _vae()
    assert fused_gradient(vae, "elbo", 0.0) is not None
    vae.prior = Steeper()
    assert fused_gradient(vae, "elbo", 0.0) is None


def _runs(monkeypatch, n_steps, dtype, observed=None, **plan):
    """The bounds and weights of a run by hand, and of the same run by autograd."""
    plan = Plan(**{"max_epochs": 10, "batch_size": N, "learning_rate": 0.01, "alpha": 0.1} | plan)
    for by_hand in (True, False):
        if not by_hand:
            monkeypatch.setattr(_training, "fused_gradient", lambda *args: None)
        vae = _vae().to(dtype)
        run = Run(vae, plan, torch.Generator().manual_seed(2), N)
        x, weight, _ = _batch(dtype=dtype)
        bounds = [run._step(Batch(x, observed, weight)) for _ in range(n_steps)]
        yield torch.stack(bounds), run.snapshot()


@pytest.mark.parametrize("plan", [{}, {"kl_warmup": 0.5, "beta": 2.0}, {"n_samples": 3}])
def test_a_run_by_hand_is_the_run_by_autograd(monkeypatch, plan):
    by_hand, by_autograd = _runs(monkeypatch, 10, torch.float64, **plan)
    assert_close(by_hand, by_autograd, rtol=1e-8, atol=1e-10)


def test_single_precision_differs_by_rounding_alone(monkeypatch):
    by_hand, by_autograd = _runs(monkeypatch, 5, torch.float32)
    assert_close(by_hand[0], by_autograd[0], rtol=1e-4, atol=1e-4)


def test_rows_with_missing_values_are_left_to_autograd_batch_by_batch(monkeypatch):
    observed = torch.ones(N, D, dtype=torch.bool)
    observed[2, 3] = False
    by_hand, by_autograd = _runs(monkeypatch, 3, torch.float64, observed)
    assert_close(by_hand, by_autograd, rtol=0.0, atol=0.0)


def test_a_bound_that_is_not_finite_shows():
    vae, (x, weight, eps) = _vae(), _batch()
    x[3, 2] = float("inf")
    bound = fused_gradient(vae, "elbo", 0.0)(x, weight, eps, 1.0)
    assert not torch.isfinite(bound)
    assert not torch.isfinite((elbo(vae(x, None, eps)) * weight).mean())
