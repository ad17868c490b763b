"""What components mean: closed forms of linear decoders, and what stands in the table."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae.priors import Mixture

WINE = load_wine().data
IRIS = load_iris(as_frame=True).data


def _loadings(vae):
    """The linear decoder's, in original units."""
    return vae.model_.columns.scale[:, None] * vae.weights_["decoder.linear.weight"]


def _curved(n_components):
    """A model whose decoder is not linear."""
    trained = {"early_stopping": False, "max_iter": 15, "random_state": 0}
    return VAETransformer(n_components, whiten=True, **trained).fit(WINE)


def _mixed(n_rows=300):
    rng = np.random.default_rng(0)
    t = rng.normal(size=n_rows)
    job = np.where(t + rng.normal(size=n_rows) > 0.0, "boss", "clerk").astype(object)
    job[rng.random(n_rows) < 0.2] = "nurse"
    return pd.DataFrame(
        {
            "age": 40.0 + 10.0 * t + rng.normal(size=n_rows),
            "job": pd.Categorical(job),
            "member": rng.random(n_rows) < 1.0 / (1.0 + np.exp(-t)),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(100.0 * t, unit="D"),
            "size": pd.Categorical(np.digitize(t, [-1.0, 0.0, 1.0]), ordered=True),
        }
    )


@pytest.fixture(scope="module")
def mixed():
    X = _mixed()
    return VAETransformer(2, likelihood={"size": "ordinal"}, max_iter=0).fit(X), X


@pytest.mark.parametrize("noise", ["shared", "per_column"])
@pytest.mark.parametrize("scaling", ["columns", "common", None])
def test_the_effects_of_a_linear_model_are_its_loadings_in_original_units(noise, scaling):
    vae = VAETransformer(3, noise=noise, scaling=scaling, max_iter=0).fit(WINE)
    expected = _loadings(vae)
    size = 1e-12 * np.abs(expected).max()
    for X in (None, WINE, WINE[:1]):  # they are the same everywhere
        assert_allclose(vae.component_effects(X), expected, rtol=1e-9, atol=size)


def test_they_are_the_reconstruction_moved_by_the_scale_of_a_component():
    vae = VAETransformer(2, max_iter=0).fit(WINE)
    step = np.diag(vae.component_scale_)
    moved = vae.inverse_transform(step) - vae.inverse_transform(0.0 * step)
    assert_allclose(vae.component_effects(), moved.T, rtol=1e-9, atol=1e-9)


def test_of_a_model_that_is_not_linear_they_are_means_over_the_codes():
    vae = _curved(2)
    Z = vae.transform(WINE)
    for component, half in enumerate(0.5 * np.eye(2)):
        moved = vae.inverse_transform(Z + half) - vae.inverse_transform(Z - half)
        found = vae.component_effects(WINE).iloc[:, component]
        assert_allclose(found, moved.mean(0), rtol=1e-9, atol=1e-9)
    one = vae.component_effects(WINE[:1]) - vae.component_effects(WINE[1:2])
    assert np.abs(one.to_numpy()).max() > 1e-3


def test_without_rows_they_are_means_over_the_prior():
    vae = _curved(1)
    z = np.random.default_rng(0).normal(size=(20_000, 1))
    moved = (vae.inverse_transform(z + 0.5) - vae.inverse_transform(z - 0.5)).mean(0)
    found = vae.component_effects()["vaetransformer0"]
    assert_allclose(found, moved, atol=0.02 * np.abs(moved).max())


def test_the_effects_on_levels_are_changes_of_their_probabilities(mixed):
    vae, X = mixed
    module = vae.model_.module()
    z = torch.from_numpy(vae.model_.encode(vae.model_.read(X), whiten=True))
    half = torch.tensor([0.5, 0.0], dtype=z.dtype)
    (place,) = [i for i, part in enumerate(module.likelihood.parts) if 1 in part.columns]

    def share(at):
        raw = module.decoder(at).split(module.likelihood.n_raw, -1)[place]
        return torch.softmax(raw, -1)

    with torch.no_grad():
        expected = (share(z + half) - share(z - half)).mean(0)
    found = vae.component_effects(X).loc["job"]
    assert_allclose(found["vaetransformer0"], expected, rtol=1e-9)
    assert list(found.index) == ["boss", "clerk", "nurse"]


@pytest.mark.parametrize("name", ["job", "size"])
def test_what_some_levels_gain_others_lose(mixed, name):
    vae, X = mixed
    effects = vae.component_effects(X).loc[name]
    assert_allclose(effects.sum(), 0.0, atol=1e-12)
    assert np.abs(effects.to_numpy()).max() > 0.1


def test_dates_move_in_days_and_booleans_in_probability(mixed):
    vae, X = mixed
    effects = vae.component_effects(X)["vaetransformer0"]
    assert effects["since", ""] / effects["age", ""] == pytest.approx(10.0, rel=0.1)
    days = vae.inverse_transform([[0.0, 0.0], [vae.component_scale_[0], 0.0]])["since"].diff()
    assert effects["since", ""] == pytest.approx(days.iloc[1] / pd.Timedelta(days=1), rel=1e-6)
    assert 0.05 < effects["member", ""] < 0.5


def test_holes_that_are_modelled_have_an_effect():
    X = pd.DataFrame(WINE[:, :4].copy(), columns=list("abcd"))  # older pandas would share it
    X.loc[X["a"] > X["a"].median(), "b"] = np.nan
    vae = VAETransformer(2, missing="model", max_iter=0).fit(X)
    effects = vae.component_effects(X)
    assert list(effects.index) == [("a", ""), ("b", ""), ("b", "(missing)"), ("c", ""), ("d", "")]
    assert np.abs(effects.loc[("b", "(missing)")]).max() > 0.1


def test_rare_levels_share_a_row():
    X = pd.DataFrame({"x": np.arange(60.0), "level": ["a", "b", "c", "d", "e", "f"] * 10})
    vae = VAETransformer(1, max_categories=4, max_iter=0).fit(X)
    assert list(vae.component_effects().loc["level"].index) == ["a", "b", "c", "(rare)"]


@pytest.mark.filterwarnings("ignore:.*inactive, with less than:UserWarning")
def test_an_inactive_component_has_no_effect():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100_000, 1)) + rng.normal(size=(100_000, 3))
    vae = VAETransformer(2, max_iter=0).fit(X)
    assert vae.n_active_components_ == 1 and _loadings(vae)[:, 1].any()
    effects = vae.component_effects(X).to_numpy()
    assert_array_equal(effects[:, 1], 0.0)
    assert_allclose(effects[:, 0], _loadings(vae)[:, 0], rtol=1e-9)


def test_a_step_is_a_standard_deviation_of_the_prior():
    trained = {"early_stopping": False, "max_iter": 20, "random_state": 0}
    vae = VAETransformer(2, prior=Mixture(3), **trained).fit(IRIS)
    module = vae.model_.module()
    draws = module.prior.now.sample(200_000, 2, torch.Generator().manual_seed(1))
    half = 0.5 * draws.std(0)[0] * torch.tensor([1.0, 0.0])
    z = vae.model_.encode(vae.model_.read(IRIS), whiten=True)
    moved = [vae.model_.decode(z + sign * half.numpy(), whiten=True) for sign in (1.0, -1.0)]
    expected = (moved[0] - moved[1]).mean(0)
    found = vae.component_effects(IRIS)["vaetransformer0"]
    assert_allclose(found, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("form", ["list", "float32", "sparse", "polars"])
def test_any_container_of_rows_will_do(form):
    polars = pytest.importorskip("polars")
    forms = {
        "list": lambda X: X.tolist(),
        "float32": lambda X: X.astype(np.float32),
        "sparse": csr_array,
        "polars": lambda X: polars.DataFrame(X, schema=[f"c{i}" for i in range(X.shape[1])]),
    }
    X = forms[form](WINE)
    vae = VAETransformer(2, max_iter=0).fit(X)
    effects = vae.component_effects(X)
    assert_allclose(effects, _loadings(vae), rtol=1e-6, atol=1e-9 * WINE.max())
    assert effects.index[0] == ("c0" if form == "polars" else 0)


def test_the_table_is_named_as_the_frame_and_as_the_codes():
    effects = VAETransformer(2, max_iter=0).fit(IRIS).component_effects(IRIS)
    assert list(effects.index) == list(IRIS.columns) and effects.index.name == "column"
    assert list(effects.columns) == ["vaetransformer0", "vaetransformer1"]
    two = IRIS.set_axis(
        pd.MultiIndex.from_product([["sepal", "petal"], ["length", "width"]]), axis=1
    )
    two.columns.names = ["part", "what"]
    effects = VAETransformer(1, max_iter=0).fit(two).component_effects()
    assert effects.index.names == ["part", "what"]
    assert effects.loc[("petal", "length"), "vaetransformer0"] > 0.0


def test_a_column_of_counts_shared_out_and_shapes_are_in_original_units():
    rng = np.random.default_rng(0)
    X = np.array([rng.multinomial(50, share) for share in rng.dirichlet([1.0, 1.0, 3.0], size=200)])
    vae = VAETransformer(1, likelihood="multinomial", max_iter=0).fit(X)
    effects = vae.component_effects()
    assert_allclose(effects.sum(), 0.0, atol=1e-9)  # at the usual total
    assert np.abs(effects.to_numpy()).max() > 3.0
    shaped = VAETransformer(1, likelihood="normal_scores", max_iter=0).fit(IRIS)
    moved = shaped.component_effects(IRIS)["vaetransformer0"]
    assert (np.abs(moved) < np.ptp(IRIS, axis=0)).all() and moved["petal length (cm)"] > 1.0


def test_the_models_of_the_detector_and_of_the_imputer_have_them():
    detector = VAEOutlierDetector(random_state=0).fit(WINE)
    assert detector.vae_.component_effects(WINE).shape == (13, detector.vae_.n_components_)
    imputer = VAEImputer(VAETransformer(2, max_iter=0)).fit(WINE)
    assert imputer.vae_.component_effects().shape == (13, 2)


def test_rows_are_validated_and_the_estimator_must_be_fitted():
    with pytest.raises(NotFittedError):
        VAETransformer().component_effects()
    vae = VAETransformer(2, max_iter=0).fit(WINE)
    with pytest.raises(ValueError, match="X has 3 features, but VAETransformer is expecting 13"):
        vae.component_effects(WINE[:, :3])
