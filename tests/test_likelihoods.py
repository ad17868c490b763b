"""One table of likelihoods drives these tests: a new likelihood is one row."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from skvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LinearFit,
    LogNormal,
    Multinomial,
    NegativeBinomial,
    NormalScores,
    Ordinal,
    Poisson,
    StudentT,
)
from skvae.likelihoods._mixed import Block, ColumnLikelihoods


class Case(NamedTuple):
    likelihood: Likelihood  # of three columns
    reference: Any  # raw (ndarray) -> frozen scipy distribution, or Levels
    values: np.ndarray  # of the support, from end to end
    spacing: np.ndarray | None  # of the values, to integrate over them; None: sum over them
    has_mean: bool = True  # categories have none: the mode stands for it
    is_mixed: bool = False  # densities of some values, and probabilities of others

    @property
    def weights(self):
        return np.ones_like(self.values) if self.spacing is None else self.spacing


class Levels:
    """The part of scipy's interface that is used here, from the levels' probabilities."""

    def __init__(self, p):  # (..., D, L)
        self.p = p
        self.number = np.arange(p.shape[-1])

    def logpmf(self, x):
        chosen = np.take_along_axis(self.p, np.asarray(x, dtype=int)[..., None], -1)
        return np.log(chosen[..., 0])

    def mean(self):
        return (self.p * self.number).sum(-1)

    def var(self):
        return (self.p * self.number**2).sum(-1) - self.mean() ** 2

    def std(self):
        return np.sqrt(self.var())


def having(likelihood, **parameters):
    """With these values of what it learns, in float64."""
    as_tensor = {n: torch.tensor(v, dtype=torch.float64) for n, v in parameters.items()}
    return likelihood.with_values(as_tensor)


def in_model(likelihood, dtype=torch.float64, n_columns=3):
    """The torch module that a model makes of it, with its values and in this precision."""
    levels = getattr(likelihood, "n_levels", [0] * n_columns)
    edges = getattr(likelihood, "edges", ())
    block = Block(likelihood, range(n_columns), levels, 1.0, edges).to(dtype)
    names = dict(block.named_parameters())
    block.assign({name: value for name, value in vars(likelihood).items() if name in names})
    return block


def ordered(raw):
    tau = np.array([[-1.0, 0.5], [0.0, 2.0], [0.3, 0.5]])
    below = stats.logistic.cdf(tau - raw[..., None])
    ends = np.zeros((*below.shape[:-1], 1)), np.ones((*below.shape[:-1], 1))
    return Levels(np.diff(np.concatenate([ends[0], below, ends[1]], -1), axis=-1))


class InIntervals:
    """The part of scipy's interface that is used here, of a normal variable seen in intervals."""

    def __init__(self, raw):
        self.latent = stats.norm(raw, SCALES)
        self.mean, self.std, self.var = self.latent.mean, self.latent.std, self.latent.var

    def logpdf(self, x):
        result = self.latent.logpdf(x)
        for column, edges in enumerate(EDGES):
            for lower, upper in zip(edges[::2], edges[1::2], strict=True):
                mass = self.latent.cdf(upper) - self.latent.cdf(lower)
                within = (lower < x[:, column]) & (x[:, column] < upper)
                result[:, column] = np.where(within, np.log(mass[:, column]), result[:, column])
        return result


LINE = np.linspace(-60.0, 60.0, 4001), np.full(4001, 120.0 / 4000)
GRID = np.linspace(-25.0, 25.0, 4001)  # values are a function of it that reaches the tails
LONG_LINE = np.sinh(GRID), np.cosh(GRID) * 50.0 / 4000
HALF_LINE = np.exp(GRID), np.exp(GRID) * 50.0 / 4000
COUNTS = np.arange(400.0)
SCALES = np.array([0.5, 1.0, 2.0])
LOG_SCALES = np.array([0.3, 0.5, 0.4])
DF = np.array([8.0, 5.0, 30.0])
DISPERSIONS = np.array([2.0, 5.0, 0.8])

CASES = {
    "gaussian": Case(
        having(Gaussian(), log_scale=np.log(SCALES)),
        lambda raw: stats.norm(raw, SCALES),
        *LINE,
    ),
    "gaussian, shared noise": Case(
        having(Gaussian("shared"), log_scale=[math.log(0.7)]),
        lambda raw: stats.norm(raw, 0.7),
        *LINE,
    ),
    "bernoulli": Case(
        Bernoulli(), lambda raw: stats.bernoulli(special.expit(raw)), np.array([0.0, 1.0]), None
    ),
    "categorical": Case(
        Categorical([3, 3, 3]),
        lambda raw: Levels(special.softmax(raw.reshape(*raw.shape[:-1], 3, 3), -1)),
        np.arange(3.0),
        None,
        has_mean=False,
    ),
    "student_t": Case(
        having(StudentT(), log_scale=np.log(SCALES), log_excess=np.log(DF - 1.0)),
        lambda raw: stats.t(DF, raw, SCALES),
        *LONG_LINE,
    ),
    "log_normal": Case(
        having(LogNormal(), log_scale=np.log(LOG_SCALES)),
        lambda raw: stats.lognorm(LOG_SCALES, scale=np.exp(raw)),
        *HALF_LINE,
    ),
    "log_normal, shared noise": Case(
        having(LogNormal("shared"), log_scale=[math.log(0.4)]),
        lambda raw: stats.lognorm(0.4, scale=np.exp(raw)),
        *HALF_LINE,
    ),
    "ordinal": Case(
        having(Ordinal([3, 3, 3]), first=[-1.0, 0.0, 0.3], log_gap=np.log([[1.5], [2.0], [0.2]])),
        ordered,
        np.arange(3.0),
        None,
    ),
    "poisson": Case(Poisson(), lambda raw: stats.poisson(np.exp(raw)), COUNTS, None),
    "negative_binomial": Case(
        having(NegativeBinomial(), log_dispersion=np.log(DISPERSIONS)),
        lambda raw: stats.nbinom(DISPERSIONS, DISPERSIONS / (DISPERSIONS + np.exp(raw))),
        COUNTS,
        None,
    ),
}


def seen_in_intervals():
    """Of three columns alike: their values, and weights that integrate and sum over them."""
    edges = [-np.inf, -0.5, 0.7, 1.2]
    node, weight = np.polynomial.legendre.leggauss(200)
    values, weights = [-0.9, 0.9], [1.0, 1.0]
    for lower, upper in [(-0.5, 0.7), (1.2, 30.0)]:
        values.extend(lower + 0.5 * (node + 1.0) * (upper - lower))
        weights.extend(0.5 * weight * (upper - lower))
    order = np.argsort(values)
    return (tuple(edges),) * 3, np.array(values)[order], np.array(weights)[order]


EDGES, *MIXED = seen_in_intervals()
CASES |= {
    "normal_scores": Case(
        having(NormalScores(), log_scale=np.log(SCALES)),
        lambda raw: stats.norm(raw, SCALES),
        *LINE,
    ),
    "normal_scores, atoms": Case(
        having(NormalScores(edges=EDGES), log_scale=np.log(SCALES)),
        InIntervals,
        *MIXED,
        is_mixed=True,
    ),
}

# Likelihoods whose cells hang together: of three columns, and all rows that have the same total.
JOINT = {
    "multinomial": Case(
        having(Multinomial(), total=[4.0], spread=[0.0]),
        lambda raw: stats.multinomial(4, special.softmax(raw, -1)),
        np.array([x for x in itertools.product(range(5), repeat=3) if sum(x) == 4], dtype=float),
        None,
    ),
}

each_likelihood = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_joint = pytest.mark.parametrize("case", JOINT.values(), ids=JOINT)
of_all = pytest.mark.parametrize("case", [*CASES.values(), *JOINT.values()], ids=[*CASES, *JOINT])


def raw_of(likelihood):  # (N, P)
    n_raw = len(likelihood.columns_of_features(3))
    raw = [[-1.3, 0.2, 2.5, 0.6, -0.4, 1.1, 0.0, 0.9, -2.0], [0.0, -4.0, 0.7] * 3]
    return torch.tensor(raw, dtype=torch.float64)[:, :n_raw]


def everywhere(value, dtype=torch.float64):  # (N, D)
    return torch.full((2, 3), value, dtype=dtype)


def drawn(likelihood, n_rows=2000):
    """Rows of a likelihood whose raw parameters vary a little, as with one latent variable."""
    generator = torch.Generator().manual_seed(5)
    raw = raw_of(likelihood)[:1]
    z = torch.randn((n_rows, 1), generator=generator, dtype=raw.dtype)
    return likelihood.sample(raw + 0.3 * z * torch.linspace(-1.0, 1.0, raw.shape[1]), generator)


def fit_of(likelihood, x, share=0.9):
    """The linear fit of a table with nan: it leaves this share of the standard deviation."""
    mixed = isinstance(likelihood, ColumnLikelihoods)
    column = likelihood.column if mixed else likelihood.columns_of_features(x.shape[1])
    seen = ~x.isnan()
    features = likelihood.features(torch.where(seen, x, 1.0))
    seen = seen[:, column]
    n = seen.sum(0).clamp(min=1)
    mean = (features * seen).sum(0) / n
    scale = (((features - mean) * seen).square().sum(0) / n).sqrt()
    return LinearFit(mean, scale, share * scale)


def started(likelihood, x, weight=None):
    weight = torch.ones(len(x), dtype=x.dtype) if weight is None else weight
    fit = fit_of(likelihood, x)
    start = likelihood.from_linear_fit(x, weight, fit)
    return likelihood.with_values(start.values), fit, start


def test_every_likelihood_has_a_row_in_the_table():
    cases = [*CASES.values(), *JOINT.values()]
    assert {type(case.likelihood) for case in cases} == set(LIKELIHOODS.values())


# -- densities ------------------------------------------------------------------------------------


@each_likelihood
def test_the_log_probability_is_scipys(case):
    raw = raw_of(case.likelihood)
    distribution = case.reference(raw.numpy())
    log_density = distribution.logpmf if case.spacing is None else distribution.logpdf
    for value in (case.values[0], case.values[-1], 1.0):
        ours = case.likelihood.log_prob(everywhere(value), raw).detach()
        np.testing.assert_allclose(ours, log_density(np.full((2, 3), value)), rtol=1e-6)


@each_likelihood
def test_the_distribution_function_is_scipys(case):
    if not case.likelihood.has_cdf:
        pytest.skip("levels have probabilities")
    raw = raw_of(case.likelihood)
    distribution = case.reference(raw.numpy())
    distribution = distribution.latent if case.is_mixed else distribution  # of the score
    for value in (*case.values[:: len(case.values) // 9], 0.0, 1.0, 2.5):
        ours = case.likelihood.cdf(everywhere(value), raw).detach()
        expected = distribution.cdf(np.full((2, 3), value))
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-12)


@each_likelihood
def test_the_density_integrates_to_one(case):
    raw = raw_of(case.likelihood)
    x = torch.from_numpy(case.values)[:, None, None].expand(-1, 2, 3)
    raw = raw.expand(len(x), *raw.shape)
    density = torch.exp(case.likelihood.log_prob(x, raw)).detach().numpy()
    np.testing.assert_allclose(np.tensordot(case.weights, density, 1), 1.0, rtol=1e-9)


@each_likelihood
def test_the_mean_is_scipys(case):
    raw = raw_of(case.likelihood)
    mean = case.likelihood.mean(raw).detach()
    if case.has_mean:
        np.testing.assert_allclose(mean, case.reference(raw.numpy()).mean(), rtol=1e-9)
    else:
        assert torch.equal(mean, case.likelihood.mode(raw))


@each_likelihood
def test_no_value_is_more_probable_than_the_mode(case):
    if case.is_mixed:
        pytest.skip("a density and a probability do not compare")
    raw = raw_of(case.likelihood)
    at_mode = case.likelihood.log_prob(case.likelihood.mode(raw), raw) + 1e-12
    some = case.values[:: len(case.values) // 50] if case.spacing is not None else case.values
    for value in some:
        assert bool((case.likelihood.log_prob(everywhere(value), raw) <= at_mode).all())


@each_likelihood
def test_draws_have_the_mean_and_variance_of_the_distribution(case):
    n = 40_000
    raw = raw_of(case.likelihood)
    generator = torch.Generator().manual_seed(0)
    draws = case.likelihood.sample(raw.expand(n, *raw.shape), generator).detach().numpy()
    reference = case.reference(raw.numpy())
    error = np.abs(draws.mean(0) - reference.mean())
    assert (error < 4.5 * reference.std() / np.sqrt(n) + 1e-12).all()
    np.testing.assert_allclose(draws.var(0), reference.var(), rtol=0.1, atol=1e-3)


@of_all
def test_draws_come_from_the_generator_that_is_passed_in(case):
    def draw():
        raw = raw_of(case.likelihood)
        return case.likelihood.sample(raw, torch.Generator().manual_seed(3))

    state = torch.get_rng_state()
    assert torch.equal(draw(), draw())
    assert torch.equal(state, torch.get_rng_state())


def expected_negative_hessian(case, raw):  # (N, P, P)
    """-E[d^2 log p(x) / d raw^2], all columns together, by a sum or integral over the support."""
    x = torch.from_numpy(case.values)[:, None, None].expand(-1, 2, 3)
    raw = raw.expand(len(x), *raw.shape).clone().requires_grad_()
    log_p = case.likelihood.log_prob(x, raw)
    share = torch.from_numpy(case.weights)[:, None, None] * log_p.detach().exp()
    hessian = torch.zeros(2, raw.shape[-1], raw.shape[-1], dtype=raw.dtype)
    for d in range(3):
        (first,) = torch.autograd.grad(log_p[..., d].sum(), raw, create_graph=True)
        for p in range(raw.shape[-1]):
            (second,) = torch.autograd.grad(first[..., p].sum(), raw, retain_graph=True)
            hessian[:, p] -= (share[..., d, None] * second).sum(0)
    return hessian


@each_likelihood
def test_the_curvature_is_minus_the_expected_second_derivative(case):
    # Whatever the family: for exponential ones in raw the second derivative hangs not on x.
    raw = raw_of(case.likelihood)
    expected = expected_negative_hessian(case, raw)
    axes = torch.eye(raw.shape[-1], dtype=raw.dtype).expand(2, -1, -1)
    curvature = case.likelihood.curvature(axes, raw, None).detach()
    torch.testing.assert_close(curvature, expected, rtol=1e-6, atol=1e-9)
    information = case.likelihood.information(raw).detach()
    torch.testing.assert_close(
        information, expected.diagonal(dim1=-2, dim2=-1), rtol=1e-6, atol=1e-9
    )


@each_likelihood
def test_missing_columns_drop_from_the_curvature(case):
    likelihood, raw = case.likelihood, raw_of(case.likelihood)
    generator = torch.Generator().manual_seed(1)
    jacobian = torch.randn((2, 2, raw.shape[-1]), generator=generator, dtype=raw.dtype)
    observed = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=raw.dtype)
    without = jacobian * observed[:, likelihood.columns_of_features(3)][:, None]
    torch.testing.assert_close(
        likelihood.curvature(jacobian, raw, observed), likelihood.curvature(without, raw, None)
    )


@of_all
def test_the_support_holds_every_value(case):
    support = case.likelihood.support
    assert support.lower <= case.values.min() and case.values.max() <= support.upper
    assert support.whole == (case.spacing is None and type(case.likelihood) is not Bernoulli)


@of_all
def test_samples_of_z_may_stand_in_front(case):
    raw = raw_of(case.likelihood)
    x = everywhere(1.0)
    both = case.likelihood.log_prob(x, torch.stack([raw, raw + 0.5]))
    torch.testing.assert_close(both[0], case.likelihood.log_prob(x, raw))
    torch.testing.assert_close(both[1], case.likelihood.log_prob(x, raw + 0.5))


@of_all
def test_the_precision_stays_what_it_is(case):
    likelihood = in_model(case.likelihood, torch.float32).now
    raw = raw_of(case.likelihood).float()
    x = likelihood.sample(raw, torch.Generator().manual_seed(0))
    results = [x, likelihood.log_prob(x, raw), likelihood.mean(raw), likelihood.mode(raw)]
    results += [likelihood.information(raw), likelihood.features(x), likelihood.feature_mean(raw)]
    assert {result.dtype for result in results} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [-50.0, 25.0, 50.0])
@each_likelihood
def test_extreme_raw_has_a_finite_log_probability_and_gradient(case, size, dtype):
    block = in_model(case.likelihood, dtype)
    likelihood = block.now
    for value in (0.0, case.values[0], case.values[-1], 1.0):  # 0: a missing value's filling
        raw = (torch.zeros_like(raw_of(likelihood)) + size).to(dtype)
        raw[:, 1::2] = 0.0
        raw.requires_grad_()
        log_p = likelihood.log_prob(everywhere(value, dtype), raw)
        gradients = torch.autograd.grad(log_p.sum(), [raw, *block.parameters()])
        assert all(bool(g.isfinite().all()) for g in [log_p, *gradients])
        assert bool(likelihood.information(raw).isfinite().all())


# -- cells that hang together ---------------------------------------------------------------------


@each_joint
def test_the_joint_log_probability_is_scipys(case):
    raw = raw_of(case.likelihood)
    x = torch.from_numpy(case.values)[:, None].expand(-1, 2, 3)
    ours = case.likelihood.log_prob(x, raw.expand(len(x), 2, 3)).sum(-1)
    np.testing.assert_allclose(ours, case.reference(raw.numpy()).logpmf(x.numpy()), rtol=1e-10)


@each_joint
@pytest.mark.parametrize("seen", [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
def test_joint_probabilities_add_up_to_one_over_what_is_observed(case, seen):
    raw, seen = raw_of(case.likelihood)[:1], torch.tensor(seen, dtype=torch.bool)
    x = torch.from_numpy(case.values)
    x = torch.unique(torch.where(seen, x, 0.0), dim=0)
    whole = x[x.sum(1) == x.sum(1).max()]
    hidden = torch.where(seen, whole, 7.0)  # what stands in a missing cell never counts
    seen = seen.expand(len(whole), 3)
    log_p = case.likelihood.given(hidden, seen).log_prob(hidden, raw.expand(len(whole), 3))
    assert torch.where(seen, log_p, 0.0).sum(1).exp().sum().item() == pytest.approx(1.0)


@each_joint
def test_joint_draws_have_the_moments_and_shares_of_the_distribution(case):
    n = 40_000
    raw = raw_of(case.likelihood)
    draws = case.likelihood.sample(raw.expand(n, 2, 3), torch.Generator().manual_seed(0)).numpy()
    reference = case.reference(raw.numpy())
    for row in range(2):
        values, counts = np.unique(draws[:, row], axis=0, return_counts=True)
        p = stats.multinomial(4, reference.p[row]).pmf(values)
        assert (np.abs(counts / n - p) < 4.5 * np.sqrt(p / n) + 1e-12).all()
    covariance = [stats.multinomial(4, p).cov() for p in reference.p]
    for row in range(2):
        np.testing.assert_allclose(np.cov(draws[:, row].T), covariance[row], atol=0.05)
    np.testing.assert_allclose(case.likelihood.mean(raw), 4.0 * reference.p, rtol=1e-12)


@each_joint
def test_the_mode_is_the_most_probable_value_of_each_cell_alone(case):
    raw = raw_of(case.likelihood)
    p = case.reference(raw.numpy()).p
    each = stats.binom(4, p[..., None]).pmf(np.arange(5.0))
    np.testing.assert_array_equal(case.likelihood.mode(raw), each.argmax(-1))


@each_joint
def test_the_joint_curvature_is_minus_the_expected_second_derivative(case):
    raw = raw_of(case.likelihood)
    x = torch.from_numpy(case.values)

    def expected(raw):
        own = raw.detach()
        p = case.likelihood.log_prob(x, own.expand(len(x), 3)).sum(1).exp()
        return -(p * case.likelihood.log_prob(x, raw.expand(len(x), 3)).sum(1)).sum()

    axes = torch.eye(3, dtype=raw.dtype).expand(2, -1, -1)
    curvature = case.likelihood.curvature(axes, raw, None)
    for row in range(2):
        hessian = torch.autograd.functional.hessian(expected, raw[row])
        torch.testing.assert_close(curvature[row], hessian)
    torch.testing.assert_close(
        case.likelihood.information(raw), curvature.diagonal(dim1=-2, dim2=-1)
    )


@each_joint
def test_the_joint_curvature_is_of_the_shares_among_what_is_observed(case):
    raw, axes = raw_of(case.likelihood), torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    x = torch.tensor([[3.0, 0.0, 2.0], [1.0, 4.0, 0.0]], dtype=raw.dtype)
    seen = torch.tensor([[True, False, True], [True, True, True]])
    found = case.likelihood.given(x, seen).curvature(axes, raw, seen)
    for row in range(2):
        own = torch.nonzero(seen[row])[:, 0]
        p = torch.softmax(raw[row, own], 0)
        expected = torch.zeros(3, 3, dtype=raw.dtype)
        expected[own[:, None], own] = 5.0 * (torch.diag(p) - p[:, None] * p)
        torch.testing.assert_close(found[row], expected)


@each_joint
@pytest.mark.parametrize("missing", ["nothing", "some", "a row"])
def test_the_joint_gradient_is_that_of_autograd(case, missing):
    generator = torch.Generator().manual_seed(0)
    x = case.likelihood.sample(torch.zeros(6, 3, dtype=torch.float64), generator)
    raw = torch.randn((2, 6, 3), generator=generator, dtype=x.dtype, requires_grad=True)
    count = torch.rand((6, 1), generator=generator, dtype=x.dtype)
    if missing != "nothing":
        seen = torch.rand((6, 3), generator=generator) < 0.6
        seen[0] = missing != "a row"
        x, count = torch.where(seen, x, 0.0), count * seen
    now = case.likelihood.given(x, None if missing == "nothing" else count > 0.0)
    expected = (now.log_prob(x, raw) * count).sum()
    (slope,) = torch.autograd.grad(expected, raw)
    g = torch.empty_like(raw)
    value = case.likelihood.gradient(x, raw.detach(), count, g, {})
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(g, -slope)


@each_joint
def test_log_p_of_many_joint_rows_at_many_points_is_that_of_each(case):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn((5, 3), generator=generator, dtype=torch.float64)
    x = case.likelihood.sample(torch.zeros(6, 3, dtype=torch.float64), generator)
    for seen in (None, torch.rand((6, 3), generator=generator) < 0.6):
        now = case.likelihood.given(x, seen)
        log_p = now.log_prob(x, raw[:, None].expand(-1, 6, -1))
        each = log_p if seen is None else torch.where(seen, log_p, 0.0)
        found = case.likelihood.log_prob_at(x, raw, seen)
        expected = each.sum(-1).T
        torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1])


def test_one_count_is_a_category():
    raw = torch.tensor([[-1.3, 0.2, 2.5]], dtype=torch.float64).expand(3, -1)
    counts = torch.eye(3, dtype=torch.float64)
    as_level = Categorical([3]).log_prob(torch.arange(3.0)[:, None], raw)
    torch.testing.assert_close(Multinomial().log_prob(counts, raw).sum(1), as_level[:, 0])


def test_rows_without_counts_have_no_log_probability():
    raw = torch.tensor([[1.0, 60.0, -60.0]], requires_grad=True)
    log_p = Multinomial().log_prob(torch.zeros(1, 3), raw)
    (gradient,) = torch.autograd.grad(log_p.sum(), raw)
    assert log_p.tolist() == gradient.tolist() == [[0.0, 0.0, 0.0]]
    assert Multinomial().features(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_missing_cell_is_expected_to_hold_its_share():
    raw = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))
    x = torch.tensor([[30.0, 10.0, 0.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, False]])
    # Totals vary without end: the part that is seen decides. Else the usual total is left of.
    varying = having(Multinomial(), total=[1.0], spread=[100.0]).given(x, seen)
    assert varying.mean(raw)[0, 2].item() == pytest.approx(10.0, rel=1e-4)
    draws = varying.sample(raw, torch.Generator().manual_seed(0))
    assert draws.sum().item() == 50.0
    fixed = having(Multinomial(), total=[44.0], spread=[0.0]).given(x, seen)
    assert fixed.mean(raw)[0, 2].item() == pytest.approx(4.0)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    usual = having(Multinomial(), total=[10.0], spread=[0.0]).given(x, nothing).mean(raw)
    torch.testing.assert_close(usual, 10.0 * raw.exp())


def test_the_start_of_a_multinomial_knows_shares_and_totals():
    n = torch.tensor([10.0, 20.0, 60.0], dtype=torch.float64).repeat(400)
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    x = having(Multinomial(), total=[1.0], spread=[0.0]).given(n[:, None], None)
    x = x.sample(torch.log(p).expand(1200, 3), generator)
    likelihood, _, start = started(Multinomial(), x)
    torch.testing.assert_close(torch.softmax(start.bias, 0), p, rtol=0.0, atol=0.01)
    assert likelihood.total.item() == pytest.approx(30.0)
    drawn = likelihood.sample(start.bias.expand(40_000, 3), generator).sum(1)
    assert drawn.mean().item() == pytest.approx(30.0, rel=0.02)
    assert drawn.std().item() == pytest.approx(n.std().item(), rel=0.1)


def check_start_of_poor_columns(specification, x):
    """Start with an empty column, a constant one, and one with holes: all is finite."""
    x[:, 0] = math.nan
    x[:, 1] = 1.0
    x[::3, 2] = math.nan
    likelihood, _, start = started(specification, x)
    assert all(bool(v.isfinite().all()) for v in (*start[:3], *start.values.values()))
    assert bool((start.variance > 0).all() and (start.weight_per_loading > 0).all())
    assert bool(likelihood.log_prob(x.nan_to_num(1.0), start.bias.expand(50, -1)).isfinite().all())


@each_joint
def test_the_joint_start_survives_empty_and_constant_columns(case):
    x = case.likelihood.sample(torch.zeros(50, 3, dtype=torch.float64), torch.Generator())
    check_start_of_poor_columns(case.likelihood, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [-50.0, 25.0, 50.0])
def test_extreme_raw_of_a_multinomial_has_a_finite_log_probability_and_gradient(size, dtype):
    raw = torch.tensor([[size, 0.0, size]], dtype=dtype, requires_grad=True)
    for value in (0.0, 1.0, 1e6):
        log_p = Multinomial().log_prob(torch.tensor([[value, 2.0, 0.0]], dtype=dtype), raw)
        (gradient,) = torch.autograd.grad(log_p.sum(), raw)
        assert bool(log_p.isfinite().all()) and bool(gradient.isfinite().all())


# -- the start ------------------------------------------------------------------------------------


@each_likelihood
def test_the_start_stands_for_the_marginal_mean_of_the_features(case):
    if case.is_mixed:
        pytest.skip("columns of normal scores are standard normal; see test_shape")
    likelihood, fit, start = started(case.likelihood, drawn(case.likelihood))
    error = likelihood.feature_mean(start.bias).detach() - fit.mean
    assert bool((error.abs() < 0.6 * fit.scale).all())


@each_likelihood
def test_the_start_moves_the_features_as_the_linear_fit_does(case):
    if case.is_mixed:
        pytest.skip("columns of normal scores are standard normal; see test_shape")
    likelihood, fit, start = started(case.likelihood, drawn(case.likelihood))
    column = likelihood.columns_of_features(3)
    step = 1e-4 * fit.scale
    if len(column) > 3:  # indicators add up to 1, so their loadings to 0
        step = step - torch.zeros(3, dtype=step.dtype).index_add_(0, column, step)[column] / 3.0
    moved = likelihood.feature_mean(start.bias + start.weight_per_loading * step)
    slope = (moved - likelihood.feature_mean(start.bias)).detach() / step
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0.05, atol=0.0)


@of_all
def test_the_start_counts_rows_by_their_weight(case):
    x = drawn(case.likelihood, 300)
    weight = torch.arange(300.0, dtype=x.dtype) % 3
    repeated = x.repeat_interleave(weight.long(), 0)
    fit = fit_of(case.likelihood, repeated)
    weighted = case.likelihood.from_linear_fit(x, weight, fit)
    torch.testing.assert_close(
        weighted, case.likelihood.from_linear_fit(repeated, torch.ones(300), fit)
    )


@each_likelihood
def test_the_start_survives_empty_and_constant_columns(case):
    x = drawn(case.likelihood, 50)
    check_start_of_poor_columns(case.likelihood, x)


@of_all
def test_missing_values_do_not_change_the_start(case):
    x = drawn(case.likelihood, 60)
    fit = fit_of(case.likelihood, x)
    weight = torch.ones(60, dtype=x.dtype)
    apart = torch.cat([x, torch.full_like(x, math.nan)])
    one = case.likelihood.from_linear_fit(x, weight, fit)
    other = case.likelihood.from_linear_fit(apart, torch.cat([weight, weight]), fit)
    torch.testing.assert_close(one, other)


def test_the_start_of_student_t_sees_past_the_wild_values():
    x = torch.from_numpy(stats.t(2.0, 0.0, 0.3).rvs((2000, 1), random_state=0))
    fit = fit_of(StudentT(), x, share=1.0)
    assert fit.scale.item() > 0.6
    start = StudentT().from_linear_fit(x, torch.ones(2000, dtype=x.dtype), fit)
    likelihood = StudentT().with_values(start.values)
    assert likelihood.log_scale.exp().item() == pytest.approx(0.3, rel=0.25)
    assert 1.5 <= 1.0 + likelihood.log_excess.exp().item() <= 3.0


def test_the_start_of_ordinal_is_the_marginal():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [3.0, math.nan]], dtype=torch.float64)
    likelihood, _, start = started(Ordinal([4, 2]), x)
    assert start.bias.tolist() == [0.0, 0.0]
    levels = torch.arange(4.0, dtype=torch.float64)[:, None]
    shares = [
        likelihood.log_prob(torch.cat([levels, levels.clamp(max=1)], 1), start.bias.expand(4, 2))
        .exp()[:n, d]
        .tolist()
        for d, n in enumerate([4, 2])
    ]
    assert shares[0] == pytest.approx([0.25, 0.5, 0.0, 0.25], abs=2e-4)
    assert shares[1] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(("mean", "r"), [(20.0, 1.5), (0.3, 0.2), (500.0, 30.0)])
def test_the_start_of_overdispersed_counts_is_the_marginal(mean, r):
    rng = np.random.default_rng(0)
    counts = rng.poisson(mean * rng.gamma(r, 1.0 / r, (4000, 1))).astype(float)
    x, weight = torch.from_numpy(counts), torch.ones(4000, dtype=torch.float64)
    start = NegativeBinomial().from_linear_fit(x, weight, fit_of(NegativeBinomial(), x))
    assert start.bias.exp().item() == pytest.approx(counts.mean())

    def surprise(log_r):
        p = np.exp(log_r) / (np.exp(log_r) + counts.mean())
        return -stats.nbinom.logpmf(counts, np.exp(log_r), p).sum()

    best = optimize.minimize_scalar(surprise, bounds=(-4.6, 9.2), method="bounded")
    assert start.values["log_dispersion"].item() == pytest.approx(best.x, abs=1e-3)


# -- noise ----------------------------------------------------------------------------------------


def test_the_noise_cannot_fall_below_its_floor():
    for likelihood in (Gaussian(), LogNormal(), StudentT()):
        block = in_model(likelihood)
        block.assign({"log_scale": torch.log(torch.tensor([1e-9, 0.5, 1e-4]))})
        block.project()
        assert torch.exp(block.log_scale).tolist() == pytest.approx([1e-3, 0.5, 1e-3])


@pytest.mark.parametrize("kind", [Gaussian, LogNormal])
def test_the_noise_can_be_set_from_what_predictions_leave(kind):
    variance, count = torch.tensor([0.25, 1.0, 1e-12]), torch.tensor([1.0, 3.0, 0.0])
    both = [kind(noise).noise_values(variance, count) for noise in ("per_column", "shared")]
    scales = [torch.exp(values["log_scale"]).tolist() for values in both]
    assert scales[0] == pytest.approx([0.5, 1.0, 1e-3])
    assert scales[1] == pytest.approx([math.sqrt(3.25 / 4.0)])


@of_all
def test_the_noise_variance_is_that_of_an_additive_noise(case):
    variance = case.likelihood.noise_variance(3).detach()
    assert variance.shape == (3,)
    if isinstance(case.likelihood, Gaussian | StudentT | NormalScores):
        raw = raw_of(case.likelihood)
        np.testing.assert_allclose(variance, case.reference(raw.numpy()).var()[0])
    else:
        assert bool(variance.isnan().all())


def test_without_a_variance_student_t_has_no_noise_variance():
    likelihood = having(StudentT(), log_scale=[0.0, 0.0], log_excess=np.log([0.5, 2.0]))
    assert likelihood.noise_variance(2).isnan().tolist() == [True, False]


# -- columns --------------------------------------------------------------------------------------


@of_all
def test_a_fresh_likelihood_is_of_the_same_kind(case):
    fresh = case.likelihood.for_columns([4, 2], 100.0)
    assert type(fresh) is type(case.likelihood) and fresh.noise == case.likelihood.noise
    n_raw = len(fresh.columns_of_features(2))
    block = Block(case.likelihood, [0, 1], [4, 2], 100.0)
    assert block.now.log_prob(torch.ones(5, 2), torch.zeros(5, n_raw)).shape == (5, 2)
    assert getattr(fresh, "n_levels", (4, 2)) == (4, 2)
    # A logarithm has no unit, and neither have normal scores.
    floor = 0.001 if isinstance(fresh, LogNormal | NormalScores) else 0.1
    assert getattr(fresh, "floor", floor) == pytest.approx(floor)
    block.project()


def test_bernoulli_takes_probabilities_as_grey_values():
    raw = torch.tensor(0.4)
    grey = Bernoulli().log_prob(torch.tensor(0.25), raw)
    mixed = 0.25 * Bernoulli().log_prob(torch.tensor(1.0), raw)
    mixed += 0.75 * Bernoulli().log_prob(torch.tensor(0.0), raw)
    torch.testing.assert_close(grey, mixed)


def test_the_curvature_of_a_categorical_is_that_of_a_softmax():
    likelihood = Categorical([3, 2])
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn((4, 5), generator=generator)
    jacobian = torch.randn((4, 2, 5), generator=generator)
    expected = torch.zeros(4, 2, 2)
    for levels in (slice(0, 3), slice(3, 5)):
        p = torch.softmax(raw[:, levels], -1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        expected += jacobian[..., levels] @ middle @ jacobian[..., levels].mT
    torch.testing.assert_close(likelihood.curvature(jacobian, raw, None), expected)


def test_the_features_of_a_categorical_are_indicators():
    features = Categorical([3, 1, 2]).features(torch.tensor([[2.0, 0.0, 1.0]]))
    assert features.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0, 1.0]]


def test_an_ordinal_column_with_fewer_levels_is_as_it_would_be_alone():
    together = having(
        Ordinal([4, 2, 1]), first=[-1.0, 0.7, 3.0], log_gap=[[0.1, -0.3], [5.0, 5.0], [0.0, 0.0]]
    )
    alone = [
        having(Ordinal([4]), first=[-1.0], log_gap=[[0.1, -0.3]]),
        having(Ordinal([2]), first=[0.7], log_gap=np.zeros((1, 0))),
        having(Ordinal([1]), first=[0.0], log_gap=np.zeros((1, 0))),
    ]
    raw = torch.tensor([[0.3, -1.2, 4.0], [-2.0, 0.5, -9.0]], dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for d, one in enumerate(alone):
        own = slice(d, d + 1)
        torch.testing.assert_close(
            together.log_prob(x, raw)[:, own], one.log_prob(x[:, own], raw[:, own])
        )
        for name in ("mean", "mode", "information"):
            torch.testing.assert_close(
                getattr(together, name)(raw)[:, own], getattr(one, name)(raw[:, own])
            )


@pytest.mark.parametrize("kind", [Ordinal, Categorical])
def test_a_column_with_one_level_is_certain(kind):
    likelihood = kind([1])
    x, raw = torch.zeros(3, 1), torch.tensor([[-40.0], [0.0], [40.0]], requires_grad=True)
    log_p = likelihood.log_prob(x, raw)
    (gradient,) = torch.autograd.grad(log_p.sum(), raw)
    assert log_p.tolist() == gradient.tolist() == [[0.0]] * 3
    assert likelihood.information(raw).tolist() == [[0.0]] * 3
    assert likelihood.mean(raw).tolist() == likelihood.mode(raw).tolist() == [[0.0]] * 3
    assert likelihood.sample(raw, torch.Generator().manual_seed(0)).tolist() == [[0.0]] * 3
    start = started(likelihood, x.double())[2]
    assert all(bool(value.isfinite().all()) for value in start[:3])


def test_counts_beyond_float32_have_an_accurate_log_probability():
    for count in (1e5, 1e7):
        x, raw = torch.tensor([count]), torch.log(torch.tensor([count]))
        exact = stats.poisson(np.exp(raw.double().item())).logpmf(count)
        assert Poisson().log_prob(x, raw).item() == pytest.approx(exact, abs=1e-4)


def test_a_rate_that_would_overflow_goes_on_linearly():
    raw = torch.tensor([19.0, 20.0, 21.0, 22.0], dtype=torch.float64)
    rate = Poisson().mean(raw) / math.exp(20.0)
    torch.testing.assert_close(rate, torch.tensor([math.exp(-1.0), 1.0, 2.0, 3.0]).double())
    raw = torch.tensor([50.0], requires_grad=True)
    Poisson().log_prob(torch.tensor([3.0]), raw).backward()
    assert raw.grad.item() < 0.0  # back to where the counts are


# -- several kinds --------------------------------------------------------------------------------

# Columns interleaved: the raw parameters are ordered by parts, the columns are not.
PARTS = [
    (having(Gaussian(), log_scale=np.log([2.0, 0.5])), [0, 3]),
    (Categorical([2, 3]), [1, 4]),
    (Poisson(), [2]),
    (having(StudentT(), log_scale=[0.0], log_excess=[1.5]), [5]),
    (having(Ordinal([4]), first=[-1.0], log_gap=[[0.1, -0.3]]), [6]),
]
N_RAW = [2, 5, 1, 1, 1]
LEVELS = [0, 2, 0, 0, 3, 0, 4]


@pytest.fixture
def mixed():
    of_column = {c: type(part)() for part, columns in PARTS for c in columns}
    likelihood = ColumnLikelihoods([of_column[c] for c in range(7)], LEVELS).double()
    for block, (part, _) in zip(likelihood.parts, PARTS, strict=True):
        names = dict(block.named_parameters())
        block.assign({name: value for name, value in vars(part).items() if name in names})
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn((20, 10), generator=generator, dtype=torch.float64)
    return likelihood, likelihood.sample(raw, generator).detach(), raw


def of_parts(raw):
    """Each part of its own, its columns, and its raw parameters."""
    return [(*part, own) for part, own in zip(PARTS, raw.split(N_RAW, -1), strict=True)]


def test_several_kinds_evaluate_each_column_as_its_own_likelihood(mixed):
    likelihood, x, raw = mixed
    log_p = likelihood.log_prob(x, torch.stack([raw, -raw]))
    for part, columns, own in of_parts(raw):
        expected = part.log_prob(x[:, columns], torch.stack([own, -own]))
        torch.testing.assert_close(log_p[..., columns], expected)


@pytest.mark.parametrize("name", ["mean", "mode"])
def test_several_kinds_put_their_columns_in_order(mixed, name):
    likelihood, _, raw = mixed
    values = getattr(likelihood, name)(raw)
    for part, columns, own in of_parts(raw):
        torch.testing.assert_close(values[:, columns], getattr(part, name)(own))


@pytest.mark.parametrize("name", ["information", "feature_mean"])
def test_several_kinds_order_their_raw_parameters_by_parts(mixed, name):
    likelihood, _, raw = mixed
    values = getattr(likelihood, name)(raw).split(N_RAW, -1)
    for (part, _, own), value in zip(of_parts(raw), values, strict=True):
        torch.testing.assert_close(value, getattr(part, name)(own))


def test_several_kinds_draw_from_each_in_turn(mixed):
    likelihood, _, raw = mixed
    draws = likelihood.sample(raw, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    for part, columns, own in of_parts(raw):
        torch.testing.assert_close(draws[:, columns], part.sample(own, generator))


def test_several_kinds_know_the_column_of_each_feature(mixed):
    likelihood, x, _ = mixed
    assert likelihood.column.tolist() == [0, 3, 1, 1, 4, 4, 4, 2, 5, 6]
    parts = likelihood.features(x).split(N_RAW, -1)
    for (part, columns), features in zip(PARTS, parts, strict=True):
        torch.testing.assert_close(features, part.features(x[:, columns]))


def test_the_curvature_of_several_kinds_is_their_sum(mixed):
    likelihood, _, raw = mixed
    generator = torch.Generator().manual_seed(1)
    jacobian = torch.randn((20, 3, 10), generator=generator, dtype=raw.dtype)
    observed = (torch.rand((20, 7), generator=generator) < 0.7).to(raw.dtype)
    expected = sum(
        part.curvature(j, own, observed[:, columns])
        for (part, columns, own), j in zip(of_parts(raw), jacobian.split(N_RAW, -1), strict=True)
    )
    torch.testing.assert_close(likelihood.curvature(jacobian, raw, observed), expected)


def test_several_kinds_start_as_each_alone(mixed):
    likelihood, x, _ = mixed
    weight, fit = torch.ones(20, dtype=x.dtype), fit_of(likelihood, x)
    x[::4, 2] = x[::5, 6] = math.nan
    start = likelihood.from_linear_fit(x, weight, fit)
    fits = zip(*(value.split(N_RAW) for value in fit), strict=True)
    own_starts = zip(*(value.split(N_RAW) for value in start[:3]), strict=True)
    for number, (own_fit, own_start) in enumerate(zip(fits, own_starts, strict=True)):
        part, columns = PARTS[number]
        expected = part.from_linear_fit(x[:, columns], weight, LinearFit(*own_fit))
        torch.testing.assert_close(own_start, tuple(expected[:3]))
        own = dict(likelihood.parts[number].named_parameters())
        torch.testing.assert_close({n: p.detach() for n, p in own.items()}, {**expected.values})


def test_several_kinds_have_the_noise_of_each(mixed):
    likelihood, *_ = mixed
    variance = likelihood.noise_variance()
    assert variance.isnan().tolist() == [False, True, True, False, True, False, True]
    assert variance[[3, 0]].tolist() == pytest.approx([0.25, 4.0])
    likelihood.set_noise(torch.arange(1.0, 11.0), torch.ones(10))
    assert likelihood.noise_variance()[[0, 3]].tolist() == pytest.approx([1.0, 2.0])
    assert likelihood.noise == "shared"  # Student-t starts from probabilistic PCA


def test_several_kinds_give_each_its_own_columns():
    kinds = [Gaussian(), Categorical(), Poisson(), Gaussian(), Ordinal(), StudentT(), Categorical()]
    fresh = ColumnLikelihoods(kinds, [0, 5, 0, 0, 2, 0, 6], rms=200.0)
    found = [type(part.specification) for part in fresh.parts]
    assert found == [Gaussian, Categorical, Poisson, Ordinal, StudentT]
    assert fresh.parts[0].log_scale.shape == (2,)
    assert fresh.parts[0].specification.floor == pytest.approx(0.2)
    assert fresh.parts[1].specification.n_levels == (5, 6)
    assert fresh.parts[3].specification.n_levels == (2,)
    with torch.no_grad():
        fresh.parts[0].log_scale.fill_(-9.0)
    fresh.project()
    assert torch.exp(fresh.parts[0].log_scale).tolist() == pytest.approx([0.2, 0.2])
