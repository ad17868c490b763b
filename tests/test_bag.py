"""The bag of VAEImputer: models beside its own, whose expectations are averaged with its."""

import pickle

import numpy as np
import pandas
import pytest
from numpy.testing import assert_array_equal

import skvae
from skvae import VAEImputer, VAETransformer, _fitting
from skvae._files.container import pack, unpack


def imputer(n_estimators=3, random_state=0, **parameters):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 4, "noise": "per_column"}
    vae = VAETransformer(**small | parameters)
    return VAEImputer(vae, n_estimators=n_estimators, random_state=random_state)


def numbers(n_rows=120):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(n_rows, 4))
    return np.where(rng.random(X.shape) < 0.2, np.nan, X)


def frame():
    X = numbers()
    levels = np.array(["s", "m", "l"])[np.digitize(X[:, 0], [-0.5, 0.5])].astype(object)
    levels[::5] = None
    sure = pandas.Series(np.where(X[:, 1] > 0, 1, 0)).astype("boolean")
    sure[::4] = pandas.NA
    columns = {"a": X[:, 2], "size": pandas.Categorical(levels), "sure": sure, "b": X[:, 3]}
    return pandas.DataFrame(columns)


def test_one_estimator_fills_with_its_own_expectations():
    X = numbers()
    one = imputer(1).fit(X)
    model = one.vae_.model_
    X = X[np.isnan(X).any(axis=1)]
    assert one.bag_ == ()
    assert_array_equal(one.transform(X), np.where(np.isnan(X), model.conditional(model.read(X)), X))


def test_a_model_that_was_not_to_be_trained_has_none_beside_it():
    X = numbers()
    linear = imputer(max_iter=0).fit(X)
    assert linear.bag_ == ()
    assert_array_equal(linear.transform(X), imputer(1, max_iter=0).fit_transform(X))


def test_numbers_are_means_and_levels_the_most_probable_on_average():
    table = frame()
    fitted = imputer().fit(table)
    models, rows = [fitted.vae_.model_, *fitted.bag_], fitted.vae_.model_.read(table)
    assert len(models) == 3
    column = models[0].module().likelihood.column.numpy()
    places = np.flatnonzero(column == 1)
    parts = [model.expected(rows, levels=places.tolist()) for model in models]
    cells = np.mean([part[0] for part in parts], axis=0)
    shares = np.mean([part[1] for part in parts], axis=0)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    filled, holes = fitted.transform(table), table.isna().to_numpy()
    for number, name in [(0, "a"), (3, "b")]:
        own = holes[:, number]
        np.testing.assert_allclose(filled[name][own], cells[own, number])
    levels = np.array(models[0].schema.columns[1].levels)
    assert_array_equal(filled["size"][holes[:, 1]], levels[shares.argmax(axis=1)][holes[:, 1]])
    assert_array_equal(filled["sure"][holes[:, 2]].astype(float), cells[holes[:, 2], 2] >= 0.5)


def test_the_others_are_of_other_weights_and_have_the_columns_of_the_first():
    fitted = imputer().fit(numbers())
    own, one, other = (model.weights["decoder.linear.weight"] for model in _models(fitted))
    assert (one != other).any() and (own != one).any()
    assert all(model.columns is fitted.vae_.model_.columns for model in fitted.bag_)


def _models(fitted):
    return [fitted.vae_.model_, *fitted.bag_]


def test_the_random_state_decides_the_bag():
    X = numbers()
    one, same, other = (imputer(random_state=seed).fit_transform(X) for seed in (0, 0, 1))
    assert_array_equal(one, same)
    assert (one != other).any()


def test_weights_of_a_bag_are_drawn_around_those_of_the_rows(monkeypatch):
    """Gamma(w): the sum of w exponentials, as if the row stood there w times."""
    X, seen = numbers(400), []
    weight = np.where(np.arange(400) < 200, 1.0, 9.0)

    def told(parameters, rows, seed, before=None, audience=None):
        if before is not None:
            heavy = {tuple(row): w for row, w in zip(np.nan_to_num(X), weight, strict=True)}
            seen.extend((heavy[tuple(np.nan_to_num(x))], w) for x, w in zip(*rows[:2], strict=True))
        return fit(parameters, rows, seed, before, audience)

    fit = _fitting.fit
    monkeypatch.setattr(_fitting, "fit", told)
    imputer().fit(X, sample_weight=weight)
    of_row, drawn = np.transpose(seen)
    for one in (1.0, 9.0):
        own = drawn[of_row == one]
        assert len(own) == 400  # two models
        assert own.mean() == pytest.approx(one, rel=0.2)
        assert own.var() == pytest.approx(one, rel=0.3)


def test_a_run_that_diverges_gives_no_model(monkeypatch):
    X, n_runs = numbers(), []

    def sometimes(parameters, rows, seed, before=None, audience=None):
        if before is not None and len(n_runs) < 1:
            n_runs.append(seed)
            parameters = parameters | {"learning_rate_init": 1e30}
        return fit(parameters, rows, seed, before, audience)

    fit = _fitting.fit
    monkeypatch.setattr(_fitting, "fit", sometimes)
    fitted = imputer().fit(X)
    assert len(n_runs) == 1 and len(fitted.bag_) == 1
    assert np.isfinite(fitted.transform(X)).all()


def test_weighting_a_row_is_repeating_it_and_its_place_says_nothing():
    X, weight = numbers(), np.random.default_rng(0).integers(0, 3, 120)
    weighted = imputer().fit(X, sample_weight=weight.astype(float)).transform(X)
    repeated = imputer().fit(np.repeat(X, weight, axis=0)[::-1]).transform(X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-9)


def test_rows_of_weight_zero_have_no_part_in_the_bag():
    X, weight = numbers(), np.repeat([1.0, 0.0], 60)
    fitted = imputer().fit(X, sample_weight=weight)
    assert_array_equal(fitted.transform(X), imputer().fit(X[:60]).transform(X))


def test_draws_and_distributions_of_cells_are_those_of_the_first_model():
    X = numbers()
    one, bag = imputer(1).fit(X), imputer(3).fit(X)
    pairs = zip(one.sample_imputations(X, 2), bag.sample_imputations(X, 2), strict=True)
    for alone, among in pairs:
        assert_array_equal(alone, among)
    assert_array_equal(one.predict_cells(X[:3])[0], bag.predict_cells(X[:3])[0])


def test_files_and_pickles_fill_with_the_same_bits(tmp_path):
    pytest.importorskip("safetensors")
    table = frame()
    fitted = imputer().fit(table)
    skvae.save(fitted, tmp_path / "imputer")
    for again in (skvae.load(tmp_path / "imputer"), pickle.loads(pickle.dumps(fitted))):
        assert len(again.bag_) == 2
        pandas.testing.assert_frame_equal(again.transform(table), fitted.transform(table))


def test_a_file_whose_bag_has_other_columns_is_refused(tmp_path):
    """By whoever reads it, and ``save`` reads what it has written."""
    pytest.importorskip("safetensors")
    fitted = imputer().fit(numbers())
    fitted.bag_ = imputer().fit(numbers()[:, :3]).bag_
    with pytest.raises(TypeError, match="bag_ of its VAEImputer has other columns than vae_"):
        skvae.save(fitted, tmp_path / "imputer")


def test_a_file_from_before_there_were_bags_has_none(tmp_path):
    pytest.importorskip("safetensors")
    X = numbers()
    skvae.save(imputer(1).fit(X), tmp_path / "imputer")
    manifest, arrays = unpack((tmp_path / "imputer").read_bytes())
    for name in ("sha256", "skvae_format"):
        del manifest[name]
    parts = manifest["model"]["VAEImputer"]
    del parts["fitted"]["bag_"], parts["parameters"]["n_estimators"]
    (tmp_path / "older").write_bytes(pack(manifest, arrays))
    older = skvae.load(tmp_path / "older")
    assert older.bag_ == ()
    assert_array_equal(older.transform(X), imputer(1).fit_transform(X))


@pytest.mark.parametrize("number", [0, -1, 2.5, "auto", None])
def test_the_number_of_models_is_checked(number):
    with pytest.raises(ValueError, match="'n_estimators' parameter of VAEImputer must be"):
        imputer(number).fit(numbers())
