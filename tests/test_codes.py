"""``transform`` of complete rows: the encoder without a module, and without torch for few rows."""

import copy
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skvae import VAETransformer
from skvae._inference.codes import FEW_ROWS, NUMPY_ACTIVATIONS
from skvae._model.networks import ACTIVATIONS
from skvae._parameters import TRANSFORMER_RULES as RULES

rng = np.random.default_rng(0)
NUMBERS = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) * [1.0, 10.0, 0.1, 1e3, 1e-3] + 5.0
SWITCHES = (rng.random((300, 2)) < 0.3).astype(float)
WILD = rng.standard_t(1.5, size=(300, 1))
TABLES = {
    "numbers": (NUMBERS, "gaussian"),
    "switches between numbers": (
        np.hstack([NUMBERS[:, :2], SWITCHES[:, :1], NUMBERS[:, 2:], SWITCHES[:, 1:]]),
        {2: "bernoulli", 6: "bernoulli"},
    ),
    "wild": (np.hstack([WILD, NUMBERS]), {0: "student_t"}),
    "ordered": (
        np.hstack([NUMBERS, rng.integers(0, 4, size=(300, 1))]),
        {5: "ordinal"},
    ),
    "a constant column": (np.hstack([NUMBERS, np.full((300, 1), 7.0)]), "gaussian"),
}


def _fitted(table="numbers", **parameters):
    X, likelihood = TABLES[table]
    settings = {"max_iter": 3, "early_stopping": False, "likelihood": likelihood} | parameters
    return VAETransformer(2, random_state=0, **settings).fit(X), X


def _by_the_module(vae, X):
    """What ``VAE.encode`` says, as ``transform`` returns it."""
    import torch

    x, observed = vae.model_.columns.encode(X)
    seen = None if observed is None else torch.from_numpy(observed)
    with torch.no_grad():
        loc, _ = vae.model_.module().encode(torch.from_numpy(x), seen)
    return loc.numpy() * vae.model_.code_scale(vae.whiten)


every_size = pytest.mark.parametrize("n_rows", [1, FEW_ROWS, FEW_ROWS + 1, 300])


@every_size
@pytest.mark.parametrize("table", TABLES)
def test_codes_are_what_the_encoder_says(table, n_rows):
    vae, X = _fitted(table)
    assert_allclose(vae.transform(X[:n_rows]), _by_the_module(vae, X[:n_rows]), atol=1e-12)


@every_size
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_codes_are_what_the_encoder_says_with_every_activation(activation, n_rows):
    vae, X = _fitted(activation=activation)
    assert_allclose(vae.transform(X[:n_rows]), _by_the_module(vae, X[:n_rows]), atol=1e-12)


@every_size
@pytest.mark.parametrize("hidden", [(), (7,), (8, 9, 10)])
def test_codes_are_what_the_encoder_says_with_every_depth(hidden, n_rows):
    vae, X = _fitted(hidden_layer_sizes=hidden)
    assert_allclose(vae.transform(X[:n_rows]), _by_the_module(vae, X[:n_rows]), atol=1e-12)


@every_size
def test_a_row_with_holes_gets_the_encoders_code_among_complete_ones(n_rows):
    holed = np.where(rng.random(NUMBERS.shape) < 0.1, np.nan, NUMBERS)
    vae = VAETransformer(2, max_iter=3, early_stopping=False, random_state=0).fit(holed)
    assert_allclose(vae.transform(holed[:n_rows]), _by_the_module(vae, holed[:n_rows]), atol=1e-12)
    complete = vae.transform(NUMBERS[:n_rows])
    assert_allclose(complete, _by_the_module(vae, NUMBERS[:n_rows]), atol=1e-12)


@every_size
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_whole_numbers_are_encoded_exactly(dtype, n_rows):
    X = rng.integers(0, 2 if dtype is bool else 200, size=(300, 6)).astype(dtype)
    vae = VAETransformer(2, likelihood="gaussian", max_iter=2, random_state=0).fit(X)
    assert_allclose(vae.transform(X[:n_rows]), _by_the_module(vae, X[:n_rows]), atol=1e-12)


@every_size
@pytest.mark.parametrize("dtype", [np.longdouble, np.float16, ">f8", ">f4"])
def test_floats_of_every_kind_are_encoded_as_the_module_does(dtype, n_rows):
    vae, X = _fitted()
    rows = X[:n_rows].astype(dtype)
    expected = _by_the_module(vae, rows.astype(np.float64))
    assert_allclose(vae.transform(rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_single_precision_rows_lose_no_more_than_single_precision(mean):
    # The shift is taken off without rounding it: else a far mean would move all codes.
    X = (NUMBERS / NUMBERS.std(0) + mean).astype(np.float32)
    vae = VAETransformer(2, max_iter=3, early_stopping=False, random_state=0).fit(X)
    codes = vae.transform(X)
    assert codes.dtype == np.float32
    assert_allclose(codes, _by_the_module(vae, X), atol=2e-5)


def test_a_row_alone_is_coded_as_among_many():
    vae, X = _fitted()
    alone = np.concatenate([vae.transform(row[None]) for row in X[:50]])
    assert_allclose(vae.transform(X)[:50], alone, rtol=1e-12, atol=1e-12)


def test_chunks_do_not_show(monkeypatch):
    from skvae._inference import codes

    vae, X = _fitted()
    whole = vae.transform(X)
    monkeypatch.setattr(codes, "CACHED_NUMBERS", 1)
    monkeypatch.setattr(codes, "ROWS_FOR_PRODUCTS", 7)
    assert_allclose(vae.transform(X), whole, rtol=1e-12, atol=1e-12)


def test_rows_are_taken_in_any_order_of_memory_and_left_alone():
    vae, X = _fitted()
    expected = vae.transform(X)
    for given in (np.asfortranarray(X), X[::-1][::-1], np.repeat(X, 2, axis=1)[:, ::2]):
        given = given.copy() if given is X else given
        given.setflags(write=False)
        before = given.copy()
        assert_allclose(vae.transform(given), expected, rtol=1e-12)
        assert_array_equal(given, before)


def test_numpy_knows_every_activation():
    assert set(NUMPY_ACTIVATIONS) == set(ACTIVATIONS) == set(RULES["activation"].names)


def test_one_row_through_a_loaded_pipeline_needs_no_torch(tmp_path):
    vae, X = _fitted()
    path = tmp_path / "vae.pkl"
    path.write_bytes(pickle.dumps((vae, X[:3])))
    program = f"""
        import pickle, sys
        vae, rows = pickle.load(open({str(path)!r}, "rb"))
        vae.transform(rows)
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


def test_what_few_columns_allow_is_still_checked():
    vae, X = _fitted()
    with pytest.raises(ValueError, match="6 features, but VAETransformer is expecting 5"):
        vae.transform(np.ones((1, 6)))
    with pytest.raises(ValueError, match="Expected 2D array"):
        vae.transform(X[0])
    with pytest.raises(ValueError, match="infinity"):
        vae.transform(np.where(np.arange(5) == 2, np.inf, X[:1]))
    with pytest.raises(ValueError, match="minimum of 1"):
        vae.transform(X[:0])


# -- the module, where one is needed ---------------------------------------------------------------


def test_the_module_is_built_once_and_anew_after_another_fit():
    vae, X = _fitted()
    first = vae.model_.module()
    assert vae.model_.module() is first
    before = vae.score_samples(X[:5], method="elbo")
    vae.fit(X[:200])
    assert vae.model_.module() is not first
    assert not np.allclose(vae.score_samples(X[:5], method="elbo"), before)


def test_the_module_follows_the_weights():
    vae, X = _fitted()
    decoded = vae.inverse_transform(vae.transform(X[:3]))
    vae.weights_["decoder.linear.bias"] += 1.0
    assert_allclose(vae.inverse_transform(vae.transform(X[:3])), decoded + X.std(0))
    weights = {**vae.weights_, "decoder.linear.bias": np.zeros(5)}
    vae.model_ = replace(vae.model_, weights=weights)
    assert not np.allclose(vae.inverse_transform(vae.transform(X[:3])), decoded)


def test_training_further_leaves_the_earlier_weights_alone():
    vae, X = _fitted()
    vae.score_samples(X[:5], method="elbo")  # the module is there, on the weights' memory
    weights = vae.weights_
    before = {name: array.copy() for name, array in weights.items()}
    vae.partial_fit(X)
    for name, array in weights.items():
        assert_array_equal(array, before[name])


def test_the_module_goes_when_the_estimator_does():
    import gc
    import weakref

    vae, _ = _fitted()
    module = weakref.ref(vae.model_.module())
    assert module() is not None
    del vae
    gc.collect()
    assert module() is None


def test_the_module_is_no_part_of_a_copy_or_a_file():
    vae, _ = _fitted()
    vae.model_.module()
    for other in (copy.deepcopy(vae.model_), pickle.loads(pickle.dumps(vae.model_))):
        assert "_module" not in vars(other)
        assert other.module() is not vae.model_.module()


def test_large_work_is_shared_by_threads_of_one_thread_each(monkeypatch):
    import threading

    import threadpoolctl
    import torch

    from skvae import _resources
    from skvae._inference import codes

    def tell(*args):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return locations(*args)

    vae, X = _fitted()
    expected, seen, locations = vae.transform(X), set(), codes._locations
    monkeypatch.setattr(codes, "_locations", tell)
    monkeypatch.setattr(codes, "CACHED_NUMBERS", 1)
    monkeypatch.setattr(codes, "ROWS_FOR_PRODUCTS", 10)
    monkeypatch.setattr(_resources, "ONE_THREAD_WORK", 0.0)
    with threadpoolctl.threadpool_limits(2):
        assert_allclose(vae.transform(X), expected, rtol=1e-12, atol=1e-12)
        assert torch.get_num_threads() == 2
    assert {n_threads for _, n_threads in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}


def test_an_error_in_a_thread_is_raised_and_ends_the_others(monkeypatch):
    from skvae import _resources

    done = []

    def fail(item):
        if item == 0:
            raise MemoryError("in the middle of the work")
        done.append(item)

    import threadpoolctl

    with threadpoolctl.threadpool_limits(2), pytest.raises(MemoryError, match="in the middle"):
        _resources.for_each(fail, range(100_000), work=1e12)
    assert len(done) < 100_000
