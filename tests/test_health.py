"""A warning comes exactly when something is wrong, names the fix, and points at the user's line."""

import re
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from skvae import VAEOutlierDetector, VAETransformer
from skvae._health import advice_on_fit
from skvae._history import History

DIGITS = load_digits().data


def _vae(n_components=2, **params):
    small = {"hidden_layer_sizes": (16,), "max_iter": 0, "random_state": 0}
    return VAETransformer(n_components, **small | params)


def _warnings(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


def _texts(call):
    return [str(warning.message) for warning in _warnings(call)]


def _only(call):
    (warning,) = _warnings(call)
    return warning


def _with_eigenvalues(*eigenvalues):
    """Rows whose covariance has exactly these eigenvalues."""
    n_columns = len(eigenvalues)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n_columns, n_columns)))
    half = np.sqrt(np.array(eigenvalues) * n_columns)[:, None] * rotation.T
    return np.concatenate([half, -half])


def _table(n_rows=200, seed=0):
    """Six columns of two factors and noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(
        size=(n_rows, 6)
    )


# -- nothing to say -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_a_default_fit_and_its_score_warn_of_nothing(load):
    X = load().data
    # A part of the rows is enough for the shares that a score warns of.
    VAETransformer(random_state=0).fit(X).score(X[::4])


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_the_default_number_of_epochs_is_enough_for_digits():
    VAETransformer(random_state=0).fit(DIGITS)


# -- epochs ---------------------------------------------------------------------------------------


def test_a_fit_cut_short_says_to_increase_max_iter():
    warning = _only(lambda: _vae(4, max_iter=2).fit(DIGITS))
    assert warning.category is ConvergenceWarning
    assert str(warning.message) == (
        "Training reached max_iter after 2 epochs, while the held-out bound was still rising. "
        "The model is that of epoch 2. Increase max_iter."
    )


def test_a_fit_cut_short_before_it_is_clearly_better_says_so():
    # A first epoch whose gain is less than two standard errors: the start is kept.
    history = History(1, 0, [20.2], [-20.234, -20.222], cut_short=True)
    fitted = VAETransformer(2, max_iter=0).fit(load_wine().data).model_
    (text, category), *_ = advice_on_fit({"n_components": 2, "beta": 1.0}, fitted, history, [])
    assert category is ConvergenceWarning
    assert text == (
        "Training reached max_iter after 1 epoch, while the held-out bound was still rising. The "
        "model is that of the linear start: none after it is clearly better. Increase max_iter."
    )


def test_a_default_fit_does_not_tell_to_increase_max_iter():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0.0, 6.0, 600)
    X = np.column_stack([np.cos(angle), np.sin(angle), angle]) + 0.001 * rng.normal(size=(600, 3))
    vae = VAETransformer(1, random_state=0, n_iter_no_change=10**6)
    assert _texts(lambda: vae.fit(X)) == []
    assert np.argmax(vae.validation_scores_) > vae.n_iter_ - 5  # it still rose a little


UNHURRIED = {
    "no epochs at all": {"max_iter": 0},
    "every epoch asked for": {"max_iter": 2, "early_stopping": False},
    "a gain below tol": {"max_iter": 2, "tol": 100.0},
    "no gain": {"max_iter": 2, "learning_rate_init": 1e-30},
}


@pytest.mark.parametrize("name", UNHURRIED)
def test_a_fit_that_was_not_cut_short_does_not_say_so(name):
    assert _texts(lambda: _vae(4, **UNHURRIED[name]).fit(DIGITS)) == []


@pytest.mark.parametrize("name", ["folds", "a held-out part"])
def test_a_fit_that_stopped_by_itself_was_not_cut_short(name):
    X = np.random.default_rng(0).normal(size=(100 if name == "folds" else 600, 3))
    X[:, 0] *= 5.0
    vae = _vae(1, max_iter=50, n_iter_no_change=3, scaling=None)
    assert _texts(lambda: vae.fit(X)) == []
    assert vae.n_iter_ < 50


# -- components -----------------------------------------------------------------------------------

# (eigenvalues, components asked for, components to use)
SPARE = [
    ([9.0, 4.0, *10 * [1.0]], 4, 2),
    ([9.0, 4.0, *10 * [1.0]], 3, 2),
    ([9.0, *7 * [1.0]], 5, 1),
]


@pytest.mark.parametrize(("eigenvalues", "asked", "active"), SPARE)
def test_inactive_components_are_counted_with_the_n_components_to_use(eigenvalues, asked, active):
    X = _with_eigenvalues(*eigenvalues)
    warning = _only(lambda: _vae(asked, scaling=None).fit(X))
    assert warning.category is UserWarning
    are, them = ("is", "it") if asked - active == 1 else ("are", "them")
    text = str(warning.message)
    assert f"{asked - active} of {asked} components {are} inactive, with less than" in text
    assert f"transform returns 0 for {them}." in text
    assert f"Use n_components={active}." in str(warning.message)


@pytest.mark.parametrize(("eigenvalues", "active"), [(row[0], row[2]) for row in SPARE])
def test_the_n_components_that_was_named_warns_no_more(eigenvalues, active):
    X = _with_eigenvalues(*eigenvalues)
    assert _texts(lambda: _vae(active, scaling=None).fit(X)) == []


def test_components_that_were_not_asked_for_are_no_ones_fault():
    vae = _vae("auto", scaling=None)
    assert _texts(lambda: vae.fit(_with_eigenvalues(*SPARE[0][0]))) == []
    assert vae.n_active_components_ < vae.n_components_


def test_the_fix_is_never_what_was_done():
    # No structure at all: there is no smaller number of components to name.
    texts = _texts(lambda: _vae(1, scaling=None).fit(_with_eigenvalues(*8 * [1.0])))
    assert len(texts) == 1 and "1 of 1 components is inactive" in texts[0]
    assert "Use n_components=1" not in texts[0]


@pytest.mark.filterwarnings("ignore:Training reached max_iter")
def test_a_large_beta_is_named_where_it_is_what_made_components_inactive():
    X, train = _table(600), {"max_iter": 60, "early_stopping": False}
    (text,) = _texts(lambda: _vae(2, beta=3.0, **train).fit(X))
    assert "1 of 2 components is inactive" in text
    assert "A smaller beta than 3 keeps more of them. For this one n_comp" in text
    assert _texts(lambda: _vae(2, beta=1.0, **train).fit(X)) == []
    none = _vae(2, beta=1e4, **train)
    (text,) = _texts(lambda: none.fit(X))
    assert "2 of 2 components are inactive" in text and "share no structure" not in text
    assert text.endswith("A smaller beta than 10000 keeps more of them.")
    assert text in none._repr_html_().replace("&#x27;", "'")


# -- noise ----------------------------------------------------------------------------------------

EXACT = {
    "a column twice": (lambda X: np.c_[X, X[:, 2]], "2, 6"),
    "a column twice, in other units": (lambda X: np.c_[X, 1e6 * X[:, 2] + 3.0], "2, 6"),
}


@pytest.mark.parametrize("name", EXACT)
def test_columns_whose_noise_is_at_its_floor_are_named(name):
    make, columns = EXACT[name]
    warned = _warnings(
        lambda: _vae(
            3, noise="per_column", scaling="columns", max_iter=0, early_stopping=False
        ).fit(make(_table()))
    )
    texts = [str(w.message) for w in warned if "noise scale" in str(w.message)]
    assert len(texts) == 1
    assert f"The noise scale of each of the columns {columns} fell to its floor" in texts[0]
    assert "Use fewer n_components, or drop columns that say the same as others" in texts[0]


def test_a_column_that_follows_from_others_is_at_its_floor_with_them():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(300, 2))
    X = np.c_[rng.normal(size=(300, 2)), Z, Z.sum(axis=1)]
    (text,) = _texts(lambda: _vae(3, noise="per_column", scaling="columns").fit(X))
    assert "The noise scale of each of the columns 2, 3, 4 fell" in text


def test_a_column_of_a_frame_is_called_by_its_name():
    pandas = pytest.importorskip("pandas")
    X = EXACT["a column twice"][0](_table())
    frame = pandas.DataFrame(X, columns=["a", "b", "visits", "d", "e", "f", "again"])
    (text,) = _texts(lambda: _vae(3, noise="per_column", scaling="columns").fit(frame))
    assert "The noise scale of each of the columns 'visits', 'again' fell to its floor" in text


def test_a_column_alone_is_not_told_to_drop_others():
    X = np.random.default_rng(0).normal(size=(100, 1))
    (text,) = _texts(lambda: VAETransformer(max_iter=3, random_state=0).fit(X))
    assert text.endswith("A column alone has no structure that a model could find.")


def test_no_more_than_five_columns_are_listed():
    X = np.repeat(np.random.default_rng(0).normal(size=(50, 1)), 8, axis=1)
    (text,) = _texts(lambda: _vae(1).fit(X))
    assert "The noise scale of each of the columns 0, 1, 2, 3, 4 and others fell" in text


@pytest.mark.parametrize("noise", ["shared", "per_column"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 + 0.3])
# Above 4096 distinct rows the columns' statistics are put together from several chunks.
@pytest.mark.parametrize("n_rows", [200, 5000])
def test_a_constant_column_is_no_column_without_noise(noise, constant, n_rows):
    X = np.c_[_table(n_rows)[:, :4], np.full(n_rows, constant)]
    assert _texts(lambda: _vae(2, noise=noise, scaling="columns").fit(X)) == []


def test_noise_above_its_floor_is_not_spoken_of():
    assert _texts(lambda: _vae(2, noise="per_column").fit(_table())) == []


# -- importance weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return _vae(3, max_iter=40, early_stopping=False, learning_rate_init=0.01).fit(DIGITS[:600])


FAR = 50.0 * DIGITS[:20]
VERY_FAR = 1e4 * np.random.default_rng(0).normal(size=(20, 64))  # refinement does not settle


def test_a_score_that_rests_on_one_sample_says_to_refine(trained):
    warning = _only(lambda: trained.score_samples(FAR, refine=False))
    assert warning.category is UserWarning
    text = str(warning.message)
    assert "For 100% of the rows the tail of the importance weights is too heavy" in text
    assert re.search(r"\(Pareto k above 0\.45; 64 samples are worth 1\.\d\)", text)
    assert "unreliable, and mostly too low" in text and "Use refine=True" in text


QUIET = {
    "ordinary rows": lambda vae: vae.score_samples(DIGITS[:20], refine=False),
    "ordinary rows, refined": lambda vae: vae.score_samples(DIGITS[:20]),
    "the mean score": lambda vae: vae.score(DIGITS[:20]),
    "a few far rows": lambda vae: vae.score_samples(
        np.concatenate([DIGITS[:100], FAR[:1]]), refine=False
    ),
    "no importance weights": lambda vae: vae.score_samples(FAR, method="elbo"),
    "codes": lambda vae: vae.transform(FAR),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_score_that_rests_on_many_samples_says_nothing(trained, name):
    assert _texts(lambda: QUIET[name](trained)) == []


def test_so_few_samples_that_one_must_be_heavy_say_nothing():
    vae = _vae(3, n_importance_samples=4).fit(DIGITS[:200])
    assert _texts(lambda: vae.score_samples(FAR, refine=False)) == []


# -- where a warning points -----------------------------------------------------------------------
#
# Each call stands in a function of its own, so that "the line of the call" is no other line.


def _fit_cut_short(trained):
    return _vae(4, max_iter=2).fit(DIGITS)


def _fit_with_spare_components(trained):
    return _vae(4, scaling=None).fit(_with_eigenvalues(*SPARE[0][0]))


def _fit_with_a_column_twice(trained):
    X = np.c_[_table(), _table()[:, 2]]
    return _vae(3, noise="per_column", scaling="columns").fit(X)


def _score_samples(trained):
    return trained.score_samples(FAR, refine=False)


def _score(trained):
    return trained.score(VERY_FAR)


DIRECT = [_fit_cut_short, _fit_with_spare_components, _fit_with_a_column_twice, _score_samples]


@pytest.mark.parametrize("call", DIRECT, ids=lambda call: call.__name__)
def test_a_warning_points_at_the_line_of_the_users_call(trained, call):
    warning = _only(partial(call, trained))
    first = call.__code__.co_firstlineno
    assert warning.filename == __file__
    assert first < warning.lineno <= first + 2


def test_a_warning_of_the_mean_score_points_at_the_users_call(trained):
    warning = _only(partial(_score, trained))
    assert "Increase n_importance_samples" in str(warning.message)
    assert warning.filename == __file__
    assert warning.lineno == _score.__code__.co_firstlineno + 1


def test_a_warning_in_a_pipeline_is_not_lost():
    warning = _only(lambda: make_pipeline(_vae(4, max_iter=2)).fit(DIGITS))
    assert warning.category is ConvergenceWarning


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_diverged_last_step_is_refused_and_leaves_the_estimator_as_it_was(method):
    X = np.random.default_rng(0).normal(size=(12, 1))
    vae = VAETransformer(
        2,
        hidden_layer_sizes=(4,),
        activation="silu",
        learning_rate_init=1e8,
        max_iter=1,
        early_stopping=False,
        random_state=0,
    )
    before = dict(vars(vae))
    with pytest.raises(ValueError, match=r"infinite or nan in epoch \d; .* column 0\. Use a"):
        for _ in range(3):  # partial_fit warms its rate up
            getattr(vae, method)(X)
            before = dict(vars(vae))
    assert vars(vae) == before


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_beyond_the_precision_of_training_are_refused_with_what_to_do():
    X = 1e39 * np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match=r"not finite in the precision of training; .* unit"):
        VAETransformer(1, scaling=None, max_iter=0).fit(X)
    assert np.isfinite(VAETransformer(1, max_iter=0).fit(X).kl_per_component_).all()


@pytest.mark.parametrize("likelihood", ["log_normal", "gaussian", "poisson"])
def test_wild_codes_decode_to_finite_values(likelihood):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(80, 1))
    X = np.hstack([z + 0.1 * rng.normal(size=(80, 1)), np.rint(np.exp(z) * 3.0) + 1.0])
    vae = VAETransformer(1, likelihood={1: likelihood}, max_iter=0, random_state=0).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in (1e3, -1e3, 1e100, 1e300):
            for dtype in (np.float32, np.float64):
                with np.errstate(over="ignore"):
                    codes = np.clip([[code]], np.finfo(dtype).min, np.finfo(dtype).max)
                assert np.isfinite(vae.inverse_transform(codes.astype(dtype))).all()


@pytest.mark.parametrize("early_stopping", [True, False])
def test_verbose_prints_the_units_of_the_fitted_curves(early_stopping, capsys):
    X = np.random.default_rng(0).normal(size=(60, 3)) * [1.0, 1e3, 1e-3]
    vae = VAETransformer(
        1, max_iter=2, verbose=2, random_state=0, early_stopping=early_stopping
    ).fit(X)
    printed = capsys.readouterr().out
    assert "nan" not in printed
    held_out = [float(value) for value in re.findall(r"held out (\S+?)(?:,| nats)", printed)]
    bounds = [float(value) for value in re.findall(r"bound (\S+?)(?:,| nats)", printed)]
    kept = f"epoch {vae.best_iter_}" if vae.best_iter_ else "the linear start"
    assert printed.splitlines()[-1].startswith(f"[VAETransformer] kept {kept} after 2 epochs")
    assert held_out == pytest.approx(vae.validation_scores_, abs=1e-3)
    assert len(bounds) == 2
    if not early_stopping:
        assert bounds == pytest.approx([-loss for loss in vae.loss_curve_], abs=1e-3)


def test_verbose_1_prints_the_first_epoch_the_last_and_one_every_five_seconds(capsys):
    X = np.random.default_rng(0).normal(size=(60, 3))
    vae = VAETransformer(1, max_iter=6, verbose=1, random_state=0, n_iter_no_change=6).fit(X)
    lines = capsys.readouterr().out.splitlines()
    shown = [re.search(r"linear start|epoch \d of|kept", line)[0] for line in lines]
    assert shown == ["linear start", "epoch 1 of", "epoch 6 of", "kept"]
    assert vae.best_iter_ == 0
    assert re.search(r"kept the linear start after .* s: (none|the best) of 6 epochs", lines[-1])


def test_a_first_part_of_few_rows_is_told_what_it_decides():
    X = DIGITS[:100, 10:14]
    (said,) = _texts(lambda: _vae(1).partial_fit(X[:3]))
    assert said == (
        "The first call of partial_fit has 3 rows, and all later ones are scaled by these. Let it "
        "have 10 typical rows or more, or call fit first."
    )
    vae = _vae(1).partial_fit(X)
    assert not _texts(lambda: vae.partial_fit(X[:3]))


def test_to_go_on_for_no_epochs_is_told_to_change_nothing():
    X = DIGITS[:100, 10:14]
    vae = _vae(1, warm_start=True)
    assert not _texts(lambda: vae.fit(X))
    expected = vae.transform(X)
    (said,) = _texts(lambda: vae.fit(X + 100.0))
    assert said == (
        "warm_start=True with max_iter=0 leaves the model as it is: it learns nothing from X. Use "
        "a larger max_iter, or warm_start=False."
    )
    assert (vae.transform(X) == expected).all()


def test_a_column_without_values_says_what_becomes_of_later_ones():
    X = np.random.default_rng(0).normal(size=(50, 3))
    X[:, 1] = np.nan
    said = [str(w.message) for w in _warnings(lambda: _vae(1).fit(X))]
    assert (
        "Column 1 holds no value. Whatever later rows hold there is taken as missing. Drop it, or "
        "fit to rows that have values."
    ) in said


def test_what_is_true_of_many_columns_is_said_once():
    X = 1e-200 * np.random.default_rng(0).normal(size=(50, 10))
    said = [str(w.message) for w in _warnings(lambda: _vae(1).fit(X))]
    assert [text[:13] for text in said if "too small to be squared" in text] == [
        "Column 0 hold",
        "Column 1 hold",
        "Column 2 hold",
    ]
    assert "What was said of column 0 is true of column 3, 4, 5, 6, 7 and 2 more, too." in said


def test_a_detector_does_not_warn_of_levels_that_its_own_folds_have_not_seen():
    X = pd.DataFrame({"a": DIGITS[:60, 10], "id": [f"note {row}" for row in range(60)]})
    said = [str(w.message) for w in _warnings(lambda: VAEOutlierDetector(random_state=0).fit(X))]
    assert any("another level in nearly every row" in text for text in said)
    assert not any("was there in fit" in text for text in said)
