"""A GPU's step: nothing of it is read back, and a recording of it does what it does."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from skvae import VAETransformer
from skvae._model.vae import VAE
from skvae._training import loop, recorded
from skvae._training.loop import Run
from skvae._training.plan import Plan
from skvae._training.rows import Batch, DenseCells, Rows
from skvae.likelihoods import LIKELIHOODS
from skvae.likelihoods._mixed import ColumnLikelihoods
from skvae.priors import StandardNormal

D, K, N = len(LIKELIHOODS), 3, 50
PLAN = Plan(max_epochs=4, batch_size=16, learning_rate=0.01, alpha=0.1, n_samples=2)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU.")


def _vae():
    """One column of each kind."""
    likelihood = ColumnLikelihoods([kind() for kind in LIKELIHOODS.values()], [2] * D)
    vae = VAE(likelihood, StandardNormal(), n_components=K, hidden_layer_sizes=(8, 5))
    vae.initialise(torch.Generator().manual_seed(0))
    return vae


def _rows():
    x = (torch.rand((N, D), generator=torch.Generator().manual_seed(1)) > 0.5).float()
    x[:, list(LIKELIHOODS).index("log_normal")] += 1.0  # all others admit 0 and 1
    return Rows(DenseCells(x, None), torch.ones(N))


def _run(epochs=4, plan=PLAN, rows=None):
    run = Run(_vae(), plan, torch.Generator().manual_seed(2), N)
    bounds = [(run.epoch(rows or _rows()), run.kl) for _ in range(epochs)]
    return bounds, run


@pytest.fixture
def records(monkeypatch):
    """Recordings that are made here, where what is recorded can only be done again."""
    made = []
    monkeypatch.setattr(loop, "can_record", lambda device: True)
    monkeypatch.setattr(recorded, "record", lambda launch, device: made.append(launch) or launch)
    return made


def test_a_run_with_recorded_steps_is_the_run_without(request):
    bounds, run = _run()
    records = request.getfixturevalue("records")
    again, other = _run()
    assert len(records) == 1
    assert_close((again, other.snapshot()), (bounds, run.snapshot()), rtol=0.0, atol=0.0)


def test_the_first_steps_and_the_rest_of_the_rows_are_not_recorded(records):
    taken = []

    class Told(Run):
        def _take_step(self, batch, eps):
            is_recording = self._recorded is not None and batch is self._recorded.batch
            taken.append((len(batch.x), is_recording))
            return super()._take_step(batch, eps)

    run = Told(_vae(), PLAN, torch.Generator().manual_seed(2), N)
    for _ in range(2):
        run.epoch(_rows())
    assert taken == [(16, False)] * 3 + [(2, False)] + [(16, True)] * 3 + [(2, False)]
    assert len(records) == 1


def test_a_gpu_that_cannot_record_trains_on_and_says_so(records, monkeypatch):
    def fail(launch, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    bounds, _ = _run(plan=replace(PLAN, batch_size=15))
    monkeypatch.setattr(recorded, "record", fail)
    with pytest.warns(RuntimeWarning, match="so training is slower: operation not") as told:
        again, _ = _run(plan=replace(PLAN, batch_size=15))
    assert again == bounds
    assert len(told) == 1


def test_a_resumed_run_warms_up_anew(records):
    memory = _run(1)[1].memory()
    resumed = Run(_vae(), PLAN, torch.Generator().manual_seed(2), N)
    resumed.resume(memory)
    resumed.epoch(_rows())
    assert records == []


def test_a_recording_reads_each_batch_where_the_first_one_was(records):
    def step(batch, eps):
        return (batch.x.sum(1) * batch.weight).sum() + eps.sum()

    batches = [
        (Batch(torch.full((4, 2), v), None, torch.full((4,), v)), torch.full((1, 4, 3), v))
        for v in (1.0, 2.0)
    ]
    take = recorded.Recorded(step, batches[0][0], (1, 4, 3))
    assert [float(take(*batch)) for batch in batches] == [float(step(*b)) for b in batches]


def test_a_learning_rate_that_is_looked_up_is_that_rate():
    bounds, run = _run()
    other = Run(_vae(), PLAN, torch.Generator().manual_seed(2), N)
    other.optimizer._rate = torch.zeros(())  # as on a GPU
    again = [(other.epoch(_rows()), other.kl) for _ in range(4)]
    assert_close(again, bounds, rtol=1e-6, atol=0.0)
    assert_close(other.snapshot(), run.snapshot(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("change", [{"kl_warmup": 0.5}, {"objective": "iwae"}])
def test_what_changes_from_step_to_step_is_not_recorded(records, change):
    _run(plan=replace(PLAN, **change))
    assert records == []


def test_rows_with_missing_values_are_not_recorded(records):
    x = _rows().cells.x
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[3, 2] = False
    _run(rows=Rows(DenseCells(x, observed), torch.ones(N)))
    assert records == []


def test_a_step_stays_on_its_device_and_reads_nothing_back():
    # Tensors of the device "meta" have no values: to mix or to read them is an error.
    vae = _vae()
    read_once = vae.encoder.may_miss, vae.decoder.tamed  # before the first step
    vae.to("meta")
    vae.encoder.may_miss, vae.decoder.tamed = read_once
    run = Run(vae, PLAN, None, N)
    run.optimizer._rate = 0.0  # torch's optimiser takes no tensor for it on "meta"
    x, weight = torch.empty((16, D), device="meta"), torch.empty(16, device="meta")
    for _ in range(5):
        value = run._step(Batch(x, None, weight))
    assert {value.bound.device.type, value.kl.device.type} == {"meta"}


@gpu
def test_a_recorded_fit_is_the_fit_of_the_processor():
    X = torch.randn((2000, 12), generator=torch.Generator().manual_seed(0)).numpy()
    params = {"n_components": 4, "max_iter": 5, "random_state": 0, "early_stopping": False}
    ours = VAETransformer(**params, device="cuda").fit(X)
    theirs = VAETransformer(**params, device="cpu").fit(X)
    assert ours.score(X) == pytest.approx(theirs.score(X), abs=0.1)
