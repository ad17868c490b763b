"""Other processes compute the same, do not wait for ever, and do not take more threads than cores.

Each test is a program of its own, with a deadline: whatever hangs is ended.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE = 150.0  # seconds; the slowest takes about 15

START = """
import json, os, sys, threading, time, warnings

import joblib
import numpy as np
import torch
from sklearn.model_selection import GridSearchCV

from skvae import VAEOutlierDetector, VAETransformer

warnings.simplefilter("ignore")


def rows(n_rows, n_columns):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(n_rows, 2))
    noise = 0.3 * rng.normal(size=(n_rows, n_columns))
    return np.tanh(Z @ rng.normal(size=(2, n_columns))) + noise


def small(**params):
    return VAETransformer(**{"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 3,
                             "n_importance_samples": 4, "random_state": 0, **params})


def start_the_pool():
    # Products that torch splits among its threads: they wait for more of them from here on.
    x = torch.ones(1500, 1500)
    return float((x @ x).sum())


class Watched(VAETransformer):
    # Tells how many threads its fit has, and how many there are beside it.
    def fit(self, X, y=None):
        from skvae._model.networks import Encoder

        forward, self.seen_ = Encoder.forward, set()

        def tell(*args):
            self.seen_.add(torch.get_num_threads())
            return forward(*args)

        Encoder.forward = tell
        try:
            super().fit(X)
        finally:
            Encoder.forward = forward
        self.outside_ = torch.get_num_threads()
        return self


def fit_and_transform(X):
    vae = small().fit(X)
    return vae.transform(X), vae.score_samples(X)


def fit_watched(X):
    vae = Watched(2, hidden_layer_sizes=(8,), max_iter=2, random_state=0).fit(X)
    return os.getpid(), sorted(vae.seen_), vae.outside_
"""


def _run(tmp_path, program, **variables):
    """What a program prints last, as JSON."""
    path = tmp_path / "program.py"
    body = "".join(f"    {line}\n" for line in program.strip().splitlines())
    path.write_text(f'{START}\n\nif __name__ == "__main__":\n{body}')
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    running = subprocess.Popen(
        [sys.executable, str(path)],
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own processes end with it
    )
    try:
        out, errors = running.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        out, errors = running.communicate()
        pytest.fail(f"It hangs. It printed:\n{out}\n{errors}")
    assert running.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor sessions")


# -- workers --------------------------------------------------------------------------------------

SEARCH = """
import multiprocessing

X = rows(240, 6)
start_the_pool()


def search(n_jobs):
    grid = [{"n_components": [1], "alpha": [0.3]}, {"n_components": [2], "alpha": [0.0]}]
    found = GridSearchCV(small(), grid, cv=2, n_jobs=n_jobs, return_train_score=True).fit(X)
    results = found.cv_results_.items()
    scores = {k: v.tolist() for k, v in results if "score" in k and "time" not in k}
    return found.best_params_, scores, found.best_estimator_.transform(X)[:5].tolist()


context = multiprocessing.get_context("spawn")
with context.Pool(2) as pool:
    spawned = pool.map(fit_and_transform, [X[:150], X[:150]])
alone = fit_and_transform(X[:150])
gaps = [float(np.abs(a - b).max()) for result in spawned for a, b in zip(result, alone)]
told = {"one": search(1), "gaps": gaps}
for backend in ("loky", "threading", "multiprocessing"):
    with joblib.parallel_config(backend):
        told[backend] = search(2)
with joblib.parallel_config("loky", n_jobs=2):
    told["threads"] = joblib.Parallel()(joblib.delayed(fit_watched)(X) for _ in range(4))
print(json.dumps(told | {"cores": joblib.cpu_count()}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("search"), SEARCH)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_a_grid_search_with_two_workers_finds_what_one_finds(told, backend):
    # "multiprocessing" forks, here after torch's threads have been started.
    (best, scores, codes), (best_alone, scores_alone, codes_alone) = told[backend], told["one"]
    assert best == best_alone
    assert set(scores) == set(scores_alone) and "mean_test_score" in scores
    for name, expected in scores_alone.items():
        assert scores[name] == pytest.approx(expected, rel=1e-6), name
    for code, expected in zip(codes, codes_alone, strict=True):
        assert code == pytest.approx(expected, rel=1e-6)


def test_workers_together_take_no_more_threads_than_there_are_cores(told):
    assert 1 <= len({worker for worker, _, _ in told["threads"]}) <= 2
    for _, in_fit, outside in told["threads"]:
        assert in_fit == [1]
        assert 2 * outside <= max(told["cores"], 2)  # what large products would get


def test_spawned_workers_fit_and_transform_to_the_same(told):
    assert len(told["gaps"]) == 4 and max(told["gaps"]) < 1e-6


# -- after a fork ---------------------------------------------------------------------------------

FORK = """
import copy, signal

X = rows(5000, 40)  # a batch has more cells than torch gives to one thread
vae = VAETransformer(4, hidden_layer_sizes=(256, 256), max_iter=1, batch_size=4096, random_state=0,
                     n_importance_samples=2).fit(X)
codes = vae.transform(X)
detector = VAEOutlierDetector(small(max_iter=1), random_state=0).fit(X[:3000])
start_the_pool()
CALLS = {
    "fit": lambda: vae.fit(X).transform(X[:9]),
    "partial_fit": lambda: copy.deepcopy(vae).partial_fit(X).transform(X[:9]),
    "transform": lambda: vae.transform(X),
    "inverse_transform": lambda: vae.inverse_transform(codes),
    "sample": lambda: vae.sample(9000, random_state=0),
    "mode": lambda: vae.sample(9000, random_state=0, mode=True),
    "log_likelihood": lambda: vae.score_samples(X[:200]),
    "elbo": lambda: vae.score_samples(X, method="elbo"),
    "reconstruction": lambda: vae.score_samples(X, method="reconstruction"),
    "score_features": lambda: vae.score_features(X),
    "detector": lambda: VAEOutlierDetector(small(), random_state=0).fit(X[:3000]).predict(X[:99]),
    "detector's scores": lambda: detector.score_samples(X[:2000]),
}


def in_a_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def forked(call, expected):
    # "hangs", "fails", or how far the child's result is from the parent's.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(os.environ["SECONDS"]))  # ends it, whatever it waits for
        try:
            before = torch.get_num_threads()
            gap = float(np.abs(call() - expected).max() / np.abs(expected).max())
            left = before == torch.get_num_threads() == 2
            os.write(writing, (f"{gap}" if left else "changed").encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text or "hangs"


expected = {name: call() for name, call in CALLS.items()}
told = {name: forked(call, expected[name]) for name, call in CALLS.items()}
told["fit in a thread"] = forked(lambda: in_a_thread(CALLS["fit"]), expected["fit"])
print(json.dumps(told))
"""


def test_every_method_works_in_a_process_forked_after_torch_has_started_its_threads(tmp_path):
    told = _run(tmp_path, FORK, OMP_NUM_THREADS="2", SECONDS="40")
    assert len(told) > 10
    for call, gap in told.items():
        assert re.fullmatch(r"[-.\de]+", gap), (call, gap)
        assert float(gap) < 1e-3, (call, gap)  # a fit in float32 rounds as its threads share it


ENDING = """
import ctypes

# A thread gives back what MKL lent it after Python has joined it. Here it takes 0.2 seconds.
libc, key = ctypes.CDLL(None), ctypes.c_uint()
libc.pthread_key_create(ctypes.byref(key), libc.usleep)
ours, alive = set(), []


def work(item):
    ours.add(threading.get_native_id())
    libc.pthread_setspecific(key, ctypes.c_void_p(200_000))


def note():
    alive.append(ours & set(map(int, os.listdir("/proc/self/task"))))


os.register_at_fork(before=note)  # the last registered is called first
import torch

from skvae._resources import for_each

for_each(work, range(2), 1e12)
if os.fork() == 0:
    os._exit(0)
print(json.dumps([len(ours), len(alive[-1])]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="The system lists no threads.")
def test_a_fork_waits_until_threads_that_were_joined_have_ended(tmp_path):
    # Else a lock that one of them holds stays locked in the child.
    started, alive = _python(tmp_path, "import json, os, threading\n" + ENDING)
    assert started > 0 and alive == 0


THREADS = """
from skvae._resources import enough_threads


def in_child():
    reading, writing = os.pipe()
    if os.fork() == 0:
        import torch

        with enough_threads(1e12):
            os.write(writing, str(torch.get_num_threads()).encode())
        os._exit(0)
    return int(os.read(reading, 9))


def here():
    with enough_threads(1e12):
        return torch.get_num_threads()


first = in_child()
import torch

print(json.dumps([first, in_child(), here()]))
"""


def test_only_a_process_forked_after_torch_was_imported_is_kept_to_one_thread(tmp_path):
    # A server that forks its workers first, and lets each of them import torch, loses nothing.
    assert _python(tmp_path, "import json, os\n" + THREADS) == [2, 1, 2]


def _python(tmp_path, text):
    """What a short program, which imports what it needs itself, prints last, as JSON."""
    program = tmp_path / "program.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_threads_that_leave_in_any_order_restore_the_pools():
    import threading

    import threadpoolctl
    import torch  # noqa: F401  its pool, too

    from skvae._resources import enough_threads

    def pools():
        return [(pool["user_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(2):
        before = pools()
        first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

        def first():
            with enough_threads(1.0):
                first_in.set()
                second_in.wait(20)
            first_out.set()

        def second():
            first_in.wait(20)
            with enough_threads(1.0):
                second_in.set()
                first_out.wait(20)

        threads = [threading.Thread(target=target) for target in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pools() == before
