"""Nothing global moves, nothing leaks, and a fitted estimator is plain data."""

import copy
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import joblib
import numpy as np
import pytest
import threadpoolctl
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, _resources, to_onnx
from skvae._inference import codes
from skvae._model.networks import Encoder
from skvae._model.vae import VAE
from skvae._resources import products_may_be_short
from skvae._training import selection

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _rows(n_rows=60, n_columns=6, seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n_rows, 2))
    noise = 0.3 * rng.normal(size=(n_rows, n_columns))
    return np.tanh(Z @ rng.normal(size=(2, n_columns))) + noise


X = _rows()
X.setflags(write=False)


def _vae(**params):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0}
    return VAETransformer(**{**small, **params})


def _weights(vae):
    return np.concatenate([weight.ravel() for weight in vae.weights_.values()])


@pytest.fixture(scope="module")
def fitted():
    """Not to be changed: every test takes a copy."""
    return _vae().fit(X)


# Every public method that computes, on an estimator and rows; each returns an array.
METHODS = {
    "fit": lambda vae, X: _weights(vae.fit(X)),
    "partial_fit": lambda vae, X: _weights(vae.partial_fit(X)),
    "fit_transform": lambda vae, X: vae.fit_transform(X),
    "transform": lambda vae, X: vae.transform(X),
    "inverse_transform": lambda vae, X: vae.inverse_transform(np.ones((len(X), 2))),
    "log_likelihood": lambda vae, X: vae.score_samples(X),
    "log_likelihood, not refined": lambda vae, X: vae.score_samples(X, refine=False),
    "elbo": lambda vae, X: vae.score_samples(X, method="elbo"),
    "reconstruction": lambda vae, X: vae.score_samples(X, method="reconstruction"),
    "kl": lambda vae, X: vae.score_samples(X, method="kl"),
    "score_features": lambda vae, X: vae.score_features(X),
    "score": lambda vae, X: np.array(vae.score(X)),
    "sample": lambda vae, X: vae.sample(5, random_state=0),
    "mode": lambda vae, X: vae.sample(5, random_state=0, mode=True),
}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def expected(fitted):
    """What each method computes of ``X`` where nothing is unusual."""
    return {name: method(copy.deepcopy(fitted), X) for name, method in METHODS.items()}


# -- what is global -------------------------------------------------------------------------------


def _onednn_precision():
    """Return the setting that torch has had since 2.9; None before."""
    return getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)


def _global_state():
    """Everything global that a numerical library could leave changed."""
    return {
        "NumPy's generator": pickle.dumps(np.random.get_state()),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "Python's generator": random.getstate(),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "thread pools": {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()},
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "precision of products": (
            torch.get_float32_matmul_precision(),
            _onednn_precision(),
        ),
        "anomaly detection": torch.is_anomaly_enabled(),
        "NumPy's error handling": np.geterr(),
    }


# What a user may have set before: a method has to come back to it, not to a default.
SETTINGS = {
    "gradients": nullcontext,
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


@every_setting
@every_method
def test_no_method_changes_anything_global(fitted, method, setting):
    vae = copy.deepcopy(fitted).set_params(random_state=None)
    # Three threads are nobody's default, so a limit that is not taken back shows.
    with threadpoolctl.threadpool_limits(3), SETTINGS[setting]():
        before = _global_state()
        METHODS[method](vae, X)
        assert _global_state() == before


@every_method
def test_a_method_that_raises_changes_nothing_global(fitted, method, monkeypatch):
    def fail(*args):
        raise MemoryError("in the middle of the work")

    vae = copy.deepcopy(fitted).set_params(random_state=None)
    monkeypatch.setattr("skvae._model.networks.Encoder.forward", fail)
    monkeypatch.setattr("skvae._inference.codes._locations", fail)
    monkeypatch.setattr("skvae._model.networks.Decoder.forward", fail)
    with threadpoolctl.threadpool_limits(3):
        before = _global_state()
        with pytest.raises(MemoryError, match="in the middle of the work"):
            METHODS[method](vae, X)
        assert _global_state() == before


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_is_the_users_during_a_large_fit_and_after(
    precision, error, monkeypatch
):
    def tell(*args):
        seen.append(products_may_be_short())
        assert _onednn_precision() == now
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(products_may_be_short).result()
        if error is not None:
            raise error
        return passed(*args)

    seen, passed = [], VAE.passed
    monkeypatch.setattr(VAE, "passed", tell)
    # Every network is large now, and every processor has the instruction.
    monkeypatch.setattr("skvae._resources.BFLOAT16_WORK", 0.0)
    monkeypatch.setattr("skvae._resources._multiplies_bfloat16", lambda: True)
    torch.set_float32_matmul_precision(precision)
    try:
        before, now = _global_state(), _onednn_precision()
        with nullcontext() if error is None else pytest.raises(error):
            _vae().fit(X)
        assert _global_state() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert any(seen) and not products_may_be_short()


@pytest.mark.parametrize("n_lines", [*range(1, 120, 3), *range(120, 400, 40)])
def test_an_interrupt_at_any_line_leaves_the_limits_as_they_were(fitted, n_lines):
    # The lines that set and restore something, one after the other.
    left = n_lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != _resources.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    vae = copy.deepcopy(fitted)
    with threadpoolctl.threadpool_limits(3):
        before, tracer = _global_state(), sys.gettrace()
        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                vae.score_samples(X)
        finally:
            sys.settrace(tracer)
        assert _global_state() == before
        with ThreadPoolExecutor(1) as pool:  # no lock is left held
            pool.submit(vae.score_samples, X).result(timeout=20)
        assert _global_state() == before


@every_setting
@every_method
def test_a_method_computes_the_same_in_any_gradient_mode(fitted, expected, method, setting):
    with SETTINGS[setting]():
        result = METHODS[method](copy.deepcopy(fitted), X)
    assert_array_equal(result, expected[method])


@every_method
def test_a_method_computes_the_same_under_any_default_dtype(fitted, expected, method):
    torch.set_default_dtype(torch.float64)
    try:
        result = METHODS[method](copy.deepcopy(fitted), X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_array_equal(result, expected[method])


@every_method
def test_a_method_computes_the_same_whatever_the_global_generators_hold(fitted, method):
    results = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(METHODS[method](copy.deepcopy(fitted), X))
    assert_array_equal(*results)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "log_likelihood", "elbo"])
def test_small_work_gets_one_thread(fitted, method, monkeypatch):
    # Waking a second one costs more than it computes, and ten times more on a busy machine.
    def telling(function):
        def tell(*args):
            seen.add(torch.get_num_threads())
            return function(*args)

        return tell

    seen = set()
    vae = copy.deepcopy(fitted)
    monkeypatch.setattr(Encoder, "forward", telling(Encoder.forward))
    monkeypatch.setattr(codes, "_locations", telling(codes._locations))
    with threadpoolctl.threadpool_limits(3):
        METHODS[method](vae, X)
    assert seen == {1}


PINNED = """
import re, torch
from skvae._resources import enough_threads, for_each

def mkl():
    return int(re.search(r"mkl_get_max_threads.. : (\\d+)", torch.__config__.parallel_info())[1])

for n_threads in USERS:
    torch.set_num_threads(n_threads)
    with enough_threads(1.0):
        assert (mkl(), torch.get_num_threads()) == (1, 1)
        with enough_threads(1.0):
            assert (mkl(), torch.get_num_threads()) == (1, 1)
        assert (mkl(), torch.get_num_threads()) == (1, 1)
    assert (mkl(), torch.get_num_threads()) == (n_threads, n_threads)
    seen = set()
    for_each(lambda item: seen.add((mkl(), torch.get_num_threads())), range(50), work=1e12)
    assert seen == {(1, 1)}, seen
    assert (mkl(), torch.get_num_threads()) == (n_threads, n_threads)
"""


@pytest.mark.skipif(
    "mkl_get" not in torch.__config__.parallel_info(), reason="This torch has no MKL."
)
def test_small_work_gets_one_thread_also_after_torch_was_told_a_number():
    # From then on MKL has a number of its own, which threadpoolctl does not reach.
    program = PINNED.replace("USERS", "(2, 3)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mkl_still_follows_openmp_where_torch_was_told_no_number():
    program = """
import re, torch, threadpoolctl
from skvae._resources import enough_threads
with enough_threads(1.0):
    torch.ones(300, 300) @ torch.ones(300, 300)
with threadpoolctl.threadpool_limits(1):
    assert "mkl_get_max_threads() : 1" in torch.__config__.parallel_info()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# -- randomness -----------------------------------------------------------------------------------

# One of each way through a fit. The rows are enough for 500 that are held out from.
FITS = {
    "folds": (60, {}),
    "held-out rows": (520, {}),
    "the last epoch": (60, {"early_stopping": False}),
    "noise per column": (60, {"noise": "per_column"}),
    "importance-weighted": (60, {"objective": "iwae", "n_train_samples": 3}),
    "float64": (60, {"precision": "float64"}),
    "two layers, small batches": (60, {"hidden_layer_sizes": (8, 4), "batch_size": 7}),
    "Bernoulli": (60, {"likelihood": "bernoulli"}),
}


def _rows_for(fit):
    n_rows, params = FITS[fit]
    rows = _rows(n_rows)
    return (rows > 0).astype(float) if params.get("likelihood") == "bernoulli" else rows


@pytest.mark.parametrize("fit", FITS)
def test_two_fits_with_one_random_state_are_bitwise_equal(fit):
    rows, params = _rows_for(fit), FITS[fit][1]
    one, other = (_vae(**params).fit(rows) for _ in range(2))
    assert one.weights_.keys() == other.weights_.keys()
    for name, weight in one.weights_.items():
        assert weight.tobytes() == other.weights_[name].tobytes(), name
    assert one.loss_curve_ == other.loss_curve_
    again = one.fit(rows)
    assert _weights(again).tobytes() == _weights(other).tobytes()


def test_a_random_state_instance_is_a_seed_too():
    one, other = (_vae(random_state=np.random.RandomState(3)).fit(X) for _ in range(2))
    assert_array_equal(_weights(one), _weights(other))


def test_fits_and_samples_without_a_random_state_differ():
    one, other = (_vae(random_state=None, early_stopping=False).fit(X) for _ in range(2))
    assert not np.array_equal(_weights(one), _weights(other))
    assert not np.array_equal(one.sample(3), one.sample(3))


# -- rows of any make -----------------------------------------------------------------------------


def _memory_mapped(X, folder):
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


def _read_only(X, folder):
    X = X.copy()
    X.setflags(write=False)
    return X


LAYOUTS = {
    "read-only": _read_only,
    "memory-mapped": _memory_mapped,
    "negative strides": lambda X, folder: X[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran-ordered": lambda X, folder: np.asfortranarray(X),
    "every second cell": lambda X, folder: np.repeat(np.repeat(X, 2, 0), 2, 1)[::2, ::2],
    "big-endian": lambda X, folder: X.astype(">f8"),
    "lists": lambda X, folder: X.tolist(),
}
# torch warns when it is given memory that it must not write to.
no_warning_of_torch = pytest.mark.filterwarnings("error:The given NumPy array:UserWarning")


@no_warning_of_torch
@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_rows_in_memory_does_not_matter(
    fitted, expected, layout, method, tmp_path
):
    rows = LAYOUTS[layout](X, tmp_path)
    result = METHODS[method](copy.deepcopy(fitted), rows)
    # Not to the last bit: the order of a sum follows the memory.
    assert_allclose(result, expected[method], rtol=1e-6, atol=1e-9)


@every_method
def test_no_method_writes_to_the_rows(fitted, method):
    rows = X.copy()
    METHODS[method](copy.deepcopy(fitted), rows)
    assert rows.tobytes() == X.tobytes()


@pytest.mark.parametrize("fit_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_codes_is_that_of_the_rows_not_of_the_fit(fit_dtype, dtype):
    vae = _vae().fit(X.astype(fit_dtype))
    codes = vae.transform(X.astype(dtype))
    assert codes.dtype == dtype
    assert_allclose(codes, vae.transform(X), rtol=1e-4, atol=1e-5)
    decoded = vae.inverse_transform(codes)
    assert decoded.dtype == dtype
    assert_allclose(decoded, vae.inverse_transform(vae.transform(X)), rtol=1e-4, atol=1e-5)
    assert_allclose(vae.score_samples(X.astype(dtype)), vae.score_samples(X), rtol=1e-3)


def test_integers_are_fitted_as_the_floats_that_they_equal():
    counts = np.round(10 * X)
    expected = _vae().fit(counts)
    for dtype in (np.int8, np.int64, np.float32):
        vae = _vae().fit(counts.astype(dtype))
        assert_array_equal(_weights(vae), _weights(expected))
    assert vae.transform(counts.astype(np.int8)).dtype == np.float64


@pytest.mark.parametrize("fit", FITS)
def test_the_order_of_the_rows_does_not_matter(fit):
    rows, params = _rows_for(fit), FITS[fit][1]
    shuffled = np.random.default_rng(1).permutation(rows)
    expected = _vae(**params).fit(rows)
    assert_array_equal(_weights(_vae(**params).fit(shuffled)), _weights(expected))


@pytest.mark.parametrize("fit", FITS)
def test_repeating_rows_is_the_same_as_weighting_them(fit):
    rows, params = _rows_for(fit), FITS[fit][1]
    times = np.random.default_rng(1).integers(0, 4, len(rows))
    repeated = _vae(**params).fit(np.repeat(rows, times, axis=0))
    weighted = _vae(**params).fit(rows, sample_weight=times)
    assert_array_equal(_weights(weighted), _weights(repeated))
    assert not np.array_equal(_weights(weighted), _weights(_vae(**params).fit(rows)))


# -- a fitted estimator is plain data -------------------------------------------------------------


def _all_within(value, seen=None):
    """Every object that can be reached from ``value``."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen.values()
    seen[id(value)] = value
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, type):
        parts = []
    else:
        parts = list(vars(value).values()) if hasattr(value, "__dict__") else []
        parts += [getattr(value, name) for name in getattr(type(value), "__slots__", ())]
    for part in parts:
        _all_within(part, seen)
    return seen.values()


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("fit", FITS)
def test_an_estimator_holds_no_torch_object(fit, method):
    vae = _vae(**FITS[fit][1])
    getattr(vae, method)(_rows_for(fit))
    kinds = {type(value) for value in _all_within(vars(vae))}
    assert np.ndarray in kinds
    assert {kind for kind in kinds if kind.__module__.partition(".")[0] == "torch"} == set()
    assert b"torch" not in pickle.dumps(vae)


def _through_joblib(vae, folder, mmap_mode=None):
    path = folder / f"{len(list(folder.iterdir()))}.joblib"  # new: the last one may be mapped
    joblib.dump(vae, path)
    return joblib.load(path, mmap_mode=mmap_mode)


COPIES = {
    "pickle": lambda vae, folder: pickle.loads(pickle.dumps(vae)),
    "joblib": _through_joblib,
    "joblib, memory-mapped": lambda vae, folder: _through_joblib(vae, folder, "r"),
    "copy": lambda vae, folder: copy.copy(vae),
    "deepcopy": lambda vae, folder: copy.deepcopy(vae),
    "clone and fit": lambda vae, folder: clone(vae).fit(X),
}


@no_warning_of_torch
@every_method
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_computes_the_same_bits(fitted, expected, kind, method, tmp_path):
    other = COPIES[kind](copy.deepcopy(fitted), tmp_path)
    assert_array_equal(METHODS[method](other, X), expected[method])


MEMORY_MAPPED = {
    "predict": (VAEOutlierDetector, lambda model: model.predict(X)),
    "explain": (VAEOutlierDetector, lambda model: model.score_features(X)),
    "impute": (VAEImputer, lambda model: model.transform(np.where(X > 1.0, np.nan, X))),
    "draw tables": (VAEImputer, lambda model: model.sample_imputations(X, 2, random_state=0)[0]),
    "export": (VAEOutlierDetector, lambda model: _exported(model)),
}


def _exported(model):
    pytest.importorskip("onnx")
    return np.frombuffer(to_onnx(model).SerializeToString(), np.uint8)


@no_warning_of_torch
@pytest.mark.parametrize("name", MEMORY_MAPPED)
def test_estimators_that_have_a_model_compute_the_same_from_mapped_memory(name, tmp_path):
    kind, method = MEMORY_MAPPED[name]
    model = kind(_vae(max_iter=0)).fit(X)
    other = _through_joblib(model, tmp_path, "r")
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else it warns once in a process
    try:
        assert_array_equal(method(other), method(model))
    finally:
        torch.set_warn_always(always)


def test_a_deep_copy_shares_no_memory(fitted):
    before = joblib.hash(vars(fitted))
    other = copy.deepcopy(fitted)
    for weight in other.weights_.values():
        weight[...] = np.nan
    assert joblib.hash(vars(fitted)) == before


def test_two_workers_compute_the_same_bits(fitted):
    with joblib.parallel_config("loky", n_jobs=2):
        results = joblib.Parallel()(joblib.delayed(fitted.transform)(X) for _ in range(4))
        fits = joblib.Parallel()(joblib.delayed(clone(fitted).fit)(X) for _ in range(2))
    for result in results:
        assert_array_equal(result, fitted.transform(X))
    for fit in fits:
        assert_array_equal(_weights(fit), _weights(fitted))


@pytest.mark.parametrize("method", [m for m in METHODS if "fit" not in m])
def test_a_method_that_does_not_fit_leaves_the_estimator_as_it_was(fitted, method):
    vae = copy.deepcopy(fitted)
    before = joblib.hash(vars(vae))
    METHODS[method](vae, X)
    assert joblib.hash(vars(vae)) == before


OTHER_NETWORKS = [
    {"n_components": 3},
    {"hidden_layer_sizes": ()},
    {"activation": "tanh"},
    {"likelihood": "bernoulli"},
    {"noise": "per_column"},
    {"scaling": "common"},
    {"precision": "float64", "max_iter": 0, "random_state": 1},
]


@pytest.mark.parametrize("params", OTHER_NETWORKS, ids=str)
def test_parameters_set_after_a_fit_wait_for_the_next_one(fitted, params):
    vae = copy.deepcopy(fitted).set_params(**params)
    for method in ("transform", "inverse_transform", "log_likelihood", "sample"):
        assert_array_equal(METHODS[method](vae, X), METHODS[method](fitted, X))


# -- going on -------------------------------------------------------------------------------------


def _surface():
    """Rows near a curved surface: there is something to learn beyond the linear start."""
    rng = np.random.default_rng(1)
    t, s = rng.uniform(-2, 2, (300, 1)), rng.normal(size=(300, 1))
    rows = np.hstack([t, s, t**2, np.cos(2 * t), t * s, s**2])
    return rows + 0.1 * rng.normal(size=rows.shape)


def _going_on(n_calls, rows, between=lambda vae: vae, **params):
    """An estimator after ``n_calls`` of partial_fit, and its mean ELBO after each."""
    vae = _vae(**{"learning_rate_init": 0.02, **params})
    scores = []
    for _ in range(n_calls):
        vae = between(vae.partial_fit(rows))
        scores.append(vae.score_samples(rows, method="elbo").mean())
    return vae, scores


def test_calls_of_partial_fit_go_on_from_one_another():
    params = {"hidden_layer_sizes": (16,), "batch_size": 30, "learning_rate_init": 0.05}
    vae, scores = _going_on(15, _surface(), **params)
    assert vae.n_iter_ == len(vae.loss_curve_) == 15
    assert np.mean(vae.loss_curve_[-5:]) < np.mean(vae.loss_curve_[:5]) - 0.2  # nats
    assert scores[-1] > scores[0]


def test_partial_fit_goes_on_when_the_components_change_their_order():
    # Three components of the very same information: chance decides which one comes first.
    rng = np.random.default_rng(0)
    white = np.linalg.qr(rng.normal(size=(200, 6)))[0]
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(200)
    rows = white * [2.0, 2.0, 2.0, 0.5, 0.5, 0.5]
    _, scores = _going_on(12, rows, n_components=3, scaling=None, hidden_layer_sizes=())
    # The start is the optimum; steps leave it by the noise of the gradient alone.
    assert min(scores) > scores[0] - 0.5


def test_calls_of_partial_fit_draw_fresh_noise():
    # With steps this small only the noise can make two calls' losses differ.
    vae, _ = _going_on(2, X, learning_rate_init=1e-30)
    assert vae.loss_curve_[0] != vae.loss_curve_[1]


@pytest.mark.parametrize("kind", [kind for kind in COPIES if kind != "clone and fit"])
def test_partial_fit_goes_on_in_a_copy_as_in_the_original(kind, tmp_path):
    expected, _ = _going_on(4, X)
    vae, _ = _going_on(4, X, between=lambda vae: COPIES[kind](vae, tmp_path))
    assert_array_equal(_weights(vae), _weights(expected))
    assert vae.loss_curve_ == expected.loss_curve_


def test_partial_fit_goes_on_from_a_fit(fitted):
    vae = copy.deepcopy(fitted).set_params(learning_rate_init=1e-12).partial_fit(X)
    assert vae.n_iter_ == fitted.n_iter_ + 1
    assert_allclose(vae.transform(X), fitted.transform(X), rtol=1e-4, atol=1e-6)


def test_a_warm_start_goes_on_where_the_last_fit_ended():
    params = {"early_stopping": False, "learning_rate_init": 0.01, "max_iter": 20}
    cold = _vae(**params).fit(X)
    warm = clone(cold).set_params(warm_start=True).fit(X)
    assert_array_equal(_weights(warm), _weights(cold))
    warm.fit(X)
    assert warm.loss_curve_[20] < cold.loss_curve_[0]
    cold.fit(X)
    assert not np.array_equal(_weights(warm), _weights(cold))


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_warm_start_counts_epochs_on(early_stopping):
    vae = _vae(max_iter=3, early_stopping=early_stopping, warm_start=True).fit(X)
    first = copy.deepcopy(vae)
    vae.fit(X)
    assert (vae.n_iter_, len(vae.loss_curve_)) == (6, 6)
    assert vae.loss_curve_[:3] == first.loss_curve_
    assert vae.best_iter_ in ([*range(4, 7)] if vae.best_iter_ > 3 else [first.best_iter_])
    assert len(vae.validation_scores_) == (7 if early_stopping else 0)
    assert vae.validation_scores_[:4] == first.validation_scores_
    vae.partial_fit(X)
    assert (vae.n_iter_, vae.best_iter_, len(vae.loss_curve_)) == (7, 7, 7)
    assert np.isnan(vae.validation_scores_[7:]).all()  # nothing was held out


@pytest.mark.parametrize("n_rows", [200, 600])  # folds; rows held out
@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_warm_start_after_a_kept_start_does_not_repeat_its_epochs(early_stopping, n_rows):
    noise = np.random.default_rng(0).normal(size=(n_rows, 3))
    vae = _vae(n_components=1, max_iter=2, warm_start=True, early_stopping=early_stopping)
    # With steps this small only what is drawn can make two fits' losses differ.
    vae.set_params(learning_rate_init=1e-30).fit(noise).fit(noise)
    assert set(vae.loss_curve_[:2]).isdisjoint(vae.loss_curve_[2:])


def test_a_warm_start_holds_out_the_same_rows(monkeypatch):
    drawn = []
    some_copies = selection.some_copies

    def told(*args):
        drawn.append(some_copies(*args))
        return drawn[-1]

    monkeypatch.setattr(selection, "some_copies", told)
    rows = np.random.default_rng(0).normal(size=(600, 3))
    _vae(max_iter=1, warm_start=True, learning_rate_init=1e-30).fit(rows).fit(rows)
    assert len(drawn) == 4  # of the most of the rows, and of the wildest, in each fit
    assert_array_equal(drawn[0][0], drawn[2][0])
    assert_array_equal(drawn[1][0], drawn[3][0])


def test_a_warm_start_without_epochs_changes_nothing(fitted):
    vae = copy.deepcopy(fitted).set_params(warm_start=True, max_iter=0).fit(X)
    assert_allclose(vae.transform(X), fitted.transform(X), rtol=1e-12)


def test_a_fit_without_warm_start_forgets_the_last_one(fitted):
    vae = _vae().fit(_rows(n_columns=4, seed=1)).partial_fit(_rows(n_columns=4, seed=2)).fit(X)
    assert_array_equal(_weights(vae), _weights(fitted))
    assert vae.n_features_in_ == 6


# -- a fit that does not end ----------------------------------------------------------------------

FAILURES = {
    "bad rows": (lambda vae: vae.fit(np.full((5, 3), np.inf)), ValueError),
    "a bad parameter": (lambda vae: vae.set_params(beta=-1.0).fit(X), ValueError),
    "a bad weight": (lambda vae: vae.fit(X, sample_weight=-np.ones(len(X))), ValueError),
    "a divergence": (
        lambda vae: vae.set_params(learning_rate_init=1e300, early_stopping=False).fit(X),
        ValueError,
    ),
    "bad rows, partial": (lambda vae: vae.partial_fit(np.full((5, 6), np.inf)), ValueError),
    "other columns, partial": (lambda vae: vae.partial_fit(X[:, :2]), ValueError),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_fit_leaves_the_estimator_as_it_was(fitted, failure):
    call, error = FAILURES[failure]
    vae = copy.deepcopy(fitted)
    with pytest.raises(error):
        call(vae)
    vae.set_params(**fitted.get_params())
    assert joblib.hash(vars(vae)) == joblib.hash(vars(fitted))
    assert_array_equal(vae.transform(X), fitted.transform(X))


def _interrupt_epoch(number, monkeypatch):
    from skvae._training.loop import Run

    epoch, calls = Run.epoch, []

    def interrupted(run, rows):
        calls.append(rows)
        if len(calls) == number:
            raise KeyboardInterrupt
        return epoch(run, rows)

    monkeypatch.setattr(Run, "epoch", interrupted)


@pytest.mark.parametrize("fit", FITS)
def test_an_interrupted_fit_keeps_the_best_weights_so_far(fit, monkeypatch):
    rows, vae = _rows_for(fit), _vae(**FITS[fit][1])
    in_folds = vae.early_stopping and len(rows) < 500  # five of them, in step
    _interrupt_epoch(11 if in_folds else 3, monkeypatch)
    with threadpoolctl.threadpool_limits(3):
        state = _global_state()
        with pytest.warns(ConvergenceWarning, match="interrupted after 2 epochs. The model is"):
            vae.fit(rows)
        assert _global_state() == state
    assert vae.n_iter_ == 2
    best = np.argmax(vae.validation_scores_) if vae.early_stopping else 2
    assert vae.best_iter_ in (0, best)
    assert np.isfinite(vae.score_samples(rows, method="elbo")).all()


def test_a_fit_interrupted_in_its_first_epoch_is_the_linear_start(monkeypatch):
    start = _vae(max_iter=0).fit(X)
    _interrupt_epoch(1, monkeypatch)
    with pytest.warns(ConvergenceWarning, match="after 0 epochs. The model is that of the linear"):
        vae = _vae().fit(X)
    assert_array_equal(vae.transform(X), start.transform(X))


def test_an_interrupted_warm_start_is_no_worse_than_what_it_went_on_from(fitted, monkeypatch):
    vae = copy.deepcopy(fitted).set_params(warm_start=True)
    _interrupt_epoch(1, monkeypatch)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        vae.fit(X)
    assert_allclose(vae.transform(X), fitted.transform(X), rtol=1e-6)


def test_a_fit_interrupted_before_it_trains_leaves_the_estimator_as_it_was(fitted, monkeypatch):
    from skvae import _preparing

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(_preparing, "rows_for", interrupted)
    vae, fresh = copy.deepcopy(fitted), _vae()
    for estimator in (vae, fresh):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X + 1.0)
    assert joblib.hash(vars(vae)) == joblib.hash(vars(fitted))
    with pytest.raises(NotFittedError):
        check_is_fitted(fresh)


def test_an_interrupted_fit_of_a_detector_leaves_it_as_it_was(monkeypatch):
    detector = VAEOutlierDetector(score_method="elbo", random_state=0)
    before = joblib.hash(vars(detector))
    _interrupt_epoch(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(_rows(n_rows=600))
    assert joblib.hash(vars(detector)) == before


def test_an_interrupted_partial_fit_leaves_the_last_one_as_it_was(fitted, monkeypatch):
    vae = copy.deepcopy(fitted)
    _interrupt_epoch(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        vae.partial_fit(X + 1.0)
    assert joblib.hash(vars(vae)) == joblib.hash(vars(fitted))


class Interrupt:
    """A callback that is interrupted at the end of the first epoch."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            raise KeyboardInterrupt


def test_a_fit_interrupted_in_a_callback_keeps_the_best_weights_so_far():
    pytest.importorskip(
        "sklearn.callback", reason="This scikit-learn has no callbacks: they came with 1.9."
    )
    vae = _vae().set_callbacks(Interrupt())
    with pytest.warns(ConvergenceWarning, match=r"interrupted after 1 epoch\."):
        vae.fit(X)
    assert vae.n_iter_ == 1
    assert vae.transform(X).shape == (len(X), vae.n_components_)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_fit_that_ends_in_weights_that_are_not_finite_raises(method):
    # The only step of the only epoch diverges, after that epoch's bound was measured.
    vae = _vae(max_iter=1, early_stopping=False, learning_rate_init=1e300)
    with pytest.raises(ValueError, match="The bound became infinite or nan in epoch 1"):
        getattr(vae, method)(X)
    with pytest.raises(NotFittedError):
        vae.transform(X)


# -- readers in other threads ---------------------------------------------------------------------

READERS = {
    "transform": lambda vae: vae.transform(X),
    "round trip": lambda vae: vae.sample(5, random_state=0),
    "score_samples": lambda vae: vae.score_samples(X[:40], method="elbo"),
    "score_features": lambda vae: vae.score_features(X[:40]),
    "predict": lambda detector: detector.predict(X),
    "p_values": lambda detector: detector.p_values(X),
    "imputed": lambda imputer: imputer.transform(HOLED),
}
HOLED = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)


def _once():
    return _vae(max_iter=1, early_stopping=False)


REFITTED = {
    "predict": lambda: VAEOutlierDetector(_once(), random_state=0),
    "p_values": lambda: VAEOutlierDetector(_once(), random_state=0),
    "imputed": lambda: VAEImputer(_vae(max_iter=1)),
}


@pytest.fixture
def switching():
    """Threads take turns fifty times as often: a fit waited minutes for a reader that never rests.

    And the reader comes in between more of its lines.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 50)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switching")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_sees_the_old_model_or_the_new_one_never_a_mixture(reader):
    from concurrent.futures import ThreadPoolExecutor

    read, estimator = READERS[reader], REFITTED.get(reader, lambda: _vae(max_iter=1))()
    tables = [HOLED[::2], 30.0 * HOLED[1::2] + 5.0] if reader == "imputed" else [X, 30.0 * X[::3]]
    expected = [read(clone(estimator).fit(table)) for table in tables]
    assert not np.array_equal(*expected)
    estimator.fit(tables[0])

    def refit():
        for _ in range(3):
            for table in reversed(tables):
                estimator.fit(table)

    with ThreadPoolExecutor(1) as pool:
        fits, reads = pool.submit(refit), 0
        while not fits.done() or reads == 0:
            found, reads = read(estimator), reads + 1
            assert any(np.array_equal(found, one) for one in expected)
        fits.result()


@pytest.mark.usefixtures("switching")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_in_another_thread_to_other_columns_is_a_clear_error_or_nothing():
    from concurrent.futures import ThreadPoolExecutor

    vae = _vae(max_iter=1).fit(X)
    expected = vae.transform(X)

    def refit():
        for _ in range(3):
            vae.fit(X[:, :3])
            vae.fit(X)

    with ThreadPoolExecutor(1) as pool:
        fits = pool.submit(refit)
        while not fits.done():
            try:
                assert_array_equal(vae.transform(X), expected)
            except ValueError as error:
                assert "has 6 features, but VAETransformer is expecting 3" in str(error)
        fits.result()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", [_vae, *dict.fromkeys(REFITTED.values())])
def test_reading_changes_nothing_that_is_stored(make):
    estimator = make().fit(HOLED)
    before = joblib.hash(estimator), pickle.dumps(estimator)
    for method in ("transform", "score_samples", "predict", "score_features", "sample"):
        if hasattr(estimator, method):
            getattr(estimator, method)(*([3] if method == "sample" else [HOLED]))
    assert (joblib.hash(estimator), pickle.dumps(estimator)) == before


def test_a_list_of_sizes_may_be_changed_after_the_fit():
    sizes = [8]
    vae = _vae(hidden_layer_sizes=sizes).fit(X)
    expected = vae.score_samples(X[:5])
    sizes.append(4)
    assert_array_equal(vae.score_samples(X[:5]), expected)
    with pytest.raises(ValueError, match="'hidden_layer_sizes' parameter was"):
        vae.partial_fit(X)
