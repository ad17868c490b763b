"""The gradient by hand against autograd's of the one definition of the bound."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from skvae import _training
from skvae._batches import Batch
from skvae._bounds import elbo
from skvae._column_likelihoods import ColumnLikelihoods
from skvae._fused import _PULLS, _VALUES, fused_gradient
from skvae._networks import ACTIVATIONS
from skvae._training import Plan, Run, objective
from skvae._vae import VAE
from skvae.likelihoods import LIKELIHOODS as KINDS
from skvae.likelihoods import Bernoulli, Categorical, Gaussian
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
    "one category": lambda: _columns((Categorical([4]), [3]), (Gaussian("shared", 6), _but(3))),
    "categories": lambda: Categorical([2, 3, 2, 4, 2, 2, 5]),
    "columns of categories": lambda: _columns((Categorical([2, 3, 2, 4, 2, 2, 5]), range(D))),
    "numbers among categories": lambda: _columns(
        (Categorical([3, 2]), [5, 0]), (Gaussian("per_column", 3), [1, 6, 3]), (Bernoulli(), [2, 4])
    ),
    # Without a formula of their own: their gradient by raw is autograd's.
    "a kind of one's own": lambda: Twice("shared", D),
    "every kind": lambda: _columns(
        *((kind().for_columns([2], 1e-3), [c]) for c, kind in enumerate(KINDS.values()) if c < D)
    ),
}
LIKELIHOODS |= {
    f"columns of {name}": lambda kind=kind: _columns((kind().for_columns([3] * D, 1e-3), range(D)))
    for name, kind in KINDS.items()
}


class Twice(Gaussian):
    """A Gaussian of someone else."""

    def log_prob(self, x, raw):
        return 2.0 * super().log_prob(x, raw)


def _but(column):
    return [c for c in range(D) if c != column]


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
        for place in (vae.encoder.center, vae.encoder.mean, vae.encoder.loadings):
            place.normal_(generator=generator)
        scales = (vae.encoder.spread, vae.encoder.variance, vae.encoder.unit, vae.decoder.unit)
        for scale in scales:
            scale.uniform_(0.5, 2.0, generator=generator)
    return vae


def _batch(vae=None, n_samples=1, weighted=True, dtype=torch.float64):
    """Rows that the module admits; the same for all of them as far as possible."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((N, D), generator=generator, dtype=dtype)
    if vae is not None:
        for part, columns in _parts(vae.likelihood):
            if part.support.whole:
                x[:, columns] = torch.floor(2.0 * x[:, columns])
    weight = (
        torch.rand(N, generator=generator, dtype=dtype) if weighted else torch.ones_like(x[:, 0])
    )
    return x, weight, torch.randn((n_samples, N, K), generator=generator, dtype=dtype)


def _parts(likelihood):
    if isinstance(likelihood, ColumnLikelihoods):
        return [(part, columns) for part, columns, _ in likelihood.blocks()]
    return [(likelihood, list(range(D)))]


def _assert_same(vae, n_samples=1, weighted=True, beta=1.0, observed=None):
    x, weight, eps = _batch(vae, n_samples, weighted)
    bound = fused_gradient(vae, "elbo", 0.0)(x, observed, weight, eps, beta)
    by_hand = {name: p.grad.clone() for name, p in vae.named_parameters()}
    vae.zero_grad()
    plan = Plan(max_epochs=1, batch_size=N, learning_rate=1.0, beta=beta, n_samples=n_samples)
    expected = (objective(vae(x, observed, eps), plan, 1.0) * weight).mean()
    (-expected).backward()
    assert_close(bound, expected.detach(), rtol=1e-10, atol=1e-10)
    for name, parameter in vae.named_parameters():
        scale = float(parameter.grad.abs().sum())
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


SEEN = {
    "some cells": torch.rand((N, D), generator=torch.Generator().manual_seed(3)) > 0.3,
    "whole rows": (torch.arange(N) % 3 > 0)[:, None].expand(N, D),
    "a whole column": (torch.arange(D) != 2).expand(N, D),
    "nothing missing": torch.ones(N, D, dtype=torch.bool),
    "one cell": (torch.arange(N)[:, None] + torch.arange(D)) > 0,
}


@pytest.mark.parametrize("hidden", [(), (8, 5)])
@pytest.mark.parametrize("may_miss", [[True] * D, [False, True, True] + [False] * 4, [False] * D])
@pytest.mark.parametrize("pattern", [*SEEN, None])
@pytest.mark.parametrize("likelihood", ["columns of one noise", "numbers among categories"])
def test_the_gradient_is_autograds_for_missing_values(likelihood, pattern, may_miss, hidden):
    _assert_same(_vae(likelihood, hidden, may_miss=may_miss), observed=SEEN.get(pattern))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_gradient_is_autograds_for_missing_values_of_each_likelihood(likelihood):
    vae = _vae(likelihood, may_miss=[True] * D)
    _assert_same(vae, n_samples=2, beta=0.5, observed=SEEN["some cells"])


@pytest.mark.parametrize("shape", [(3, 5), (500, 90)])  # both ways to compute a GELU
def test_a_gelu_of_any_size_is_the_gelu(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(_VALUES["gelu"](x), ACTIVATIONS["gelu"].value(x))
    assert_close(_PULLS["gelu"](x, x, x), x * ACTIVATIONS["gelu"].slope(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_autograds_for_each_activation(activation):
    _assert_same(_vae(activation=activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pulls_are_slopes(activation):
    x = torch.linspace(-4.0, 4.0, 80, dtype=torch.float64)[:, None]
    value, slope = ACTIVATIONS[activation]
    assert_close(_PULLS[activation](torch.full_like(x, 2.0), x, value(x)), 2.0 * slope(x))


def test_a_second_gradient_replaces_the_first():
    vae = _vae("every kind")
    gradient, (x, *rest) = fused_gradient(vae, "elbo", 0.0), _batch(vae)
    once = gradient(x, None, *rest, 1.0), [p.grad.clone() for p in vae.parameters()]
    twice = gradient(x, None, *rest, 1.0), [p.grad for p in vae.parameters()]
    assert_close(twice, once, rtol=0, atol=0)


class Steeper(StandardNormal):
    """Another prior."""


@pytest.mark.parametrize(("bound", "free_bits"), [("iwae", 0.0), ("elbo", 0.1)])
def test_another_bound_is_left_to_autograd(bound, free_bits):
    assert fused_gradient(_vae(), bound, free_bits) is None


def test_another_prior_is_left_to_autograd():
    vae = _vae()
    assert fused_gradient(vae, "elbo", 0.0) is not None
    vae.prior = Steeper()
    assert fused_gradient(vae, "elbo", 0.0) is None


def _runs(monkeypatch, n_steps, dtype, observed=(None,), **plan):
    """The bounds and weights of a run by hand, and of the same run by autograd."""
    plan = Plan(**{"max_epochs": 10, "batch_size": N, "learning_rate": 0.01, "alpha": 0.1} | plan)
    for by_hand in (True, False):
        if not by_hand:
            monkeypatch.setattr(_training, "fused_gradient", lambda *args: None)
        vae = _vae().to(dtype)
        run = Run(vae, plan, torch.Generator().manual_seed(2), N)
        x, weight, _ = _batch(vae, dtype=dtype)
        turns = itertools.islice(itertools.cycle(observed), n_steps)
        bounds = [run._step(Batch(x, seen, weight)) for seen in turns]
        yield torch.stack(bounds), run.snapshot()


@pytest.mark.parametrize("plan", [{}, {"kl_warmup": 0.5, "beta": 2.0}, {"n_samples": 3}])
def test_a_run_by_hand_is_the_run_by_autograd(monkeypatch, plan):
    by_hand, by_autograd = _runs(monkeypatch, 10, torch.float64, **plan)
    assert_close(by_hand, by_autograd, rtol=1e-8, atol=1e-10)


def test_single_precision_differs_by_rounding_alone(monkeypatch):
    by_hand, by_autograd = _runs(monkeypatch, 5, torch.float32)
    assert_close(by_hand[0], by_autograd[0], rtol=1e-4, atol=1e-4)


def test_batches_with_and_without_missing_values_take_turns(monkeypatch):
    observed = torch.ones(N, D, dtype=torch.bool)
    observed[2, 3] = False
    by_hand, by_autograd = _runs(monkeypatch, 4, torch.float64, [observed, None])
    assert_close(by_hand, by_autograd, rtol=1e-8, atol=1e-10)


def test_a_bound_that_is_not_finite_shows():
    vae, (x, weight, eps) = _vae(), _batch()
    x[3, 2] = float("inf")
    bound = fused_gradient(vae, "elbo", 0.0)(x, None, weight, eps, 1.0)
    assert not torch.isfinite(bound)
    assert not torch.isfinite((elbo(vae(x, None, eps)) * weight).mean())
