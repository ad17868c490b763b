"""Memory and work grow with the rows as they must: a copy of the encoded rows, each row once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import skvae._training.loop
from skvae import VAEOutlierDetector, VAETransformer
from skvae._table.columns import Columns

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*inactive:UserWarning"),
]

# -- memory ---------------------------------------------------------------------------------------

PEAKS = """
import json, os, sys, warnings
from pathlib import Path
import numpy as np
from skvae import VAEOutlierDetector, VAETransformer
from skvae._inference import aggregate

warnings.simplefilter("ignore")
aggregate.MAX_KERNELS = 1000  # of 4,000, for time: their memory does not grow with the rows
vae = VAETransformer(2, hidden_layer_sizes=(64,), max_iter=1, random_state=0, batch_size=512,
                     n_importance_samples=2)
detector = VAEOutlierDetector(vae, random_state=0)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def holes(X):
    X[::7, 3] = np.nan
    return X

CALLS = {
    "fit": (vae.fit, np.asarray),
    "fit, values are missing": (vae.fit, holes),
    "fit, float64": (vae.fit, np.float64),
    "fit, detector": (detector.fit, np.asarray),
    "transform": (vae.transform, np.asarray),
    "inverse_transform": (lambda X: vae.inverse_transform(X[:, :2]), np.asarray),
    "sample": (lambda X: vae.sample(len(X)), np.asarray),
    "score_features": (vae.score_features, np.asarray),
}
for method in ("elbo", "reconstruction", "kl"):
    CALLS[method] = (lambda X, method=method: vae.score_samples(X, method=method), np.asarray)

def beyond(call, X):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    result = call(X)
    return status("VmHWM") - before - getattr(result, "nbytes", 0)

def peaks(n_rows):
    for name, (call, make) in CALLS.items():
        X = make(np.random.default_rng(0).standard_normal((n_rows, 40), dtype=np.float32))
        yield name, beyond(call, X) / X.nbytes * n_rows
        if name.startswith("fit, values"):
            vae.fit(X[:1000] * np.float32(2.0))

for n_rows in sys.argv[1:]:
    if os.fork() == 0:  # each begins alike
        dict(peaks(500))  # loads what is loaded but once
        print(json.dumps(dict(peaks(int(n_rows)))), flush=True)
        os._exit(0)
    os.wait()
"""
N_FEW, N_MANY = 20_000, 140_000

# Bytes beyond the input and the result for each byte of further rows: what is measured, and about
# a quarter for the allocator. The rest of a call's memory is the same for any number of rows.
ALLOWED = {
    "fit": 1.3,  # the encoded rows, whose order and weights take the place of freed ones, 1.05
    "fit, values are missing": 1.4,  # and which cells are observed
    "fit, float64": 1.65,  # the rows that differ, in order, 1.0; encoded in float32 0.5
    # The rows that differ, in a random order, 1.0; the same encoded, in part meanwhile.
    "fit, detector": 1.6,
    "transform": 0.25,
    "inverse_transform": 0.4,  # the codes in float64
    "sample": 0.4,  # the codes in float64
    "score_features": 0.25,
    "elbo": 0.3,
    "reconstruction": 0.3,
    "kl": 0.25,
}


@pytest.fixture(scope="module")
def growth():
    """Bytes of the peak for each byte of further rows."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("This system does not let a process measure its peak anew.")
    # Large arrays go back to the system at once, so that a peak is one.
    large = {f"MALLOC_{name}_THRESHOLD_": str(2**20) for name in ("MMAP", "TRIM")}
    environment = {**os.environ, **large, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAKS, str(N_MANY), str(N_FEW)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    most, least = map(json.loads, done.stdout.splitlines())
    return {name: (most[name] - least[name]) / (N_MANY - N_FEW) for name in most}


def test_every_call_has_its_bound(growth):
    assert set(growth) == set(ALLOWED)


@pytest.mark.parametrize("call", ALLOWED)
def test_memory_beyond_the_rows_grows_by_no_more_than_is_said(growth, call):
    assert growth[call] < ALLOWED[call]


# -- rows that are visited ------------------------------------------------------------------------


def _rows(n_rows):
    return np.random.default_rng(0).normal(size=(n_rows, 5))


def _vae(**params):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0}
    return VAETransformer(**{**small, "n_importance_samples": 4, **params})


@pytest.fixture
def encoded(monkeypatch):
    """Collects the number of rows of each chunk that is encoded."""
    chunks = []
    encode = Columns.encode

    def counted(self, X):
        chunks.append(X.shape[0])
        return encode(self, X)

    monkeypatch.setattr(Columns, "encode", counted)
    return chunks


# Every method that takes rows and does not fit; transform goes its own way (test_codes.py).
SCORES = {
    "log_likelihood": lambda vae, X: vae.score_samples(X),
    "elbo": lambda vae, X: vae.score_samples(X, method="elbo"),
    "reconstruction": lambda vae, X: vae.score_samples(X, method="reconstruction"),
    "kl": lambda vae, X: vae.score_samples(X, method="kl"),
    "score_features": lambda vae, X: vae.score_features(X),
}


@pytest.mark.parametrize("n_rows", [1, 5000, 9000])
@pytest.mark.parametrize("method", SCORES)
def test_a_score_encodes_each_row_once_and_no_more_than_a_chunk_at_a_time(method, n_rows, encoded):
    vae = _vae(max_iter=0).fit(_rows(50))
    encoded.clear()
    assert len(SCORES[method](vae, _rows(n_rows))) == n_rows
    assert sum(encoded) == n_rows
    assert max(encoded) <= 4096


def test_a_detectors_score_encodes_each_row_once(encoded):
    detector = VAEOutlierDetector(_vae(), random_state=0).fit(_rows(300))
    encoded.clear()
    detector.score_samples(_rows(5000))
    assert sum(encoded) == 5000


def _visited(monkeypatch, n_rows, **params):
    """Numbers of rows of the steps of a fit."""
    sizes = []
    batches = skvae._training.loop.batches

    def counted(*args):
        for batch in batches(*args):
            sizes.append(len(batch.x))
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(skvae._training.loop, "batches", counted)
        _vae(batch_size=128, n_iter_no_change=100, **params).fit(_rows(n_rows))
    return sizes


def test_an_epoch_visits_each_training_row_once(monkeypatch):
    assert sum(_visited(monkeypatch, 2000, early_stopping=False)) == 3 * 2000
    kept = sum(_visited(monkeypatch, 2000)) / 3  # a tenth is held out, and half of the wildest
    assert 0.88 * 2000 < kept < 0.91 * 2000


def test_steps_are_as_many_as_batches_of_the_rows(monkeypatch):
    for n_rows in (2000, 4000, 8000):
        sizes = _visited(monkeypatch, n_rows, early_stopping=False)
        assert len(sizes) == 3 * -(-n_rows // 128)
        assert max(sizes) == 128


@pytest.mark.parametrize("make", [_vae, lambda: VAEOutlierDetector(_vae(), random_state=0)])
def test_twice_the_rows_are_encoded_at_most_twice_as_often_in_a_fit(make, encoded):
    passes = []
    for n_rows in (6000, 12000):
        encoded.clear()
        make().fit(_rows(n_rows))
        passes.append(sum(encoded) / n_rows)
    assert passes[1] <= passes[0]
