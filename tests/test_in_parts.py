"""Steps with much to multiply, in parts that have a thread each."""

import threading
from functools import partial

import numpy as np
import pytest
import threadpoolctl
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae._resources import together, training_resources
from skvae._training import in_parts
from skvae._training.hand_gradient import ElboByHand
from skvae._training.in_parts import n_parts_of


@pytest.fixture
def small_steps_have_parts(monkeypatch):
    monkeypatch.setattr(in_parts, "MUCH_WORK", 1.0)
    monkeypatch.setattr(in_parts, "FEWEST_ROWS", 8)


def _rows():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(150, 2))
    return np.tanh(z @ rng.normal(size=(2, 5))) + 0.1 * rng.normal(size=(150, 5))


def _fit(n_threads=2, X=None, **parameters):
    parameters = {"hidden_layer_sizes": (9,), "max_iter": 3, "random_state": 0} | parameters
    X = _rows() if X is None else X
    with threadpoolctl.threadpool_limits(n_threads):
        vae = VAETransformer(2, **parameters).fit(X)
        assert torch.get_num_threads() == n_threads
    return vae.transform(X)


def _told(monkeypatch, seen):
    def tell(self, *args):
        seen.append((threading.get_ident(), torch.get_num_threads(), len(args[0])))
        return call(self, *args)

    call = ElboByHand.__call__
    monkeypatch.setattr(ElboByHand, "__call__", tell)


def test_parts_depend_on_the_work_alone_and_have_enough_rows():
    assert n_parts_of(1e8, 2048) == 1
    assert n_parts_of(3e8, 2048) == 2
    assert n_parts_of(3e9, 2048) == 4
    assert n_parts_of(3e10, 2048) == n_parts_of(3e13, 2048) == 8
    assert n_parts_of(3e9, 300) == 2
    assert n_parts_of(3e9, 200) == n_parts_of(3e9, 0) == 1


@pytest.mark.usefixtures("small_steps_have_parts")
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_a_fit_in_parts_does_not_depend_on_the_number_of_threads(likelihood):
    one, two, four = (_fit(n_threads, likelihood=likelihood) for n_threads in (1, 2, 4))
    assert one.std() > 0.5
    assert_array_equal(one, two)
    assert_array_equal(one, four)


@pytest.mark.usefixtures("small_steps_have_parts")
def test_each_part_has_a_thread_of_one_thread(monkeypatch):
    seen = []
    _told(monkeypatch, seen)
    _fit()
    threads, n_threads, _ = zip(*seen, strict=True)
    assert set(n_threads) == {1}
    assert threading.get_ident() in threads
    assert len(set(threads)) > 1


@pytest.mark.usefixtures("small_steps_have_parts")
def test_where_one_thread_is_allowed_it_does_all_parts(monkeypatch):
    seen = []
    _told(monkeypatch, seen)
    _fit(1)
    assert {thread for thread, *_ in seen} == {threading.get_ident()}


def test_small_steps_have_no_parts(monkeypatch):
    monkeypatch.setattr(in_parts, "ElboInParts", None)
    _fit()


@pytest.mark.usefixtures("small_steps_have_parts")
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError, pytest.raises(MemoryError, match="in a part")),
        (KeyboardInterrupt, pytest.warns(ConvergenceWarning, match="interrupted after 0 epochs")),
    ],
)
def test_an_error_in_a_part_ends_the_fit_and_the_threads(error, told, own, monkeypatch):
    def fail(self, *args):
        if (threading.get_ident() == main) == own:
            raise error("in a part")
        return call(self, *args)

    main, call = threading.get_ident(), ElboByHand.__call__
    monkeypatch.setattr(ElboByHand, "__call__", fail)
    before = threading.active_count()
    with threadpoolctl.threadpool_limits(2):
        vae = VAETransformer(2, hidden_layer_sizes=(9,), max_iter=3)
        with told:
            vae.fit(_rows())
        assert torch.get_num_threads() == 2
    assert hasattr(vae, "model_") == (error is KeyboardInterrupt)  # then it is the linear start
    assert threading.active_count() == before


@pytest.mark.usefixtures("small_steps_have_parts")
def test_rows_with_holes_and_levels_train_in_parts(monkeypatch):
    rng, X = np.random.default_rng(0), _rows()
    X[rng.random(X.shape) < 0.2] = np.nan
    X[:, 4] = rng.integers(0, 3, 150)
    seen = []
    _told(monkeypatch, seen)
    assert np.isfinite(_fit(X=X, categorical_features=[4])).all()
    assert max(n_rows for *_, n_rows in seen) <= 64


@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 9])
def test_calls_are_dealt_to_all_threads_and_their_results_keep_their_order(n_threads):
    by_thread = {}

    def call(number):
        by_thread.setdefault(threading.get_ident(), []).append(number)
        return number

    resources = training_resources(1e9, "float32")
    with threadpoolctl.threadpool_limits(n_threads), resources, together() as at_once:
        assert at_once([partial(call, n) for n in range(4)]) == [0, 1, 2, 3]
    share = -(-4 // n_threads)
    assert len(by_thread[threading.get_ident()]) == share
    assert max(map(len, by_thread.values())) <= max(share, 4 - share if n_threads > 1 else 4)


def test_twins_share_the_memory_of_weights_and_buffers():
    vae = VAETransformer(2, max_iter=0).fit(_rows()).model_.module("cpu")
    twin = in_parts._with_gradients_of_its_own(vae)
    for one, other in zip(vae.state_dict().values(), twin.state_dict().values(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    assert all(parameter.grad is None for parameter in twin.parameters())
