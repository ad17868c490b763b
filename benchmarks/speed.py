"""Where speed is known: every figure is a ratio of two times that one run measured side by side.

Absolute times depend on the machine and on what else it does; the ratios are what to quote. All
runs on one thread of one core, unless it says otherwise, and the parts take turns at it. Parts:

* quality: seconds until a default VAETransformer has the held-out ELBO that a plain PyTorch VAE has
  after 20 epochs; the same of the fastest peer (_peers.py). A peer that has not got there after
  its 20 epochs counts with the time of these: a lower bound, as for TVAE, which has no ELBO.
  Gaussian columns on one scaling for all, one learnt noise, and categories; complete rows, of which
  a tenth is held out, at most 2000 of them evaluated, off the clock. Peers of more than 3 minutes
  are extrapolated from the epochs that they had.
* step: a training step of ours, of the plain loop, of JAX, and its matrix products alone.
* inference: rows a second; codes beside the encoder's products; one row through a pipeline.
* growth: exponents of the time in rows, columns and components; memory in sizes of the input.
* search: a grid search on two processes and on one; wants two idle cores.

    python benchmarks/speed.py                                   # all; results/speed.json
    python benchmarks/speed.py --parts quality --sets curved_20k_30

The functions named ``time_*`` and ``track_*`` follow asv. Exits with 1 below a floor.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _harness import check_floors, load_set, parameters, parser, print_table, save, shared_data
from _peers import HeldOut, Task, available_peers, can_import, plain, race, time_tvae
from _products import MULTIPLIERS, time_products
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from skvae import VAETransformer
from skvae._model.products import onednn_linear

N_COMPONENTS = 10
EPOCHS = 20
GRID = [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 30, 50, 80]  # epochs of ours
MAX_SCORED = 2000
REPEATED_ROWS = 20_000  # tables of more rows are run once
NO_PEERS = {"PyOD AE", "JAX"}  # no density; a reference
MIXED_PEERS = {"skorch"}  # that can be told of categories
SCORES = ["log_likelihood", "elbo", "reconstruction", "kl"]
SETTINGS = {}  # of VAETransformer, from --set
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def curved(n_rows, n_columns):
    """Clusters of 8 dimensions, strongly bent by a random two-layer tanh network, and noise."""
    rng = np.random.default_rng(0)
    z = StandardScaler().fit_transform(make_blobs(n_rows, 8, centers=10, random_state=0)[0])
    first, second = rng.normal(size=(8, 64)) / 8**0.5, rng.normal(size=(64, n_columns)) / 8
    X = np.tanh(2.0 * z @ first) @ second
    return (X + 0.1 * rng.normal(size=X.shape)).astype(np.float32)


WORK = {
    "curved_20k_30": lambda: curved(20_000, 30),
    "curved_50k_100": lambda: curved(50_000, 100),
    "mnist": lambda: load_set("mnist")[0][:60_000].astype(np.float32),
    "donors": lambda: levels_of_donors(100_000),
    "adult": lambda: load_set("adult")[0].dropna(),  # the peers take no missing values
}
SHARED = {"mnist", "donors", "adult"}
FLOORS = {"curved_20k_30": 10.0}  # of the plain loop's time by ours; 5 elsewhere


def levels_of_donors(n_rows):
    """Few values, which most rows share: a Gaussian density of them would have no limit."""
    X = pd.DataFrame(load_set("adb_donors")[0]).add_prefix("x")
    return X.sample(n_rows, random_state=0).astype(str)


def ours(**parameters):
    return VAETransformer(N_COMPONENTS, **parameters | SETTINGS)


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(calls, repeats=5):
    """Of each of several calls, taking turns."""
    return np.median([[seconds(call) for call in calls] for _ in range(repeats)], axis=0)


def load_average():
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


@contextmanager
def cores(only_one):
    """All cores that we have, or one of them: JAX takes a second one whatever it is told."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(CORES)} if only_one else CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- quality --------------------------------------------------------------------------------------


def split(X):
    """Nine tenths to train on, and at most MAX_SCORED of the rest."""
    train, held_out = train_test_split(X, test_size=0.1, random_state=0)
    return train, held_out[:MAX_SCORED]


def held_out_elbo(vae, X):
    return float(vae.score_samples(X, method="elbo").mean())


def scaled_task(train, held_out):
    """What the peers get: ours' scaling and network, and their clock's held-out rows."""
    start = ours(max_iter=0, likelihood="gaussian").fit(train)
    columns = start.model_.columns
    x, x_held_out = (columns.encode(X)[0].astype(np.float32) for X in (train, held_out))
    log_jacobian = float(columns.log_jacobian.sum())
    return _task(x, x_held_out, log_jacobian, ())


def mixed_task(train, held_out):
    """The same of a frame: standardised numbers and indicators of levels."""
    numbers = list(train.select_dtypes("number"))
    scaler, indicators = StandardScaler(), OneHotEncoder(handle_unknown="ignore")
    parts = [
        ("numbers", scaler, numbers),
        ("levels", indicators, list(train.drop(columns=numbers))),
    ]
    encoder = ColumnTransformer(parts, sparse_threshold=0.0).fit(train)
    x, x_held_out = (encoder.transform(X).astype(np.float32) for X in (train, held_out))
    scale = encoder.named_transformers_["numbers"].scale_ if numbers else np.ones(1)
    log_jacobian = -float(np.log(scale).sum())
    categories = encoder.named_transformers_["levels"].categories_
    return _task(x, x_held_out, log_jacobian, tuple(map(len, categories)))


def _task(x, x_held_out, log_jacobian, levels):
    hidden = (128, 128) if x.shape[1] < 100 else (256, 256)
    task = Task(x, hidden, N_COMPONENTS, EPOCHS, levels=levels)
    return task, HeldOut(x_held_out, x, log_jacobian, N_COMPONENTS, levels)


def time_fit(train, held_out, seed, **parameters):
    """A fit of ours: its seconds, and its held-out ELBO."""
    likelihood = "auto" if hasattr(train, "columns") else "gaussian"
    vae = ours(random_state=seed, likelihood=likelihood, **parameters)
    return seconds(lambda: vae.fit(train)), held_out_elbo(vae, held_out)


def cheapest_fit(train, held_out, target, seed):
    """The first of a growing number of epochs that reaches the target: (epochs, seconds, ELBO)."""
    for epochs in GRID:
        spent, reached = time_fit(train, held_out, seed, max_iter=epochs, early_stopping=False)
        if reached >= target:
            return epochs, spent, reached
    return epochs, np.inf, reached


def quality_row(name, seed, model, to_target, budget, reached, setup=0.0, epochs=EPOCHS):
    return {
        "set": name,
        "seed": seed,
        "model": model,
        "epochs": epochs,
        "to target s": to_target,
        "all epochs s": budget,
        "setup s": setup,
        "held-out nats": reached,
    }


def peer_row(name, seed, model, course, target):
    """Of a race. Epochs below the budget mean that the rest of the time was extrapolated."""
    return quality_row(
        name,
        seed,
        model,
        course.seconds_to(target),
        course.budget_seconds(EPOCHS),
        course.held_out[-1],
        course.setup,
        len(course.seconds),
    )


def quality_once(name, train, held_out, seed, peers):
    """The plain loop, ours and the peers, one after the other."""
    make_task = mixed_task if hasattr(train, "columns") else scaled_task
    task, evaluate = make_task(train, held_out)
    course = race(plain, task, evaluate, seed, limit=np.inf)
    target = course.held_out[-1]
    rows = [peer_row(name, seed, "plain", course, target)]
    # All 20 epochs: the target is what they reach, though an epoch before may have passed it.
    rows[0]["to target s"] = rows[0]["all epochs s"]
    epochs, spent, reached = cheapest_fit(train, held_out, target, seed)
    rows.append(quality_row(name, seed, "ours", spent, spent, reached, epochs=epochs))
    spent, reached = time_fit(train, held_out, seed)
    inside = spent if reached >= target else np.inf
    rows.append(quality_row(name, seed, "ours, default", inside, spent, reached, epochs="auto"))
    for model, run in peers.items():
        course = race(run, task, evaluate, seed)
        rows.append(peer_row(name, seed, model, course, target))
    return rows


def by_model(rows, seed):
    return {row["model"]: row for row in rows if row["seed"] == seed}


def waited(row):
    """Seconds until the target; where it was not reached, those of all epochs: at least."""
    return min(row["to target s"], row["all epochs s"])


def quality_ratios(name, rows, seeds):
    """The plain loop, the fastest peer with a density, and JAX by ours: medians over the seeds.

    JAX is no peer that one could install instead, but what compiling would bring: no floor.
    """
    to_plain, to_peer, to_jax, who = [], [], [], set()
    for seed in range(seeds):
        models = by_model(rows, seed)
        own = models["ours"]["to target s"]
        to_plain.append(models["plain"]["to target s"] / own)
        if "JAX" in models:
            to_jax.append(waited(models["JAX"]) / own)
        others = {m: r for m, r in models.items() if "ours" not in m and m not in NO_PEERS}
        fastest = min(others.values(), key=waited)
        to_peer.append(waited(fastest) / own)
        who.add(fastest["model"] + ("" if np.isfinite(fastest["to target s"]) else ", not there"))
    peer = f"{name}: fastest peer ({'; '.join(sorted(who))}) / ours, to the same ELBO"
    return [
        (f"{name}: plain / ours, to the same ELBO", np.median(to_plain), FLOORS.get(name, 5.0)),
        (peer, np.median(to_peer), 5.0),
        (f"{name}: JAX without compiling / ours", np.median(to_jax or [np.inf]), 0.0),
    ]


def measure_quality(name, seeds):
    X = WORK[name]()
    train, held_out = split(X)
    mixed = hasattr(X, "columns")
    seeds = seeds if len(X) <= REPEATED_ROWS else 1
    peers = {n: run for n, run in available_peers().items() if not mixed or n in MIXED_PEERS}
    warm_up(peers)
    rows = []
    for seed in range(seeds):
        rows += quality_once(name, train, held_out, seed, peers)
        if mixed and can_import("ctgan", "TVAE"):
            theirs = time_tvae(train, EPOCHS)
            rows.append(quality_row(name, seed, "TVAE", np.inf, theirs, np.nan))
    return rows, quality_ratios(name, rows, seeds)


def warm_up(peers):
    """Imports, compilation and first allocations, which are nobody's training time."""
    X = curved(600, 30)
    task, evaluate = scaled_task(X, X[:50])
    for run in [plain, *peers.values()]:
        race(run, task._replace(epochs=1), evaluate)
    ours(max_iter=2).fit(X)


# -- step -----------------------------------------------------------------------------------------

STEPS = {  # rows, columns, hidden layers, batch
    "30 columns, 64-64": (lambda: curved(12_800, 30), (64, 64), 128),
    "100 columns, 256-256": (lambda: curved(12_800, 100), (256, 256), 256),
    "MNIST, 400-400": (lambda: load_set("mnist")[0][:12_800].astype(np.float32), (400, 400), 128),
}


def our_epoch(X, hidden, batch):
    """One epoch of skvae's own training run, in the resources that fit takes; and its module."""
    from skvae import _fitting as fitting
    from skvae._inputs import given
    from skvae._resources import enough_threads, training_resources
    from skvae._training.loop import Run
    from skvae._training.plan import plan_for

    vae = ours(hidden_layer_sizes=hidden, batch_size=batch, max_iter=100, likelihood="gaussian")
    parameters = vae.get_params(deep=False)
    prepared = fitting.prepare(parameters, given(vae, X).rows, 0, None)
    start, rows = prepared.vae, prepared.rows
    plan = plan_for(parameters, len(rows))
    work = plan.work_per_step(start, len(rows))
    generator = fitting.generator_for(parameters, 0)
    run = Run(fitting.trainable(parameters, start), plan, generator, len(rows))

    def epoch():
        with enough_threads(work), training_resources(work, vae.precision):
            run.epoch(rows)

    return epoch, start


def plain_epoch(task):
    """One epoch of the plain loop."""
    return lambda: race(plain, task, lambda view: np.nan, limit=np.inf)


def jax_epoch_of(task):
    """One epoch in JAX, compiled; None without it."""
    from _peers import import_jax, jax_epoch, jax_order, module

    if not can_import("jax", "JAX"):
        return None
    jax = import_jax()
    train_epoch, start = jax_epoch(jax, task)
    data, key = jax.numpy.asarray(task.x), jax.random.key(0)
    order = jax_order(np.random.default_rng(0), task)
    model = module(task)

    def epoch():
        jax.block_until_ready(train_epoch(start(model), data, order, key))

    return epoch


def layers_of(vae):
    """(inputs, outputs, whether the gradient of the inputs is needed) of each dense layer."""
    layers = []
    for name, weight in vae.named_parameters():
        if name.endswith("weight"):
            n_out, n_in = weight.shape
            of_rows = name in ("encoder.linear.weight", "encoder.mlp.first.weight")
            layers.append((n_in, n_out, not of_rows))
    return layers


def measure_step(name, repeats):
    """Microseconds a step of each, and of the fastest way to multiply its matrices."""
    make, hidden, batch = STEPS[name]
    X = make()
    n_steps = len(X) // batch
    task = Task(StandardScaler().fit_transform(X), hidden, N_COMPONENTS, 1, batch)
    epoch, vae = our_epoch(X, hidden, batch)
    loops = {"ours": epoch, "plain": plain_epoch(task), "JAX": jax_epoch_of(task)}
    loops = {k: v for k, v in loops.items() if v is not None}
    products = {n: partial(time_products, n, layers_of(vae), batch) for n in MULTIPLIERS}
    times = {k: [] for k in [*loops, *products]}
    for _ in range(repeats + 1):  # the first is a warm-up
        for k, loop in loops.items():
            times[k].append(1e6 * seconds(loop) / n_steps)
        for k, product in products.items():
            times[k].append(1e6 * product())
    micro = {k: float(np.median(v[1:])) for k, v in times.items()}
    fastest = min(products, key=micro.get)
    return {"work": name, **micro, "fastest products": fastest}, step_floors(name, micro, fastest)


def step_floors(name, micro, fastest):
    floors = []
    if "JAX" in micro:
        floors.append((f"{name}: step of JAX / ours", micro["JAX"] / micro["ours"], 1.0))
    if name.startswith("MNIST"):
        share = micro[fastest] / micro["ours"]
        floors.append((f"{name}: matrix products ({fastest}) / our step", share, 1 / 1.5))
    if name.startswith("30"):
        floors.append((f"{name}: step of plain / ours", micro["plain"] / micro["ours"], 3.0))
    return floors


TWO_THREADS = """
import sys, time, warnings
import numpy as np
from threadpoolctl import threadpool_limits
from skvae import VAETransformer
warnings.simplefilter("ignore")
X, hidden, batch = np.load(sys.argv[1]), (int(sys.argv[2]),) * 2, int(sys.argv[3])
times = {1: [], 2: []}
for _ in range(6):
    for n_threads in times:
        vae = VAETransformer(10, hidden_layer_sizes=hidden, batch_size=batch, max_iter=2,
                             early_stopping=False, likelihood="gaussian", random_state=0)
        with threadpool_limits(limits=n_threads):
            start = time.perf_counter()
            vae.fit(X)
            times[n_threads].append(time.perf_counter() - start)
print(*(np.median(t[1:]) for t in times.values()))
"""


def track_two_threads(name):
    """Seconds of a fit on one thread, and where two are allowed; in a process of its own.

    Here ``torch.set_num_threads`` has been called, which threadpoolctl cannot undo.
    """
    make, hidden, batch = STEPS[name]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "X.npy"
        np.save(file, make())
        command = [sys.executable, "-c", TWO_THREADS, str(file), str(hidden[0]), str(batch)]
        with cores(only_one=False):
            printed = subprocess.run(
                command, capture_output=True, check=True, text=True, env=environment
            ).stdout
    return [float(word) for word in printed.split()]


def run_step(sets, seeds):
    names = [n for n in STEPS if shared_data() is not None or "MNIST" not in n]
    rows, floors = [], []
    for name in names:
        row, more = measure_step(name, 5)
        rows.append(row)
        floors += more
    print_section(f"step: microseconds ({load_average()})", rows)
    for name in names:
        one, two = track_two_threads(name)
        print(f"{name}: a fit on one thread {one:.2f} s, on two {two:.2f} s ({load_average()})")
        floors.append((f"{name}: fit on one thread / on two", one / two, 1 / 1.05))
    return rows, floors


# Decodings alone over the whole score. 0.45 is 0.3 ms a row where 64 decodings take 0.135.
SCORE_FLOORS = {"log_likelihood": 0.45, "elbo": 0.6, "reconstruction": 0.6}


# -- inference ------------------------------------------------------------------------------------


def time_methods(X):
    """Rows a second of transform, each score and sample; and the model's held-out ELBO."""
    train, held_out = split(X)
    vae = ours(random_state=0).fit(train)
    few = held_out[:500]
    speed = {"transform": len(train) / seconds(lambda: vae.transform(train))}
    for method in SCORES:
        spent = seconds(lambda m=method: vae.score_samples(few, method=m))
        speed[method] = len(few) / spent
    speed["sample"] = 10_000 / seconds(lambda: vae.sample(10_000, random_state=0))
    return {**{k: round(v) for k, v in speed.items()}, "nats": held_out_elbo(vae, held_out)}


def track_scores_decodings(X):
    """Each score of 2,000 rows beside as many decodings alone as a row has samples at least."""
    vae = ours(random_state=0).fit(X)
    few, module = X[:2000], vae.model_.module()
    k = module.n_components
    n_samples = {"log_likelihood": 64, "elbo": max(2 * k, 16), "reconstruction": max(2 * k, 16)}
    z = torch.randn(len(few), k, dtype=torch.float64)

    def decode(times):
        with torch.no_grad():
            for _ in range(times):
                module.decoder(z)

    calls = {}
    for method, n in n_samples.items():
        calls[method] = partial(vae.score_samples, few, method=method)
        calls[f"{n} decodings for {method}"] = partial(decode, n)
    spent = median_seconds(calls.values(), 3)
    return {name: 1e3 * s / len(few) for name, s in zip(calls, spent, strict=True)}


def track_transform_products(X):
    """Codes of X beside the encoder's matrix products on chunks as large, in both precisions."""
    vae = ours(max_iter=1, early_stopping=False, random_state=0).fit(X)
    sizes = [w.shape[::-1] for name, w in vae.weights_.items() if _multiplies_codes(name)]
    chunk = min(4096, 2**21 // max(len(w) for w in vae.weights_.values() if np.ndim(w)))
    calls = [lambda: vae.transform(X)]
    calls += [products_of_codes(sizes, len(X), chunk, t) for t in (torch.float64, torch.float32)]
    return median_seconds(calls, 3)


def _multiplies_codes(name):
    return name.startswith("encoder.") and name.endswith("weight")


def products_of_codes(sizes, n_rows, chunk, dtype):
    """The encoder's products alone, by MKL or, of float32, by oneDNN: the faster on AMD's."""
    by_onednn = dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    linear = onednn_linear if by_onednn else torch.nn.functional.linear
    factors = [
        (torch.randn(chunk, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in sizes
    ]

    def multiply():
        for _ in range(-(-n_rows // chunk)):
            for x, weight in factors:
                linear(x, weight)

    return multiply


def time_one_row(X, y, step):
    """Microseconds of a pipeline's predict of one row: median of 2000 calls."""
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("codes", step), ("clf", LogisticRegression())]
    )
    pipeline.fit(X, y)
    row = X[:1]
    return 1e6 * float(np.median([seconds(lambda: pipeline.predict(row)) for _ in range(2000)]))


def run_inference(sets, seeds):
    names = [n for n in sets if n in ("curved_20k_30", "curved_50k_100", "mnist")]
    rows = [{"rows/s": name, **time_methods(WORK[name]())} for name in names]
    if rows:
        print_section(f"inference: rows a second ({load_average()})", rows)
    floors = []
    if "mnist" in names:
        codes, double, single = track_transform_products(WORK["mnist"]())
        print(f"MNIST codes {codes:.2f} s; products float64 {double:.2f} s, float32 {single:.2f} s")
        rows.append({"codes s": codes, "float64 products s": double, "float32 products s": single})
        floors.append(("MNIST: float32 products / transform", single / codes, 1 / 1.3))
    if "curved_20k_30" in names:
        scores = track_scores_decodings(WORK["curved_20k_30"]())
        print("20k x 30, ms a row: " + ", ".join(f"{n} {ms:.3f}" for n, ms in scores.items()))
        rows.append({"ms a row": scores})
        ours_ms, alone_ms = list(scores.values())[::2], list(scores.values())[1::2]
        for name, own, alone in zip(list(scores)[::2], ours_ms, alone_ms, strict=True):
            floors.append((f"20k x 30: decodings alone / {name}", alone / own, SCORE_FLOORS[name]))
    X, y = load_set("digits")
    micro = {n: time_one_row(X, y, s) for n, s in _one_row_steps().items()}
    print(f"one row through a pipeline, us: {micro}")
    rows.append({"one row us": micro})
    return rows, [*floors, ("300 us / one row through a pipeline", 300 / micro["ours"], 1.0)]


def _one_row_steps():
    return {"ours": ours(max_iter=5, random_state=0), "PCA": PCA(N_COMPONENTS)}


# -- growth ---------------------------------------------------------------------------------------

FACTORS = np.array([1, 2, 4, 8])


def time_growth(make, **fixed):
    """Seconds of a fit of 2 epochs at each factor, and the exponent of the growth."""
    spent = []
    for factor in FACTORS:
        X, parameters = make(int(factor))
        settings = {"batch_size": 512, "hidden_layer_sizes": (128, 128)} | fixed | parameters
        vae = VAETransformer(max_iter=2, early_stopping=False, random_state=0, **settings)
        spent.append(float(median_seconds([lambda m=vae, X=X: m.fit(X)], 3)[0]))
    return spent, float(np.polyfit(np.log(FACTORS), np.log(spent), 1)[0])


GROWTH = {
    "rows (10k x 30)": lambda f: (curved(10_000 * f, 30), {"n_components": 10}),
    "columns (10k x 30)": lambda f: (curved(10_000, 30 * f), {"n_components": 10}),
    "components (10k x 100, 5)": lambda f: (curved(10_000, 100), {"n_components": 5 * f}),
}

# Not ru_maxrss: a child inherits it from the process that starts it.
MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from skvae import VAETransformer

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def fit(X):
    VAETransformer(10, max_iter=1, early_stopping=False, random_state=0).fit(X)

rng = np.random.default_rng(0)
fit(rng.normal(size=(1000, 50)))
X = rng.standard_normal((int(sys.argv[1]), 50))
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
before = peak()
fit(X)
print((peak() - before) / X.nbytes)
"""


def track_memory(n_rows):
    """Peak of a fit beyond the rows themselves, in sizes of the rows."""
    command = [sys.executable, "-c", MEMORY, str(n_rows)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def run_growth(sets, seeds):
    rows, floors = [], []
    for what, make in GROWTH.items():
        spent, exponent = time_growth(make)
        times = {f"{f}x s": s for f, s in zip(FACTORS, spent, strict=True)}
        rows.append({"growth in": what, **times, "exponent": exponent})
    print_section(f"growth: a fit of 2 epochs ({load_average()})", rows)
    memory = {f"{n} rows": track_memory(n) for n in (40_000, 400_000)}
    print(f"peak memory beyond the rows, in their size: {memory}")
    floors.append(("1.1 / exponent in rows", 1.1 / rows[0]["exponent"], 1.0))
    return [*rows, {"memory": memory}], floors


# -- search and import ----------------------------------------------------------------------------


def time_search(X, n_jobs, n_grid=8):
    """A grid search without a refit, which nobody can share."""
    vae = VAETransformer(hidden_layer_sizes=(32,), max_iter=30, random_state=0)
    grid = {"n_components": list(range(1, n_grid + 1))}
    search = GridSearchCV(vae, grid, cv=2, n_jobs=n_jobs, refit=False)
    return seconds(lambda: search.fit(X))


def run_search(sets, seeds):
    X = curved(2000, 30)
    before = load_average()
    for jobs in (1, 2):
        time_search(X[:200], jobs, 2)  # workers begin
    one, two = median_seconds([partial(time_search, X, 1), partial(time_search, X, 2)], 3)
    print(f"search: one process {one:.1f} s, two {two:.1f} s ({before} before)")
    floor = (f"search: one process / two ({before})", one / two, 1.8)
    return [{"one s": one, "two s": two, "load": before}], [floor]


def track_import():
    """Milliseconds that VAETransformer adds to scikit-learn's own import; median of 5 processes."""
    code = (
        "import sklearn.base, sklearn.utils.validation, sklearn.decomposition\n"
        "from time import process_time\n"
        "start = process_time()\n"
        "from skvae import VAETransformer; VAETransformer()\n"
        "print(process_time() - start)"
    )
    command = [sys.executable, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:  # compiled once, as for any user
        environment["PYTHONPYCACHEPREFIX"] = folder
        runs = [subprocess.run(command, capture_output=True, env=environment) for _ in range(6)]
    return 1e3 * float(np.median([float(run.stdout) for run in runs[1:]]))


# -- all ------------------------------------------------------------------------------------------


def print_section(title, rows):
    print(f"\n{title}")
    print_table(rows)


def run_quality(sets, seeds):
    rows, floors = [], []
    for name in sets:
        found, ratios = measure_quality(name, seeds)
        print_section(f"quality: {name} ({load_average()})", found)
        for what, value, _ in ratios:
            print(f"{what}: {value:.1f}")
        rows += found
        floors += ratios
    return rows, floors


PARTS = {
    "quality": run_quality,
    "step": run_step,
    "inference": run_inference,
    "growth": run_growth,
    "search": run_search,
}


def sets_to_run(asked):
    names = [n for n in asked or WORK if n not in SHARED or shared_data() is not None]
    if missing := [n for n in asked or WORK if n not in names]:
        print(f"skipped (no shared data here): {', '.join(missing)}")
    if unknown := set(names) - set(WORK):
        raise SystemExit(f"no such sets: {', '.join(sorted(unknown))}")
    return names


def run(arguments):
    SETTINGS.update(parameters(arguments.parameters))
    sets, rows, floors = sets_to_run(arguments.sets), {}, []
    import_ms = track_import()
    floors.append(("50 ms / import beyond scikit-learn's", 50 / import_ms, 1.0))
    for part in arguments.parts:
        with cores(only_one=part != "search"):
            rows[part], more = PARTS[part](sets, arguments.seeds)
        floors += more
        # An interrupted run leaves what it has.
        save("speed", rows, import_ms=import_ms, load=load_average(), settings=SETTINGS)
    print()
    if arguments.sets:
        print("floors not checked (--sets)")
    else:
        check_floors(floors)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=3)
    p.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    arguments = p.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        run(arguments)
