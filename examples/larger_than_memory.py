"""
A folder of files: fit, codes and scores without holding its rows
=================================================================

A year of trips lies in a folder, a Parquet file for each month. The model is fitted to the folder
and its codes and scores are written to a file, all part by part. What is read back is what a
question needs: here the oddest trips, and where trips lie by the hour of the day.

The folder is small, so that the example takes seconds; the calls are those for a folder that
memory does not hold. The columns are as they come: numbers, levels, dates, and holes.
"""

# %%
# A year of trips
# ---------------
# Fares follow from distances, durations from distances and the hour. A few trips in each month are
# faults: the meter ran on while the taxi stood.

import tempfile
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from skvae import VAETransformer, to_parquet


def month_of_trips(month, n_rows=1000):
    """The trips of a month, and which of them are faults."""
    rng = np.random.default_rng(month)
    hour = rng.choice(24, n_rows, p=np.bincount(np.r_[0:24, 7:10, 16:20, 7:10]) / 34)
    rush = np.isin(hour, [7, 8, 9, 16, 17, 18, 19])
    km = rng.lognormal(1.2, 0.6, n_rows)
    minutes = km * np.where(rush, 4.0, 2.2) * rng.lognormal(0.0, 0.15, n_rows)
    fault = rng.random(n_rows) < 0.004
    minutes[fault] += 120.0
    frame = pd.DataFrame(
        {
            "day": pd.Timestamp(2025, month, 1) + pd.to_timedelta(rng.integers(0, 28, n_rows), "D"),
            "hour": hour,
            "zone": np.where(rng.random(n_rows) < 0.2 + 0.5 * (km > 5), "airport", "centre"),
            "km": km,
            "minutes": minutes,
            "fare": 3.0 + 1.9 * km + 0.3 * minutes + rng.normal(0.0, 0.5, n_rows),
            "tip": np.where(rng.random(n_rows) < 0.3, np.nan, rng.gamma(2.0, 1.0 + 0.2 * km)),
        }
    )
    return frame, fault


folder = Path(tempfile.mkdtemp())
(folder / "trips").mkdir()
faults = []
for month in range(1, 13):
    frame, fault = month_of_trips(month)
    frame.to_parquet(folder / "trips" / f"2025-{month:02}.parquet")
    faults.append(fault)
faults = np.concatenate(faults)
print(f"{len(faults)} trips, of which {faults.sum()} are faults, in 12 files")

# %%
# Fit to the folder
# -----------------
# A path stands for its rows. A level or a hole that only one file has is one of the column. Few
# epochs keep the example short, which a fit says.

warnings.filterwarnings("ignore", message="Training reached max_iter")
begun = time.perf_counter()
positive = dict.fromkeys(["km", "minutes", "fare", "tip"], "log_normal")
parameters = {"likelihood": positive, "noise": "per_column", "hidden_layer_sizes": (32,)}
vae = VAETransformer(2, **parameters, max_iter=12, random_state=0).fit(folder / "trips")
print(f"{time.perf_counter() - begun:.0f} s; likelihoods: {', '.join(vae.likelihood_)}")

# %%
# Codes and scores in a file
# --------------------------
# ``to_parquet`` writes a row for each row, in their order. ``"elbo"`` is the score for many rows.
# A run that was killed is gone on from by the next.

begun = time.perf_counter()
to_parquet(vae, folder / "trips", folder / "found.parquet", method=["transform", "elbo"])
print(f"{time.perf_counter() - begun:.0f} s")
found = pd.read_parquet(folder / "found.parquet")
print(found.describe().round(2).loc[["count", "mean", "std", "min", "max"]])

# %%
# The oddest trips
# ----------------
# Only the scores are sorted. The trips that they point at are read from their files.

oddest = found["elbo"].nsmallest(10).index
trips = pd.concat([pd.read_parquet(path) for path in sorted((folder / "trips").iterdir())])
shown = trips.iloc[oddest].assign(score=found["elbo"][oddest].to_numpy(), fault=faults[oddest])
print(shown.to_string(index=False, float_format="%.1f"))
least = found["elbo"].nsmallest(faults.sum()).index
print(f"Of the {faults.sum()} faults, {faults[least].sum()} are among as many oddest trips.")

# %%
# A map of trips
# --------------
# The codes are two numbers for each trip, whatever the trip has. The picture takes some of them.

some = np.arange(0, len(found), 4)
figure, axes = plt.subplots(figsize=(6, 4.5))
hours = trips["hour"].to_numpy()[some]
points = axes.scatter(*found.iloc[some, :2].to_numpy().T, c=hours, s=6, cmap="twilight")
axes.set(xlabel="component 0", ylabel="component 1", title="Trips by the hour of the day")
figure.colorbar(points, label="hour")
figure.savefig(folder / "trips.png", dpi=100)
print(f"Wrote {folder / 'trips.png'}")
