"""Fit, transform and score times, against a plain PyTorch loop of the same network in the same run.

Absolute times depend on the machine and on what else it does; the ratios are what to quote. The
functions named ``time_*`` and ``track_*`` follow asv, so each can be run alone:

    python benchmarks/speed.py                       # all, as a table and results/speed.json
    python benchmarks/speed.py --sets blobs_20k_30   # one work item
"""

import subprocess
import sys
import time
import warnings

import numpy as np
import torch
from _harness import load_set, parser, print_table, save, shared_data
from sklearn.datasets import make_blobs
from torch import nn

from skvae import VAETransformer

EPOCHS = 3
BATCH = 128


def blobs(n_rows, n_columns):
    return make_blobs(n_rows, n_columns, centers=10, random_state=0)[0].astype(np.float32)


WORK = {
    "digits": lambda: load_set("digits")[0].astype(np.float32),
    "blobs_20k_30": lambda: blobs(20_000, 30),
    "blobs_50k_100": lambda: blobs(50_000, 100),
    "mnist_20k": lambda: shared_data().load("mnist")[0][:20_000].astype(np.float32),
}


class PlainVAE(nn.Module):
    """The VAE that a tutorial writes: Gaussian with unit variance, no linear path."""

    def __init__(self, n_columns, n_components, hidden):
        super().__init__()
        a, b = hidden
        self.encoder = nn.Sequential(nn.Linear(n_columns, a), nn.GELU(), nn.Linear(a, b), nn.GELU())
        self.to_loc, self.to_log_scale = nn.Linear(b, n_components), nn.Linear(b, n_components)
        self.decoder = nn.Sequential(
            nn.Linear(n_components, b),
            nn.GELU(),
            nn.Linear(b, a),
            nn.GELU(),
            nn.Linear(a, n_columns),
        )

    def forward(self, x):
        h = self.encoder(x)
        loc, log_scale = self.to_loc(h), self.to_log_scale(h)
        x_hat = self.decoder(loc + torch.exp(log_scale) * torch.randn_like(loc))
        kl = 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1) - log_scale
        return (0.5 * (x - x_hat) ** 2).sum(-1).mean() + kl.sum(-1).mean()


def time_plain_loop(X, hidden, n_components=10):
    """nn.Module, DataLoader and Adam(1e-3): seconds for EPOCHS epochs of batches of BATCH rows."""
    X = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
    data = torch.utils.data.TensorDataset(torch.from_numpy(X))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    model = PlainVAE(X.shape[1], n_components, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for (x,) in loader:
            loss = model(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def time_same_steps(X, n_components=10):
    """The same number of epochs and the same batches by VAETransformer, start included."""
    vae = VAETransformer(
        n_components, max_iter=EPOCHS, batch_size=BATCH, early_stopping=False, random_state=0
    )
    return _seconds(lambda: vae.fit(X))


def time_default_fit(X, n_components=10):
    return _seconds(lambda: VAETransformer(n_components, random_state=0).fit(X))


def time_methods(X, n_components=10):
    """Microseconds a row of transform and of each score, of a model that has been fitted."""
    vae = VAETransformer(n_components, max_iter=2, random_state=0).fit(X)
    micro = {"transform us/row": _seconds(lambda: vae.transform(X)) / len(X) * 1e6}
    few = X[:500]
    for method in ["log_likelihood", "elbo", "reconstruction", "kl"]:
        seconds = _seconds(lambda m=method: vae.score_samples(few, method=m))
        micro[f"{method} us/row"] = seconds / len(few) * 1e6
    return micro


def track_import():
    """Milliseconds that VAETransformer adds to scikit-learn's own import; median of 5 processes."""
    code = (
        "import sklearn.base, sklearn.utils.validation, sklearn.decomposition\n"
        "from time import process_time\n"
        "start = process_time()\n"
        "from skvae import VAETransformer; VAETransformer()\n"
        "print(process_time() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(5)]
    return 1e3 * float(np.median([float(run.stdout) for run in runs]))


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name):
    X = WORK[name]()
    hidden = (128, 128) if X.shape[1] < 100 else (256, 256)
    time_plain_loop(X[:1000], hidden)  # load what torch loads at the first step
    pairs = [(time_plain_loop(X, hidden), time_same_steps(X)) for _ in range(3)]
    plain, ours = np.median(pairs, axis=0)
    return {
        "work": name,
        "plain s": float(plain),
        "same steps s": float(ours),
        "plain / skvae": float(np.median([p / o for p, o in pairs])),
        "default fit s": time_default_fit(X),
        **time_methods(X),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__, seeds=1).parse_args()
    names = arguments.sets or [n for n in WORK if shared_data() is not None or "mnist" not in n]
    rows = [measure(name) for name in names]
    print_table(rows)
    import_ms = track_import()
    print(f"import: {import_ms:.1f} ms over scikit-learn's (at most 50)")
    save("speed", rows, epochs=EPOCHS, batch=BATCH, import_ms=import_ms)
    if import_ms > 50.0:
        raise SystemExit("the import takes too long")
    slower = [row["work"] for row in rows if row["plain / skvae"] < 1.0]
    if slower:
        raise SystemExit(f"slower than the plain loop, step for step: {', '.join(slower)}")
