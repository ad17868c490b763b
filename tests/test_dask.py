"""A Dask cluster fits the model that a process alone fits, whoever has which rows, and dies."""

import os
import pickle
import signal
import time

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from test_distributed import SIZES, frames, weights

pytest.importorskip("distributed")
import dask
import dask.array as da
import dask.dataframe as dd
from distributed import Client, LocalCluster

from skvae import VAETransformer
from skvae._callbacks import Listeners
from skvae._cluster import watching
from skvae.dask import DaskVAETransformer
from skvae.distributed import fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Sending large graph"),
]
PARAMETERS = {"n_components": 2, "max_iter": 3, "random_state": 0, "batch_size": 300}


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set({"distributed.logging.distributed": "critical"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def collection():
    """The parts, of which one has no row and one has levels that the others lack."""
    parts = [dask.delayed(part) for part in frames()]
    return dd.from_delayed(parts, meta=frames()[0].head(0), verify_meta=False)


@pytest.fixture(scope="module")
def alone():
    return fit(VAETransformer(**PARAMETERS), frames(), n_shards=4)


def on(client, **more):
    return DaskVAETransformer(**PARAMETERS | {"n_shards": 4, "client": client} | more)


def test_one_worker_fits_bit_for_bit_what_a_process_alone_fits(client, alone):
    vae = on(client, n_workers=1).fit(collection())
    assert_array_equal(weights(vae), weights(alone))
    assert vae.validation_scores_ == alone.validation_scores_
    assert vae.loss_curve_ == alone.loss_curve_
    assert vae.model_.schema.columns[4].levels == ("x", "y", "z")
    assert list(vae.feature_names_in_) == ["a", "b", "c", "d", "town"]


def test_two_workers_fit_the_same_model_of_persisted_rows_too(client, alone):
    vae = on(client).fit(collection())
    assert_allclose(weights(vae), weights(alone), rtol=1e-6, atol=1e-7)
    kept = client.persist(collection())
    assert_array_equal(weights(on(client).fit(kept)), weights(vae))


def test_segments_leave_no_trace(client, alone):
    vae = on(client, n_workers=1, checkpoint_every=0.05).fit(collection())
    assert_array_equal(weights(vae), weights(alone))
    assert vae.loss_curve_ == alone.loss_curve_


# -- workers that are lost ------------------------------------------------------------------------


def lose(client, monkeypatch, which, sign=signal.SIGKILL, at=1):
    """Let a worker be killed when the client hears of an epoch; return what has been killed."""
    hear, lost = Listeners.hear, []

    def hearing(self, epoch, fitted):
        if epoch.number == at and not lost:
            pids = client.run(os.getpid)
            lost.append(pids[sorted(pids)[which]])
            os.kill(lost[0], sign)
        return hear(self, epoch, fitted)

    monkeypatch.setattr(Listeners, "hear", hearing)
    return lost


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_dies_costs_a_segment(client, alone, monkeypatch, which):
    client.wait_for_workers(2)
    lost = lose(client, monkeypatch, which)
    with pytest.warns(RuntimeWarning, match="The fit on the cluster goes on after a loss: "):
        vae = on(client, checkpoint_every=0.0).fit(collection())
    assert lost
    assert_allclose(weights(vae), weights(alone), rtol=1e-6, atol=1e-7)
    assert_allclose(vae.loss_curve_, alone.loss_curve_, rtol=1e-6)
    client.wait_for_workers(2)
