"""Files: time to the first answer, sizes, and what becomes of files that were changed.

    python benchmarks/files.py
    python benchmarks/files.py --flips 1000

The times are of fresh interpreters in which numpy, scikit-learn and skvae are imported: to read a
model and encode one row. The floor is on the processor's time, which a busy machine changes less.
"""

import hashlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from _harness import check_floors, load_set, parser, print_table, save
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae import FileError, VAEImputer, VAEOutlierDetector, VAETransformer

MOST_MS = 50.0
MOST_PICKLE = 1.2
RUNS = 9

FIRST_ANSWER = """
import pickle, sys, time
import numpy, sklearn, skvae
with open(sys.argv[2], "rb") as file:
    row = pickle.load(file)
start, of_processor = time.perf_counter(), time.process_time()
model = skvae.load(sys.argv[1])
model.transform(row)
took = time.perf_counter() - start, time.process_time() - of_processor
print(1e3 * took[0], 1e3 * took[1], "torch" in sys.modules)
"""


def mixed(n_rows=1000):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, n_rows)
    frame = {f"number {n}": group + rng.normal(size=n_rows) for n in range(6)}
    for n in range(8):
        levels = np.array([f"level {k}" for k in range(3 + 5 * n)], dtype=object)
        frame[f"level {n}"] = pd.Categorical(levels[(group * (n + 1)) % len(levels)])
    frame = pd.DataFrame(frame)
    return frame.mask(rng.random(frame.shape) < 0.05)


def first_answer(model, row, folder):
    """Milliseconds by the clock and of the processor, the least; and whether torch was loaded."""
    skvae.save(model, folder / "model")
    (folder / "row").write_bytes(pickle.dumps(row))
    command = [sys.executable, "-c", FIRST_ANSWER, folder / "model", folder / "row"]
    # Compiled files are kept, as everywhere where a model is served.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    parts = []
    for _ in range(RUNS):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        parts.append(done.stdout.split())
    clock, processor = (min(float(part[n]) for part in parts) for n in (0, 1))
    return clock, processor, any(part[2] == "True" for part in parts)


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


def run_times(folder, seed):
    digits, frame = load_set("digits")[0], mixed()
    with_holes = digits.copy()
    with_holes[::7, 10] = np.nan
    sets = {"digits": digits, "digits with holes": with_holes, "mixed frame": frame}
    rows, floors = [], []
    for name, X in sets.items():
        vae = VAETransformer(random_state=seed, max_iter=5).fit(X)
        n_bytes = sum(array.nbytes for array in vae.weights_.values())
        clock, processor, torch = first_answer(vae, X[:1], folder)
        row = {
            "model": name,
            "first answer, ms": clock,
            "of the processor": processor,
            "torch": torch,
            "save ms": min(timed(skvae.save, vae, folder / "m") for _ in range(5)),
            "load ms": min(timed(skvae.load, folder / "m") for _ in range(5)),
            "file / weights": (folder / "m").stat().st_size / n_bytes,
            "pickle / weights": len(pickle.dumps(vae)) / n_bytes,
        }
        rows.append(row)
        floors += [
            (f"{name}: {MOST_MS:.0f} ms / first answer", MOST_MS / processor, 1.0),
            (f"{name}: no torch", float(not torch), 1.0),
            (f"{name}: {MOST_PICKLE} / pickle", MOST_PICKLE / row["pickle / weights"], 1.0),
        ]
    print_table(rows)
    return rows, floors


# -- changed files --------------------------------------------------------------------------------


def sealed(data):
    """The file with the checksum of what it now holds."""
    place = re.search(rb'sha256\\":\\"(.{64})', data, re.DOTALL)
    if place is None:
        return data
    before, after = data[: place.start(1)], data[place.end(1) :]
    digest = hashlib.sha256(before + b"0" * 64 + after).hexdigest()
    return before + digest.encode() + after


def outcome(path):
    try:
        model = skvae.load(path)
    except FileError:
        return "refused"
    except Exception as error:
        print(f"unexpected: {error!r}")
        return "another error"
    return "an estimator" if isinstance(model, BaseEstimator) else "another object"


def run_flips(folder, n_flips, seed):
    rng, X = np.random.default_rng(seed), load_set("wine")[0]
    small = VAETransformer(2, hidden_layer_sizes=(4,), max_iter=2, random_state=seed)
    holed = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    models = {
        "transformer": small.fit(X),
        "mixed frame": VAETransformer(2, hidden_layer_sizes=(4,), max_iter=2).fit(mixed(200)),
        "detector": VAEOutlierDetector(random_state=seed).fit(X[:60]),
        "imputer": VAEImputer(small, random_state=seed).fit(holed),
        "pipeline": make_pipeline(StandardScaler(), small).fit(X),
    }
    rows, floors, path = [], [], folder / "changed"
    for name, model in models.items():
        skvae.save(model, path)
        data = path.read_bytes()
        n_header = 8 + int.from_bytes(data[:8], "little")
        for how, n_places in (("as it is", len(data)), ("checksum made right", n_header)):
            found = []
            for place in rng.integers(0, n_places, n_flips // len(models)).tolist():
                other = bytearray(data)
                other[place] ^= int(rng.integers(1, 256))
                path.write_bytes(other if how == "as it is" else sealed(bytes(other)))
                found.append(outcome(path))
            counts = {
                kind: found.count(kind)
                for kind in ("refused", "an estimator", "another error", "another object")
            }
            rows.append({"file": name, "a byte changed": how, "files": len(found), **counts})
            good = counts["refused"] + (how != "as it is") * counts["an estimator"]
            floors.append((f"{name}, {how}: share that is clear", good / len(found), 1.0))
    print_table(rows)
    return rows, floors


def main():
    p = parser(__doc__.splitlines()[0], seeds=1)
    p.add_argument("--flips", type=int, default=10_000, help="changed bytes, of each kind")
    args = p.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times, floors = run_times(folder, args.seeds)
        flips, more = run_flips(folder, args.flips, args.seeds)
    save("files", times, flips=flips)
    check_floors([*floors, *more])


if __name__ == "__main__":
    main()
