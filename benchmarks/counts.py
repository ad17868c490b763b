"""Bags of words: what count likelihoods gain, and what sparse rows cost in memory.

Held-out log-likelihood per document, in nats, of the 2,000 most frequent words of news_articles and
reuters_lda (at most 5,000 documents, 70/30): the bound for all held-out documents, and the
importance-sampled log-likelihood of 200 of them, with 10 components.

A density and a probability are not comparable as they are: a Gaussian gives a word that hardly
varies any density it likes. Integrated over the unit interval around each count, its density
becomes a probability, log P(k) = log(Phi((k + 1/2 - mu) / s) - Phi((k - 1/2 - mu) / s)) for one
cell given z. All cells share z, so for a document it is the density's integral over a unit cube. By
Jensen's inequality the mean over u ~ U(-1/2, 1/2) of log p(k + u) is a lower bound on its logarithm
(uniform dequantisation: Theis, van den Oord & Bethge 2016, eq. 4), and the one that a Gaussian
trained on k + u maximises. So the Gaussian is fitted to and scored on dense counts plus noise. The
column "at k" is the same model's log-density at the counts themselves: no probability, but the most
that it could hope for. Its noise is shared by the standardised words (noise="auto"), as factor
analysis is for at most 1,500 columns.

The second part measures, in processes of their own, the peak memory of a default fit to sparse
rows. Most is the network and its training; what grows with the rows is the difference between a
fit to 9,000 rows and one to 4,000, and has to stay below three times what the matrix itself grows.
(From 10,000 rows batches are larger; below 500 rows five folds are trained side by side; and with
few rows the peak is elsewhere: all three would hide what the rows take.)

Floors, checked on all sets: the better count likelihood is above the Gaussian, and the memory.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from _harness import (
    available,
    check_floors,
    parameters,
    parser,
    print_table,
    save,
    shared_data,
)
from scipy.sparse import random as random_sparse
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

SETS = ["news_articles", "reuters_lda"]
LIKELIHOODS = ["poisson", "negative_binomial", "gaussian"]
N_WORDS, MAX_ROWS, N_SAMPLED = 2000, 5000, 200
SPARSE_ROWS, FEW_ROWS, SPARSE_COLUMNS, DENSITY = 9000, 4000, 20_000, 0.01
GROWTH_FLOOR = 3.0  # times the sparse matrix


def documents(name):
    X, _, _ = shared_data().load(name, dtype=np.float64)
    frequent = np.argsort(-np.asarray(X.sum(axis=0)).ravel(), kind="stable")[:N_WORDS]
    return X[:MAX_ROWS, np.sort(frequent)]


def evaluate(name, likelihood, seed, settings):
    X = documents(name)
    train, test = train_test_split(X, test_size=0.3, random_state=seed)
    at_k = float("nan")
    if likelihood == "gaussian":
        rng = np.random.default_rng(seed)
        counts = test.toarray()
        train, test = (A.toarray() + rng.uniform(-0.5, 0.5, A.shape) for A in (train, test))
    settings = {"n_components": 10, "random_state": seed, **settings}
    start = time.perf_counter()
    vae = VAETransformer(likelihood=likelihood, **settings).fit(train)
    seconds = time.perf_counter() - start
    if likelihood == "gaussian":
        at_k = float(vae.score_samples(counts, method="elbo").mean())
    few = test[:N_SAMPLED]
    return {
        "set": name,
        "rows": train.shape[0],
        "words": X.shape[1],
        "seed": seed,
        "likelihood": likelihood,
        "ELBO": float(vae.score_samples(test, method="elbo").mean()),
        "ELBO of 200": float(vae.score_samples(few, method="elbo").mean()),
        "log p of 200": float(vae.score_samples(few).mean()),
        "at k": at_k,
        "start": vae.validation_scores_[0],
        "epochs": vae.best_iter_,
        "fit s": seconds,
    }


def sparse_counts(n_rows):
    def draw(size):
        return 1.0 + np.random.default_rng(1).poisson(1.0, size)

    shape = (n_rows, SPARSE_COLUMNS)
    generator = np.random.default_rng(0)
    return random_sparse(*shape, DENSITY, "csr", np.float32, random_state=generator, data_rvs=draw)


def memory_of_process(field):
    """Bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of_fit(n_rows):
    """Bytes that a default fit of one epoch adds at its peak, and what the parts take."""
    VAETransformer(2, max_iter=1).fit(np.random.default_rng(0).normal(size=(600, 5)))  # imports
    X = sparse_counts(n_rows)
    before = memory_of_process("VmRSS")
    vae = VAETransformer(max_iter=1, random_state=0).fit(X)
    peak = memory_of_process("VmHWM")  # ru_maxrss would remember the parent's
    return {
        "peak": peak - before,
        "sparse": X.data.nbytes + X.indices.nbytes + X.indptr.nbytes,
        "weights": sum(array.nbytes for array in vae.weights_.values()),
    }


def measure_memory():
    """Each fit in a process of its own, which gives freed arrays back to the system at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}

    def measured(n_rows):
        command = [sys.executable, "-W", "ignore", __file__, "--peak-of-fit", str(n_rows)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        return json.loads(run.stdout)

    many, few = measured(SPARSE_ROWS), measured(FEW_ROWS)
    mega = 2.0**20
    dense = 4 * SPARSE_ROWS * SPARSE_COLUMNS  # float32
    return {
        "rows": SPARSE_ROWS,
        "columns": SPARSE_COLUMNS,
        "peak MB": many["peak"] / mega,
        f"peak of {FEW_ROWS} rows MB": few["peak"] / mega,
        "growth MB": (many["peak"] - few["peak"]) / mega,
        "sparse growth MB": (many["sparse"] - few["sparse"]) / mega,
        "sparse MB": many["sparse"] / mega,
        "weights MB": many["weights"] / mega,
        "dense float32 MB": dense / mega,
    }


def main():
    arguments = parser(__doc__, seeds=2).parse_args()
    settings = parameters(arguments.parameters)
    rows = []
    for name in available(arguments.sets or SETS):
        for seed in range(arguments.seeds):
            for likelihood in LIKELIHOODS:
                rows.append(evaluate(name, likelihood, seed, settings))
                print_table(rows[-1:])
    if rows:
        print()
        print_table(rows)
    memory = measure_memory()
    print()
    print_table([memory])
    save("counts", rows, memory=memory)
    if arguments.sets:
        return

    def mean(name, likelihood):
        of = [r["ELBO"] for r in rows if (r["set"], r["likelihood"]) == (name, likelihood)]
        return float(np.mean(of))

    floors = []
    for name in available(SETS):
        best = max(mean(name, likelihood) for likelihood in LIKELIHOODS[:2])
        gain = best - mean(name, "gaussian")
        floors.append((f"{name}: nats a document above the dequantised Gaussian", gain, 0.0))
    grown = memory["growth MB"] / memory["sparse growth MB"]
    floors.append(("minus growth of peak memory, in sparse matrices", -grown, -GROWTH_FLOOR))
    check_floors(floors)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--peak-of-fit"]:
        print(json.dumps(peak_of_fit(int(sys.argv[2]))))
    else:
        main()
