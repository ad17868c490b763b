"""Stored estimators say which version wrote them."""

import copy
import importlib.metadata
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import InconsistentVersionWarning

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

X = np.random.default_rng(0).normal(size=(40, 3))
LINEAR = VAETransformer(1, max_iter=0, random_state=0)
ESTIMATORS = {
    "transformer": LINEAR,
    "imputer": VAEImputer(LINEAR),
    "detector": VAEOutlierDetector(LINEAR, random_state=0),
}
each = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


@each
def test_a_pickle_carries_the_version_and_loads_without_a_word(estimator):
    fitted = copy.deepcopy(estimator).fit(X)
    assert fitted.__getstate__()["_skvae_version"] == skvae.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(fitted))
    assert vars(again).keys() == vars(fitted).keys()


@each
@pytest.mark.parametrize("version", ["0.0.7", None])
def test_another_versions_pickle_warns_and_gets_defaults_for_new_parameters(estimator, version):
    fitted = copy.deepcopy(estimator).fit(X)
    state = fitted.__getstate__()
    last = list(type(fitted)().get_params(deep=False))[-1]
    del state[last]
    if version is None:
        del state["_skvae_version"]
    else:
        state["_skvae_version"] = version
    other = type(fitted).__new__(type(fitted))
    said = f"stored by skvae {version or '.an earlier version.'} and is read by skvae"
    with pytest.warns(InconsistentVersionWarning, match=said):
        other.__setstate__(state)
    assert getattr(other, last) == getattr(type(fitted)(), last)


def test_a_model_that_lacks_a_field_is_refused_clearly():
    state = LINEAR.fit(X).model_.__getstate__()
    del state["noise_variance"]
    model = type(LINEAR.model_).__new__(type(LINEAR.model_))
    with pytest.raises(ValueError, match=r"another version of skvae, without the field 'noise_v"):
        model.__setstate__(state)


def test_a_model_without_an_optional_field_is_read():
    state = LINEAR.fit(X).model_.__getstate__()
    del state["memory"]
    model = type(LINEAR.model_).__new__(type(LINEAR.model_))
    model.__setstate__(state)
    assert model.memory is None
    assert_array_equal(model.encode(X), LINEAR.model_.encode(X))


def test_the_version_needs_no_installed_package():
    code = (
        "import importlib.metadata as m\n"
        "def gone(name): raise m.PackageNotFoundError(name)\n"
        "m.version = m.distribution = gone\n"
        "import skvae; print(skvae.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == skvae.__version__


def test_the_version_is_that_of_the_package():
    try:
        installed = importlib.metadata.version("skvae")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("skvae is not installed here.")
    assert installed == skvae.__version__
