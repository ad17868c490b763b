"""
A Dask cluster: one model of the rows of many workers
=====================================================

A cluster of Dask holds a table in partitions. Its workers fit one model together, score all rows,
and nothing but the answer comes back. The cluster here is two processes on this machine; the calls
are those for any other.

The table is one of machines: six sensors, a site, and gaps where a sensor was off.
"""

# %%
# A table in partitions
# ---------------------
# Each partition is made where it is needed, as one that is read from a file would be. One machine
# in a thousand has a sensor whose relation to the others is broken.

import tempfile
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

warnings.filterwarnings("ignore", message="Training reached max_iter")
SENSORS = ["inlet", "outlet", "flow", "speed", "power", "vibration"]
PARTITIONS, ROWS = 6, 800


def machines(number):
    """The machines of a partition."""
    rng = np.random.default_rng(number)
    load, season = rng.normal(size=(2, ROWS))
    mixed = np.stack([season, season + 0.5 * load, load, load, load**2, np.abs(load)], axis=1)
    frame = pd.DataFrame(mixed + 0.2 * rng.normal(size=mixed.shape), columns=SENSORS)
    frame["site"] = np.where(season > 0.3, "north", "south")
    frame["broken"] = rng.random(ROWS) < 0.001
    frame.loc[frame["broken"], "power"] -= 4.0
    frame.loc[rng.random(ROWS) < 0.1, "flow"] = np.nan
    return frame


# %%
# One model of all partitions
# ---------------------------
# Workers begin by importing the file that made them: what it does stands in a function.


def main():
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    from skvae.dask import DaskVAETransformer

    # Each worker reads some partitions, and all take the same steps.
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        table = dd.from_map(machines, range(PARTITIONS), meta=machines(0).head(0))
        rows = table.drop(columns="broken")
        vae = DaskVAETransformer(2, max_iter=5, random_state=0, client=client).fit(rows)
        print(f"{vae.n_iter_} epochs; held-out bound {max(vae.validation_scores_):.2f} nats a row")

        # Scores and codes are lazy: nothing is computed before it is asked for, and of all scores
        # only the lowest come back.
        scored = rows.assign(broken=table["broken"], score=vae.score_samples(rows, method="elbo"))
        oddest = scored.nsmallest(10, "score")[["site", "flow", "power", "score", "broken"]]
        print(oddest.compute().to_string(index=False, float_format="%.2f"))
        codes = vae.transform(rows).assign(site=rows["site"]).sample(frac=0.2, random_state=0)
        codes = codes.compute()

    # The model without Dask is a VAETransformer, for files, pictures and rows in memory.
    local = vae.to_local()
    print(f"{type(local).__name__}, of {local.n_features_in_} columns")
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for site, own in codes.groupby("site"):
        axes.scatter(own.iloc[:, 0], own.iloc[:, 1], s=5, label=site)
    axes.set(xlabel="component 0", ylabel="component 1", title="Machines, by their site")
    axes.legend()
    path = Path(tempfile.mkdtemp()) / "machines.png"
    figure.savefig(path, dpi=100)
    print(f"Wrote {path}")


if __name__ == "__main__":  # workers import this file
    main()
