"""Do Rubin's 95% intervals for a slope cover it, over many tables with holes?

Four columns: three correlated predictors and a response. The first predictor is missing for about
half of the rows, more often where the response is high: at random (MAR). ``VAEImputer`` draws 20
completed tables, least squares gives a slope in each, and Rubin's rules (1987), with the degrees of
freedom of Barnard & Rubin (1999), an interval. Beside it are the intervals of draws by fixed
parameters ("plug-in"), of the complete tables, and of rows without holes.

    python benchmarks/rubin.py
    python benchmarks/rubin.py --tables 50 --set max_iter=0

Exits with 1 below a floor.
"""

import time
import warnings

import numpy as np
from _harness import check_floors, parameters, parser, print_table, save
from scipy import stats

from skvae import VAEImputer, VAETransformer

N_ROWS = 200
N_DRAWS = 20
SLOPE = 0.7
CORRELATED = np.array([[1.0, 0.5, 0.3], [0.5, 1.0, 0.4], [0.3, 0.4, 1.0]])


def make_table(rng):
    x = rng.multivariate_normal(np.zeros(3), CORRELATED, N_ROWS)
    y = 1.0 + x @ [SLOPE, 0.5, -0.3] + rng.normal(size=N_ROWS)
    complete = np.column_stack([x, y])
    seen = complete.copy()
    odds = 1.0 / (1.0 + np.exp(0.3 - (y - 1.0)))
    seen[rng.random(N_ROWS) < odds, 0] = np.nan
    return complete, seen


def slope(table):
    """The slope of the first predictor, and its variance."""
    design = np.column_stack([np.ones(len(table)), table[:, :3]])
    coefficients = np.linalg.lstsq(design, table[:, 3], rcond=None)[0]
    left = table[:, 3] - design @ coefficients
    variance = left @ left / (len(table) - 4)
    return coefficients[1], variance * np.linalg.inv(design.T @ design)[1, 1]


def covers(estimate, variance, df):
    return abs(estimate - SLOPE) <= stats.t.ppf(0.975, df) * np.sqrt(variance)


def pooled(tables):
    """Rubin's estimate, its variance and degrees of freedom."""
    estimates, variances = np.transpose([slope(table) for table in tables])
    m, df_complete = len(tables), N_ROWS - 4
    between = (1.0 + 1.0 / m) * estimates.var(ddof=1)
    total = variances.mean() + between
    share = between / total
    df_observed = (df_complete + 1) / (df_complete + 3) * df_complete * (1.0 - share)
    return estimates.mean(), total, 1.0 / (share**2 / (m - 1) + 1.0 / df_observed)


def measure(number, settings):
    complete, seen = make_table(np.random.default_rng(number))
    model = {"n_components": 2, "likelihood": "normal_scores", "noise": "per_column"}
    vae = VAETransformer(**model, **settings) if settings else None
    imputer = VAEImputer(vae, random_state=number).fit(seen)
    proper = pooled(imputer.sample_imputations(seen, N_DRAWS, random_state=number))
    fitted, improper = imputer.vae_.model_, []
    for seed in range(N_DRAWS):
        cells = fitted.conditional(fitted.read(seen), seed=seed)
        improper.append(np.where(np.isnan(seen), cells, seen))
    known = seen[~np.isnan(seen[:, 0])]
    return {
        "estimate": proper[0],
        "se": np.sqrt(proper[1]),
        "proper": covers(*proper),
        "plug-in": covers(*pooled(improper)),
        "complete": covers(*slope(complete), N_ROWS - 4),
        "rows without holes": covers(*slope(known), len(known) - 4),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=1)
    p.add_argument("--tables", type=int, default=500)
    arguments = p.parse_args()
    settings = parameters(arguments.parameters)
    rows, start = [], time.perf_counter()
    for number in range(arguments.tables):
        rows.append(measure(number, settings))
        if (number + 1) % 50 == 0:
            so_far = np.mean([row["proper"] for row in rows])
            print(f"{number + 1} tables: {so_far:.3f} covered", flush=True)
    names = list(rows[0])
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    means["sd of the estimates"] = float(np.std([row["estimate"] for row in rows]))
    means["s a table"] = (time.perf_counter() - start) / len(rows)
    print_table([means])
    save("rubin", [means])
    check_floors(
        [
            ("coverage of Rubin's 95% intervals", means["proper"], 0.93),
            ("minus that coverage", -means["proper"], -0.97),
        ]
    )
