"""Every cell predicted from the others of its row: quantiles and probabilities."""

import numpy as np
import pandas
import polars
import pytest
from scipy import special, stats

from skvae import VAEImputer, VAETransformer
from skvae._inference import importance
from skvae._inference.modes import find_modes
from skvae.likelihoods import Gaussian

SHARES = (0.05, 0.5, 0.95)


def linear(X, **parameters):
    return VAEImputer(VAETransformer(2, noise="per_column", max_iter=0, **parameters)).fit(X)


def gaussian_rows(n_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    loadings = np.array([[1.0, 2.0, -1.0, 0.5, 0.0], [0.5, 0.0, 1.0, 1.0, 2.0]])
    X = rng.normal(size=(n_rows, 2)) @ loadings + 0.5 * rng.normal(size=(n_rows, 5))
    return X * [1.0, 10.0, 0.1, 1.0, 5.0] + [0.0, 100.0, 0.0, -3.0, 7.0]


def closed_form(imputer, X):
    """Quantiles of each cell given the observed others, of a Gaussian with the model's moments."""
    vae = imputer.vae_
    columns = vae.model_.columns
    loadings = vae.weights_["decoder.linear.weight"] * columns.scale[:, None]
    mean = vae.weights_["decoder.linear.bias"] * columns.scale + columns.shift
    covariance = loadings @ loadings.T + np.diag(vae.noise_variance_)
    result = np.empty((*X.shape, len(SHARES)))
    for row, cells in enumerate(X):
        for column in range(X.shape[1]):
            given = np.flatnonzero(~np.isnan(cells) & (np.arange(len(cells)) != column))
            slope = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, column])
            loc = mean[column] + slope @ (cells[given] - mean[given])
            variance = covariance[column, column] - slope @ covariance[given, column]
            result[row, column] = stats.norm(loc, np.sqrt(variance)).ppf(SHARES)
    return result


def test_quantiles_of_a_linear_model_are_those_of_the_closed_form():
    X = gaussian_rows()
    imputer = linear(X)
    few = X[:30].copy()
    few[::3, 2] = np.nan
    found = imputer.predict_cells(few)
    expected = closed_form(imputer, few)
    for column in range(5):
        scale = expected[:, column, 2] - expected[:, column, 1]
        error = np.abs(found[column] - expected[:, column]).max(1) / scale
        assert error.max() < 0.02


def test_a_cell_has_no_part_in_its_own_prediction():
    X = gaussian_rows()
    imputer = linear(X)
    other = X[:10].copy()
    other[:, 3] += 100.0
    np.testing.assert_allclose(imputer.predict_cells(other)[3], imputer.predict_cells(X[:10])[3])


def test_ninety_percent_intervals_cover_ninety_percent():
    X, new = gaussian_rows(1000), gaussian_rows(300, seed=1)
    cells = linear(X).predict_cells(new)
    for column in range(5):
        low, _, high = cells[column].T
        assert ((low <= new[:, column]) & (new[:, column] <= high)).mean() == pytest.approx(
            0.9, abs=0.045
        )


def test_probabilities_of_levels_are_those_of_the_integral():
    """Against the integral over z of a trained model with one component."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=400)
    frame = pandas.DataFrame(
        {
            "x": z + 0.5 * rng.normal(size=400),
            "y": z + 0.5 * rng.normal(size=400),
            "town": np.array(["a", "b", "c"])[np.digitize(z + 0.5 * rng.normal(size=400), [-1, 1])],
        }
    )
    imputer = VAEImputer(VAETransformer(1, noise="per_column", max_iter=3, random_state=0))
    imputer.fit(frame)
    found = imputer.predict_cells(frame.head(20))["town"]
    assert list(found) == ["a", "b", "c"]
    module = imputer.vae_.model_.module()
    import torch

    line = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)[:, None, None].expand(-1, 20, 1)
    x, _ = imputer.vae_.model_.columns.encode(imputer.vae_.model_.read(frame.head(20)))
    rows, seen = torch.from_numpy(x), torch.ones(20, 3, dtype=torch.bool)
    joint = []
    for level in range(3):
        rows[:, 2] = level
        joint.append(torch.logsumexp(module.log_joint(rows, seen, line), 0).detach().numpy())
    np.testing.assert_allclose(found, special.softmax(np.stack(joint, 1), 1), atol=0.01)


def test_columns_of_every_kind_have_distributions():
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    frame = pandas.DataFrame(
        {
            "amount": np.exp(z + 0.3 * rng.normal(size=300)),
            "rain": np.where(z > 0, np.exp(z), 0.0),
            "visits": rng.poisson(np.exp(0.5 * z)),
            "calls": rng.poisson(np.exp(0.5 * z)),
            "ok": z + rng.normal(size=300) > 0,
            "switch": (z > 0.3).astype(int),
            "heavy": z + rng.standard_t(2, 300),
            "size": pandas.Categorical(np.array(["s", "m", "l"])[rng.integers(0, 3, 300)]),
        },
        index=np.arange(300) + 7,
    )
    kinds = {"visits": "poisson", "calls": "negative_binomial", "heavy": "student_t"}
    kinds |= {"amount": "log_normal", "rain": "normal_scores"}
    vae = VAETransformer(2, likelihood=kinds, max_iter=2, random_state=0, max_categories=2)
    cells = VAEImputer(vae).fit(frame).predict_cells(frame.head(25))
    assert list(cells) == list(frame)
    for name, found in cells.items():
        assert found.index.equals(frame.index[:25])
        if name in ("ok", "switch", "size"):
            np.testing.assert_allclose(found.sum(axis=1), 1.0)
        else:
            assert list(found) == list(SHARES)
            assert (np.diff(found.to_numpy(), axis=1) >= 0.0).all()
    assert list(cells["ok"]) == [False, True] and list(cells["switch"]) == [0.0, 1.0]
    assert set(cells["size"]) == {"s", "m", "l"}
    assert (cells["visits"] % 1 == 0).all(axis=None) and (cells["rain"] >= 0).all(axis=None)
    assert cells["amount"].min(axis=None) > 0.0


def test_arrays_and_polars_frames_get_arrays():
    X = gaussian_rows(100)
    assert linear(X).predict_cells(X[:3])[4].shape == (3, 3)
    frame = polars.DataFrame(X, schema=list("abcde"))
    found = linear(frame).predict_cells(frame[:3], quantiles=[0.5])
    assert list(found) == list("abcde") and found["a"].shape == (3, 1)


def test_a_row_is_predicted_the_same_whatever_the_others_are():
    X = gaussian_rows(40)
    imputer = linear(X, likelihood="student_t")
    alone, among = imputer.predict_cells(X[[7]]), imputer.predict_cells(X[:10])
    np.testing.assert_allclose(among[1][[7]], alone[1], rtol=1e-6)


class Wider(Gaussian):
    """A density of its own, without a cdf."""

    def log_prob(self, x, raw):
        return super().log_prob(x, raw)


def test_cells_of_one_row_are_predicted_by_one_search_for_its_modes(monkeypatch):
    """Of all columns at once: few rows cost what each call costs."""
    X = gaussian_rows(40)
    imputer, sizes = linear(X, likelihood="student_t"), []

    def counted(vae, x, observed, codebook):
        sizes.append(len(x))
        return find_modes(vae, x, observed, codebook)

    monkeypatch.setattr(importance, "find_modes", counted)
    alone = imputer.predict_cells(X[:1])
    assert sizes == [5]
    sizes.clear()
    among = imputer.predict_cells(X)
    assert sizes == [40] * 5
    for column in range(5):
        np.testing.assert_allclose(among[column][:1], alone[column], rtol=1e-6)


def test_what_has_no_quantiles_is_refused():
    X = gaussian_rows(100)
    for quantiles in ([0.0, 0.5], [], 0.5, ["a"]):
        with pytest.raises(ValueError, match="quantiles must be numbers between 0 and 1"):
            linear(X).predict_cells(X, quantiles=quantiles)
    with pytest.raises(ValueError, match="Wider has no quantiles"):
        linear(X, likelihood=Wider()).predict_cells(X)
