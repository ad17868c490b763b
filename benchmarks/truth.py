"""Is log p(x) right? Against integrals over z, row by row, also for outliers.

Curved tables of eight likelihoods and of mixed columns; rows as those of training, with one cell 8
standard deviations off, with the columns shuffled, and with 40% missing. The models have a hidden
layer or two, so their posteriors bend and split.

With 1 or 2 components the truth is an integral over cells of z, from a grid and from the modes that
100 searches find, halved until it no longer changes.
With 5 or 10 it is importance sampling from Student-t distributions (3 degrees of freedom) at the
modes that 120 searches find: from codes of training rows, and from draws of the prior that are
spread by 1, 2 and 4. It draws until its own standard error is 0.01 nats or 200,000 samples are
used; rows where it is still above 0.03 are counted as "unsure", and not judged.

A row is wrong if it is off by more than 0.1 nats, and silent if, besides, no diagnostic says so.
Exits with 1 if any of the rows is silent.
"""

import math
import time
import warnings

import numpy as np
import torch
from _harness import check_floors, parameters, parser, print_table, save

from skvae import VAETransformer
from skvae._health import uncertain
from skvae._inference.climbing import climb

TABLES = [
    "gaussian",
    "student_t",
    "log_normal",
    "bernoulli",
    "categorical",
    "ordinal",
    "poisson",
    "negative_binomial",
    "mixed",
]
MIXED = {1: "bernoulli", 2: "categorical", 3: "poisson", 4: "log_normal"}
KINDS = ["ordinary", "cell off", "shuffled", "40% missing"]
COLUMNS = {1: 8, 2: 8, 5: 15, 10: 30}
FREQUENCY = {1: 1.5, 2: 1.5, 5: 0.8, 10: 0.5}  # of the waves: how much the surface bends
ROWS, WRONG = 28, 0.1  # rows of each kind: 1,008 in all for each number of components
LEVEL_CUTS = {"categorical": [-1, 0, 1], "ordinal": [-1.5, -0.5, 0.5, 1.5]}


# -- tables -----------------------------------------------------------------------------------


def surface(n_rows, k, seed):
    """Points on a k-dimensional surface of waves, the same for every seed; and a generator."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    z = rng.normal(size=(n_rows, k))
    inward, phase = fixed.normal(size=(k, 32)), fixed.normal(size=32)
    outward = fixed.normal(size=(32, COLUMNS[k])) / 2
    return np.sin(FREQUENCY[k] * z @ inward + phase) @ outward, rng


def table(name, n_rows, k, seed):
    f, rng = surface(n_rows, k, seed)
    if name == "gaussian":
        return f + 0.1 * rng.normal(size=f.shape)
    if name == "student_t":
        return f + 0.1 * rng.standard_t(3, size=f.shape)
    if name == "log_normal":
        return np.exp(f + 0.1 * rng.normal(size=f.shape))
    noisy = f + 0.2 * rng.normal(size=f.shape)
    if name == "bernoulli":
        return (noisy > 0).astype(float)
    if name in LEVEL_CUTS:
        return np.digitize(noisy, LEVEL_CUTS[name]).astype(float)
    rate = np.exp(1 + 1.2 * f)
    if name == "poisson":
        return rng.poisson(rate).astype(float)
    if name == "negative_binomial":
        return rng.negative_binomial(3, 3 / (3 + rate)).astype(float)
    X = f + 0.1 * rng.normal(size=f.shape)
    X[:, 1], X[:, 2] = noisy[:, 1] > 0, np.digitize(noisy[:, 2], LEVEL_CUTS["categorical"])
    X[:, 3], X[:, 4] = rng.poisson(np.exp(1 + f[:, 3])), np.exp(X[:, 4])
    return X


def likelihood_of(name, column):
    return MIXED.get(column, "gaussian") if name == "mixed" else name


def altered(kind, name, X, rng):
    """Rows of this kind."""
    X = X.copy()
    if kind == "shuffled":
        return np.stack([rng.permutation(column) for column in X.T], 1)
    if kind == "40% missing":
        X[rng.random(X.shape) < 0.4] = np.nan
    if kind == "cell off":
        for row, column in enumerate(rng.integers(0, X.shape[1], len(X))):
            X[row, column] = _off(likelihood_of(name, column), X[row, column], X[:, column], rng)
    return X


def _off(likelihood, value, column, rng):
    sign, spread = rng.choice([-1, 1]), column.std()
    if likelihood in ("gaussian", "student_t"):
        return value + 8 * spread * sign
    if likelihood == "log_normal":
        return max(value * np.exp(8 * np.log(column).std() * sign), 1e-30)
    if likelihood in ("poisson", "negative_binomial"):
        return np.rint(value + 8 * spread)
    return rng.choice(np.unique(column))


# -- truth ------------------------------------------------------------------------------------


class Posterior:
    """The joint density of some rows, as a function of row numbers and z."""

    def __init__(self, vae, X):
        fitted = vae.model_
        x, seen = fitted.columns.encode(fitted.read(X))
        self.log_jacobian = fitted.columns.log_jacobian_of(seen)
        self.module, self.x = fitted.module(), torch.from_numpy(x)
        self.seen = None if seen is None else torch.from_numpy(seen)
        self.codes = fitted.encode(fitted.read(table_rows(vae)), whiten=True)

    def rows(self, index):
        return self.x[index], None if self.seen is None else self.seen[index]

    @torch.no_grad()
    def log_joint(self, rows, z, at_once=50_000):
        halves = torch.from_numpy(rows).split(at_once), torch.from_numpy(z).split(at_once)
        parts = zip(*halves, strict=True)
        found = [self.module.log_joint(*self.rows(r), zs).numpy() for r, zs in parts]
        return np.concatenate(found) if found else np.empty(0)

    @torch.no_grad()
    def modes(self, n_searches, seed=0):
        """Ends of many climbs of each row: z (S, N, K), and the precision's factors there."""
        rng, k = np.random.default_rng(seed), self.module.n_components
        half = n_searches // 2
        starts = [self.codes[rng.permutation(len(self.codes))[:half]]]
        for spread in (1.0, 2.0, 4.0):
            starts.append(spread * rng.normal(size=(-(-half // 3), k)))
        z = torch.from_numpy(np.concatenate(starts))[:, None].expand(-1, len(self.x), -1)
        x, seen = self.rows(torch.arange(len(self.x)).repeat(len(z)))
        size = (len(z), len(self.x))
        loc, _, _ = climb(self.module, x, seen, z.reshape(-1, k))
        factor = torch.linalg.cholesky(self.module.curvature(loc, seen))
        return loc.reshape(*size, k).numpy(), factor.reshape(*size, k, k).numpy()


def table_rows(vae):
    return vae.trained_on


def by_cells(posterior, n_searches=100):
    """log p(x) of each row by halving cells of z until nothing changes; K is 1 or 2."""
    n, k = len(posterior.x), posterior.module.n_components
    width = 0.05 if k == 1 else 0.2
    side = np.arange(-12.0, 12.0, width)
    grid = np.stack(np.meshgrid(*[side] * k, indexing="ij"), -1).reshape(-1, k)
    rows, cells = [], []
    for row in range(n):
        value = posterior.log_joint(np.full(len(grid), row), grid)
        near = np.flatnonzero(value > value.max() - 60.0)
        rows.append(np.full(len(near), row))
        cells.append(np.floor(grid[near] / width).astype(np.int64))
    ends, _ = posterior.modes(n_searches)
    rows.append(np.tile(np.arange(n), len(ends)))
    cells.append(np.floor(ends.reshape(-1, k) / width).astype(np.int64))
    rows, cells, before = np.concatenate(rows), np.concatenate(cells), np.full(n, np.inf)
    around = np.stack(np.meshgrid(*[[-1, 0, 1]] * k, indexing="ij"), -1).reshape(-1, k)
    halves = np.stack(np.meshgrid(*[[0, 1]] * k, indexing="ij"), -1).reshape(-1, k)
    result, sure = np.full(n, np.nan), np.zeros(n, dtype=bool)
    for _ in range(18):
        rows, cells, value = _grown(posterior, rows, cells, width, around, 40.0)
        top, mass = np.full(n, -np.inf), np.zeros(n)
        np.maximum.at(top, rows, value)
        np.add.at(mass, rows, np.exp(value - top[rows]))
        total = top + np.log(np.maximum(mass, 1e-300)) + k * np.log(width)
        count = np.bincount(rows[value > top[rows] - 5.0], minlength=n)  # cells that matter
        settled = (np.abs(total - before) < 2e-3) & (count > 8**k) & ~sure
        result[settled], sure = total[settled], sure | settled
        if sure.all():
            break
        before, kept = total, (value > top[rows] - 30.0) & ~sure[rows]
        rows = np.repeat(rows[kept], len(halves))
        cells = (2 * cells[kept][:, None] + halves).reshape(-1, k)
        width /= 2.0
    return result + posterior.log_jacobian, sure


def _grown(posterior, rows, cells, width, around, margin):
    """Values of the cells and of those next to heavy ones, until none is new."""
    known = np.unique(np.column_stack([rows, cells]), axis=0)
    value = posterior.log_joint(known[:, 0], (known[:, 1:] + 0.5) * width)
    fresh = np.ones(len(known), dtype=bool)
    for _ in range(200):
        top = np.full(len(posterior.x), -np.inf)
        np.maximum.at(top, known[:, 0], value)
        heavy = known[fresh & (value > top[known[:, 0]] - margin)]
        shifts = np.column_stack([np.zeros(len(around), dtype=np.int64), around])
        beside = np.unique((heavy[:, None] + shifts).reshape(-1, known.shape[1]), axis=0)
        merged = np.concatenate([known, beside])
        _, first = np.unique(merged, axis=0, return_index=True)
        new = merged[np.sort(first[first >= len(known)])]
        if len(new) == 0:
            break
        found = posterior.log_joint(new[:, 0], (new[:, 1:] + 0.5) * width)
        fresh = np.concatenate([np.zeros(len(known), dtype=bool), np.ones(len(new), dtype=bool)])
        known, value = np.concatenate([known, new]), np.concatenate([value, found])
    return known[:, 0], known[:, 1:], value


def by_sampling(posterior, n_searches=120, df=3.0, at_once=4000, most=200_000):
    """log p(x) of each row by sampling t distributions at the modes of many searches."""
    ends, factors = posterior.modes(n_searches)
    rng, k, total, sure = np.random.default_rng(1), ends.shape[2], [], []
    for row in range(len(posterior.x)):
        loc, factor, share = _distinct(posterior, row, ends[:, row], factors[:, row])
        log_w = np.empty(0)
        while len(log_w) < most:
            which = rng.choice(len(loc), size=at_once, p=share)
            length = np.sqrt(df / rng.chisquare(df, size=at_once))
            noise = rng.normal(size=(at_once, k)) * length[:, None]
            root = np.linalg.inv(factor)
            z = loc[which] + np.einsum("sk,skj->sj", noise, root[which])
            log_q = [
                np.log(s) + _log_t((z - m) @ f, df) + np.log(np.diagonal(f)).sum()
                for m, f, s in zip(loc, factor, share, strict=True)
            ]
            log_joint = posterior.log_joint(np.full(at_once, row), z)
            log_w = np.append(log_w, log_joint - np.logaddexp.reduce(log_q, axis=0))
            w = np.exp(log_w - log_w.max())
            error = w.std() / w.mean() / math.sqrt(len(w))
            if error < 0.01 and len(log_w) >= 5 * at_once:
                break
        total.append(log_w.max() + np.log(w.mean()))
        sure.append(error < 0.03)
    return np.array(total) + posterior.log_jacobian, np.array(sure)


def _log_t(u, df):
    """Log density of k-dimensional standard t."""
    k = u.shape[1]
    constant = math.lgamma((df + k) / 2) - math.lgamma(df / 2) - k / 2 * math.log(math.pi * df)
    return constant - (df + k) / 2 * np.log1p((u**2).sum(1) / df)


def _distinct(posterior, row, ends, factors):
    """The modes that differ, with shares by their mass."""
    log_joint = posterior.log_joint(np.full(len(ends), row), ends)
    mass = log_joint - np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
    mass = np.where(np.isfinite(mass), mass, -np.inf)
    kept = []
    for end in np.argsort(-mass):
        if mass[end] < mass.max() - 15.0 or len(kept) == 30:
            break
        if all(np.linalg.norm((ends[end] - ends[k]) @ factors[k]) > 0.5 for k in kept):
            kept.append(end)
    share = np.exp(mass[kept] - mass.max()) + 0.02
    return ends[kept], factors[kept], share / share.sum()


# -- study ------------------------------------------------------------------------------------


def fitted(name, k, seed, settings):
    X = table(name, 3000, k, seed)
    likelihood = MIXED if name == "mixed" else name
    hidden = {"hidden_layer_sizes": (64, 64), "noise": "per_column", **settings}
    vae = VAETransformer(k, likelihood=likelihood, random_state=seed, **hidden).fit(X)
    vae.trained_on = X[:1000]
    return vae


def study(name, k, seed, settings, n_rows):
    vae, rng = fitted(name, k, seed, settings), np.random.default_rng(5)
    fresh, rows = table(name, n_rows, k, 1000 + seed), []
    for kind in KINDS:
        X = altered(kind, name, fresh, rng)
        begin = time.perf_counter()
        score, diagnostics = vae.score_samples(X, return_diagnostics=True)
        took = time.perf_counter() - begin
        truth, sure = (by_cells if k <= 2 else by_sampling)(Posterior(vae, X))
        error, flagged = score - truth, uncertain(diagnostics)
        wrong = (np.abs(error) > WRONG) & sure
        worst = np.abs(error[sure]).argmax() if sure.any() else 0
        rows.append(
            {
                "table": name,
                "K": k,
                "rows": kind,
                "n": n_rows,
                "wrong": int(wrong.sum()),
                "silent": int((wrong & ~flagged).sum()),
                "flagged": int(flagged.sum()),
                "unsure": int((~sure).sum()),
                "worst": float(error[sure][worst]) if sure.any() else math.nan,
                "median |error|": f"{np.median(np.abs(error[sure])):.4f}",
                "ms a row": 1e3 * took / n_rows,
            }
        )
    return rows


def main():
    p = parser(__doc__.splitlines()[0], seeds=1)
    p.add_argument("--components", type=int, nargs="*", default=[1, 2, 5, 10])
    p.add_argument("--rows", type=int, default=ROWS, help="rows of each kind")
    arguments = p.parse_args()
    warnings.simplefilter("ignore")
    settings, rows = parameters(arguments.parameters), []
    for k in arguments.components:
        for name in arguments.sets or TABLES:
            for seed in range(arguments.seeds):
                new = study(name, k, seed, settings, arguments.rows)
                print_table(new)
                rows += new
    save("truth", rows)
    floors = []
    for k in arguments.components:
        own = [row for row in rows if row["K"] == k]
        count = {key: sum(row[key] for row in own) for key in ("n", "wrong", "flagged", "unsure")}
        silent = sum(row["silent"] for row in own)
        print(f"K = {k}: {count}, silent {silent}")
        floors.append((f"K = {k}: rows that are silently wrong, negated", -silent, 0.0))
    check_floors(floors)


if __name__ == "__main__":
    main()
