"""The loop: what it climbs, when it stops, and which weights it keeps."""

import copy
import dataclasses
import itertools
import math
import re
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LinearRegression

from skvae import VAETransformer
from skvae import _preparing as preparing
from skvae._inputs import history_of
from skvae._model.bounds import elbo
from skvae._start.features import Counted
from skvae._table.automatic import look_at
from skvae._table.column import Column
from skvae._table.schema import Schema
from skvae._training import loop
from skvae._training.held_out import HeldOut
from skvae._training.loop import MAX_GRADIENT_NORM, WARMUP_STEPS, Run, train
from skvae._training.plan import Epoch, Plan, plan_for
from skvae._training.rows import DenseCells, Rows
from skvae._training.selection import EarlyStopping, Selection, climb, split_with_tail
from skvae._training.signal import CLEAR, NOT_NORMAL, departure_from_normal, unexplained

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*inactive, with less than:UserWarning"),
]

STILL = 1e-30  # a learning rate at which no weight moves
ELBO = Plan(max_epochs=1, batch_size=64, learning_rate=3e-3)
DIGITS = load_digits().data


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Start(NamedTuple):
    vae: torch.nn.Module
    rows: Rows


def _start(X, n_components=3, hidden=(8,)):
    """A module at its linear start, ready to train, and its rows."""
    vae = VAETransformer(n_components, hidden_layer_sizes=hidden, scaling="columns")
    parameters, weight = vae.get_params(), np.ones(len(X))
    schema = Schema(tuple(Column(str(number), "number") for number in range(X.shape[1])))
    asked = X.shape[1] * ["auto"]
    look = look_at(X, weight, schema.columns, weight)
    columns = preparing.columns_for(parameters, schema, asked, X, look)
    rows = preparing.rows_for(parameters, columns, X.copy(), weight)
    module, *_ = preparing.module_at_start(parameters, columns, Counted(X, weight, weight), 0)
    return Start(preparing.trainable(parameters, module), rows)


@pytest.fixture
def wine():
    return _start(load_wine().data)


def _run(start, n_epochs=4, batch_size=64, seed=0, **plan):
    plan = Plan(**{"max_epochs": n_epochs, "batch_size": batch_size, "learning_rate": 3e-3} | plan)
    return Run(start.vae, plan, _generator(seed), len(start.rows))


def _bits(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


def _vae(**params):
    small = {"n_components": 3, "hidden_layer_sizes": (16,), "random_state": 0}
    return VAETransformer(**small | params)


# -- early stopping -------------------------------------------------------------------------------

NAN = math.nan
# (held-out bounds from the start on, patience, tol, the best epoch, the last epoch)
CURVES = {
    "the start is the best": ([5.0, 4.0, 3.0, 2.0], 3, 0.0, 0, 3),
    "the start is as good": ([5.0, 5.0, 5.0], 2, 0.0, 0, 2),
    "the last is the best": ([1.0, 2.0, 3.0], 2, 0.0, 2, None),
    "a gain resets the patience": ([1.0, 0.0, 2.0, 1.0, 0.0, 9.0], 2, 0.0, 2, 4),
    "small gains are kept but do not count": ([1.0, 1.1, 1.2, 1.3], 3, 0.5, 3, 3),
    "small gains add up": ([1.0, 1.3, 1.6, 1.9, 2.2], 2, 0.5, 4, None),
    "the first of equals": ([1.0, 2.0, 2.0, 2.0], 2, 0.0, 1, 3),
    "patience of one": ([1.0, 2.0, 2.0], 1, 0.0, 1, 2),
}


@pytest.mark.parametrize("name", CURVES)
def test_early_stopping_keeps_the_best_epoch_and_stops_in_time(name):
    curve, patience, tol, best, last = CURVES[name]
    stopper, stopped = EarlyStopping(patience, tol), None
    for number, held_out in enumerate(curve):
        epoch = Epoch(number, NAN, held_out, 0.0, lambda number=number: {"number": number})
        if stopper.done(epoch):
            stopped = number
            break
    assert stopped == last
    assert stopper.best == best
    # None stands for the start, which nobody needs to copy.
    assert stopper.best_state == (None if best == 0 else {"number": best})


def test_a_gain_that_hangs_on_few_rows_is_not_trusted():
    stopper = EarlyStopping(10, tol=0.0)
    for number, (held_out, doubt) in enumerate([(1.0, 0.0), (2.0, 0.1), (3.0, 2.0)]):
        stopper.done(Epoch(number, NAN, held_out, doubt, dict))
    assert stopper.best == 1  # 2.0 - 2 * 0.1 beats the start; 3.0 - 2 * 2.0 does not


def test_patience_begins_where_the_warm_up_ends():
    stopper = EarlyStopping(2, tol=0.0, warm=5)
    falling = [stopper.done(Epoch(number, NAN, -float(number), 0.0, dict)) for number in range(8)]
    assert falling.index(True) == 7


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([1.0], False), ([1.0, 2.0], True), ([1.0, 1.1], False), ([1.0, 3.0, 2.0], False)],
)
def test_a_run_is_still_improving_if_its_last_epoch_gained(curve, expected):
    stopper = EarlyStopping(10, tol=0.5)
    for number, held_out in enumerate(curve):
        stopper.done(Epoch(number, NAN, held_out, 0.0, dict))
    assert stopper.still_improving is expected


def test_the_weights_that_are_kept_are_those_of_the_best_epoch():
    # Fast enough to over-fit: the best epoch lies in the middle.
    vae, rows = _start(DIGITS[:520], 8, hidden=(64,))
    plan = Plan(max_epochs=60, batch_size=32, learning_rate=0.05)
    selection = Selection(True, 0.1, patience=3, tol=0.0)
    told = {"generator": _generator(7), "watch": lambda epoch: False}
    outcome = climb(copy.deepcopy(vae), rows, plan, selection, **told)
    assert 0 < outcome.best < outcome.n_epochs
    assert outcome.held_out[outcome.best] > outcome.held_out[0]
    # The same generator holds out the same rows, and draws the same noise for them.
    generator = _generator(7)
    _, held_out = split_with_tail(vae, rows, 0.1, generator)
    probe = HeldOut(held_out, vae.n_components, ELBO, generator)
    assert probe.measure(vae)[0] == outcome.held_out[0]
    vae.load_state_dict(outcome.state)
    assert probe.measure(vae)[0] == outcome.held_out[outcome.best]


@pytest.mark.parametrize("changes", [{}, {"beta": 0.1}, {"beta": 4.0}, {"free_bits": 2.0}])
def test_held_out_rows_are_judged_by_what_training_climbs(changes):
    vae, rows = _start(load_wine().data)
    plan = dataclasses.replace(ELBO, kl_warmup=0.5, **changes)  # by the whole KL: epochs compare
    probe = HeldOut(rows, vae.n_components, plan, _generator())
    with torch.no_grad():
        terms = vae(*rows[:][:2], probe.eps)
    expected = elbo(terms, **changes).double().mean()
    assert probe.measure(vae)[0] == pytest.approx(float(expected), rel=1e-6)
    assert probe.kl == pytest.approx(float(terms.kl.sum(-1).double().mean()), rel=1e-6)


@pytest.mark.parametrize("n_rows", [300, 600])
def test_what_was_watched_is_one_bound_and_one_kl_for_each_epoch(n_rows):
    vae = _vae(max_iter=4).fit(DIGITS[:n_rows])
    history = history_of(vae)
    assert len(history.bounds) == len(history.kl) == len(history.held_out_kl) == 5
    assert np.isnan([history.bounds[0], history.kl[0]]).all()  # no step was taken before the start
    assert np.isfinite(history.held_out_kl).all()
    if n_rows >= 500:  # below, means over the folds
        assert_allclose(history.bounds[1:], -np.array(vae.loss_curve_), rtol=1e-12)


def test_curves_go_on_where_a_fit_goes_on():
    vae = _vae(max_iter=3, warm_start=True).fit(DIGITS[:600])
    first = history_of(vae)
    vae.set_params(max_iter=2).fit(DIGITS[:600])
    vae.partial_fit(DIGITS[:600])
    history = history_of(vae)
    assert len(history.bounds) == len(history.kl) == len(history.held_out_kl) == 1 + 3 + 2 + 1
    assert (
        len(history.held_out) == 7
        and np.isnan([history.held_out[-1], history.held_out_kl[-1]]).all()
    )
    assert_allclose(history.kl[:4], first.kl)
    assert_allclose(history.bounds[1:], -np.array(vae.loss_curve_), rtol=1e-12)


def test_the_watched_kl_of_a_linear_start_is_that_of_its_codes():
    vae = _vae(max_iter=1, hidden_layer_sizes=(), early_stopping=True).fit(DIGITS[:1000])
    start = _vae(max_iter=0, hidden_layer_sizes=()).fit(DIGITS[:1000])
    expected = start.kl_per_component_.sum()
    assert history_of(vae).held_out_kl[0] == pytest.approx(expected, rel=0.05)


@pytest.fixture(scope="module")
def every_combination():
    """Four columns of independent levels: the bound could gain nothing by any code."""
    levels = itertools.product("abcde", "fghij", "klmno", "pqrst")
    return pd.DataFrame(levels, columns=["one", "two", "three", "four"])


def _packing(X, beta):
    vae = _vae(n_components=2, beta=beta, hidden_layer_sizes=(64, 64), max_iter=60)
    vae.set_params(learning_rate_init=0.01).fit(X)
    return vae, (vae.inverse_transform(vae.transform(X)) == X).to_numpy().mean()


def test_a_small_beta_packs_levels_by_which_the_bound_gains_nothing(every_combination):
    assert _packing(every_combination, beta=1.0)[1] == pytest.approx(0.2)
    packed, share = _packing(every_combination, beta=0.1)
    assert share > 0.6 and packed.best_iter_ > 0
    # What it pays is not hidden: scores are true bounds.
    assert packed.score_samples(every_combination, method="elbo").mean() < -4.5 * math.log(5.0)


def test_the_held_out_bound_is_importance_weighted_where_training_climbs_that():
    curves = [
        _vae(max_iter=3, random_state=0, objective=objective).fit(DIGITS[:520]).validation_scores_
        for objective in ("elbo", "iwae")
    ]
    assert curves[0][0] == pytest.approx(curves[1][0], abs=0.5)  # both the evidence
    rows, vae = _start(DIGITS[:60]).rows, _start(DIGITS[:60]).vae
    vae.encoder.log_scale.data += 0.5  # q is too wide: the ELBO is loose, the other less so
    plan = dataclasses.replace(ELBO, objective="iwae", n_samples=16)
    tight = HeldOut(rows, vae.n_components, plan, _generator(0)).measure(vae)[0]
    assert tight > HeldOut(rows, vae.n_components, ELBO, _generator(0)).measure(vae)[0]


@pytest.mark.filterwarnings("ignore:The noise scale:UserWarning")  # of two rows
@pytest.mark.parametrize("n_rows", [2, 60, 499, 500])
def test_the_held_out_bound_has_no_chance_in_it(n_rows):
    X = np.random.default_rng(0).normal(size=(n_rows, 5))
    vae = _vae(n_components=1, max_iter=3, learning_rate_init=STILL, precision="float64").fit(X)
    # The noise is calibrated after each epoch; the start keeps that of the closed form.
    assert_allclose(vae.validation_scores_[1:], vae.validation_scores_[1], rtol=1e-12)


# -- what a fit tells about itself ----------------------------------------------------------------

TABLES = {
    "iris": load_iris().data,
    "wine": load_wine().data,
    "breast cancer": load_breast_cancer().data,
    "digits, folds": DIGITS[:400],
    "digits, held-out rows": DIGITS[:600],
    "noise": np.random.default_rng(0).normal(size=(80, 6)),
    "a curve": np.c_[t := np.linspace(-2.0, 2.0, 600), t**2, np.sin(3.0 * t)],
}


@pytest.fixture(scope="module")
def fits():
    """A fit of each table, made when first asked for."""

    class Fits(dict):
        def __missing__(self, name):
            self[name] = _vae(max_iter=60, n_components=2).fit(TABLES[name])
            return self[name]

    return Fits()


each_table = pytest.mark.parametrize("name", TABLES)


@each_table
def test_a_fit_never_ends_below_its_linear_start(name, fits):
    vae = fits[name]
    scores = vae.validation_scores_
    assert scores[vae.best_iter_] >= scores[0]


@each_table
def test_the_counts_and_the_curves_agree(name, fits):
    vae = fits[name]
    assert len(vae.validation_scores_) == vae.n_iter_ + 1
    assert 0 <= vae.best_iter_ <= vae.n_iter_ <= 60
    assert np.isfinite(vae.loss_curve_).all() and np.isfinite(vae.validation_scores_).all()
    assert vae.n_iter_ == 60 or vae.n_iter_ >= vae.n_iter_no_change


def test_a_table_learns_what_a_linear_model_cannot(fits):
    scores = fits["a curve"].validation_scores_
    assert max(scores) > scores[0] + 0.2


def test_the_start_is_kept_where_there_is_nothing_to_learn(fits):
    vae = fits["noise"]
    start = _vae(n_components=2, max_iter=0).fit(TABLES["noise"])
    assert vae.best_iter_ == 0
    assert_allclose(vae.transform(TABLES["noise"]), start.transform(TABLES["noise"]), rtol=1e-12)


# Folds train anew, on all rows and for the best number of epochs; a held-out part trains once.
SPLITS = {
    "folds": (DIGITS[:499], True),
    "a held-out part": (DIGITS[:500], False),
    "folds: equal rows are one": (np.concatenate([DIGITS[:250], DIGITS[:250]]), True),
}


@pytest.mark.parametrize("name", SPLITS)
def test_below_500_distinct_rows_folds_choose_the_number_of_epochs(name):
    X, by_folds = SPLITS[name]
    # Fast, and so over-fitted soon: the best epoch is not the last.
    params = {"n_components": 8, "hidden_layer_sizes": (64,), "batch_size": 32, "alpha": 0.0}
    vae = _vae(max_iter=40, learning_rate_init=0.02, n_iter_no_change=3, **params).fit(X)
    assert 0 < vae.best_iter_ <= vae.n_iter_
    assert len(vae.loss_curve_) == (vae.best_iter_ if by_folds else vae.n_iter_)


NORMAL = np.random.default_rng(0).normal(size=(100_000, 3))
EXPONENTIAL = np.exp(-1j) / (1.0 - 1j)


@pytest.mark.parametrize(
    ("values", "t", "real", "odd"),
    [  # With mean 0 and variance 1: cos t, sin(at) / (at) where a = sqrt(3), exp(-it) / (1 - it).
        (np.sign(NORMAL[:, :1]), 2.0, math.cos(2.0), 0.0),
        (norm.cdf(NORMAL[:, :1]), 2.0, math.sin(12**0.5) / 12**0.5, 0.0),
        (-np.log(norm.cdf(NORMAL[:, :1])), 1.0, EXPONENTIAL.real, EXPONENTIAL.imag),
    ],
    ids=["two points", "uniform", "exponential"],
)
def test_the_departure_from_normal_is_that_of_the_characteristic_function(values, t, real, odd):
    shrunk = math.exp(-t * t)
    of_cos = 0.5 * (1.0 - shrunk) ** 2 - 0.5 * t**4 * shrunk
    of_sin = 0.5 * (1.0 - shrunk**2) - t * t * shrunk
    z_real = abs(real - math.sqrt(shrunk)) / math.sqrt(of_cos)
    expected = max(z_real, abs(odd) / math.sqrt(of_sin)) * math.sqrt(len(values))
    # It is the largest of all frequencies.
    assert departure_from_normal(torch.from_numpy(values)) > 0.95 * expected > NOT_NORMAL


def test_the_variances_of_the_characteristic_function_are_those_of_normal_rows():
    # Epps & Pulley 1983: with mean and variance estimated. Of independent normal tables the largest
    # of six z, not quite independent, has the median 1.5, and one in 50 is above 3.
    tables = torch.randn(400, 1000, 1, generator=_generator(), dtype=torch.float64)
    z = torch.tensor([departure_from_normal(table) for table in tables])
    assert 1.2 < float(z.median()) < 1.8
    assert float((z > 3.5).double().mean()) < 0.02


@pytest.mark.parametrize("kind", ["clusters", "dependent", "heavy tails"])
def test_codes_that_are_not_normal_are_seen(kind):
    Z = torch.from_numpy(NORMAL).clone()
    assert departure_from_normal(Z) <= NOT_NORMAL
    if kind == "clusters":
        Z[::2, 0] += 2.0
    elif kind == "dependent":  # each column is normal
        Z[:, 1] = Z[:, 0].sign() * Z[:, 1].abs()
    else:
        Z /= torch.from_numpy(np.random.default_rng(1).chisquare(10, size=(len(Z), 1)) / 10).sqrt()
    assert departure_from_normal(Z) > 2 * NOT_NORMAL


def _many_rows(clusters):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(110_000, 3))
    Z[:, 0] += 6.0 * clusters * rng.integers(2, size=len(Z))
    return (Z @ rng.normal(size=(3, 6)) + 0.5 * rng.normal(size=(len(Z), 6))).astype(np.float32)


def test_many_rows_of_a_linear_model_are_not_trained_on(capsys):
    X = _many_rows(clusters=False)
    vae = _vae(max_iter="auto", verbose=1).fit(X)
    said = "no epoch was begun, as the rows show nothing that hidden layers could learn"
    assert re.search(
        f"kept the linear start after 0 epochs, .* s: {said}\n", capsys.readouterr().out
    )
    assert said in vae._repr_html_()
    assert (vae.n_iter_, vae.best_iter_, vae.loss_curve_) == (0, 0, [])
    assert len(vae.validation_scores_) == 1
    start = _vae(max_iter=0).fit(X)
    assert_allclose(vae.transform(X[:99]), start.transform(X[:99]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"beta": 4.0}, {"free_bits": 0.2}])
def test_the_start_of_another_objective_is_trained_on(settings):
    X = _many_rows(clusters=False)
    vae = _vae(max_iter=12, hidden_layer_sizes=8, batch_size=20_000, **settings).fit(X)
    assert vae.n_iter_ > 0


def test_many_rows_of_clusters_are_trained_on_as_if_nothing_had_been_looked_at(monkeypatch):
    # They are exactly linear in their components, but a normal prior does not know them.
    X = _many_rows(clusters=True)
    settings = {"max_iter": 12, "hidden_layer_sizes": 16, "batch_size": 10_000}
    looked = _vae(**settings).fit(X)
    assert looked.n_iter_ == 12
    monkeypatch.setattr(loop, "can_test", lambda n_rows, max_epochs: False)
    unlooked = _vae(**settings).fit(X)
    assert looked.loss_curve_ == unlooked.loss_curve_


@pytest.mark.parametrize("bent", [0.0, 0.5])
def test_what_units_explain_beyond_the_codes_is_that_of_two_regressions(bent):
    X = _many_rows(clusters=False)[:20_000].astype(float)
    X[:, 0] += bent * X[:, 1] * X[:, 2]
    module = _start(X, hidden=(16,)).vae.double()
    x = torch.from_numpy((X - X.mean(0)) / X.std(0))
    with torch.no_grad():
        z = module.encoder(x, None)[0]
        left = (x - module.decoder.linear(z)).numpy()
        both = torch.cat([z, module.decoder.mlp.hidden(z)], 1).numpy()

    def lost(by):
        return ((left - LinearRegression().fit(by, left).predict(by)) ** 2).sum(0)

    explained = 1.0 - lost(both) / lost(z.numpy())
    # Of linear rows N R^2 is chi^2 with as many degrees of freedom as units.
    expected = (len(x) * explained.max() - 16) / math.sqrt(2 * 16)
    found = unexplained(module, x.split(1000))
    assert found == pytest.approx(expected, rel=1e-5)
    assert (found > CLEAR) == (bent > 0.0)
    assert found > -2.0


@pytest.mark.parametrize("kind", ["bent", "a normal function"])
def test_a_bent_surface_of_nearly_normal_rows_is_trained_on(kind, monkeypatch):
    # By what the units explain alone: of the second kind, every column is normal.
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(110_000, 3))
    X = Z @ rng.normal(size=(3, 12)) + 0.5 * rng.normal(size=(len(Z), 12))
    if kind == "bent":
        X[:, 0] += 0.1 * Z[:, 0] * Z[:, 1]
    else:
        X[:, 0] = norm.ppf((np.cos(2 * Z[:, 0]).argsort().argsort() + 0.5) / len(Z))
    monkeypatch.setattr(loop, "departure_from_normal", lambda values: 0.0)
    vae = _vae(max_iter=12, hidden_layer_sizes=8, batch_size=10_000).fit(X)
    assert vae.n_iter_ > 0


def test_a_batch_may_be_larger_than_what_is_looked_at():
    X = np.tile(_many_rows(clusters=False), (2, 1))[:140_000]
    X = X + np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    vae = _vae(max_iter=12, batch_size=135_000).fit(X)
    assert vae.n_iter_ == 0


def test_no_fit_that_goes_on_is_ended_by_what_is_seen_at_its_start():
    X = _many_rows(clusters=False)
    vae = _vae(max_iter=12, early_stopping=False, batch_size=20_000, warm_start=True).fit(X)
    assert vae.n_iter_ == 12  # nothing is held out: the user wants all epochs
    vae.set_params(early_stopping=True).fit(X)
    assert vae.n_iter_ > 12


def test_without_epochs_the_start_is_kept():
    vae = _vae(max_iter=0).fit(DIGITS[:100])
    assert (vae.n_iter_, vae.best_iter_) == (0, 0)
    assert vae.loss_curve_ == [] and vae.validation_scores_ == []
    assert (vae.weights_["decoder.mlp.last.weight"] == 0.0).all()


@pytest.mark.parametrize("n_rows", [1, 60, 600])
def test_without_early_stopping_every_epoch_is_run_on_all_rows(n_rows):
    vae = _vae(max_iter=25, early_stopping=False).fit(DIGITS[:n_rows])
    assert (vae.n_iter_, vae.best_iter_, len(vae.loss_curve_)) == (25, 25, 25)
    assert vae.validation_scores_ == []


def test_the_loss_falls():
    loss = _vae(max_iter=40, early_stopping=False).fit(DIGITS).loss_curve_
    assert np.mean(loss[-5:]) < np.mean(loss[:5]) - 1.0


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_curves_are_in_nats_a_row_and_original_units(factor):
    # The start's bound is its evidence, and folds hold out every row once.
    X = factor * load_iris().data
    vae = _vae(max_iter=2, learning_rate_init=STILL, n_train_samples=200).fit(X)
    expected = vae.score(X)
    assert vae.validation_scores_[0] == pytest.approx(expected, abs=0.2)
    assert vae.loss_curve_[0] == pytest.approx(-expected, abs=0.1)


# -- the objective --------------------------------------------------------------------------------


def _kl(**params):
    vae = _vae(n_components=6, max_iter=60, early_stopping=False, **params)
    return vae.fit(DIGITS[:500]).kl_per_component_


def test_a_larger_beta_leaves_less_kl():
    kl = [_kl(beta=beta).sum() for beta in (0.0, 1.0, 4.0)]
    assert kl[0] > 1.5 * kl[1] > 1.5 * 1.5 * kl[2]


def test_free_bits_keep_components_alive_that_the_pressure_would_kill():
    assert _kl(beta=20.0).max() < 0.1
    assert _kl(beta=20.0, free_bits=0.5).min() > 0.4


@pytest.mark.parametrize("kl_warmup", [0.5, 1.0])
def test_the_kl_is_faded_in_over_a_fraction_of_the_steps(kl_warmup):
    # Many samples and no step: the loss is a constant plus beta times the KL.
    X, n_epochs = load_wine().data, 10
    vae = _vae(
        max_iter=n_epochs,
        early_stopping=False,
        learning_rate_init=STILL,
        n_train_samples=200,
        batch_size=len(X),
        kl_warmup=kl_warmup,
    ).fit(X)
    share = np.minimum(np.arange(n_epochs) / n_epochs / kl_warmup, 1.0)
    recon, kl = (vae.score_samples(X, method=method).mean() for method in ("reconstruction", "kl"))
    assert_allclose(vae.loss_curve_, -recon - share * kl, atol=0.1)


def test_kl_warm_up_trains():
    vae = _vae(kl_warmup=0.3, max_iter=20).fit(DIGITS[:520])
    assert np.isfinite(vae.score(DIGITS[:20]))


def test_the_importance_weighted_bound_rises_with_the_samples_from_the_elbo():
    # Away from the start, where both are the evidence.
    X = DIGITS[:520]
    trained = _vae(max_iter=30, early_stopping=False, learning_rate_init=0.01).fit(X)
    trained.set_params(warm_start=True, learning_rate_init=STILL, max_iter=1)

    def bound(objective, n_samples):
        vae = copy.deepcopy(trained).set_params(objective=objective, n_train_samples=n_samples)
        return -vae.fit(X).loss_curve_[-1]

    elbo = bound("elbo", 128)
    few, many = bound("iwae", 4), bound("iwae", 128)
    assert elbo + 0.1 < few < many - 0.1
    assert many <= trained.score(X[:100]) + 5.0


def test_a_fit_to_the_importance_weighted_bound_learns():
    vae = _vae(objective="iwae", n_train_samples=5, max_iter=40).fit(DIGITS[:600])
    assert vae.best_iter_ > 0
    assert np.isfinite(vae.score(DIGITS[:20]))


# -- one run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_gradients_are_clipped(wine, monkeypatch, objective):
    def clip(run):
        before.append(_gradient_norm(run.vae))
        original(run)
        after.append(_gradient_norm(run.vae))

    before, after, original = [], [], Run._clip
    monkeypatch.setattr(Run, "_clip", clip)
    wine.rows.cells.x[3, 2] = 1e4
    _run(wine, objective=objective).epoch(wine.rows)
    assert max(before) > 100.0 * MAX_GRADIENT_NORM
    assert max(after) <= 1.001 * MAX_GRADIENT_NORM


def _gradient_norm(vae):
    return math.sqrt(sum(float(p.grad.square().sum()) for p in vae.parameters()))


@pytest.mark.parametrize("wild", [1e2, 1e4, 1e6])
def test_a_wild_row_does_not_destroy_the_fit(wine, wild):
    clean = HeldOut(wine.rows, 3, ELBO, _generator(1))
    before = clean.measure(wine.vae)[0]
    x = wine.rows.cells.x
    x = torch.cat([x, torch.full((1, x.shape[1]), wild)])
    rows = Rows(DenseCells(x, None), torch.ones(len(x)))
    run = _run(wine, n_epochs=20)
    for _ in range(20):
        assert math.isfinite(run.epoch(rows))
    assert clean.measure(wine.vae)[0] > before - 3.0


def test_an_average_over_several_steps_forgets_as_much_as_one_for_each(wine):
    run = _run(wine)
    run.flat.mean.zero_()
    run.flat.live.fill_(1.0)
    run.step_number, run._averaged_step = 10_000, 9_996
    run._average()
    assert run.flat.mean.numpy() == pytest.approx(1.0 - 0.995**4)
    run._average()  # no step since
    assert run.flat.mean.numpy() == pytest.approx(1.0 - 0.995**4)


def _learning_rates(start, n_steps, **plan):
    run, rates = _run(start, n_steps, batch_size=10_000, **plan), []
    for _ in range(n_steps):
        run.epoch(start.rows)
        rates.append(run.optimizer.learning_rate)
    return np.array(rates)


def test_the_learning_rate_warms_up_and_falls_to_zero(wine):
    rates = _learning_rates(wine, n_steps := 200, learning_rate=0.01)
    step = np.arange(n_steps)
    cosine = 0.5 * (1.0 + np.cos(np.pi * step / n_steps))
    assert_allclose(rates, 0.01 * cosine * np.minimum(1.0, (step + 1) / WARMUP_STEPS))
    assert rates[0] == pytest.approx(0.01 / WARMUP_STEPS)
    assert rates.max() > 0.008
    assert (np.diff(rates[:30]) > 0.0).all() and (np.diff(rates[WARMUP_STEPS:]) < 0.0).all()
    assert rates[-1] < 1e-3 * rates.max()


def test_without_decay_the_learning_rate_stays(wine):
    rates = _learning_rates(wine, 80, learning_rate=0.01, decay=False)
    assert (rates[WARMUP_STEPS - 1 :] == 0.01).all()


def test_the_steps_are_counted_over_the_last_small_batch_as_well(wine):
    run = _run(wine, n_epochs=3, batch_size=len(wine.rows) - 1)
    assert run.n_steps == 6
    for _ in range(3):
        run.epoch(wine.rows)
    assert run.step_number == 6


def test_weight_decay_pulls_the_mlps_weights_alone(wine):
    run = _run(wine, alpha=0.1)
    before = {name: p.detach().clone() for name, p in wine.vae.named_parameters()}
    run.optimizer.learning_rate = 0.5
    run.optimizer.step()  # with a gradient of 0
    for name, parameter in wine.vae.named_parameters():
        kept = 0.95 if ".mlp." in name and name.endswith("weight") else 1.0
        assert_allclose(parameter.detach(), kept * before[name], rtol=1e-6, err_msg=name)


def test_steps_are_those_of_torchs_adamw(wine):
    other = copy.deepcopy(wine.vae)
    run = _run(wine, alpha=0.1)
    groups = [
        {
            "params": [p for n, p in other.named_parameters() if _is_mlp_weight(n) is decayed],
            **decay,
        }
        for decayed, decay in [(False, {"weight_decay": 0.0}), (True, {"weight_decay": 0.1})]
    ]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99))
    run.optimizer.learning_rate = 3e-3
    for step in range(5):
        for p, q in zip(run.vae.parameters(), other.parameters(), strict=True):
            p.grad.normal_(generator=_generator(step))
            q.grad = p.grad.clone()
        run.optimizer.step()
        reference.step()
    for p, q in zip(run.vae.parameters(), other.parameters(), strict=True):
        assert_allclose(p.detach(), q.detach(), rtol=1e-5, atol=1e-7)


def _is_mlp_weight(name):
    return ".mlp." in name and name.endswith("weight")


def test_the_parameters_and_gradients_are_views_of_one_vector_each(wine):
    before = _bits(wine.vae.state_dict())
    run = _run(wine)
    assert _bits(wine.vae.state_dict()) == before
    for _ in range(2):
        run.epoch(wine.rows)
        run.snapshot()
        for parameter in wine.vae.parameters():
            for own, vector in [(parameter, run.flat.live), (parameter.grad, run.flat.grad)]:
                assert own.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    other = copy.deepcopy(wine.vae)
    size = sum(p.numel() for p in other.parameters())
    assert sum(p.untyped_storage().nbytes() for p in other.parameters()) == 4 * size


def test_a_snapshot_holds_the_averaged_weights_and_leaves_the_live_ones(wine):
    run = _run(wine)
    run.epoch(wine.rows)
    live = _bits(wine.vae.state_dict())
    snapshot = run.snapshot()
    assert _bits(wine.vae.state_dict()) == live
    assert _bits(snapshot) != live
    kept = _bits(snapshot)
    run.epoch(wine.rows)
    assert _bits(snapshot) == kept  # a copy, not a view


def test_the_average_lies_between_the_weights_it_averages(wine):
    run = _run(wine, batch_size=10_000)
    path = [wine.vae.decoder.linear.bias.detach().clone()]
    for _ in range(4):
        run.epoch(wine.rows)
        path.append(wine.vae.decoder.linear.bias.detach().clone())
    path, mean = torch.stack(path), run.snapshot()["decoder.linear.bias"]
    assert (mean >= path.amin(0) - 1e-6).all() and (mean <= path.amax(0) + 1e-6).all()


def test_the_live_weights_come_back_when_the_averaged_ones_are_interrupted(wine):
    run = _run(wine)
    run.epoch(wine.rows)
    live = _bits(wine.vae.state_dict())
    with pytest.raises(KeyboardInterrupt), run.averaged():
        assert _bits(wine.vae.state_dict()) != live
        raise KeyboardInterrupt
    assert _bits(wine.vae.state_dict()) == live


@pytest.mark.parametrize("batch_size", [10_000, 50])
def test_a_resumed_run_goes_on_bit_by_bit(wine, batch_size):
    other = copy.deepcopy(wine)
    whole = _run(wine, batch_size=batch_size)
    for _ in range(2):
        whole.epoch(wine.rows)
    state, memory = whole.snapshot(), whole.memory()
    noise = whole.generator.get_state()

    resumed = _run(other, batch_size=batch_size, seed=99)
    other.vae.load_state_dict(state)
    resumed = Run(other.vae, whole.plan, resumed.generator, len(other.rows))
    resumed.resume(memory)
    resumed.generator.set_state(noise)
    for _ in range(2):
        assert resumed.epoch(other.rows) == whole.epoch(wine.rows)
    assert _bits(resumed.snapshot()) == _bits(whole.snapshot())
    assert _bits(resumed.memory()) == _bits(whole.memory())


def test_a_memory_is_a_copy(wine):
    run = _run(wine)
    run.epoch(wine.rows)
    memory = run.memory()
    before = _bits(memory)
    run.epoch(wine.rows)
    assert _bits(memory) == before


def test_the_epochs_are_numbered_from_the_start(wine):
    plan = Plan(max_epochs=3, batch_size=64, learning_rate=3e-3)
    epochs = list(train(wine.vae, wine.rows, None, plan, _generator()))
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3]
    assert math.isnan(epochs[0].bound) and all(math.isfinite(e.bound) for e in epochs[1:])
    assert all(math.isnan(epoch.held_out) for epoch in epochs)


def test_an_epochs_bound_is_the_mean_over_its_rows(wine):
    # Not over its batches: the last one is small.
    n_rows = len(wine.rows)
    run = _run(wine, n_epochs=1, batch_size=n_rows - 1, learning_rate=STILL, n_samples=1000)
    expected = HeldOut(wine.rows, 3, ELBO, _generator(3)).measure(wine.vae)[0]
    assert run.epoch(wine.rows) == pytest.approx(expected, abs=0.1)


# -- the learning rate ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_rows", "parameters", "expected"),
    [
        (1280, {}, 0.005),  # the default's length, whatever the table's size
        (80, {}, 0.005),
        (1280, {"max_iter": 180}, 0.005),  # 1800 steps
        (1280, {"max_iter": 1000}, 0.005),
        (1280, {"max_iter": 90}, 0.01),
        (1280, {"max_iter": 10}, 0.012),  # and no more
        (1280, {"max_iter": 10, "batch_size": 32}, 0.006),  # the root of a quarter of 128 rows
        (1280, {"max_iter": 10, "learning_rate_init": 0.02}, 0.02),
        (1280, {"max_iter": 0}, 0.012),  # of no step
    ],
)
def test_the_automatic_learning_rate_makes_up_for_few_steps(n_rows, parameters, expected):
    chosen = VAETransformer(**parameters).get_params(deep=False)
    assert plan_for(chosen, n_rows).learning_rate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n_rows", "parameters", "expected"),
    [
        (1280, {}, 0.3),
        (1280, {"max_iter": 10}, 0.3),  # a shorter run
        (1280, {"max_iter": 1800}, 0.03),
        (1280, {"max_iter": 180, "learning_rate_init": 0.01}, 0.15),
        (5120, {"max_iter": 180, "batch_size": 512}, 0.15),  # larger steps, as many
        (1280, {"max_iter": 1800, "alpha": 1.0}, 0.1),
        (1280, {"max_iter": 0}, 0.3),
    ],
)
def test_weight_decay_takes_no_weight_further_in_a_longer_run(n_rows, parameters, expected):
    chosen = VAETransformer(**parameters).get_params(deep=False)
    assert plan_for(chosen, n_rows).alpha == pytest.approx(expected)


def test_a_short_run_gets_further_than_at_the_rate_of_a_long_one():
    train, test = DIGITS[:1200], DIGITS[1200:]
    short = {"max_iter": 10, "early_stopping": False}
    hasty = _vae(**short).fit(train).score_samples(test, method="elbo").mean()
    steady = _vae(**short, learning_rate_init=0.005).fit(train)
    assert hasty > steady.score_samples(test, method="elbo").mean()


def test_one_more_epoch_is_taken_at_the_rate_of_a_long_run(monkeypatch):
    plans = []

    class Told(loop.Run):
        def __init__(self, vae, plan, *args, **kwargs):
            plans.append(plan)
            super().__init__(vae, plan, *args, **kwargs)

    monkeypatch.setattr("skvae._fitting.Run", Told)
    _vae(max_iter=2).partial_fit(DIGITS[:600])
    assert [plan.learning_rate for plan in plans] == pytest.approx([0.005])


def test_kinds_of_row_that_are_repeated_are_learnt():
    # Held out as a whole, each kind would be one that training has never seen.
    frame = pd.DataFrame({"n": [1.0, 2.0, 3.0] * 150, "c": ["a", "b", "c"] * 150})
    drawn = _vae(n_components=2).fit(frame).sample(2000, random_state=0)
    letters = drawn["n"].round().map({1: "a", 2: "b", 3: "c"})
    assert (letters == drawn["c"]).mean() > 0.75  # 0.41 at the linear start


def test_the_unit_of_the_weights_changes_no_split():
    X = np.repeat(DIGITS[:60], 4, axis=0)
    uneven = np.random.default_rng(0).lognormal(size=len(X))
    for weight, others in ((np.ones(len(X)), (None, 7.0)), (uneven, (1e-7 * uneven, 1e7 * uneven))):
        expected = _held_out(X, weight)
        for other in others:
            other = np.full(len(X), other) if np.isscalar(other) else other
            assert _held_out(X, other) == pytest.approx(expected, abs=0.03)  # nats


def _held_out(X, weight):
    """Held-out bounds but for the start's, which has the weights' degrees of freedom."""
    return _vae(max_iter=3).fit(X, sample_weight=weight).validation_scores_[1:]


@pytest.mark.parametrize("weights", ["one is 1.001", "all differ"])
def test_weights_that_are_no_counts_leave_equal_rows_their_number(weights):
    # 12 kinds of row among 5000: with one weight of 1.001 they were 12 rows, and none was learnt.
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=5000)
    frame = pd.DataFrame(
        {f"c{j}": np.where(hidden + 0.4 * rng.normal(size=5000) > 0, "u", "v") for j in range(3)}
    )
    frame["c2"] = np.where(hidden > 0.5, "hi", np.where(hidden < -0.5, "lo", "mid"))
    weight = rng.uniform(0.9, 1.1, 5000)
    if weights == "one is 1.001":
        weight = np.r_[1.001, np.ones(4999)]
    plain, weighted = (
        VAETransformer(1, hidden_layer_sizes=(16,), random_state=0).fit(frame, sample_weight=w)
        for w in (None, weight)
    )
    assert weighted.best_iter_ > 0
    kinds = frame.value_counts().reset_index()  # a score is the same for equal rows
    scores = [vae.score_samples(kinds[[*frame]]) for vae in (weighted, plain)]
    assert abs(np.average(scores[0] - scores[1], weights=kinds["count"])) < 0.02
    new, missing = frame[:1].astype(object), frame[:1].astype(object)
    new.iloc[0, 0], missing.iloc[0, 0] = "new", None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No cell")
        cost = weighted.score(new) - weighted.score(missing)
    assert cost == pytest.approx(-np.log(5001.0))
