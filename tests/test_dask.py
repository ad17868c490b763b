"""A Dask cluster fits the model that a process alone fits, whoever has which rows, and dies."""

import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone
from test_distributed import SIZES, frames, weights
from test_own_kinds import TwoGaussians

pytest.importorskip("distributed")
import dask
import dask.array as da
import dask.dataframe as dd
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._callbacks import SUPPORTED, Listeners
from skvae._cluster import watching
from skvae.dask import DaskVAEImputer, DaskVAEOutlierDetector, DaskVAETransformer
from skvae.distributed import fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Sending large graph"),
]
LONG = {"max_iter": 40, "early_stopping": False}
PARAMETERS = {"n_components": 2, "max_iter": 3, "random_state": 0, "batch_size": 300}


@pytest.fixture(scope="module")
def client():
    # Workers begin with what they need: else each imports torch, which takes longer than most fits.
    # On a busy machine it took so long that a worker seemed frozen. The first use of Dask's context
    # sets a list of Dask's own, so ours comes after it.
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        preload = ["distributed", "pandas", "skvae._cluster.workers"]
        get_mp_context().set_forkserver_preload(preload)
    with (
        patch.dict(os.environ),  # in which a nanny sets threads for its workers, and leaves them
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
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


@pytest.fixture(scope="module")
def long_alone():
    """Of a fit that takes seconds: a worker can be lost while it trains."""
    return fit(VAETransformer(**PARAMETERS | LONG), frames(), n_shards=4)


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


def test_uneven_parts_are_fitted_as_by_a_process_alone(client):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(35_801, 5)), columns=list("abcde"))
    X["e"] += X["a"]
    ends = np.cumsum([30_000, 5_000, 1, 0, 800])
    parts = [X[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    rows = dd.from_delayed([dask.delayed(part) for part in parts])
    few = {"max_iter": 1, "hidden_layer_sizes": (16,)}
    expected = fit(VAETransformer(**PARAMETERS | few), parts, n_shards=4)
    vae = on(client, **few).fit(rows)
    assert_allclose(weights(vae), weights(expected), rtol=1e-6, atol=1e-7)


def test_files_that_dask_reads_together_stay_the_partitions_that_the_user_sees(client, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        part = pd.DataFrame(rng.normal(size=(200, 4)), columns=list("abcd"))
        part["b"] += part["a"]
        part.to_parquet(tmp_path / f"{number}.parquet")
    rows = dd.read_parquet(tmp_path)
    few, weight = rows[["a", "b"]], rows["d"].abs()
    assert (weight.npartitions, weight.optimize().npartitions) == (4, 2)
    kept = client.persist(rows)
    expected = on(client, n_shards=4).fit(kept[["a", "b"]], sample_weight=kept["d"].abs())
    assert_array_equal(
        weights(on(client, n_shards=4).fit(few, sample_weight=weight)), weights(expected)
    )


def test_more_workers_than_partitions_fit_the_same(client):
    X = np.random.default_rng(0).normal(size=(2_000, 4))
    X[:, 2:] += X[:, :2]
    expected = fit(VAETransformer(**PARAMETERS), [X], n_shards=2)
    vae = on(client, n_shards=2, n_workers=2).fit(da.from_array(X, chunks=(2_000, 4)))
    assert_allclose(weights(vae), weights(expected), rtol=1e-6, atol=1e-7)


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
def test_a_worker_that_dies_costs_a_segment(client, long_alone, monkeypatch, which):
    client.wait_for_workers(2, timeout=120)
    lost = lose(client, monkeypatch, which)
    with pytest.warns(RuntimeWarning, match="The fit on the cluster goes on after a loss: "):
        vae = on(client, checkpoint_every=0.5, **LONG).fit(collection())
    assert lost
    assert_allclose(weights(vae), weights(long_alone), rtol=1e-6, atol=1e-7)
    assert_allclose(vae.loss_curve_, long_alone.loss_curve_, rtol=1e-6)
    client.wait_for_workers(2, timeout=120)


def test_the_only_worker_may_die(client, long_alone, monkeypatch):
    client.wait_for_workers(2, timeout=120)
    lost = lose(client, monkeypatch, 0)
    with pytest.warns(RuntimeWarning, match="The fit on the cluster goes on after a loss: "):
        vae = on(client, n_workers=1, checkpoint_every=0.5, **LONG).fit(collection())
    assert lost
    assert_array_equal(weights(vae), weights(long_alone))  # whoever trains, the steps are the same
    client.wait_for_workers(2, timeout=120)


def test_after_max_restarts_an_error_says_what_was_lost(client, monkeypatch):
    client.wait_for_workers(2, timeout=120)
    lose(client, monkeypatch, 0)
    vae = on(client, max_restarts=0, **LONG)
    said = r"The fit was lost 1 times, and max_restarts is 0: .*Look into the logs of the workers"
    with pytest.raises(RuntimeError, match=said):
        vae.fit(collection())
    assert not hasattr(vae, "model_")
    client.wait_for_workers(2, timeout=120)


def test_a_frozen_worker_is_passed_over(client, long_alone, monkeypatch):
    client.wait_for_workers(2, timeout=120)
    monkeypatch.setattr(watching, "A_STEP", timedelta(seconds=12))
    monkeypatch.setattr(watching, "QUIET", 6.0)
    lost = lose(client, monkeypatch, 0, signal.SIGSTOP)
    try:
        with pytest.warns(RuntimeWarning) as said:
            vae = on(client, checkpoint_every=0.5, **LONG).fit(collection())
    finally:
        with suppress(ProcessLookupError):  # the worker was started again
            os.kill(lost[0], signal.SIGCONT)
    told = " ".join(str(one.message) for one in said)
    assert "The fit on the cluster goes on after a loss: " in told
    assert_allclose(weights(vae), weights(long_alone), rtol=1e-6, atol=1e-7)
    client.wait_for_workers(2, timeout=120)


def test_two_fits_at_once_both_end(client, alone):
    client.wait_for_workers(2, timeout=120)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(on(client).fit, collection()) for _ in range(2)]
        for one in both:
            assert_allclose(weights(one.result(60)), weights(alone), rtol=1e-6, atol=1e-7)


# -- rows -----------------------------------------------------------------------------------------


def test_methods_for_rows_are_lazy_and_those_of_the_local_estimator(client, alone):
    vae = on(client).fit(collection())
    local = vae.to_local()
    assert type(local) is VAETransformer
    whole = pd.concat(frames())
    Z = vae.transform(collection())
    assert isinstance(Z, dd.DataFrame)
    names = pd.Index(["daskvaetransformer0", "daskvaetransformer1"], dtype=object)
    expected = pd.DataFrame(local.transform(whole), whole.index, names)
    pd.testing.assert_frame_equal(Z.compute(), expected)
    scores = vae.score_samples(collection(), method="elbo")
    expected = pd.Series(local.score_samples(whole, method="elbo"), whole.index)
    pd.testing.assert_series_equal(scores.compute(), expected)
    back = vae.inverse_transform(Z)
    assert list(back.columns) == list(whole.columns)
    expected = local.inverse_transform(Z.compute().to_numpy()).set_axis(whole.index)
    pd.testing.assert_frame_equal(back.compute(), expected)
    shares = vae.score_features(collection())
    expected = pd.DataFrame(local.score_features(whole), whole.index, list(whole.columns))
    pd.testing.assert_frame_equal(shares.compute(), expected, check_column_type=False)
    few = collection().partitions[1:]
    assert vae.score(few) == pytest.approx(local.score(few.compute()), abs=1e-9)
    assert_array_equal(vae.transform(whole), local.transform(whole))  # rows in memory
    assert_array_equal(vae.sample(3, random_state=0), local.sample(3, random_state=0))


def test_arrays_in_blocks_of_columns_too(client):
    X = np.random.default_rng(0).normal(size=(900, 4)) @ np.diag([1.0, 2.0, 3.0, 4.0])
    blocks = da.from_array(X, chunks=(400, 3))
    vae = on(client, n_shards=2).fit(blocks)
    expected = fit(VAETransformer(**PARAMETERS), [X[:400], X[400:800], X[800:]], n_shards=2)
    assert_allclose(weights(vae), weights(expected), rtol=1e-6, atol=1e-7)
    local = vae.to_local()
    Z = vae.transform(blocks)
    assert isinstance(Z, da.Array) and Z.shape == (900, 2)
    assert_allclose(Z.compute(), local.transform(X), rtol=1e-12)
    assert_allclose(vae.score_samples(blocks).compute(), local.score_samples(X), rtol=1e-9)
    assert_allclose(
        vae.inverse_transform(Z).compute(), local.inverse_transform(local.transform(X)), rtol=1e-9
    )
    unknown = dd.from_pandas(pd.DataFrame(X), npartitions=2).to_dask_array()  # of unknown lengths
    assert_allclose(vae.transform(unknown).compute(), local.transform(X), rtol=1e-12)


def test_weights_count(client):
    rng = np.random.default_rng(0)
    counts = [rng.integers(0, 3, size).astype(float) for size in SIZES]
    weight = da.concatenate([da.from_array(one, chunks=-1) for one in counts if len(one)])
    rows = dd.concat([one for n, one in enumerate(collection().partitions) if SIZES[n]])
    vae = on(client, n_workers=1).fit(rows, sample_weight=weight)
    parts = [part for part in frames() if len(part)]
    expected = fit(
        VAETransformer(**PARAMETERS), parts, sample_weight=np.concatenate(counts), n_shards=4
    )
    assert_array_equal(weights(vae), weights(expected))
    said = r"sample_weight must have as many partitions as X\. Got 1 for 4"
    with pytest.raises(ValueError, match=said):
        on(client).fit(rows, sample_weight=weight.rechunk(-1))
    with pytest.raises(ValueError, match="row for row: the one here has 500 weights for 3000 rows"):
        on(client).fit(rows, sample_weight=weight.rechunk(((500, 3000, 1, 80),)))
    with pytest.raises(TypeError, match="sample_weight must be a Dask Array or Series"):
        on(client).fit(rows, sample_weight=weight.compute())
    with pytest.raises(ValueError, match="4 partitions have none of a weight above 0"):
        on(client).fit(rows, sample_weight=0.0 * weight)
    with pytest.raises(ValueError, match=r"finite numbers that are not below 0\. Got -"):
        on(client).fit(rows, sample_weight=-weight - 1.0)


def fails(part):
    if len(part) == 500:
        raise KeyError("no such thing")
    return part


def test_an_error_in_a_partition_comes_out_as_itself(client):
    vae = on(client)
    with pytest.raises(KeyError, match="no such thing"):
        vae.fit(collection().map_partitions(fails, meta=frames()[0].head(0)))
    infinite = collection().map_partitions(
        lambda part: part.assign(a=np.inf) if len(part) == 500 else part, meta=frames()[0].head(0)
    )
    with pytest.raises(ValueError, match="Column 'a' needs finite numbers; row 0 holds") as raised:
        vae.fit(infinite)
    assert "In partition 1 of X, on the worker tcp://" in " ".join(raised.value.__notes__)
    with pytest.raises(ValueError, match="X must have rows, and its 1 partitions have none at all"):
        vae.fit(collection().partitions[3])
    assert not hasattr(vae, "model_")


def test_what_is_not_admissible_is_said_before_anything_is_computed(client):
    with pytest.raises(
        TypeError, match=r"X must be a Dask DataFrame.*Got pandas's DataFrame instead\. To fit"
    ):
        on(client).fit(frames()[0])
    with pytest.raises(TypeError, match=r"Got dask's Array of 1 dimensions instead"):
        on(client).fit(da.ones(10))
    for name, value in [("n_shards", 0), ("n_workers", 0.5), ("max_restarts", -1)]:
        with pytest.raises(ValueError, match=f"'{name}' parameter of DaskVAETransformer must be"):
            on(client, **{name: value}).fit(collection())
    with pytest.raises(TypeError, match=r"or an estimator of skvae\.dask, such as Dask"):
        VAETransformer().fit(collection())


def test_parameters_are_those_of_the_local_estimator_and_of_the_cluster(client):
    vae = DaskVAETransformer(3, beta=2.0, client=client, max_restarts=5)
    own = set(vae.get_params()) - set(VAETransformer().get_params())
    assert own == {"client", "n_shards", "n_workers", "max_restarts", "checkpoint_every"}
    again = clone(vae)
    assert again.client is client and again.get_params() == vae.get_params()
    assert pickle.loads(pickle.dumps(vae)).client is None
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        DaskVAETransformer(nothing=1)


def test_files_are_of_the_local_estimator(client, tmp_path):
    pytest.importorskip("onnx")
    vae = on(client, max_iter=0).fit(collection())
    with pytest.raises(TypeError, match="save what its to_local"):
        skvae.save(vae, tmp_path / "model.skvae")
    with pytest.raises(TypeError, match="convert what its to_local"):
        skvae.to_onnx(vae)
    skvae.save(vae.to_local(), tmp_path / "model.skvae")
    rows = pd.concat(frames())
    assert_allclose(skvae.load(tmp_path / "model.skvae").transform(rows), vae.transform(rows))


def test_a_detector_fitted_by_a_worker_scores_lazily(client):
    whole = pd.concat(frames())
    detector = DaskVAEOutlierDetector(random_state=0, client=client).fit(collection())
    expected = VAEOutlierDetector(random_state=0).fit(whole)
    assert detector.offset_ == pytest.approx(expected.offset_, abs=1e-9)
    rows = collection().partitions[1:]
    few = rows.compute()
    for method in ("score_samples", "decision_function", "p_values", "predict"):
        found = getattr(detector, method)(rows).compute()
        assert found.index.equals(few.index)
        assert_allclose(found, getattr(expected, method)(few), rtol=1e-9, atol=1e-12)
        assert_allclose(getattr(detector, method)(few), found)  # rows in memory
    assert type(detector.to_local()) is VAEOutlierDetector
    assert detector.get_params()["vae"] is None
    with pytest.raises(ValueError, match=r"predict with fdr=0\.1 looks at all rows together"):
        DaskVAEOutlierDetector(fdr=0.1, client=client).fit_predict(rows)
    with pytest.raises(ValueError, match="its 1 partitions have none at all"):
        detector.fit(collection().partitions[3])


def test_a_detector_whose_worker_is_lost_says_so(client, monkeypatch):
    def lost(*arguments):
        raise watching.Lost("the worker tcp://a has ended")

    monkeypatch.setattr(watching.Cluster, "wait", lost)
    with pytest.raises(RuntimeError, match="The worker that fitted was lost: the worker tcp://a"):
        DaskVAEOutlierDetector(client=client).fit(collection())


def test_an_imputer_fitted_by_a_worker_fills_lazily(client, monkeypatch):
    rows = collection().partitions[1:]
    few = rows.compute()
    imputer = DaskVAEImputer({"max_iter": 0}, random_state=0, client=client)
    filled = imputer.fit(rows).transform(rows)
    expected = VAEImputer({"max_iter": 0}, random_state=0).fit(few)
    pd.testing.assert_frame_equal(filled.compute(), expected.transform(few))
    pd.testing.assert_frame_equal(imputer.transform(few), expected.transform(few))
    monkeypatch.setattr("skvae._by_parts.most_rows", lambda n_columns: 100)
    with pytest.warns(UserWarning, match="VAEImputer is fitted to one in 6 of the 581 rows of X"):
        imputer.fit(rows)
    expected = VAEImputer({"max_iter": 0}, random_state=0).fit(few.iloc[::6])
    pd.testing.assert_frame_equal(imputer.transform(few), expected.transform(few))


def test_without_a_cluster_an_error_says_how_to_get_one(monkeypatch):
    def none():
        raise ValueError("No clients found")

    monkeypatch.setattr("distributed.get_client", none)
    with pytest.raises(ValueError, match="DaskVAEImputer needs a Dask cluster, and there is no"):
        DaskVAEImputer().fit(collection())


# -- who is told of a fit -------------------------------------------------------------------------


def test_progress_reaches_the_client(client, capsys):
    on(client, verbose=2).fit(collection())
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in said] == [
        "[DaskVAETransformer] linear start",
        "[DaskVAETransformer] epoch 1 of at most 3",
        "[DaskVAETransformer] epoch 2 of at most 3",
        "[DaskVAETransformer] epoch 3 of at most 3",
        "[DaskVAETransformer] kept epoch 3 after 3 epochs",
    ]


class Stops:
    """A callback that stops a fit after an epoch, and looks at the model of each."""

    def __init__(self, after):
        self.after, self.found = after, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        self.found.append("down")

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.parent is None:
            return False
        if self.after is None:
            raise KeyError("odd")
        self.found.append(fitted_estimator.score(frames()[1]))
        return len(self.found) == self.after


@pytest.mark.skipif(not SUPPORTED, reason="scikit-learn 1.9 has callbacks")
def test_callbacks_look_on_and_stop_the_fit(client):
    stops = Stops(2)
    vae = on(client, max_iter=5).set_callbacks(stops).fit(collection())
    assert vae.n_iter_ == 2
    *scores, last = stops.found
    assert last == "down" and np.isfinite(scores).all() and scores[0] != scores[1]
    again = on(client).set_callbacks(Stops(None))
    with pytest.raises(KeyError, match="odd"):
        again.fit(collection())
    assert not hasattr(again, "model_")


@pytest.mark.parametrize("checkpoint_every", [0.01, 60.0])
def test_an_interrupt_keeps_the_best_so_far(client, alone, checkpoint_every, monkeypatch):
    hear, told = Listeners.hear, []

    def hearing(self, epoch, fitted):
        told.append(epoch.number)
        if epoch.number == 2:
            raise KeyboardInterrupt
        return hear(self, epoch, fitted)

    monkeypatch.setattr(Listeners, "hear", hearing)
    with pytest.warns(UserWarning, match="interrupted"):
        vae = on(client, max_iter=500, checkpoint_every=checkpoint_every).fit(collection())
    assert 1 <= vae.n_iter_ < 400
    assert told[:3] == [0, 1, 2]


def test_an_interrupt_of_the_reading_leaves_everything(client, monkeypatch):
    vae = on(client)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.Cluster, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vae.fit(collection())
    assert not hasattr(vae, "model_")


def test_a_cluster_without_workers_is_told_of(client, monkeypatch):
    monkeypatch.setattr(watching, "A_WORKER", 0.2)
    cluster = watching.Cluster(client)
    monkeypatch.setattr(cluster, "workers", dict)
    with pytest.raises(RuntimeError, match="The cluster has had no worker that answers for 0 s"):
        cluster.answering()


@pytest.mark.parametrize("nanny", ["tcp://nanny", None])
def test_a_worker_that_does_not_answer_is_started_again_or_taken_out(client, nanny, monkeypatch):
    done = []
    cluster = watching.Cluster(client)
    found = {"tcp://a": {"nanny": nanny, "status": "running"}}
    monkeypatch.setattr(cluster, "workers", lambda: found)
    monkeypatch.setattr(cluster, "ages", lambda: {"tcp://a": 200.0})
    monkeypatch.setattr(client, "restart_workers", lambda which, **how: done.append(which))
    monkeypatch.setattr(client, "run_on_scheduler", lambda function: done.append("removed"))
    said = "The worker tcp://a has not answered for 120 s. It is started again, or taken out of"
    with pytest.warns(RuntimeWarning, match=said), pytest.raises(watching.Lost, match="tcp://a"):
        cluster.wait([client.submit(time.sleep, 1, pure=False)], ["tcp://a"])
    assert done == [["tcp://a"] if nanny else "removed"]


def test_workers_are_not_started_again_forever(client, monkeypatch):
    done = []
    cluster = watching.Cluster(client)
    monkeypatch.setattr(watching, "PULSE", 0.0)
    monkeypatch.setattr(cluster, "workers", lambda: {"tcp://a": {"nanny": "tcp://nanny"}})
    monkeypatch.setattr(cluster, "ages", lambda: {"tcp://a": 200.0})
    monkeypatch.setattr(client, "restart_workers", lambda which, **how: done.append(which))
    task = client.submit(len, "", pure=False, resources={"none has it": 1})
    said = "Workers were started again 4 times, because they did not answer for 120 s"
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=said):
        cluster.wait([task])
    task.cancel()
    assert len(done) == 4


class Partial:
    """A task whose worker does not hand out what it has found."""

    status, n_asked = "finished", 0

    def result(self, timeout):
        self.n_asked += 1
        raise TimeoutError


def test_a_result_that_is_not_handed_out_is_lost(client, monkeypatch):
    monkeypatch.setattr(watching, "A_STEP", timedelta(seconds=0.2))
    monkeypatch.setattr(watching.Cluster, "ages", lambda self: {})
    task = Partial()
    with pytest.raises(watching.Lost, match="a worker does not hand out what it has"):
        watching.Cluster(client).result(task)
    assert task.n_asked > 1


def test_modelled_holes_are_those_of_a_process_alone(client):
    own = {"missing": "model", "max_iter": 1}
    alone = fit(VAETransformer(**PARAMETERS | own), frames(), n_shards=4)
    vae = on(client, n_workers=1, **own).fit(collection())
    assert vae.model_.schema.holes == alone.model_.schema.holes != ()
    assert_array_equal(weights(vae), weights(alone))


def test_tasks_that_are_cancelled_are_begun_again(client):
    cluster = watching.Cluster(client)
    kept = watching.Kept(cluster)
    kept.futures["a"] = client.submit(len, "", pure=False, resources={"none has it": 1})
    kept.futures["a"].cancel()
    with pytest.raises(watching.Lost, match="its tasks were cancelled"):
        cluster.wait([kept.futures["a"]])
    kept.let_be(["a"], lambda names: [dask.delayed(len)("abc")])
    assert kept.futures["a"].result() == 3


def test_nothing_is_left_on_the_cluster(client):
    def left():
        return client.run_on_scheduler(
            lambda dask_scheduler: [
                *dask_scheduler.tasks,
                *dask_scheduler.extensions["queues"].queues,
                *dask_scheduler.extensions["variables"].variables,
            ]
        )

    def soon_empty(before):
        ends = time.monotonic() + 10.0
        while set(left()) - set(before) and time.monotonic() < ends:
            time.sleep(0.1)
        return not set(left()) - set(before)

    before = left()  # of workers that other tests have killed
    on(client, checkpoint_every=0.3).fit(collection())
    assert soon_empty(before)
    with pytest.raises(KeyError):
        on(client).fit(collection().map_partitions(fails, meta=frames()[0].head(0)))
    assert soon_empty(before)


def test_outputs_are_lazy_whatever_set_output_says(client):
    vae = on(client, max_iter=1).set_output(transform="pandas").fit(collection())
    few = frames()[1]
    with config_context(transform_output="pandas"):
        assert isinstance(vae.transform(collection()), dd.DataFrame)
    assert isinstance(vae.transform(few), pd.DataFrame)
    again = clone(vae)
    assert again.client is client
    assert isinstance(again.fit(collection()).transform(few), pd.DataFrame)
    local = vae.to_local()
    local.loss_curve_.append(0.0)
    assert len(vae.loss_curve_) == 1


def test_meta_says_what_comes(client):
    X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    index = pd.Index(np.arange(10, 610, 2), name="key")
    rows = dd.from_pandas(pd.DataFrame(X, index, list("abcd")), npartitions=3)
    vae = on(client, max_iter=1, n_shards=2).fit(rows)
    Z = vae.transform(rows)
    back = vae.inverse_transform(Z)
    for found in (Z, back, vae.score_features(rows)):
        dd.assert_eq(found, found.compute())
        assert found.index.name == "key"
    assert (Z.dtypes == np.float32).all()
    assert len(back.loc[10:20]) == 6
    assert vae.transform(da.from_array(X, chunks=100)).dtype == np.float32


def test_what_is_known_is_checked_when_a_method_is_called(client):
    vae = on(client, max_iter=1).fit(collection())
    with pytest.raises(ValueError, match="feature names"):
        vae.transform(collection().drop(columns="a"))
    with pytest.raises(ValueError, match="'nope'"):
        vae.score_samples(collection(), method="nope")
    with pytest.raises(ValueError, match=r"return_diagnostics=True is for rows in memory\. Got a"):
        vae.score_samples(collection(), return_diagnostics=True)
    with pytest.raises(ValueError, match="inverse_transform expects one for each of the 2"):
        vae.inverse_transform(da.ones((4, 3)))
    with pytest.raises(TypeError, match="must be a VAETransformer, which one worker fits"):
        DaskVAEOutlierDetector(vae, client=client).fit(collection())
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client that is not as"):
        on("tcp://scheduler:8786").fit(collection())
    sparse = da.from_array(np.eye(4), chunks=2).map_blocks(csr_array)
    with pytest.raises(TypeError, match="X must have dense blocks"):
        on(client).fit(sparse)
    texts = da.from_array(np.array(["a", "b"]), chunks=1)
    with pytest.raises(
        ValueError, match="sample_weight needs numbers, one for each row: could not"
    ):
        on(client).fit(da.ones((2, 2), chunks=(1, 2)), sample_weight=texts)


def test_a_warning_of_the_start_reaches_the_client_once(client):
    # Workers make the start, and the second segment has the same one.
    row = dd.from_pandas(frames()[0].head(1)[["a", "b", "c"]], npartitions=1)
    vae = on(client, n_components=1, prior=TwoGaussians(), max_iter=0)
    with pytest.warns(UserWarning) as said:
        vae.fit(row)
    told = [one for one in said if "could not be fitted to the codes of 1 rows" in str(one.message)]
    assert len(told) == 1
    assert told[0].filename == __file__  # the user's own line
