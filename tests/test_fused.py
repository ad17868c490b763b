"""The gradient by hand against autograd's of the one definition of the bound."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from skvae._model import products
from skvae._model.bounds import elbo
from skvae._model.networks import ACTIVATIONS
from skvae._model.vae import VAE
from skvae._specification import Part
from skvae._training import hand_gradient, loop
from skvae._training.hand_gradient import _PULLS, _VALUES, gradient_of
from skvae._training.in_parts import ElboInParts
from skvae._training.loop import Run
from skvae._training.plan import Plan, objective
from skvae._training.rows import Batch
from skvae._training.sparse_gradient import SparseElbo
from skvae.likelihoods import LIKELIHOODS as KINDS
from skvae.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LinearStart,
    NegativeBinomial,
    Poisson,
    Support,
)
from skvae.likelihoods._mixed import ColumnLikelihoods
from skvae.priors import StandardNormal

D, K, N = 7, 3, 11

# Of seven columns; in some the parts stand in another order than the columns.
LIKELIHOODS = {
    "columns of one noise": lambda: _columns((Gaussian("shared"), range(D))),
    "columns with own noise": lambda: _columns((Gaussian("per_column"), range(D))),
    "columns of switches": lambda: _columns((Bernoulli(), range(D))),
    "numbers and switches": lambda: _columns(
        (Gaussian("per_column"), [6, 0, 2, 3]), (Bernoulli(), [1, 4, 5])
    ),
    "switches, then two kinds of numbers": lambda: _columns(
        (Bernoulli(), [2, 5]),
        (Gaussian("shared"), [0, 1, 3]),
        (Gaussian("per_column"), [4, 6]),
    ),
    "one category": lambda: _columns((Categorical([4]), [3]), (Gaussian("shared"), _but(3))),
    "columns of categories": lambda: _columns((Categorical([2, 3, 2, 4, 2, 2, 5]), range(D))),
    "numbers among categories": lambda: _columns(
        (Categorical([3, 2]), [5, 0]), (Gaussian("per_column"), [1, 6, 3]), (Bernoulli(), [2, 4])
    ),
    # Without a formula of their own: their gradient by raw is autograd's.
    "a kind of one's own": lambda: _columns((Twice("shared"), range(D))),
    "every kind": lambda: _columns(
        *((kind().for_columns([2], 1.0), [c]) for c, kind in enumerate(KINDS.values()) if c < D)
    ),
}
LIKELIHOODS |= {
    f"columns of {name}": lambda kind=kind: _columns((kind().for_columns([3] * D, 1.0), range(D)))
    for name, kind in KINDS.items()
}


class Twice(Gaussian):
    """A Gaussian of someone else."""

    def log_prob(self, x, raw):
        return 2.0 * super().log_prob(x, raw)


def _but(column):
    return [c for c in range(D) if c != column]


def _columns(*parts):
    """A likelihood for each column, from those of some columns and their levels."""
    of_column, levels = {}, {}
    for likelihood, columns in parts:
        of_column |= dict.fromkeys(columns, likelihood)
        n_levels = getattr(likelihood, "n_levels", [0] * len(columns))
        levels |= dict(zip(columns, n_levels, strict=True))
    return ColumnLikelihoods([of_column[c] for c in range(D)], [levels[c] for c in range(D)])


def _vae(likelihood="columns of one noise", hidden=(8, 5), activation="gelu", may_miss=None):
    """A module whose parameters and buffers are all away from their start."""
    may_miss = may_miss or [False] * D
    likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
    vae = VAE(
        likelihood,
        StandardNormal(),
        n_components=K,
        hidden_layer_sizes=hidden,
        activation=activation,
        may_miss=may_miss,
    ).double()
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
        for part in vae.likelihood.parts:
            if part.specification.support.whole:
                x[:, part.columns] = torch.floor(2.0 * x[:, part.columns])
    weight = (
        torch.rand(N, generator=generator, dtype=dtype) if weighted else torch.ones_like(x[:, 0])
    )
    return x, weight, torch.randn((n_samples, N, K), generator=generator, dtype=dtype)


def _assert_same(vae, n_samples=1, weighted=True, beta=1.0, observed=None, sparse=False, n_parts=1):
    x, weight, eps = _batch(vae, n_samples, weighted)
    if sparse:
        x[x < 0.6] = 0.0
        gradient = SparseElbo(vae)
        bound = gradient(x.to_sparse(), None, weight, eps, beta)
    else:
        gradient = gradient_of(vae, "elbo", 0.0) if n_parts == 1 else ElboInParts(vae, n_parts)
        bound = gradient(x, observed, weight, eps, beta)
    by_hand = {name: p.grad.clone() for name, p in vae.named_parameters()}
    vae.zero_grad()
    plan = Plan(max_epochs=1, batch_size=N, learning_rate=1.0, beta=beta, n_samples=n_samples)
    terms = vae(x, observed, eps)
    expected = (objective(terms, plan, 1.0) * weight).mean()
    (-expected).backward()
    assert_close(bound, expected.detach(), rtol=1e-10, atol=1e-10)
    kl = (terms.kl.sum(-1) * weight).mean()  # whatever beta is
    assert_close(gradient.kl, kl.detach(), rtol=1e-10, atol=1e-10)
    for name, parameter in vae.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = float(found.abs().sum())
        assert_close(by_hand[name], found, rtol=1e-6, atol=1e-12 * scale, msg=name)


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


@pytest.mark.parametrize(("n_samples", "beta"), [(1, 1.0), (3, 0.3)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("hidden", [(), (32,), (8, 5), (6, 7, 4)])
@pytest.mark.parametrize("noise", ["columns of one noise", "columns with own noise"])
def test_the_gradient_by_stored_cells_is_autograds(noise, hidden, weighted, n_samples, beta):
    _assert_same(_vae(noise, hidden), n_samples, weighted, beta, sparse=True)


@pytest.mark.parametrize("pattern", ["some cells", None])
@pytest.mark.parametrize("hidden", [(32,), (40, 6)])
@pytest.mark.parametrize("likelihood", ["columns of one noise", "numbers among categories"])
def test_products_by_onednn_are_the_products(likelihood, hidden, pattern, monkeypatch):
    monkeypatch.setattr(products, "LARGE", 0.0)
    monkeypatch.setattr(hand_gradient, "mkl_is_faster", lambda: False)
    used = []
    onednn = hand_gradient.onednn_linear
    monkeypatch.setattr(
        hand_gradient, "onednn_linear", lambda *args: used.append(1) or onednn(*args)
    )
    vae = _vae(likelihood, hidden, may_miss=[True] * D)
    x, *rest = _batch(vae)
    expected = gradient_of(vae, "elbo", 0.0)(x, SEEN.get(pattern), *rest, 1.0)
    gradients = [p.grad for p in vae.parameters()]
    assert not used  # in float64
    vae.zero_grad()
    single = vae.float()
    x, *rest = (value.float() for value in (x, *rest))
    bound = gradient_of(single, "elbo", 0.0)(x, SEEN.get(pattern), *rest, 1.0)
    assert used
    assert_close(bound.double(), expected, rtol=1e-5, atol=1e-5)
    for parameter, exact in zip(single.parameters(), gradients, strict=True):
        error = torch.linalg.vector_norm(parameter.grad - exact)
        assert error < 1e-4 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize(
    ("processor", "has_mkl", "expected"),
    [
        ("vendor_id\t: GenuineIntel", True, True),
        ("vendor_id\t: AuthenticAMD", True, False),
        ("vendor_id\t: GenuineIntel", False, False),
    ],
)
def test_mkl_multiplies_in_a_step_on_intels_processors(processor, has_mkl, expected, monkeypatch):
    monkeypatch.setattr(products.Path, "read_text", lambda *args, **kwargs: processor)
    monkeypatch.setattr(products.torch.backends.mkl, "is_available", lambda: has_mkl)
    assert products.mkl_is_faster.__wrapped__() is expected

    def fails(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(products.Path, "read_text", fails)  # no Linux
    monkeypatch.setattr(products.platform, "processor", lambda: processor)
    assert products.mkl_is_faster.__wrapped__() is expected


@pytest.mark.parametrize("wild", [1e4, 1e8, 1e12])
def test_the_gradient_is_autograds_where_wild_rows_miss_something(wild):
    vae, observed = _vae(may_miss=[True] * D), SEEN["some cells"]
    x, weight, eps = _batch()
    x[2] *= wild
    x[3] *= -wild
    weight[2:4] = 1e-9  # the others show
    bound = gradient_of(vae, "elbo", 0.0)(x, observed, weight, eps, 1.0)
    by_hand = [p.grad.clone() for p in vae.parameters()]
    vae.zero_grad()
    (-(elbo(vae(x, observed, eps)) * weight).mean()).backward()
    assert torch.isfinite(bound)
    for own, parameter in zip(by_hand, vae.parameters(), strict=True):
        assert_close(own, parameter.grad, rtol=1e-6, atol=1e-6 * float(parameter.grad.abs().sum()))


class Rayleigh(Likelihood):
    """No density at 0, which stands where a value is missing."""

    support = Support(1e-30, math.inf, "positive numbers")

    def log_prob(self, x, raw):
        return torch.log(x) - 2.0 * raw - 0.5 * x.square() * torch.exp(-2.0 * raw)

    def mean(self, raw):
        return torch.exp(raw)

    def sample(self, raw, generator):
        return self.mean(raw)

    def information(self, raw):
        return torch.full_like(raw, 4.0)

    def from_linear_fit(self, x, weight, fit):
        return LinearStart(1.0 / fit.mean, torch.log(fit.mean), fit.scale.square())


def test_what_is_missing_counts_nothing_where_it_has_no_density():
    vae, observed = _vae(_columns((Rayleigh(), range(D))), may_miss=[True] * D), SEEN["some cells"]
    x, *rest = _batch()
    filled = gradient_of(vae, "elbo", 0.0)(x, observed, *rest, 1.0)
    empty = gradient_of(vae, "elbo", 0.0)(torch.where(observed, x, 0.0), observed, *rest, 1.0)
    assert_close(empty, filled)
    assert all(bool(torch.isfinite(p.grad).all()) for p in vae.parameters())


shortens = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="This processor multiplies no bfloat16."
)


@shortens
@pytest.mark.parametrize("hidden", [(), (48,), (40, 56)])
@pytest.mark.parametrize("likelihood", ["columns of one noise", "numbers among categories"])
def test_short_factors_round_the_mlps_products_alone(likelihood, hidden, monkeypatch):
    monkeypatch.setattr(products, "SHORT", 0.0)
    monkeypatch.setattr(products, "NARROW", 0)
    gradients = []
    for short in (False, True):
        monkeypatch.setattr(products, "products_may_be_short", lambda short=short: short)
        vae, (x, *rest) = _vae(likelihood, hidden).float(), _batch(dtype=torch.float32)
        x[:, [0, 5]] = torch.floor(2.0 * x[:, [0, 5]])
        bound = gradient_of(vae, "elbo", 0.0)(x, None, *rest, 1.0)
        gradients.append([bound, *(p.grad.clone() for p in vae.parameters())])
    for exact, short in zip(*gradients, strict=True):
        error = torch.linalg.vector_norm(short - exact) / torch.linalg.vector_norm(exact)
        assert error < (0.1 if hidden else 1e-6)
    assert not hidden or gradients[0][0] != gradients[1][0]


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


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_gradient_in_parts_is_autograds_for_each_likelihood(likelihood):
    _assert_same(_vae(likelihood), n_parts=2)


@pytest.mark.parametrize("n_parts", [2, 4, N + 1])
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("pattern", [*SEEN, None])
def test_the_gradient_in_parts_is_autograds_for_missing_values(pattern, n_samples, n_parts):
    observed = None if pattern is None else SEEN[pattern]
    vae = _vae("numbers among categories", may_miss=[True] * D)
    _assert_same(vae, n_samples, beta=0.3, observed=observed, n_parts=n_parts)


@pytest.mark.parametrize("kind", [Bernoulli, Poisson, NegativeBinomial])
def test_a_subclass_starts_by_the_gradient_of_its_own_log_prob(kind):
    class Scaled(kind):
        def log_prob(self, x, raw):
            return 3.0 * super().log_prob(x, raw)

    own, base = (_columns((one(), range(D))) for one in (Scaled, kind))
    x = torch.floor(2.0 * torch.rand((N, D), generator=torch.Generator().manual_seed(0)))
    raw = torch.linspace(-1.0, 1.0, N * D).view(1, N, D)
    with torch.no_grad():
        (value, gradient), (expected, slope) = (
            likelihood.gradient(x, raw, torch.ones(N, D), _places(likelihood))
            for likelihood in (own, base)
        )
    assert_close(value, 3.0 * expected)
    assert_close(gradient, 3.0 * slope)


def _places(likelihood):
    return [{k: torch.zeros_like(v) for k, v in p.named_parameters()} for p in likelihood.parts]


@pytest.mark.parametrize("name", ["numbers among categories", "columns of switches"])
@torch.no_grad()
def test_a_gradient_without_locations_is_that_of_the_other_columns(name):
    likelihood = LIKELIHOODS[name]()
    chance = torch.Generator().manual_seed(0)
    raw = torch.randn(2, N, len(likelihood.column), generator=chance)
    x, count = torch.ones(N, D), torch.rand(N, D, generator=chance)
    places = _places(likelihood)
    some = [
        None if part.has_scale else own for part, own in zip(likelihood.parts, places, strict=True)
    ]
    value, gradient = likelihood.gradient(x, raw, count, some)
    others = ~likelihood.is_location
    log_prob = (likelihood.log_prob(x, raw) * count)[..., likelihood.column[others].unique()]
    assert_close(value, log_prob.sum())
    assert_close(gradient[..., others], likelihood.gradient(x, raw, count, places)[1][..., others])
    assert bool((gradient[..., ~others] == 0.0).all()) and bool(gradient[..., others].any())


@pytest.mark.parametrize("shape", [(3, 5), (500, 90)])  # both ways to compute a GELU
def test_a_gelu_of_any_size_is_the_gelu(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(_VALUES["gelu"](x), ACTIVATIONS["gelu"].value(x))
    assert_close(_PULLS["gelu"](x, x, x), x * ACTIVATIONS["gelu"].slope(x))


@pytest.mark.parametrize("n_rows", [1_000, 10_000])  # torch's own GELU, and oneDNN's
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_units_far_below_zero_leave_no_numbers_that_slow_products_down(activation, n_rows):
    x = torch.linspace(-20.0, 20.0, 8 * n_rows, dtype=torch.float32).view(n_rows, 8)
    value, slope = ACTIVATIONS[activation]
    before = x.clone()
    after = _VALUES[activation](before)
    pulled = _PULLS[activation](torch.full_like(x, 1e-6), before, after)
    for numbers in (after, pulled):
        assert bool(((numbers == 0.0) | (numbers.abs() > 1e-30)).all())
    assert_close(after, value(x), atol=1e-6, rtol=1e-6)
    assert_close(pulled, 1e-6 * slope(x), atol=1e-12, rtol=1e-4)


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
    gradient, (x, *rest) = gradient_of(vae, "elbo", 0.0), _batch(vae)
    once = gradient(x, None, *rest, 1.0), [p.grad.clone() for p in vae.parameters()]
    twice = gradient(x, None, *rest, 1.0), [p.grad for p in vae.parameters()]
    assert_close(twice, once, rtol=0, atol=0)


class Steeper(StandardNormal):
    """Another prior."""


@pytest.mark.parametrize(("bound", "free_bits"), [("iwae", 0.0), ("elbo", 0.1)])
def test_another_bound_is_left_to_autograd(bound, free_bits):
    assert gradient_of(_vae(), bound, free_bits) is None


def test_another_prior_is_left_to_autograd():
    vae = _vae()
    assert gradient_of(vae, "elbo", 0.0) is not None
    vae.prior = Part(Steeper(), {}, {})
    assert gradient_of(vae, "elbo", 0.0) is None


def _runs(monkeypatch, n_steps, dtype, observed=(None,), **plan):
    """The bounds and weights of a run by hand, and of the same run by autograd."""
    plan = Plan(**{"max_epochs": 10, "batch_size": N, "learning_rate": 0.01, "alpha": 0.1} | plan)
    for by_hand in (True, False):
        if not by_hand:
            monkeypatch.setattr(loop, "gradient_of", lambda *args: None)
        vae = _vae().to(dtype)
        run = Run(vae, plan, torch.Generator().manual_seed(2), N)
        x, weight, _ = _batch(vae, dtype=dtype)
        turns = itertools.islice(itertools.cycle(observed), n_steps)
        values = [torch.stack(run._step(Batch(x, seen, weight))) for seen in turns]  # bound and KL
        yield torch.stack(values), run.snapshot()


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
    bound = gradient_of(vae, "elbo", 0.0)(x, None, weight, eps, 1.0)
    assert not torch.isfinite(bound)
    assert not torch.isfinite((elbo(vae(x, None, eps)) * weight).mean())
