"""Are the codes better than PCA's at the same number of components?

Default VAETransformer against PCA on standardised columns: linear probe, 5 nearest neighbours and
k-means (no scaler) on the codes, 70/30, several seeds. Exits with 1 below a floor.
"""

import time
import warnings

import numpy as np
from _harness import available, check_floors, load_set, parameters, parser, print_table, save
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer

SETS = ["digits", "wine", "breast_cancer", "letter_full", "satellite_full", "shuttle_full", "olive"]


def probe(model, X_train, X_test, y_train, y_test, seed):
    """Linear probe, 5-nearest-neighbour accuracy and adjusted Rand index, in percent."""
    Z_train, Z_test = model.transform(X_train), model.transform(X_test)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbours = KNeighborsClassifier(5)
    clusters = KMeans(len(np.unique(y_train)), n_init=10, random_state=seed).fit_predict(Z_test)
    return [
        100 * linear.fit(Z_train, y_train).score(Z_test, y_test),
        100 * neighbours.fit(Z_train, y_train).score(Z_test, y_test),
        100 * adjusted_rand_score(y_test, clusters),
    ]


def split(X, y, seed):
    rare = np.unique(y, return_counts=True)[1].min() < 2
    return train_test_split(X, y, test_size=0.3, random_state=seed, stratify=None if rare else y)


def compare(name, seeds, settings):
    X, y = load_set(name)
    n_components = min(10, -(-X.shape[1] // 3))
    ours, theirs, seconds = [], [], 0.0
    for seed in range(seeds):
        parts = split(X, y, seed)
        vae = VAETransformer(n_components, random_state=seed, **settings)
        start = time.perf_counter()
        vae.fit(parts[0])
        seconds += time.perf_counter() - start
        ours.append(probe(vae, *parts, seed))
        pca = make_pipeline(StandardScaler(), PCA(n_components)).fit(parts[0])
        theirs.append(probe(pca, *parts, seed))
    row = {"set": name, "scaling": vae.scaling_, "epochs": vae.best_iter_}
    for i, score in enumerate(["linear", "knn", "ari"]):
        a, b = np.mean(ours, axis=0)[i], np.mean(theirs, axis=0)[i]
        row |= {score: float(a), f"{score} PCA": float(b), f"{score} gain": float(a - b)}
    return row | {"fit s": seconds / seeds}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__, seeds=3).parse_args()
    settings = parameters(arguments.parameters)
    rows = []
    for name in arguments.sets or available(SETS):
        rows.append(compare(name, arguments.seeds, settings))
        print(name, flush=True)
    numbers = [key for key in rows[0] if isinstance(rows[0][key], float)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in numbers}
    print_table([*rows, {"set": "MEAN", "scaling": "", "epochs": "", **mean}])
    save("representation", rows, mean=mean)
    if rows and {row["set"] for row in rows} == set(SETS):
        check_floors(
            [
                ("linear probe over PCA, mean", mean["linear gain"], 1.5),
                ("linear probe over PCA, worst set", min(r["linear gain"] for r in rows), -2.0),
                ("5 nearest neighbours over PCA, mean", mean["knn gain"], 0.5),
                ("adjusted Rand index over PCA, mean", mean["ari gain"], 0.0),
            ]
        )
