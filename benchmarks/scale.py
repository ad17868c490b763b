"""Rows that do not fit into memory: how much memory they take, and what reading them costs.

    python benchmarks/scale.py
    python benchmarks/scale.py --rows 600000 --rounds 1    # a quick run

A table of 4 million rows and 64 columns, of float32, is written to a temporary folder, as Parquet
and as .npy: 1 GB each. In a process of its own under a limit of 900 MiB (RLIMIT_DATA: all private
memory that may be written, touched or not), one epoch is trained from the Parquet file, and codes
and bounds of all rows are written. The floor is that it ends. Then fits from memory, from a memory
map and from Parquet take turns. Times are of the processor, on one thread: rows a second in the
epochs alone, what comes before them, and the whole fit. The floors are on ratios of one run.

Then a Dask cluster on this machine fits some of the rows, with one worker and with two, each on one
thread, beside a process alone with the same shards. These times are of the clock: compare them on a
machine that does nothing else. A step with two workers has a sum over them, whose time is measured
alone, too.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from _harness import check_floors, parameters, parser, print_table, save

from skvae import VAETransformer, to_parquet

N_COLUMNS, N_CHUNK, N_SHARDS = 64, 100_000, 4
LIMIT_MB = 900
SOURCES = ["memory", "memory map", "Parquet"]
FLOORS = {"memory map": 0.95, "Parquet": 0.7}  # of the rows a second in memory, in epochs
SMALLEST = 2**25 // N_COLUMNS  # rows: smaller tables are not kept in a file


def write_rows(folder, n_rows):
    """The same rows as Parquet and as .npy: eight dimensions, bent, and noise."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(8, N_COLUMNS)).astype(np.float32)
    names = [f"x{column}" for column in range(N_COLUMNS)]
    shape = (n_rows, N_COLUMNS)
    X = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=shape)
    schema = pa.schema([(name, pa.float32()) for name in names])
    with ParquetWriter(folder / "rows.parquet", schema) as writer:
        for start in range(0, n_rows, N_CHUNK):
            n = min(N_CHUNK, n_rows - start)
            part = np.tanh(rng.normal(size=(n, 8)).astype(np.float32) @ loadings)
            part += 0.3 * rng.normal(size=part.shape).astype(np.float32)
            X[start : start + n] = part
            writer.write_table(pa.table(dict(zip(names, part.T, strict=True)), schema))
    X.flush()


def rows_from(folder, kind):
    if kind == "Parquet":
        return folder / "rows.parquet"
    X = np.load(folder / "rows.npy", mmap_mode="r")
    return X if kind == "memory map" else np.array(X)


class Clock:
    """Seconds of the processor when the linear start is there, and when each epoch is over."""

    def __init__(self):
        self.times = []

    def write(self, text):  # what verbose=2 prints
        if "nats a row" in text:
            self.times.append(time.process_time())

    def flush(self):
        pass


def fit(folder, kind, settings):
    """Fit for an epoch; seconds of the processor before training, in it, and of the whole fit."""
    X, clock = rows_from(folder, kind), Clock()
    vae = VAETransformer(8, **{"max_iter": 1, "random_state": 0, "verbose": 2} | settings)
    begun = time.process_time()
    with redirect_stdout(clock):
        vae.fit(X)
    ended, (start, *epochs) = time.process_time(), clock.times
    return vae, {"before": start - begun, "epochs": epochs[-1] - start, "fit": ended - begun}


def under_a_limit(folder, settings):
    """Fit, encode and score a file in little memory; the most that was in RAM, in MB."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_MB * 2**20,) * 2)
    vae, seconds = fit(folder, "Parquet", settings)
    begun = time.process_time()
    to_parquet(vae, folder / "rows.parquet", folder / "found.parquet", method=["transform", "elbo"])
    return seconds | {
        "codes and bounds": time.process_time() - begun,
        "MB with pages of files": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(what, folder, arguments):
    """What a fresh interpreter on one thread finds; None if it does not end well."""
    command = [sys.executable, __file__, "--child", what, str(folder), "--set"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments.parameters], stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


STEPS = 100  # sums over workers, to say how long one takes


class Wall(Clock):
    """Seconds of the clock, instead."""

    def write(self, text):
        if "nats a row" in text:
            self.times.append(time.perf_counter())


def sums_of(rank, n_numbers, name):
    """How long a worker takes for a sum over all of them, seconds each."""
    from skvae._cluster import watching, workers

    segment = workers.Segment(name, 2, 60.0, watching.A_STEP, 0, False, False)
    vector = torch.ones(n_numbers, dtype=torch.float64)
    with workers.met(segment, rank) as collective:
        collective.add(vector)
        begun = time.perf_counter()
        for _ in range(STEPS):
            collective.add(vector)
        return (time.perf_counter() - begun) / STEPS


def on_dask(folder, arguments):
    """A row for a process alone, and for one and two workers of Dask, with the same shards."""
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    from skvae.dask import DaskVAETransformer
    from skvae.distributed import fit as fit_alone

    n_rows, path = arguments.dask_rows, folder / "some.parquet"
    if not path.exists():
        from pyarrow.parquet import ParquetFile, ParquetWriter

        with (
            ParquetFile(folder / "rows.parquet") as file,
            ParquetWriter(path, file.schema_arrow) as writer,
        ):
            for number in range(n_rows // N_CHUNK):
                writer.write_table(file.read_row_group(number))
    settings = {"max_iter": 1, "random_state": 0, "verbose": 2} | parameters(arguments.parameters)
    rows = []
    for n_workers in (0, 1, 2):
        clock, begun = Wall(), time.perf_counter()
        if n_workers == 0:
            vae = VAETransformer(8, **settings)
            with redirect_stdout(clock):
                fit_alone(vae, path, n_shards=N_SHARDS)
        else:
            with (
                LocalCluster(n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
                Client(cluster) as client,
                redirect_stdout(clock),
            ):
                begun = time.perf_counter()
                own = {"client": client, "n_shards": N_SHARDS}
                vae = DaskVAETransformer(8, **settings, **own)
                vae.fit(dd.read_parquet(path, split_row_groups=True))
        ended, seconds = time.perf_counter(), clock.times[1] - clock.times[0]
        rows.append(
            {
                "rows by": f"Dask, {n_workers} workers" if n_workers else "a process alone",
                "rows/s in epochs": n_rows / seconds,
                "fit, s": ended - begun,
                "held-out bound": vae.validation_scores_[-1],
            }
        )
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        addresses = sorted(client.nthreads())
        size = sum(one.size for one in vae.weights_.values()) + 4
        tasks = [
            client.submit(sums_of, rank, size, "sums", workers=[address], pure=False)
            for rank, address in enumerate(addresses)
        ]
        print(f"A sum of {size} numbers over two workers: {1e3 * max(client.gather(tasks)):.2f} ms")
    return rows


def child(arguments):
    what, folder, settings = arguments.child[0], Path(arguments.child[1]), arguments.parameters
    if what == "limit":
        print(json.dumps(under_a_limit(folder, parameters(settings))))
    else:
        print(json.dumps(fit(folder, what, parameters(settings))[1]))


def compare(folder, arguments):
    """A row for each source, with the least of each time, and for each epoch's rate."""
    times = {kind: [] for kind in SOURCES}
    for _ in range(arguments.rounds):
        for kind in SOURCES:
            times[kind].append(in_a_process(kind, folder, arguments))
    rows = []
    for kind in SOURCES:
        least = {key: min(one[key] for one in times[kind]) for key in times[kind][0]}
        rows.append({"rows from": kind} | {f"{key}, s": value for key, value in least.items()})
        rows[-1]["rows/s in epochs"] = arguments.rows / least["epochs"]
        rows[-1]["rows/s of the fit"] = arguments.rows / least["fit"]
    return rows


def main(arguments):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, arguments.rows)
        limited = in_a_process("limit", folder, arguments)
        found = None
        if limited is not None:
            from pyarrow.parquet import read_metadata

            found = read_metadata(folder / "found.parquet").num_rows
            print(f"Under {LIMIT_MB} MiB, of {arguments.rows} rows:")
            print_table([limited])
        clusters = on_dask(folder, arguments)
        print_table(clusters)
        rows = compare(folder, arguments)
    print_table(rows)
    save("scale", rows, limited=limited, clusters=clusters, n_rows=arguments.rows)
    rates = {row["rows from"]: row["rows/s in epochs"] for row in rows}
    ends = (f"under {LIMIT_MB} MiB, all rows are written", float(found == arguments.rows), 1.0)
    check_floors(
        [
            ends,
            *(
                (f"{k}: rate over memory's", rates[k] / rates["memory"], f)
                for k, f in FLOORS.items()
            ),
        ]
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__, seeds=1)
    p.add_argument("--rows", type=int, default=4_000_000, help=f"more than {SMALLEST}")
    p.add_argument("--dask-rows", type=int, default=1_000_000, help="of the fits by a cluster")
    p.add_argument("--rounds", type=int, default=2, help="fits from each source")
    p.add_argument("--child", nargs=2, help="for the benchmark itself")
    arguments = p.parse_args()
    if arguments.child:
        child(arguments)
    else:
        main(arguments)
