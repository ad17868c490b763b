"""Several processes fit one model: that of one process, whoever holds which rows, and dies."""

import json
import multiprocessing
import os
import runpy
import socket
import textwrap
from contextlib import nullcontext
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from torch.distributed import run as torch_run

from skvae import VAEOutlierDetector, VAETransformer, _sharded
from skvae._callbacks import SUPPORTED
from skvae._sharded import dealt
from skvae._table import spool
from skvae._together import device_of_rank
from skvae._training import rows as training_rows
from skvae._training.collective import Alone, Gloo, LostProcessError, together
from skvae._training.plan import Plan
from skvae._training.rows import DenseCells
from skvae._training.shards import NOISE, Shard, ShardedRows, ShardedRun, generator_of
from skvae.distributed import fit

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SIZES = (3000, 500, 1, 0, 80)
JOB = """
import os, pathlib, sys
import numpy as np
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_distributed import frames, weights
from skvae import VAETransformer
from skvae.distributed import fit
rank, out = int(os.environ.get("RANK", 0)), pathlib.Path({out!r})
{before}
vae = VAETransformer(2, max_iter=2, random_state=0, batch_size=300)
try:
    fit(vae, {X}, n_shards=4, {options})
    np.save(out / f"{{rank}}.npy", weights(vae))
except Exception as error:
    note = " ".join(getattr(error, "__notes__", []))
    (out / f"{{rank}}.txt").write_text(f"{{type(error).__name__}}: {{error}} {{note}}")
"""


def frames():
    """Parts of very different sizes, with holes in one and levels of their own in others."""
    rng = np.random.default_rng(0)
    loadings, parts = rng.normal(size=(2, 4)), []
    for number, size in enumerate(SIZES):
        cells = np.tanh(rng.normal(size=(size, 2)) @ loadings) + 0.3 * rng.normal(size=(size, 4))
        part = pd.DataFrame(cells, columns=list("abcd"))
        part["town"] = np.where(part["a"] > 0, "x", "yz"[number % 2])
        if number == 1:
            part.loc[::7, "b"] = np.nan
        parts.append(part)
    return parts


def weights(vae):
    return np.concatenate([vae.weights_[name].ravel() for name in sorted(vae.weights_)])


def _script(out, X="frames()", options="", before=""):
    out.mkdir()
    text = JOB.format(
        tests=str(Path(__file__).parent), out=str(out), X=X, options=options, before=before
    )
    (out / "job.py").write_text(textwrap.dedent(text))
    return str(out / "job.py")


def _run(n_processes, out, **job):
    """Start so many processes, as a launcher does, and wait for them."""
    script = _script(out, **job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(n_processes)}
    _forked(_run_script, [(script, {"RANK": str(rank)} | common) for rank in range(n_processes)])


def _forked(target, arguments):
    """A call in a process each: forks of one that has imported what all need.

    To import torch takes longer than these fits.
    """
    context = multiprocessing.get_context("forkserver")
    preload = ["pandas", "torch.distributed.run", "skvae._together", "test_distributed"]
    context.set_forkserver_preload(preload)
    started = [context.Process(target=target, args=args) for args in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    assert [process.exitcode for process in started] == [0] * len(started)


def _run_script(script, environment):
    os.environ.update(environment)
    runpy.run_path(script, run_name="__main__")


def _found(out):
    return [np.load(path) for path in sorted(out.glob("*.npy"))]


@pytest.fixture(scope="module")
def alone():
    vae = VAETransformer(2, max_iter=2, random_state=0, batch_size=300)
    return fit(vae, frames(), n_shards=4)


def test_a_process_alone_learns_from_every_row(alone):
    assert alone.model_.schema.columns[4].levels == ("x", "y", "z")
    assert alone.model_.columns.may_miss.tolist() == [False, True, False, False, False]
    assert alone.validation_scores_[2] > alone.validation_scores_[0] + 0.02
    whole = pd.concat(frames(), ignore_index=True)
    local = VAETransformer(2, max_iter=2, random_state=0, batch_size=300).fit(whole)
    assert alone.score(whole) == pytest.approx(local.score(whole), abs=0.1)


def test_the_start_is_that_of_the_same_rows_in_memory():
    whole = pd.concat(frames(), ignore_index=True)
    expected = VAETransformer(2, max_iter=0, random_state=0).fit(whole)
    vae = fit(VAETransformer(2, max_iter=0, random_state=0), frames())
    assert_allclose(vae.transform(whole), expected.transform(whole), rtol=1e-9, atol=1e-12)


def test_columns_of_holes_are_learned_as_of_rows_in_memory():
    whole = pd.concat(frames(), ignore_index=True)
    params = {"n_components": 2, "max_iter": 0, "random_state": 0, "missing": "model"}
    vae, expected = fit(VAETransformer(**params), frames()), VAETransformer(**params).fit(whole)
    assert vae.model_.schema.holes == expected.model_.schema.holes != ()
    assert_allclose(vae.transform(whole), expected.transform(whole), rtol=1e-9, atol=1e-12)
    trained = fit(VAETransformer(**params | {"max_iter": 1}), frames())
    assert trained.validation_scores_[0] < 0.0


def test_what_misses_only_in_rows_that_the_start_does_not_have(monkeypatch):
    monkeypatch.setattr(_sharded, "SAMPLE_CELLS", 5 * 600)
    parts = frames()
    parts[0].loc[[1, 3], "c"] = np.nan  # each sixth row is the start's
    vae = fit(VAETransformer(2, max_iter=1, random_state=0), parts, n_shards=3)
    assert vae.model_.columns.may_miss.tolist() == [False, True, True, False, False]
    assert np.isfinite(vae.score(parts[0][:10]))


def test_parts_that_are_made_are_read_a_few_times():
    made = []

    def parts():
        for number in range(20):
            made.append(number)
            yield frames()[0][100 * number : 100 * number + 100]

    fit(VAETransformer(2, max_iter=0, random_state=0), parts, n_shards=2)
    assert len(made) <= 8 * 20


def test_one_row_keeps_the_start():
    row = frames()[2]
    assert fit(VAETransformer(1, max_iter=3, random_state=0), row).n_iter_ == 0


@pytest.mark.parametrize("n_processes", [2, 5])  # the last has one with nothing to do
def test_more_processes_make_the_same_model(n_processes, alone, tmp_path):
    out = tmp_path / "out"
    _run(n_processes, out)
    found = _found(out)
    assert len(found) == n_processes
    for one in found:
        assert_array_equal(one, found[0])
    assert_allclose(found[0], weights(alone), rtol=1e-6, atol=1e-7)


def test_row_groups_of_a_file_are_read_apart_and_weights_count(tmp_path):
    whole = pd.concat(frames(), ignore_index=True)
    whole.to_parquet(tmp_path / "rows.parquet", row_group_size=700)
    weight = np.random.default_rng(0).integers(0, 3, len(whole)).astype(float)
    params = {"n_components": 2, "max_iter": 0, "random_state": 0}
    vae = fit(VAETransformer(**params), tmp_path / "rows.parquet", sample_weight=weight)
    expected = VAETransformer(**params).fit(whole, sample_weight=weight)
    assert_allclose(vae.transform(whole), expected.transform(whole), rtol=1e-6, atol=1e-9)
    trained = VAETransformer(2, max_iter=2, random_state=0)
    fit(trained, tmp_path / "rows.parquet", sample_weight=weight, n_shards=3)
    assert np.isfinite(trained.score(whole))


def test_an_error_in_one_process_comes_up_in_all_as_itself(tmp_path):
    X = "[f.assign(a=np.inf) if len(f) == 500 else f for f in frames()]"
    _run(2, tmp_path / "out", X=X)
    said = [(tmp_path / "out" / f"{rank}.txt").read_text() for rank in range(2)]
    for one in said:
        assert one.startswith("ValueError: Column 'a' needs finite numbers; row 0 holds inf")
        assert "of 2, which has the shards [" in one


ALL = """
class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a)
class Stops:
    def setup(self, estimator, context): pass
    def teardown(self, estimator, context): said.append("down")
    def on_fit_task_begin(self, estimator, context): pass
    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.parent is not None:
            said.append(np.isfinite(fitted_estimator.score(frames()[1])))
        return True
class Fails(Stops):
    def on_fit_task_end(self, estimator, context, **more): raise Odd("odd", 1)
def here_alone():
    if rank == 1:
        raise OSError("no such place")
    yield from frames()
said = []
def told(X, callback=None):
    vae = VAETransformer(2, max_iter=2, random_state=None, batch_size=600)
    if callback is not None:
        vae.set_callbacks(callback)
    try:
        said.append(fit(vae, X, n_shards=4).n_iter_)
        said.append(round(float(weights(vae).sum()), 6))
    except Exception as error:
        said.append(f"{type(error).__name__}: {error} {' '.join(error.__notes__)}")
told(frames())
told(here_alone)
if CALLBACKS:
    told(frames(), Stops())
    told(frames(), Fails())
(out / f"{rank}.json").write_text(__import__("json").dumps(said, default=bool))
"""


def test_fits_of_one_launch_agree_on_seeds_callbacks_and_errors(tmp_path):
    _run(2, tmp_path / "out", before=ALL.replace("CALLBACKS", str(SUPPORTED)))
    first, second = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in range(2))
    assert first[:3] == second[:3]
    assert first[2] == "OSError: no such place In process 1 of 2, which looks at X."
    if SUPPORTED:
        assert first[3:5] == [True, "down"]  # process 0 alone tells callbacks
        assert first[5:7] == second[3:5]
        assert first[5] == 1  # the callback has stopped all of them
        where = "In process 0 of 2, which is told of the epochs."
        assert first[7:] == ["down", f"Odd: odd {where}"]
        told = "Another process had an error of a class that pickle cannot carry over. Odd: odd"
        assert second[5:] == [f"RuntimeError: {told} {where}"]


# -- a process that dies ------------------------------------------------------------------------

DYING = """
from skvae._training import shards
moved, steps, round = shards.ShardedRun._moved, [], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def dying(self, value):
    steps.append(1)
    if {deaths}.get(round) == (rank, len(steps)):
        (out / f"{{round}}.died").touch()
        os.kill(os.getpid(), 9)
    return moved(self, value)
shards.ShardedRun._moved = dying
"""


def test_after_deaths_torchrun_goes_on_to_the_same_weights(alone, tmp_path):
    out = tmp_path / "out"
    options = f"checkpoint_dir={str(tmp_path / 'kept')!r}, checkpoint_every=0.0"
    deaths = {0: (0, 17), 1: (1, 3)}  # process 0 at its 17th of 22 steps; then the other, later
    script = _script(out, options=options, before=DYING.format(deaths=deaths))
    command = ["--nproc-per-node", "2", "--max-restarts", "2", script]
    _forked(torch_run.main, [(command,)])
    assert len(list(out.glob("*.died"))) == 2
    assert len(_found(out)) == 2
    for found in _found(out):
        assert_allclose(found, weights(alone), rtol=1e-6, atol=1e-7)
    assert list((tmp_path / "kept").iterdir()) == []  # removed when the fit has ended


class Died(BaseException):
    """What ends a process."""


def _killed_after(n_steps, monkeypatch):
    moved, steps = ShardedRun._moved, []

    def dying(self, value):
        steps.append(1)
        if len(steps) > n_steps:
            raise Died
        return moved(self, value)

    monkeypatch.setattr(ShardedRun, "_moved", dying)
    return steps


@pytest.mark.parametrize("n_steps", [1, 11, 17])  # an epoch has 11
def test_a_fit_goes_on_from_its_checkpoint_bit_by_bit(n_steps, alone, tmp_path, monkeypatch):
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 0.0, "n_shards": 4}

    def vae():
        return VAETransformer(2, max_iter=2, random_state=0, batch_size=300)

    with monkeypatch.context() as patch, pytest.raises(Died):
        _killed_after(n_steps, patch)
        fit(vae(), frames(), **kept)
    assert [path.name for path in tmp_path.iterdir()] == ["skvae-progress.pt"]
    with pytest.raises(ValueError, match="is that of another fit: of other parameters"):
        fit(vae().set_params(beta=2.0), frames(), **kept)
    with pytest.raises(ValueError, match="is that of another fit"):
        fit(vae(), frames(), sample_weight=np.r_[2.0, np.ones(sum(SIZES) - 1)], **kept)
    steps = _killed_after(100, monkeypatch)
    again = fit(vae(), frames(), **kept)
    assert len(steps) == 22 - n_steps
    assert_array_equal(weights(again), weights(alone))
    assert again.validation_scores_ == alone.validation_scores_
    assert again.loss_curve_ == alone.loss_curve_


class Store(dict):
    """What a store of torch's does, in one process, up to the size of a value."""

    def set(self, key, value):
        assert len(value) <= 2**23
        self[key] = value

    def get(self, key):
        return self[key]

    delete_key = dict.pop
    set_timeout = None


def test_what_is_large_goes_through_the_store_in_pieces_and_is_forgotten():
    one = object.__new__(Gloo)
    one.rank, one.size, one._store, one._n_gathered, one._kept = 0, 1, Store(), 0, []
    one._late = timedelta(seconds=1), timedelta(seconds=3)
    large = np.arange(3_000_000)
    for number in range(3):
        assert_array_equal(one.gather(large + number)[0], large + number)
        assert all(key.startswith(f"skvae/{number}/") for key in one._store)
    assert one.gather(1, to=1) == [] and one.gather(2, to=0) == [2]
    assert one.gather(3) == [3] and len(one._store) == 2


def test_whoever_waits_for_a_process_that_has_ended_is_told():
    one = object.__new__(Gloo)
    one.rank, one.size, one._store, one._n_gathered, one._kept = 0, 2, Store(), 0, []
    one._late = timedelta(seconds=1), timedelta(seconds=3)
    one._store.get = lambda key: (_ for _ in ()).throw(RuntimeError("socket timeout"))
    said = "Another process of this fit has ended, or has not answered for 3 s. Its own log"
    with pytest.raises(LostProcessError, match=said):
        one.gather(1)
    with pytest.raises(LostProcessError, match=said):
        together(one, lambda: one.gather(1), "here")


def test_epochs_of_one_step_are_kept_whatever_gave_the_seed(tmp_path, monkeypatch):
    states = [np.random.RandomState(0) for _ in range(3)]  # the address is no part of the seed
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 0, "n_shards": np.int64(2)}
    parts = frames()[1:]
    found = []
    for state, most in zip(states, (100, 2, 100), strict=True):
        vae = VAETransformer(2, max_iter=4, random_state=state, batch_size=1000)
        with monkeypatch.context() as patch:
            steps = _killed_after(most, patch)
            with pytest.raises(Died) if most == 2 else nullcontext():
                fit(vae, parts, **kept)
                found.append((len(steps), vae.validation_scores_))
    (n_steps, scores), (n_more, again) = found
    assert (n_steps, n_more) == (4, 2)
    assert again == scores


# -- shards ---------------------------------------------------------------------------------------


def test_pieces_are_dealt_the_largest_first():
    assert dealt([5, 1, 9, 0, 4], 2) == [[1, 2], [0, 3, 4]]
    assert dealt([3], 3) == [[0], [], []]


@pytest.mark.parametrize("n_rows", [1, 7, 100])
def test_an_epoch_has_every_row_of_a_shard_once(n_rows):
    shard = Shard(3, torch.arange(n_rows), torch.ones(n_rows), 1.0, n_rows)
    rows = ShardedRows(DenseCells(torch.arange(float(n_rows))[:, None], None), [shard], n_rows, 0)
    orders = rows.orders(0)
    assert not torch.equal(orders[0], rows.orders(1)[0]) or n_rows == 1
    steps = [batch.x for t in range(9) for batch, _ in rows.step(orders, (0, t, 9), (1, 2))]
    assert sorted(torch.cat(steps)[:, 0].tolist()) == list(range(n_rows))


def test_the_model_does_not_depend_on_whether_a_process_keeps_its_rows_in_a_file(monkeypatch):
    # One process of many rows keeps them in a file; of two, each may have room for its half.
    monkeypatch.setattr(training_rows, "BLOCK_ROWS", 8)
    monkeypatch.setattr(training_rows, "WINDOW_CELLS", 0)  # 128 rows are shuffled together
    vaes = []
    for most in (10**9, 100):
        monkeypatch.setattr(spool, "MOST_CELLS", most)
        vae = VAETransformer(2, max_iter=2, random_state=0, batch_size=300)
        vaes.append(fit(vae, frames(), n_shards=4))
    assert_allclose(weights(vaes[1]), weights(vaes[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_batches_of_fewer_rows_than_shards_are_all_alike(batch_size):
    n_steps = 640 // batch_size
    cells = DenseCells(torch.zeros(640, 1), None)
    shards = [
        Shard(n, torch.arange(40 * n, 40 * n + 40), torch.ones(40), 1.0, 40) for n in range(16)
    ]
    rows = ShardedRows(cells, shards, 640, 0)
    orders = rows.orders(0)
    sizes = [
        sum(len(batch.x) for batch, _ in rows.step(orders, (0, step, n_steps), (1, 2)))
        for step in range(n_steps)
    ]
    assert sum(sizes) == 640
    assert min(sizes) >= batch_size - 1
    assert max(sizes) <= batch_size + 2


def test_a_step_may_come_to_no_rows():
    X = np.random.default_rng(0).normal(size=(12, 3))
    parts = [pd.DataFrame(part, columns=list("abc")) for part in np.split(X, [8, 11])]
    vae = VAETransformer(1, max_iter=1, batch_size=1, random_state=0, early_stopping=False)
    assert np.isfinite(fit(vae, parts).loss_curve_).all()


def test_an_epoch_that_went_on_in_its_middle_can_be_taken_again(monkeypatch):
    X = np.random.default_rng(0).normal(size=(512, 4))
    start = VAETransformer(2, max_iter=0, random_state=0).fit(X)
    vae = start.model_.fresh_module(torch.device("cpu")).float().requires_grad_(True)
    shard = Shard(0, torch.arange(512), torch.ones(512), 1.0, 512)
    rows = ShardedRows(DenseCells(torch.from_numpy(X).float(), None), [shard], 512, 0)
    run = ShardedRun(vae, Plan(2, 128, 0.01), rows, Alone(), lambda: False)
    run.go_on_from(run.state() | {"numbers": [1, 1, 1.0, 0]})
    moved, steps = ShardedRun._moved, []

    def wild(self, value):
        steps.append(1)
        if len(steps) == 1:
            self.flat.live.fill_(torch.nan)
        return moved(self, value)

    monkeypatch.setattr(ShardedRun, "_moved", wild)
    assert np.isfinite(run.epoch(None))
    assert run.n_undone == 1


def test_noise_depends_on_its_place_alone():
    first = generator_of(7, NOISE, 1, 2, 3).standard_normal(5)
    assert_array_equal(first, generator_of(7, NOISE, 1, 2, 3).standard_normal(5))
    others = [(8, NOISE, 1, 2, 3), (7, 0, 1, 2, 3), (7, NOISE, 2, 1, 3), (7, NOISE, 1, 3, 2)]
    for place in others:
        assert not np.isin(first, generator_of(*place).standard_normal(50)).any()


@pytest.mark.parametrize("split", [1, 112, 511])
def test_gradients_of_uneven_shards_add_up_to_that_of_all_rows(split):
    # The mean of the shards' means, as DistributedDataParallel has it, would not.
    X = np.random.default_rng(0).normal(size=(512, 4)) * np.array([[1.0, 1.0, 3.0, 1.0]])
    X[:split] += 3.0
    start = VAETransformer(2, max_iter=0, hidden_layer_sizes=(), random_state=0).fit(X)
    gradients = []
    for bounds in ([0, 512], [0, split, 512]):
        vae = start.model_.fresh_module(torch.device("cpu")).float().requires_grad_(True)
        shards = [
            Shard(0, torch.arange(begin, end), torch.ones(end - begin), 1.0, end - begin)
            for begin, end in pairwise(bounds)
        ]
        cells = DenseCells(torch.from_numpy(X).float(), None)
        rows = ShardedRows(cells, shards, 512, 0)
        run = ShardedRun(vae, Plan(1, 512, 0.01), rows, Alone(), lambda: False)
        parts = rows.step([shard.index for shard in shards], (0, 0, 1), (1, 2))
        whole = [(batch, torch.zeros_like(eps)) for batch, eps in parts]  # noise is the shards'
        run._mean_of(whole)
        gradients.append(run.flat.grad.clone())
    assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device, expected", [("auto", "cuda:1"), ("cuda:0", "cuda:0")])
def test_each_process_of_a_host_has_a_gpu_of_its_own(device, expected, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank(device) == device or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of_rank(device) == expected
    assert device_of_rank("cpu") == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU.")
def test_processes_with_a_gpu_make_the_model_of_those_without(alone, tmp_path):
    before = "VAETransformer.__init__.__kwdefaults__['device'] = 'cuda'"
    _run(2, tmp_path / "out", before="from skvae import VAETransformer\n" + before)
    for found in _found(tmp_path / "out"):
        assert_allclose(found, weights(alone), rtol=1e-3, atol=1e-3)


# -- errors ---------------------------------------------------------------------------------------


def test_what_cannot_be_fitted_together_is_refused():
    with pytest.raises(
        TypeError, match=r"must be a VAETransformer\. Got VAEOutlierDetector instead"
    ):
        fit(VAEOutlierDetector(), frames())
    with pytest.raises(TypeError, match="X must be dense, or a source of rows, to be fitted by"):
        fit(VAETransformer(), csr_array(np.eye(3)))
    for n_shards in (0, 2.5, "x"):
        with pytest.raises(ValueError, match="The 'n_shards' parameter of fit must be None or an"):
            fit(VAETransformer(), frames(), n_shards=n_shards)
    with pytest.raises(ValueError, match="'checkpoint_every' parameter of fit must be a number"):
        fit(VAETransformer(), frames(), checkpoint_every=None)
    with pytest.raises(ValueError, match="X must have rows, and the list of frames has none"):
        fit(VAETransformer(), [frame[:0] for frame in frames()])
    with pytest.raises(ValueError, match="X must have rows, and the list of frames has none"):
        VAETransformer().fit([frame[:0] for frame in frames()])


def test_a_process_alone_needs_no_note():
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError) as raised:
        together(Alone(), fails, "here")
    assert not hasattr(raised.value, "__notes__")


def test_the_users_random_state_and_rows_stay_as_they_were():
    state, parts = np.random.RandomState(0), frames()
    before, moved = json.dumps(state.get_state()[1].tolist()), torch.get_rng_state()
    fit(VAETransformer(2, max_iter=1, random_state=np.random.RandomState(1)), parts)
    assert json.dumps(state.get_state()[1].tolist()) == before
    assert torch.equal(torch.get_rng_state(), moved)
    for part, expected in zip(parts, frames(), strict=True):
        pd.testing.assert_frame_equal(part, expected)
