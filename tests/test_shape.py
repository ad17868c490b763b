"""Shapes of columns: maps to normal scores and back, with atoms, and densities that integrate."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from skvae import VAETransformer
from skvae._table.shaping import _shape_of, fit_shape, grid_of
from skvae._table.statistics import wild_among

RNG = np.random.default_rng(0)
WET = RNG.normal(size=1500) > 0.3
TENTHS = RNG.integers(1, 9, 1500) / 10  # which float32 does not hold
COLUMNS = {
    "tenths": TENTHS,
    "price list": np.where(WET, 12.3, RNG.gamma(2.0, 8.0, 1500)),
    "exponential": RNG.exponential(size=1500),
    "negative": -RNG.exponential(size=1500),
    "two modes": np.append(RNG.normal(-3, 1, 750), RNG.normal(3, 0.5, 750)),
    "rain": np.where(WET, RNG.gamma(1.0, 8.0, 1500), 0.0),
    "capped": np.minimum(RNG.normal(size=1500), 1.0),
    "capped on both sides": np.clip(RNG.normal(size=1500), -1.0, 1.0),
    "counts": RNG.poisson(3.0, 1500).astype(float),
    "ages": RNG.integers(17, 90, 3000).astype(float),
    "amounts": np.rint(100 * np.exp(RNG.normal(3, 1, 1500))) / 100,
    "thousands": 500.0 * RNG.integers(20, 2000, 1500),
    "cauchy": RNG.standard_cauchy(1500),
}


def shape_of(values):
    shape = fit_shape(values, np.ones(len(values)))
    assert shape is not None
    return shape


@pytest.fixture(params=COLUMNS)
def column(request):
    values = COLUMNS[request.param]
    return values, shape_of(values)


def test_values_go_to_scores_and_back(column):
    values, shape = column
    scores = shape.scores(values)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(shape.values(scores), values, rtol=1e-9, atol=1e-12)


def test_values_in_float32_are_the_same_values(column):
    values, shape = column
    short = values.astype(np.float32).astype(np.float64)
    assert not shape.outside(short).any()
    np.testing.assert_allclose(shape.scores(short), shape.scores(values), rtol=1e-4, atol=1e-4)


def test_the_map_rises(column):
    values, shape = column
    scores = np.linspace(-6.0, 6.0, 20_001)
    assert (np.diff(shape.values(scores)) >= 0.0).all()
    assert (np.diff(shape.scores(np.unique(values))) > 0.0).all()


def test_log_jacobian_is_that_of_the_map(column):
    _, shape = column
    for piece in shape.pieces.values():
        scores = np.linspace(piece.score[0] - 2.0, piece.score[-1] + 2.0, 1001)
        step = 1e-6
        slope = (piece.values(scores + step) - piece.values(scores - step)) / (2.0 * step)
        away = np.abs(scores[:, None] - piece.score).min(1) > 1e-3  # second derivatives jump there
        np.testing.assert_allclose(np.log(slope)[away], piece.log_slopes(scores)[away], atol=1e-4)
    inside = shape.centre
    np.testing.assert_array_equal(shape.log_jacobian(inside), 0.0)


def test_probabilities_of_atoms_and_the_density_add_up_to_one(column):
    _, shape = column
    mass = (special.ndtr(shape.upper) - special.ndtr(shape.lower)).sum()
    for piece in shape.pieces.values():
        ends = piece.value[[0, -1]]

        def density(value, piece=piece):
            score = piece.scores(np.atleast_1d(value))
            return float(np.exp(-0.5 * score**2 - piece.log_slopes(score))[0] / np.sqrt(2 * np.pi))

        mass += integrate.quad(density, *ends, points=piece.value[1:-1], limit=500)[0]
        is_first, is_last = (
            shape.pieces.get(0) is piece,
            piece is shape.pieces.get(len(shape.atoms)),
        )
        if is_first:
            mass += special.ndtr(piece.score[0])
        if is_last:
            mass += special.ndtr(-piece.score[-1])
    assert mass == pytest.approx(1.0, abs=1e-6)


def test_draws_are_distributed_as_the_column(column):
    values, shape = column
    drawn = shape.values(np.random.default_rng(1).normal(size=20_000))
    distance = stats.ks_2samp(drawn, values).statistic
    assert distance < 1.63 * np.sqrt(1 / 20_000 + 1 / len(values))  # a test at 1 percent


def test_draws_keep_spikes_bounds_and_grids():
    draw = np.random.default_rng(1).normal(size=50_000)
    rain = shape_of(COLUMNS["rain"]).values(draw)
    assert rain.min() == 0.0
    assert (rain == 0.0).mean() == pytest.approx((COLUMNS["rain"] == 0.0).mean(), abs=0.01)
    capped = shape_of(COLUMNS["capped on both sides"]).values(draw)
    assert (capped.min(), capped.max()) == (-1.0, 1.0)
    assert shape_of(COLUMNS["exponential"]).values(draw).min() > 0.0
    assert shape_of(COLUMNS["negative"]).values(draw).max() < 0.0
    counts = shape_of(COLUMNS["counts"]).values(draw)
    assert set(counts) <= set(np.arange(COLUMNS["counts"].max() + 1.0))
    amounts = shape_of(COLUMNS["amounts"]).values(draw)
    np.testing.assert_allclose(100 * amounts, np.rint(100 * amounts), rtol=1e-12)
    thousands = shape_of(COLUMNS["thousands"]).values(draw)
    np.testing.assert_array_equal(thousands % 500.0, 0.0)


def test_a_value_of_the_grid_that_no_row_holds_has_a_place_of_its_own():
    values = COLUMNS["ages"][COLUMNS["ages"] != 40.0]
    shape = shape_of(values)
    score = shape.scores(np.array([40.0, 40.5, 16.0, 91.0]))
    assert np.isfinite(score[0])
    assert np.isnan(score[1:]).all()
    np.testing.assert_array_equal(
        shape.outside(np.array([40.0, 40.5, 16.0, 91.0, np.nan])), [False, True, True, True, False]
    )


def test_what_is_beyond_a_bound_has_no_place():
    values = np.array([-1.0, 0.0, 1e-9, 50.0])
    np.testing.assert_array_equal(
        shape_of(COLUMNS["exponential"]).outside(values), [True, True, False, False]
    )
    np.testing.assert_array_equal(
        shape_of(COLUMNS["rain"]).outside(values), [True, False, False, False]
    )


def test_another_unit_changes_the_density_by_its_jacobian_alone():
    values = COLUMNS["rain"]
    shape, other = shape_of(values), shape_of(1024.0 * values)
    scores = shape.scores(values)
    np.testing.assert_allclose(other.scores(1024.0 * values), scores, atol=1e-9)
    change = other.log_jacobian(scores) - shape.log_jacobian(scores)
    np.testing.assert_allclose(change, np.where(values > 0.0, -np.log(1024.0), 0.0), atol=1e-9)


def test_counting_a_value_twice_is_having_it_twice():
    values, count = COLUMNS["rain"], RNG.integers(1, 4, 1500).astype(float)
    weighted, repeated = fit_shape(values, count), shape_of(np.repeat(values, count.astype(int)))
    np.testing.assert_allclose(weighted.scores(values), repeated.scores(values), atol=1e-9)


def test_values_that_differ_by_rounding_are_one():
    place = RNG.integers(0, 8, 1000)
    values = place / 10
    values[np.flatnonzero(place == 3)[:5]] = 3 * 0.1  # 0.30000000000000004
    shape = shape_of(values)
    assert len(shape.atoms) == 8
    share = np.diff(special.ndtr([shape.lower[3], shape.upper[3]]))[0]
    assert share == pytest.approx((place == 3).mean(), abs=1e-9)


def test_codes_far_apart_get_no_values_between_them():
    for codes in ([1.0, 2.0, 3.0, 250.0], [1.0, 2.0, 99.0]):
        shape = shape_of(RNG.choice(codes, 300))
        assert list(shape.atoms) == codes
    ages = shape_of(COLUMNS["ages"][COLUMNS["ages"] != 40.0])
    gap = list(ages.atoms).index(40.0)
    assert special.ndtr(ages.upper[gap]) - special.ndtr(ages.lower[gap]) < 1.0 / 1000


def test_whatever_shape_a_column_has_its_draws_keep_sign_and_grid():
    draw = np.random.default_rng(1).normal(size=20_000)
    rng = np.random.default_rng(0)
    for values in (rng.gamma(3, 1, 25), np.abs(rng.normal(2.5, 1, 300)), rng.gamma(9, 1, 25)):
        assert shape_of(values).values(draw).min() > 0.0
    for values in (np.rint(rng.normal(9e4, 1e4, 400)), np.rint(rng.normal(50, 1000, 1000)) / 100):
        shape = shape_of(values)
        drawn = shape.values(draw)
        np.testing.assert_array_equal(drawn, shape.grid.nearest(drawn))
        scores = shape.scores(values)
        standardised = (values - values.mean()) / values.std()
        np.testing.assert_allclose(scores, standardised, atol=1e-9)  # Gaussian, all the same
        np.testing.assert_allclose(shape.log_jacobian(scores), -np.log(values.std()))


def test_a_column_that_is_gaussian_enough_is_left_alone():
    for n_rows in (100, 1000, 10_000):
        values = np.random.default_rng(n_rows).normal(size=n_rows)
        assert fit_shape(values, np.ones(n_rows)) is None
    assert fit_shape(np.full(100, 3.0), np.ones(100)) is None


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([1.0, 2.0, 5.0], 1.0),
        ([500.0, 1500.0], 500.0),
        ([0.1, 0.25, 3.0], 0.05),
        (np.array([0.1, 0.7, 3.4], dtype=np.float32).astype(float), 0.1),
        ([0.1234567891, 2.0], 0.0),
        ([1e300, 2.0], 0.0),
        ([3.0, 1_000_000.0], 1.0),
        ([0.09, 0.12], 0.03),
        ([1e-9, 1.5e-9, 999.0], 0.0),
        (np.array([1481.88, 1494.57, 313.61], dtype=np.float32).astype(float), 0.01),
        ([1 / 1440, 700 / 1440, 1439 / 1440], 1 / 1440),
    ],
)
def test_the_step_of_a_grid_is_the_coarsest_that_all_values_stand_on(values, step):
    assert grid_of(np.asarray(values, dtype=float)).step == pytest.approx(step, rel=1e-12)


# -- in a model -----------------------------------------------------------------------------------


def mixed_rows(n_rows, seed=0):
    """Five columns of a Gaussian copula with two factors, as a user has them."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n_rows, 2)) @ np.array(
        [[1.0, 0.6, -0.8, 0.2, 0.5], [0, 0.8, 0.3, 1, -0.7]]
    )
    t += 0.6 * rng.normal(size=t.shape)
    t /= np.sqrt(np.array([1.0, 1.0, 0.73, 1.04, 0.74]) + 0.36)
    amounts = np.exp(t[:, 0])
    rain = np.where(t[:, 1] > 0.3, np.exp(t[:, 1]) - np.exp(0.3), 0.0)
    return np.stack([amounts, rain, np.rint(2 * t[:, 2]), t[:, 3], np.minimum(t[:, 4], 1.0)], 1)


def test_continuous_columns_begin_at_factor_analysis_of_their_scores():
    X = np.exp(mixed_rows(1000)[:, [0, 3, 3]] + 0.3 * RNG.normal(size=(1000, 3)))
    vae = VAETransformer(1, likelihood="normal_scores", max_iter=0).fit(X)
    columns = vae.model_.columns
    assert set(columns.shapes) == {0, 1, 2}
    weights, scores = vae.weights_, columns.encode(X)[0]
    noise = np.exp(2.0 * weights["likelihood.parts.0.log_scale"])
    loadings = weights["decoder.linear.weight"]
    marginal = stats.multivariate_normal(
        weights["decoder.linear.bias"], loadings @ loadings.T + np.diag(noise)
    )
    expected = marginal.logpdf(scores) + columns.log_jacobian_at(scores).sum(1)
    np.testing.assert_allclose(vae.score_samples(X), expected, atol=1e-8)
    np.testing.assert_allclose(vae.score_samples(X, method="elbo"), expected, atol=1e-8)


def test_the_start_is_a_gaussian_copula():
    X = mixed_rows(4000)
    vae = VAETransformer(2, likelihood="normal_scores", max_iter=0).fit(X)
    drawn = vae.sample(20_000, random_state=0)
    for column in range(5):
        assert stats.ks_2samp(drawn[:, column], X[:, column]).statistic < 0.03
    difference = np.abs(stats.spearmanr(drawn).statistic - stats.spearmanr(X).statistic)
    assert difference.max() < 0.05
    assert drawn[:, 1].min() == 0.0
    assert (drawn[:, 1] == 0.0).mean() == pytest.approx((X[:, 1] == 0.0).mean(), abs=0.02)
    assert set(drawn[:, 2]) <= set(X[:, 2])
    assert drawn[:, 4].max() == 1.0


def test_log_p_of_atoms_and_densities_is_right():
    """Against the two-dimensional integral over z of a model of two columns."""
    X = mixed_rows(1500)[:, [1, 4]]
    vae = VAETransformer(1, likelihood="normal_scores", max_iter=0).fit(X)
    weights = vae.weights_
    loading, bias = weights["decoder.linear.weight"][:, 0], weights["decoder.linear.bias"]
    noise = np.exp(weights["likelihood.parts.0.log_scale"])
    z = np.linspace(-9.0, 9.0, 4001)
    log_p = stats.norm.logpdf(z)[:, None] * np.ones(40)
    for column, shape in vae.model_.columns.shapes.items():
        loc = (loading[column] * z + bias[column])[:, None]
        scores = shape.scores(X[:40, column])
        atom = np.searchsorted(shape.upper, scores).clip(0, len(shape.atoms) - 1)
        ends = [(end[atom] - loc) / noise[column] for end in (shape.lower, shape.upper)]
        is_atom = np.isin(X[:40, column], shape.atoms)
        with np.errstate(divide="ignore"):
            mass = np.log(special.ndtr(ends[1]) - special.ndtr(ends[0]))
        density = stats.norm.logpdf(scores, loc, noise[column]) + shape.log_jacobian(scores)
        log_p = log_p + np.where(is_atom, mass, density)
    expected = special.logsumexp(log_p, axis=0) + np.log(z[1] - z[0])
    np.testing.assert_allclose(vae.score_samples(X[:40]), expected, atol=0.02)


# -- wild values ----------------------------------------------------------------------------------

TAME = np.random.default_rng(1).gamma(3.0, size=2000)
CHANCE = np.random.default_rng(2)
ZEROS = np.zeros(19_600)
WILD = {  # values of a column, and those that are wild
    "one": (TAME, [1e6]),
    "below": (TAME, [-1e9]),
    "on both sides": (TAME, [-1e4, 1e7]),
    "several": (TAME, [3e3, 3e3, 8e4, 1e6]),
    "far from zero": (TAME + 1e4, [-1e9]),
    "of few rows": (TAME[:25], [-4e4]),
    "beside few levels": (np.repeat(np.arange(4.0), 250), [1e6]),
    "beside a cap": (np.minimum(TAME, 5.0), [700.0, 900.0]),
    "of two modes": (np.append(TAME, TAME + 1000.0), [-1e6]),
    "beside zeros": (np.append(ZEROS, CHANCE.uniform(1.0, 3.0, 400)), [1e4]),
}
TAMES = {  # without any
    "normal": CHANCE.normal(size=3000),
    "log-normal": np.exp(4.0 * CHANCE.normal(size=3000)),
    "pareto": CHANCE.pareto(0.5, 30_000),
    "cauchy": CHANCE.standard_cauchy(30_000) ** 3,
    "amounts among zeros": np.append(ZEROS, np.exp(2.5 * CHANCE.normal(size=400))),
    "two sizes among zeros": np.r_[ZEROS, CHANCE.uniform(1, 3, 80), CHANCE.uniform(200, 2e3, 320)],
    "switch": np.append(ZEROS, np.ones(100)),
    "too few rows": np.append(np.arange(15.0), 1e9),
    "ninety-nine times as far": np.append(np.arange(101.0), 50.0 + 98.0 * 49.5),
    "times": 1.7e9 + 3600.0 * CHANCE.integers(0, 9000, 500),
}


@pytest.mark.parametrize("name", WILD)
def test_wild_values_have_no_place_and_change_nothing_else(name):
    tame, wild = WILD[name]
    assert wild_of(np.append(tame, wild)).tolist() == sorted(set(wild))
    shape, alone = shape_of(np.append(tame, wild)), _shape_of(*np.unique(tame, return_counts=True))
    assert shape.outside(np.array(wild)).all() and np.isnan(shape.scores(np.array(wild))).all()
    assert not shape.outside(tame).any()
    scores = np.linspace(-5.0, 5.0, 1001)
    if name != "far from zero":  # there it is Gaussian enough
        np.testing.assert_array_equal(shape.values(scores), alone.values(scores))
    assert np.ptp(shape.values(scores)) < 20.0 * np.ptp(tame)
    assert shape.log_unseen < -5.0


@pytest.mark.parametrize("name", TAMES)
def test_heavy_tails_and_rare_amounts_are_not_wild(name):
    assert not len(wild_of(TAMES[name]))


def test_values_are_wild_by_weight_as_by_repetition():
    cells, counts = np.array([-2e5, *np.linspace(0.0, 1.0, 50), 40.0]), np.full(52, 3.0)
    counts[-1] = 1.0
    assert wild_among(cells, counts)[[0, -1]].tolist() == [False, False]  # 2% of the rows
    counts[0] = 1.0
    assert cells[wild_among(cells, counts)].tolist() == [-2e5]
    assert wild_of(np.repeat(cells, counts.astype(int))).tolist() == [-2e5]


def wild_of(column):
    values, counts = np.unique(column, return_counts=True)
    return values[wild_among(values, counts.astype(float))]
